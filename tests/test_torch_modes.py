"""Calls give the same numbers under whatever modes of torch their caller has switched on."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from architectures import fresh, native, pairs
from test_threads import JOBS, same

import circuitlab
from circuitlab import features, neurons
from circuitlab.data.batch import PairBatch
from circuitlab.errors import ConfigError, UnsupportedModelError
from circuitlab.models import memory
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.load import load_model
from circuitlab.models.modes import in_ordinary_modes
from circuitlab.patching.runs.packing import LEAST, Packer, default_budget

BATCH = pairs(4)


@contextmanager
def _set(switch: Callable[[Any], None], value: Any, back: Any) -> Iterator[None]:
    switch(value)
    try:
        yield
    finally:
        switch(back)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomaly detection": torch.autograd.detect_anomaly,
    "default dtype float64": lambda: _set(torch.set_default_dtype, torch.float64, torch.float32),
    "default dtype bfloat16": lambda: _set(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default device": lambda: _set(torch.set_default_device, "meta", None),
    "deterministic": lambda: _set(torch.use_deterministic_algorithms, True, False),
}


@pytest.fixture(scope="module")
def model() -> BridgeModel:
    # In float32, which autocast would round.
    return fresh("llama", "float32")


@pytest.fixture(scope="module")
def alone(model: BridgeModel) -> dict[str, Any]:
    found = {name: job(model) for name, job in JOBS.items() if name != "rewriting"}
    return found | {"acdc": circuitlab.score_edges(model, BATCH, method="acdc", threshold=0.05)}


def job(name: str) -> Callable[[BridgeModel], Any]:
    return JOBS.get(name) or (lambda model: circuitlab.score_edges(model, BATCH, method="acdc", threshold=0.05))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("mode", MODES)
def test_calls_under_a_mode(model, alone, mode):
    for name, expected in alone.items():
        with MODES[mode]():
            found = job(name)(model)
        assert same(found, expected), name


@pytest.mark.parametrize("mode", ["inference_mode", "autocast"])
def test_a_mode_is_as_before_afterwards(model, mode):
    with MODES[mode]():
        circuitlab.sweep(model, BATCH)
        with pytest.raises(ConfigError):
            circuitlab.sweep(model, BATCH, budget=1)
        assert torch.is_inference_mode_enabled() == (mode == "inference_mode")
        assert torch.is_autocast_enabled("cpu") == (mode == "autocast")


@pytest.mark.parametrize("mode", ["inference_mode", "autocast"])
def test_methods_of_the_model_under_a_mode(model, mode):
    run, arguments = model.record(BATCH.clean), model.block_arguments(BATCH.clean)
    steps: list[Callable[[], torch.Tensor]] = [
        lambda: model.whole_logits(BATCH.clean),
        lambda: model.record(BATCH.clean).resid_final,
        lambda: model.run_blocks(run.resid_pre[0], 0, arguments),
        lambda: model.mlp_output(0, run.resid_pre[0]),
        lambda: model.logits(run.resid_final[:, -1]),
        lambda: model.attend(0, run.q[0], run.k[0], run.v[0], arguments),
    ]
    for number, step in enumerate(steps):
        expected = step()
        with MODES[mode]():
            found = step()
        assert torch.equal(found.clone(), expected), number
        assert not found.is_inference()


def test_autocast_would_change_the_model_itself(model):
    """The twin: these numbers are not the same because nothing happens."""
    with torch.no_grad():
        plain = model.bridge(BATCH.clean, return_type="logits", use_cache=False)
        with MODES["autocast"]():
            rounded = model.bridge(BATCH.clean, return_type="logits", use_cache=False)
    assert (plain - rounded).abs().max() > 1e-3


def test_pairs_and_models_made_in_inference_mode(model, alone):
    with torch.inference_mode():
        batch = PairBatch.from_tokens(*(getattr(BATCH, name).clone() for name in ("clean", "corrupt", "answers")),
                                      BATCH.distractors.clone(), BATCH.answer_at.clone())  # fmt: skip
        loaded = load_model("bundled")
        inside = circuitlab.score_edges(model, batch, method="eap-ig", steps=2)
    assert batch.clean.is_inference()
    assert same(inside, alone["eap-ig"])
    assert same(circuitlab.score_edges(model, batch, method="eap-ig", steps=2), alone["eap-ig"])
    assert not any(weight.is_inference() for weight in loaded.bridge.original_model.parameters())


def test_weights_made_in_inference_mode_are_refused():
    bridge = native()
    with torch.inference_mode():
        made = torch.ones_like(bridge.ln_final.original_component.weight)
    bridge.ln_final.original_component.weight = torch.nn.Parameter(made, requires_grad=False)
    with pytest.raises(UnsupportedModelError, match=r"weights were made under torch\.inference_mode"):
        load_model(bridge)


class TestFlags:
    def test_training_mode_and_trained_weights(self, alone):
        model = fresh("llama", "float32")
        model.bridge.train()
        for weight in model.bridge.original_model.parameters():
            weight.requires_grad_(True)
        for name, expected in alone.items():
            assert same(job(name)(model), expected), name
        assert all(module.training for module in model.bridge.original_model.modules())
        assert all(weight.grad is None for weight in model.bridge.original_model.parameters())

    def test_gradients_still_reach_the_stream(self, model):
        stream = model.record(BATCH.clean).resid_pre[0].requires_grad_()
        model.mlp_output(0, stream).sum().backward()
        assert stream.grad is not None
        assert stream.grad.abs().max() > 0


@pytest.mark.parametrize("package", [circuitlab, neurons, features])
def test_every_public_function_that_runs_a_model_is_covered(package):
    found = {name: getattr(package, name) for name in package.__all__}
    taken = {
        name: f for name, f in found.items() if inspect.isfunction(f) and "model" in inspect.signature(f).parameters
    }
    assert taken
    # What `attached` returns is entered by its caller, whose modes it runs under.
    assert [name for name, f in taken.items() if not _is_covered(f)] == ["attached"] * (package is features)


def _is_covered(function: Any) -> bool:
    ours = in_ordinary_modes(lambda: None).__code__
    while function is not None:
        if function.__code__ is ours:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


OUT_OF_MEMORY = {
    "oneDNN": RuntimeError("could not create a primitive"),
    "oneDNN later": RuntimeError("could not execute a primitive"),
    "torch": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes."),
    "Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes."),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
    "system": OSError(12, "Cannot allocate memory"),
    "CUDA": torch.OutOfMemoryError("CUDA out of memory."),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}
OTHER = (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(2, "No such file"), ValueError("memory"))


class TestMemory:
    @pytest.mark.parametrize("kind", OUT_OF_MEMORY)
    def test_packs_are_halved(self, kind):
        done: list[slice] = []

        def run(part: slice) -> None:
            if part.stop - part.start > 3:
                raise OUT_OF_MEMORY[kind]
            done.append(part)

        with pytest.warns(ResourceWarning, match="out of memory with 10 rows"):
            Packer().run(10, 10, run)
        assert [row for part in done for row in range(part.start, part.stop)] == list(range(10))

    @pytest.mark.parametrize("error", OTHER)
    def test_other_errors_are_not_taken_for_it(self, error):
        def run(_part: slice) -> None:
            raise error

        with pytest.raises(type(error)):
            Packer().run(10, 10, run)

    @pytest.mark.parametrize("kind", OUT_OF_MEMORY)
    def test_where_nothing_is_packed_it_is_told_in_one_line(self, kind, model, monkeypatch):
        def never(*_args: Any, **_kwargs: Any) -> None:
            raise OUT_OF_MEMORY[kind]

        monkeypatch.setattr(type(model), "read_attention", never)
        with pytest.raises(ConfigError, match="memory ran out .* Give a smaller budget="):
            circuitlab.score_edges(model, BATCH, method="eap")

    def test_the_budget_knows_the_limits_of_the_system(self, monkeypatch, tmp_path):
        (tmp_path / "max").write_text("1000000000\n")
        (tmp_path / "current").write_text("600000000\n")
        monkeypatch.setattr(memory, "CONTROL_GROUPS", ((str(tmp_path / "max"), str(tmp_path / "current")),))
        assert default_budget(torch.device("cpu")) == 100_000_000
        (tmp_path / "max").write_text("max\n")
        assert default_budget(torch.device("cpu")) > 2**20

    @pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
    def test_a_limit_of_the_process(self, monkeypatch):
        import resource

        import psutil

        taken = psutil.Process().memory_info().vms
        monkeypatch.setattr(resource, "getrlimit", lambda _kind: (taken + 2**20, resource.RLIM_INFINITY))
        assert default_budget(torch.device("cpu")) == LEAST
        monkeypatch.setattr(resource, "getrlimit", lambda _kind: (taken + 200 * 2**20, resource.RLIM_INFINITY))
        assert LEAST < default_budget(torch.device("cpu")) <= 50 * 2**20
