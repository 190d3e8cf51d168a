"""Draw distinct pairs from a task and split them so that no text is in both splits."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any, Protocol, TypeVar

from circuitlab.data.encoded import Rejection, TextEncoder
from circuitlab.data.example import Example
from circuitlab.data.framing import POOL, Shot, balanced, framing_of
from circuitlab.data.pair import Pair
from circuitlab.data.pairs import PairSet, PairSplits
from circuitlab.data.prompting import Prompting
from circuitlab.data.splits import STAND_INS, vocabulary_of
from circuitlab.errors import CircuitLabError, ConfigError, TaskFileError, TooFewPromptsError, in_one_line, shown
from circuitlab.resources import DEFAULT, Resources

# A task is taken as exhausted when this many draws in a row (at least; and four for every pair found) brought no pair.
# With k of K pairs still missing, a draw misses all of them with probability (1 - k/K).
PATIENCE = 4000
PATIENCE_A_PAIR = 4
# And when so many seconds passed since the last pair: a draw that reads files or sleeps would take hours for the above.
LONGEST_WAIT = 60.0
# A tokenizer that served none of so many distinct examples in so many seconds is taken to serve none.
FEWEST_REJECTED = 500
FIRST_WAIT = 3.0
# So many draws are made twice, to see that they can be repeated, but not for longer than so many seconds. A choice
# between two texts that does not come from the generator is missed by all of them with probability 2^-16.
REPEATED_DRAWS = 16
REPEATS_FOR = 1.0
MOST_PAIRS = 100_000
# The search for more shots to choose among ends when so many draws in a row brought no other prompt.
FEW_DRAWS = 50
SPLITS = ("discovery", "held_out")
REFERENCE = "reference"
T = TypeVar("T")


class Drawable(Protocol):
    """What prompts are drawn from: a `Task`."""

    @property
    def name(self) -> str:
        """Its name, which is part of the seed."""
        ...

    @property
    def label(self) -> str:
        """Its name with the options in force."""
        ...

    @property
    def metric(self) -> str | Callable[..., Any]:
        """Its default metric."""
        ...

    @property
    def differ_in(self) -> str:
        """What held-out prompts do not share with discovery prompts; empty if they differ by chance only."""
        ...

    @property
    def draws_tokens(self) -> bool:
        """Whether its prompts are made of the words of the model at hand."""
        ...

    @property
    def prompting(self) -> Prompting:
        """What stands around its prompts."""
        ...

    def example(self, rng: Random, *, split: str = "any", vocabulary: Sequence[str] = STAND_INS) -> Example:
        """Draw one example.

        Returns:
            The example.
        """
        ...

    def fixed_examples(self, split: str = "any") -> tuple[Example, ...]:
        """The examples of a split that always come first.

        Returns:
            The examples.
        """
        ...


def sample_pairs(
    task: Drawable,
    text: TextEncoder,
    n: int,
    seed: int,
    *,
    with_reference: bool = False,
    exclude: Collection[str] = (),
    whole_answers: bool = False,
    resources: Resources = DEFAULT,
) -> PairSplits:
    """Draw `n` discovery and `n` held-out pairs, and as many reference pairs if requested; see `Task.pairs`.

    Returns:
        The splits, and how many examples were dropped for which reason.

    Raises:
        ConfigError: `n` is out of range.
        TaskFileError: `draw` raises, returns no example, or is not reproducible.
        TooFewPromptsError: The task does not give enough distinct pairs that the tokenizer accepts.
    """
    check_number(n)
    splits = GrowingSplits(n, exclude)
    dropped = Counter[str]()
    worst: Rejection | None = None
    seen, idle, last_pair = set[tuple[str, str | None]](), 0, time.monotonic()
    total = (len(SPLITS) + with_reference) * n
    differ_in = task.differ_in
    vocabulary = vocabulary_of(text) if task.draws_tokens else STAND_INS
    # Reference pairs come last, so that the splits are the same with them and without.
    with global_randomness_kept():
        check_repeatable(task, f"{task.name}/{seed}", vocabulary)
        shots = drawn_shots(task, text, seed, vocabulary)
        framing = framing_of(text, task.prompting, shots, whole_answers=whole_answers)
        rng = Random(f"{task.name}/{seed}")
        queues = {words: list(fixed_examples(task, words))[::-1] for words in (SPLITS if differ_in else ("any",))}
        for wanted in (SPLITS, (REFERENCE,))[: 1 + with_reference]:
            while not splits.full(wanted):
                patience, waited = max(PATIENCE, PATIENCE_A_PAIR * sum(splits.counts)), time.monotonic() - last_pair
                if idle >= patience or waited > LONGEST_WAIT or _serves_none(splits, len(seen), waited):
                    break
                part = splits.shortest(wanted)
                words = ("discovery" if part == REFERENCE else part) if differ_in else "any"
                example = queues[words].pop() if queues[words] else draw(task, rng, words, vocabulary)
                idle += 1
                if (example.clean, example.corrupt) in seen or framing.shows(example):
                    continue
                seen.add((example.clean, example.corrupt))
                made = framing.encode(example)
                if isinstance(made, Rejection):
                    dropped[made.reason] += 1
                    worst = worst or made
                elif splits.place(made, (part,) if differ_in else wanted):
                    idle, last_pair = 0, time.monotonic()
                    resources.progress("prompts", sum(splits.counts), total)
            if not splits.full(wanted):
                last = f"the last {idle:,} draws" if idle >= patience else f"{idle:,} draws in {LONGEST_WAIT:.0f} s"
                raise _too_few(task, n, len(seen), splits, 2 + with_reference, dropped, worst, last)
    return PairSplits(
        discovery=splits.named("discovery", task.metric),
        held_out=splits.named("held_out", task.metric),
        reference=splits.named(REFERENCE, task.metric) if with_reference else None,
        dropped=dict(dropped),
        differ_in=differ_in,
        frame=framing.frame,
    )


def drawn_shots(
    task: Drawable, text: TextEncoder, seed: int, vocabulary: Sequence[str] = STAND_INS
) -> tuple[Shot, ...]:
    """Solved examples of different prompts, drawn from the words of discovery.

    Args:
        task: The task, which says how many.
        text: The tokenizer, for answers that are token ids.
        seed: Same seed, same examples.
        vocabulary: The model's words, for a task that draws from them.

    Returns:
        The solved examples.

    Raises:
        TooFewPromptsError: The task does not give as many.
        TaskFileError: `draw` raises, or returns no example.
    """
    wanted, words = task.prompting.shots, "discovery" if task.differ_in else "any"
    rng, found, idle = Random(f"shots of {task.name}/{seed}"), dict[str, Shot](), 0
    while len(found) < POOL * wanted and idle < (PATIENCE if len(found) < wanted else FEW_DRAWS):
        example = draw(task, rng, words, vocabulary)
        idle = idle + 1 if example.clean in found else 0
        found.setdefault(example.clean, Shot.of(example, rng, text))
    if len(found) < wanted:
        raise TooFewPromptsError(
            f"task {task.label!r}: shots={wanted} needs as many different prompts, but after {len(found)} the next "
            f"{PATIENCE:,} draws brought no other. Ask for fewer (--shots {len(found)}), or give the task more words."
        )
    return tuple(balanced(found.values(), wanted))


def check_number(n: object) -> None:
    """Refuse what is no number of pairs.

    Raises:
        ConfigError: It is no whole number from 1 to `MOST_PAIRS`.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ConfigError(f"n is {n!r}; it counts pairs per split and must be a whole number of at least 1.")
    if n > MOST_PAIRS:
        raise ConfigError(f"n is {n:,}; at most {MOST_PAIRS:,} pairs are drawn per split.")


