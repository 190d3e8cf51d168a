"""Evaluate a circuit on held-out prompts, with everything outside of it replaced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from circuitlab.data.batching import Pairs, prompt_keys
from circuitlab.drawing import draw
from circuitlab.errors import ConfigError
from circuitlab.evaluation.checks import check_circuit, kept_neurons
from circuitlab.evaluation.curve import SUFFICES, Areas, CurvePoint, curves, highest, overshoots, smallest_sufficient
from circuitlab.evaluation.faithfulness import Faithfulness
from circuitlab.evaluation.knockouts import Knockout, Minimality, complement_faithfulness, knockouts, minimality_of
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.random import random_circuit
from circuitlab.graphs.selection import Selection
from circuitlab.metrics import MetricLike, resolve
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.replacement import AblationLike
from circuitlab.progress import Progress, callback
from circuitlab.result import named
from circuitlab.summary import plural


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Evaluation(Faithfulness):
    """The evaluation of a circuit: its faithfulness (`Faithfulness`), and further measures.

    Attributes:
        n_edges: Number of kept edges.
        n_edges_weighted: The same, each edge weighted by the share of its source's neurons that is kept.
        n_edges_total: Number of edges of the graph.
        n_nodes: Number of nodes with a kept edge, input and logits included.
        accuracy_model: Share of examples whose most likely token is an answer, whole model.
        accuracy_circuit: The same for the circuit.
        kl: Mean KL divergence of the circuit's predictions from the model's, in nats.
        curve: Faithfulness by size, edges ranked by absolute score; empty if the circuit has no scores.
        curve_signed: The same, edges ranked by signed score.
        smallest: The smallest circuit of top edges with a faithfulness of at least 0.9; None without scores.
        complement: Faithfulness of the model without the circuit's edges: near 0 if the circuit is complete.
        knockouts: Random parts removed from both the circuit and the model.
        minimality: The effect of each edge on the circuit; None if it was not measured.
    """

    n_edges: int
    n_edges_weighted: float
    n_edges_total: int
    n_nodes: int
    accuracy_model: float
    accuracy_circuit: float
    kl: float
    curve: tuple[CurvePoint, ...]
    curve_signed: tuple[CurvePoint, ...]
    smallest: CurvePoint | None
    complement: float
    knockouts: tuple[Knockout, ...]
    minimality: Minimality | None

    @property
    def n_edges_nominal(self) -> int | None:
        """Edges that a selection took, before pruning; None where the circuit was not selected here."""
        return self.selection and self.selection.nominal

    @property
    def areas(self) -> Areas:
        """CPR and CMD over nominal and achieved sizes, on linear and logarithmic axes; NaN without a curve."""
        return Areas.of(self.curve_signed, self.curve, self.n_edges_total)

    @property
    def cpr(self) -> float:
        """Circuit performance ratio as MIB computes it, NaN if the circuit has no scores."""
        return self.areas.cpr

    @property
    def cmd(self) -> float:
        """Circuit-model distance as MIB computes it, NaN if the circuit has no scores."""
        return self.areas.cmd

    @property
    def overshoot(self) -> bool:
        """Whether the circuit, or one of either curve, exceeds the whole model (f > 1)."""
        circuit_point = CurvePoint(self.n_edges, self.n_edges, self.faithfulness)
        return overshoots((*self.curve, *self.curve_signed, circuit_point))

    @property
    def incompleteness(self) -> float:
        """Mean difference between circuit and model under the same knockouts; NaN without any."""
        return float(np.mean([one.difference for one in self.knockouts])) if self.knockouts else float("nan")

    @property
    def metric_clean(self) -> float:
        """Mean metric of the whole model on the clean prompts."""
        return float(self.clean.mean())

    @property
    def metric_corrupt(self) -> float | None:
        """Mean metric of the whole model on the corrupted prompts; None for pairs without."""
        return None if self.corrupt is None else float(self.corrupt.mean())

    @property
    def metric_empty(self) -> float:
        """Mean metric of the empty circuit."""
        return float(self.empty.mean())

    @property
    def metric_circuit(self) -> float:
        """Mean metric of the circuit on the clean prompts."""
        return float(self.circuit.mean())

    def to_frame(self) -> pd.DataFrame:
        """The faithfulness curve: n_edges, faithfulness and more of circuits of growing size, one row each.

        Returns:
            The table.
        """
        return pd.DataFrame([asdict(point) for point in self.curve])

    def plot(self, title: str = "") -> Any:
        """The faithfulness curve as a matplotlib `Figure`, with the circuit and random circuits of its size.

        Returns:
            The figure.
        """
        return draw(self, title=title)

    def to_record(self) -> dict[str, Any]:
        """The content of `evaluation.json`, described in docs/evaluation.md; null instead of NaN.

        Returns:
            Plain values.
        """
        gap, top = self.gap, highest(self.curve)
        return {
            **named(self, "metric", "ablation"),
            "n": len(self.clean),
            **named(self, "metric_clean", "metric_corrupt", "metric_empty", "metric_circuit"),
            "metric_gap": gap.mean,
            "metric_gap_se": gap.standard_error,
            "faithfulness": self.faithfulness,
            "faithfulness_ci": list(self.interval),
            **named(self, "n_edges", "n_edges_nominal", "n_edges_weighted", "n_edges_total", "n_nodes"),
            **named(self, "accuracy_model", "accuracy_circuit", "kl"),
            **self.areas.to_record(),
            "smallest_sufficient": self.smallest and {"at_least": SUFFICES, **asdict(self.smallest)},
            "overshoot": self.overshoot,
            "highest": top and asdict(top),
            "curve": [asdict(point) for point in self.curve],
            "curve_signed": [asdict(point) for point in self.curve_signed],
            "completeness": {
                "complement_faithfulness": self.complement,
                "incompleteness": None if np.isnan(self.incompleteness) else self.incompleteness,
                "incompleteness_max": max((one.difference for one in self.knockouts), default=None),
                "knockouts": [
                    {"n_edges": one.n_edges, "faithfulness_circuit": one.circuit, "faithfulness_model": one.model}
                    for one in self.knockouts
                ],
            },
            "minimality": self.minimality and self.minimality.to_record(),
            "random_baseline": {"faithfulness": list(self.random)},
            "discovery": self._discovery(),
            "n_seen": self.n_seen,
            "warnings": list(self.warnings),
        }

    def _discovery(self) -> dict[str, Any] | None:
        """Faithfulness on the pairs that the circuit was selected on, and under what; None where it is not known."""
        if self.selection is None or self.selection.metric is None:
            return None
        record = self.selection.to_record()
        return {name: record[name] for name in ("faithfulness", "faithfulness_ci", "metric", "ablation", "n_pairs")}

    def _summary(self) -> str:
        low, high = self.interval
        share = f"faithfulness {self.faithfulness:.3f}, 95 % interval [{low:.3f}, {high:.3f}]"
        return f"of {self.n_edges:,} of {plural(self.n_edges_total, 'edge')}: {share}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        other = {"corrupted": self.metric_corrupt} if self.corrupt is not None else {"empty circuit": self.metric_empty}
        means = {"clean": self.metric_clean, **other, "circuit": self.metric_circuit}
        yield "pairs", len(self.clean)
        yield self.metric, ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        yield "ablation", self.ablation
        yield "accuracy", f"model {self.accuracy_model:.3f}, circuit {self.accuracy_circuit:.3f}"
        yield "KL divergence", f"{self.kl:.4g} nats"
        yield "complement", f"faithfulness without the circuit: {self.complement:.3f}"
        if self.knockouts:
            yield "incompleteness", f"{self.incompleteness:.3f} (mean over {len(self.knockouts)} knockouts)"
        if self.random:
            count = plural(len(self.random), "random circuit")
            yield "random", f"{count} of this size: faithfulness {max(self.random):.3f} at best"
        if self.curve:
            yield "CPR, CMD", f"{self.cpr:.3f}, {self.cmd:.3f}"
        if self.smallest is not None:
            yield "smallest", f"{plural(self.smallest.n_edges, 'edge')} reach {SUFFICES}"
        if self.warnings:
            yield "warning", self.warnings[0]


@model_function
def evaluate(
    model: Model,
    circuit: Circuit,
    pairs: Pairs,
    *,
    metric: MetricLike | None = None,
    ablation: AblationLike = "corrupt",
    reference: Pairs | None = None,
    n_random: int = 20,
    n_knockouts: int = 10,
    minimality: bool = True,
    seed: int = 0,
    allow_weak_gap: bool = False,
    budget: int | None = None,
    progress: Progress | bool | None = None,
) -> Evaluation:
    """Compare a circuit with the whole model, the empty circuit, its own parts and random circuits.

    Args:
        model: The model of the circuit.
        circuit: The circuit; it is run without pruning, and not changed. Where it keeps some neurons of a node, its
            edges from there carry these, and the replacement of the others. Curve and random circuits are of whole
            nodes.
        pairs: Held-out pairs.
        metric: The metric at the answer position; by default that of the task that drew the pairs, else `logit_diff`.
        ablation: The values of excluded edges: "corrupt", "zero", "mean", "mean-position", "mean-span" or "noise", a
            `Replacement`, or a function of (model, batch) that returns every node's output (see `Replacement`).
        reference: Prompts to take means over (the clean ones); none of them may be among `pairs`.
        n_random: Number of random connected circuits with as many edges.
        n_knockouts: Number of random parts of the circuit to remove from it and from the model, for completeness; each
            costs a run of nearly the whole graph.
        minimality: Whether to run the circuit without each of its edges, for minimality; a run an edge.
        seed: Random seed of the interval, the random circuits, the knockouts and the noise.
        allow_weak_gap: Accept pairs without a significant gap between whole model and empty circuit.
        budget: Bytes of memory for a packed run.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).

    Returns:
        The numbers, the curve over sizes, random circuits, completeness and minimality.

    Raises:
        GraphError: The circuit is of a model of another shape.
        UnknownNameError: No such metric or ablation.
        ConfigError: `n_random` or `n_knockouts` is negative; means without reference prompts, or with prompts that are
            scored or do not go with them; reference prompts that nothing needs.
        MetricError: The gap between whole model and empty circuit is not significant (`circuitlab.patching.gap`), or
            the metric gives the wrong shape or NaN.

    Example:
        >>> from circuitlab import evaluate, load_model, load_task, score_edges, select
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> scores = score_edges(model, pairs.discovery, "eap")
        >>> circuit = select(model, scores, pairs.discovery, n_edges=20)
        >>> found = evaluate(model, circuit, pairs.held_out, n_random=2, n_knockouts=0, minimality=False)
        >>> found.faithfulness > 0.8
        True
    """
    experiment = Experiment(model, pairs, metric, ablation, reference, seed, allow_weak_gap, budget, callback(progress))
    return evaluate_circuit(experiment, circuit, n_random=n_random, n_knockouts=n_knockouts, minimality=minimality)


def evaluate_circuit(
    experiment: Experiment, circuit: Circuit, *, n_random: int = 20, n_knockouts: int = 10, minimality: bool = True
) -> Evaluation:
    """Evaluate a circuit on an experiment's pairs; arguments as of `evaluate`.

    Returns:
        The evaluation.

    Raises:
        CircuitLabError: As `evaluate`.
    """
    for name, n, what in (("n_random", n_random, "circuits"), ("n_knockouts", n_knockouts, "parts")):
        if n < 0:
            raise ConfigError(f"{name} is {n}; it counts random {what} and cannot be negative.")
    check_circuit(circuit, experiment.model)
    layout, seed, metric = circuit.layout, experiment.seed, experiment.metric
    accuracy, kl = resolve("accuracy"), resolve("kl")
    _, (accurate, _) = experiment.recordings.ends(metric, accuracy)
    experiment.gap  # noqa: B018 - rejects pairs without a gap
    metrics = list({one.name: one for one in (metric, accuracy, kl)}.values())
    measured = experiment.measure(circuit.mask[None], metrics, "circuit", neurons=kept_neurons(circuit))
    of_circuit = {name: values[0] for name, values in measured.items()}
    curve, by_sign = curves(experiment, circuit)
    rng = np.random.default_rng([seed, 2])
    chance = [random_circuit(layout, circuit.n_edges, rng) for _ in range(n_random)] if circuit.n_edges else []
    return Evaluation(
        metric=metric.name,
        ablation=experiment.replacement.kind,
        clean=experiment.clean,
        corrupt=experiment.corrupt,
        empty=experiment.empty,
        circuit=of_circuit[metric.name],
        n_edges=circuit.n_edges,
        n_edges_weighted=circuit.n_edges_weighted,
        n_edges_total=layout.n_edges,
        n_nodes=len(circuit.nodes),
        accuracy_model=float(accurate.mean()),
        accuracy_circuit=float(of_circuit["accuracy"].mean()),
        kl=float(of_circuit["kl"].mean()),
        curve=curve,
        curve_signed=by_sign,
        smallest=smallest_sufficient(experiment, circuit, curve),
        complement=complement_faithfulness(experiment, circuit),
        knockouts=knockouts(experiment, circuit, n_knockouts, np.random.default_rng([seed, 3])),
        minimality=minimality_of(experiment, circuit, of_circuit[metric.name]) if minimality else None,
        random=tuple(experiment.faithfulness(np.stack(chance), "random circuits").tolist()) if chance else (),
        seed=seed,
        selection=circuit.selection,
        n_seen=_seen(circuit.selection, experiment.pairs),
    )


def _seen(selection: Selection | None, pairs: Pairs) -> int:
    """Number of pairs with a prompt that the circuit was selected on."""
    if selection is None or not selection.prompts:
        return 0
    return sum(not selection.prompts.isdisjoint(keys) for keys in prompt_keys(pairs))
