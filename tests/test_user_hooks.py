"""Hooks that a user puts on a model, at every hook point: as in the model's own passes, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from architectures import TOLERANCE, fresh, logit_diff, pairs
from torch import Tensor, nn

import circuitlab
from circuitlab.errors import ModelError, UnsupportedModelError
from circuitlab.models.bridge import BridgeModel

BATCH = pairs(2)
AT = 5  # a position whose tokens differ
SITES = ("resid_pre", "attn_out", "mlp_out")
# Settings of a bridge without which it does not let hooks be put on these points.
SETTINGS = {"hook_mlp_in": "use_hook_mlp_in", "hook_attn_in": "use_attn_in", "hook_result": "use_attn_result"}
SETTINGS |= {f"hook_{slot}_input": "use_split_qkv_input" for slot in "qkv"}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> BridgeModel:
    return fresh(request.param)


def points(model: BridgeModel) -> list[str]:
    """Every hook point of the second block, and all outside of blocks; each by the last of its names."""
    found = {id(point): name for name, point in model.bridge.hook_dict.items()}
    return [name for name in found.values() if not name.startswith("blocks.0.")]


def steering(value: Tensor, **_kwargs: Any) -> Tensor | None:
    """Something that no norm takes out again, the same for every row and token."""
    if not value.is_floating_point():
        return None
    wave = torch.linspace(0.5, 2.0, value.shape[-1], dtype=value.dtype)
    return 0.9 * value + 0.1 * wave.sin()


@contextmanager
def hooked(model: BridgeModel, point: str, hook: Callable[..., Any] = steering) -> Iterator[None]:
    setting = SETTINGS.get(point.rpartition(".")[2])
    if setting:
        getattr(model.bridge, f"set_{setting}")(True)
    try:
        model.bridge.add_hook(point, hook)
        yield
    finally:
        model.bridge.reset_hooks()
        if setting:
            getattr(model.bridge, f"set_{setting}")(False)


def whole(model: BridgeModel, tokens: Tensor, *changes: tuple[str, int, Callable[[Tensor], Any]]) -> Tensor:
    """The metric of the bridge's own passes, with activations changed by the oracle."""
    with ExitStack() as stack:
        for site, layer, change in changes:
            stack.callback(_put(model.bridge, site, layer, change).remove)
        return logit_diff(model.bridge(tokens, return_type="logits", use_cache=False), BATCH)


def _put(bridge: Any, site: str, layer: int, change: Callable[[Tensor], Any]) -> Any:
    """Plain hooks of torch, on what HuggingFace calls the block, attention, MLP and final norm."""
    block = bridge.blocks[layer]
    if site in ("attn_out", "mlp_out"):
        module: nn.Module = block.attn if site == "attn_out" else block.mlp

        def after(_module: nn.Module, _args: Any, out: Any) -> Any:
            new = change(out[0] if isinstance(out, tuple) else out)
            return None if new is None else (new, *out[1:]) if isinstance(out, tuple) else new

        return module.register_forward_hook(after)
    module = {"resid_pre": block, "read_attn": block.ln1, "read_mlp": block.ln2, "resid_final": bridge.ln_final}[site]

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> Any:
        value = args[0] if args else kwargs["hidden_states"]
        new = change(value)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    return module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)


@torch.no_grad()
def patched(model: BridgeModel) -> np.ndarray:
    """The metric of the corrupted prompts with one clean activation put in, `[site, layer, example]`."""
    found = []
    for site in SITES:
        for layer in range(model.spec.n_layers):
            kept: list[Tensor] = []
            whole(model, BATCH.clean, (site, layer, kept.append))

            def put(value: Tensor, clean: Tensor = kept[0]) -> Tensor:
                return torch.cat([value[:, :AT], clean[:, AT : AT + 1], value[:, AT + 1 :]], 1)

            found.append(whole(model, BATCH.corrupt, (site, layer, put)))
    return torch.stack(found).reshape(len(SITES), -1, len(BATCH)).numpy()


def swept(model: BridgeModel) -> np.ndarray:
    grids = circuitlab.sweep(model, BATCH, site=list(SITES), positions=[AT], normalise=False)
    return np.stack([grids[site].per_example.squeeze(1) for site in SITES])


READ_BY = ("read_attn", "read_mlp", "resid_final")


def edges(model: BridgeModel) -> np.ndarray:
    """What MLP 0 sends to attention 1, MLP 1 and the logits: exact for the last two, and by gradients."""
    exact = circuitlab.score_edges(model, BATCH, method="exact").to_frame().set_index(["source", "target"]).score
    eap = circuitlab.score_edges(model, BATCH, method="eap").to_frame()
    eap = eap[eap.source == "m0"].set_index("target").score
    to_attention = float(eap[[target for target in eap.index if target.startswith("a1.")]].sum())
    return np.array([exact["m0", "m1"], exact["m0", "logits"], to_attention, eap["m1"], eap["logits"]])


