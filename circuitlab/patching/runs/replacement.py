"""Replacements of a value that is ablated: the other prompt's, zero, a mean, or the value with noise.

    corrupt        the other run's value (interchange, or resample, ablation)
    zero           0
    mean           the mean over all tokens of a reference set
    mean-position  the mean over the reference prompts of the same length, at the same position
    mean-span      the mean over the tokens of the same span, however long it is in a prompt
    noise          the run's own value + scale * sigma * N(0, 1), sigma the standard deviation of that component over
                   all tokens of the reference set, or of the scored clean prompts
    a function     what it returns for every node (`given_outputs`); for the nodes of circuits and edges

Means are of the clean prompts of the reference set, beginning-of-sequence token included, and none of them may be
scored. A replacement is decided once for a data set; what it puts into a prompt then depends on this prompt alone,
never on its neighbours in a batch.

References:
    Wang et al. 2023, arXiv:2211.00593 (mean ablation over a reference distribution); Meng et al. 2022, arXiv:2202.05262
    (Gaussian noise of three standard deviations, there on embeddings and with one sigma for all components).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab import names
from circuitlab.arguments import checked_fields
from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import batches_for, check_corrupted
from circuitlab.data.pairs import PairSet
from circuitlab.digests import sha256
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.models.protocol import Model, Recording
from circuitlab.models.steps import mlp_input, once_per_kv_head, once_per_query_head
from circuitlab.patching.runs import reference
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.given_outputs import AblationFunction, GivenOutputs
from circuitlab.patching.runs.noise import normal
from circuitlab.patching.runs.reference import Place, Statistics
from circuitlab.resources import DEFAULT, Resources
from circuitlab.summary import Summary

REPLACEMENTS: dict[str, str] = names.ABLATIONS
MEANS = ("mean", "mean-position", "mean-span")
# The need and the way out where pairs have no corrupted prompts.
CORRUPT_NEEDS = (
    "ablation 'corrupt' replaces values by those of the corrupted run",
    "Take ablation 'zero', 'noise' or a mean (--ablation zero)",
)
# As in Meng et al. 2022.
NOISE_SCALE = 3.0
ReplacementValues = Callable[[Place, Tensor], Tensor]


@checked_fields
@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Replacement(Summary):
    """One way to take a value away; `resolve_replacement` fills in what was left out.

    Attributes:
        kind: A name of `REPLACEMENTS`; for a function what it is called.
        statistics: The means, or for noise the standard deviations; measured when the replacement is resolved.
        seed: Of the noise; the caller's by default.
        scale: Standard deviations of the noise.
        function: Of (model, batch of one prompt length), returns by node name what takes the place of the node's
            output, `[batch, seq, d_model]`, for every node that writes.
        outputs: What it returned; called when the replacement is resolved.

    Raises:
        UnknownNameError: No replacement has this name.
        ConfigError: Statistics of another kind, a scale that is not positive, or a function with a built-in's name.

    Example:
        >>> Replacement(kind="noise", scale=2.0).scale
        2.0
    """

    kind: str
    statistics: Statistics | None = None
    seed: int | None = None
    scale: float = NOISE_SCALE
    function: AblationFunction | None = None
    outputs: GivenOutputs | None = None

    def __post_init__(self) -> None:
        if self.function is not None and self.kind in REPLACEMENTS:
            raise ConfigError(f"ablation {self.kind!r} is built in. Give the function another name.")
        if self.function is None and self.kind not in REPLACEMENTS:
            raise UnknownNameError.of("replacement", self.kind, REPLACEMENTS)
        if self.statistics is not None and self.statistics.kind != self.kind:
            raise ConfigError(
                f"replacement {self.kind!r} cannot use statistics of {self.statistics.kind!r}. Leave them out and give "
                "reference=."
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(
                f"scale is {self.scale}; noise takes a positive number of standard deviations, 3 by default."
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that its values depend on."""
        known = self.statistics or self.outputs
        measured = "" if known is None else known.digest()
        return sha256(repr((self.kind, self.seed, self.scale, measured)))


