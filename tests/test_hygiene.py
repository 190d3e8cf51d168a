"""The model and the process stay as they were: after success, after a metric that raises, after a module that does."""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from architectures import as_users_run_it, booted, fresh, load, mixed_pairs, pairs
from torch import Tensor, nn

from circuitlab import Circuit, evaluate, load_model, score_edges, select, sweep
from circuitlab.data.batch import PairBatch
from circuitlab.errors import CircuitLabError, MetricError
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.models.bridge import BridgeModel
from circuitlab.parts import Layout

HOOK_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
FLAGS = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in", "n_key_value_heads")


class BrokenError(Exception):
    """Raised by what these tests break."""


def snapshot(model: BridgeModel) -> dict[str, Any]:
    """All that a run could leave behind in a model."""
    found: dict[str, Any] = {}
    bridge, inner = model.bridge, model.bridge.original_model
    # The bridge does not list every module of the model inside it.
    for path, module in [*bridge.named_modules(remove_duplicate=False), *inner.named_modules(prefix="inner")]:
        found[f"{path}: hooks"] = tuple(tuple(getattr(module, table)) for table in HOOK_TABLES)
        found[f"{path}: training"] = module.training
        found[f"{path}: forward"] = vars(module).get("forward")
        found[f"{path}: groups"] = getattr(module, "num_key_value_groups", None)
        found[f"{path}: key/value heads"] = getattr(getattr(module, "config", None), "n_key_value_heads", None)
    found["flags"] = tuple(getattr(bridge.cfg, flag, None) for flag in FLAGS)
    for path, weight in inner.named_parameters():
        found[f"{path}: value"] = weight.detach().numpy().tobytes()
        found[f"{path}: gradient"] = weight.grad is None
        found[f"{path}: wanted"] = weight.requires_grad
    return found


