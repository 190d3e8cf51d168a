"""Pairs of one length as tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from circuitlab.arguments import checked
from circuitlab.data.continuations import ANSWER_SPAN, NO_TOKEN, Row, rows_of
from circuitlab.data.limits import is_whole
from circuitlab.data.pair import Pair
from circuitlab.errors import ConfigError, PairLengthError
from circuitlab.summary import Summary, plural


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PairBatch(Summary):
    """Clean prompts of one length, and the corrupted ones of as many tokens if there are some.

    A pair is one row, unless an answer or distractor of the data set has several tokens: then a pair has a row for each
    position that is judged (`circuitlab.data.continuations`), one after the other, and `index` has its place in each.

    Attributes:
        clean: Tokens of the clean prompts.
        corrupt: Tokens of the corrupted prompts; None for pairs without. `corrupted` refuses these.
        answers: Right next tokens of the clean prompt; -1 where an example has fewer.
        distractors: Wrong next tokens of the clean prompt, which answers are compared with; -1 where an example has
            fewer, or none.
        answer_at: Position whose next-token logits are judged.
        index: Place of each row's pair in the data set it came from.
        spans: Name -> half-open token range `[batch, 2]`; start = end where an example lacks the span.
        reference: Logits of the clean run, for metrics that compare with it (`kl`).
        metric: Metric of the task that drew the prompts, which functions use where no other is given; None without a
            task.
        n_words: Numbers of answers and distractors of each row's pair; None where every pair is one row.
        prompt_end: The last token of each row's prompt, before any token of an answer; None as well.

    Example:
        >>> import torch
        >>> from circuitlab import PairBatch
        >>> clean, corrupt = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 4, 3]])
        >>> batch = PairBatch.from_tokens(clean, corrupt, answers=torch.tensor([[5]]), distractors=torch.tensor([[6]]))
        >>> len(batch)
        1
    """

    clean: Int[Tensor, "batch seq"]
    corrupt: Int[Tensor, "batch seq"] | None
    answers: Int[Tensor, "batch answer"]
    distractors: Int[Tensor, "batch wrong"]
    answer_at: Int[Tensor, " batch"]
    index: Int[Tensor, " batch"]
    spans: Mapping[str, Int[Tensor, "batch 2"]] = field(default_factory=dict)
    reference: Float[Tensor, "batch d_vocab"] | None = None
    metric: str | Callable[..., Any] | None = None
    n_words: Int[Tensor, "batch 2"] | None = None
    prompt_end: Int[Tensor, " batch"] | None = None

    @classmethod
    @checked
    def from_tokens(
        cls,
        clean: Int[Tensor, "batch seq"],
        corrupt: Int[Tensor, "batch seq"] | None,
        answers: Int[Tensor, "batch answer"],
        distractors: Int[Tensor, "batch wrong"] | None = None,
        answer_at: Int[Tensor, " batch"] | None = None,
    ) -> PairBatch:
        """Wrap token tensors, when there is no task and no tokenizer.

        Args:
            clean: Clean prompts.
            corrupt: Corrupted prompts, as many and as long; None for pairs without.
            answers: Right next tokens; a vector is taken as one answer per example.
            distractors: Wrong next tokens, in the same form; none for metrics that need none (`log_prob`, `kl`,
                `accuracy`, `rank`).
            answer_at: Position to judge at; the last one by default.

        Returns:
            The batch.

        Raises:
            PairLengthError: Clean and corrupted prompts differ in length.
            ConfigError: Something is not an integer tensor of the right shape, or a position or token is out of range.
        """
        words = {"answers": answers} if distractors is None else {"answers": answers, "distractors": distractors}
        words = {name: t[:, None] if torch.is_tensor(t) and t.ndim == 1 else t for name, t in words.items()}
        prompts = {"clean": clean} if corrupt is None else {"clean": clean, "corrupt": corrupt}
        for name, tensor in {**prompts, **words}.items():
            if not is_whole(tensor) or tensor.ndim != 2 or tensor.numel() == 0:
                got = f"{tuple(tensor.shape)} {tensor.dtype}" if torch.is_tensor(tensor) else type(tensor).__name__
                raise ConfigError(f"{name} must be a non-empty integer tensor [batch, tokens]; got {got}.")
            if len(tensor) != len(clean):
                raise ConfigError(
                    f"{name} holds {len(tensor)} examples, clean holds {len(clean)}; they must be as many."
                )
        words = {name: t.long() for name, t in words.items()}  # -1 is no number of uint8
        if corrupt is not None and clean.shape[1] != corrupt.shape[1]:
            raise PairLengthError(
                f"clean prompts have {clean.shape[1]} tokens, corrupted {corrupt.shape[1]}. Position-wise "
                f"patching needs "
                "equal lengths: cut or reword, one batch per length."
            )
        for name, tensor in prompts.items():
            if bool((tensor < 0).any()):
                raise ConfigError(
                    f"{name} holds the token {int(tensor.min())}; ids are not negative, prompts never filled up."
                )
        for name, tensor in words.items():
            if bool((tensor < NO_TOKEN).any()) or not bool((tensor >= 0).any(1).all()):
                raise ConfigError(
                    f"{name} must hold token ids, at least one an example; -1 fills up rows of fewer. "
                    f"Got {tensor[:3].tolist()}."
                )
        if answer_at is None:
            answer_at = torch.full((len(clean),), clean.shape[1] - 1, device=clean.device)
        if not is_whole(answer_at):
            got = answer_at.dtype if torch.is_tensor(answer_at) else type(answer_at).__name__
            raise ConfigError(f"answer_at must be an integer tensor of {len(clean)} positions; got {got}.")
        if answer_at.shape != (len(clean),) or not bool(((answer_at >= 0) & (answer_at < clean.shape[1])).all()):
            raise ConfigError(
                f"answer_at must hold {len(clean)} positions between 0 and {clean.shape[1] - 1}; got "
                f"shape {tuple(answer_at.shape)}, values {answer_at.flatten()[:3].tolist()}."
            )
        return cls(
            clean=clean.long(),
            corrupt=None if corrupt is None else corrupt.long(),
            answers=words["answers"].long(),
            distractors=words.get("distractors", clean.new_empty((len(clean), 0))).long(),
            answer_at=answer_at.long(),
            index=torch.arange(len(clean), device=clean.device),
        )

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def corrupted(self) -> Int[Tensor, "batch seq"]:
        """Tokens of the corrupted prompts.

        Raises:
            ConfigError: The pairs have none.
        """
        if self.corrupt is None:
            raise no_corrupted("the corrupted run is needed here")
        return self.corrupt

    @property
    def sides(self) -> tuple[str, ...]:
        """The prompts that pairs have, by the names of the fields."""
        return ("clean",) if self.corrupt is None else ("clean", "corrupt")

    @property
    def n_tokens(self) -> int:
        """Length of the prompts."""
        return self.clean.shape[1]

    @property
    def has_distractors(self) -> bool:
        """Whether every example has a distractor."""
        if self.n_words is not None:
            return bool((self.n_words[:, 1] > 0).all())
        return self.distractors.shape[1] > 0 and bool((self.distractors != NO_TOKEN).any(1).all())

    @property
    def n_pairs(self) -> int:
        """Number of pairs, of which each has one or more rows."""
        return len(self.places)

    @property
    def places(self) -> Int[Tensor, " pair"]:
        """Place of each pair in the data set, in the order of `per_pair`."""
        return self.index if self.n_words is None else self.index.unique_consecutive()

    @property
    def is_first(self) -> Bool[Tensor, " batch"]:
        """Whether each row is its pair's first, which is judged after the prompt itself."""
        return torch.ones_like(self.index, dtype=torch.bool) if self.prompt_end is None else self._depth == 0

    @property
    def own_tokens(self) -> Bool[Tensor, "batch seq"]:
        """Tokens of prompts and answers, each in one row only: averages over tokens count them once."""
        if self.prompt_end is None:
            return torch.ones_like(self.clean, dtype=torch.bool)
        position = torch.arange(self.n_tokens, device=self.clean.device)
        until_answer = position <= self.answer_at[:, None]
        return until_answer & (self.is_first[:, None] | (position == self.answer_at[:, None]))

    @property
    def _depth(self) -> Int[Tensor, " batch"]:
        assert self.prompt_end is not None
        return self.answer_at - self.prompt_end

    def per_pair(self, values: Shaped[Tensor, "*any"], dim: int = -1) -> Shaped[Tensor, "*other"]:
        """Values of rows, summed over the rows of each pair.

        Args:
            values: One value, or a tensor of them, per row.
            dim: The dimension of the rows.

        Returns:
            The same with pairs in the place of rows, in the order of `places`; the values themselves where a pair is a
            row.
        """
        if self.n_words is None:
            return values
        _, pair = self.index.unique_consecutive(return_inverse=True)
        shape = list(values.shape)
        shape[dim] = int(pair[-1]) + 1
        return values.new_zeros(shape).index_add_(dim, pair.to(values.device), values)

    def prompts(self, side: str = "clean") -> list[tuple[int, ...]]:
        """The tokens of each pair's prompt, without those of answers.

        Args:
            side: "clean" or "corrupt".

        Returns:
            One prompt a pair, in the order of `places`.
        """
        rows = getattr(self, side)[self.is_first].tolist()
        ends = None if self.prompt_end is None else self.prompt_end[self.is_first].tolist()
        return [tuple(row) if ends is None else tuple(row[: ends[i] + 1]) for i, row in enumerate(rows)]

    def swapped(self) -> PairBatch:
        """The batch with clean and corrupted prompt in each other's place; answers stay.

        Returns:
            A new batch.

        Raises:
            ConfigError: The pairs have no corrupted prompts.
        """
        return replace(self, clean=self.corrupted, corrupt=self.clean)

    def with_reference(self, logits: Float[Tensor, "batch d_vocab"]) -> PairBatch:
        """The batch with the clean run's logits.

        Returns:
            A new batch.
        """
        return replace(self, reference=logits)

    def compact(self) -> tuple[Int[Tensor, " word"], PairBatch]:
        """The tokens among answers and distractors, and the batch with indices into them.

        A metric that needs no other words gives the same on logits of these words alone; the clean run's logits are
        left out.

        Returns:
            Token ids of the words, and a batch whose answers and distractors are indices into them.
        """
        words, places = torch.cat([self.answers, self.distractors], 1).unique(return_inverse=True)
        filled = int(words[0] == NO_TOKEN)  # sorted, so -1 comes first and its number becomes -1 again
        answers, distractors = (places - filled).split([self.answers.shape[1], self.distractors.shape[1]], 1)
        return words[filled:], replace(self, answers=answers, distractors=distractors, reference=None)

    def take(self, rows: Int[Tensor, " kept"] | slice) -> PairBatch:
        """The examples at these rows, in this order.

        Returns:
            A new batch.
        """
        values = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Mapping):
                values[item.name] = {name: span[rows] for name, span in value.items()}
            else:
                values[item.name] = value[rows] if torch.is_tensor(value) else value
        return PairBatch(**values)

    def _summary(self) -> str:
        return f"of {plural(self.n_pairs, 'pair')}, {plural(self.n_tokens, 'token')}, on {self.clean.device}"


