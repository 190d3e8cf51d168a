"""Which words of a task belong to which split, so that held-out prompts hold words that discovery never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from circuitlab.arguments import checked
from circuitlab.errors import TaskError, UnknownNameError

if TYPE_CHECKING:
    from circuitlab.data.encoded import TextEncoder

SPLITS = ("discovery", "held_out", "any")

# Every so many words, one is kept for held-out prompts.
EVERY = 3
# What a task that draws from the model's words is given where there is no model, as for its fingerprint.
STAND_INS = tuple(f" w{i}" for i in range(1000))
SHORTEST_WORD = 3
FEWEST_WORDS = 100
T = TypeVar("T")


@checked
def words_of(words: Sequence[T], split: str) -> tuple[T, ...]:
    """The words, templates or other choices that prompts of one split are made of.

    Every third is kept for held-out prompts, so that related words that are next to each other in a list reach both
    splits.

    Args:
        words: The whole list, at least two; its order decides.
        split: `discovery` or `held_out`; `any` gives the whole list.

    Returns:
        The words of the split, in their order. The two splits share none, and together hold all.

    Raises:
        TaskError: Fewer than two words, of which one split would have none.
        UnknownNameError: No such split.

    Example:
        >>> from circuitlab.data.splits import words_of
        >>> words_of(("red", "blue", "green", "black"), "held_out")
        ('green',)
    """
    UnknownNameError.check("split", split, SPLITS)
    if split == "any":
        return tuple(words)
    if len(words) < 2:
        raise TaskError(f"{list(words)} cannot be split in discovery and held-out words; give at least two.")
    last = min(EVERY, len(words)) - 1
    return tuple(word for i, word in enumerate(words) if (i % EVERY == last) == (split == "held_out"))


def vocabulary_of(text: TextEncoder) -> tuple[str, ...]:
    """The words of a tokenizer, for tasks that draw from them.

    Args:
        text: The tokenizer.

    Returns:
        Texts of a space and at least three lower-case letters a to z that are one token each, by token id.

    Raises:
        TaskError: The tokenizer has fewer than 100 of them.
    """
    ids = [i for i in range(text.n_tokens) if i not in text.special_ids]
    words = dict.fromkeys(word for word in text.decode(tuple(ids)) if _is_word(word))
    if len(words) < FEWEST_WORDS:
        raise TaskError(
            f"the tokenizer has {len(words)} tokens that are a space and a lower-case word; a task of random tokens "
            f"needs {FEWEST_WORDS}. Take another model, or another task."
        )
    return tuple(words)


def _is_word(token: str) -> bool:
    word = token[1:]
    return token[:1] == " " and len(word) >= SHORTEST_WORD and word.isascii() and word.isalpha() and word.islower()
