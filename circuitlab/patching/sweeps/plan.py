"""What a sweep is going to do, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import batches_for
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.metrics import Metric, MetricLike, metric_for
from circuitlab.models.protocol import Model
from circuitlab.parts import ModelSpec
from circuitlab.patching.runs.baseline import check_direction
from circuitlab.patching.runs.columns import AXES, Columns, columns_of
from circuitlab.patching.runs.packing import bytes_per_row, default_budget, fitting, recorded_streams, rows_per_pack
from circuitlab.patching.runs.replacement import Replacement, check_patterns, resolve_replacement
from circuitlab.patching.sweeps.sites import SITES, Member, Site, find_site


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SweepPlan:
    """A checked request.

    Attributes:
        model: The model.
        sites: What is swept.
        layers: In which layers.
        members: For each site the heads or neurons that are patched; a single 0 for sites without.
        columns: For each site, which tokens each of its cells covers.
        batches: The prompts, by length, in parts that fit into memory.
        metrics: What is measured.
        direction: "denoise" patches the corrupted run, "noise" the clean one.
        replacement: What is put in.
        budget: Bytes that a packed run may take; None for a share of what is free.
    """

    model: Model
    sites: tuple[Site, ...]
    layers: tuple[int, ...]
    members: dict[str, tuple[int, ...]]
    columns: dict[str, Columns]
    batches: tuple[PairBatch, ...]
    metrics: tuple[Metric, ...]
    direction: str
    replacement: Replacement
    budget: int | None

    @property
    def n_examples(self) -> int:
        """In all batches."""
        return sum(map(len, self.batches))

    def shape(self, site: Site) -> tuple[int, int, int, int]:
        """Layers, members, columns, examples of a site's table."""
        return (len(self.layers), len(self.members[site.name]), len(self.columns[site.name].labels), self.n_examples)


def plan_sweep(
    model: Model,
    pairs: PairSet | PairBatch,
    site: str | Sequence[str],
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
    seed: int = 0,
    budget: int | None = None,
) -> SweepPlan:
    """Check every argument of `sweep`; see there."""
    spec = model.spec
    if direction is None:
        direction = "denoise" if _is_other_prompt(replacement) else "noise"
    check_direction(direction)
    names = check_sites(site, head_axis=head_axis, heads=heads, neurons=neurons, positions=positions)
    sites = tuple(find_site(name, spec) for name in names)
    judged_by = tuple(metric_for(one, pairs) for one in ([metric] if is_one(metric) else metric))  # type: ignore[union-attr,arg-type]
    if not judged_by:
        raise ConfigError("metric is an empty list; name at least one, such as 'logit_diff'.")
    if len({metric.name for metric in judged_by}) < len(judged_by):
        raise ConfigError(f"two metrics are called {[m.name for m in judged_by]}; give them different names.")
    batches = _parts(model, pairs, budget)
    by_kind = {
        by_member: columns_of(pairs, batches, "all" if by_member and head_axis == "all" else kind)
        for by_member, kind in ((False, axis), (True, head_axis))
        if any(s.by_member is by_member for s in sites)
    }
    if positions is not None:
        wanted = positions if isinstance(positions, int) else list(positions)
        by_kind = {by: found if by and head_axis == "all" else found.at(wanted) for by, found in by_kind.items()}
    resolved = resolve_replacement(model, replacement, pairs=pairs, reference=reference, seed=seed, budget=budget)
    if any(s.name == "pattern" for s in sites):
        check_patterns(resolved, [batch.n_tokens for batch in batches])
    chosen = _chosen("layer", layers, spec.n_layers)
    return SweepPlan(
        model=model,
        sites=sites,
        layers=tuple(range(spec.n_layers)) if chosen is None else chosen,
        members={s.name: _members(model, s, heads, neurons, batches[0]) for s in sites},
        columns={s.name: by_kind[s.by_member] for s in sites},
        batches=batches,
        metrics=judged_by,
        direction=direction,
        replacement=resolved,
        budget=budget,
    )


