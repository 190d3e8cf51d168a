"""The whole model without what a circuit of neurons carries.

A circuit that keeps some neurons of a node carries these along its edges. Its complement is everything else: all other
edges, and along its own edges the other neurons. So a reader's input is

    x_v = sum over all u of a_u - sum over edges u -> v that are taken out of n_u (a_u - r_u)

with n_u 1 for kept neurons and 0 for others. Every node is computed, one circuit after the other (`SoftCircuit`).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float

from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.circuits.metric import Prepared
from circuitlab.patching.circuits.soft_circuit import Part, SoftCircuit
from circuitlab.patching.runs.packing import packs, rows_per_pack
from circuitlab.progress import Progress, silent


@torch.no_grad()
def values_without(
    model: Model,
    prepared: Prepared,
    taken: Bool[np.ndarray, "circuit writer reader"],
    neurons: Bool[np.ndarray, "writer d_model"],
    metric: Metric,
    *,
    budget: int | None = None,
    progress: Progress = silent,
    step: str = "complement",
) -> Float[np.ndarray, "circuit example"]:
    """The metric of the whole model with some neurons replaced on some edges; see the module.

    Args:
        model: A model of `load_model`.
        prepared: The data set, recorded.
        taken: Edges that these neurons are taken out of.
        neurons: Which components of each writer's output.
        metric: What is measured.
        budget: Bytes that a packed run may take.
        progress: Called with (step, done, total).
        step: What the progress is called.

    Raises:
        UnsupportedModelError: The model is not one that `load_model` made.
    """
    layout, like = Layout.of(model.spec), {"dtype": model.dtype, "device": model.device}
    out = np.zeros((len(taken), prepared.n_examples))
    whole, kept = torch.tensor(real_edges(layout), **like), torch.tensor(neurons, **like)
    streams, done = len(layout.writers) + 3 * model.spec.n_heads, 0
    for baseline, floor in zip(prepared.baselines, prepared.floors, strict=True):
        batch, circuit = baseline.batch, SoftCircuit(model, baseline, floor)
        where, at_once = batch.index.cpu().numpy(), rows_per_pack(model, batch.n_tokens, budget, streams)
        for number, edges in enumerate(taken):
            less = Part(edges=torch.tensor(edges, **like) * whole, neurons=kept)
            for part in packs(len(batch), at_once):
                rows = torch.arange(part.start, part.stop, device=model.device)
                final = circuit.final(whole.expand(len(rows), *whole.shape), rows, less)
                some = batch.take(rows)
                out[number, where[part]] = metric(model.logits(final), some).double().cpu().numpy()
            done += 1
            progress(step, done, len(taken) * len(prepared.baselines))
    return out
