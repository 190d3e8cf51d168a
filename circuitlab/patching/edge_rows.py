"""Edges as rows of a packed run: what reaches one reader is changed, and only what comes after it runs.

An edge u -> v carries a message, what u adds to the stream. With the message of the other run in its place, v reads

    x_v + (a'_u - a_u)

and nobody else reads anything else; what v says then goes to everybody behind it.

1. Into the logits: the stream at the answer, and nothing to run.
2. Into an MLP: the MLP once more at the message's own tokens, then the blocks behind it.
3. Into q, k or v of a head: all heads' projections of the one changed stream, and one call of the attention code for
   all heads of the layer, since heads of a layer do not see each other; each edge takes its own head's z from it.
   Queries change z at their own tokens, keys and values at every later one. Then the MLP, and the blocks behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.models.protocol import Model, Recording
from circuitlab.parts import Edge, Kind, Layout, Node, Slot
from circuitlab.patching.baseline import Baseline
from circuitlab.patching.edge_plan import reader_layer
from circuitlab.patching.suffix import Rows, run_suffix
from circuitlab.patching.writers import mlp_input

SLOTS = tuple(Slot)
# What stands in the place of a slot's number for readers that have none.
WHOLE = len(SLOTS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeRun:
    """One batch and the messages that are swapped in it.

    Attributes:
        model: The model.
        baseline: The batch, run clean and corrupted.
        base: The run that is patched.
        edges: The edges.
        writers: Their sources, in the order of `messages`.
        messages: How far each writer's output in the other run is from its output in `base`.
        tokens: The tokens of each column.
        live: Where a message differs and what it changes can reach the answer.
    """

    model: Model
    baseline: Baseline
    base: Recording
    edges: tuple[Edge, ...]
    writers: tuple[Node, ...]
    messages: Float[Tensor, "writer batch seq d_model"]
    tokens: Bool[Tensor, "column batch seq"]
    live: Bool[Tensor, "writer batch seq"]

    @property
    def answer_at(self) -> Int[Tensor, " batch"]:
        """Where each example is judged."""
        return self.baseline.batch.answer_at


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeRows:
    """One row per edge, column and example whose message differs, all into readers of one layer.

    Attributes:
        edge: Number of the edge.
        writer: Place of its source among the writers.
        slot: Number of the slot it enters; `WHOLE` for an MLP and the logits.
        head: The head it enters; 0 for an MLP and the logits.
        column: Number of the column.
        example: The example.
        first: The first token of the message that differs.
    """

    edge: Int[Tensor, " row"]
    writer: Int[Tensor, " row"]
    slot: Int[Tensor, " row"]
    head: Int[Tensor, " row"]
    column: Int[Tensor, " row"]
    example: Int[Tensor, " row"]
    first: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.edge)

    def take(self, rows: slice | Int[Tensor, " kept"]) -> EdgeRows:
        """Some of the rows."""
        return EdgeRows(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


@torch.no_grad()
def edge_run(
    model: Model,
    baseline: Baseline,
    edges: Sequence[Edge],
    tokens: Bool[Tensor, "column batch seq"],
    direction: str = "noise",
) -> EdgeRun:
    """Take the messages of both runs.

    Args:
        model: The model.
        baseline: The batch, run clean and corrupted.
        edges: Edges of the model.
        tokens: The tokens of each column.
        direction: "noise" patches the clean run, "denoise" the corrupted one.
    """
    runs = (baseline.clean, baseline.corrupt)
    base, other = runs if direction == "noise" else runs[::-1]
    layout, batch = Layout.of(model.spec), baseline.batch
    writers = tuple(sorted({edge.source for edge in edges}, key=layout.writer_index))
    messages = messages_of(model, base, other, writers)
    return EdgeRun(
        model=model,
        baseline=baseline,
        base=base,
        edges=tuple(edges),
        writers=writers,
        messages=messages,
        tokens=tokens,
        live=(messages != 0).any(3) & where_it_matters(batch),
    )


def where_it_matters(batch: PairBatch) -> Bool[Tensor, "batch seq"]:
    """Tokens from the first that differs to the answer.

    Both prompts are the same before it, whatever the last bits of their kernels say, and nobody looks behind the
    answer.
    """
    position = torch.arange(batch.n_tokens, device=batch.clean.device)
    return ((batch.clean != batch.corrupt).cumsum(1) > 0) & (position <= batch.answer_at[:, None])


@torch.no_grad()
def messages_of(
    model: Model, base: Recording, other: Recording, writers: Sequence[Node]
) -> Float[Tensor, "writer batch seq d_model"]:
    """How far each writer's output in the other run is from its output in this one."""
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
        if model.has_post_norm(layer):  # each run has its own scale
            apart = model.head_outputs(layer, other.z[layer], heads) - model.head_outputs(layer, base.z[layer], heads)
        else:
            apart = model.head_outputs(layer, other.z[layer] - base.z[layer], heads)
        found[here] = apart
    return found


