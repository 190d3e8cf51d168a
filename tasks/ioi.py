"""Indirect object identification (IOI): who received the object?

"When Mary and John went to the store, John gave a drink to" goes on with " Mary": the name that was mentioned once
(the indirect object, IO), not the one that was mentioned twice (the subject, S). The prompts are of the form of
Wang et al. (2023); sentences and words are our own.

Options:

- ``order``: which name comes first. ``ABBA`` begins with the indirect object, ``BABA`` with the subject, ``mixed``
  draws one of the two.
- ``corruption``: ``abc`` has three other names, so that no name is repeated and none is the answer;
  ``s2-io-flip`` has the indirect object in place of the second mention of the subject, which turns the answer over;
  ``random-names`` has two other names in the same roles.

The distractor is the subject. Under ``s2-io-flip`` it is the right answer of the corrupted prompt.
"""

import random

from circuitlab.data.example import Example
from circuitlab.data.published import PublishedCircuit
from circuitlab.data.splits import words_of
from circuitlab.data.task import Task
from circuitlab.references import WANG_2023

NAMES = (
    "Mary", "John", "Anna", "James", "Laura", "Robert", "Sarah", "David", "Lisa", "Paul", "Emma", "Mark",
    "Alice", "Peter", "Kate", "Thomas", "Helen", "Simon", "Julia", "Daniel", "Susan", "George", "Rachel", "Kevin",
    "Maria", "Steven", "Linda", "Brian", "Nancy", "Edward", "Karen", "Richard", "Amy", "Andrew", "Jessica", "Ryan",
    "Emily", "Adam", "Rebecca", "Jason", "Jennifer", "Michael", "Michelle", "Scott", "Elizabeth", "William", "Amanda",
    "Charles", "Melissa", "Henry", "Nicole", "Jack", "Stephanie", "Eric", "Katie", "Alex", "Rose", "Martin", "Ruth",
    "Frank",
)  # fmt: skip
PLACES = (
    "store", "school", "park", "office", "station", "hospital", "garden", "library", "museum", "market", "restaurant",
    "house", "beach", "hotel", "church",
)  # fmt: skip
OBJECTS = (
    "drink", "book", "ring", "letter", "key", "ticket", "flower", "picture", "basket", "coat", "watch", "map", "box",
    "computer", "gift",
)  # fmt: skip
BACKUP = ("a9.h0", "a9.h7", "a10.h1", "a10.h2", "a10.h6", "a10.h10", "a11.h2", "a11.h9")
# {first} and {second} are the indirect object and the subject, in either order; {s2} is the subject again.
TEMPLATES = (
    "When {first} and {second} went to the {place}, {s2} gave a {object} {to}",
    "After {first} and {second} left the {place}, {s2} handed a {object} {to}",
    "Then {first} and {second} met at the {place}, and {s2} sold a {object} {to}",
    "While {first} and {second} were at the {place}, {s2} passed a {object} {to}",
    "Yesterday {first} and {second} walked to the {place}. There {s2} offered a {object} {to}",
    "{first} and {second} spent the day at the {place}. In the evening {s2} brought a {object} {to}",
    "At the {place}, {first} and {second} talked for an hour, and {s2} showed a {object} {to}",
    "Once {first} and {second} arrived at the {place}, {s2} lent a {object} {to}",
    "Last week {first} and {second} worked at the {place}, and {s2} sent a {object} {to}",
)


def draw(rng: random.Random, split: str = "any", order: str = "mixed", corruption: str = "abc") -> Example:
    """Draws one pair: a sentence up to "to", and its corruption.

    Args:
        rng: Where every choice comes from.
        split: Whose names, places, objects and sentences: ``discovery``, ``held_out`` or ``any``.
        order: ``mixed``, ``ABBA`` or ``BABA``, see the module's text.
        corruption: ``abc``, ``s2-io-flip`` or ``random-names``, see the module's text.

    Returns:
        A pair with the spans ``io``, ``s1``, ``place``, ``s2``, ``object`` and ``to``.
    """
    io, s, a, b, c = rng.sample(words_of(NAMES, split), 5)
    if order == "mixed":
        order = rng.choice(("ABBA", "BABA"))
    first, second = ("{io}", "{s1}") if order == "ABBA" else ("{s1}", "{io}")
    template = rng.choice(words_of(TEMPLATES, split)).replace("{first}", first).replace("{second}", second)
    fields = {
        "io": io,
        "s1": s,
        "s2": s,
        "place": rng.choice(words_of(PLACES, split)),
        "object": rng.choice(words_of(OBJECTS, split)),
        "to": "to",
    }
    corrupt = {
        "abc": {"io": a, "s1": b, "s2": c},
        "s2-io-flip": {"s2": io},
        "random-names": {"io": a, "s1": b, "s2": b},
    }[corruption]
    return Example.from_template(template, fields, corrupt=corrupt, answer=f" {io}", distractor=f" {s}")


TASK = Task(
    name="ioi",
    version="1.0.0",
    summary="Of two people, one of whom gives something, name the one who receives it.",
    draw=draw,
    options={"order": ("mixed", "ABBA", "BABA"), "corruption": ("abc", "s2-io-flip", "random-names")},
    metric="logit_diff",
    held_out="names, places, objects and sentences",
    sources=(WANG_2023,),
    published={
        "gpt2": PublishedCircuit(
            source=WANG_2023,
            classes={
                "duplicate token": ("a0.h1", "a0.h10", "a3.h0"),
                "previous token": ("a2.h2", "a4.h11"),
                "induction": ("a5.h5", "a5.h8", "a5.h9", "a6.h9"),
                "S-inhibition": ("a7.h3", "a7.h9", "a8.h6", "a8.h10"),
                "name mover": ("a9.h6", "a9.h9", "a10.h0"),
                "negative name mover": ("a10.h7", "a11.h10"),
                "backup name mover": BACKUP,
            },
        )
    },
)
