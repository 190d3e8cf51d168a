"""Every method against GPT-2 by hand, where its score is a derivative or a difference that plain torch can take."""

from functools import cache
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, BIDIRECTIONAL, NATIVE, TOLERANCE, load, logit_diff, mixed_pairs, native, pairs
from gpt2_by_hand import N_READERS, N_WRITERS, Gpt2ByHand
from torch import Tensor

from circuitlab import load_model, score_edges, score_nodes
from circuitlab.discovery.scores import EdgeScores
from circuitlab.discovery.scoring import METHODS
from circuitlab.errors import ConfigError, UnknownNameError, UnsupportedModelError
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.models.relp import RelevanceModel
from circuitlab.models.traced import Window, trace
from circuitlab.parts import Kind, Layout, Slot

GRADIENTS = ("eap-ig", "eap", "eap-ig-activations", "clean-corrupted", "relp")
EVERYWHERE = (*ARCHITECTURES, *NATIVE, *BIDIRECTIONAL)
# The first layer's heads, its MLP, and so on, by the numbers of their writers.
SUBLAYERS = [[0], [1, 2, 3, 4], [5], [6, 7, 8, 9], [10]]


@cache
def scored(method: str, name: str = "gpt2", **options: Any) -> EdgeScores:
    return score_edges(load(name), pairs(), method, **options)


def layout() -> Layout:
    return Layout.of(load("gpt2").spec)


def close(scores: Any, expected: Any, tolerance: float = 1e-8) -> bool:
    expected = np.asarray(expected)
    return scores.values.shape == expected.shape and float(np.abs(scores.values - expected).max()) < tolerance


def correlation(a: EdgeScores, b: EdgeScores) -> float:
    real = real_edges(a.layout)
    return float(np.corrcoef(a.values[real], b.values[real])[0, 1])


