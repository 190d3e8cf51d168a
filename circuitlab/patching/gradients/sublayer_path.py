"""Runs along the path of one sublayer's output: what it adds to the stream goes from its clean value to another one.

A sublayer is the embedding, an attention layer with all its heads, or an MLP. Everything before it stays clean and
everything after it follows, so only that is run, and gradients are taken there alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.metrics import Metric
from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.models.steps import mlp_reads_heads
from circuitlab.models.traced import Traced, trace
from circuitlab.parts import Kind, Layout, Node, Reader
from circuitlab.patching.gradients.metric_gradients import (
    ReaderGradients,
    gradients_and_values,
    judged,
    reader_gradients,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sublayer:
    """One sublayer.

    Attributes:
        kind: `Kind.INPUT`, `Kind.HEAD` for an attention layer, or `Kind.MLP`.
        layer: Its layer; -1 for the embedding.
        writers: The numbers of its writers.
    """

    kind: Kind
    layer: int
    writers: slice


def sublayers(model: Model) -> tuple[Sublayer, ...]:
    """All of them, in the order of the writers.

    Returns:
        The sublayers: the input, then attention and MLP of each layer.
    """
    layout, spec = Layout.of(model.spec), model.spec
    found = [Sublayer(kind=Kind.INPUT, layer=-1, writers=slice(0, 1))]
    for layer in range(spec.n_layers):
        first = layout.writer_index(Node(Kind.HEAD, layer, 0))
        found.append(Sublayer(kind=Kind.HEAD, layer=layer, writers=slice(first, first + spec.n_heads)))
        if spec.has_mlp:
            mlp = first + spec.n_heads
            found.append(Sublayer(kind=Kind.MLP, layer=layer, writers=slice(mlp, mlp + 1)))
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class LaterGradients:
    """Gradients after a sublayer in one run.

    Attributes:
        source: Gradient at what the sublayer adds to the stream.
        readers: Gradients at the inputs of all readers after it, by their numbers in the whole model's layout.
    """

    source: Float[Tensor, "batch _ d_model"]
    readers: list[ReaderGradients]


class SublayerPaths:
    """Runs of one batch that differ from the clean one after one sublayer.

    Args:
        model: The model.
        arguments: What blocks are called with.
        clean: The clean run on a window; its graph may be gone.
        around: A run of the whole prompts that agrees in all tokens before the window; None for whole prompts.
        metric: What is differentiated.
        batch: The prompts, with the clean run's logits as reference where the metric needs them.
    """

    def __init__(
        self,
        model: Model,
        arguments: BlockArguments,
        clean: Traced,
        around: Traced | None,
        metric: Metric,
        batch: PairBatch,
    ) -> None:
        self._model, self._arguments, self._clean, self._around = model, arguments, clean, around
        self._metric, self._batch = metric, batch

    @torch.no_grad()
    def value(self, at: Sublayer, shift: Float[Tensor, "batch _ d_model"]) -> Float[Tensor, " batch"]:
        """The metric with the sublayer's output shifted; no gradients.

        Returns:
            One value an example.
        """
        stream, _ = self._shifted(at, shift)
        return judged(self._model, self._metric, self._batch, self._later(at, stream).final.detach())

    def gradients(self, at: Sublayer, shift: Float[Tensor, "batch _ d_model"]) -> LaterGradients:
        """Gradients after the sublayer with its output shifted.

        Returns:
            The gradients at the sublayer's output and at all later readers.
        """
        stream, mlp = self._shifted(at, shift)
        traced = self._later(at, stream.detach())
        found, _ = gradients_and_values(self._model, traced, self._metric, self._batch)
        # The values of a layer are overwritten by those of the next.
        readers = [replace(part, values=part.values.clone()) for part in reader_gradients(self._model, traced, found)]
        if mlp is None:
            return LaterGradients(found.start, readers)
        read, out = mlp
        (at_read,) = torch.autograd.grad(out, read, found.start)
        column = Layout.of(self._model.spec).reader_index(Reader(Node(Kind.MLP, at.layer)))
        last = at.layer == self._model.spec.n_layers - 1
        return LaterGradients(found.start + at_read, [ReaderGradients([column], at_read[None], last), *readers])

    def _shifted(self, at: Sublayer, shift: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The stream after the sublayer's block; the block's own MLP with its graph, where it reads the sublayer."""
        clean, spec = self._clean, self._model.spec
        if at.kind is Kind.HEAD and mlp_reads_heads(spec):
            read = clean.blocks[at.layer].mlp_read
            assert read is not None
            middle = read.detach() + shift
            with torch.enable_grad():
                leaf = middle.requires_grad_()
                out = self._model.mlp_output(at.layer, leaf)
            return middle.detach() + out.detach(), (leaf, out)
        if at.layer == spec.n_layers - 1:
            return clean.final.detach()[:, None] + shift, None
        return (clean.start.detach() if at.layer < 0 else clean.streams[at.layer + 1]) + shift, None

    def _later(self, at: Sublayer, stream: Tensor) -> Traced:
        return trace(self._model, self._arguments, self._clean.window, stream, self._around, first=at.layer + 1)
