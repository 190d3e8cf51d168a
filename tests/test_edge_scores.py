"""Edge scores: exact and integrated gradients against GPT-2 by hand, TransformerLens, brute force, and the laws."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    GROUPED,
    N_HEADS,
    N_LAYERS,
    TOLERANCE,
    as_users_run_it,
    booted,
    load,
    logit_diff,
    mixed_pairs,
    pairs,
)
from gpt2_by_hand import N_READERS, N_WRITERS, Gpt2ByHand
from test_circuit_runs import transformer_lens_edges

from circuitlab import score_edges, sweep
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import ConfigError, MetricError, UnknownNameError
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.models.anatomy import norm_of
from circuitlab.parts import Kind, Layout, Node, Reader, Slot
from circuitlab.patching.runs.baseline import record_baseline
from circuitlab.patching.runs.writers import writer_differences

METRIC = resolve("logit_diff")
# Holds two prompts of a sweep and one of everything else.
SMALL_BUDGET = 230_000


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def by_hand() -> Gpt2ByHand:
    return Gpt2ByHand()


def layout_of(name: str) -> Layout:
    return Layout.of(load(name).spec)


@cache
def scored(name: str, method: str = "eap-ig", steps: int = 5) -> EdgeScores:
    return score_edges(load(name), pairs(), method, steps=steps)


def gap(name: str, batch: PairBatch | None = None) -> float:
    """Clean minus corrupted logit difference, mean over examples."""
    baseline = record_baseline(load(name), batch or pairs())
    clean, corrupt = baseline.gap(METRIC)
    return float((clean - corrupt).mean())


def tokens_of(batch: PairBatch) -> tuple[torch.Tensor, ...]:
    """The arguments of `PairBatch.from_tokens`."""
    return batch.clean, batch.corrupt, batch.answers, batch.distractors, batch.answer_at


def close(scores: EdgeScores, expected: np.ndarray, tolerance: float) -> bool:
    return float(np.abs(scores.values - expected).max()) < tolerance


@torch.no_grad()
def slope(name: str, hook: str, moved: Callable[[float], torch.Tensor]) -> float:
    """How fast the metric of the clean run changes with the share of something that is added at a hook."""
    # Small enough for the curve to be straight, large enough for models that compute in float32 here and there.
    step = 1e-5 if name == "gpt2" else 1e-2
    bridge, batch, ends = load(name).bridge, pairs(), []
    for share in (step, -step):
        delta = moved(share)
        hooks = [(hook, lambda value, hook, delta=delta: value + delta)]
        ends.append(float(logit_diff(bridge.run_with_hooks(batch.clean, fwd_hooks=hooks), batch).mean()))
    return (ends[0] - ends[1]) / (2 * step)


class TestByHand:
    """Each score is a derivative or a difference of one function: the metric of GPT-2 with a share on every edge."""

    def metric(self, by_hand: Gpt2ByHand, shares: torch.Tensor, batch: PairBatch) -> torch.Tensor:
        with torch.no_grad():
            _, corrupt = by_hand.whole(batch.corrupt)
        return logit_diff(by_hand.run(batch.clean, shares, corrupt)[0], batch).mean()

    def test_eap_is_the_gradient_at_the_shares(self, by_hand):
        """One step at the clean end: how fast the metric falls as the edge begins to carry its corrupted value."""
        shares = torch.ones(N_WRITERS, N_READERS, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(self.metric(by_hand, shares, pairs()), shares)
        scores = scored("gpt2", steps=1)
        assert close(scores, gradient.numpy(), 1e-6)
        assert np.abs(scores.values).max() > 0.05

    def test_eap_is_a_finite_difference(self, by_hand):
        """The same without autograd, on the strongest edges."""
        scores, step = scored("gpt2", steps=1), 1e-5
        for row, column in scores.ranked()[:5]:
            shares = torch.ones(N_WRITERS, N_READERS, dtype=torch.float64)
            at = []
            for sign in (1, -1):
                shares[row, column] = 1 + sign * step
                with torch.no_grad():
                    at.append(float(self.metric(by_hand, shares, pairs())))
            assert scores.values[row, column] == pytest.approx((at[0] - at[1]) / (2 * step), abs=1e-6)

    @torch.no_grad()
    def test_exact_scores_are_differences(self, by_hand):
        shares = torch.ones(N_WRITERS, N_READERS, dtype=torch.float64)
        whole = float(self.metric(by_hand, shares, pairs()))
        expected = np.zeros(shares.shape)
        for row, column in np.argwhere(real_edges(layout_of("gpt2"))):
            shares[row, column] = 0
            expected[row, column] = whole - float(self.metric(by_hand, shares, pairs()))
            shares[row, column] = 1
        assert close(scored("gpt2", "exact"), expected, 1e-10)
        # First-order scores are estimates of these, and no more than that.
        assert not close(scored("gpt2", steps=1), expected, 0.01)

    @pytest.mark.parametrize("points", ["paper", "published-code"])
    def test_integrated_gradients_by_hand(self, by_hand, points):
        """k = 1 .. m from the corrupted embedding (left out) to the clean one (in), or the other way; nothing held."""
        batch, steps = pairs(), 3
        with torch.no_grad():
            differences = writer_differences(load("gpt2"), record_baseline(load("gpt2"), batch))
        expected = torch.zeros(N_WRITERS, N_READERS, dtype=torch.float64)
        ends = [load("gpt2").record(tokens).resid_pre[0] for tokens in (batch.corrupt, batch.clean)]
        for k in range(1, steps + 1) if points == "paper" else range(steps):
            probe = ProbedGpt2(by_hand, torch.lerp(*ends, k / steps))
            expected += probe.scores(batch, differences) / steps
        scores = score_edges(load("gpt2"), pairs(), steps=steps, points=points)
        assert close(scores, expected.numpy(), 1e-6)
        assert not close(scored("gpt2", steps=steps + 1), expected.numpy(), 1e-3)
        assert close(scored("gpt2", steps=steps), expected.numpy(), 1e-6) is (points == "paper")


class ProbedGpt2(Gpt2ByHand):
    """GPT-2 from a given embedding, with a leaf added to what each reader reads: its gradient is the reader's."""

    def __init__(self, other: Gpt2ByHand, start: torch.Tensor) -> None:
        self.weights, self.start = other.weights, start
        self.probes = [torch.zeros_like(start, requires_grad=True) for _ in range(N_READERS)]

    def _read(self, reader: int, said: list, keep: torch.Tensor, replacement: list) -> Any:
        return self.start + sum(said[1:]) + self.probes[reader]

    def scores(self, batch: PairBatch, differences: torch.Tensor) -> torch.Tensor:
        logits, _ = self.whole(batch.clean)
        gradients = torch.autograd.grad(logit_diff(logits, batch).mean(), self.probes)
        found = torch.einsum("wbsd,rbsd->wr", differences, torch.stack(gradients))
        return found * torch.tensor(real_edges(layout_of("gpt2")))


