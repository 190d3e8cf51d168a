"""Messages: the difference of a writer's output in another run, or of its replacement, to its output in this run.

After a post-norm, which the heads of a layer share, each run has its own scale, so that messages add up to the
difference of the streams.
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
    """Each writer's output in the other run, minus its output in this one."""
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
