"""Out-of-memory errors, and how much memory a process may still take."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

# In messages of torch's allocators, C++ (std::bad_alloc), oneDNN, which says no more where the operating system
# refuses it memory, cuBLAS and cuDNN.
MESSAGES = re.compile(
    "can't allocate memory|cannot allocate memory|not enough memory|out of memory|bad_alloc|"
    "could not create a primitive|could not create a memory|could not execute a primitive|_status_alloc_failed"
)
ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError, OSError)
# Limits of a container, and what it has taken: version 2 of control groups, then version 1.
CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out.

    Returns:
        Whether it does.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(MESSAGES.search(str(error).lower()))


def available(device: torch.device) -> int:
    """Bytes that this process may still take on a device, limits of the operating system and a container included.

    Returns:
        Number of bytes, 0 or more.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return max(0, min([psutil.virtual_memory().available, *_left_by_limits(psutil.Process().memory_info().vms)]))


def _left_by_limits(taken: int) -> Iterator[int]:
    """Bytes left by each limit that there is, for a process that has taken so many."""
    with suppress(ImportError):  # there is no such module on Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit - taken
    for limit, used in CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # no control group, or "max"
            yield int(Path(limit).read_text()) - int(Path(used).read_text())
