"""What an evaluation says, taken apart: each number once more, from its definition."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from architectures import load, logit_diff, mixed_pairs, pairs
from experiments import clean_and_empty
from gpt2_by_hand import Gpt2ByHand

from circuitlab import Circuit, evaluate, score_edges, select
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import ConfigError, GraphError, MetricError, UnknownNameError
from circuitlab.evaluation import evaluate as module
from circuitlab.evaluation.curve import (
    MIB_SHARES,
    Areas,
    CurvePoint,
    cmd,
    cmd_achieved,
    cpr,
    cpr_achieved,
    mib_sizes,
    overshoots,
)
from circuitlab.evaluation.knockouts import knockouts
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.graphs.random import random_circuit
from circuitlab.metrics import resolve
from circuitlab.parts import Edge, Layout
from circuitlab.patching.circuits.circuits import run_circuits
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import record_baseline

METRIC = resolve("logit_diff")
# Without what most of these tests do not ask about.
quick = partial(evaluate, n_knockouts=0, minimality=False)


@pytest.fixture(scope="module")
def scores() -> EdgeScores:
    return score_edges(load("gpt2"), pairs(n=6), "exact")


@pytest.fixture(scope="module")
def circuit(scores: EdgeScores) -> Circuit:
    return select(load("gpt2"), scores, pairs(n=6), n_edges=40)


@pytest.fixture(scope="module")
def held_out() -> PairBatch:
    return pairs(n=6, seed=1)


@pytest.fixture(scope="module")
def result(circuit: Circuit, held_out: PairBatch) -> module.Evaluation:
    return evaluate(load("gpt2"), circuit, held_out)


def values(circuit: Circuit, batch: PairBatch | PairSet, metric: str = "logit_diff") -> np.ndarray:
    model = load("gpt2")
    return Experiment(model, batch).measure(circuit.mask[None], [resolve(metric)])[metric][0]


def ratio_of_means(circuit: Circuit, batch: PairBatch) -> float:
    """Faithfulness from its definition."""
    clean, corrupt = (found.mean() for found in clean_and_empty(Experiment(load("gpt2"), batch), METRIC))
    return float((values(circuit, batch).mean() - corrupt) / (clean - corrupt))


class TestFaithfulness:
    def test_it_is_a_ratio_of_means(self, result, circuit, held_out):
        clean, corrupt = clean_and_empty(Experiment(load("gpt2"), held_out), METRIC)
        own = values(circuit, held_out)
        assert result.circuit == pytest.approx(own)
        assert result.clean == pytest.approx(clean)
        assert result.corrupt == pytest.approx(corrupt)
        assert result.faithfulness == pytest.approx((own.mean() - corrupt.mean()) / (clean.mean() - corrupt.mean()))
        mean_of_ratios = ((own - corrupt) / (clean - corrupt)).mean()
        assert abs(result.faithfulness - mean_of_ratios) > 0.05
        assert (result.metric_clean, result.metric_corrupt) == (clean.mean(), corrupt.mean())
        assert result.metric_circuit == pytest.approx(own.mean())

    def test_its_interval_is_around_it(self, result):
        low, high = result.interval
        assert low < result.faithfulness < high

    def test_the_whole_graph_is_the_model(self, scores, held_out):
        whole = quick(load("gpt2"), scores.circuit(real_edges(scores.layout)), held_out, n_random=2)
        assert whole.faithfulness == pytest.approx(1, abs=1e-9)
        assert whole.interval == pytest.approx((1, 1), abs=1e-9)
        assert whole.kl == pytest.approx(0, abs=1e-9)
        assert whole.accuracy_circuit == whole.accuracy_model
        assert whole.random == pytest.approx((1, 1), abs=1e-9)
        assert (whole.n_edges, whole.n_nodes) == (whole.n_edges_total, 12)

    def test_nothing_is_the_corrupted_run(self, scores, held_out):
        nothing = quick(load("gpt2"), scores.circuit(np.zeros_like(scores.values, dtype=bool)), held_out)
        assert nothing.faithfulness == 0
        assert nothing.kl > 0
        assert nothing.random == ()
        assert (nothing.n_edges, nothing.n_nodes) == (0, 0)

    def test_other_metrics(self, circuit, held_out):
        for metric in ("log_prob", "kl"):
            found = quick(load("gpt2"), circuit, held_out, metric=metric, n_random=0)
            own = values(circuit, held_out, metric)
            clean, corrupt = clean_and_empty(Experiment(load("gpt2"), held_out), resolve(metric))
            assert found.metric == metric
            expected = (own.mean() - corrupt.mean()) / (clean.mean() - corrupt.mean())
            assert found.faithfulness == pytest.approx(expected)
        assert found.faithfulness == pytest.approx(1 - found.kl / found.metric_corrupt)

    def test_accuracy_and_divergence_by_hand(self, result, circuit, held_out):
        model = load("gpt2")
        baseline = record_baseline(model, held_out)
        with torch.no_grad():
            rows = torch.arange(len(held_out))
            whole = model.bridge(held_out.clean)[rows, held_out.answer_at]
            ours = model.logits(run_circuits(model, baseline, torch.tensor(circuit.mask[None]))[0])
        right = [float((logits.argmax(1) == held_out.answers[:, 0]).double().mean()) for logits in (whole, ours)]
        assert [result.accuracy_model, result.accuracy_circuit] == pytest.approx(right)
        divergence = torch.nn.functional.kl_div(
            ours.log_softmax(1), whole.log_softmax(1), log_target=True, reduction="none"
        )
        assert result.kl == pytest.approx(float(divergence.sum(1).mean()))

    def test_accuracy_can_be_one(self, circuit, held_out):
        """The twin: with the model's own first choice as the answer, it is right everywhere and the circuit is not."""
        with torch.no_grad():
            first = load("gpt2").bridge(held_out.clean)[torch.arange(6), held_out.answer_at].argmax(1, keepdim=True)
        batch = PairBatch.from_tokens(
            held_out.clean, held_out.corrupt, first, (first + 1) % 300, answer_at=held_out.answer_at
        )
        found = quick(load("gpt2"), circuit, batch, n_random=0)
        assert found.accuracy_model == 1
        assert found.accuracy_circuit < 1

    def test_prompts_of_different_length_are_each_as_if_alone(self, circuit):
        mixed = mixed_pairs()
        together = quick(load("gpt2"), circuit, mixed, n_random=0)
        for place, pair in enumerate(mixed):
            alone = values(circuit, PairSet((pair,)))
            assert together.circuit[place] == pytest.approx(alone[0], abs=1e-10)
            assert together.clean[place] == pytest.approx(
                clean_and_empty(Experiment(load("gpt2"), PairSet((pair,))), METRIC)[0][0]
            )

    def test_the_budget_changes_nothing(self, result, circuit, held_out):
        packed = quick(load("gpt2"), circuit, held_out, budget=200_000)
        assert packed.circuit == pytest.approx(result.circuit)
        assert packed.random == pytest.approx(result.random)
        assert [p.faithfulness for p in packed.curve] == pytest.approx([p.faithfulness for p in result.curve])


