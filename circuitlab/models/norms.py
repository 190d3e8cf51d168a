"""What a norm is: layer norm or RMS norm, with which gain and bias. Found by what it computes, not by its class.

A layer norm or an RMS norm is y = gain * x^ + bias with x^ = (x - mean) / scale (no mean for RMS). The gradient h at y
becomes at x, with u = gain * h / scale,

    u - mean(u) - x^ * mean(u * x^)

and u - mean(u) where the scale is held fixed. A torch graph of the norm gives the same, but holds a copy of the stream
for every reader: a layer of Llama-3.2-1B has 96 readers after one norm. The closed form is used only where its parts
give the module's own values on a probe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from circuitlab.errors import UnsupportedModelError
from circuitlab.models.shortcuts import ROUNDING, probes

# Largest difference between a norm and its linear form, relative to its largest value: roundings. A norm of another
# kind differs by as much as it is large.
LINEAR = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}

NormPullBack = Callable[
    [Float[Tensor, "batch seq d_model"], Float[Tensor, "chosen batch seq d_model"]],
    Float[Tensor, "chosen batch seq d_model"],
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NormForm:
    """A norm by its parts, which are looked up at every call: edits of weights take effect.

    Attributes:
        module: What holds the weight and the bias; None where there is no norm.
        centred: Whether the mean is taken out.
        offset: What the weight is counted from: gain = weight + offset.
        eps: What is added to the mean square.
    """

    module: Any = None
    centred: bool = False
    offset: float = 0.0
    eps: float = 0.0

    @property
    def name(self) -> str:
        """In words."""
        return "no norm" if self.module is None else "a layer norm" if self.centred else "an RMS norm"

    @property
    def gain(self) -> Tensor | None:
        """The factor of each component; None where it is 1."""
        weight = getattr(self.module, "weight", None)
        return None if weight is None else weight.detach() + self.offset

    @property
    def bias(self) -> Tensor | None:
        """What is added; None where nothing is."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()

    @torch.no_grad()
    def make_plain(self) -> None:
        """Set the gain to 1 and the bias to 0."""
        if getattr(self.module, "weight", None) is not None:
            self.module.weight.fill_(1.0 - self.offset)
        if getattr(self.module, "bias", None) is not None:
            self.module.bias.zero_()

    def __call__(self, stream: Float[Tensor, "*row width"]) -> Float[Tensor, "*row width"]:
        """The norm's values; gradients hold its scale fixed."""
        if self.module is None:
            return stream
        centre, inverse = self._parts(stream)
        out, bias = centre * self._factor(inverse.detach()), self.bias
        return out if bias is None else out + bias

    def pull_back(
        self,
        stream: Float[Tensor, "batch seq d_model"],
        gradients: Float[Tensor, "chosen batch seq d_model"],
        *,
        fixed_scale: bool = False,
    ) -> Float[Tensor, "chosen batch seq d_model"]:
        """Gradients at the stream from those after the norm, which are overwritten.

        Returns:
            Gradients, in the memory of those given.
        """
        if self.module is None:
            return gradients
        centre, inverse = self._parts(stream)
        u = gradients.mul_(self._factor(inverse))
        if not fixed_scale:
            normed = centre * inverse
            along = einsum(u, normed, "chosen batch seq d_model, batch seq d_model -> chosen batch seq")
            u.addcmul_(along.div_(u.shape[-1])[..., None], normed, value=-1)
        return u.sub_(u.mean(-1, keepdim=True)) if self.centred else u

    def _parts(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """The stream, centred where that is part of the norm, and one over the scale."""
        centre = stream - stream.mean(-1, keepdim=True) if self.centred else stream
        return centre, (centre.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def _factor(self, inverse: Tensor) -> Tensor:
        gain = self.gain
        return inverse if gain is None else inverse * gain


@torch.no_grad()
def closest_form(norm: Any, like: Float[Tensor, ...], width: int) -> tuple[NormForm, float]:
    """The form whose values are closest to a norm's own.

    Args:
        norm: The norm: a module, or any callable where the model has none.
        like: A weight of the model: where it is and in what dtype.
        width: Of what is normed, where the norm has no weight that tells it.

    Returns:
        The form, and its largest difference from the norm's own values, as a share of the largest of these.
    """
    if not isinstance(norm, nn.Module):
        return NormForm(), 0.0
    inner = getattr(norm, "original_component", None) or norm
    weight = getattr(inner, "weight", None)
    width = width if weight is None else len(weight)
    owners = (inner, getattr(norm, "config", None))
    sizes = (getattr(owner, name, None) for owner in owners for name in ("eps", "variance_epsilon"))
    eps = next((size for size in sizes if isinstance(size, float)), 0.0)
    kinds = product((True, False), (0.0, 1.0))
    forms = [NormForm(module=inner, centred=centred, offset=offset, eps=eps) for centred, offset in kinds]
    values = [(probe, norm(probe)) for probe in probes(like, width)]
    measured = [
        (max(float((form(probe) - wanted).abs().max() / wanted.abs().max()) for probe, wanted in values), form)
        for form in (NormForm(), *forms)
    ]
    difference, form = min(measured, key=lambda each: each[0])
    return form, difference


def norm_pull_back(norm: Any, like: Float[Tensor, ...], width: int) -> NormPullBack:
    """The function (stream, gradients after the norm) -> gradients at the stream.

    Args:
        norm: The norm: a module, or any callable.
        like: A weight of the model: where it is and in what dtype.
        width: Of the stream.

    Returns:
        The function. It may overwrite the gradients it is given.
    """
    form, difference = closest_form(norm, like, width)
    # In half precision rounding would hide a difference.
    return (
        form.pull_back
        if difference <= ROUNDING.get(like.dtype, -1.0) or form.module is None
        else partial(_by_graph, norm)
    )


def _by_graph(
    norm: Any, stream: Float[Tensor, "batch seq d_model"], gradients: Float[Tensor, "chosen batch seq d_model"]
) -> Float[Tensor, "chosen batch seq d_model"]:
    """A norm of another kind, by its graph: one copy of the stream for every gradient."""
    found = []
    with torch.enable_grad():
        for one in gradients:
            copy = stream.detach().clone().requires_grad_()
            found.append(torch.autograd.grad(norm(copy), copy, one)[0])
    return torch.stack(found)


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
        """The direction before the norm whose product with a stream is that of `direction` with its norm.

        Returns:
            The direction, one a row.
        """
        before = direction * self.factor
        return before - before.mean(-1, keepdim=True) if self.centred else before


@torch.no_grad()
def frozen_norm(norm: Callable[[Tensor], Tensor], stream: Float[Tensor, "row d_model"], name: str) -> FrozenNorm:
    """A norm as it was on these streams.

    Args:
        norm: The norm, such as `Model.final_norm`.
        stream: The streams, whose scales are held.
        name: What the user calls the model.

    Returns:
        The linear map and the bias that give the norm's values on these streams.

    Raises:
        UnsupportedModelError: It is no layer norm and no RMS norm.
    """
    bias = norm(torch.zeros_like(stream[:1]))
    # +1, -1, +1, ...: components of one size, so that the outputs show the gains and epsilon scales all alike.
    signs = 1.0 - 2.0 * (torch.arange(stream.shape[-1], device=stream.device) % 2).to(stream)[None]
    centred = agree(norm(signs + 3.0), norm(signs))
    off = signs - signs.mean() if centred else signs
    gain = (norm(signs) - bias) / off
    middle = stream - stream.mean(-1, keepdim=True) if centred else stream
    scaled, normed = middle * gain, norm(stream) - bias
    inverse = (normed * scaled).sum(-1, keepdim=True) / (scaled * scaled).sum(-1, keepdim=True).clamp_min(1e-30)
    found = FrozenNorm(gain * inverse, centred, bias[0])
    if not agree(middle * found.factor, normed):
        raise UnsupportedModelError(
            f"model {name!r}: the final norm is neither a layer norm nor an RMS norm, so that its output is no sum "
            "over the parts of the stream. The logit lens and patching need no such sum: logit_lens(...), sweep(...)."
        )
    return found


def agree(ours: Tensor, theirs: Tensor, share: float = 1.0) -> bool:
    """Whether two tensors differ by no more than rounding, or a share of what that is at most.

    Returns:
        Whether they do.
    """
    allowed = share * LINEAR.get(theirs.dtype, LINEAR[torch.float32])
    return bool((ours - theirs).abs().max() <= allowed * theirs.abs().max().clamp_min(1e-30))
