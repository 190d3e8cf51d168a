"""What an evaluation says, taken apart: each number once more, from its definition."""

import json

import numpy as np
import pytest
import torch
from architectures import load, logit_diff, mixed_pairs, pairs
from gpt2_by_hand import Gpt2ByHand

from circuitlab import Circuit, evaluate, score_edges, select
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import ConfigError, GraphError, MetricError, UnknownNameError
from circuitlab.evaluation import evaluate as module
from circuitlab.evaluation.areas import MIB_SHARES, cmd, cpr, mib_sizes
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.metrics import resolve
from circuitlab.parts import Layout
from circuitlab.patching.baseline import record_baseline
from circuitlab.patching.circuit_metric import circuit_values, prepare
from circuitlab.patching.circuits import run_circuits

METRIC = resolve("logit_diff")


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
    return circuit_values(model, prepare(model, batch), circuit.mask[None], [resolve(metric)])[metric][0]


def ratio_of_means(circuit: Circuit, batch: PairBatch) -> float:
    """Faithfulness from its definition."""
    clean, corrupt = (found.mean() for found in prepare(load("gpt2"), batch).gaps(METRIC))
    return float((values(circuit, batch).mean() - corrupt) / (clean - corrupt))


class TestFaithfulness:
    def test_it_is_a_ratio_of_means(self, result, circuit, held_out):
        clean, corrupt = prepare(load("gpt2"), held_out).gaps(METRIC)
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
        whole = evaluate(load("gpt2"), scores.circuit(real_edges(scores.layout)), held_out, n_random=2)
        assert whole.faithfulness == pytest.approx(1, abs=1e-9)
        assert whole.interval == pytest.approx((1, 1), abs=1e-9)
        assert whole.kl == pytest.approx(0, abs=1e-9)
        assert whole.accuracy_circuit == whole.accuracy_model
        assert whole.random == pytest.approx((1, 1), abs=1e-9)
        assert (whole.n_edges, whole.n_nodes) == (whole.n_edges_total, 12)

    def test_nothing_is_the_corrupted_run(self, scores, held_out):
        nothing = evaluate(load("gpt2"), scores.circuit(np.zeros_like(scores.values, dtype=bool)), held_out)
        assert nothing.faithfulness == 0
        assert nothing.kl > 0
        assert nothing.random == ()
        assert (nothing.n_edges, nothing.n_nodes) == (0, 0)

    def test_other_metrics(self, circuit, held_out):
        for metric in ("log_prob", "kl"):
            found = evaluate(load("gpt2"), circuit, held_out, metric=metric, n_random=0)
            own = values(circuit, held_out, metric)
            clean, corrupt = prepare(load("gpt2"), held_out).gaps(resolve(metric))
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
        found = evaluate(load("gpt2"), circuit, batch, n_random=0)
        assert found.accuracy_model == 1
        assert found.accuracy_circuit < 1

    def test_prompts_of_different_length_are_each_as_if_alone(self, circuit):
        mixed = mixed_pairs()
        together = evaluate(load("gpt2"), circuit, mixed, n_random=0)
        for place, pair in enumerate(mixed):
            alone = values(circuit, PairSet((pair,)))
            assert together.circuit[place] == pytest.approx(alone[0], abs=1e-10)
            assert together.clean[place] == pytest.approx(prepare(load("gpt2"), PairSet((pair,))).gaps(METRIC)[0][0])

    def test_the_budget_changes_nothing(self, result, circuit, held_out):
        packed = evaluate(load("gpt2"), circuit, held_out, budget=200_000)
        assert packed.circuit == pytest.approx(result.circuit)
        assert packed.random == pytest.approx(result.random)
        assert [p.faithfulness for p in packed.curve] == pytest.approx([p.faithfulness for p in result.curve])


