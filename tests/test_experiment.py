"""An experiment records, resolves and checks once, and what does not fit again; nothing is handed on by name."""

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from architectures import load, pairs
from experiments import clean_and_empty

import circuitlab
from circuitlab import MetricError, discover, evaluate, select, sweep
from circuitlab.discovery.scoring import score
from circuitlab.discovery.selection import select_circuit
from circuitlab.evaluation.evaluate import evaluate_circuit
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.models.load import load_model
from circuitlab.models.verify import verify_once
from circuitlab.parts import Layout
from circuitlab.patching import experiment as module
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.recordings import Recordings, n_bytes
from circuitlab.patching.sweeps.sweep import sweep_grids
from circuitlab.resources import Resources

PACKAGE = Path(circuitlab.__file__).parent
PUBLIC = {"checked", "model_function", "reports_progress"}  # decorators
HANDED_ON = {"budget", "progress", "reference"}
METRIC = resolve("logit_diff")


class Counting:
    """A model that counts how often each prompt is recorded, but for its verification as a model of another class."""

    def __init__(self, model: Any) -> None:
        self._model, self.prompts = model, Counter()
        verify_once(cast("Any", self))
        self.prompts.clear()

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def record(self, tokens: torch.Tensor):
        self.prompts.update(map(tuple, tokens.tolist()))
        return self._model.record(tokens)


