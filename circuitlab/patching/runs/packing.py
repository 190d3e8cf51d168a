"""How many rows fit into one run: a memory budget in bytes, never a number of rows that a user has to estimate.

The budget is of the rows that are run together. What a call keeps beside them (the two recorded runs of a batch, result
tables, the weights) comes on top; docs/performance.md has the size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from circuitlab.data.batch import PairBatch
from circuitlab.errors import ConfigError
from circuitlab.models.memory import ERRORS, available, is_out_of_memory
from circuitlab.models.protocol import Model
from circuitlab.resources import Resources

# Share of the free memory that one packed run may fill, and a ceiling: larger packs are not faster on a CPU.
FREE_SHARE = 0.25
CEILING = 512 * 2**20
# On a CPU as much is tried however little is left: memory that a process has freed counts as taken, but serves again.
LEAST = 16 * 2**20
# Bytes of a pack from which a CPU gets slower: every pass over an MLP's hidden layer goes to memory then.
CACHED = 192 * 2**20


def default_budget(device: torch.device) -> int:
    """Bytes that a packed run may take when the user names no budget.

    Returns:
        Bytes.
    """
    share = int(FREE_SHARE * available(device))
    return share if device.type == "cuda" else min(CEILING, max(LEAST, share))


def bytes_per_row(model: Model, n_tokens: int, extra_streams: int = 0) -> int:
    """About how many bytes one prompt takes in a packed run.

    Args:
        model: Its widths give the size of a token.
        n_tokens: Prompt length.
        extra_streams: How many more tensors of the stream's size stay alive for every row.

    Returns:
        Bytes.
    """
    spec = model.spec
    # Alive at once in a block: the stream and its norm, q, k, v and z, an MLP's hidden layer (4 d_model, twice for
    # gated ones), the attention scores twice; at the end the logits of one position.
    block = 14 * spec.d_model + 4 * spec.n_heads * spec.d_head + 2 * spec.n_heads * n_tokens
    values = (block + extra_streams * spec.d_model) * n_tokens + spec.d_vocab
    return values * torch.finfo(model.dtype).bits // 8


def budget_of(resources: Resources, device: torch.device) -> int:
    """Bytes that a packed run may take: the budget that was given, or the default.

    Returns:
        Bytes.
    """
    return default_budget(device) if resources.budget is None else resources.budget


def rows_per_pack(model: Model, n_tokens: int, resources: Resources, extra_streams: int = 0) -> int:
    """How many prompts of this length one run may hold.

    Args:
        model: Its widths give the size of a token.
        n_tokens: Prompt length.
        resources: Bytes that the run may take.
        extra_streams: How many more tensors of the stream's size stay alive for every row.

    Returns:
        At least 1.

    Raises:
        ConfigError: The budget does not hold a single prompt.
    """
    needed = bytes_per_row(model, n_tokens, extra_streams)
    budget = budget_of(resources, model.device)
    if budget < needed:
        raise ConfigError(
            f"a memory budget of {budget} bytes does not hold one prompt of {n_tokens} tokens, which takes about "
            f"{needed}. Raise budget=, or shorten the prompts."
        )
    return budget // needed


def circuits_per_pack(model: Model, batch: PairBatch, resources: Resources, n_tokens: int, extra_streams: int) -> int:
    """How many circuits to run on a batch at once: with at most so many tokens, and no more than fit; at least one.

    Returns:
        At least 1.
    """
    fit = rows_per_pack(model, batch.n_tokens, resources, extra_streams) // len(batch)
    return max(1, min(fit, n_tokens // (len(batch) * batch.n_tokens)))


def packs(n_rows: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows.

    Returns:
        The slices, in ascending order.
    """
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def rows_at_once(model: Model, n_tokens: int, resources: Resources) -> int:
    """How many prompts of this length to run at once: no more than fit, on a CPU no more than stay in its caches.

    Returns:
        At least 1.

    Raises:
        ConfigError: The budget does not hold a single prompt.
    """
    fit = rows_per_pack(model, n_tokens, resources)
    if model.device.type != "cpu":
        return fit
    return max(1, min(fit, CACHED // bytes_per_row(model, n_tokens)))


@dataclass(slots=True)
class Packer:
    """Runs rows pack by pack; where memory runs out, goes on with packs of half the size, and warns once.

    Attributes:
        halved: How often the packs were halved so far; one packer serves a whole sweep.
    """

    halved: int = 0

    def run(self, n_rows: int, size: int, run: Callable[[slice], None]) -> None:
        """Run all rows.

        Args:
            n_rows: How many rows there are.
            size: How many to run at once, if memory allows.
            run: Runs the rows of a slice and puts the results where they belong; called again with a smaller slice
                where memory ran out.

        Raises:
            ConfigError: A single row does not fit.
        """
        start = 0
        while start < n_rows:
            part = slice(start, min(start + max(1, size >> self.halved), n_rows))
            try:
                run(part)
            except ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                if part.stop - part.start == 1:
                    raise ConfigError(
                        "one patched prompt does not fit into memory. Free some, shorten the prompts, or change the "
                        "device."
                    ) from error
            else:
                start = part.stop
                continue
            # Outside of the handler, whose traceback holds the tensors that did not fit.
            self._halve(size, part.stop - part.start)

    def _halve(self, size: int, tried: int) -> None:
        first = self.halved == 0
        while max(1, size >> self.halved) >= tried and tried > 1:
            self.halved += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if first:
            message = f"out of memory with {tried} rows in a pack; going on with half as many, or fewer."
            warnings.warn(message, ResourceWarning, stacklevel=3)


def fitting(model: Model, batch: PairBatch, resources: Resources, extra_streams: int) -> list[PairBatch]:
    """A batch in parts that fit the budget, each with so many more streams alive.

    Returns:
        The parts, in the order of the examples.
    """
    return cut(batch, rows_per_pack(model, batch.n_tokens, resources, extra_streams))


def cut(batch: PairBatch, size: int) -> list[PairBatch]:
    """A batch in parts of so many rows; the rows of a pair stay together, however many they are.

    Returns:
        The parts, in the order of the examples.
    """
    if size >= len(batch):
        return [batch]
    parts = packs(len(batch), size) if batch.n_words is None else _of_whole_pairs(batch, size)
    return [batch.take(torch.arange(part.start, part.stop, device=batch.clean.device)) for part in parts]


def _of_whole_pairs(batch: PairBatch, size: int) -> Iterator[slice]:
    start = stop = 0
    for n in batch.index.unique_consecutive(return_counts=True)[1].tolist():
        if stop > start and stop + n - start > size:
            yield slice(start, stop)
            start = stop
        stop += n
    yield slice(start, stop)


def recorded_streams(model: Model) -> int:
    """About how many tensors of the stream's size both recorded runs and the deltas of a layer's cells take.

    Returns:
        Streams a prompt.
    """
    return 2 * 7 * model.spec.n_layers + 3 * model.spec.n_heads
