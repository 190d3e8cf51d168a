"""The result of a run in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from circuitlab.report.folder import RunFolder
from circuitlab.report.format import counted, finite, interval, number, percent, significant, with_interval

# Above this faithfulness the text is "exceed" instead of "recover".
_EXCEEDS = 1.15


def share_of_edges(evaluation: Mapping[str, Any]) -> float | None:
    """Share of the edges kept, between 0 and 1; None where the total is not known."""
    total = evaluation.get("n_edges_total")
    return evaluation["n_edges"] / total if isinstance(total, int) and total > 0 else None


def random_values(evaluation: Mapping[str, Any]) -> list[float]:
    """Faithfulness of the random circuits; values that are not finite are left out."""
    baseline = evaluation.get("random_baseline")
    values = baseline.get("faithfulness") if isinstance(baseline, Mapping) else None
    return [found for found in map(finite, values or ()) if found is not None]


def headline(run: RunFolder) -> str:
    """The result in one or two sentences."""
    evaluation, task = run.evaluation, run.about("task")
    value, share, name = evaluation["faithfulness"], share_of_edges(evaluation), str(task.get("label") or task["name"])
    of_all = f" of {evaluation['n_edges_total']:,} edges ({percent(share)})" if share is not None else " edges"
    start = f"In {run.about('model')['id']}, {evaluation['n_edges']:,}{of_all}"
    n_held_out = count_of(run, "held_out")
    pairs = counted(n_held_out, "held-out pair") if n_held_out else "held-out pairs"
    if finite(value) is None:
        return f"{start} were selected for {name}; their faithfulness on {pairs} could not be measured."
    if value < 0:
        effect = f"shift the model away from the answer of {name}"
    elif value > _EXCEEDS:
        effect = f"exceed the model's behaviour on {name}"
    else:
        effect = f"recover {percent(value, 0)} of the model's behaviour on {name}"
    written = with_interval(value, evaluation.get("faithfulness_ci"))
    first = f"{start} {effect}: faithfulness {written} on {pairs}, where 1 is the whole model and 0 {zero_of(run)}."
    return f"{first} {random_sentence(evaluation)}".rstrip()


def warnings_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Warnings of the evaluation; folders of earlier versions have none."""
    found = evaluation.get("warnings")
    return [sentence for sentence in found if isinstance(sentence, str)] if isinstance(found, list) else []


def random_sentence(evaluation: Mapping[str, Any]) -> str:
    """Comparison with the random circuits; empty where there are none."""
    values = random_values(evaluation)
    if not values:
        return ""
    lower = sum(value < evaluation["faithfulness"] for value in values)
    compared = f"{counted(len(values), 'random circuit')} of the same size"
    numbers = f"(mean {number(float(np.mean(values)))}, maximum {number(max(values))})"
    if lower == len(values):
        return f"All {compared} score lower {numbers}."
    return (
        f"Of {compared}, {len(values) - lower:,} score at least as high {numbers}: size alone may explain the result."
    )


def ablation_of(run: RunFolder) -> str:
    """The ablation of excluded edges; "corrupt" where the folder names none."""
    return str(run.evaluation.get("ablation") or run.about("config").get("ablation") or "corrupt")


def zero_of(run: RunFolder) -> str:
    """The run whose faithfulness is 0."""
    kind = ablation_of(run)
    return "the corrupted run" if kind == "corrupt" else f"the model with every edge ablated ({kind})"


def discovery_count(run: RunFolder) -> int:
    """Number of pairs that the circuit was found on: all that are neither held out nor for reference."""
    return len(run.pairs) - count_of(run, "held_out") - count_of(run, "reference")


def count_of(run: RunFolder, split: str) -> int:
    """Number of pairs of a split."""
    return sum(pair.get("split") == split for pair in run.pairs)


def caveats(run: RunFolder) -> Iterator[str]:
    """One sentence for each limitation of the numbers."""
    evaluation = run.evaluation
    yield (
        f"The circuit was found on {counted(discovery_count(run), 'pair')} and evaluated on "
        f"{count_of(run, 'held_out'):,} others; {_overlap(run)}"
    )
    if n_reference := count_of(run, "reference"):
        yield (
            f"The replacement of excluded edges ({ablation_of(run)} ablation) was computed on "
            f"{counted(n_reference, 'reference pair')}, which are never scored."
        )
    if interval(evaluation.get("faithfulness_ci")):
        yield (
            "Intervals are 95 % bootstrap intervals over prompts. They cover the choice of prompts, not the choice of "
            "circuit: another seed may select other edges."
        )
    if values := random_values(evaluation):
        yield (
            f"The {counted(len(values), 'random circuit')} are connected and have as many edges after pruning; their "
            f"faithfulness ranges from {number(min(values))} to {number(max(values))}."
        )
    if kl := finite(evaluation.get("kl")):
        yield (
            f"The KL divergence of the circuit's next-token distribution from that of the whole model is "
            f"{significant(kl)} nats; faithfulness measures only the contrast of the metric."
        )
    method = str(run.about("config").get("method", ""))
    if method.startswith("eap"):
        yield (
            f"Edge scores of {method} are first-order estimates, meant for ranking. Faithfulness is not estimated: the "
            "circuit was run with all other edges ablated."
        )
    yield from _swept(run)


def _overlap(run: RunFolder) -> str:
    texts: dict[bool, set[str]] = {True: set(), False: set()}
    for pair in run.pairs:
        texts[pair.get("split") == "held_out"] |= {pair["clean"], pair["corrupt"]}
    shared = len(texts[True] & texts[False])
    if shared:
        are = counted(shared, "prompt is", "prompts are")
        return f"{are} in both splits, so the evaluation is not independent of discovery."
    if differ_in := run.about("dataset").get("held_out_differ_in"):
        return f"the two share no prompt, and none of their {differ_in}."
    return "no prompt is in both splits. Words and templates may be."


def _swept(run: RunFolder) -> Iterator[str]:
    """How many cells of the heatmaps are expected to be significant by chance."""
    cells = [p for sweep in run.sweeps if "p_value" in sweep.frame.columns for p in sweep.frame["p_value"]]
    if cells := [p for p in map(finite, cells) if p is not None]:
        small = sum(p < 0.05 for p in cells)
        yield (
            f"The heatmaps have {len(cells):,} cells, {small:,} of them with p < 0.05 (uncorrected); about "
            f"{0.05 * len(cells):,.0f} are expected by chance."
        )