class TestTheCircuit:
    def test_it_is_not_changed(self, circuit, held_out):
        mask, given = circuit.mask.copy(), circuit.scores.copy()
        quick(load("gpt2"), circuit, held_out)
        assert (circuit.mask == mask).all()
        assert (circuit.scores == given).all()

    def test_it_is_run_as_it_is(self, scores, held_out):
        """Not pruned on the way, as published code does: 40 edges stay 40, whether they connect or not."""
        loose = scores.circuit(scores.top(40))
        assert loose.pruned().n_edges < 40
        found = quick(load("gpt2"), loose, held_out, n_random=0)
        assert found.n_edges == 40
        assert found.n_nodes == len(loose.nodes)

    def test_an_unconnected_head_counts_where_norms_couple_heads(self):
        """In a post-norm model pruning changes the values, so an evaluation that prunes on the way is seen."""
        model, batch = load("gemma2"), pairs()
        scores = score_edges(model, batch)
        loose = scores.circuit(scores.top(30))
        found, pruned = (quick(model, c, batch, n_random=0) for c in (loose, loose.pruned()))
        expected = Experiment(model, batch).measure(loose.mask[None], [METRIC])["logit_diff"][0]
        assert found.circuit == pytest.approx(expected)
        assert pruned.circuit != pytest.approx(expected, abs=1e-3)

    def test_a_model_of_the_same_shape_will_do(self, circuit, held_out):
        renamed = replace(circuit, spec=replace(circuit.spec, name="read from a file", d_vocab=7, n_ctx=9))
        assert quick(load("gpt2"), renamed, held_out, n_random=0).n_edges == circuit.n_edges


