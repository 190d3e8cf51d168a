"""Edge attribution from gradients taken along the path of the input, from the corrupted prompt to the clean one.

    score(u -> v) = sum over positions and dimensions of (a_u - r_u) . mean over the points of dm/dx_v

a_u is the output of writer u in the clean run and r_u its replacement: the output in the corrupted run, or another.
Gradients are taken in runs from the embedding e' + share * (e - e'), with everything after it recomputed: share 1 is
the clean run, share 0 the corrupted one. EAP, EAP-IG and clean-corrupted differ in their shares only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.data.batch import PairBatch, no_corrupted
from circuitlab.discovery.averages import averaged, scores_of
from circuitlab.discovery.scores import ColumnScores
from circuitlab.errors import ConfigError, MetricError, UnknownNameError
from circuitlab.metrics import Metric
from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.models.traced import Traced, Window, trace
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.gradients.edge_products import EdgeProducts, WriterValues, replacement_of_writers
from circuitlab.patching.gradients.metric_gradients import gradients_and_values, judged
from circuitlab.patching.gradients.neuron_products import NeuronProducts
from circuitlab.patching.runs.columns import columns_of
from circuitlab.patching.runs.replacement import Replacement


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
        experiment: The pairs, the metric to differentiate, and the replacement.
        name: The name of the method in the scores.
        shares: The points of the path at which gradients are taken, from 0 (corrupted) to 1 (clean).
        axis: "all", "position" or "span".
        level: "edge" for `EdgeScores`; "node" or "neuron" for `NodeScores`, with the gradient at the writer's output;
            "mlp-neuron" with that at the neuron.
        model: The experiment's model with another backward pass, such as relevance propagation.

    Returns:
        Scores in the metric's unit, positive where the edge helps. `checks["completeness_gap"]` is how far the
        estimated effect of replacing the input alone (the sum over the input's edges) misses the exact one, as a share
        of it: 0 for a metric that is straight in between. With the corrupted run that exact effect is the whole
        difference of the metric.

    Raises:
        UnknownNameError: No such ablation or axis; neurons of MLPs in a model without.
        ConfigError: `resolve_replacement` or `columns_of` rejects the arguments; single neurons under another ablation.
        MetricError: The metric has no gradient, or none at these points.
    """
    model = experiment.model if model is None else model
    metric, replacement = experiment.metric, experiment.replacement
    if level == "mlp-neuron" and not model.spec.has_mlp:
        raise UnknownNameError.of("level", level, ("node", "neuron"), hint="The model has no MLPs.")
    if level == "mlp-neuron" and replacement.kind != "corrupt":
        raise ConfigError(
            f"ablation is {replacement.kind!r}; gradients at single neurons of MLPs are multiplied with the corrupted "
            "prompt's neurons alone. Take ablation 'corrupt', or method 'exact'."
        )
    batches = experiment.recordings.parts(streams_alive(model, replacement))
    columns = columns_of(experiment.pairs, batches, axis) if axis != "all" else None
    by_column = np.zeros(())

    def attributed() -> Iterator[tuple[PairBatch, dict[str, Tensor]]]:
        nonlocal by_column
        for number, batch in enumerate(batches):
            tokens = None if columns is None else columns.masks[number]
            found = _attributed(model, experiment, batch, shares, tokens, level)
            if tokens is not None:
                by_column = by_column + found.pop("by_column").double().sum(1).cpu().numpy()
            yield batch, found
            experiment.progress(name, number + 1, len(batches))

    running, ends = averaged(attributed(), Layout.of(model.spec) if level == "edge" else None)
    estimate, exact = ends["estimate"].mean(), ends["exact"]
    check_slope(running.mean, exact, metric, len(shares))
    gap = float(abs(estimate - exact.mean()) / max(1e-12, abs(exact.mean())))
    more: dict[str, Any] = {"checks": {"completeness_gap": gap}}
    if columns is not None:
        about = {"kind": columns.kind, "labels": columns.labels, "numbers": columns.numbers}
        more["by_column"] = ColumnScores(scores=by_column / running.n, **about)
    return scores_of(experiment, name, running, level=level, **more)


def check_slope(
    scores: Float[np.ndarray, "*score"], truth: Float[np.ndarray, " example"], metric: Metric, steps: int
) -> None:
    """Reject scores that are all 0 because the metric has no gradient at any point.

    Raises:
        MetricError: All scores are 0.
    """
    # Rounding leaves small scores where there is no gradient; with a gradient some edge has a larger one.
    if np.abs(scores).max() <= 1e-5 * np.abs(truth).mean():
        raise MetricError(
            f"metric {metric.name!r} has no gradient anywhere on the path of {steps} steps (a divergence from "
            "the clean run has none at the clean prompt), so every score would be 0. Use logit_diff, or more steps."
        )


