"""The one reader of run folders: every file is read from inside the folder, within bounds, and as its run wrote it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from circuitlab.digests import file_sha256
from circuitlab.errors import CircuitLabError, FormatError, MissingFileError, RunError, UnknownNameError
from circuitlab.files import file_inside, files_inside, parse_json, read_bytes, read_text
from circuitlab.graphs.circuit import Circuit, load_circuit
from circuitlab.outputs.paths import at_home
from circuitlab.parts import Edge, Layout, ModelSpec
from circuitlab.runs.manifest import DATASET, MANIFEST, REPORT, RESULTS, SCORES, field_of, read_manifest

if TYPE_CHECKING:  # these bring torch, which the report does without
    from circuitlab.discovery.config import DiscoverConfig
    from circuitlab.discovery.scores import EdgeScores
    from circuitlab.runs.record import Results

T = TypeVar("T")
NOTHING = [0, 0]  # characters around the prompts of a pair
EDGES, CIRCUIT, EVALUATION = "edges.csv", "circuit.json", "evaluation.json"


def damaged(folder: Path, name: str, what: str) -> RunError:
    """The error for a file of a run folder that cannot be used.

    Returns:
        The error, to be raised.
    """
    return RunError(
        f"{name} in the run folder {str(folder)!r} is damaged: {what.rstrip('. ')}. Restore the file, or make the run "
        f"again with `circuitlab discover ... --out {folder} --force`."
    )


def read_circuit(path: str | Path, spec: ModelSpec | None = None) -> Circuit:
    """The circuit of a run folder, or of a circuit file of any format that is read.

    Args:
        path: The folder or the file; `~` is the home folder.
        spec: As in `load_circuit`.

    Returns:
        The circuit.

    Raises:
        RunError: A run folder whose circuit is missing, damaged, or was changed after the run.
        FormatError: A file that `load_circuit` refuses.
    """
    folder = at_home(path)
    return RunReader.open(folder).circuit(spec) if (folder / MANIFEST).is_file() else load_circuit(folder, spec)


def named_circuit(path: str | Path) -> Circuit | None:
    """The circuit of a run folder, or of a circuit file that names its model. Called before a model is loaded.

    Returns:
        The circuit, or None for a file that does not name its model.

    Returns:
        Whether a model has to be given.

    Raises:
        CircuitLabError: As `read_circuit`, for any other reason.
    """
    try:
        return read_circuit(path)
    except FormatError as error:
        if "does not say of which model" in str(error):
            return None
        raise


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunReader:
    """A run folder that is open for reading.

    Attributes:
        path: Where it is.
        manifest: What ran.
        hashed: SHA-256 of files by name, each computed once.
    """

    path: Path
    manifest: Mapping[str, Any]
    hashed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path, hashed: Mapping[str, str] | None = None) -> RunReader:
        """The folder, its manifest read.

        Args:
            folder: Where it is.
            hashed: SHA-256 of files that were just written, by name.

        Returns:
            The reader.

        Raises:
            RunError: It is no run folder, or its manifest is damaged or of another schema.
        """
        path = at_home(folder)
        return cls(path=path, manifest=read_manifest(path), hashed=dict(hashed or {}))

    def about(self, part: str) -> Mapping[str, Any]:
        """A part of the manifest that is a mapping ("task", "model", "config", ...); empty where it is absent.

        Returns:
            The mapping.
        """
        value = self.manifest.get(part)
        return value if isinstance(value, Mapping) else {}

    def damaged(self, name: str, what: object) -> RunError:
        """The error for a file that cannot be used: which, why, and what to do.

        Returns:
            The error, to be raised.
        """
        return damaged(self.path, name, str(what))

    def find(self, name: str) -> Path | None:
        """A file, if it is there; its content is what the manifest lists.

        Returns:
            The path, or None.

        Raises:
            RunError: It was changed after the run, is listed and not there, or leads out of the folder.
        """
        path, listed = file_inside(self.path, name), self.manifest["files"].get(name)
        if path is None and listed is not None:
            raise self._missing(name)
        if path is not None and listed is not None and (found := self._sha256(name, path)) != listed:
            what = f"its SHA-256 is {found[:12]}, the manifest says {str(listed)[:12]}"
            raise self.damaged(name, f"{what}: it was changed after the run")
        return path

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file but manifest and report; those that the manifest lists are there and unchanged.

        Returns:
            Digests by name.

        Raises:
            RunError: One is not, or leads out of the folder.
        """
        there = files_inside(self.path)
        for name in sorted({*self.manifest["files"]} - {REPORT, MANIFEST}):
            self.find(name)
        kept = {name: path for name, path in there.items() if not path.name.startswith(".")}
        return {name: self._sha256(name, path) for name, path in kept.items() if name not in (REPORT, MANIFEST)}

    def _sha256(self, name: str, path: Path) -> str:
        if name not in self.hashed:
            self.hashed[name] = file_sha256(path)
        return self.hashed[name]

    def bytes(self, name: str) -> bytes | None:
        """The content of a file; None where there is none.

        Returns:
            The content, or None.
        """
        path = self.find(name)
        return None if path is None else self._read(name, lambda: read_bytes(path, "file"))

    def text(self, name: str) -> str:
        """The text of a file.

        Returns:
            The text.

        Raises:
            RunError: It is missing or damaged.
        """
        path = self.find(name) or self.path / name
        return self._read(name, lambda: read_text(path, "file"))

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object of a file.

        Returns:
            The object.

        Raises:
            RunError: It is missing or damaged.
        """
        text = self.text(name)
        value = self._read(name, lambda: parse_json(text, "it", expected=""))
        if not isinstance(value, dict):
            raise self.damaged(name, "it holds no JSON object")
        return value

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a table, every cell as it is written.

        Returns:
            One mapping a row, by column.

        Raises:
            RunError: It is missing or damaged.
        """
        try:
            return list(csv.DictReader(io.StringIO(self.text(name), newline="")))
        except csv.Error as error:
            raise self.damaged(name, f"it is no table ({error})") from error

    def config(self) -> DiscoverConfig:
        """The settings of the run.

        Returns:
            The settings.

        Raises:
            RunError: They are not those of a run.
        """
        from circuitlab.discovery.config import DiscoverConfig

        try:
            for name, kind in (("config.task", str), ("config.options", dict)):
                field_of(self.manifest, name, kind)
            return DiscoverConfig.of_record(self.manifest["config"])
        except (CircuitLabError, TypeError, AttributeError) as error:
            what = str(error) if isinstance(error, FormatError) else f"its field 'config' cannot be used: {error}"
            path = str(self.path / MANIFEST)
            raise RunError(f"{path!r} is damaged: {what.rstrip('. ')}. Run discover again.") from error

    def pairs(self) -> tuple[Mapping[str, Any], ...]:
        """The lines of the data set; each has the texts `clean` and `corrupt`, or None for the second, and a `split`.

        Returns:
            One record a pair.

        Raises:
            RunError: It is missing or damaged.
        """
        found = []
        for i, line in enumerate(self.text(DATASET).splitlines(), start=1):
            try:
                pair = parse_json(line, "it")
                texts = pair["clean"], pair["corrupt"] or "", pair["split"]
            except (FormatError, KeyError, TypeError) as error:
                raise self.damaged(DATASET, f"line {i} is no pair ({type(error).__name__}: {error})") from error
            if not all(isinstance(text, str) for text in texts):
                raise self.damaged(DATASET, f"line {i} holds prompts that are no text")
            around = pair.get("around", NOTHING)
            if not (isinstance(around, list) and [type(n) for n in around] == [int, int]):
                raise self.damaged(DATASET, f"line {i} holds {around!r} as 'around'; it must be two numbers")
            found.append(pair)
        return tuple(found)

    def discovery_texts(self) -> frozenset[str]:
        """Every prompt, clean and corrupted, that the run was found on, without the text around it.

        Returns:
            The texts.

        Raises:
            RunError: The folder does not keep its data set, or keeps it damaged.
        """
        found = (pair for pair in self.pairs() if pair["split"] == "discovery")
        return frozenset(prompt for pair in found for prompt in _prompts(pair))

    def circuit(self, spec: ModelSpec | None = None) -> Circuit:
        """The circuit.

        Returns:
            The circuit.

        Raises:
            RunError: It is missing or damaged, or of a model of another shape.
        """
        path = self.find(CIRCUIT) or self.path / CIRCUIT
        found = self._read(CIRCUIT, lambda: load_circuit(path, spec))
        graph = None if found.node_effects else self.find("circuit.graphml")
        if graph is None:
            return found
        # Versions before 0.2 wrote the effects of nodes into the drawing's file alone.
        effects = self._read(graph.name, lambda: load_circuit(graph, found.spec)).node_effects
        return found.with_node_effects(effects)

    def edge_table(self, layout: Layout) -> Circuit:
        """The table of all edges.

        Returns:
            Scores and kept edges.

        Raises:
            RunError: It is missing or damaged.
        """
        try:
            rows = self.rows(EDGES)
            at = tuple(
                zip(*(layout.edge_index(Edge.parse(f"{r['source']}->{r['target']}")) for r in rows), strict=True)
            )
            shape = (len(layout.writers), len(layout.readers))
            mask, scores, second = np.zeros(shape, dtype=bool), np.zeros(shape), None
            mask[at] = [row["in_circuit"].lower() in ("true", "1", "1.0") for row in rows]
            scores[at] = [float(row["score"] or "nan") for row in rows]
            if "second_score" in rows[0]:
                second = np.full(shape, np.nan)
                second[at] = [float(row["second_score"] or "nan") for row in rows]
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, UnknownNameError) as error:
            what = f"it is no table with the columns source, target, score, in_circuit ({type(error).__name__}: "
            raise self.damaged(EDGES, f"{what}{error})") from error
        return Circuit(spec=layout.spec, mask=mask, scores=scores, second_scores=second)

    def sweeps(self) -> tuple[str, ...]:
        """Names of the tables of sweeps.

        Returns:
            Names such as `sweeps/head_z.csv`.
        """
        return tuple(name for name in files_inside(self.path) if re.fullmatch(r"sweeps/[^/]*\.csv", name))

    def scores(self) -> EdgeScores | None:
        """The scores of every edge; None in a folder of an earlier version.

        Returns:
            The scores, or None.
        """
        from circuitlab.discovery.scores import load_scores

        path = self.find(SCORES)
        return None if path is None else self._read(SCORES, lambda: load_scores(path))

    def results(self) -> Results | None:
        """Behaviour, sweeps, evaluation and whatever else was measured; None in a folder of an earlier version.

        Returns:
            The results, or None.
        """
        from circuitlab.outputs.records import load_record
        from circuitlab.runs.record import RESULTS_SCHEMA, Results

        path = self.find(RESULTS)
        if path is None:
            return None
        return self._read(RESULTS, lambda: load_record(path, Results, (RESULTS_SCHEMA,), "results"))

    def _missing(self, name: str) -> RunError:
        return RunError(
            f"{name} is missing in the run folder {str(self.path)!r}. Restore the file, or make the run again with "
            f"`circuitlab discover ... --out {self.path} --force`."
        )

    def _read(self, name: str, read: Any) -> Any:
        """What a reader gives; what it refuses is damage of this file."""
        try:
            return read()
        except MissingFileError:
            raise self._missing(name) from None
        except RunError:
            raise
        except CircuitLabError as error:
            raise self.damaged(name, error) from error


def _prompts(pair: Mapping[str, Any]) -> Iterator[str]:
    """The prompts of a pair of `dataset.jsonl`, without the text around them."""
    before, after = pair.get("around", NOTHING)
    for text in (pair["clean"], pair["corrupt"]):
        if text is not None:
            yield text[before : len(text) - after]