class TestRandomCircuits:
    def test_they_are_twenty_of_the_same_size_and_connected(self, circuit, held_out, monkeypatch):
        drawn = []

        def spy(layout: Layout, n_edges: int, rng: np.random.Generator) -> np.ndarray:
            drawn.append(real(layout, n_edges, rng))
            return drawn[-1]

        real = module.random_circuit
        monkeypatch.setattr(module, "random_circuit", spy)
        found = quick(load("gpt2"), circuit, held_out)
        assert len(found.random) == len(drawn) == 20
        layout = circuit.layout
        assert {int(mask.sum()) for mask in drawn} == {circuit.n_edges}
        assert all((prune(mask, layout) == mask).all() for mask in drawn)
        assert len({mask.tobytes() for mask in drawn}) == 20
        apart = [quick(load("gpt2"), circuit.with_mask(mask), held_out, n_random=0).faithfulness for mask in drawn[:3]]
        assert found.random[:3] == pytest.approx(apart)

    def test_the_seed_decides(self, circuit, held_out, result):
        again, other = (quick(load("gpt2"), circuit, held_out, n_random=5, seed=seed) for seed in (0, 1))
        assert quick(load("gpt2"), circuit, held_out, n_random=5, seed=0).random == again.random
        # More circuits in a run may round differently; which they are does not change.
        assert again.random == pytest.approx(result.random[:5], rel=1e-9)
        assert other.random != again.random
        assert other.faithfulness == again.faithfulness
        assert other.interval != again.interval

    @pytest.mark.parametrize("n_random", [0, 1, 7])
    def test_as_many_as_asked_for(self, circuit, held_out, n_random):
        assert len(quick(load("gpt2"), circuit, held_out, n_random=n_random).random) == n_random

    def test_they_do_worse_than_the_circuit(self, scores, held_out):
        """On the very prompts it was chosen on; the point of the baseline."""
        batch = pairs(n=6)
        chosen = select(load("gpt2"), scores, batch, 0.8)
        found = quick(load("gpt2"), chosen, batch)
        assert abs(1 - found.faithfulness) <= 0.2
        assert np.median(np.abs(1 - np.array(found.random))) > abs(1 - found.faithfulness)


