"""The whole model without what a circuit of neurons carries.

A circuit that keeps some neurons of a node carries these along its edges. Its complement is everything else: all other
edges, and along its own edges the other neurons. So a reader's input is

    x_v = sum over all u of a_u - sum over edges u -> v that are taken out of n_u (a_u - r_u)

with n_u 1 for kept neurons and 0 for others. Every node is computed, one circuit after the other (`SoftCircuit`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.graphs.prune import real_edges
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.circuits.soft_circuit import Part, SoftCircuit
from circuitlab.patching.runs.ablation import AblatedRun
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.packing import packs, rows_per_pack
from circuitlab.resources import Resources


@torch.no_grad()
def run_without(
    model: Model,
    baseline: Baseline,
    ablated: AblatedRun,
    taken: Bool[np.ndarray, "circuit writer reader"],
    neurons: Bool[np.ndarray, "writer d_model"],
    resources: Resources,
) -> Iterator[tuple[int, Float[Tensor, "batch d_model"]]]:
    """Run the whole model with some neurons replaced on some edges; see the module.

    Args:
        model: A model of `load_model`.
        baseline: One batch, run clean and corrupted.
        ablated: The run of it in which every edge is replaced.
        taken: Edges that these neurons are taken out of, one mask a circuit.
        neurons: Which components of each writer's output.
        resources: Bytes that a packed run may take.

    Yields:
        The number of a circuit, and the final stream at the answer without it.

    Raises:
        UnsupportedModelError: The model is not one that `load_model` made.
    """
    layout, like = Layout.of(model.spec), {"dtype": model.dtype, "device": model.device}
    whole, kept = torch.tensor(real_edges(layout), **like), torch.tensor(neurons, **like)
    batch, circuit = baseline.batch, SoftCircuit(model, baseline, ablated)
    at_once = rows_per_pack(model, batch.n_tokens, resources, len(layout.writers) + 3 * model.spec.n_heads)
    for number, edges in enumerate(taken):
        less = Part(edges=torch.tensor(edges, **like) * whole, neurons=kept)
        found = []
        for part in packs(len(batch), at_once):
            rows = torch.arange(part.start, part.stop, device=model.device)
            found.append(circuit.final(whole.expand(len(rows), *whole.shape), rows, less))
        yield number, torch.cat(found)
