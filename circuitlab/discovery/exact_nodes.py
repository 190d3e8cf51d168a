"""Exact scores of nodes and neurons: each patched alone in the clean run, everything behind it recomputed.

The score is m(clean) - m(clean with it corrupted); positive means that it helps. Nodes and neurons of MLPs are those of
the sweeps: a norm behind them follows. Components of the stream are patched there, behind any norm.

References:
    Vig et al. 2020, arXiv:2004.12265; Mueller et al. 2025 (MIB), arXiv:2504.13151, for the levels.
"""

from __future__ import annotations

import numpy as np
from einops import rearrange
from jaxtyping import Float

from circuitlab.discovery.node_scores import NodeScores
from circuitlab.patching.edges.components import component_effects
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.sweeps.sweep import sweep_grids
from circuitlab.stats import RunningMean


def score_exact_nodes(experiment: Experiment, level: str) -> NodeScores:
    """Patch every node, component or neuron alone; see the module. The error measure is the largest standard error.

    Args:
        experiment: What is scored.
        level: A name of `LEVELS`.

    Raises:
        UnknownNameError: Neurons of MLPs in a model without.
        MetricError: The metric gives the wrong shape or NaN, or does not distinguish the two runs.
    """
    running = RunningMean()
    if level == "neuron":
        for baseline in experiment.baselines:
            running.add(component_effects(
                experiment.model, baseline, experiment.metric, experiment.replacement, experiment.resources
            ))  # fmt: skip
    else:
        running.add(rearrange(_patched(experiment, level), "... example -> example ..."))
    return NodeScores(
        spec=experiment.model.spec,
        level=level,
        values=running.mean,
        standard_error=running.standard_error,
        method="exact",
        metric=experiment.metric.name,
        n_examples=running.n,
        checks={"largest_standard_error": float(running.standard_error.max())},
    )


def _patched(experiment: Experiment, level: str) -> Float[np.ndarray, "... example"]:
    """How much the metric falls, from the sweeps."""

    def fall(site: str, layers: list[int] | None = None) -> np.ndarray:
        (grid,) = sweep_grids(experiment, [site], direction="noise", axis="all", layers=layers).values()
        return grid.clean - grid.per_example

    if level == "mlp-neuron":
        return fall("neuron")
    heads = fall("head_z")  # [layer, head, example]
    parts = np.concatenate([heads, fall("mlp_out")], 1) if experiment.model.spec.has_mlp else heads
    return np.concatenate([fall("resid_pre", [0])[0], parts.reshape(-1, parts.shape[-1])])
