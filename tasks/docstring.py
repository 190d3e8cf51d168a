"""Docstrings: which argument does the next ``:param`` line describe?

A Python function of six arguments has a docstring that describes the third and the fourth; the next ``:param`` is
followed by the fifth. The behaviour and the form of the prompt are those of Heimersheim and Janiak (2023), who studied
a four-layer attention-only model; words are our own.

Option ``corruption``:

- ``random-random``: other names stand in the place of the arguments, in the signature and, chosen independently, in
  the docstring, so that nothing tells which comes next.
- ``random-def``: other names in the signature only, as the docstring of the clean prompt has them.
- ``random-answer``: one other name in the signature in the place of the answer, which is then the right one; it is the
  distractor as well.

Under the first two, the distractors are the five other arguments of the clean prompt's signature.
"""

import random

from circuitlab import Prompting
from circuitlab.data.example import Example
from circuitlab.data.published import PublishedCircuit
from circuitlab.data.splits import words_of
from circuitlab.data.task import Task
from circuitlab.references import Reference

ARGUMENTS = (
    "size", "file", "option", "color", "shape", "name", "order", "model", "result", "user", "image", "value", "list",
    "date", "text", "path", "score", "item", "code", "page", "group", "level", "event", "point", "state", "key",
    "field", "type", "label", "index", "region", "table", "port", "host", "node", "target", "source", "message",
    "title", "time", "offset", "length", "width", "height", "count", "mode", "data", "line", "token", "test",
)  # fmt: skip
FUNCTIONS = ("load", "send", "find", "update", "check", "build", "filter", "merge", "save", "read", "copy", "open")
WORDS = (
    "first", "new", "total", "local", "main", "public", "common", "whole", "final", "current", "simple", "short",
    "house", "water", "river", "paper", "board", "market", "winter", "letter", "number", "garden", "music", "street",
    "summer", "morning", "picture", "window", "table", "story",
)  # fmt: skip
TEMPLATE = '''
def {function}(self, {a}, {b}, {c}, {d}, {e}, {f}):
    """{w1} {w2} {w3}

    :param {c_doc}: {w4} {w5}
    :param {d_doc}: {w6} {w7}
    :{param}'''

HEIMERSHEIM_2023 = Reference(
    key="heimersheim2023circuit",
    authors=("Heimersheim, Stefan", "Janiak, Jett"),
    title="A circuit for Python docstrings in a 4-layer attention-only transformer",
    year=2023,
    url="https://www.alignmentforum.org/posts/u6KXXmKFbXfWzoAXn",
)


def draw(rng: random.Random, split: str = "any", corruption: str = "random-random") -> Example:
    """Draws one pair: a function whose docstring is unfinished, and its corruption.

    Args:
        rng: Where every choice comes from.
        split: Whose names of functions and arguments, and whose words: ``discovery``, ``held_out`` or ``any``.
        corruption: ``random-random``, ``random-def`` or ``random-answer``, see the module's text.

    Returns:
        A pair whose spans are the arguments (``a`` to ``f``, the fifth, ``e``, being the answer), their mentions in
        the docstring (``c_doc``, ``d_doc``), the words (``w1`` to ``w7``), ``function`` and ``param``, the last token.
    """
    names = rng.sample(words_of(ARGUMENTS, split), 14)
    arguments, others, in_docs = names[:6], names[6:12], names[12:14]
    words = rng.sample(words_of(WORDS, split), 7)
    fields = {
        "function": rng.choice(words_of(FUNCTIONS, split)),
        **dict(zip("abcdef", arguments, strict=True)),
        "c_doc": arguments[2],
        "d_doc": arguments[3],
        **{f"w{i}": word for i, word in enumerate(words, 1)},
        "param": "param",
    }
    new_signature = dict(zip("abcdef", others, strict=True))
    corrupt = {
        "random-random": new_signature | {"c_doc": in_docs[0], "d_doc": in_docs[1]},
        "random-def": new_signature,
        "random-answer": {"e": others[4]},
    }[corruption]
    if corruption == "random-answer":
        wrong = (f" {others[4]}",)
    else:
        wrong = tuple(f" {name}" for i, name in enumerate(arguments) if i != 4)
    return Example.from_template(TEMPLATE, fields, corrupt=corrupt, answer=f" {arguments[4]}", distractor=wrong)


TASK = Task(
    name="docstring",
    version="1.0.0",
    summary="In the docstring of a Python function, name the argument that is described next.",
    draw=draw,
    options={"corruption": ("random-random", "random-def", "random-answer")},
    metric="logit_diff",
    held_out="names of functions and arguments, and words",
    prompting=Prompting(separator=':\n    """\n'),
    sources=(HEIMERSHEIM_2023,),
    published={
        "attn-only-4l": PublishedCircuit(
            source=HEIMERSHEIM_2023,
            classes={
                "duplicate token": ("a0.h5",),
                "previous token": ("a1.h2",),
                "several roles": ("a1.h4",),
                "induction": ("a2.h0",),
                "argument mover": ("a3.h0", "a3.h6"),
            },
        )
    },
)
