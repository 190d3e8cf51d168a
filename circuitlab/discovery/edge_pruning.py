"""Edge pruning: learn which edges to keep, all at once, under a target sparsity.

1. Every edge has a hard-concrete gate with one learned number, log alpha. Excluded edges carry the corrupted run.
2. A step draws gates for every example, runs them as soft circuits, and lowers
   KL(whole model || circuit) + lambda_1 (s* - s) + lambda_2 (s* - s)^2, where s is 1 - the mean gate and s* the
   sparsity that is asked for by then, growing evenly from 0 to the target over the first part of the steps. The
   lambdas go up the same slope that log alpha goes down.
3. At the end the gates are taken without noise, and as many of the widest are kept as they add up to.

An edge's score is sigmoid(log alpha), between 0 and 1: how far its gate is open. It says that an edge is needed, never
that it hurts. `EdgeScores.chosen` is what is kept, before pruning to what connects.

Beside the published code: gates of every example are drawn on their own, edges that leave nodes have no gate of their
own (nodes go when their edges do), and the steps are few, for a CPU.

References:
    Bhaskar et al. 2024, arXiv:2406.16778.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from circuitlab.declarations import Setting
from circuitlab.discovery.gates import hard_concrete, open_gates, settled
from circuitlab.discovery.mask_training import BatchSize, Checkpoint, MaskLoss, Rate, Training, Updates, training_key
from circuitlab.discovery.scores import EdgeScores
from circuitlab.patching.experiment import Experiment

# Gates begin mostly open, and many of them between 0 and 1, where there is a slope.
BEGIN = 2.0
# Share of the steps over which the target grows.
GROWING = 0.7


def score_edge_pruning(
    experiment: Experiment,
    *,
    sparsity: Annotated[float, Setting(what="share of the edges that shall go", above=0, below=1)] = 0.95,
    updates: Updates = 400,
    rate: Rate = 0.1,
    batch_size: BatchSize = 16,
    checkpoint: Checkpoint = None,
) -> EdgeScores:
    """Learn gates; see the module.

    Args:
        experiment: The examples. Its metric is not used: what is kept small is the divergence from the whole model.
        sparsity: Share of the edges that shall go.
        updates: Steps.
        rate: Step size of log alpha and of the lambdas.
        batch_size: Examples a step.
        checkpoint: File (safetensors) that keeps the state; a run that finds it goes on from there.

    Returns:
        Scores between 0 and 1 with `chosen` the kept edges, `training` the curve (kl, sparsity, target), and in
        `checks` the sparsity that was reached and the mean KL of the last tenth of the steps. `standard_error` is 0:
        one run says nothing of it; compare seeds.

    Raises:
        RunError: The checkpoint is of another training.
    """
    loss = MaskLoss(experiment, batch_size)
    log_alpha = torch.full((int(loss.edges.sum()),), BEGIN, dtype=loss.model.dtype, device=loss.model.device)
    lambdas = torch.zeros(2, dtype=loss.model.dtype, device=loss.model.device)
    settings = {"method": "edge-pruning", "sparsity": sparsity, "updates": updates, "rate": rate}
    settings |= {"batch_size": batch_size, "seed": experiment.seed}
    training = Training(
        parameters={"log_alpha": log_alpha, "lambdas": lambdas},
        optimizers=(torch.optim.Adam([log_alpha], lr=rate), torch.optim.Adam([lambdas], lr=rate, maximize=True)),
        path=None if checkpoint is None else Path(checkpoint),
        key=training_key(loss, settings),
    )
    training.resume()
    while training.step < updates:
        target = sparsity * min(1.0, (training.step + 1) / (GROWING * updates))
        _step(loss, training, target)
        experiment.progress("edge-pruning", training.step, updates)
    training.save()
    gates = settled(log_alpha)
    last = training.curve["kl"][-max(1, updates // 10) :]
    chosen = np.zeros(loss.edges.shape, dtype=bool)
    chosen[loss.edges] = open_gates(gates).cpu().numpy()
    values = loss.as_matrix(torch.sigmoid(log_alpha))
    return EdgeScores(
        spec=loss.model.spec,
        values=values,
        standard_error=np.zeros_like(values),
        method="edge-pruning",
        metric=experiment.metric.name,
        n_examples=experiment.n_examples,
        checks={"sparsity": 1 - float(chosen.sum() / loss.edges.sum()), "kl": float(np.mean(last))},
        chosen=chosen,
        training=training.curve,
    )


def _step(loss: MaskLoss, training: Training, target: float) -> None:
    log_alpha, lambdas = training.parameters["log_alpha"], training.parameters["lambdas"]
    generator = loss.generator(training.step)
    circuit, rows = loss.draw(generator)
    noise = loss.noise(len(rows), generator)
    alpha = log_alpha.detach().clone().requires_grad_()
    with torch.enable_grad():
        gates = hard_concrete(alpha, noise)
    kl, slope = loss.slopes(circuit, rows, gates)
    with torch.enable_grad():
        missing = target - (1 - gates.mean())
        # The examples' mean KL enters through its slope, which was taken in one backward pass.
        total = (gates * slope).sum() / len(rows) + lambdas[0].detach() * missing + lambdas[1].detach() * missing**2
        (down,) = torch.autograd.grad(total, alpha)
    log_alpha.grad, lambdas.grad = down, torch.stack([missing.detach(), missing.detach() ** 2])
    for optimizer in training.optimizers:
        optimizer.step()
    training.note(kl=float(kl.mean()), sparsity=float(1 - gates.detach().mean()), target=target)
