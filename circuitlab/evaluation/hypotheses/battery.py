# ruff: noqa: PT028 - `test_circuit` is no pytest test
"""All five tests on one circuit, from the same runs.

| Test | Speaks for the circuit |
|---|---|
| equivalence | not rejected: it does as well as the model |
| independence | not rejected: without it the model knows nothing of the task |
| minimality | not rejected: no edge could go |
| sufficiency | rejected: it does better than random circuits |
| partial necessity | rejected: the model misses it more than random circuits |

The first three ask much (the paper calls them idealised; most published circuits fail some), the last two little. Not
to reject is no proof: with few examples nothing is rejected.

References:
    Shi et al. 2024, arXiv:2410.13032.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitlab.arguments import checked
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.evaluation.checks import check_circuit, check_whole_nodes
from circuitlab.evaluation.hypotheses.equivalence import EPSILON, equivalence_test
from circuitlab.evaluation.hypotheses.independence import N_PERMUTATIONS, independence_test
from circuitlab.evaluation.hypotheses.minimality import inflated, minimality_test
from circuitlab.evaluation.hypotheses.necessity import necessity_test
from circuitlab.evaluation.hypotheses.quantile import QUANTILE
from circuitlab.evaluation.hypotheses.result import EdgeTests, TestResult
from circuitlab.evaluation.hypotheses.sufficiency import sufficiency_test
from circuitlab.evaluation.minimality import without_each
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.random import random_circuit
from circuitlab.metrics import MetricLike
from circuitlab.models.modes import in_ordinary_modes
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.replacement import AblationLike
from circuitlab.progress import Progress, callback, reports_progress
from circuitlab.summary import Summary, plural

if TYPE_CHECKING:
    import pandas as pd

CORRECTIONS = ("holm", "bonferroni")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class CircuitTests(Summary):
    """Five tests of one circuit.

    Attributes:
        results: One a test, in the order of the module's table.
        edges: The minimality test, edge by edge.
        metric: What was scored.
        ablation: What excluded edges carried.
        seed: Of random circuits and permutations.
    """

    results: tuple[TestResult, ...]
    edges: EdgeTests
    metric: str
    ablation: str
    seed: int

    def __getitem__(self, name: str) -> TestResult:
        """The result of one test.

        Raises:
            UnknownNameError: There is no test of this name.
        """
        found = {result.name: result for result in self.results}
        if name not in found:
            raise UnknownNameError.of("test", name, found)
        return found[name]

    def to_frame(self) -> pd.DataFrame:
        """One row a test: test, null, statistic, p_value, rejected, good, n, least_p."""
        import pandas as pd

        names = ("null", "statistic", "p_value", "rejected", "good", "n", "least_p")
        rows = [{"test": r.name, **{name: getattr(r, name) for name in names}} for r in self.results]
        return pd.DataFrame(rows)

    def to_record(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "metric": self.metric,
            "ablation": self.ablation,
            "seed": self.seed,
            "correction": self.edges.correction,
            "tests": [result.to_record() for result in self.results],
            "edges": self.edges.to_frame().to_dict(orient="records"),
        }

    def _summary(self) -> str:
        good = sum(result.good for result in self.results)
        return f"of {plural(len(self.edges.edges), 'edge')}: {good} of {len(self.results)} tests in favour"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "metric", f"{self.metric}, ablation {self.ablation}"
        for result in self.results:
            yield result.name, f"p = {result.p_value:.3g}, {'for' if result.good else 'against'} the circuit"


@checked
@in_ordinary_modes
@reports_progress
def test_circuit(
    model: Model,
    circuit: Circuit,
    pairs: PairSet | PairBatch,
    *,
    metric: MetricLike | None = None,
    ablation: AblationLike = "corrupt",
    reference: PairSet | PairBatch | None = None,
    n_random: int = 100,
    n_permutations: int = N_PERMUTATIONS,
    epsilon: float = EPSILON,
    quantile: float = QUANTILE,
    correction: str = "holm",
    seed: int = 0,
    budget: int | None = None,
    progress: Progress | bool | None = None,
) -> CircuitTests:
    """Put a circuit to the five tests of Shi et al.; see the modules for what each asks.

    Args:
        model: The model the circuit is of.
        circuit: The circuit, run as it is.
        pairs: Held-out pairs.
        metric: The score s, per example; by default the metric of the task that drew the pairs, else `logit_diff`.
        ablation: What excluded edges carry, as in `evaluate`.
        reference: Prompts that means are taken of.
        n_random: How many random circuits, and random edges, to compare with. Fewer than 29 can reject nothing at the
            quantile 0.9. Half of the random runs are of nearly the whole graph.
        n_permutations: Of the independence test.
        epsilon: Of the equivalence test.
        quantile: Of the other three.
        correction: "holm" or "bonferroni", over the circuit's edges.
        seed: Of random circuits and permutations; the same seed gives the same numbers.
        budget: Bytes that a packed run may take.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).

    Returns:
        Statistic, p-value and decision of each test.

    Raises:
        ConfigError: The circuit has no edge or all of them; a number is out of range.
        UnknownNameError: No such metric, ablation or correction.
        GraphError: The circuit keeps only some neurons of a node.
        CircuitLabError: What `evaluate` refuses.

    Example:
        >>> from circuitlab import load_model, load_task, score_edges, select, test_circuit
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> scores = score_edges(model, pairs.discovery, "eap")
        >>> circuit = select(model, scores, pairs.discovery, n_edges=10)
        >>> [test.name for test in test_circuit(model, circuit, pairs.held_out, n_random=2).results][:2]
        ['equivalence', 'independence']
    """
    _check(circuit, n_random, n_permutations, epsilon, quantile, correction)
    check_whole_nodes(circuit)
    check_circuit(circuit, model)
    # The tests compare scores of single examples and divide by no gap, so a weak one does them no harm.
    experiment = Experiment(
        model, pairs, metric, ablation, reference, seed, allow_weak_gap=True, budget=budget,
        progress=callback(progress),
    )  # fmt: skip
    return _tested(experiment, circuit, n_random, n_permutations, epsilon, quantile, correction)


test_circuit.__test__ = False  # type: ignore[attr-defined]  # for pytest: no test of this library's


def _tested(
    experiment: Experiment,
    circuit: Circuit,
    n_random: int,
    n_permutations: int,
    epsilon: float,
    quantile: float,
    correction: str,
) -> CircuitTests:
    """All five tests of a circuit on an experiment's pairs."""
    experiment.gap  # noqa: B018 - refuses pairs on which there is nothing to explain
    layout, real, seed = circuit.layout, real_edges(circuit.layout), experiment.seed
    whole, own, rest = experiment.clean, *experiment.values(np.stack([circuit.mask, real & ~circuit.mask]), "circuit")
    rng = np.random.default_rng([seed, 10])
    chance = np.stack([random_circuit(layout, circuit.n_edges, rng) for _ in range(n_random)])
    larger = inflated(circuit.mask, layout, n_random, np.random.default_rng([seed, 12]))
    assert larger is not None, "a circuit without all edges leaves a path that brings one"
    added = experiment.values(larger.whole, "inflated") - experiment.values(larger.without, "inflated")
    minimal, edges = minimality_test(
        tuple(edge for edge, _ in circuit.edges()),
        np.abs(own - without_each(experiment, circuit)).mean(1),
        np.abs(added).mean(1),
        correction,
        quantile,
    )
    return CircuitTests(
        results=(
            equivalence_test(own, whole, epsilon),
            independence_test(rest, whole, seed, n_permutations),
            minimal,
            sufficiency_test(own, experiment.values(chance, "random circuits"), whole, quantile),
            necessity_test(rest, experiment.values(real & ~chance, "random knock-outs"), whole, quantile),
        ),
        edges=edges,
        metric=experiment.metric.name,
        ablation=experiment.replacement.kind,
        seed=seed,
    )


def _check(
    circuit: Circuit, n_random: int, n_permutations: int, epsilon: float, quantile: float, correction: str
) -> None:
    if not 0 < circuit.n_edges < circuit.layout.n_edges:
        raise ConfigError(
            f"the circuit keeps {circuit.n_edges} of {circuit.layout.n_edges} edges; the tests compare it with its "
            "complement and with larger circuits, so it must keep some and not all."
        )
    for name, value in (("n_random", n_random), ("n_permutations", n_permutations)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; at least 1 is needed.")
    if not 0 < epsilon < 0.5:
        raise ConfigError(f"epsilon is {epsilon}; a distance from a half lies above 0 and below 0.5.")
    if not 0 < quantile < 1:
        raise ConfigError(f"quantile is {quantile}; a share lies above 0 and below 1.")
    if correction not in CORRECTIONS:
        raise UnknownNameError.of("correction", correction, CORRECTIONS)