# What every argument `ablation` takes.
AblationLike = str | Replacement | AblationFunction


def as_replacement(ablation: AblationLike) -> Replacement:
    """The replacement of this name, by this function, or itself.

    Returns:
        The replacement.

    Raises:
        UnknownNameError: No replacement has this name.
        ConfigError: A function is called as a built-in replacement.
    """
    if isinstance(ablation, Replacement):
        return ablation
    if isinstance(ablation, str):
        return Replacement(kind=ablation)
    return Replacement(kind=str(getattr(ablation, "__name__", type(ablation).__name__)), function=ablation)


def needs_reference(ablation: AblationLike) -> bool:
    """Whether means or deviations are still to be measured, on prompts that are not scored.

    Returns:
        Whether they are.
    """
    wanted = as_replacement(ablation)
    return wanted.statistics is None and wanted.kind in (*MEANS, "noise")


def resolve_replacement(
    model: Model,
    replacement: AblationLike,
    *,
    pairs: PairSet | PairBatch,
    means_of: PairSet | PairBatch | None,
    seed: int,
    resources: Resources = DEFAULT,
) -> Replacement:
    """Check a replacement against the prompts that will be scored, and measure what it needs.

    Args:
        model: A loaded model.
        replacement: A name, a function, or a `Replacement`; one that was resolved before is not measured again.
        pairs: What will be scored.
        means_of: Prompts to take means of (their clean ones); required by means, optional for noise.
        seed: Of the noise, unless the replacement has one.
        resources: Bytes that a run may take.

    Returns:
        The replacement with all that `replaced` needs.

    Raises:
        UnknownNameError: No replacement has this name.
        ConfigError: "corrupt" without corrupted prompts; a mean without a reference set; a reference set that is not
            used, or shares prompts with the scored ones, or lacks a length or a span of theirs; statistics of another
            model.
    """
    wanted = as_replacement(replacement)
    if wanted.kind == "corrupt":
        check_corrupted(pairs, *CORRUPT_NEEDS)
    _check_use(model, wanted, means_of)
    if wanted.function is not None:
        given = GivenOutputs(wanted.kind, wanted.function, model, batches_for(model, pairs, whole_answers=True))
        return replace(wanted, outputs=given)
    if wanted.kind in MEANS:
        _check_prompts(model, wanted, pairs, means_of)
        if wanted.statistics is None and means_of is not None:
            return replace(wanted, statistics=reference.measure_means(model, means_of, wanted.kind, resources))
    if wanted.kind == "noise":
        given = wanted.statistics
        measured = given or reference.measure_deviations(model, pairs if means_of is None else means_of, resources)
        return replace(wanted, statistics=measured, seed=seed if wanted.seed is None else wanted.seed)
    return wanted


@torch.no_grad()
def replaced(model: Model, replacement: Replacement, baseline: Baseline, run: Recording) -> Recording:
    """Every activation of a run as the replacement has it, each independently of all others.

    Args:
        model: The model.
        replacement: Resolved for the data set that the batch is of.
        baseline: The batch.
        run: The run that is patched: the baseline's clean or corrupted one.

    Returns:
        Values only, no run: its parts do not follow from each other. Tensors may share memory between examples, so
        never write into them. Means of attention patterns are over the reference prompts of the same length, and NaN
        where there are none (`check_patterns` refuses that beforehand); noise leaves keys alone that the query does
        not see, and patterns with noise do not sum to 1. A stream in the middle of a block, `resid_pre + attn_out`, has
        the noise of both.
    """
    if replacement.kind == "corrupt":
        return _other(baseline, run)
    replace_with = replacement_values(model, replacement, baseline.batch)
    layered = {
        name: tuple(replace_with((name, layer), recorded) for layer, recorded in enumerate(getattr(run, name)))
        for name in (*reference.BY_TOKEN, "pattern")
    }
    return Recording(**layered, resid_final=replace_with(reference.FINAL, run.resid_final))


