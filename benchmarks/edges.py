"""Every edge patched exactly, against one plain forward pass an edge."""

from __future__ import annotations

import numpy as np

from benchmarks import oracles
from benchmarks.clock import in_turn
from benchmarks.findings import Finding, differs, faster, seconds
from benchmarks.models import SEED, Setup
from circuitlab import score_edges
from circuitlab.discovery.scores import EdgeScores
from circuitlab.parts import Layout

# Plain passes that are timed in a round: one takes milliseconds.
PASSES = 10


def exact_edges(setup: Setup, *, rounds: int, sample: int, target: float | None) -> list[Finding]:
    """Time exact scores of all edges, and compare a sample of them with a patched pass an edge."""
    model, batch = setup.model, setup.batch
    layout, device = Layout.of(model.spec), str(model.device)
    found: dict[str, EdgeScores] = {}

    def plain() -> None:
        for _ in range(PASSES):
            model.whole_logits(batch.clean)

    ways = {"ours": lambda: found.update(scores=score_edges(model, batch, "exact")), "plain": plain}
    timings = in_turn(ways, rounds, device)
    one = timings["plain"].times(1 / PASSES)
    detail = f"{seconds(timings['ours'])} against {layout.n_edges} passes of {seconds(one)}"
    what = f"Exact effect of each of {layout.n_edges} edges"
    return [
        faster(what, setup.what, timings["ours"], one.times(layout.n_edges), target=target, detail=detail),
        _agreement(setup, found["scores"], sample),
    ]


def _agreement(setup: Setup, scores: EdgeScores, sample: int) -> Finding:
    model, batch, layout = setup.model, setup.batch, Layout.of(setup.model.spec)
    edges = list(layout.edges())
    chosen = [edges[i] for i in np.random.default_rng(SEED).permutation(len(edges))[:sample]]
    expected = oracles.edge_effects(model.bridge, layout, batch, chosen).mean(1)
    ours = np.array([scores.values[layout.edge_index(edge)] for edge in chosen])
    runs = (oracles.whole_run(model.bridge, layout, tokens).logits for tokens in (batch.clean, batch.corrupted))
    clean, corrupt = (float(oracles.logit_diff(logits, batch).mean()) for logits in runs)
    return differs(
        "Largest difference to a patched pass an edge, share of the gap",
        setup.what,
        float(np.abs(ours - expected).max() / abs(clean - corrupt)),
        detail=f"{len(chosen)} edges",
    )
