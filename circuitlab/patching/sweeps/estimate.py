"""What a sweep will take, before it runs: its rows are counted, and a few of them timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuitlab.arguments import renamed
from circuitlab.data.batching import Pairs
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.patching.runs.packing import budget_of, bytes_per_row, recorded_streams
from circuitlab.patching.sweeps.cells import Cells, rows_of, run_cells
from circuitlab.patching.sweeps.patches import Runs
from circuitlab.patching.sweeps.run import Part, SweepRun, start
from circuitlab.patching.sweeps.sites import Site
from circuitlab.patching.sweeps.sweep import plan_for
from circuitlab.result import Result

# Rows that are timed; fewer say little about the speed of large packs.
SAMPLE = 128


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Estimate(Result):
    """What a sweep is about to take.

    Attributes:
        rows: Patched prompts that have to run.
        forward_passes: The work, in forward passes of all prompts at once.
        seconds: About how long, from a timed sample on this machine as it is now.
        bytes: About how much memory beside the model's weights, at most.
    """

    rows: int
    forward_passes: float
    seconds: float
    bytes: int

    def __str__(self) -> str:
        return self._summary()

    def _summary(self) -> str:
        size = f"{self.bytes / 2**20:.0f} MB" if self.bytes < 2**30 else f"{self.bytes / 2**30:.1f} GB"
        return (
            f"{self.rows:,} patched prompts, the work of {self.forward_passes:.3g} forward passes: "
            f"about {_duration(self.seconds)} and {size}"
        )


@renamed(replacement="ablation")
@model_function
def estimate_sweep(
    model: Model, pairs: Pairs, site: str | Site | Sequence[str | Site] = "head_z", **settings: Any
) -> Estimate:
    """What `sweep` with the same arguments will take. Records both runs and times a few rows; patches nothing else.

    Args:
        model: A loaded model.
        pairs: What would be swept.
        site: A site, or several.
        settings: `direction`, `ablation`, `reference`, `metric`, `axis`, `head_axis`, `layers`, `heads`, `neurons`,
            `positions`, `seed`, `budget`, as of `sweep`.

    Returns:
        Patched prompts to run, their cost in forward passes, seconds, and bytes of memory.

    Raises:
        CircuitLabError: What `sweep` would refuse.

    Example:
        >>> from circuitlab import estimate_sweep, load_model, load_task
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> estimate_sweep(model, pairs.discovery, "head_z").rows
        128
    """
    plan = plan_for(model, pairs, site, **settings)
    run = start(plan)
    rows, work = zip(*(_count(run, part) for part in run.parts), strict=True)
    tokens, largest = sum(work), run.parts[work.index(max(work))]
    whole = sum(batch.clean.numel() for batch in plan.experiment.batches) * model.spec.n_layers
    longest = max(batch.n_tokens for batch in plan.experiment.batches)
    budget = budget_of(plan.experiment.resources, model.device)
    recorded = max(bytes_per_row(model, b.n_tokens, recorded_streams(model)) * len(b) for b in plan.experiment.batches)
    return Estimate(
        rows=sum(rows),
        forward_passes=tokens / whole,
        seconds=tokens * _seconds_per_token(run, largest) if tokens else 0.0,
        bytes=recorded + min(budget, sum(rows) * bytes_per_row(model, longest)),
    )


def _count(run: SweepRun, part: Part) -> tuple[int, int]:
    """Rows of a part, and how many tokens times blocks they run."""
    runs, cells, _ = run.cells(part)
    return len(cells), _work(runs, part, cells)


def _work(runs: Runs, part: Part, cells: Cells) -> int:
    tokens = int(rows_of(runs, cells, part.block).lengths.sum())
    return tokens * (runs.model.spec.n_layers - part.block) + len(cells)


def _seconds_per_token(run: SweepRun, part: Part) -> float:
    runs, cells, inside = run.cells(part)
    some = cells.take(slice(0, SAMPLE))
    run_cells(runs, some, part.block, inside)  # the first call pays for what later ones find ready
    began = time.perf_counter()
    run_cells(runs, some, part.block, inside)
    return (time.perf_counter() - began) / max(1, _work(runs, part, some))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