def draw(task: Drawable, rng: Random, split: str = "any", vocabulary: Sequence[str] = STAND_INS) -> Example:
    """One example of a task, of a split's words; whatever goes wrong in the task's code is an error of the task.

    Returns:
        The example.

    Raises:
        TaskFileError: `draw` raised or tried to end the program, or returned something else than an `Example`.
    """
    example = _of_the_task(task, "draw()", lambda: task.example(rng, split=split, vocabulary=vocabulary))
    if not isinstance(example, Example):
        raise TaskFileError(
            f"draw() of task {task.name!r} returned {type(example).__name__}; it must return an Example."
        )
    return example


def has_corrupted(task: Drawable) -> bool:
    """Whether a task draws corrupted prompts, by its first draw.

    Returns:
        Whether it does.

    Raises:
        TaskFileError: `draw` raised or tried to end the program, or returned something else than an `Example`.
    """
    with global_randomness_kept():
        return draw(task, Random(f"{task.name}/0")).corrupt is not None


def fixed_examples(task: Drawable, split: str = "any") -> tuple[Example, ...]:
    """The examples of a split that always come first; whatever goes wrong in the task's code is an error of the task.

    Returns:
        The examples.

    Raises:
        TaskFileError: `fixed` raised or tried to end the program.
        TaskError: It holds something else than examples.
    """
    return _of_the_task(task, "fixed", lambda: task.fixed_examples(split))


