"""The values that the sections of `report.html.j2` show."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from circuitlab.parts import Edge
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
    with_interval,
)
from circuitlab.report.folder import Repeated, RunFolder
from circuitlab.report.format import NONE, counted, interval, number, percent, significant
from circuitlab.report.pictures import bitmap
from circuitlab.report.prompts import shown_pair
from circuitlab.viz import DrawnEdge

_N_EXAMPLES = 4
_N_EDGES = 30
_N_IDLE = 8
_SLOTS = {"q": "query", "k": "key", "v": "value"}
_AREAS = {"CPR": "cpr", "CMD": "cmd", "CPR, logarithmic axis": "cpr_log", "CMD, logarithmic axis": "cmd_log"}


def values_of(run: RunFolder) -> dict[str, Any]:
    """Everything that the page shows."""
    task, e = run.about("task"), run.evaluation
    ranked = sorted(run.edges, key=lambda edge: (-edge.strength, edge.name))
    top = max((edge.strength for edge in ranked), default=0.0)
    command = run.manifest.get("command")
    return {
        "task": task.get("label") or task["name"],
        "model": run.about("model")["id"],
        "metric": _metric(run),
        "headline": headline(run),
        "warnings": warnings_of(e),
        "tiles": _tiles(e),
        "data": _data(run),
        "setup": _setup(run),
        "behaviour": _behaviour(run),
        "sweeps": [sweep_figure(sweep) for sweep in run.sweeps],
        "sweep_skipped": run.about("config").get("sites") == [],
        "from_the_end": any((s.frame["position"] < 0).any() for s in run.sweeps if "position" in s.frame.columns),
        "circuit": circuit_figure(run),
        "edges": [_edge(edge, top) for edge in ranked[:_N_EDGES]],
        "n_edges": len(ranked),
        "attention": attention_values(run.attention, run.attention_png) if run.attention else None,
        "curve": curve_figure(run, e),
        "size": _size(run),
        "has_areas": any(e.get(key) is not None for key in _AREAS.values()),
        "completeness": _completeness(e),
        "stability": [_stability(one) for one in run.repeated],
        "caveats": list(caveats(run)),
        "bibtex": run.manifest.get("bibtex"),
        "command": shlex.join(map(str, command)) if isinstance(command, list | tuple) else command,
        "folder": shlex.quote(run.name),
        "files": [(name, (run.path / name).stat().st_size, digest) for name, digest in run.files.items()],
    }


def _tiles(e: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The four main results: value, name, note."""
    randoms, total, accuracy = random_values(e), e.get("n_edges_total"), e.get("accuracy_model")
    return [
        (number(e["faithfulness"]), "faithfulness, held-out pairs", interval(e.get("faithfulness_ci"))),
        (f"{e['n_edges']:,}", "edges kept", f"of {total:,} ({percent(share_of_edges(e))})" if total else ""),
        (
            percent(e.get("accuracy_circuit"), 0),
            "accuracy of the circuit",
            f"whole model: {percent(accuracy, 0)}" if accuracy is not None else "",
        ),
        (
            number(max(randoms)) if randoms else NONE,
            "random circuits, maximum",
            f"of {len(randoms)}" if randoms else "",
        ),
    ]


def _data(run: RunFolder) -> dict[str, Any]:
    """The task, its data, and a few pairs."""
    task, data = run.about("task"), run.about("dataset")
    settings, dropped, n_reference = task.get("settings"), data.get("dropped"), count_of(run, "reference")
    examples = [pair for pair in run.pairs if pair.get("split") not in ("held_out", "reference")][: _N_EXAMPLES - 1]
    examples += [pair for pair in run.pairs if pair.get("split") == "held_out"][: _N_EXAMPLES - len(examples)]
    return {
        "summary": task.get("summary") or "",
        "task": f"{task['name']}, version {task['version']}" if task.get("version") else task["name"],
        "settings": ", ".join(f"{k} = {v}" for k, v in settings.items()) if isinstance(settings, Mapping) else "",
        "pairs": f"{discovery_count(run):,} for discovery, {count_of(run, 'held_out'):,} held out for evaluation"
        + (f", {n_reference:,} for reference (never scored)" if n_reference else ""),
        "rejected": "; ".join(f"{why}: {n}" for why, n in dropped.items()) if isinstance(dropped, Mapping) else "",
        "task_fingerprint": task.get("fingerprint"),
        "fingerprint": data.get("fingerprint") or run.manifest.get("dataset_fingerprint"),
        "behaviour": _measured(run),
        "examples": [shown_pair(pair) for pair in examples],
    }


