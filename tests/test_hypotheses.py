"""The five hypothesis tests: p-values by brute force and by scipy, and circuits that must pass and must fail."""

import itertools
import math

import numpy as np
import pytest
import torch
from architectures import load, pairs
from scipy import stats

from circuitlab import Circuit, ConfigError, PairBatch, UnknownNameError, score_edges, select, test_circuit
from circuitlab.evaluation.hypotheses.chance import (
    inflated,
    minimality_test,
    necessity_test,
    quantile_p,
    sufficiency_test,
)
from circuitlab.evaluation.hypotheses.model import equivalence_p, equivalence_test, hsic, independence_test
from circuitlab.evaluation.hypotheses.result import corrected
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.graphs.random import random_circuit
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment

RNG = np.random.default_rng(0)
MODEL = RNG.normal(size=60)


class TestEquivalence:
    @pytest.mark.parametrize(("n", "ahead"), [(10, 5), (10, 8), (11, 2), (40, 29), (40, 40)])
    def test_p_by_summing_over_every_outcome(self, n, ahead):
        t, p = abs(ahead / n - 0.5), 0.6
        expected = sum(
            math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if abs(k / n - 0.5) >= t - 1e-12
        )
        assert equivalence_p(n, t, 0.1) == pytest.approx(expected)

    def test_on_a_small_sample_every_sequence_is_counted(self):
        """Two to the eighth sequences, each with its probability."""
        likely = sum(
            math.prod(0.6 if heads else 0.4 for heads in tosses)
            for tosses in itertools.product((0, 1), repeat=8)
            if abs(sum(tosses) / 8 - 0.5) >= 0.25
        )
        found = equivalence_test(np.array([1.0] * 6 + [-1.0] * 2), np.zeros(8))
        assert found.statistic == 0.25
        assert found.p_value == pytest.approx(likely)

    def test_the_share_counts_and_not_the_size(self):
        """Where the published code goes by the mean difference, a single large one decides; here it does not."""
        difference = np.where(np.arange(60) % 2, 0.1, -0.1)
        difference[0] = -1000
        assert equivalence_test(MODEL + difference, MODEL).statistic == 0
        assert equivalence_test(MODEL + difference, MODEL).good

    def test_the_model_is_equivalent_to_itself(self):
        found = equivalence_test(MODEL.copy(), MODEL)
        assert (found.statistic, found.rejected, found.good) == (0, False, True)
        assert found.details["share_equal"] == 1
        rounded = equivalence_test(MODEL.astype(np.float32).astype(np.float64), MODEL)
        assert rounded.good

    def test_one_that_is_always_below_is_not(self):
        found = equivalence_test(MODEL - 0.5, MODEL)
        assert (found.statistic, found.rejected, found.good) == (0.5, True, False)
        assert found.p_value == pytest.approx(0.6**60 + 0.4**60) == pytest.approx(found.least_p)


class TestIndependence:
    def test_the_criterion_by_its_definition(self):
        a, b = RNG.normal(size=12), RNG.normal(size=12)
        n, centre = 12, np.eye(12) - 1 / 12
        kernels = []
        for values in (a, b):
            width = np.median([abs(values[i] - values[j]) for i in range(n) for j in range(i)])
            kernels.append(np.exp(-((values[:, None] - values) ** 2) / (2 * width**2)))
        expected = np.trace(kernels[0] @ centre @ kernels[1] @ centre) / (n - 1) ** 2
        assert hsic(a, b) == pytest.approx(expected)

    def test_p_over_every_permutation(self):
        """Five examples have 120 orders; random ones come near the share of all."""
        a = np.array([0.0, 1.0, 2.0, 3.0, 10.0])
        b = np.array([0.1, 0.9, 2.2, 2.9, 4.0])
        observed = hsic(a, b)
        reached = [hsic(a, b[list(order)]) >= observed - 1e-12 for order in itertools.permutations(range(5))]
        found = independence_test(a, b, seed=0, n_permutations=4000)
        assert found.p_value == pytest.approx(np.mean(reached), abs=0.02)

    def test_independent_scores_pass_and_dependent_ones_fail(self):
        noise = np.random.default_rng(3).normal(size=60)
        apart, tied = (independence_test(values, MODEL, seed=0, n_permutations=300) for values in (noise, MODEL**2))
        assert (apart.rejected, apart.good) == (False, True)
        assert (tied.rejected, tied.good) == (True, False)
        # The square has no correlation with what it is of: a test of correlation would not have seen it.
        assert abs(stats.pearsonr(MODEL, MODEL**2).statistic) < 0.5
        assert tied.p_value == pytest.approx(1 / 301)

    def test_under_independence_p_is_uniform(self):
        rng = np.random.default_rng(5)
        drawn = [independence_test(rng.normal(size=20), rng.normal(size=20), i, 99).p_value for i in range(60)]
        assert stats.kstest(drawn, "uniform").pvalue > 0.05

    def test_constant_scores_are_independent_of_anything(self):
        found = independence_test(np.zeros(60), MODEL, seed=0, n_permutations=50)
        assert (found.statistic, found.p_value, found.good) == (0, 1, True)

    def test_the_seed_decides(self):
        ps = [
            independence_test(np.abs(MODEL) + RNG.normal(size=60) * 0, MODEL[::-1], s, 200).p_value for s in (0, 0, 1)
        ]
        assert ps[0] == ps[1]
        assert ps[0] != ps[2]


