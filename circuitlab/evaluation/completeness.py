"""Completeness: whether the model without the circuit still performs the task.

Two measures, both in units of faithfulness:

- the **complement**: faithfulness of all edges outside of the circuit. Near 0: the circuit is complete.
- **same under knockouts**: with the same random part K of the circuit removed from the circuit C and from the model N,
  |f(C without K) - f(N without K)|. Near 0 for every K: the damaged circuit behaves like the damaged model. A model
  with a second mechanism that the circuit misses keeps its performance where the circuit loses it.

K is drawn in two steps, first its number of edges (uniformly from 1 to all of them), then the edges. The search for the
worst K (greedy, in the paper) is not done, so that the largest difference here is a lower bound.

References:
    Wang et al. 2022, arXiv:2211.00593 (completeness); Marks et al. 2024, arXiv:2403.19647 (the complement).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from circuitlab.evaluation.checks import kept_neurons
from circuitlab.graphs.circuit import Circuit
from circuitlab.patching.experiment import Experiment


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
