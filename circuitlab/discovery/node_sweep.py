"""Scores from sweeps: nodes by the effect of patching them alone, edges by the weaker of their two nodes.

1. Patch each head's z and each MLP's output, over all positions, from the clean into the corrupted run. Under another
   ablation than "corrupt", replace them in the clean run.
2. A node's effect is the share of the clean-corrupted difference that this restores; under another ablation the share
   of the difference between clean run and empty circuit that is lost. Input and logits have all of it.
3. score(u -> v) = the smaller of the two nodes' effects in size, with its sign, times the difference of the metric.

The top edges are then exactly the edges between the top nodes: nodes are pruned, and the edges between kept ones stay.
It does not distinguish edges between the same nodes, and is the cheapest baseline that follows from the heatmaps.

References:
    Wang et al. 2022, arXiv:2211.00593 (patching of nodes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitlab.discovery.averages import scores_of
from circuitlab.discovery.scores import EdgeScores
from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Kind, Layout, Node
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.grid import Grid
from circuitlab.patching.sweeps.sweep import sweep_grids
from circuitlab.stats import standard_error
from circuitlab.summary import Summary


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NodeSweep(Summary):
    """Effects of patching nodes one by one: clean into corrupted, or the replacement of an ablation into clean.

    Attributes:
        per_example: Node name -> raw metric of the patched run.
        clean: Metric of the clean run.
        other: Metric of the corrupted run, or of the empty circuit under another ablation.
        direction: "denoise", or "noise" under another ablation.
    """

    per_example: Mapping[str, Float[np.ndarray, " example"]]
    clean: Float[np.ndarray, " example"]
    other: Float[np.ndarray, " example"]
    direction: str

    def change(self, values: Float[np.ndarray, " example"]) -> Float[np.ndarray, " example"]:
        """How much of the metric a patch restores, or loses.

        Returns:
            One difference an example, in the metric's unit.
        """
        return values - self.other if self.direction == "denoise" else self.clean - values

    @property
    def effects(self) -> dict[str, float]:
        """Node name -> share of the difference that its patch restores, or loses (ratio of means)."""
        gap = (self.clean - self.other).mean()
        return {name: float(self.change(values).mean() / gap) for name, values in self.per_example.items()}

    @property
    def standard_errors(self) -> dict[str, float]:
        """Node name -> standard error of the effect over examples, the gap taken as known."""
        gap = abs(float((self.clean - self.other).mean()))
        errors = {name: standard_error(self.change(values), 0.0) for name, values in self.per_example.items()}
        return {name: float(error) / gap for name, error in errors.items()}


def sweep_nodes(experiment: Experiment, nodes: Iterable[Node] | None = None, heads: Grid | None = None) -> NodeSweep:
    """Patch each head's z and each MLP's output at all positions; the input and the logits have the whole effect.

    Args:
        experiment: What to patch.
        nodes: Only these, at the cost of two more passes a layer; all by default.
        heads: A sweep of `head_z` on the same pairs, if there is one already.

    Returns:
        The effects, in the order of the layers.
    """
    layers, chosen = range(experiment.model.spec.n_layers), list(nodes or Layout.of(experiment.model.spec).nodes)
    found = {}
    for some in [layers] if nodes is None else [[layer] for layer in layers]:
        here = [node for node in chosen if node.layer in some]
        members = sorted({node.head for node in here if node.head is not None})
        sites = ["head_z"] * (bool(members) and heads is None) + ["mlp_out"] * any(n.kind is Kind.MLP for n in here)
        arguments = {"axis": "all", "layers": some, "heads": members if "head_z" in sites else None}
        grids = {} if heads is None else {"head_z": heads}
        grids |= sweep_grids(experiment, sites, **arguments) if sites else {}
        for row, layer in enumerate(some):
            for place, head in enumerate(members):
                found[Node(Kind.HEAD, layer, head).name] = grids["head_z"].per_example[row, place]
            if "mlp_out" in grids:
                found[Node(Kind.MLP, layer).name] = grids["mlp_out"].per_example[row, 0]
    direction = "denoise" if experiment.replacement.kind == "corrupt" else "noise"
    clean, other = experiment.clean, experiment.empty
    whole = clean if direction == "denoise" else other
    ends = {node.name: whole for node in chosen if node.kind in (Kind.INPUT, Kind.LOGITS)}
    return NodeSweep(ends | found if nodes is None else found | ends, clean, other, direction)


def score_node_sweep(experiment: Experiment) -> EdgeScores:
    """Score edges by the swept effects of their nodes; see the module.

    Returns:
        Scores in the metric's unit, positive where both nodes help; `node_effects` has the effects of the nodes.

    References:
        Wang et al. 2022, arXiv:2211.00593.
    """
    swept = sweep_nodes(experiment)
    gap = float((swept.clean - swept.other).mean())
    layout = Layout.of(experiment.model.spec)
    effects = swept.effects
    weights = np.array([effects[node.name] for node in layout.nodes])
    errors = np.array([swept.standard_errors[node.name] for node in layout.nodes])
    sources, targets = np.arange(len(layout.writers))[:, None], np.array(layout.owners)[None]
    target_is_weaker = np.abs(weights[targets]) < np.abs(weights[sources])
    weaker = np.where(target_is_weaker, targets, sources)
    real = real_edges(layout)
    return scores_of(
        experiment, "sweep", weights[weaker] * gap * real, errors[weaker] * abs(gap) * real,
        checks={"largest_node_standard_error": float(errors.max())}, node_effects=effects,
    )  # fmt: skip