class TestCurve:
    def test_its_points_are_circuits_evaluated_apart(self, result, scores, circuit, held_out):
        total = scores.layout.n_edges
        assert [p.n_edges_nominal for p in result.curve] == [int(share * total) for share in MIB_SHARES]
        alone = [prune(scores.top(point.n_edges_nominal), scores.layout) for point in result.curve]
        assert [point.n_edges for point in result.curve] == [int(mask.sum()) for mask in alone]
        apart = [ratio_of_means(circuit.with_mask(mask), held_out) for mask in alone]
        assert [point.faithfulness for point in result.curve] == pytest.approx(apart, abs=1e-9)
        assert result.curve[-1].faithfulness == pytest.approx(1)

    def test_distance_ranks_by_size_and_performance_by_sign(self, result, scores, circuit, held_out):
        def curve(signed: bool) -> np.ndarray:
            masks = [prune(scores.top(n, signed), scores.layout) for n in mib_sizes(scores.layout.n_edges)]
            return np.array([ratio_of_means(circuit.with_mask(mask), held_out) for mask in masks])

        by_sign, by_size, widths = curve(signed=True), curve(signed=False), np.diff(MIB_SHARES)
        distances = np.abs(1 - by_size)
        assert result.cpr == pytest.approx(float((widths * (by_sign[1:] + by_sign[:-1]) / 2).sum()))
        assert result.cmd == pytest.approx(float((widths * (distances[1:] + distances[:-1]) / 2).sum()))
        assert by_sign != pytest.approx(by_size, abs=1e-3)

    @pytest.mark.parametrize(
        ("faithfulness", "performance", "distance"),
        [
            ([0.0] * 9 + [1.0], 0.25, 0.749),
            (list(MIB_SHARES), 0.5, 0.499),
            ([1.0] * 10, 0.999, 0.0),
            ([1.5] * 10, 1.4985, 0.4995),
        ],
    )
    def test_anchors(self, faithfulness, performance, distance):
        assert cpr(faithfulness) == pytest.approx(performance, abs=5e-4)
        assert cmd(faithfulness) == pytest.approx(distance, abs=1e-3)

    def test_the_same_anchors_over_achieved_sizes_and_on_a_logarithmic_axis(self):
        def areas(faithfulness: list[float]) -> Areas:
            points = [
                CurvePoint(int(1000 * share), int(1000 * share), f)
                for share, f in zip(MIB_SHARES, faithfulness, strict=True)
            ]
            return Areas.of(points, points, 1000)

        nothing, linear, perfect = areas([0.0] * 9 + [1.0]), areas(list(MIB_SHARES)), areas([1.0] * 10)
        half = np.log(2) / np.log(1000) / 2  # only the last piece, from a half to all, counts
        assert (nothing.cpr, nothing.cmd) == pytest.approx((0.25, 0.749))
        assert (nothing.cpr_log, nothing.cmd_log) == pytest.approx((half, 1 - half))
        assert (nothing.cpr_achieved, nothing.cmd_achieved) == pytest.approx((0.25, 0.75))
        assert (nothing.cpr_achieved_log, nothing.cmd_achieved_log) == pytest.approx((half, 1 - half))
        assert (linear.cpr, linear.cmd) == pytest.approx((0.5, 0.499), abs=1e-3)
        assert (linear.cpr_achieved, linear.cmd_achieved) == pytest.approx((0.5, 0.5))
        assert linear.cpr_log == pytest.approx(np.trapezoid(MIB_SHARES, np.log(MIB_SHARES)) / np.log(1000))
        assert linear.cpr_log + linear.cmd_log == pytest.approx(1)
        assert (perfect.cpr, perfect.cmd) == pytest.approx((0.999, 0))
        assert (perfect.cpr_log, perfect.cmd_log) == pytest.approx((1, 0))
        assert (perfect.cpr_achieved, perfect.cmd_achieved) == pytest.approx((1 - 0.0005, 0.0005))
        # One edge was run and does all: on the logarithmic axis nothing is missing before it.
        assert (perfect.cpr_achieved_log, perfect.cmd_achieved_log) == pytest.approx((1, 0))

    def test_pruned_sizes_count_as_they_are(self):
        """Asked for ten edges, given four: over achieved sizes the circuit stands at four."""
        nominal = [CurvePoint(n, n, f) for n, f in ((10, 0.0), (50, 0.8), (100, 1.0))]
        pruned = [CurvePoint(n, m, f) for n, m, f in ((0, 10, 0.0), (4, 50, 0.8), (100, 100, 1.0))]
        assert cpr_achieved(nominal, 100) == pytest.approx(0.4 * 0.4 + 0.5 * 0.9)
        assert cpr_achieved(pruned, 100) == pytest.approx(0.04 * 0.4 + 0.96 * 0.9)
        assert cmd_achieved(pruned, 100) == pytest.approx(0.04 * 0.6 + 0.96 * 0.1)
        edge = np.log(4) / np.log(100)
        assert cpr_achieved(pruned, 100, logarithmic=True) == pytest.approx(edge * 0.4 + (1 - edge) * 0.9)

    def test_areas_of_the_record(self, result):
        record, areas = result.to_record(), result.areas
        assert {name: record[name] for name in areas.to_record()} == areas.to_record()
        assert areas.cpr_achieved == cpr_achieved(result.curve_signed, result.n_edges_total)
        assert areas.cmd_achieved_log == cmd_achieved(result.curve, result.n_edges_total, logarithmic=True)
        assert None not in areas.to_record().values()

    def test_the_smallest_size_that_suffices(self, result, scores, circuit, held_out):
        found = result.smallest
        assert found
        assert found.faithfulness >= 0.9
        assert found.n_edges <= found.n_edges_nominal
        again = prune(scores.top(found.n_edges_nominal), scores.layout)
        assert int(again.sum()) == found.n_edges
        assert found.faithfulness == pytest.approx(ratio_of_means(circuit.with_mask(again), held_out))
        enough = [p.n_edges_nominal for p in result.curve if p.faithfulness >= 0.9]
        short = [p.n_edges_nominal for p in result.curve if p.n_edges_nominal < enough[0]]
        assert max(short) < found.n_edges_nominal <= enough[0]
        assert result.to_record()["smallest_sufficient"]["n_edges"] == found.n_edges

    def test_overshoot_is_flagged(self, result):
        values = [p.faithfulness for p in (*result.curve, *result.curve_signed)] + [result.faithfulness]
        assert result.overshoot == (max(values) > 1.0001)
        assert result.to_record()["highest"]["faithfulness"] == max(p.faithfulness for p in result.curve)
        assert not overshoots((CurvePoint(1, 1, 0.4), CurvePoint(2, 2, 1.0)))
        assert overshoots((CurvePoint(1, 1, 1.2), CurvePoint(2, 2, 1.0)))

    def test_sizes_are_cut_to_whole_numbers(self):
        assert mib_sizes(32_491) == (32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491)

    def test_an_edge_without_a_score_is_kept_at_every_size(self, circuit, held_out):
        """As EAP-IG ranks NaN. The twin: a bare list of edges has no curve at all."""
        scores = circuit.scores.copy()
        scores[0, -1] = np.nan
        found = quick(load("gpt2"), Circuit(spec=circuit.spec, mask=circuit.mask.copy(), scores=scores), held_out)
        assert [p.n_edges for p in found.curve if p.n_edges_nominal == 1] == [1], "input->logits connects by itself"
        listed = np.where(circuit.mask, np.nan, 0.0)
        bare = quick(load("gpt2"), Circuit(spec=circuit.spec, mask=circuit.mask.copy(), scores=listed), held_out)
        assert bare.curve == ()

    @pytest.mark.parametrize("nothing", [0.0, float("nan")])
    def test_a_circuit_without_scores_has_none(self, circuit, held_out, nothing):
        bare = Circuit(spec=circuit.spec, mask=circuit.mask.copy(), scores=np.full_like(circuit.scores, nothing))
        found = quick(load("gpt2"), bare, held_out, n_random=0)
        assert found.curve == ()
        assert np.isnan(found.cpr)
        assert np.isnan(found.cmd)
        assert (found.to_record()["cpr"], found.to_record()["cmd"]) == (None, None)
        assert found.faithfulness == pytest.approx(quick(load("gpt2"), circuit, held_out, n_random=0).faithfulness)


