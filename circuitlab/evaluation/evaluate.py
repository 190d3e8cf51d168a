"""Test a circuit on held-out prompts, with everything outside it replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitlab import stats
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, GraphError
from circuitlab.evaluation.areas import MIB_SHARES, cmd, cpr, mib_sizes
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.graphs.random import random_circuit
from circuitlab.graphs.ranking import mask_of, ranked_edges
from circuitlab.metrics import Metric, resolve
from circuitlab.metrics.base import MetricFunction
from circuitlab.models.protocol import Model
from circuitlab.patching.baseline import check_gap
from circuitlab.patching.circuit_metric import Prepared, circuit_values, prepare
from circuitlab.patching.replacement import Replacement
from circuitlab.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One size on the faithfulness curve, edges ranked by absolute score.

    Attributes:
        n_edges: Edges after pruning: what really ran.
        n_edges_nominal: Edges before pruning.
        faithfulness: Ratio of means.
    """

    n_edges: int
    n_edges_nominal: int
    faithfulness: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """How a circuit does. Per-example values are kept; the numbers of the report follow from them.

    Attributes:
        metric: Name of the metric.
        ablation: What excluded edges carry.
        clean: Metric of the whole model on the clean prompts.
        corrupt: Metric of the whole model on the corrupted prompts.
        empty: Metric of the empty circuit, in which every edge is replaced; for ablation "corrupt" the same.
        circuit: Metric of the circuit.
        n_edges: Kept edges.
        n_edges_total: Edges of the graph.
        n_nodes: Nodes with a kept edge, input and logits included.
        accuracy_model: Share of examples whose most likely token is an answer, whole model.
        accuracy_circuit: The same of the circuit.
        kl: Mean KL divergence of the circuit's predictions from the model's, in nats.
        cpr: Circuit performance ratio (MIB), NaN if the circuit has no scores.
        cmd: Circuit-model distance (MIB), NaN if the circuit has no scores.
        curve: Faithfulness by size; empty if the circuit has no scores.
        random: Faithfulness of random connected circuits with as many edges.
        seed: Of the interval and the random circuits.
    """

    metric: str
    ablation: str
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"]
    empty: Float[np.ndarray, " example"]
    circuit: Float[np.ndarray, " example"]
    n_edges: int
    n_edges_total: int
    n_nodes: int
    accuracy_model: float
    accuracy_circuit: float
    kl: float
    cpr: float
    cmd: float
    curve: tuple[CurvePoint, ...]
    random: tuple[float, ...]
    seed: int

    @property
    def faithfulness(self) -> float:
        """(m(circuit) - m(empty)) / (m(clean) - m(empty)), means over examples first.

        References:
            Marks et al. 2024, arXiv:2403.19647; Mueller et al. 2025 (MIB), arXiv:2504.13151.
        """
        return float(stats.ratio_of_means(self.circuit - self.empty, self.clean - self.empty))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the faithfulness over examples."""
        found = stats.ratio_interval(self.circuit - self.empty, self.clean - self.empty, self.seed)
        return float(found.low), float(found.high)

    @property
    def metric_clean(self) -> float:
        """Mean metric of the whole model on the clean prompts."""
        return float(self.clean.mean())

    @property
    def metric_corrupt(self) -> float:
        """Mean metric of the whole model on the corrupted prompts."""
        return float(self.corrupt.mean())

    @property
    def metric_empty(self) -> float:
        """Mean metric of the empty circuit."""
        return float(self.empty.mean())

    @property
    def metric_circuit(self) -> float:
        """Mean metric of the circuit on the clean prompts."""
        return float(self.circuit.mean())

    def to_record(self) -> dict[str, Any]:
        """The content of `evaluation.json`; what is not a number is null."""
        low, high = self.interval
        return {
            "metric": self.metric,
            "ablation": self.ablation,
            "n": len(self.clean),
            "metric_clean": self.metric_clean,
            "metric_corrupt": self.metric_corrupt,
            "metric_empty": self.metric_empty,
            "metric_circuit": self.metric_circuit,
            "faithfulness": self.faithfulness,
            "faithfulness_ci": [low, high],
            "n_edges": self.n_edges,
            "n_edges_total": self.n_edges_total,
            "n_nodes": self.n_nodes,
            "accuracy_model": self.accuracy_model,
            "accuracy_circuit": self.accuracy_circuit,
            "kl": self.kl,
            "cpr": None if np.isnan(self.cpr) else self.cpr,
            "cmd": None if np.isnan(self.cmd) else self.cmd,
            "curve": [
                {"n_edges": p.n_edges, "n_edges_nominal": p.n_edges_nominal, "faithfulness": p.faithfulness}
                for p in self.curve
            ],
            "random_baseline": {"faithfulness": list(self.random)},
        }


def evaluate(
    model: Model,
    circuit: Circuit,
    pairs: PairSet | PairBatch,
    *,
    metric: str | Metric | MetricFunction = "logit_diff",
    ablation: str | Replacement = "corrupt",
    reference: PairSet | PairBatch | None = None,
    n_random: int = 20,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Run a circuit on pairs and set it against the whole model, the empty circuit and random ones.

    Args:
        model: The model the circuit is of.
        circuit: The circuit; it is run as it is, pruned or not, and never changed.
        pairs: Held-out pairs.
        metric: What is measured at the answer position.
        ablation: What excluded edges carry: "corrupt", "zero", "mean", "mean-position", "mean-span" or "noise", or a
            `Replacement`.
        reference: Prompts that means are taken of (their clean ones); none of them may be among `pairs`.
        n_random: How many random connected circuits with as many edges.
        seed: Of the interval, the random circuits and the noise.
        budget: Bytes that a packed run may take.
        progress: Called with (step, done, total).

    Raises:
        GraphError: The circuit is of a model of another shape.
        UnknownNameError: No such metric or ablation.
        ConfigError: `n_random` is negative; means without reference prompts, or with prompts that are scored or do not
            go with them; reference prompts that nothing needs.
        MetricError: The metric is the same for the whole model and the empty circuit, or gives the wrong shape or NaN.
    """
    if circuit.mask.shape != (len(circuit.layout.writers), len(circuit.layout.readers)) or not _fits(circuit, model):
        raise GraphError(
            f"the circuit is of model {circuit.spec.name!r}, whose graph is not that of {model.spec.name!r}."
        )
    if n_random < 0:
        raise ConfigError(f"n_random is {n_random}; it counts random circuits and cannot be negative.")
    judged_by = resolve(metric)
    prepared = prepare(model, pairs, budget, replacement=ablation, reference=reference, seed=seed)
    judge = _Judge(model, prepared, judged_by, budget, progress)
    layout = circuit.layout
    own = judge.all_metrics(circuit.mask)
    curve, by_sign = _curves(judge, circuit)
    rng = np.random.default_rng([seed, 2])
    chance = [random_circuit(layout, circuit.n_edges, rng) for _ in range(n_random)] if circuit.n_edges else []
    return Evaluation(
        metric=judged_by.name,
        ablation=prepared.replacement.kind,
        clean=judge.clean,
        corrupt=prepared.corrupted(judged_by),
        empty=judge.empty,
        circuit=own[judged_by.name],
        n_edges=circuit.n_edges,
        n_edges_total=layout.n_edges,
        n_nodes=len(circuit.nodes),
        accuracy_model=float(prepared.gaps(resolve("accuracy"))[0].mean()),
        accuracy_circuit=float(own["accuracy"].mean()),
        kl=float(own["kl"].mean()),
        cpr=cpr(by_sign) if by_sign else float("nan"),
        cmd=cmd([point.faithfulness for point in curve]) if curve else float("nan"),
        curve=curve,
        random=tuple(judge.faithfulness(np.stack(chance), "random circuits")) if chance else (),
        seed=seed,
    )


