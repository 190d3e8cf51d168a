"""The steps of one transformer block for ragged rows: variants of recorded prompts at the tokens that can differ.

Norms, projections and MLPs work on the rows' own tokens, one after the other in one matrix; only attention works on
whole prompts, with the recorded queries, keys and values before the rows' own. In the last block keys and values are
read at all of a row's tokens and everything else at the answer alone, since no later block reads the other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.models import steps
from circuitlab.models.protocol import BlockArguments, Model, Recording
from circuitlab.models.steps import SLOTS, HeadInputs
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
        """The position of each token in its prompt."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.row), device=self.row.device) - (starts - self.first)[self.row]

    @cached_property
    def at_answer(self) -> Int[Tensor, " row"]:
        """The index of each row's answer among all tokens."""
        return self.lengths.cumsum(0) - 1 - (self.last - self.answer)

    def of(self, recorded: Float[Tensor, "batch seq ..."]) -> Float[Tensor, "token ..."]:
        """A recorded tensor at the rows' tokens.

        Returns:
            Its values, one row a token.
        """
        return at_tokens(recorded, self.example[self.row], self.position)

    def answers_only(self) -> Rows:
        """The same rows at their answer position alone.

        Returns:
            Rows of one token each.
        """
        return Rows(example=self.example, first=self.answer, last=self.answer, answer=self.answer)


