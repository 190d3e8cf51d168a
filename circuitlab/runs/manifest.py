"""`manifest.json` as it is read from a run folder; no torch, so that `cite` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from circuitlab.errors import FileError, FormatError, RunError
from circuitlab.files import file_inside, read_json

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
        manifest = read_json(path, "manifest")
        if not isinstance(manifest, dict):
            raise TypeError("it holds no JSON object")
        schema = manifest["schema"]
        if schema == SCHEMA:
            files, weights = manifest["files"], manifest["model"]["weights_sha256"]
            if not (isinstance(files, dict) and isinstance(weights, str)):
                raise TypeError("files or weights are not what they should be")
            for name in files:  # before the work: a name that leads out of the folder ends it
                file_inside(folder, name)
    except (FileError, FormatError, KeyError, TypeError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error).removesuffix(" Write it again.")
        raise RunError(f"{str(path)!r} is damaged: {what.rstrip('. ')}. Run discover again.") from error
    if schema != SCHEMA:
        raise RunError(f"{str(path)!r} has the schema {schema!r}; this version reads {SCHEMA}.")
    return manifest