def edge_rows(run: EdgeRun, layer: int) -> EdgeRows:
    """The rows of all edges into readers of a layer; `layer = n_layers`: into the logits."""
    device, n_layers = run.messages.device, run.model.spec.n_layers
    layout, places = Layout.of(run.model.spec), {writer: i for i, writer in enumerate(run.writers)}
    here = [n for n, edge in enumerate(run.edges) if reader_layer(layout, edge) == layer]
    edges = [run.edges[n] for n in here]
    slots = [WHOLE if e.reader.slot is None else SLOTS.index(e.reader.slot) for e in edges]
    # In the last layer keys and values are read at every token, all else at the answer.
    late = [layer >= n_layers - 1 and slot in (SLOTS.index(Slot.Q), WHOLE) for slot in slots]
    at_answer = torch.tensor(late, dtype=torch.bool)
    columns = torch.tensor(
        [[n, places[e.source], slot, e.reader.node.head or 0] for n, e, slot in zip(here, edges, slots, strict=True)],
        dtype=torch.long,
    ).reshape(-1, 4)
    first, reaches = _first_tokens(run)
    answers = _there_at_the_answer(run)
    columns, at_answer = columns.to(device), at_answer.to(device)
    there = torch.where(at_answer[:, None, None], answers[columns[:, 1]], reaches[columns[:, 1]])
    row, column, example = there.nonzero().T
    edge, writer, slot, head = columns[row].T
    found = EdgeRows(
        edge=edge,
        writer=writer,
        slot=slot,
        head=head,
        column=column,
        example=example,
        first=torch.where(at_answer[row], run.answer_at[example], first[writer, column, example]),
    )
    # Rows that share a call of the attention code stand together, so that they fall into one pack.
    return found.take((_unit(run, found) * run.model.spec.n_heads + found.head).argsort())


@torch.no_grad()
def run_rows(run: EdgeRun, layer: int, some: EdgeRows) -> Float[Tensor, "row d_model"]:
    """The final stream of each row at its answer."""
    model, base, n_layers = run.model, run.base, run.model.spec.n_layers
    answer = run.answer_at[some.example]
    if layer == n_layers:
        return base.resid_final[some.example, answer] + run.messages[some.writer, some.example, answer]
    # Heads one after the other, and MLPs last: what belongs together is a slice.
    order = torch.where(some.slot == WHOLE, model.spec.n_heads, some.head).argsort(stable=True)
    some, answer = some.take(order), answer[order]
    rows = Rows(example=some.example, first=answer if layer == n_layers - 1 else some.first, last=answer)
    where = (some.example[rows.row], rows.position)
    touched = run.live[some.writer[rows.row], *where] & run.tokens[some.column[rows.row], *where]
    # A key or a value is read by every later token.
    touched |= ((some.slot == SLOTS.index(Slot.K)) | (some.slot == SLOTS.index(Slot.V)))[rows.row]
    everywhere = bool(touched.all())
    at = torch.arange(len(touched), device=touched.device) if everywhere else touched.nonzero().flatten()
    behind = _behind_reader(run, layer, some, rows.row[at], rows.position[at])
    stream = behind if everywhere else rows.of(base.stream(layer + 1)).index_copy_(0, at, behind)
    final = run_suffix(model, base, run.baseline.frame, rows, stream, layer + 1, None if everywhere else touched)
    return torch.empty_like(final).index_copy_(0, order, final)


def _first_tokens(run: EdgeRun) -> tuple[Int[Tensor, "writer column batch"], Bool[Tensor, "writer column batch"]]:
    """The first token of each message, and whether there is one; writer by writer, to keep the memory small."""
    first = torch.empty((len(run.writers), *run.tokens.shape[:2]), dtype=torch.long, device=run.live.device)
    there = torch.empty_like(first, dtype=torch.bool)
    for writer, live in enumerate(run.live):
        both = run.tokens & live
        first[writer], there[writer] = both.int().argmax(2), both.any(2)
    return first, there


def _there_at_the_answer(run: EdgeRun) -> Bool[Tensor, "writer column batch"]:
    """Whether each message differs at the answer."""
    example = torch.arange(len(run.answer_at), device=run.live.device)
    return run.live[:, None, example, run.answer_at] & run.tokens[:, example, run.answer_at]


def _unit(run: EdgeRun, rows: EdgeRows) -> Int[Tensor, " row"]:
    """A number for every column, slot, writer and example: heads of a layer can share a call of its attention.

    Columns first: rows that begin at the same token fall into one pack, and attention asks from there on.
    """
    n_writers, n_examples = len(run.writers), len(run.answer_at)
    return ((rows.column * (WHOLE + 1) + rows.slot) * n_writers + rows.writer) * n_examples + rows.example


