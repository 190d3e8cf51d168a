"""Seconds that each scoring method takes: on the bundled model, and on the GPT-2-small-sized one."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.clock import in_turn
from benchmarks.findings import Finding, Unit
from benchmarks.models import Setup
from circuitlab import load_model, load_task, score_edges
from circuitlab.discovery.scoring import METHODS
from circuitlab.parts import Layout

TASK = "gendered-pronouns"
# Methods that ask a question, or take a training step, for every edge: hours on 32,491 of them.
EDGE_BY_EDGE = ("exact", "acdc", "edge-pruning", "ugs")


def seconds_of_methods(large: Setup, *, rounds: int, pairs: int) -> list[Finding]:
    """Every method of the table on the bundled model; on the large one those that do not go edge by edge.

    Args:
        large: Model and prompts.
        rounds: Rounds of the clock on the bundled model; the large one gets one.
        pairs: Pairs of the task of the bundled model.
    """
    device, threads = str(large.model.device), torch.get_num_threads()
    model = load_model("bundled", device=device)
    drawn = load_task(TASK).pairs(model, n=pairs, seed=0).discovery
    bundled = {name: partial(score_edges, model, drawn, name) for name in METHODS}
    chosen = [name for name in METHODS if name not in EDGE_BY_EDGE]
    at_large = {name: partial(score_edges, large.model, large.batch, name) for name in chosen}
    on = f"bundled, {len(drawn)} pairs"
    times = [(name, on, Layout.of(model.spec), timing) for name, timing in in_turn(bundled, rounds, device).items()]
    layout = Layout.of(large.model.spec)
    times += [(name, large.what, layout, timing) for name, timing in in_turn(at_large, 1, device).items()]
    return [
        Finding(
            what=f"`{name}`",
            on=where,
            value=timing.best,
            in_the_middle=timing.median if len(timing.seconds) > 1 else None,
            unit=Unit.SECONDS,
            detail=f"{layout.n_edges:,} edges" + (f"; threads: {threads}" if device == "cpu" else ""),
        )
        for name, where, layout, timing in times
    ]
