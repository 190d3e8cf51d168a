"""The effect of changed heads and neurons on the stream, and gradients back to neurons.

What a head or a neuron adds is linear in its value, so that a change of the value gives the change of the stream. After
a post-norm it is not: there the whole layer is taken with and without the change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.models.protocol import Model, Recording
from circuitlab.models.row_steps import at_tokens
from circuitlab.models.steps import heads_interact, mlp_input, mlp_reads_heads, neurons_interact

# (member, example, position) of tokens -> what a change of that member adds to the stream there
Change = Callable[[Tensor, Tensor, Tensor], Tensor]


def head_differences(
    model: Model,
    layer: int,
    z: Float[Tensor, "batch seq head d_head"],
    other: Float[Tensor, "batch seq head d_head"],
    heads: Sequence[int] | None = None,
) -> Float[Tensor, "chosen batch seq d_model"]:
    """Each head's output in one run minus that in another, from all heads' z; a post-norm has its scale of each run.

    Args:
        model: The model.
        layer: The heads' layer.
        z: Of the one run.
        other: Of the run that is subtracted.
        heads: Which heads, in this order; all by default.

    Returns:
        One difference a head, at every token.
    """
    if heads_interact(model, layer):
        return model.head_outputs(layer, z, heads) - model.head_outputs(layer, other, heads)
    return model.head_outputs(layer, z - other, heads)


def change_of_heads(
    model: Model, run: Recording, layer: int, z: Float[Tensor, "batch seq head d_head"], heads: Int[Tensor, "member _"]
) -> Change:
    """What it adds to the stream to give the heads of one member another z, all others keeping theirs.

    Args:
        model: The model.
        run: The run that is changed.
        layer: The heads' layer.
        z: The other z of every head.
        heads: By member, the heads that change together.

    Returns:
        A function from members, examples and positions of tokens to the changes of the stream there.
    """
    recorded = run.z[layer]
    if not heads_interact(model, layer):
        shares = model.head_outputs(layer, z - recorded, heads.flatten().tolist())
        summed = shares.unflatten(0, heads.shape).sum(1)
        return lambda member, example, position: summed[member, example, position]

    def through_the_norm(member: Tensor, example: Tensor, position: Tensor) -> Tensor:
        patched = recorded[example, position]
        rows = torch.arange(len(patched), device=patched.device)[:, None]
        patched[rows, heads[member]] = z[example, position][rows, heads[member]]
        return model.attn_output(layer, patched) - run.attn_out[layer][example, position]

    return through_the_norm


def change_of_neurons(
    model: Model,
    run: Recording,
    layer: int,
    other: Float[Tensor, "batch seq neuron"],
    neurons: Int[Tensor, " member"],
) -> tuple[Float[Tensor, "batch seq member"], Change]:
    """How far single neurons are from another value, and what it adds to the stream to give one of them that value.

    Args:
        model: A model with MLPs.
        run: The run that is changed.
        layer: The MLP's layer.
        other: The other value of every neuron.
        neurons: The neuron of each member.

    Returns:
        The differences of the neurons' values, and a function from members, examples and positions of tokens to the
        changes of the stream there.
    """
    hidden = model.mlp_hidden(layer, mlp_input(model, run, layer))
    change = other[..., neurons] - hidden[..., neurons]
    if not neurons_interact(model, layer):
        weight = model.neuron_weight(layer)
        return (
            change,
            lambda member, example, position: change[example, position, member][:, None] * weight[neurons[member]],
        )

    def through_the_norm(member: Tensor, example: Tensor, position: Tensor) -> Tensor:
        patched = hidden[example, position]
        patched[torch.arange(len(patched), device=patched.device), neurons[member]] += change[example, position, member]
        return model.mlp_from_hidden(layer, patched) - run.mlp_out[layer][example, position]

    return change, through_the_norm


def neuron_gradients(
    model: Model, layer: int, read: Float[Tensor, "*row d_model"], gradient: Float[Tensor, "*row d_model"]
) -> Float[Tensor, "*row neuron"]:
    """Gradients at the neurons of an MLP from those at what it adds to the stream.

    Args:
        model: A model with MLPs.
        layer: The MLP's layer.
        read: The stream that it reads.
        gradient: At its output.

    Returns:
        One gradient a neuron, in units of the metric a unit of the neuron.
    """
    if not neurons_interact(model, layer):
        return gradient @ model.neuron_weight(layer).T
    with torch.enable_grad():
        hidden = model.mlp_hidden(layer, read.detach()).detach().requires_grad_()
        out = model.mlp_from_hidden(layer, hidden)
    return torch.autograd.grad(out, hidden, gradient)[0]


def add_change_of_heads(
    model: Model,
    run: Recording,
    layer: int,
    stream: Float[Tensor, "token d_model"],
    z: Float[Tensor, "token d_head"],
    head: Int[Tensor, " token"],
    at: tuple[Int[Tensor, " token"], Int[Tensor, " token"]],
) -> None:
    """Add to the stream, in place, what one head a token adds with another z; `z` is overwritten.

    Args:
        model: The model.
        run: The run that is changed.
        layer: The heads' layer.
        stream: At the tokens.
        z: The other z of each token's head.
        head: The head that changes, in ascending order.
        at: Example and position of each token.
    """
    if not len(head):
        return
    recorded = run.z[layer]
    if heads_interact(model, layer):
        patched = at_tokens(recorded, *at)
        patched[torch.arange(len(head), device=head.device), head] = z
        add_change_of_layer(model, run, layer, stream, patched, at)
        return
    example, position = at
    change, start = z.sub_(at_tokens(recorded.flatten(0, 1), example * recorded.shape[1] + position, head)), 0
    for number, count in enumerate(torch.bincount(head).tolist()):
        if count:
            alone = change[start : start + count][None, :, None].expand(1, count, model.spec.n_heads, -1)
            stream[start : start + count] += model.head_outputs(layer, alone, [number])[0, 0]
        start += count


def add_change_of_layer(
    model: Model,
    run: Recording,
    layer: int,
    stream: Float[Tensor, "token d_model"],
    z: Float[Tensor, "token head d_head"],
    at: tuple[Int[Tensor, " token"], Int[Tensor, " token"]],
) -> None:
    """Add to the stream, in place, what all heads of a layer add with another z; see `add_change_of_heads`."""
    stream += model.attn_output(layer, z) - at_tokens(run.attn_out[layer], *at)


def finish_block_shifted(
    model: Model,
    run: Recording,
    layer: int,
    stream: Float[Tensor, "token d_model"],
    shift: Float[Tensor, "shifted d_model"],
    at: tuple[Int[Tensor, " shifted"], Int[Tensor, " shifted"]],
) -> Float[Tensor, "token d_model"]:
    """The stream after a block in which the MLP of the last tokens alone reads a shifted stream.

    Args:
        model: The model.
        run: The recorded run.
        layer: Which block.
        stream: The stream that its heads have written to (see `after_heads`); it is overwritten.
        shift: What the MLP reads beyond the stream, at the last tokens of `stream`.
        at: Example and position of these tokens.

    Returns:
        The stream after the block, in the memory of `stream` where that is possible.
    """
    first = len(stream) - len(shift)
    if mlp_reads_heads(model.spec):
        read = torch.cat([stream[:first], stream[first:] + shift]) if len(shift) else stream
        return stream.add_(model.mlp_output(layer, read))
    if len(shift):
        read = at_tokens(run.resid_pre[layer], *at) + shift
        stream[first:] += model.mlp_output(layer, read) - at_tokens(run.mlp_out[layer], *at)
    return stream
