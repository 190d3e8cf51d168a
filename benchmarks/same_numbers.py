"""Whether another version of the library finds the same: run folders of both, compared number by number.

    python -m benchmarks.same_numbers REVISION [--quick]

makes the folders of `RUNS` with the code of a git revision and with that of this checkout, and compares every number of
their tables. Numbers agree where they differ by at most 1e-6 of the gap between the clean and the corrupted run;
selected edges and texts must be the same. What differs is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = ("gendered-pronouns", "html-tag-closing", "name-throw")
METHODS = ("eap", "eap-ig-activations", "relp", "exact", "acdc")
ABLATIONS = ("corrupt", "zero")
TOLERANCE = 1e-6
# Values in the metric's unit; everything else has none, or is a share of the gap.
IN_METRIC = ("score", "metric_")
# Wall times and paths of the two checkouts.
FREE = frozenset({"seconds", "folder", "command", "versions", "schema", "files", "path"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One `discover` whose folder is compared."""

    task: str
    method: str
    ablation: str

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.task}-{self.method}-{self.ablation}"

    def arguments(self, folder: Path) -> list[str]:
        """Its command line."""
        few = () if self.method == "eap-ig" else ("--no-sweep",)
        return [
            "discover", self.task, "--method", self.method, "--ablation", self.ablation, "-n", "10", *few,
            "--out", str(folder / self.name), "--quiet",
        ]  # fmt: skip


RUNS = tuple(
    [Made(task=task, method="eap-ig", ablation="corrupt") for task in TASKS]
    + [Made(task=t, method=m, ablation=a) for t in TASKS for m in METHODS for a in ABLATIONS]
)


def main(arguments: list[str] | None = None) -> int:
    """Make the folders of both versions, and print what differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_numbers", description=__doc__)
    parser.add_argument("before", help="a git revision, or a folder of run folders that this script made before")
    parser.add_argument("--quick", action="store_true", help="one run a task: eap-ig, with its sweeps")
    parser.add_argument("--keep", type=Path, help="a folder for what the revision makes, to compare with it again")
    asked = parser.parse_args(arguments)
    runs = RUNS[: len(TASKS)] if asked.quick else RUNS
    with tempfile.TemporaryDirectory() as scratch:
        before, after = Path(asked.before), Path(scratch) / "after"
        if not before.is_dir():
            before = asked.keep or Path(scratch) / "before"
            make(runs, before, code_of(asked.before, Path(scratch) / "code"))
        make(runs, after, code_of(None, Path(scratch) / "now"))
        found = [line for run in runs for line in differences(before / run.name, after / run.name)]
    print("\n".join(found) or f"{len(runs)} run folders agree.")
    return 1 if found else 0


def code_of(revision: str | None, place: Path) -> Path:
    """A folder that holds the package `circuitlab` as it was at a revision; of this checkout for None."""
    names = ["circuitlab", "tasks"]
    what = ["git", "archive", revision, *names] if revision else ["tar", "--create", *names]
    packed = subprocess.run(what, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(place, filter="data")
    (place / "tasks").rename(place / "circuitlab" / "tasks")
    return place


def make(runs: tuple[Made, ...], folder: Path, code: Path) -> None:
    """Run `discover` once for each, with the code of a folder; what is there already stays."""
    for run in runs:
        if not (folder / run.name).exists():
            line = [sys.executable, "-c", "import sys; from circuitlab.cli import main; sys.exit(main())"]
            environment = os.environ | {"PYTHONPATH": str(code)}
            subprocess.run([*line, *run.arguments(folder)], check=True, env=environment, stdout=subprocess.DEVNULL)


def differences(before: Path, after: Path) -> Iterator[str]:
    """What the tables of two run folders do not share, one line each."""
    evaluation = json.loads((before / "evaluation.json").read_text())
    gap = abs(evaluation["metric_gap"])
    yield from _compared(
        evaluation, json.loads((after / "evaluation.json").read_text()), f"{before.name}/evaluation.json", gap
    )
    for table in ("edges.csv", *sorted(path.relative_to(before).as_posix() for path in before.glob("sweeps/*.csv"))):
        yield from _compared(_rows(before / table), _rows(after / table), f"{before.name}/{table}", gap)
    for lines in ("dataset.jsonl",):
        if (before / lines).read_bytes() != (after / lines).read_bytes():
            yield f"{before.name}/{lines}: other bytes"


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _compared(before: Any, after: Any, where: str, gap: float) -> Iterator[str]:
    """Differences of two JSON values, depth first."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted((before.keys() | after.keys()) - FREE):
            if name not in before or name not in after:
                yield f"{where}: {name} is {'gone' if name in before else 'new'}"
            else:
                yield from _compared(before[name], after[name], f"{where}: {name}", gap)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _compared(one, other, f"{where}[{place}]", gap)
    elif isinstance(before, float) and isinstance(after, float | int):
        unit = gap if any(name in where for name in IN_METRIC) else 1.0
        if not (math.isnan(before) and math.isnan(after)) and not abs(before - after) <= TOLERANCE * unit:
            yield f"{where}: {before!r}, then {after!r}"
    elif before != after:
        yield f"{where}: {str(before)[:60]!r}, then {str(after)[:60]!r}"


if __name__ == "__main__":
    sys.exit(main())
