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


def sample_pairs(task: Task, text: TextEncoder, n: int, seed: int) -> PairSplits:
    """Draw `n` discovery and `n` held-out pairs; see `Task.pairs`."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ConfigError(f"n is {n!r}; it counts pairs per split and must be a whole number of at least 1.")
    splits = _Splits(n)
    dropped = Counter[str]()
    worst: Rejection | None = None
    seen, idle = set[tuple[str, str]](), 0
    rng = Random(f"{task.name}/{seed}")
    queue = list(fixed_examples(task))[::-1]
    while not splits.full and idle < max(PATIENCE, PATIENCE_A_PAIR * sum(splits.counts)):
        example = queue.pop() if queue else draw(task, rng)
        idle += 1
        if (example.clean, example.corrupt) in seen:
            continue
        seen.add((example.clean, example.corrupt))
        made = encode_example(example, text)
        if isinstance(made, Rejection):
            dropped[made.reason] += 1
            worst = worst or made
        elif splits.place(made):
            idle = 0
    if not splits.full:
        raise _too_few(task, n, len(seen), splits, dropped, worst)
    return PairSplits(discovery=splits.discovery, held_out=splits.held_out, dropped=dict(dropped))


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
    """Two growing lists of pairs that share no text."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._pairs: tuple[list[Pair], list[Pair]] = ([], [])
        self._texts: tuple[set[str], set[str]] = (set(), set())

    @property
    def full(self) -> bool:
        return all(len(pairs) == self._n for pairs in self._pairs)

    @property
    def counts(self) -> tuple[int, int]:
        return len(self._pairs[0]), len(self._pairs[1])

    @property
    def discovery(self) -> PairSet:
        return self._named(0, "discovery")

    @property
    def held_out(self) -> PairSet:
        return self._named(1, "held_out")

    def place(self, pair: Pair) -> bool:
        """Put the pair where its texts allow, into the shorter list if both do; False if neither can take it."""
        texts = {pair.clean, pair.corrupt}
        open_to = [i for i in (0, 1) if len(self._pairs[i]) < self._n and not texts & self._texts[1 - i]]
        if not open_to:
            return False
        split = min(open_to, key=lambda i: len(self._pairs[i]))
        self._pairs[split].append(pair)
        self._texts[split].update(texts)
        return True

    def _named(self, split: int, name: str) -> PairSet:
        return PairSet(tuple(replace(pair, id=f"{name}-{i:04d}") for i, pair in enumerate(self._pairs[split])))


def _too_few(
    task: Task, n: int, n_seen: int, splits: _Splits, dropped: Counter[str], worst: Rejection | None
) -> CircuitLabError:
    found = sum(splits.counts)
    lost = "; ".join(f"{count} dropped: {reason}" for reason, count in dropped.most_common(3))
    if found == 0 and worst is not None:
        return worst.kind(f"task {task.label!r} has no prompt that this tokenizer serves ({lost}). {worst.message}")
    why = f" ({lost}; the first: {worst.message})" if worst else ""
    fewest = min(splits.counts)
    advice = f"Ask for n <= {fewest}, or give" if fewest else "Give"
    return TooFewPromptsError(
        f"task {task.label!r}: n={n} needs {2 * n} distinct pairs ({n} per split, no text in both), but "
        f"{n_seen} distinct draws gave {splits.counts[0]} + {splits.counts[1]}{why}. {advice} the task more words."
    )
