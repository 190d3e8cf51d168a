"""The values that the templates show: the result in sentences, records of the folder, figures, attention patterns."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from circuitlab import viz
from circuitlab.attribution.record import DIGITS, AttentionPatterns
from circuitlab.names import SIGNS
from circuitlab.report.folder import RunFolder, Sweep, reading
from circuitlab.report.pictures import Picture, bitmap, drawing
from circuitlab.report.prompts import shown_pair
from circuitlab.report.render import finite, interval, number, percent, significant, with_interval
from circuitlab.summary import plural

# Above this faithfulness the text is "exceed" instead of "recover".
_EXCEEDS = 1.15


def share_of_edges(evaluation: Mapping[str, Any]) -> float | None:
    """Share of the edges kept, between 0 and 1; None where the total is not known.

    Returns:
        The share, or None.
    """
    total = evaluation.get("n_edges_total")
    return evaluation["n_edges"] / total if isinstance(total, int) and total > 0 else None


def random_values(evaluation: Mapping[str, Any]) -> list[float]:
    """Faithfulness of the random circuits; values that are not finite are left out.

    Returns:
        One number a circuit.
    """
    baseline = evaluation.get("random_baseline")
    values = baseline.get("faithfulness") if isinstance(baseline, Mapping) else None
    return [found for found in map(finite, values or ()) if found is not None]


def headline(run: RunFolder) -> str:
    """The result in one or two sentences.

    Returns:
        The text.
    """
    evaluation, task = run.evaluation, run.about("task")
    value, share, name = evaluation["faithfulness"], share_of_edges(evaluation), str(task.get("label") or task["name"])
    of_all = f" of {evaluation['n_edges_total']:,} edges ({percent(share)})" if share is not None else " edges"
    start = f"In {run.about('model')['id']}, {evaluation['n_edges']:,}{of_all}"
    n_held_out = count_of(run, "held_out")
    pairs = plural(n_held_out, "held-out pair") if n_held_out else "held-out pairs"
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
    """Warnings of the evaluation; folders of earlier versions have none.

    Returns:
        The sentences.
    """
    found = evaluation.get("warnings")
    return [sentence for sentence in found if isinstance(sentence, str)] if isinstance(found, list) else []


def random_sentence(evaluation: Mapping[str, Any]) -> str:
    """Comparison with the random circuits; empty where there are none.

    Returns:
        The sentence.
    """
    values = random_values(evaluation)
    if not values:
        return ""
    lower = sum(value < evaluation["faithfulness"] for value in values)
    compared = f"{plural(len(values), 'random circuit')} of the same size"
    numbers = f"(mean {number(float(np.mean(values)))}, maximum {number(max(values))})"
    if lower == len(values):
        return f"All {compared} score lower {numbers}."
    return (
        f"Of {compared}, {len(values) - lower:,} score at least as high {numbers}: size alone may explain the result."
    )


def ablation_of(run: RunFolder) -> str:
    """The ablation of excluded edges; "corrupt" where the folder names none.

    Returns:
        Name of the ablation.
    """
    return str(run.evaluation.get("ablation") or run.about("config").get("ablation") or "corrupt")


def zero_of(run: RunFolder) -> str:
    """The run whose faithfulness is 0.

    Returns:
        The text.
    """
    kind = ablation_of(run)
    return "the corrupted run" if kind == "corrupt" else f"the model with every edge ablated ({kind})"


def discovery_count(run: RunFolder) -> int:
    """Number of pairs that the circuit was found on: all that are neither held out nor for reference.

    Returns:
        The number.
    """
    return len(run.pairs) - count_of(run, "held_out") - count_of(run, "reference")


def count_of(run: RunFolder, split: str) -> int:
    """Number of pairs of a split.

    Returns:
        The number.
    """
    return sum(pair.get("split") == split for pair in run.pairs)


def caveats(run: RunFolder) -> Iterator[str]:
    """One sentence for each limitation of the numbers."""
    evaluation = run.evaluation
    yield (
        f"The circuit was found on {plural(discovery_count(run), 'pair')} and evaluated on "
        f"{count_of(run, 'held_out'):,} others; {_overlap(run)}"
    )
    if n_reference := count_of(run, "reference"):
        yield (
            f"The replacement of excluded edges ({ablation_of(run)} ablation) was computed on "
            f"{plural(n_reference, 'reference pair')}, which are never scored."
        )
    if interval(evaluation.get("faithfulness_ci")):
        yield (
            "Intervals are 95 % bootstrap intervals over prompts. They cover the choice of prompts, not the choice of "
            "circuit: another seed may select other edges."
        )
    if values := random_values(evaluation):
        yield (
            f"The {plural(len(values), 'random circuit')} are connected and have as many edges after pruning; their "
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
        texts[pair.get("split") == "held_out"] |= {pair["clean"], pair["corrupt"]} - {None}
    shared = len(texts[True] & texts[False])
    if shared:
        are = f"{plural(shared, 'prompt')} {'is' if shared == 1 else 'are'}"
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


_N_EXAMPLES = 4


def values_of(run: RunFolder) -> dict[str, Any]:
    """Everything that the page shows.

    Returns:
        Values of the template, by name.
    """
    task, e = run.about("task"), run.evaluation
    command = run.manifest.get("command")
    words = "The circuit; each edge is drawn by how often it was selected."
    parts = {name: run.about(name) for name in ("model", "config", "dataset", "method", "versions")}
    return parts | {
        "run": run,
        "e": e,
        "task": task,
        "name": task.get("label") or task["name"],
        "metric": _metric(run),
        "headline": headline(run),
        "warnings": warnings_of(e),
        "randoms": random_values(e),
        "share": share_of_edges(e),
        "n_pairs": {split: count_of(run, split) for split in ("held_out", "reference")}
        | {"discovery": discovery_count(run)},
        "ablation": ablation_of(run),
        "paired": has_corrupted(run),
        "measured": _measured(run),
        "examples": [shown_pair(pair) for pair in _examples(run)],
        "shape": _shape(run),
        "selection": _selection(run),
        "sign": sign_of(run) or "effect",
        "sweeps": [sweep_figure(sweep) for sweep in run.sweeps],
        "from_the_end": any((s.frame["position"] < 0).any() for s in run.sweeps if "position" in s.frame.columns),
        "circuit": circuit_figure(run),
        "edges": sorted(run.edges, key=lambda edge: (-edge.strength, edge.name)),
        "attention": attention_values(run.attention, run.attention_png) if run.attention else None,
        "curve": curve_figure(run, e),
        "stability": [(one.numbers, bitmap(one.png, words) if one.png else None) for one in run.repeated],
        "caveats": list(caveats(run)),
        "command": shlex.join(map(str, command)) if isinstance(command, list | tuple) else command,
        "folder": shlex.quote(run.name),
        "files": [(name, (run.path / name).stat().st_size, digest) for name, digest in run.files.items()],
    }


def _examples(run: RunFolder) -> list[Mapping[str, Any]]:
    """A few pairs of discovery, then of evaluation."""
    found = [pair for pair in run.pairs if pair.get("split") not in ("held_out", "reference")][: _N_EXAMPLES - 1]
    return found + [pair for pair in run.pairs if pair.get("split") == "held_out"][: _N_EXAMPLES - len(found)]


def _measured(run: RunFolder) -> str:
    """The behaviour of the whole model; empty for folders of earlier versions."""
    found = run.about("behaviour")
    rule, clean, turned = (found.get(key) for key in ("rule", "prefers_answer", "corruption_turns_over"))
    turned, paired = finite(turned), has_corrupted(run)
    if not rule or finite(clean) is None or (turned is None and paired):
        return ""
    corrupted = "" if turned is None else f" and on {percent(1 - turned)} of the corrupted ones"
    return f"In the discovery pairs, {str(rule).replace('_', ' ')} on {percent(clean)} of the clean prompts{corrupted}."


def has_corrupted(run: RunFolder) -> bool:
    """Whether the run's pairs have corrupted prompts.

    Returns:
        Whether they have.
    """
    return any(pair.get("corrupt") is not None for pair in run.pairs)


def _shape(run: RunFolder) -> str:
    about = run.about("model")
    shape = (("n_layers", "{:,} layers"), ("n_heads", "{:,} heads a layer"), ("d_model", "d_model = {:,}"))
    return ", ".join(text.format(about[key]) for key, text in shape if isinstance(about.get(key), int))


def _metric(run: RunFolder) -> str:
    name = run.about("config").get("metric") or run.evaluation.get("metric") or "metric"
    return str(name).replace("_", " ")


def sign_of(run: RunFolder) -> str | None:
    """What the sign of the edge scores means, a name of `circuitlab.names.SIGNS`.

    Returns:
        The name; None for folders of earlier versions.
    """
    found = run.about("selection").get("sign")
    return found if found in SIGNS else None


def _selection(run: RunFolder) -> str:
    """The rule of the selection, and its result."""
    config, found = run.about("config"), run.about("selection")
    if not found:
        target = config.get("target")
        return f"a faithfulness of {number(target)}" if target is not None else ""
    rule_value, nominal, left = (found.get(name) for name in ("asked", "nominal", "achieved"))
    rules = {
        "target": f"the smallest circuit found with faithfulness {number(rule_value)}",
        "n_edges": f"the {rule_value} top edges",
        "threshold": f"edges with a score of at least {number(rule_value)}",
        "chosen": "the edges chosen by the method",
    }
    rule = rules.get(str(found.get("rule")))
    if rule is None:
        return ""
    how = f"by {'signed' if found.get('signed') else 'absolute'} score" + (", greedily" if found.get("greedy") else "")
    reached = ""
    if isinstance(found.get("faithfulness"), int | float):
        value = with_interval(found["faithfulness"], found.get("faithfulness_ci"))
        reached = f"; faithfulness in {found.get('metric')} on the discovery pairs: {value}"
    return f"{rule}, {how}: {nominal:,} selected, {left:,} after pruning{reached}"


def sweep_figure(sweep: Sweep) -> tuple[Picture, str]:
    """The heatmap of a sweep and its caption; drawn again from its table where the folder has no picture.

    Returns:
        The picture, and its caption.
    """
    png = viz.figure_bytes(viz.heatmap(sweep.grid), "png") if sweep.png is None else sweep.png
    words = strongest_cell(sweep)
    return bitmap(png, f"Heatmap: {sweep.grid.title}. {words}"), words


def strongest_cell(sweep: Sweep) -> str:
    """The cell with the largest absolute effect, in words.

    Returns:
        The text.
    """
    grid = sweep.grid
    if not np.isfinite(grid.values).any():
        return "No finite value."
    row, col = np.unravel_index(np.nanargmax(np.abs(grid.values - grid.centre)), grid.values.shape)
    label = grid.col_labels[col] + (f" (position {grid.col_numbers[col]})" if grid.col_numbers else "")
    ends = () if grid.low is None or grid.high is None else [float(grid.low[row, col]), float(grid.high[row, col])]
    value = ", ".join(filter(None, (number(float(grid.values[row, col])), interval(ends))))
    return f"Strongest: {grid.row_title} {grid.row_labels[row]}, {grid.col_title} {label}: {value}."


def circuit_figure(run: RunFolder) -> Picture:
    """The drawing of the circuit; drawn again where the folder has none.

    Returns:
        The drawing, to be embedded.

    Raises:
        RunError: `circuit.svg` is not an SVG file.
    """
    svg = run.drawing
    if svg is None:
        svg = viz.figure_bytes(viz.draw_circuit(run.nodes, run.edges, sign=sign_of(run)), "svg").decode()
    with reading(run.path, "circuit.svg"):
        return drawing(svg, f"The circuit: {len(run.nodes)} nodes, {len(run.edges)} edges.")


def curve_figure(run: RunFolder, evaluation: Mapping[str, Any]) -> Picture:
    """Faithfulness against size.

    Returns:
        The figure, to be embedded.

    Raises:
        RunError: The curve in `evaluation.json` is damaged.
    """
    with reading(run.path, "evaluation.json"):
        curve = viz.FaithfulnessCurve.of(evaluation)
    svg = viz.figure_bytes(viz.faithfulness_figure(curve), "svg").decode()
    return drawing(svg, "Faithfulness against the number of edges kept.")


def attention_values(found: AttentionPatterns, png: bytes | None = None) -> dict[str, Any]:
    """What `attention_view.html.j2` shows.

    Args:
        found: The patterns; one view a page.
        png: Their picture; drawn if None.

    Returns:
        Title, picture, number of heads and the data of the script: visible tokens, whole rows of weights.
    """
    heads = [
        {"head": head, "note": found.notes.get(head, ""), "weights": pattern.round(DIGITS).tolist()}
        for head, pattern in zip(found.heads, found.patterns, strict=True)
    ]
    return {
        "title": found.title,
        "n_heads": len(heads),
        "picture": attention_picture(found, png),
        "data": {"tokens": list(map(viz.visible_token, found.tokens)), "heads": heads},
    }


def attention_picture(found: AttentionPatterns, png: bytes | None) -> Picture:
    """The picture of patterns, drawn if it is None; the script of a page replaces it by an interactive view.

    Returns:
        The picture.
    """
    words = f"Attention patterns of {', '.join(found.heads)} on: {found.title}"
    return bitmap(viz.figure_bytes(viz.plot(found), "png") if png is None else png, words)
