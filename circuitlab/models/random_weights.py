"""The same architecture with weights that were never trained, as a control."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save_model

from circuitlab.arguments import checked
from circuitlab.errors import ModelError
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.load import load_model
from circuitlab.models.protocol import Model
from circuitlab.outputs.whole import scratch_folder


@checked
def with_random_weights(model: Model, seed: int = 0) -> BridgeModel:
    """A model of the same configuration and tokenizer whose weights are drawn as before training.

    Args:
        model: A loaded model whose configuration is HuggingFace's; it is not changed.
        seed: Of the weights.

    Returns:
        The model, on the same device and in the same dtype.

    Raises:
        ModelError: The model has no configuration of HuggingFace, or no tokenizer.

    Example:
        >>> from circuitlab import load_model
        >>> from circuitlab.models.random_weights import with_random_weights
        >>> trained = load_model("bundled")
        >>> control = with_random_weights(trained)
        >>> control.spec.n_heads == trained.spec.n_heads, control.weights_sha256() == trained.weights_sha256()
        (True, False)
    """
    original: Any = getattr(getattr(model, "bridge", None), "original_model", None)
    tokenizer: Any = getattr(getattr(model, "bridge", None), "tokenizer", None)
    if not hasattr(getattr(original, "config", None), "to_json_string") or tokenizer is None:
        raise ModelError(
            f"model {model.id!r} has no configuration and tokenizer of HuggingFace, from which weights could be drawn "
            "anew. Load it by its folder or name."
        )
    with scratch_folder() as scratch, torch.random.fork_rng():
        torch.manual_seed(seed)
        folder = scratch / "random-weights"
        original.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        fresh = type(original)(original.config)
        save_model(fresh, str(folder / "model.safetensors"), metadata={"format": "pt"})
        return load_model(
            folder,
            device=model.device,
            dtype=model.dtype,
            bos=model.bos.choice,
            fold_ln=model.folding.fold_ln,
            center_weights=model.folding.center_weights,
        )
