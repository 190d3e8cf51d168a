"""Threads on one model, and models, tasks and results that go to other processes."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from architectures import fresh, pairs, save
from torch import Tensor

import circuitlab
from circuitlab import neurons
from circuitlab.errors import MetricError, ModelError, UnsupportedModelError
from circuitlab.metrics import resolve
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.load import load_model

Job = Callable[[BridgeModel], Any]
BATCH = pairs(4)
TEXT = "hello world John"


def _evaluate(model: BridgeModel) -> Any:
    circuit = circuitlab.select(model, circuitlab.score_edges(model, BATCH, method="eap"), BATCH, target=0.5)
    return circuitlab.evaluate(model, circuit, BATCH)


def _rewritten(model: BridgeModel) -> Tensor:
    with model.rewriting("attn_out", 0, lambda out: 2 * out), torch.no_grad():
        return model.bridge(BATCH.clean, return_type="logits", use_cache=False)


# Every way in which a call changes the model for a moment: hooks, replaced projections, ungrouped keys, rules of a
# backward pass, a context that stays open.
JOBS: dict[str, Job] = {
    "sweep": lambda model: circuitlab.sweep(model, BATCH, site=["resid_mid", "head_z", "pattern", "head_k"]),
    "eap-ig": lambda model: circuitlab.score_edges(model, BATCH, method="eap-ig", steps=2),
    "exact": lambda model: circuitlab.score_edges(model, BATCH, method="exact"),
    "relp": lambda model: circuitlab.score_edges(model, BATCH, method="relp"),
    "evaluate": _evaluate,
    "edges": lambda model: circuitlab.patch_edges(model, BATCH),
    "attribution": lambda model: circuitlab.direct_attribution(model, BATCH),
    "texts": lambda model: circuitlab.text_log_probs(model, [TEXT, "Mary left."]),
    "neurons": lambda model: neurons.noise_sensitivity(model, TEXT, 0, 3),
    "rewriting": _rewritten,
}


def whole(model: BridgeModel) -> Tensor:
    return model.whole_logits(BATCH.clean)


def numbers(value: Any) -> list[np.ndarray]:
    """All numbers in a result, in order."""
    if isinstance(value, Tensor):
        return [value.detach().numpy()]
    if isinstance(value, np.ndarray):
        return [value] if value.dtype.kind in "fiub" else []
    if isinstance(value, bool | int | float):
        return [np.array(value)]
    if isinstance(value, Mapping):
        return numbers(list(value.values()))
    if isinstance(value, list | tuple):
        return [number for item in value for number in numbers(item)]
    if dataclasses.is_dataclass(value):
        return numbers([getattr(value, item.name) for item in dataclasses.fields(value)])
    return []


def same(ours: Any, theirs: Any) -> bool:
    ours, theirs = numbers(ours), numbers(theirs)
    return len(ours) == len(theirs) > 0 and all(map(_equal, ours, theirs))


def _equal(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")


def state(model: BridgeModel) -> list[Any]:
    """Hooks, replaced functions, flags and settings of every module."""
    found: list[Any] = []
    for module in dict.fromkeys([*model.bridge.modules(), *model.bridge.original_model.modules()]):
        tables = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        found.append([list(table) for table in tables])
        found.append([module.training, "forward" in vars(module), getattr(module, "num_key_value_groups", None)])
    return found


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What calls give, or raise, that start at the same time, each in a thread of its own."""
    found: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(number: int) -> None:
        start.wait()
        try:
            found[number] = calls[number]()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread waits for good"
    return found


@pytest.fixture(scope="module")
def model() -> BridgeModel:
    # Grouped queries: most is changed on the way.
    return fresh("llama")


@pytest.fixture(scope="module")
def alone(model: BridgeModel) -> dict[str, Any]:
    return {name: job(model) for name, job in JOBS.items()}


@pytest.fixture(scope="module")
def untouched(model: BridgeModel) -> Tensor:
    return whole(model)


