"""Soft masks: exact where they are 0 and 1, with the right slope, and at full masks the slope that EAP takes."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, BIDIRECTIONAL, NATIVE, load, pairs

from circuitlab import score_edges
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.circuits.circuits import run_circuits
from circuitlab.patching.circuits.soft_circuit import SoftCircuit
from circuitlab.patching.experiment import Experiment

ALL = (*ARCHITECTURES, *NATIVE, *BIDIRECTIONAL)
METRIC = resolve("logit_diff")


def made(name: str, ablation: str = "corrupt") -> tuple[Model, SoftCircuit, np.ndarray]:
    model = load(name)
    prepared = Experiment(model, pairs(), ablation=ablation)
    soft = SoftCircuit(model, *next(prepared.runs))
    return model, soft, real_edges(Layout.of(model.spec))


def random_mask(real: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    return real & (np.random.default_rng(seed).random(real.shape) < share)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_hard_masks_are_circuits(name, ablation):
    model, soft, real = made(name, ablation)
    masks = np.stack([random_mask(real, share) for share in (0, 0.3, 0.7, 1)])
    ablated = Experiment(model, pairs(), ablation=ablation).ablated(
        next(Experiment(model, pairs(), ablation=ablation).baselines)
    )
    expected = run_circuits(model, soft.baseline, torch.tensor(masks), ablated)
    for mask, final in zip(masks, expected, strict=True):
        found = soft.final(torch.tensor(mask).to(model.dtype).expand(len(soft), -1, -1))
        torch.testing.assert_close(found, final, rtol=0, atol=1e-5)
    assert (expected[1] - expected[2]).abs().max() > 1e-2


def test_each_example_has_its_own_mask():
    model, soft, real = made("gpt2")
    masks = torch.stack([torch.tensor(random_mask(real, 0.5, seed)) for seed in range(len(soft))]).to(model.dtype)
    together = soft.final(masks)
    for row in range(len(soft)):
        alone = soft.final(masks[row : row + 1], torch.tensor([row]))
        torch.testing.assert_close(alone[0], together[row])
    assert (together - soft.final(masks.flip(0))).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "gemma2", "olmo2", "granite"])
def test_the_slope_is_that_of_finite_differences(name):
    model, soft, real = made(name)
    rng = np.random.default_rng(0)
    z = torch.tensor(real * rng.random(real.shape)).to(model.dtype).expand(len(soft), -1, -1)
    slope = _slope(model, soft, z)
    places = rng.permutation(np.argwhere(real))[:6]
    # Softmaxes and norms are float32 in some models whatever their weights are.
    width = 1e-5 if name == "gpt2" else 1e-2
    for row, column in places:
        step = torch.zeros_like(z)
        step[:, row, column] = width
        ends = [METRIC(model.logits(soft.final(z + sign * step)), soft.baseline.batch) for sign in (1, -1)]
        measured = (ends[0] - ends[1]) / (2 * width)
        close = {"rtol": 1e-6, "atol": 1e-8} if name == "gpt2" else {"rtol": 0.02, "atol": 2e-3}
        torch.testing.assert_close(slope[:, row, column], measured, **close)


@pytest.mark.parametrize("name", ALL)
def test_the_slope_at_full_masks_is_eap(name):
    """Not its negative, and not the slope at another mask."""
    model, soft, real = made(name)
    full = torch.tensor(real).to(model.dtype).expand(len(soft), -1, -1)
    slope = (_slope(model, soft, full).mean(0).numpy()) * real
    eap = score_edges(model, pairs(), "eap").values
    assert slope == pytest.approx(eap, abs=1e-6)
    half = (_slope(model, soft, 0.5 * full).mean(0).numpy()) * real
    assert np.abs(half - eap).max() > 1e-2
    assert np.abs(-slope - eap).max() > 1e-2


def test_nothing_is_left_in_the_model():
    model, soft, real = made("gpt2")
    before = {name: weight.clone() for name, weight in model.bridge.named_parameters()}
    _slope(model, soft, torch.tensor(real).to(model.dtype).expand(len(soft), -1, -1))
    assert all(weight.grad is None for weight in model.bridge.parameters())
    assert all((weight == before[name]).all() for name, weight in model.bridge.named_parameters())


def _slope(model: Model, soft: SoftCircuit, z: torch.Tensor) -> torch.Tensor:
    z = z.clone().requires_grad_()
    values = METRIC(model.logits(soft.final(z)), soft.baseline.batch)
    (slope,) = torch.autograd.grad(values.sum(), z)
    return slope
