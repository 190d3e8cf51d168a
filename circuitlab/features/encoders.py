"""From pre-activations to features: the four architectures of sparse autoencoders.

Each takes `x W_enc`, the biases not yet added, and gives features that are never negative.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Standard(Summary):
    """ReLU.

    Attributes:
        bias: Added to the pre-activations.

    References:
        Bricken et al. 2023, Towards Monosemanticity.
    """

    bias: Float[Tensor, " feature"]

    def __call__(self, pre: Float[Tensor, "*row feature"]) -> Float[Tensor, "*row feature"]:
        """`relu(pre + bias)`."""
        return torch.relu(pre + self.bias)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TopK(Summary):
    """The k largest pre-activations, and of these the positive ones.

    Attributes:
        bias: Added to the pre-activations.
        k: How many may be active at a token.

    References:
        Gao et al. 2024, arXiv:2406.04093.
    """

    bias: Float[Tensor, " feature"]
    k: int

    def __call__(self, pre: Float[Tensor, "*row feature"]) -> Float[Tensor, "*row feature"]:
        """The k largest of `pre + bias`, without negative ones; zero elsewhere."""
        largest = torch.topk(pre + self.bias, self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, largest.indices, torch.relu(largest.values))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class JumpRelu(Summary):
    """A feature is active above its threshold, with its whole pre-activation.

    Attributes:
        bias: Added to the pre-activations.
        threshold: Above it, not at it, a feature is active.

    References:
        Rajamanoharan et al. 2024, arXiv:2407.14435.
    """

    bias: Float[Tensor, " feature"]
    threshold: Float[Tensor, " feature"]

    def __call__(self, pre: Float[Tensor, "*row feature"]) -> Float[Tensor, "*row feature"]:
        """`relu(pre + bias)` where `pre + bias` is above the threshold, else zero."""
        biased = pre + self.bias
        return torch.relu(biased) * (biased > self.threshold)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Gated(Summary):
    """One bias decides whether a feature is active, a scale and another bias how much.

    Attributes:
        gate_bias: Active where `pre + gate_bias` is positive.
        log_scale: `r_mag`: the pre-activations of magnitudes are `exp(log_scale)` times those of gates.
        magnitude_bias: Added to these.

    References:
        Rajamanoharan et al. 2024, arXiv:2404.16014.
    """

    gate_bias: Float[Tensor, " feature"]
    log_scale: Float[Tensor, " feature"]
    magnitude_bias: Float[Tensor, " feature"]

    def __call__(self, pre: Float[Tensor, "*row feature"]) -> Float[Tensor, "*row feature"]:
        """`relu(pre exp(log_scale) + magnitude_bias)` where the gate is open, else zero."""
        return torch.relu(pre * self.log_scale.exp() + self.magnitude_bias) * (pre + self.gate_bias > 0)


Encoder = Standard | TopK | JumpRelu | Gated
ENCODERS: dict[str, type[Encoder]] = {"standard": Standard, "topk": TopK, "jumprelu": JumpRelu, "gated": Gated}
NAMES = {encoder: name for name, encoder in ENCODERS.items()}
# Tensors of each architecture: what files call them -> the attribute of the encoder.
BIASES: dict[str, dict[str, str]] = {
    "standard": {"b_enc": "bias"},
    "topk": {"b_enc": "bias"},
    "jumprelu": {"b_enc": "bias", "threshold": "threshold"},
    "gated": {"b_gate": "gate_bias", "r_mag": "log_scale", "b_mag": "magnitude_bias"},
}


def moved(encoder: Encoder, device: torch.device, dtype: torch.dtype) -> Encoder:
    """The encoder with its tensors on a device, in a dtype."""
    values = {item.name: getattr(encoder, item.name) for item in fields(encoder)}
    return replace(encoder, **{name: v.to(device, dtype) for name, v in values.items() if isinstance(v, Tensor)})
