"""Sweep a site: put one run's value into the other run, cell by cell, and run only what comes after.

Per layer and site:
1. Every cell's patched stream is built from the two recorded runs. An attention patch is a delta to the stream in the
   middle of a block, whose MLP runs again; an MLP or residual patch is a delta between blocks.
2. Cells that change nothing (a prefix that both prompts share) are known without a run.
3. The rest are packed to a memory budget and only the blocks behind the patch are run.
4. The metric is taken at the answer position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch, batches_of
from circuitlab.data.pairs import PairSet
from circuitlab.errors import UnknownNameError
from circuitlab.metrics import Metric, resolve
from circuitlab.metrics.base import MetricFunction
from circuitlab.models.protocol import Model, Recording
from circuitlab.patching.baseline import Baseline, at_answer, check_gap, judge, record_baseline
from circuitlab.patching.columns import Columns, columns_of
from circuitlab.patching.grid import Grid
from circuitlab.patching.packing import fitting, packs, rows_per_pack
from circuitlab.patching.sites import Site, find_site, n_columns
from circuitlab.progress import Progress, silent

DIRECTIONS = ("denoise", "noise")


def sweep(
    model: Model,
    pairs: PairSet | PairBatch,
    site: str | Sequence[str] = "head_z",
    *,
    direction: str = "denoise",
    metric: str | Metric | MetricFunction = "logit_diff",
    axis: str = "auto",
    normalise: bool = True,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress = silent,
) -> Grid | dict[str, Grid]:
    """Patch every cell of one or several sites, each alone.

    Args:
        model: A loaded model.
        pairs: A split of a task, or a `PairBatch`.
        site: A site, or several; several share the two recorded runs.
        direction: "denoise" puts clean values into the corrupted run, "noise" corrupted ones into the clean run.
        metric: What is measured at the answer position.
        axis: For sites by position: "position", "span" or "auto" (position where prompts line up).
        normalise: Give `values` on the scale 0 = corrupted, 1 = clean.
        seed: Of intervals and p-values.
        budget: Bytes that a packed run may take; a share of what is free by default.
        progress: Called with (step, done, total).

    Returns:
        A `Grid`, or a dict of grids by site name if several were asked for.

    Raises:
        UnknownNameError: No such site (in this model), direction, metric or axis.
        ConfigError: Prompts of different length by position, no spans by span, a budget that holds no prompt.
        MetricError: The metric gives the wrong shape or NaN, or does not tell the two runs apart.
    """
    if direction not in DIRECTIONS:
        raise UnknownNameError.of("direction", direction, DIRECTIONS)
    names = [site] if isinstance(site, str) else list(site)
    sites = [find_site(name, model.spec) for name in names]
    judged_by = resolve(metric)
    # A patch of every cell of a layer is held at once; there are about as many cells as tokens or heads.
    batches = [
        part
        for batch in batches_of(pairs, model.device)
        for part in fitting(model, batch, budget, 2 * max(batch.n_tokens, model.spec.n_heads))
    ]
    by_position = any(not s.by_head for s in sites)
    columns = columns_of(pairs, batches, axis) if by_position else None
    job = _Job(model, judged_by, direction, budget, columns)
    n_examples = sum(map(len, batches))
    raw = {s.name: job.empty(s, n_examples) for s in sites}
    clean, corrupt = torch.zeros(2, n_examples, dtype=torch.float64)
    steps, total = 0, len(batches) * len(sites) * model.spec.n_layers
    baselines = [record_baseline(model, batch) for batch in batches]
    for baseline in baselines:
        where = baseline.batch.index.cpu()
        clean[where], corrupt[where] = (values.double().cpu() for values in baseline.gap(judged_by))
    check_gap(judged_by, clean.numpy(), corrupt.numpy())
    for b, baseline in enumerate(baselines):
        where = baseline.batch.index.cpu()
        for s in sites:
            for layer in range(model.spec.n_layers):
                raw[s.name][layer, :, where.numpy()] = job.layer(s, layer, baseline, b).T
                steps += 1
                progress("sweep", steps, total)
    grids = {
        s.name: Grid(
            site=s.name,
            direction=direction,
            metric=judged_by.name,
            unit=judged_by.unit,
            column_kind="head" if s.by_head else columns.kind,  # type: ignore[union-attr]
            columns=tuple(map(str, range(n_columns(s, model.spec)))) if s.by_head else columns.labels,  # type: ignore[union-attr]
            per_example=raw[s.name],
            clean=clean.numpy(),
            corrupt=corrupt.numpy(),
            normalised=normalise,
            seed=seed,
        )
        for s in sites
    }
    return grids[names[0]] if isinstance(site, str) else grids


@dataclass(frozen=True, slots=True)
class _Job:
    """What all cells of a sweep have in common."""

    model: Model
    metric: Metric
    direction: str
    budget: int | None
    columns: Columns | None

    def empty(self, site: Site, n_examples: int) -> np.ndarray:
        width = n_columns(site, self.model.spec) if site.by_head else len(self.columns.labels)  # type: ignore[union-attr]
        return np.full((self.model.spec.n_layers, width, n_examples), np.nan)

    def runs(self, baseline: Baseline) -> tuple[Recording, Recording]:
        """The run that is patched, and the run whose values are put in."""
        if self.direction == "denoise":
            return baseline.corrupt, baseline.clean
        return baseline.clean, baseline.corrupt

    def layer(self, site: Site, layer: int, baseline: Baseline, batch_number: int) -> np.ndarray:
        """Metric of every cell of one layer, `[column, example]`."""
        base, source = self.runs(baseline)
        untouched = baseline.gap(self.metric)[1 if self.direction == "denoise" else 0]
        if site.by_head:
            patches = _head_deltas(self.model, site, layer, base, source, baseline)
            absent = None
        else:
            mask = self.columns.masks[batch_number]  # type: ignore[union-attr]
            patches = _position_deltas(site, layer, base, source, mask)
            absent = ~mask.any(2)
        # Before the first token that differs both runs are the same, whatever the last bits of their kernels say.
        differ = (baseline.batch.clean != baseline.batch.corrupt).cumsum(1) > 0
        patches = patches * differ[..., None]
        values = untouched.double()[None].repeat(len(patches), 1)
        live = (patches != 0).flatten(2).any(2).nonzero()  # [row, (column, example)]
        for pack in packs(len(live), rows_per_pack(self.model, baseline.batch.n_tokens, self.budget)):
            column, example = live[pack].T
            stream = _enter(self.model, site, layer, base, patches[column, example], example)
            final = self.model.run_blocks(stream, _first_block(site, layer), baseline.frame)
            at = at_answer(final, baseline.batch.answer_at[example])
            values[column, example] = judge(self.model, self.metric, baseline, at, example).double()
        if absent is not None:
            values[absent] = torch.nan
        return values.cpu().numpy()


def _first_block(site: Site, layer: int) -> int:
    return layer if site.name == "resid_pre" else layer + 1


def _middle(run: Recording, layer: int) -> Tensor:
    return run.resid_pre[layer] + run.attn_out[layer]


def _position_deltas(
    site: Site, layer: int, base: Recording, source: Recording, mask: Tensor
) -> Float[Tensor, "column batch seq d_model"]:
    """What each cell adds to the stream: the difference of the runs, at the cell's tokens only."""
    read: dict[str, Callable[[Recording], Tensor]] = {
        "resid_pre": lambda run: run.resid_pre[layer],
        "resid_mid": lambda run: _middle(run, layer),
        "resid_post": lambda run: run.stream(layer + 1),
        "attn_out": lambda run: run.attn_out[layer],
        "mlp_out": lambda run: run.mlp_out[layer],
    }
    return mask[..., None] * (read[site.name](source) - read[site.name](base))


