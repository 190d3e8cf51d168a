"""Edges as rows of a packed run: what reaches one reader is changed, and only what comes after it runs.

An edge u -> v carries a message, what u adds to the stream. With the message of the other run in its place, v reads

    x_v + (a'_u - a_u)

and no other reader reads anything else. What v then writes reaches all later readers.

1. Into the logits: the stream at the answer; no block runs.
2. Into an MLP: the MLP once more at the tokens where the message differs, then the later blocks.
3. Into q, k or v of a head: all heads' projections of the one changed stream, and one call of attention for all heads
   of the layer, since heads of a layer do not read each other; each edge takes its own head's z from it. Queries change
   z at their own tokens, keys and values at every token that attends to them. Then the MLP and the later blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.models.changes import add_change_of_heads, add_change_of_layer, finish_block_shifted
from circuitlab.models.protocol import Model, Recording
from circuitlab.models.row_steps import at_tokens, attend_with_slot
from circuitlab.models.steps import after_heads, changes_other_heads
from circuitlab.parts import Edge, Layout, Node, Slot
from circuitlab.patching.edges.plan import EdgePlan, reader_layer
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.reach import rows_at_answer, rows_from, tokens_that_matter
from circuitlab.patching.runs.suffix import run_suffix
from circuitlab.patching.runs.writers import replacement_messages

SLOTS = tuple(Slot)
# Number of the slot of readers that have none.
WHOLE = len(SLOTS)
# Rows that are listed together; each takes 56 bytes, and as much again while they are sorted.
ROWS_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeRun:
    """One batch and the messages that are patched in it.

    Attributes:
        model: The model.
        baseline: The batch, run clean and corrupted.
        base: The run that is patched.
        edges: The edges.
        writers: Their sources, in the order of `messages`.
        messages: What each edge of a writer carries instead, minus the writer's output in `base`.
        tokens: The tokens of each column.
        live: Where a message differs and what it changes can reach the answer.
        first: The first such token of each column; `seq` where there is none.
    """

    model: Model
    baseline: Baseline
    base: Recording
    edges: tuple[Edge, ...]
    writers: tuple[Node, ...]
    messages: Float[Tensor, "writer batch seq d_model"]
    tokens: Bool[Tensor, "column batch seq"]
    live: Bool[Tensor, "writer batch seq"]
    first: Int[Tensor, "writer column batch"]

    @property
    def answer_at(self) -> Int[Tensor, " batch"]:
        """Where each example is judged."""
        return self.baseline.batch.answer_at


@torch.no_grad()
def edge_run(
    experiment: Experiment, plan: EdgePlan, baseline: Baseline, tokens: Bool[Tensor, "column batch seq"]
) -> EdgeRun:
    """Take the messages of a batch: the differences of both runs, or of one run and its replacement.

    Args:
        experiment: The model, and the replacement that a patched edge carries.
        plan: The edges and the direction.
        baseline: The batch, run clean and corrupted.
        tokens: The tokens of each column.

    Returns:
        The messages, with the tokens that they change.
    """
    model, replacement = experiment.model, experiment.replacement
    base = baseline.patched_run(plan.direction)
    writers = tuple(sorted({edge.source for edge in plan.edges}, key=Layout.of(model.spec).writer_index))
    messages = replacement_messages(model, replacement, baseline, base, writers)
    matters = tokens_that_matter(model.spec, baseline.batch, from_difference=replacement.kind == "corrupt")
    live = (messages != 0).any(3) & matters
    return EdgeRun(
        model=model,
        baseline=baseline,
        base=base,
        edges=plan.edges,
        writers=writers,
        messages=messages,
        tokens=tokens,
        live=live,
        first=_first_tokens(live, tokens),
    )


def _first_tokens(
    live: Bool[Tensor, "writer batch seq"], tokens: Bool[Tensor, "column batch seq"]
) -> Int[Tensor, "writer column batch"]:
    """Writer by writer, to keep the memory small."""
    first = torch.empty((len(live), *tokens.shape[:2]), dtype=torch.long, device=live.device)
    for writer, here in enumerate(live):
        both = tokens & here
        first[writer] = torch.where(both.any(2), both.int().argmax(2), tokens.shape[2])
    return first


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
        """Some of the rows.

        Returns:
            A new record.
        """
        return EdgeRows(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


def edges_into(run: EdgeRun, layer: int) -> Iterator[list[int]]:
    """Numbers of the edges into readers of a layer (`n_layers`: into the logits), so many at a time.

    Edges that can share a call of the attention code follow each other. All at once their rows would take 3 GB for the
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
    """The rows of some edges into readers of one layer; `layer = n_layers`: into the logits.

    Returns:
        The rows, those that share a run of attention next to each other.
    """
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
    """The final stream of each row at its answer.

    Returns:
        Streams `[row, d_model]`.
    """
    model, base, n_layers = run.model, run.base, run.model.spec.n_layers
    answer = run.answer_at[some.example]
    if layer == n_layers:
        return at_tokens(base.resid_final, some.example, answer) + _messages(run, some.writer, some.example, answer)
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
    after = _after_readers(run, layer, some, rows.row[at], rows.position[at])
    stream = after if everywhere else rows.of(base.stream(layer + 1)).index_copy_(0, at, after)
    final = run_suffix(model, base, run.baseline.arguments, rows, stream, layer + 1, None if everywhere else touched)
    return torch.empty_like(final).index_copy_(0, order, final)


