"""The horizontal axis of a sweep by position: positions where prompts line up, spans where they do not.

Prompts of several lengths without spans line up at their ends: their positions are counted from the answer backwards,
-1 for the answer position, -2 for the token before it. A shorter prompt has no token in the columns on the far left.
Tokens of answers of several tokens follow from 0 on.

A span is patched as a whole: all its tokens at once. Tokens that belong to no span are in gaps named after the span
before them, so that every token of every prompt is in some column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.data.pair import Pair, TokenRange
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, UnknownNameError

AXES = ("auto", "position", "span", "all")


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Columns of a grid and where they lie in each batch.

    Attributes:
        kind: "position" or "span" (a single span "all" where the whole prompt is one column).
        labels: Of the axis: a token, the span it belongs to, or the span's name.
        masks: For each batch, the tokens of each column; a column without tokens is absent from that example.
        numbers: The positions of the columns, where they are not 0, 1, 2, ...: chosen ones, or negative ones
            that count from the answer backwards.
    """

    kind: str
    labels: tuple[str, ...]
    masks: tuple[Bool[Tensor, "column _ _"], ...]  # [column, batch, seq], each batch of its own size
    numbers: tuple[int, ...] | None = None

    def at(self, positions: int | Iterable[int]) -> Columns:
        """Only these positions.

        Returns:
            The columns, in the order given.

        Raises:
            ConfigError: Columns are spans; no position is given, one is out of range or given twice.
        """
        chosen = [int(p) for p in ([positions] if isinstance(positions, int) else positions)]
        if self.kind != "position":
            raise ConfigError(f"positions={chosen} go with axis='position'; here the columns are spans.")
        there = list(range(len(self.labels)) if self.numbers is None else self.numbers)
        if not chosen:
            raise ConfigError(f"no position is chosen; leave positions out for all {len(there)}.")
        for number in chosen:
            if number not in there:
                backwards = " (counted from the answer backwards)" if there[0] < 0 else ""
                raise ConfigError(
                    f"position {number} is out of range: there are {len(there)}, numbered {there[0]} to "
                    f"{there[-1]}{backwards}."
                )
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"positions {chosen} name one of them twice.")
        places = [there.index(number) for number in chosen]
        labels = tuple(self.labels[i] for i in places)
        return Columns(self.kind, labels, tuple(mask[places] for mask in self.masks), tuple(chosen))


def columns_of(pairs: PairSet | PairBatch, batches: Sequence[PairBatch], axis: str) -> Columns:
    """Decide the columns.

    Args:
        pairs: What the user gave; a `PairSet` knows the tokens' texts.
        batches: The same, bucketed by length.
        axis: "position", "span", "all" (the whole prompt at once), or "auto": by position if there are no spans, or all
            prompts have one length and their spans line up; else by span.

    Returns:
        The columns, with their tokens in each of the batches.

    Raises:
        UnknownNameError: The axis is none of these.
        ConfigError: By span, but there are no spans.
    """
    UnknownNameError.check("axis", axis, AXES)
    if axis == "all":
        return Columns("span", ("all",), tuple(torch.ones_like(b.clean, dtype=torch.bool)[None] for b in batches))
    one_length = len({batch.n_tokens for batch in batches}) == 1
    with_spans = any(batch.spans for batch in batches)
    if axis == "span" and not with_spans:
        raise ConfigError("these pairs carry no spans. Name spans in the task, or use axis='position'.")
    if not one_length and (axis == "position" or not with_spans):
        return _from_the_answer(pairs, batches)
    common = _common_spans(batches)
    if axis == "position" or (axis == "auto" and one_length and common is not None):
        return _positions(pairs, batches, common or {})
    return _spans(batches)


def _common_spans(batches: Sequence[PairBatch]) -> dict[str, TokenRange] | None:
    """The spans, if they are at the same tokens in every example."""
    found = {}
    for name in batches[0].spans:
        places = torch.cat([batch.spans[name] for batch in batches])
        if bool((places != places[:1]).any()):
            return None
        found[name] = (int(places[0, 0]), int(places[0, 1]))
    return found


