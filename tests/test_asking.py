"""What `discover` can be asked beside a target: a replacement, a size, a threshold, seeds; and that all follows."""

import json
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from circuitlab import (
    ConfigError,
    Run,
    SelectionRule,
    discover,
    evaluate,
    load_circuit,
    load_task,
    reproduce,
    score_edges,
    select,
    stability,
)
from circuitlab.cli import main
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.discovery.scoring import METHODS
from circuitlab.graphs.ranking import edge_places

TASK, N = "gendered-pronouns", 6
RULE = SelectionRule(n_edges=30, signed=True)
ASKED = {"method": "eap", "ablation": "mean", "selection": RULE, "n": N}


@pytest.fixture(scope="module")
def run(bundled, tmp_path_factory) -> Run:
    return discover(TASK, **ASKED, stability=2, stability_seeds=2, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def folder(run) -> Path:
    assert run.folder
    return run.folder


def record(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


class TestReplacement:
    def test_its_means_are_of_prompts_that_are_never_scored(self, run, folder):
        lines = [json.loads(line) for line in (folder / "dataset.jsonl").read_text().splitlines()]
        texts = {split: {t for p in lines if p["split"] == split for t in (p["clean"], p["corrupt"])}
                 for split in ("discovery", "held_out", "reference")}  # fmt: skip
        assert [sum(p["split"] == split for p in lines) for split in texts] == [N, N, N]
        assert not texts["reference"] & (texts["discovery"] | texts["held_out"])
        assert record(folder, "manifest.json")["dataset"]["n_reference"] == N
        assert f"{N} reference pairs, which are never scored" in (folder / "report.html").read_text()

    def test_scores_and_test_are_about_it(self, run, folder, bundled):
        """Each step once more by itself; the twin takes the means of the held-out pairs."""
        apart = run.pairs.reference
        scores = score_edges(bundled, run.pairs.discovery, "eap", ablation="mean", reference=apart)
        rows, columns = edge_places(scores.layout).T
        written = pd.read_csv(folder / "edges.csv")["score"].to_numpy()
        assert written == pytest.approx(scores.circuit(run.circuit.mask).scores[rows, columns], abs=1e-9)
        circuit = load_circuit(folder, spec=bundled.spec)
        told = {"ablation": "mean", "n_random": 0, "n_knockouts": 0, "minimality": False}
        found = evaluate(bundled, circuit, run.pairs.held_out, reference=apart, **told)
        ours = record(folder, "evaluation.json")
        assert ours["ablation"] == "mean"
        for name in ("metric_circuit", "metric_empty", "faithfulness", "kl", "cpr"):
            assert ours[name] == pytest.approx(found.to_record()[name]), name
        twin = score_edges(bundled, run.pairs.discovery, "eap", ablation="mean", reference=run.pairs.held_out)
        assert np.abs(twin.circuit(run.circuit.mask).scores[rows, columns] - written).max() > 1e-3
        assert ours["metric_empty"] != pytest.approx(ours["metric_corrupt"], abs=0.1)

    def test_the_command_line_judges_it_alike(self, folder, capsys):
        asked = ["--task", TASK, "-n", str(N), "--ablation", "mean", "--random", "0", "--knockouts", "0"]
        assert main(["evaluate", str(folder), *asked, "--no-minimality", "--json", "--quiet"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["faithfulness"] == pytest.approx(record(folder, "evaluation.json")["faithfulness"])

    def test_splits_are_the_same_with_reference_pairs_and_without(self, bundled):
        task = load_task(TASK)
        plain, more = task.pairs(bundled, n=N, seed=3), task.pairs(bundled, n=N, seed=3, reference=True)
        assert (more.discovery, more.held_out, plain.reference) == (plain.discovery, plain.held_out, None)
        assert more.fingerprint != plain.fingerprint

    @pytest.mark.parametrize("method", METHODS)
    def test_a_method_that_cannot_says_so_before_the_model_is_loaded(self, method, monkeypatch):
        def loaded(*_args: object, **_options: object) -> None:
            raise LookupError("the model is loaded")

        monkeypatch.setattr(import_module("circuitlab.runs.pipeline"), "load_model", loaded)
        takes = "ablation" in METHODS[method].takes or method in ("ifr", "random")
        with pytest.raises(
            LookupError if takes else ConfigError, match="loaded" if takes else "takes no ablation 'zero'"
        ):
            discover(TASK, method=method, ablation="zero")

    def test_a_method_that_looks_at_no_corrupted_run_stands_beside_any(self, bundled):
        pair = [
            discover(TASK, model=bundled, method="ifr", ablation=kind, n=4, selection=RULE)
            for kind in ("corrupt", "zero")
        ]
        assert np.array_equal(pair[0].scores.values, pair[1].scores.values)
        assert pair[1].evaluation.ablation == "zero"
        assert pair[0].evaluation.metric_empty != pytest.approx(pair[1].evaluation.metric_empty, abs=0.1)

    def test_lengths_without_means_are_told_before_anything_is_scored(self, capsys):
        asked = ["html-tag-closing", "-n", "6", "--method", "eap", "--ablation", "mean-position", "--quiet"]
        assert main(["discover", *asked]) == 2
        assert "take 'mean-span'" in capsys.readouterr().err


class TestSelection:
    def test_the_circuit_is_the_one_that_select_takes(self, run, bundled):
        again = select(bundled, run.scores, run.pairs.discovery, n_edges=30, signed=True)
        assert np.array_equal(again.mask, run.circuit.mask)
        other = select(bundled, run.scores, run.pairs.discovery, n_edges=30)
        assert not np.array_equal(other.mask, run.circuit.mask)

    def test_both_sizes_are_told(self, run, folder):
        found = record(folder, "evaluation.json")
        said = record(folder, "manifest.json")["selection"]
        assert (
            (found["n_edges_nominal"], found["n_edges"])
            == (30, run.circuit.n_edges)
            == (said["nominal"], said["achieved"])
        )
        assert found["n_edges"] < 30, "pruned"
        assert (
            f"the 30 top edges, by signed score: 30 selected, {found['n_edges']} after pruning"
            in (folder / "report.html").read_text()
        )

    def test_the_manifest_asks_for_the_same(self, run, folder):
        manifest = record(folder, "manifest.json")
        assert manifest["config"]["selection"] == {"n_edges": 30, "threshold": None, "signed": True, "greedy": None}
        assert manifest["config"]["target"] is None
        assert DiscoverConfig.of_record(manifest["config"]) == run.config
        for words in ("--ablation mean", "--n-edges 30 --signed", "--stability-seeds 2"):
            assert words in manifest["command"]
        assert "--target" not in manifest["command"]

    def test_it_comes_out_the_same_again(self, folder):
        again = reproduce(folder)
        assert again.ok, [file for file in again.files if file.status == "differs"]
        assert {"stability-seeds.json", "stability-seeds.csv", "stability-seeds.png"} <= {f.name for f in again.files}

    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            (SelectionRule(threshold=0.5, greedy=True), "--threshold 0.5 --greedy"),
            (SelectionRule(target=0.8, greedy=False), "--target 0.8 --no-greedy"),
            (SelectionRule(), ""),
        ],
    )
    def test_the_command_line_of_a_rule(self, rule, words):
        config = DiscoverConfig(task="t", model="bundled", selection=rule)
        assert config.command == f"circuitlab discover t {words}".strip()
        assert DiscoverConfig.of_record(config.to_record()) == config

    def test_two_things_to_reach_are_refused(self, capsys):
        assert main(["discover", TASK, "--target", "0.8", "--n-edges", "10", "--quiet"]) == 2
        assert "target=0.8 and n_edges=10 are both given. Give one." in capsys.readouterr().err
        with pytest.raises(ConfigError, match="target=0.8 and threshold=0.1 are both given"):
            discover(TASK, target=0.8, selection=SelectionRule(threshold=0.1))
        with pytest.raises(ConfigError, match=r"target is 0\.8, but the selection's is 0\.7"):
            discover(TASK, target=0.8, selection=SelectionRule(target=0.7))
        assert main(["discover", TASK, "--n-edges", "9999", "--quiet"]) == 2
        assert "n_edges is 9999; the graph has 1519 edges" in capsys.readouterr().err


class TestSeeds:
    def test_each_repetition_is_a_discovery_of_its_own(self, run, bundled):
        found = run.stability_seeds
        assert found is not None
        assert (found.over, found.rescored, len(found.chosen)) == ("seeds", True, 2)
        assert np.array_equal(found.circuit.mask, run.circuit.mask)
        for row, seed in zip(found.chosen, (1, 2), strict=True):
            alone = discover(TASK, model=bundled, **ASKED, seed=seed)
            rows, columns = edge_places(alone.circuit.layout).T
            assert np.array_equal(row, alone.circuit.mask[rows, columns])

    def test_it_is_shown(self, folder):
        assert record(folder, "stability-seeds.json")["over"] == "seeds"
        page = (folder / "report.html").read_text()
        assert "2 seeds with new prompts" in page
        assert "2 bootstrap resamples" in page

    def test_options_of_the_method_are_not_taken_for_the_selections(self, bundled):
        """`threshold` means one thing to ACDC and another to a selection."""
        pairs = load_task(TASK).pairs(bundled, n=4).discovery
        found = stability(bundled, pairs, "acdc", n_resamples=2, method_options={"threshold": 5.0})
        assert found.circuit.selection is not None
        assert found.circuit.selection.rule == "chosen"
        by_score = stability(bundled, pairs, "eap", n_resamples=2, selection=SelectionRule(threshold=1.0))
        assert by_score.circuit.selection is not None
        assert (by_score.circuit.selection.rule, by_score.circuit.selection.asked) == ("threshold", 1.0)

    def test_one_seed_is_too_few(self, capsys):
        assert main(["discover", TASK, "--stability-seeds", "1", "--quiet"]) == 2
        assert "stability_seeds is 1; it counts seeds" in capsys.readouterr().err


class TestACircuitOfItsOwn:
    """ACDC brings a circuit; it is taken where a selection is asked for nothing, and not against what is asked."""

    OPTIONS: ClassVar = {"task": TASK, "model": "bundled", "method": "acdc", "method_options": {"threshold": 0.5}}

    def test_a_target_is_not_ignored(self, bundled):
        pairs = load_task(TASK).pairs(bundled, n=20).discovery
        scores = score_edges(bundled, pairs, "acdc", threshold=0.5)
        own, asked = select(bundled, scores, pairs), select(bundled, scores, pairs, target=0.6)
        assert own.selection.rule == "chosen"
        assert own.selection.achieved == scores.chosen.sum()
        assert asked.selection.rule == "target"
        assert 0.6 <= asked.selection.faithfulness <= 1.4

    def test_a_target_is_written_down_where_it_was_asked_for(self):
        nothing, something = DiscoverConfig(**self.OPTIONS), DiscoverConfig(**self.OPTIONS, target=0.9)
        assert nothing.target is None
        assert "--target" not in nothing.command
        assert something.target == 0.9
        assert "--target 0.9" in something.command
        assert DiscoverConfig(task=TASK, model="bundled", method="ugs").target == 0.9
        for config in (nothing, something):
            assert DiscoverConfig.of_record(config.to_record()) == config

    def test_a_folder_of_an_earlier_version_ignored_it(self):
        """It says 0.9 for every run, and its circuit is ACDC's."""
        older = DiscoverConfig(**self.OPTIONS, target=0.9).to_record()
        del older["allow_weak_gap"]
        assert DiscoverConfig.of_record(older).target is None
        assert DiscoverConfig.of_record(older | {"method": "eap", "method_options": {}}).target == 0.9
