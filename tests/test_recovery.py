"""AUROC and average precision against independent ways to them, and their limits."""

from types import SimpleNamespace

import numpy as np
import pytest
from architectures import as_users_run_it
from scipy.stats import mannwhitneyu

from circuitlab.errors import ConfigError, GraphError
from circuitlab.evaluation.truth import recovery
from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Edge, Layout, ModelSpec

SPEC = ModelSpec(name="toy", n_layers=2, n_heads=2, n_kv_heads=2, d_model=8, d_head=4, d_vocab=9, n_ctx=5)
LAYOUT = Layout.of(SPEC)
REAL = real_edges(LAYOUT)


def case(seed: int, ties: bool = False) -> SimpleNamespace:
    """Random scores and a random truth of about a fifth of the edges; what is no edge holds what must not count."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, REAL.shape).astype(float) if ties else rng.normal(size=REAL.shape)
    truth = (rng.random(REAL.shape) < 0.2) & REAL
    scores[truth] *= 2
    scores[~REAL] = 100.0
    return SimpleNamespace(scores=scores, truth=truth, keys=np.abs(scores)[REAL], true=truth[REAL])


def by_thresholds(keys: np.ndarray, true: np.ndarray) -> float:
    """Average precision, threshold by threshold in a loop."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(keys.tolist()), reverse=True):
        chosen = keys >= threshold
        recall = true[chosen].sum() / true.sum()
        total += (recall - before) * true[chosen].mean()
        before = recall
    return total


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
class TestAgainstOtherWays:
    def test_auroc_is_the_mann_whitney_statistic(self, seed, ties):
        given = case(seed, ties)
        statistic = mannwhitneyu(given.keys[given.true], given.keys[~given.true]).statistic
        expected = statistic / (given.true.sum() * (~given.true).sum())
        assert recovery(SPEC, given.scores, given.truth).auroc == pytest.approx(expected, abs=1e-12)

    def test_auroc_is_the_share_of_pairs_won(self, seed, ties):
        given = case(seed, ties)
        apart = given.scores[REAL][given.true][:, None] - given.scores[REAL][~given.true]
        expected = (apart > 0).mean() + (apart == 0).mean() / 2
        assert recovery(SPEC, given.scores, given.truth, signed=True).auroc == pytest.approx(expected, abs=1e-12)

    def test_average_precision_threshold_by_threshold(self, seed, ties):
        given = case(seed, ties)
        found = recovery(SPEC, given.scores, given.truth).average_precision
        assert found == pytest.approx(by_thresholds(given.keys, given.true), abs=1e-12)

    def test_folded_edges_are_pairs_of_nodes(self, seed, ties):
        given, best, true = case(seed, ties), dict[tuple[str, str], float](), set[tuple[str, str]]()
        for edge in LAYOUT.edges():
            pair, (row, column) = (edge.source.name, edge.reader.node.name), LAYOUT.edge_index(edge)
            best[pair] = max(best.get(pair, 0.0), abs(given.scores[row, column]))
            true |= {pair} if given.truth[row, column] else set()
        found = recovery(SPEC, given.scores, given.truth, folded=True)
        flags = np.array([pair in true for pair in best])
        keys = np.array(list(best.values()))
        expected = mannwhitneyu(keys[flags], keys[~flags]).statistic / (flags.sum() * (~flags).sum())
        assert found.auroc == pytest.approx(expected, abs=1e-12)
        assert (found.n_edges, found.n_true) == (len(best), len(true))

    def test_reversed_scores_are_as_far_from_chance_on_the_other_side(self, seed, ties):
        given = case(seed, ties)
        forth, back = (recovery(SPEC, sign * given.scores, given.truth, signed=True).auroc for sign in (1, -1))
        assert forth + back == pytest.approx(1, abs=1e-12)


