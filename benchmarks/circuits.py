"""Circuits, given the corrupted run, against a bare forward pass; many circuits in one batch against one by one."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.clock import Timing, in_turn
from benchmarks.eap import eap_scores
from benchmarks.findings import Finding, Unit, costs, differs, seconds
from benchmarks.models import SEED, Setup
from circuitlab.graphs.prune import kept_nodes, prune
from circuitlab.graphs.random import random_circuit
from circuitlab.metrics import resolve
from circuitlab.parts import Layout
from circuitlab.patching.circuits.circuits import run_circuits
from circuitlab.patching.runs.baseline import Baseline, record_baseline

METRIC = resolve("logit_diff")


def circuit_runs(
    setup: Setup, *, rounds: int, sizes: tuple[int, ...], n_together: int, n_alone: int, targets: tuple[float, float]
) -> list[Finding]:
    """Time circuits of these sizes (largest first), alone and together.

    Args:
        setup: Model and prompts.
        rounds: Rounds of the clock.
        sizes: Numbers of edges; the targets are for the first.
        n_together: Circuits of the first size in one batch.
        n_alone: Random circuits of each size that are run one by one; their mean counts.
        targets: A circuit's time over a bare forward pass, and how much cheaper a circuit is in a batch.
    """
    model, batch = setup.model, setup.batch
    layout, baseline = Layout.of(model.spec), record_baseline(model, batch)
    drawn = {n: random_masks(layout, n, n_together if n == sizes[0] else n_alone) for n in sizes}
    top = prune(eap_scores(model, batch).top(sizes[0]), layout)
    ways = {
        "bare": lambda: model.whole_logits(batch.clean),
        **{str(n): lambda masks=masks: _one_by_one(setup, baseline, masks[:n_alone]) for n, masks in drawn.items()},
        "top": lambda: logits(setup, baseline, top[None]),
        "together": lambda: logits(setup, baseline, drawn[sizes[0]]),
    }
    timings = in_turn(ways, rounds, str(model.device))
    alone = {n: timings[str(n)].times(1 / len(masks[:n_alone])) for n, masks in drawn.items()}
    found = [
        costs(
            f"A random circuit of {n} edges over a bare forward pass",
            setup.what,
            alone[n],
            timings["bare"],
            target=targets[0],
            detail=f"{seconds(alone[n])} against {seconds(timings['bare'])}; {_nodes(masks[:n_alone], layout)}",
        )
        for n, masks in drawn.items()
    ]
    what = f"The circuit of the {sizes[0]} strongest EAP edges over a bare forward pass"
    detail = f"{seconds(timings['top'])}; pruned to {int(top.sum())} edges, {_nodes(top[None], layout)}"
    found.append(costs(what, setup.what, timings["top"], timings["bare"], target=targets[0], detail=detail))
    found.append(_together(setup, timings["together"], alone[sizes[0]], n_together, sizes[0], targets[1]))
    found.append(_agreement(setup, baseline, drawn[sizes[0]][:n_alone]))
    return found


def random_masks(layout: Layout, n_edges: int, n: int) -> np.ndarray:
    """Random connected circuits of exactly so many edges."""
    return np.stack([random_circuit(layout, n_edges, np.random.default_rng((SEED, i))) for i in range(n)])


def logits(setup: Setup, baseline: Baseline, masks: np.ndarray) -> torch.Tensor:
    """Next-token logits of circuits at the answer, the whole vocabulary, `[circuit, batch, d_vocab]`."""
    device = setup.model.device
    stream = run_circuits(setup.model, baseline, torch.tensor(masks, device=device))
    return setup.model.logits(stream.flatten(0, 1)).unflatten(0, stream.shape[:2])


def _one_by_one(setup: Setup, baseline: Baseline, masks: np.ndarray) -> None:
    for mask in masks:
        logits(setup, baseline, mask[None])


def _together(setup: Setup, together: Timing, alone: Timing, n: int, n_edges: int, target: float) -> Finding:
    each = together.times(1 / n)
    return Finding(
        what=f"{n} random circuits of {n_edges} edges in one batch, each against one alone",
        on=setup.what,
        value=alone.best / each.best,
        in_the_middle=alone.median / each.median,
        unit=Unit.CHEAPER,
        target=target,
        detail=f"{seconds(each)} a circuit against {seconds(alone)}",
    )


def _agreement(setup: Setup, baseline: Baseline, masks: np.ndarray) -> Finding:
    """In one batch or alone: the same circuits must give the same numbers."""
    batch = baseline.batch
    whole = logits(setup, baseline, masks)
    parts = [logits(setup, baseline, mask[None])[0] for mask in masks]
    clean, corrupt = (values.mean() for values in baseline.gap(METRIC))
    worst = max(float((METRIC(a, batch) - METRIC(b, batch)).abs().max()) for a, b in zip(whole, parts, strict=True))
    return differs(
        "Largest difference between circuits in one batch and alone, share of the gap",
        setup.what,
        worst / abs(float(clean - corrupt)),
        detail=f"circuits compared: {len(masks)}",
    )


def _nodes(masks: np.ndarray, layout: Layout) -> str:
    numbers = [int(kept_nodes(mask, layout).sum()) for mask in masks]
    return f"{np.mean(numbers):.0f} of {len(layout.nodes)} nodes"
