"""`circuitlab attribute`: what it prints, what it writes, and the one line that mistakes get."""

import json

import pandas as pd
import pytest

from circuitlab import direct_attribution, load_task
from circuitlab.cli import main

ARGS = ("attribute", "gendered-pronouns", "-n", "6", "--quiet")
FILES = {
    "lens.csv", "lens.png", "attribution-layer.csv", "attribution-layer.png", "attribution-head.csv",
    "attribution-head.png", "attention.csv", "attention.png", "attention.html",
}  # fmt: skip


@pytest.fixture(scope="module")
def split(bundled):
    pairs = load_task("gendered-pronouns").pairs(bundled, n=6, seed=0).discovery
    return direct_attribution(bundled, pairs, "head")


def test_it_prints_lens_parts_heads_and_writes_all_of_it(capsys, tmp_path, split):
    assert main([*ARGS, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    *lines, place = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert place == f"tables, pictures, attention.html: {tmp_path / 'out'}"
    for words in (
        "sum of contributions",
        "logit lens, logit_diff",
        "attention 3",
        "embed.token",
        "norm.bias",
        "top keys",
    ):
        assert words in shown
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    table = pd.read_csv(tmp_path / "out" / "attribution-head.csv")
    assert list(table["component"]) == list(split.names)
    assert table["value"].to_numpy() == pytest.approx(split.per_example.mean(-1), abs=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_there_is_not_written_into(capsys, tmp_path):
    assert main([*ARGS, "--out", str(tmp_path)]) == 2
    assert "--force" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_json_holds_every_number(capsys, split):
    assert main([*ARGS, "--json", "--by", "head", "--heads", "a1.h3, a3.h5", "--run", "clean"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"] == pytest.approx(split.total.mean(), abs=1e-4)
    assert sum(row["value"] for row in found["attribution"]) == pytest.approx(found["total"], abs=1e-3)
    assert [head["head"] for head in found["attention"]["heads"]] == ["a1.h3", "a3.h5"]
    assert len(found["lens"]) == 9


def test_the_corrupted_run_is_another(capsys, split):
    assert main([*ARGS, "--json", "--run", "corrupt", "--metric", "logit"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["metric"]) == ("corrupt", "logit")
    assert found["total"] != pytest.approx(split.total.mean(), abs=0.1)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--by", "heads"), ("'heads'", "layer, head, neuron")),
        (("--run", "dirty"), ("'dirty'", "clean, corrupt")),
        (("--metric", "kl"), ("'kl'", "logit_diff or logit")),
        (("--metric", "logits"), ("'logits'", "logit_diff")),
        (("--heads", "a9.h9"), ("'a9.h9'", "Nearest: a3.h7")),
        (("-k", "0"), ("k is 0", "at least 1")),
    ],
)
def test_mistakes_get_one_line(capsys, args, says):
    assert main([*ARGS, *args]) == 2
    told = capsys.readouterr().err
    assert len(told.strip().splitlines()) == 1
    for words in says:
        assert words in told


@pytest.mark.parametrize(
    ("args", "says"),
    [(("-k", "0"), "k is 0"), (("--heads", "a0.h1,head 3"), "'head 3' is no node. Nodes are spelt input, a3.h2")],
)
def test_what_needs_no_model_is_told_before_it_is_loaded(capsys, monkeypatch, args, says):
    monkeypatch.setattr("circuitlab.models.load.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main([*ARGS, *args]) == 2
    assert says in capsys.readouterr().err
