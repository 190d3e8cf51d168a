"""Edges as rows of a packed run: what reaches one reader is changed, and only what comes after it runs.

An edge u -> v carries a message, what u adds to the stream. With the message of the other run in its place, v reads

    x_v + (a'_u - a_u)

and nobody else reads anything else; what v says then goes to everybody behind it.

1. Into the logits: the stream at the answer, and nothing to run.
2. Into an MLP: the MLP once more at the message's own tokens, then the blocks behind it.
3. Into q, k or v of a head: all heads' projections of the one changed stream, and one call of the attention code for
   all heads of the layer, since heads of a layer do not see each other; each edge takes its own head's z from it.
   Queries change z at their own tokens, keys and values at every one that sees them. Then the MLP, and the blocks
   behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.parts import Edge, Layout, Slot
from circuitlab.patching.edges.carried import EdgeRun
from circuitlab.patching.edges.plan import reader_layer
from circuitlab.patching.runs.reach import rows_at_answer, rows_from
from circuitlab.patching.runs.suffix import run_suffix
from circuitlab.patching.runs.writers import mlp_input

SLOTS = tuple(Slot)
# What stands in the place of a slot's number for readers that have none.
WHOLE = len(SLOTS)
# Rows that are looked at together; each takes 56 bytes, and as much again while they are put in order.
ROWS_AT_ONCE = 2**20


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


def edges_into(run: EdgeRun, layer: int) -> Iterator[list[int]]:
    """Numbers of the edges into readers of a layer (`n_layers`: into the logits), so many at a time.

    Edges that can share a call of the attention code stand together. All at once their rows would take 3 GB for the
    edges of GPT-2 small on 100 prompts of 16 tokens, by position.
    """
    layout = Layout.of(run.model.spec)

    def place(number: int) -> tuple[int, int, int]:
        edge = run.edges[number]
        return _slot_number(edge), layout.writer_index(edge.source), edge.reader.node.head or 0

    numbers = sorted((n for n, edge in enumerate(run.edges) if reader_layer(layout, edge) == layer), key=place)
    size = max(1, ROWS_AT_ONCE // (run.tokens.shape[0] * run.tokens.shape[1]))
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def edge_rows(run: EdgeRun, layer: int, numbers: Sequence[int]) -> EdgeRows:
    """The rows of some edges into readers of one layer; `layer = n_layers`: into the logits."""
    device, last = run.messages.device, run.model.spec.n_layers - 1
    places = {writer: i for i, writer in enumerate(run.writers)}
    edges = [run.edges[number] for number in numbers]
    about = [
        [n, places[e.source], _slot_number(e), e.reader.node.head or 0] for n, e in zip(numbers, edges, strict=True)
    ]
    columns = torch.tensor(about, dtype=torch.long, device=device).reshape(-1, 4)
    # In the last layer keys and values are read at every token, all else at the answer.
    late = torch.full_like(columns[:, 2], layer >= last, dtype=torch.bool)
    late &= (columns[:, 2] == SLOTS.index(Slot.Q)) | (columns[:, 2] == WHOLE)
    first, writer_of_edge = run.first, columns[:, 1]
    example = torch.arange(len(run.answer_at), device=device)
    at_answer = run.live[:, None, example, run.answer_at] & run.tokens[:, example, run.answer_at]
    there = torch.where(late[:, None, None], at_answer[writer_of_edge], (first < run.live.shape[2])[writer_of_edge])
    row, column, example = there.nonzero().T
    number, writer, slot, head = columns[row].T
    found = EdgeRows(
        edge=number,
        writer=writer,
        slot=slot,
        head=head,
        column=column,
        example=example,
        first=torch.where(late[row], run.answer_at[example], first[writer, column, example]),
    )
    return found.take((_unit(run, found) * run.model.spec.n_heads + found.head).argsort())


@torch.no_grad()
def run_rows(run: EdgeRun, layer: int, some: EdgeRows) -> Float[Tensor, "row d_model"]:
    """The final stream of each row at its answer."""
    model, base, n_layers = run.model, run.base, run.model.spec.n_layers
    answer = run.answer_at[some.example]
    if layer == n_layers:
        return _at(base.resid_final, some.example, answer) + _messages(run, some.writer, some.example, answer)
    # Heads one after the other, and MLPs last: what belongs together is a slice.
    order = torch.where(some.slot == WHOLE, model.spec.n_heads, some.head).argsort(stable=True)
    some, answer = some.take(order), answer[order]
    batch, last = run.baseline.batch, layer == n_layers - 1
    rows = rows_at_answer(batch, some.example) if last else rows_from(model.spec, batch, some.example, some.first)
    where = (some.example[rows.row], rows.position)
    touched = run.live[some.writer[rows.row], *where] & run.tokens[some.column[rows.row], *where]
    # A key or a value is read by every later token, in a bidirectional model by all: the row's tokens.
    touched |= ((some.slot == SLOTS.index(Slot.K)) | (some.slot == SLOTS.index(Slot.V)))[rows.row]
    everywhere = bool(touched.all())
    at = torch.arange(len(touched), device=touched.device) if everywhere else touched.nonzero().flatten()
    behind = _behind_reader(run, layer, some, rows.row[at], rows.position[at])
    stream = behind if everywhere else rows.of(base.stream(layer + 1)).index_copy_(0, at, behind)
    final = run_suffix(model, base, run.baseline.arguments, rows, stream, layer + 1, None if everywhere else touched)
    return torch.empty_like(final).index_copy_(0, order, final)


def _slot_number(edge: Edge) -> int:
    return WHOLE if edge.reader.slot is None else SLOTS.index(edge.reader.slot)


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
    stream = _at(entry, example, position)
    _add_change_of_heads(run, layer, some, row[:n_heads], position[:n_heads], stream[:n_heads])
    if n_heads == len(row):
        return stream.add_(model.mlp_output(layer, stream)) if sequential else stream
    mlps = (example[n_heads:], position[n_heads:])
    messages = _messages(run, some.writer[row[n_heads:]], *mlps)
    if sequential:
        read = torch.cat([stream[:n_heads], stream[n_heads:] + messages])
        return stream.add_(model.mlp_output(layer, read))
    read = _at(base.resid_pre[layer], *mlps) + messages
    stream[n_heads:] += model.mlp_output(layer, read) - _at(base.mlp_out[layer], *mlps)
    return stream


def _at(
    values: Float[Tensor, "batch seq ..."], example: Int[Tensor, " touched"], position: Int[Tensor, " touched"]
) -> Float[Tensor, "touched ..."]:
    """Values at chosen tokens; one index of whole rows is twice as fast as two indices."""
    return values.flatten(0, 1).index_select(0, example * values.shape[1] + position)


def _messages(
    run: EdgeRun, writer: Int[Tensor, " touched"], example: Int[Tensor, " touched"], position: Int[Tensor, " touched"]
) -> Float[Tensor, "touched d_model"]:
    return _at(run.messages.flatten(0, 1), writer * len(run.answer_at) + example, position)


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
        patched = _at(own, example, position)
        patched[torch.arange(len(row), device=row.device), head] = z
        stream += model.attn_output(layer, patched) - _at(run.base.attn_out[layer], example, position)
        return
    apart, start = z.sub_(_at(own.flatten(0, 1), example * own.shape[1] + position, head)), 0
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
        Slot.Q: base.q[layer][:, since:].index_select(0, example),
        Slot.K: base.k[layer][:, :, ::group].index_select(0, example),
        Slot.V: base.v[layer][:, :, ::group].index_select(0, example),
    }
    changed = run.live[units.writer, example] & run.tokens[units.column, example]
    if slot is Slot.Q:
        changed[:, :since] = False
    unit, position = changed.nonzero().T
    where = (example[unit], position)
    read = _at(base.resid_pre[layer], *where).add_(_messages(run, units.writer[unit], *where))
    (own,) = model.read_attention(layer, (slot,), read)
    values[slot][unit, position - since if slot is Slot.Q else position] = own
    return model.attend(layer, values[Slot.Q], values[Slot.K], values[Slot.V], run.baseline.arguments)