def check_repeatable(task: Drawable, seed: str, vocabulary: Sequence[str] = STAND_INS) -> None:
    """Draw some examples twice from equal generators and compare them.

    Raises:
        TaskFileError: They differ, so that no seed would give the same prompts again.
    """
    end = time.monotonic() + REPEATS_FOR
    one, other = Random(seed), Random(seed)
    for number in range(REPEATED_DRAWS):
        first, second = (draw(task, rng, vocabulary=vocabulary) for rng in (one, other))
        if first != second:
            texts = [example.clean if first.clean != second.clean else example for example in (first, second)]
            raise TaskFileError(
                f"draw() of task {task.name!r} gave {shown(texts[0])} and {shown(texts[1])} from the same generator, "
                "so that a seed does not give the same prompts again. Take all randomness from the rng that draw() is "
                "given, and let it keep nothing between two calls."
            )
        if number and time.monotonic() > end:
            return


@contextmanager
def global_randomness_kept() -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch after code of a task, which may have used them."""
    state = random.getstate()
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    numpy_state = numpy.random.get_state() if numpy else None
    torch_state = torch.get_rng_state() if torch else None
    try:
        yield
    finally:
        random.setstate(state)
        if numpy:
            numpy.random.set_state(numpy_state)
        if torch:
            torch.set_rng_state(torch_state)


def _of_the_task(task: Drawable, what: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except (CircuitLabError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit() in a task must not end the program
        raise TaskFileError(f"{what} of task {task.name!r} raised {in_one_line(error)}") from error


class GrowingSplits:
    """Growing lists of pairs that share no text, by name."""

    def __init__(self, n: int, known: Collection[str]) -> None:
        self._n = n
        self._pairs: dict[str, list[Pair]] = {name: [] for name in (*SPLITS, REFERENCE)}
        self._texts: dict[str, set[str]] = {name: set() for name in self._pairs}
        self._texts["discovery"].update(known)

    def full(self, names: tuple[str, ...]) -> bool:
        """Whether these have all their pairs.

        Returns:
            Whether they have.
        """
        return all(len(self._pairs[name]) == self._n for name in names)

    def shortest(self, names: tuple[str, ...]) -> str:
        """The name of the shortest list, the first of equals.

        Returns:
            The name.
        """
        return min(names, key=lambda name: len(self._pairs[name]))

    @property
    def counts(self) -> tuple[int, ...]:
        """How many pairs each list has."""
        return tuple(map(len, self._pairs.values()))

    def sort(self) -> None:
        """Bring each list into the order of the ids of its pairs."""
        for pairs in self._pairs.values():
            pairs.sort(key=lambda pair: pair.id)

    def place(self, pair: Pair, names: tuple[str, ...]) -> bool:
        """Put the pair where its texts allow, into the shortest list if several do; False if none can take it.

        Returns:
            Whether one took it.
        """
        texts = pair.prompts
        taken_by = {name for name, there in self._texts.items() if texts & there}
        open_to = [name for name in names if len(self._pairs[name]) < self._n and not taken_by - {name}]
        if not open_to:
            return False
        split = self.shortest(tuple(open_to))
        self._pairs[split].append(pair)
        self._texts[split].update(texts)
        return True

    def named(self, name: str, metric: str | Callable[..., Any]) -> PairSet:
        """The pairs of a list, with ids that begin with its name.

        Returns:
            The pairs.
        """
        pairs = tuple(replace(pair, id=f"{name}-{i:04d}") for i, pair in enumerate(self._pairs[name]))
        return PairSet(pairs, metric)


def _serves_none(splits: GrowingSplits, n_seen: int, waited: float) -> bool:
    return not any(splits.counts) and n_seen >= FEWEST_REJECTED and waited > FIRST_WAIT


def _too_few(
    task: Drawable,
    n: int,
    n_seen: int,
    splits: GrowingSplits,
    lists: int,
    dropped: Counter[str],
    worst: Rejection | None,
    last: str,
) -> CircuitLabError:
    counts = splits.counts[:lists]
    found = sum(counts)
    lost = "; ".join(f"{count} dropped: {reason}" for reason, count in dropped.most_common(3))
    if found == 0 and worst is not None:
        return worst.kind(f"task {task.label!r} has no prompt that this tokenizer serves ({lost}). {worst.message}")
    why = f" ({lost}; the first: {worst.message})" if worst else ""
    # Where reference pairs are wanted, the splits took theirs first.
    fewest = min(counts) if lists == len(SPLITS) else found // lists
    advice = f"Ask for n <= {fewest}, or give" if fewest else "Give"
    parts = "in both" if lists == len(SPLITS) else "in two of discovery, held-out and reference pairs"
    return TooFewPromptsError(
        f"task {task.label!r}: n={n} needs {lists * n} distinct pairs ({n} per split, no text {parts}), but "
        f"{n_seen} distinct draws gave {' + '.join(map(str, counts))}{why}, and {last} brought no other. {advice} "
        "the task more words."
    )
