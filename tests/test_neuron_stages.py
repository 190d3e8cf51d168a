"""Neurons before their activation, behind it, and in front of the output projection: against plain hooks on modules."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from architectures import D_MODEL, NATIVE, TOLERANCE, fresh, load, native, pairs
from torch import Tensor
from torch.nn import functional

from circuitlab.errors import ConfigError, UnsupportedModelError
from circuitlab.models.load import load_model
from circuitlab.models.surgery import hook_tables
from circuitlab.parts import Stage
from circuitlab.patching.runs.neuron_values import neuron_values, run_to_mlp

# Where plain torch hooks see each stage: a module's path in the block as a checkpoint has it, and which side of it.
SIDES: dict[str, dict[Stage, tuple[str, str]]] = {
    "gpt2": {Stage.PRE: ("mlp.in", "out"), Stage.MID: ("mlp.out", "in"), Stage.POST: ("mlp.out", "in")},
    "neo": {Stage.PRE: ("mlp.in", "out"), Stage.MID: ("mlp.out", "in"), Stage.POST: ("mlp.out", "in")},
    "neox": {Stage.PRE: ("mlp.in", "out"), Stage.MID: ("mlp.out", "in"), Stage.POST: ("mlp.out", "in")},
    "llama": {Stage.PRE: ("mlp.gate", "out"), Stage.MID: ("mlp.out", "in"), Stage.POST: ("mlp.out", "in")},
    "gemma2": {Stage.PRE: ("mlp.gate", "out"), Stage.MID: ("mlp.out", "in"), Stage.POST: ("mlp.out", "in")},
    "olmo2": {Stage.PRE: ("mlp.gate", "out"), Stage.MID: ("mlp.out", "in"), Stage.POST: ("mlp.out", "in")},
    "granite": {Stage.PRE: ("mlp.gate", "out"), Stage.MID: ("mlp.out", "in"), Stage.POST: ("mlp.out", "in")},
    "mpt": {Stage.PRE: ("mlp.in", "out"), Stage.MID: ("mlp.out", "in"), Stage.POST: ("mlp.out", "in")},
    "bloom": {Stage.PRE: ("mlp.in", "out"), Stage.MID: ("mlp.out", "in"), Stage.POST: ("mlp.out", "in")},
    "native": {Stage.PRE: ("mlp.in", "out"), Stage.MID: ("mlp.out", "in"), Stage.POST: ("mlp.out", "in")},
    "solu": {Stage.PRE: ("mlp.in", "out"), Stage.MID: ("mlp.ln", "in"), Stage.POST: ("mlp.out", "in")},
}
GATED = ("llama", "gemma2", "olmo2", "granite")
CASES = [(name, stage) for name in SIDES for stage in Stage]


def _module(block: Any, path: str) -> Any:
    """The checkpoint's own module; of a norm the one around it, which does its work."""
    found = block.get_submodule(path)
    return found if path.endswith("ln") else found.original_component


@torch.no_grad()
def hooked(name: str, layer: int, stage: Stage) -> Tensor:
    """The value in the model's own forward pass, by a hook on the checkpoint's own module."""
    model, (path, side) = load(name), SIDES[name][stage]
    module = _module(model.bridge.blocks[layer], path)
    kept: list[Tensor] = []
    with ExitStack() as stack:
        hook = module.register_forward_hook(lambda _m, args, out: kept.append(args[0] if side == "in" else out))
        stack.callback(hook.remove)
        model.bridge(pairs().clean)
    return kept[0]