@torch.no_grad()
def _attributed(
    model: Model,
    experiment: Experiment,
    batch: PairBatch,
    shares: Sequence[float],
    tokens: Bool[Tensor, "column batch seq"] | None,
    level: str,
) -> dict[str, Tensor]:
    """The scores of one batch, the input's estimated and exact effect, and scores by column for given tokens."""
    runs, clean = both_runs(model, experiment, batch)
    metric, products, batch = experiment.metric, runs.products, runs.batch
    replaced = runs.corrupt
    if replaced is None or experiment.replacement.kind != "corrupt":
        replaced = trace(model, runs.arguments, runs.window, runs.replacement.start, graph=False)
    exact = judged(model, metric, batch, clean.final.detach()) - judged(model, metric, batch, replaced.final)
    neurons = NeuronProducts(model, clean, replaced) if level == "mlp-neuron" else None
    total: dict[str, Tensor] = {}

    def add(traced: Traced) -> None:
        """Add the products of one run, whose graph is then released."""
        gradients, _ = gradients_and_values(model, traced, metric, batch)
        found = {"start": gradients.start}
        if level == "edge":
            found["scores"] = products.scores(traced, gradients)
        elif neurons is not None:
            found["scores"] = neurons.scores(traced, gradients)
        else:
            at_writers = products.at_writers(gradients)
            found["scores"] = at_writers.sum(2) if level == "node" else at_writers
        if tokens is not None:
            found["by_column"] = products.by_column(traced, gradients, tokens)
        for name, value in found.items():
            total[name] = total[name] + value if name in total else value

    if 1 in shares:
        add(clean)
    del clean  # only one traced run is in memory at a time
    for share in (share for share in shares if share != 1):
        if runs.ends is None:
            raise no_corrupted("the gradients are taken on the way from the corrupted prompt", "Take method 'eap'")
        add(trace(model, runs.arguments, runs.window, torch.lerp(*runs.ends, share), around=runs.corrupt))
    estimate = (products.start * total.pop("start")).sum((1, 2))
    return {name: value / len(shares) for name, value in {**total, "estimate": estimate}.items()} | {"exact": exact}


def streams_alive(model: Model, replacement: Replacement) -> int:
    """The number of tensors of the stream's size in memory for every prompt, without those of one block.

    Returns:
        The number.
    """
    # Every writer's difference and the gradients of one layer's heads; per block the corrupted run's points, those of
    # the traced run with their gradients, the rest of its graph, and a recording where there is one.
    spec = model.spec
    each = 30 if replacement.kind == "corrupt" else 38
    return len(Layout.of(spec).writers) + 3 * spec.n_heads + each * spec.n_layers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BothRuns:
    """The two runs of a batch, for methods that take gradients.

    Attributes:
        batch: The examples, with the clean run's logits where the metric compares with them.
        arguments: The arguments of the blocks.
        window: The tokens whose values differ between clean run and replacement.
        ends: The embeddings of the corrupted and the clean prompt, on the window; None without corrupted prompts.
        corrupt: The corrupted run, on whole prompts; None without corrupted prompts.
        replacement: The replacement of every writer's output.
        products: The difference of every writer's clean output to its replacement.
    """

    batch: PairBatch
    arguments: BlockArguments
    window: Window
    ends: tuple[Float[Tensor, "batch seq d_model"], Float[Tensor, "batch seq d_model"]] | None
    corrupt: Traced | None
    replacement: WriterValues
    products: EdgeProducts


@torch.no_grad()
def both_runs(model: Model, experiment: Experiment, batch: PairBatch) -> tuple[BothRuns, Traced]:
    """Run the prompts of a batch.

    Args:
        model: The experiment's model, or the same with another backward pass.
        experiment: The experiment; it has the replacement and the metric.
        batch: Pairs of one length.

    Returns:
        The runs, and the clean run with its graph, by itself so that it can be released.
    """
    arguments, replacement = model.block_arguments(batch.clean), experiment.replacement
    clean, window, corrupt, ends = model.embedding(batch.clean), Window.whole(batch), None, None
    if batch.corrupt is not None:
        start = model.embedding(batch.corrupt)
        corrupt = trace(model, arguments, window, start, graph=False)
        if replacement.kind == "corrupt":
            window = Window.between(batch, clean - start, causal=model.spec.causal)
        ends = window.of(start), window.of(clean)
    if corrupt is not None and replacement.kind == "corrupt":
        other = WriterValues.of(corrupt)
    else:  # differs at every token
        other = replacement_of_writers(model, replacement, batch, experiment.recordings.clean(batch))
    traced = trace(model, arguments, window, window.of(clean), around=corrupt)
    runs = BothRuns(
        batch=batch if experiment.metric.local else batch.with_reference(model.logits(traced.final)),
        arguments=arguments, window=window, ends=ends, corrupt=corrupt, replacement=other,
        products=EdgeProducts(model, traced, other),
    )  # fmt: skip
    return runs, traced
