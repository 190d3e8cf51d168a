"""Run folders of versions that wrote tables only, read into today's objects.

Numbers are exact to the printed digits. What was measured pair by pair is NaN, for it was not kept; means, intervals
and p-values are those of the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from circuitlab import stats
from circuitlab.attribution.record import AttentionPatterns
from circuitlab.discovery.behaviour import Behaviour
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import FormatError
from circuitlab.evaluation.curve import CurvePoint
from circuitlab.evaluation.evaluate import Evaluation
from circuitlab.evaluation.knockouts import Knockout, Minimality
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.selection import Selection
from circuitlab.parts import Edge, ModelSpec
from circuitlab.patching.effects import FRAME_COLUMNS
from circuitlab.patching.gap import Gap
from circuitlab.patching.grid import Grid
from circuitlab.runs.reader import EVALUATION, RunReader
from circuitlab.runs.record import Results


def spec_of(read: RunReader) -> ModelSpec:
    """The model's shape, from the manifest and the circuit's file; how long its prompts may be is not known.

    Returns:
        The shape.
    """
    about, shape = read.about("model"), read.circuit().spec
    return replace(
        shape, name=str(about["id"]), n_kv_heads=about.get("n_kv_heads", shape.n_kv_heads), d_vocab=about["d_vocab"],
        n_ctx=None, causal=about.get("causal", True),
    )  # fmt: skip


def scores_of_table(read: RunReader, circuit: Circuit) -> EdgeScores:
    """The scores of `edges.csv`; their standard errors are NaN.

    Returns:
        The scores.
    """
    table, about = read.edge_table(circuit.layout), read.about("method")
    chosen = circuit.selection is not None and circuit.selection.rule == "chosen"
    return EdgeScores(
        spec=circuit.spec, values=table.scores, standard_error=np.full(table.scores.shape, np.nan),
        method=about["name"], metric=read.about("metric")["name"], n_examples=read.about("dataset")["n_discovery"],
        checks=dict(about.get("checks", {})), chosen=table.mask if chosen else None, per_reader=about["name"] == "ifr",
        second_scores=table.second_scores,
    )  # fmt: skip


def results_of_tables(read: RunReader) -> Results:
    """Everything else that the tables hold; repetitions of the discovery are not among it.

    Returns:
        The results.
    """
    kept = read.find("attention.json")
    return Results(
        behaviour=_behaviour(read.about("behaviour"), read.about("dataset")["n_discovery"]),
        grids={grid.site: grid for grid in (_grid(read, name) for name in read.sweeps())},
        evaluation=_evaluation(read),
        attention=None if kept is None else AttentionPatterns.of_record(read.json(kept.name)),
    )


def _behaviour(about: Mapping[str, Any], n: int) -> Behaviour:
    gap = Gap(
        mean=about.get("metric_gap", np.nan), standard_error=about.get("metric_gap_se", np.nan), low=np.nan,
        high=np.nan, n=n,
    )  # fmt: skip
    unknown = np.full(n, np.nan)
    return Behaviour(
        about.get("rule", ""), about["prefers_answer"], about["corruption_turns_over"], unknown, unknown, gap
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TableGrid(Grid):
    """A swept site of which the table is known, and not the values of each pair.

    Attributes:
        table: One row a cell, as `to_frame` gave it.
    """

    table: pd.DataFrame

    values = property(lambda self: self._cells("value"))
    interval = property(lambda self: stats.Interval(self._cells("ci_low"), self._cells("ci_high")))
    p_values = property(lambda self: self._cells("p_value"))
    n = property(lambda self: self._cells("n").astype(int))

    def _cells(self, column: str) -> np.ndarray:
        return self.table[column].to_numpy(dtype=float).reshape(self.per_example.shape[:-1])


def _grid(read: RunReader, name: str) -> Grid:
    rows = read.rows(name)
    try:
        frame = pd.DataFrame({column: [_cell(column, row[column]) for row in rows] for column in rows[0]})
        member = next((kind for kind in ("head", "neuron") if kind in frame and {"position", "span"} & {*frame}), None)
        kind = next(one for one in ("position", "span", "head", "neuron") if one in frame)
        layers, columns = (list(dict.fromkeys(frame[one].tolist())) for one in ("layer", kind))
        members = [] if member is None else list(dict.fromkeys(frame[member].tolist()))
        cells = (len(layers), *([len(members)] if member else []), len(columns))
        labels = columns if kind != "position" else frame["label"].astype(str)[: len(columns)].tolist()
        if len(frame) != np.prod(cells):
            raise ValueError(f"{len(frame)} rows for {cells} cells")
    except (KeyError, ValueError, TypeError, IndexError, StopIteration) as error:
        raise read.damaged(name, f"it is no table of a sweep ({type(error).__name__}: {error})") from error
    n, metric = read.about("dataset")["n_discovery"], read.about("metric")
    return TableGrid(
        site=str(frame["site"].iloc[0]), direction="denoise", metric=metric["name"], unit=metric.get("unit", ""),
        column_kind=kind, columns=tuple(map(str, labels)), per_example=np.full((*cells, n), np.nan),
        clean=np.full(n, np.nan), corrupt=np.full(n, np.nan), seed=read.config().seed, layers=tuple(layers),
        member_kind=member, members=tuple(map(str, members)), table=frame,
        numbers=tuple(columns) if kind == "position" else None,
    )  # fmt: skip


def _cell(column: str, text: str) -> object:
    if column in FRAME_COLUMNS and column != "n":
        return float(text or "nan")
    return text if column in ("site", "label", "span") else int(text)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TableEvaluation(Evaluation):
    """An evaluation of which the record is known, and not the values of each pair.

    Attributes:
        record: The content of `evaluation.json`.
    """

    record: Mapping[str, Any] = field(default_factory=dict)

    faithfulness = property(lambda self: _number(self.record["faithfulness"]))
    interval = property(lambda self: tuple(map(_number, self.record["faithfulness_ci"])))
    warnings = property(lambda self: tuple(self.record.get("warnings", ())))
    metric_clean = property(lambda self: _number(self.record["metric_clean"]))
    metric_corrupt = property(lambda self: _number(self.record["metric_corrupt"]))
    metric_circuit = property(lambda self: _number(self.record["metric_circuit"]))
    # The corrupted run is the empty circuit of the ablation that versions without this number had.
    metric_empty = property(lambda self: _number(self.record.get("metric_empty", self.record["metric_corrupt"])))

    @property
    def gap(self) -> Gap:
        """As recorded, without its interval."""
        mean, error = (_number(self.record.get(name)) for name in ("metric_gap", "metric_gap_se"))
        return Gap(mean=mean, standard_error=error, low=np.nan, high=np.nan, n=len(self.clean))

    def to_record(self) -> dict[str, Any]:
        """As recorded.

        Returns:
            The content of `evaluation.json`.
        """
        return dict(self.record)


def _evaluation(read: RunReader) -> Evaluation:
    record = read.json(EVALUATION)
    about = read.about("dataset")
    unknown = np.full(record.get("n", about["n_held_out"]), np.nan)
    complete, smallest = record.get("completeness") or {}, record.get("smallest_sufficient")
    effects = record.get("minimality")
    selection = read.manifest.get("selection")
    try:
        return TableEvaluation(
            metric=record["metric"], ablation=record["ablation"], clean=unknown, corrupt=unknown, empty=unknown,
            circuit=unknown, n_edges=record["n_edges"], n_edges_total=record["n_edges_total"],
            n_edges_weighted=record.get("n_edges_weighted", record["n_edges"]), n_nodes=record["n_nodes"],
            accuracy_model=record["accuracy_model"], accuracy_circuit=record["accuracy_circuit"],
            kl=_number(record["kl"]), curve=tuple(map(_point, record["curve"])),
            curve_signed=tuple(map(_point, record.get("curve_signed", ()))), smallest=smallest and _point(smallest),
            complement=_number(complete.get("complement_faithfulness")),
            knockouts=tuple(
                Knockout(one["n_edges"], _number(one["faithfulness_circuit"]), _number(one["faithfulness_model"]))
                for one in complete.get("knockouts", ())
            ),
            minimality=None if effects is None else _minimality(effects),
            random=tuple(map(_number, record["random_baseline"]["faithfulness"])), seed=read.config().seed,
            selection=None if selection is None else Selection.of_record(selection),
            n_seen=record.get("n_seen", 0), record=record,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, FormatError) as error:
        raise read.damaged(EVALUATION, f"it is no evaluation ({type(error).__name__}: {error})") from error


def _minimality(effects: list[Mapping[str, Any]]) -> Minimality:
    return Minimality(
        edges=tuple(Edge.parse(one["edge"]) for one in effects),
        effect=np.array([_number(one["effect"]) for one in effects]),
        low=np.array([_number(one["ci"][0]) for one in effects]),
        high=np.array([_number(one["ci"][1]) for one in effects]),
    )


def _point(record: Mapping[str, Any]) -> CurvePoint:
    n = record["n_edges"]
    return CurvePoint(n, record.get("n_edges_nominal", n), _number(record["faithfulness"]))


def _number(value: float | None) -> float:
    """A number of a record, in which null is what is none."""
    return np.nan if value is None else float(value)
