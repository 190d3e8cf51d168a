"""Architecture by quantity: the largest difference between circuitlab and an independent way to the same number.

`python -m benchmarks.parity` writes docs/parity.md. Models are the random ones of the tests, in float64; oracles are
`transformer_lens` where it has the quantity and takes the model, and plain hooks (`benchmarks.oracles`) otherwise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import oracles, real_parity
from benchmarks.eap import eap_scores
from benchmarks.per_cell import WAYS, clean_cache, logit_diff, patched
from benchmarks.table import as_markdown, write_generated
from benchmarks.theirs import RefusedError, attribution, faithfulness
from circuitlab import PairBatch, score_edges, sweep
from circuitlab.errors import UnknownNameError
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.metrics import resolve
from circuitlab.models.bridge import BridgeModel
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.gradients.metric_gradients import Gradients, metric_gradients
from circuitlab.patching.grid import Grid

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

import architectures  # noqa: E402  # pyright: ignore[reportMissingImports]

PAGE = ROOT / "docs" / "parity.md"
NAMES: tuple[str, ...] = (*architectures.ARCHITECTURES, *architectures.NATIVE)
SWEEPS = (
    *("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"),
    *("head_z", "head_q", "head_k", "head_v", "pattern"),
)
FINER = (*(f"{site} by position" for site in SWEEPS[5:]), "neuron")
# Neurons of each layer that are compared.
NEURONS = range(16)
# Kept edges of the circuits that are compared, as shares of all.
SHARES = (0.8, 0.5, 0.3, 0.15)
# Pairs for TransformerLens's tools: they take one at a time, and every position has edges of its own.
FEW = 2
ARCHITECTURE, TOLERANCE = "Architecture", "Tolerance"
NOT_THERE = "none"
REFUSED = "refused"
METRIC = resolve("logit_diff")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A column.

    Attributes:
        name: What the column is called.
        oracle: The independent way, in words.
        difference: The largest difference on an architecture, as a share.
        of: What it is a share of.
    """

    name: str
    oracle: str
    difference: Callable[[str], float]
    of: str = "gap"


def quantities() -> tuple[Quantity, ...]:
    """Every column, sweeps first."""
    found = []
    for site in (*SWEEPS, *FINER):
        oracle = f"`transformer_lens.patching.{WAYS[site].function}`" if site in WAYS else "`oracles.resid_mid`"
        found.append(Quantity(site, oracle, lambda name, site=site: sweep_difference(name, site)))
    tools = "`transformer_lens.tools.analysis.attribution_patching"
    return (
        *found,
        Quantity("exact edges", "`oracles.edge_effects`, one pass per edge", exact_difference),
        Quantity("circuits", "`oracles.circuit_run`, node by node", circuit_difference),
        Quantity("reader gradients", "`oracles.reader_gradients`, autograd", reader_difference, "largest gradient"),
        Quantity("writer gradients", "`oracles.writer_gradients`, autograd", writer_difference, "largest gradient"),
        Quantity("EAP", "`oracles.eap`, autograd", eap_difference),
        Quantity("circuits, TransformerLens", f"{tools}.faithfulness`", their_circuit_difference),
        Quantity("EAP, TransformerLens", f"{tools}.attribution_patch`", their_eap_difference),
    )


def sweep_difference(name: str, site: str, direction: str = "denoise") -> float:
    """A sweep of one site, every cell of it (of the first neurons). The oracles denoise; the twin test does not."""
    model, batch = _model(name), architectures.pairs()
    of_members = "all" if site in SWEEPS or site == "neuron" else "position"
    neurons = NEURONS if site == "neuron" else None
    grid = sweep(
        model,
        batch,
        site.removesuffix(" by position"),
        direction=direction,
        axis="position",
        head_axis=of_members,
        neurons=neurons,
        normalise=False,
    )
    assert isinstance(grid, Grid)
    ours = grid.per_example
    if site == "resid_mid":
        return _share(name, ours, oracles.resid_mid(_plain(name), batch, model.spec.n_layers))
    cells = list(np.ndindex(ours.shape[:-1]))
    with torch.no_grad():
        theirs = patched(_plain(name), batch, clean_cache(_plain(name), batch), {site: cells})[site]
    return _share(name, ours.reshape(len(cells), -1), theirs)


def exact_difference(name: str) -> float:
    """Every edge of the model."""
    model, layout, batch = _model(name), _layout(name), architectures.pairs()
    edges = list(layout.edges())
    expected = oracles.edge_effects(_written_out(name), layout, batch, edges).mean(1)
    scores = score_edges(model, batch, "exact").values
    return _share(name, np.array([scores[layout.edge_index(edge)] for edge in edges]), expected)


def circuit_difference(name: str) -> float:
    """Random circuits that are not pruned: a run must not rely on it."""
    layout, batch, masks = _layout(name), architectures.pairs(), circuits(_layout(name))
    expected = [oracles.circuit_run(_written_out(name), layout, batch, mask) for mask in masks]
    return _share(name, _circuit_values(name, batch, masks), np.stack(expected))


