"""First-order effects of all edges: each writer's difference times each reader's gradient.

Both are as long as the prompt is times the width of the stream, and there are 157 writers and 445 readers in GPT-2. The
differences stand in memory; the gradients come some readers at a time and are gone after their product.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.models.protocol import Model
from circuitlab.models.traced import Slopes, Traced
from circuitlab.parts import Kind, Layout, Node
from circuitlab.patching.gradients import reader_slopes
from circuitlab.patching.writers import heads_apart


class EdgeProducts:
    """How far every writer is from its corrupted output, ready to be multiplied with gradients.

    Args:
        model: The model.
        clean: The clean run, on the window.
        corrupt: The corrupted run, on whole prompts.
    """

    def __init__(self, model: Model, clean: Traced, corrupt: Traced) -> None:
        self._model, self._layout = model, Layout.of(model.spec)
        self._visible = self._layout.visible
        self._during, self._at_answer = _differences(model, clean, corrupt)

    @property
    def start(self) -> Float[Tensor, "batch seq d_model"]:
        """Clean minus corrupted embedding."""
        return self._during[0]

    @torch.no_grad()
    def scores(self, traced: Traced, found: Slopes) -> Float[Tensor, "batch writer reader"]:
        """The products of all edges; 0 where there is no edge.

        Args:
            traced: A pass on the window.
            found: Its gradients.
        """
        layout = self._layout
        out = self._during.new_zeros(self._during.shape[1], len(layout.writers), len(layout.readers))
        for part in reader_slopes(self._model, traced, found):
            writers = self._at_answer if part.at_answer else self._during
            n_seen = max(self._visible[column] for column in part.columns)
            # [batch, writer or reader, everything else]; views, no copies.
            seen, read = (side.transpose(0, 1).flatten(2) for side in (writers[:n_seen], part.values.to(out.dtype)))
            out[:, :n_seen, part.columns] = torch.bmm(seen, read.transpose(1, 2))
        rows = torch.arange(len(layout.writers), device=out.device)
        return out.mul_(rows[:, None] < torch.tensor(self._visible, device=out.device))


@torch.no_grad()
def _differences(
    model: Model, clean: Traced, corrupt: Traced
) -> tuple[Float[Tensor, "_ batch seq d_model"], Float[Tensor, "writer batch 1 d_model"]]:
    """Of the writers that are read during the window (not the last block's), and of all at the answer."""
    spec, layout, window = model.spec, Layout.of(model.spec), clean.window
    first = [layout.writer_index(Node(Kind.HEAD, layer, 0)) for layer in range(spec.n_layers)]
    # Products of half precision are summed in single.
    kind = torch.promote_types(clean.start.dtype, torch.float32)
    during = clean.start.new_empty(first[-1], *clean.start.shape, dtype=kind)
    at_answer = during.new_empty(len(layout.writers), len(clean.start), 1, spec.d_model)
    during[0] = clean.start.detach() - window.of(corrupt.start)
    for layer, (ours, theirs) in enumerate(zip(clean.blocks, corrupt.blocks, strict=True)):
        last = layer == spec.n_layers - 1
        into, behind = at_answer if last else during, first[layer] + spec.n_heads
        other_z = theirs.z if last else window.of(theirs.z)
        into[first[layer] : behind] = heads_apart(model, layer, ours.z.detach(), other_z)
        if ours.mlp is not None and theirs.mlp is not None:
            into[behind] = ours.mlp.detach() - (theirs.mlp if last else window.of(theirs.mlp))
    at_answer[: first[-1]] = window.at_answer(during)
    return during, at_answer