def _measured(run: RunFolder) -> str:
    """The behaviour of the whole model; empty for folders of earlier versions."""
    found = run.about("behaviour")
    rule, clean, turned = (found.get(key) for key in ("rule", "prefers_answer", "corruption_turns_over"))
    if not rule or not isinstance(clean, int | float) or not isinstance(turned, int | float):
        return ""
    return (
        f"In the discovery pairs, {str(rule).replace('_', ' ')} on {percent(clean)} of the clean prompts and on "
        f"{percent(1 - turned)} of the corrupted ones."
    )


def _setup(run: RunFolder) -> dict[str, Any]:
    """The model, the method and the versions."""
    about, config, manifest = run.about("model"), run.about("config"), run.manifest
    steps, total = run.about("method").get("steps"), run.evaluation.get("n_edges_total")
    shape = (("n_layers", "{:,} layers"), ("n_heads", "{:,} heads a layer"), ("d_model", "d_model = {:,}"))
    processing = {"fold_ln": "norms folded into the next weights", "center_weights": "writing weights centered"}
    tokens, bos = about.get("bos_tokens"), config.get("bos")
    return {
        "weights": about.get("weights_sha256"),
        "processing": ", ".join(text for name, text in processing.items() if config.get(name) is True),
        "bos": f"{' '.join(map(str, tokens)) or 'none'} ({bos})" if isinstance(tokens, list) and bos else "",
        "shape": ", ".join(text.format(about[key]) for key, text in shape if isinstance(about.get(key), int)),
        "graph": f"{run.n_nodes_total:,} nodes" + (f", {total:,} edges" if isinstance(total, int) else ""),
        "method": f"{config.get('method', '')}{f' with {steps} steps' if steps else ''}",
        "metric": ": ".join(filter(None, (_metric(run), str(run.about("metric").get("what") or "")))),
        "ablation": config.get("ablation") or "",
        "selection": _selection(run),
        "seed": str(config.get("seed", manifest.get("seed", ""))),
        "device": ", ".join(str(manifest[key]) for key in ("device", "dtype") if manifest.get(key)),
        "versions": ", ".join(f"{name} {value}" for name, value in run.about("versions").items()),
    }


def _metric(run: RunFolder) -> str:
    name = run.about("config").get("metric") or run.evaluation.get("metric") or "metric"
    return str(name).replace("_", " ")


