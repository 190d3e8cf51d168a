"""Repeat a run from its manifest and compare the files one by one."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from circuitlab import names, plugins
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.errors import CircuitLabError, RunError, UnknownNameError
from circuitlab.files import file_inside
from circuitlab.models.modes import model_function
from circuitlab.outputs.paths import at_home
from circuitlab.outputs.records import read_arrays
from circuitlab.outputs.whole import scratch_folder
from circuitlab.progress import Progress
from circuitlab.result import Result
from circuitlab.runs.manifest import MANIFEST, REPORT, RESULTS, SCORES, read_manifest
from circuitlab.runs.pipeline import discover
from circuitlab.runs.reader import RunReader
from circuitlab.runs.task_files import TaskFile, task_file_of, task_of_run
from circuitlab.summary import Summary, plural

# Numbers of another machine or version may differ in the last bits of float32, and a bit more after many layers: by so
# much of the largest number of their column, for the scores of a large model are all small.
TOLERANCE = 1e-3
# What is taken as zero in any column. A share, a metric or a divergence is made of differences of logits of size 10,
# which float32 resolves to 1e-6; a score is made of products, which keep their digits however small they are.
NOISE, NOISE_OF_SCORES = 1e-6, 1e-12
SCORE = "score"
IN_METRIC = ("clean", "corrupt", "empty", "circuit", "per_example")
# Parts of a manifest that are compared: what has no file of its own, without times, versions and hashes.
COMPARED = ("seed", "dtype", "dataset_fingerprint", "dataset", "model", "behaviour", "method")
# Parts of the model's record that are not compared: another commit may have the same weights, which are compared.
NOT_COMPARED = ("revision", "commit")
OF_TASK = ("name", "label", "version", "settings", "fingerprint")
# Values that folders of earlier versions lack; they are compared where the folder has them.
NEWER = {
    "metric_gap", "metric_gap_se", "causal", "bos_tokens", "bos_ids", "discovery", "n_seen", "selection",
    "edges_never_asked", "steps", "rule",
}  # fmt: skip
# Files that folders of earlier versions lack; they too are compared where the folder has them.
NEWER_FILES = {SCORES, RESULTS}
# Sentences with numbers that are compared themselves; the last digits may differ.
SENTENCES = "warnings"
DRAWN = (".png", ".svg", ".html")
OTHER_ROWS = "other rows or keys"
SAME_BYTES, SAME_NUMBERS, REDRAWN, DIFFERS, MISSING = "same bytes", "same numbers", "redrawn", "differs", "missing"


class Value(NamedTuple):
    """One value of a data file: its place, the column that it belongs to, and the value."""

    where: str
    column: str
    value: object


@dataclass(frozen=True, slots=True, repr=False)
class FileCheck(Summary):
    """How one file came out.

    Attributes:
        name: Path inside the folder.
        status: "same bytes"; "same numbers": equal within `TOLERANCE` of the largest number in their column; "redrawn":
            a picture or page with other bytes (another matplotlib, say), whose data are checked in their own files;
            "differs"; "missing". Of `manifest.json` that is compared which is asked for and drawn: settings,
            fingerprints, name and version of the task, weights; not seconds, versions and hashes.
        detail: What differs first.
    """

    name: str
    status: str
    detail: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Reproduction(Result):
    """The result of repeating a run.

    Attributes:
        files: One check a file.
        same_weights: Whether the model had the same weights.
        tolerance: Of "same numbers", as a share of the largest number in a column.
    """

    files: tuple[FileCheck, ...]
    same_weights: bool
    tolerance: float = TOLERANCE

    @property
    def ok(self) -> bool:
        """Every file that holds data came out with the same bytes or numbers."""
        return all(check.status in (SAME_BYTES, SAME_NUMBERS, REDRAWN) for check in self.files)

    def to_frame(self) -> pd.DataFrame:
        """One row a file: name, status, detail.

        Returns:
            The table.
        """
        return pd.DataFrame([asdict(file) for file in self.files])

    def to_record(self) -> dict[str, Any]:
        """For JSON: whether the run was reproduced, and how each file came out.

        Returns:
            The record.
        """
        return {"ok": self.ok, "same_weights": self.same_weights, "files": [asdict(file) for file in self.files]}

    def _summary(self) -> str:
        return f"of {plural(len(self.files), 'file')}: {'reproduced' if self.ok else 'not reproduced'}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "weights", "the same" if self.same_weights else "others"
        for status in dict.fromkeys(one.status for one in self.files):
            names = [one.name for one in self.files if one.status == status]
            yield status, f"{len(names)}: {', '.join(names)}"


@model_function
def reproduce(
    folder: str | Path,
    *,
    run_code: bool = False,
    progress: Progress | bool | None = None,
    device: str | None = None,
) -> Reproduction:
    """Repeat the run of a run folder.

    Built-in tasks need no permission. The code of a task file runs only with `run_code`, and only the copy inside the
    folder, after its SHA-256 was compared with the manifest's; a path in the manifest is never used.

    Args:
        folder: A run folder; it is read, never changed.
        run_code: Allow the folder's own task file to run. Read it first.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).
        device: Another device than the manifest's.

    Returns:
        One check per file, the manifest's among them. The folder's own files are compared, so one that was edited since
        shows as different.

    Raises:
        RunError: No manifest, a manifest of another schema, the run needs code that is not allowed (the message names
            the file and its SHA-256), or it cannot be repeated.

    Example:
        >>> from circuitlab import reproduce
        >>> reproduce("runs/throw").ok  # doctest: +SKIP
        True
    """
    folder = at_home(folder)
    read = RunReader.open(folder)
    manifest, config = read.manifest, read.config().to_record()
    if objects := config.pop("objects", ()):
        recorded = read.about("config").get("objects", ())
        if missing := ", ".join(f"{name}={config[name]!r}" for name in objects if name not in recorded):
            raise RunError(
                f"run {str(folder)!r} cannot be repeated here: {missing} is of a package that is not installed, or "
                f"cannot be imported, or it is misspelt in {MANIFEST}{_guesses(config)}. Install the package that "
                "lists it (docs/extending.md) or correct the name; `circuitlab methods` and `circuitlab sites` list "
                "what is installed."
            )
        named = ", ".join(f"{name}={config[name]!r}" for name in objects)
        raise RunError(
            f"run {str(folder)!r} cannot be repeated from its folder: {named} was an object of Python, which is not in "
            "the folder. Call discover() with the object again, and compare the folders; or offer it by an entry point "
            "(docs/extending.md) and run discover by its name."
        )
    others = set[str]()  # settings that are not those of the run, and rightly so
    if device is not None:
        config["device"] = device
        others.add("device")
    del config["task"], config["options"]
    with scratch_folder() as scratch:
        again = scratch / folder.resolve().name
        try:
            if task_file_of(folder, manifest) is not None:
                others.add("task")
            discover(task_of_run(folder, manifest, run_code=run_code), **config, out=again, progress=progress)
        except RunError:
            raise
        except CircuitLabError as error:
            raise RunError(f"run {str(folder)!r} cannot be repeated: {error}") from error
        except SystemExit as error:
            raise RunError(
                f"run {str(folder)!r} cannot be repeated: its task file ends the program (exit {error.code!r})."
            ) from error
        new_manifest = read_manifest(again)
        names = sorted(set(manifest["files"]) | set(new_manifest["files"]) - NEWER_FILES)
        checks = tuple(_compare(name, file_inside(folder, name), file_inside(again, name)) for name in names)
        checks += (_compare_manifests(manifest, new_manifest, others),)
        same_weights = manifest["model"]["weights_sha256"] == new_manifest["model"]["weights_sha256"]
    return Reproduction(checks, same_weights)


def _guesses(config: Mapping[str, Any]) -> str:
    """The nearest known names of a method and sites that no installed package has."""
    given = [("methods", names.METHODS, [config["method"]]), ("sites", names.SITES, config["sites"] or ())]
    known = [(name, plugins.described(group, built_in)) for group, built_in, chosen in given for name in chosen]
    found = [UnknownNameError.guess(name, listed) for name, listed in known if name not in listed]
    return next((guess for guess in found if guess), "")


def task_file(folder: str | Path) -> TaskFile | None:
    """The task file that `reproduce(folder, run_code=True)` would run; None for a built-in task. Nothing is run.

    Returns:
        Path and digest of the file, or None.

    Raises:
        RunError: As for `reproduce`.
    """
    folder = at_home(folder)
    return task_file_of(folder, read_manifest(folder))


def _compare(name: str, old: Path | None, new: Path | None) -> FileCheck:
    if old is None or new is None:
        return FileCheck(name, MISSING, "not in the run folder" if old is None else "not made again")
    if old.read_bytes() == new.read_bytes():
        return FileCheck(name, SAME_BYTES)
    if old.suffix in DRAWN or name == REPORT:
        return FileCheck(name, REDRAWN, "other bytes; its data are compared in their own files")
    try:
        difference = _difference(list(_values(old)), list(_values(new)))
    except (ValueError, csv.Error):
        difference = OTHER_ROWS
    return FileCheck(name, DIFFERS, difference) if difference else FileCheck(name, SAME_NUMBERS)


def _compare_manifests(old: Mapping[str, Any], new: Mapping[str, Any], others: set[str]) -> FileCheck:
    """Whether two manifests agree, except for the settings in `others`."""
    if old == new:
        return FileCheck(MANIFEST, SAME_BYTES)
    was, now = (list(_leaves("", "", _compared(manifest, others))) for manifest in (old, new))
    difference = _difference(was, now)
    return FileCheck(MANIFEST, DIFFERS if difference else SAME_NUMBERS, difference or "but for seconds and versions")


def _compared(manifest: Mapping[str, Any], others: set[str]) -> dict[str, Any]:
    task = manifest.get("task")
    return {
        "config": {
            name: value
            for name, value in DiscoverConfig.of_record(manifest["config"]).to_record().items()
            if name not in others
        },
        "task": {name: task.get(name) for name in OF_TASK} if isinstance(task, dict) else task,
        **{name: _without(manifest.get(name), NOT_COMPARED if name == "model" else ()) for name in COMPARED},
    }


def _without(part: Any, names: Sequence[str]) -> Any:
    return {key: value for key, value in part.items() if key not in names} if isinstance(part, dict) else part


def _difference(old: list[Value], new: list[Value]) -> str:
    """Where two lists of values part; empty if nowhere."""
    old, new = ([value for value in values if not value.where.startswith(SENTENCES)] for values in (old, new))
    there = {value.where for value in old}
    new = [value for value in new if value.where in there or not NEWER & set(re.split(r"[.\[]", value.where))]
    if len(old) != len(new):
        return OTHER_ROWS
    # By what was made now: a number that was edited in the folder cannot widen what is allowed to others.
    largest = dict[str, float]()
    for value in new:
        if isinstance(value.value, float) and math.isfinite(value.value):
            largest[value.column] = max(largest.get(value.column, 0.0), abs(value.value))
    for was, now in zip(old, new, strict=True):
        if was.where != now.where:
            return f"{was.where} against {now.where}"
        noise = NOISE_OF_SCORES if now.column.endswith(SCORE) else NOISE
        if not _same(was.value, now.value, max(TOLERANCE * largest.get(now.column, 0.0), noise)):
            shown = (f"{v:.6g}" if isinstance(v, float) else repr(v) for v in (was.value, now.value))
            return f"{was.where}: {' against '.join(shown)}"
    return ""


def _same(a: object, b: object, allowed: float) -> bool:
    """Whether two values are equal, a float and another number within what is allowed."""
    if isinstance(a, float | int) and isinstance(b, float | int) and float in (type(a), type(b)):
        return a == b or abs(a - b) <= allowed or (math.isnan(a) and math.isnan(b))
    return a == b


def _values(path: Path) -> Iterator[Value]:
    """Every value of a data file with its place and the column it belongs to."""
    if path.suffix == ".safetensors":
        yield from _values_of_arrays(path)
        return
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        yield from _leaves("", "", json.loads(text))
    elif path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            yield from _leaves(f"line {number}", "", json.loads(line))
    elif path.suffix == ".csv":
        rows, names = csv.reader(text.splitlines()), list[str]()
        for row in rows:
            names = names or row
            for column, cell in enumerate(row, 1):
                name = names[column - 1] if column <= len(names) else ""
                yield Value(f"line {rows.line_num}, column {column}", name, _number(cell))
    else:
        tag = ""
        for number, line in enumerate(text.replace("<", "\n<").replace(">", ">\n").splitlines(), 1):
            tag = line.strip('<>"') if line.startswith("<") else tag
            yield Value(f"part {number}", tag, _number(line))


def _values_of_arrays(path: Path) -> Iterator[Value]:
    """Every value of a file of arrays; arrays in the metric's unit that belong together make a column."""
    content, arrays = read_arrays(path, "data file")
    yield from _leaves("", "", content)
    for name, array in sorted(arrays.items()):
        part, field = name.rpartition(".")[::2]
        column = f"{part} {SCORE}" if path.name == SCORES else f"{part} metric" if field in IN_METRIC else name
        for number, value in enumerate(array.ravel().tolist()):
            yield Value(f"{name}[{number}]", column, value)


def _leaves(where: str, column: str, value: object) -> Iterator[Value]:
    """Every value inside a value of JSON; those of one name in one part of the file make a column."""
    if isinstance(value, dict):
        for key, item in value.items():
            part = column.partition(".")[0]
            # What is measured in the same unit is one column: a corrupted metric may be nearly 0 by itself.
            name = "metric" if key.startswith("metric_") else key
            yield from _leaves(f"{where}.{key}".lstrip("."), f"{part}.{name}" if part else name, item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(f"{where}[{index}]", column, item)
    else:
        yield Value(where, column, value)


def _number(text: str) -> object:
    """A whole number as such, which must be met exactly; any other number as a float."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