class TestStages:
    @pytest.mark.parametrize(("name", "stage"), CASES)
    @pytest.mark.parametrize("layer", [0, 1])
    def test_every_token_as_plain_hooks_see_it(self, name, stage, layer):
        found = neuron_values(load(name), pairs().clean, layer, stage)
        assert found.numpy() == pytest.approx(hooked(name, layer, stage).numpy(), abs=TOLERANCE[name])
        assert not found.requires_grad

    @torch.no_grad()
    @pytest.mark.parametrize("name", SIDES)
    def test_stages_are_not_each_other(self, name):
        pre, mid, post = (neuron_values(load(name), pairs().clean, 1, stage) for stage in Stage)
        assert float((pre - mid).abs().max()) > 0.1
        assert (float((mid - post).abs().max()) > 0.1) == (name == "solu")

    def test_solu_by_its_formula(self):
        pre, mid, post = (neuron_values(load("solu"), pairs().clean, 1, stage) for stage in Stage)
        norm = load("solu").bridge.blocks[1].mlp.ln.original_component
        assert mid.numpy() == pytest.approx((pre * pre.softmax(-1)).numpy(), abs=1e-12)
        normed = functional.layer_norm(mid, mid.shape[-1:], norm.weight, norm.bias, norm.eps)
        assert post.numpy() == pytest.approx(normed.numpy(), abs=1e-12)

    @torch.no_grad()
    @pytest.mark.parametrize(("name", "stage"), CASES)
    def test_the_rest_follows_from_a_stage(self, name, stage):
        model, run = load(name), load(name).record(pairs().clean)
        read = run_to_mlp(model, run.resid_pre[0], 1, model.block_arguments(pairs().clean))
        hidden = model.mlp_hidden(1, read, stage)
        if stage is Stage.PRE and name in GATED:
            with pytest.raises(UnsupportedModelError, match=r"has gated MLPs: .* Use stage mid or post"):
                model.mlp_from_hidden(1, hidden, stage)
            return
        found = model.mlp_from_hidden(1, hidden, stage)
        assert found.numpy() == pytest.approx(run.mlp_out[1].numpy(), abs=TOLERANCE[name])
        other = model.mlp_from_hidden(1, hidden.flip(-1), stage)
        assert float((other - found).abs().max()) > 0.05

    def test_some_neurons_in_the_order_asked(self):
        whole = neuron_values(load("gpt2"), pairs().clean, 1)
        some = neuron_values(load("gpt2"), pairs().clean, 1, neurons=[7, 0, 7])
        assert torch.equal(some, whole[..., [7, 0, 7]])
        assert not torch.equal(some[..., 0], some[..., 1])

    @pytest.mark.parametrize("name", ["gpt2", "solu", "llama"])
    def test_nothing_is_left_behind(self, name):
        model = fresh(name)
        before, digest = [len(table) for table in hook_tables(model.bridge)], model.weights_sha256()
        for stage in Stage:
            neuron_values(model, pairs().clean, 1, stage)
        assert [len(table) for table in hook_tables(model.bridge)] == before
        assert fresh(name).weights_sha256() == digest
        assert float(model.whole_logits(pairs().clean).std()) > 0


class TestGradients:
    @pytest.mark.parametrize(("name", "stage"), CASES)
    def test_to_the_embedding_as_torch_has_it(self, name, stage):
        model, tokens = load(name), pairs().clean
        start = model.embedding(tokens).requires_grad_()
        found = neuron_values(model, tokens, 1, stage, neurons=[5], start=start)
        (ours,) = torch.autograd.grad(found[:, -1].sum(), start)
        theirs = _by_blocks(name, stage, tokens, lambda value: value[:, -1, 5].sum())
        # Rotations and norms in float32 have gradients in float32.
        assert ours.numpy() == pytest.approx(theirs.numpy(), abs=1e-9 if TOLERANCE[name] < 1e-9 else 1e-4)
        assert float(ours.abs().max()) > 1e-3
        assert float(ours[:, :-1].abs().max()) > 1e-5, "through attention too"

    def test_only_where_asked(self):
        model, tokens = load("gpt2"), pairs().clean
        start = model.embedding(tokens)
        assert not neuron_values(model, tokens, 1, start=start).requires_grad
        with torch.no_grad():
            assert not neuron_values(model, tokens, 1, start=start.clone().requires_grad_()).requires_grad

    def test_weights_that_ask_do_not_count(self):
        model = fresh("solu")
        for weight in model.bridge.original_model.parameters():
            weight.requires_grad_(True)
        assert not neuron_values(model, pairs().clean, 1).requires_grad

    def test_another_start_gives_other_neurons(self):
        model, tokens = load("llama"), pairs().clean
        start = model.embedding(tokens)
        same, other = (neuron_values(model, tokens, 1, start=part) for part in (start, start.flip(1)))
        assert torch.equal(same, neuron_values(model, tokens, 1))
        assert float((same - other).abs().max()) > 0.1