@torch.no_grad()
def replaced_hidden(
    model: Model, replacement: Replacement, baseline: Baseline, run: Recording, layer: int
) -> Float[Tensor, "batch seq neuron"]:
    """The neurons of an MLP as the replacement has them; arguments as of `replaced`.

    Returns:
        The values of the neurons at every token.
    """
    shown = _other(baseline, run) if replacement.kind == "corrupt" else run
    recorded = model.mlp_hidden(layer, mlp_input(model, shown, layer))
    return (
        recorded
        if replacement.kind == "corrupt"
        else replacement_values(model, replacement, baseline.batch)((reference.HIDDEN, layer), recorded)
    )


def check_patterns(replacement: Replacement, lengths: Iterable[int]) -> None:
    """Refuse means of attention patterns for prompts of a length that the reference set does not have.

    Raises:
        ConfigError: There is none of this length.
    """
    if replacement.kind in MEANS and replacement.statistics is not None:
        there = replacement.statistics.patterns
        if missing := sorted(set(lengths) - set(there)):
            raise ConfigError(
                f"replacement {replacement.kind!r}: scored prompts of {missing} tokens, reference prompts of "
                f"{sorted(there)}. A mean attention pattern is position by position, so it needs reference prompts of "
                "the same length; give such prompts, or sweep another site."
            )


def _other(baseline: Baseline, run: Recording) -> Recording:
    assert run is baseline.clean or run is baseline.corrupt, "the other run of a run that is not the baseline's"
    return baseline.corrupt if run is baseline.clean else baseline.clean


def replacement_values(model: Model, replacement: Replacement, batch: PairBatch) -> ReplacementValues:
    """Of an activation and the run's own value `[batch, ...]`, its replacement; for all names but "corrupt".

    Returns:
        The function; its values have the shape of the run's own.
    """
    assert replacement.function is None, "it gives outputs of nodes alone"
    if replacement.kind == "zero":
        return lambda _place, recorded: recorded.new_zeros(()).expand(recorded.shape)
    assert replacement.statistics is not None, "resolve_replacement comes first"
    if replacement.kind == "noise":
        return _noise(model, replacement, replacement.statistics, batch)
    return _means(replacement.statistics, batch)


def _means(statistics: Statistics, batch: PairBatch) -> ReplacementValues:
    rows = statistics.rows(batch)
    patterns = statistics.patterns.get(batch.n_tokens)

    def values(place: Place, recorded: Tensor) -> Tensor:
        name, layer = place
        if name != "pattern":
            return statistics.tables[place][rows]
        mean = recorded.new_full((), math.nan) if patterns is None else patterns[layer]
        return mean.expand(recorded.shape)

    return values


def _noise(model: Model, replacement: Replacement, statistics: Statistics, batch: PairBatch) -> ReplacementValues:
    assert replacement.seed is not None, "resolve_replacement comes first"
    seed = replacement.seed

    def values(place: Place, recorded: Tensor) -> Tensor:
        sigma = replacement.scale * statistics.tables[place][0]
        if place[0] == "pattern":
            return recorded + sigma[:, None, None] * normal(recorded, seed, place, batch.index) * (recorded != 0)
        if place[0] not in ("k", "v"):
            return recorded + sigma * normal(recorded, seed, place, batch.index)
        # One draw for each key/value head that the model has, however many query heads read it.
        once = normal(once_per_kv_head(model.spec, recorded), seed, place, batch.index)
        return recorded + sigma * once_per_query_head(model.spec, once)

    return values


