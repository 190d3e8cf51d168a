"""The training text: documents numbered from 0, each made from the seed and its number alone."""

from dataclasses import dataclass
from random import Random

from training import filler, markup, stories
from training.kept_out import leaks

_KINDS = {
    "nest": (markup.nest, 0.50),
    "page": (markup.page, 0.12),
    "people": (stories.people_story, 0.16),
    "throws": (stories.throwing_story, 0.12),
    "filler": (filler.filler, 0.10),
}
_LONGEST = 900
_SHORTEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text and the kind of text it is.

    Attributes:
        kind: One of `nest`, `page`, `people`, `throws` and `filler`.
        text: The text, without marks for its beginning and end.
    """

    kind: str
    text: str


def document(seed: int, number: int) -> Document:
    """Makes one document.

    Documents that hold words of a task's prompt are drawn again, and so are very short and very long ones.

    Args:
        seed: The seed of the whole text.
        number: Which document of it.

    Returns:
        The same document for the same arguments, on any machine.
    """
    rng = Random(f"{seed}/{number}")
    kind = rng.choices(list(_KINDS), weights=[share for _, share in _KINDS.values()])[0]
    while True:
        text = _KINDS[kind][0](rng)
        if _SHORTEST <= len(text) <= _LONGEST and leaks(text) is None:
            return Document(kind=kind, text=text)


def documents(seed: int, count: int) -> list[Document]:
    """Makes the first documents of the text.

    Args:
        seed: The seed of the whole text.
        count: How many documents.

    Returns:
        The documents in the order of their numbers.
    """
    return [document(seed, number) for number in range(count)]
