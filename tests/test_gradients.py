"""Gradients at readers and writers: the sum law, finite differences, TransformerLens, and what may be left out."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    BIDIRECTIONAL,
    N_HEADS,
    N_LAYERS,
    NATIVE,
    TOLERANCE,
    booted,
    load,
    logit_diff,
    pairs,
)
from torch import Tensor, nn

from circuitlab import score_edges
from circuitlab.data.batch import PairBatch
from circuitlab.errors import MetricError, UnknownNameError
from circuitlab.metrics import resolve
from circuitlab.models import norms
from circuitlab.models.traced import Traced, Window, pass_gradients, trace
from circuitlab.parts import Kind, Layout, Node, Reader, Slot
from circuitlab.patching.gradients.metric_gradients import Gradients, gradients_and_values, metric_gradients
from circuitlab.patching.runs.baseline import record_baseline
from circuitlab.patching.runs.writers import writer_differences

CAUSAL = (*ARCHITECTURES, *NATIVE)
ALL = (*CAUSAL, *BIDIRECTIONAL)
METRIC = resolve("logit_diff")
# In float64 throughout; the others norm or rotate in float32.
EXACT = ("gpt2", "native", "attn-only", "solu", "bidirectional")


@pytest.fixture(params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def layout_of(name: str) -> Layout:
    return Layout.of(load(name).spec)


@cache
def found(name: str) -> Gradients:
    return metric_gradients(load(name), pairs())


def direction(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or load("gpt2").embedding(pairs().clean).shape, generator=torch.manual_seed(seed)).double()


def along(gradient: Tensor, moved: Tensor) -> Tensor:
    """Per example: how fast the metric changes on the way."""
    return (gradient * moved).flatten(1).sum(1)


@torch.no_grad()
def measured(name: str, hook: str, moved: Callable[[float], Tensor]) -> Tensor:
    """The same by a difference of fourth order in the model as TransformerLens runs it."""
    # Small steps drown in float32's rounding, large ones from the embedding of the sharper models in their curvature.
    sharp = (name == "olmo2" and ".hook_out" not in hook) or (
        hook == "blocks.0.hook_in" and name in ("llama", "qwen3", "mpt")
    )
    rough = 1e-3 if sharp else 1e-2
    step, at = 1e-4 if name in EXACT else rough, {}
    bridge, batch = load(name).bridge, pairs()
    for times in (-2, -1, 1, 2):
        delta = moved(times * step)
        hooks = [(hook, lambda value, hook, delta=delta: value + delta.reshape(value.shape))]
        at[times] = logit_diff(bridge.run_with_hooks(batch.clean, fwd_hooks=hooks), batch)
    return (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)


def agree(name: str, ours: Tensor, theirs: Tensor) -> bool:
    allowed = 1e-8 * theirs.abs().max() if name in EXACT else 1e-3 * theirs.abs().max() + 1e-4
    return bool((ours - theirs).abs().max() < allowed)


class TestTheSumLaw:
    """A writer reaches the metric through its readers and no other way."""

    def gaps(self, name: str, readers: Tensor) -> list[float]:
        layout = layout_of(name)
        seen_by = [[r for r, n in enumerate(layout.visible) if w < n] for w in range(len(layout.writers))]
        return [
            float((readers[columns].sum(0) - found(name).writers[w]).abs().max()) for w, columns in enumerate(seen_by)
        ]

    def test_readers_sum_to_the_writer(self, name):
        assert max(self.gaps(name, found(name).readers)) < 10 * TOLERANCE[name]
        assert found(name).writers.abs().amax((1, 2, 3)).min() > 0.01

    def test_none_may_be_left_out(self, name):
        for column in range(len(layout_of(name).readers)):
            fewer = found(name).readers.clone()
            fewer[column] = 0
            assert max(self.gaps(name, fewer)) > 1e-3

    @pytest.mark.parametrize("name", CAUSAL)
    def test_nothing_behind_the_answer(self, name):
        behind = torch.arange(pairs().n_tokens) > pairs().answer_at[:, None]
        for part in (found(name).readers, found(name).writers):
            assert part[:, behind].abs().max() == 0 < part[:, ~behind].abs().amax((1, 2)).min()


class TestFiniteDifferences:
    def test_writers(self, name):
        layout, gradients = layout_of(name), found(name)
        places = {0: "blocks.0.hook_in"}
        for layer in range(N_LAYERS):
            places[layout.writer_index(Node(Kind.HEAD, layer, 1))] = f"blocks.{layer}.hook_attn_out"
            if load(name).spec.has_mlp:
                places[layout.writer_index(Node(Kind.MLP, layer))] = f"blocks.{layer}.hook_mlp_out"
        for seed, (writer, hook) in enumerate(places.items()):
            moved = direction(seed)
            slope = measured(name, hook, lambda share, moved=moved: share * moved)
            assert agree(name, along(gradients.writers[writer], moved), slope)
            assert not agree(name, along(gradients.writers[writer], moved.roll(1, 1)), slope)

    def test_z_follows_the_norm_behind_the_heads(self, name):
        for layer in range(N_LAYERS):
            gradient = found(name).z[layer]
            moved = direction(layer, *gradient.shape)
            slope = measured(name, f"blocks.{layer}.attn.o.hook_in", lambda share, moved=moved: share * moved)
            assert agree(name, along(gradient, moved), slope)
            assert not agree(name, along(gradient, moved.roll(1, 2)), slope)

    @pytest.mark.parametrize("slot", Slot)
    def test_heads(self, name, slot):
        """One group of heads reads a stream that has moved; all else reads what it read."""
        model, layout, layer = load(name), layout_of(name), 1
        block, stream = model.bridge.blocks[layer], model.record(pairs().clean).resid_pre[layer]
        module = getattr(block.attn, slot.value)
        normed = block.ln1 if hasattr(block, "ln1") else nn.Identity()
        n_own = N_HEADS if slot is Slot.Q else model.spec.n_kv_heads
        group, toward = N_HEADS // n_own, direction(layer)

        def read(moved: Tensor) -> Tensor:
            return module(normed(stream + moved)).reshape(*stream.shape[:2], n_own, -1)

        def moved(share: float, only: Tensor) -> Tensor:
            return only * (read(share * toward) - read(0 * toward))

        for own in range(n_own):
            only = (torch.arange(n_own) == own)[:, None]
            slope = measured(name, f"blocks.{layer}.attn.{slot.value}.hook_out", partial(moved, only=only))
            heads = [Reader(Node(Kind.HEAD, layer, own * group + h), slot) for h in range(group)]
            gradient = found(name).readers[[layout.reader_index(head) for head in heads]].sum(0)
            assert agree(name, along(gradient, toward), slope)
            assert not agree(name, along(gradient, toward.roll(1, 1)), slope)

    def test_mlps_and_the_logits(self, name):
        model, layout, run = load(name), layout_of(name), load(name).record(pairs().clean)
        for layer in range(N_LAYERS * model.spec.has_mlp):
            stream = run.resid_pre[layer] + (0 if model.spec.parallel else run.attn_out[layer])
            toward = direction(layer)

            def moved(share: float, layer: int = layer, stream: Tensor = stream, toward: Tensor = toward) -> Tensor:
                return model.mlp_output(layer, stream + share * toward) - model.mlp_output(layer, stream)

            slope = measured(name, f"blocks.{layer}.hook_mlp_out", moved)
            gradient = found(name).readers[layout.reader_index(Reader(Node(Kind.MLP, layer)))]
            assert agree(name, along(gradient, toward), slope)
        toward = direction(9)
        slope = measured(name, "ln_final.hook_in", lambda share: share * toward)
        assert agree(name, along(found(name).readers[-1], toward), slope)
        assert not agree(name, along(found(name).readers[-2], toward), slope)


class TestTransformerLens:
    @pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "gemma2", "olmo2", "granite"])
    def test_node_attribution(self, name):
        """Differences of z and of MLP outputs times the gradients there, in the corrupted run, position by position."""
        from transformer_lens.tools.analysis import attribution_patching as tl

        batch, layout = pairs(n=2), layout_of(name)
        baseline = record_baseline(load(name), batch)
        gradients = metric_gradients(load(name), batch, start=load(name).embedding(batch.corrupt))
        differences = writer_differences(load(name), baseline)
        bridge, config = booted(name), tl.EdgeAttributionConfig(granularity="node")
        compared = []
        for i in range(len(batch)):
            one = batch.take(torch.tensor([i]))

            def metric(logits: Tensor, one: PairBatch = one) -> Tensor:
                return logit_diff(logits, one)[0]

            theirs = tl.attribution_patch(bridge, one.clean, one.corrupt, metric, config).node_scores
            for node, score in theirs.items():
                at = (i, node.position)
                if node.kind == "attn_head_out":
                    assert node.layer is not None
                    apart = baseline.clean.z[node.layer] - baseline.corrupt.z[node.layer]
                    ours = (apart * gradients.z[node.layer])[(*at, node.head)].sum()
                else:
                    parsed = Node(Kind.MLP, node.layer) if node.kind == "mlp_out" else Node(Kind.INPUT)
                    writer = layout.writer_index(parsed)
                    ours = (differences[writer] * gradients.writers[writer])[at].sum()
                compared.append((float(ours), score))
        ours, theirs = np.array(compared).T
        assert ours == pytest.approx(theirs, abs=2e-5)
        assert np.abs(theirs).max() > 0.05


class TestWindow:
    """Tokens before the first difference are taken from the corrupted run."""

    def traced(self, name: str, first: int | None = None) -> tuple[Traced, Tensor]:
        model, batch = load(name), pairs()
        arguments, clean, corrupt = (
            model.block_arguments(batch.clean),
            model.embedding(batch.clean),
            model.embedding(batch.corrupt),
        )
        window = Window.between(batch, clean - corrupt, causal=model.spec.causal)
        assert (window.first, window.stop) == (2, 8)
        if first is not None:
            window = Window(first=first, stop=8, answer_at=batch.answer_at - first)
        around = trace(model, arguments, Window.whole(batch), corrupt, graph=False)
        return trace(model, arguments, window, window.of(clean), around), around.final

    @pytest.mark.parametrize("name", CAUSAL)
    def test_the_same_gradients(self, name):
        traced, _ = self.traced(name)
        slope, values = gradients_and_values(load(name), traced, METRIC, pairs())
        assert slope.start == pytest.approx(found(name).writers[0][:, 2:], abs=TOLERANCE[name])
        assert values == pytest.approx(record_baseline(load(name), pairs()).gap(METRIC)[0], abs=TOLERANCE[name])

    @pytest.mark.parametrize("name", CAUSAL)
    def test_a_window_that_begins_too_late(self, name):
        traced, _ = self.traced(name, first=3)
        slope, _ = gradients_and_values(load(name), traced, METRIC, pairs())
        assert float((slope.start - found(name).writers[0][:, 3:]).abs().max()) > 1e-3

    @pytest.mark.parametrize("name", CAUSAL)
    def test_the_corrupted_run(self, name):
        _, final = self.traced(name)
        run = record_baseline(load(name), pairs()).corrupt
        expected = run.resid_final[torch.arange(4), pairs().answer_at]
        assert final == pytest.approx(expected, abs=TOLERANCE[name])

    def test_prompts_that_do_not_differ(self):
        batch = PairBatch.from_tokens(pairs().clean, pairs().clean, pairs().answers, pairs().distractors)
        window = Window.between(batch, torch.zeros(4, 8, 32), causal=True)
        assert (window.first, window.stop, window.answer_at.tolist()) == (7, 8, [0] * 4)
        with pytest.raises(MetricError, match="no gradient anywhere"):
            score_edges(load("gpt2"), batch, "eap")

    def test_the_graph_holds_no_weights(self):
        """A user's model may train: its weights get no gradient, whatever is asked."""
        model, batch = load("gpt2"), pairs()
        weights = list(model.bridge.original_model.parameters())
        for weight in weights:
            weight.requires_grad_(True)
        try:
            traced = trace(model, model.block_arguments(batch.clean), Window.whole(batch), model.embedding(batch.clean))
            found = pass_gradients(traced.final.sum(), traced)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
        assert all(weight.grad is None for weight in weights)
        assert not any(part.requires_grad for block in found.blocks for part in block.tensors().values())


