"""A run folder, read and checked: everything that the report is made of, and an error for whatever is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from circuitlab.data.run_files import file_inside, files_inside
from circuitlab.errors import FileError, FormatError, GraphError, MissingFileError, RunError, UnknownNameError
from circuitlab.files import parse_json, path_from_here, read_bytes, read_text
from circuitlab.parts import Edge
from circuitlab.report.attention_data import AttentionData
from circuitlab.report.pictures import checked_png
from circuitlab.viz import SITES, DrawnEdge, DrawnNode, LabelledGrid, grid_from_frame, read_sweep

REPORT = "report.html"
# What the page says about itself would change it; and the manifest cannot hold its own hash.
_UNHASHED = (REPORT, "manifest.json")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sweep:
    """One swept site.

    Attributes:
        site: Which site.
        frame: The table.
        grid: The table as a grid.
        png: The heatmap in the folder; None if there is none.
    """

    site: str
    frame: pd.DataFrame
    grid: LabelledGrid
    png: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repeated:
    """The discovery done again on other prompts.

    Attributes:
        numbers: What came of it.
        png: Its drawing, or None.
    """

    numbers: Mapping[str, Any]
    png: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunFolder:
    """What a run left behind.

    Attributes:
        path: The folder.
        name: The folder's path in the commands that the page shows.
        manifest: What ran.
        pairs: The lines of `dataset.jsonl`.
        sweeps: Every table in `sweeps/`, in the order in which a layer computes the sites.
        nodes: Nodes of the circuit.
        edges: Edges of the circuit.
        n_nodes_total: Nodes of the whole graph.
        evaluation: The numbers on held-out pairs.
        drawing: `circuit.svg`, or None.
        files: Name -> SHA-256 of every file but the report and the manifest.
        repeated: The discovery done again, on resamples or over seeds, where it was asked for.
        attention: Where the circuit's strongest heads look on one prompt, or None.
        attention_png: Its picture, or None.
    """

    path: Path
    name: str
    manifest: Mapping[str, Any]
    pairs: tuple[Mapping[str, Any], ...]
    sweeps: tuple[Sweep, ...]
    nodes: tuple[DrawnNode, ...]
    edges: tuple[DrawnEdge, ...]
    n_nodes_total: int
    evaluation: Mapping[str, Any]
    drawing: str | None
    files: Mapping[str, str]
    repeated: tuple[Repeated, ...] = ()
    attention: AttentionData | None = None
    attention_png: bytes | None = None

    def about(self, part: str) -> Mapping[str, Any]:
        """A part of the manifest that is a mapping ("task", "model", "config", ...); empty where it is absent."""
        value = self.manifest.get(part)
        return value if isinstance(value, Mapping) else {}


def read_run(folder: str | Path, name: str | None = None) -> RunFolder:
    """Read a run folder.

    Args:
        folder: Where it is.
        name: The path that the commands on the page give it; by default its path from the working folder.

    Returns:
        Its contents.

    Raises:
        RunError: It is no run folder, a file is missing or damaged, or is not the one that the run wrote; the message
            names the file and what to do.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RunError(f"there is no run folder {str(path)!r}. Make one with: circuitlab discover TASK --out {path}")
    manifest = _json(path, "manifest.json")
    for part, key in (("task", "name"), ("model", "id")):
        if not isinstance(manifest.get(part), dict) or not manifest[part].get(key):
            raise damaged(path, "manifest.json", f"it does not name its {part} ({part}.{key})")
    files = _hashed(path, manifest, files_inside(path))
    circuit, evaluation = _json(path, "circuit.json"), _evaluation(path)
    edges, nodes, total = _circuit(path, circuit, _edge_table(path))
    drawing = path / "circuit.svg"
    return RunFolder(
        path=path,
        name=name or path_from_here(path),
        manifest=manifest,
        pairs=_pairs(path),
        sweeps=_sweeps(path),
        nodes=nodes,
        edges=edges,
        n_nodes_total=total,
        evaluation=evaluation,
        drawing=_text(path, "circuit.svg") if drawing.is_file() else None,
        files=files,
        repeated=tuple(_repeated(path)),
        attention=_attention(path),
        attention_png=_png(path, "attention.png"),
    )


