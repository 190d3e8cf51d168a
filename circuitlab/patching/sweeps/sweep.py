"""Sweep a site: replace its value, cell by cell, and run only what comes after.

1. Check the request and decide what every cell is (`sweep_plan`).
2. Record the clean and, if there is one, the corrupted run of every batch, once.
3. For each block, gather the cells of all sites that enter the stream before it; a cell is the delta that it adds to
   the stream at its own tokens (`patches`, `cells`).
4. Run the rest of the model on the rows that differ, from their first changed token to the answer (`suffix`), in packs
   that fit the memory (`packing`).
5. Take every metric at the answer position.

`estimate_sweep` counts the rows of a sweep and times a few of them, before it runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from circuitlab.arguments import renamed
from circuitlab.data.batching import Pairs
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.metrics import MetricLike, metric_for
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.outputs.paths import check_state_file
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.grid import Grid, Grids
from circuitlab.patching.runs.packing import budget_of, bytes_per_row, recorded_streams
from circuitlab.patching.runs.replacement import AblationLike
from circuitlab.patching.sweeps.cells import Cells, rows_of, run_cells
from circuitlab.patching.sweeps.patches import Runs
from circuitlab.patching.sweeps.plan import CellChoice, SweepPlan, plan_sweep
from circuitlab.patching.sweeps.run import Part, SweepRun, carry_out, start
from circuitlab.patching.sweeps.sites import Site
from circuitlab.progress import Progress, callback
from circuitlab.result import Result

# Rows that are timed; fewer say little about the speed of large packs.
SAMPLE = 128
# Settings of a sweep that change what it takes, besides the choice of cells.
ESTIMATED = ("direction", "ablation", "reference", "metric", "seed", "budget")


@renamed(replacement="ablation")
@model_function
def sweep(
    model: Model,
    pairs: Pairs,
    site: str | Site | Sequence[str | Site] = "head_z",
    *,
    direction: str | None = None,
    ablation: AblationLike = "corrupt",
    reference: Pairs | None = None,
    metric: MetricLike | Sequence[MetricLike] | None = None,
    axis: str = "auto",
    head_axis: str = "all",
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    neurons: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    normalise: bool = True,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress | bool | None = None,
    resume: str | Path | None = None,
) -> Grid | Grids:
    """Patch every cell of one or several sites, each alone. All sites and metrics share their runs.

    Args:
        model: A loaded model.
        pairs: A split of a task, or a `PairBatch`.
        site: A site, or several: names of `SITES` or of the entry points `circuitlab.sites`, or a `Site` of your own.
        direction: "denoise" patches the corrupted run, "noise" the clean run. By default "denoise" with the ablation
            "corrupt", and "noise" (a knock-out) with every other. Pairs without corrupted prompts take "noise".
        ablation: What an activation is replaced by: "corrupt" (the other prompt's value), "zero", "mean",
            "mean-position", "mean-span", "noise", a `Replacement`, or a function of (model, batch) that returns the
            output of every node, `[batch, seq, d_model]`, by its name. Outputs of nodes determine the sites of the
            stream, `attn_out`, `mlp_out` and `head_z`.
        reference: Prompts that means are taken over; none of them may be among `pairs`.
        metric: What is measured at the answer position; several at once cost no more runs. By default the metric of the
            task that drew the pairs, else `logit_diff`.
        axis: Columns of the sites that a layer has once: "position", "span", "all" (the whole prompt at once), or
            "auto" (position where prompts line up, or have no spans). Positions of prompts of several lengths are
            counted from the answer backwards: -1 is the answer position.
        head_axis: The same for heads and neurons: "all" gives a cell a head, "position" or "span" one a head and
            position.
        layers: Only these layers.
        heads: Only these heads (for keys and values the model's own key/value heads).
        neurons: Only these neurons, of each layer.
        positions: Only these positions; negative ones where they are counted from the answer backwards.
        normalise: Give `values` on the scale 0 = corrupted, 1 = clean; for pairs without corrupted prompts 0 is the
            empty circuit, every edge of which is ablated.
        seed: Of intervals, p-values and noise.
        budget: Bytes that a packed run may take; a share of what is free by default.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total); steps are of about equal work.
        resume: A file to keep finished parts in. A sweep that was interrupted goes on from it and gives the same
            numbers; it is removed when the sweep is done.

    Returns:
        A `Grid` of one site; `Grids`, a mapping by name of the site, of a list of sites. A list of metrics is a further
        axis "metric" of each grid, in front of the others.

    Raises:
        UnknownNameError: No such site (in this model), direction, metric, axis or ablation.
        ConfigError: A layer, head, neuron or position out of range, no spans by span, a mean without its
            reference set, a function for a site that outputs of nodes do not determine, a budget that holds no prompt,
            an ablation or direction that needs corrupted prompts where there are none.
        MetricError: The metric gives the wrong shape or NaN, or does not distinguish the two runs.
        RunError: `resume` is the file of another sweep.
        FileError: `resume` cannot be written.

    References:
        Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022, arXiv:2202.05262; Heimersheim and Nanda 2024,
        arXiv:2404.15255.

    Example:
        >>> from circuitlab import load_model, load_task, sweep
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> sweep(model, pairs.discovery, "head_z").values.shape  # layer, head
        (4, 8)
        >>> grids = sweep(model, pairs.discovery, ["head_z", "mlp_out"], metric=["logit_diff", "kl"])
        >>> grids["head_z"].axes, grids["head_z"].values.shape
        (('metric', 'layer', 'head'), (2, 4, 8))
    """
    state = None if resume is None else check_state_file(resume)
    plan = plan_for(
        model, pairs, site, metric=metric, ablation=ablation, reference=reference, seed=seed, budget=budget,
        progress=callback(progress), direction=direction, axis=axis, head_axis=head_axis, layers=layers, heads=heads,
        neurons=neurons, positions=positions,
    )  # fmt: skip
    grids = _swept(plan, several=not _is_one(metric), normalise=normalise, state=state)
    return grids[plan.sites[0].name] if isinstance(site, str | Site) else grids


def plan_for(
    model: Model,
    pairs: Pairs,
    site: str | Site | Sequence[str | Site],
    *,
    metric: MetricLike | Sequence[MetricLike] | None = None,
    ablation: AblationLike = "corrupt",
    seed: int = 0,
    **settings: Any,
) -> SweepPlan:
    """The experiment and the plan that the arguments of `sweep` ask for; see there.

    Returns:
        The plan.

    Raises:
        ConfigError: There is no metric, or two have one name.
    """
    metrics = [metric_for(one, pairs) for one in ([metric] if _is_one(metric) else metric)]  # type: ignore[union-attr,arg-type]
    if not metrics:
        raise ConfigError("metric is an empty list; name at least one, such as 'logit_diff'.")
    if len({of.name for of in metrics}) < len(metrics):
        raise ConfigError(f"two metrics are called {[of.name for of in metrics]}; give them different names.")
    about = {name: settings.pop(name) for name in ("reference", "budget", "progress") if name in settings}
    experiment = Experiment(model, pairs, metrics[0], ablation, seed=seed, allow_weak_gap=True, **about)
    return plan_sweep(experiment, site, metrics=metrics, **settings)


def sweep_grids(experiment: Experiment, sites: Sequence[str | Site], **settings: Any) -> Grids:
    """Sweep sites on an experiment's pairs by its metric.

    Args:
        experiment: The pairs, the metric and the ablation.
        sites: Names or objects, as of `sweep`.
        settings: `direction`, `axis`, `layers`, `heads`, as of `sweep`; errors too.

    Returns:
        A grid by site.
    """
    return _swept(plan_sweep(experiment, sites, **settings))


def _is_one(metric: MetricLike | Sequence[MetricLike] | None) -> bool:
    return isinstance(metric, str) or not isinstance(metric, Sequence)


def _swept(plan: SweepPlan, *, several: bool = False, normalise: bool = True, state: Path | None = None) -> Grids:
    """The grids of a plan, with an axis of metrics where several were given."""
    run = start(plan)
    carry_out(run, state)
    return Grids(_grid(run, site, several=several, normalise=normalise) for site in plan.sites)


def _grid(run: SweepRun, site: Site, *, several: bool, normalise: bool) -> Grid:
    plan, columns = run.plan, run.plan.columns[site.name]
    wanted = slice(None) if several else 0
    table = run.tables[site.name][wanted]
    members = tuple(map(str, plan.members[site.name]))
    whole = site.by_member and columns.labels == ("all",)
    if whole or not site.by_member:
        table = table[..., 0, :] if whole else table[..., 0, :, :]
    names, units = zip(*((of.name, of.unit) for of in plan.metrics), strict=True)
    paired = plan.experiment.corrupt is not None
    return Grid(
        site=site.name,
        direction=plan.direction,
        metric=names[wanted],
        unit=units[wanted],
        column_kind=site.kind if whole else columns.kind,
        columns=members if whole else columns.labels,
        per_example=table,
        clean=run.clean[wanted],
        corrupt=run.unit_end[wanted] if paired else None,
        empty=None if paired else run.unit_end[wanted],
        normalised=normalise,
        seed=plan.experiment.seed,
        ablation=plan.experiment.replacement.kind,
        layers=plan.layers,
        member_kind=site.kind if site.by_member and not whole else None,
        members=members if site.by_member and not whole else (),
        numbers=None if whole else columns.numbers,
    )


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
        UnknownNameError: There is no such setting.
        CircuitLabError: What `sweep` would refuse.

    Example:
        >>> from circuitlab import estimate_sweep, load_model, load_task
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> estimate_sweep(model, pairs.discovery, "head_z").rows
        128
    """
    allowed = (*ESTIMATED, *(one.name for one in fields(CellChoice)))
    for name in settings:
        UnknownNameError.check("setting", name, allowed, owner="estimate_sweep")
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
