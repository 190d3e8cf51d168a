"""What a norm is: layer norm or RMS norm, with which gain and bias. Told from what it computes, not from its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Norms that are something else differ by their gain or their mean, 0.01 or more; some norm in float32 whatever they
# are given.
SAME = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class NormKind:
    """A norm by its parts: y = gain * x^ + bias, with x^ = (x - mean) / scale (no mean for RMS).

    Attributes:
        module: What holds the weight and the bias; None where there is no norm.
        centred: Whether the mean is taken out.
        offset: What the weight is counted from: gain = weight + offset.
        normed: Whether anything is computed at all.
    """

    module: Any
    centred: bool
    offset: float = 0.0
    normed: bool = True

    @property
    def name(self) -> str:
        """In words."""
        return "no norm" if not self.normed else "a layer norm" if self.centred else "an RMS norm"

    @property
    def gain(self) -> Tensor | None:
        """By which each component is scaled; None where by 1."""
        weight = getattr(self.module, "weight", None)
        return None if weight is None else weight.detach() + self.offset

    @property
    def bias(self) -> Tensor | None:
        """What is added; None where nothing is."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()

    @torch.no_grad()
    def make_plain(self) -> None:
        """Gain 1 and bias 0."""
        if getattr(self.module, "weight", None) is not None:
            self.module.weight.fill_(1.0 - self.offset)
        if getattr(self.module, "bias", None) is not None:
            self.module.bias.zero_()


@torch.no_grad()
def kind_of(norm: Any) -> NormKind | None:
    """What a norm computes; None where it is something else.

    Args:
        norm: A bridge's norm, or None where there is none.
    """
    if norm is None:
        return NormKind(None, centred=False, normed=False)
    inner = norm.original_component
    found = getattr(inner, "weight", None)
    width = len(found) if found is not None else norm.config.d_model
    like = found if found is not None else torch.zeros(())
    generator = torch.Generator().manual_seed(0)
    # Of mean 1, so that whether the mean is taken out shows.
    probe = (1 + torch.randn(1, 4, width, generator=generator, dtype=torch.float64)).to(like)
    values = norm(probe)
    for kind in _candidates(inner):
        if float((_computed(kind, probe) - values).abs().max()) <= SAME * float(values.abs().max()):
            return kind
    return None


def _candidates(inner: Any) -> list[NormKind]:
    kinds = [NormKind(inner, centred, offset) for centred in (True, False) for offset in (0.0, 1.0)]
    return [*kinds, NormKind(None, centred=False, normed=False)]


def _computed(kind: NormKind, stream: Tensor) -> Tensor:
    if not kind.normed:
        return stream
    eps = next((e for e in (getattr(kind.module, n, None) for n in ("eps", "variance_epsilon")) if e is not None), 0.0)
    stream = stream - stream.mean(-1, keepdim=True) if kind.centred else stream
    values = stream * (stream.square().mean(-1, keepdim=True) + eps).rsqrt()
    values = values if kind.gain is None else values * kind.gain
    return values if kind.bias is None else values + kind.bias
