"""Which weights a model has, in 64 letters."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from circuitlab.models.recording import AS_SAVED, Folding


def weights_digest(bridge: Any, folding: Folding = AS_SAVED) -> str:
    """SHA-256 over names and bytes of all weights, and over how they are about to be rewritten.

    Rewritten weights are products and means, whose last bits may be another machine's; the checkpoint's are not.

    Args:
        bridge: The booted model, its weights as saved.
        folding: What will be done to them.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(bridge.original_model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for name in ("fold_ln", "center_weights"):
        if getattr(folding, name):
            digest.update(name.encode())
    return digest.hexdigest()


def edited(as_saved: str, now: str) -> str:
    """The digest of a model whose rewritten weights were edited later.

    Args:
        as_saved: Of the checkpoint and how it was rewritten.
        now: Of its weights as they are.
    """
    return hashlib.sha256(f"{as_saved} edited {now}".encode()).hexdigest()