class TestOneModel:
    @pytest.mark.parametrize("first", JOBS)
    def test_pairs_of_calls_give_what_each_gives_alone(self, model, alone, first):
        before = state(model)
        for second in list(JOBS)[list(JOBS).index(first) :]:
            found = together(lambda: JOBS[first](model), lambda second=second: JOBS[second](model))
            for name, value in zip((first, second), found, strict=True):
                assert not isinstance(value, BaseException), (first, second, value)
                assert same(value, alone[name]), (first, second, name)
        assert state(model) == before

    def test_the_comparison_would_see_a_difference(self, alone):
        assert all(not same(alone[a], alone[b]) for a, b in itertools.combinations(JOBS, 2))

    def test_two_adapters_of_one_bridge_take_turns(self, model, alone):
        other = load_model(model.bridge)
        assert other is not model
        assert other.lock is model.lock
        found = together(lambda: JOBS["exact"](other), lambda: JOBS["sweep"](model))
        assert same(found[0], alone["exact"])
        assert same(found[1], alone["sweep"])

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_nothing_stays_changed_where_one_raises(self, model, alone, error, untouched):
        calls = 0

        def metric(logits: Tensor, batch: Any) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise error
            return resolve("logit_diff")(logits, batch)

        before = state(model)
        failed, other = together(lambda: circuitlab.sweep(model, BATCH, metric=metric), lambda: JOBS["exact"](model))
        assert isinstance(failed, MetricError if error is ValueError else error)
        assert same(other, alone["exact"])
        assert state(model) == before
        assert same(whole(model), untouched)

    @pytest.mark.parametrize("part", ["attn.q", "mlp"])
    def test_nothing_stays_changed_where_a_module_is_interrupted(self, model, alone, part):
        """As by Ctrl-C in the middle of a block."""
        before, calls = state(model), itertools.count(1)

        def interrupt(*_args: Any) -> None:
            if next(calls) == 4:
                raise KeyboardInterrupt

        handle = model.bridge.blocks[1].get_submodule(part).register_forward_pre_hook(interrupt)
        found = together(lambda: JOBS["exact"](model))
        handle.remove()
        assert isinstance(found[0], KeyboardInterrupt)
        assert state(model) == before
        assert same(JOBS["exact"](model), alone["exact"])

    def test_a_metric_may_run_the_model_in_another_thread_and_wait_for_it(self, model, untouched):
        """The model is free while a metric is computed."""

        def metric(logits: Tensor, batch: Any) -> Tensor:
            assert same(together(lambda: whole(model))[0], untouched)
            return resolve("logit_diff")(logits, batch)

        found, expected = circuitlab.sweep(model, BATCH, metric=metric), circuitlab.sweep(model, BATCH)
        assert np.allclose(found.per_example, expected.per_example, rtol=1e-9)

    def test_an_open_context_keeps_others_out(self, model, untouched):
        with model.rewriting("attn_out", 0, lambda out: 2 * out):
            waiting = threading.Thread(target=lambda: found.append(whole(model)))
            found: list[Any] = []
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive()
            assert not same(whole(model), untouched)
        waiting.join(60)
        assert same(found[0], untouched)


def test_two_models_in_two_threads(model, alone):
    other = fresh("gpt2")
    expected = JOBS["relp"](other)
    found = together(lambda: JOBS["relp"](other), lambda: JOBS["sweep"](model), lambda: fresh("neox", "bfloat16"))
    assert same(found[0], expected)
    assert same(found[1], alone["sweep"])
    assert not isinstance(found[2], BaseException), found[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save("gpt2", tmp_path_factory.mktemp("models") / "gpt2")


def _digest_and_logits(model: BridgeModel) -> tuple[str, list[float]]:
    return model.weights_sha256(), model.whole_logits(BATCH.clean)[0, -1, :5].tolist()


class TestPickle:
    @pytest.mark.parametrize("again", [lambda m: pickle.loads(pickle.dumps(m)), copy.copy, copy.deepcopy])
    def test_a_model_is_loaded_again(self, folder, again):
        model = load_model(folder, dtype="float64", fold_ln=True)
        other = again(model)
        assert other is not model
        assert other.bridge is not model.bridge
        assert (other.id, other.dtype, other.folding) == (model.id, torch.float64, model.folding)
        assert other.weights_sha256() == model.weights_sha256()
        assert torch.equal(other.whole_logits(BATCH.clean), model.whole_logits(BATCH.clean))

    def test_no_weights_are_in_it(self, folder):
        assert len(pickle.dumps(load_model(folder))) < 2000

    def test_a_relative_folder_is_found_from_elsewhere(self, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(folder.parent)
        data = pickle.dumps(load_model("./gpt2"))
        monkeypatch.chdir(tmp_path)
        assert pickle.loads(data).id == "./gpt2"

    def test_a_compiled_model(self):
        model = circuitlab.compile_model("copier").model
        assert pickle.loads(pickle.dumps(model)).weights_sha256() == model.weights_sha256()

    def test_a_booted_bridge_is_refused(self, model):
        booted = load_model(model.bridge)
        for again in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(ModelError, match="was booted by its user and has no name to be loaded again by"):
                again(booted)

    def test_edited_weights_are_refused_on_arrival(self, folder):
        model = load_model(folder)
        model.bridge.blocks[0].mlp.out.original_component.weight.data.mul_(1.5)
        with pytest.raises(ModelError, match="has other weights .* was edited after it was loaded"):
            copy.copy(model)

    def test_hooks_are_refused(self, folder):
        model = load_model(folder)
        model.bridge.blocks[0].mlp.register_forward_hook(lambda _module, _args, out: out)
        with pytest.raises(UnsupportedModelError, match=r"hooks at blocks\.0\.mlp"):
            pickle.dumps(model)

    def test_in_a_spawned_process(self, folder):
        """As joblib and Dask do it."""
        model = load_model(folder, dtype="float64")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply_async(_digest_and_logits, (model,)).get(120)
        assert found[0] == model.weights_sha256()
        assert np.allclose(found[1], model.whole_logits(BATCH.clean)[0, -1, :5].tolist(), rtol=1e-12)

    def test_results_survive(self, model, alone):
        for name in ("sweep", "eap-ig", "evaluate", "edges", "attribution", "texts", "neurons"):
            for again in (pickle.loads(pickle.dumps(alone[name])), copy.deepcopy(alone[name])):
                assert same(again, alone[name]), name
