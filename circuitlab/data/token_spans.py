"""Spans of an example, in characters or tokens, as tokens of both prompts."""

from __future__ import annotations

from collections.abc import Mapping

from circuitlab.data.encoded import Encoded, Rejection, TextEncoder
from circuitlab.data.example import CharRange, Example
from circuitlab.data.pair import TokenRange
from circuitlab.errors import SpanError


def token_spans(example: Example, clean: Encoded, corrupt: Encoded | None) -> dict[str, TokenRange] | Rejection:
    """The tokens of every span of an example, the same in both prompts.

    Args:
        example: The words.
        clean: The clean prompt as tokens.
        corrupt: The corrupted prompt as tokens, if there is one.

    Returns:
        Name -> half-open token range; or why a span cannot be served.
    """
    spans = {}
    for name, chars in example.spans.items():
        found = _tokens_of(chars, clean)
        if found is None:
            text = example.clean[slice(*chars)]
            message = (
                f"span {name!r} ({text!r}, characters {chars}) covers no token of {example.clean!r}: {clean.tokens}."
            )
            return Rejection(
                SpanError, f"span {name!r} is not found", f"{message} Give character ranges in the clean text."
            )
        spans[name] = found
    front = _front(clean)
    for name, (start, end) in example.token_spans.items():
        if front + end > len(clean.ids):
            return Rejection(SpanError, f"span {name!r} is not found", _beyond(name, (start, end), example, clean))
        spans[name] = (front + start, front + end)
    if example.separate_spans and (shared := _shared_token(spans)):
        both, token = f"spans {shared[0]!r} and {shared[1]!r}", clean.tokens[shared[2]]
        message = f"{both} share the token {token!r} of {example.clean!r}; they must be separate tokens."
        return Rejection(SpanError, f"{both} share a token", message)
    for name, chars in example.corrupt_spans.items():
        assert corrupt is not None, "an example refuses such spans without a corrupted prompt"
        found = _tokens_of(chars, corrupt)
        if name in spans and found != spans[name]:
            message = (
                f"span {name!r} is at tokens {spans[name]} of {example.clean!r} and at {found} of {example.corrupt!r}. "
                "Choose words of as many tokens, so that both prompts line up."
            )
            return Rejection(SpanError, f"span {name!r} does not line up", message)
    return spans


def chars_of_tokens(example: Example, text: TextEncoder) -> dict[str, CharRange]:
    """Spans that an example has in tokens, as characters of its clean prompt.

    Args:
        example: The example.
        text: The tokenizer that they are counted for.

    Returns:
        Name -> half-open character range.

    Raises:
        SpanError: One is beyond the end of the prompt.
    """
    if not example.token_spans:
        return {}
    clean, found = text.encode(example.clean), dict[str, CharRange]()
    offsets = clean.offsets[_front(clean) :]
    for name, (start, end) in example.token_spans.items():
        if end > len(offsets):
            raise SpanError(_beyond(name, (start, end), example, clean))
        found[name] = (offsets[start][0], offsets[end - 1][1])
    return found


def _front(encoded: Encoded) -> int:
    """How many tokens without text come first."""
    return next((i for i, (start, end) in enumerate(encoded.offsets) if start < end), len(encoded.ids))


def _beyond(name: str, tokens: TokenRange, example: Example, clean: Encoded) -> str:
    return (
        f"span {name!r} is at tokens {tokens[0]} to {tokens[1]} of {example.clean!r}, which has "
        f"{len(clean.ids) - _front(clean)} for this tokenizer. Use the model that it is counted for."
    )


def _shared_token(spans: Mapping[str, TokenRange]) -> tuple[str, str, int] | None:
    """Two spans with a common token, and that token; None where there are none."""
    owners = dict[int, str]()
    for name, tokens in spans.items():
        for token in range(*tokens):
            if token in owners:
                return owners[token], name, token
            owners[token] = name
    return None


def _tokens_of(chars: CharRange, encoded: Encoded) -> TokenRange | None:
    """The tokens that overlap a character range."""
    hits = [i for i, (start, end) in enumerate(encoded.offsets) if start < chars[1] and end > chars[0]]
    return (hits[0], hits[-1] + 1) if hits else None
