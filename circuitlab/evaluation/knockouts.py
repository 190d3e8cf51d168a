"""Circuits without some of their edges: completeness and minimality, both in units of faithfulness.

**Completeness**: whether the model without the circuit still performs the task.

- The **complement**: faithfulness of all edges outside of the circuit. Near 0: the circuit is complete.
- **Same under knockouts**: with the same random part K of the circuit removed from the circuit C and from the model N,
  |f(C without K) - f(N without K)|. Near 0 for every K: the damaged circuit behaves like the damaged model. A model
  with a second mechanism that the circuit misses keeps its performance where the circuit loses it.

K is drawn in two steps, first its number of edges (uniformly from 1 to all of them), then the edges. The search for the
worst K (greedy, in the paper) is not done, so that the largest difference here is a lower bound.

**Minimality**: the effect of an edge e on its circuit, f(C) - f(C without e): positive where the circuit needs it,
near 0 where the edge is dispensable, negative where the circuit is better without it. The circuit is run for every
edge, nothing is estimated; edges that connect to nothing else are not pruned, as they have no effect.

References:
    Wang et al. 2022, arXiv:2211.00593 (completeness; minimality with K empty: the largest effect over all K is not
    searched for); Marks et al. 2024, arXiv:2403.19647 (the complement).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from circuitlab import stats
from circuitlab.evaluation.checks import kept_neurons
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.ranking import edge_places
from circuitlab.parts import Edge
from circuitlab.patching.experiment import Experiment
from circuitlab.result import Result
from circuitlab.summary import largest, plural


@dataclass(frozen=True, slots=True)
class Knockout:
    """The same edges of the circuit taken out of the circuit and out of the model.

    Attributes:
        n_edges: Their number.
        circuit: Faithfulness of the circuit without them.
        model: Faithfulness of the whole model without them.
    """

    n_edges: int
    circuit: float
    model: float

    @property
    def difference(self) -> float:
        """The absolute difference of the two."""
        return abs(self.circuit - self.model)


def complement_faithfulness(experiment: Experiment, circuit: Circuit) -> float:
    """Faithfulness of the model without the circuit's edges, or its neurons along them; not pruned.

    Returns:
        The faithfulness.
    """
    found = experiment.faithfulness_without(circuit.mask[None], "complement", neurons=kept_neurons(circuit))
    return float(found[0])


def knockouts(experiment: Experiment, circuit: Circuit, n: int, rng: np.random.Generator) -> tuple[Knockout, ...]:
    """So many random parts of the circuit, each taken out of the circuit and of the model; see the module.

    Args:
        experiment: The data set.
        circuit: The circuit.
        n: Number of parts.
        rng: All randomness comes from it.

    Returns:
        One record a part; none for a circuit without edges.
    """
    if not circuit.n_edges or not n:
        return ()
    parts = np.stack([_part(circuit.mask, rng) for _ in range(n)])
    neurons = kept_neurons(circuit)
    damaged = experiment.faithfulness(circuit.mask & ~parts, "knockouts", neurons=neurons)
    rest = experiment.faithfulness_without(parts, "knockouts", neurons=neurons)
    return tuple(Knockout(int(part.sum()), float(c), float(m)) for part, c, m in zip(parts, damaged, rest, strict=True))


def _part(mask: Bool[np.ndarray, "writer reader"], rng: np.random.Generator) -> Bool[np.ndarray, "writer reader"]:
    places = np.flatnonzero(mask)
    part = np.zeros(mask.size, dtype=bool)
    part[rng.choice(places, size=rng.integers(1, len(places) + 1), replace=False)] = True
    return part.reshape(mask.shape)


# Entries of the masks alive at once, a byte each: a circuit of 5,000 of the edges of Llama-3.2-1B would have 4e9.
MASKED_AT_ONCE = 2**26


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Minimality(Result):
    """The effect of each edge on its circuit.

    Attributes:
        edges: The circuit's edges, in the order of `Layout.edges`.
        effect: f(C) - f(C without the edge).
        low: Lower end of its 95 % bootstrap interval over examples.
        high: Upper end.
    """

    edges: tuple[Edge, ...]
    effect: Float[np.ndarray, " edge"]
    low: Float[np.ndarray, " edge"]
    high: Float[np.ndarray, " edge"]

    @property
    def dispensable(self) -> tuple[Edge, ...]:
        """Edges whose interval reaches 0 or lies below: these prompts do not show that the circuit needs them."""
        return tuple(edge for edge, low in zip(self.edges, self.low, strict=True) if low <= 0)

    def to_frame(self) -> pd.DataFrame:
        """One row an edge: edge, effect, ci_low, ci_high.

        Returns:
            The table.
        """
        names = [edge.name for edge in self.edges]
        return pd.DataFrame({"edge": names, "effect": self.effect, "ci_low": self.low, "ci_high": self.high})

    def to_record(self) -> list[dict[str, object]]:
        """The effects as plain values.

        Returns:
            One record an edge.
        """
        rows = zip(self.edges, self.effect.tolist(), self.low.tolist(), self.high.tolist(), strict=True)
        return [{"edge": edge.name, "effect": effect, "ci": [low, high]} for edge, effect, low, high in rows]

    def _summary(self) -> str:
        return f"of {plural(len(self.edges), 'edge')}: {len(self.dispensable):,} dispensable"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield from largest(self.effect, lambda number: self.edges[number].name, label="largest effect")


def minimality_of(experiment: Experiment, circuit: Circuit, whole: Float[np.ndarray, " example"]) -> Minimality:
    """Run the circuit once without each of its edges; see the module.

    Args:
        experiment: The data set.
        circuit: The circuit.
        whole: The metric of the circuit with all its edges, per example.

    Returns:
        The effects of the edges.
    """
    lost = whole - without_each(experiment, circuit)
    gap = experiment.clean - experiment.empty
    interval = stats.ratio_interval(lost, gap, experiment.seed)
    return Minimality(
        edges=tuple(edge for edge, _ in circuit.edges()),
        effect=stats.ratio_of_means(lost, gap),
        low=interval.low,
        high=interval.high,
    )


def without_each(experiment: Experiment, circuit: Circuit) -> Float[np.ndarray, "edge example"]:
    """The metric of the circuit without each of its edges, in the order of `Layout.edges`.

    Returns:
        One row an edge.
    """
    places = edge_places(circuit.layout)
    places = places[circuit.mask[places[:, 0], places[:, 1]]]
    size = max(1, MASKED_AT_ONCE // circuit.mask.size)
    found, neurons = [np.zeros((0, experiment.n_examples))], kept_neurons(circuit)
    for start in range(0, len(places), size):
        part = places[start : start + size]
        masks = np.repeat(circuit.mask[None], len(part), axis=0)
        masks[np.arange(len(part)), part[:, 0], part[:, 1]] = False
        found.append(experiment.values(masks, "minimality", neurons=neurons))
    return np.concatenate(found)
