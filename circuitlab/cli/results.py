"""Runs, evaluations and comparisons as tables on stdout."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from circuitlab.cli import display
from circuitlab.cli.display import alternatives, number

if TYPE_CHECKING:
    from circuitlab.evaluation.evaluate import Evaluation
    from circuitlab.evaluation.hypotheses.battery import CircuitTests
    from circuitlab.evaluation.hypotheses.result import TestResult
    from circuitlab.graphs.compare import Comparison, NodeOverlap
    from circuitlab.parts import Edge
    from circuitlab.runs.reproduce import Reproduction
    from circuitlab.runs.run import Run

LEVEL = 0.05
FEW_EDGES = 5  # of a comparison, printed; all of them are in --json


def show_run(run: "Run", *, json: bool) -> None:
    """The task, an example, the main results, and the path of the report."""
    page = run.folder / "report.html" if run.folder else None
    found = run.evaluation
    if json:
        places = {"folder": run.folder and str(run.folder), "report": page and str(page)}
        about: dict[str, Any] = {"task": run.task.label, "model": run.model_id}
        repeats = {"stability": run.stability, "stability_seeds": run.stability_seeds}
        repeated = {name: one.to_record() for name, one in repeats.items() if one}
        if run.pairs.frame:
            about["around"] = asdict(run.pairs.frame)
        display.print_json({**about, **found.to_record(), **repeated, "seconds": dict(run.seconds), **places})
        return
    example = run.pairs.held_out[0]
    instead = f", over {alternatives(example.distractors)}" if example.distractors else ""
    example_facts = [
        ("task", run.task.summary),
        *([("around prompts", repr(run.pairs.frame.shown))] if run.pairs.frame else []),
        ("clean", repr(example.clean)),
        ("corrupted", "none" if example.corrupt is None else repr(example.corrupt)),
        (
            "answer",
            alternatives(example.answers) + instead,
        ),
    ]
    rest = [*_stability(run), ("seconds", number(sum(run.seconds.values()), 1))]
    display.print_facts(f"{run.task.label} on model {run.model_id}", [*example_facts, *_facts(found), *rest])
    _print_warnings(found)
    if page:
        display.print_line(f"report: {page}")


def _stability(run: "Run") -> list[tuple[str, str]]:
    facts = []
    for found in (run.stability, run.stability_seeds):
        if found is not None:
            always = int((found.chosen.mean(0) == 1).sum())
            text = (
                f"mean Jaccard {number(found.jaccard)} (CV {number(found.jaccard_cv)}) between {len(found.chosen)} "
                f"{found.repeated}; {always} edges in all of them"
            )
            facts.append(("stability", text))
    return facts


def show_evaluation(
    title: str, found: "Evaluation", tested: "CircuitTests | None" = None, *, n_unscored: int = 0, json: bool
) -> None:
    """The numbers of one evaluation of a circuit, and of its hypothesis tests."""
    if json:
        record = {"hypothesis_tests": tested.to_record()} if tested else {}
        display.print_json({"title": title, "n_unscored": n_unscored, **found.to_record(), **record})
        return
    display.print_facts(title, [*_facts(found), *_more_facts(found)])
    display.print_unscored("circuit", n_unscored)
    _print_warnings(found)
    if tested:
        table = tested.to_frame().assign(verdict=[_verdict(result) for result in tested.results])
        display.print_table(table, {"test": "test", "statistic": "statistic", "p_value": "p", "verdict": "verdict"})


def _print_warnings(found: "Evaluation") -> None:
    for sentence in found.warnings:
        display.print_line(f"warning: {sentence}")


def _verdict(result: "TestResult") -> str:
    """Whether the null hypothesis was rejected, and which way that speaks."""
    if result.least_p >= LEVEL:
        return f"too few to reject: {result.n}"
    return f"{'rejected' if result.rejected else 'not rejected'}, {'for' if result.good else 'against'} the circuit"


def _more_facts(found: "Evaluation") -> list[tuple[str, str]]:
    """Facts that `evaluate` prints and `discover` does not."""
    areas, smallest = found.areas, found.smallest
    facts = [("KL", f"{number(found.kl)} nats from the model's predictions")]
    if found.curve:
        pruned = (
            f"CPR {number(areas.cpr_achieved)}, logarithmic {number(areas.cpr_achieved_log)}; "
            f"CMD {number(areas.cmd_achieved)}, logarithmic {number(areas.cmd_achieved_log)}"
        )
        facts.append(("CPR", f"{number(areas.cpr)}, logarithmic {number(areas.cpr_log)}"))
        facts.append(("CMD", f"{number(areas.cmd)}, logarithmic {number(areas.cmd_log)}"))
        facts.append(("pruned sizes", pruned))
        facts.append(("smallest", f"{smallest.n_edges:,} edges reach 0.9" if smallest else "no size reaches 0.9"))
    facts.append(("overshoot", "some circuit exceeds faithfulness 1" if found.overshoot else "no"))
    facts.append(("complement", f"faithfulness without the circuit: {number(found.complement)}"))
    if found.knockouts:
        facts.append(("incompleteness", f"{number(found.incompleteness)} (mean over {len(found.knockouts)} knockouts)"))
    if found.minimality:
        spare = len(found.minimality.dispensable)
        facts.append(("minimality", f"not shown to be needed: {spare} of {found.n_edges:,} edges"))
    return facts


def show_comparison(found: "Comparison", *, drawing: str | None, json: bool) -> None:
    """Print a comparison of two circuits."""
    if json:
        unscored = {"n_unscored_first": found.first.n_unscored, "n_unscored_second": found.second.n_unscored}
        display.print_json({**found.to_record(), **unscored, "drawing": drawing})
        return
    a, b = found.names
    circuits = {a: found.first, b: found.second}
    facts = [(name, f"{one.n_edges:,} edges, {len(one.nodes)} nodes") for name, one in circuits.items()]
    facts.append(("shared", f"{len(found.shared):,} edges"))
    for name, edges in ((a, found.only_first), (b, found.only_second)):
        facts.append((f"only {name}", f"{len(edges):,} edges{_first_few(edges)}"))
    scores = (
        f"Spearman {number(found.spearman)}, Kendall {number(found.kendall)}, Spearman of absolute scores "
        f"{number(found.spearman_absolute)} over {found.n_ranked:,} edges"
    )
    facts.append(("jaccard", f"edges {number(found.jaccard_edges)}, nodes {number(found.jaccard_nodes)}"))
    display.print_facts(f"{a} and {b}", [*facts, ("scores", scores)])
    for name, circuit in circuits.items():
        display.print_unscored(name, circuit.n_unscored)
    if drawing:
        display.print_line(f"drawing: {drawing}")


def show_overlap(found: "NodeOverlap", *, json: bool) -> None:
    """How much of a list of nodes a circuit has."""
    if json:
        display.print_json(found.to_record())
        return
    rows = []
    for label, nodes in found.classes.items():
        kept = [name for name in nodes if name in found.found]
        rows.append(
            (
                label,
                f"{len(kept)} of {len(nodes)}",
                " ".join(kept),
                " ".join(name for name in nodes if name not in kept),
            )
        )
    display.print_rows(("class", "found", "in the circuit", "not in it"), rows)
    display.print_facts(
        " and ".join(found.names),
        [
            ("nodes", f"{len(found.found)} in the circuit, {len(found.listed)} published, of {found.n_nodes}"),
            ("shared", f"{len(found.shared)}; {number(found.expected, 1)} expected by chance, p = {found.p_value:.2g}"),
            ("precision", number(found.precision)),
            ("recall", number(found.recall)),
        ],
    )


def _first_few(edges: "Sequence[Edge]") -> str:
    names = ", ".join(edge.name for edge in edges[:FEW_EDGES])
    return f": {names}{', ...' if len(edges) > FEW_EDGES else ''}" if edges else ""


def show_reproduction(again: "Reproduction", *, json: bool) -> None:
    """The outcome of a reproduction, file by file."""
    if json:
        display.print_json(again.to_record())
        return
    display.print_table(again.to_record()["files"], {"name": "file", "status": "result", "detail": "detail"})
    if not again.same_weights:
        display.print_line("the model's weights differ from those of the run")
    display.print_line("reproduced" if again.ok else "NOT reproduced: see the files that differ")


def _facts(found: "Evaluation") -> list[tuple[str, str]]:
    interval = f"95 % interval [{', '.join(map(number, found.interval))}]"
    share = found.n_edges / found.n_edges_total
    best = max(found.random, default=None)
    corrupted = {} if found.metric_corrupt is None else {"corrupted": found.metric_corrupt}
    values = {"clean": found.metric_clean, **corrupted, "circuit": found.metric_circuit}
    if found.ablation != "corrupt":
        values[f"empty circuit ({found.ablation})"] = found.metric_empty
    return [
        (found.metric, ", ".join(f"{name} {number(value)}" for name, value in values.items())),
        ("faithfulness", f"{number(found.faithfulness)}, {interval}, held-out prompts"),
        ("random", f"{len(found.random)} random circuits of this size, maximum {number(best)}"),
        ("edges", f"{found.n_edges:,} of {found.n_edges_total:,} ({share:.1%}), {found.n_nodes} nodes{_taken(found)}"),
        ("accuracy", f"model {number(found.accuracy_model)}, circuit {number(found.accuracy_circuit)}"),
    ]


def _taken(found: "Evaluation") -> str:
    """Selected edges, where pruning removed some; edges weighted by neurons, where nodes keep some neurons only."""
    nominal, weighted = found.n_edges_nominal, found.n_edges_weighted
    pruned = f"; {nominal:,} selected before pruning" if nominal is not None and nominal != found.n_edges else ""
    return pruned + (f"; {number(weighted, 1)} weighted by share of neurons" if weighted != found.n_edges else "")
