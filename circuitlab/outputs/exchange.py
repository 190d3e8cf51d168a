"""Swap two paths in one step, where the operating system can."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_HERE, _EXCHANGE, _SWAP = -100, 2, 2  # Linux: AT_FDCWD, RENAME_EXCHANGE; macOS: RENAME_SWAP


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths so that no moment passes in which one of them is missing.

    Returns:
        Whether it was done. False, with nothing changed, where system or file system cannot.
    """
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        system = ctypes.CDLL(None, use_errno=True)
        if hasattr(system, "renameat2"):
            return system.renameat2(_HERE, first, _HERE, second, _EXCHANGE) == 0
        if hasattr(system, "renamex_np"):
            return system.renamex_np(first, second, _SWAP) == 0
    except (OSError, TypeError):  # Windows has no such library
        pass
    return False