class TestQuantiles:
    @pytest.mark.parametrize("beaten", [0, 20, 27, 29, 30])
    def test_p_by_scipy_and_by_hand(self, beaten):
        mass = [math.comb(30, k) * 0.9**k * 0.1 ** (30 - k) for k in range(31)]
        assert quantile_p(beaten, 30, "greater") == pytest.approx(sum(mass[beaten:]))
        assert quantile_p(beaten, 30, "less") == pytest.approx(sum(mass[: beaten + 1]))
        assert quantile_p(beaten, 30, "greater") == pytest.approx(stats.binom.sf(beaten - 1, 30, 0.9))

    def test_twenty_nine_random_circuits_are_the_least_that_can_reject(self):
        assert quantile_p(28, 28, "greater") > 0.05 > quantile_p(29, 29, "greater")

    def test_a_close_circuit_suffices_and_a_far_one_does_not(self):
        random = MODEL + RNG.normal(size=(50, 1)) + 3
        near, far = (sufficiency_test(MODEL + shift, random, MODEL) for shift in (0.01, 50.0))
        assert (near.statistic, near.good, near.rejected) == (1, True, True)
        assert (far.statistic, far.good, far.rejected) == (0, False, False)
        assert near.details["loss"] == pytest.approx(0.01)

    def test_a_circuit_is_needed_if_the_model_breaks_without_it(self):
        random = MODEL + RNG.uniform(0, 1, size=(50, 1))
        needed, idle = (necessity_test(MODEL - shift, random, MODEL) for shift in (5.0, 0.0))
        assert (needed.statistic, needed.good) == (1, True)
        assert (idle.statistic, idle.good) == (0, False)

    def test_ties_beat_nobody(self):
        random = np.repeat(MODEL[None] + 1, 40, axis=0)
        assert sufficiency_test(MODEL + 1, random, MODEL).statistic == 0
        assert necessity_test(MODEL + 1, random, MODEL).statistic == 0

    def test_minimality_rejects_just_the_edges_that_do_nothing(self):
        edges = tuple(itertools.islice(Layout.of(load("gpt2").spec).edges(), 4))
        random = np.linspace(0, 1, 50)
        result, found = minimality_test(edges, np.array([2.0, 5.0, 0.0, 0.3]), random)
        assert found.rejected.tolist() == [False, False, True, True]
        assert (result.good, result.details["n_rejected"]) == (False, 2)
        assert found.p_value[3] == pytest.approx(stats.binom.cdf(int((random < 0.3).sum()), 50, 0.9))
        assert minimality_test(edges[:2], np.array([2.0, 5.0]), random)[0].good
        assert list(found.to_frame()["beats"]) == pytest.approx([1, 1, 0, 0.3])

    def test_corrections(self):
        p = np.array([0.01, 0.04, 0.03, 0.5])
        assert corrected(p, "bonferroni") == pytest.approx([0.04, 0.16, 0.12, 1])
        assert corrected(p, "holm") == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_inflated_circuits_have_a_path_more_and_one_of_its_edges_less():
    layout = Layout.of(load("gpt2").spec)
    mask = random_circuit(layout, 10, RNG)
    found = inflated(mask, layout, 20, np.random.default_rng(1))
    assert found
    for whole, without in zip(*found, strict=True):
        assert (prune(whole, layout) == whole).all()
        assert not (mask & ~whole).any()
        gone = whole & ~without
        assert gone.sum() == 1
        assert not (gone & mask).any()
        assert not (without & ~whole).any()
    assert inflated(real_edges(layout), layout, 1, RNG) is None


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return select(load("gpt2"), score_edges(load("gpt2"), pairs(n=6), "exact"), pairs(n=6), n_edges=40)


@pytest.fixture(scope="module")
def found(circuit):
    return test_circuit(load("gpt2"), circuit, pairs(n=24), n_random=30, n_permutations=50)


