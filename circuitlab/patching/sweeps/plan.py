"""What a sweep is going to do, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import resolve_direction
from circuitlab.patching.runs.columns import AXES, Columns, columns_of
from circuitlab.patching.runs.replacement import check_patterns
from circuitlab.patching.sweeps.sites import SITES, SUMS_OF_NODES, Member, Site, find_site, named_site


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SweepPlan:
    """A checked request.

    Attributes:
        experiment: The pairs, the metric and the replacement.
        sites: What is swept.
        layers: In which layers.
        members: For each site the heads or neurons that are patched; a single 0 for sites without.
        columns: For each site, which tokens each of its cells covers.
        metrics: What is measured.
        direction: "denoise" patches the corrupted run, "noise" the clean one.
    """

    experiment: Experiment
    sites: tuple[Site, ...]
    layers: tuple[int, ...]
    members: dict[str, tuple[int, ...]]
    columns: dict[str, Columns]
    metrics: tuple[Metric, ...]
    direction: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellChoice:
    """Which cells of the sites are patched; the fields are arguments of `sweep`."""

    axis: str = "auto"
    head_axis: str = "all"
    layers: Iterable[int] | None = None
    heads: Iterable[int] | None = None
    neurons: Iterable[int] | None = None
    positions: Iterable[int] | None = None


def plan_sweep(
    experiment: Experiment,
    site: str | Site | Sequence[str | Site],
    *,
    metrics: Sequence[Metric] | None = None,
    direction: str | None = None,
    **choice: Any,
) -> SweepPlan:
    """Check every argument of `sweep`, those of `CellChoice` among them; see there.

    Returns:
        The plan.

    Raises:
        UnknownNameError: The model has no such site, or there is no such axis or direction.
        ConfigError: A choice of layers, heads, neurons or positions is empty, out of range or of no site, or the
            ablation does not go with a site.
    """
    chosen, spec, batches = CellChoice(**choice), experiment.model.spec, experiment.batches
    direction = resolve_direction(direction, experiment.replacement.kind, experiment.pairs)
    sites = tuple(find_site(one, spec) for one in check_sites(site, chosen))
    others = [one.name for one in sites if one.name not in SUMS_OF_NODES]
    if experiment.replacement.function is not None and others:
        raise ConfigError(
            f"ablation {experiment.replacement.kind!r} is a function, which gives the outputs of nodes; they do not "
            f"determine site {', '.join(others)}. Sweep {', '.join(SUMS_OF_NODES)}, or take a built-in ablation."
        )
    columns = {by_member: _columns(experiment, chosen, by_member) for by_member in {one.by_member for one in sites}}
    if any(one.name == "pattern" for one in sites):
        check_patterns(experiment.replacement, [batch.n_tokens for batch in batches])
    return SweepPlan(
        experiment=experiment,
        sites=sites,
        layers=_chosen("layer", chosen.layers, spec.n_layers),
        members={one.name: _members(experiment.model, one, chosen) for one in sites},
        columns={one.name: columns[one.by_member] for one in sites},
        metrics=(experiment.metric,) if metrics is None else tuple(metrics),
        direction=direction,
    )


def check_sites(site: str | Site | Sequence[str | Site], chosen: CellChoice) -> tuple[Site, ...]:
    """Check what can be known of a sweep's sites without a model.

    Returns:
        The sites, each once.

    Raises:
        UnknownNameError: There is no such site or axis.
        ConfigError: No site is named, two have one name, or an argument would be ignored; what `named_site` refuses.
    """
    sites = tuple(dict.fromkeys(map(named_site, [site] if isinstance(site, str | Site) else site)))
    if not sites:
        raise ConfigError("site is an empty list; name at least one, such as 'head_z'.")
    if len({one.name for one in sites}) < len(sites):
        raise ConfigError(f"two sites are called {[one.name for one in sites]}; give them different names.")
    for given in (chosen.axis, chosen.head_axis):
        UnknownNameError.check("axis", given, AXES)
    by_head = ", ".join(one.name for one in SITES.values() if one.by_head)
    by_token = chosen.head_axis != "all" or not all(one.by_member for one in sites)
    for name, used, by in (
        ("heads", any(one.by_head for one in sites), by_head),
        ("neurons", any(one.member is Member.NEURON for one in sites), "neuron"),
        ("positions", by_token, "sites of the stream, and others with head_axis (--head-axis) position"),
    ):
        if getattr(chosen, name) is not None and not used:
            raise ConfigError(
                f"{name} (--{name}) has no meaning for site {', '.join(one.name for one in sites)}; it goes with {by}. "
                "Leave it out, or name such a site."
            )
    return sites


def _columns(experiment: Experiment, chosen: CellChoice, by_member: bool) -> Columns:
    """The columns of sites that a layer has once, or of those that it has once a head or neuron."""
    whole = by_member and chosen.head_axis == "all"
    axis = "all" if whole else chosen.head_axis if by_member else chosen.axis
    found = columns_of(experiment.pairs, experiment.batches, axis)
    if chosen.positions is None or whole:
        return found
    return found.at(chosen.positions if isinstance(chosen.positions, int) else list(chosen.positions))


def _members(model: Model, site: Site, chosen: CellChoice) -> tuple[int, ...]:
    spec = model.spec
    if site.member is Member.NONE:
        return (0,)
    if site.member is Member.NEURON:
        return _chosen("neuron", chosen.neurons, model.neuron_weight(0).shape[0])
    n = spec.n_kv_heads if site.member is Member.KV_HEAD else spec.n_heads
    return _chosen("key/value head" if n < spec.n_heads else "head", chosen.heads, n)


def _chosen(kind: str, given: Iterable[int] | None, n: int) -> tuple[int, ...]:
    """The numbers that the user gave; all by default.

    Raises:
        ConfigError: One is out of range or given twice, or there are none.
    """
    if given is None:
        return tuple(range(n))
    numbers = [int(number) for number in given] if not isinstance(given, int) else [given]
    if not numbers:
        raise ConfigError(f"no {kind} is chosen; leave the argument out for all {n}.")
    for number in numbers:
        if not 0 <= number < n:
            raise ConfigError(f"{kind} {number} is out of range: there are {n}, numbered 0 to {n - 1}.")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"{kind}s {numbers} name one of them twice.")
    return tuple(numbers)
