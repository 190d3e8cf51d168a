"""A run folder, read and checked: everything that the report is made of, and an error for whatever is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuitlab.attribution.record import AttentionPatterns
from circuitlab.errors import FormatError, RunError
from circuitlab.files import path_from_here
from circuitlab.graphs.circuit import Circuit
from circuitlab.report.pictures import checked_png
from circuitlab.runs.manifest import MANIFEST
from circuitlab.runs.reader import CIRCUIT, EDGES, EVALUATION, RunReader, damaged
from circuitlab.viz import LEFT, SITES, DrawnEdge, DrawnNode, LabelledGrid, grid_from_frame, read_sweep


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
    """Repeated discovery on other prompts.

    Attributes:
        numbers: The results.
        png: Its drawing, or None.
    """

    numbers: Mapping[str, Any]
    png: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunFolder:
    """The contents of a run folder.

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
        repeated: Repeated discovery, on resamples or over seeds, if there is any.
        attention: Attention patterns of the circuit's strongest heads on one prompt, or None.
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
    attention: AttentionPatterns | None = None
    attention_png: bytes | None = None

    def about(self, part: str) -> Mapping[str, Any]:
        """A part of the manifest that is a mapping ("task", "model", "config", ...); empty where it is absent.

        Returns:
            The mapping.
        """
        value = self.manifest.get(part)
        return value if isinstance(value, Mapping) else {}


def read_run(folder: str | Path, name: str | None = None, hashed: Mapping[str, str] | None = None) -> RunFolder:
    """Read a run folder.

    Args:
        folder: Where it is.
        name: The path that the commands on the page give it; by default its path from the working folder.
        hashed: SHA-256 of files that were just written, by name.

    Returns:
        Its contents.

    Raises:
        RunError: It is no run folder, a file is missing or damaged, or is not the one that the run wrote; the message
            names the file and what to do.
    """
    if not Path(folder).is_dir():
        raise RunError(
            f"there is no run folder {str(folder)!r}. Make one with: circuitlab discover TASK --out {folder}"
        )
    read = RunReader.open(folder, hashed)
    for part, key in (("task", "name"), ("model", "id")):
        if not read.about(part).get(key):
            raise read.damaged(MANIFEST, f"it does not name its {part} ({part}.{key})")
    files = read.digests()
    circuit = read.circuit()
    _check_table(read, circuit)
    effects = circuit.node_effects
    return RunFolder(
        path=read.path,
        name=name or path_from_here(read.path),
        manifest=read.manifest,
        pairs=read.pairs(),
        sweeps=_sweeps(read),
        nodes=tuple(DrawnNode.of(node.name, effects.get(node.name)) for node in circuit.nodes),
        edges=tuple(DrawnEdge.of(edge.name, score) for edge, score in circuit.edges()),
        n_nodes_total=len(circuit.layout.nodes),
        evaluation=_evaluation(read),
        drawing=read.text("circuit.svg") if read.find("circuit.svg") else None,
        files=files,
        repeated=tuple(_repeated(read)),
        attention=_attention(read),
        attention_png=_png(read, "attention.png"),
    )


@contextmanager
def reading(folder: Path, name: str) -> Iterator[None]:
    """What a file of a run folder does not hold as it should, as a `RunError`.

    Raises:
        RunError: The file is damaged.
    """
    try:
        yield
    except FormatError as error:
        raise damaged(folder, name, str(error)) from error


def _repeated(read: RunReader) -> Iterator[Repeated]:
    for name in ("stability", "stability-seeds"):
        if read.find(f"{name}.json") is not None:
            yield Repeated(numbers=read.json(f"{name}.json"), png=_png(read, f"{name}.png"))


def _png(read: RunReader, name: str) -> bytes | None:
    """A picture; None where there is none."""
    png = read.bytes(name)
    with reading(read.path, name):
        return None if png is None else checked_png(png)


def _attention(read: RunReader) -> AttentionPatterns | None:
    with reading(read.path, "attention.json"):
        found = read.find("attention.json")
        return None if found is None else AttentionPatterns.of_record(read.json("attention.json"))


def _evaluation(read: RunReader) -> dict[str, Any]:
    """The evaluation, with the numbers that the page cannot do without."""
    evaluation = read.json(EVALUATION)
    for name, kinds in (("n_edges", int), ("n_edges_total", int | None), ("faithfulness", int | float | None)):
        if not isinstance(evaluation.get(name), kinds) or (name not in evaluation and name != "n_edges_total"):
            raise read.damaged(EVALUATION, f"{name!r} is {evaluation.get(name)!r}, which is no number")
    return evaluation


def _sweeps(read: RunReader) -> tuple[Sweep, ...]:
    sweeps, paired = [], any(pair["corrupt"] is not None for pair in read.pairs())
    for name in read.sweeps():
        path = read.find(name) or read.path / name
        with reading(read.path, name):
            frame = read_sweep(path)
            grid = grid_from_frame(frame) if paired else grid_from_frame(frame.assign(direction="noise"), quantity=LEFT)
        png = _png(read, name.removesuffix(".csv") + ".png")
        sweeps.append(Sweep(site=str(frame["site"].iloc[0]), frame=frame, grid=grid, png=png))
    return tuple(sorted(sweeps, key=lambda sweep: SITES.index(sweep.site) if sweep.site in SITES else len(SITES)))


def _check_table(read: RunReader, circuit: Circuit) -> None:
    """Refuse a table of edges that has another circuit than `circuit.json`."""
    odd = read.edge_table(circuit.layout).mask ^ circuit.mask
    if odd.any():
        name = circuit.layout.edge_name(*(int(place) for place in np.argwhere(odd)[0]))
        raise read.damaged(EDGES, f"it disagrees with {CIRCUIT} on whether {name!r} is in the circuit")