class TestTransformerLens:
    @pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
    def test_attribution_patch(self, name):
        """It takes the gradient in the corrupted run: ours with swapped prompts, negated."""
        from transformer_lens.tools.analysis import attribution_patching as tl

        batch, layout = pairs(n=2), layout_of(name)
        bridge = booted(name, ungrouped=name in GROUPED)
        ours = score_edges(load(name), batch.swapped(), steps=1).values
        expected = np.zeros(ours.shape)
        config = tl.EdgeAttributionConfig(granularity="edge")
        for i in range(len(batch)):
            one = batch.take(torch.tensor([i]))

            def metric(logits: torch.Tensor, one: PairBatch = one) -> torch.Tensor:
                return logit_diff(logits, one)[0]

            theirs = tl.attribution_patch(bridge, one.clean, one.corrupt, metric, config).edge_scores
            for row, column in np.argwhere(real_edges(layout)):
                single = np.zeros(ours.shape, dtype=bool)
                single[row, column] = True
                edges = transformer_lens_edges(layout, single, batch.n_tokens)
                expected[row, column] += sum(theirs[edge] for edge in edges) / len(batch)
        assert -ours == pytest.approx(expected, abs=2e-5)
        assert np.abs(expected).max() > 0.05
        # The published code's points with one step are the corrupted end alone.
        at_start = score_edges(load(name), batch, steps=1, points="published-code").values
        assert at_start == pytest.approx(expected, abs=2e-5)
        assert scored(name, steps=1).values != pytest.approx(expected, abs=2e-2)

    @pytest.mark.parametrize("slot", Slot)
    def test_direct_paths(self, slot):
        """It puts the clean value into the corrupted run: the exact effect with the prompts swapped."""
        from transformer_lens.patching import get_act_patch_direct_path

        batch, bridge, layout = pairs(), booted("gpt2"), layout_of("gpt2")

        def metric(logits: torch.Tensor) -> torch.Tensor:
            return logit_diff(logits, batch).mean()

        with torch.no_grad():
            _, clean = bridge.run_with_cache(batch.clean)
            logits, corrupt = bridge.run_with_cache(batch.corrupt)
        exact = score_edges(load("gpt2"), batch.swapped(), "exact").values
        columns = [layout.reader_index(Reader(Node(Kind.HEAD, 1, head), slot)) for head in range(N_HEADS)]
        for head in range(N_HEADS):
            with torch.no_grad():
                theirs = get_act_patch_direct_path(
                    bridge, batch.corrupt, clean, corrupt, metric, 0, head, slot.value, verbose=False
                )
            assert float(metric(logits)) - exact[1 + head, columns] == pytest.approx(theirs[1].numpy(), abs=1e-5)
        assert np.abs(exact[1 : 1 + N_HEADS, columns]).max() > 0.01


