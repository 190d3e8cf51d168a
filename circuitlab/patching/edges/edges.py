"""Exact edge patching: one edge carries its writer's other value, alone, and everything after it follows.

1. Check the request (`edge_plan`).
2. Record the clean and the corrupted run of every batch, once, and take every writer's output in both.
3. Layer by layer, turn the edges into rows (`edge_rows`), and run only what comes after their readers, from the first
   token that differs to the answer, in packs that fit the memory.
4. Take the metric at the answer.

References:
    Edge patching as in Syed et al. 2023, arXiv:2310.10348; the direct path of Goldowsky-Dill et al. 2023,
    arXiv:2304.05969.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batching import Pairs
from circuitlab.metrics import Metric, MetricLike
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.parts import Edge
from circuitlab.patching.edges.plan import EdgePlan, Edges, plan_edges
from circuitlab.patching.edges.rows import EdgeRows, EdgeRun, edge_rows, edge_run, edges_into, run_rows
from circuitlab.patching.effects import Effects
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import judge
from circuitlab.patching.runs.packing import Packer, rows_at_once
from circuitlab.patching.runs.replacement import AblationLike
from circuitlab.progress import Progress, callback
from circuitlab.resources import Resources
from circuitlab.summary import largest, plural


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class EdgeEffects(Effects):
    """Exact effects of edges, each patched alone.

    Columns of `to_frame`: source, target, position | span, (label), value, ci_low, ci_high, p_value, n.

    Attributes:
        edges: The edges, in the given order.
        direction: "noise": corrupted in the clean run; "denoise": clean in the corrupted run.
        metric: Name of the metric.
        unit: Its unit.
        column_kind: "position" or "span"; a single span "all" where whole messages were swapped.
        columns: Labels of the columns.
        per_example: How much the edge helps: m(clean) - m(clean with it corrupted), or m(corrupted with it clean) -
            m(corrupted); negated for metrics where less is better. NaN where an example lacks the span.
        clean: Metric of the clean run.
        corrupt: Metric of the corrupted run; None for pairs without corrupted prompts.
        seed: Seed of intervals and p-values.
        numbers: Positions of the columns, where only some were patched.
        empty: Metric of the empty circuit, for pairs without corrupted prompts.
    """

    edges: tuple[Edge, ...]
    direction: str
    metric: str
    unit: str
    column_kind: str
    columns: tuple[str, ...]
    per_example: Float[np.ndarray, "edge column example"]
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"] | None
    seed: int = 0
    numbers: tuple[int, ...] | None = None
    empty: Float[np.ndarray, " example"] | None = None

    def _labels(self) -> dict[str, Any]:
        n_columns = len(self.columns)
        numbers = range(n_columns) if self.numbers is None else self.numbers
        data: dict[str, Any] = {
            "source": [edge.source.name for edge in self.edges for _ in self.columns],
            "target": [edge.reader.name for edge in self.edges for _ in self.columns],
            self.column_kind: [*self.columns] * len(self.edges),
        }
        if self.column_kind == "position":
            data |= {"position": [*numbers] * len(self.edges), "label": data["position"]}
        return data

    def _summary(self) -> str:
        size = f"{plural(len(self.edges), 'edge')} x {plural(len(self.columns), self.column_kind or 'column')}"
        return f"by {self.direction}: {size}, {plural(self.per_example.shape[-1], 'pair')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        values = self.per_example.mean(-1)
        width = len(self.columns)
        yield "metric", self._ends
        yield from largest(
            values.ravel().tolist(),
            lambda number: self.edges[number // width].name + (f" {self.columns[number % width]}" if width > 1 else ""),
        )


@model_function
def patch_edges(
    model: Model,
    pairs: Pairs,
    edges: Edges = None,
    *,
    metric: MetricLike | None = None,
    axis: str = "all",
    positions: Iterable[int] | None = None,
    direction: str | None = None,
    ablation: AblationLike = "corrupt",
    reference: Pairs | None = None,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress | bool | None = None,
) -> EdgeEffects:
    """Patch any set of edges, each alone: the direct path only, everything after its reader recomputed.

    Args:
        model: A loaded model.
        pairs: A split of a task, or a `PairBatch`.
        edges: Names or edges, or a boolean mask [writer, reader] (entries that are no edge do not count); every edge
            of the graph by default.
        metric: What is measured at the answer position; by default the metric of the task that drew the pairs,
            else `logit_diff`.
        axis: "all" swaps an edge's whole message; "position" and "span" only its tokens at one position or span, one
            column each; "auto" is by position where prompts line up or have no spans; positions
            of prompts of several lengths count from the answer backwards (-1 is the answer position).
        positions: With axis "position": only these.
        direction: "denoise": the corrupted run with the edge clean. "noise": the clean run with the edge corrupted. By
            default "denoise" with the ablation "corrupt", and "noise" with every other.
        ablation: What a corrupted edge carries: "corrupt", "zero", "mean", "mean-position", "mean-span" or "noise", or
            a `Replacement`. Only the corrupted prompt's value goes with "denoise".
        reference: Prompts that means are taken of (their clean ones); none of them may be among `pairs`.
        seed: Of intervals, p-values and noise.
        budget: Bytes that a packed run may take; a share of what is free by default.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total); steps are of about equal work.

    Returns:
        `EdgeEffects`, per edge, column and example in the metric's unit. "noise": m(clean) - m(clean with the edge
        corrupted); "denoise": m(corrupted with the edge clean) - m(corrupted). Positive: the edge helps; where less is
        better (`kl`, `rank`) the sign is turned, so that positive helps there too.

    Raises:
        UnknownNameError: No such edge, direction, metric, axis or ablation.
        ConfigError: No edges, one of them twice, a mask of the wrong shape, a position out of range, prompts of
            different length by position, no spans by span, a budget that holds no prompt; another ablation than
            "corrupt" with "denoise"; means without reference prompts, or with prompts that do not go with them.
        MetricError: The metric gives the wrong shape or NaN, or does not distinguish the two runs.

    Example:
        >>> from circuitlab import load_model, load_task, patch_edges
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> patch_edges(model, pairs.discovery, ["a0.h1->m0", "m0->m3"]).values.shape  # edge, metric
        (2, 1)
    """
    experiment = Experiment(
        model, pairs, metric, ablation, reference, seed, allow_weak_gap=True, budget=budget,
        progress=callback(progress),
    )  # fmt: skip
    plan = plan_edges(experiment, edges, axis=axis, positions=positions, direction=direction)
    experiment.prompt_gap  # noqa: B018 - refuses a metric that does not distinguish the two runs
    return run_edges(experiment, plan)


def run_edges(experiment: Experiment, plan: EdgePlan) -> EdgeEffects:
    """Patch the edges of a plan on an experiment's pairs; result as of `patch_edges`.

    Returns:
        The effects, in the metric's unit.
    """
    metric, packer = experiment.metric, Packer()
    effects = np.zeros((len(plan.edges), len(plan.columns.labels), experiment.n_examples))
    for number, (baseline, tokens) in enumerate(zip(experiment.baselines, plan.columns.masks, strict=True)):
        run = edge_run(experiment, plan, baseline, tokens)
        resources = experiment.resources.part(number, len(experiment.batches))
        found = baseline.batch.per_pair(_effects(run, metric, plan.direction, packer, resources))
        effects[:, :, baseline.batch.places.cpu().numpy()] = found.cpu().numpy()
    return EdgeEffects(
        edges=plan.edges,
        direction=plan.direction,
        metric=metric.name,
        unit=metric.unit,
        column_kind=plan.columns.kind,
        columns=plan.columns.labels,
        per_example=effects if metric.higher_is_better else -effects,
        clean=experiment.clean,
        corrupt=experiment.corrupt,
        empty=experiment.empty if experiment.corrupt is None else None,
        seed=experiment.seed,
        numbers=plan.columns.numbers,
    )


@torch.no_grad()
def _effects(
    run: EdgeRun, metric: Metric, direction: str, packer: Packer, resources: Resources
) -> Float[Tensor, "edge column batch"]:
    """How much each edge helps, in the metric's unit; 0 without a run where its message is the same in both."""
    model, n_layers = run.model, run.model.spec.n_layers
    untouched = run.baseline.unpatched(metric, direction).double()
    effects = untouched.new_zeros((len(run.edges), *run.tokens.shape[:2]))
    effects[:, ~run.tokens.any(2)] = torch.nan
    size = rows_at_once(model, run.baseline.batch.n_tokens, resources)
    done, total = 0, sum(n_layers - layer + 1 for layer in range(n_layers + 1))
    for layer in range(n_layers + 1):
        for numbers in edges_into(run, layer):
            rows = edge_rows(run, layer, numbers)

            def pack(part: slice, layer: int = layer, rows: EdgeRows = rows) -> None:
                some = rows.take(part)
                final = run_rows(run, layer, some)
                values = judge(model, metric, run.baseline, final, some.example).double()
                change = untouched[some.example] - values
                effects[some.edge, some.column, some.example] = change if direction == "noise" else -change

            packer.run(len(rows), size * _lightness(run, layer), pack)
        done += n_layers - layer + 1
        resources.progress("edges", done, total)
    return effects


def _lightness(run: EdgeRun, layer: int) -> int:
    """How many rows into this layer take no more than one row through whole blocks.

    Into the logits a row is one token. Into the last layer it is one token too, beside the queries, keys and values of
    its prompt: about 4 tensors of the stream's size, where a block holds 18.
    """
    n_layers = run.model.spec.n_layers
    return {n_layers: run.baseline.batch.n_tokens, n_layers - 1: 4}.get(layer, 1)
