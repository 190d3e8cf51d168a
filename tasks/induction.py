"""Induction: repeat what followed the last time.

Random tokens are followed by the same tokens again, up to one before the end: whoever finds the earlier occurrence of
the last token and copies what followed it there is right (Olsson et al. 2022). The tokens are drawn from the
vocabulary of the model at hand, so that nothing but the repetition tells the answer.

In the corrupted prompt another token follows the first occurrence, which is the right answer there and the distractor.

Option ``length``: tokens of the repeated sequence, ``8`` unless chosen otherwise.
"""

import random
from collections.abc import Sequence

from circuitlab.data.example import Example
from circuitlab.data.splits import words_of
from circuitlab.data.task import Task
from circuitlab.references import Reference


def draw(rng: random.Random, vocabulary: Sequence[str], split: str = "any", length: str = "8") -> Example:
    """Draws one pair: a sequence and its unfinished repetition, and its corruption.

    Args:
        rng: Where every choice comes from.
        vocabulary: Words with their leading space that are one token each for the model.
        split: Whose words: ``discovery``, ``held_out`` or ``any``.
        length: Tokens of the sequence, ``4``, ``8``, ``16`` or ``32``.

    Returns:
        A pair with the spans ``before`` (the last token's first occurrence), ``copied`` (what follows it there) and
        ``last``.
    """
    n = int(length)
    *words, other = rng.sample(words_of(vocabulary, split), n + 1)
    at = rng.randrange(1, n - 1)
    fields = {"before": words[at].strip(), "copied": words[at + 1].strip(), "last": words[at].strip()}
    first = [*words[:at], " {before}", " {copied}", *words[at + 2 :]]
    template = "".join([*first, *words[:at], " {last}"])
    return Example.from_template(
        template, fields, corrupt={"copied": other.strip()}, answer=words[at + 1], distractor=other
    )


TASK = Task(
    name="induction",
    version="1.0.0",
    summary="In a repeated sequence of random tokens, go on as the first time.",
    draw=draw,
    options={"length": ("8", "4", "16", "32")},
    metric="logit_diff",
    held_out="tokens",
    sources=(
        Reference(
            key="olsson2022context",
            authors=("Olsson, Catherine", "Elhage, Nelson", "Nanda, Neel", "others"),
            title="In-context Learning and Induction Heads",
            year=2022,
            arxiv="2209.11895",
        ),
    ),
)
