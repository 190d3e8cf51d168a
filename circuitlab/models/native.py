"""Models whose weights are given as arrays, on TransformerLens's own decoder: what compiled models are loaded with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from circuitlab.errors import ModelError
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.verify import adapted


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeShape:
    """Sizes of a decoder with learned positions and, where it has MLPs, ReLU.

    Attributes:
        n_layers: Blocks.
        n_heads: Heads a layer.
        d_model: Width of the residual stream.
        d_head: Width of a head; need not divide `d_model`.
        d_mlp: Neurons a layer; 0 for attention alone.
        d_vocab: Tokens read.
        d_vocab_out: Tokens predicted.
        n_ctx: Longest prompt.
        norm: Layer norms before attention, MLP and unembedding; else none.
        causal: No token sees a later one.
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    norm: bool = False
    causal: bool = True


def native_model(
    shape: NativeShape, weights: Mapping[str, Float[np.ndarray, ...]], name: str, dtype: torch.dtype
) -> BridgeModel:
    """Boot a decoder and give it these weights; whatever is not named is 0.

    Args:
        shape: Its sizes.
        weights: By the names of TransformerLens's native model (`layers.0.attn.q.weight`, `tok_embed.weight`, ...), in
            torch's layout `[out, in]`. Queries times keys are divided by the root of `d_head`.
        name: What the model is called.
        dtype: Of the weights.

    Raises:
        ModelError: A name or shape that the model does not have.
        UnsupportedModelError: Its parts do not add up.
    """
    from transformer_lens.model_bridge import TransformerBridge

    settings = {
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "d_model": shape.d_model,
        "d_head": shape.d_head,
        "d_mlp": shape.d_mlp or 1,
        "d_vocab": shape.d_vocab,
        "d_vocab_out": shape.d_vocab_out,
        "n_ctx": shape.n_ctx,
        "attn_only": shape.d_mlp == 0,
        "act_fn": "relu",
        "normalization_type": "LN" if shape.norm else None,
        "attention_dir": "causal" if shape.causal else "bidirectional",
        "seed": 0,
    }
    boot: Any = getattr(TransformerBridge, "boot_native")  # noqa: B009  # set when the package is imported
    bridge = boot(settings, device="cpu", dtype=dtype, model_name=name)
    bridge.eval()
    inner = bridge.original_model
    places = {key.replace("._original_component", ""): value for key, value in inner.named_parameters()}
    if unknown := sorted(set(weights) - set(places)):
        raise ModelError(f"model {name!r} has no weights {unknown}. It has: {', '.join(sorted(places))}.")
    with torch.no_grad():
        for key, place in places.items():
            place.requires_grad_(False)
            given = torch.zeros_like(place) if key not in weights else torch.from_numpy(np.array(weights[key]))
            if given.shape != place.shape:
                raise ModelError(f"{key} of model {name!r} is {tuple(place.shape)}, given is {tuple(given.shape)}.")
            place.copy_(given)
    return adapted(bridge, name)