class TestTheCircuit:
    def test_it_is_not_changed(self, circuit, held_out):
        mask, given = circuit.mask.copy(), circuit.scores.copy()
        evaluate(load("gpt2"), circuit, held_out)
        assert (circuit.mask == mask).all()
        assert (circuit.scores == given).all()

    def test_it_is_run_as_it_is(self, scores, held_out):
        """Not pruned on the way, as published code does: 40 edges stay 40, whether they connect or not."""
        loose = scores.circuit(scores.top(40))
        assert loose.pruned().n_edges < 40
        found = evaluate(load("gpt2"), loose, held_out, n_random=0)
        assert found.n_edges == 40
        assert found.n_nodes == len(loose.nodes)

    def test_an_unconnected_head_counts_where_norms_couple_heads(self):
        """In a post-norm model pruning changes the values, so an evaluation that prunes on the way is seen."""
        model, batch = load("gemma2"), pairs()
        scores = score_edges(model, batch)
        loose = scores.circuit(scores.top(30))
        found, pruned = (evaluate(model, c, batch, n_random=0) for c in (loose, loose.pruned()))
        expected = circuit_values(model, prepare(model, batch), loose.mask[None], [METRIC])["logit_diff"][0]
        assert found.circuit == pytest.approx(expected)
        assert pruned.circuit != pytest.approx(expected, abs=1e-3)

    def test_a_model_of_the_same_shape_will_do(self, circuit, held_out):
        from dataclasses import replace

        renamed = replace(circuit, spec=replace(circuit.spec, name="read from a file", d_vocab=7, n_ctx=9))
        assert evaluate(load("gpt2"), renamed, held_out, n_random=0).n_edges == circuit.n_edges