def no_corrupted(need: str, instead: str = "") -> ConfigError:
    """The error about pairs without corrupted prompts, where something needs them.

    Args:
        need: What needs them, as a sentence without its full stop.
        instead: What to take instead, in the same form.

    Returns:
        The error.

    Example:
        >>> str(no_corrupted("paths lead from one run of a pair to the other"))[:80]
        'paths lead from one run of a pair to the other, but these pairs have no corrupte'
    """
    give = f"{instead}, or give" if instead else "Give"
    return ConfigError(
        f"{need}, but these pairs have no corrupted prompts. {give} corrupted prompts: corrupt= of Example, or column "
        "corrupt of a table (--columns corrupt=THEIRS)."
    )


def batch_by_length(
    pairs: Sequence[Pair], device: torch.device | str = "cpu", metric: str | Callable[..., Any] | None = None
) -> tuple[PairBatch, ...]:
    """Bucket pairs by length, shortest first; prompts are not padded.

    Args:
        pairs: Pairs in the order of their data set.
        device: Where the tensors go.
        metric: Metric of the task that drew them.

    Returns:
        One batch per length, of prompts with the answer tokens after them; `index` holds places in `pairs`.
    """
    several = any(pair.n_appended for pair in pairs)
    buckets = defaultdict[int, list[tuple[int, Pair, Row]]](list)
    for place, pair in enumerate(pairs):
        buckets[len(pair) + pair.n_appended] += [(place, pair, row) for row in rows_of(pair)]
    names = sorted({name for pair in pairs for name in _spans(pair)})
    return tuple(_bucket(rows, names, device, metric, several) for _, rows in sorted(buckets.items()))


