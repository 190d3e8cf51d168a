"""UGS: uniform gradient sampling, which learns for every edge how likely it belongs to the circuit.

1. Every edge has a probability theta = sigmoid(phi). A step draws gates for every example: uniform between 0 and 1 with
   probability w = theta (1 - theta), else nearly a Bernoulli variable that is 1 with probability theta.
2. It minimizes KL(whole model || circuit) + penalty * (sum of all theta). Where a gate lies between 0 and 1, the mean
   gradient of the KL with respect to it is the change of the KL by keeping the edge; each edge's gradient is the mean
   over the examples of the step with such a gate. Excluded edges carry the replacement.
3. An edge's score is theta, between 0 and 1: a probability that the edge is needed, never a sign that it hurts.

The published method can also learn the values of excluded edges (optimal ablation); here they are given.

References:
    Li and Janson 2024, arXiv:2409.09951.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch

from circuitlab.declarations import Setting
from circuitlab.discovery.averages import scores_of
from circuitlab.discovery.gates import uniform_gates
from circuitlab.discovery.mask_training import BatchSize, Checkpoint, MaskLoss, Rate, Training, Updates
from circuitlab.discovery.scores import EdgeScores
from circuitlab.patching.experiment import Experiment

# Initial theta: mostly 1, and between 0 and 1 in an example out of eleven.
BEGIN = 0.9


def score_ugs(
    experiment: Experiment,
    *,
    penalty: Annotated[float, Setting(what="nats by which an edge must lower the divergence", above=0)] = 1e-3,
    updates: Updates = 400,
    rate: Rate = 0.1,
    batch_size: BatchSize = 16,
    checkpoint: Checkpoint = None,
) -> EdgeScores:
    """Learn probabilities; see the module.

    Args:
        experiment: The examples. Its metric is not used: the divergence from the whole model is minimized.
        penalty: Nats by which an edge must lower the divergence.
        updates: Number of steps.
        rate: Step size of phi.
        batch_size: Examples a step.
        checkpoint: File (safetensors) that keeps the state; a run resumes from an existing file.

    Returns:
        Scores between 0 and 1, `training` the curve (kl, edges: the sum of theta), and in `checks` that sum and the
        mean KL of the last tenth of the steps. `standard_error` is that of a Bernoulli variable, sqrt(theta (1 -
        theta)): the uncertainty about an edge, not the variation over seeds.

    Raises:
        RunError: The checkpoint is of another training.

    References:
        Li and Janson 2024, arXiv:2409.09951.
    """
    loss = MaskLoss(experiment, batch_size)
    phi = loss.start(math.log(BEGIN / (1 - BEGIN)))
    training = Training(loss, "ugs", {"phi": phi}, checkpoint, rate=rate, updates=updates, penalty=penalty)

    def one_step() -> dict[str, float]:
        generator = loss.generator(training.step)
        circuit, rows = loss.draw(generator)
        theta = torch.sigmoid(phi)
        gates, between = uniform_gates(theta, loss.noise(len(rows), generator))
        kl, gradient = loss.gradients(circuit, rows, gates)
        gain = (gradient * between).sum(0) / between.sum(0).clamp_min(1)
        phi.grad = (gain + penalty) * theta * (1 - theta)
        return {"kl": float(kl.mean()), "edges": float(theta.sum())}

    training.run(one_step)
    theta = torch.sigmoid(phi)
    return scores_of(
        experiment, "ugs", loss.as_matrix(theta), loss.as_matrix((theta * (1 - theta)).sqrt()),
        checks={"edges": float(theta.sum()), "kl": training.last_kl}, training=training.curve,
    )  # fmt: skip
