"""Records of nodes and neurons in circuit files, preserved so that files round-trip without loss.

Edges decide what a circuit is; a node's own `in_graph` follows from them unless a file states it, and is
then only carried along, as in EAP-IG, which prunes by edges only. Neurons are the entries of a writer's output.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.errors import GraphError
from circuitlab.parts import Layout
from circuitlab.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NodeParts(Summary):
    """Matrices indexed as in `Layout`; None if absent.

    Attributes:
        kept: Writers that a file marks as part of the circuit, if that differs from what its edges imply.
        scores: Scores of writers, positive where they help; NaN: not scored, always kept.
        neurons: Which entries of each writer's output are part of the circuit.
        neuron_scores: Scores of these entries; NaN: not scored, always kept.
    """

    kept: Bool[np.ndarray, " writer"] | None = None
    scores: Float[np.ndarray, " writer"] | None = None
    neurons: Bool[np.ndarray, "writer d_model"] | None = None
    neuron_scores: Float[np.ndarray, "writer d_model"] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            if given is not None:
                own = given.copy()
                own.setflags(write=False)
                object.__setattr__(self, field.name, own)

    def check(self, layout: Layout) -> None:
        """Refuse matrices of another model.

        Raises:
            GraphError: A matrix has the wrong shape.
        """
        n_writers, d_model = len(layout.writers), layout.spec.d_model
        for field in fields(self):
            given = getattr(self, field.name)
            shape = (n_writers, d_model) if field.name in ("neurons", "neuron_scores") else (n_writers,)
            if given is not None and given.shape != shape:
                raise GraphError(
                    f"node_parts.{field.name} has shape {given.shape}; model {layout.spec.name!r} wants {shape}."
                )

    def scores_only(self) -> NodeParts:
        """The same scores with nothing selected: for another selection of edges.

        Returns:
            A new record.
        """
        return replace(self, kept=None, neurons=None)

    def split(self, mask: Bool[np.ndarray, "writer reader"]) -> Bool[np.ndarray, " writer"]:
        """Writers with a kept edge of which only some neurons are kept.

        Returns:
            True for writers of which some neurons are kept and some are not.
        """
        writes = np.asarray(mask.any(1))
        return np.zeros_like(writes) if self.neurons is None else np.asarray(writes & ~self.neurons.all(1))
