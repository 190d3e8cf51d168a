"""What `discover` leaves behind, read with other programs: whole, consistent, the same again, or not at all."""

import base64
import hashlib
import inspect
import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from runs import TASK, N, bytes_in, digests_in, found, written, written_elsewhere

from circuitlab import (
    ConfigError,
    Edge,
    Example,
    OutputExistsError,
    PairSet,
    Run,
    RunError,
    Task,
    cite,
    discover,
    load_circuit,
    load_model,
    load_task,
)
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.pairs import PairSplits
from circuitlab.discovery import stability
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.evaluation.curve import MIB_SHARES, mib_sizes
from circuitlab.graphs.prune import prune
from circuitlab.graphs.selection import SelectionRule
from circuitlab.outputs import whole
from circuitlab.report.folder import read_run
from circuitlab.report.render import asset
from circuitlab.report.values import caveats, headline
from circuitlab.runs import pipeline, write
from circuitlab.viz.curves import FaithfulnessCurve

SCRIPT = asset("attention.js")
SITES = ("resid_pre", "attn_out", "mlp_out", "head_z")
FILES = {
    "manifest.json", "scores.safetensors", "results.safetensors",
    "dataset.jsonl", "edges.csv", "circuit.json", "circuit.graphml", "circuit.png", "circuit.svg",
    "evaluation.json", "report.html", "attention.json", "attention.png",
    *(f"sweeps/{site}.{kind}" for site in SITES for kind in ("csv", "png")),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(bundled) -> Run:
    return found(bundled)


@pytest.fixture(scope="module")
def folder(bundled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(bundled, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_elsewhere(tmp_path_factory.getbasetemp())


def strict_json(path: Path) -> Any:
    """JSON as other languages read it: no NaN, no infinity."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{path.name} holds {constant}, which is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "dataset.jsonl").read_text(encoding="utf-8").split("\n") if line]


# ------------------------------------------------------------------------------------------------ the folder


def test_every_file_of_the_design_is_there_and_no_other(folder):
    assert set(bytes_in(folder)) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["a run"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_the_manifest_has_the_hash_of_every_other_file(folder):
    files = strict_json(folder / "manifest.json")["files"]
    assert files == {name: digest for name, digest in digests_in(folder).items() if name != "manifest.json"}


def test_the_manifest_says_what_ran(folder, run, bundled):
    manifest = strict_json(folder / "manifest.json")
    assert manifest["schema"] == "circuitlab.run/1"
    assert manifest["task"]["name"] == TASK
    assert manifest["task"]["version"] == run.task.version
    assert manifest["task"]["fingerprint"] == task_fingerprint(load_task(TASK))
    assert manifest["model"]["id"] == "bundled"
    assert manifest["model"]["causal"] is True
    assert manifest["config"]["bos"] == "auto"
    assert (manifest["model"]["bos_tokens"], manifest["model"]["bos_ids"]) == (["<|bos|>"], [0])
    assert manifest["model"]["weights_sha256"] == bundled.weights_sha256()
    assert (manifest["device"], manifest["dtype"], manifest["seed"]) == ("cpu", "float32", 0)
    assert manifest["versions"]["torch"] == torch.__version__
    assert {"circuitlab", "transformer_lens", "transformers", "numpy", "networkx", "python"} <= set(
        manifest["versions"]
    )
    assert set(manifest["seconds"]) == {"load", "prompts", "behaviour", "sweep", "score", "select", "evaluate"}
    assert all(seconds >= 0 for seconds in manifest["seconds"].values())
    assert DiscoverConfig.of_record(manifest["config"]) == run.config
    assert manifest["dataset"] == {"n_discovery": N, "n_held_out": N, "dropped": {}}


def test_the_command_asks_for_the_same(folder, run):
    """Every setting that is not the default stands in the command, and the command line takes it."""
    command = strict_json(folder / "manifest.json")["command"]
    words = ["circuitlab", "discover", TASK, "-n", "10", "--option", "contrast=capital", "--split", "random"]
    assert shlex.split(command) == words
    other = run.config.replaced(
        model="my models/a b", method="exact", steps=7, metric="prob_diff", seed=3, target=0.8, n=7,
        min_accuracy=0.5, device="cuda", dtype="float64", selection=SelectionRule(),
    )  # fmt: skip
    words = shlex.split(other.command)
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert flags == {
        "--model": "my models/a b", "--method": "exact", "--steps": "7", "--metric": "prob_diff", "--seed": "3",
        "--target": "0.8", "-n": "7", "--min-accuracy": "0.5", "--device": "cuda", "--dtype": "float64",
        "--option": "contrast=capital", "--split": "random",
    }  # fmt: skip


def test_the_page_opens_from_disk_and_names_the_folder(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"circuitlab reproduce {shlex.quote(str(folder))}\n" in page.replace("&#x27;", "'").replace("&#39;", "'")
    # The view of attention is our own constant script, which the policy names, and its data, which cannot run.
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    rest = page.replace(f"<script>{SCRIPT}</script>", "", 1)
    rest = rest.replace('<script type="application/json" id="attention-data">', "", 1)
    assert "<script" not in rest
    for foreign in ("<link", 'src="http', 'href="http', "@import", ".part"):
        assert foreign not in page


def test_pictures_are_pictures(folder):
    for name in FILES:
        if name.endswith(".png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert ElementTree.parse(folder / "circuit.svg").getroot().tag.endswith("svg")


# ------------------------------------------------------------------------------------------------ dataset.jsonl


def test_the_data_set_is_what_was_drawn(folder, run):
    pairs = lines(folder)
    assert [pair["split"] for pair in pairs] == ["discovery"] * N + ["held_out"] * N
    assert len({pair["id"] for pair in pairs}) == 2 * N
    needed = {"id", "split", "clean", "corrupt", "answers", "distractors", "spans", "clean_ids", "corrupt_ids",
              "answer_ids", "distractor_ids"}  # fmt: skip
    for pair, drawn in zip(pairs, [*run.pairs.discovery, *run.pairs.held_out], strict=True):
        assert needed <= set(pair)
        for name in needed - {"split", "spans"}:
            value = getattr(drawn, name)
            assert pair[name] == (list(value) if isinstance(value, tuple) else value)
    splits = [{pair[side] for pair in pairs if pair["split"] == split for side in ("clean", "corrupt")}
              for split in ("discovery", "held_out")]  # fmt: skip
    assert not splits[0] & splits[1]
    read = pd.read_json(folder / "dataset.jsonl", lines=True)
    assert list(read["clean"]) == [pair["clean"] for pair in pairs]


def test_token_ids_are_those_of_the_checkpoint_s_tokenizer(folder, tokenizer):
    for pair in lines(folder):
        for side in ("clean", "corrupt"):
            assert pair[f"{side}_ids"] == [
                tokenizer.bos_token_id,
                *tokenizer.encode(pair[side], add_special_tokens=False),
            ]
        assert [tokenizer.decode([i]) for i in pair["answer_ids"]] == pair["answers"]
        assert [tokenizer.decode([i]) for i in pair["distractor_ids"]] == pair["distractors"]
        words = {name: tokenizer.decode(pair["clean_ids"][slice(*at)]).strip() for name, at in pair["spans"].items()}
        assert words["name"] == pair["clean"].split()[0]
        assert words["period"] == "."


def test_the_fingerprint_is_of_the_data_in_the_folder(folder):
    """Worked out from the file alone: SHA-256 of each split's lines, and of the two."""
    digests = ""
    for split in ("discovery", "held_out"):
        records = [{**pair, "split": ""} for pair in lines(folder) if pair["split"] == split]
        text = "\n".join(json.dumps(record, sort_keys=True, ensure_ascii=False) for record in records)
        digests += hashlib.sha256(text.encode()).hexdigest()
    expected = hashlib.sha256(digests.encode()).hexdigest()
    assert strict_json(folder / "manifest.json")["dataset_fingerprint"] == expected


def test_the_numbers_follow_from_the_tokens_in_the_folder(folder):
    """Plain HuggingFace on the tokens that the file says ran: the same means on clean and corrupted prompts."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path(write.__file__).parents[1] / "bundled").eval()
    held_out = [pair for pair in lines(folder) if pair["split"] == "held_out"]
    means, right = {}, []
    for side in ("clean", "corrupt"):
        differences = []
        for pair in held_out:
            with torch.no_grad():
                logits = model(torch.tensor([pair[f"{side}_ids"]])).logits[0, -1]
            differences.append(float(logits[pair["answer_ids"]].mean() - logits[pair["distractor_ids"]].mean()))
            right.append(side == "clean" and int(logits.argmax()) in pair["answer_ids"])
        means[side] = float(np.mean(differences))
    evaluation = strict_json(folder / "evaluation.json")
    assert evaluation["metric_clean"] == pytest.approx(means["clean"], abs=1e-3)
    assert evaluation["metric_corrupt"] == pytest.approx(means["corrupt"], abs=1e-3)
    assert evaluation["accuracy_model"] == pytest.approx(sum(right) / N)


# ------------------------------------------------------------------------------------------------ the circuit


def test_every_edge_is_in_the_table_and_the_three_files_agree(folder, run):
    edges = table(folder / "edges.csv")
    assert list(edges.columns) == ["source", "target", "score", "in_circuit"]
    names = list(edges["source"] + "->" + edges["target"])
    assert sorted(names) == sorted(edge.name for edge in run.circuit.layout.edges())
    assert {Edge.parse(name).name for name in names} == set(names)
    theirs = json.loads((folder / "circuit.json").read_text())
    assert {name: entry["score"] for name, entry in theirs["edges"].items()} == dict(
        zip(names, edges["score"], strict=True)
    )
    kept = {name for name, entry in theirs["edges"].items() if entry["in_graph"]}
    assert kept == {name for name, within in zip(names, edges["in_circuit"], strict=True) if within}
    graph = nx.read_graphml(folder / "circuit.graphml", force_multigraph=True)
    assert {key for _, _, key in graph.edges(keys=True)} == kept
    assert {name for name, entry in theirs["nodes"].items() if entry["in_graph"]} == set(graph.nodes)
    for _, _, key, data in graph.edges(keys=True, data=True):
        assert data["score"] == theirs["edges"][key]["score"]


def test_the_graph_reads_back_equal_and_its_nodes_know_their_effect(folder, run):
    graph = nx.read_graphml(folder / "circuit.graphml", force_multigraph=True)
    assert nx.utils.graphs_equal(graph, run.circuit.to_networkx())
    for name, data in graph.nodes(data=True):
        assert {"kind", "sweep_effect"} <= set(data), name
        assert math.isfinite(data["sweep_effect"])
    assert graph.nodes["input"]["sweep_effect"] == graph.nodes["logits"]["sweep_effect"] == 1


def test_no_edge_leads_nowhere(folder, run):
    circuit = load_circuit(folder, run.spec)
    assert np.array_equal(circuit.mask, run.circuit.mask)
    assert np.array_equal(circuit.scores, run.circuit.scores)
    assert np.array_equal(prune(circuit.mask, circuit.layout), circuit.mask)
    graph = nx.read_graphml(folder / "circuit.graphml", force_multigraph=True)
    assert set(graph.nodes) == nx.descendants(graph, "input") & nx.ancestors(graph, "logits") | {"input", "logits"}


# ------------------------------------------------------------------------------------------------ the numbers


def test_the_evaluation_fits_the_circuit_and_itself(folder):
    found_ = strict_json(folder / "evaluation.json")
    edges = table(folder / "edges.csv")
    graph = nx.read_graphml(folder / "circuit.graphml", force_multigraph=True)
    assert found_["n_edges"] == int(edges["in_circuit"].sum())
    assert found_["n_edges_total"] == len(edges)
    assert found_["n_nodes"] == len(graph)
    clean, corrupt, circuit = (found_[f"metric_{which}"] for which in ("clean", "corrupt", "circuit"))
    assert found_["faithfulness"] == pytest.approx((circuit - corrupt) / (clean - corrupt))
    low, high = found_["faithfulness_ci"]
    assert low < found_["faithfulness"] < high
    assert 0 <= found_["accuracy_circuit"] <= 1
    assert found_["kl"] >= 0


def test_the_curve_is_mib_s_and_the_areas_follow_from_it(folder):
    found_ = strict_json(folder / "evaluation.json")
    curve = pd.DataFrame(found_["curve"])
    assert tuple(curve["n_edges_nominal"]) == mib_sizes(found_["n_edges_total"])
    assert (curve["n_edges"] <= curve["n_edges_nominal"]).all()
    assert curve["n_edges"].iloc[-1] == found_["n_edges_total"]
    assert curve["faithfulness"].iloc[-1] == pytest.approx(1, abs=1e-4)
    assert found_["cmd"] == pytest.approx(np.trapezoid((1 - curve["faithfulness"]).abs(), MIB_SHARES))


def test_the_circuit_beats_chance(folder):
    found_ = strict_json(folder / "evaluation.json")
    chance = found_["random_baseline"]["faithfulness"]
    assert len(chance) >= 20
    assert len(set(chance)) > 1
    assert found_["faithfulness"] > max(chance)


@pytest.mark.parametrize("site", SITES)
def test_sweeps_are_tidy(site, folder, run):
    cells = table(folder / "sweeps" / f"{site}.csv")
    column = "head" if site == "head_z" else "position"
    named = ["site", "layer", column, *(["label"] if column == "position" else [])]
    assert list(cells.columns) == [*named, "value", "ci_low", "ci_high", "p_value", "n"]
    assert set(cells["site"]) == {site}
    width = run.spec.n_heads if column == "head" else len(run.pairs.discovery[0])
    assert [tuple(cell) for cell in cells[["layer", column]].itertuples(index=False)] == [
        (layer, place) for layer in range(run.spec.n_layers) for place in range(width)
    ]
    assert (cells["ci_low"] <= cells["value"] + 1e-9).all()
    assert (cells["value"] <= cells["ci_high"] + 1e-9).all()
    assert cells["p_value"].between(0, 1, inclusive="right").all()
    assert (cells["n"] == N).all()


def test_sweeps_show_the_shared_prefix_as_nothing_and_the_answer_position_as_all(folder):
    """The prompts part at the last token: before it no patch does anything, there the whole stream does everything."""
    cells = table(folder / "sweeps" / "resid_pre.csv")
    last = cells["position"].max()
    assert (cells[cells["position"] < last]["value"] == 0).all()
    assert cells[cells["position"] == last]["value"].to_numpy() == pytest.approx(1, abs=1e-4)


# ------------------------------------------------------------------------------------------------ the same again


def test_another_process_writes_the_same_bytes(folder, elsewhere):
    """Same seed, other hash seed, no type checks: nothing differs but the seconds and the path in the report."""
    before, after = digests_in(folder), digests_in(elsewhere)
    assert set(before) == set(after)
    assert {name for name in before if before[name] != after[name]} <= {"manifest.json", "report.html"}
    manifests = [strict_json(each / "manifest.json") for each in (folder, elsewhere)]
    for manifest in manifests:
        assert manifest.pop("seconds")
        assert manifest["files"].pop("report.html")
    assert manifests[0] == manifests[1]


# ------------------------------------------------------------------------------------------------ whole or not at all


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are written without pictures and page, for tests of the folder alone."""
    monkeypatch.setattr(write, "_write_pictures", lambda run, folder: None)
    monkeypatch.setattr("circuitlab.report.write_report", lambda folder, **options: None)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where to write; afterwards nothing but that folder may be there."""
    yield tmp_path / "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"mine"}


@pytest.mark.usefixtures("plain")
def test_a_folder_that_exists_is_left_alone(run, place):
    run.write(place)
    (place / "notes.txt").write_text("mine")
    before = bytes_in(place)
    with pytest.raises(OutputExistsError) as told:
        run.write(place)
    assert (
        str(told.value) == f"output folder {str(place)!r} exists. Name another with --out, or replace it with --force."
    )
    assert bytes_in(place) == before


@pytest.mark.usefixtures("plain")
def test_force_replaces_a_run_folder_whole(run, place):
    run.write(place)
    (place / "edges.csv").write_text("old")
    written = run.write(place, force=True)
    assert written.folder == place
    assert run.folder is None
    assert (place / "edges.csv").read_text() != "old"
    assert (place / "manifest.json").is_file()


@pytest.mark.usefixtures("plain")
def test_force_takes_an_empty_folder(run, place):
    place.mkdir()
    with pytest.raises(OutputExistsError):
        run.write(place)
    assert (run.write(place, force=True).folder / "manifest.json").is_file()


@pytest.mark.parametrize("what", ["a folder of something else", "a file"])
def test_force_replaces_nothing_but_run_folders(what, run, place):
    if what == "a file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "thesis.tex").write_text("mine")
    with pytest.raises(
        OutputExistsError, match=r"not a run folder \(manifest.json is not in it\), so --force does not"
    ):
        run.write(place, force=True)
    assert (place if what == "a file" else place / "thesis.tex").read_text() == "mine"


def test_a_taken_folder_is_refused_before_the_work(place):
    place.mkdir()
    with pytest.raises(OutputExistsError):
        discover(TASK, model="no such model", out=place)


def test_a_folder_inside_a_file_is_refused_before_the_work(place):
    place.write_text("mine")
    with pytest.raises(ConfigError, match=r"mine' is a file"):
        discover(TASK, model="no such model", out=place / "run")


EARLIER = '{"schema": "circuitlab.run/1", "files": {}}'


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("_write_data", KeyboardInterrupt),
        ("_write_pictures", KeyboardInterrupt),
        ("manifest_of", RuntimeError),
        ("cite_run", KeyboardInterrupt),
    ],
)
def test_a_write_that_is_interrupted_leaves_what_was_there(error, step, there_before, run, place, monkeypatch):
    if there_before:
        place.mkdir()
        (place / "manifest.json").write_text(EARLIER)

    def stopped(*given: object) -> None:
        if isinstance(given[-1], Path):
            (given[-1] / "half").write_text("written")
        raise error

    monkeypatch.setattr(write, step, stopped)
    with pytest.raises(error):
        run.write(place, force=True)
    assert (bytes_in(place) == {"manifest.json": EARLIER.encode()}) if there_before else not place.exists()


@pytest.mark.usefixtures("plain")
def test_a_report_that_fails_leaves_nothing(run, place, monkeypatch):
    def fails(folder: Path, *given: object) -> None:
        raise RuntimeError("no page")

    monkeypatch.setattr("circuitlab.report.pages.write_page", fails)
    with pytest.raises(RuntimeError, match="no page"):
        run.write(place)
    assert not place.exists()


@pytest.mark.usefixtures("plain")
def test_the_old_run_is_put_back_when_the_last_rename_fails(run, place, monkeypatch):
    run.write(place)
    before, rename, told = bytes_in(place), os.rename, []

    def fails_once(source: str | Path, target: str | Path) -> None:
        if Path(target) == place and not told:
            told.append(source)
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("circuitlab.outputs.whole.exchange", lambda one, other: False)
    monkeypatch.setattr(whole.os, "replace", fails_once)
    with pytest.raises(KeyboardInterrupt):
        run.write(place, force=True)
    assert told
    try:
        assert bytes_in(place) == before
        assert [path.name for path in place.parent.iterdir()] == [place.name]
    finally:
        for path in set(place.parent.iterdir()) - {place}:
            shutil.rmtree(path)


STEPS = {
    "check_behaviour": "behaviour", "sweep_grids": "grids", "sweep_nodes": "", "score": "scores",
    "select_circuit": "circuit", "evaluate_circuit": "evaluation",
}  # fmt: skip


def home(step: str) -> ModuleType:
    """The module that calls a step."""
    return stability if step == "score" else pipeline


@pytest.fixture
def instant(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps that need the model give at once what they gave to the shared run."""
    for step, attribute in STEPS.items():
        result = getattr(run, attribute) if attribute else SimpleNamespace(effects=dict(run.circuit.node_effects))
        monkeypatch.setattr(home(step), step, lambda *given, result=result, **options: result)


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_is_interrupted_leaves_nothing(step, bundled, place, monkeypatch):
    def stopped(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(home(step), step, stopped)
    with pytest.raises(KeyboardInterrupt):
        discover(TASK, model=bundled, n=2, out=place)
    assert not place.exists()


@pytest.mark.usefixtures("instant", "plain")
def test_a_run_that_is_not_interrupted_is_written(bundled, place):
    """The twin of the check above."""
    assert discover(TASK, model=bundled, n=2, out=place).folder == place
    assert (place / "manifest.json").is_file()


# ------------------------------------------------------------------------------------------------ tasks and settings


def with_prompts(run: Run, **texts: str) -> Run:
    """The run as if its first prompt had held other text."""
    pairs = run.pairs.discovery.pairs
    changed = PairSet((replace(pairs[0], **texts), *pairs[1:]))
    return replace(run, pairs=PairSplits(discovery=changed, held_out=run.pairs.held_out))


@pytest.mark.usefixtures("plain")
def test_a_folder_may_be_named_from_home(run, place, monkeypatch):
    """No shell replaces the `~` of `--out=~/mine`, nor that of a Python string."""
    monkeypatch.setenv("HOME", str(place.parent))
    monkeypatch.chdir(place.parent)
    assert run.write("~/mine").folder == place
    assert (place / "manifest.json").is_file()
    with pytest.raises(OutputExistsError, match=re.escape(repr(str(place)))):
        discover(TASK, model="no such model", out="~/mine")


@pytest.mark.usefixtures("plain")
def test_a_number_that_is_none_is_null_and_the_readers_cope(run, place):
    """A circuit may give an answer no chance at all; JSON has no word for infinity."""
    never = replace(run.evaluation, kl=math.inf, random=(math.nan, *run.evaluation.random[1:]))
    replace(run, evaluation=never).write(place)
    evaluation = strict_json(place / "evaluation.json")
    assert evaluation["kl"] is None
    assert evaluation["random_baseline"]["faithfulness"][:2] == [None, run.evaluation.random[1]]
    told = [headline(read_run(place)), *caveats(read_run(place))]
    assert not [sentence for sentence in told if re.search("inf|nan|None", sentence)], told
    assert FaithfulnessCurve.of({**evaluation, "faithfulness_ci": [None, None]}).interval is None


# ------------------------------------------------------------------------------------------------ citing


def test_the_manifest_holds_the_task_s_sources_and_the_citation(folder, run):
    manifest = strict_json(folder / "manifest.json")
    assert [source["key"] for source in manifest["task"]["sources"]] == [each.key for each in run.task.sources]
    for words in (manifest["task"]["fingerprint"][:16], manifest["dataset_fingerprint"][:16], "@software{circuitlab,"):
        assert words in manifest["bibtex"]
    for source in run.task.sources:
        assert source.bibtex() in manifest["bibtex"]
    assert cite(folder) == manifest["bibtex"]


@pytest.mark.parametrize("kept", ["bibtex", "sources"])
def test_citing_a_run_executes_nothing_of_it(kept, folder, tmp_path):
    """A run folder comes from anybody; its task file is for `reproduce` alone."""
    manifest = strict_json(folder / "manifest.json")
    (tmp_path / "task.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    before = manifest["bibtex"]
    if kept == "sources":
        del manifest["bibtex"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert cite(tmp_path) == before
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("sources", [3, ["a book"], [{"key": "x"}], [{"key": "x", "authors": None}]])
def test_sources_that_are_none_are_told(sources, folder, tmp_path):
    manifest = strict_json(folder / "manifest.json")
    del manifest["bibtex"]
    manifest["task"]["sources"] = sources
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="manifest.json of run .* Run discover again"):
        cite(tmp_path)


def test_a_manifest_that_is_a_list_cannot_be_cited(tmp_path):
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(RunError, match=r"is damaged: it is \[\]; it must be a JSON object"):
        cite(tmp_path)


HARD = 'a "quoted", <b>bold</b> & 日本語 \\ \u2028 \x85 \x1c \t end'


@pytest.mark.usefixtures("plain")
def test_any_text_is_one_line_of_the_data_set(run, place):
    with_prompts(run, clean=HARD).write(place)
    records = [json.loads(line) for line in (place / "dataset.jsonl").read_text(encoding="utf-8").splitlines()]
    assert records[0]["clean"] == HARD
    assert len(records) == 2 * N


@pytest.mark.usefixtures("instant")
def test_the_manifest_spells_the_dtype_as_it_is_asked_for(bundled):
    quiet = inspect.unwrap(discover)(TASK, model=bundled, n=2, dtype=torch.float32, progress=lambda *_: None)
    assert quiet.config.dtype == "float32"


@pytest.mark.usefixtures("instant")
def test_the_manifest_says_in_what_dtype_a_given_model_ran():
    assert discover(TASK, model=load_model("bundled", dtype="float64"), n=2).config.dtype == "float64"


def test_a_whole_number_serves_where_a_float_is_asked_for():
    """The tests' own check of types, on while they run, takes what pyright takes."""
    assert DiscoverConfig(task=TASK, model="bundled", target=1, min_accuracy=0).target == 1


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"n": 0}, "n is 0; it must be a whole number from 1 to 100000"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1; it must be a whole number from 0 to 4294967295"),
        ({"seed": True}, "seed is True"),
        ({"target": 0.0}, "target is 0.0; it must be above 0 and at most 1"),
        ({"target": 1.1}, "target is 1.1"),
        ({"min_accuracy": 1.5}, "min_accuracy is 1.5; it is a share of pairs"),
    ],
)
def test_settings_out_of_range_are_refused_before_the_work(setting, says):
    with pytest.raises(ConfigError) as told:
        inspect.unwrap(discover)(TASK, model="no such model", **setting)
    assert says in str(told.value)


@pytest.mark.usefixtures("instant")
def test_the_seed_reaches_the_prompts_and_the_settings(run, bundled):
    same, other = (discover(TASK, model=bundled, n=N, seed=seed) for seed in (0, 1))
    assert same.pairs.fingerprint == run.pairs.fingerprint
    assert other.pairs.fingerprint != run.pairs.fingerprint
    assert other.config == run.config.replaced(seed=1)


@pytest.mark.usefixtures("instant", "plain")
def test_a_task_made_in_a_session_can_be_run_and_is_named(bundled, place):
    """No file, an own metric: what ran is in the folder all the same."""

    def draw(rng: Random) -> Example:
        name = rng.choice(["Anna", "Mary", "Lisa", "Jane", "Susan", "Laura"])
        return Example(f"{name} is a very good cook.", f"{name} is a very good cook;", " She", " she")

    def own_margin(logits, batch):
        return logits[:, 0]

    discover(
        Task(name="mine", version="3", summary="Mine.", draw=draw, metric=own_margin), model=bundled, n=2, out=place
    )
    manifest = strict_json(place / "manifest.json")
    assert (manifest["task"]["name"], manifest["task"]["version"]) == ("mine", "3")
    assert manifest["config"]["metric"] == "own_margin"
    assert not (place / "task.py").exists()
    assert "good cook" in (place / "dataset.jsonl").read_text()
