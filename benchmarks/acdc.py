"""ACDC, testing several edges at a time, compared with one plain forward pass an edge."""

from __future__ import annotations

from benchmarks.clock import in_turn
from benchmarks.findings import Finding, Unit, faster, seconds
from benchmarks.models import Setup
from circuitlab import score_edges
from circuitlab.discovery.scores import EdgeScores
from circuitlab.parts import Layout

THRESHOLD = 1e-4
# Plain passes that are timed in a round: one takes milliseconds.
PASSES = 10


def searches(setup: Setup, *, rounds: int, target: float | None) -> list[Finding]:
    """Time whole searches, both recorded runs and the first guesses included.

    By the metric nearly every edge is tested and many are kept; by KL, on random weights, no edge of the logits reaches
    the threshold, so that no other edge is tested.
    """
    model, batch, found = setup.model, setup.batch, dict[str, EdgeScores]()

    def run(objective: str, speculate: int | None = None) -> EdgeScores:
        return score_edges(model, batch, "acdc", threshold=THRESHOLD, objective=objective, speculate=speculate)

    def plain() -> None:
        for _ in range(PASSES):
            model.whole_logits(batch.clean)

    ways = {name: lambda name=name: found.update({name: run(name)}) for name in ("metric", "kl")}
    timings = in_turn({**ways, "plain": plain}, rounds, str(model.device))
    one, n_edges = timings["plain"].times(1 / PASSES), Layout.of(model.spec).n_edges
    rows = []
    for name, targeted in (("metric", target), ("kl", None)):
        scores, timing = found[name], timings[name]
        questions, circuits = (int(scores.checks[what]) for what in ("questions", "circuits"))
        what = f"ACDC over {n_edges} edges at threshold {THRESHOLD}, cost by {name}"
        detail = (
            f"{seconds(timing)} against {questions} passes of {seconds(one)}; {int(scores.checks['batches'])} batches, "
            f"{circuits} circuits, {_kept(scores)} edges kept"
        )
        rows.append(faster(what, setup.what, timing, one.times(questions), target=targeted, detail=detail))
    return [*rows, _agreement(setup, found["metric"], run("metric", speculate=1))]


def _agreement(setup: Setup, guessed: EdgeScores, one_by_one: EdgeScores) -> Finding:
    assert guessed.chosen is not None
    assert one_by_one.chosen is not None
    return Finding(
        what="Edges on which that search and the one question at a time disagree",
        on=setup.what,
        value=float((guessed.chosen != one_by_one.chosen).sum()),
        unit=Unit.EDGES,
        target=0.0,
        at_least=False,
        detail=f"{_kept(guessed)} edges kept",
    )


def _kept(scores: EdgeScores) -> int:
    return 0 if scores.chosen is None else int(scores.chosen.sum())
