"""Pairs of prompts, aligned token by token, with their differences and spans."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from circuitlab.viz import visible_token

_MOST_WORDS = 6
_PIECE = re.compile(r"\s?\w+|\s?[^\w\s]+|\s+")


def shown_pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    """One pair for `pair.html.j2`: a column for each token, the answers and the distractors.

    Without token texts the prompts are split at words instead, and spans, which count tokens, are left out.

    Returns:
        Values of the template, by name.
    """
    tokens = _texts(pair.get("clean_tokens")), _texts(pair.get("corrupt_tokens"))
    paired = pair["corrupt"] is not None
    if not paired:  # the template leaves the second row out
        tokens = tokens[0], tokens[0]
    exact = bool(tokens[0]) and len(tokens[0]) == len(tokens[1])
    clean, corrupt = tokens if exact else [_PIECE.findall(pair[side] or pair["clean"]) for side in ("clean", "corrupt")]
    spans = _spans(pair.get("spans"), len(clean)) if exact else {}
    columns = []
    for i, (above, below, differs) in enumerate(_aligned(clean, corrupt)):
        name, inside = spans.get(i, ("", False))
        columns.append(
            {"clean": _shown(above), "corrupt": _shown(below), "differs": differs, "span": name, "in_span": inside}
        )
    words = {name: _words(pair.get(name)) for name in ("answers", "distractors")}
    return {"columns": columns, "paired": paired, **words}


def _shown(token: str | None) -> str:
    return "" if token is None else visible_token(token, 24)


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def _words(value: object) -> dict[str, Any]:
    """Answers or distractors: the first few, and the number of the others."""
    texts = _texts(value)
    return {"shown": [visible_token(word, 24) for word in texts[:_MOST_WORDS]], "n_more": len(texts[_MOST_WORDS:])}


def _aligned(clean: Sequence[str], corrupt: Sequence[str]) -> list[tuple[str | None, str | None, bool]]:
    """Pieces side by side with whether they differ; None where the other prompt is longer."""
    if len(clean) == len(corrupt):
        return [(a, b, a != b) for a, b in zip(clean, corrupt, strict=True)]
    rows: list[tuple[str | None, str | None, bool]] = []
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, clean, corrupt, autojunk=False).get_opcodes():
        rows += [(above, below, tag != "equal") for above, below in zip_longest(clean[a0:a1], corrupt[b0:b1])]
    return rows


def _spans(value: object, n_tokens: int) -> dict[int, tuple[str, bool]]:
    """Token -> the name of the span that begins there (or nothing), and that it lies in one."""
    marked: dict[int, tuple[str, bool]] = {}
    items = value.items() if isinstance(value, Mapping) else ()
    for name, ends in sorted(items, key=lambda item: (_start(item[1]), str(item[0]))):
        start = _start(ends)
        if start < 0:
            continue
        for i in range(start, min(int(ends[1]), n_tokens)):
            before = marked.get(i, ("", False))[0]
            marked[i] = (", ".join(filter(None, (before, str(name)))) if i == start else before, True)
    return marked


def _start(ends: object) -> int:
    whole = isinstance(ends, list | tuple) and len(ends) == 2 and all(isinstance(end, int) for end in ends)
    return int(ends[0]) if whole else -1  # type: ignore[index]
