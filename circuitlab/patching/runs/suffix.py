"""Run many variants of recorded prompts from the middle of the model, and no token that cannot differ.

A row is one variant of one example, with a stream of its own at the tokens that can differ. Under causal attention that
is the first changed token and all up to the answer, with the recorded run in front; else the whole prompt. Everything
that works token by token (norms, projections, MLPs) sees the rows' own tokens one after the other in one matrix; only
attention sees whole rows, with the recorded queries, keys and values in front. In the last block keys and values are
read at all of a row's tokens, everything else at the answer: nobody looks at another token behind it.

The same runs through a cache of keys and values need the model's code to take one and its masks and positions to be
cut; this needs neither, so it is exact on every architecture whose steps add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.models.protocol import BlockArguments, Model, Recording
from circuitlab.parts import Slot


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Variants of examples, tokens `first` to `last` of each (both included), one row after the other.

    Attributes:
        example: Which example of the batch each row is a variant of.
        first: First token that may differ from the recorded run.
        last: Last token that may, and that can reach the answer.
        answer: The example's answer position, among these.
    """

    example: Int[Tensor, " row"]
    first: Int[Tensor, " row"]
    last: Int[Tensor, " row"]
    answer: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.example)

    @cached_property
    def lengths(self) -> Int[Tensor, " row"]:
        """How many tokens each row has."""
        return self.last - self.first + 1

    @cached_property
    def row(self) -> Int[Tensor, " token"]:
        """The row that each token belongs to."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.example.device), self.lengths)

    @cached_property
    def position(self) -> Int[Tensor, " token"]:
        """Where each token stands in its prompt."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.row), device=self.row.device) - (starts - self.first)[self.row]

    @cached_property
    def at_answer(self) -> Int[Tensor, " row"]:
        """The place of each row's answer among all tokens."""
        return self.lengths.cumsum(0) - 1 - (self.last - self.answer)

    def of(self, recorded: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "token d_model"]:
        """A recorded tensor at the rows' tokens."""
        # Several times faster than indexing with two tensors.
        places = self.example[self.row] * recorded.shape[1] + self.position
        return recorded.flatten(0, 1).index_select(0, places)

    def answers_only(self) -> Rows:
        """The same rows at their answer position alone."""
        return Rows(example=self.example, first=self.answer, last=self.answer, answer=self.answer)


@torch.no_grad()
def run_suffix(
    model: Model,
    base: Recording,
    arguments: BlockArguments,
    rows: Rows,
    stream: Float[Tensor, "token d_model"],
    layer: int,
    touched: Bool[Tensor, " token"] | None = None,
) -> Float[Tensor, "row d_model"]:
    """The final stream at each row's answer position.

    Args:
        model: The model.
        base: The recorded run that the rows are variants of.
        arguments: What blocks are called with at this length.
        rows: The variants.
        stream: Their stream on entry to block `layer`.
        layer: The first block to run; `n_layers`: none.
        touched: Which tokens differ from the recorded run on entry; all of them by default. The others' queries, keys
            and values are the recorded ones.
    """
    for at in range(layer, model.spec.n_layers):
        last = at == model.spec.n_layers - 1
        stream = _block(model, base, arguments, rows, stream, at, touched if at == layer else None, last)
    return stream if layer < model.spec.n_layers else stream[rows.at_answer]


@torch.no_grad()
def run_from_middle(
    model: Model,
    base: Recording,
    arguments: BlockArguments,
    rows: Rows,
    middle: Float[Tensor, "token d_model"],
    layer: int,
    touched: Bool[Tensor, " token"] | None = None,
) -> Float[Tensor, "row d_model"]:
    """The same from the stream between a block's attention and its MLP (behind both where they are parallel)."""
    if layer == model.spec.n_layers - 1:
        middle = middle[rows.at_answer]
        touched = None if touched is None else touched[rows.at_answer]
        rows = rows.answers_only()
    return run_suffix(
        model, base, arguments, rows, behind_mlp(model, base, rows, middle, layer, touched), layer + 1, touched
    )