def _behind_reader(
    run: EdgeRun, layer: int, some: EdgeRows, row: Int[Tensor, " touched"], position: Int[Tensor, " touched"]
) -> Float[Tensor, "touched d_model"]:
    """The stream behind a block at the touched tokens; those of heads come first, head by head."""
    model, base, spec = run.model, run.base, run.model.spec
    example, n_heads = some.example[row], int((some.slot[row] != WHOLE).sum())
    sequential = spec.has_mlp and not spec.parallel
    entry = mlp_input(model, base, layer) if sequential else base.stream(layer + 1)
    stream = entry[example, position]
    _add_change_of_heads(run, layer, some, row[:n_heads], position[:n_heads], stream[:n_heads])
    if n_heads == len(row):
        return stream.add_(model.mlp_output(layer, stream)) if sequential else stream
    mlps = (example[n_heads:], position[n_heads:])
    messages = run.messages[some.writer[row[n_heads:]], *mlps]
    if sequential:
        read = torch.cat([stream[:n_heads], stream[n_heads:] + messages])
        return stream.add_(model.mlp_output(layer, read))
    read = mlp_input(model, base, layer)[mlps] + messages
    stream[n_heads:] += model.mlp_output(layer, read) - base.mlp_out[layer][mlps]
    return stream


def _add_change_of_heads(
    run: EdgeRun,
    layer: int,
    some: EdgeRows,
    row: Int[Tensor, " touched"],
    position: Int[Tensor, " touched"],
    stream: Float[Tensor, "touched d_model"],
) -> None:
    """Add, in place, what each row's own head says beyond what it said."""
    if not len(row):
        return
    model, own = run.model, run.base.z[layer]
    example, head = some.example[row], some.head[row]
    z = _changed_z(run, layer, some, row, position)
    if model.has_post_norm(layer):  # behind a norm the heads of a layer share one scale
        patched = own[example, position]
        patched[torch.arange(len(row), device=row.device), head] = z
        stream += model.attn_output(layer, patched) - run.base.attn_out[layer][example, position]
        return
    apart, start = z.sub_(own[example, position, head]), 0
    for number, count in enumerate(torch.bincount(head).tolist()):
        if count:
            alone = apart[start : start + count][None, :, None].expand(1, count, model.spec.n_heads, -1)
            stream[start : start + count] += model.head_outputs(layer, alone, [number])[0, 0]
        start += count


def _changed_z(
    run: EdgeRun, layer: int, some: EdgeRows, row: Int[Tensor, " touched"], position: Int[Tensor, " touched"]
) -> Float[Tensor, "touched d_head"]:
    """Each row's own head, with one slot read from the changed stream: its z."""
    n_writers, n_examples = len(run.writers), len(run.answer_at)
    found = run.messages.new_empty((len(row), run.model.spec.d_head))
    since, slot_of_token = int(position.min()), some.slot[row]
    for number, slot in enumerate(SLOTS):
        chosen, here = (some.slot == number).nonzero().flatten(), (slot_of_token == number).nonzero().flatten()
        if not len(chosen):
            continue
        key, unit = _unit(run, some.take(chosen)).unique(return_inverse=True)
        units = _Units(
            writer=key // n_examples % n_writers,
            column=key // (n_examples * n_writers * (WHOLE + 1)),
            example=key % n_examples,
        )
        z = _attend(run, layer, slot, units, since)
        unit_of_row = torch.empty_like(some.slot)
        unit_of_row[chosen] = unit
        found[here] = z[unit_of_row[row[here]], position[here] - since, some.head[row[here]]]
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Units:
    """Streams with one changed message; every head of a layer can read each of them."""

    writer: Int[Tensor, " unit"]
    column: Int[Tensor, " unit"]
    example: Int[Tensor, " unit"]


def _attend(
    run: EdgeRun, layer: int, slot: Slot, units: _Units, since: int
) -> Float[Tensor, "unit asking head d_head"]:
    """All heads' z at the tokens from `since` on, each head with this one slot read from the changed stream."""
    model, base, example = run.model, run.base, units.example
    group = model.spec.n_heads // model.spec.n_kv_heads
    values = {
        Slot.Q: base.q[layer][:, since:][example],
        Slot.K: base.k[layer][:, :, ::group][example],
        Slot.V: base.v[layer][:, :, ::group][example],
    }
    changed = run.live[units.writer, example] & run.tokens[units.column, example]
    if slot is Slot.Q:
        changed[:, :since] = False
    unit, position = changed.nonzero().T
    where = (example[unit], position)
    read = base.resid_pre[layer][where] + run.messages[units.writer[unit], *where]
    (own,) = model.read_attention(layer, (slot,), read)
    values[slot][unit, position - since if slot is Slot.Q else position] = own
    return model.attend(layer, values[Slot.Q], values[Slot.K], values[Slot.V], run.baseline.frame)