class TestCompleteness:
    def test_the_complement_is_the_rest_of_the_edges(self, result, circuit, held_out):
        rest = real_edges(circuit.layout) & ~circuit.mask
        assert result.complement == pytest.approx(ratio_of_means(circuit.with_mask(rest), held_out))

    def test_without_anything_the_complement_is_everything(self, scores, held_out):
        nothing = scores.circuit(np.zeros_like(scores.values, dtype=bool))
        found = evaluate(load("gpt2"), nothing, held_out, n_random=0)
        assert found.complement == pytest.approx(1)
        assert (found.knockouts, found.minimality.edges) == ((), ())
        assert np.isnan(found.incompleteness)

    def test_the_whole_model_is_complete(self, scores, held_out):
        whole = evaluate(load("gpt2"), scores.circuit(real_edges(scores.layout)), held_out, n_random=0)
        assert whole.complement == pytest.approx(0, abs=1e-9)
        assert whole.incompleteness == pytest.approx(0, abs=1e-9)
        assert len({one.n_edges for one in whole.knockouts}) > 5

    def test_knockouts_by_hand(self, circuit, held_out):
        found = knockouts(Experiment(load("gpt2"), held_out), circuit, 4, np.random.default_rng(7))
        rng, places = np.random.default_rng(7), np.flatnonzero(circuit.mask)
        for one in found:
            part = np.zeros(circuit.mask.size, dtype=bool)
            part[rng.choice(places, size=rng.integers(1, len(places) + 1), replace=False)] = True
            part = part.reshape(circuit.mask.shape)
            assert one.n_edges == part.sum()
            assert one.circuit == pytest.approx(ratio_of_means(circuit.with_mask(circuit.mask & ~part), held_out))
            rest = real_edges(circuit.layout) & ~part
            assert one.model == pytest.approx(ratio_of_means(circuit.with_mask(rest), held_out))
            assert one.difference == pytest.approx(abs(one.circuit - one.model))

    def test_a_random_circuit_is_less_complete(self, result, circuit, held_out):
        """The twin: edges that do nothing leave the model whole and the circuit empty."""
        weak = circuit.with_mask(random_circuit(circuit.layout, circuit.n_edges, np.random.default_rng(3)))
        found = evaluate(load("gpt2"), weak, held_out, n_random=0, minimality=False)
        assert abs(found.complement) > abs(result.complement)
        assert found.minimality is None
        assert found.to_record()["minimality"] is None

    def test_as_many_as_asked_for(self, circuit, held_out):
        assert len(evaluate(load("gpt2"), circuit, held_out, n_random=0, n_knockouts=3).knockouts) == 3
        with pytest.raises(ConfigError, match="n_knockouts is -2; it counts random parts"):
            evaluate(load("gpt2"), circuit, held_out, n_knockouts=-2)