def _repeated(folder: Path) -> Iterator[Repeated]:
    for name in ("stability", "stability-seeds"):
        if (folder / f"{name}.json").is_file():
            yield Repeated(numbers=_json(folder, f"{name}.json"), png=_png(folder, f"{name}.png"))


def _png(folder: Path, name: str) -> bytes | None:
    """A picture; None where there is none."""
    path = folder / name
    if not path.is_file():
        return None
    png = read_bytes(path, "picture")
    try:
        return checked_png(png)
    except FormatError as error:
        raise damaged(folder, name, str(error)) from error


def _attention(folder: Path) -> AttentionData | None:
    if not (folder / "attention.json").is_file():
        return None
    try:
        return AttentionData.of(_json(folder, "attention.json"))
    except FormatError as error:
        raise damaged(folder, "attention.json", str(error).rstrip(".")) from error


def damaged(folder: Path, name: str, what: str) -> RunError:
    """The error for a file that cannot be used: which, why, and what to do."""
    return RunError(
        f"{name} in the run folder {str(folder)!r} is damaged: {what}. Restore the file, or make the run again with "
        f"`circuitlab discover ... --out {folder} --force`."
    )


def _text(folder: Path, name: str) -> str:
    try:
        return read_text(folder / name, "file")
    except MissingFileError:
        raise RunError(
            f"{name} is missing in the run folder {str(folder)!r}. Restore the file, or make the run again with "
            f"`circuitlab discover ... --out {folder} --force`."
        ) from None
    except (FileError, FormatError) as error:
        raise damaged(folder, name, str(error).rstrip(".")) from error


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = parse_json(_text(folder, name), "it", expected="")
    except FormatError as error:
        raise damaged(folder, name, str(error).rstrip(". ")) from error
    if not isinstance(value, dict):
        raise damaged(folder, name, "it holds no JSON object")
    return value