def _head_deltas(
    model: Model, site: Site, layer: int, base: Recording, source: Recording, baseline: Baseline
) -> Float[Tensor, "column batch seq d_model"]:
    """What each head's patch adds to the stream.

    Heads of a layer do not see each other, so all are patched in one call and each cell takes its own head's z from it.
    """
    q, k, v = base.q[layer], base.k[layer], base.v[layer]
    if site.name == "head_z":
        z = source.z[layer]
    elif site.name == "pattern":
        z = torch.einsum("bhqk,bkhd->bqhd", source.pattern[layer], v)
    else:
        replaced = {"head_q": q, "head_k": k, "head_v": v}
        replaced[site.name] = getattr(source, site.name[-1])[layer]
        z = model.attend(layer, replaced["head_q"], replaced["head_k"], replaced["head_v"], baseline.frame)
    group = model.spec.n_heads // n_columns(site, model.spec)
    return torch.stack(list(_one_group_each(model, layer, base, z, group)))


def _one_group_each(model: Model, layer: int, base: Recording, z: Tensor, group: int) -> Iterator[Tensor]:
    own, changed = base.attn_out[layer], (z != base.z[layer]).any(3)
    for first in range(0, model.spec.n_heads, group):
        heads = slice(first, first + group)
        patched = base.z[layer].clone()
        patched[:, :, heads] = z[:, :, heads]
        delta = model.attn_output(layer, patched) - own
        # Rounding of the projection must not wake tokens that nothing happened to.
        yield delta * changed[:, :, heads].any(2)[..., None]


def _enter(
    model: Model, site: Site, layer: int, base: Recording, delta: Tensor, example: Tensor
) -> Float[Tensor, "row seq d_model"]:
    """The patched stream on entry to the first block that has to run again."""
    in_the_middle = site.by_head or site.name in ("attn_out", "resid_mid")
    if not in_the_middle or model.spec.parallel or not model.spec.has_mlp:
        return base.stream(_first_block(site, layer))[example] + delta
    middle = _middle(base, layer)[example] + delta
    return middle + model.mlp_output(layer, middle)
