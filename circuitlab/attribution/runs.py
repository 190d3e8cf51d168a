"""Which prompts are run, and how many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import batches_for
from circuitlab.data.pairs import PairSet
from circuitlab.errors import UnknownNameError
from circuitlab.models.protocol import Model

RUNS = ("clean", "corrupt")
# A recording holds some 30 numbers of width d_model a token and layer: for GPT-2 a gigabyte at this many tokens.
TOKENS_AT_ONCE = 1024


def check_run(run: str) -> None:
    """Refuse a run that does not exist.

    Raises:
        UnknownNameError: It is neither "clean" nor "corrupt".
    """
    if run not in RUNS:
        raise UnknownNameError.of("run", run, RUNS)


def per_example(
    model: Model, pairs: PairSet | PairBatch, run: str, of_batch: Callable[[PairBatch], Float[Tensor, "row batch"]]
) -> Float[np.ndarray, "row example"]:
    """Rows of values of every example, batch by batch, in the order of the pairs."""
    found = [
        (of_batch(batch).double().cpu().numpy(), batch.index.cpu().numpy()) for batch in batches(model, pairs, run)
    ]
    tables, order = zip(*found, strict=True)
    return np.concatenate(tables, 1)[:, np.argsort(np.concatenate(order), kind="stable")]


def batches(model: Model, pairs: PairSet | PairBatch, run: str) -> Iterator[PairBatch]:
    """The pairs in batches small enough to be recorded; `clean` holds the prompts of the chosen run."""
    for whole in batches_for(model, pairs):
        chosen = whole if run == "clean" else whole.swapped()
        size = max(1, TOKENS_AT_ONCE // whole.n_tokens)
        for start in range(0, len(whole), size):
            yield chosen.take(torch.arange(start, min(start + size, len(whole)), device=model.device))
