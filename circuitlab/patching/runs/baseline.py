"""The runs that every patch is measured between, and how a final stream is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import Pairs, check_corrupted
from circuitlab.errors import UnknownNameError
from circuitlab.metrics import Metric
from circuitlab.models.protocol import BlockArguments, Model, Recording

# Which run's values replace those of the other: the clean run's in the corrupted one, or the reverse.
DIRECTIONS = ("denoise", "noise")
# Logits alive at once: more bring no speed, and 400 rows of GPT-2's vocabulary would take 80 MB.
LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baseline:
    """One batch, run clean and, where pairs have corrupted prompts, corrupted.

    Attributes:
        batch: The prompts, with the clean run's logits as reference.
        arguments: What blocks are called with at this length.
        clean: The clean run.
        clean_logits: Next-token logits of the clean run at the answer position.
        corrupted: The corrupted run and its logits, which `corrupt` and `corrupt_logits` give; None without corrupted
            prompts.
    """

    batch: PairBatch
    arguments: BlockArguments
    clean: Recording
    clean_logits: Float[Tensor, "batch d_vocab"]
    corrupted: tuple[Recording, Float[Tensor, "batch d_vocab"]] | None

    @property
    def corrupt(self) -> Recording:
        """The corrupted run.

        Raises:
            ConfigError: The pairs have no corrupted prompts.
        """
        return self._corrupted[0]

    @property
    def corrupt_logits(self) -> Float[Tensor, "batch d_vocab"]:
        """Next-token logits of the corrupted run at the answer position.

        Raises:
            ConfigError: The pairs have no corrupted prompts.
        """
        return self._corrupted[1]

    @property
    def _corrupted(self) -> tuple[Recording, Tensor]:
        if self.corrupted is None:
            self.batch.corrupted  # noqa: B018 - raises
            raise AssertionError
        return self.corrupted

    def is_corrupt(self, run: Recording) -> bool:
        """Whether a run is the corrupted one.

        Returns:
            Whether it is.
        """
        return self.corrupted is not None and run is self.corrupted[0]

    def patched_run(self, direction: str) -> Recording:
        """The run that is patched: the clean one for "noise", the corrupted one for "denoise".

        Returns:
            The run.
        """
        return self.clean if direction == "noise" else self.corrupt

    def unpatched(self, metric: Metric, direction: str) -> Float[Tensor, " batch"]:
        """The metric of the run that is patched, without a patch.

        Returns:
            One value an example.
        """
        return metric(self.clean_logits if direction == "noise" else self.corrupt_logits, self.batch)

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
            clean_logits=self.clean_logits[part],
            corrupted=self.corrupted and (self.corrupt.prompts(part), self.corrupt_logits[part]),
        )

    def gap(self, metric: Metric) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The metric of the clean and of the corrupted run, per example.

        Returns:
            Clean and corrupted values, one an example.
        """
        return metric(self.clean_logits, self.batch), metric(self.corrupt_logits, self.batch)


@torch.no_grad()
def record_baseline(model: Model, batch: PairBatch) -> Baseline:
    """Run a batch clean and corrupted, both in one pass; clean alone without corrupted prompts.

    Returns:
        The runs, with the logits of the clean run as reference of the batch.
    """
    both = model.record(torch.cat([getattr(batch, side) for side in batch.sides]))
    runs = [both.prompts(slice(start, start + len(batch))) for start in range(0, len(both.resid_final), len(batch))]
    ends = [(run, model.logits(at_answer(run.resid_final, batch.answer_at))) for run in runs]
    clean, clean_logits = ends[0]
    return Baseline(
        batch=batch.with_reference(clean_logits),
        arguments=model.block_arguments(batch.clean),
        clean=clean,
        clean_logits=clean_logits,
        corrupted=ends[1] if len(ends) > 1 else None,
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


def resolve_direction(direction: str | None, ablation: str = "corrupt", pairs: Pairs | None = None) -> str:
    """The direction of patching: by default "denoise" with the ablation "corrupt", and "noise" with every other.

    Args:
        direction: The direction, or None.
        ablation: Name of the ablation.
        pairs: What is patched.

    Returns:
        "denoise" or "noise".

    Raises:
        UnknownNameError: It is neither "denoise" nor "noise".
        ConfigError: "denoise", and the pairs have no corrupted prompts.
    """
    if direction is None:
        return "denoise" if ablation == "corrupt" else "noise"
    UnknownNameError.check("direction", direction, DIRECTIONS)
    if direction == "denoise" and pairs is not None:
        instead = "Take direction 'noise' (--direction noise), which patches the clean run"
        check_corrupted(pairs, "direction 'denoise' patches the corrupted run", instead)
    return direction
