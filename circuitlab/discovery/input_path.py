"""Edge attribution from gradients taken along the path of the input, from the corrupted prompt to the clean one.

    score(u -> v) = sum over positions and dimensions of (a_u - r_u) . mean over the points of dm/dx_v

a_u is what writer u says in the clean run and r_u what stands in its place: the corrupted run's, or another
replacement. Gradients are taken in runs from the embedding e' + share * (e - e'), everything behind it following: share
1 is the clean run, share 0 the corrupted one. EAP, EAP-IG and clean-corrupted differ in their shares and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import ColumnScores, EdgeScores
from circuitlab.errors import ConfigError, MetricError, UnknownNameError
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.models.traced import Traced, Window, run_plain, trace
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.gradients.edge_products import EdgeProducts, WriterValues, replacement_of_writers
from circuitlab.patching.gradients.metric_gradients import gradients_and_values, judged
from circuitlab.patching.gradients.neuron_products import NeuronProducts
from circuitlab.patching.runs.columns import columns_of
from circuitlab.patching.runs.replacement import Replacement
from circuitlab.stats import RunningMean


def attribute(
    experiment: Experiment,
    *,
    name: str,
    shares: Sequence[float],
    axis: str = "all",
    level: str = "edge",
    model: Model | None = None,
) -> Any:
    """Estimate every edge's effect, or every node's; see the module.

    Args:
        experiment: What is scored: pairs, the metric that is differentiated, and what a corrupted edge carries.
        name: What the scores call their method.
        shares: Where on the path gradients are taken, from 0 (corrupted) to 1 (clean).
        axis: "all", "position" or "span".
        level: "edge" for `EdgeScores`; "node" or "neuron" for `NodeScores`, with the gradient at the writer's output;
            "mlp-neuron" with that at the neuron.
        model: The experiment's model with other backward passes, if gradients are not meant.

    Returns:
        Scores in the metric's unit, positive where the edge helps. `checks["completeness_gap"]` says how far the
        estimated effect of replacing the input alone (the sum over the input's edges) misses the exact one, as a share
        of it: 0 for a metric that is straight in between. With the corrupted run that exact effect is the whole
        difference of the metric.

    Raises:
        UnknownNameError: No such ablation or axis; neurons of MLPs in a model without.
        ConfigError: What `resolve_replacement` and `columns_of` refuse; single neurons under another replacement.
        MetricError: The metric has no gradient, or none at these points.
    """
    model = experiment.model if model is None else model
    metric, put_in = experiment.metric, experiment.replacement
    if level == "mlp-neuron" and not model.spec.has_mlp:
        raise UnknownNameError.of("level", level, ("node", "neuron"), hint="The model has no MLPs.")
    if level == "mlp-neuron" and put_in.kind != "corrupt":
        raise ConfigError(
            f"ablation is {put_in.kind!r}; slopes at single neurons of MLPs are multiplied with the corrupted prompt's "
            "neurons alone. Take ablation 'corrupt', or method 'exact'."
        )
    batches = experiment.recordings.parts(streams_alive(model, put_in))
    columns = columns_of(experiment.pairs, batches, axis) if axis != "all" else None
    running = RunningMean(real_edges(Layout.of(model.spec)) if level == "edge" else 1.0)
    by_column = np.zeros(())
    integral, truth = [], []
    for number, batch in enumerate(batches):
        tokens = None if columns is None else columns.masks[number]
        found = _attributed(model, experiment, batch, shares, tokens, level)
        running.add(found.scores.double().cpu().numpy())
        integral.append(found.integral.double().cpu().numpy())
        truth.append(found.truth.double().cpu().numpy())
        if found.by_column is not None:
            by_column = by_column + found.by_column.double().sum(1).cpu().numpy()
        experiment.progress(name, number + 1, len(batches))
    total, wanted, n = np.concatenate(integral).mean(), np.concatenate(truth), sum(map(len, batches))
    check_slope(running.mean, wanted, metric, len(shares))
    gap = float(abs(total - wanted.mean()) / max(1e-12, abs(wanted.mean())))
    said = {"method": name, "metric": metric.name, "n_examples": n, "checks": {"completeness_gap": gap}}
    about = {"spec": model.spec, "values": running.mean, "standard_error": running.standard_error, **said}
    if level != "edge":
        return NodeScores(level=level, **about)
    return EdgeScores(
        by_column=columns
        and ColumnScores(kind=columns.kind, labels=columns.labels, scores=by_column / n, numbers=columns.numbers),
        **about,
    )


def check_slope(
    scores: Float[np.ndarray, "*score"], truth: Float[np.ndarray, " example"], metric: Metric, steps: int
) -> None:
    """Refuse scores that are all 0 because the metric is flat wherever its gradient was taken.

    Raises:
        MetricError: They are.
    """
    # Rounding leaves a little where there is no slope; some edge of a graph with a slope carries more than this.
    if np.abs(scores).max() <= 1e-5 * np.abs(truth).mean():
        raise MetricError(
            f"metric {metric.name!r} has no gradient anywhere on the path of {steps} steps (a divergence from "
            "the clean run has none at the clean prompt), so every score would be 0. Use logit_diff, or more steps."
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Attributed:
    """One batch: every score, the input's estimated effect, the exact one, and scores by column if wanted."""

    scores: Float[Tensor, "batch writer *reader"]
    integral: Float[Tensor, " batch"]
    truth: Float[Tensor, " batch"]
    by_column: Float[Tensor, "column batch writer reader"] | None


@torch.no_grad()
def _attributed(
    model: Model,
    experiment: Experiment,
    batch: PairBatch,
    shares: Sequence[float],
    tokens: Bool[Tensor, "column batch seq"] | None,
    level: str,
) -> _Attributed:
    metric, put_in, arguments = experiment.metric, experiment.replacement, model.block_arguments(batch.clean)
    clean, start = model.embedding(batch.clean), model.embedding(batch.corrupt)
    whole = Window.whole(batch)
    corrupt = run_plain(model, arguments, whole, start)
    if put_in.kind == "corrupt":
        window = Window.between(batch, clean - start, causal=model.spec.causal)
        other, replaced = WriterValues.of(corrupt), corrupt
    else:  # differs everywhere
        window, other = whole, replacement_of_writers(model, put_in, batch, experiment.recordings.clean(batch))
        replaced = run_plain(model, arguments, whole, other.start)
    start, end = window.of(start), window.of(clean)

    # The clean end comes first: its run gives the writers' outputs, and the logits that a divergence compares with.
    at_end = trace(model, arguments, window, end, around=corrupt)
    batch = batch.with_reference(model.logits(at_end.final)) if not metric.local else batch
    products = EdgeProducts(model, at_end, other)
    truth = judged(model, metric, batch, at_end.final.detach()) - judged(model, metric, batch, replaced.final)
    neurons = NeuronProducts(model, at_end, corrupt) if level == "mlp-neuron" else None
    total = _Sum(model, products, metric, batch, tokens, level, neurons)
    if 1 in shares:
        total.add(at_end)
    del at_end  # or two runs' worth of points would be in memory

    for share in (share for share in shares if share != 1):
        total.add(trace(model, arguments, window, torch.lerp(start, end, share), around=corrupt))
    n = len(shares)
    return _Attributed(
        total.scores / n,
        (products.start * total.at_start).sum((1, 2)) / n,
        truth,
        None if tokens is None else total.by_column / n,
    )


class _Sum:
    """Products and gradients at the embedding, added up over runs."""

    def __init__(
        self,
        model: Model,
        products: EdgeProducts,
        metric: Metric,
        batch: PairBatch,
        tokens: Tensor | None,
        level: str,
        neurons: NeuronProducts | None,
    ) -> None:
        self._neurons = neurons
        self._model, self._products, self._metric, self._batch = model, products, metric, batch
        self._tokens, self._level = tokens, level
        self.scores = self.at_start = self.by_column = products.start.new_zeros(())

    def add(self, traced: Traced) -> None:
        """One run more; its graph is gone after it."""
        gradients, _ = gradients_and_values(self._model, traced, self._metric, self._batch)
        self.at_start = gradients.start + self.at_start
        if self._level == "edge":
            self.scores = self._products.scores(traced, gradients) + self.scores
        elif self._neurons is not None:
            self.scores = self._neurons.scores(traced, gradients) + self.scores
        else:
            of_writers = self._products.at_writers(gradients)
            self.scores = (of_writers.sum(2) if self._level == "node" else of_writers) + self.scores
        if self._tokens is not None:
            self.by_column = self._products.by_column(traced, gradients, self._tokens) + self.by_column


def streams_alive(model: Model, put_in: Replacement) -> int:
    """How many tensors of the stream's size stay in memory for every prompt, beside those of one block."""
    # Every writer's difference and the gradients of one layer's heads; per block the corrupted run's points, those of
    # the present run with their gradients, what its graph holds beside them, and a recording where there is one.
    spec = model.spec
    each = 30 if put_in.kind == "corrupt" else 38
    return len(Layout.of(spec).writers) + 3 * spec.n_heads + each * spec.n_layers
