"""All four standard sweeps against one forward pass a cell, and against what the machine can do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float

from benchmarks.clock import in_turn
from benchmarks.findings import Finding, Unit, differs, faster, seconds
from benchmarks.models import DIFFER_AT, SEED, Setup
from benchmarks.per_cell import Cells, clean_cache, patched, weights_ask_for_gradients
from benchmarks.rate import TOKENS, block_products
from benchmarks.work import needed_operations
from circuitlab import PairBatch, sweep
from circuitlab.models.bridge import BridgeModel
from circuitlab.patching.grid import Grid, Grids

SITES = ("resid_pre", "attn_out", "mlp_out", "head_z")
# As a share of the clean-corrupted gap.
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-8}


def our_sweeps(model: BridgeModel, batch: PairBatch) -> dict[str, Grid]:
    """The four sites in one call, raw values."""
    grids = sweep(model, batch, site=list(SITES), axis="position", normalise=False)
    assert isinstance(grids, Grids)
    return dict(grids)


def standard_sweeps(
    setup: Setup, *, rounds: int, per_site: int, target: float | None, share: float | None
) -> list[Finding]:
    """Time the sweeps and a sample of cells of TransformerLens in turn, and compare the values.

    Args:
        setup: Model and prompts.
        rounds: Rounds of the clock.
        per_site: Sampled cells of each site.
        target: How many times faster we want to be.
        share: The share of the matmul rate that we want to reach; None leaves the rate out.
    """
    model, batch, bridge = setup.model, setup.batch, setup.model.bridge
    device, spec = str(model.device), model.spec
    cells = sampled_cells(setup, per_site)
    cache = clean_cache(bridge, batch)
    # What the clock runs last is what is compared: no run is spent on the values alone.
    ours: dict[str, Grid] = {}
    theirs: dict[str, np.ndarray] = {}

    def without_gradients() -> None:
        with torch.no_grad():
            theirs.update(patched(bridge, batch, cache, cells))

    def as_booted() -> None:
        with weights_ask_for_gradients(bridge):
            patched(bridge, batch, cache, cells)

    products = {
        f"{n} tokens{by}": block_products(spec.d_model, n, device, model.dtype, ours=bool(by))
        for by in ("", ", as the library multiplies")
        for n in TOKENS
    }
    ways = {
        "ours": lambda: ours.update(our_sweeps(model, batch)),
        "under torch.no_grad": without_gradients,
        "with gradients on": as_booted,
        **({name: product.run for name, product in products.items()} if share is not None else {}),
    }
    timings = in_turn(ways, rounds, device)
    n_cells = spec.n_layers * (3 * batch.n_tokens + spec.n_heads)
    n_sampled = sum(map(len, cells.values()))
    per_cell = {name: timings[name].times(n_cells / n_sampled) for name in ("under torch.no_grad", "with gradients on")}
    quicker = min(per_cell, key=lambda name: per_cell[name].best)
    detail = (
        f"{seconds(timings['ours'])} against {n_cells} cells at {seconds(timings[quicker].times(1 / n_sampled))} "
        f"({quicker}; {seconds(timings[_other(per_cell, quicker)].times(1 / n_sampled))} "
        f"{_other(per_cell, quicker)}), from {n_sampled} of them"
    )
    found = [faster("Sweeps", setup.what, timings["ours"], per_cell[quicker], target=target, detail=detail)]
    if share is not None:
        rates = {name: product.operations / timings[name].best for name, product in products.items()}
        found.append(_share_of_rate(setup, timings["ours"].best, timings["ours"].median, rates, share))
    found.append(_agreement(setup, ours, theirs, cells))
    return found


def values_agree(setup: Setup, per_site: int) -> Finding:
    """Only the comparison of values, on the sampled cells; for float64."""
    with torch.no_grad():
        cells = sampled_cells(setup, per_site)
        theirs = patched(setup.model.bridge, setup.batch, clean_cache(setup.model.bridge, setup.batch), cells)
    return _agreement(setup, our_sweeps(setup.model, setup.batch), theirs, cells)


def sampled_cells(setup: Setup, per_site: int) -> dict[str, Cells]:
    """So many cells of each site, spread over the layers; by position only where the prompts may differ."""
    spec, rng = setup.model.spec, np.random.default_rng(SEED)
    layers = np.linspace(0, spec.n_layers - 1, per_site).round().astype(int).tolist()
    found = {}
    for site in SITES:
        first, last = (0, spec.n_heads) if site == "head_z" else (min(DIFFER_AT), setup.batch.n_tokens)
        found[site] = [(layer, int(rng.integers(first, last))) for layer in layers]
    return found


def as_share_of_gap(
    ours: Float[np.ndarray, "_ example"], theirs: Float[np.ndarray, "_ example"], clean: np.ndarray, corrupt: np.ndarray
) -> float:
    """The largest difference in any cell of any prompt over the clean-corrupted gap (means over prompts)."""
    return float(np.abs(ours - theirs).max() / abs(clean.mean() - corrupt.mean()))


def _agreement(
    setup: Setup, ours: Mapping[str, Grid], theirs: Mapping[str, np.ndarray], cells: Mapping[str, Cells]
) -> Finding:
    dtype = setup.model.dtype
    worst = {
        site: as_share_of_gap(
            np.stack([ours[site].per_example[cell] for cell in cells[site]]),
            theirs[site],
            ours[site].clean,
            ours[site].unit_end,
        )
        for site in SITES
    }
    most = max(worst, key=lambda site: worst[site])
    name = str(dtype).removeprefix("torch.")
    return differs(
        f"Largest difference to TransformerLens in {name}, share of the gap",
        setup.what,
        worst[most],
        target=CLOSE[dtype],
        detail=f"{sum(map(len, cells.values()))} cells, the largest in {most}",
    )


def _share_of_rate(setup: Setup, best: float, median: float, rates: Mapping[str, float], share: float) -> Finding:
    needed, rate = needed_operations(setup.size, DIFFER_AT), max(rates.values())
    listed = ", ".join(f"{value / 1e9:.0f} at {name}" for name, value in rates.items())
    return Finding(
        what="Share of the matmul rate that the sweeps reach",
        on=setup.what,
        value=needed / best / rate,
        in_the_middle=needed / median / rate,
        unit=Unit.PERCENT,
        target=share,
        detail=f"{needed / 1e12:.3g} TFLOP needed; GFLOP/s of the products of a block: {listed}",
    )


def _other(ways: Mapping[str, object], name: str) -> str:
    return next(way for way in ways if way != name)