def _slot_number(edge: Edge) -> int:
    return WHOLE if edge.reader.slot is None else SLOTS.index(edge.reader.slot)


def _unit(run: EdgeRun, rows: EdgeRows) -> Int[Tensor, " row"]:
    """A number for every column, slot, writer and example: heads of a layer can share a call of its attention.

    Columns first: rows that begin at the same token fall into one pack, and their queries start there.
    """
    n_writers, n_examples = len(run.writers), len(run.answer_at)
    return ((rows.column * (WHOLE + 1) + rows.slot) * n_writers + rows.writer) * n_examples + rows.example


def _after_readers(
    run: EdgeRun, layer: int, some: EdgeRows, row: Int[Tensor, " touched"], position: Int[Tensor, " touched"]
) -> Float[Tensor, "touched d_model"]:
    """The stream after a block at the touched tokens; those of heads come first, head by head."""
    model, base, example = run.model, run.base, some.example[row]
    n_heads = int((some.slot[row] != WHOLE).sum())
    stream = at_tokens(after_heads(model, base, layer), example, position)
    heads, mlps = row[:n_heads], row[n_heads:]
    if len(heads):
        z = _changed_z(run, layer, some, heads, position[:n_heads])
        at = (example[:n_heads], position[:n_heads])
        if z.ndim == 3:
            add_change_of_layer(model, base, layer, stream[:n_heads], z, at)
        else:
            add_change_of_heads(model, base, layer, stream[:n_heads], z, some.head[heads], at)
    at = (example[n_heads:], position[n_heads:])
    return finish_block_shifted(model, base, layer, stream, _messages(run, some.writer[mlps], *at), at)


def _messages(
    run: EdgeRun, writer: Int[Tensor, " touched"], example: Int[Tensor, " touched"], position: Int[Tensor, " touched"]
) -> Float[Tensor, "touched d_model"]:
    return at_tokens(run.messages.flatten(0, 1), writer * len(run.answer_at) + example, position)


def _changed_z(
    run: EdgeRun, layer: int, some: EdgeRows, row: Int[Tensor, " touched"], position: Int[Tensor, " touched"]
) -> Float[Tensor, "touched *head d_head"]:
    """Each row's own head, with one slot read from the changed stream: its z, or all heads' where that changes them."""
    n_writers, n_examples, spec = len(run.writers), len(run.answer_at), run.model.spec
    whole = any(changes_other_heads(run.model, layer, slot) for slot in SLOTS)
    found = run.messages.new_empty((len(row), *([spec.n_heads] if whole else []), spec.d_head))
    since, slot_of_token = int(position.min()), some.slot[row]
    for number, slot in enumerate(SLOTS):
        chosen, here = (some.slot == number).nonzero().flatten(), (slot_of_token == number).nonzero().flatten()
        if not len(chosen):
            continue
        rows = some.take(chosen)
        key = _unit(run, rows)
        key, unit = (key * spec.n_heads + rows.head if whole else key).unique(return_inverse=True)
        head, key = (key % spec.n_heads, key // spec.n_heads) if whole else (None, key)
        units = _Units(
            writer=key // n_examples % n_writers,
            column=key // (n_examples * n_writers * (WHOLE + 1)),
            example=key % n_examples,
            head=head,
        )
        z = _attend(run, layer, slot, units, since)
        unit_of_row = torch.empty_like(some.slot)
        unit_of_row[chosen] = unit
        at = (unit_of_row[row[here]], position[here] - since)
        found[here] = z[at] if whole else z[*at, some.head[row[here]]]
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Units:
    """Streams with one changed message, and the head that alone reads each of them; by default every head does."""

    writer: Int[Tensor, " unit"]
    column: Int[Tensor, " unit"]
    example: Int[Tensor, " unit"]
    head: Int[Tensor, " unit"] | None


def _attend(run: EdgeRun, layer: int, slot: Slot, units: _Units, since: int) -> Float[Tensor, "unit query head d_head"]:
    """All heads' z at the tokens from `since` on, each head with this one slot read from the changed stream."""
    model, base, example = run.model, run.base, units.example
    changed = run.live[units.writer, example] & run.tokens[units.column, example]
    if slot is Slot.Q:
        changed[:, :since] = False
    unit, position = changed.nonzero().T
    where = (example[unit], position)
    read = at_tokens(base.resid_pre[layer], *where).add_(_messages(run, units.writer[unit], *where))
    arguments = run.baseline.arguments
    return attend_with_slot(model, base, layer, slot, example, (unit, position), read, since, arguments, units.head)
