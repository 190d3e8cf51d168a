"""What a model writes to its logits, part by part: the final norm as a linear map, and the shares of biases.

A norm is y = gain * (x - mean(x)) / scale(x) + bias, the mean left out by RMS norms. With the scale that it had on a
whole stream it is linear, so that the stream's parts pass it one by one and add up. Everything is read off the
module's own outputs on a few probes and then compared with them: which kind of norm it is, and whether its weights were
folded away, need not be known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.errors import UnsupportedModelError
from circuitlab.models import watch
from circuitlab.models.anatomy import linear, mlp_down
from circuitlab.models.exclusive import exclusive
from circuitlab.models.surgery import first_tensor, hooks, norm_gain, times
from circuitlab.models.watch import BridgeInternals

# Largest difference between a norm and its linear form, relative to its largest value: roundings. A norm of another
# kind differs by as much as it is large.
LINEAR = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


@dataclass(frozen=True, slots=True, eq=False)
class FrozenNorm:
    """A norm whose scale is held at what it was on given streams: a linear map and a bias.

    Attributes:
        factor: What each component of a (centred) stream is multiplied by.
        centred: Whether the mean over the stream's components is taken off first.
        bias: What is added at the end.
    """

    factor: Float[Tensor, "row d_model"]
    centred: bool
    bias: Float[Tensor, " d_model"]

    def back(self, direction: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """The direction in front of the norm whose product with a stream is that of `direction` with its norm."""
        before = direction * self.factor
        return before - before.mean(-1, keepdim=True) if self.centred else before


@exclusive
@dataclass(frozen=True, slots=True, eq=False)
class DirectWrites:
    """What a model writes to its logits, part by part.

    Attributes:
        internals: The model.
        norm: Its final norm.
    """

    internals: BridgeInternals
    norm: Callable[[Tensor], Tensor]

    @property
    def lock(self) -> Any:
        """The model's."""
        return self.internals.lock

    @property
    def logit_cap(self) -> float | None:
        """The bound c of logits that leave the model as c tanh(logit / c); None where they leave as they are."""
        cap = getattr(self.internals.bridge.cfg, "output_logits_soft_cap", None)
        return float(cap) if cap is not None and cap > 0 else None

    @torch.no_grad()
    def uncapped(self, stream: Float[Tensor, "row d_model"], words: Int[Tensor, " word"]) -> Float[Tensor, "row word"]:
        """Logits of some words before their cap: the final norm itself, then the unembedding."""
        columns, biases = self.unembedding(words)
        return self.norm(stream[:, None])[:, 0] @ columns + biases

    def frozen_norm(self, stream: Float[Tensor, "row d_model"]) -> FrozenNorm:
        """The final norm as it was on these streams.

        Raises:
            UnsupportedModelError: It is no layer norm and no RMS norm.
        """
        return frozen_norm(self.norm, stream, self.internals.spec.name)

    @torch.no_grad()
    def unembedding(self, words: Int[Tensor, " word"]) -> tuple[Float[Tensor, "d_model word"], Float[Tensor, " word"]]:
        """Columns of the unembedding and their biases, zeros where there are none."""
        (weight, bias), factor = linear(self.internals.bridge.unembed), self.internals.family.logit_multiplier
        columns = times(weight[:, words].detach(), factor)
        return columns, columns.new_zeros(len(words)) if bias is None else times(bias[words].detach(), factor)

    @torch.no_grad()
    def embedding(
        self, tokens: Int[Tensor, "batch seq"], start: Float[Tensor, "batch seq d_model"]
    ) -> dict[str, Float[Tensor, "batch seq d_model"]]:
        """The stream at its start as token and position embedding, where these are modules that add up to it.

        Args:
            tokens: The prompts.
            start: The stream before the first block.

        Returns:
            "token" and "position", or "embedding" alone (one table, or something between tables and first block).
        """
        bridge = self.internals.bridge
        tables = {"token": getattr(bridge, "embed", None), "position": getattr(bridge, "pos_embed", None)}
        found = {part: table for part, table in tables.items() if isinstance(table, torch.nn.Module)}
        kept: dict[str, Tensor] = {}
        if len(found) == len(tables):
            with hooks() as add:
                for part, table in found.items():
                    add.output(table, lambda value, part=part: kept.__setitem__(part, value.detach()))
                watch.embedding(self.internals, tokens)
        if set(kept) == set(tables):
            parts = {part: kept[part].expand_as(start) for part in tables}
            if _same(parts["token"] + parts["position"], start, start.dtype, share=0.01):
                return parts
        return {"embedding": start}

    @torch.no_grad()
    def attention_bias(self, layer: int, z: Float[Tensor, "row head d_head"]) -> Float[Tensor, "row d_model"] | None:
        """What the bias of an attention layer adds to the stream; a post-norm is taken with this z's scale."""
        block = self.internals.bridge.blocks[layer]
        bias = linear(block.attn.o)[1]
        if bias is None:
            return None
        added = times(bias.detach(), self.internals.family.residual_multiplier).expand(len(z), -1)
        if hasattr(block, "ln1_post"):
            return added * norm_gain(block.ln1_post, _whole(block.attn.o, z.flatten(1)))
        return added

    @torch.no_grad()
    def neurons(
        self, layer: int, hidden: Float[Tensor, "row neuron"], direction: Float[Tensor, "row d_model"]
    ) -> tuple[Float[Tensor, "row neuron"], Float[Tensor, " row"] | None]:
        """What each neuron of an MLP, and its bias, write along a direction; a post-norm with these neurons' scale."""
        block = self.internals.bridge.blocks[layer]
        weight, bias = linear(mlp_down(block))
        direction = times(direction, self.internals.family.residual_multiplier)
        if hasattr(block, "ln2_post"):
            direction = direction * norm_gain(block.ln2_post, _whole(mlp_down(block), hidden))
        by_neuron = hidden * (direction @ weight.detach().T)
        return by_neuron, None if bias is None else direction @ bias.detach()