class TestLimits:
    def test_constant_scores_are_chance(self):
        given = case(0)
        found = recovery(SPEC, np.zeros_like(given.scores), given.truth)
        assert found.auroc == 0.5
        assert found.average_precision == pytest.approx(found.n_true / found.n_edges)
        assert found.auroc_interval == (0.5, 0.5)

    def test_the_truth_itself_is_perfect(self):
        given = case(0)
        found = recovery(SPEC, given.truth.astype(float), given.truth)
        assert (found.auroc, found.average_precision) == (1, 1)
        assert found.auroc_interval == (1, 1)

    def test_the_sign_counts_only_when_asked(self):
        given = case(0)
        scores = np.where(given.truth, -1.0, 0.0)
        assert recovery(SPEC, scores, given.truth).auroc == 1
        assert recovery(SPEC, scores, given.truth, signed=True).auroc == 0

    def test_shuffled_scores_are_no_better_than_chance(self):
        given, rng = case(1), np.random.default_rng(0)
        found = []
        for _ in range(200):
            scores = np.zeros_like(given.scores)
            scores[REAL] = rng.permutation(given.keys)
            found.append(recovery(SPEC, scores, given.truth, n_resamples=1).auroc)
        assert np.mean(found) == pytest.approx(0.5, abs=0.03)

    def test_scores_within_the_tolerance_tie(self):
        given = case(0)
        scores = np.where(given.truth, 1.0, 1e-6)
        scores[LAYOUT.edge_index(next(e for e in LAYOUT.edges() if given.truth[LAYOUT.edge_index(e)]))] = 2e-6
        assert recovery(SPEC, scores, given.truth).auroc == 1
        n_true = int(given.truth.sum())
        assert recovery(SPEC, scores, given.truth, tolerance=1e-3).auroc == pytest.approx((n_true - 0.5) / n_true)
        with pytest.raises(ConfigError, match="tolerance is 1"):
            recovery(SPEC, scores, given.truth, tolerance=1)

    def test_every_real_edge_counts_and_no_other(self):
        given = case(2)
        assert recovery(SPEC, given.scores, given.truth).n_edges == LAYOUT.n_edges
        elsewhere = given.scores.copy()
        elsewhere[~REAL] = -7
        assert recovery(SPEC, elsewhere, given.truth) == recovery(SPEC, given.scores, given.truth)


class TestInterval:
    def test_it_follows_its_seed(self):
        given = case(3)
        ends = [recovery(SPEC, given.scores, given.truth, seed=seed) for seed in (0, 0, 1)]
        assert ends[0] == ends[1]
        assert ends[0].auroc_interval != ends[2].auroc_interval

    def test_it_is_the_spread_of_resampled_edges(self):
        """Against resamples that are drawn edge by edge and judged by Mann-Whitney."""
        given, rng = case(3), np.random.default_rng(5)
        drawn = []
        for _ in range(2000):
            true, other = (rng.choice(given.keys[part], int(part.sum())) for part in (given.true, ~given.true))
            apart = true[:, None] - other
            drawn.append((apart > 0).mean() + (apart == 0).mean() / 2)
        low, high = recovery(SPEC, given.scores, given.truth).auroc_interval
        assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
        assert low < recovery(SPEC, given.scores, given.truth).auroc < high


class TestMessages:
    def test_what_cannot_be_judged(self):
        given = case(0)
        with as_users_run_it(), pytest.raises(GraphError, match=r"scores has shape \(2, 2\); model 'toy' has"):
            recovery(SPEC, np.zeros((2, 2)), given.truth)
        with pytest.raises(GraphError, match="holds edges that model 'toy' does not have"):
            recovery(SPEC, given.scores, ~REAL)
        nothing = np.zeros_like(REAL)
        with pytest.raises(GraphError, match="the truth holds 0 of"):
            recovery(SPEC, given.scores, nothing)
        with pytest.raises(GraphError, match="the truth holds"):
            recovery(SPEC, given.scores, REAL)
        unscored = given.scores.copy()
        unscored[LAYOUT.edge_index(Edge.parse("m0->logits"))] = np.nan
        with pytest.raises(GraphError, match="no score"):
            recovery(SPEC, unscored, given.truth)
