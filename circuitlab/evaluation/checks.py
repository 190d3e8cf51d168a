"""Whether a circuit goes with a model and a test, and which neurons it keeps."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from circuitlab.errors import GraphError
from circuitlab.graphs.circuit import Circuit
from circuitlab.models.protocol import Model


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


def kept_neurons(circuit: Circuit) -> Bool[np.ndarray, "writer d_model"] | None:
    """The neurons that a circuit keeps of its nodes.

    Returns:
        The mask; None where all neurons are kept.
    """
    parts = circuit.node_parts
    return parts.neurons if parts.split(circuit.mask).any() else None
