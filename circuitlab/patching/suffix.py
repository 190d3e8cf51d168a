"""Run many variants of recorded prompts from the middle of the model, and no token that cannot differ.

A row is one variant of one example: from its first changed token to the answer position it carries its own stream;
before that it is the recorded run (attention is causal), and behind the answer nobody looks. Everything that works
token by token (norms, projections, MLPs) sees the rows' own tokens one after the other in one matrix; only attention
sees whole rows, with the recorded queries, keys and values in front. In the last block keys and values are read at all
of a row's tokens, everything else at the answer.

The same runs through a cache of keys and values need the model's code to take one and its masks and positions to be
cut; this needs neither, so it is exact on every architecture whose steps add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.models.protocol import Frame, Model, Recording
from circuitlab.parts import Slot


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Variants of examples, tokens `first` to `last` of each (both included), one row after the other.

    Attributes:
        example: Which example of the batch each row is a variant of.
        first: First token that may differ from the recorded run.
        last: The example's answer position.
    """

    example: Int[Tensor, " row"]
    first: Int[Tensor, " row"]
    last: Int[Tensor, " row"]

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
        """The place of each row's last token among all tokens."""
        return self.lengths.cumsum(0) - 1

    def of(self, recorded: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "token d_model"]:
        """A recorded tensor at the rows' tokens."""
        return recorded[self.example[self.row], self.position]

    def answers_only(self) -> Rows:
        """The same rows at their answer position alone."""
        return Rows(example=self.example, first=self.last, last=self.last)


@torch.no_grad()
def run_suffix(
    model: Model,
    base: Recording,
    frame: Frame,
    rows: Rows,
    stream: Float[Tensor, "token d_model"],
    layer: int,
    touched: Bool[Tensor, " token"] | None = None,
) -> Float[Tensor, "row d_model"]:
    """The final stream at each row's answer position.

    Args:
        model: The model.
        base: The recorded run that the rows are variants of.
        frame: What blocks are called with at this length.
        rows: The variants.
        stream: Their stream on entry to block `layer`.
        layer: The first block to run; `n_layers`: none.
        touched: Which tokens differ from the recorded run on entry; all of them by default. The others' queries, keys
            and values are the recorded ones.
    """
    for at in range(layer, model.spec.n_layers):
        last = at == model.spec.n_layers - 1
        stream = _block(model, base, frame, rows, stream, at, touched if at == layer else None, last)
    return stream if layer < model.spec.n_layers else stream[rows.at_answer]


@torch.no_grad()
def run_from_middle(
    model: Model,
    base: Recording,
    frame: Frame,
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
        model, base, frame, rows, behind_mlp(model, base, rows, middle, layer, touched), layer + 1, touched
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
        return model.mlp_output(layer, middle) + middle
    behind, changed = rows.of(base.stream(layer + 1)), middle[touched]
    behind[touched] = model.mlp_output(layer, changed) + changed
    return behind


def _block(
    model: Model,
    base: Recording,
    frame: Frame,
    rows: Rows,
    stream: Tensor,
    layer: int,
    touched: Tensor | None,
    last: bool,
) -> Float[Tensor, "token d_model"]:
    """One block on the rows' tokens; in the last block only the answers come out."""
    z = model.attend(layer, *_read(model, base, rows, stream, layer, touched, last), frame)
    if last:
        rows, stream = rows.answers_only(), stream[rows.at_answer]
    mixed = model.attn_output(layer, z[rows.row, rows.position])
    if model.spec.parallel and model.spec.has_mlp:
        mixed = mixed + model.mlp_output(layer, stream)
    # In place: these are ours alone, and at 3,000 tokens a pass over the stream costs as much as a small product.
    return behind_mlp(model, base, rows, mixed.add_(stream), layer)


def _read(
    model: Model,
    base: Recording,
    rows: Rows,
    stream: Tensor,
    layer: int,
    touched: Tensor | None,
    last: bool,
) -> list[Float[Tensor, "row seq _ d_head"]]:
    """Queries, keys and values of whole prompts: recorded ones, and the rows' own where they differ."""
    group = model.spec.n_heads // model.spec.n_kv_heads
    recorded = {Slot.Q: base.q[layer], Slot.K: base.k[layer][:, :, ::group], Slot.V: base.v[layer][:, :, ::group]}
    chosen = torch.ones_like(rows.row, dtype=torch.bool) if touched is None else touched
    asking = chosen
    if last:  # only the answers ask
        asking = torch.zeros_like(chosen)
        asking[rows.at_answer] = chosen[rows.at_answer]
    parts = [(tuple(Slot), chosen)] if asking is chosen else [((Slot.Q,), asking), ((Slot.K, Slot.V), chosen)]
    filled = []
    for slots, at in parts:
        read = model.read_attention(layer, slots, stream if at is chosen and touched is None else stream[at])
        for slot, values in zip(slots, read, strict=True):
            whole = recorded[slot][rows.example]
            whole[rows.row[at], rows.position[at]] = values
            filled.append(whole)
    return filled
