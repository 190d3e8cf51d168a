"""First-order effects of all edges: each writer's difference times each reader's gradient.

Both are as long as the prompt is times the width of the stream, and there are 157 writers and 445 readers in GPT-2. The
differences are held in memory; the gradients come some readers at a time and are gone after their product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.models.changes import head_differences
from circuitlab.models.protocol import Model, Recording
from circuitlab.models.traced import PassGradients, Traced, Window
from circuitlab.parts import Kind, Layout, Node
from circuitlab.patching.gradients.metric_gradients import reader_gradients
from circuitlab.patching.runs.given_outputs import layer_outputs
from circuitlab.patching.runs.replacement import Replacement, replacement_values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WriterValues:
    """The values of every writer in another run, or its replacements: whole prompts, in the last block the answer.

    Attributes:
        start: For the embedding.
        mlp: For the MLPs, by layer; None where there is none.
        z: For the heads, by layer: their weighted sums of values.
        heads: Or their outputs.
    """

    start: Float[Tensor, "batch seq d_model"]
    mlp: tuple[Float[Tensor, "batch _ d_model"] | None, ...]
    z: tuple[Float[Tensor, "batch _ head d_head"], ...] = ()
    heads: tuple[Float[Tensor, "head batch _ d_model"], ...] = ()

    @classmethod
    def of(cls, run: Traced) -> WriterValues:
        """The values of another run.

        Returns:
            The values.
        """
        return cls(start=run.start, z=tuple(b.z for b in run.blocks), mlp=tuple(b.mlp for b in run.blocks))


@torch.no_grad()
def replacement_of_writers(model: Model, replacement: Replacement, batch: PairBatch, clean: Recording) -> WriterValues:
    """The values of a replacement other than "corrupt" for every writer, from the clean run.

    Args:
        model: The model.
        replacement: Resolved for the data set that the batch is of.
        batch: The prompts.
        clean: Their clean run.

    Returns:
        The values.
    """
    last, answers = model.spec.n_layers - 1, Window.whole(batch)

    def kept(value: Tensor, layer: int) -> Tensor:
        return answers.at_answer(value.flatten(2)).unflatten(2, value.shape[2:]) if layer == last else value

    layers = range(model.spec.n_layers)
    if replacement.outputs is not None:
        given, layout = replacement.outputs.of(batch), Layout.of(model.spec)
        mlps = (given(layout.writer_index(Node(Kind.MLP, layer))) if model.spec.has_mlp else None for layer in layers)
        heads = (layer_outputs(model.spec, given, layer) for layer in layers)
        return WriterValues(
            start=given(0),
            mlp=tuple(value if value is None else kept(value, layer) for layer, value in enumerate(mlps)),
            heads=tuple(answers.at_answer(one) if layer == last else one for layer, one in enumerate(heads)),
        )
    put = replacement_values(model, replacement, batch)
    return WriterValues(
        start=put(("resid_pre", 0), clean.resid_pre[0]),
        z=tuple(kept(put(("z", layer), clean.z[layer]), layer) for layer in layers),
        mlp=tuple(
            kept(put(("mlp_out", layer), clean.mlp_out[layer]), layer) if model.spec.has_mlp else None
            for layer in layers
        ),
    )


class EdgeProducts:
    """The difference of every writer's output to its replacement, ready to be multiplied with gradients.

    Args:
        model: The model.
        clean: The clean run, on the window.
        other: The replacements, on whole prompts.
    """

    def __init__(self, model: Model, clean: Traced, other: WriterValues) -> None:
        self._model, self._layout = model, Layout.of(model.spec)
        self._visible = self._layout.visible
        self._during, self._at_answer = _differences(model, clean, other)

    @property
    def start(self) -> Float[Tensor, "batch seq d_model"]:
        """Clean embedding minus its replacement."""
        return self._during[0]

    def of(self, writers: slice, at_answer: bool) -> Float[Tensor, "_ batch _ d_model"]:
        """Clean outputs minus their replacements, at the answer or on the window (not the last block's writers).

        Returns:
            Differences `[writer, batch, token, d_model]`.
        """
        return (self._at_answer if at_answer else self._during)[writers]

    @torch.no_grad()
    def scores(self, traced: Traced, found: PassGradients) -> Float[Tensor, "batch writer reader"]:
        """The products of all edges; 0 where there is no edge.

        Args:
            traced: A pass on the window.
            found: Its gradients.

        Returns:
            Products `[batch, writer, reader]`, in the metric's unit.
        """
        layout = self._layout
        out = self._during.new_zeros(self._during.shape[1], len(layout.writers), len(layout.readers))
        for part in reader_gradients(self._model, traced, found):
            writers = self._at_answer if part.at_answer else self._during
            n_seen = max(self._visible[column] for column in part.columns)
            # Views, no copies.
            seen = rearrange(writers[:n_seen], "writer batch seq d_model -> batch writer (seq d_model)")
            read = rearrange(part.values.to(out.dtype), "reader batch seq d_model -> batch (seq d_model) reader")
            out[:, :n_seen, part.columns] = torch.bmm(seen, read)
        return out.mul_(self._real(out))

    @torch.no_grad()
    def by_column(
        self, traced: Traced, found: PassGradients, tokens: Bool[Tensor, "column batch _"]
    ) -> Float[Tensor, "column batch writer reader"]:
        """The same, of the tokens of each column alone; columns that share out all tokens sum to `scores`.

        Args:
            traced: A pass on the window.
            found: Its gradients.
            tokens: The tokens of each column, of whole prompts.

        Returns:
            Products `[column, batch, writer, reader]`, in the metric's unit.
        """
        layout, window = self._layout, traced.window
        rows = torch.arange(tokens.shape[1], device=tokens.device)
        during = tokens[:, :, window.first : window.stop].to(self._during.dtype)
        answers = during[:, rows, window.answer_at][..., None]
        out = self._during.new_zeros(*tokens.shape[:2], len(layout.writers), len(layout.readers))
        for part in reader_gradients(self._model, traced, found):
            writers = self._at_answer if part.at_answer else self._during
            n_seen = max(self._visible[column] for column in part.columns)
            each = einsum(
                writers[:n_seen],
                part.values.to(out.dtype),
                "writer batch seq d_model, reader batch seq d_model -> batch seq writer reader",
            )
            mine = answers if part.at_answer else during
            out[:, :, :n_seen, part.columns] = einsum(
                each, mine, "batch seq writer reader, column batch seq -> column batch writer reader"
            )
        return out.mul_(self._real(out))

    @torch.no_grad()
    def at_writers(self, found: PassGradients) -> Float[Tensor, "batch writer d_model"]:
        """Each writer's difference times the gradient at its output, component by component, summed over tokens.

        Their sum over components is that of the writer's edges: whoever reads the stream reads all of it.

        Returns:
            Products `[batch, writer, d_model]`, in the metric's unit.
        """
        layout, spec, during = self._layout, self._model.spec, self._during
        out = during.new_zeros(during.shape[1], len(layout.writers), spec.d_model)
        out[:, 0] = (during[0] * found.start).sum(1)
        for layer, block in enumerate(found.blocks):
            first = layout.writer_index(Node(Kind.HEAD, layer, 0))
            difference = self._at_answer if layer == spec.n_layers - 1 else during
            mlp = first + spec.n_heads
            out[:, first:mlp] = einsum(
                difference[first:mlp],
                block.attn.to(out.dtype),
                "head batch seq d_model, batch seq d_model -> batch head d_model",
            )
            if block.mlp is not None:
                out[:, mlp] = (difference[mlp] * block.mlp).sum(1)
        return out

    def _real(self, like: Tensor) -> Bool[Tensor, "writer reader"]:
        rows = torch.arange(len(self._layout.writers), device=like.device)
        return rows[:, None] < torch.tensor(self._visible, device=like.device)


@torch.no_grad()
def _differences(
    model: Model, clean: Traced, other: WriterValues
) -> tuple[Float[Tensor, "_ batch seq d_model"], Float[Tensor, "writer batch 1 d_model"]]:
    """Of the writers that are read during the window (not the last block's), and of all at the answer."""
    spec, layout, window = model.spec, Layout.of(model.spec), clean.window
    first = [layout.writer_index(Node(Kind.HEAD, layer, 0)) for layer in range(spec.n_layers)]
    # Products of half precision are summed in single.
    kind = torch.promote_types(clean.start.dtype, torch.float32)
    during = clean.start.new_empty(first[-1], *clean.start.shape, dtype=kind)
    at_answer = during.new_empty(len(layout.writers), len(clean.start), 1, spec.d_model)
    during[0] = clean.start.detach() - window.of(other.start)
    for layer, (ours, mlp) in enumerate(zip(clean.blocks, other.mlp, strict=True)):
        last = layer == spec.n_layers - 1
        into, end = at_answer if last else during, first[layer] + spec.n_heads
        into[first[layer] : end] = _head_differences(model, layer, ours.z.detach(), other, None if last else window)
        if ours.mlp is not None and mlp is not None:
            into[end] = ours.mlp.detach() - (mlp if last else window.of(mlp))
    at_answer[: first[-1]] = window.at_answer(during)
    return during, at_answer


def _head_differences(
    model: Model, layer: int, z: Float[Tensor, "batch _ head d_head"], other: WriterValues, window: Window | None
) -> Float[Tensor, "head batch _ d_model"]:
    """The outputs of a layer's heads minus their replacements."""
    if other.heads:
        given = other.heads[layer] if window is None else other.heads[layer][:, :, window.first : window.stop]
        return model.head_outputs(layer, z) - given
    return head_differences(model, layer, z, other.z[layer] if window is None else window.of(other.z[layer]))
