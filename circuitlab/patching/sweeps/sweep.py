"""Sweep a site: put another value in, cell by cell, and run only what comes after.

1. Check the request and decide what every cell is (`sweep_plan`).
2. Record the clean and the corrupted run of every batch, once.
3. For each block, gather the cells of all sites that enter the stream before it; a cell is the delta that it adds to
   the stream at its own tokens (`patches`, `cells`).
4. Run the rest of the model on the rows that differ, from their first changed token to the answer (`suffix`), in packs
   that fit the memory (`packing`).
5. Take every metric at the answer position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from circuitlab.arguments import checked
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError
from circuitlab.metrics import Metric, MetricLike, metric_for
from circuitlab.models.modes import in_ordinary_modes
from circuitlab.models.protocol import Model
from circuitlab.outputs import check_state_file
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.grid import Grid
from circuitlab.patching.runs.replacement import Replacement
from circuitlab.patching.sweeps.plan import SweepPlan, plan_sweep
from circuitlab.patching.sweeps.run import SweepRun, carry_out, start
from circuitlab.patching.sweeps.sites import Site
from circuitlab.progress import Progress, callback, reports_progress
from circuitlab.summary import NamedResults

Grids = Grid | dict[str, Grid]


@checked
@in_ordinary_modes
@reports_progress
def sweep(
    model: Model,
    pairs: PairSet | PairBatch,
    site: str | Site | Sequence[str | Site] = "head_z",
    *,
    direction: str | None = None,
    replacement: str | Replacement = "corrupt",
    reference: PairSet | PairBatch | None = None,
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
) -> Grids | dict[str, Grids]:
    """Patch every cell of one or several sites, each alone. All sites and metrics share their runs.

    Args:
        model: A loaded model.
        pairs: A split of a task, or a `PairBatch`.
        site: A site, or several: names of `SITES` or of the entry points `circuitlab.sites`, or a `Site` of your own.
        direction: "denoise" patches the corrupted run, "noise" the clean run. By default "denoise" where the other
            prompt's values are put in, "noise" (a knock-out) for every other replacement.
        replacement: What is put in: "corrupt" (the other prompt's value), "zero", "mean", "mean-position",
            "mean-span", "noise", or a `Replacement`.
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
        normalise: Give `values` on the scale 0 = corrupted, 1 = clean.
        seed: Of intervals, p-values and noise.
        budget: Bytes that a packed run may take; a share of what is free by default.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total); steps are of about equal work.
        resume: A file to keep finished parts in. A sweep that was interrupted goes on from it and gives the same
            numbers; it is removed when the sweep is done.

    Returns:
        A `Grid`; a dict of grids by site name if several sites were asked for; a dict by metric name of either if
        several metrics were.

    Raises:
        UnknownNameError: No such site (in this model), direction, metric, axis or replacement.
        ConfigError: A layer, head, neuron or position out of range, no spans by span, a mean without its
            reference set, a budget that holds no prompt.
        MetricError: The metric gives the wrong shape or NaN, or does not tell the two runs apart.
        RunError: `resume` is the file of another sweep.
        FileError: `resume` cannot be written.

    Example:
        >>> from circuitlab import load_model, load_task, sweep
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> sweep(model, pairs.discovery, "head_z").values.shape  # layer, head
        (4, 8)
    """
    state = None if resume is None else check_state_file(resume)
    plan = plan_for(
        model, pairs, site, metric=metric, replacement=replacement, reference=reference, seed=seed, budget=budget,
        progress=callback(progress), direction=direction, axis=axis, head_axis=head_axis, layers=layers, heads=heads,
        neurons=neurons, positions=positions,
    )  # fmt: skip
    found = _swept(plan, normalise=normalise, state=state)
    grids = {name: one if not isinstance(site, str | Site) else next(iter(one.values())) for name, one in found.items()}
    return grids[plan.metrics[0].name] if _is_one(metric) else NamedResults(grids)


def plan_for(
    model: Model,
    pairs: PairSet | PairBatch,
    site: str | Site | Sequence[str | Site],
    *,
    metric: MetricLike | Sequence[MetricLike] | None = None,
    replacement: str | Replacement = "corrupt",
    seed: int = 0,
    **settings: Any,
) -> SweepPlan:
    """The experiment and the plan that the arguments of `sweep` ask for; see there."""
    metrics = [metric_for(one, pairs) for one in ([metric] if _is_one(metric) else metric)]  # type: ignore[union-attr,arg-type]
    if not metrics:
        raise ConfigError("metric is an empty list; name at least one, such as 'logit_diff'.")
    if len({of.name for of in metrics}) < len(metrics):
        raise ConfigError(f"two metrics are called {[of.name for of in metrics]}; give them different names.")
    about = {name: settings.pop(name) for name in ("reference", "budget", "progress") if name in settings}
    experiment = Experiment(model, pairs, metrics[0], replacement, seed=seed, allow_weak_gap=True, **about)
    return plan_sweep(experiment, site, metrics=metrics, **settings)


def sweep_grids(
    experiment: Experiment,
    sites: Sequence[str | Site],
    *,
    direction: str | None = None,
    axis: str = "auto",
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
) -> dict[str, Grid]:
    """Sweep sites on an experiment's pairs by its metric; arguments and errors as of `sweep`.

    Returns:
        A grid by site.
    """
    plan = plan_sweep(experiment, sites, direction=direction, axis=axis, layers=layers, heads=heads)
    return _swept(plan)[experiment.metric.name]


def _is_one(metric: MetricLike | Sequence[MetricLike] | None) -> bool:
    return isinstance(metric, str) or not isinstance(metric, Sequence)


def _swept(plan: SweepPlan, *, normalise: bool = True, state: Path | None = None) -> dict[str, dict[str, Grid]]:
    """Grids by metric and site."""
    run = start(plan)
    carry_out(run, state)
    return {
        of.name: NamedResults({s.name: _grid(run, of, s, normalise=normalise) for s in plan.sites})
        for of in plan.metrics
    }


def _grid(run: SweepRun, metric: Metric, site: Site, *, normalise: bool) -> Grid:
    plan, columns = run.plan, run.plan.columns[site.name]
    table = run.tables[metric.name, site.name]
    members = tuple(map(str, plan.members[site.name]))
    whole = site.by_member and columns.labels == ("all",)
    if whole or not site.by_member:
        table = table[:, :, 0] if whole else table[:, 0]
    return Grid(
        site=site.name,
        direction=plan.direction,
        metric=metric.name,
        unit=metric.unit,
        column_kind=site.kind if whole else columns.kind,
        columns=members if whole else columns.labels,
        per_example=table,
        clean=run.clean[metric.name],
        corrupt=run.corrupt[metric.name],
        normalised=normalise,
        seed=plan.experiment.seed,
        replacement=plan.replacement.kind,
        layers=plan.layers,
        member_kind=site.kind if site.by_member and not whole else None,
        members=members if site.by_member and not whole else (),
        numbers=None if whole else columns.numbers,
    )


def by_site(found: Grids | dict[str, Grids]) -> dict[str, Grid]:
    """What `sweep` gave for one metric, as one grid a site."""
    grids = found if isinstance(found, dict) else {found.site: found}
    single = NamedResults({site: grid for site, grid in grids.items() if isinstance(grid, Grid)})
    assert len(single) == len(grids), "several metrics give several grids a site"
    return single