def check_sites(
    site: str | Sequence[str],
    *,
    axis: str = "auto",
    head_axis: str = "all",
    heads: Iterable[int] | None = None,
    neurons: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
) -> tuple[str, ...]:
    """Check what can be known of a sweep's sites without a model.

    Returns:
        The sites' names, each once.

    Raises:
        UnknownNameError: There is no such site or axis.
        ConfigError: No site is named, or an argument would be ignored.
    """
    names = tuple(dict.fromkeys([site] if isinstance(site, str) else site))
    if not names:
        raise ConfigError("site is an empty list; name at least one, such as 'head_z'.")
    for name in names:
        if name not in SITES:
            raise UnknownNameError.of("site", name, SITES)
    for given in (axis, head_axis):
        if given not in AXES:
            raise UnknownNameError.of("axis", given, AXES)
    sites = tuple(SITES[name] for name in names)
    _check_used(sites, head_axis=head_axis, heads=heads, neurons=neurons, positions=positions)
    return names


def _check_used(
    sites: Sequence[Site],
    *,
    head_axis: str,
    heads: Iterable[int] | None,
    neurons: Iterable[int] | None,
    positions: Iterable[int] | None,
) -> None:
    """Refuse an argument that none of the sites would use.

    Raises:
        ConfigError: One would be ignored; the message says which sites use it.
    """
    streams = any(not site.by_member for site in sites)
    for name, given, used, by in (
        (
            "heads",
            heads is not None,
            any(site.by_head for site in sites),
            [s.name for s in SITES.values() if s.by_head],
        ),
        ("neurons", neurons is not None, any(s.member is Member.NEURON for s in sites), ["neuron"]),
        (
            "positions",
            positions is not None,
            streams or head_axis != "all",
            ["sites of the stream, and others with head_axis (--head-axis) position"],
        ),
    ):
        if given and not used:
            listed = ", ".join(site.name for site in sites)
            raise ConfigError(
                f"{name} (--{name.replace('_', '-')}) has no meaning for site {listed}; it goes with {', '.join(by)}. "
                "Leave it out, or name such a site."
            )


def is_one(metric: MetricLike | Sequence[MetricLike] | None) -> bool:
    """Whether a single metric is asked for."""
    return isinstance(metric, str) or not isinstance(metric, Sequence)


def _is_other_prompt(replacement: str | Replacement) -> bool:
    return (replacement.kind if isinstance(replacement, Replacement) else replacement) == "corrupt"


def _parts(model: Model, pairs: PairSet | PairBatch, budget: int | None) -> tuple[PairBatch, ...]:
    """The batches, cut so that the recorded runs of a part take no more than a pack may, or are of one prompt."""
    parts, alive = list[PairBatch](), recorded_streams(model)
    for batch in batches_for(model, pairs):
        rows_per_pack(model, batch.n_tokens, budget)  # refuses a budget that does not hold one prompt
        floor = bytes_per_row(model, batch.n_tokens, alive)
        parts += fitting(model, batch, max(floor, default_budget(model.device) if budget is None else budget), alive)
    return tuple(parts)


def _members(
    model: Model, site: Site, heads: Iterable[int] | None, neurons: Iterable[int] | None, batch: PairBatch
) -> tuple[int, ...]:
    spec: ModelSpec = model.spec
    if site.member is Member.NONE:
        return (0,)
    if site.member is Member.NEURON:
        width = model.neuron_weight(0).shape[0]
        return _chosen("neuron", neurons, width) or tuple(range(width))
    n = spec.n_kv_heads if site.member is Member.KV_HEAD else spec.n_heads
    kind = "key/value head" if n < spec.n_heads else "head"
    return _chosen(kind, heads, n) or tuple(range(n))


def _chosen(kind: str, given: Iterable[int] | None, n: int) -> tuple[int, ...] | None:
    """Numbers that the user gave, or None.

    Raises:
        ConfigError: One is out of range, stands twice, or there are none.
    """
    if given is None:
        return None
    numbers = [int(number) for number in given] if not isinstance(given, int) else [given]
    if not numbers:
        raise ConfigError(f"no {kind} is chosen; leave the argument out for all {n}.")
    for number in numbers:
        if not 0 <= number < n:
            raise ConfigError(f"{kind} {number} is out of range: there are {n}, numbered 0 to {n - 1}.")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"{kind}s {numbers} name one of them twice.")
    return tuple(numbers)
