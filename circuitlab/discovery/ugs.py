"""UGS: uniform gradient sampling, which learns for every edge how likely it belongs to the circuit.

1. Every edge has a probability theta = sigmoid(phi). A step draws gates for every example: uniform between 0 and 1 with
   probability w = theta (1 - theta), else open or shut, nearly as a coin that falls open with probability theta.
2. It lowers KL(whole model || circuit) + penalty * (sum of all theta). Where a gate lies between 0 and 1 the slope of
   the KL there, on average, is what the KL gains by keeping the edge; each edge's slope is the mean over those examples
   of the step in which its gate did. Excluded edges carry the corrupted run.
3. An edge's score is theta, between 0 and 1. It says that an edge is needed, never that it hurts.

The published method can learn what excluded edges carry along with the gates (optimal ablation); here that is given.

References:
    Li and Janson 2024, arXiv:2409.09951.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from circuitlab.declarations import Setting
from circuitlab.discovery.gates import logit, uniform_gates
from circuitlab.discovery.mask_training import BatchSize, Checkpoint, MaskLoss, Rate, Training, Updates, training_key
from circuitlab.discovery.scores import EdgeScores
from circuitlab.patching.experiment import Experiment

# Where every theta begins: mostly open, and between 0 and 1 in an example out of eleven.
BEGIN = 0.9


def score_ugs(
    experiment: Experiment,
    *,
    penalty: Annotated[float, Setting(what="nats that an edge must be worth", above=0)] = 1e-3,
    updates: Updates = 400,
    rate: Rate = 0.1,
    batch_size: BatchSize = 16,
    checkpoint: Checkpoint = None,
) -> EdgeScores:
    """Learn probabilities; see the module.

    Args:
        experiment: The examples. Its metric is not used: what is kept small is the divergence from the whole model.
        penalty: Nats that an edge must be worth.
        updates: Steps.
        rate: Step size of phi.
        batch_size: Examples a step.
        checkpoint: File (safetensors) that keeps the state; a run that finds it goes on from there.

    Returns:
        Scores between 0 and 1, `training` the curve (kl, edges: the sum of theta), and in `checks` that sum and the
        mean KL of the last tenth of the steps. `standard_error` is that of a coin, sqrt(theta (1 - theta)): how
        undecided an edge is, not how far another seed would be.

    Raises:
        RunError: The checkpoint is of another training.
    """
    loss = MaskLoss(experiment, batch_size)
    phi = torch.full((int(loss.edges.sum()),), logit(BEGIN), dtype=loss.model.dtype, device=loss.model.device)
    settings = {"method": "ugs", "penalty": penalty, "updates": updates, "rate": rate, "batch_size": batch_size}
    training = Training(
        parameters={"phi": phi},
        optimizers=(torch.optim.Adam([phi], lr=rate),),
        path=None if checkpoint is None else Path(checkpoint),
        key=training_key(loss, {**settings, "seed": experiment.seed}),
    )
    training.resume()
    while training.step < updates:
        _step(loss, training, penalty)
        experiment.progress("ugs", training.step, updates)
    training.save()
    theta = torch.sigmoid(phi)
    last = training.curve["kl"][-max(1, updates // 10) :]
    return EdgeScores(
        spec=loss.model.spec,
        values=loss.as_matrix(theta),
        standard_error=loss.as_matrix((theta * (1 - theta)).sqrt()),
        method="ugs",
        metric=experiment.metric.name,
        n_examples=experiment.n_examples,
        checks={"edges": float(theta.sum()), "kl": float(np.mean(last))},
        training=training.curve,
    )


def _step(loss: MaskLoss, training: Training, penalty: float) -> None:
    phi = training.parameters["phi"]
    generator = loss.generator(training.step)
    circuit, rows = loss.draw(generator)
    theta = torch.sigmoid(phi)
    gates, between = uniform_gates(theta, loss.noise(len(rows), generator))
    kl, slope = loss.slopes(circuit, rows, gates)
    gain = (slope * between).sum(0) / between.sum(0).clamp_min(1)
    phi.grad = (gain + penalty) * theta * (1 - theta)
    training.optimizers[0].step()
    training.note(kl=float(kl.mean()), edges=float(theta.sum()))