class TestRandomCircuits:
    def test_they_are_twenty_of_the_same_size_and_connected(self, circuit, held_out, monkeypatch):
        drawn = []

        def spy(layout: Layout, n_edges: int, rng: np.random.Generator) -> np.ndarray:
            drawn.append(real(layout, n_edges, rng))
            return drawn[-1]

        real = module.random_circuit
        monkeypatch.setattr(module, "random_circuit", spy)
        found = evaluate(load("gpt2"), circuit, held_out)
        assert len(found.random) == len(drawn) == 20
        layout = circuit.layout
        assert {int(mask.sum()) for mask in drawn} == {circuit.n_edges}
        assert all((prune(mask, layout) == mask).all() for mask in drawn)
        assert len({mask.tobytes() for mask in drawn}) == 20
        apart = [
            evaluate(load("gpt2"), circuit.with_mask(mask), held_out, n_random=0).faithfulness for mask in drawn[:3]
        ]
        assert found.random[:3] == pytest.approx(apart)

    def test_the_seed_decides(self, circuit, held_out, result):
        again, other = (evaluate(load("gpt2"), circuit, held_out, n_random=5, seed=seed) for seed in (0, 1))
        assert again.random == result.random[:5]
        assert other.random != again.random
        assert other.faithfulness == again.faithfulness
        assert other.interval != again.interval

    @pytest.mark.parametrize("n_random", [0, 1, 7])
    def test_as_many_as_asked_for(self, circuit, held_out, n_random):
        assert len(evaluate(load("gpt2"), circuit, held_out, n_random=n_random).random) == n_random

    def test_they_do_worse_than_the_circuit(self, scores, held_out):
        """On the very prompts it was chosen on; the point of the baseline."""
        batch = pairs(n=6)
        chosen = select(load("gpt2"), scores, batch, 0.8)
        found = evaluate(load("gpt2"), chosen, batch)
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

    def test_sizes_are_cut_to_whole_numbers(self):
        assert mib_sizes(32_491) == (32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491)

    @pytest.mark.parametrize("nothing", [0.0, float("nan")])
    def test_a_circuit_without_scores_has_none(self, circuit, held_out, nothing):
        bare = Circuit(spec=circuit.spec, mask=circuit.mask.copy(), scores=np.full_like(circuit.scores, nothing))
        found = evaluate(load("gpt2"), bare, held_out, n_random=0)
        assert found.curve == ()
        assert np.isnan(found.cpr)
        assert np.isnan(found.cmd)
        assert (found.to_record()["cpr"], found.to_record()["cmd"]) == (None, None)
        assert found.faithfulness == pytest.approx(evaluate(load("gpt2"), circuit, held_out, n_random=0).faithfulness)


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
        found = evaluate(load("gpt2"), circuit, held_out, ablation=kind, reference=reference, n_random=2)
        assert found.circuit == pytest.approx(own)
        assert found.empty == pytest.approx(empty)
        assert found.clean == pytest.approx(whole)
        expected = (own.mean() - empty.mean()) / (whole.mean() - empty.mean())
        assert found.faithfulness == pytest.approx(expected)
        assert found.interval[0] < expected < found.interval[1]
        assert [p.faithfulness for p in found.curve][-1] == pytest.approx(1)
        record = found.to_record()
        assert (record["ablation"], record["metric_empty"]) == (kind, pytest.approx(empty.mean()))
        # The twins: another floor under the same circuit, and the right circuit over the wrong floor.
        resampled = evaluate(load("gpt2"), circuit, held_out, n_random=0)
        assert abs(resampled.metric_circuit - found.metric_circuit) > 0.01
        assert found.metric_corrupt == resampled.metric_corrupt
        mixed_up = (own.mean() - resampled.metric_corrupt) / (whole.mean() - resampled.metric_corrupt)
        assert abs(mixed_up - expected) > 0.01

    @pytest.mark.parametrize("kind", ["zero", "mean", "mean-span", "noise"])
    def test_the_whole_graph_is_the_model_and_nothing_the_floor(self, scores, kind):
        mixed = mixed_pairs()
        given, averaged = PairSet(mixed.pairs[:3]), PairSet(mixed.pairs[3:])
        options = {"ablation": kind, "reference": averaged if "mean" in kind else None, "n_random": 0, "seed": 4}
        real = real_edges(scores.layout)
        whole, nothing = (evaluate(load("gpt2"), scores.circuit(m), given, **options) for m in (real, 0 * real == 1))
        assert whole.faithfulness == pytest.approx(1)
        assert whole.kl == pytest.approx(0, abs=1e-9)
        assert nothing.faithfulness == 0
        assert nothing.circuit == pytest.approx(nothing.empty)

    def test_without_one_the_floor_is_the_corrupted_run(self, result):
        assert result.ablation == "corrupt"
        assert (result.empty == result.corrupt).all()
        assert result.to_record()["metric_empty"] == result.metric_corrupt

    def test_noise_is_of_the_seed(self, circuit, held_out):
        first, again, other = (
            evaluate(load("gpt2"), circuit, held_out, ablation="noise", seed=seed, n_random=0) for seed in (0, 0, 1)
        )
        assert (first.circuit == again.circuit).all()
        assert np.abs(first.empty - other.empty).min() > 1e-3

    def test_a_circuit_is_selected_by_it(self, scores):
        batch = pairs(n=6)
        chosen = select(load("gpt2"), scores, batch, 0.8, ablation="zero")
        assert abs(1 - evaluate(load("gpt2"), chosen, batch, ablation="zero", n_random=0).faithfulness) <= 0.2 + 1e-9
        assert chosen.n_edges != select(load("gpt2"), scores, batch, 0.8).n_edges

    def test_mistakes(self, circuit, held_out):
        with pytest.raises(UnknownNameError, match=r"unknown replacement 'zeros'. Did you mean 'zero'\?"):
            evaluate(load("gpt2"), circuit, held_out, ablation="zeros")
        with pytest.raises(ConfigError, match="replacement 'mean' needs a reference set"):
            evaluate(load("gpt2"), circuit, held_out, ablation="mean")
        with pytest.raises(ConfigError, match="6 of 6 scored pairs have a prompt that is in the reference set too"):
            evaluate(load("gpt2"), circuit, held_out, ablation="mean", reference=held_out)
        with pytest.raises(ConfigError, match="replacement 'corrupt' uses no reference set"):
            evaluate(load("gpt2"), circuit, held_out, reference=pairs(seed=9))

        def blind(logits: torch.Tensor, _batch: PairBatch) -> torch.Tensor:
            return 0 * logits[:, 0] + 2

        with pytest.raises(MetricError, match=r"is 2 on the clean and 2 in the empty circuit \(ablation 'zero'\)"):
            evaluate(load("gpt2"), circuit, held_out, metric=blind, ablation="zero")


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
            evaluate(load("neox"), circuit, pairs())

    def test_a_negative_number_of_random_circuits(self, circuit):
        with pytest.raises(ConfigError, match="n_random is -1; it counts random circuits and cannot be negative"):
            evaluate(load("gpt2"), circuit, pairs(), n_random=-1)

    def test_an_unknown_metric(self, circuit):
        with pytest.raises(UnknownNameError, match=r"unknown metric 'KL'"):
            evaluate(load("gpt2"), circuit, pairs(), metric="KL")

    def test_prompts_without_a_difference(self, circuit):
        batch = pairs()
        same = PairBatch.from_tokens(batch.clean, batch.clean, batch.answers, batch.distractors)
        with pytest.raises(MetricError, match="with no difference there is nothing to explain"):
            evaluate(load("gpt2"), circuit, same)