def at_tokens(
    values: Float[Tensor, "batch seq ..."], example: Int[Tensor, " token"], position: Int[Tensor, " token"]
) -> Float[Tensor, "token ..."]:
    """Values at chosen tokens; several times faster than indexing with two tensors.

    Returns:
        The values, one row a token.
    """
    return values.flatten(0, 1).index_select(0, example * values.shape[1] + position)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowSteps:
    """Variants of the prompts of a recorded run, and the steps that their blocks take.

    Attributes:
        model: The model.
        base: The recorded run that the rows are variants of.
        arguments: What blocks are called with at this length.
        rows: The variants.
    """

    model: Model
    base: Recording
    arguments: BlockArguments
    rows: Rows

    def run_block(
        self, layer: int, stream: Float[Tensor, "token d_model"], touched: Bool[Tensor, " token"] | None = None
    ) -> Float[Tensor, "_ d_model"]:
        """The rows' stream after one block; after the last block at the answers alone, `[row, d_model]`.

        Args:
            layer: Which block.
            stream: Their stream before the block.
            touched: Which tokens differ from the recorded run before the block; all by default.

        Returns:
            The stream after the block.
        """
        rows, last = self.rows, layer == self.model.spec.n_layers - 1
        if last and self.model.score_scale(layer) is not None:
            return self._after_attention(layer, stream[rows.at_answer], self._answers_attend(layer, stream, touched))
        q, k, v = self._read(layer, stream, touched)
        if last:
            rows, stream = rows.answers_only(), stream[rows.at_answer]
        z = self.model.attend(layer, q, k, v, self.arguments)
        places = rows.row * q.shape[1] + rows.position - (k.shape[1] - q.shape[1])
        return self._after_attention(layer, stream, z.flatten(0, 1).index_select(0, places))

    def finish_block(
        self, layer: int, middle: Float[Tensor, "token d_model"], touched: Bool[Tensor, " token"] | None = None
    ) -> Float[Tensor, "token d_model"]:
        """The stream after a block, from that which its heads have written to; recorded at untouched tokens.

        Returns:
            The stream at the rows' tokens.
        """
        if touched is None or not steps.mlp_reads_heads(self.model.spec):
            return steps.finish_block(self.model, layer, middle)
        after = self.rows.of(self.base.stream(layer + 1))
        after[touched] = steps.finish_block(self.model, layer, middle[touched])
        return after

    def inputs(self, layer: int, stream: Float[Tensor, "token d_model"]) -> HeadInputs:
        """Queries, keys and values of the rows' whole prompts, once per query head.

        They are the recorded ones, and at the rows' tokens those read from their stream.

        Returns:
            By slot, `[row, seq, head, d_head]`.
        """
        whole = {slot: values[self.rows.example] for slot, values in self.base.head_inputs(layer).items()}
        for slot, values in whole.items():
            values[self.rows.row, self.rows.position] = steps.head_inputs(self.model, layer, stream, (slot,))[slot]
        return whole

    def set_inputs(
        self,
        layer: int,
        inputs: HeadInputs,
        slot: Slot,
        heads: list[int],
        stream: Float[Tensor, "token d_model"],
    ) -> None:
        """Overwrite some heads' queries, keys or values at the rows' tokens by those read from another stream."""
        new = steps.head_inputs(self.model, layer, stream, (slot,))[slot]
        for head in heads:
            inputs[slot][self.rows.row, self.rows.position, head] = new[:, head]

    def attention(self, layer: int, inputs: HeadInputs) -> Float[Tensor, "token d_model"]:
        """What attention adds to the stream at the rows' tokens, from the inputs of their whole prompts.

        Returns:
            What is added, bias and post-norm included.
        """
        z = steps.attend(self.model, layer, inputs, self.arguments)[self.rows.row, self.rows.position]
        return self.model.attn_output(layer, z)

    def attention_frozen(self, layer: int, stream: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """The same with recorded patterns, and with values read from a stream at the rows' tokens.

        Returns:
            What is added, bias and post-norm included.
        """
        base, rows = self.base, self.rows
        values = base.v[layer].new_zeros((len(rows), *base.v[layer].shape[1:]))
        at = (rows.example[rows.row], rows.position)
        read = steps.head_inputs(self.model, layer, stream, (Slot.V,))[Slot.V]
        values[rows.row, rows.position] = read - base.v[layer][at]
        # Differences under the recorded pattern: where nothing differs nothing is added, whatever the rounding.
        change = steps.weigh_values(base.pattern[layer][rows.example], values)[rows.row, rows.position]
        return self.model.attn_output(layer, base.z[layer][at] + change)

    def _after_attention(
        self, layer: int, stream: Float[Tensor, "token d_model"], z: Float[Tensor, "token head d_head"]
    ) -> Float[Tensor, "token d_model"]:
        """The rest of a block from the stream before it and each head's z."""
        mixed = self.model.attn_output(layer, z)
        if self.model.spec.parallel and self.model.spec.has_mlp:
            mixed = mixed + self.model.mlp_output(layer, stream)
        # In place: a new tensor, of 3,000 tokens or more, whose copy would cost as much as a small product.
        return steps.finish_block(self.model, layer, mixed.add_(stream))

    def _answers_attend(
        self, layer: int, stream: Float[Tensor, "token d_model"], touched: Bool[Tensor, " token"] | None
    ) -> Float[Tensor, "row head d_head"]:
        """Every head's z at the answers; their keys are recorded before a row's tokens, which end there."""
        model, rows = self.model, self.rows
        assert model.spec.causal, "standard attention is causal"
        end = int(rows.last.max()) + 1
        read = model.attn_input(layer, stream)
        seen = model.attn_input(layer, self.base.resid_pre[layer])[:, :end].index_select(0, rows.example)
        changed = slice(None) if touched is None else touched
        seen.view(-1, seen.shape[-1])[(rows.row * end + rows.position)[changed]] = read[changed]
        sees = torch.arange(end, device=stream.device) <= rows.last[:, None]
        (q,) = model.read_attention(layer, (Slot.Q,), stream[rows.at_answer])
        return steps.attend_last_query(model, layer, q, seen, sees)

    def _read(
        self, layer: int, stream: Float[Tensor, "token d_model"], touched: Bool[Tensor, " token"] | None
    ) -> list[Float[Tensor, "row _ _ d_head"]]:
        """Keys and values of whole prompts, and queries of the last tokens.

        Recorded ones, and the rows' own where they differ; in the last block only the answers have queries.
        """
        model, base, rows, last = self.model, self.base, self.rows, layer == self.model.spec.n_layers - 1
        at = torch.arange(len(rows.row), device=stream.device) if touched is None else touched.nonzero().flatten()
        querying = at if not last else rows.at_answer if touched is None else rows.at_answer[touched[rows.at_answer]]
        changed = stream if touched is None else stream[at]
        if last:
            (q,) = model.read_attention(layer, (Slot.Q,), stream[querying])
            k, v = model.read_attention(layer, (Slot.K, Slot.V), changed)
        else:
            q, k, v = model.read_attention(layer, SLOTS, changed)
        since = int((rows.answer if last else rows.first).min())
        if touched is None:  # the outputs of other queries are never read
            queries = q.new_zeros((len(rows), base.q[layer].shape[1] - since, *q.shape[1:]))
        else:
            queries = base.q[layer][:, since:].index_select(0, rows.example)
        queries[rows.row[querying], rows.position[querying] - since] = q
        filled = [queries]
        for recorded, values in ((base.k[layer], k), (base.v[layer], v)):
            whole = steps.once_per_kv_head(model.spec, recorded).index_select(0, rows.example)
            whole[rows.row[at], rows.position[at]] = values
            filled.append(whole)
        return filled


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
        at: Variant and position of the tokens; queries start at `since`.
        read: The stream there.
        since: The first token whose z is wanted.
        arguments: What blocks are called with at this length.
        head: The head of each variant that reads it; by default every head does.

    Returns:
        The z of the tokens from `since` on.
    """
    inputs = {
        Slot.Q: base.q[layer][:, since:].index_select(0, example),
        Slot.K: steps.once_per_kv_head(model.spec, base.k[layer]).index_select(0, example),
        Slot.V: steps.once_per_kv_head(model.spec, base.v[layer]).index_select(0, example),
    }
    variant, position = at
    (new,) = model.read_attention(layer, (slot,), read)
    if head is not None:
        inputs = {each: steps.once_per_query_head(model.spec, values) for each, values in inputs.items()}
        new, which = steps.once_per_query_head(model.spec, new), head[variant]
        there = inputs[slot][variant, position - since if slot is Slot.Q else position]
        alone = torch.arange(model.spec.n_heads, device=which.device) == which[:, None]
        new = torch.where(alone[..., None], new, there)
    inputs[slot][variant, position - since if slot is Slot.Q else position] = new
    return steps.attend(model, layer, inputs, arguments)
