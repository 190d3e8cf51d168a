"""Models whose weights are given as arrays, on TransformerLens's own decoder: what compiled models are loaded with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from circuitlab.errors import ModelError
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.verify import adapted
from circuitlab.parts import ModelSpec


def native_model(spec: ModelSpec, weights: Mapping[str, Float[np.ndarray, ...]], dtype: torch.dtype) -> BridgeModel:
    """Boot a decoder with learned positions and ReLU and give it these weights; whatever is not named is 0.

    Args:
        spec: Its shape; `d_head` need not divide `d_model`.
        weights: By the names of TransformerLens's native model (`layers.0.attn.q.weight`, `tok_embed.weight`, ...), in
            torch's layout `[out, in]`. Queries times keys are divided by the root of `d_head`. The model has as many
            neurons a layer as `layers.0.mlp.fc_in.bias` has, and layer norms if `ln_out.weight` is given.
        dtype: Of the weights.

    Returns:
        The model.

    Raises:
        ModelError: A name or shape that the model does not have.
        UnsupportedModelError: Its parts do not add up.
    """
    from transformer_lens.model_bridge import TransformerBridge

    d_mlp = len(weights.get("layers.0.mlp.fc_in.bias", ()))
    settings = {name: getattr(spec, name) for name in ("n_layers", "n_heads", "d_model", "d_head", "n_ctx")}
    settings |= {
        "d_vocab": spec.n_embeddings,
        "d_vocab_out": spec.d_vocab,
        "d_mlp": d_mlp or 1,
        "attn_only": d_mlp == 0,
        "act_fn": "relu",
        "normalization_type": "LN" if "ln_out.weight" in weights else None,
        "attention_dir": "causal" if spec.causal else "bidirectional",
        "seed": 0,
    }
    boot: Any = getattr(TransformerBridge, "boot_native")  # noqa: B009  # set when the package is imported
    bridge = boot(settings, device="cpu", dtype=dtype, model_name=spec.name)
    bridge.eval()
    parameters = {key.replace("._original_component", ""): p for key, p in bridge.original_model.named_parameters()}
    if unknown := sorted(set(weights) - set(parameters)):
        raise ModelError(f"model {spec.name!r} has no weights {unknown}. It has: {', '.join(sorted(parameters))}.")
    with torch.no_grad():
        for key, parameter in parameters.items():
            given = torch.from_numpy(np.array(weights[key])) if key in weights else torch.zeros_like(parameter)
            if given.shape != parameter.shape:
                sizes = f"{tuple(parameter.shape)}, given is {tuple(given.shape)}"
                raise ModelError(f"{key} of model {spec.name!r} is {sizes}.")
            parameter.requires_grad_(False).copy_(given)
    return adapted(bridge, spec.name)
