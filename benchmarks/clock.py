"""Time several ways in turn inside one process, so that a busy machine slows all of them alike."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

import torch


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one way, one number a round."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The quickest round: what the way takes when nothing disturbs it."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The round in the middle."""
        return median(self.seconds)

    def times(self, factor: float) -> Timing:
        """The same for so many times the work."""
        return Timing(tuple(factor * s for s in self.seconds))

    def plus(self, other: Timing) -> Timing:
        """Both ways, one after the other."""
        return Timing(tuple(a + b for a, b in zip(self.seconds, other.seconds, strict=True)))


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, Timing]:
    """Run every way once a round, one after the other; there is no warm-up but the first round.

    Args:
        ways: Name -> what to run; results are thrown away.
        rounds: How often.
        device: On "cuda" the clock waits until the device has done what it was given.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            _wait(device)
            start = perf_counter()
            way()
            _wait(device)
            found[name].append(perf_counter() - start)
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}


def machine(device: str = "cpu") -> dict[str, str]:
    """What a reader has to know about the machine and the process, in the order of a table."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"Processor": f"{_processor()}, {cores} cores"}
    if device.startswith("cuda"):
        facts["Device"] = torch.cuda.get_device_name(device)
    facts["Threads"] = f"{torch.get_num_threads()}, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'not set')}"
    if hasattr(os, "getloadavg"):
        facts["Load before the run"] = f"{os.getloadavg()[0]:.1f} processes, mean of a minute"
    names = ("torch", "transformers", "transformer_lens")
    facts["Versions"] = f"Python {platform.python_version()}, " + ", ".join(f"{n} {version(n)}" for n in names)
    facts["Date"] = date.today().isoformat()
    return facts


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
