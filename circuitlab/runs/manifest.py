"""`manifest.json` as it is read from a run folder; no torch, so that `cite` answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitlab.errors import FileError, FormatError, RunError, shown
from circuitlab.files import file_inside, parse_json, read_text

SCHEMA = "circuitlab.run/1"
MANIFEST, REPORT, DATASET = "manifest.json", "report.html", "dataset.jsonl"
SCORES, RESULTS = "scores.safetensors", "results.safetensors"
# The fields of a metric in a manifest, in addition to its name.
OF_METRIC = (
    "unit", "what", "higher_is_better", "smooth", "natural_zero", "needs_distractor", "needs_reference", "local",
)  # fmt: skip


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder; the run's settings are checked where they are used.

    Returns:
        The content of `manifest.json`.

    Raises:
        RunError: There is none, it is damaged, or of another schema; or a file that it lists has a path that leads out
            of the folder.
    """
    path = file_inside(folder, MANIFEST) if folder.is_dir() else None
    if path is None:
        raise RunError(
            f"{str(folder)!r} is not a run folder: it has no {MANIFEST}. Give the folder that discover wrote."
        )
    try:
        text = read_text(path, "manifest")
    except (FileError, FormatError) as error:
        raise RunError(str(error)) from error
    try:
        manifest = parse_json(text, "it", expected="")
        if not isinstance(manifest, dict):
            raise FormatError(f"it is {shown(manifest)}; it must be a JSON object")
        schema = field_of(manifest, "schema")
        if schema == SCHEMA:
            field_of(manifest, "model.weights_sha256", str)
            for name in field_of(
                manifest, "files", dict
            ):  # before the work: a name that leads out of the folder ends it
                file_inside(folder, name)
    except (FileError, FormatError) as error:
        raise RunError(f"{str(path)!r} is damaged: {str(error).rstrip('. ')}. Run discover again.") from error
    if schema != SCHEMA:
        raise RunError(f"{str(path)!r} has the schema {schema!r}; this version reads {SCHEMA}.")
    return manifest


def field_of(manifest: Mapping[str, Any], path: str, kind: type = object) -> Any:
    """A field of a manifest that has to be there.

    Args:
        manifest: Its content.
        path: The names that lead to the field, such as "model.weights_sha256".
        kind: Its type: `dict`, `str`, or any.

    Returns:
        Its value.

    Raises:
        FormatError: It is missing or of another type; the message names it.

    Example:
        >>> field_of({"model": {"id": "gpt2"}}, "model.id", str)
        'gpt2'
    """
    value: Any = manifest
    names = path.split(".")
    for depth, name in enumerate(names, start=1):
        if name not in value:
            raise FormatError(f"it has no field {'.'.join(names[:depth])!r}")
        value, due = value[name], kind if depth == len(names) else dict
        if not isinstance(value, due):
            what = "null" if value is None else shown(value)
            rule = "a JSON object" if due is dict else "a text"
            raise FormatError(f"its field {'.'.join(names[:depth])!r} is {what}; it must be {rule}")
    return value