def edges_by_whole_passes(model: BridgeModel) -> np.ndarray:
    kept: list[Tensor] = []
    with torch.no_grad():
        clean = whole(model, BATCH.clean, ("mlp_out", 0, kept.append)).mean()
        whole(model, BATCH.corrupt, ("mlp_out", 0, kept.append))
        difference = kept[1] - kept[0]
        exact = [clean - whole(model, BATCH.clean, (at, 1, lambda x: x + difference)).mean() for at in READ_BY[1:]]
    slopes = []
    for at in READ_BY:
        share = torch.zeros((), dtype=difference.dtype, requires_grad=True)
        value = whole(model, BATCH.clean, (at, 1, lambda x, share=share: x + share * difference)).mean()
        slopes.append(-torch.autograd.grad(value, share)[0])
    return torch.stack([*exact, *slopes]).detach().numpy()


def close(model: BridgeModel, ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= TOLERANCE[_name(model)] * np.abs(theirs).max())


def _name(model: BridgeModel) -> str:
    return "llama" if "llama" in model.id else "gpt2"


def outcome(work: Callable[[BridgeModel], np.ndarray], model: BridgeModel) -> np.ndarray | str:
    """What a computation gives, or the message it is refused with."""
    try:
        return work(model)
    except UnsupportedModelError as error:
        return str(error)


def names_it(message: str, point: str) -> bool:
    named = re.search(r"with the user's hooks at (.*?) this would not give the model's numbers: ", message)
    return named is not None and point in re.split(" = |, ", named[1])


def test_without_hooks_the_oracles_agree(model):
    assert close(model, swept(model), patched(model))
    assert close(model, edges(model), edges_by_whole_passes(model))


def test_every_hook_point(model):
    """As in whole passes with the hook on, or refused naming it; by sweeps, and by exact scores and gradients."""
    plain, heard, refused = patched(model), set(), set()
    for point in points(model):
        with hooked(model, point):
            expected, found = patched(model), outcome(swept, model)
            if isinstance(found, str):
                assert names_it(found, point), (point, found)
                refused.add(point)
                continue
            assert close(model, found, expected), point
            if not close(model, plain, expected):
                heard.add(point)
            found = outcome(edges, model)
            if isinstance(found, str):
                assert names_it(found, point), (point, found)
            else:
                assert close(model, found, edges_by_whole_passes(model)), point
    assert close(model, swept(model), plain)
    for point in ("attn.hook_z", "attn.hook_q", "mlp.hook_post", "ln1.hook_out", "ln2.hook_out"):
        assert f"blocks.1.{point}" in heard
    assert {"hook_embed", "ln_final.hook_out", "hook_unembed"} <= heard
    assert {"blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"} <= refused


def row(value: Tensor, **_kwargs: Any) -> Tensor:
    return torch.cat([value[:1] + 1, value[1:]])


def position(value: Tensor, **_kwargs: Any) -> Tensor:
    return torch.cat([value[:, :3], value[:, 3:4] + 1, value[:, 4:]], 1)


def noise(value: Tensor, **_kwargs: Any) -> Tensor:
    return value + torch.randn_like(value)


def mixing(value: Tensor, **_kwargs: Any) -> Tensor:
    return value + value.mean(0)


def last(value: Tensor, **_kwargs: Any) -> Tensor:
    assert value.shape[1] > 1
    return torch.cat([value[:, :-1], value[:, -1:] + 1], 1)


def given_rows(value: Tensor, **_kwargs: Any) -> Tensor:
    return value + torch.ones(len(BATCH), 1, 1, dtype=value.dtype).cumsum(0)


