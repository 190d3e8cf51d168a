"""What every writer adds to the stream, stacked in the order of the layout."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.models.changes import head_differences
from circuitlab.models.protocol import Model, Recording
from circuitlab.patching.runs.baseline import Baseline


@torch.no_grad()
def writer_outputs(model: Model, run: Recording) -> Float[Tensor, "writer batch seq d_model"]:
    """Input embedding, heads and MLPs of one run; heads without the attention layer's bias."""
    parts = [run.resid_pre[0][None]]
    for layer in range(model.spec.n_layers):
        parts.append(model.head_outputs(layer, run.z[layer]))
        if model.spec.has_mlp:
            parts.append(run.mlp_out[layer][None])
    return torch.cat(parts)


@torch.no_grad()
def writer_differences(model: Model, baseline: Baseline) -> Float[Tensor, "writer batch seq d_model"]:
    """Clean minus corrupted output of every writer; biases cancel."""
    clean, corrupt = baseline.clean, baseline.corrupt
    parts = [(clean.resid_pre[0] - corrupt.resid_pre[0])[None]]
    for layer in range(model.spec.n_layers):
        parts.append(head_differences(model, layer, clean.z[layer], corrupt.z[layer]))
        if model.spec.has_mlp:
            parts.append((clean.mlp_out[layer] - corrupt.mlp_out[layer])[None])
    return torch.cat(parts)