def _check_use(model: Model, wanted: Replacement, means_of: PairSet | PairBatch | None) -> None:
    """Refuse a reference set that is missing, or that would be ignored; and statistics of another model."""
    if (wanted.kind in ("corrupt", "zero") or wanted.function is not None) and means_of is not None:
        raise ConfigError(
            f"replacement {wanted.kind!r} uses no reference set, but reference= is given. Leave it out, or take one of "
            f"{', '.join(MEANS)}."
        )
    if wanted.statistics is not None:
        if means_of is not None:
            raise ConfigError(
                f"this replacement {wanted.kind!r} has its statistics already, but reference= is given too. Leave one "
                "of them out."
            )
        if wanted.statistics.spec != model.spec:
            raise ConfigError(
                f"the statistics of replacement {wanted.kind!r} are of model {wanted.statistics.spec.name!r}, not of "
                f"{model.spec.name!r}. Leave them out and give reference=."
            )
    elif wanted.kind in MEANS and means_of is None:
        raise ConfigError(
            f"replacement {wanted.kind!r} needs a reference set to take means of. Give reference=, pairs that are not "
            "scored, such as the other split of the task."
        )


def _check_prompts(
    model: Model, wanted: Replacement, pairs: PairSet | PairBatch, means_of: PairSet | PairBatch | None
) -> None:
    """Refuse means of scored prompts, and means that the scored prompts' tokens have no part in."""
    scored = batches_for(model, pairs, whole_answers=True)
    if means_of is None:
        assert wanted.statistics is not None
        labels, prompts = set(wanted.statistics.labels), wanted.statistics.prompts
    else:
        averaged = batches_for(model, means_of, whole_answers=True)
        if wanted.kind == "mean-span":
            _check_spans(averaged, "the reference pairs")
        labels = {label for batch in averaged for label in reference.token_groups(wanted.kind, batch)[0]}
        prompts = reference.prompts_of(averaged)
    if wanted.kind == "mean-span":
        _check_spans(scored, "the scored pairs")
    _check_apart(pairs, scored, prompts)
    missing = {label for batch in scored for label in reference.token_groups(wanted.kind, batch)[0]} - labels
    if missing and wanted.kind == "mean-position":
        ours, theirs = ({label[0] for label in found if isinstance(label, tuple)} for found in (missing, labels))
        raise ConfigError(
            f"replacement 'mean-position': scored prompts of {sorted(ours)} tokens, reference prompts of "
            f"{sorted(theirs)}. Positions line up among prompts of one length only; give a reference set of the same "
            "lengths, or take 'mean-span'."
        )
    if missing:
        raise ConfigError(
            f"replacement 'mean-span': the scored prompts have tokens in {sorted(map(str, missing))}, the reference "
            f"prompts in {sorted(map(str, labels))} only. Give a reference set of the same task, or take 'mean'."
        )


def _check_spans(batches: Sequence[PairBatch], whose: str) -> None:
    for batch in batches:
        if not batch.spans:
            raise ConfigError(
                f"replacement 'mean-span' needs named spans, but {whose} carry none. Name spans in the task, or take "
                "'mean' or 'mean-position'."
            )


def _check_apart(
    pairs: PairSet | PairBatch, scored: Sequence[PairBatch], averaged: Collection[tuple[int, ...]]
) -> None:
    """Means of prompts that are scored carry the very values that are to be taken away."""
    shared = dict[int, str]()
    for batch in scored:
        for side in reversed(batch.sides):
            which = {"corrupt": "corrupted", "clean": "clean"}[side]
            for place, prompt in zip(batch.places.tolist(), batch.prompts(side), strict=True):
                if prompt in averaged:
                    shared[place] = which
    if not shared:
        return
    place, n = min(shared), sum(batch.n_pairs for batch in scored)
    pair = pairs[place] if isinstance(pairs, PairSet) else None
    text = f" ({pair.clean if shared[place] == 'clean' else pair.corrupt!r})" if pair else ""
    raise ConfigError(
        f"{len(shared)} of {n} scored pairs have a prompt that is in the reference set too, the first is the "
        f"{shared[place]} prompt of pair {place}{text}. Means come from prompts that are not scored: give other pairs "
        "as reference=."
    )
