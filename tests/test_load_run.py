"""What was computed comes back: scores and runs from their files, equal field by field; and nothing else does."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import found, written
from safetensors.numpy import save_file

from circuitlab import (
    FormatError,
    MissingFileError,
    RunError,
    Task,
    discover,
    evaluate,
    load_run,
    load_scores,
    load_task,
    reproduce,
    score_edges,
    score_nodes,
    select,
    write_report,
)
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import EdgeScores
from circuitlab.outputs.records import load_record, save_record
from circuitlab.runs.record import RESULTS_SCHEMA, Results

EARLIER = Path(__file__).parent / "fixtures" / "earlier-run"
OWN_TASK = """
from dataclasses import replace
from circuitlab.tasks.name_throw import TASK as OTHER
TASK = replace(OTHER, name="own-task", version="3")
"""
METHODS: dict[str, dict[str, Any]] = {
    "eap-ig": {},
    "exact": {},
    "acdc": {},
    "ifr": {},
    "eap": {"axis": "position"},
    "edge-pruning": {"updates": 2},
    "ugs": {"updates": 2},
}


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two values are not the same to the last bit; what is kept in memory only is left out."""
    if isinstance(one, np.ndarray):
        if one.dtype != other.dtype or not np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
            yield where
    elif is_dataclass(one):
        for item in fields(one):
            yield from differences(getattr(one, item.name), getattr(other, item.name), f"{where}.{item.name}")
    elif isinstance(one, Mapping):
        if set(one) != set(other):
            yield f"{where}: {sorted(one)}, {sorted(other)}"
        for key in set(one) & set(other):
            yield from differences(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        if type(one) is not type(other) or len(one) != len(other):
            yield where
        for number, pair in enumerate(zip(one, other, strict=False)):
            yield from differences(*pair, f"{where}.{number}")
    elif not (one == other or (one != one and other != other)):
        yield f"{where}: {one!r}, {other!r}"


@pytest.fixture(scope="module")
def pairs(bundled) -> Any:
    return load_task("gendered-pronouns").pairs(bundled, n=4, seed=0).discovery


@pytest.fixture(scope="module")
def folder(bundled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(bundled, tmp_path_factory.getbasetemp())


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run"))


class TestScores:
    @pytest.mark.parametrize("method", METHODS)
    def test_they_come_back_to_the_last_bit(self, method, bundled, pairs, tmp_path):
        scores = score_edges(bundled, pairs, method, **METHODS[method])
        scores.save(tmp_path / "new folder" / "scores.safetensors")
        again = load_scores(tmp_path / "new folder" / "scores.safetensors")
        assert not list(differences(scores, again))
        one, other = (select(bundled, each, pairs, n_edges=60) for each in (scores, again))
        assert not list(differences(one, other))

    def test_scores_of_nodes_too(self, bundled, pairs, tmp_path):
        scores = score_nodes(bundled, pairs, "eap", level="neuron")
        scores.save(tmp_path / "nodes.safetensors")
        assert not list(differences(scores, NodeScores.load(tmp_path / "nodes.safetensors")))
        with pytest.raises(FormatError, match=r"node-scores/1.*edge-scores/1"):
            load_scores(tmp_path / "nodes.safetensors")

    def test_the_check_above_can_fail(self, bundled, pairs):
        scores = score_edges(bundled, pairs, "eap")
        moved = scores.values.copy()
        moved[0, 0] = np.nextafter(moved[0, 0], 1)
        assert list(differences(scores, replace(scores, values=moved))) == [".values"]

    def test_the_same_scores_are_the_same_bytes(self, bundled, pairs, tmp_path):
        for name in ("one", "other"):
            score_edges(bundled, pairs, "eap", axis="span").save(tmp_path / f"{name}.safetensors")
        assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()

    def test_other_names_and_files_are_refused(self, bundled, pairs, tmp_path):
        with pytest.raises(FormatError, match="saved as .safetensors"):
            score_edges(bundled, pairs, "eap").save(tmp_path / "scores.pkl")
        with pytest.raises(MissingFileError, match="score file"):
            load_scores(tmp_path / "scores.safetensors")
        (tmp_path / "text.safetensors").write_text("no tensors")
        save_file({"values": np.zeros(3)}, tmp_path / "foreign.safetensors")
        for name in ("text", "foreign"):
            with pytest.raises(FormatError, match=f"{name}.safetensors"):
                load_scores(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("n_examples",), "4"),
        (("n_examples",), True),
        (("method",), None),
        (("values",), "no such array"),
        (("values",), 3),
        (("chosen",), "values"),  # of another dtype
        (("standard_error",), "small"),  # of another shape
        (("checks",), {"gap": "0"}),
        (("training",), {"kl": 1.0}),
        (("spec", "n_layers"), 7),
        (("spec", "unknown"), 1),
        ((), {}),
        ((), [1]),
    ],
)
def test_a_record_of_another_kind_is_refused(place, value, bundled, pairs, tmp_path):
    from circuitlab.outputs.records import RECORD, read_arrays

    path = tmp_path / "scores.safetensors"
    score_edges(bundled, pairs, "eap").save(path)
    content, arrays = read_arrays(path, "score file")
    arrays = {name: array.copy() for name, array in arrays.items()} | {"small": np.zeros((2, 2))}
    at = content
    for name in ("record", *place[:-1]):
        at = at[name] if place else at
    at[place[-1] if place else "record"] = value
    save_file(arrays, path, {RECORD: json.dumps(content)})
    with pytest.raises(FormatError, match="scores.safetensors"):
        load_scores(path)


