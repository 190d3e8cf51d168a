"""SHA-256, the one digest of the library: of texts, bytes, tensors and files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def sha256(*parts: str | bytes | Any) -> str:
    """SHA-256 over texts (as UTF-8), bytes and tensors (their values, as they lie in memory), one after the other.

    Example:
        >>> sha256("a", b"b") == sha256("ab")
        True
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part if isinstance(part, bytes) else _bytes(part))
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 over the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(tensor: Any) -> Any:
    """The values of a tensor of any dtype and device."""
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