class TestMinimality:
    def test_each_edge_by_brute_force(self, result, circuit, held_out):
        found = result.minimality
        assert [edge.name for edge in found.edges] == [edge.name for edge, _ in circuit.edges()]
        clean, corrupt = clean_and_empty(Experiment(load("gpt2"), held_out), METRIC)
        for edge, effect, low, high in zip(found.edges, found.effect, found.low, found.high, strict=True):
            mask = circuit.mask.copy()
            mask[circuit.layout.edge_index(edge)] = False
            lost = result.circuit - values(circuit.with_mask(mask), held_out)
            assert effect == pytest.approx(lost.mean() / (clean - corrupt).mean(), abs=1e-9)
            assert low <= effect <= high
        assert result.to_record()["minimality"][3]["effect"] == found.effect[3]
        assert list(found.to_frame().columns) == ["edge", "effect", "ci_low", "ci_high"]

    def test_in_parts_it_is_the_same(self, result, circuit, held_out, monkeypatch):
        monkeypatch.setattr("circuitlab.evaluation.knockouts.MASKED_AT_ONCE", 7 * circuit.mask.size)
        packed = evaluate(load("gpt2"), circuit, held_out, n_random=0, n_knockouts=0).minimality
        assert packed.effect == pytest.approx(result.minimality.effect, abs=1e-12)

    def test_an_edge_that_hangs_is_dispensable(self, circuit, held_out):
        """An edge into a head that nothing hears changes nothing: the one way to be sure of 0."""
        head, mask = circuit.layout.writers[1], circuit.mask.copy()
        mask[1] = False
        mask[0, circuit.layout.readers_of(head)[2]] = True
        found = evaluate(load("gpt2"), circuit.with_mask(mask), held_out, n_random=0, n_knockouts=0).minimality
        loose = Edge.parse(f"input->{head.name}<v>")
        assert found.effect[found.edges.index(loose)] == pytest.approx(0, abs=1e-12)
        assert loose in found.dispensable
        assert len(found.dispensable) < len(found.edges)


