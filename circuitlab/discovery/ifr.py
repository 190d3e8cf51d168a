"""IFR, information flow routes: each writer's share of a reader's input. It uses no metric and no corrupted prompt.

    share(u -> v) = c_u / sum of c over the writers before v,   c_u = max(|x_v| - |x_v - a_u|, 1e-5)

with |.| the sum of absolute values, x_v the stream that v reads, before its norm, and a_u the output of u: a part
counts by how much nearer it brings the stream to its value. Shares are computed at every token of the clean prompts and
averaged over tokens, then examples. They are never negative and those into one reader sum to 1: a share is the part of
a reader's input that comes from u, whether it helps or not. Circuits are therefore selected greedily from the logits. A
head's q, k and v edges, which read one stream, have equal shares.

Parts are clipped at 1e-5 as in the original, so that shares exist where every part points away from the stream. Biases
of attention layers belong to no writer: they are in x_v but are no part.

References:
    Ferrando and Voita 2024, arXiv:2403.00824; its code, `contributions.py` of the LLM Transparency Tool, which resolves
    a head by source token too. As edge scores in Mueller et al. 2025 (MIB), arXiv:2504.13151.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.discovery.averages import averaged, scores_of
from circuitlab.discovery.scores import EdgeScores
from circuitlab.models.protocol import Model, Recording
from circuitlab.models.steps import mlp_input
from circuitlab.parts import Kind, Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.writers import writer_outputs

LEAST = 1e-5


def score_ifr(experiment: Experiment) -> EdgeScores:
    """Compute every writer's share of every reader's input; see the module. The metric is not used.

    Returns:
        Shares, 0 to 1. `checks["clipped"]`: the share of parts that point away from the stream and were clipped;
        `checks["no_part"]`: the share of the final stream, by size, that belongs to no writer (biases).

    References:
        Ferrando and Voita 2024, arXiv:2403.00824.
    """
    model = experiment.model
    layout = Layout.of(model.spec)
    batches = experiment.recordings.parts(2 * len(layout.writers) + 8 * model.spec.n_layers)

    def shares() -> Iterator[tuple[PairBatch, dict[str, Tensor]]]:
        for number, batch in enumerate(batches):
            yield batch, _shares(model, experiment.recordings.clean(batch), _weights(batch))
            experiment.progress("ifr", number + 1, len(batches))

    running, found = averaged(shares(), layout)
    checks = {name: float(values.mean()) for name, values in found.items()}
    return scores_of(experiment, "ifr", running, checks=checks, per_reader=True)


def _weights(batch: PairBatch) -> Float[Tensor, "batch seq"]:
    """The weight of each token: the same for all tokens of a pair, in all its rows, which sum to 1."""
    in_prompt = batch.own_tokens.float()
    _, pair = batch.index.unique_consecutive(return_inverse=True)
    return in_prompt / batch.per_pair(in_prompt.sum(1))[pair, None]


@torch.no_grad()
def _shares(model: Model, run: Recording, weights: Float[Tensor, "batch seq"]) -> dict[str, Tensor]:
    """Every edge's share, the share of the parts that were clipped, and that of the final stream without a writer."""
    layout, n = Layout.of(model.spec), len(run.resid_final)
    outputs = writer_outputs(model, run)
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    shares = outputs.new_zeros(n, len(layout.writers), len(layout.readers))
    clipped, n_parts = outputs.new_zeros(n), 0
    for layer in range(model.spec.n_layers + 1):
        for kind in (Kind.HEAD, Kind.MLP) if layer < model.spec.n_layers else (Kind.LOGITS,):
            columns = [n for n, r in enumerate(layout.readers) if r.node.kind is kind and r.node.layer in (layer, None)]
            if not columns:
                continue
            parts = outputs[: layout.visible[columns[0]]]
            whole = mlp_input(model, run, layer) if kind is Kind.MLP else run.stream(layer)
            nearer = whole.abs().sum(-1) - (whole - parts).abs().sum(-1)
            counts = nearer.clamp_min(LEAST)
            each = (counts / counts.sum(0) * weights).sum(-1)
            shares[:, : len(parts), columns] = each.T[..., None].expand(-1, -1, len(columns))
            clipped += ((nearer < LEAST).sum(0) * weights).sum(-1)
            n_parts += len(parts)
    nobody = (run.resid_final - outputs.sum(0)).abs().sum((1, 2)) / run.resid_final.abs().sum((1, 2))
    return {"scores": shares, "clipped": clipped / n_parts, "no_part": nobody * weights.sum(1)}
