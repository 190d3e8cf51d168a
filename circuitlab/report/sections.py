"""The parts of the page, in the order in which a reader asks."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping

from circuitlab.parts import Edge
from circuitlab.report.figures import circuit_figure, curve_figure, sweep_figure
from circuitlab.report.findings import (
    ablation_of,
    caveats,
    count_of,
    discovery_count,
    headline,
    held_out_count,
    random_values,
    share_of_edges,
    warnings_of,
)
from circuitlab.report.folder import RunFolder
from circuitlab.report.markup import (
    NONE,
    Html,
    element,
    facts,
    interval,
    joined,
    number,
    percent,
    significant,
    table,
)
from circuitlab.report.prompts import shown_pair
from circuitlab.viz import DrawnEdge

_SHORT = 16
_N_EXAMPLES = 4
_N_EDGES = 30


def section(title: str, *children: str | None) -> Html:
    """A part of the page under its heading."""
    return element("section", element("h2", title), *children)


def opening(run: RunFolder) -> Html:
    """What was found: a sentence, and the four numbers that matter most."""
    evaluation, task = run.evaluation, run.about("task")
    randoms = random_values(evaluation)
    total = evaluation.get("n_edges_total")
    tiles = [
        ("faithfulness, held-out", number(evaluation["faithfulness"]), interval(evaluation.get("faithfulness_ci"))),
        (
            "edges kept",
            f"{evaluation['n_edges']:,}",
            f"of {total:,} ({percent(share_of_edges(evaluation))})" if total else "",
        ),
        ("accuracy of the circuit", percent(evaluation.get("accuracy_circuit"), 0), _whole_model(evaluation)),
        (
            "random circuits, highest",
            number(max(randoms)) if randoms else NONE,
            f"of {len(randoms)}" if randoms else "",
        ),
    ]
    cells = (
        element("div", element("b", value), element("span", name), element("small", note or None))
        for name, value, note in tiles
    )
    return element(
        "header",
        element("p", "Circuit report", class_="kicker"),
        element("h1", f"{task.get('label') or task['name']} in {run.about('model')['id']}"),
        element("p", headline(run), class_="lede"),
        *(element("p", sentence, class_="warning") for sentence in warnings_of(evaluation)),
        element("div", *cells, class_="tiles"),
    )


def _whole_model(evaluation: Mapping[str, object]) -> str:
    accuracy = evaluation.get("accuracy_model")
    return f"whole model {percent(accuracy, 0)}" if accuracy is not None else ""


def question(run: RunFolder) -> Html:
    """What was asked: the task, and a few pairs."""
    task, data = run.about("task"), run.about("dataset")
    settings = task.get("settings")
    chosen = ", ".join(f"{k} = {v}" for k, v in settings.items()) if isinstance(settings, Mapping) else ""
    dropped = data.get("dropped")
    lost = "; ".join(f"{why}: {count}" for why, count in dropped.items()) if isinstance(dropped, Mapping) else ""
    held_out = held_out_count(run)
    apart = count_of(run, "reference")
    reference = f", {apart:,} of reference, never scored" if apart else ""
    examples = [pair for pair in run.pairs if pair.get("split") not in ("held_out", "reference")][: _N_EXAMPLES - 1]
    examples += [pair for pair in run.pairs if pair.get("split") == "held_out"][: _N_EXAMPLES - len(examples)]
    return section(
        "What was asked",
        element("p", str(task.get("summary") or "")),
        facts(
            (
                ("task", f"{task['name']}, version {task['version']}" if task.get("version") else str(task["name"])),
                ("settings", chosen),
                (
                    "pairs",
                    f"{discovery_count(run):,} to find the circuit, {held_out:,} held out to test it{reference}",
                ),
                ("dropped", lost),
                ("fingerprint of the task", _code(task.get("fingerprint"))),
                ("fingerprint of the data", _code(data.get("fingerprint") or run.manifest.get("dataset_fingerprint"))),
            )
        ),
        element(
            "p",
            "Each pair has a clean prompt above and a corrupted one below; what differs is marked. After the arrow "
            "stand the answers of the clean prompt and, under them, the distractors that they are compared with, if "
            f"there are any. Names under a line are spans.{_measured(run)}",
            class_="note",
        ),
        *(shown_pair(pair) for pair in examples),
    )


def _measured(run: RunFolder) -> str:
    """What the whole model makes of the clean and of the corrupted prompts; older folders do not have the rule."""
    found = run.about("behaviour")
    rule, clean, turned = (found.get(key) for key in ("rule", "prefers_answer", "corruption_turns_over"))
    if not rule or not isinstance(clean, int | float) or not isinstance(turned, int | float):
        return ""
    return (
        f" In the discovery pairs, {str(rule).replace('_', ' ')} on {percent(clean)} of the clean prompts and on "
        f"{percent(1 - turned)} of the corrupted ones."
    )


def model(run: RunFolder) -> Html:
    """Of what model, run how."""
    about, config = run.about("model"), run.about("config")
    shape = [
        f"{about[key]:,} {word}" if isinstance(about.get(key), int) else ""
        for key, word in (("n_layers", "layers"), ("n_heads", "heads a layer"), ("d_model", "wide"))
    ]
    versions = ", ".join(f"{name} {value}" for name, value in run.about("versions").items())
    steps = run.about("method").get("steps")  # none where the method takes no steps
    method = f"{config.get('method', '')}{f' with {steps} steps' if steps else ''}"
    return section(
        "The model and the method",
        facts(
            (
                ("model", str(about["id"])),
                ("weights, SHA-256", _code(about.get("weights_sha256"))),
                ("rewritten", _rewritten(config)),
                ("BOS token", _bos(about, config)),
                ("shape", ", ".join(filter(None, shape))),
                ("graph", f"{run.n_nodes_total:,} nodes" + _edges_in_all(run.evaluation)),
                ("edges scored by", method),
                ("metric", ": ".join(filter(None, (metric_name(run), str(run.about("metric").get("what") or ""))))),
                ("replaced by", str(config.get("ablation") or "")),
                ("edges selected by", _selected(run)),
                ("seed", str(config.get("seed", run.manifest.get("seed", "")))),
                ("device", ", ".join(str(run.manifest[key]) for key in ("device", "dtype") if run.manifest.get(key))),
                ("versions", versions),
            )
        ),
    )


def _rewritten(config: Mapping[str, object]) -> str:
    told = {
        "fold_ln": "norms folded into the next weights",
        "center_weights": "writing weights and unembedding centred",
    }
    return ", ".join(text for name, text in told.items() if config.get(name) is True)


def _bos(about: Mapping[str, object], config: Mapping[str, object]) -> str:
    """Which tokens stood in front of every text, and what was asked; empty for runs of earlier versions."""
    tokens, choice = about.get("bos_tokens"), config.get("bos")
    if not isinstance(tokens, list) or not choice:
        return ""
    return f"{' '.join(map(str, tokens)) or 'none'} ({choice})"


def _selected(run: RunFolder) -> str:
    """What was asked of the selection, and what came of it."""
    config, found = run.about("config"), run.about("selection")
    if not found:
        target = config.get("target")
        return f"a faithfulness of {number(target)}" if target is not None else ""
    asked, nominal, left = (found.get(name) for name in ("asked", "nominal", "achieved"))
    rules = {
        "target": f"the smallest circuit found with a faithfulness of {number(asked)}",
        "n_edges": f"the {asked} top edges",
        "threshold": f"a score of at least {number(asked)}",
        "chosen": "the method itself",
    }
    how = f"by {'signed' if found.get('signed') else 'absolute'} score" + (", greedily" if found.get("greedy") else "")
    said = rules.get(str(found.get("rule")), "")
    reached = ""
    if isinstance(found.get("faithfulness"), int | float):
        value = ", ".join(filter(None, (number(found["faithfulness"]), interval(found.get("faithfulness_ci")))))
        reached = f"; faithfulness in {found.get('metric')} on the discovery pairs: {value}"
    return f"{said}, {how}: {nominal:,} taken, {left:,} left after pruning{reached}" if said else ""


def _edges_in_all(evaluation: Mapping[str, object]) -> str:
    total = evaluation.get("n_edges_total")
    return f", {total:,} edges" if isinstance(total, int) else ""


def metric_name(run: RunFolder) -> str:
    """The metric with spaces for underscores."""
    name = run.about("config").get("metric") or run.evaluation.get("metric") or "metric"
    return str(name).replace("_", " ")


def behaviour(run: RunFolder) -> Html:
    """The metric of the corrupted run, the circuit and the whole model."""
    e, ablation = run.evaluation, ablation_of(run)
    rows = [
        (
            "whole model, clean prompt",
            significant(e.get("metric_clean")),
            percent(e.get("accuracy_model")),
            "1",
        ),
        (
            "the circuit, rest corrupted" if ablation == "corrupt" else f"the circuit, rest replaced ({ablation})",
            significant(e.get("metric_circuit")),
            percent(e.get("accuracy_circuit")),
            ", ".join(filter(None, (number(e["faithfulness"]), interval(e.get("faithfulness_ci"))))),
        ),
        (
            "whole model, corrupted prompt",
            significant(e.get("metric_corrupt")),
            "",
            "0" if ablation == "corrupt" else "",
        ),
    ]
    if ablation != "corrupt":
        rows.append((f"every edge replaced ({ablation})", significant(e.get("metric_empty")), "", "0"))
    return section(
        "Does the circuit do it?",
        element("p", f"Means over {held_out_count(run):,} held-out pairs.{_gap(e)}", class_="note"),
        table(("", metric_name(run), "accuracy", "faithfulness"), rows, numbers=(1, 2, 3), name="behaviour"),
    )


def _gap(evaluation: Mapping[str, object]) -> str:
    """What faithfulness is a share of; folders of earlier versions do not say how sure it is."""
    gap, error = (significant(evaluation.get(key)) for key in ("metric_gap", "metric_gap_se"))
    if NONE in (gap, error):
        return ""
    return f" Faithfulness is a share of their gap, {gap} with a standard error of {error}."


def heatmaps(run: RunFolder) -> Html | None:
    """Where in the model the information is."""
    if not run.sweeps:
        skipped = "No site was swept (--no-sweep), so there are no heatmaps."
        wanted = run.about("config").get("sites") == []
        return section("Where the information is", element("p", skipped, class_="note")) if wanted else None
    return section(
        "Where the information is",
        element(
            "p",
            "Each cell is one patch: what the clean run has there is put into the corrupted run. 0 leaves the "
            "corrupted answer, 1 brings the clean one back. Layer 0 is at the top."
            f"{_backwards(run)}",
            class_="note",
        ),
        element("div", *(sweep_figure(sweep) for sweep in run.sweeps), class_="heatmaps"),
    )


def _backwards(run: RunFolder) -> str:
    """How positions are counted, where prompts of several lengths have no spans."""
    columns = [table.frame["position"] for table in run.sweeps if "position" in table.frame.columns]
    if not any((column < 0).any() for column in columns):
        return ""
    return (
        " Prompts have several lengths, so that positions are counted from the answer backwards: -1 is the answer "
        "position, -2 the token before it."
    )


def circuit(run: RunFolder) -> Html:
    """The graph, and its strongest edges."""
    ranked = sorted(run.edges, key=lambda edge: (-edge.strength, edge.name))
    top = max((edge.strength for edge in ranked), default=0.0)
    shown = ranked[:_N_EDGES]
    rest = (
        f"The {len(shown)} strongest of {len(ranked):,}; all are in "
        if len(ranked) > len(shown)
        else "All edges, also in "
    )
    return joined(
        section("The circuit", circuit_figure(run)),
        section(
            "Strongest edges",
            element("p", rest, element("code", "edges.csv"), ". A positive score: the edge helps.", class_="note"),
            table(
                ("edge", "from", "to", "enters", "score", ""),
                [_edge_row(edge, top) for edge in shown],
                numbers=(4,),
                name="edges",
            ),
        ),
    )


def _edge_row(edge: DrawnEdge, top: float) -> tuple[str, ...]:
    parsed = Edge.parse(edge.name)
    slot = {"q": "query", "k": "key", "v": "value"}.get(parsed.reader.slot.value if parsed.reader.slot else "", "")
    share = 100 * edge.strength / top if top else 0.0
    kind = "hurts" if edge.score < 0 else "helps"
    bar = element("span", class_=f"bar {kind}", style=f"width:{share:.1f}%", title=kind)
    score = "not scored" if math.isnan(edge.score) else significant(edge.score)
    return (element("code", edge.name), edge.source, edge.target, slot, score, element("div", bar, class_="track"))


def evaluation(run: RunFolder) -> Html:
    """Size against faithfulness, and random circuits beside it."""
    e = run.evaluation
    randoms = random_values(e)
    areas = [("CPR", "cpr"), ("CMD", "cmd"), ("CPR, logarithmic", "cpr_log"), ("CMD, logarithmic", "cmd_log")]
    areas = [(name, e.get(key)) for name, key in areas]
    lines = [
        ("nodes in the circuit", f"{len(run.nodes):,} of {run.n_nodes_total:,}"),
        ("random circuits", f"{number(min(randoms))} to {number(max(randoms))} ({len(randoms)})" if randoms else ""),
        *((name, number(value, 3)) for name, value in areas if value is not None),
        ("smallest with 0.9", _smallest(e)),
        ("overshoot", "yes: a circuit does more than the whole model" if e.get("overshoot") else ""),
        ("KL to the whole model", f"{significant(e['kl'])} nats" if isinstance(e.get("kl"), int | float) else ""),
    ]
    areas_note = (
        "CPR is the area under faithfulness against the share of edges kept (1 is best), CMD the area between "
        "faithfulness and 1 (0 is best). On a logarithmic axis small circuits count as much as large ones."
    )
    return section(
        "How small can it be?",
        curve_figure(run, e),
        facts(lines),
        element("p", areas_note, class_="note") if any(value is not None for _, value in areas) else None,
    )


def _smallest(evaluation: Mapping[str, object]) -> str:
    found = evaluation.get("smallest_sufficient")
    return f"{found['n_edges']:,} edges by score" if isinstance(found, Mapping) else ""


def certainty(run: RunFolder) -> Html:
    """What bounds the numbers."""
    return section("How sure is this?", element("ul", *(element("li", sentence) for sentence in caveats(run))))


def citing(run: RunFolder) -> Html:
    """How to cite, run again, and check the files."""
    folder = shlex.quote(run.name)
    bibtex = run.manifest.get("bibtex")
    command = run.manifest.get("command")
    if isinstance(command, list | tuple):
        command = shlex.join(map(str, command))
    again = [f"circuitlab reproduce {folder}", f"circuitlab report {folder}", f"circuitlab cite {folder}"]
    sizes = {name: (run.path / name).stat().st_size for name in run.files}
    return joined(
        section("How to cite", element("pre", str(bibtex))) if bibtex else None,
        section(
            "How to run it again",
            element("p", "Made with", class_="note") if command else None,
            element("pre", str(command)) if command else None,
            element(
                "p", "Run again and compare file by file; make this page again; print the citation:", class_="note"
            ),
            element("pre", "\n".join(again)),
        ),
        section(
            f"Files ({len(run.files)})",
            table(
                ("file", "bytes", "SHA-256"),
                [(name, f"{sizes[name]:,}", element("code", digest)) for name, digest in run.files.items()],
                numbers=(1,),
                name="files",
            ),
        ),
    )


def _code(value: object) -> Html | None:
    """The beginning of a hash; the whole of it on hover."""
    return element("code", str(value)[:_SHORT], title=str(value)) if value else None