class Mixed(Gpt2ByHand):
    """What some writers say may be held at other values."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, Tensor] = {}

    def _read(self, reader: int, said: list[Tensor], keep: Tensor, replacement: list[Tensor]) -> Any:
        return super()._read(reader, [self.held.get(n, now) for n, now in enumerate(said)], keep, replacement)


class Relevance(Gpt2ByHand):
    """Norms, activations and, if wanted, patterns with a part of them held fixed."""

    fixed_patterns = False

    def _norm(self, name: str, stream: Tensor) -> Tensor:
        centred = stream - stream.mean(-1, keepdim=True)
        scale = (centred.detach().square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _mlp(self, layer: int, stream: Tensor) -> Tensor:
        w, name = self.weights, f"h.{layer}.mlp"
        x = self._norm(f"h.{layer}.ln_2", stream) @ w[f"{name}.c_fc.weight"] + w[f"{name}.c_fc.bias"]
        ratio = 0.5 * (1 + torch.tanh(sqrt(2 / torch.pi) * (x + 0.044715 * x**3)))
        return (x * ratio.detach()) @ w[f"{name}.c_proj.weight"] + w[f"{name}.c_proj.bias"]

    def _head(self, layer: int, head: int, streams: list[Tensor]) -> Tensor:
        if self.fixed_patterns:
            streams = [streams[0].detach(), streams[1].detach(), streams[2]]
        return super()._head(layer, head, streams)


@pytest.fixture(scope="module")
def by_hand() -> Gpt2ByHand:
    return Gpt2ByHand()


@torch.no_grad()
def outputs(model: Gpt2ByHand) -> tuple[list[Tensor], list[Tensor]]:
    return model.whole(pairs().clean)[1], model.whole(pairs().corrupt)[1]


def slopes(model: Gpt2ByHand, tokens: Tensor, replacement: list[Tensor]) -> np.ndarray:
    """How fast the metric falls as each edge begins to carry its replacement."""
    shares = torch.ones(N_WRITERS, N_READERS, dtype=torch.float64, requires_grad=True)
    total = logit_diff(model.run(tokens, shares, replacement)[0], pairs()).mean()
    return torch.autograd.grad(total, shares)[0].numpy()


@torch.no_grad()
def metric(model: Gpt2ByHand, keep: Tensor, replacement: list[Tensor]) -> float:
    return float(logit_diff(model.run(pairs().clean, keep, replacement)[0], pairs()).mean())


class TestByHand:
    @pytest.mark.parametrize("kind", ["corrupt", "zero", "mean"])
    def test_eap_under_any_replacement(self, by_hand, kind):
        _, corrupt = outputs(by_hand)
        others, options = pairs(n=6, seed=3), {}
        put = {"corrupt": corrupt, "zero": [torch.zeros_like(now) for now in corrupt]}
        if kind == "mean":
            with torch.no_grad():
                said = by_hand.whole(others.clean)[1]
            put["mean"] = [now.mean((0, 1)).expand_as(corrupt[0]) for now in said]
            options = {"reference": others}
        expected = slopes(by_hand, pairs().clean, put[kind])
        found = score_edges(load("gpt2"), pairs(), "eap", ablation=kind, **options)
        assert close(found, expected)
        assert not close(found, -expected), "a wrong sign fails"
        assert close(scored("eap"), expected) is (kind == "corrupt")

    @pytest.mark.parametrize("kind", ["corrupt", "zero"])
    def test_clean_corrupted(self, by_hand, kind):
        clean, corrupt = outputs(by_hand)
        put = corrupt if kind == "corrupt" else [torch.zeros_like(now) for now in corrupt]
        # In the corrupted run, what is missing from the clean output's distance to its replacement.
        behind = [theirs - (ours - other) for ours, theirs, other in zip(clean, corrupt, put, strict=True)]
        ends = slopes(by_hand, pairs().clean, put), slopes(by_hand, pairs().corrupt, behind)
        found = score_edges(load("gpt2"), pairs(), "clean-corrupted", ablation=kind)
        assert close(found, sum(ends) / 2)
        assert not close(found, ends[0])
        if kind == "corrupt":
            both = [score_edges(load("gpt2"), pairs(), steps=1, points=at).values for at in ("paper", "published-code")]
            assert close(found, sum(both) / 2)

    @pytest.mark.parametrize("kind", ["corrupt", "zero"])
    def test_eap_ig_activations(self, kind):
        model, steps = Mixed(), 3
        clean, corrupt = outputs(model)
        put = corrupt if kind == "corrupt" else [torch.zeros_like(now) for now in corrupt]
        expected = np.zeros((N_WRITERS, N_READERS))
        for members in SUBLAYERS:
            for k in range(1, steps + 1):
                model.held = {u: torch.lerp(put[u], clean[u], k / steps) for u in members}
                behind = [model.held.get(u, now) - (now - put[u]) for u, now in enumerate(clean)]
                expected[members] += slopes(model, pairs().clean, behind)[members] / steps
        found = score_edges(load("gpt2"), pairs(), "eap-ig-activations", steps=steps, ablation=kind)
        assert close(found, expected)
        assert not close(scored("eap-ig-activations", steps=steps + 1), expected)

    @pytest.mark.parametrize("fixed", [False, True])
    def test_relp(self, fixed):
        model = Relevance()
        model.fixed_patterns = fixed
        expected = slopes(model, pairs().clean, outputs(model)[1])
        assert close(scored("relp", attention_rule=fixed), expected)
        assert not close(scored("relp", attention_rule=not fixed), expected, 1e-3)
        assert not close(scored("eap"), expected, 1e-3)

    @torch.no_grad()
    def test_ifr(self, by_hand):
        clean, _ = outputs(by_hand)
        biases = [by_hand.weights[f"h.{layer}.attn.c_proj.bias"] for layer in range(2)]
        expected = np.zeros((N_WRITERS, N_READERS))
        for reader, n_seen in enumerate(layout().visible):
            node = layout().readers[reader].node
            n_before = 2 if node.layer is None else node.layer + (node.kind is Kind.MLP)
            whole = sum(clean[:n_seen]) + sum(biases[:n_before])
            nearer = [whole.abs().sum(2) - (whole - part).abs().sum(2) for part in clean[:n_seen]]
            parts = torch.stack(nearer).clamp_min(1e-5)
            expected[:n_seen, reader] = (parts / parts.sum(0)).mean((1, 2))
        assert close(scored("ifr"), expected)

    @pytest.mark.parametrize("method", ["exact", "eap", "clean-corrupted", "eap-ig"])
    def test_positions(self, by_hand, method):
        """An edge's tokens at one position: what it carries elsewhere stays as it is."""
        clean, corrupt = outputs(by_hand)
        found = score_edges(
            load("gpt2"), pairs(), method, axis="position", **({"steps": 1} if method == "eap-ig" else {})
        )
        assert found.by_column is not None
        plain = score_edges(load("gpt2"), pairs(), method, **({"steps": 1} if method == "eap-ig" else {}))
        assert close(found, plain.values, 1e-12)
        for place in (2, 5, 7):
            here = [
                torch.where(torch.arange(8)[None, :, None] == place, theirs, ours)
                for ours, theirs in zip(clean, corrupt, strict=True)
            ]
            column = found.by_column.scores[place]
            if method in ("eap", "eap-ig"):
                assert np.abs(column - slopes(by_hand, pairs().clean, here)).max() < 1e-8
            if method == "exact":
                keep = torch.ones(N_WRITERS, N_READERS, dtype=torch.float64)
                for row, reader in ((0, 0), (1, 12), (5, 17), (9, 26)):
                    keep[row, reader] = 0
                    fall = metric(by_hand, torch.ones_like(keep), here) - metric(by_hand, keep, here)
                    assert column[row, reader] == pytest.approx(fall, abs=1e-10)
                    keep[row, reader] = 1

    def test_nodes_and_components_one_by_one(self, by_hand):
        clean, corrupt = outputs(by_hand)
        whole = metric(by_hand, torch.ones(N_WRITERS, N_READERS), corrupt)
        nodes = score_nodes(load("gpt2"), pairs(), "exact")
        components = score_nodes(load("gpt2"), pairs(), "exact", level="neuron")
        for writer in range(N_WRITERS):
            keep = torch.ones(N_WRITERS, N_READERS, dtype=torch.float64)
            keep[writer] = 0
            assert nodes.values[writer] == pytest.approx(whole - metric(by_hand, keep, corrupt), abs=1e-10)
            here = torch.where(torch.arange(32) == 3 * writer, corrupt[writer], clean[writer])
            put = [here if n == writer else now for n, now in enumerate(corrupt)]
            fall = whole - metric(by_hand, keep, put)
            assert components.values[writer, 3 * writer % 32] == pytest.approx(fall, abs=1e-10) or writer * 3 >= 32

    def test_neurons_of_an_mlp(self, by_hand):
        """The neuron's own column of the output projection, times how far it is."""
        found = score_nodes(load("gpt2"), pairs(), "exact", level="mlp-neuron")
        clean, corrupt = outputs(by_hand)
        model, weight = load("gpt2"), by_hand.weights["h.1.mlp.c_proj.weight"]
        hidden = [
            model.mlp_hidden(1, run.resid_pre[1] + run.attn_out[1])
            for run in (model.record(pairs().clean), model.record(pairs().corrupt))
        ]
        keep = torch.ones(N_WRITERS, N_READERS, dtype=torch.float64)
        whole = metric(by_hand, keep, corrupt)
        keep[10] = 0
        for neuron in (0, 77, 127):
            moved = clean[10] + (hidden[1] - hidden[0])[..., neuron : neuron + 1] * weight[neuron]
            fall = whole - metric(by_hand, keep, [*clean[:10], moved])
            assert found.values[1, neuron] == pytest.approx(fall, abs=1e-10)


