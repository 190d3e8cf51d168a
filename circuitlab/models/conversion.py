"""Checkpoint folders that are made from other files: written whole or not at all, with a record of their source."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from circuitlab.digests import file_sha256
from circuitlab.errors import OutputExistsError
from circuitlab.models.huggingface import no_remote_code
from circuitlab.models.modes import LOADING
from circuitlab.models.quiet import quiet
from circuitlab.outputs.reserve import Rules, reserved
from circuitlab.summary import Summary

RECORD = "conversion.json"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Conversion(Summary):
    """A checkpoint folder that was made from another file.

    Attributes:
        folder: The folder.
        source: Name of the file it was made from.
        sha256: SHA-256 of that file.
        model_type: Type of model, as in config.json.
        n_parameters: Number of weights.
    """

    folder: str
    source: str
    sha256: str
    model_type: str
    n_parameters: int

    def to_record(self) -> dict[str, Any]:
        """For JSON.

        Returns:
            The record.
        """
        return asdict(self)

    def _summary(self) -> str:
        return f"of {self.source}: {self.model_type}, {self.n_parameters:,} parameters, in {self.folder}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "SHA-256", self.sha256


def converted(file: Path, out: str | Path, *, force: bool, write: Callable[[Path], Any]) -> Conversion:
    """Make a checkpoint folder from a file.

    Args:
        file: The file, which is recorded with its digest.
        out: The folder.
        force: Replace a folder that a conversion wrote.
        write: Writes the checkpoint into the folder that it is given, and returns the HuggingFace model.

    Returns:
        What was written.

    Raises:
        OutputExistsError: The folder exists, and was not written by a conversion or `force` is not given.
        ModelError: What `write` raises.
    """
    rules = Rules(force=force, check=_check_free, is_ours=_is_ours)
    with reserved(out, rules, what="model folder", option="OUT") as place:
        with LOADING, quiet(), no_remote_code(), torch.random.fork_rng():
            model = write(place.part)
        found = Conversion(
            folder=str(place.path),
            source=file.name,
            sha256=file_sha256(file),
            model_type=str(model.config.model_type),
            n_parameters=sum(weight.numel() for weight in model.parameters()),
        )
        record = found.to_record() | {name: version(name) for name in ("circuitlab", "transformers")}
        del record["folder"]
        (place.part / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        place.move_into_place()
    return found


def _is_ours(folder: Path) -> bool:
    return (folder / RECORD).is_file() or not any(folder.iterdir())


def _check_free(folder: Path, force: bool) -> None:
    if not os.path.lexists(folder):
        return
    if not force:
        raise OutputExistsError(f"model folder {str(folder)!r} exists. Name another, or replace it with --force.")
    if not folder.is_dir() or folder.is_symlink() or not _is_ours(folder):
        raise OutputExistsError(
            f"model folder {str(folder)!r} was not written by a conversion and is not replaced. Name another."
        )
