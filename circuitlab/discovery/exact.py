"""Exact scores: every edge, node or neuron patched alone in the clean run, everything after it recomputed.

The score is m(clean) - m(clean with this one corrupted); positive means that it helps. There is no approximation; the
cost grows with the number of edges.

By position or span only the edge's tokens there are corrupted. These scores do not necessarily sum to that of the whole
edge, which is patched too: `checks["columns_miss"]` is the difference, as a share of the absolute scores of all edges.

Nodes and neurons of MLPs are those of the sweeps, before a post-norm. Components of the stream are patched in the
stream, after any post-norm.

References:
    Edge patching as in Syed et al. 2023, arXiv:2310.10348, there as the quantity that EAP estimates; nodes: Vig et al.
    2020, arXiv:2004.12265; Mueller et al. 2025 (MIB), arXiv:2504.13151, for the levels.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuitlab.discovery.averages import scores_of
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import ColumnScores, EdgeScores
from circuitlab.graphs.ranking import edge_places
from circuitlab.models.protocol import Model
from circuitlab.models.row_steps import Rows
from circuitlab.models.steps import after_heads
from circuitlab.parts import Kind, Layout, Node
from circuitlab.patching.edges.edges import EdgeEffects, run_edges
from circuitlab.patching.edges.plan import plan_edges
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import Baseline, judge
from circuitlab.patching.runs.packing import Packer, rows_at_once
from circuitlab.patching.runs.reach import rows_from, tokens_that_matter
from circuitlab.patching.runs.suffix import run_from_middle, run_suffix
from circuitlab.patching.runs.writers import replacement_messages
from circuitlab.patching.sweeps.sweep import sweep_grids
from circuitlab.stats import RunningMean


def score_exact(experiment: Experiment, *, axis: str = "all", level: str = "edge") -> EdgeScores | NodeScores:
    """Patch every edge alone; see the module.

    Args:
        experiment: The pairs, the metric and the replacement.
        axis: "all", "position" or "span".
        level: "edge", or one of `LEVELS`.

    Returns:
        Scores in the metric's unit; the error measure is the standard error over examples.

    Raises:
        UnknownNameError: Neurons of MLPs in a model without.
        ConfigError: The ablation does not go with these pairs; no such columns.
        MetricError: The metric gives the wrong shape or NaN; for nodes, the gap is not significant.

    References:
        Syed et al. 2023, arXiv:2310.10348; Vig et al. 2020, arXiv:2004.12265 (nodes).
    """
    if level != "edge":
        return _score_nodes(experiment, level)
    layout, running, columns = Layout.of(experiment.model.spec), RunningMean(), None
    running.add(_effects(experiment, "all")[1][:, :, 0])
    mean, error = (_matrix(layout, values) for values in (running.mean, running.standard_error))
    checks = {"largest_standard_error": float(error.max())}
    if axis != "all":
        found, effects = _effects(experiment, axis)
        scores = _matrix(layout, np.nan_to_num(effects).mean(0).T)
        columns = ColumnScores(kind=found.column_kind, labels=found.columns, scores=scores, numbers=found.numbers)
        missed = np.abs(scores.sum(0) - mean).sum()
        checks["columns_miss"] = float(missed / max(1e-12, np.abs(mean).sum()))
    return scores_of(experiment, "exact", mean, error, checks=checks, by_column=columns)


def _score_nodes(experiment: Experiment, level: str) -> NodeScores:
    """Patch every node, component or neuron alone."""
    running = RunningMean()
    if level == "neuron":
        for baseline in experiment.baselines:
            running.add(component_effects(experiment, baseline))
    else:
        running.add(rearrange(_patched(experiment, level), "... example -> example ..."))
    checks = {"largest_standard_error": float(running.standard_error.max())}
    return scores_of(experiment, "exact", running, level=level, checks=checks)


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


def _effects(experiment: Experiment, axis: str) -> tuple[EdgeEffects, Float[np.ndarray, "example edge column"]]:
    """Effects of all edges, before negation for metrics where less is better."""
    found = run_edges(experiment, plan_edges(experiment, axis=axis, direction="noise"))
    signed = found.per_example if experiment.metric.higher_is_better else -found.per_example
    return found, rearrange(signed, "edge column example -> example edge column")


def _matrix(layout: Layout, values: Float[np.ndarray, "*column edge"]) -> Float[np.ndarray, "*column writer reader"]:
    """Values of all edges as matrices, 0 where there is no edge."""
    matrix = np.zeros((*values.shape[:-1], len(layout.writers), len(layout.readers)))
    matrix[..., *edge_places(layout).T] = values
    return matrix


@torch.no_grad()
def component_effects(experiment: Experiment, baseline: Baseline) -> Float[np.ndarray, "pair writer d_model"]:
    """m(clean) - m(clean with one dimension of one writer's output replaced in the stream), for all of them.

    There are `d_model` of them for every writer, 120 thousand in GPT-2: for small models, and to check estimates with.
    After a norm that the heads of a layer share, each run has its own scale, as for edges.

    Args:
        experiment: The model, the metric and the replacement.
        baseline: One batch of its pairs, run clean and corrupted.

    Returns:
        The effects, in the metric's unit.
    """
    model, metric, replacement = experiment.model, experiment.metric, experiment.replacement
    resources = experiment.resources
    layout, batch = Layout.of(model.spec), baseline.batch
    inside = tokens_that_matter(model.spec, batch, from_difference=replacement.kind == "corrupt")
    untouched = metric(baseline.clean_logits, batch).double()
    effects, packer = untouched.new_zeros(len(batch), len(layout.writers), model.spec.d_model), Packer()
    for number, writer in enumerate(layout.writers):
        message = replacement_messages(model, replacement, baseline, baseline.clean, [writer])[0] * inside[..., None]
        live = message != 0
        example, component = live.any(1).nonzero().T
        first = live[example, :, component].int().argmax(1)

        def pack(
            part: slice, writer: Node = writer, number: int = number, message: Tensor = message,
            about: tuple[Tensor, ...] = (example, component, first),
        ) -> None:  # fmt: skip
            example, component, first = (values[part] for values in about)
            rows = rows_from(model.spec, batch, example, first)
            final = _run_component(model, baseline, rows, writer, message, component)
            values = judge(model, metric, baseline, final, example).double()
            effects[example, number, component] = untouched[example] - values

        packer.run(len(example), rows_at_once(model, batch.n_tokens, resources), pack)
        resources.progress("components", number + 1, len(layout.writers))
    return batch.per_pair(effects, 0).cpu().numpy()


def _run_component(
    model: Model, baseline: Baseline, rows: Rows, writer: Node, message: Tensor, component: Tensor
) -> Float[Tensor, "row d_model"]:
    """The final stream of each row at its answer."""
    clean, layer = baseline.clean, writer.layer or 0
    after = 0 if writer.kind is Kind.INPUT else layer + 1
    stream = rows.of(after_heads(model, clean, layer) if writer.kind is Kind.HEAD else clean.stream(after))
    at, which = torch.arange(len(stream), device=stream.device), component[rows.row]
    stream[at, which] += message[rows.example[rows.row], rows.position, which]
    if writer.kind is Kind.HEAD:
        return run_from_middle(model, clean, baseline.arguments, rows, stream, layer)
    return run_suffix(model, clean, baseline.arguments, rows, stream, after)
