# ruff: noqa: PT028 - `test_circuit` is no pytest test
"""All five tests on one circuit, from the same runs.

| Test | Outcome that supports the circuit |
|---|---|
| equivalence | not rejected: it scores like the model |
| independence | not rejected: the model without it does not perform the task |
| minimality | not rejected: no edge is dispensable |
| sufficiency | rejected: it is closer to the model than random circuits |
| partial necessity | rejected: the model needs it more than random circuits |

The first three are strict (the paper calls them idealised; most published circuits fail some), the last two weak. A
test that does not reject proves nothing: with few examples none rejects.

References:
    Shi et al. 2024, arXiv:2410.13032.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd

from circuitlab.data.batching import Pairs
from circuitlab.declarations import Setting, options_of
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.evaluation.checks import check_circuit, check_whole_nodes
from circuitlab.evaluation.hypotheses.chance import inflated, minimality_test, necessity_test, sufficiency_test
from circuitlab.evaluation.hypotheses.model import EPSILON, N_PERMUTATIONS, equivalence_test, independence_test
from circuitlab.evaluation.hypotheses.result import QUANTILE, RECORDED, EdgeTests, TestResult
from circuitlab.evaluation.knockouts import without_each
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.random import random_circuit
from circuitlab.metrics import MetricLike
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.replacement import AblationLike
from circuitlab.progress import Progress, callback
from circuitlab.result import Result, named
from circuitlab.summary import plural

CORRECTIONS = ("holm", "bonferroni")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class CircuitTests(Result):
    """Five tests of one circuit.

    Attributes:
        results: The results, in the order of the module's table.
        edges: The minimality test, edge by edge.
        metric: Name of the metric.
        ablation: The values of excluded edges.
        seed: Random seed of circuits and permutations.
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
        UnknownNameError.check("test", name, found)
        return found[name]

    def to_frame(self) -> pd.DataFrame:
        """One row a test: test, null, statistic, p_value, rejected, good, n, least_p.

        Returns:
            The table.
        """
        rows = [{"test": r.name, **named(r, *RECORDED)} for r in self.results]
        return pd.DataFrame(rows)

    def to_record(self) -> dict[str, Any]:
        """All results as plain values.

        Returns:
            The record.
        """
        return {
            **named(self, "metric", "ablation", "seed"),
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


@model_function
def test_circuit(
    model: Model,
    circuit: Circuit,
    pairs: Pairs,
    *,
    metric: MetricLike | None = None,
    ablation: AblationLike = "corrupt",
    reference: Pairs | None = None,
    n_random: Annotated[int, Setting(what="random circuits", least=1)] = 100,
    n_permutations: Annotated[int, Setting(what="permutations", least=1)] = N_PERMUTATIONS,
    epsilon: Annotated[float, Setting(what="distance from a half", above=0, below=0.5)] = EPSILON,
    quantile: Annotated[float, Setting(what="share of the random circuits", above=0, below=1)] = QUANTILE,
    correction: Annotated[str, Setting(what="correction", allowed=CORRECTIONS)] = "holm",
    seed: int = 0,
    budget: int | None = None,
    progress: Progress | bool | None = None,
) -> CircuitTests:
    """Run the five tests of Shi et al. on a circuit; see the modules for each test.

    Args:
        model: The model of the circuit.
        circuit: The circuit, run without pruning.
        pairs: Held-out pairs.
        metric: The score s, per example; by default the metric of the task that drew the pairs, else `logit_diff`.
        ablation: The values of excluded edges, as in `evaluate`.
        reference: Prompts to take means over.
        n_random: Number of random circuits, and random edges, to compare with. Fewer than 29 cannot reject at the
            quantile 0.9. Half of the random runs are of nearly the whole graph.
        n_permutations: Number of permutations of the independence test.
        epsilon: Largest distance from a half in the equivalence test.
        quantile: Share of random circuits or edges to beat in the other three.
        correction: "holm" or "bonferroni", over the circuit's edges.
        seed: Random seed of circuits and permutations; the same seed gives the same numbers.
        budget: Bytes of memory for a packed run.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).

    Returns:
        Statistic, p-value and decision of each test.

    Raises:
        ConfigError: The circuit has no edge or all of them; a number is out of range.
        UnknownNameError: No such metric, ablation or correction.
        GraphError: The circuit keeps only some neurons of a node.
        CircuitLabError: `evaluate` rejects the arguments.

    Example:
        >>> from circuitlab import load_model, load_task, score_edges, select, test_circuit
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> scores = score_edges(model, pairs.discovery, "eap")
        >>> circuit = select(model, scores, pairs.discovery, n_edges=10)
        >>> [test.name for test in test_circuit(model, circuit, pairs.held_out, n_random=2).results][:2]
        ['equivalence', 'independence']
    """
    given = {"n_random": n_random, "n_permutations": n_permutations, "epsilon": epsilon, "quantile": quantile}
    for setting in options_of(test_circuit):
        setting.read({**given, "correction": correction}[setting.name])
    if not 0 < circuit.n_edges < circuit.layout.n_edges:
        raise ConfigError(
            f"the circuit keeps {circuit.n_edges} of {circuit.layout.n_edges} edges; the tests compare it with its "
            "complement and with larger circuits, so it must keep some and not all."
        )
    check_whole_nodes(circuit)
    check_circuit(circuit, model)
    # The tests compare scores of single examples and divide by no gap, so a weak one is allowed.
    experiment = Experiment(model, pairs, metric, ablation, reference, seed, True, budget, callback(progress))
    experiment.gap  # noqa: B018 - rejects pairs without a gap
    layout, real = circuit.layout, real_edges(circuit.layout)
    whole, of_circuit, rest = (
        experiment.clean,
        *experiment.values(np.stack([circuit.mask, real & ~circuit.mask]), "circuit"),
    )
    rng = np.random.default_rng([seed, 10])
    chance = np.stack([random_circuit(layout, circuit.n_edges, rng) for _ in range(n_random)])
    larger = inflated(circuit.mask, layout, n_random, np.random.default_rng([seed, 12]))
    assert larger is not None, "a circuit without all edges leaves a path that adds one"
    added = experiment.values(larger[0], "inflated") - experiment.values(larger[1], "inflated")
    minimal, edges = minimality_test(
        tuple(edge for edge, _ in circuit.edges()),
        np.abs(of_circuit - without_each(experiment, circuit)).mean(1),
        np.abs(added).mean(1),
        correction,
        quantile,
    )
    return CircuitTests(
        results=(
            equivalence_test(of_circuit, whole, epsilon),
            independence_test(rest, whole, seed, n_permutations),
            minimal,
            sufficiency_test(of_circuit, experiment.values(chance, "random circuits"), whole, quantile),
            necessity_test(rest, experiment.values(real & ~chance, "random knock-outs"), whole, quantile),
        ),
        edges=edges,
        metric=experiment.metric.name,
        ablation=experiment.replacement.kind,
        seed=seed,
    )


test_circuit.__test__ = False  # type: ignore[attr-defined]  # for pytest: no test of this library's
