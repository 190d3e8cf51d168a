"""What a sweep is going to do, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from circuitlab.data.batch import PairBatch
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import ModelSpec
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import check_direction
from circuitlab.patching.runs.columns import AXES, Columns, columns_of
from circuitlab.patching.runs.replacement import Replacement, check_patterns
from circuitlab.patching.sweeps.sites import SITES, Member, Site, find_site, named_site


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SweepPlan:
    """A checked request.

    Attributes:
        experiment: The pairs and what is put in.
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

    @property
    def model(self) -> Model:
        """The model."""
        return self.experiment.model

    @property
    def batches(self) -> tuple[PairBatch, ...]:
        """The prompts, by length, in parts that fit into memory."""
        return self.experiment.batches

    @property
    def replacement(self) -> Replacement:
        """What is put in."""
        return self.experiment.replacement

    def shape(self, site: Site) -> tuple[int, int, int, int]:
        """Layers, members, columns, examples of a site's table."""
        return (
            len(self.layers),
            len(self.members[site.name]),
            len(self.columns[site.name].labels),
            self.experiment.n_examples,
        )


def plan_sweep(
    experiment: Experiment,
    site: str | Site | Sequence[str | Site],
    *,
    metrics: Sequence[Metric] | None = None,
    direction: str | None = None,
    axis: str = "auto",
    head_axis: str = "all",
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    neurons: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
) -> SweepPlan:
    """Check every argument of `sweep`; see there."""
    model, pairs, batches = experiment.model, experiment.pairs, experiment.batches
    spec = model.spec
    if direction is None:
        direction = "denoise" if experiment.replacement.kind == "corrupt" else "noise"
    check_direction(direction)
    asked = check_sites(site, head_axis=head_axis, heads=heads, neurons=neurons, positions=positions)
    sites = tuple(find_site(one, spec) for one in asked)
    if experiment.replacement.function is not None:
        raise ConfigError(
            f"ablation {experiment.replacement.kind!r} is a function: it says what nodes write, not what sites of a "
            "sweep hold. Take one of the built-in replacements, or patch edges."
        )
    by_kind = {
        by_member: columns_of(pairs, batches, "all" if by_member and head_axis == "all" else kind)
        for by_member, kind in ((False, axis), (True, head_axis))
        if any(s.by_member is by_member for s in sites)
    }
    if positions is not None:
        wanted = positions if isinstance(positions, int) else list(positions)
        by_kind = {by: found if by and head_axis == "all" else found.at(wanted) for by, found in by_kind.items()}
    if any(s.name == "pattern" for s in sites):
        check_patterns(experiment.replacement, [batch.n_tokens for batch in batches])
    chosen = _chosen("layer", layers, spec.n_layers)
    return SweepPlan(
        experiment=experiment,
        sites=sites,
        layers=tuple(range(spec.n_layers)) if chosen is None else chosen,
        members={s.name: _members(model, s, heads, neurons, batches[0]) for s in sites},
        columns={s.name: by_kind[s.by_member] for s in sites},
        metrics=(experiment.metric,) if metrics is None else tuple(metrics),
        direction=direction,
    )


def check_sites(
    site: str | Site | Sequence[str | Site],
    *,
    axis: str = "auto",
    head_axis: str = "all",
    heads: Iterable[int] | None = None,
    neurons: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
) -> tuple[Site, ...]:
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
    for given in (axis, head_axis):
        if given not in AXES:
            raise UnknownNameError.of("axis", given, AXES)
    _check_used(sites, head_axis=head_axis, heads=heads, neurons=neurons, positions=positions)
    return sites


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
