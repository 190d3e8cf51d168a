"""Gendered pronouns: which pronoun opens the next clause, and is it capitalised?

"Mary is a really great friend." goes on with " She". Two things about that token can be asked for, and the
same sentences serve both (option ``contrast``):

- ``capital``: the answer is the capitalised pronoun, the distractor the lower-case one. The corrupted prompt
  has ";" in place of the full stop, after which the lower-case pronoun is right. The gender is the same in
  both prompts, so a circuit found here is about the capital only.
- ``gender``: the answer is the pronoun that goes with the name, the distractor the other one. The corrupted
  prompt has a name of the other gender. The capital is the same in both prompts.

The first ten names of either gender, and the five sentences made of the phrases in ``NOTEBOOK_PHRASES``, are
those of the exploratory notebook that this task replaces; the others are of the same kind, so that prompts
can be held out. Every sentence is the same seven words and marks long.
"""

import random

from circuitlab.data.example import Example
from circuitlab.data.task import Task
from circuitlab.references import Reference

MALE_NAMES = (
    "John", "David", "Mark", "Paul", "Ryan", "Gary", "Jack", "Sean", "Carl", "Joe",
    "Will", "Tom", "Ben", "Max", "Leo", "Adam", "Peter", "James", "Henry", "George",
    "Frank", "Simon", "Luke", "Oscar", "Martin", "Robert", "Daniel", "Thomas", "Kevin", "Brian",
    "Eric", "Steve", "Philip", "Edward", "Walter", "Victor", "Roger", "Hugo", "Noah", "Oliver",
    "Dennis", "Keith", "Alan", "Fred",
)  # fmt: skip
FEMALE_NAMES = (
    "Mary", "Lisa", "Anna", "Sarah", "Amy", "Jane", "Joy", "Susan", "Victoria", "Laura",
    "Jill", "Kate", "Emma", "Lucy", "Alice", "Helen", "Julia", "Rose", "Ruth", "Clara",
    "Diana", "Emily", "Grace", "Karen", "Linda", "Maria", "Nancy", "Nora", "Olivia", "Paula",
    "Rachel", "Sophie", "Tina", "Wendy", "Betty", "Carol", "Ellen", "Fiona", "Hannah", "Irene",
    "Molly", "Sally", "Martha", "Eva",
)  # fmt: skip

NOTEBOOK_PHRASES = (
    ("a really great", "friend"),
    ("such a good", "cook"),
    ("a very good", "athlete"),
    ("a really nice", "person"),
    ("such a funny", "person"),
)
DEGREES = ("a really", "such a", "a very")
ADJECTIVES = ("great", "good", "nice", "funny", "kind", "clever", "brave")
PEOPLE = (
    "friend", "cook", "athlete", "person", "doctor", "teacher", "singer", "dancer", "writer",
    "farmer", "painter", "baker", "driver", "sailor", "nurse", "pilot", "player", "runner",
    "artist", "student",
)  # fmt: skip

_PRONOUNS = {"male": "he", "female": "she"}
_NAMES = {"male": MALE_NAMES, "female": FEMALE_NAMES}


def draw(rng: random.Random, contrast: str = "capital") -> Example:
    """Draws one pair: a sentence about a person, and its corruption.

    Args:
        rng: Where every choice comes from.
        contrast: ``capital`` or ``gender``, see the module's text.

    Returns:
        A pair with the spans ``name``, ``is``, ``person`` and ``period``.
    """
    gender, other = rng.sample(sorted(_PRONOUNS), 2)
    fields = {
        "name": rng.choice(_NAMES[gender]),
        "is": "is",
        "person": rng.choice(PEOPLE),
        "period": ".",
    }
    template = f"{{name}} {{is}} {rng.choice(DEGREES)} {rng.choice(ADJECTIVES)} {{person}}{{period}}"
    capital = f" {_PRONOUNS[gender].capitalize()}"
    if contrast == "gender":
        corrupt = {"name": rng.choice(_NAMES[other])}
        distractor = f" {_PRONOUNS[other].capitalize()}"
    else:
        corrupt = {"period": ";"}
        distractor = f" {_PRONOUNS[gender]}"
    return Example.from_template(template, fields, corrupt=corrupt, answer=capital, distractor=distractor)


TASK = Task(
    name="gendered-pronouns",
    version="1.0.0",
    summary="After a sentence about a person, open the next with the right pronoun, capitalised.",
    draw=draw,
    options={"contrast": ("capital", "gender")},
    metric="logit_diff",
    sources=(
        Reference(
            key="mathwin2023identifying",
            authors=(
                "Mathwin, Chris",
                "Corlouer, Guillaume",
                "Kran, Esben",
                "Barez, Fazl",
                "Nanda, Neel",
            ),
            title="Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small",
            year=2023,
            url="https://itch.io/jam/mechint/rate/1889871",
        ),
    ),
)