def neurons_by_autograd(name: str, layer: int) -> np.ndarray:
    """(clean - corrupted) . dm/dneuron in the clean run, by torch's backward pass through the whole bridge."""
    model, batch, seen = load(name), pairs(), []
    module = model.bridge.blocks[layer].mlp.out.hook_in

    def run(tokens: torch.Tensor) -> torch.Tensor:
        def leaf(_module: object, _args: object, out: torch.Tensor) -> torch.Tensor:
            seen.append(out.detach().requires_grad_())
            return seen[-1]

        handle = module.register_forward_hook(leaf)
        try:
            return model.bridge(tokens, return_type="logits", use_cache=False)
        finally:
            handle.remove()

    logits = run(batch.clean)[torch.arange(len(batch)), batch.answer_at]
    run(batch.corrupt)
    clean, corrupt = seen
    (slope,) = torch.autograd.grad(resolve("logit_diff")(logits, batch).sum(), clean)
    return ((clean - corrupt) * slope).sum(1).mean(0).detach().numpy()


class TestLaws:
    @pytest.mark.parametrize("name", [name for name in EVERYWHERE if name != "attn-only"])
    def test_neurons_of_mlps(self, name):
        model = load(name)
        found = score_nodes(model, pairs(), "eap", level="mlp-neuron")
        for layer in range(model.spec.n_layers):
            assert np.abs(found.values[layer] - neurons_by_autograd(name, layer)).max() < TOLERANCE[name]
        assert np.abs(found.values).max() > 1e-3
        if model.has_post_norm(0):
            return
        nodes = score_nodes(model, pairs(), "eap")
        mlps = [n for n, node in enumerate(Layout.of(model.spec).writers) if node.kind is Kind.MLP]
        assert np.abs(found.values.sum(1) - nodes.values[mlps]).max() < TOLERANCE[name]

    @pytest.mark.parametrize("method", ["eap-ig", "clean-corrupted"])
    def test_neurons_along_a_path(self, method):
        found = score_nodes(load("gpt2"), pairs(), method, level="mlp-neuron").values
        exact = score_nodes(load("gpt2"), pairs(), "exact", level="mlp-neuron").values
        assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.8
        assert np.corrcoef(-found.ravel(), exact.ravel())[0, 1] < 0

    @pytest.mark.parametrize("name", EVERYWHERE)
    @pytest.mark.parametrize("method", ["eap", "eap-ig", "eap-ig-activations", "relp"])
    def test_a_nodes_score_is_the_sum_of_its_edges(self, name, method):
        if (method, name) == ("relp", "solu"):
            return
        few: dict[str, Any] = {"steps": 2} if method.startswith("eap-ig") else {}
        edges = scored(method, name, **few)
        nodes = score_nodes(load(name), pairs(), method, **few)
        components = score_nodes(load(name), pairs(), method, level="neuron", **few)
        assert np.abs(nodes.values - edges.values.sum(1)).max() < TOLERANCE[name]
        assert np.abs(components.values.sum(1) - nodes.values).max() < TOLERANCE[name]
        assert components.values.shape == (len(edges.layout.writers), load(name).spec.d_model)
        assert np.abs(nodes.values).max() > 0.01
        assert dict(nodes.checks) == pytest.approx(dict(edges.checks))

    @pytest.mark.parametrize("name", EVERYWHERE)
    def test_one_step_along_activations_is_eap(self, name):
        assert close(scored("eap-ig-activations", name, steps=1), scored("eap", name).values, 1e-12)

    @pytest.mark.parametrize(("name", "kind"), [*((name, "corrupt") for name in EVERYWHERE), ("gpt2", "zero")])
    def test_the_gap_along_activations_falls_with_steps(self, name, kind):
        gaps = [
            score_edges(load(name), pairs(), "eap-ig-activations", steps=m, ablation=kind).checks["completeness_gap"]
            for m in (2, 16)
        ]
        assert gaps[1] < 0.4 * gaps[0]
        assert gaps[1] < 0.25

    @pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2", "granite", "attn-only"])
    def test_ifr_shares_sum_to_one(self, name):
        scores = scored("ifr", name)
        assert np.abs(scores.values.sum(0) - 1).max() < 1e-6
        assert scores.values.min() >= 0
        assert 0 < scores.checks["clipped"] < 1
        by_slot = [[n for n, reader in enumerate(scores.layout.readers) if reader.slot is slot] for slot in Slot]
        assert (scores.values[:, by_slot[0]] == scores.values[:, by_slot[1]]).all()
        assert (scores.values[:, by_slot[0]] == scores.values[:, by_slot[2]]).all()

    @pytest.mark.parametrize("axis", ["position", "span"])
    @pytest.mark.parametrize("method", ["eap", "eap-ig", "clean-corrupted", "relp"])
    def test_columns_sum_to_the_whole(self, method, axis):
        batch = pairs() if axis == "position" else mixed_pairs()
        found = score_edges(load("llama"), batch, method, axis=axis)
        assert found.by_column is not None
        assert np.abs(found.by_column.scores.sum(0) - found.values).max() < 1e-10
        frame = found.to_frame(by_column=True)
        assert len(frame) == len(found.by_column.labels) * found.layout.n_edges
        assert frame.groupby(["source", "target"])["score"].sum().sum() == pytest.approx(found.values.sum())
        with pytest.raises(ConfigError, match="axis='position'"):
            scored("eap").to_frame(by_column=True)

    @pytest.mark.parametrize("method", GRADIENTS)
    def test_the_batch_has_no_part_in_it(self, method):
        small = score_edges(load("gpt2"), mixed_pairs(), method, budget=400_000)
        assert close(score_edges(load("gpt2"), mixed_pairs(), method), small.values, 1e-10)

    @pytest.mark.parametrize("method", [m for m in METHODS if "ablation" in METHODS[m].takes and METHODS[m].in_metric])
    def test_swapping_answers_turns_the_sign(self, method):
        batch = pairs()
        other = type(batch).from_tokens(batch.clean, batch.corrupt, batch.distractors, batch.answers, batch.answer_at)
        assert close(score_edges(load("gpt2"), other, method), -scored(method).values, 1e-10)

    def test_less_is_better_turns_the_sign(self):
        found = score_edges(load("gpt2"), pairs(), "eap-ig", metric="kl", axis="position")
        assert found.by_column is not None
        assert np.abs(found.by_column.scores.sum(0) - found.values).max() < 1e-10
        assert score_edges(load("gpt2"), pairs(), "ifr", metric="kl").values.min() >= 0, "no difference of a metric"
        nodes = score_nodes(load("gpt2"), pairs(), "eap-ig", metric="kl")
        assert np.abs(nodes.values - found.values.sum(1)).max() < 1e-10

    def test_random_scores_are_the_seeds(self):
        one, two = (score_edges(load("gpt2"), pairs(), "random", seed=seed).values for seed in (1, 2))
        assert (one == score_edges(load("gpt2"), pairs(seed=5), "random", seed=1).values).all()
        assert abs(np.corrcoef(one[real_edges(layout())], two[real_edges(layout())])[0, 1]) < 0.2
        assert (one[~real_edges(layout())] == 0).all()


