"""SHA-256, the one digest of the library: of texts, bytes, tensors and files."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sha256(*parts: str | bytes | Any) -> str:
    """SHA-256 over texts (as UTF-8), bytes and tensors (their values, as they lie in memory), one after the other.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> sha256("a", b"b") == sha256("ab")
        True
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part if isinstance(part, bytes) else _bytes(part))
    return digest.hexdigest()


def named_sha256(parts: Mapping[str, object]) -> str:
    """SHA-256 over names and values, in the order of the names; of tensors over dtype, shape and values.

    Returns:
        64 hexadecimal digits.
    """
    pieces: list[Any] = []
    for name, value in sorted(parts.items()):
        tensor: Any = value if hasattr(value, "detach") else None
        pieces += [name, "\0", str(value) if tensor is None else str((tensor.dtype, tuple(tensor.shape)))]
        pieces += ["\0"] if tensor is None else [tensor, "\0"]
    return sha256(*pieces)


def file_sha256(path: Path) -> str:
    """SHA-256 over the content of a file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_sha256(code: Any) -> str | None:
    """SHA-256 of the source of a function or class; None where there is no source file, as in a session.

    Returns:
        64 hexadecimal digits, or None.
    """
    try:
        return sha256(inspect.getsource(inspect.unwrap(code)))
    except (OSError, TypeError):
        return None


def _bytes(tensor: Any) -> Any:
    """The values of a tensor of any dtype and device."""
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