class TestLaws:
    def test_edges_out_of_the_input_sum_to_the_difference_up_to_the_completeness_gap(self, name):
        """Readers' gradients add up to the gradient at the embedding: the integral along the path is what they give."""
        truth = gap(name)
        for steps in (1, 5):
            scores = scored(name, steps=steps)
            missed = abs(scores.values[0].sum() - truth) / abs(truth)
            assert missed == pytest.approx(scores.checks["completeness_gap"], rel=1e-3, abs=1e-5)

    def test_the_gap_falls_with_steps(self, name):
        # On the prompts of the other tests a single step of Granite misses by 0.01 by chance, two by 0.57.
        batch = pairs(seed=1 if name == "granite" else 0)
        gaps = [score_edges(load(name), batch, steps=steps).checks["completeness_gap"] for steps in (1, 5, 15)]
        assert gaps[2] < 0.1
        assert gaps[2] < min(gaps[:2])

    def test_swapped_prompts_turn_the_sign(self, name):
        """The twin of the sum above: with clean and corrupted exchanged it is the negative."""
        turned = score_edges(load(name), pairs().swapped(), steps=15).values[0].sum()
        assert turned == pytest.approx(-gap(name), rel=0.1)
        assert scored(name, steps=15).values[0].sum() == pytest.approx(gap(name), rel=0.1)

    def test_a_writers_edges_sum_to_its_node(self, name):
        """At one point, the edges out of an MLP sum to the slope of the metric along the MLP's own difference."""
        differences = writer_differences(load(name), record_baseline(load(name), pairs()))
        for layer in range(N_LAYERS):
            row = layout_of(name).writer_index(Node(Kind.MLP, layer))
            found = slope(name, f"blocks.{layer}.hook_mlp_out", lambda share, row=row: share * differences[row])
            assert scored(name, steps=1).values[row].sum() == pytest.approx(found, abs=2e-3)
            assert abs(found) > 1e-2

    def test_queries_follow_from_the_heads_own_input(self, name):
        """Edges into q by finite differences: one head's query recomputed from a stream that one writer has moved."""
        model, layout, layer = load(name), layout_of(name), 1
        baseline = record_baseline(model, pairs())
        differences, stream = writer_differences(model, baseline), baseline.clean.resid_pre[layer]
        block, size = model.bridge.blocks[layer], model.spec.d_head

        def queries(moved: torch.Tensor) -> torch.Tensor:
            return block.attn.q(norm_of(block, "ln1")(stream + moved)).unflatten(-1, (-1, size))

        def moved(share: float, row: int, only: torch.Tensor) -> torch.Tensor:
            return only * (queries(share * differences[row]) - queries(0 * differences[row]))

        for row in (0, 2, N_HEADS + 1):
            for head in range(N_HEADS):
                column = layout.reader_index(Reader(Node(Kind.HEAD, layer, head), Slot.Q))
                only = torch.arange(N_HEADS)[:, None] == head
                found = slope(name, f"blocks.{layer}.attn.hook_q", partial(moved, row=row, only=only))
                assert scored(name, steps=1).values[row, column] == pytest.approx(found, abs=2e-4)

    @pytest.mark.parametrize("method", ["eap-ig", "exact"])
    @pytest.mark.parametrize("name", GROUPED)
    def test_grouped_queries_are_the_same_model_written_out_per_query_head(self, name, method):
        spelt_out = score_edges(load(name, ungrouped=True), pairs(), method)
        assert close(scored(name, method), spelt_out.values, 2e-5)

    @pytest.mark.parametrize("method", ["eap-ig", "exact", "sweep"])
    @pytest.mark.parametrize("name", ["gpt2", "gemma2"])
    def test_the_batch_has_no_part_in_it(self, name, method):
        """Not its size, not its order, not the memory: the mean of the examples' own scores."""
        model, batch, order = load(name), pairs(), torch.tensor([3, 1, 0, 2])
        together = scored(name, method)
        assert close(score_edges(model, batch, method, budget=SMALL_BUDGET), together.values, TOLERANCE[name])
        assert close(score_edges(model, batch.take(order), method), together.values, TOLERANCE[name])
        doubled = score_edges(model, PairBatch.from_tokens(*(torch.cat([t, t]) for t in tokens_of(batch))), method)
        assert close(doubled, together.values, TOLERANCE[name])
        assert (doubled.n_examples, together.n_examples) == (8, 4)

    @pytest.mark.parametrize("method", ["eap-ig", "exact"])
    def test_standard_errors_are_over_examples(self, method):
        batch, alone = pairs(), []
        for i in range(len(batch)):
            one = PairBatch.from_tokens(*(t[i : i + 1] for t in tokens_of(batch)))
            found = score_edges(load("gpt2"), one, method)
            assert (found.standard_error == 0).all()
            alone.append(found.values)
        together = scored("gpt2", method)
        assert together.values == pytest.approx(np.mean(alone, 0), abs=1e-6)
        assert together.standard_error == pytest.approx(np.std(alone, 0, ddof=1) / 2, abs=1e-6)
        assert together.standard_error.max() > 0.01

    @pytest.mark.parametrize("method", ["eap-ig", "exact"])
    def test_prompts_of_different_length(self, method):
        mixed, model = PairSet(mixed_pairs().pairs[:3]), load("llama")
        alone = [score_edges(model, PairSet((pair,)), method).values for pair in mixed]
        assert close(score_edges(model, mixed, method), np.mean(alone, 0), TOLERANCE["llama"])

    def test_no_score_where_there_is_no_edge(self, name):
        for method in ("eap-ig", "exact", "sweep"):
            values = scored(name, method).values
            assert (values[~real_edges(layout_of(name))] == 0).all()
            assert (values[real_edges(layout_of(name))] != 0).mean() > 0.8

    @pytest.mark.parametrize("method", ["exact", "sweep"])
    def test_less_is_better_turns_the_sign(self, method):
        """Cutting an edge of the whole model can only raise the divergence from it: every exact score is positive."""
        found = score_edges(load("gpt2"), pairs(), method, metric="kl")
        assert found.metric == "kl"
        if method == "exact":
            assert (found.values >= -1e-12).all()
        assert found.values.max() > 0.01

    def test_exact_scores_take_any_metric(self):
        found = score_edges(load("gpt2"), pairs(n=8), "exact", metric="rank")
        assert set(np.unique(found.values * 8) % 1) == {0}

    def test_one_number_an_edge_in_the_order_of_the_files(self):
        frame = scored("gpt2").to_frame()
        assert list(frame.columns) == ["source", "target", "score", "standard_error"]
        assert [f"{s}->{t}" for s, t in zip(frame["source"], frame["target"], strict=True)] == [
            edge.name for edge in layout_of("gpt2").edges()
        ]
        at = layout_of("gpt2").edge_index(next(e for e in layout_of("gpt2").edges() if e.name == "a0.h1->a1.h2<k>"))
        there = (frame["source"] == "a0.h1") & (frame["target"] == "a1.h2<k>")
        assert frame.loc[there, "score"].item() == scored("gpt2").values[at]

    def test_top_is_exactly_that_many(self):
        scores = scored("gpt2")
        for n in (0, 1, 7, layout_of("gpt2").n_edges):
            mask = scores.top(n)
            assert mask.sum() == n
            if 0 < n < layout_of("gpt2").n_edges:
                rest = real_edges(layout_of("gpt2")) & ~mask
                assert np.abs(scores.values[mask]).min() >= np.abs(scores.values[rest]).max()
        signed = scores.top(10, signed=True)
        assert scores.values[signed].min() >= scores.values[real_edges(layout_of("gpt2")) & ~signed].max()
        assert (signed != scores.top(10)).any()


