"""The table of pairs that a run folder holds, so that the run can be repeated without the file that it was made of."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitlab.data.prompting import Prompting
from circuitlab.data.tables.options import TableOptions
from circuitlab.data.tables.table import PairTable, record_of, row_of_record
from circuitlab.data.task import Task
from circuitlab.digests import file_sha256
from circuitlab.errors import CircuitLabError, RunError
from circuitlab.files import file_inside, parse_json, read_text
from circuitlab.references import Reference

TABLE = "table.jsonl"


def one_line(record: Mapping[str, Any]) -> str:
    """A record as one line of JSON, also for readers that take Unicode's other line ends for one.

    Returns:
        The line, without its end.
    """
    text = json.dumps(record, ensure_ascii=False)
    return re.sub("[\x85\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def write_table(table: PairTable, folder: Path) -> None:
    """Write every pair of a table, one a line."""
    lines = [one_line(record_of(row)) + "\n" for row in table.rows]
    (folder / TABLE).write_text("".join(lines), encoding="utf-8")


def about_table(table: PairTable) -> dict[str, Any]:
    """What a manifest says about a table: where its pairs are from, and how it was read.

    Returns:
        Plain values by name.
    """
    dropped = Counter(table.dropped)
    dropped.update(one.reason or f"column {one.column!r} {one.rule}" for one in table.bad)
    return {
        "source": table.source, "counted": table.counted, "layout": table.layout, "columns": dict(table.columns),
        "n_rows": len(table.rows), "split_column": table.split_column, "options": table.options.given,
        "dropped": dict(dropped),
    }  # fmt: skip


def is_of_table(manifest: Mapping[str, Any]) -> bool:
    """Whether a run is of a task that is a table.

    Returns:
        Whether it is.
    """
    task = manifest.get("task")
    return isinstance(task, Mapping) and isinstance(task.get("table"), Mapping)


def task_of_table(folder: Path, manifest: Mapping[str, Any]) -> Task:
    """The task of a run of a table, from the pairs in its folder; the file that they come from is not read.

    Args:
        folder: The run folder.
        manifest: What its `manifest.json` holds.

    Returns:
        The task.

    Raises:
        RunError: The table is missing, is not the one that the manifest lists, or is damaged.
    """
    path, listed = file_inside(folder, TABLE), manifest.get("files")
    expected = listed.get(TABLE) if isinstance(listed, Mapping) else None
    if path is None or expected is None:
        lacks = "is not in the folder" if path is None else "is not listed in the manifest"
        raise RunError(f"run {str(folder)!r} is of a table of pairs, but its copy {TABLE} {lacks}. Run discover again.")
    if file_sha256(path) != expected:
        raise RunError(f"{TABLE} in the run folder {str(folder)!r} was changed after the run. Restore the file.")
    try:
        return _task(path, manifest)
    except (CircuitLabError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{TABLE} in the run folder {str(folder)!r} is damaged: {error}. Run discover again.") from error


def _task(path: Path, manifest: Mapping[str, Any]) -> Task:
    about = manifest["task"]
    kept, config = about["table"], manifest["config"]
    lines = read_text(path, "table").split("\n")
    rows = tuple(row_of_record(parse_json(line, f"{TABLE}, line {i}")) for i, line in enumerate(lines, 1) if line)
    given = dict(kept["options"])
    options = TableOptions(
        columns=given.get("columns", {}), max_bad_rows=given.get("max_bad_rows", 0), split=given.get("data_split"),
        config=given.get("data_config"), revision=given.get("data_revision"),
    )  # fmt: skip
    table = PairTable(
        source=kept["source"], counted=kept["counted"], layout=kept["layout"], columns=kept["columns"], rows=rows,
        options=options, split_column=kept["split_column"], dropped=kept["dropped"],
    )  # fmt: skip
    metric = about.get("metric") or manifest["metric"]["name"]
    sources = tuple(Reference(**{**one, "authors": tuple(one["authors"])}) for one in about.get("sources", ()))
    named: dict[str, Any] = {name: about[name] for name in ("version", "summary")}
    if "shot_separator" in about:
        named["prompting"] = Prompting(separator=about["shot_separator"])
    return Task.from_table(table, about["name"], metric=metric, sources=sources, origin=config["task"], **named)
