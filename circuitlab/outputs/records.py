"""Frozen dataclasses of arrays, numbers and texts as one safetensors file, and back exactly.

Arrays are the file's tensors, named by the fields that lead to them (`evaluation.clean`); everything else is one JSON
text in its metadata. Reading follows the types that the dataclass declares: a value of another type, a field too many
or too few, an array of another dtype or number of axes is refused. Nothing in the file is run.

Fields that take no part in comparisons (`field(compare=False)`) are kept in memory only.

The state of a long job is such a record, so that a job that was stopped goes on from there and gives the same numbers:
which job, a digest of everything that its numbers depend on, and what it keeps. The file of another job is refused,
never overwritten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import jaxtyped

from circuitlab.errors import FormatError, RunError
from circuitlab.files import check_file, parse_json, parsing
from circuitlab.outputs.paths import at_home
from circuitlab.outputs.whole import write_bytes
from circuitlab.parts import Edge

R = TypeVar("R")
EARLIER = "earlier"  # in the metadata of a field: its name in files of earlier versions
RECORD = "record"  # the metadata's only key: with several, safetensors writes them in any order
MOST = 2**32  # bytes of a file


def save_record(path: Path, record: Any, schema: str, what: str) -> None:
    """Write a record; whole, or not at all.

    Args:
        path: The file.
        record: A dataclass; its fields may hold dataclasses, mappings by text, sequences, arrays, numbers, texts, None.
        schema: The schema that is written into the file.
        what: What it is in messages, such as "score file".

    Raises:
        FileError: The operating system refused.
    """
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    content = {"schema": schema, RECORD: _plain(record, "", arrays)}
    write_bytes(path, save(arrays, {RECORD: json.dumps(content, ensure_ascii=False)}), what)


def load_record(path: Path, kind: type[R], schemas: Collection[str], what: str) -> R:
    """Read a record that `save_record` wrote.

    Args:
        path: The file.
        kind: Its dataclass.
        schemas: The schemas that are accepted.
        what: What it is in messages.

    Returns:
        The record.

    Raises:
        MissingFileError: There is no such file.
        FileError: It is no regular file, too large, or cannot be read.
        FormatError: It is no safetensors file, of another schema, or its content is not that of the dataclass.
    """
    content, arrays = read_arrays(path, what)
    if content.get("schema") not in schemas:
        raise FormatError(
            f"{what} {str(path)!r} has the schema {content.get('schema')!r:.80}; this version reads "
            f"{', '.join(schemas)}."
        )
    with parsing(f"{what} {str(path)!r}"):
        return _typed(kind, content.get(RECORD), "", arrays)


def score_file(path: str | Path) -> Path:
    """The path of a file of scores, if it is named as one.

    Returns:
        The path.

    Raises:
        FormatError: The name does not end in `.safetensors`.
    """
    file = at_home(path)
    if file.suffix != ".safetensors":
        raise FormatError(f"scores are saved as .safetensors, not as {file.name!r}. Name the file so.")
    return file


def read_arrays(path: Path, what: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON object and the arrays of a file, whatever record it holds.

    Returns:
        The JSON object, empty where there is none, and the arrays by name.

    Raises:
        CircuitLabError: As `load_record`.
    """
    from safetensors import safe_open

    check_file(path, what, most=MOST)
    with parsing(f"{what} {str(path)!r}"), safe_open(path, "numpy") as file:
        text = (file.metadata() or {}).get(RECORD)
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = {} if text is None else parse_json(text, f"the metadata of {what} {str(path)!r}")
    return (content if isinstance(content, dict) else {}), arrays


def from_plain(kind: type[R], value: Any) -> R:
    """A JSON value as the dataclass that it describes; it holds no arrays.

    Returns:
        The record.

    Raises:
        KeyError, TypeError, ValueError: It describes something else.
    """
    return _typed(kind, value, "", {})


def _kept(kind: Any) -> list[Field[Any]]:
    return [item for item in fields(kind) if item.compare]


