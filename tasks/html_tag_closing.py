"""Closing HTML tags: which tag is open here?

The prompt ends in ``</`` and the answer is the name of the innermost tag that is still open. That tag is
seldom the last one mentioned: tags that were opened and closed inside it, and self-closing ones, stand
between. Prompts are one to three tags deep and carry attributes and text.

Option ``distractor``:

- ``other``: the corrupted prompt has another tag, one that stands nowhere in the clean prompt, in place of
  the innermost open one.
- ``enclosing``: the corrupted prompt exchanges the innermost open tag and the one around it, so that both
  prompts hold the same tags and only their order tells. Prompts are then two or three deep.

Either way the distractor is what would be right in the corrupted prompt. A tag name may be several tokens
long for a model; pairs whose prompts differ in length there are dropped, and counted, by the library.
"""

import random

from circuitlab.data.example import Example
from circuitlab.data.task import Task
from circuitlab.references import Reference

CONTAINERS = ("div", "section", "article", "main", "aside", "form")
INNERMOST = ("p", "h1", "h2", "h3", "b", "i", "em", "strong", "span", "li", "th", "td")
CLOSED = ("a", "code", "u", "small", "q", "s")
VOID = ("br", "hr", "img", "input")
PARENTS = {"li": ("ul", "ol"), "th": ("tr",), "td": ("tr",), "tr": ("table",)}

ATTRIBUTES = ("class", "id", "style", "title")
VALUES = ("note", "top", "box", "card", "left", "wide", "menu", "first", "blue", "large")
DETERMINERS = ("Some", "Every", "Another", "This", "Our")
ADJECTIVES = ("bold", "interesting", "short", "long", "plain", "early", "second", "final")
NOUNS = ("text", "paragraph", "title", "name", "item", "model", "page", "letter", "chapter", "story")
TAILS = ("for later", "and more", "in full", "at the end", "on the left", "for you")


def _path(rng: random.Random, depth: int) -> list[str]:
    """Tags from the outermost to the innermost, each in a place where HTML allows it."""
    path = [rng.choice(INNERMOST)]
    while len(path) < depth:
        choices = [tag for tag in PARENTS.get(path[0], CONTAINERS) if tag not in path]
        path.insert(0, rng.choice(choices))
    return path


def _words(rng: random.Random) -> str:
    return f"{rng.choice(DETERMINERS)} {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def _attribute(rng: random.Random) -> str:
    """An attribute with its leading space, or, as often, nothing."""
    if rng.random() < 0.5:
        return ""
    return f' {rng.choice(ATTRIBUTES)}="{rng.choice(VALUES)}"'


def _content(rng: random.Random) -> tuple[str, dict[str, str]]:
    """What stands between the innermost open tag and ``</``: text, and tags that leave nothing open.

    Returns:
        A template, and the values of its fields.
    """
    template, fields = "{text}", {"text": _words(rng)}
    if rng.random() < 0.4:
        template += f"<{rng.choice(VOID)}/>"
    if rng.random() < 0.5:
        template += "<{closed}>" + _words(rng) + "</{closed}>"
        fields["closed"] = rng.choice(CLOSED)
    if template != "{text}" and rng.random() < 0.5:
        template += f" {rng.choice(TAILS)}"
    return template, fields


def draw(rng: random.Random, distractor: str = "other") -> Example:
    """Draws one pair: an unfinished piece of HTML, and its corruption.

    Args:
        rng: Where every choice comes from.
        distractor: ``other`` or ``enclosing``, see the module's text.

    Returns:
        A pair with the spans ``tag`` (the innermost open one), ``text`` (the first words in it) and ``close``
        (the ``</`` at the end), and, where there are such, ``enclosing`` (the tag around it), ``outermost``
        and ``closed`` (a tag that was opened and closed again).
    """
    depth = rng.choice((2, 3) if distractor == "enclosing" else (1, 2, 3))
    path = _path(rng, depth)
    roles = ("outermost", "enclosing", "tag")[3 - depth :]
    opened = "".join(f"<{{{role}}}{_attribute(rng)}>" for role in roles)
    content, fields = _content(rng)
    fields |= dict(zip(roles, path, strict=True)) | {"close": "</"}
    if distractor == "enclosing":
        corrupt = {"tag": path[-2], "enclosing": path[-1]}
    else:
        corrupt = {"tag": rng.choice([tag for tag in INNERMOST if tag not in path])}
    return Example.from_template(
        f"{opened}{content}{{close}}",
        fields,
        corrupt=corrupt,
        answer=path[-1],
        distractor=corrupt["tag"],
    )


def notebook_prompts(distractor: str = "other") -> tuple[Example, ...]:
    """The five prompts of the exploratory notebook, which come before those that are drawn.

    Four of them are one tag deep and have no enclosing tag, so that variant has only the fifth.
    """
    table = "<{outermost}><{enclosing}><{tag}>{text}{close}"
    row = {"outermost": "table", "enclosing": "tr", "tag": "th", "text": "Model name", "close": "</"}
    if distractor == "enclosing":
        swapped = {"tag": "tr", "enclosing": "th"}
        return (Example.from_template(table, row, corrupt=swapped, answer="th", distractor="tr"),)
    shallow = (
        ("h1", "h2", "Title"),
        ("b", "i", "Some bold text"),
        ("p", "b", "An interesting paragraph"),
        ("li", "th", "List item"),
    )
    prompts = [
        Example.from_template(
            "<{tag}>{text}{close}",
            {"tag": tag, "text": text, "close": "</"},
            corrupt={"tag": other},
            answer=tag,
            distractor=other,
        )
        for tag, other, text in shallow
    ]
    nested = Example.from_template(table, row, corrupt={"tag": "td"}, answer="th", distractor="td")
    return (*prompts[:3], nested, prompts[3])


TASK = Task(
    name="html-tag-closing",
    version="1.0.0",
    summary="Close the innermost HTML tag that is still open.",
    draw=draw,
    options={"distractor": ("other", "enclosing")},
    metric="logit_diff",
    sources=(
        Reference(
            key="elhage2022softmax",
            authors=("Elhage, Nelson", "Hume, Tristan", "Olsson, Catherine", "Nanda, Neel", "others"),
            title="Softmax Linear Units",
            year=2022,
            url="https://transformer-circuits.pub/2022/solu/index.html",
        ),
    ),
    fixed=notebook_prompts,
)
