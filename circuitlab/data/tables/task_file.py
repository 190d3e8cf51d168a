"""CircuitKIT's task files: YAML that names a table, its columns and a metric.

    name: capitals
    source: {type: csv, path: capitals.csv}
    schema: {prompt: question, answer: answer, corrupted: twin, corrupted_answer: wrong}

What the file asks for beside columns, such as corruption by a strategy, is refused with what to do instead. The YAML is
read by a loader that makes plain values only.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuitlab.data.tables.options import TableOptions
from circuitlab.errors import FormatError, TableError, TableWarning, in_one_line, shown
from circuitlab.files import read_text

SUFFIXES = (".yaml", ".yml")
MOST = 2**20  # bytes of such a file
# Their field -> ours.
_FIELDS = {
    "prompt": "clean", "answer": "answer", "corrupted": "corrupt", "corrupted_prompt": "corrupt",
    "corrupted_answer": "distractor", "corrupt_answer": "distractor",
}  # fmt: skip
_PATHS = {"csv": "path", "jsonl": "path", "hf": "dataset_id"}
# What a prompt is made of beside its column; the table has to hold whole prompts.
_PARTS = ("context", "choices")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFile:
    """What a task file says.

    Attributes:
        name: Name of the task.
        source: The table: a path, or the name of a data set on the hub.
        options: How it is read.
    """

    name: str
    source: str
    options: TableOptions


def read_task_file(path: Path, options: TableOptions) -> TaskFile:
    """Read a task file of CircuitKIT.

    Args:
        path: The file. A table that it names is looked for from the working directory, as CircuitKIT does, then from
            the file's folder.
        options: What the user says; it goes before what the file says.

    Returns:
        The table and how it is read.

    Raises:
        TableError: A field is missing or of another form, or asks for what is not read here.
        FileError: The file cannot be read.
        FormatError: It is not YAML.
    """
    import yaml

    where = f"task file {str(path)!r}"
    try:
        found = yaml.safe_load(read_text(path, "task file", most=MOST))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise FormatError(f"{where} is not valid YAML: {in_one_line(error, 160).rstrip('. ')}.") from error
    if not isinstance(found, Mapping) or not {"name", "source", "schema"} <= found.keys():
        raise TableError(f"{where} is no task file of CircuitKIT: it must have name, source and schema.")
    source, schema = (_mapping(found, name, where) for name in ("source", "schema"))
    kind = str(source.get("type", "")).lower()
    if kind not in _PATHS:
        raise TableError(f"{where}: source.type is {shown(source.get('type'))}; it must be csv, jsonl or hf.")
    place = source.get(_PATHS[kind]) or source.get("path_or_id")
    if not isinstance(place, str):
        raise TableError(f"{where}: source.{_PATHS[kind]} is {shown(place)}; it must name the table.")
    if kind != "hf" and not Path(place).exists() and (path.parent / place).exists():
        place = str(path.parent / place)
    columns = _columns(schema, where)
    _refuse_others(found, columns, where)
    split = str(source.get("split", "test")) if kind == "hf" else None
    return TaskFile(
        name=str(found["name"]),
        source=place,
        options=replace(options, columns={**columns, **options.columns}, split=options.split or split),
    )


def _mapping(found: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = found[name]
    if not isinstance(value, Mapping):
        raise TableError(f"{where}: {name} is {shown(value)}; it must be a mapping.")
    return value


def _columns(schema: Mapping[str, Any], where: str) -> dict[str, str]:
    """Our field -> the table's column."""
    columns = dict[str, str]()
    for name, column in schema.items():
        if not isinstance(column, str):
            raise TableError(f"{where}: schema.{name} is {shown(column)}; it must be the name of a column.")
        if name in _PARTS:
            raise TableError(
                f"{where}: schema.{name} is part of the prompt. Write whole prompts into the prompt columns, and leave "
                "it out."
            )
        if name not in _FIELDS:
            raise TableError(f"{where}: schema.{name} is not read. Known: {', '.join(_FIELDS)}.")
        columns[_FIELDS[name]] = column
    return columns


def _refuse_others(found: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    if "corrupt" not in columns:
        raise TableError(
            f"{where} names no column of corrupted prompts. Corruption strategies are not run here: write the prompts "
            "into a column, and name it as schema.corrupted."
        )
    if found.get("prompt_template"):
        raise TableError(
            f"{where} has a prompt_template. Templates are not run here: write whole prompts into a column."
        )
    metric = str(found.get("metric", "logit_diff"))
    if metric != "logit_diff":
        warnings.warn(f"{where} asks for metric {metric!r}: give --metric {metric}.", TableWarning, stacklevel=3)
    if found.get("chat_template_mode") in ("on", True):
        warnings.warn(
            f"{where} asks for a chat template, which is not applied: write it into the prompts.",
            TableWarning,
            stacklevel=3,
        )