@pytest.fixture
def counted(monkeypatch) -> Counter:
    """Calls of what an experiment asks for once."""
    found = Counter()

    def counting(name: str):
        function = getattr(module, name)

        def call(*args, **kwargs):
            found[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    counting("resolve_replacement")
    counting("check_gap")
    return found


class TestDiscover:
    def test_each_split_is_recorded_resolved_and_checked_once(self, counted, monkeypatch):
        model, prompts = load_model("bundled"), Counter()
        record = type(model).record

        def counting(self, tokens):
            prompts.update(map(tuple, tokens.tolist()))
            return record(self, tokens)

        monkeypatch.setattr(type(model), "record", counting)
        run = discover("html-tag-closing", model=model, n=8, sites=["head_z"], allow_weak_gap=True)
        expected = Counter()
        for split in (run.pairs.discovery, run.pairs.held_out):
            for pair in split:
                expected.update([tuple(pair.clean_ids), tuple(pair.corrupt_ids)])
        assert prompts == expected
        assert counted == {"resolve_replacement": 2, "check_gap": 2}

    def test_each_file_of_the_folder_is_hashed_once(self, monkeypatch, tmp_path):
        hashed, digest, folder = Counter(), hashlib.file_digest, tmp_path / "run"

        def counting(file, name):
            hashed[Path(file.name).name] += 1
            return digest(file, name)

        monkeypatch.setattr(hashlib, "file_digest", counting)
        discover("html-tag-closing", model="bundled", n=8, sites=["head_z"], allow_weak_gap=True, out=folder)
        written = {path.name for path in folder.rglob("*") if path.is_file()} - {"manifest.json"}
        assert hashed == dict.fromkeys(written, 1)
        # The twin: a reader of the folder hashes its files again, each once; the report is not read.
        circuitlab.load_run(folder)
        assert hashed == dict.fromkeys(written, 2) | {"report.html": 1}

    def test_the_twin_public_functions_one_by_one_record_again(self, counted):
        model: Any = Counting(load("gpt2"))
        for _ in range(2):
            sweep(model, pairs(), "head_z")
        assert set(model.prompts.values()) == {2}
        assert counted["check_gap"] == 2

    def test_one_experiment_serves_all_of_them(self, counted):
        model: Any = Counting(load("gpt2"))
        on = Experiment(model, pairs(), METRIC, "zero")
        assert not on.gap.weak
        scores = score(on, "eap")
        circuit = select_circuit(on, scores, circuitlab.SelectionRule(n_edges=8))
        found, grid = evaluate_circuit(on, circuit, n_random=2), sweep_grids(on.under_corrupt(), ["head_z"])["head_z"]
        assert set(model.prompts.values()) == {1}
        assert counted == {"resolve_replacement": 1, "check_gap": 2}  # the empty circuit's gap, and that of the prompts
        alone = evaluate(load("gpt2"), circuit, pairs(), metric=METRIC, ablation="zero", n_random=2)
        assert found.to_record() == alone.to_record()
        again = sweep(load("gpt2"), pairs(), "head_z", metric=METRIC)
        assert (grid.per_example == again.per_example).all()
        assert (select(load("gpt2"), scores, pairs(), n_edges=8).mask == circuit.mask).all()


class TestValues:
    def test_the_whole_graph_and_no_edge(self):
        on, real = Experiment(load("gpt2"), pairs(), METRIC), real_edges(Layout.of(load("gpt2").spec))
        assert on.faithfulness(np.stack([real, np.zeros_like(real)])) == pytest.approx([1, 0], abs=1e-9)
        assert on.empty is on.corrupt
        assert on.gap.mean == pytest.approx((on.clean - on.corrupt).mean())

    def test_by_another_metric_it_shares_the_runs(self):
        model: Any = Counting(load("gpt2"))
        on = Experiment(model, pairs(), METRIC, "zero")
        clean_and_empty(on, METRIC)
        clean_and_empty(on, resolve("log_prob"))
        assert set(model.prompts.values()) == {1}

    def test_a_weak_gap_is_refused_when_it_is_asked_for(self):
        batch = pairs()
        same = circuitlab.PairBatch.from_tokens(batch.clean, batch.clean, batch.answers, batch.distractors)
        on = Experiment(load("gpt2"), same, METRIC, allow_weak_gap=True)
        assert (on.clean == on.corrupt).all()
        with pytest.raises(MetricError, match="nothing to explain"):
            _ = on.gap


class TestMemory:
    def test_what_does_not_fit_is_recorded_again(self):
        model, fits = (cast("Any", Counting(load("gpt2"))) for _ in range(2))
        small = Experiment(model, pairs(), METRIC, budget=_budget_of_one())
        assert len(small.batches) > 1
        large = Experiment(fits, pairs(), METRIC)
        for on in (small, large):
            for _ in range(2):
                list(on.baselines)
        assert set(fits.prompts.values()) == {1}
        assert max(model.prompts.values()) == 2
        assert sum(model.prompts.values()) == 2 * small.recordings.n_recorded > 2 * small.n_examples
        assert small.clean == pytest.approx(large.clean, abs=1e-10)

    def test_no_more_is_kept_than_the_budget(self):
        recordings = Recordings(load("gpt2"), pairs(), Resources(2**20))
        runs = list(recordings.baselines())
        kept = sum(n_bytes(value) for value in recordings._kept.values())
        assert kept <= 2**20
        assert kept < sum(map(n_bytes, runs)) or sum(map(n_bytes, runs)) <= 2**20

    def test_released_runs_are_recorded_again(self):
        model: Any = Counting(load("gpt2"))
        on = Experiment(model, pairs(), METRIC)
        clean = on.clean
        on.recordings.release()
        list(on.baselines)
        assert set(model.prompts.values()) == {2}
        assert on.clean is clean

    def test_a_part_of_a_recording_is_that_of_its_prompts(self):
        on = Experiment(load("gpt2"), pairs(), METRIC)
        (batch,) = on.batches
        part = batch.take(torch.arange(1, 3))
        found, whole = on.recordings.baseline(part), next(on.baselines)
        assert (found.clean.resid_final == whole.clean.resid_final[1:3]).all()
        assert (found.corrupt_logits == whole.corrupt_logits[1:3]).all()
        assert (on.recordings.prompt(2).z[0] == whole.clean.z[0][2:3]).all()


def _budget_of_one() -> int:
    """Bytes that hold a packed prompt, and recordings of less than all."""
    from circuitlab.patching.runs.packing import bytes_per_row

    return 2 * bytes_per_row(load("gpt2"), pairs().n_tokens, 2 * len(Layout.of(load("gpt2").spec).writers))


class TestSignatures:
    """Below the public functions nothing takes a budget, progress or reference pairs one by one."""

    def test_they_stand_in_public_functions_only(self):
        assert {name: found for name, found in _handed_on(PACKAGE) if found} == {}

    def test_the_twin_a_function_below_is_found(self, tmp_path):
        (tmp_path / "inner.py").write_text(
            "def inner(model, *, budget=None, progress=None): ...\n"
            "@model_function\ndef outer(model, *, budget=None): ...\n"
        )
        assert dict(_handed_on(tmp_path)) == {"inner.py:inner": {"budget", "progress"}}


def _handed_on(package: Path) -> Iterator[tuple[str, set[str]]]:
    """Functions that take one of the three names and are no public ones, outside the command line."""
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package).as_posix()
        if where.startswith("cli/") or where == "progress.py":
            continue
        for owner, function in _functions(ast.parse(path.read_text())):
            decorated = {getattr(d, "id", None) for d in function.decorator_list}
            public = decorated & PUBLIC or {owner, function.name} & set(circuitlab.__all__)
            arguments = function.args
            names = {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
            if names & HANDED_ON and not public:
                yield f"{where}:{function.name}", names & HANDED_ON


def _functions(tree: ast.Module) -> Iterator[tuple[str | None, ast.FunctionDef]]:
    """Every function, with the class that it is a method of."""
    owners = {method: node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for method in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield owners.get(node), node


def test_experiments_on_the_same_pairs_share_their_recordings():
    on = Experiment(load("gpt2"), pairs(), METRIC, "zero")
    others = (on.quiet(), on.measured_by(resolve("kl")), on.under_corrupt())
    assert all(one.recordings is on.recordings for one in others)
    assert on.on(pairs()).recordings is not on.recordings