class TestRun:
    def test_everything_comes_back(self, bundled, folder):
        run, again = found(bundled), load_run(folder)
        assert type(run) is type(again)
        assert again.task.settings == run.task.settings
        same = replace(run, seconds=again.seconds, folder=again.folder, task=again.task)
        assert not list(differences(same, again))
        assert again.folder == folder
        assert list(again.seconds) == list(run.seconds)
        for site, grid in run.grids.items():
            assert not list(differences(grid.interval, again.grids[site].interval))
            assert np.array_equal(grid.p_values, again.grids[site].p_values)
        assert again.evaluation.to_record() == run.evaluation.to_record()
        assert again.config.command == run.config.command

    def test_select_and_evaluate_go_on_from_it(self, bundled, folder):
        run, again = found(bundled), load_run(folder)
        one, other = (select(bundled, each.scores, each.pairs.discovery, n_edges=60) for each in (run, again))
        assert not list(differences(one, other))
        seen = evaluate(bundled, again.circuit, again.pairs.discovery, n_random=0, n_knockouts=0, minimality=False)
        assert seen.n_seen == len(again.pairs.discovery)

    def test_it_can_be_written_again(self, folder, tmp_path):
        load_run(folder).write(tmp_path / "again")
        for name in ("scores.safetensors", "results.safetensors", "edges.csv", "circuit.json", "evaluation.json"):
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name

    @pytest.mark.parametrize(
        "settings",
        [
            {"method": "acdc", "sites": ["head_q", "pattern"], "target": None},
            {"method": "exact", "ablation": "mean", "sites": [], "stability": 2},
            {
                "method": "edge-pruning",
                "method_options": {"updates": 2},
                "sites": ["resid_mid", "head_k"],
                "selection": {"n_edges": 20},  # what two updates find is large, and dear to judge
            },
        ],
        ids=lambda settings: settings["method"],
    )
    def test_runs_of_other_methods_and_grids(self, settings, bundled, tmp_path):
        run = discover("name-throw", model=bundled, n=8, allow_weak_gap=True, out=tmp_path / "run", **settings)
        again = load_run(tmp_path / "run")
        assert not list(differences(replace(run, seconds=again.seconds, task=again.task), again))

    def test_a_changed_byte_is_refused(self, copy):
        for name in ("scores.safetensors", "results.safetensors", "edges.csv", "dataset.jsonl"):
            content = bytearray((copy / name).read_bytes())
            content[-1] ^= 1
            (copy / name).write_bytes(content)
            with pytest.raises(RunError, match=rf"{name}.*SHA-256"):
                load_run(copy)
            content[-1] ^= 1
            (copy / name).write_bytes(content)
        load_run(copy)

    def test_a_missing_file_is_told(self, copy):
        (copy / "scores.safetensors").unlink()
        with pytest.raises(RunError, match=r"scores\.safetensors is missing"):
            load_run(copy)

    def test_a_task_file_is_not_run(self, bundled, tmp_path):
        (tmp_path / "own.py").write_text(OWN_TASK)
        run = discover(tmp_path / "own.py", model=bundled, n=8, sites=[], out=tmp_path / "run")
        (tmp_path / "own.py").unlink()
        again = load_run(tmp_path / "run")
        assert (again.task.name, again.task.label) == (run.task.name, run.task.label)
        with pytest.raises(RunError, match="task file"):
            again.task.draw(None)
        assert isinstance(load_task(again.task.origin), Task)

    def test_a_folder_that_is_none(self, tmp_path):
        with pytest.raises(RunError, match=r"not a run folder"):
            load_run(tmp_path)


class TestEarlier:
    """A folder that an earlier version wrote, in which tables are all there is."""

    def test_its_numbers_are_those_of_its_tables(self, bundled):
        run, record = load_run(EARLIER), json.loads((EARLIER / "evaluation.json").read_text())
        assert isinstance(run.scores, EdgeScores)
        assert run.scores.n_examples == 10
        assert np.isnan(run.scores.standard_error).all()
        assert np.array_equal(run.scores.values, run.circuit.scores)
        assert run.circuit.mask.sum() == record["n_edges"]
        assert run.evaluation.to_record() == record
        assert run.evaluation.faithfulness == record["faithfulness"]
        assert list(run.evaluation.interval) == record["faithfulness_ci"]
        assert set(run.grids) == {"resid_pre", "head_z"}
        assert run.grids["head_z"].values.shape == (4, 8)
        assert run.grids["resid_pre"].column_kind == "position"
        assert len(run.pairs.discovery) == len(run.pairs.held_out) == 10
        assert select(bundled, run.scores, run.pairs.discovery, n_edges=60).n_edges > 40
        assert "nan" not in repr(run.evaluation)[:200]

    def test_tables_come_out_of_it_as_they_went_in(self):
        import pandas as pd

        for site, grid in load_run(EARLIER).grids.items():
            written_down = pd.read_csv(EARLIER / "sweeps" / f"{site}.csv")
            pd.testing.assert_frame_equal(grid.to_frame(), written_down, check_dtype=False)

    def test_it_has_a_page(self, tmp_path):
        page = write_report(shutil.copytree(EARLIER, tmp_path / "run"))
        assert "gendered-pronouns" in page.read_text()

    def test_it_is_reproduced(self):
        found = reproduce(EARLIER)
        assert {check.name: check.status for check in found.files}["edges.csv"] in ("same bytes", "same numbers")
        assert "scores.safetensors" not in {check.name for check in found.files}


def test_results_are_read_by_their_schema(bundled, tmp_path):
    results = Results.of(found(bundled))
    save_record(tmp_path / "x.safetensors", results, "circuitlab.results/2", "results")
    with pytest.raises(FormatError, match=r"results/2.*results/1"):
        load_record(tmp_path / "x.safetensors", Results, (RESULTS_SCHEMA,), "results")
