"""IFR, information flow routes: how much of what a reader reads each writer brought. No metric, no corrupted prompt.

    share(u -> v) = c_u / sum of c over the writers before v,   c_u = max(|x_v| - |x_v - a_u|, 1e-5)

with |.| the sum of absolute values, x_v the stream that v reads, before its norm, and a_u what u added to it: a part
counts by how much nearer it brings the stream to where it is. Shares are taken at every token of the clean prompts and
averaged over tokens, then examples. They are never negative and those into one reader sum to 1, so a share says how
much of a reader's input comes from u, not whether that helps: circuits are selected greedily from the logits, and a
head's q, k and v edges, which read one stream, have equal shares.

Parts are clipped at 1e-5 as in the original, so that shares exist where every part leads away. Biases of attention
layers belong to no writer: they are in x_v and are no part.

References:
    Ferrando and Voita 2024, arXiv:2403.00824; its code, `contributions.py` of the LLM Transparency Tool, which resolves
    a head by source token too. As edge scores in Mueller et al. 2025 (MIB), arXiv:2504.13151.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.discovery.scores import EdgeScores
from circuitlab.graphs.prune import real_edges
from circuitlab.models.protocol import Model, Recording
from circuitlab.models.steps import mlp_input
from circuitlab.parts import Kind, Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.writers import writer_outputs
from circuitlab.stats import RunningMean

LEAST = 1e-5


def score_ifr(experiment: Experiment) -> EdgeScores:
    """Measure every writer's share of every reader's input; see the module. The metric has no part in it.

    Returns:
        Shares, 0 to 1. `checks["clipped"]`: the share of parts that lead away from where the stream is and were
        clipped; `checks["no_part"]`: the share of the final stream, by size, that belongs to no writer (biases).
    """
    model = experiment.model
    layout = Layout.of(model.spec)
    running, clipped, no_part = RunningMean(real_edges(layout)), [], []
    alive = 2 * len(layout.writers) + 8 * model.spec.n_layers
    batches = experiment.recordings.parts(alive)
    for number, batch in enumerate(batches):
        shares, away, missing = _shares(model, experiment.recordings.clean(batch))
        running.add(shares.double().cpu().numpy())
        clipped.append(away.double().cpu().numpy())
        no_part.append(missing.double().cpu().numpy())
        experiment.progress("ifr", number + 1, len(batches))
    return EdgeScores(
        spec=model.spec,
        values=running.mean,
        standard_error=running.standard_error,
        method="ifr",
        metric=experiment.metric.name,
        n_examples=sum(map(len, batches)),
        checks={
            "clipped": float(np.concatenate(clipped).mean()),
            "no_part": float(np.concatenate(no_part).mean()),
        },
        per_reader=True,
    )


@torch.no_grad()
def _shares(
    model: Model, run: Recording
) -> tuple[Float[Tensor, "batch writer reader"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Every edge's share, how many parts were clipped, and how much of the final stream is no part."""
    layout, n = Layout.of(model.spec), len(run.resid_final)
    said = writer_outputs(model, run)
    said = said.to(torch.promote_types(said.dtype, torch.float32))
    shares = said.new_zeros(n, len(layout.writers), len(layout.readers))
    away, n_parts = said.new_zeros(n), 0
    for layer in range(model.spec.n_layers + 1):
        for kind in (Kind.HEAD, Kind.MLP) if layer < model.spec.n_layers else (Kind.LOGITS,):
            columns = [n for n, r in enumerate(layout.readers) if r.node.kind is kind and r.node.layer in (layer, None)]
            if not columns:
                continue
            parts = said[: layout.visible[columns[0]]]
            whole = mlp_input(model, run, layer) if kind is Kind.MLP else run.stream(layer)
            nearer = whole.abs().sum(-1) - (whole - parts).abs().sum(-1)
            counts = nearer.clamp_min(LEAST)
            each = (counts / counts.sum(0)).mean(-1)  # over tokens
            shares[:, : len(parts), columns] = each.T[..., None].expand(-1, -1, len(columns))
            away += (nearer < LEAST).sum((0, 2))
            n_parts += nearer[:, 0].numel()
    missing = (run.resid_final - said.sum(0)).abs().sum((1, 2)) / run.resid_final.abs().sum((1, 2))
    return shares, away / n_parts, missing
