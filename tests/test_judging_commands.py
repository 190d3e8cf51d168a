"""`evaluate`, `discover --stability` and their files, on the bundled model in this process."""

import hashlib
import html
import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import circuitlab
from circuitlab import (
    ConfigError,
    Edge,
    FormatError,
    RunError,
    discover,
    load_circuit,
    load_task,
    reproduce,
    write_report,
)  # fmt: skip
from circuitlab.cli import main
from circuitlab.discovery.scoring import METHODS
from circuitlab.runs.judging import evaluate_run, judging
from circuitlab.runs.reader import RunReader

TASK = "name-throw"
# For runs of which the numbers do not matter.
SHORT = {"n": 8, "method": "eap", "sites": (), "selection": {"n_edges": 10}}


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
    assert "<h2>Stability</h2>" in page
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
    assert undocumented == ["n"]
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


def test_hypothesis_tests_on_the_command_line(run, capsys, monkeypatch):
    monkeypatch.setattr(circuitlab, "test_circuit", partial(circuitlab.test_circuit, n_random=29))
    asked = ["--task", TASK, "-n", "8", "--random", "1", "--knockouts", "2", "--quiet", "--tests"]
    assert main(["evaluate", str(run), *asked]) == 0
    shown = capsys.readouterr().out
    for words in (
        "equivalence",
        "partial necessity",
        "for the circuit",
        "incompleteness",
        "pruned sizes",
        "complement",
    ):
        assert words in shown
    assert main(["evaluate", str(run), *asked, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["hypothesis_tests"]
    assert record["tests"][0]["name"] == "equivalence"
    assert len(record["edges"]) == load_circuit(run).n_edges


@pytest.mark.parametrize(
    ("given", "rule"),
    [("1", "stability is 1; it counts resamples"), ("-3", "greater than or equal to 0; '-3' was given")],
)
def test_too_few_resamples_are_told(given, rule, capsys):
    assert main(["discover", TASK, "--stability", given, "--quiet"]) == 2
    assert rule in capsys.readouterr().err


QUICK = ["--random", "1", "--knockouts", "0", "--no-minimality", "--quiet"]


def judged(capsys, *words: str) -> dict:
    assert main(["evaluate", *words, *QUICK, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def gendered(bundled, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs of tests") / "gendered"
    discover("gendered-pronouns", task_options={"contrast": "gender"}, metric="prob_diff", n=8, out=folder)
    return folder


def test_a_run_is_judged_under_its_own_settings(gendered, capsys):
    found, ours = judged(capsys, str(gendered)), json.loads((gendered / "evaluation.json").read_text())
    assert found["title"] == f"{gendered} on gendered-pronouns-gender, model bundled"
    assert (found["metric"], found["n"]) == ("prob_diff", 8)
    for name in ("faithfulness", "faithfulness_ci", "discovery", "n_edges_nominal", "curve"):
        assert found[name] == ours[name], name
    assert not any("Not judged as" in text for text in found["warnings"])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--contrast", "capital"], ["contrast capital (the run: gender)"]),
        (["--metric", "logit_diff"], ["metric logit_diff (the run: prob_diff)"]),
        (["--task", "name-throw"], ["task name-throw (the run: gendered-pronouns)", "metric logit_diff"]),
        (["--task", "gendered-pronouns"], ["contrast capital (the run: gender)"]),
        (["--ablation", "zero", "--allow-weak-gap"], ["ablation zero (the run: corrupt)"]),
        (["--fold-ln"], ["fold_ln True (the run: False)", "weights"]),
        (["--seed", "5", "-n", "6"], []),
    ],
)
def test_every_setting_that_is_not_the_runs_is_named_in_one_line(gendered, capsys, words, names):
    found = judged(capsys, str(gendered), *words)
    said = [text for text in found["warnings"] if text.startswith("Not judged as the run was:")]
    assert len(said) == bool(names)
    assert all(name in said[0] for name in names)
    assert "contrast" not in "".join(said) or "contrast capital" in "".join(names)


def test_no_held_out_prompt_is_one_that_the_run_was_found_on(run, bundled):
    task = load_task(TASK)
    own, seen = task.pairs(bundled, n=8, seed=0), RunReader.open(run).discovery_texts()
    assert seen == own.discovery.texts
    assert judging(run).held_out == own.held_out
    assert len(judging(run, seed=3, n=20).held_out) == 20
    # Any text is left out of held-out and reference pairs; the twin: without that, the same seed draws them.
    taken = own.held_out.texts
    others = task.pairs(bundled, n=8, seed=0, exclude=taken, reference=True)
    assert not (others.held_out.texts | others.reference.texts) & taken
    assert task.pairs(bundled, n=8, seed=0, exclude=seen).held_out == own.held_out


def test_pairs_that_the_run_was_found_on_are_refused(run, bundled):
    own = load_task(TASK).pairs(bundled, n=8, seed=0)
    mixed = replace(own.held_out, pairs=(*own.held_out.pairs[:5], *own.discovery.pairs[:3]))
    with pytest.raises(ConfigError, match="3 of 8 pairs have prompts that run .* was found on"):
        evaluate_run(run, pairs=mixed)
    few = {"n_random": 0, "n_knockouts": 0, "minimality": False}
    assert evaluate_run(run, pairs=own.held_out, **few).n_seen == 0
    with pytest.raises(ConfigError, match="'depth' is no setting"):
        evaluate_run(run, depth=3)


def test_a_circuit_file_does_not_know_its_task(run, tmp_path, capsys):
    load_circuit(run).save(tmp_path / "circuit.json")
    assert main(["evaluate", str(tmp_path / "circuit.json"), "--quiet"]) == 2
    assert "does not say which task it is of. Give task= (--task NAME)" in capsys.readouterr().err
    found = judged(capsys, str(tmp_path / "circuit.json"), "--task", TASK, "-n", "8")
    assert found["discovery"]["metric"] == "logit_diff"
    with pytest.raises(RunError, match=r"it has no manifest\.json"):
        evaluate_run(tmp_path)


def test_a_damaged_data_set_is_told(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    for text in ("{", '{"split": "discovery"}', "[]"):
        (copy / "dataset.jsonl").write_text(text + "\n")
        with pytest.raises((RunError, FormatError), match=r"dataset\.jsonl"):
            judging(copy)
    (copy / "dataset.jsonl").unlink()
    with pytest.raises(RunError, match=r"dataset\.jsonl is missing"):
        judging(copy)


def test_a_run_of_a_task_file_needs_permission(bundled, tmp_path, monkeypatch):
    source = (Path(__file__).parent.parent / "tasks" / "name_throw.py").read_text()
    (tmp_path / "mine.py").write_text(source.replace('name="name-throw"', 'name="mine"'))
    discover(tmp_path / "mine.py", out=tmp_path / "run", **SHORT)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(RunError, match="--run-code"):
        judging(tmp_path / "run")
    assert len(judging(tmp_path / "run", run_code=True).held_out) == 8
    assert judging(tmp_path / "run", task=TASK).notes == (
        "Not judged as the run was: task name-throw (the run: mine).",
    )


def test_the_printed_commands_work_from_where_the_run_was_made(bundled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    discover(TASK, out="my runs/-one two", **SHORT)
    page = html.unescape((tmp_path / "my runs" / "-one two" / "report.html").read_text())
    lines = re.findall(r"circuitlab ((?:reproduce|report|cite) .*?)(?:\n|<)", page)
    assert [shlex.split(line)[1] for line in lines] == ["my runs/-one two"] * 3
    assert main(shlex.split(lines[2])) == 0
    monkeypatch.chdir(tmp_path / "my runs")
    discover(TASK, out="-one two", force=True, **SHORT)
    inside = html.unescape((tmp_path / "my runs" / "-one two" / "report.html").read_text())
    assert "circuitlab reproduce './-one two'" in inside
    assert main(["cite", "./-one two"]) == 0
    capsys.readouterr()


def test_the_report_says_what_the_terminal_says(gendered):
    record = json.loads((gendered / "evaluation.json").read_text())
    record["warnings"] = ["This circuit does not explain <b> the behaviour."]
    (gendered / "evaluation.json").write_text(json.dumps(record))
    manifest = json.loads((gendered / "manifest.json").read_text())
    manifest["files"]["evaluation.json"] = hashlib.sha256((gendered / "evaluation.json").read_bytes()).hexdigest()
    (gendered / "manifest.json").write_text(json.dumps(manifest))
    page = write_report(gendered).read_text()
    assert '<p class="warning">This circuit does not explain &lt;b&gt; the behaviour.</p>' in page
    assert "eap-ig with 5 steps" in page
    assert "faithfulness in prob_diff on the discovery pairs: " in page
    for name, method in METHODS.items():
        steps = 5 if "steps" in method.takes else None
        changed = {
            **manifest,
            "config": {**manifest["config"], "method": name},
            "method": {"name": name, "steps": steps},
        }
        (gendered / "manifest.json").write_text(json.dumps(changed))
        assert ("with 5 steps" in write_report(gendered).read_text()) == (steps is not None), name
