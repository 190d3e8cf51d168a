"""The fingerprint of a task: who has the same one has the same prompts."""

from __future__ import annotations

import json
import time
from dataclasses import astuple
from random import Random
from statistics import median
from typing import TYPE_CHECKING

from circuitlab.data.example import Example
from circuitlab.data.sampling import draw, fixed_examples, global_randomness_kept
from circuitlab.digests import sha256
from circuitlab.resources import DEFAULT, Resources

if TYPE_CHECKING:
    from circuitlab.data.task import Task

# Enough that a word in a list of a hundred is missed by all of them with probability 1e-9.
DRAWS = 2048
# Number of draws of a task whose draw is slow; its fingerprint begins with "64-".
SLOW_DRAWS = 64
# A draw is slow if so many seconds is the median of the first few. The draws of the bundled tasks take 0.00003 s, and
# the median takes no notice of what only the first draw does, such as reading a file.
SLOW = 0.02
TIMED = 9


def task_fingerprint(task: Task, resources: Resources = DEFAULT) -> str:
    """SHA-256 over name, version, options and the first draws of a task: changes when its words or templates do.

    Chat and shots, if there are any, are covered as settings; the text that they give with a model is covered by the
    fingerprint of the pairs.

    Args:
        task: The task, with its options.
        resources: Its progress is called with ("fingerprint", done, total).

    Returns:
        64 hexadecimal digits, over 2,048 draws. Of a task whose draw takes more than 0.02 s, "64-" and the digits over
        64 draws, so that the two cannot be mixed up. Of a task made of a table, over all of its pairs.

    Raises:
        TaskFileError: A draw raises.
    """
    around = [astuple(task.prompting)] if task.prompting.label else []
    if task.table is not None:
        return sha256(task.table.digest, *map(json.dumps, around)) if around else task.table.digest
    rng = Random(f"fingerprint of {task.name}")
    lines = [json.dumps([task.name, task.version, task.settings, *around])]
    splits = ("discovery", "held_out") if task.held_out else ("any",)
    with global_randomness_kept():
        lines += map(_line, fixed_examples(task))
        times, drawn, total = list[float](), 0, DRAWS
        while drawn < total:
            started = time.monotonic()
            lines.append(_line(draw(task, rng, splits[drawn % len(splits)])))
            times.append(time.monotonic() - started)
            drawn += 1
            if drawn == TIMED and median(times) > SLOW:
                total = SLOW_DRAWS
            if drawn % SLOW_DRAWS == 0 or times[-1] > SLOW:
                resources.progress("fingerprint", drawn, total)
    digest = sha256("\n".join(lines))
    return digest if total == DRAWS else f"{SLOW_DRAWS}-{digest}"


def _line(example: Example) -> str:
    tokens = [example.answer_ids, example.distractor_ids, {**example.token_spans}]
    words = [example.clean, example.corrupt, example.answers, example.distractors]
    elsewhere = [] if example.answer_at is None else [example.answer_at]
    return json.dumps([*words, *(tokens if any(tokens) else []), *elsewhere])