class TestRelevance:
    @pytest.mark.parametrize("attention_rule", [False, True])
    @pytest.mark.parametrize("name", [name for name in EVERYWHERE if name != "solu"])
    def test_values_stay_to_the_bit(self, name, attention_rule):
        model, batch = load(name), pairs()
        ruled: Any = RelevanceModel(model, attention_rule)
        arguments, start = model.block_arguments(batch.clean), model.embedding(batch.clean)
        runs = [
            trace(which, arguments, Window.whole(batch), start, graph=graph)
            for which in (model, ruled)
            for graph in (True, False)
        ]
        for other in runs[1:]:
            assert torch.equal(runs[0].final, other.final)
            for ours, theirs in zip(runs[0].blocks, other.blocks, strict=True):
                assert all(torch.equal(value, theirs.tensors()[part]) for part, value in ours.tensors().items())
        with torch.enable_grad():
            assert torch.equal(ruled.logits(runs[0].final), model.logits(runs[0].final))

    @pytest.mark.parametrize("settings", [{}, {"attn_only": True}, {"n_key_value_heads": 2}])
    def test_without_norms_and_with_relu_it_is_eap(self, settings):
        """No rule has anything to change: relu(z) / z is its slope."""
        model = load_model(native(act_fn="relu", normalization_type=None, **settings))
        assert close(score_edges(model, pairs(), "relp"), score_edges(model, pairs(), "eap").values, 1e-10)

    def test_what_it_has_no_rule_for_is_refused_with_a_number(self):
        with pytest.raises(UnsupportedModelError, match=r"MLP 0 .* not of each neuron alone .* another by 0\.\d+ of"):
            score_edges(load("solu"), pairs(), "relp")

    def test_the_model_is_left_alone(self):
        before = score_edges(load("qwen3"), pairs(), "eap").values
        score_edges(load("qwen3"), pairs(), "relp")
        assert (score_edges(load("qwen3"), pairs(), "eap").values == before).all()


