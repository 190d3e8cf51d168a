"""One run of the main job on the bundled model, made once and shared by the tests that read what it leaves."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from commands import run_python

from circuitlab import Run, discover

TASK = "gendered-pronouns"
N = 10


@cache
def found(model: Any) -> Run:
    """The run; frozen, so nobody can spoil it for the others."""
    return discover(TASK, model=model, n=N, seed=0)


@cache
def written(model: Any, base: Path) -> Path:
    """The run's folder; nobody may change it."""
    folder = found(model).write(base / "here" / "a run").folder
    assert folder
    return folder


IN_ANOTHER_PROCESS = """
import sys
from circuitlab import discover
discover(sys.argv[1], n=int(sys.argv[2]), seed=0, out=sys.argv[3])
"""


@cache
def written_elsewhere(base: Path) -> Path:
    """The folder of the same run, made by a process of its own with another hash seed and without type checks."""
    folder = base / "elsewhere" / "deep" / "a run"
    done = run_python(IN_ANOTHER_PROCESS, TASK, N, folder)
    assert done.code == 0, done.err
    return folder


def bytes_in(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def digests_in(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in bytes_in(folder).items()}
