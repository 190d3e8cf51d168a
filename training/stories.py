"""Short stories: people and their pronouns, throws, gifts.

A scene is a few sentences; a story is one to three scenes. After a full stop the next clause opens with a
capital, after a semicolon with a small letter, and it mostly opens with the pronoun of the person just
named. A thing that is thrown "back" goes to the one who threw it first.
"""

import itertools
from random import Random

from training import lexicon
from training.kept_out import is_reserved, is_task_description, is_task_throw

_PRONOUN_SHARE = 0.93
_SEMICOLON_SHARE = 0.4


def filled(rng: Random, template: str) -> str:
    """Puts words for the fields ``{place}``, ``{thing}``, ``{size}``, ``{colour}`` and ``{mood}``."""
    return template.format(
        place=rng.choice(lexicon.PLACES),
        thing=rng.choice(lexicon.THINGS),
        size=rng.choice(lexicon.SIZES),
        colour=rng.choice(lexicon.COLOURS),
        mood=rng.choice(lexicon.MOODS),
    )


def person(rng: Random) -> tuple[str, str]:
    """A name and its pronoun."""
    if rng.random() < 0.5:
        return rng.choice(lexicon.MALE_NAMES), "he"
    return rng.choice(lexicon.FEMALE_NAMES), "she"


def _described(rng: Random, name: str) -> str:
    """What somebody is, in words that no prompt of a task has."""
    while True:
        words = rng.choice(lexicon.DEGREES), rng.choice(lexicon.TRAITS), rng.choice(lexicon.PEOPLE)
        if not is_task_description(*words) and not is_reserved(name, words[-1]):
            return " ".join(words)


def _next_clause(rng: Random, pronoun: str, clause: str) -> str:
    """A stop, and a clause that mostly has the person just named for its subject."""
    subject = pronoun
    if rng.random() > _PRONOUN_SHARE:
        subject = rng.choice(("everybody", "nobody", "the weather", person(rng)[0]))
        clause = filled(rng, rng.choice(lexicon.OUTCOMES))
    if rng.random() < _SEMICOLON_SHARE:
        return f"; {subject} {clause}."
    return f". {subject[0].upper()}{subject[1:]} {clause}."


def description(rng: Random) -> str:
    """Somebody is such a person, and what follows from it."""
    name, pronoun = person(rng)
    habit = filled(rng, rng.choice(lexicon.HABITS))
    text = f"{name} is {_described(rng, name)}{_next_clause(rng, pronoun, habit)}"
    if rng.random() < 0.3:
        text += f" {pronoun.capitalize()} {filled(rng, rng.choice(lexicon.HABITS))}."
    return text


def errand(rng: Random) -> str:
    """Somebody does something, and how it ends."""
    name, pronoun = person(rng)
    act = filled(rng, rng.choice(lexicon.ACTS))
    outcome = filled(rng, rng.choice(lexicon.OUTCOMES))
    if rng.random() < 0.2:
        return f"{name} was {rng.choice(lexicon.MOODS)}, so {pronoun} {act}."
    text = f"{name} {act}{_next_clause(rng, pronoun, outcome)}"
    if rng.random() < 0.3:
        possessive = {"he": "his", "she": "her"}[pronoun]
        text += f" {name} liked {possessive} {rng.choice(lexicon.THINGS)}."
    return text


def throw(rng: Random) -> str:
    """A thing goes from hand to hand and back to the one who had it first."""
    while True:
        verb, thing = rng.choice(lexicon.THROWS), rng.choice(lexicon.THINGS)
        if not is_task_throw(verb, thing):
            break
    names = rng.sample(lexicon.NAMES, rng.choice((2, 3, 3, 3, 4)))
    named = f"the {thing}"
    again = "it" if rng.random() < 0.15 else named
    opener = "Then " if rng.random() < 0.1 else ""
    passes = [
        f"{opener if place else ''}{giver} {verb} {again if place else named} to {taker}."
        for place, (giver, taker) in enumerate(itertools.pairwise(names))
    ]
    passes.append(f"{opener}{names[-1]} {verb} {again} back to {names[0]}.")
    if rng.random() < 0.3:
        passes.append(f"{names[0]} {filled(rng, rng.choice(lexicon.OUTCOMES))}.")
    return " ".join(passes)


def gift(rng: Random) -> str:
    """Two people, of whom one gives the other something."""
    one, two = rng.sample(lexicon.NAMES, 2)
    thing, place = rng.choice(lexicon.THINGS), rng.choice(lexicon.PLACES)
    kind = rng.randrange(3)
    if kind == 0:
        giver, taker = rng.sample((one, two), 2)
        return f"When {one} and {two} went to the {place}, {giver} gave a {thing} to {taker}."
    if kind == 1:
        other = rng.choice(lexicon.THINGS)
        asked, held = rng.choice(((one, thing), (two, other)))
        return f"{one} has a {thing} and {two} has a {other}. At the {place} {asked} lost the {held}."
    mood = rng.choice(lexicon.MOODS)
    return f"{one} gave {two} a {rng.choice(lexicon.COLOURS)} {thing}. {two} was {mood} and thanked {one}."


_SCENES = (description, errand, throw, gift)


def people_story(rng: Random) -> str:
    """Scenes that are mostly about what somebody is."""
    scenes = rng.choices(_SCENES, weights=(6, 3, 0.5, 1), k=rng.choice((1, 2, 2, 3)))
    return " ".join(scene(rng) for scene in scenes)


def throwing_story(rng: Random) -> str:
    """Scenes that are mostly throws."""
    scenes = rng.choices(_SCENES, weights=(1, 1, 6, 1), k=rng.choice((1, 1, 2)))
    return " ".join(scene(rng) for scene in scenes)
