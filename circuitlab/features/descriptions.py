"""Descriptions of features: a local export of explanations, searched by words and joined to tables.

Neuronpedia's exports are read as they come: records with `index` and `description` (and `modelId`, `layer`,
`explanationModelName`, ...) as a JSON list, as an object with such a list under `explanations`, or one to a line; any
of them gzipped; or a folder of such files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from circuitlab.arguments import checked
from circuitlab.errors import ConfigError, FormatError, MissingFileError
from circuitlab.files import parse_json, read_text
from circuitlab.result import Result
from circuitlab.summary import Results, plural, short

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Description(Result):
    """A description of a feature, by a person or a model.

    Attributes:
        feature: Its number.
        text: The description.
        model_id: The language model, if the record has it.
        source: The autoencoder, if the record has it (Neuronpedia's `layer`).
        by: Its author, if the record has it.
    """

    feature: int
    text: str
    model_id: str | None = None
    source: str | None = None
    by: str | None = None

    def _summary(self) -> str:
        return f"of feature {self.feature}: {short(self.text, 60)}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Descriptions(Result):
    """Descriptions of an autoencoder's features; a feature may have several.

    Attributes:
        entries: In the order of the file.
    """

    entries: tuple[Description, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def of(self, feature: int) -> str | None:
        """The first description of a feature.

        Returns:
            The text; None where there is none.
        """
        return self._first.get(feature)

    def search(self, words: str, *, whole: bool = False) -> tuple[Description, ...]:
        """Descriptions that hold every one of these words, in the order of the file.

        Args:
            words: One word, or several between spaces; upper and lower case are the same.
            whole: Only as whole words: "name" then does not find "names".

        Returns:
            The descriptions.

        Raises:
            ConfigError: There is no word.
        """
        parts = words.split()
        if not parts:
            raise ConfigError("the search is empty; give a word.")
        around = (r"(?<!\w)", r"(?!\w)") if whole else ("", "")
        patterns = [re.compile(around[0] + re.escape(part) + around[1], re.IGNORECASE) for part in parts]
        return Results(entry for entry in self.entries if all(pattern.search(entry.text) for pattern in patterns))

    def join(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A table with a column `feature`, with a column `description` added; empty where there is none.

        Returns:
            A new table.
        """
        return frame.assign(description=[self.of(int(feature)) or "" for feature in frame["feature"]])

    @cached_property
    def _first(self) -> dict[int, str]:
        return {entry.feature: entry.text for entry in reversed(self.entries)}

    def to_frame(self) -> pd.DataFrame:
        """One row a description: feature, text, model_id, source, by.

        Returns:
            The table.
        """
        return pd.DataFrame([asdict(entry) for entry in self.entries])

    def _summary(self) -> str:
        return f"of {plural(len(self), 'entry')[:-3] + 'ies' if len(self) != 1 else '1 entry'}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        for entry in self.entries[:8]:
            yield str(entry.feature), short(entry.text)


@checked
def load_descriptions(path: str | Path, source: str | None = None) -> Descriptions:
    """Read an export.

    Args:
        path: A file ending in `.json`, `.jsonl`, or one of them with `.gz`, or a folder of such files.
        source: Only descriptions of this autoencoder, by the name in the file (such as "25-gemmascope-res-65k"); needed
            where the file has those of several.

    Returns:
        The descriptions, in the order of the files.

    Raises:
        ConfigError: There is nothing at the path, no such source, or there are several and none is named.
        FormatError: A file is damaged, or holds something else.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise MissingFileError(
            f"there are no descriptions at {str(path)!r}: give a local export, a JSON file or a folder."
        )
    files = sorted(file for file in root.iterdir() if file.name.endswith(SUFFIXES)) if root.is_dir() else [root]
    entries = tuple(_entry(file, number, record) for file in files for number, record in _records(file))
    if not entries:
        raise FormatError(f"{str(path)!r} holds no descriptions; files end in {', '.join(SUFFIXES)}.")
    sources = dict.fromkeys(entry.source for entry in entries)
    if source is None and len(sources) > 1:
        raise ConfigError(f"{str(path)!r} describes {len(sources)} autoencoders; name one: {_few(sources)}.")
    chosen = tuple(entry for entry in entries if source in (None, entry.source))
    if not chosen:
        raise ConfigError(f"{str(path)!r} has no descriptions of {source!r}, but of {_few(sources)}.")
    return Descriptions(entries=chosen)


@checked
def search_descriptions(
    path: str | Path | Descriptions, words: str, *, whole: bool = False, source: str | None = None
) -> tuple[Description, ...]:
    """Features whose descriptions hold every one of these words.

    Args:
        path: An export, or one that is loaded.
        words: One word, or several between spaces; upper and lower case are the same.
        whole: Only as whole words.
        source: Which autoencoder, where the export has several.

    Returns:
        The descriptions found, in the order of the file.

    Raises:
        ConfigError: There is no word, or nothing at the path.
        FormatError: A file is damaged, or holds something else.
    """
    found = path if isinstance(path, Descriptions) else load_descriptions(path, source)
    return found.search(words, whole=whole)


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """The records of a file, with their numbers from 1 on."""
    text, where = read_text(path, "descriptions"), f"descriptions {str(path)!r}"
    if ".jsonl" in path.name:
        lines = enumerate(text.split("\n"), 1)
        records = [parse_json(line, f"{where}, line {number}") for number, line in lines if line.strip()]
    else:
        records = parse_json(text, where)
    if isinstance(records, dict):
        records = records.get("explanations")
    if not isinstance(records, list):
        raise FormatError(
            f"descriptions {str(path)!r} are no list of records with index and description, and no object with one "
            "under 'explanations'."
        )
    return enumerate(records, 1)


def _entry(path: Path, number: int, record: Any) -> Description:
    where = f"descriptions {str(path)!r}, record {number}"
    if not isinstance(record, dict) or "index" not in record or "description" not in record:
        raise FormatError(f"{where}: a record has an index and a description; got {str(record)[:80]!r}.")
    index, text = record["index"], record["description"]
    if isinstance(index, bool) or not re.fullmatch(r"[0-9]{1,18}", str(index)[:40]):
        raise FormatError(f"{where}: index {str(index)[:40]!r} is not the number of a feature.")
    if not isinstance(text, str):
        raise FormatError(f"{where}: description {str(text)[:40]} is not a text.")
    optional = {key: str(record[name]) for key, name in _OPTIONAL.items() if record.get(name) is not None}
    return Description(feature=int(index), text=text.strip(), **optional)


_OPTIONAL = {"model_id": "modelId", "source": "layer", "by": "explanationModelName"}


def _few(sources: dict[str | None, None]) -> str:
    names = [str(name) for name in sources]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
