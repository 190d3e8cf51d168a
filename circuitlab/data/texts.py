"""Texts as a model reads them: checked against its tokenizer and context, and filled up to one length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor

from circuitlab.data.encoded import Encoded, Rejection, TextEncoder
from circuitlab.data.encoding import continuations
from circuitlab.data.limits import check_length, clipped
from circuitlab.errors import ConfigError, TokenError, WrongTypeError

PART = "\N{REPLACEMENT CHARACTER}"  # what bytes decode to that are no whole character


def as_texts(texts: str | Sequence[str]) -> tuple[str, ...]:
    """One text or several as a tuple.

    Returns:
        The texts, at least one.

    Raises:
        ConfigError: There is none, or one is no text.
    """
    if not isinstance(texts, str | Iterable):
        raise WrongTypeError(f"texts are a str or a list of them; got {type(texts).__name__}.")
    found = (texts,) if isinstance(texts, str) else tuple(texts)
    if not found:
        raise ConfigError("no text is given. Give one text, or a list of texts.")
    wrong = next((text for text in found if not isinstance(text, str)), None)
    if wrong is not None:
        raise WrongTypeError(f"a text is a str; got {type(wrong).__name__}.")
    if "" in found:
        raise ConfigError(f"text {found.index('') + 1} of {len(found)} is empty. Give at least one character.")
    return found


def encode_text(text: str, encoder: TextEncoder, n_ctx: int | None, extra: int = 0) -> Encoded:
    """A text as tokens, all of which the model can read.

    Args:
        text: The text.
        encoder: The tokenizer of the model.
        n_ctx: The model's context; None for no limit.
        extra: How many more tokens the context has to hold.

    Returns:
        Token ids, character ranges and token texts.

    Raises:
        TokenError: The text has no token, or more than fit the context; the message has both numbers.
    """
    encoded = encoder.encode(text)
    if not encoded.ids:
        raise TokenError(f"the text {text!r} has no token for this tokenizer. Give a text with words.")
    check_length(len(encoded.ids), n_ctx, f"the text {clipped(text)}", more=extra)
    return encoded


def answer_ids(text: str, words: Sequence[str], encoded: Encoded, encoder: TextEncoder) -> tuple[int, ...]:
    """The token that each word is right after a text.

    Returns:
        One token id a word.

    Raises:
        TokenError: A word is not one token there; the message gives its tokens.
    """
    found = continuations(text, tuple(words), encoded, encoder)
    if isinstance(found, Rejection):
        raise found.kind(found.message)
    return found


def shown_tokens(text: str, encoded: Encoded) -> tuple[str, ...]:
    r"""Each token as in the text, including its leading space.

    Tokenizers disagree on whether a space belongs to the range of its token, and a character may be split into several
    tokens, none of which is text by itself; these are shown as the character with the number of the part.

    Returns:
        One text a token.

    Example:
        >>> both = Encoded((1, 2, 3), ((0, 1), (1, 2), (1, 2)), ("a", "\ufffd", "\ufffd"))
        >>> shown_tokens("aé", both)
        ('a', 'é[1/2]', 'é[2/2]')
    """
    shown, end = [], 0
    pieces = list(zip(encoded.offsets, encoded.tokens, strict=True))
    for is_part, group in groupby(range(len(pieces)), key=lambda i: PART in pieces[i][1] and _part_of(pieces[i], text)):
        members = list(group)
        for number, at in enumerate(members, start=1):
            (first, last), token = pieces[at]
            if last <= first:  # no text, such as the beginning of the sequence
                shown.append(token)
                continue
            if is_part:
                before = text[end:first] if number == 1 else ""
                shown.append(f"{before}{text[first:last]}[{number}/{len(members)}]")
            else:
                shown.append(text[min(end, first) : last])
            end = max(end, last)
    return tuple(shown)


def _part_of(piece: tuple[tuple[int, int], str], text: str) -> tuple[int, int] | None:
    """The last character of a token that is not whole: tokens of one character have the same."""
    (first, last), _ = piece
    return (last - 1, last) if last > first and PART not in text[first:last] else None


def filled(ids: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, " batch"]]:
    """Token lists as one tensor, padded at the end, and their lengths.

    A causal model gives the same values at a text's own tokens whatever follows them; the texts'
    last tokens are repeated there. For models that look ahead the lengths have to be one (`packs_by_length`).

    Returns:
        The tensor `[batch, seq]`, and the number of tokens of each text.
    """
    longest = max(len(row) for row in ids)
    rows = [[*row, *[row[-1]] * (longest - len(row))] for row in ids]
    return torch.tensor(rows), torch.tensor([len(row) for row in ids])
