"""The two runs that every patch is measured between, and how a final stream is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.errors import UnknownNameError
from circuitlab.metrics import Metric
from circuitlab.models.protocol import BlockArguments, Model, Recording

# Which run's values replace those of the other: the clean run's in the corrupted one, or the reverse.
DIRECTIONS = ("denoise", "noise")
# Logits alive at once: more bring no speed, and 400 rows of GPT-2's vocabulary would take 80 MB.
LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baseline:
    """One batch, run clean and corrupted.

    Attributes:
        batch: The prompts, with the clean run's logits as reference.
        arguments: What blocks are called with at this length.
        clean: The clean run.
        corrupt: The corrupted run.
        clean_logits: Next-token logits of the clean run at the answer position.
        corrupt_logits: The same of the corrupted run.
    """

    batch: PairBatch
    arguments: BlockArguments
    clean: Recording
    corrupt: Recording
    clean_logits: Float[Tensor, "batch d_vocab"]
    corrupt_logits: Float[Tensor, "batch d_vocab"]

    def take(self, part: slice) -> Baseline:
        """Both runs of some of the examples; the runs' tensors are views of these.

        Returns:
            The runs.
        """
        rows = torch.arange(part.start, part.stop, device=self.batch.clean.device)
        return Baseline(
            batch=self.batch.take(rows),
            arguments=self.arguments,
            clean=self.clean.prompts(part),
            corrupt=self.corrupt.prompts(part),
            clean_logits=self.clean_logits[part],
            corrupt_logits=self.corrupt_logits[part],
        )

    def gap(self, metric: Metric) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The metric of the clean and of the corrupted run, per example.

        Returns:
            Clean and corrupted values, one an example.
        """
        return metric(self.clean_logits, self.batch), metric(self.corrupt_logits, self.batch)


@torch.no_grad()
def record_baseline(model: Model, batch: PairBatch) -> Baseline:
    """Run a batch clean and corrupted, both in one pass.

    Returns:
        Both runs, with the logits of the clean run as reference of the batch.
    """
    both = model.record(torch.cat([batch.clean, batch.corrupt]))
    clean, corrupt = both.prompts(slice(0, len(batch))), both.prompts(slice(len(batch), None))
    clean_logits = model.logits(at_answer(clean.resid_final, batch.answer_at))
    return Baseline(
        batch=batch.with_reference(clean_logits),
        arguments=model.block_arguments(batch.clean),
        clean=clean,
        corrupt=corrupt,
        clean_logits=clean_logits,
        corrupt_logits=model.logits(at_answer(corrupt.resid_final, batch.answer_at)),
    )


def at_answer(stream: Float[Tensor, "row seq d_model"], answer_at: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
    """The stream at each row's answer position.

    Returns:
        One vector a row.
    """
    return stream[torch.arange(len(stream), device=stream.device), answer_at]


@torch.no_grad()
def judge(
    model: Model,
    metric: Metric,
    baseline: Baseline,
    stream: Float[Tensor, "row d_model"],
    example: Int[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """The metric of final streams.

    Args:
        model: The model.
        metric: What to measure.
        baseline: The batch the rows come from.
        stream: Final stream at the answer position, one per row.
        example: Which example of the batch each row is a variant of.

    Returns:
        One value a row, in the metric's unit.
    """
    return judge_all(model, [metric], baseline, stream, example)[0]


@torch.no_grad()
def judge_all(
    model: Model,
    metrics: Sequence[Metric],
    baseline: Baseline,
    stream: Float[Tensor, "row d_model"],
    example: Int[Tensor, " row"],
) -> list[Float[Tensor, " row"]]:
    """Several metrics of the same final streams.

    A logit difference needs two logits, not the vocabulary: where every metric is local, only these are computed.

    Returns:
        One tensor a metric, with a value a row, in the metric's unit.
    """
    words, batch = baseline.batch.compact() if all(m.local for m in metrics) else (None, baseline.batch)
    width = len(words) if words is not None else model.spec.d_vocab
    size = max(1, LOGITS_AT_ONCE // width)
    found: list[list[Tensor]] = [[] for _ in metrics]
    for start in range(0, len(stream), size):
        logits = model.logits(stream[start : start + size], words)
        part = batch.take(example[start : start + size])
        for values, metric in zip(found, metrics, strict=True):
            values.append(metric(logits, part))
    return [torch.cat(values) for values in found]


def resolve_direction(direction: str | None, ablation: str = "corrupt") -> str:
    """The direction of patching: by default "denoise" with the ablation "corrupt", and "noise" with every other.

    Returns:
        "denoise" or "noise".

    Raises:
        UnknownNameError: It is neither "denoise" nor "noise".
    """
    if direction is None:
        return "denoise" if ablation == "corrupt" else "noise"
    UnknownNameError.check("direction", direction, DIRECTIONS)
    return direction