@torch.no_grad()
def frozen_norm(norm: Callable[[Tensor], Tensor], stream: Float[Tensor, "row d_model"], name: str) -> FrozenNorm:
    """A norm as it was on these streams.

    Raises:
        UnsupportedModelError: It is no layer norm and no RMS norm.
    """

    def normed(values: Tensor) -> Tensor:
        return norm(values[:, None])[:, 0]  # some norms insist on three axes

    bias = normed(torch.zeros_like(stream[:1]))
    # +1, -1, +1, ...: components of one size, so that the outputs show the gains and epsilon scales all alike.
    signs = 1.0 - 2.0 * (torch.arange(stream.shape[-1], device=stream.device) % 2).to(stream)[None]
    centred = _same(normed(signs + 3.0), normed(signs), stream.dtype)
    off = signs - signs.mean() if centred else signs
    gain = (normed(signs) - bias) / off
    middle = stream - stream.mean(-1, keepdim=True) if centred else stream
    scaled, behind = middle * gain, normed(stream) - bias
    inverse = (behind * scaled).sum(-1, keepdim=True) / (scaled * scaled).sum(-1, keepdim=True).clamp_min(1e-30)
    found = FrozenNorm(gain * inverse, centred, bias[0])
    if not _same(middle * found.factor, behind, stream.dtype):
        raise UnsupportedModelError(
            f"model {name!r}: the final norm is neither a layer norm nor an RMS norm, so that its output is no sum "
            "over the parts of the stream. The logit lens and patching need no such sum: logit_lens(...), sweep(...)."
        )
    return found


def _whole(projection: Any, values: Float[Tensor, "row _"]) -> Float[Tensor, "row d_model"]:
    return first_tensor(projection(values[None]))[0]


def _same(ours: Tensor, theirs: Tensor, dtype: torch.dtype, share: float = 1.0) -> bool:
    allowed = share * LINEAR.get(dtype, LINEAR[torch.float32])
    return bool((ours - theirs).abs().max() <= allowed * theirs.abs().max().clamp_min(1e-30))
