"""What was found, in words: sentences whose claims follow from the numbers and never go beyond them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from circuitlab.report.folder import RunFolder
from circuitlab.report.markup import counted, interval, number, percent, significant

# Bounds of faithfulness at which the words change; between the outer two a circuit counts as doing the whole job.
_WORDS = (
    (0.0, "push the answer of {task} the wrong way"),
    (0.5, "carry only a small part of {task}"),
    (0.85, "carry much of {task}, but not all of it"),
    (1.15, "do {task} almost as the whole model does"),
    (math.inf, "push the answer of {task} further than the whole model does"),
)


def share_of_edges(evaluation: Mapping[str, Any]) -> float | None:
    """Edges kept of all, between 0 and 1; None where the total is not known."""
    total = evaluation.get("n_edges_total")
    return evaluation["n_edges"] / total if isinstance(total, int) and total > 0 else None


def random_values(evaluation: Mapping[str, Any]) -> list[float]:
    """Faithfulness of the random circuits, those that could be measured."""
    baseline = evaluation.get("random_baseline")
    values = baseline.get("faithfulness") if isinstance(baseline, Mapping) else None
    return [float(v) for v in values or () if isinstance(v, int | float) and math.isfinite(v)]


def headline(run: RunFolder) -> str:
    """The result in one or two sentences."""
    evaluation = run.evaluation
    faithfulness = evaluation["faithfulness"]
    share = share_of_edges(evaluation)
    of_all = f" of the {evaluation['n_edges_total']:,} edges ({percent(share)})" if share is not None else " edges"
    n_held_out = held_out_count(run)
    prompts = f"{counted(n_held_out, 'held-out pair')} of prompts" if n_held_out else "held-out prompts"
    task = run.about("task")
    start = f"In {run.about('model')['id']}, {evaluation['n_edges']:,}{of_all}"
    if not isinstance(faithfulness, int | float) or not math.isfinite(faithfulness):
        return f"{start} were kept; their faithfulness on {prompts} could not be measured."
    words = next(text for bound, text in _WORDS if faithfulness < bound or bound == math.inf)
    words = words.replace("{task}", str(task.get("label") or task["name"]))
    value = ", ".join(filter(None, (number(faithfulness), interval(evaluation.get("faithfulness_ci")))))
    scale = f"where 1 is the whole model and 0 {floor_of(run)}."
    first = f"{start} {words}: their faithfulness on {prompts} is {value}, {scale}"
    return " ".join(filter(None, (first, random_sentence(evaluation))))


def warnings_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Sentences that say what bounds the result; folders of earlier versions have none."""
    found = evaluation.get("warnings")
    return [sentence for sentence in found if isinstance(sentence, str)] if isinstance(found, list) else []


def random_sentence(evaluation: Mapping[str, Any]) -> str:
    """How the random circuits compare; empty where there are none."""
    values = random_values(evaluation)
    if not values:
        return ""
    mean, top = number(float(np.mean(values))), number(max(values))
    beaten = sum(value < evaluation["faithfulness"] for value in values)
    compared = f"{counted(len(values), 'random circuit')} of the same size"
    numbers = f"(mean {mean}, highest {top})"
    if beaten == len(values):
        return f"All {compared} stay below it {numbers}."
    return f"Of {compared}, {len(values) - beaten:,} reach it or more {numbers}: size alone may explain the result."


def ablation_of(run: RunFolder) -> str:
    """What excluded edges carry; "corrupt" where nothing is said."""
    return str(run.evaluation.get("ablation") or run.about("config").get("ablation") or "corrupt")


def floor_of(run: RunFolder) -> str:
    """What a faithfulness of 0 is, in words."""
    kind = ablation_of(run)
    return "the corrupted run" if kind == "corrupt" else f"the model with every edge replaced ({kind})"


def held_out_count(run: RunFolder) -> int:
    """How many held-out pairs the data set holds."""
    return count_of(run, "held_out")


def discovery_count(run: RunFolder) -> int:
    """How many pairs the circuit was found on: all that are neither held out nor for reference."""
    return len(run.pairs) - held_out_count(run) - count_of(run, "reference")


def count_of(run: RunFolder, split: str) -> int:
    """How many pairs of the data set are of this split."""
    return sum(pair.get("split") == split for pair in run.pairs)


def caveats(run: RunFolder) -> Iterator[str]:
    """How sure: one sentence for each thing that bounds what the numbers say."""
    evaluation = run.evaluation
    held_out = held_out_count(run)
    yield (
        f"The circuit was found on {counted(discovery_count(run), 'pair')} of prompts and tested on {held_out:,} "
        f"others; {_overlap(run)}"
    )
    if apart := count_of(run, "reference"):
        yield (
            f"What excluded edges carry ({ablation_of(run)}) was measured on {counted(apart, 'reference pair')}, which "
            "are never scored."
        )
    if interval(evaluation.get("faithfulness_ci")):
        yield (
            "Intervals are 95 % bootstrap intervals over prompts. They are about the choice of prompts, not about the "
            "choice of circuit: another seed may keep other edges."
        )
    if values := random_values(evaluation):
        spread = f"{number(min(values))} to {number(max(values))}"
        yield (
            f"The {counted(len(values), 'random circuit')} are connected and have as many edges after pruning; their "
            f"faithfulness runs from {spread}."
        )
    if kl := _finite(evaluation.get("kl")):
        yield (
            f"The circuit's next-token distribution is {significant(kl)} nats (KL) from the whole model's; the "
            "faithfulness above speaks of one contrast only."
        )
    method = str(run.about("config").get("method", ""))
    if method.startswith("eap"):
        yield (
            f"Edge scores of {method} are first-order estimates, good for ranking. The faithfulness is not estimated: "
            "the circuit was run, with everything else replaced."
        )
    yield from _swept(run)


def _overlap(run: RunFolder) -> str:
    texts: dict[bool, set[str]] = {True: set(), False: set()}
    for pair in run.pairs:
        texts[pair.get("split") == "held_out"] |= {pair["clean"], pair["corrupt"]}
    shared = len(texts[True] & texts[False])
    if shared:
        return f"{counted(shared, 'prompt stands', 'prompts stand')} in both splits, so the test is not independent."
    return "no prompt stands in both."


def _swept(run: RunFolder) -> Iterator[str]:
    """How many cells of the heatmaps would stand out by chance."""
    cells = [p for sweep in run.sweeps if "p_value" in sweep.frame.columns for p in sweep.frame["p_value"]]
    cells = [float(p) for p in cells if isinstance(p, int | float) and math.isfinite(p)]
    if cells:
        small = sum(p < 0.05 for p in cells)
        yield (
            f"The heatmaps have {len(cells):,} cells, {small:,} of them with p < 0.05, uncorrected; chance alone would "
            f"give about {0.05 * len(cells):,.0f}."
        )


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