class TestAgainstExact:
    @pytest.mark.parametrize("name", ["gpt2", "qwen3", "native"])
    def test_estimates_follow_it(self, name):
        exact = scored("exact", name)
        found = {method: correlation(scored(method, name), exact) for method in GRADIENTS}
        assert min(found.values()) > 0.65, found
        assert max(found.values()) > 0.89, found
        assert abs(correlation(scored("random", name), exact)) < 0.2

    @pytest.mark.parametrize("method", GRADIENTS)
    def test_components_follow_it(self, method):
        exact = score_nodes(load("gpt2"), pairs(), "exact", level="neuron").values
        found = score_nodes(load("gpt2"), pairs(), method, level="neuron").values
        assert np.corrcoef(exact.ravel(), found.ravel())[0, 1] > 0.6
        assert np.corrcoef(exact[5], found[5])[0, 1] > 0.6, "an MLP's, whose gradient is the one at its output"


class TestMistakes:
    def test_levels(self):
        with pytest.raises(UnknownNameError, match="unknown level 'edge'.*score_edges"):
            score_nodes(load("gpt2"), pairs(), level="edge")
        with pytest.raises(ConfigError, match="method 'ifr' does not score level 'node'"):
            score_nodes(load("gpt2"), pairs(), "ifr")
        with pytest.raises(UnknownNameError, match="no site 'neuron'"):
            score_nodes(load("attn-only"), pairs(), "exact", level="mlp-neuron")
        with pytest.raises(UnknownNameError, match="unknown level 'mlp-neuron'.*no MLPs"):
            score_nodes(load("attn-only"), pairs(), "eap", level="mlp-neuron")
        with pytest.raises(ConfigError, match="ablation is 'zero'.*method 'exact'"):
            score_nodes(load("gpt2"), pairs(), "eap", level="mlp-neuron", ablation="zero")
        with pytest.raises(ConfigError, match="'relp' does not score level 'mlp-neuron'"):
            score_nodes(load("gpt2"), pairs(), "relp", level="mlp-neuron")

    def test_steps(self):
        with pytest.raises(ConfigError, match="steps is 0"):
            score_edges(load("gpt2"), pairs(), "eap-ig-activations", steps=0)

    def test_a_mean_needs_its_reference(self):
        with pytest.raises(ConfigError, match="needs a reference set"):
            score_edges(load("gpt2"), pairs(), "eap", ablation="mean")


def test_frames_of_nodes():
    frame = score_nodes(load("gpt2"), pairs(), "eap").to_frame()
    assert list(frame["node"]) == [node.name for node in layout().writers]
    frame = score_nodes(load("gpt2"), pairs(), "exact", level="mlp-neuron").to_frame()
    assert list(frame.columns) == ["node", "neuron", "score", "standard_error"]
    assert len(frame) == 2 * 128