class TestNodeSweep:
    def test_node_effects_are_the_sweeps(self, name):
        effects, model = scored(name, "sweep").node_effects, load(name)
        heads = sweep(model, pairs(), "head_z").values
        mlps = sweep(model, pairs(), "mlp_out", axis="all").values
        assert effects["input"] == effects["logits"] == 1
        for layer in range(N_LAYERS):
            assert effects[f"m{layer}"] == pytest.approx(mlps[layer, 0], abs=1e-6)
            for head in range(N_HEADS):
                assert effects[f"a{layer}.h{head}"] == pytest.approx(heads[layer, head], abs=1e-6)

    def test_the_top_edges_are_those_between_the_top_nodes(self, name):
        scores, layout = scored(name, "sweep"), layout_of(name)
        nodes = sorted(layout.nodes, key=lambda node: -abs(scores.node_effects[node.name]))
        for n_nodes in range(2, len(nodes) + 1):
            kept = set(nodes[:n_nodes])
            between = np.zeros(scores.values.shape, dtype=bool)
            for edge in layout.edges():
                if edge.source in kept and edge.reader.node in kept:
                    between[layout.edge_index(edge)] = True
            assert (scores.top(int(between.sum())) == between).all()

    def test_the_weaker_node_gives_the_score(self):
        scores, layout = scored("gpt2", "sweep"), layout_of("gpt2")
        truth = gap("gpt2")
        for edge in layout.edges():
            ends = [scores.node_effects[node.name] for node in (edge.source, edge.reader.node)]
            assert scores.values[layout.edge_index(edge)] == pytest.approx(min(ends, key=abs) * truth, abs=1e-6)
        assert scores.values[0, -1] == pytest.approx(truth, abs=1e-6)