def process() -> dict[str, Any]:
    """The state of the process that numerical code likes to change."""
    return {
        "torch generator": torch.get_rng_state().numpy().tobytes(),
        "numpy generator": np.random.get_state()[1].tobytes(),  # noqa: NPY002
        "random": random.getstate(),
        "gradients on": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


Job = Callable[[BridgeModel, Any], object]


def whole_circuit(model: BridgeModel) -> Circuit:
    layout = Layout.of(model.spec)
    scores = np.random.default_rng(0).normal(size=(len(layout.writers), len(layout.readers))) * real_edges(layout)
    return Circuit(spec=model.spec, mask=real_edges(layout), scores=scores)


def by_selection(model: BridgeModel, metric: Any) -> object:
    scores = score_edges(model, pairs(), steps=1)
    return select(model, scores, pairs(), 0.9, metric=metric)


JOBS: dict[str, Job] = {
    "sweep": lambda model, metric: sweep(model, pairs(), ["resid_pre", "head_q", "pattern"], metric=metric),
    "eap-ig": lambda model, metric: score_edges(model, pairs(), steps=2, metric=metric),
    "exact": lambda model, metric: score_edges(model, pairs(), "exact", metric=metric),
    "node sweep": lambda model, metric: score_edges(model, pairs(), "sweep", metric=metric),
    "select": by_selection,
    "evaluate": lambda model, metric: evaluate(model, whole_circuit(model), pairs(), metric=metric, n_random=2),
}
# Grouped queries and post-norms change most on the way; GPT-2 has dropout; SoLU is one of TransformerLens's own models.
TESTED = ("gpt2", "llama", "gemma2", "solu")


@pytest.fixture(scope="module", params=TESTED)
def model(request: pytest.FixtureRequest) -> BridgeModel:
    """A model of its own in training mode but for one block, with a hook of the user's and a weight that is trained."""
    model = fresh(request.param, "float32")
    model.bridge.train()
    model.bridge.blocks[1].eval()
    next(model.bridge.original_model.parameters()).requires_grad_(True)
    model.bridge.blocks[0].mlp.register_forward_hook(lambda module, args, out: None)
    return model


@pytest.fixture(autouse=True)
def _as_users_run_it() -> Iterator[None]:
    """The type checker that other tests switch on draws from `random`."""
    with as_users_run_it():
        yield


@pytest.fixture(autouse=True)
def _unchanged(request: pytest.FixtureRequest, _as_users_run_it: None) -> Iterator[None]:
    if "model" not in request.fixturenames:
        yield
        return
    model = request.getfixturevalue("model")
    torch.manual_seed(7)
    before = snapshot(model) | process()
    yield
    assert differences(before, snapshot(model) | process()) == []


def raising_at(call: int) -> Callable[[Tensor, PairBatch], Tensor]:
    """The default metric, until the given call."""
    calls = 0

    def metric(logits: Tensor, batch: PairBatch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise BrokenError
        return resolve("logit_diff")(logits, batch)

    return metric


def breaking(module: nn.Module, call: int) -> Any:
    """Make a module raise at the given call; returns the handle."""
    calls = 0

    def hook(_module: nn.Module, _args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise BrokenError

    return module.register_forward_pre_hook(hook)


@pytest.mark.parametrize("job", JOBS)
def test_after_success(model, job):
    assert JOBS[job](model, "logit_diff")


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("call", [1, 3])
def test_after_a_metric_that_raises(model, job, call):
    with pytest.raises(MetricError, match="metric 'metric' raised BrokenError") as caught:
        JOBS[job](model, raising_at(call))
    assert isinstance(caught.value.__cause__, BrokenError)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(("part", "call"), [("mlp", 1), ("mlp", 4), ("attn.o", 2), ("attn.q", 3)])
def test_after_a_module_that_raises(model, job, part, call):
    """In the middle of a block, with hooks, replaced projections and ungrouped keys in place."""
    handle = breaking(model.bridge.blocks[1].get_submodule(part), call)
    try:
        with pytest.raises(BrokenError):
            JOBS[job](model, "logit_diff")
    finally:
        handle.remove()


def test_after_a_mistake(model):
    for job in (
        lambda: sweep(model, pairs(), "head_zz"),
        lambda: sweep(model, pairs(), metric=lambda logits, batch: logits.mean()),
        lambda: score_edges(model, pairs(), metric="accuracy"),
        lambda: evaluate(model, whole_circuit(model), pairs(), n_random=-1),
        lambda: select(model, score_edges(model, pairs(), steps=1), pairs(), 7.0),
    ):
        with pytest.raises(CircuitLabError):
            job()


@pytest.mark.parametrize("job", JOBS)
def test_whatever_the_gradient_mode_is(model, job):
    """Called inside `no_grad`, or with gradients on: the same numbers, and the mode as before."""
    with torch.no_grad():
        quiet = JOBS[job](model, "logit_diff")
        assert not torch.is_grad_enabled()
    assert numbers(JOBS[job](model, "logit_diff")) == pytest.approx(numbers(quiet))


def numbers(found: Any) -> np.ndarray:
    """Whatever a job found, as one array."""
    if isinstance(found, Mapping):
        return np.concatenate([grid.per_example.ravel() for grid in found.values()])
    for name in ("values", "circuit", "mask"):
        if hasattr(found, name):
            return np.asarray(getattr(found, name), dtype=float).ravel()
    raise AssertionError(found)


class TestModes:
    """Dropout is off while circuitlab runs, whatever mode the user's model is in."""

    @pytest.mark.parametrize("job", JOBS)
    def test_training_mode_changes_no_number(self, job):
        model, expected = fresh("gpt2"), JOBS[job](load("gpt2"), "logit_diff")
        model.bridge.train()
        assert numbers(JOBS[job](model, "logit_diff")) == pytest.approx(numbers(expected), abs=1e-9)
        assert model.bridge.training

    def test_the_check_can_fail(self):
        """The twin: GPT-2's own forward pass in training mode does drop out."""
        bridge = booted("gpt2")
        quiet = bridge(pairs().clean)
        bridge.train()
        assert not torch.allclose(bridge(pairs().clean), quiet)


class TestTheSnapshot:
    """It sees what it is there to see."""

    @pytest.mark.parametrize(
        ("what", "change"),
        [
            ("training", lambda bridge: bridge.original_model.train()),
            ("hooks", lambda bridge: bridge.blocks[0].attn.q.register_forward_hook(lambda *_: None)),
            ("hooks", lambda bridge: bridge.blocks[0].register_forward_pre_hook(lambda *_: None, with_kwargs=True)),
            ("hooks", lambda bridge: bridge.ln_final.register_full_backward_hook(lambda *_: None)),
            ("forward", lambda bridge: object.__setattr__(bridge.blocks[0].attn.o, "forward", len)),
            ("training", lambda bridge: bridge.blocks[1].mlp.train()),
            ("groups", lambda bridge: setattr(bridge.blocks[0].attn.original_component, "num_key_value_groups", 1)),
            ("flags", lambda bridge: bridge.set_use_attn_result(True)),
            ("value", lambda bridge: next(bridge.original_model.parameters()).data.view(-1)[:1].add_(1)),
            ("gradient", lambda bridge: setattr(p := next(bridge.original_model.parameters()), "grad", p.detach())),
        ],
    )
    def test_changes_are_seen(self, what, change):
        model = fresh("llama")
        before = snapshot(model)
        assert differences(before, snapshot(model)) == []
        change(model.bridge)
        assert any(what in key for key in differences(before, snapshot(model)))

    def test_the_process_too(self):
        before = process()
        try:
            torch.rand(1)
            torch.set_grad_enabled(False)
            assert differences(before, process()) == ["gradients on", "torch generator"]
        finally:
            torch.set_grad_enabled(True)


def test_inputs_are_not_changed():
    batch = pairs()
    tensors = {
        name: getattr(batch, name).clone() for name in ("clean", "corrupt", "answers", "distractors", "answer_at")
    }
    for job in JOBS.values():
        job(load("gpt2"), "logit_diff")
    mixed = mixed_pairs()
    sweep(load("gpt2"), mixed, "resid_pre")
    score_edges(load("gpt2"), batch)
    assert all((getattr(batch, name) == tensor).all() for name, tensor in tensors.items())
    assert mixed.fingerprint == mixed_pairs().fingerprint


def test_two_runs_give_the_same_numbers():
    for job in JOBS.values():
        first, second = (numbers(job(load("llama", "float32"), "logit_diff")) for _ in range(2))
        assert (first == second).all()


def test_verification_leaves_a_users_bridge_alone():
    bridge = booted("llama")
    bridge(pairs().clean)  # on its first pass a bridge sets hooks of its own
    before = snapshot(BridgeModel(bridge, "mine"))
    after = snapshot(load_model(bridge))
    assert differences(before, after) == []
