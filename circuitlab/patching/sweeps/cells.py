"""Turn the cells of a sweep into rows, and run the rows that differ.

Cells of all sites whose next whole block is the same are run together. A cell that changes nothing (under causal
attention a prefix that both prompts share, or a token after the answer) has no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.models.row_steps import Rows
from circuitlab.models.steps import after_heads, finish_block
from circuitlab.patching.runs.reach import rows_at_answer, rows_from, tokens_that_matter
from circuitlab.patching.runs.suffix import run_suffix
from circuitlab.patching.sweeps.patches import Patches, Runs
from circuitlab.patching.sweeps.sites import Entry

# Members whose rows are counted in one step: bounds the memory of a sweep over all neurons.
MEMBERS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """Rows that have to run: one per cell and example whose patch changes something.

    Attributes:
        patches: The sites and layers they are of.
        patch: Which of them each row belongs to.
        member: Place of its member there.
        column: Place of its column there.
        example: Its example.
        first: The first token that the patch changes.
    """

    patches: Sequence[Patches]
    patch: Int[Tensor, " row"]
    member: Int[Tensor, " row"]
    column: Int[Tensor, " row"]
    example: Int[Tensor, " row"]
    first: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.patch)

    def take(self, rows: slice) -> Cells:
        """Some of the rows.

        Returns:
            A new record.
        """
        names = ("patch", "member", "column", "example", "first")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def window(runs: Runs, block: int, *, from_difference: bool) -> Bool[Tensor, "batch seq"]:
    """Tokens whose change can reach the metric; after the last block the answer alone.

    Args:
        runs: The runs.
        block: The first whole block that runs after the patch.
        from_difference: The replacement is the other prompt's value.

    Returns:
        A mask `[batch, seq]`.
    """
    batch, spec = runs.baseline.batch, runs.model.spec
    inside = tokens_that_matter(spec, batch, from_difference=from_difference)
    if block < spec.n_layers:
        return inside
    return inside & (torch.arange(batch.n_tokens, device=inside.device) == batch.answer_at[:, None])


def rows_of(runs: Runs, cells: Cells, block: int) -> Rows:
    """The tokens that these cells run, from the first whole block after them on.

    Returns:
        One row a cell.
    """
    batch, spec = runs.baseline.batch, runs.model.spec
    if block == spec.n_layers:
        return rows_at_answer(batch, cells.example)
    return rows_from(spec, batch, cells.example, cells.first)


def cells_of(patches: Sequence[Patches], inside: Bool[Tensor, "batch seq"]) -> Cells:
    """The rows of these patches within a window.

    Returns:
        The cells that differ, sorted by the first token that does.
    """
    device = inside.device
    found = [torch.empty((5, 0), dtype=torch.long, device=device)]
    for number, patch in enumerate(patches):
        for start in range(0, len(patch.members), MEMBERS_AT_ONCE):
            live = patch.live[start : start + MEMBERS_AT_ONCE, None] & patch.tokens & inside
            member, column, example = live.any(3).nonzero().T
            first = live[member, column, example].int().argmax(1)
            found.append(torch.stack([torch.full_like(member, number), member + start, column, example, first]))
    rows = torch.cat(found, 1)
    # Rows that begin together are run together: queries are computed from a pack's first token on.
    patch, member, column, example, first = rows[:, rows[4].argsort(stable=True)]
    return Cells(patches=patches, patch=patch, member=member, column=column, example=example, first=first)


@torch.no_grad()
def run_cells(runs: Runs, cells: Cells, block: int, inside: Bool[Tensor, "batch seq"]) -> Float[Tensor, "row d_model"]:
    """The final stream of each row at its answer.

    Args:
        runs: The run that is patched and its replacement.
        cells: The rows.
        block: The first whole block after all of them.
        inside: The window that they were counted in.

    Returns:
        Streams `[row, d_model]`.
    """
    base = runs.base
    rows = rows_of(runs, cells, block)
    stream = rows.of(base.stream(block))
    touched = torch.zeros(len(stream), dtype=torch.bool, device=stream.device)
    example = cells.example[rows.row]
    middles: list[tuple[Tensor, Tensor]] = []
    for number in cells.patch.unique().tolist():
        patch = cells.patches[number]
        at = _touched_tokens(cells, rows, number, inside)
        touched[at] = True
        place = (example[at], rows.position[at])
        delta = patch.delta(cells.member[rows.row[at]], *place)
        if patch.site.entry is Entry.MIDDLE:
            middles.append((at, after_heads(runs.model, base, patch.layer, place) + delta))
        else:
            stream[at] += delta
    if middles:
        at, middle = (torch.cat(parts) for parts in zip(*middles, strict=True))
        stream[at] = finish_block(runs.model, block - 1, middle)
    return run_suffix(runs.model, base, runs.baseline.arguments, rows, stream, block, touched)


def _touched_tokens(
    cells: Cells, rows: Rows, number: int, inside: Bool[Tensor, "batch seq"]
) -> Int[Tensor, " touched"]:
    """Places, among the rows' tokens, that the patches with this number change."""
    patch = cells.patches[number]
    at = (cells.patch[rows.row] == number).nonzero().flatten()
    row, position = rows.row[at], rows.position[at]
    example = cells.example[row]
    changed = patch.tokens[cells.column[row], example, position] & patch.live[cells.member[row], example, position]
    return at[changed & inside[example, position]]
