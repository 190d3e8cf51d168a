"""What the training text must not hold, so that the tasks measure something that was not learnt by heart.

Two things are kept out. The first is every prompt that a task can draw: the adjective and noun pairs of the
pronoun sentences, the verb and object pairs of the throws, the adjective and noun pairs of the HTML texts.
The second is a fifth of all pairs of a name and a person noun ("Mary" and "neighbour"), whatever words stand
between them, chosen by a checksum: the model never sees them in one sentence of that kind.
"""

import re
import zlib

from circuitlab.tasks import gendered_pronouns, html_tag_closing, name_throw

_KEPT_OUT_SHARE = 5


def _any_of(words: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(map(re.escape, words))})"


_DESCRIPTION = re.compile(
    rf"{_any_of(gendered_pronouns.DEGREES)} {_any_of(gendered_pronouns.ADJECTIVES)} "
    rf"{_any_of(gendered_pronouns.PEOPLE)}\b"
)
_THROW = re.compile(rf"\b{name_throw.VERB} the {_any_of(name_throw.OBJECTS)}\b")
_TEXT = re.compile(
    rf"{_any_of(html_tag_closing.ADJECTIVES)} {_any_of(html_tag_closing.NOUNS)}\b"
    r"|>Title</|Model name|List item"
)


def is_task_description(degree: str, trait: str, person: str) -> bool:
    """Tells whether a pronoun prompt could be made of these words."""
    return _DESCRIPTION.fullmatch(f"{degree} {trait} {person}") is not None


def is_task_throw(verb: str, thing: str) -> bool:
    """Tells whether a name-throw prompt could be made of these words."""
    return _THROW.fullmatch(f"{verb} the {thing}") is not None


def is_task_text(words: str) -> bool:
    """Tells whether a piece of text in a page holds the words of an HTML prompt."""
    return _TEXT.search(f">{words}</") is not None


def is_reserved(name: str, person: str) -> bool:
    """Tells whether this name is never said to be such a person."""
    return zlib.crc32(f"{name}/{person}".encode()) % _KEPT_OUT_SHARE == 0


def leaks(text: str) -> str | None:
    """Looks for words of a task's prompt in a text.

    Returns:
        The first such words, or None if there are none.
    """
    for pattern in (_DESCRIPTION, _THROW, _TEXT):
        if found := pattern.search(text):
            return found.group()
    return None