def _spans(pair: Pair) -> Mapping[str, tuple[int, int]]:
    """The spans of a pair; where it has some, appended tokens of its answers are the span "answer"."""
    if not pair.n_appended or not pair.spans or ANSWER_SPAN in pair.spans:
        return pair.spans
    return {**pair.spans, ANSWER_SPAN: (len(pair), len(pair) + pair.n_appended)}


def _bucket(
    rows: Sequence[tuple[int, Pair, Row]],
    span_names: Sequence[str],
    device: torch.device | str,
    metric: str | Callable[..., Any] | None,
    several: bool,
) -> PairBatch:
    def tensor(rows: Sequence[object]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=device)

    def padded(rows: Sequence[tuple[int, ...]]) -> Tensor:
        width = max(map(len, rows))
        return tensor([row + (NO_TOKEN,) * (width - len(row)) for row in rows])

    spans = [_spans(pair) for _, pair, _ in rows]
    corrupt = [None if p.corrupt_ids is None else p.corrupt_ids + row.appended for _, p, row in rows]
    return PairBatch(
        clean=tensor([p.clean_ids + row.appended for _, p, row in rows]),
        corrupt=None if None in corrupt else tensor(corrupt),
        answers=padded([row.answers for _, _, row in rows]),
        distractors=padded([row.distractors for _, _, row in rows]),
        answer_at=tensor([p.judged_at + row.n_prefix for _, p, row in rows]),
        index=tensor([place for place, _, _ in rows]),
        spans={name: tensor([found.get(name, (0, 0)) for found in spans]) for name in span_names},
        metric=metric,
        n_words=tensor([(len(p.answer_ids), len(p.distractor_ids)) for _, p, _ in rows]) if several else None,
        prompt_end=tensor([p.judged_at for _, p, _ in rows]) if several else None,
    )
