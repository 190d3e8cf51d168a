"""Copy colours: a multiple-choice question whose answer stands in the question.

"A box is red. What color is a box?" is followed by choices, and the answer is the symbol of the right one. The task is
that of the benchmark MIB (Mueller et al. 2025, after Wiegreffe et al. 2025); objects and sentences are our own.

Options:

- ``corruption``: ``symbols`` gives the choices other letters, among which the right one is the distractor, so that the
  order stays and the symbol differs; ``order`` exchanges the right choice with another one, whose symbol is the
  distractor.
- ``choices``: how many, ``4`` unless chosen otherwise.
"""

import random
from string import ascii_uppercase

from circuitlab import Prompting
from circuitlab.data.example import Example
from circuitlab.data.splits import words_of
from circuitlab.data.task import Task
from circuitlab.references import MIB_2025, Reference

COLORS = ("red", "blue", "green", "black", "white", "yellow", "brown", "gray", "pink", "purple", "orange", "silver")
OBJECTS = (
    "box", "car", "ball", "hat", "cup", "door", "chair", "book", "shirt", "boat", "bag", "house", "phone", "table",
    "coat", "bike", "lamp", "ring", "key", "wall",
)  # fmt: skip
TEMPLATES = (
    "A {object} is {fact}. What color is a {object}?",
    "The {object} is {fact}. Which color does the {object} have?",
    "Someone painted a {object} {fact}. What color is the {object} now?",
    "My {object} is {fact}. What is the color of my {object}?",
)


def draw(rng: random.Random, split: str = "any", corruption: str = "symbols", choices: str = "4") -> Example:
    """Draws one pair: a question with its choices up to the symbol, and its corruption.

    Args:
        rng: Where every choice comes from.
        split: Whose objects and sentences: ``discovery``, ``held_out`` or ``any``. Every split has all colours.
        corruption: ``symbols`` or ``order``, see the module's text.
        choices: The number of choices, ``2``, ``3`` or ``4``.

    Returns:
        A pair with the spans ``object``, ``fact``, ``right_symbol``, ``right_choice``, ``wrong1_symbol``,
        ``wrong1_choice`` and so on, and ``end``, the last token.
    """
    n = int(choices)
    colors = rng.sample(COLORS, n)
    right = rng.randrange(n)
    letters = list(ascii_uppercase[:n])
    new_letters = rng.sample(ascii_uppercase[n:], n)
    fields = {"object": rng.choice(words_of(OBJECTS, split)), "fact": colors[right], "end": ":"}
    wrong = [i for i in range(n) if i != right]
    kinds = {right: "right"} | {i: f"wrong{k}" for k, i in enumerate(wrong, 1)}
    lines = []
    for i, (letter, color) in enumerate(zip(letters, colors, strict=True)):
        names = (f"{kinds[i]}_symbol", f"{kinds[i]}_choice")
        fields |= dict(zip(names, (letter, color), strict=True))
        lines.append("\n{{{}}}. {{{}}}".format(*names))
    if corruption == "symbols":
        corrupt = {f"{kinds[i]}_symbol": letter for i, letter in enumerate(new_letters)}
        distractor = new_letters[right]
    else:
        other = rng.choice(wrong)
        corrupt = {"right_choice": colors[other], f"{kinds[other]}_choice": colors[right]}
        distractor = letters[other]
    template = rng.choice(words_of(TEMPLATES, split)) + "".join(lines) + "\nAnswer{end}"
    return Example.from_template(
        template, fields, corrupt=corrupt, answer=f" {letters[right]}", distractor=f" {distractor}"
    )


TASK = Task(
    name="copy-colors",
    version="1.0.0",
    summary="Of the colors that a question offers, choose by its letter the one that the question states.",
    draw=draw,
    options={"corruption": ("symbols", "order"), "choices": ("4", "2", "3")},
    metric="logit_diff",
    held_out="objects and sentences",
    prompting=Prompting(separator="\n\n"),
    sources=(
        MIB_2025,
        Reference(
            key="wiegreffe2025answer",
            authors=("Wiegreffe, Sarah", "Tafjord, Oyvind", "Belinkov, Yonatan", "Hajishirzi, Hannaneh", "others"),
            title="Answer, Assemble, Ace: Understanding How LMs Answer Multiple Choice Questions",
            year=2025,
            arxiv="2407.15018",
        ),
    ),
)