def _plain(value: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON; arrays go to `arrays` and are replaced by their names."""
    if isinstance(value, np.ndarray):
        arrays[where] = np.asarray(value, order="C")
        return where
    if isinstance(value, Edge):
        return value.name
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value):
        named = {item.name: getattr(value, item.name) for item in _kept(value)}
        return {name: _plain(one, f"{where}.{name}".lstrip("."), arrays) for name, one in named.items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(one, f"{where}.{name}".lstrip("."), arrays) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, f"{where}.{number}", arrays) for number, one in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which no record holds")


def _typed(kind: Any, value: Any, where: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """A value of JSON as what a dataclass declares."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        return _first([one for one in inner if one is not NoneType], value, where, arrays)
    if is_dataclass(kind) and kind is not Edge:
        return _dataclass(kind, value, where, arrays)
    if _is_array(kind):
        found = arrays[_expect(str, value, where)]
        with jaxtyped("context"):  # axes of the same name in other fields may have other lengths
            fits = isinstance(found, kind)
        if not fits:
            raise TypeError(f"{where} is an array {found.dtype} {found.shape}")
        return found
    if origin is tuple:
        rows = _expect(list, value, where)
        kinds = [inner[0]] * len(rows) if inner[1:] == (...,) else list(inner)
        return tuple(_typed(one, v, f"{where}.{i}", arrays) for i, (one, v) in enumerate(zip(kinds, rows, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        return {k: _typed(inner[1], v, f"{where}.{k}", arrays) for k, v in _expect(dict, value, where).items()}
    if origin is not None and issubclass(origin, Sequence):
        return [_typed(inner[0], v, f"{where}.{i}", arrays) for i, v in enumerate(_expect(list, value, where))]
    if kind is Edge:
        return Edge.parse(_expect(str, value, where))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    return _expect((int, float) if kind is float else kind, value, where)


def _dataclass(kind: Any, value: Any, where: str, arrays: Mapping[str, np.ndarray]) -> Any:
    given: dict[str, Any] = _expect(dict, value, where)
    hints = get_type_hints(kind)
    known = {item.name: item for item in _kept(kind)}
    now: dict[str, str] = {item.metadata[EARLIER]: name for name, item in known.items() if EARLIER in item.metadata}
    if twice := sorted(name for name in given if now.get(name) in given):
        raise KeyError(f"{where or 'the record'} has {twice[0]!r} and {now[twice[0]]!r}, which are the same field")
    given = {now.get(name, name): v for name, v in given.items()}
    if unknown := sorted(set(given) - set(known)):
        raise KeyError(f"{where or 'the record'} has {unknown[0]!r}, which a {kind.__name__} has not")
    optional = {n for n, item in known.items() if item.default is not MISSING or item.default_factory is not MISSING}
    if missing := sorted(set(known) - set(given) - optional):
        raise KeyError(f"{where or 'the record'} lacks {missing[0]!r}")
    return kind(**{name: _typed(hints[name], v, f"{where}.{name}".lstrip("."), arrays) for name, v in given.items()})


def _first(kinds: Sequence[Any], value: Any, where: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value as the first kind that it is of."""
    for kind in kinds[:-1]:
        try:
            return _typed(kind, value, where, arrays)
        except (TypeError, KeyError, ValueError):
            continue
    return _typed(kinds[-1], value, where, arrays)


def _is_array(kind: Any) -> bool:
    return kind is np.ndarray or (
        isinstance(kind, type) and issubclass(getattr(kind, "array_type", object), np.ndarray)
    )


def _expect(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{where or 'the record'} is {value!r:.60}")
    return value


SCHEMA, FILE = "circuitlab.state/1", "file to resume from"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What a job keeps.

    Attributes:
        job: What is done, such as "sweep".
        key: Digest of everything that the numbers depend on.
        numbers: Whole numbers by name.
        arrays: Arrays by name.
    """

    job: str
    key: str
    numbers: Mapping[str, int]
    arrays: Mapping[str, np.ndarray]


def save_state(path: Path, state: State) -> None:
    """Write the state of a job, whole or not at all.

    Raises:
        FileError: The operating system refused.
    """
    save_record(path, state, SCHEMA, FILE)


def resume(path: str | Path, job: str, key: str | None, take: Callable[[State], object] = lambda state: None) -> None:
    """Take over the state that a file keeps; a file that does not exist yet is not an error.

    Args:
        path: The file.
        job: What is done, such as "sweep".
        key: Digest of everything that the numbers depend on; None to check the kind of job only.
        take: Takes the state over; whatever it raises means that the file is damaged.

    Raises:
        FileError: It cannot be read.
        RunError: It is of another job, damaged, or no such file.
    """
    if not os.path.lexists(path):
        return
    try:
        state = load_record(Path(path), State, (SCHEMA,), FILE)
        if state.job != job or key not in (None, state.key):
            raise RunError(
                f"{str(path)!r} keeps another {job} (other model, prompts, sites or settings). Give another path, or "
                "remove the file."
            )
        with parsing(f"{FILE} {str(path)!r}"):
            take(state)
    except FormatError as error:
        why = str(error).removeprefix(f"{FILE} {str(path)!r} ").removesuffix(" Write it again.").rstrip(". ")
        raise RunError(
            f"{str(path)!r} cannot be read as the rest of a {job}: it {why}. Name another file, or remove it if a "
            f"{job} wrote it."
        ) from error
