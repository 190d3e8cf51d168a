"""The steps of one transformer block for ragged rows: variants of recorded prompts at the tokens that can differ.

Norms, projections and MLPs work on the rows' own tokens, one after the other in one matrix; only attention works on
whole prompts, with the recorded queries, keys and values before the rows' own. In the last block keys and values are
read at all of a row's tokens and everything else at the answer alone, since no later block reads the other tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.models.grouped_heads import once_per_kv_head, once_per_query_head
from circuitlab.models.protocol import BlockArguments, Model, Recording
from circuitlab.models.rows import Rows
from circuitlab.models.steps import SLOTS, HeadInputs, attend, finish_block, mlp_reads_heads, weigh_values
from circuitlab.parts import Slot


def run_block(
    model: Model,
    base: Recording,
    arguments: BlockArguments,
    rows: Rows,
    stream: Float[Tensor, "token d_model"],
    layer: int,
    touched: Bool[Tensor, " token"] | None = None,
) -> Float[Tensor, "_ d_model"]:
    """The rows' stream after one block; after the last block at the answers alone, `[row, d_model]`.

    Args:
        model: The model.
        base: The recorded run that the rows are variants of.
        arguments: What blocks are called with at this length.
        rows: The variants.
        stream: Their stream before the block.
        layer: Which block.
        touched: Which tokens differ from the recorded run before the block; all by default.
    """
    last = layer == model.spec.n_layers - 1
    if last and model.is_standard_attention(layer):
        z = _answers_attend(model, base, rows, stream, layer, touched)
        return _after_attention(model, layer, stream[rows.at_answer], z)
    q, k, v = _read(model, base, rows, stream, layer, touched, last)
    if last:
        rows, stream = rows.answers_only(), stream[rows.at_answer]
    z = model.attend(layer, q, k, v, arguments)
    places = rows.row * q.shape[1] + rows.position - (k.shape[1] - q.shape[1])
    return _after_attention(model, layer, stream, z.flatten(0, 1).index_select(0, places))


@torch.no_grad()
def finish_block_rows(
    model: Model,
    base: Recording,
    rows: Rows,
    middle: Float[Tensor, "token d_model"],
    layer: int,
    touched: Bool[Tensor, " token"] | None = None,
) -> Float[Tensor, "token d_model"]:
    """The stream after a block from that which its heads have written to; untouched tokens are the recorded ones."""
    if touched is None or not mlp_reads_heads(model.spec):
        return finish_block(model, layer, middle)
    after = rows.of(base.stream(layer + 1))
    after[touched] = finish_block(model, layer, middle[touched])
    return after


def row_inputs(
    model: Model, base: Recording, rows: Rows, stream: Float[Tensor, "token d_model"], layer: int
) -> HeadInputs:
    """Queries, keys and values of the rows' whole prompts, once per query head.

    They are the recorded ones, and at the rows' tokens those read from their stream.
    """
    whole = {slot: values[rows.example] for slot, values in base.head_inputs(layer).items()}
    for slot, values in whole.items():
        values[rows.row, rows.position] = _one_slot(model, layer, slot, stream)
    return whole


def put_row_inputs(
    model: Model,
    layer: int,
    rows: Rows,
    inputs: HeadInputs,
    slot: Slot,
    heads: list[int],
    stream: Float[Tensor, "token d_model"],
) -> None:
    """Overwrite some heads' queries, keys or values at the rows' tokens by those read from another stream."""
    own = _one_slot(model, layer, slot, stream)
    for head in heads:
        inputs[slot][rows.row, rows.position, head] = own[:, head]


def row_attention(
    model: Model, layer: int, rows: Rows, inputs: HeadInputs, arguments: BlockArguments
) -> Float[Tensor, "token d_model"]:
    """What attention adds to the stream at the rows' tokens, from queries, keys and values of their whole prompts."""
    return model.attn_output(layer, attend(model, layer, inputs, arguments)[rows.row, rows.position])


def row_attention_frozen(
    model: Model, base: Recording, rows: Rows, stream: Float[Tensor, "token d_model"], layer: int
) -> Float[Tensor, "token d_model"]:
    """What attention adds to the stream at the rows' tokens, with the values that they read and recorded patterns."""
    values = base.v[layer].new_zeros((len(rows), *base.v[layer].shape[1:]))
    at = (rows.example[rows.row], rows.position)
    values[rows.row, rows.position] = _one_slot(model, layer, Slot.V, stream) - base.v[layer][at]
    # Differences under the recorded pattern: where nothing differs nothing is added, whatever the rounding.
    change = weigh_values(base.pattern[layer][rows.example], values)[rows.row, rows.position]
    return model.attn_output(layer, base.z[layer][at] + change)


