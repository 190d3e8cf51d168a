"""Greater-than: a period ends later than it began.

"The war lasted from the year 1732 to the year 17" goes on with a number above 32. The answer is every two-digit
ending above that of the first year, the distractor every ending up to it (Hanna et al. 2023). In the corrupted
prompt the first year ends in 01, after which every ending but 00 and 01 is right.

Option ``digits`` says how the tokenizer writes a number:

- ``two``: two digits are one token, as in GPT-2. Answers are ``33`` to ``99``, distractors ``00`` to ``32``.
- ``one``: every digit is a token, as in Llama 1 and 2, Gemma and SmolLM2. Only the tens are compared: answers are the
  digits above that of the first year, distractors those below it, and the year's own digit is neither. With the metric
  ``answer_log_prob_diff`` such a tokenizer serves ``two`` as well.

As in the source, only years whose century and ending are separate tokens are used, though a tokenizer that has " 1732"
as one token would join the century at the end of the prompt to its answer: answers are tokens by themselves.
"""

import random

from circuitlab.data.example import Example
from circuitlab.data.published import PublishedCircuit
from circuitlab.data.splits import words_of
from circuitlab.data.task import Task
from circuitlab.references import HANNA_2023

NOUNS = (
    "war", "siege", "reign", "dynasty", "voyage", "trial", "dispute", "expedition", "famine", "alliance", "marriage",
    "project", "campaign", "drought", "treaty", "rebellion", "search", "journey", "plague", "crisis", "strike",
    "friendship", "research", "debate", "conflict", "exile", "regime", "partnership", "construction", "occupation",
)  # fmt: skip
CENTURIES = (11, 12, 13, 14, 15, 16, 17, 18)
FIRST, LAST = 2, 98


def draw(rng: random.Random, split: str = "any", digits: str = "two") -> Example:
    """Draws one pair: a period whose last year is unfinished, and the same that began in the year 01.

    Args:
        rng: Where every choice comes from.
        split: Whose nouns and years: ``discovery``, ``held_out`` or ``any``.
        digits: ``two`` or ``one``, see the module's text.

    Returns:
        A pair with the spans ``noun``, ``century``, ``year`` and ``century#2``.
    """
    years = range(FIRST, LAST + 1) if digits == "two" else [year for year in range(10, 90) if year % 10]
    year = rng.choice(words_of(years, split))
    if digits == "two":
        answers = tuple(f"{end:02}" for end in range(year + 1, 100))
        distractors = tuple(f"{end:02}" for end in range(year + 1))
    else:
        answers = tuple(map(str, range(year // 10 + 1, 10)))
        distractors = tuple(map(str, range(year // 10)))
    fields = {
        "noun": rng.choice(words_of(NOUNS, split)),
        "century": str(rng.choice(CENTURIES)),
        "year": f"{year:02}",
    }
    template = "The {noun} lasted from the year {century}{year} to the year {century}"
    return Example.from_template(
        template,
        fields,
        corrupt={"year": "01"},
        answer=answers,
        distractor=distractors,
        standalone_answers=True,
        separate_spans=True,
    )


TASK = Task(
    name="greater-than",
    version="1.0.0",
    summary="After the first year of a period, give a later one as its last.",
    draw=draw,
    options={"digits": ("two", "one")},
    metric="prob_diff",
    held_out="nouns and years",
    sources=(HANNA_2023,),
    published={
        "gpt2": PublishedCircuit(
            source=HANNA_2023,
            classes={
                "reads the year": ("a0.h1", "a0.h3", "a0.h5", "m0", "m1", "m2", "m3"),
                "moves the year": ("a5.h5", "a6.h1", "a6.h9", "a7.h10", "a8.h11", "a9.h1"),
                "promotes later years": ("m8", "m9", "m10", "m11"),
            },
        )
    },
)
