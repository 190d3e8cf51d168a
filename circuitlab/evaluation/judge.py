"""Faithfulness of many circuits on one data set that is recorded once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.errors import GraphError
from circuitlab.evaluation.gap import check_data
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import Metric, MetricLike, metric_for, resolve
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.circuits.metric import Prepared, circuit_values, prepare
from circuitlab.patching.circuits.neuron_parts import values_without
from circuitlab.patching.runs.replacement import Replacement
from circuitlab.progress import Progress, silent


class Judge:
    """A model and a data set with both runs recorded: judging another circuit costs the circuit and nothing else.

    Attributes:
        model: The model.
        prepared: The data set.
        metric: What is measured at the answer position; by default the metric of the task that drew the pairs,
            else `logit_diff`.
        clean: The metric of the whole model, per example.
        empty: The metric of the empty circuit, per example.
        gap: Difference of the two: faithfulness is measured in its mean.
        neurons: Which neurons of its nodes the judged circuit carries, where it does not carry all.

    Raises:
        MetricError: The metric does not tell the whole model and the empty circuit apart (`check_data`).
    """

    def __init__(
        self,
        model: Model,
        prepared: Prepared,
        metric: Metric,
        *,
        neurons: Bool[np.ndarray, "writer d_model"] | None = None,
        allow_weak_gap: bool = False,
        budget: int | None = None,
        progress: Progress = silent,
    ) -> None:
        self.model, self.prepared, self.metric = model, prepared, metric
        self.neurons = neurons
        self._budget, self._progress = budget, progress
        self.clean, self.empty = prepared.gaps(metric)
        self.gap = check_data(
            metric, self.clean, self.empty, prepared.empty_is, allow_weak_gap=allow_weak_gap
        )  # fmt: skip

    @classmethod
    def of(
        cls,
        model: Model,
        circuit: Circuit,
        pairs: PairSet | PairBatch,
        *,
        metric: MetricLike | None = None,
        ablation: str | Replacement = "corrupt",
        reference: PairSet | PairBatch | None = None,
        seed: int = 0,
        allow_weak_gap: bool = False,
        budget: int | None = None,
        progress: Progress = silent,
    ) -> Judge:
        """A judge of circuits of this model, with the arguments of `evaluate`.

        Raises:
            GraphError: The circuit is of a model of another shape.
            CircuitLabError: What is wrong with metric, ablation and reference; see `evaluate`.
        """
        check_circuit(circuit, model)
        judged_by = metric_for(metric, pairs)
        prepared = prepare(model, pairs, budget, replacement=ablation, reference=reference, seed=seed)
        parts = circuit.node_parts
        neurons = parts.neurons if parts.split(circuit.mask).any() else None
        return cls(
            model, prepared, judged_by, neurons=neurons, allow_weak_gap=allow_weak_gap, budget=budget, progress=progress
        )

    def all_metrics(self, mask: Bool[np.ndarray, "writer reader"]) -> dict[str, Float[np.ndarray, " example"]]:
        """The metric, accuracy and KL divergence of one circuit of the judged circuit's neurons, by name."""
        metrics = {m.name: m for m in (self.metric, resolve("accuracy"), resolve("kl"))}
        found = circuit_values(
            self.model, self.prepared, mask[None], list(metrics.values()), neurons=self.neurons, budget=self._budget
        )
        return {name: values[0] for name, values in found.items()}

    def values(
        self, masks: Bool[np.ndarray, "circuit writer reader"], step: str = "circuits", *, part: bool = False
    ) -> Float[np.ndarray, "circuit example"]:
        """The metric of every circuit on every example; with `part` kept edges carry the judged circuit's neurons."""
        if not len(masks):
            return np.zeros((0, self.prepared.n_examples))
        found = circuit_values(
            self.model, self.prepared, masks, [self.metric], neurons=self.neurons if part else None,
            budget=self._budget, progress=self._progress, step=step,
        )  # fmt: skip
        return found[self.metric.name]

    def faithfulness(
        self, masks: Bool[np.ndarray, "circuit writer reader"], step: str = "circuits", *, part: bool = False
    ) -> Float[np.ndarray, " circuit"]:
        """Faithfulness of every circuit: means over examples first, then the ratio."""
        return self._share(self.values(masks, step, part=part))

    def faithfulness_without(
        self, masks: Bool[np.ndarray, "circuit writer reader"], step: str = "circuits"
    ) -> Float[np.ndarray, " circuit"]:
        """Faithfulness of the whole model without what the judged circuit carries along these edges."""
        if self.neurons is None:
            return self.faithfulness(real_edges(Layout.of(self.model.spec)) & ~masks, step)
        return self._share(
            values_without(
                self.model, self.prepared, masks, self.neurons, self.metric, budget=self._budget,
                progress=self._progress, step=step,
            )
        )  # fmt: skip

    def _share(self, values: Float[np.ndarray, "circuit example"]) -> Float[np.ndarray, " circuit"]:
        return (values.mean(1) - self.empty.mean()) / self.gap.mean


def check_circuit(circuit: Circuit, model: Model) -> None:
    """Refuse a circuit that is not of this model.

    Raises:
        GraphError: It is of a model of another shape.
    """
    ours, theirs = model.spec, circuit.spec
    same = ("n_layers", "n_heads", "d_model", "parallel", "has_mlp")
    if any(getattr(ours, name) != getattr(theirs, name) for name in same):
        raise GraphError(
            f"the circuit is of model {circuit.spec.name!r}, whose graph is not that of {model.spec.name!r}."
        )


def check_whole_nodes(circuit: Circuit) -> None:
    """Refuse a circuit that keeps only some neurons of a node.

    Raises:
        GraphError: It does.
    """
    if (split := circuit.node_parts.split(circuit.mask)).any():
        name = circuit.layout.writers[int(split.argmax())].name
        raise GraphError(
            f"the circuit keeps only some neurons of {int(split.sum())} nodes ({name} among them), and the hypothesis "
            "tests are about edges of whole nodes. To test those, give circuit.with_mask(circuit.mask)."
        )
