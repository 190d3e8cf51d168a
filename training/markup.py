"""HTML pages: nested tags, attributes, text, self-closing tags, comments.

Two kinds. In a nest any tag may stand in any other, up to four deep, so that only the open tags tell how to
go on; in a proper page lists, tables and headings stand where they belong, one element a line.
"""

from random import Random

from training import lexicon
from training.kept_out import is_task_text
from training.stories import filled

_DEEPEST = 4
_NEST_TAGS = lexicon.CONTAINER_TAGS + lexicon.INLINE_TAGS * 2 + lexicon.GROUPED_TAGS


def words(rng: Random) -> str:
    """One to four words that no HTML prompt of a task has."""
    while True:
        parts = []
        if rng.random() < 0.7:
            parts.append(rng.choice(lexicon.TEXT_OPENERS))
        if rng.random() < 0.7:
            parts.append(rng.choice(lexicon.TEXT_ADJECTIVES))
        parts.append(rng.choice(lexicon.TEXT_NOUNS))
        text = " ".join(parts)
        text = text[0].upper() + text[1:]
        if not is_task_text(text):
            return text


def tail(rng: Random) -> str:
    """A few words that go on after a tag, with their leading space."""
    return f" {filled(rng, rng.choice(lexicon.TEXT_TAILS))}"


def attributes(rng: Random, share: float) -> str:
    """Up to two attributes, each with its leading space."""
    text = ""
    while rng.random() < share and text.count("=") < 2:
        text += f' {rng.choice(lexicon.ATTRIBUTES)}="{rng.choice(lexicon.VALUES)}"'
    return text


def void(rng: Random) -> str:
    """A tag that closes itself, or now and then a comment."""
    if rng.random() < 0.15:
        return f"<!-- {rng.choice(lexicon.TEXT_NOUNS)} -->"
    return f"<{rng.choice(lexicon.VOID_TAGS)}{attributes(rng, 0.1)}/>"


def _element(rng: Random, depth: int) -> str:
    """An element with one to three things in it, elements no deeper than allowed among them."""
    tag = rng.choice(_NEST_TAGS)
    children: list[str] = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        kind = rng.random()
        if depth < _DEEPEST and kind < 0.6:
            children.append(_element(rng, depth + 1))
        elif kind < 0.72:
            children.append(void(rng))
        else:
            children.append(tail(rng) if children else words(rng))
    return f"<{tag}{attributes(rng, 0.15)}>{''.join(children)}</{tag}>"


def nest(rng: Random) -> str:
    """Elements in elements, any in any."""
    return _element(rng, 1)


def _listing(rng: Random) -> list[str]:
    tag = rng.choice(("ul", "ol"))
    items = []
    for _ in range(rng.choice((1, 2, 3))):
        content = words(rng)
        if rng.random() < 0.4:
            inline = rng.choice(lexicon.INLINE_TAGS)
            content = rng.choice((f"<{inline}>{content}</{inline}>", f"{content}<{inline}>{words(rng)}</{inline}>"))
        items.append(f"<li{attributes(rng, 0.1)}>{content}</li>")
    return [f"<{tag}{attributes(rng, 0.2)}>", *items, f"</{tag}>"]


def _grid(rng: Random) -> list[str]:
    rows = []
    for index in range(rng.choice((1, 2))):
        cell = "th" if index == 0 and rng.random() < 0.6 else "td"
        cells = "".join(f"<{cell}>{words(rng)}</{cell}>" for _ in range(rng.choice((1, 2))))
        rows.append(f"<tr>{cells}</tr>")
    return [f"<table{attributes(rng, 0.2)}>", *rows, "</table>"]


def _passage(rng: Random) -> list[str]:
    tag = rng.choice(("p", "h1", "h2", "h3", "p", "span"))
    content = words(rng)
    if rng.random() < 0.5:
        inline = rng.choice(lexicon.INLINE_TAGS)
        content += f"<{inline}>{words(rng)}</{inline}>" + (tail(rng) if rng.random() < 0.5 else "")
    if rng.random() < 0.25:
        content += void(rng) + (tail(rng) if rng.random() < 0.5 else "")
    return [f"<{tag}{attributes(rng, 0.2)}>{content}</{tag}>"]


def page(rng: Random) -> str:
    """Passages, lists and tables in a container, the whole sometimes in a full document."""
    lines: list[str] = []
    for _ in range(rng.choice((1, 2, 2, 3))):
        lines += rng.choice((_listing, _grid, _passage, _passage))(rng)
    if rng.random() < 0.6:
        tag = rng.choice(lexicon.CONTAINER_TAGS)
        lines = [f"<{tag}{attributes(rng, 0.3)}>", *lines, f"</{tag}>"]
    if rng.random() < 0.15:
        head = f"<head><title>{words(rng)}</title></head>"
        lines = ["<html>", head, "<body>", *lines, "</body>", "</html>"]
    return rng.choice(("", "\n")).join(lines)
