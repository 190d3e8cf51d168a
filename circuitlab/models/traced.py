"""A forward pass for gradients: step by step, and only the tokens that matter.

The metric reads one position. Where attention is causal, tokens before the first that differs between two prompts
carry nothing from one to the other, and tokens after the answer nothing to the metric; the block's own steps take the
others and see the rest as it was recorded. Where it is not, they take whole prompts. In the last block keys and values
are read at all of these tokens, everything else at the answer alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.models.protocol import Model
from circuitlab.models.recording import BlockArguments
from circuitlab.models.steps import SLOTS, head_inputs, mlp_reads
from circuitlab.parts import Slot


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """Tokens `first` up to `stop` (not included) of every prompt of a batch.

    Attributes:
        first: The first token.
        stop: The first token after them.
        answer_at: Where each example's answer position is, counted from `first`.
    """

    first: int
    stop: int
    answer_at: Int[Tensor, " batch"]

    @classmethod
    def whole(cls, batch: PairBatch) -> Window:
        """All tokens.

        Returns:
            The window from the first token to the last.
        """
        return cls(first=0, stop=batch.n_tokens, answer_at=batch.answer_at)

    @classmethod
    def between(cls, batch: PairBatch, difference: Float[Tensor, "batch seq d_model"], *, causal: bool) -> Window:
        """The tokens through which a difference of the input can reach the metric; without causality all of them.

        Returns:
            The window.
        """
        if not causal:
            return cls.whole(batch)
        stop = int(batch.answer_at.max()) + 1
        differs = (difference != 0).any(2).any(0).nonzero()
        first = min(int(differs[0]) if len(differs) else stop, int(batch.answer_at.min()))
        return cls(first=first, stop=stop, answer_at=batch.answer_at - first)

    def of(self, whole: Float[Tensor, "batch seq *value"]) -> Float[Tensor, "batch _ *value"]:
        """Something that was recorded at every token, at these.

        Returns:
            A view `[batch, token of the window, ...]`.
        """
        return whole[:, self.first : self.stop]

    def at_answer(self, part: Float[Tensor, "*writer batch seq d_model"]) -> Float[Tensor, "*writer batch 1 d_model"]:
        """Something at these tokens, at the answer positions alone.

        Returns:
            Values `[..., batch, 1, d_model]`.
        """
        rows = torch.arange(len(self.answer_at), device=part.device)
        return part[..., rows, self.answer_at, :][..., None, :]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockPoints:
    """Values of one block in the graph of a forward pass, or the gradients there.

    Only one token (the answer) is there for `q` and what follows from it in the last block.

    Attributes:
        q: Queries before norms and rotation.
        k: Keys at the same point, one copy per query head.
        v: Values at the same point, one copy per query head.
        z: Each head's weighted sum of values.
        attn: What attention adds to the stream.
        mlp_read: The stream that the MLP reads, without the stream that goes past it.
        mlp: What the MLP adds to the stream; None where there is none.
    """

    q: Float[Tensor, "batch _ head d_head"]
    k: Float[Tensor, "batch seq head d_head"]
    v: Float[Tensor, "batch seq head d_head"]
    z: Float[Tensor, "batch _ head d_head"]
    attn: Float[Tensor, "batch _ d_model"]
    mlp_read: Float[Tensor, "batch _ d_model"] | None = None
    mlp: Float[Tensor, "batch _ d_model"] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name.

        Returns:
            Name of the point -> tensor.
        """
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traced:
    """A forward pass, with its graph if it has one.

    Attributes:
        window: The tokens it ran on.
        start: The stream on entry to the first of the blocks that were run, a leaf.
        streams: The stream on entry to each block.
        blocks: What can be differentiated with respect to.
        final: The stream before the final norm, at the answer.
        first: The layer of the first block that was run.
    """

    window: Window
    start: Float[Tensor, "batch seq d_model"]
    streams: tuple[Float[Tensor, "batch seq d_model"], ...]
    blocks: tuple[BlockPoints, ...]
    final: Float[Tensor, "batch d_model"]
    first: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassGradients:
    """Gradients at the points of a `Traced` pass, each example's own.

    Attributes:
        start: At the embedding; everything downstream follows from it.
        blocks: At the points of each block.
        final: At the final stream.
    """

    start: Float[Tensor, "batch seq d_model"]
    blocks: tuple[BlockPoints, ...]
    final: Float[Tensor, "batch d_model"]


