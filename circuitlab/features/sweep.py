"""Patch features: one feature at a time gets its value from the other run, and only what follows is run.

A feature of value f adds `f W_dec` to what the autoencoder reconstructs. With the error term kept, giving it another
value adds the difference times its decoder row, at its own tokens: a delta like that of any other site.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.batching import Pairs, check_answers, check_corrupted
from circuitlab.errors import ConfigError
from circuitlab.features.autoencoder import Autoencoder
from circuitlab.features.place import Differences, activation, added, chosen_features, differences, fitted, recorded
from circuitlab.metrics import MetricLike
from circuitlab.models.changes import Change
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.grid import Grid
from circuitlab.patching.runs.baseline import Baseline, judge_all
from circuitlab.patching.runs.packing import Packer, rows_at_once
from circuitlab.patching.sweeps.cells import cells_of, run_cells, window
from circuitlab.patching.sweeps.patches import Patches, Runs
from circuitlab.patching.sweeps.plan import SweepPlan, plan_sweep
from circuitlab.patching.sweeps.sites import SITES, Member, Site, enters_at
from circuitlab.progress import Progress, callback

SITE = "feature"
Table = Float[np.ndarray, "feature column example"]


@model_function
def sweep_features(
    model: Model,
    autoencoder: Autoencoder,
    pairs: Pairs,
    *,
    features: Iterable[int] | None = None,
    direction: str = "denoise",
    metric: MetricLike | None = None,
    axis: str = "auto",
    positions: Iterable[int] | None = None,
    normalise: bool = True,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress | bool | None = None,
) -> Grid:
    """Give every feature, each alone, its value from the other run, with the error term kept.

    Args:
        model: A loaded model.
        autoencoder: Of this model.
        pairs: A split of a task, or a `PairBatch`.
        features: Only these; by default all that differ between clean and corrupted run anywhere.
        direction: "denoise" puts clean values into the corrupted run, "noise" corrupted values into the clean run.
        metric: What is measured at the answer position; by default the metric of the task that drew the pairs,
            else `logit_diff`.
        axis: "position", "span", "all" (at all tokens at once), or "auto" (position where prompts line up).
        positions: Only these positions.
        normalise: Give `values` on the scale 0 = corrupted, 1 = clean.
        seed: Of intervals and p-values.
        budget: Bytes that a packed run may take; a share of what is free by default.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total) after each batch of prompts.

    Returns:
        A grid of site "feature", features by positions or spans; features alone for axis "all". Where an autoencoder
        normalises its input, a feature has the scale of the run that is patched.

    Raises:
        ConfigError: The autoencoder does not fit the model; a feature or position is out of range; no feature differs.
        UnknownNameError: No such direction, metric or axis, or the model has no such site.
        MetricError: The metric gives the wrong shape or NaN, or does not distinguish the two runs.
    """
    sae = fitted(model, autoencoder)
    wanted = None if features is None else chosen_features(sae, features)
    check_answers(pairs, model.spec)
    check_corrupted(pairs, "the feature's values in clean and corrupted run are compared")
    experiment = Experiment(
        model, pairs, metric, seed=seed, allow_weak_gap=True, budget=budget,
        progress=callback(progress),
    )  # fmt: skip
    plan = plan_sweep(experiment, "resid_pre", direction=direction, axis=axis, positions=positions)
    experiment.prompt_gap  # noqa: B018 - refuses a metric that does not distinguish the two runs
    clean, corrupt, members = experiment.clean, experiment.unit_end, _members(experiment, sae, wanted)
    columns = plan.columns["resid_pre"]
    untouched = corrupt if direction == "denoise" else clean
    table = np.broadcast_to(untouched, (len(members), len(columns.labels), experiment.n_examples)).copy()
    packer = Packer()
    for number, batch in enumerate(plan.experiment.batches):
        absent = ~columns.masks[number].any(2).cpu().numpy()  # [column, example of the batch]
        column, example = absent.nonzero()
        table[:, column, batch.index.cpu().numpy()[example]] = np.nan
        _sweep_batch(plan, sae, number, members, packer, table)
        experiment.progress("features", number + 1, len(plan.experiment.batches))
    whole = columns.labels == ("all",)
    names = tuple(map(str, members))
    return Grid(
        site=SITE,
        direction=plan.direction,
        metric=plan.metrics[0].name,
        unit=plan.metrics[0].unit,
        column_kind=SITE if whole else columns.kind,
        columns=names if whole else columns.labels,
        per_example=table[None, :, 0] if whole else table[None],
        clean=clean,
        corrupt=corrupt,
        normalised=normalise,
        seed=seed,
        layers=(sae.layer,),
        member_kind=None if whole else SITE,
        members=() if whole else names,
        numbers=None if whole else columns.numbers,
    )


def _members(experiment: Experiment, sae: Autoencoder, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """The features that are swept: every batch has to be seen before the first cell."""
    if wanted is not None:
        return wanted
    differ = torch.zeros(sae.n_features, dtype=torch.bool, device=sae.w_enc.device)
    for baseline in experiment.baselines:
        differ[differences(experiment.model, sae, baseline).feature] = True
    members = tuple(differ.nonzero().flatten().tolist())
    if not members:
        raise ConfigError(
            f"no feature of autoencoder {sae.name!r} differs between the clean and the corrupted runs; name features."
        )
    return members


def _sweep_batch(
    plan: SweepPlan, sae: Autoencoder, number: int, members: tuple[int, ...], packer: Packer, table: Table
) -> None:
    """Fill the cells of one batch."""
    model, batch = plan.experiment.model, plan.experiment.batches[number]
    baseline = plan.experiment.recordings.baseline(batch)
    denoise = plan.direction == "denoise"
    base, source = (baseline.corrupt, baseline.clean) if denoise else (baseline.clean, baseline.corrupt)
    runs = Runs(
        model=model, baseline=baseline, base=base, source=source, hidden=lambda _layer: base.resid_final,
        ablation=plan.experiment.replacement,
    )  # fmt: skip
    patches = feature_patches(runs, sae, members, plan.columns["resid_pre"].masks[number])
    block = enters_at(patches.site, sae.layer)
    inside = window(runs, block, from_difference=True)
    cells = cells_of([patches], inside)
    where = batch.index.cpu().numpy()

    def pack(rows: slice) -> None:
        some = cells.take(rows)
        final = run_cells(runs, some, block, inside)
        (values,) = judge_all(model, plan.metrics, baseline, final, some.example)
        member, column, example = (t.cpu().numpy() for t in (some.member, some.column, some.example))
        table[member, column, where[example]] = values.double().cpu().numpy()

    packer.run(len(cells), rows_at_once(model, batch.n_tokens, plan.experiment.resources), pack)


def feature_patches(runs: Runs, sae: Autoencoder, members: tuple[int, ...], tokens: torch.Tensor) -> Patches:
    """The cells of some features: by how much the stream differs where a feature has its other value.

    Args:
        runs: The run that is patched and the one that values are taken from.
        sae: The autoencoder, on the model's device.
        members: The features.
        tokens: The tokens of each column, `[column, batch, seq]`.

    Returns:
        For every feature and token, the change of the stream: source run minus patched run.
    """
    sign = 1 if runs.source is runs.baseline.clean else -1
    change = _table(differences(runs.model, sae, runs.baseline), members, runs.baseline) * sign
    return Patches(
        site=Site(SITE, SITES[sae.site].entry, Member.NEURON, "one feature of an autoencoder"),
        layer=sae.layer,
        columns=range(len(tokens)),
        members=members,
        live=change != 0,
        tokens=tokens,
        delta=_delta(runs, sae, members, change),
    )


def _table(found: Differences, members: tuple[int, ...], baseline: Baseline) -> Float[Tensor, "feature batch seq"]:
    """The changes of chosen features."""
    chosen = torch.tensor(members, device=found.feature.device)
    order = chosen.argsort()
    place = torch.searchsorted(chosen[order], found.feature).clamp_max(len(chosen) - 1)
    here = chosen[order][place] == found.feature
    table = found.change.new_zeros(len(members), *baseline.batch.clean.shape)
    table[order[place[here]], found.example[here], found.position[here]] = found.change[here]
    return table


def _delta(
    runs: Runs, sae: Autoencoder, members: tuple[int, ...], change: Float[Tensor, "feature batch seq"]
) -> Change:
    model, base, site, layer = runs.model, runs.base, sae.site, sae.layer
    rows = sae.w_dec[torch.tensor(members, device=sae.w_dec.device)]
    value = activation(model, base, site, layer)
    scale = sae.scaled(value).scale
    stands_for = recorded(model, base, site, layer)

    def delta(member: Int[Tensor, " token"], example: Tensor, position: Tensor) -> Float[Tensor, "token d_model"]:
        difference = change[member, example, position][:, None] * rows[member] * scale[example, position]
        if site not in ("head_z", "neuron"):
            return difference.to(value)
        with_it = added(model, site, layer, value[example, position] + difference.to(value))
        return with_it - stands_for[example, position]

    return delta