class Offset(nn.Module):
    """Gemma's norm: one plus its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.randn(16)), 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * (1 + self.weight)


class Bent(Offset):
    """Of no known form."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def plain_norms() -> dict[str, Any]:
    torch.manual_seed(0)
    made = {"layer": nn.LayerNorm(16, eps=1e-3), "no weights": nn.LayerNorm(16, elementwise_affine=False)}
    made |= {"rms": nn.RMSNorm(16, eps=1e-3), "offset": Offset(), "bent": Bent(), "none": lambda x: x}
    for norm in list(made.values())[:3]:
        for weight in norm.parameters():
            nn.init.normal_(weight)
    return made


class TestNorms:
    """The closed form of what a norm does to gradients, against its graph."""

    def against_the_graph(self, norm: Any, slope: norms.NormPullBack, width: int, dtype: torch.dtype) -> float:
        stream = torch.randn(2, 3, width, generator=torch.manual_seed(1)).to(dtype)
        behind = torch.randn(5, 2, 3, width, generator=torch.manual_seed(2)).to(dtype)
        copies = stream.expand(5, -1, -1, -1).clone().requires_grad_()
        (expected,) = torch.autograd.grad(norm(copies.flatten(0, 1)).reshape(copies.shape), copies, behind)
        return float((slope(stream, behind.clone()) - expected).abs().max() / expected.abs().max())

    @pytest.mark.parametrize("kind", plain_norms())
    def test_each_kind(self, kind):
        norm = plain_norms()[kind]
        norm = norm.double() if isinstance(norm, nn.Module) else norm
        slope = norms.norm_pull_back(norm, torch.zeros(1, dtype=torch.float64), 16)
        assert self.against_the_graph(norm, slope, 16, torch.float64) < 1e-12
        assert isinstance(getattr(slope, "__self__", None), norms.NormForm) == (kind != "bent")

    def test_a_wrong_form_fails(self):
        norm = plain_norms()["offset"].double()
        wrong = norms.NormForm(module=norm, centred=True, offset=1.0, eps=1e-3).pull_back
        assert self.against_the_graph(norm, wrong, 16, torch.float64) > 1e-2

    def test_every_architecture_has_one(self, name):
        model = load(name, "float32")
        for block, slope in zip(model.bridge.blocks, model._attn_pull_backs, strict=True):
            # OLMo 2 has no norm before the heads: gradients pass as they are.
            assert (slope.__self__.module is None) == (name == "olmo2")
            norm = getattr(block, "ln1", torch.nn.Identity())
            assert self.against_the_graph(norm, slope, 32, torch.float32) < 1e-5


