"""One block is written once: its steps agree with the model's own, and nothing outside `models` knows its order."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from architectures import TOLERANCE, load, pairs

from circuitlab.models.changes import change_of_heads, change_of_neurons, head_differences
from circuitlab.models.steps import (
    after_heads,
    attend,
    attention,
    finish_block,
    half_block,
    head_inputs,
    mlp_input,
    mlp_stream,
    once_per_kv_head,
    once_per_query_head,
    project,
    query_heads,
)
from circuitlab.models.traced import pull_back
from circuitlab.parts import Slot

PACKAGE = Path(__file__).parent.parent / "circuitlab"
# Sequential, parallel, post-norms with grouped queries, norms over all heads, attention alone.
KINDS = ("gpt2", "neox", "gemma2", "olmo2", "attn-only")
# What only `models` decides: the order inside a block, post-norms, attention from queries, keys and values.
OF_A_BLOCK = {
    "parallel", "has_post_norm", "heads_share_a_norm", "attend", "score_scale",
}  # fmt: skip
# The shape of a graph follows from whether an MLP sees the heads of its own block.
GRAPH = {"parallel"}


def knowledge(source: str) -> Iterator[tuple[int, str]]:
    """Lines that ask a model how its blocks are built, and what each of them asks."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in OF_A_BLOCK:
            yield node.lineno, node.attr
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv) and "n_kv_heads" in ast.unparse(node):
            yield node.lineno, "grouped queries"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_blocks_are_known_in_models_alone(path):
    place = path.relative_to(PACKAGE)
    if place.parts[0] == "models":
        return
    allowed = GRAPH if place.parts[0] in ("graphs", "parts.py") else set()
    found = [(line, what) for line, what in knowledge(path.read_text(encoding="utf-8")) if what not in allowed]
    assert not found, f"{place}: ask circuitlab.models.steps instead"


@pytest.mark.parametrize(
    "line",
    [
        "x = stream if model.spec.parallel else middle",
        "if self._model.has_post_norm(layer): pass",
        "z = model.attend(layer, q, k, v, arguments)",
        "plain = self.model.score_scale(0) is not None",
        "together = model.heads_share_a_norm(layer)",
        "group = spec.n_heads // spec.n_kv_heads",
    ],
)
def test_the_search_finds_each_kind_of_knowledge(line):
    assert list(knowledge(line))