def decided(n: int) -> PairBatch:
    """Prompts whose right answer is what the model says, and the wrong one what it says to the corrupted prompt."""
    batch, model = pairs(n=4 * n), load("gpt2")
    with torch.no_grad():
        rows = torch.arange(len(batch))
        said = [model.bridge(tokens)[rows, batch.answer_at].argmax(1) for tokens in (batch.clean, batch.corrupt)]
    kept = torch.nonzero(said[0] != said[1])[:n, 0]
    return PairBatch.from_tokens(
        batch.clean[kept], batch.corrupt[kept], said[0][kept, None], said[1][kept, None], batch.answer_at[kept]
    )


class TestBattery:
    def test_each_statistic_from_runs_of_its_own(self, found, circuit):
        alone = Experiment(load("gpt2"), pairs(n=24), allow_weak_gap=True)
        real = real_edges(circuit.layout)
        own, rest = alone.values(np.stack([circuit.mask, real & ~circuit.mask]))
        rng = np.random.default_rng([0, 10])
        chance = np.stack([random_circuit(circuit.layout, circuit.n_edges, rng) for _ in range(30)])
        loss = np.abs(alone.values(chance) - alone.clean).mean(1)
        assert found["sufficiency"].statistic == (np.abs(own - alone.clean).mean() < loss).mean()
        missed = np.abs(alone.values(real & ~chance) - alone.clean).mean(1)
        assert found["partial necessity"].statistic == (np.abs(rest - alone.clean).mean() > missed).mean()
        assert found["equivalence"].statistic == pytest.approx(abs((own > alone.clean).mean() - 0.5))
        assert found["independence"].statistic == pytest.approx(hsic(rest, alone.clean))
        edge = found.edges.edges[3]
        mask = circuit.mask.copy()
        mask[circuit.layout.edge_index(edge)] = False
        assert found.edges.effect[3] == pytest.approx(np.abs(own - alone.values(mask[None])[0]).mean())

    def test_the_twin_a_random_circuit_fails(self, circuit):
        random = circuit.with_mask(random_circuit(circuit.layout, 10, np.random.default_rng(8)))
        failed = test_circuit(load("gpt2"), random, decided(24), n_random=30, n_permutations=50)
        assert not failed["equivalence"].good
        assert failed["equivalence"].details["share_ahead"] < 0.2
        assert not failed["sufficiency"].good
        assert not failed["partial necessity"].good

    def test_all_but_one_edge_is_as_good_as_the_model(self, circuit):
        """The model itself has no complement; one edge less, of the least effect, is the next to it."""
        weakest = np.where(real_edges(circuit.layout), np.abs(circuit.scores), np.inf)
        mask = real_edges(circuit.layout)
        mask[np.unravel_index(weakest.argmin(), mask.shape)] = False
        nearly = test_circuit(load("gpt2"), circuit.with_mask(mask), pairs(n=24), n_random=1, n_permutations=20)
        alone = Experiment(load("gpt2"), pairs(n=24), allow_weak_gap=True)
        assert nearly["sufficiency"].details["loss"] < 0.05 * abs(alone.gap.mean)

    def test_the_same_seed_gives_the_same(self, found, circuit):
        again, other = (
            test_circuit(load("gpt2"), circuit, pairs(n=24), n_random=30, n_permutations=50, seed=s) for s in (0, 1)
        )
        assert again.to_record() == found.to_record()
        assert other.to_record() != found.to_record()

    def test_the_record(self, found, circuit):
        frame = found.to_frame()
        assert list(frame["test"]) == [
            "equivalence", "independence", "minimality", "sufficiency", "partial necessity"
        ]  # fmt: skip
        assert frame["p_value"].between(0, 1).all()
        assert len(found.to_record()["edges"]) == circuit.n_edges
        with pytest.raises(UnknownNameError, match="unknown test 'sufficient'. Did you mean 'sufficiency'"):
            found["sufficient"]
        with pytest.raises(AttributeError):
            found.seed = 3

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"n_random": 0}, "n_random is 0; it must be a whole number of at least 1"),
            ({"epsilon": 0.5}, "epsilon is 0.5"),
            ({"quantile": 1.0}, "quantile is 1.0"),
            ({"correction": "none"}, "unknown correction 'none'"),
        ],
    )
    def test_settings_out_of_range(self, circuit, options, says):
        with pytest.raises((ConfigError, UnknownNameError), match=says):
            test_circuit(load("gpt2"), circuit, pairs(), **options)

    def test_a_circuit_without_a_complement_or_without_edges(self, circuit):
        for mask in (real_edges(circuit.layout), np.zeros_like(circuit.mask)):
            with pytest.raises(ConfigError, match="must keep some and not all"):
                test_circuit(load("gpt2"), circuit.with_mask(mask), pairs())
