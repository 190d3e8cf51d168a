"""Every node patched alone over all positions: one number a head and an MLP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Kind, Node
from circuitlab.patching.grid import Grid
from circuitlab.patching.sweeps.sweep import by_site, sweep
from circuitlab.progress import Progress, silent
from circuitlab.summary import Summary


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NodeSweep(Summary):
    """Effects of patching nodes one by one, clean into corrupted.

    Attributes:
        per_example: Node name -> raw metric of the patched run.
        clean: Metric of the clean run.
        corrupt: Metric of the corrupted run.
    """

    per_example: Mapping[str, Float[np.ndarray, " example"]]
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"]

    @property
    def effects(self) -> dict[str, float]:
        """Node name -> share of the clean-corrupted difference that its patch restores (ratio of means)."""
        gap = (self.clean - self.corrupt).mean()
        return {name: float((values - self.corrupt).mean() / gap) for name, values in self.per_example.items()}

    @property
    def standard_errors(self) -> dict[str, float]:
        """Node name -> standard error of the effect over examples, the gap taken as known."""
        gap = abs(float((self.clean - self.corrupt).mean()))
        root = max(1, len(self.clean)) ** 0.5
        ddof = int(len(self.clean) > 1)
        return {name: float(np.std(v - self.corrupt, ddof=ddof)) / (gap * root) for name, v in self.per_example.items()}


def sweep_nodes(
    model: Model,
    pairs: PairSet | PairBatch,
    metric: Metric,
    *,
    heads: Grid | None = None,
    budget: int | None = None,
    progress: Progress = silent,
) -> NodeSweep:
    """Patch each head's z and each MLP's output at all positions; the input and the logits restore everything.

    Args:
        model: A loaded model.
        pairs: What to patch.
        metric: What is measured at the answer position.
        heads: A sweep of `head_z` on the same pairs, if there is one already.
        budget: Bytes that a packed run may take.
        progress: Called with (step, done, total).
    """
    sites = (["head_z"] if heads is None else []) + (["mlp_out"] if model.spec.has_mlp else [])
    grids = by_site(sweep(model, pairs, site=sites, metric=metric, axis="all", budget=budget, progress=progress))
    heads = grids["head_z"] if heads is None else heads
    found = {Node(Kind.INPUT).name: heads.clean, Node(Kind.LOGITS).name: heads.clean}
    for layer in range(model.spec.n_layers):
        for head in range(model.spec.n_heads):
            found[Node(Kind.HEAD, layer, head).name] = heads.per_example[layer, head]
        if model.spec.has_mlp:
            found[Node(Kind.MLP, layer).name] = grids["mlp_out"].per_example[layer, 0]
    return NodeSweep(found, heads.clean, heads.corrupt)


def sweep_some_nodes(
    model: Model,
    pairs: PairSet | PairBatch,
    metric: Metric,
    nodes: Iterable[Node],
    *,
    budget: int | None = None,
    progress: Progress = silent,
) -> NodeSweep:
    """The same of some nodes only, such as those of a circuit: as many patches as nodes, and two more passes a layer.

    Args:
        model: A loaded model.
        pairs: What to patch.
        metric: What is measured at the answer position.
        nodes: The nodes, at least one head or MLP among them.
        budget: Bytes that a packed run may take.
        progress: Called with (step, done, total).
    """
    chosen, found, grids = list(nodes), dict[str, Float[np.ndarray, " example"]](), dict[str, Grid]()
    for layer in range(model.spec.n_layers):
        heads = [n.head for n in chosen if n.kind is Kind.HEAD and n.layer == layer and n.head is not None]
        sites = ["head_z"] * bool(heads) + ["mlp_out"] * (Node(Kind.MLP, layer) in chosen)
        if not sites:
            continue
        there = {"metric": metric, "axis": "all", "layers": [layer], "heads": heads or None, "budget": budget}
        grids = by_site(sweep(model, pairs, site=sites, progress=progress, **there))
        for place, head in enumerate(heads):
            found[Node(Kind.HEAD, layer, head).name] = grids["head_z"].per_example[0, place]
        if "mlp_out" in grids:
            found[Node(Kind.MLP, layer).name] = grids["mlp_out"].per_example[0, 0]
    both = next(iter(grids.values()))
    found |= {node.name: both.clean for node in chosen if node.kind in (Kind.INPUT, Kind.LOGITS)}
    return NodeSweep(found, both.clean, both.corrupt)