def trace(
    model: Model,
    arguments: BlockArguments,
    window: Window,
    start: Float[Tensor, "batch seq d_model"],
    around: Traced | None = None,
    first: int = 0,
    *,
    graph: bool = True,
) -> Traced:
    """Run blocks and keep their points.

    Args:
        model: The model.
        arguments: What blocks are called with.
        window: The tokens to run.
        start: The stream on entry to block `first`; by default their embedding.
        around: A run of the whole prompts that agrees in all tokens before the window; not needed where the window is
            the whole prompt.
        first: The first block to run; all later ones follow.
        graph: Whether gradients can be taken.

    Returns:
        The pass, with its graph.
    """
    with torch.set_grad_enabled(graph):
        start = start.detach().requires_grad_(graph)
        stream, streams, blocks = start, list[Tensor](), list[BlockPoints]()
        for layer in range(first, model.spec.n_layers):
            streams.append(stream.detach())
            points, stream = _block(model, arguments, window, stream, layer, around)
            blocks.append(points)
        return Traced(
            window=window, start=start, streams=tuple(streams), blocks=tuple(blocks), final=stream[:, 0], first=first
        )


def pass_gradients(total: Float[Tensor, ""], traced: Traced) -> PassGradients:
    """Gradients at every point, from one backward pass; the graph is gone after it.

    Returns:
        The gradients, each example's own.
    """
    named = [block.tensors() for block in traced.blocks]
    points = [traced.start, *(tensor for block in named for tensor in block.values()), traced.final]
    found = torch.autograd.grad(total, points, materialize_grads=True)
    start, *inner, final = (gradient.detach() for gradient in found)
    rest = iter(inner)
    blocks = tuple(
        replace(block, **{name: next(rest) for name in names})
        for block, names in zip(traced.blocks, named, strict=True)
    )
    return PassGradients(start=start, blocks=blocks, final=final)


@torch.no_grad()
def pull_back(
    model: Model,
    layer: int,
    stream: Float[Tensor, "batch seq d_model"],
    gradients: Mapping[Slot, Float[Tensor, "batch seq head d_head"]],
    buffer: Float[Tensor, "_ batch seq d_model"] | None = None,
) -> Float[Tensor, "chosen batch seq d_model"]:
    """Gradients at heads' inputs from the gradients at their q, k or v, through projection and norm.

    Args:
        model: The model.
        layer: The heads' layer.
        stream: The stream that the heads read.
        gradients: By slot; at keys and values once per query head.
        buffer: Memory for as many gradients or more, which is overwritten; new memory by default.

    Returns:
        One gradient per slot and head: all heads of the first slot, then of the next.
    """
    n_heads = model.spec.n_heads
    n_readers = len(gradients) * n_heads
    after_norm = stream.new_empty(n_readers, *stream.shape) if buffer is None else buffer[:n_readers]
    for part, (slot, gradient) in zip(after_norm.split(n_heads), gradients.items(), strict=True):
        weight = rearrange(model.head_weights(layer, slot)[0], "head d_model d_head -> head d_head d_model")
        by_head = rearrange(gradient, "batch seq head d_head -> head (batch seq) d_head")
        torch.bmm(by_head, weight, out=part.flatten(1, 2))
    return model.attn_norm_gradients(layer, stream, after_norm)


def _block(
    model: Model, arguments: BlockArguments, window: Window, stream: Tensor, layer: int, around: Traced | None
) -> tuple[BlockPoints, Float[Tensor, "batch _ d_model"]]:
    """One block's points, and the stream after it."""
    spec, last = model.spec, layer == model.spec.n_layers - 1
    kept = window.at_answer(stream) if last else stream
    read = head_inputs(model, layer, stream, (Slot.K, Slot.V) if last else SLOTS)
    q = head_inputs(model, layer, kept, (Slot.Q,))[Slot.Q] if last else read[Slot.Q]
    k, v = read[Slot.K], read[Slot.V]
    keys, values = _whole(k, window, "k", layer, around), _whole(v, window, "v", layer, around)
    # In the last block the answer's query is repeated at every position, and only its output at the answer is taken.
    queries = q.expand(-1, keys.shape[1], -1, -1) if last else _whole(q, window, "q", layer, around)
    z = window.of(model.attend(layer, queries, keys, values, arguments))
    if last:
        z = window.at_answer(z.flatten(2)).unflatten(2, z.shape[2:])
    attn = model.attn_output(layer, z)
    middle = kept + attn
    if not spec.has_mlp:
        return BlockPoints(q=q, k=k, v=v, z=z, attn=attn), middle
    read = mlp_reads(spec, kept, middle)
    mlp_read = read.view_as(read)  # a place of its own in the graph, so that its gradient leaves out the way past it
    mlp = model.mlp_output(layer, mlp_read)
    return BlockPoints(q=q, k=k, v=v, z=z, attn=attn, mlp_read=mlp_read, mlp=mlp), middle + mlp


def _whole(part: Tensor, window: Window, name: str, layer: int, around: Traced | None) -> Tensor:
    """Queries, keys or values of whole prompts: recorded ones before and after the window."""
    if around is None:
        return part
    recorded = getattr(around.blocks[layer - around.first], name).detach()
    return torch.cat([recorded[:, : window.first], part, recorded[:, window.stop :]], 1)
