"""An autoencoder from named arrays, whichever file they were in. Everything that does not add up is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuitlab.errors import FormatError
from circuitlab.features.autoencoder import BIASES, ENCODERS, Autoencoder, Encoder
from circuitlab.result import named

SHARED = ("W_enc", "W_dec", "b_dec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings in a file, beside its arrays.

    Attributes:
        source: The file, for messages.
        architecture: A key of `BIASES`.
        site: What it reads.
        layer: In which layer.
        k: Of a top-k autoencoder.
        subtract_bias: Whether the decoder's bias is taken off the input.
        normalisation: See `Autoencoder`.
        input_scale: The constant that inputs were multiplied by in training, if any; folded into the weights.
        by_decoder_norm: Whether features compete, and are given, in units of their decoder norms; folded as well.
        centred: See `Autoencoder`.
        sizes: `d_in` and number of features, where the file has them.
        model_id: See `Autoencoder`.
        neuronpedia_id: See `Autoencoder`.
    """

    source: str
    architecture: str
    site: str
    layer: int
    k: int | None = None
    subtract_bias: bool = False
    normalisation: str = "none"
    input_scale: float | None = None
    by_decoder_norm: bool = False
    centred: bool = False
    sizes: tuple[int | None, int | None] = (None, None)
    model_id: str | None = None
    neuronpedia_id: str | None = None


def assemble(settings: Settings, arrays: Mapping[str, Tensor]) -> Autoencoder:
    """The autoencoder of these settings and arrays.

    Returns:
        The autoencoder, with all constant factors folded into its weights.

    Raises:
        FormatError: An array is missing, unknown, of the wrong shape, or holds NaN; `k` is out of range.
    """
    # Factors are folded in no less than float32, whatever the file has.
    arrays = {name: t if t.dtype == torch.float64 else t.float() for name, t in arrays.items()}
    feature_scale = arrays.pop("feature_scale", None)
    check_arrays(settings, arrays)
    w_enc, w_dec, b_dec = (arrays[name] for name in SHARED)
    biases = {name: arrays[name] for name in BIASES[settings.architecture]}
    if settings.by_decoder_norm:
        norm = w_dec.norm(dim=1)
        w_enc, w_dec = w_enc * norm, w_dec / norm[:, None]
        biases["b_enc"] = biases["b_enc"] * norm
    if feature_scale is not None:
        w_dec = w_dec * feature_scale[:, None]
    if settings.input_scale is not None:
        w_enc, w_dec, b_dec = w_enc * settings.input_scale, w_dec / settings.input_scale, b_dec / settings.input_scale
    return Autoencoder(
        name=settings.source,
        encoder=_encoder(settings, biases),
        w_enc=w_enc,
        w_dec=w_dec,
        b_dec=b_dec,
        **named(settings, "site", "layer", "subtract_bias", "normalisation", "centred", "model_id", "neuronpedia_id"),
    )


def check_arrays(settings: Settings, arrays: Mapping[str, Tensor]) -> None:
    """Refuse arrays that are not those of the architecture.

    Raises:
        FormatError: One is missing, unknown, of the wrong shape, or holds NaN.
    """
    kind = settings.architecture
    where, needed = f"autoencoder {settings.source!r} ({kind})", (*SHARED, *BIASES[kind])
    if missing := [name for name in needed if name not in arrays]:
        raise FormatError(f"{where} has no {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
    if unknown := sorted(set(arrays) - set(needed)):
        raise FormatError(f"{where} holds {', '.join(unknown)} too; a {kind} one is {', '.join(needed)}.")
    if arrays["W_enc"].ndim != 2:
        raise FormatError(f"{where}: W_enc has the shape {tuple(arrays['W_enc'].shape)}; it must be (d_in, d_sae).")
    d_in, width = arrays["W_enc"].shape
    for declared, real, name in zip(settings.sizes, (d_in, width), ("d_in", "d_sae"), strict=True):
        if declared is not None and declared != real:
            raise FormatError(f"{where}: its settings say {name} = {declared}, its W_enc {real}.")
    shapes = {"W_enc": (d_in, width), "W_dec": (width, d_in), "b_dec": (d_in,)}
    for name in needed:
        wanted, tensor = shapes.get(name, (width,)), arrays[name]
        if tuple(tensor.shape) != wanted:
            raise FormatError(f"{where}: {name} has the shape {tuple(tensor.shape)}; with this W_enc it is {wanted}.")
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{where}: {name} holds NaN or infinite numbers; the file is damaged.")


def _encoder(settings: Settings, biases: Mapping[str, Tensor]) -> Encoder:
    values: dict[str, Any] = {field: biases[name] for name, field in BIASES[settings.architecture].items()}
    if settings.architecture == "topk":
        n_features = len(values["bias"])
        if settings.k is None or not 1 <= settings.k <= n_features:
            raise FormatError(
                f"autoencoder {settings.source!r} (topk): k is {settings.k}; it must be between 1 and its {n_features} "
                "features."
            )
        values["k"] = settings.k
    return ENCODERS[settings.architecture](**values)
