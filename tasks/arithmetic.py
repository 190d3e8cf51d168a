"""Arithmetic: add or subtract two numbers.

"The sum of 23 and 45 is" goes on with " 68", "The difference between 68 and 23 is" with " 45". The corrupted prompt
has two other numbers of as many digits, whose result is the distractor. The task is that of the benchmark MIB
(Mueller et al. 2025); the sentences are our own.

Options:

- ``operation``: ``addition`` or ``subtraction``; results are never negative.
- ``numbers``: digits of both numbers and of the result, ``two`` or ``one``.
- ``form``: ``sentence``, as above, whose answer has a leading space, or ``equation``: "23+45=" goes on with "68".

Tokenizers differ in how they write numbers. Two digits are one token in GPT-2 and Llama 3, and two in Gemma, Qwen and
SmolLM2, where the space before a number is a token of its own as well. ``equation`` with ``one`` digit is one token
for all of these. The metric ``answer_log_prob_diff`` judges results of several tokens.
"""

import random
from itertools import combinations_with_replacement

from circuitlab.data.example import Example
from circuitlab.data.splits import words_of
from circuitlab.data.task import Task
from circuitlab.references import MIB_2025

TEMPLATES = {
    "addition": (
        "The sum of {first} and {second} {is}",
        "What is {first} plus {second}? The answer {is}",
        "If we add {first} and {second}, the result {is}",
        "The total of {first} and {second} {is}",
    ),
    "subtraction": (
        "The difference between {first} and {second} {is}",
        "What is {first} minus {second}? The answer {is}",
        "If we take {second} away from {first}, what is left {is}",
        "The result of {first} minus {second} {is}",
    ),
}
EQUATIONS = {"addition": "{first}+{second}{is}", "subtraction": "{first}-{second}{is}"}
RANGES = {"one": (1, 9), "two": (10, 99)}


def _numbers(rng: random.Random, split: str, operation: str, lowest: int, highest: int) -> tuple[int, int, int]:
    """Two numbers of a split and their result, all in the range; one-digit numbers are split by pairs of them."""
    allowed = range(lowest, highest + 1)
    if highest <= 9:
        pairs = combinations_with_replacement(allowed, 2)
        if operation == "addition":
            one, other = rng.choice(words_of([pair for pair in pairs if sum(pair) <= highest], split))
            first, second = rng.sample((one, other), 2)
            return first, second, first + second
        second, first = rng.choice(words_of([pair for pair in pairs if pair[0] < pair[1]], split))
        return first, second, first - second
    allowed = words_of(allowed, split)
    while True:
        first, second = rng.choice(allowed), rng.choice(allowed)
        result = first + second if operation == "addition" else first - second
        if lowest <= result <= highest:
            return first, second, result


def draw(
    rng: random.Random,
    split: str = "any",
    operation: str = "addition",
    numbers: str = "two",
    form: str = "sentence",
) -> Example:
    """Draws one pair: a sentence about two numbers up to the result, and its corruption.

    Args:
        rng: Where every choice comes from.
        split: Whose sentences, and whose numbers, or pairs of numbers if they have one digit: ``discovery``,
            ``held_out`` or ``any``.
        operation: ``addition`` or ``subtraction``.
        numbers: ``two`` or ``one`` digits.
        form: ``sentence`` or ``equation``.

    Returns:
        A pair with the spans ``first``, ``second`` and ``is``, which is "=" in an equation.
    """
    first, second, result = _numbers(rng, split, operation, *RANGES[numbers])
    other = result
    while other == result:
        other_first, other_second, other = _numbers(rng, split, operation, *RANGES[numbers])
    sentence = form == "sentence"
    space = " " if sentence else ""
    return Example.from_template(
        rng.choice(words_of(TEMPLATES[operation], split)) if sentence else EQUATIONS[operation],
        {"first": str(first), "second": str(second), "is": "is" if sentence else "="},
        corrupt={"first": str(other_first), "second": str(other_second)},
        answer=f"{space}{result}",
        distractor=f"{space}{other}",
    )


def held_out(operation: str, numbers: str, form: str) -> str:
    """What held-out prompts do not share with discovery prompts; an equation has one template only."""
    kept = "two-digit numbers" if numbers == "two" else f"{operation} problems"
    return f"sentences and {kept}" if form == "sentence" else kept


TASK = Task(
    name="arithmetic",
    version="1.1.0",
    summary="Give the sum, or the difference, of two numbers.",
    draw=draw,
    options={"operation": ("addition", "subtraction"), "numbers": ("two", "one"), "form": ("sentence", "equation")},
    metric="logit_diff",
    held_out=held_out,
    sources=(MIB_2025,),
)
