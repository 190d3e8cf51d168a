"""Rows of a pair whose answers have several tokens: one for each position that is judged.

The answers and distractors of a pair form a tree of token prefixes. Each prefix gives a row: both prompts, followed by
the tokens of the prefix, and the next tokens of the answers and distractors that begin with it. The log-probability of
a whole answer is the sum over its prefixes. Words of one token have one prefix, the empty one, and one row.

Rows of a pair have one length, that of the prompt with the longest word but for its last token. After the position that
a row judges come the other tokens of a word that begins with its prefix, then the prompt's last token again. Under
causal attention no judged position sees them.
"""

from __future__ import annotations

from dataclasses import dataclass

from circuitlab.data.pair import Pair

NO_TOKEN = -1  # fills rows of `answers` where an example has fewer answers than another
ANSWER_SPAN = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Both prompts of a pair with a prefix of its words, and what comes next.

    Attributes:
        appended: The tokens after both prompts.
        n_prefix: How many of them are the prefix.
        answers: The next token of each answer; -1 for answers with another prefix, and where an answer has ended.
        distractors: The same of the distractors.
    """

    appended: tuple[int, ...]
    n_prefix: int
    answers: tuple[int, ...]
    distractors: tuple[int, ...]


def rows_of(pair: Pair) -> list[Row]:
    """The rows of a pair, that of the prompt itself first.

    Args:
        pair: The pair.

    Returns:
        At least one row.
    """
    words = (pair.answer_tokens, pair.distractor_tokens)
    prefixes = dict[tuple[int, ...], tuple[int, ...]]()  # each with the first word that begins with it
    for word in (*words[0], *words[1]):
        for length in range(len(word)):
            prefixes.setdefault(word[:length], word[:-1])

    def following(prefix: tuple[int, ...], some: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        n = len(prefix)
        return tuple(word[n] if len(word) > n and word[:n] == prefix else NO_TOKEN for word in some)

    return [
        Row(
            appended=word + pair.clean_ids[-1:] * (pair.n_appended - len(word)),
            n_prefix=len(prefix),
            answers=following(prefix, words[0]),
            distractors=following(prefix, words[1]),
        )
        for prefix, word in prefixes.items()
    ]
