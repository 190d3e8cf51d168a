"""Name-throw: who threw the ball first?

"Jill threw the ball to Jack. Jack threw the ball to Will. Will threw the ball back to" goes on with " Jill",
the one who started. The distractor is a name that stands in the text as well and would be right had the
chain begun with it, so that finding *a* name in the text is not enough.

Options:

- ``corruption``: ``swap`` exchanges the starter and the second name everywhere, so that both prompts hold the
  same names and the right answer of the corrupted one is the second name. ``starter`` puts a new name in the
  starter's place; the new name is the right answer of the corrupted prompt and the distractor.
- ``chain``: how many people take part, ``3`` unless asked otherwise.
- ``objects``: ``ball`` only, or ``any`` of the things in ``OBJECTS``.
"""

import itertools
import random

from circuitlab.data.example import Example
from circuitlab.data.task import Task
from circuitlab.references import WANG_2023

NAMES = (
    "Jill", "Jack", "Will", "Tom", "Anna", "Ben", "Mary", "John", "Lucy", "Max", "Emma", "Paul",
    "Kate", "Mark", "Sarah", "David", "Amy", "Peter", "Jane", "James", "Alice", "Henry", "Rose", "Luke",
    "Laura", "Simon", "Ruth", "Carl", "Helen", "Adam", "Julia", "Frank", "Lisa", "Ryan", "Nancy", "George",
    "Susan", "Sean", "Victoria", "Gary", "Joy", "Joe", "Clara", "Leo", "Diana", "Oscar", "Emily", "Martin",
    "Grace", "Robert", "Karen", "Daniel", "Linda", "Thomas", "Maria", "Kevin", "Nora", "Brian", "Olivia", "Eric",
    "Rachel", "Steve", "Sophie", "Philip", "Tina", "Edward", "Wendy", "Walter", "Betty", "Victor", "Carol", "Roger",
)  # fmt: skip
VERB = "threw"
OBJECTS = ("ball", "stone", "pillow", "rope", "hat", "coin", "orange", "stick")

_ROLES = ("starter", "second", "third", "fourth")


def _template(people: int) -> str:
    """The chain of throws as a template whose fields are the roles, the verb and the object."""
    roles = _ROLES[:people]
    throws = [f"{{{giver}}} {{verb}} the {{object}} to {{{taker}}}." for giver, taker in itertools.pairwise(roles)]
    return " ".join([*throws, f"{{{roles[-1]}}} {{verb}} the {{object}} {{back}} {{to}}"])


def draw(rng: random.Random, corruption: str = "swap", chain: str = "3", objects: str = "ball") -> Example:
    """Draws one pair: a chain of throws up to "back to", and its corruption.

    Args:
        rng: Where every choice comes from.
        corruption: ``swap`` or ``starter``, see the module's text.
        chain: The number of people, ``2``, ``3`` or ``4``.
        objects: ``ball`` or ``any``.

    Returns:
        A pair whose spans are the roles (``starter``, ``second``, ``second#2``, ...), ``verb``, ``object``,
        ``back`` and ``to``.
    """
    people = int(chain)
    *names, stranger = rng.sample(NAMES, people + 1)
    fields = dict(zip(_ROLES, names, strict=False))
    fields |= {
        "verb": VERB,
        "object": OBJECTS[0] if objects == "ball" else rng.choice(OBJECTS),
        "back": "back",
        "to": "to",
    }
    starter, second = names[:2]
    corrupt = {"starter": second, "second": starter} if corruption == "swap" else {"starter": stranger}
    return Example.from_template(
        _template(people),
        fields,
        corrupt=corrupt,
        answer=f" {starter}",
        distractor=f" {corrupt['starter']}",
    )


TASK = Task(
    name="name-throw",
    version="1.0.0",
    summary="In a chain of throws that ends in 'back to', name the person who started.",
    draw=draw,
    options={
        "corruption": ("swap", "starter"),
        "chain": ("3", "2", "4"),
        "objects": ("ball", "any"),
    },
    metric="logit_diff",
    sources=(WANG_2023,),
)