@torch.no_grad()
def behind_mlp(
    model: Model,
    base: Recording,
    rows: Rows,
    middle: Float[Tensor, "token d_model"],
    layer: int,
    touched: Bool[Tensor, " token"] | None = None,
) -> Float[Tensor, "token d_model"]:
    """The stream behind a block from the stream in its middle; untouched tokens are the recorded ones."""
    if not model.spec.has_mlp or model.spec.parallel:
        return middle
    if touched is None:
        return model.mlp_output(layer, middle).add_(middle)
    behind, changed = rows.of(base.stream(layer + 1)), middle[touched]
    behind[touched] = model.mlp_output(layer, changed).add_(changed)
    return behind


def _block(
    model: Model,
    base: Recording,
    arguments: BlockArguments,
    rows: Rows,
    stream: Tensor,
    layer: int,
    touched: Tensor | None,
    last: bool,
) -> Float[Tensor, "token d_model"]:
    """One block on the rows' tokens; in the last block only the answers come out."""
    if last and model.is_standard_attention(layer):
        z = _answers_attend(model, base, rows, stream, layer, touched)
        return _behind_attention(model, base, rows.answers_only(), stream[rows.at_answer], z, layer)
    q, k, v = _read(model, base, rows, stream, layer, touched, last)
    if last:
        rows, stream = rows.answers_only(), stream[rows.at_answer]
    z = model.attend(layer, q, k, v, arguments)
    places = rows.row * q.shape[1] + rows.position - (k.shape[1] - q.shape[1])
    return _behind_attention(model, base, rows, stream, z.flatten(0, 1).index_select(0, places), layer)


def _behind_attention(
    model: Model, base: Recording, rows: Rows, stream: Tensor, z: Float[Tensor, "token head d_head"], layer: int
) -> Float[Tensor, "token d_model"]:
    """The rest of a block from its stream and each head's z."""
    mixed = model.attn_output(layer, z)
    if model.spec.parallel and model.spec.has_mlp:
        mixed = mixed + model.mlp_output(layer, stream)
    # In place: these are ours alone, and at 3,000 tokens a pass over the stream costs as much as a small product.
    return behind_mlp(model, base, rows, mixed.add_(stream), layer)


def _answers_attend(
    model: Model, base: Recording, rows: Rows, stream: Tensor, layer: int, touched: Tensor | None
) -> Float[Tensor, "row head d_head"]:
    """Every head's z at the answers; what they look at is recorded in front of a row's tokens, which end there."""
    assert model.spec.causal, "plain attention is causal"
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
    stream: Tensor,
    layer: int,
    touched: Tensor | None,
    last: bool,
) -> list[Float[Tensor, "row _ _ d_head"]]:
    """Keys and values of whole prompts and queries from the first token that asks on.

    Recorded ones, and the rows' own where they differ; in the last block only the answers ask.
    """
    group = model.spec.n_heads // model.spec.n_kv_heads
    own = torch.arange(len(rows.row), device=stream.device) if touched is None else touched.nonzero().flatten()
    asking = own if not last else rows.at_answer if touched is None else rows.at_answer[touched[rows.at_answer]]
    if last:
        (q,) = model.read_attention(layer, (Slot.Q,), stream[asking])
        k, v = model.read_attention(layer, (Slot.K, Slot.V), stream if touched is None else stream[own])
    else:
        q, k, v = model.read_attention(layer, tuple(Slot), stream if touched is None else stream[own])
    since = int((rows.answer if last else rows.first).min())
    if touched is None:  # whoever else asks, nobody reads what is said to them
        queries = q.new_zeros((len(rows), base.q[layer].shape[1] - since, *q.shape[1:]))
    else:
        queries = base.q[layer][:, since:].index_select(0, rows.example)
    queries[rows.row[asking], rows.position[asking] - since] = q
    filled = [queries]
    for recorded, values in ((base.k[layer], k), (base.v[layer], v)):
        whole = recorded[:, :, ::group].index_select(0, rows.example)
        whole[rows.row[own], rows.position[own]] = values
        filled.append(whole)
    return filled