def _by_blocks(name: str, stage: Stage, tokens: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient at the embedding by hooks in the model's own forward pass."""
    model, (path, side) = load(name), SIDES[name][stage]
    module = _module(model.bridge.blocks[1], path)
    first, starts, kept = model.bridge.blocks[0], [], []

    def leaf(_module: Any, args: tuple, kwargs: dict) -> Any:
        stream = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        starts.append(stream)
        return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})

    with torch.enable_grad(), ExitStack() as stack:
        stack.callback(first.register_forward_pre_hook(leaf, with_kwargs=True).remove)
        hook = module.register_forward_hook(lambda _m, args, out: kept.append(args[0] if side == "in" else out))
        stack.callback(hook.remove)
        model.bridge(tokens)
        return torch.autograd.grad(of(kept[0]), starts[0])[0]


class TestEnds:
    @torch.no_grad()
    @pytest.mark.parametrize("name", ["gpt2", "neo", "llama", "native", "attn-only"])
    def test_the_unembedding_is_what_the_logits_are_made_with(self, name):
        model, final = load(name), load(name).record(pairs().clean).resid_final
        weight, bias = model.unembedding()
        assert tuple(weight.shape) == (D_MODEL, model.spec.d_vocab)
        normed = model.bridge.ln_final(final)
        assert (normed @ weight + bias).numpy() == pytest.approx(
            model.whole_logits(pairs().clean).numpy(), abs=TOLERANCE[name]
        )

    @torch.no_grad()
    @pytest.mark.parametrize("name", ["gpt2", "neo", "llama", "native", "solu", "attn-only"])
    def test_the_embedding_of_a_token_is_its_row_and_its_position(self, name):
        model, tokens = load(name), pairs().clean
        rest = model.embedding(tokens) - model.embedding_matrix[tokens]
        assert rest.numpy() == pytest.approx(rest[:1].expand_as(rest).numpy(), abs=1e-12)
        assert (float(rest.abs().max()) > 0.1) == (name != "llama")

    @torch.no_grad()
    def test_all_positions_by_rows_in_chunks(self):
        model, final = load("llama"), load("llama").record(pairs().clean).resid_final
        rows = final.flatten(0, 1)
        found = torch.cat([model.logits(part) for part in rows.split(5)]).unflatten(0, final.shape[:2])
        assert found.numpy() == pytest.approx(model.whole_logits(pairs().clean).numpy(), abs=TOLERANCE["llama"])

    @pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
    def test_a_stretch_of_blocks(self, name):
        model, run = load(name), load(name).record(pairs().clean)
        arguments = model.block_arguments(pairs().clean)
        found = model.run_blocks(run.resid_pre[0], 0, arguments, 1)
        assert found.numpy() == pytest.approx(run.resid_pre[1].numpy(), abs=TOLERANCE[name])
        assert torch.equal(model.run_blocks(found, 1, arguments, 1), found)
        start = run.resid_pre[0].clone().requires_grad_()
        assert model.run_blocks(start, 0, arguments, 1).requires_grad
        assert not model.run_blocks(run.resid_pre[0], 0, arguments, 1).requires_grad


class TestMessages:
    @pytest.mark.parametrize("stage", Stage)
    def test_no_mlps(self, stage):
        model = load("attn-only")
        with pytest.raises(UnsupportedModelError, match="has no MLPs, so that it has no neurons"):
            neuron_values(model, pairs().clean, 1, stage)
        with pytest.raises(UnsupportedModelError, match="has no MLPs"):
            model.mlp_from_hidden(0, torch.zeros(1, 3, 48, dtype=torch.float64), stage)

    def test_a_layer_that_is_not_there(self):
        with pytest.raises(ConfigError, match=r"has layers 0 to 1; got 2\."):
            neuron_values(load("gpt2"), pairs().clean, 2)

    def test_neurons_that_are_not_there(self):
        with pytest.raises(ConfigError, match=r"MLP 0 of model .* has neurons 0 to 127; got \[128, -1\]"):
            neuron_values(load("gpt2"), pairs().clean, 0, neurons=[3, 128, -1])

    def test_projections_that_are_not_shown(self, monkeypatch):
        bridge = native(**NATIVE["solu"])
        for block in bridge.blocks:
            monkeypatch.delattr(block.mlp, "in")
        model = load_model(bridge)
        with pytest.raises(UnsupportedModelError, match=r"there are no pre-activations. Use stage mid or post"):
            neuron_values(model, pairs().clean, 0, Stage.PRE)


def test_numbers_are_plain():
    assert [stage.value for stage in Stage] == ["pre", "mid", "post"]
    assert np.isfinite(neuron_values(load("solu"), pairs().clean, 0, Stage.MID).numpy()).all()
