"""What a norm does to gradients, in closed form: many gradients behind one norm cost no more than reading them.

A layer norm or an RMS norm is y = gain * x^ + bias with x^ = (x - mean) / scale (no mean for RMS). The gradient h at y
becomes at x, with u = gain * h / scale,

    u - mean(u) - x^ * mean(u * x^)

A torch graph of the norm gives the same, but holds a copy of the stream for every reader: a layer of Llama-3.2-1B has
96 readers behind one norm. The closed form is used only where its parts give the module's own values on a probe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from circuitlab.models.shortcuts import Function, same_values

NormSlope = Callable[
    [Float[Tensor, "batch seq d_model"], Float[Tensor, "chosen batch seq d_model"]],
    Float[Tensor, "chosen batch seq d_model"],
]


@torch.no_grad()
def norm_slope(norm: Function, like: Float[Tensor, ...], width: int) -> NormSlope:
    """The function (stream, gradients behind the norm) -> gradients at the stream.

    Args:
        norm: The norm, a module or whatever stands for it.
        like: A weight of the model: where it is and in what dtype.
        width: Of the stream.

    Returns:
        The function. It may overwrite the gradients it is given.
    """
    if not isinstance(norm, torch.nn.Module):
        return _unchanged
    inner = getattr(norm, "original_component", None) or norm
    for centred in (True, False):
        for offset in (0.0, 1.0):
            form = _Form(inner, centred, offset)
            if form.is_complete and same_values(norm, form.values, like, width):
                return form.pull_back
    return _ByGraph(norm).pull_back


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """A norm by its parts, which are looked up at every call: whoever edits weights sees the effect."""

    module: Any
    centred: bool
    offset: float

    @property
    def is_complete(self) -> bool:
        return self._eps is not None

    @property
    def _eps(self) -> float | None:
        found = (getattr(self.module, name, None) for name in ("eps", "variance_epsilon"))
        return next((value for value in found if isinstance(value, float)), None)

    @property
    def _gain(self) -> Tensor | float:
        weight = getattr(self.module, "weight", None)
        return 1.0 if weight is None else weight.detach() + self.offset

    def _normed(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """x^ and one over the scale."""
        stream = stream - stream.mean(-1, keepdim=True) if self.centred else stream
        assert self._eps is not None
        inverse = (stream.square().mean(-1, keepdim=True) + self._eps).rsqrt()
        return stream * inverse, inverse

    def values(self, stream: Tensor) -> Tensor:
        bias = getattr(self.module, "bias", None)
        values = self._normed(stream)[0] * self._gain
        return values if bias is None else values + bias

    def pull_back(
        self, stream: Float[Tensor, "batch seq d_model"], behind: Float[Tensor, "chosen batch seq d_model"]
    ) -> Float[Tensor, "chosen batch seq d_model"]:
        normed, inverse = self._normed(stream)
        u = behind.mul_(self._gain * inverse)
        along = einsum(u, normed, "chosen batch seq d_model, batch seq d_model -> chosen batch seq").div_(u.shape[-1])[
            ..., None
        ]
        u.addcmul_(along, normed, value=-1)
        return u.sub_(u.mean(-1, keepdim=True)) if self.centred else u


@dataclass(frozen=True, slots=True, eq=False)
class _ByGraph:
    """A norm of another kind, by its graph: one copy of the stream for every gradient."""

    norm: Function

    def pull_back(
        self, stream: Float[Tensor, "batch seq d_model"], behind: Float[Tensor, "chosen batch seq d_model"]
    ) -> Float[Tensor, "chosen batch seq d_model"]:
        found = []
        with torch.enable_grad():
            for one in behind:
                copy = stream.detach().clone().requires_grad_()
                found.append(torch.autograd.grad(self.norm(copy), copy, one)[0])
        return torch.stack(found)


def _unchanged(
    _stream: Float[Tensor, "batch seq d_model"], behind: Float[Tensor, "chosen batch seq d_model"]
) -> Float[Tensor, "chosen batch seq d_model"]:
    return behind
