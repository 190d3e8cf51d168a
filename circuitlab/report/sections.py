"""The values that `report.html.j2` shows: records of the folder, figures, and longer sentences."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from circuitlab.report.attention import attention_values
from circuitlab.report.figures import circuit_figure, curve_figure, sweep_figure
from circuitlab.report.findings import (
    ablation_of,
    caveats,
    count_of,
    discovery_count,
    headline,
    random_values,
    share_of_edges,
    warnings_of,
)
from circuitlab.report.folder import RunFolder
from circuitlab.report.format import finite, number, percent, with_interval
from circuitlab.report.pictures import bitmap
from circuitlab.report.prompts import shown_pair

_N_EXAMPLES = 4


def values_of(run: RunFolder) -> dict[str, Any]:
    """Everything that the page shows."""
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
        "measured": _measured(run),
        "examples": [shown_pair(pair) for pair in _examples(run)],
        "shape": _shape(run),
        "selection": _selection(run),
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
    if not rule or finite(clean) is None or (turned := finite(turned)) is None:
        return ""
    return (
        f"In the discovery pairs, {str(rule).replace('_', ' ')} on {percent(clean)} of the clean prompts and on "
        f"{percent(1 - turned)} of the corrupted ones."
    )


def _shape(run: RunFolder) -> str:
    about = run.about("model")
    shape = (("n_layers", "{:,} layers"), ("n_heads", "{:,} heads a layer"), ("d_model", "d_model = {:,}"))
    return ", ".join(text.format(about[key]) for key, text in shape if isinstance(about.get(key), int))


def _metric(run: RunFolder) -> str:
    name = run.about("config").get("metric") or run.evaluation.get("metric") or "metric"
    return str(name).replace("_", " ")


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
