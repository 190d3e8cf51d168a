"""Which weights a model has, in 64 letters."""

from __future__ import annotations

from itertools import chain
from typing import Any

from circuitlab.digests import sha256
from circuitlab.models.recording import AS_SAVED, Folding


def weights_digest(bridge: Any, folding: Folding = AS_SAVED) -> str:
    """SHA-256 over names and bytes of all weights, and over how they are about to be rewritten.

    Rewritten weights are products and means, whose last bits may be another machine's; the checkpoint's are not.

    Args:
        bridge: The booted model, its weights as saved.
        folding: What will be done to them.
    """
    weights = sorted(bridge.original_model.state_dict().items())
    rewritten = (name for name in ("fold_ln", "center_weights") if getattr(folding, name))
    return sha256(*chain.from_iterable(weights), *rewritten)


def edited(as_saved: str, now: str) -> str:
    """The digest of a model whose rewritten weights were edited later.

    Args:
        as_saved: Of the checkpoint and how it was rewritten.
        now: Of its weights as they are.
    """
    return sha256(f"{as_saved} edited {now}")