class TestAblation:
    """Faithfulness between the whole model and the circuit whose every edge carries the replacement."""

    @pytest.mark.parametrize("kind", ["zero", "mean", "mean-position"])
    @torch.no_grad()
    def test_by_hand(self, circuit, held_out, kind):
        by_hand, averaged = Gpt2ByHand(), pairs(n=5, seed=9)
        _, said = by_hand.whole(averaged.clean)
        axes = {"mean": (0, 1), "mean-position": (0,)}.get(kind)
        fixed = [one.mean(axes, keepdim=True) if axes else torch.zeros(1, 8, 1).double() for one in said]

        def by(mask: np.ndarray) -> np.ndarray:
            return logit_diff(by_hand.run(held_out.clean, torch.tensor(mask).double(), fixed)[0], held_out).numpy()

        empty, own, whole = (by(mask) for mask in (0 * circuit.mask, circuit.mask, 0 * circuit.mask + 1))
        reference = None if kind == "zero" else averaged
        found = quick(load("gpt2"), circuit, held_out, ablation=kind, reference=reference, n_random=2)
        assert found.circuit == pytest.approx(own)
        assert found.empty == pytest.approx(empty)
        assert found.clean == pytest.approx(whole)
        expected = (own.mean() - empty.mean()) / (whole.mean() - empty.mean())
        assert found.faithfulness == pytest.approx(expected)
        assert found.interval[0] < expected < found.interval[1]
        assert [p.faithfulness for p in found.curve][-1] == pytest.approx(1)
        record = found.to_record()
        assert (record["ablation"], record["metric_empty"]) == (kind, pytest.approx(empty.mean()))
        # The twins: another replacement for the same circuit, and the right circuit with the wrong replacement.
        resampled = quick(load("gpt2"), circuit, held_out, n_random=0)
        assert abs(resampled.metric_circuit - found.metric_circuit) > 0.01
        assert found.metric_corrupt == resampled.metric_corrupt
        mixed_up = (own.mean() - resampled.metric_corrupt) / (whole.mean() - resampled.metric_corrupt)
        assert abs(mixed_up - expected) > 0.01

    @pytest.mark.parametrize("kind", ["zero", "mean", "mean-span", "noise"])
    def test_all_edges_are_the_model_and_none_the_ablated_run(self, scores, kind):
        mixed = mixed_pairs()
        given, averaged = PairSet(mixed.pairs[:3]), PairSet(mixed.pairs[3:])
        options = {"ablation": kind, "reference": averaged if "mean" in kind else None, "n_random": 0, "seed": 4}
        real = real_edges(scores.layout)
        whole, nothing = (quick(load("gpt2"), scores.circuit(m), given, **options) for m in (real, 0 * real == 1))
        assert whole.faithfulness == pytest.approx(1)
        assert whole.kl == pytest.approx(0, abs=1e-9)
        assert nothing.faithfulness == 0
        assert nothing.circuit == pytest.approx(nothing.empty)

    def test_by_default_the_ablated_run_is_the_corrupted_run(self, result):
        assert result.ablation == "corrupt"
        assert (result.empty == result.corrupt).all()
        assert result.to_record()["metric_empty"] == result.metric_corrupt

    def test_noise_is_of_the_seed(self, circuit, held_out):
        first, again, other = (
            quick(load("gpt2"), circuit, held_out, ablation="noise", seed=seed, n_random=0) for seed in (0, 0, 1)
        )
        assert (first.circuit == again.circuit).all()
        assert np.abs(first.empty - other.empty).min() > 1e-3

    def test_a_circuit_is_selected_by_it(self, scores):
        batch = pairs(n=6)
        chosen = select(load("gpt2"), scores, batch, 0.8, ablation="zero")
        assert abs(1 - quick(load("gpt2"), chosen, batch, ablation="zero", n_random=0).faithfulness) <= 0.2 + 1e-9
        assert chosen.n_edges != select(load("gpt2"), scores, batch, 0.8).n_edges

    def test_mistakes(self, circuit, held_out):
        with pytest.raises(UnknownNameError, match=r"unknown replacement 'zeros'. Did you mean 'zero'\?"):
            quick(load("gpt2"), circuit, held_out, ablation="zeros")
        with pytest.raises(ConfigError, match="replacement 'mean' needs a reference set"):
            quick(load("gpt2"), circuit, held_out, ablation="mean")
        with pytest.raises(ConfigError, match="6 of 6 scored pairs have a prompt that is in the reference set too"):
            quick(load("gpt2"), circuit, held_out, ablation="mean", reference=held_out)
        with pytest.raises(ConfigError, match="replacement 'corrupt' uses no reference set"):
            quick(load("gpt2"), circuit, held_out, reference=pairs(seed=9))

        def blind(logits: torch.Tensor, _batch: PairBatch) -> torch.Tensor:
            return 0 * logits[:, 0] + 2

        with pytest.raises(MetricError, match=r"is 2 on the clean and 2 in the empty circuit \(ablation 'zero'\)"):
            quick(load("gpt2"), circuit, held_out, metric=blind, ablation="zero")