class EveryOther:
    """A hook that does something at every other call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, value: Tensor, **_kwargs: Any) -> Tensor:
        self.calls += 1
        return value + self.calls % 2


@pytest.mark.parametrize("hook", [row, noise, mixing, given_rows, EveryOther()])
@pytest.mark.parametrize("point", ["hook_embed", "blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"])
def test_hooks_whose_effect_depends_on_the_row_or_the_call(hook, point):
    model = _plain()
    with hooked(model, point, hook), pytest.raises(UnsupportedModelError, match="user's hooks at"):
        circuitlab.sweep(model, BATCH)


@pytest.mark.parametrize("hook", [position, last])
@pytest.mark.parametrize(
    "point", ["hook_embed", "blocks.1.ln2.hook_out", "blocks.1.mlp.hook_post", "ln_final.hook_out"]
)
def test_hooks_whose_effect_depends_on_the_position(hook, point):
    """The embedding is made of whole prompts; what works token by token is refused."""
    model = _plain()
    with hooked(model, point, hook):
        found = outcome(swept, model)
        assert close(model, found, patched(model)) if point == "hook_embed" else "user's hooks at" in found


@cache
def _plain() -> BridgeModel:
    return fresh("gpt2")


PLACES: dict[str, Callable[[BridgeModel], Any]] = {
    "blocks.1": lambda model: model.bridge.original_model.transformer.h[1],
    "blocks.1.mlp": lambda model: model.bridge.original_model.transformer.h[1].mlp,
    "blocks.1.attn": lambda model: model.bridge.original_model.transformer.h[1].attn,
    "ln_final": lambda model: model.bridge.original_model.transformer.ln_f,
    "unembed": lambda model: model.bridge.original_model.lm_head,
    "embed": lambda model: model.bridge.original_model.transformer.wte,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("before", [False, True])
def test_hooks_of_torch_on_modules_of_huggingface(place, before):
    model = _plain()
    module = PLACES[place](model)

    def hook(_module: nn.Module, args: tuple, out: Any = None) -> Any:
        value = args if before else out
        first = value[0] if isinstance(value, tuple) else value
        new = steering(first)
        return new if new is None or not isinstance(value, tuple) else (new, *value[1:])

    handle = module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
    try:
        found = outcome(swept, model)
        assert names_it(found, place) if isinstance(found, str) else close(model, found, patched(model))
    finally:
        handle.remove()


class TestOtherChanges:
    def test_a_hook_that_only_looks_changes_nothing(self):
        model, seen = _plain(), []
        expected = swept(model)
        with hooked(model, "blocks.1.hook_resid_post", lambda value, **_kwargs: seen.append(value.shape)):
            assert close(model, swept(model), expected)
            assert close(model, edges(model), edges_by_whole_passes(model))
        assert seen

    def test_a_replaced_forward_function(self):
        model = _plain()
        act = model.bridge.blocks[1].mlp.original_component.act
        act.forward = torch.relu
        try:
            found = outcome(swept, model)
            assert isinstance(found, str)
            assert re.search(r"user's hooks at blocks\.1\.mlp\S*\.act ", found)
        finally:
            del act.forward
        assert close(model, swept(model), patched(model))

    def test_a_replaced_module(self):
        model = fresh("gpt2")
        block = model.bridge.blocks[1]
        block.mlp.original_component.act = nn.ReLU()
        with pytest.raises(ModelError, match="modules of the model were replaced after it was loaded. Load it again"):
            circuitlab.sweep(model, BATCH)

    def test_an_autoencoder_that_is_attached(self):
        """The library's own context, entered by the user, is the user's hook too."""
        model = _plain()
        with model.rewriting("resid_post", 0, steering):
            found = outcome(swept, model)
            assert isinstance(found, str)
            assert names_it(found, "blocks.0")

    def test_a_global_hook(self):
        model = _plain()
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, _args, out: 2 * out if isinstance(module, nn.LayerNorm) else None
        )
        try:
            found = outcome(swept, model)
            assert "global hook" in found if isinstance(found, str) else close(model, found, patched(model))
        finally:
            handle.remove()

    def test_relevance_and_masks_refuse_what_they_do_not_see(self):
        model = _plain()
        for point, method in (("mlp.hook_post", "relp"), ("attn.hook_q", "edge-pruning")):
            refused = pytest.raises(UnsupportedModelError, match=rf"hooks at .*{point}")
            with hooked(model, f"blocks.1.{point}"), refused:
                circuitlab.score_edges(model, BATCH, method=method)


EDITS: dict[str, Callable[[Tensor], Any]] = {
    "data": lambda weight: weight.data.mul_(1.5),
    "in place": lambda weight: weight.add_(0.1),
    "one number": lambda weight: weight.view(-1)[7:8].add_(0.5),
    "set": lambda weight: setattr(weight, "data", weight.flip(0).clone()),
    "through numpy": lambda weight: weight.detach().numpy().__imul__(1.5),
}


class TestEditedWeights:
    @pytest.mark.parametrize("edit", EDITS)
    def test_the_digest_says_so(self, edit):
        model = fresh("gpt2")
        weight = model.bridge.blocks[1].mlp.out.original_component.weight
        before, kept = model.weights_sha256(), weight.detach().clone()
        with torch.no_grad():
            EDITS[edit](weight)
            assert model.weights_sha256() != before
            weight.copy_(kept)
        assert model.weights_sha256() == before

    def test_the_digest_of_rewritten_weights_says_so(self):
        model = fresh("gpt2-folded")
        before = model.weights_sha256()
        model.bridge.blocks[1].mlp.out.original_component.weight.data.mul_(1.5)
        assert model.weights_sha256() != before

    @pytest.mark.parametrize("name", ["gpt2", "llama", "gpt2-folded", "solu"])
    def test_no_copy_of_a_weight_is_left(self, name):
        """After an edit of every weight, sweeps, scores and gradients are those of whole passes."""
        model = fresh(name)
        before = patched(model)
        generator = torch.Generator().manual_seed(1)
        for weight in model.bridge.original_model.parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator).to(weight)
        expected = patched(model)
        assert not close(model, before, expected)
        assert close(model, swept(model), expected)
        assert close(model, edges(model), edges_by_whole_passes(model))