class TestMistakes:
    def test_an_unknown_method(self):
        message = r"unknown method 'eapig'. Did you mean 'eap-ig'\? Allowed: eap-ig, eap, "
        with pytest.raises(UnknownNameError, match=message):
            score_edges(load("gpt2"), pairs(), "eapig")

    @pytest.mark.parametrize(
        ("steps", "rule"),
        [
            (0, "it must be a whole number from 1 to 10000"),
            (-1, "it must be a whole number from 1 to 10000"),
            (10**9, "it must be a whole number from 1 to 10000"),
            (True, "it must be int"),
            (2.5, "it must be int"),
        ],
    )
    def test_steps(self, steps, rule):
        message = f"steps is {steps!r}.*; {rule}"
        with as_users_run_it(), pytest.raises(ConfigError, match=message):
            score_edges(load("gpt2"), pairs(), steps=steps)

    @pytest.mark.parametrize("metric", ["accuracy", "rank"])
    def test_metrics_without_a_gradient(self, metric):
        with pytest.raises(MetricError, match=f"metric '{metric}' has no gradient. Use logit_diff, prob_diff or log_"):
            score_edges(load("gpt2"), pairs(), metric=metric)

    def test_metrics_that_torch_cannot_follow(self):
        with pytest.raises(MetricError, match="does not depend on the logits in a way that torch can differentiate"):
            score_edges(load("gpt2"), pairs(), metric=lambda logits, batch: logits.detach()[:, 0])

    def test_a_divergence_has_no_slope_at_its_minimum(self):
        with pytest.raises(MetricError, match="gradient"):
            score_edges(load("gpt2"), pairs(), metric="kl", steps=1)

    @pytest.mark.parametrize("method", ["eap-ig", "exact", "sweep"])
    def test_a_budget_that_holds_no_prompt(self, method):
        with pytest.raises(ConfigError, match="a memory budget of 1000 bytes does not hold one prompt of 8 tokens"):
            score_edges(load("gpt2"), pairs(), method, budget=1000)


def test_progress_says_where_it_is():
    for method in ("eap-ig", "exact", "sweep"):
        steps: list[tuple[str, int, int]] = []
        score_edges(load("gpt2"), mixed_pairs(), method, progress=lambda *at, steps=steps: steps.append(at))
        assert steps[-1][1] == steps[-1][2]
        assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


def test_kinds_of_nodes_are_all_there():
    assert {node.kind for node in layout_of("gpt2").nodes} == set(Kind)