def their_circuit_difference(name: str) -> float:
    """Pruned circuits, pair by pair."""
    layout, batch = _layout(name), _few()
    masks = np.stack([prune(mask, layout) for mask in circuits(layout)[1:3]])
    expected = [faithfulness(_written_out(name), layout, batch, mask) for mask in masks]
    return _share(name, _circuit_values(name, batch, masks), np.stack(expected))


def reader_difference(name: str) -> float:
    """At every reader's input, in the clean run."""
    theirs = oracles.reader_gradients(_written_out(name), _layout(name), architectures.pairs())
    return float((_gradients(name).readers - theirs).abs().max() / theirs.abs().max())


def writer_difference(name: str) -> float:
    """At every writer's output, in the clean run."""
    theirs = oracles.writer_gradients(_plain(name), _layout(name), architectures.pairs())
    return float((_gradients(name).writers - theirs).abs().max() / theirs.abs().max())


def eap_difference(name: str) -> float:
    """Every edge, gradient at the clean run."""
    batch = architectures.pairs()
    expected = oracles.eap(_written_out(name), _layout(name), batch)
    return _share(name, eap_scores(_model(name), batch).values, expected)


def their_eap_difference(name: str) -> float:
    """Every edge; its gradient is that of the corrupted run, ours of the clean one: swap the prompts, turn the sign."""
    batch = _few()
    expected = attribution(_written_out(name), _layout(name), batch)
    return _share(name, -eap_scores(_model(name), batch.swapped()).values, expected)


def circuits(layout: Layout) -> np.ndarray:
    """Random masks, one for each of `SHARES`."""
    rng, real = np.random.default_rng(0), real_edges(layout)
    return np.stack([real & (rng.random(real.shape) < share) for share in SHARES])


def measured(quantity: Quantity, name: str) -> str:
    """A cell of the table: the difference; or that the model has no such site, or that the oracle refuses it."""
    try:
        difference = quantity.difference(name)
    except UnknownNameError:
        return NOT_THERE
    except RefusedError:
        return REFUSED
    return f"{difference:.0e}" if difference else "0"


def tables(names: Iterable[str], columns: Iterable[Quantity]) -> str:
    """The generated part of the page: two tables of differences, and the oracle of each column."""
    columns = tuple(columns)
    rows = {name: {quantity.name: measured(quantity, name) for quantity in columns} for name in names}
    parts = {
        "Sweeps": [q.name for q in columns if q.name in SWEEPS],
        "Sweeps by head and position, and neurons": [q.name for q in columns if q.name in FINER],
        "Edges, circuits, gradients": [q.name for q in columns if q.name not in (*SWEEPS, *FINER)],
    }
    found = []
    for title, chosen in parts.items():
        body = [[name, f"{_tolerance(name):.0e}", *(row[c] for c in chosen)] for name, row in rows.items()]
        found += [f"### {title}", as_markdown((ARCHITECTURE, TOLERANCE, *chosen), body)]
    oracles = [(q.name, q.oracle, q.of) for q in columns]
    found += ["### Oracles", as_markdown(("Quantity", "Oracle", "Relative to the"), oracles)]
    return "\n\n".join(found)


def main() -> int:
    """Measure everything and write the page."""
    torch.set_num_threads(1)  # products of 32 columns gain nothing from more
    write_generated(PAGE, "parity", tables(NAMES, quantities()))
    write_generated(PAGE, "real parity", real_parity.section())
    print(f"written to {os.path.relpath(PAGE)}")
    return 0


def _model(name: str) -> BridgeModel:
    return architectures.load(name)


def _layout(name: str) -> Layout:
    return Layout.of(_model(name).spec)


@cache
def _plain(name: str) -> Any:
    """The model as a bridge in evaluation mode, which TransformerLens's tools ask for."""
    if name in architectures.NATIVE:  # booted in training mode, and the model of the tests stays as it is
        return architectures.native(**architectures.NATIVE[name]).eval()
    return _model(name).bridge


@cache
def _written_out(name: str) -> Any:
    """The same function with keys and values once a query head, as a bridge of its own."""
    if name in architectures.NATIVE:
        return _plain(name)
    return architectures.booted(name, ungrouped=name in architectures.GROUPED)


@cache
def _gradients(name: str) -> Gradients:
    return metric_gradients(_model(name), architectures.pairs(), METRIC)


def _few() -> PairBatch:
    return architectures.pairs(n=FEW)


def _tolerance(name: str) -> float:
    return architectures.TOLERANCE[name]


@cache
def _gap(name: str) -> float:
    """Clean minus corrupted logit difference, mean over the prompts, by the untouched bridge."""
    bridge, batch = _plain(name), architectures.pairs()
    with torch.no_grad():
        clean, corrupt = (logit_diff(bridge(tokens), batch).mean() for tokens in (batch.clean, batch.corrupted))
    return abs(float(clean - corrupt))


def _share(name: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / _gap(name))


def _circuit_values(name: str, batch: PairBatch, masks: np.ndarray) -> np.ndarray:
    model = _model(name)
    return Experiment(model, batch).measure(masks, [METRIC])[METRIC.name]


if __name__ == "__main__":
    sys.exit(main())
