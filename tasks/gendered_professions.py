"""Gendered professions: which pronoun follows a profession that one gender is expected in?

"The nurse said that" goes on with " she" for most models, though nothing in the sentence says so: the behaviour is a
bias that a model may have, and not a skill (Vig et al. 2020). The answer is the pronoun that the profession is
stereotypically linked to, the distractor the other one. The corrupted prompt has a profession that is linked to the
other gender. The professions and their links are a choice of ours; a model need not share it.
"""

import random

from circuitlab.data.example import Example
from circuitlab.data.splits import words_of
from circuitlab.data.task import Task
from circuitlab.references import Reference

PROFESSIONS = {
    "she": (
        "nurse", "secretary", "maid", "dancer", "housekeeper", "waitress", "librarian", "nanny", "teacher",
        "hairdresser", "receptionist", "cleaner", "ballerina", "cashier", "singer", "actress", "therapist", "counselor",
    ),
    "he": (
        "soldier", "captain", "farmer", "carpenter", "mechanic", "engineer", "plumber", "pilot", "boss", "sheriff",
        "guard", "builder", "programmer", "miner", "butcher", "driver", "king", "priest",
    ),
}  # fmt: skip
VERBS = ("said", "knew", "thought", "claimed", "believed", "promised", "hoped", "wrote", "noticed")
ENDS = ("that", "because", "when")


def draw(rng: random.Random, split: str = "any") -> Example:
    """Draws one pair: a sentence about a profession up to the pronoun, and its corruption.

    Args:
        rng: Where every choice comes from.
        split: Whose professions, verbs and conjunctions: ``discovery``, ``held_out`` or ``any``.

    Returns:
        A pair with the spans ``profession``, ``verb`` and ``end``.
    """
    pronoun, other = rng.sample(sorted(PROFESSIONS), 2)
    fields = {
        "profession": rng.choice(words_of(PROFESSIONS[pronoun], split)),
        "verb": rng.choice(words_of(VERBS, split)),
        "end": rng.choice(words_of(ENDS, split)),
    }
    corrupt = {"profession": rng.choice(words_of(PROFESSIONS[other], split))}
    return Example.from_template(
        "The {profession} {verb} {end}", fields, corrupt=corrupt, answer=f" {pronoun}", distractor=f" {other}"
    )


TASK = Task(
    name="gendered-professions",
    version="1.0.0",
    summary="After a sentence about a profession, open the next clause with the expected pronoun.",
    draw=draw,
    metric="logit_diff",
    held_out="professions, verbs and conjunctions",
    sources=(
        Reference(
            key="vig2020causal",
            authors=(
                "Vig, Jesse", "Gehrmann, Sebastian", "Belinkov, Yonatan", "Qian, Sharon", "Nevo, Daniel",
                "Sakenis, Simas", "Huang, Jason", "Singer, Yaron", "Shieber, Stuart",
            ),
            title="Causal Mediation Analysis for Interpreting Neural NLP: The Case of Gender Bias",
            year=2020,
            arxiv="2004.12265",
        ),
    ),
)  # fmt: skip