def _selection(run: RunFolder) -> str:
    """The rule of the selection, and its result."""
    config, found = run.about("config"), run.about("selection")
    if not found:
        target = config.get("target")
        return f"a faithfulness of {number(target)}" if target is not None else ""
    asked, nominal, left = (found.get(name) for name in ("asked", "nominal", "achieved"))
    rules = {
        "target": f"the smallest circuit found with faithfulness {number(asked)}",
        "n_edges": f"the {asked} top edges",
        "threshold": f"edges with a score of at least {number(asked)}",
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


def _behaviour(run: RunFolder) -> dict[str, Any]:
    """Metric and accuracy of the whole model, the circuit and the corrupted run."""
    e, ablation = run.evaluation, ablation_of(run)
    corrupt = ablation == "corrupt"
    rows = [
        ("whole model, clean prompt", significant(e.get("metric_clean")), percent(e.get("accuracy_model")), "1"),
        (
            "circuit, other edges corrupted" if corrupt else f"circuit, other edges ablated ({ablation})",
            significant(e.get("metric_circuit")),
            percent(e.get("accuracy_circuit")),
            with_interval(e["faithfulness"], e.get("faithfulness_ci")),
        ),
        ("whole model, corrupted prompt", significant(e.get("metric_corrupt")), "", "0" if corrupt else ""),
    ]
    if not corrupt:
        rows.append((f"every edge ablated ({ablation})", significant(e.get("metric_empty")), "", "0"))
    gap, error = (significant(e.get(key)) for key in ("metric_gap", "metric_gap_se"))
    note = f"Means over {count_of(run, 'held_out'):,} held-out pairs."
    if NONE not in (gap, error):  # folders of earlier versions have no standard error
        note += f" The gap in the metric between faithfulness 0 and 1 is {gap}, standard error {error}."
    return {"note": note, "rows": rows}


def _edge(edge: DrawnEdge, top: float) -> dict[str, str]:
    slot = Edge.parse(edge.name).reader.slot
    return {
        "name": edge.name,
        "source": edge.source,
        "target": edge.target,
        "slot": _SLOTS.get(slot.value, "") if slot else "",
        "score": "not scored" if math.isnan(edge.score) else significant(edge.score),
        "sign": "hurts" if edge.score < 0 else "helps",
        "percent": f"{100 * edge.strength / top if top else 0.0:.1f}",
    }


def _size(run: RunFolder) -> list[tuple[str, str]]:
    """Size against faithfulness, beside random circuits."""
    e, randoms = run.evaluation, random_values(run.evaluation)
    smallest, kl = e.get("smallest_sufficient"), e.get("kl")
    return [
        ("nodes in the circuit", f"{len(run.nodes):,} of {run.n_nodes_total:,}"),
        ("random circuits", f"{number(min(randoms))} to {number(max(randoms))} ({len(randoms)})" if randoms else ""),
        *((name, number(e[key], 3)) for name, key in _AREAS.items() if e.get(key) is not None),
        (
            "smallest with faithfulness 0.9",
            f"{smallest['n_edges']:,} edges by score" if isinstance(smallest, Mapping) else "",
        ),
        ("overshoot", "some circuit exceeds faithfulness 1" if e.get("overshoot") else ""),
        ("KL from the whole model", f"{significant(kl)} nats" if isinstance(kl, int | float) else ""),
    ]


def _completeness(e: Mapping[str, Any]) -> dict[str, Any] | None:
    """Completeness, and the edges whose removal costs least; None for runs without."""
    found, edges = e.get("completeness"), e.get("minimality")
    if not isinstance(found, Mapping):
        return None
    edges = edges if isinstance(edges, list) else []
    n_knockouts = len(found.get("knockouts") or ())
    incompleteness = (
        f"{number(found.get('incompleteness'), 3)} (mean over {counted(n_knockouts, 'knockout')}; maximum "
        f"{number(found.get('incompleteness_max'), 3)})"
    )
    return {
        "facts": [
            ("faithfulness without the circuit", number(found.get("complement_faithfulness"), 3)),
            ("incompleteness", incompleteness if n_knockouts else ""),
        ],
        "n_edges": len(edges),
        "n_idle": sum(edge["ci"][0] <= 0 for edge in edges),
        "edges": [
            (edge["edge"], number(edge["effect"], 3), interval(edge["ci"], 3))
            for edge in sorted(edges, key=lambda edge: edge["effect"])[:_N_IDLE]
        ],
    }


def _stability(one: Repeated) -> dict[str, Any]:
    """Agreement of repeated discovery."""
    found, sizes = one.numbers, one.numbers.get("n_edges") or {}
    ever, always = found.get("n_edges_ever"), found.get("n_edges_always")
    what = "seeds with new prompts" if found.get("over") == "seeds" else "bootstrap resamples of the discovery pairs"
    words = "The circuit; each edge is drawn by how often it was selected."
    return {
        "facts": [
            ("repetitions", f"{found.get('n', 0):,} {what}"),
            ("mean Jaccard index", f"{number(found.get('jaccard_mean'), 3)} between repetitions"),
            ("coefficient of variation", number(found.get("jaccard_cv"), 3)),
            ("Jaccard index with this circuit", number(found.get("jaccard_to_circuit"), 3)),
            ("edges", f"{sizes.get('min'):,} to {sizes.get('max'):,}" if sizes else ""),
            (
                "always selected",
                f"{always:,} of the {ever:,} edges ever selected ({percent(always / ever)})" if ever else "",
            ),
        ],
        "picture": bitmap(one.png, words) if one.png else None,
    }