def _positions(pairs: PairSet | PairBatch, batches: Sequence[PairBatch], spans: Mapping[str, TokenRange]) -> Columns:
    n = batches[0].n_tokens
    diagonal = torch.eye(n, dtype=torch.bool, device=batches[0].clean.device)[:, None]
    texts = list(pairs) if isinstance(pairs, PairSet) else []
    labels = tuple(_position_label(i, texts, spans) for i in range(n))
    return Columns("position", labels, tuple(diagonal.expand(n, len(batch), n) for batch in batches))


def _from_the_answer(pairs: PairSet | PairBatch, batches: Sequence[PairBatch]) -> Columns:
    """Positions counted from the answer backwards, for prompts that line up at their ends only."""
    ends = [batch.answer_at if batch.prompt_end is None else batch.prompt_end for batch in batches]
    longest = max(int(end.max()) + 1 for end in ends)
    after = max(int((batch.answer_at - end).max()) for batch, end in zip(batches, ends, strict=True))
    numbers = tuple(range(-longest, after))
    texts = list(pairs) if isinstance(pairs, PairSet) else []
    labels = []
    for number in numbers:
        tokens = {pair.clean_tokens[pair.judged_at + 1 + number] for pair in texts if pair.judged_at + 1 >= -number > 0}
        labels.append(tokens.pop() if len(tokens) == 1 else str(number))

    def mask(batch: PairBatch, end: Int[Tensor, " batch"]) -> Bool[Tensor, "column batch seq"]:
        places = torch.arange(batch.n_tokens, device=batch.clean.device)
        from_answer = places - end[:, None] - 1
        return torch.stack([from_answer == number for number in numbers])

    return Columns("position", tuple(labels), tuple(map(mask, batches, ends)), numbers)


def _position_label(position: int, pairs: Sequence[Pair], spans: Mapping[str, TokenRange]) -> str:
    """The token where all clean prompts agree on it; else its span, or how far after one it is; else the number."""
    tokens = {pair.clean_tokens[position] if position < len(pair) else None for pair in pairs}
    if len(tokens) == 1 and (token := tokens.pop()) is not None:
        return token
    inside = [(end - start, name) for name, (start, end) in spans.items() if start <= position < end]
    if inside:
        return min(inside)[1]
    before = [(end, name) for name, (_, end) in spans.items() if end <= position]
    return f"{max(before)[1]} +{position - max(before)[0] + 1}" if before else str(position)


def _spans(batches: Sequence[PairBatch]) -> Columns:
    per_batch = [span_masks(batch) for batch in batches]
    centres: dict[str, list[float]] = {}
    for masks in per_batch:
        for name, mask in masks.items():
            there = mask.any(1)
            if bool(there.any()):
                places = torch.arange(mask.shape[1], device=mask.device).float() / mask.shape[1]
                centre = (mask * places).sum(1)[there] / mask.sum(1)[there]
                centres.setdefault(name, []).append(float(centre.mean()))
    order = sorted(centres, key=lambda name: sum(centres[name]) / len(centres[name]))

    def stacked(batch: PairBatch, masks: Mapping[str, Tensor]) -> Tensor:
        nothing = torch.zeros(batch.clean.shape, dtype=torch.bool, device=batch.clean.device)
        return torch.stack([masks.get(name, nothing) for name in order])

    return Columns("span", tuple(order), tuple(map(stacked, batches, per_batch)))


def span_masks(batch: PairBatch) -> dict[str, Bool[Tensor, "batch seq"]]:
    """The tokens of each span, and of each gap between spans; the batch must carry spans.

    Returns:
        Name -> the tokens of each example that are in it.
    """
    places = torch.arange(batch.n_tokens, device=batch.clean.device)
    masks = {name: (places >= span[:, :1]) & (places < span[:, 1:]) for name, span in sorted(batch.spans.items())}
    free = ~torch.stack(list(masks.values())).any(0)
    names = list(masks)
    for row in range(len(batch)):
        for start, end in _runs(free[row].tolist()):
            before = [
                (int(batch.spans[name][row, 1]), name) for name in names if 0 < int(batch.spans[name][row, 1]) <= start
            ]
            gap = f"after {max(before)[1]}" if before else "start"
            while gap in names:  # a span of the task's own may be called so
                gap = f"({gap})"
            mask = masks.setdefault(gap, torch.zeros_like(free))
            mask[row, start:end] = True
    return masks


def _runs(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of consecutive true values."""
    ends = np.flatnonzero(np.diff([False, *flags, False])).tolist()
    return zip(ends[::2], ends[1::2], strict=True)
