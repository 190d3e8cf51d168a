"""Edge pruning: learn which edges to keep, all at once, under a target sparsity.

1. Every edge has a hard-concrete gate with one learned number, log alpha. Excluded edges carry the replacement:
   the corrupted run's output of their writer, or another.
2. A step draws gates for every example, runs them as soft circuits, and lowers
   KL(whole model || circuit) + lambda_1 (s* - s) + lambda_2 (s* - s)^2, where s is 1 - the mean gate and s* the
   sparsity at that step, which grows linearly from 0 to the target over the first part of the steps. The lambdas
   ascend the gradient of the same sum that log alpha descends.
3. At the end the gates are taken without noise, and the largest ones are kept, as many as their sum.

An edge's score is sigmoid(log alpha), between 0 and 1: the size of its gate. A large score means that an edge is
needed, a small one never that it hurts. `EdgeScores.chosen` is the kept edges before pruning.

Differences to the published code: gates are drawn for every example, there are no gates of nodes (a node is dropped
with its edges), and the steps are few, for a CPU.

References:
    Bhaskar et al. 2024, arXiv:2406.16778.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch

from circuitlab.declarations import Setting
from circuitlab.discovery.averages import scores_of
from circuitlab.discovery.gates import hard_concrete, open_gates, settled
from circuitlab.discovery.mask_training import BatchSize, Checkpoint, MaskLoss, Rate, Training, Updates
from circuitlab.discovery.scores import EdgeScores
from circuitlab.patching.experiment import Experiment

# Initial gates: mostly 1, and many of them between 0 and 1, where there is a gradient.
BEGIN = 2.0
# Share of the steps over which the target grows.
GROWING = 0.7


def score_edge_pruning(
    experiment: Experiment,
    *,
    sparsity: Annotated[float, Setting(what="share of the edges to remove", above=0, below=1)] = 0.95,
    updates: Updates = 400,
    rate: Rate = 0.1,
    batch_size: BatchSize = 16,
    checkpoint: Checkpoint = None,
) -> EdgeScores:
    """Learn gates; see the module.

    Args:
        experiment: The examples. Its metric is not used: the divergence from the whole model is minimized.
        sparsity: Share of the edges to remove.
        updates: Number of steps.
        rate: Step size of log alpha and of the lambdas.
        batch_size: Examples a step.
        checkpoint: File (safetensors) that keeps the state; a run resumes from an existing file.

    Returns:
        Scores between 0 and 1 with `chosen` the kept edges, `training` the curve (kl, sparsity, target), and in
        `checks` the achieved sparsity and the mean KL of the last tenth of the steps. `standard_error` is 0: it cannot
        be estimated from one run; compare seeds.

    Raises:
        RunError: The checkpoint is of another training.

    References:
        Bhaskar et al. 2024, arXiv:2406.16778.
    """
    loss = MaskLoss(experiment, batch_size)
    log_alpha = loss.start(BEGIN)
    lambdas = log_alpha.new_zeros(2)
    training = Training(
        loss, "edge-pruning", {"log_alpha": log_alpha, "lambdas": lambdas}, checkpoint, ascending=("lambdas",),
        rate=rate, updates=updates, sparsity=sparsity,
    )  # fmt: skip

    def one_step() -> dict[str, float]:
        target = sparsity * min(1.0, (training.step + 1) / (GROWING * updates))
        generator = loss.generator(training.step)
        circuit, rows = loss.draw(generator)
        alpha, noise = log_alpha.detach().clone().requires_grad_(), loss.noise(len(rows), generator)
        with torch.enable_grad():
            gates = hard_concrete(alpha, noise)
        kl, gradient = loss.gradients(circuit, rows, gates)
        with torch.enable_grad():
            missing = target - (1 - gates.mean())
            # The examples' mean KL enters through its gradient, from the one backward pass.
            total = (
                (gates * gradient).sum() / len(rows) + lambdas[0].detach() * missing + lambdas[1].detach() * missing**2
            )
            (log_alpha.grad,) = torch.autograd.grad(total, alpha)
        lambdas.grad = torch.stack([missing.detach(), missing.detach() ** 2])
        return {"kl": float(kl.mean()), "sparsity": float(1 - gates.detach().mean()), "target": target}

    training.run(one_step)
    chosen = np.zeros(loss.edges.shape, dtype=bool)
    chosen[loss.edges] = open_gates(settled(log_alpha)).cpu().numpy()
    return scores_of(
        experiment, "edge-pruning", loss.as_matrix(torch.sigmoid(log_alpha)), chosen=chosen, training=training.curve,
        checks={"sparsity": 1 - float(chosen.sum() / loss.edges.sum()), "kl": training.last_kl},
    )  # fmt: skip