class TestEap:
    def test_it_is_one_step(self, name):
        ours = score_edges(load(name), pairs(), "eap")
        one = score_edges(load(name), pairs(), "eap-ig", steps=1)
        assert (ours.values == one.values).all()
        assert (ours.method, ours.checks) == ("eap", one.checks)
        assert np.abs(ours.values - score_edges(load(name), pairs(), steps=2).values).max() > 1e-3

    def test_a_writers_edges_sum_to_its_own_gradient(self, name):
        """Node attribution without any reader: differences times writers' gradients."""
        differences = writer_differences(load(name), record_baseline(load(name), pairs()))
        nodes = (differences * found(name).writers).sum((2, 3)).mean(1)
        edges = score_edges(load(name), pairs(), "eap").values.sum(1)
        assert edges == pytest.approx(nodes.numpy(), abs=10 * TOLERANCE[name])
        assert nodes.abs().max() > 0.1

    @pytest.mark.parametrize("name", ["gpt2", "gemma2", "granite", "mpt", "bloom"])
    def test_half_precision(self, name):
        exact = score_edges(load(name), pairs(), "eap").values
        half = score_edges(load(name, "bfloat16"), pairs(), "eap").values
        assert np.corrcoef(exact.ravel(), half.ravel())[0, 1] > 0.98

    def test_a_divergence_and_metrics_without_a_gradient(self):
        with pytest.raises(MetricError, match="no gradient anywhere on the path of 1 steps"):
            score_edges(load("gpt2"), pairs(), "eap", metric="kl")
        with pytest.raises(MetricError, match="metric 'rank' has no gradient"):
            metric_gradients(load("gpt2"), pairs(), "rank")
        with pytest.raises(UnknownNameError, match="unknown metric 'logitdiff'"):
            metric_gradients(load("gpt2"), pairs(), "logitdiff")
