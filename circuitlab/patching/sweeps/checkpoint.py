"""Keep what a long sweep has finished, so that an interrupted one goes on from there and gives the same numbers.

One safetensors file: the tables as far as they are filled, which parts are done, and a digest of everything that the
numbers depend on. A file of another sweep is refused, never overwritten. It goes when the sweep is done.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from circuitlab.errors import RunError
from circuitlab.files import check_file, write_bytes

DONE = "done"


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """A file of finished parts.

    Attributes:
        path: Where it is; None keeps nothing.
        key: Digest of the sweep.
        tables: The arrays being filled, by name; a part is a set of their cells.
        budget: Bytes a pack may take: packs of another size would round differently.
        done: Numbers of the finished parts.
    """

    path: Path | None
    key: str
    tables: Mapping[str, np.ndarray]
    budget: int
    done: set[int] = field(default_factory=set)

    def load(self) -> None:
        """Take over what an earlier run finished.

        Raises:
            RunError: The file is of another sweep, or damaged.
        """
        if self.path is None or not os.path.lexists(self.path):
            return
        check_file(self.path, "file to resume from")
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                if about.get("key") != self.key:
                    raise RunError(
                        f"{self.path} keeps another sweep (other model, prompts, sites or settings). "
                        "Give another path, or remove the file."
                    )
                read = {name: file.get_tensor(name).numpy() for name in self.tables}
                for name, table in self.tables.items():
                    if read[name].shape != table.shape or read[name].dtype != table.dtype:
                        raise ValueError(f"table {name} is {read[name].dtype} {read[name].shape}")
                done = set(file.get_tensor(DONE).flatten().tolist())
                budget = json.loads(about["budget"])
                if type(budget) is not int or budget < 1 or not all(type(part) is int for part in done):
                    raise ValueError(f"budget {budget!r:.40} or the list of finished parts is no whole number")
        except RunError:
            raise
        except Exception as error:  # whatever safetensors, JSON or numpy say of a damaged file
            raise RunError(
                f"{str(self.path)!r} cannot be read as the rest of a sweep: {error}. Name another file, or "
                "remove it if a sweep wrote it."
            ) from error
        for name, table in self.tables.items():
            table[...] = read[name]
        self.done, self.budget = done, budget

    def finish(self, part: int) -> None:
        """Take note of a finished part, on disk."""
        self.done.add(part)
        if self.path is None:
            return
        tensors = {name: torch.from_numpy(table) for name, table in self.tables.items()}
        tensors[DONE] = torch.tensor(sorted(self.done))
        write_bytes(
            self.path, save(tensors, {"key": self.key, "budget": json.dumps(self.budget)}), "file to resume from"
        )

    def remove(self) -> None:
        """The sweep is done; nothing is left to resume."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def check_resumable(path: str | Path) -> None:
    """Refuse a file to resume from that no sweep wrote, before any work; one that is yet to be made is fine.

    Raises:
        FileError: It cannot be read.
        RunError: It is there, and is not the rest of a sweep.
    """
    if not os.path.lexists(path):
        return
    check_file(Path(path), "file to resume from")
    try:
        with safe_open(path, "pt") as file:
            written = {"key", "budget"} <= set(file.metadata() or {}) and DONE in file.keys()  # noqa: SIM118
    except Exception:  # whatever safetensors says of another file
        written = False
    if not written:
        raise RunError(
            f"{str(path)!r} cannot be read as the rest of a sweep: no sweep wrote it. Name another file to resume from."
        )


def digest(parts: Mapping[str, object]) -> str:
    """SHA-256 over names and values; tensors count with all their bytes."""
    found = hashlib.sha256()
    for name, value in sorted(parts.items()):
        found.update(name.encode() + b"\0")
        if isinstance(value, torch.Tensor):
            found.update(str((value.dtype, tuple(value.shape))).encode())
            value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        found.update(value if isinstance(value, bytes) else str(value).encode())
        found.update(b"\0")
    return found.hexdigest()