def test_the_record_is_what_the_run_folder_promises(result):
    record = json.loads(json.dumps(result.to_record()))
    for promised in (
        ("metric_clean", "metric_corrupt", "metric_circuit", "faithfulness", "faithfulness_ci", "kl", "cpr", "cmd"),
        ("n_edges", "n_edges_total", "n_nodes", "accuracy_model", "accuracy_circuit", "curve", "random_baseline"),
    ):
        assert set(promised) <= set(record)
    assert record["faithfulness"] == result.faithfulness
    assert record["faithfulness_ci"] == list(result.interval)
    assert len(record["random_baseline"]["faithfulness"]) == 20
    assert [set(point) >= {"n_edges", "faithfulness"} for point in record["curve"]] == [True] * 10


class TestMistakes:
    def test_another_models_circuit(self, circuit):
        with pytest.raises(GraphError, match=r"the circuit is of model .*gpt2.*, whose graph is not that of .*neox"):
            quick(load("neox"), circuit, pairs())

    def test_a_negative_number_of_random_circuits(self, circuit):
        with pytest.raises(ConfigError, match="n_random is -1; it counts random circuits and cannot be negative"):
            quick(load("gpt2"), circuit, pairs(), n_random=-1)

    def test_an_unknown_metric(self, circuit):
        with pytest.raises(UnknownNameError, match=r"unknown metric 'KL'"):
            quick(load("gpt2"), circuit, pairs(), metric="KL")

    def test_prompts_without_a_difference(self, circuit):
        batch = pairs()
        same = PairBatch.from_tokens(batch.clean, batch.clean, batch.answers, batch.distractors)
        with pytest.raises(MetricError, match="with no difference there is nothing to explain"):
            quick(load("gpt2"), circuit, same)
