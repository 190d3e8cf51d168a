"""Run a run folder's manifest again and say, file by file, whether it came out the same."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitlab.discovery.config import DiscoverConfig
from circuitlab.discovery.pipeline import discover
from circuitlab.discovery.run_folder import MANIFEST, REPORT, SCHEMA
from circuitlab.errors import CircuitLabError, RunError
from circuitlab.progress import Progress, silent

# Numbers of another machine or version may differ in the last bits of float32, and a bit more after many layers.
TOLERANCE = 1e-3
DRAWN = (".png", ".svg", ".html")
SAME_BYTES, SAME_NUMBERS, REDRAWN, DIFFERS, MISSING = "same bytes", "same numbers", "redrawn", "differs", "missing"


@dataclass(frozen=True, slots=True)
class FileCheck:
    """How one file came out.

    Attributes:
        name: Path inside the folder.
        status: "same bytes"; "same numbers": equal within `TOLERANCE`, absolute or relative; "redrawn": a picture or
            page with other bytes (another matplotlib, say), whose data are checked in their own files; "differs";
            "missing".
        detail: What differs first.
    """

    name: str
    status: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of running a folder again.

    Attributes:
        files: One check a file.
        same_weights: Whether the model had the same weights.
        tolerance: Of "same numbers".
    """

    files: tuple[FileCheck, ...]
    same_weights: bool
    tolerance: float = TOLERANCE

    @property
    def ok(self) -> bool:
        """Every file that holds data came out with the same bytes or numbers."""
        return all(check.status in (SAME_BYTES, SAME_NUMBERS, REDRAWN) for check in self.files)


def reproduce(folder: str | Path, *, progress: Progress = silent, device: str | None = None) -> Reproduction:
    """Run again what a run folder says it ran.

    Args:
        folder: A run folder; it is read, never changed.
        progress: Called with (step, done, total).
        device: Another device than the manifest's.

    Returns:
        One check per file. The folder's own files are compared, so one that was edited since shows as different.

    Raises:
        RunError: No manifest, a manifest of another schema, or the run cannot be repeated (its task file is gone).
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    config = dict(manifest["config"])
    options, task = config.pop("options"), config.pop("task")
    if (folder / "task.py").is_file():
        task = str(folder / "task.py")
    if device is not None:
        config["device"] = device
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / folder.resolve().name
        try:
            discover(task, **config, **options, out=again, progress=progress)
        except CircuitLabError as error:
            raise RunError(f"run {str(folder)!r} cannot be repeated: {error}") from error
        new_manifest = _manifest(again)
        names = sorted(set(manifest["files"]) | set(new_manifest["files"]))
        checks = tuple(_compare(name, folder / name, again / name) for name in names)
        same_weights = manifest["model"]["weights_sha256"] == new_manifest["model"]["weights_sha256"]
    return Reproduction(checks, same_weights)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise RunError(
            f"{str(folder)!r} is not a run folder: it has no {MANIFEST}. Give the folder that discover wrote."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema, files, weights = manifest["schema"], manifest["files"], manifest["model"]["weights_sha256"]
        if schema == SCHEMA:
            DiscoverConfig(**manifest["config"])
            if not (
                isinstance(files, dict) and isinstance(weights, str) and isinstance(manifest["config"]["options"], dict)
            ):
                raise TypeError("files, weights or options are not what they should be")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{str(path)!r} is damaged: {type(error).__name__}: {error}. Run discover again.") from error
    if schema != SCHEMA:
        raise RunError(f"{str(path)!r} has the schema {schema!r}; this version reads {SCHEMA}.")
    return manifest


def _compare(name: str, old: Path, new: Path) -> FileCheck:
    if not old.is_file() or not new.is_file():
        return FileCheck(name, MISSING, "not in the run folder" if not old.is_file() else "not made again")
    if old.read_bytes() == new.read_bytes():
        return FileCheck(name, SAME_BYTES)
    if old.suffix in DRAWN or name == REPORT:
        return FileCheck(name, REDRAWN, "other bytes; its data are compared in their own files")
    difference = _first_difference(old, new)
    return FileCheck(name, DIFFERS, difference) if difference else FileCheck(name, SAME_NUMBERS)


def _first_difference(old: Path, new: Path) -> str:
    """Where two data files part, numbers taken as equal within the tolerance; empty if nowhere."""
    try:
        pairs = list(zip(_values(old), _values(new), strict=True))
    except (ValueError, json.JSONDecodeError):
        return "other rows or keys"
    for (where, a), (there, b) in pairs:
        if where != there:
            return f"{where} against {there}"
        if isinstance(a, float) and isinstance(b, float):
            if not (math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(a) and math.isnan(b))):
                return f"{where}: {a:.6g} against {b:.6g}"
        elif a != b:
            return f"{where}: {a!r} against {b!r}"
    return ""


def _values(path: Path) -> Iterator[tuple[str, object]]:
    """Every value of a data file with its place."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        yield from _leaves("", json.loads(text))
    elif path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            yield from _leaves(f"line {number}", json.loads(line))
    elif path.suffix == ".csv":
        for number, line in enumerate(text.splitlines(), 1):
            for column, cell in enumerate(line.split(","), 1):
                yield f"line {number}, column {column}", _number(cell)
    else:
        for number, line in enumerate(text.replace("<", "\n<").replace(">", ">\n").splitlines(), 1):
            yield f"part {number}", _number(line)


def _leaves(where: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(f"{where}.{key}".lstrip("."), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(f"{where}[{index}]", item)
    else:
        yield where, value


def _number(text: str) -> object:
    """A whole number as such, which must be met exactly; any other number as a float."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
