"""`evaluate`, `discover --stability` and their files, on the bundled model in this process."""

import json
from pathlib import Path

import pandas as pd
import pytest

from circuitlab import Edge, discover, load_circuit, reproduce
from circuitlab.cli import main

TASK = "name-throw"


@pytest.fixture(scope="module")
def run(bundled, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    discover(TASK, n=8, stability=3, out=folder)
    return folder


def test_a_run_with_stability_leaves_its_files(run):
    record = json.loads((run / "stability.json").read_text())
    assert (record["n"], record["over"], record["rescored"]) == (3, "bootstrap", False)
    assert 0 < record["jaccard_mean"] <= 1
    frame = pd.read_csv(run / "stability.csv")
    assert {edge for edge in frame["edge"] if Edge.parse(edge)} == set(frame["edge"])
    assert frame["in_circuit"].sum() == load_circuit(run).n_edges
    assert (run / "stability.png").read_bytes().startswith(b"\x89PNG")
    page = (run / "report.html").read_text()
    assert "Would other prompts give the same circuit?" in page
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["config"]["stability"] == 3
    assert "--stability 3" in manifest["command"]
    assert {"stability.json", "stability.csv", "stability.png"} <= set(manifest["files"])


def test_it_comes_out_the_same_again(run):
    again = reproduce(run)
    assert again.ok, [file for file in again.files if file.status != "same"]


def test_every_new_key_of_the_evaluation(run):
    record = json.loads((run / "evaluation.json").read_text())
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    undocumented = [key for key in record if f"`{key}`" not in page and f"`{key}." not in page]
    assert undocumented == ["metric", "ablation", "n"]
    assert len(record["minimality"]) == record["n_edges"]
    assert len(record["completeness"]["knockouts"]) == 10
    assert all(isinstance(record[name], float) for name in ("cpr_log", "cmd_achieved", "cpr_achieved_log"))


@pytest.mark.parametrize("name", ["circuit.pt", "circuit.graphml", "edges.txt", "circuit.node-link.json"])
def test_a_circuit_of_any_format_is_judged(run, name, tmp_path, capsys):
    load_circuit(run).save(tmp_path / name)
    asked = ["--task", TASK, "-n", "8", "--random", "1", "--knockouts", "0", "--no-minimality", "--json", "--quiet"]
    assert main(["evaluate", str(tmp_path / name), *asked]) == 0
    found = json.loads(capsys.readouterr().out)
    ours = json.loads((run / "evaluation.json").read_text())
    assert found["faithfulness"] == pytest.approx(ours["faithfulness"])
    assert (found["cpr"] is None) == (name == "edges.txt")
    assert found["minimality"] is None


def test_hypothesis_tests_on_the_command_line(run, capsys):
    asked = ["--task", TASK, "-n", "8", "--random", "1", "--knockouts", "2", "--quiet", "--tests"]
    assert main(["evaluate", str(run), *asked]) == 0
    shown = capsys.readouterr().out
    for words in ("equivalence", "partial necessity", "for the circuit", "incomplete by", "over pruned", "complement"):
        assert words in shown
    assert main(["evaluate", str(run), *asked, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["hypothesis_tests"]
    assert record["tests"][0]["name"] == "equivalence"
    assert len(record["edges"]) == load_circuit(run).n_edges


@pytest.mark.parametrize("given", ["1", "-3"])
def test_too_few_resamples_are_told(given, capsys):
    assert main(["discover", TASK, "--stability", given, "--quiet"]) == 2
    assert f"stability is {given}; it counts resamples" in capsys.readouterr().err
