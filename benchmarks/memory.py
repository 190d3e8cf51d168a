"""How much memory a piece of work takes above what the process holds already."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from threading import Event, Thread

# Seconds between two readings. Filling a gigabyte takes the kernel a hundred times as long.
PERIOD = 0.002


def memory_above(run: Callable[[], object], device: str) -> int:
    """Bytes that something takes while it runs: resident ones on a CPU, allocated ones on a GPU."""
    if not device.startswith("cuda"):
        return resident_above(run)
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def resident_above(run: Callable[[], object]) -> int:
    """How far the process grows while something runs."""
    import psutil

    process = psutil.Process()
    gc.collect()
    _give_back_what_is_free()
    before = process.memory_info().rss
    seen, done = [before], Event()

    def watch() -> None:
        while not done.wait(PERIOD):
            seen.append(process.memory_info().rss)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = run()
        seen.append(process.memory_info().rss)
        del result
    finally:
        done.set()
        watcher.join()
    return max(seen) - before


def _give_back_what_is_free() -> None:
    """Loading leaves freed memory with the process; counted as resident, it would hide what runs next."""
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