def attend_with_slot(
    model: Model,
    base: Recording,
    layer: int,
    slot: Slot,
    example: Int[Tensor, " variant"],
    at: tuple[Int[Tensor, " token"], Int[Tensor, " token"]],
    read: Float[Tensor, "token d_model"],
    since: int,
    arguments: BlockArguments,
    head: Int[Tensor, " variant"] | None = None,
) -> Float[Tensor, "variant query head d_head"]:
    """Every head's z in variants of recorded prompts, with one slot read from another stream at some tokens.

    Args:
        model: The model.
        base: The recorded run.
        layer: Which block.
        slot: The slot.
        example: Which example each variant is of.
        at: Variant and position of the tokens; queries are asked for from `since` on.
        read: The stream there.
        since: The first token whose z is wanted.
        arguments: What blocks are called with at this length.
        head: The head of each variant that reads it; by default every head does.
    """
    inputs = {
        Slot.Q: base.q[layer][:, since:].index_select(0, example),
        Slot.K: once_per_kv_head(model.spec, base.k[layer]).index_select(0, example),
        Slot.V: once_per_kv_head(model.spec, base.v[layer]).index_select(0, example),
    }
    variant, position = at
    (own,) = model.read_attention(layer, (slot,), read)
    if head is not None:
        inputs = {each: once_per_query_head(model.spec, values) for each, values in inputs.items()}
        own, which = once_per_query_head(model.spec, own), head[variant]
        there = inputs[slot][variant, position - since if slot is Slot.Q else position]
        alone = torch.arange(model.spec.n_heads, device=which.device) == which[:, None]
        own = torch.where(alone[..., None], own, there)
    inputs[slot][variant, position - since if slot is Slot.Q else position] = own
    return attend(model, layer, inputs, arguments)


def _after_attention(
    model: Model, layer: int, stream: Float[Tensor, "token d_model"], z: Float[Tensor, "token head d_head"]
) -> Float[Tensor, "token d_model"]:
    """The rest of a block from the stream before it and each head's z."""
    mixed = model.attn_output(layer, z)
    if model.spec.parallel and model.spec.has_mlp:
        mixed = mixed + model.mlp_output(layer, stream)
    # In place: these are ours alone, and at 3,000 tokens a pass over the stream costs as much as a small product.
    return finish_block(model, layer, mixed.add_(stream))


def _answers_attend(
    model: Model,
    base: Recording,
    rows: Rows,
    stream: Float[Tensor, "token d_model"],
    layer: int,
    touched: Bool[Tensor, " token"] | None,
) -> Float[Tensor, "row head d_head"]:
    """Every head's z at the answers; their keys are recorded before a row's tokens, which end there."""
    assert model.spec.causal, "standard attention is causal"
    end = int(rows.last.max()) + 1
    read = model.attn_input(layer, stream)
    seen = model.attn_input(layer, base.resid_pre[layer])[:, :end].index_select(0, rows.example)
    own = slice(None) if touched is None else touched
    seen.view(-1, seen.shape[-1])[(rows.row * end + rows.position)[own]] = read[own]
    sees = torch.arange(end, device=stream.device) <= rows.last[:, None]
    return model.attend_last_query(layer, read[rows.at_answer], seen, sees)


def _read(
    model: Model,
    base: Recording,
    rows: Rows,
    stream: Float[Tensor, "token d_model"],
    layer: int,
    touched: Bool[Tensor, " token"] | None,
    last: bool,
) -> list[Float[Tensor, "row _ _ d_head"]]:
    """Keys and values of whole prompts, and queries from the first token that asks on.

    Recorded ones, and the rows' own where they differ; in the last block only the answers ask.
    """
    own = torch.arange(len(rows.row), device=stream.device) if touched is None else touched.nonzero().flatten()
    asking = own if not last else rows.at_answer if touched is None else rows.at_answer[touched[rows.at_answer]]
    if last:
        (q,) = model.read_attention(layer, (Slot.Q,), stream[asking])
        k, v = model.read_attention(layer, (Slot.K, Slot.V), stream if touched is None else stream[own])
    else:
        q, k, v = model.read_attention(layer, SLOTS, stream if touched is None else stream[own])
    since = int((rows.answer if last else rows.first).min())
    if touched is None:  # the outputs of other queries are never read
        queries = q.new_zeros((len(rows), base.q[layer].shape[1] - since, *q.shape[1:]))
    else:
        queries = base.q[layer][:, since:].index_select(0, rows.example)
    queries[rows.row[asking], rows.position[asking] - since] = q
    filled = [queries]
    for recorded, values in ((base.k[layer], k), (base.v[layer], v)):
        whole = once_per_kv_head(model.spec, recorded).index_select(0, rows.example)
        whole[rows.row[own], rows.position[own]] = values
        filled.append(whole)
    return filled


def _one_slot(
    model: Model, layer: int, slot: Slot, stream: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token head d_head"]:
    (values,) = model.read_attention(layer, (slot,), stream)
    return once_per_query_head(model.spec, values)
