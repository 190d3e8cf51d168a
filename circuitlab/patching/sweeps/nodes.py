"""Every node patched alone over all positions: one number a head and an MLP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitlab.parts import Kind, Node
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.grid import Grid
from circuitlab.patching.sweeps.sweep import sweep_grids
from circuitlab.stats import standard_error
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
        errors = {name: standard_error(values - self.corrupt, 0.0) for name, values in self.per_example.items()}
        return {name: float(error) / gap for name, error in errors.items()}


def sweep_nodes(experiment: Experiment, heads: Grid | None = None) -> NodeSweep:
    """Patch each head's z and each MLP's output at all positions; the input and the logits restore everything.

    Args:
        experiment: What to patch.
        heads: A sweep of `head_z` on the same pairs, if there is one already.
    """
    spec = experiment.model.spec
    sites = (["head_z"] if heads is None else []) + (["mlp_out"] if spec.has_mlp else [])
    grids = sweep_grids(experiment, sites, axis="all") if sites else {}
    heads = grids["head_z"] if heads is None else heads
    found = {Node(Kind.INPUT).name: heads.clean, Node(Kind.LOGITS).name: heads.clean}
    for layer in range(spec.n_layers):
        for head in range(spec.n_heads):
            found[Node(Kind.HEAD, layer, head).name] = heads.per_example[layer, head]
        if spec.has_mlp:
            found[Node(Kind.MLP, layer).name] = grids["mlp_out"].per_example[layer, 0]
    return NodeSweep(found, heads.clean, heads.corrupt)


def sweep_some_nodes(experiment: Experiment, nodes: Iterable[Node]) -> NodeSweep:
    """The same of some nodes only, such as those of a circuit: as many patches as nodes, and two more passes a layer.

    Args:
        experiment: What to patch.
        nodes: The nodes, at least one head or MLP among them.
    """
    chosen, found = list(nodes), dict[str, Float[np.ndarray, " example"]]()
    for layer in range(experiment.model.spec.n_layers):
        heads = [n.head for n in chosen if n.kind is Kind.HEAD and n.layer == layer and n.head is not None]
        sites = ["head_z"] * bool(heads) + ["mlp_out"] * (Node(Kind.MLP, layer) in chosen)
        if not sites:
            continue
        grids = sweep_grids(experiment, sites, axis="all", layers=[layer], heads=heads or None)
        for place, head in enumerate(heads):
            found[Node(Kind.HEAD, layer, head).name] = grids["head_z"].per_example[0, place]
        if "mlp_out" in grids:
            found[Node(Kind.MLP, layer).name] = grids["mlp_out"].per_example[0, 0]
    clean, corrupt = experiment.clean, experiment.corrupt
    found |= {node.name: clean for node in chosen if node.kind in (Kind.INPUT, Kind.LOGITS)}
    return NodeSweep(found, clean, corrupt)