def _hashed(folder: Path, manifest: Mapping[str, Any], there: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of every file that is there; those that the manifest lists must be there and be the same."""
    found = dict[str, str]()
    for name, path in there.items():
        if not path.name.startswith("."):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    listed = manifest.get("files")
    for name, expected in sorted(listed.items()) if isinstance(listed, dict) else ():
        if name in _UNHASHED:
            continue
        if name not in found:
            file_inside(folder, name)  # a name that leads out of the folder is not looked for
            _text(folder, name)
        elif found[name] != expected:
            what = f"its SHA-256 is {found[name][:12]}, the manifest says {str(expected)[:12]}"
            raise damaged(folder, name, f"{what}: it was changed after the run")
    return {name: digest for name, digest in found.items() if name not in _UNHASHED}


def _evaluation(folder: Path) -> dict[str, Any]:
    """The evaluation, with the numbers that the page cannot do without."""
    evaluation = _json(folder, "evaluation.json")
    for name, kinds in (("n_edges", int), ("n_edges_total", int | None), ("faithfulness", int | float | None)):
        if not isinstance(evaluation.get(name), kinds) or (name not in evaluation and name != "n_edges_total"):
            raise damaged(folder, "evaluation.json", f"{name!r} is {evaluation.get(name)!r}, which is no number")
    return evaluation


def _pairs(folder: Path) -> tuple[Mapping[str, Any], ...]:
    pairs = []
    for i, line in enumerate(_text(folder, "dataset.jsonl").splitlines(), start=1):
        try:
            pair = parse_json(line, "it")
            clean, corrupt = pair["clean"], pair["corrupt"]
        except (FormatError, KeyError, TypeError) as error:
            raise damaged(folder, "dataset.jsonl", f"line {i} is no pair ({type(error).__name__}: {error})") from error
        if not isinstance(clean, str) or not isinstance(corrupt, str):
            raise damaged(folder, "dataset.jsonl", f"line {i} holds prompts that are no text")
        pairs.append(pair)
    return tuple(pairs)


def _sweeps(folder: Path) -> tuple[Sweep, ...]:
    sweeps = []
    for table in sorted((folder / "sweeps").glob("*.csv")):
        try:
            frame = read_sweep(table)
            grid = grid_from_frame(frame)
        except FormatError as error:
            raise damaged(folder, f"sweeps/{table.name}", str(error)) from error
        png = _png(folder, f"sweeps/{table.stem}.png")
        sweeps.append(Sweep(site=str(frame["site"].iloc[0]), frame=frame, grid=grid, png=png))
    return tuple(sorted(sweeps, key=lambda sweep: SITES.index(sweep.site) if sweep.site in SITES else len(SITES)))


def _edge_table(folder: Path) -> dict[str, float]:
    """Score of every edge that `edges.csv` says is in the circuit, by full edge name."""
    _text(folder, "edges.csv")
    try:
        frame = pd.read_csv(folder / "edges.csv")
        kept = frame[frame["in_circuit"].astype(str).str.lower().isin(("true", "1", "1.0"))]
        slots = list(kept["slot"]) if "slot" in kept.columns else [None] * len(kept)
        names = [
            f"{source}->{target}" + (f"<{slot}>" if isinstance(slot, str) and slot and "<" not in target else "")
            for source, target, slot in zip(kept["source"], kept["target"], slots, strict=True)
        ]
        return dict(zip(names, map(float, kept["score"]), strict=True))
    except (KeyError, ValueError, TypeError) as error:
        what = f"it is no table with the columns source, target, score, in_circuit ({type(error).__name__}: {error})"
        raise damaged(folder, "edges.csv", what) from error


def _sweep_effects(folder: Path) -> dict[str, float]:
    """What patching each node alone recovers, as `circuit.graphml` has it; empty without that file."""
    path = folder / "circuit.graphml"
    if not path.is_file():
        return {}
    space = "{http://graphml.graphdrawing.org/xmlns}"
    try:
        text = _text(folder, path.name)
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError("it declares a document type, which GraphML has no need of")
        root = ElementTree.fromstring(text)
        keys = {key.get("id") for key in root.iter(f"{space}key") if key.get("attr.name") == "sweep_effect"}
        return {
            str(node.get("id")): float(data.text or "nan")
            for node in root.iter(f"{space}node")
            for data in node.iter(f"{space}data")
            if data.get("key") in keys
        }
    except (ElementTree.ParseError, ValueError) as error:
        raise damaged(folder, "circuit.graphml", f"it is no GraphML ({error})") from error


def _circuit(
    folder: Path, circuit: Mapping[str, Any], table: Mapping[str, float]
) -> tuple[tuple[DrawnEdge, ...], tuple[DrawnNode, ...], int]:
    """Edges and nodes of the circuit, and how many nodes the graph has."""
    try:
        edges = {
            name: float("nan") if about.get("score") is None else float(about["score"])
            for name, about in circuit["edges"].items()
            if about["in_graph"]
        }
        kept = [name for name, about in circuit["nodes"].items() if about["in_graph"]]
        touched = {node for name in edges for node in (Edge.parse(name).source.name, Edge.parse(name).reader.node.name)}
        effects = _sweep_effects(folder)
        nodes = tuple(DrawnNode.of(n, effects.get(n)) for n in dict.fromkeys((*kept, *sorted(touched))))
        drawn = tuple(DrawnEdge.of(name, score) for name, score in edges.items())
    except (KeyError, TypeError, AttributeError, ValueError, GraphError, UnknownNameError) as error:
        raise damaged(folder, "circuit.json", f"it is no circuit file ({type(error).__name__}: {error})") from error
    if set(table) != set(edges):
        odd = sorted(set(table) ^ set(edges))[0]
        raise damaged(folder, "edges.csv", f"it disagrees with circuit.json on whether {odd!r} is in the circuit")
    return drawn, nodes, len(circuit["nodes"])
