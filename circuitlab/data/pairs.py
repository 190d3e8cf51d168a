"""Sets of pairs in the order they were drawn, and the two splits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

from circuitlab.data.framing import PromptFrame
from circuitlab.data.pair import Pair
from circuitlab.digests import sha256
from circuitlab.errors import ConfigError
from circuitlab.summary import Summary, plural, short

if TYPE_CHECKING:
    import torch

    from circuitlab.data.batch import PairBatch


@dataclass(frozen=True, slots=True, repr=False)
class PairSet(Summary):
    """Pairs of one split, possibly of different lengths; anything that takes pairs takes this.

    Pairs of a task without corrupted prompts are clean prompts alone.

    Attributes:
        pairs: The pairs, in order. An index gives one of them, a slice a `PairSet`.
        metric: Metric of the task that drew them, which functions use where no other is given; None without a task.

    Raises:
        ConfigError: There is no pair in it, or only some have a corrupted prompt.

    Example:
        >>> from circuitlab import load_model, load_task
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> len(pairs.discovery), pairs.discovery[0].answers
        (4, (' Philip',))
    """

    _spelled = "task.pairs(...).discovery, .held_out"  # in messages about other types

    pairs: tuple[Pair, ...]
    metric: str | Callable[..., Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ConfigError("a set of pairs needs at least one pair.")
        bare = [pair for pair in self.pairs if pair.corrupt is None]
        if 0 < len(bare) < len(self.pairs):
            raise ConfigError(
                f"{len(bare)} of {len(self.pairs)} pairs have no corrupted prompt, such as {short(bare[0].clean, 60)}, "
                "and the others have one. Give all of them one, or none."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> PairSet: ...
    def __getitem__(self, index: int | slice) -> Pair | PairSet:
        return replace(self, pairs=self.pairs[index]) if isinstance(index, slice) else self.pairs[index]

    @property
    def texts(self) -> frozenset[str]:
        """Every prompt, clean and corrupted, without the text around it."""
        return frozenset(text for pair in self.pairs for text in pair.prompts)

    @property
    def has_corrupted(self) -> bool:
        """Whether the pairs have corrupted prompts."""
        return self.pairs[0].corrupt is not None

    @property
    def whole_answers(self) -> bool:
        """Whether an answer or distractor has several tokens, so that only metrics of whole answers can judge it."""
        return any(pair.n_appended for pair in self.pairs)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over texts, answers and token ids, in order."""
        lines = [json.dumps(pair.to_record(""), sort_keys=True, ensure_ascii=False) for pair in self.pairs]
        return sha256("\n".join(lines))

    def batches(self, device: torch.device | str = "cpu") -> tuple[PairBatch, ...]:
        """The pairs as tensors, bucketed by length; `PairBatch.index` maps rows to pairs.

        Returns:
            One batch per prompt length.
        """
        from circuitlab.data.batch import batch_by_length

        return batch_by_length(self.pairs, device, self.metric)

    def _summary(self) -> str:
        lengths = sorted({len(pair) for pair in self.pairs})
        tokens = f"{lengths[0]} tokens" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} tokens"
        return f"of {plural(len(self), 'pair')}, {tokens}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "spans", " ".join(dict.fromkeys(name for pair in self.pairs for name in pair.spans)) or "none"
        for pair in self.pairs[:3]:
            yield f"[{pair.id}]", f"clean      {short(pair.clean, 60)} -> {short(pair.answers, 24)}"
            other = f" -> {short(pair.distractors, 24)}" if pair.distractors else ""
            yield "", f"corrupted  {'none' if pair.corrupt is None else short(pair.corrupt, 60)}{other}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PairSplits(Summary):
    """What a task drew for one model.

    Attributes:
        discovery: Pairs to find the circuit on.
        held_out: Pairs to test it on; no text of them is in `discovery`.
        reference: Pairs that are never scored, to take means and deviations of; no text of them is in either split.
            None if it was not checked.
        dropped: Reason -> how many distinct examples the tokenizer could not serve.
        differ_in: What discovery and held-out prompts do not share, such as "names and templates"; empty if they
            differ by chance only.
        frame: The text around every prompt: chat template and solved examples; None if there is none.

    Example:
        >>> from circuitlab import load_model, load_task
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> len(pairs.discovery), len(pairs.held_out)
        (4, 4)
    """

    discovery: PairSet
    held_out: PairSet
    reference: PairSet | None = None
    dropped: Mapping[str, int] = field(default_factory=Counter)
    differ_in: str = ""
    frame: PromptFrame | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both splits, and the reference pairs where there are some."""
        parts = [self.discovery, self.held_out, *([self.reference] if self.reference else [])]
        return sha256(*(part.fingerprint for part in parts))

    def _summary(self) -> str:
        splits = {"discovery": self.discovery, "held-out": self.held_out, "reference": self.reference}
        return "of " + ", ".join(f"{len(split):,} {name}" for name, split in splits.items() if split) + " pairs"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "discovery", self.discovery
        yield "held_out", self.held_out
        if self.reference is not None:
            yield "reference", self.reference
        if self.differ_in:
            yield "held-out has its own", self.differ_in
        if self.frame is not None:
            yield "around every prompt", short(self.frame.shown, 200)
        if self.dropped:
            yield "dropped", self.dropped
        yield "first clean", short(self.discovery[0].clean)
        first = self.discovery[0].corrupt
        yield "first corrupt", "none" if first is None else short(first)