@pytest.mark.parametrize("name", KINDS)
class TestOneBlock:
    @torch.no_grad()
    def test_the_steps_make_the_recorded_run(self, name):
        model, batch = load(name), pairs()
        run, arguments = model.record(batch.clean), model.block_arguments(batch.clean)
        for layer in range(model.spec.n_layers):
            stream, loose = run.resid_pre[layer], TOLERANCE[name] * run.stream(layer + 1).abs().max()
            middle, read = half_block(model, layer, stream, arguments)
            assert (middle - run.resid_mid(layer)).abs().max() <= loose
            assert (read - mlp_input(model, run, layer)).abs().max() <= loose
            assert (mlp_stream(model, layer, stream, arguments) - read).abs().max() <= loose
            assert (attention(model, layer, stream, arguments) - run.attn_out[layer]).abs().max() <= loose
            after = finish_block(model, layer, after_heads(model, run, layer))
            assert (after - run.stream(layer + 1)).abs().max() <= loose
            some = (torch.tensor([0, 2]), torch.tensor([3, 1]))
            assert torch.equal(after_heads(model, run, layer, some), after_heads(model, run, layer)[some])
            inputs = head_inputs(model, layer, stream)
            for slot, recorded in run.head_inputs(layer).items():
                assert (inputs[slot] - recorded).abs().max() <= loose
            assert (attend(model, layer, inputs, arguments) - run.z[layer]).abs().max() <= loose
            # The twin: the steps of another layer do not.
            other = finish_block(model, 1 - layer, after_heads(model, run, layer))
            assert not model.spec.has_mlp or model.spec.parallel or (other - run.stream(layer + 1)).abs().max() > loose

    def test_heads_one_by_one_follow_gradients(self, name):
        model, batch = load(name), pairs()
        run, n_heads = model.record(batch.clean), model.spec.n_heads
        streams = run.resid_pre[0].expand(n_heads, *run.resid_pre[0].shape)
        asked = streams.clone().requires_grad_()
        found = project(model, 0, Slot.K, range(n_heads), asked)
        assert (found - project(model, 0, Slot.K, range(n_heads), streams)).abs().max() <= TOLERANCE[name]
        (gradient,) = torch.autograd.grad(found.sum(), asked)
        wanted = pull_back(model, 0, run.resid_pre[0], {Slot.K: torch.ones_like(run.k[0])})
        assert (gradient - wanted).abs().max() <= TOLERANCE[name] * wanted.abs().max()
        some, z = [2, 0], run.z[0].clone().requires_grad_()
        written = model.head_outputs(0, z, some)
        assert (written - model.head_outputs(0, run.z[0], some)).abs().max() <= TOLERANCE[name]
        (at_z,) = torch.autograd.grad(written[0].sum(), z)
        assert (at_z[:, :, 2] != 0).all()
        # Another head matters through a post-norm alone.
        assert bool((at_z[:, :, 1] != 0).any()) == model.has_post_norm(0)

    @torch.no_grad()
    def test_a_change_of_all_heads_is_the_difference_of_the_layer(self, name):
        model, batch = load(name), pairs()
        run, other = model.record(batch.clean), model.record(batch.corrupt)
        wanted = other.attn_out[0] - run.attn_out[0]
        loose = TOLERANCE[name] * run.attn_out[0].abs().max()
        apart = head_differences(model, 0, other.z[0], run.z[0])
        assert (apart.sum(0) - wanted).abs().max() <= loose
        every = torch.arange(model.spec.n_heads)[None]
        where = torch.ones(batch.clean.shape, dtype=torch.bool).nonzero().T
        found = change_of_heads(model, run, 0, other.z[0], every)(torch.zeros_like(where[0]), *where)
        assert (found.view(wanted.shape) - wanted).abs().max() <= loose
        # The twin: one head is not the layer.
        alone = change_of_heads(model, run, 0, other.z[0], every[:, :1])(torch.zeros_like(where[0]), *where)
        assert (alone.view(wanted.shape) - wanted).abs().max() > loose

    @torch.no_grad()
    def test_a_changed_neuron_adds_what_the_mlp_with_it_adds(self, name):
        model, batch = load(name), pairs()
        if not model.spec.has_mlp:
            return
        run, neuron = model.record(batch.clean), torch.tensor([3, 5])
        own = model.mlp_hidden(0, mlp_input(model, run, 0))
        change, delta = change_of_neurons(model, run, 0, own + 1, neuron)
        assert (change - 1).abs().max() <= 1e-6
        at = tuple(torch.tensor([number]) for number in (1, 2, 4))
        patched = own[2, 4].clone()
        patched[5] += 1
        wanted = model.mlp_from_hidden(0, patched[None]) - run.mlp_out[0][2, 4]
        assert (delta(*at) - wanted).abs().max() <= TOLERANCE[name] * run.mlp_out[0].abs().max()


def test_query_heads_share_key_and_value_heads_in_order():
    model = load("llama")
    spec, run = model.spec, model.record(pairs().clean)
    assert spec.n_kv_heads < spec.n_heads
    assert [head for kv in range(spec.n_kv_heads) for head in query_heads(spec, kv)] == list(range(spec.n_heads))
    once = once_per_kv_head(spec, run.k[0])
    assert once.shape[2] == spec.n_kv_heads
    assert torch.equal(once_per_query_head(spec, once), run.head_inputs(0)[Slot.K])
