"""A sparse autoencoder: an activation of a model as a sum of few features out of many.

    x  ->  normalised x  ->  (minus b_dec)  W_enc  ->  features f  ->  f W_dec + b_dec  ->  scaled back

What it leaves out, `x - decode(encode(x))`, is the error term; with it added nothing is lost.

From pre-activations to features there are four architectures. Each takes `x W_enc`, the biases not yet added, and gives
features that are never negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.errors import ConfigError
from circuitlab.models.hook_names import hook_of_site
from circuitlab.summary import Summary, plural, short


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
    """The encoder with its tensors on a device, in a dtype.

    Returns:
        A new encoder.
    """
    values = {item.name: getattr(encoder, item.name) for item in fields(encoder)}
    return replace(encoder, **{name: v.to(device, dtype) for name, v in values.items() if isinstance(v, Tensor)})


NORMALISATIONS = ("none", "constant_norm_rescale", "layer_norm")
EPSILON = 1e-5  # of `layer_norm`, as SAELens has it: on the standard deviation, on the way in alone
# Numbers of a dense block of features while tokens are encoded: 64 MB in float32.
DENSE_AT_ONCE = 2**24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Scaled(Summary):
    """An activation as an autoencoder reads it, and the way back.

    Attributes:
        values: What the encoder reads.
        scale: What reconstructions are multiplied by.
        shift: What is added to them then.
    """

    values: Float[Tensor, "*row d_in"]
    scale: Float[Tensor, "*row 1"]
    shift: Float[Tensor, "*row 1"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Active(Summary):
    """The features that are active at some tokens, one entry each, by token and then by feature.

    Attributes:
        token: Which token.
        feature: Which feature.
        value: Its activation, above 0.
    """

    token: Int[Tensor, " entry"]
    feature: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Autoencoder(Summary):
    """A sparse autoencoder and the place of the model that it reads.

    Attributes:
        name: What it was loaded from.
        site: What it reads, by the name of a sweep's site; all heads side by side for `head_z`.
        layer: In which layer.
        encoder: The architecture, with its biases.
        w_enc: Encoder weights.
        w_dec: Decoder weights: what a feature of value 1 adds, in the units of `Scaled.values`.
        b_dec: Decoder bias.
        subtract_bias: Whether the decoder's bias is taken off what the encoder reads.
        normalisation: "none", "constant_norm_rescale" (to norm sqrt(d_in)) or "layer_norm", token by token.
        centred: Whether it was trained on a stream whose mean over its width is taken out, as TransformerLens does
            with `center_writing_weights`; the mean is then taken off and put back.
        model_id: Name of the model it was trained on, if known.
        neuronpedia_id: Its name on Neuronpedia, where its features are described, if known.

    Raises:
        ConfigError: Shapes do not go together, or the normalisation is unknown.
    """

    name: str
    site: str
    layer: int
    encoder: Encoder
    w_enc: Float[Tensor, "d_in feature"]
    w_dec: Float[Tensor, "feature d_in"]
    b_dec: Float[Tensor, " d_in"]
    subtract_bias: bool = False
    normalisation: str = "none"
    centred: bool = False
    model_id: str | None = None
    neuronpedia_id: str | None = None

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise ConfigError(f"normalisation {self.normalisation!r} is none of {', '.join(NORMALISATIONS)}.")
        if self.w_dec.shape != self.w_enc.shape[::-1] or self.b_dec.shape != self.w_enc.shape[:1]:
            raise ConfigError(
                f"weights of autoencoder {self.name!r} do not go together: W_enc {tuple(self.w_enc.shape)}, W_dec "
                f"{tuple(self.w_dec.shape)}, b_dec {tuple(self.b_dec.shape)}."
            )

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return self.w_enc.shape[0]

    @property
    def n_features(self) -> int:
        """How many features it has."""
        return self.w_enc.shape[1]

    @property
    def architecture(self) -> str:
        """Which of the four: "standard", "topk", "jumprelu" or "gated"."""
        return NAMES[type(self.encoder)]

    @property
    def hook(self) -> str:
        """Its place as TransformerLens names it."""
        return hook_of_site(self.site, self.layer)

    @property
    def relative(self) -> bool:
        """Whether scale or mean of a reconstruction are those of its input."""
        return self.normalisation != "none" or self.centred

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Autoencoder:
        """The same weights on another device or in another dtype; itself where nothing changes.

        Returns:
            The autoencoder.
        """
        device = torch.device(device)
        if self.w_enc.device == device and self.w_enc.dtype == dtype:
            return self
        weights = {name: getattr(self, name).to(device, dtype) for name in ("w_enc", "w_dec", "b_dec")}
        return replace(self, encoder=moved(self.encoder, device, dtype), **weights)

    def scaled(self, x: Float[Tensor, "*row d_in"]) -> Scaled:
        """Activations as the encoder reads them, with what takes reconstructions back.

        Returns:
            Both.
        """
        x = x.to(self.w_enc)
        one, nothing = torch.ones_like(x[..., :1]), torch.zeros_like(x[..., :1])
        if self.normalisation == "layer_norm":
            shift = x.mean(-1, keepdim=True)
            scale = (x - shift).std(-1, keepdim=True)
            return Scaled(values=(x - shift) / (scale + EPSILON), scale=scale, shift=shift)
        shift = x.mean(-1, keepdim=True) if self.centred else nothing
        x = x - shift if self.centred else x
        if self.normalisation == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True).clamp_min(EPSILON) / self.d_in**0.5
            return Scaled(values=x / scale, scale=scale, shift=shift)
        return Scaled(values=x, scale=one, shift=shift)

    def encode(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row feature"]:
        """Features of activations, dense.

        Args:
            x: Activations at the autoencoder's place.

        Returns:
            Activations of the features, never negative, in the dtype of the autoencoder.
        """
        values = self.scaled(x).values
        return self.encoder((values - self.b_dec if self.subtract_bias else values) @ self.w_enc)

    def decode(
        self, features: Float[Tensor, "*row feature"], like: Float[Tensor, "*row d_in"] | None = None
    ) -> Float[Tensor, "*row d_in"]:
        """Activations from features.

        Args:
            features: As `encode` gives them.
            like: The activations they are of; needed where the autoencoder takes scale or mean from them
                (`relative`), else ignored.

        Returns:
            Activations `[..., d_in]`.

        Raises:
            ConfigError: The autoencoder is relative, and `like` is not given.
        """
        out = features.to(self.w_dec) @ self.w_dec + self.b_dec
        if not self.relative:
            return out
        if like is None:
            what = self.normalisation if self.normalisation != "none" else "a centred stream"
            raise ConfigError(
                f"autoencoder {self.name!r} works on {what}: give the activations that the features are of, "
                "decode(features, like=x)."
            )
        back = self.scaled(like)
        return out * back.scale + back.shift

    def reconstruct(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_in"]:
        """What the autoencoder makes of activations; what it leaves out is the error term.

        Returns:
            Activations `[..., d_in]`.
        """
        parts = self._parts(x.reshape(-1, self.d_in))
        return torch.cat([self.decode(self.encode(part), like=part) for part in parts]).reshape(x.shape)

    @torch.no_grad()
    def active(self, x: Float[Tensor, "token d_in"]) -> Active:
        """The active features of tokens, a few tokens at a time: never all features of all tokens at once.

        Returns:
            Token, feature and value of every activation other than 0.
        """
        found, start = list[tuple[Tensor, Tensor, Tensor]](), 0
        for part in self._parts(x):
            dense = self.encode(part)
            token, feature = dense.nonzero(as_tuple=True)
            found.append((token + start, feature, dense[token, feature]))
            start += len(part)
        token, feature, value = (torch.cat(list(parts)) for parts in zip(*found, strict=True))
        return Active(token=token, feature=feature, value=value)

    def _parts(self, x: Tensor) -> Iterator[Tensor]:
        return iter(x.split(max(1, DENSE_AT_ONCE // self.n_features)))

    def _summary(self) -> str:
        return f"{short(self.name, 40)[1:-1]}: {plural(self.n_features, 'feature')} of {self.site}, layer {self.layer}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "architecture", self.architecture
        yield "input", f"{self.d_in} components, normalisation {self.normalisation}"
        yield "dtype, device", f"{str(self.w_enc.dtype).removeprefix('torch.')}, {self.w_enc.device}"
        if self.model_id is not None:
            yield "model", self.model_id
        if self.neuronpedia_id is not None:
            yield "Neuronpedia", self.neuronpedia_id
