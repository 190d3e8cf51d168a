"""Draw distinct pairs from a task and split them so that no text stands in both splits."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from circuitlab.data.encoding import Rejection, TextEncoder, encode_example
from circuitlab.data.example import Example
from circuitlab.data.pairs import Pair, PairSet, PairSplits
from circuitlab.errors import CircuitLabError, ConfigError, TaskFileError, TooFewPromptsError

if TYPE_CHECKING:
    from circuitlab.data.task import Task

# A task is taken as exhausted when this many draws in a row (at least; and four for every pair found) brought no pair.
# With k of K pairs still missing, a draw misses all of them with probability (1 - k/K).
PATIENCE = 4000
PATIENCE_A_PAIR = 4
# Enough that a word in a list of a hundred is missed by all of them with probability 1e-9.
FINGERPRINT_DRAWS = 2048
SPLITS = ("discovery", "held_out")
REFERENCE = "reference"


def sample_pairs(task: Task, text: TextEncoder, n: int, seed: int, *, reference: bool = False) -> PairSplits:
    """Draw `n` discovery and `n` held-out pairs, and as many of reference if asked for; see `Task.pairs`."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ConfigError(f"n is {n!r}; it counts pairs per split and must be a whole number of at least 1.")
    splits = _Splits(n)
    dropped = Counter[str]()
    worst: Rejection | None = None
    seen, idle = set[tuple[str, str]](), 0
    rng = Random(f"{task.name}/{seed}")
    queue = list(fixed_examples(task))[::-1]
    # Reference pairs come last, so that the splits are the same with them and without.
    for wanted in (SPLITS, (REFERENCE,))[: 1 + reference]:
        while not splits.full(wanted) and idle < max(PATIENCE, PATIENCE_A_PAIR * sum(splits.counts)):
            example = queue.pop() if queue else draw(task, rng)
            idle += 1
            if (example.clean, example.corrupt) in seen:
                continue
            seen.add((example.clean, example.corrupt))
            made = encode_example(example, text)
            if isinstance(made, Rejection):
                dropped[made.reason] += 1
                worst = worst or made
            elif splits.place(made, wanted):
                idle = 0
        if not splits.full(wanted):
            raise _too_few(task, n, len(seen), splits, 2 + reference, dropped, worst)
    return PairSplits(
        discovery=splits.named("discovery"),
        held_out=splits.named("held_out"),
        reference=splits.named(REFERENCE) if reference else None,
        dropped=dict(dropped),
    )


def task_fingerprint(task: Task) -> str:
    """SHA-256 over name, version, options and the first draws of a task: changes when its words or templates do."""
    rng = Random(f"fingerprint of {task.name}")
    lines = [json.dumps([task.name, task.version, task.settings])]
    for example in [*fixed_examples(task), *(draw(task, rng) for _ in range(FINGERPRINT_DRAWS))]:
        lines.append(json.dumps([example.clean, example.corrupt, example.answers, example.distractors]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def draw(task: Task, rng: Random) -> Example:
    """One example of a task, with faults of the task file told as such.

    Raises:
        TaskFileError: `draw` raised, or returned something else than an `Example`.
    """
    try:
        example = task.example(rng)
    except CircuitLabError:
        raise
    except Exception as error:
        raise TaskFileError(f"draw() of task {task.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(example, Example):
        raise TaskFileError(
            f"draw() of task {task.name!r} returned {type(example).__name__}; it must return an Example."
        )
    return example


def fixed_examples(task: Task) -> tuple[Example, ...]:
    """The examples of a task that always come first, with faults of the task file told as such.

    Raises:
        TaskFileError: `fixed` raised, or holds something else than examples.
    """
    try:
        examples = tuple(task.fixed_examples())
    except CircuitLabError:
        raise
    except Exception as error:
        raise TaskFileError(f"fixed of task {task.name!r} raised {type(error).__name__}: {error}") from error
    for example in examples:
        if not isinstance(example, Example):
            raise TaskFileError(f"fixed of task {task.name!r} holds {type(example).__name__}; it must hold Examples.")
    return examples


class _Splits:
    """Growing lists of pairs that share no text, by name."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._pairs: dict[str, list[Pair]] = {name: [] for name in (*SPLITS, REFERENCE)}
        self._texts: dict[str, set[str]] = {name: set() for name in self._pairs}

    def full(self, names: tuple[str, ...]) -> bool:
        """Whether these have all their pairs."""
        return all(len(self._pairs[name]) == self._n for name in names)

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(map(len, self._pairs.values()))

    def place(self, pair: Pair, names: tuple[str, ...]) -> bool:
        """Put the pair where its texts allow, into the shortest list if several do; False if none can take it."""
        texts = {pair.clean, pair.corrupt}
        taken_by = {name for name, there in self._texts.items() if texts & there}
        open_to = [name for name in names if len(self._pairs[name]) < self._n and not taken_by - {name}]
        if not open_to:
            return False
        split = min(open_to, key=lambda name: len(self._pairs[name]))
        self._pairs[split].append(pair)
        self._texts[split].update(texts)
        return True

    def named(self, name: str) -> PairSet:
        return PairSet(tuple(replace(pair, id=f"{name}-{i:04d}") for i, pair in enumerate(self._pairs[name])))


def _too_few(
    task: Task, n: int, n_seen: int, splits: _Splits, lists: int, dropped: Counter[str], worst: Rejection | None
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
        f"{n_seen} distinct draws gave {' + '.join(map(str, counts))}{why}. {advice} the task more words."
    )
