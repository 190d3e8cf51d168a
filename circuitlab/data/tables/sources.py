"""Where a table comes from: a file, a folder of files, a saved data set, the hub, or an object in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuitlab.data.network import offline_without_network
from circuitlab.data.tables.options import TableOptions
from circuitlab.data.tables.readers import SUFFIXES, RawTable, of_records, read_file, suffix_of
from circuitlab.data.tables.task_file import SUFFIXES as TASK_FILES
from circuitlab.errors import TableError, UnknownNameError, in_one_line

# `owner/name`, as data sets on the hub are called.
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# The split in the name of a file: `train.csv`, `data/train-00000-of-00001.parquet`, `ioi_test.jsonl`.
_SPLIT_NAME = re.compile(
    r"(?:^|[^a-z])(train(?:ing)?|test|validation|valid|val|dev|discovery|held[_-]?out|reference)(?:[^a-z]|$)"
)
_SAVED = ("dataset_dict.json", "state.json")


def is_table(text: str) -> bool:
    """Whether a task is spelt as a table: by a file name of a table, a folder, or the name of a data set on the hub.

    Args:
        text: What is given as a task.

    Returns:
        Whether it is.

    Example:
        >>> is_table("pairs.csv"), is_table("ioi"), is_table("mine.py"), is_table("mib-bench/ioi")
        (True, False, False, True)
    """
    path = Path(text)
    if path.suffix == ".py":
        return False
    return (
        suffix_of(path) in (*SUFFIXES, *TASK_FILES)
        or is_data_folder(path)
        or (_HUB_ID.fullmatch(text) is not None and not os.path.lexists(path))
    )


def is_data_folder(path: Path) -> bool:
    """Whether a path is a folder with tables in it.

    Returns:
        Whether it is.
    """
    return os.path.isdir(path) and any(map(_holds_data, (path, *_folders_in(path))))


def read_source(text: str, options: TableOptions) -> tuple[RawTable, ...]:
    """Read a file, folder or data set of the hub.

    Args:
        text: Its path or name.
        options: Split, configuration and revision of a data set.

    Returns:
        One table a split; one without a name of a split where there are none.

    Raises:
        TableError: There are no rows, no such split or configuration, or the hub cannot be reached.
        FileError: A file cannot be read.
        FormatError: A file is damaged.
    """
    path = Path(text)
    if path.is_dir():
        refuse(text, options, "revision")
        return _of_folder(path, options)
    if suffix_of(path) in SUFFIXES:
        refuse(text, options, "config", "revision")
        return _chosen(read_file(path), options.split, text)
    return _of_hub(text, options)


def of_object(frame: Any) -> tuple[RawTable, ...]:
    """The rows of a data frame (pandas, polars), an Arrow table, a `datasets` data set, or a list of mappings.

    Args:
        frame: The object.

    Returns:
        One table; of a dictionary of data sets, one a split.

    Raises:
        TableError: It is none of these, has no rows, or a column twice.
    """
    if isinstance(frame, dict) and frame and all(hasattr(part, "to_list") for part in frame.values()):
        return tuple(replace(of_object(part)[0], split=str(name)) for name, part in frame.items())
    table: Any = frame
    if hasattr(frame, "columns") and hasattr(frame, "to_dict") and hasattr(frame, "iloc"):
        names = [str(name) for name in table.columns]
        if twice := [name for name in names if names.count(name) > 1]:
            raise TableError(f"the data frame has the column {twice[0]!r} twice. Rename one.")
        records = [
            dict(zip(names, row, strict=True)) for row in table.astype(object).itertuples(index=False, name=None)
        ]
        return (of_records("the data frame", records),)
    for method in ("to_dicts", "to_pylist", "to_list"):
        if hasattr(frame, method):
            return (of_records("the data frame", getattr(frame, method)()),)
    if isinstance(frame, list | tuple):
        return (of_records("the list", list(frame)),)
    raise TableError(f"a frame of type {type(frame).__name__} is no table. Give a data frame or a list of dicts.")


def refuse(text: str, options: TableOptions, *names: str) -> None:
    """Refuse options that have no meaning for a source.

    Raises:
        TableError: One is given.
    """
    for name in names:
        if getattr(options, name) is not None:
            raise TableError(f"data_{name} goes with data sets; {text!r} has no {name}. Leave it out.")


def _chosen(tables: Sequence[RawTable], split: str | None, text: str) -> tuple[RawTable, ...]:
    """All tables, or those of one split, whose rows are then of no split."""
    if split is None:
        return tuple(tables)
    there = [table.split for table in tables if table.split]
    if split not in there:
        raise UnknownNameError.of("split", split, list(dict.fromkeys(there)) or ["(none)"], owner=f"{text!r}")
    return tuple(replace(table, split="") for table in tables if table.split == split)


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED)


def _holds_data(folder: Path) -> bool:
    return _is_saved(folder) or bool(_files_in(folder) or _files_in(folder / "data"))


def _files_in(folder: Path) -> list[Path]:
    """The tables in a folder; `dataset_infos.json` and the like describe them."""
    if not folder.is_dir():
        return []
    return sorted(
        one
        for one in folder.iterdir()
        if one.is_file() and suffix_of(one) in SUFFIXES and not re.match(r"dataset_|state\.|README|\.", one.name)
    )


def _folders_in(folder: Path) -> list[Path]:
    return sorted(
        one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".") and one.name != "data"
    )


def _of_folder(folder: Path, options: TableOptions) -> tuple[RawTable, ...]:
    """Files by split, or a data set that `datasets` saved; a configuration is a folder inside."""
    place = folder
    configs = [one.name for one in _folders_in(folder) if _holds_data(one)]
    if options.config is not None:
        if options.config not in configs:
            raise UnknownNameError.of("configuration", options.config, configs or ["(none)"], owner=repr(str(folder)))
        place = folder / options.config
    if _is_saved(place):
        return _chosen(_saved(place), options.split, str(folder))
    found = _files_in(place) or _files_in(place / "data")
    if not found:
        if len(configs) == 1 and options.config is None:
            return _of_folder(folder, replace(options, config=configs[0]))
        which = f"several configurations: {', '.join(configs)}. Give data_config= (--data-config)." if configs else (
            f"no tables. Files of a data set end in {', '.join(SUFFIXES)}."
        )  # fmt: skip
        raise TableError(f"the folder {str(folder)!r} has {which}")
    tables = []
    for path in found:
        named = _SPLIT_NAME.search(path.name.lower())
        if len(found) > 1 and named is None:
            raise TableError(
                f"the folder {str(folder)!r} has {len(found)} tables, and the name of {path.name!r} has no split in it "
                "(train, validation, test). Give one file, or name them by split."
            )
        tables += [replace(one, split=one.split or (named[1] if named else "")) for one in read_file(path)]
    alone = len({one.split for one in tables}) == 1 and options.split is None
    return tuple(replace(one, split="") for one in tables) if alone else _chosen(tables, options.split, str(folder))


def _saved(folder: Path) -> tuple[RawTable, ...]:
    """A data set in the form of `save_to_disk`."""
    import datasets

    try:
        return _of_dataset(datasets.load_from_disk(str(folder)), str(folder))
    except TableError:
        raise
    except Exception as error:  # whatever datasets and Arrow raise on a damaged folder
        raise TableError(
            f"the data set {str(folder)!r} cannot be read: {in_one_line(error, 160)}. Save it again."
        ) from error


def _of_dataset(found: Any, source: str) -> tuple[RawTable, ...]:
    if isinstance(found, dict):
        return tuple(of_records(source, part.to_list(), split=str(name)) for name, part in found.items())
    return (of_records(source, found.to_list()),)


@contextmanager
def _no_bars() -> Iterator[None]:
    """No progress bars of `datasets`; whether there are any is as before afterwards."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _of_hub(name: str, options: TableOptions) -> tuple[RawTable, ...]:
    """A data set on the hub, from the network or the cache. `datasets` from version 4 on runs no code of it."""
    import datasets

    try:
        with offline_without_network(), _no_bars():
            found = datasets.load_dataset(name, options.config, split=options.split, revision=options.revision)
    except Exception as error:  # whatever datasets and the hub's client raise
        raise TableError(
            f"{name!r} is no file or folder here, and it cannot be fetched as a data set of the hub "
            f"({in_one_line(error, 120)}). Check the name; without a network, give the folder of a copy, which "
            "load_dataset(...).save_to_disk(FOLDER) writes where there is one."
        ) from error
    return _of_dataset(found, name)
