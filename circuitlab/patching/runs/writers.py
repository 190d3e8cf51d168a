"""Outputs of writers, and differences of them between runs or to a replacement (the messages of edges).

A head's output leaves out the bias of its attention layer. After a post-norm each run has its own scale, so that
differences add up to the difference of the streams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.models.changes import head_differences
from circuitlab.models.protocol import Model, Recording
from circuitlab.parts import Kind, Layout, Node
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.replacement import Replacement, replaced


@torch.no_grad()
def writer_outputs(model: Model, run: Recording) -> Float[Tensor, "writer batch seq d_model"]:
    """Input embedding, outputs of heads and of MLPs of one run, in the order of the layout.

    Returns:
        One output a writer, at every token.
    """
    parts = [run.resid_pre[0][None]]
    for layer in range(model.spec.n_layers):
        parts.append(model.head_outputs(layer, run.z[layer]))
        if model.spec.has_mlp:
            parts.append(run.mlp_out[layer][None])
    return torch.cat(parts)


def writer_differences(model: Model, baseline: Baseline) -> Float[Tensor, "writer batch seq d_model"]:
    """Clean minus corrupted output of every writer, in the order of the layout; biases cancel.

    Returns:
        One difference a writer, at every token.
    """
    return messages_of(model, baseline.corrupt, baseline.clean, Layout.of(model.spec).writers)


@torch.no_grad()
def replacement_messages(
    model: Model, replacement: Replacement, baseline: Baseline, base: Recording, writers: Sequence[Node]
) -> Float[Tensor, "writer batch seq d_model"]:
    """The replacement of each writer's output, minus its output in a run.

    Args:
        model: The model.
        replacement: Resolved for the data set that the batch is of.
        baseline: The batch, run clean and corrupted.
        base: The one of the two that is patched.
        writers: Which writers.

    Returns:
        One message a writer, at every token.
    """
    if replacement.outputs is None:
        return messages_of(model, base, replaced(model, replacement, baseline, base), writers)
    given, layout = replacement.outputs.of(baseline.batch), Layout.of(model.spec)
    found = torch.stack([given(layout.writer_index(writer)) for writer in writers])
    for number, writer in enumerate(writers):
        layer = writer.layer or 0
        if writer.kind is Kind.HEAD:
            found[number] -= model.head_outputs(layer, base.z[layer], [writer.head or 0])[0]
        else:
            found[number] -= base.resid_pre[0] if writer.kind is Kind.INPUT else base.mlp_out[layer]
    return found


@torch.no_grad()
def messages_of(
    model: Model, base: Recording, other: Recording, writers: Sequence[Node]
) -> Float[Tensor, "writer batch seq d_model"]:
    """Each writer's output in the other run, minus its output in this one.

    Returns:
        One message a writer, at every token.
    """
    found = base.resid_final.new_empty((len(writers), *base.resid_final.shape))
    for number, writer in enumerate(writers):
        layer = writer.layer or 0
        if writer.kind is Kind.INPUT:
            found[number] = other.resid_pre[0] - base.resid_pre[0]
        elif writer.kind is Kind.MLP:
            found[number] = other.mlp_out[layer] - base.mlp_out[layer]
    for layer in {writer.layer or 0 for writer in writers if writer.kind is Kind.HEAD}:
        here = [n for n, writer in enumerate(writers) if writer.kind is Kind.HEAD and writer.layer == layer]
        heads = [writers[n].head or 0 for n in here]
        found[here] = head_differences(model, layer, other.z[layer], base.z[layer], heads)
    return found
