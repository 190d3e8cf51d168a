"""The steps of one transformer block, from a stream, for whole prompts `[batch, seq, d_model]`.

What differs between architectures inside a block is decided here and in the modules next to this one:

- **Sequential or parallel.** In a sequential block the MLP reads the stream after attention; in a parallel one both
  read the stream before the block; some models have attention alone.
- **Post-norms.** A norm after attention or MLP makes what one head or neuron adds depend on all of its layer.
- **Norms over all heads' queries and keys.** The query or key of one head scales those of the others, and with them
  their z.
- **Grouped queries.** Several query heads may share a key/value head. Recordings hold keys and values once per query
  head, attention takes them either way.

`row_steps` has the same for ragged rows of tokens, `changes` the effect of changed heads and neurons on the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.models.products import product, products_by_head
from circuitlab.models.protocol import BlockArguments, Model, Recording
from circuitlab.parts import ModelSpec, Slot

SLOTS = tuple(Slot)
# Queries, keys and values of all heads, keys and values once per query head or once per key/value head.
HeadInputs = dict[Slot, Float[Tensor, "row _ _ d_head"]]


def once_per_query_head(spec: ModelSpec, values: Float[Tensor, "*row _ d_head"]) -> Float[Tensor, "*row head d_head"]:
    """Queries, keys or values with one copy per query head, from one per key/value head or per query head.

    Returns:
        Values `[..., head, d_head]`.
    """
    group = spec.n_heads // values.shape[-2]
    return values if group == 1 else values.repeat_interleave(group, -2)


def once_per_kv_head(spec: ModelSpec, values: Float[Tensor, "*row head d_head"]) -> Float[Tensor, "*row _ d_head"]:
    """Keys or values once per key/value head, from one copy per query head; a view.

    Returns:
        Values `[..., kv_head, d_head]`.
    """
    return values[..., :: spec.n_heads // spec.n_kv_heads, :]


def query_heads(spec: ModelSpec, kv_head: int) -> list[int]:
    """The query heads that share a key/value head.

    Returns:
        Their numbers, ascending.
    """
    group = spec.n_heads // spec.n_kv_heads
    return list(range(kv_head * group, (kv_head + 1) * group))


def mlp_reads_heads(spec: ModelSpec) -> bool:
    """Whether the MLP of a block reads what the heads of the same block write.

    Returns:
        Whether it does: there is an MLP, and the block is not parallel.
    """
    return spec.has_mlp and not spec.parallel


def heads_interact(model: Model, layer: int) -> bool:
    """Whether what one head adds to the stream depends on the others, through a post-norm or a norm of all queries.

    Returns:
        Whether it does.
    """
    return model.has_post_norm(layer) or model.heads_share_a_norm(layer)


def heads_run_alone(model: Model, layer: int) -> bool:
    """Whether one head can be computed from its own scores and values: standard attention, no norm over all heads.

    Returns:
        Whether it can.
    """
    return model.score_scale(layer) is not None and not heads_interact(model, layer)


def changes_other_heads(model: Model, layer: int, slot: Slot) -> bool:
    """Whether another query or key of one head changes the z of the others, through a norm over all of them.

    Returns:
        Whether it does; values never do.
    """
    return slot is not Slot.V and model.heads_share_a_norm(layer)


def neurons_interact(model: Model, layer: int) -> bool:
    """Whether what one neuron adds to the stream depends on the others of its MLP, through a post-norm.

    Returns:
        Whether it does.
    """
    return model.has_post_norm(layer)


def mlp_reads(
    spec: ModelSpec, before: Float[Tensor, "*row d_model"], after: Float[Tensor, "*row d_model"]
) -> Float[Tensor, "*row d_model"]:
    """Which stream the MLP of a block reads: that before the block's attention, or that after it.

    Returns:
        `before` in parallel blocks, else `after`.
    """
    return before if spec.parallel else after


def mlp_input(model: Model, run: Recording, layer: int) -> Float[Tensor, "batch seq d_model"]:
    """The stream that an MLP reads in a recorded run.

    Returns:
        The stream before the MLP's norm.
    """
    return run.resid_pre[layer] if model.spec.parallel else run.resid_mid(layer)


def after_heads(
    model: Model, run: Recording, layer: int, at: tuple[Int[Tensor, " token"], ...] | slice = slice(None)
) -> Float[Tensor, "*token d_model"]:
    """The recorded stream that a change of heads is added to; `finish_block` goes on from there.

    Args:
        model: The model.
        run: The recorded run.
        layer: The heads' layer.
        at: Examples and positions of some tokens; all by default.

    Returns:
        The stream between attention and MLP where the MLP reads it, else the stream after the block.
    """
    if mlp_reads_heads(model.spec):
        return run.resid_pre[layer][at] + run.attn_out[layer][at]
    return run.stream(layer + 1)[at]


def finish_block(model: Model, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
    """The stream after a block, from the stream that its heads have written to (see `after_heads`).

    Gradients follow if they are on.

    Returns:
        The stream after the block.
    """
    if not mlp_reads_heads(model.spec):
        return stream
    out = model.mlp_output(layer, stream)
    return out + stream if torch.is_grad_enabled() else out.add_(stream)


def add_mlp(
    model: Model, layer: int, after: Float[Tensor, "*row d_model"], read: Float[Tensor, "*row d_model"]
) -> Float[Tensor, "*row d_model"]:
    """The stream after a block, from that after its attention and from what its MLP reads; `after` without an MLP.

    Returns:
        The stream after the block.
    """
    return after + model.mlp_output(layer, read) if model.spec.has_mlp else after


def half_block(
    model: Model, layer: int, stream: Float[Tensor, "batch seq d_model"], arguments: BlockArguments
) -> tuple[Float[Tensor, "batch seq d_model"], Float[Tensor, "batch seq d_model"]]:
    """Run the attention of a block; gradients follow if they are on and the stream requires them.

    Args:
        model: The model.
        layer: Which block.
        stream: The stream before it, whole prompts.
        arguments: What blocks are called with at this length.

    Returns:
        The stream after attention, and the stream that the MLP of the block reads.
    """
    after = stream + attention(model, layer, stream, arguments)
    return after, mlp_reads(model.spec, stream, after)


def mlp_stream(
    model: Model, layer: int, stream: Float[Tensor, "batch seq d_model"], arguments: BlockArguments
) -> Float[Tensor, "batch seq d_model"]:
    """What the MLP of a block reads, from the stream before the block; runs attention only where that counts.

    Returns:
        The stream before the MLP's norm.
    """
    return stream if model.spec.parallel else half_block(model, layer, stream, arguments)[1]


def attention(
    model: Model, layer: int, stream: Float[Tensor, "batch seq d_model"], arguments: BlockArguments
) -> Float[Tensor, "batch seq d_model"]:
    """What the attention of a block adds to the stream before it.

    Returns:
        What is added, bias and post-norm included.
    """
    read = model.read_attention(layer, SLOTS, stream.flatten(0, 1))
    q, k, v = (flat.unflatten(0, stream.shape[:2]) for flat in read)
    return model.attn_output(layer, model.attend(layer, q, k, v, arguments))


def head_inputs(
    model: Model, layer: int, stream: Float[Tensor, "*row d_model"], slots: Sequence[Slot] = SLOTS
) -> dict[Slot, Float[Tensor, "*row head d_head"]]:
    """All heads' queries, keys and values from the stream before a block, once per query head as in a recording.

    Returns:
        By slot, in the order of `slots`.
    """
    flat = model.read_attention(layer, slots, stream.flatten(0, -2))
    split = (once_per_query_head(model.spec, values).unflatten(0, stream.shape[:-1]) for values in flat)
    return dict(zip(slots, split, strict=True))


def attend(
    model: Model, layer: int, inputs: HeadInputs, arguments: BlockArguments
) -> Float[Tensor, "row _ head d_head"]:
    """Every head's z from its queries, keys and values.

    Returns:
        The z of the queries' tokens.
    """
    return model.attend(layer, inputs[Slot.Q], inputs[Slot.K], inputs[Slot.V], arguments)


def project(
    model: Model, layer: int, slot: Slot, heads: Sequence[int], stream: Float[Tensor, "chosen row seq d_model"]
) -> Float[Tensor, "chosen row seq d_head"]:
    """Chosen heads' q, k or v, each from the stream that this head reads; gradients follow to the stream.

    Returns:
        One tensor a chosen head, in the order of `heads`.
    """
    return products_by_head(model.attn_input(layer, stream), *model.head_weights(layer, slot), heads)


def head_values(
    model: Model, layer: int, head: int, read: Float[Tensor, "*row d_model"]
) -> Float[Tensor, "*row d_head"]:
    """A head's values without their bias, from what it reads after the norm (`attn_input`).

    Returns:
        The values.
    """
    return product(read, model.head_weights(layer, Slot.V)[0][head])


def attention_pattern(
    model: Model, layer: int, scores: Float[Tensor, "*row query seq"], sees: Bool[Tensor, "*_ asking seq"]
) -> Float[Tensor, "*row query seq"]:
    """Attention patterns; for layers of standard attention.

    Args:
        model: The model.
        layer: The layer.
        scores: Products of queries with keys.
        sees: Which keys a query attends to.

    Returns:
        The patterns.
    """
    scale = model.score_scale(layer)
    assert scale is not None, "attention is not standard"
    return (scores * scale).masked_fill_(~sees, -torch.inf).softmax(-1)


def attend_last_query(
    model: Model,
    layer: int,
    q: Float[Tensor, "row head d_head"],
    read: Float[Tensor, "row seq d_model"],
    sees: Bool[Tensor, "row seq"],
) -> Float[Tensor, "row head d_head"]:
    """Each head's z at one query of each row, without keys or values; for layers of standard attention.

    A score is q . (W_K x) = (W_K^T q) . x and a head's z is W_V (sum over tokens of a x): with one query, both
    projections are done once a row and not once a token. The bias of the keys adds the same to every score and drops
    out of the softmax; that of the values is added once, since the weights sum to 1.

    Args:
        model: The model.
        layer: The layer.
        q: The query.
        read: What keys and values are read from, after the norm (`attn_input`).
        sees: Which tokens the query attends to.

    Returns:
        The z of every head.
    """
    scale = model.score_scale(layer)
    assert scale is not None, "attention is not standard"
    key_weight, _ = model.head_weights(layer, Slot.K)
    value_weight, value_bias = model.head_weights(layer, Slot.V)
    wanted = einsum(q.mul(scale), key_weight, "row head d_head, head d_model d_head -> row d_model head")
    scores = torch.bmm(read, wanted).masked_fill_(~sees[..., None], -torch.inf)
    mixed = einsum(scores.softmax(1), read, "row seq head, row seq d_model -> row head d_model")
    z = einsum(mixed, value_weight, "row head d_model, head d_model d_head -> row head d_head")
    return z if value_bias is None else z + value_bias


def attend_vectors(
    model: Model,
    layer: int,
    vectors: Float[Tensor, "_ d_head"],
    places: Mapping[Slot, Int[Tensor, "row _ head"]],
    arguments: BlockArguments,
) -> Float[Tensor, "row query head d_head"]:
    """Every head's z, with queries, keys and values taken from one table.

    Args:
        model: The model.
        layer: Which block.
        vectors: The table.
        places: By slot, which of the vectors is at each token and head; queries may be those of the last tokens.
        arguments: What blocks are called with at this length.

    Returns:
        The z of the queries' tokens.
    """
    inputs = {slot: vectors.index_select(0, at.flatten()).unflatten(0, at.shape) for slot, at in places.items()}
    return attend(model, layer, inputs, arguments)


def weigh_values(
    pattern: Float[Tensor, "batch head query key"], values: Float[Tensor, "batch key head d_head"]
) -> Float[Tensor, "batch query head d_head"]:
    """Every head's z under a given attention pattern.

    Returns:
        The z.
    """
    names = "batch head query key, batch key head d_head -> batch query head d_head"
    return einsum(pattern.to(values.dtype), values, names)


def column_of_head(spec: ModelSpec, head: int, n_columns: int) -> int:
    """The place of a query head's values among `n_columns`, one per query head or one per key/value head.

    Returns:
        The column.
    """
    return head * n_columns // spec.n_heads
