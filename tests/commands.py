"""Run the command line as a user does: in a process of its own, somewhere else than the checkout."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


def run_circuitlab(*args: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = 600) -> Finished:
    """`circuitlab ARGS...` in a folder, on a terminal of 80 columns that nobody looks at."""
    done = subprocess.run(
        [sys.executable, "-m", "circuitlab", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)
