"""What else there is in the language: lists, repeated sequences, counting, plain statements."""

from random import Random

from training import lexicon
from training.stories import filled

_STATEMENTS = (
    "The {colour} {thing} is in the {place}", "The {place} is {size}", "There is a {thing} near the {place}",
    "It was a {size} day", "The way to the {place} is {size}", "A {thing} is not a {thing}",
    "The {thing} in the {place} was {colour}", "Nobody was in the {place}", "The {size} {thing} fell",
)  # fmt: skip


def statements(rng: Random) -> str:
    """Sentences without people."""
    return " ".join(f"{filled(rng, rng.choice(_STATEMENTS))}." for _ in range(rng.randint(1, 5)))


def listing(rng: Random) -> str:
    """Things to bring, with commas or one a line."""
    things = rng.sample(lexicon.THINGS, rng.randint(3, 6))
    title = filled(rng, rng.choice(("Things for the {place}", "Bring these", "In the {colour} box")))
    if rng.random() < 0.5:
        return f"{title}: {', '.join(things[:-1])} and {things[-1]}."
    return f"{title}:\n" + "\n".join(f"- {thing}" for thing in things)


def repetition(rng: Random) -> str:
    """A few random words in a random order, over and over in that order."""
    pool = rng.choice((lexicon.THINGS, lexicon.COLOURS, lexicon.NAMES, lexicon.PLACES, lexicon.TAGS))
    once = " ".join(rng.choices(pool, k=rng.randint(3, 10)))
    return " ".join([once] * rng.randint(2, 4))


def counting(rng: Random) -> str:
    """Numbers or days in their order."""
    pool = rng.choice((lexicon.NUMBERS, lexicon.DAYS))
    start = rng.randrange(len(pool) - 2)
    return ", ".join(pool[start : start + rng.randint(3, 7)]) + "."


def filler(rng: Random) -> str:
    """One of them."""
    kinds = (statements, listing, repetition, counting)
    return rng.choices(kinds, weights=(4, 2, 3, 1))[0](rng)
