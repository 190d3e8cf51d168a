"""The memory that EAP takes above the loaded model, in a process of its own.

`python -m benchmarks.memory '{"name": ...}' DEVICE` prints the number of bytes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread

# Seconds between two looks. Filling a gigabyte takes the kernel a hundred times as long.
PERIOD = 0.002


def peak_of_eap(setup: object) -> int:
    """Bytes above the loaded model: resident ones on a CPU, allocated ones on a GPU."""
    from benchmarks.models import Setup

    assert isinstance(setup, Setup)
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(asdict(setup.size)), str(setup.model.device)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring memory failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


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


def _main(size: str, device: str) -> None:
    import torch

    from benchmarks.eap import eap_scores
    from benchmarks.models import Size, make

    setup = make(Size(**json.loads(size)), device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        eap_scores(setup.model, setup.batch)
        print(torch.cuda.max_memory_allocated(device) - before)
    else:
        print(resident_above(lambda: eap_scores(setup.model, setup.batch)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