class _Judge:
    """Faithfulness of many circuits on one recorded data set."""

    def __init__(
        self, model: Model, prepared: Prepared, metric: Metric, budget: int | None, progress: Progress
    ) -> None:
        self.model, self.prepared, self.metric = model, prepared, metric
        self._budget, self._progress = budget, progress
        self.clean, self.empty = prepared.gaps(metric)
        self._gap = float((self.clean - self.empty).mean())
        check_gap(metric, self.clean, self.empty, prepared.empty_is)

    def all_metrics(self, mask: Bool[np.ndarray, "writer reader"]) -> dict[str, Float[np.ndarray, " example"]]:
        metrics = {m.name: m for m in (self.metric, resolve("accuracy"), resolve("kl"))}
        found = circuit_values(self.model, self.prepared, mask[None], list(metrics.values()), budget=self._budget)
        return {name: values[0] for name, values in found.items()}

    def faithfulness(self, masks: Bool[np.ndarray, "circuit writer reader"], step: str) -> list[float]:
        found = circuit_values(
            self.model, self.prepared, masks, [self.metric], budget=self._budget, progress=self._progress, step=step
        )
        return [float(v) for v in (found[self.metric.name].mean(1) - self.empty.mean()) / self._gap]


def _fits(circuit: Circuit, model: Model) -> bool:
    ours, theirs = model.spec, circuit.spec
    return all(
        getattr(ours, f) == getattr(theirs, f) for f in ("n_layers", "n_heads", "d_model", "parallel", "has_mlp")
    )


def _curves(judge: _Judge, circuit: Circuit) -> tuple[tuple[CurvePoint, ...], list[float]]:
    """Faithfulness at MIB's sizes: by absolute score as points (for CMD), by signed score as numbers (for CPR)."""
    real = real_edges(circuit.layout)
    if not np.isfinite(circuit.scores[real]).all() or not circuit.scores[real].any():
        return (), []
    sizes = mib_sizes(circuit.layout.n_edges)
    absolute = _top(circuit, np.abs(circuit.scores), sizes)
    signed = _top(circuit, circuit.scores, sizes)
    found = judge.faithfulness(np.concatenate([absolute, signed]), "curve")
    points = tuple(
        CurvePoint(int(mask.sum()), size, value)
        for mask, size, value in zip(absolute, sizes, found[: len(MIB_SHARES)], strict=True)
    )
    return points, found[len(MIB_SHARES) :]


def _top(circuit: Circuit, keys: np.ndarray, sizes: Sequence[int]) -> Bool[np.ndarray, "size writer reader"]:
    """Top edges by key at each size, pruned."""
    order = ranked_edges(keys, circuit.layout)
    return np.stack([prune(mask_of(order[:size], circuit.layout), circuit.layout) for size in sizes])
