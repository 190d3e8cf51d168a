"""Intervals, tests and corrections against scipy and paper; ratios as a Grid takes them, areas as MIB takes them."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import law, law_of
from scipy.stats import bootstrap, false_discovery_control, kstest, permutation_test

from circuitlab import ConfigError, stats
from circuitlab.evaluation.curve import MIB_SHARES, cmd, cpr, mib_sizes
from circuitlab.patching.grid import Grid


def pairs(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Differences of a circuit and of the model on the same prompts: large where the prompt is easy, in both."""
    rng = np.random.default_rng(seed)
    whole = rng.gamma(4.0, 1.0, n)
    return 0.8 * whole + rng.normal(0, 0.3, n), whole


def test_means_come_before_the_ratio():
    found = stats.ratio_of_means(np.array([[1.0, 9.0], [0.0, 2.0]]), np.array([1.0, 3.0]))
    assert found.tolist() == [2.5, 0.5]
    assert found[0] != np.mean([1 / 1, 9 / 3])


def test_the_interval_of_a_ratio_is_scipy_s():
    part, whole = pairs(40)
    ours = stats.ratio_interval(part[None], whole, seed=3, n_resamples=20_000)
    theirs = bootstrap(
        (part, whole),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low[0] == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high[0] == pytest.approx(theirs.high, abs=0.04 * width)
    assert 0 < width < 0.1


def test_examples_are_resampled_as_pairs():
    """The twin of the check above: drawn apart, numerator and denominator give an interval several times as wide."""
    part, whole = pairs(40)
    rng = np.random.default_rng(0)
    apart = [rng.choice(part, 40).mean() / rng.choice(whole, 40).mean() for _ in range(2000)]
    ours = stats.ratio_interval(part[None], whole, seed=0)
    assert np.ptp(np.quantile(apart, [0.025, 0.975])) > 3 * (ours.high[0] - ours.low[0])


def test_the_interval_of_a_mean_is_scipy_s():
    values = np.random.default_rng(5).exponential(2.0, 60)
    ours = stats.mean_interval(values[None], seed=0, n_resamples=20_000)
    theirs = bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    tolerance = 0.04 * (theirs.high - theirs.low)
    assert (ours.low[0], ours.high[0]) == pytest.approx((theirs.low, theirs.high), abs=tolerance)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for repeat in range(300):
        whole = rng.gamma(4.0, 1.0, 60)
        found = stats.ratio_interval((0.8 * whole + rng.normal(0, 1, 60))[None], whole, seed=repeat, n_resamples=400)
        hits += bool(found.low[0] <= 0.8 <= found.high[0])
    assert 0.9 < hits / 300 < 0.99


def test_the_interval_of_every_cell_is_that_of_the_cell_alone():
    part, whole = pairs(30)
    grid = np.stack([part, 2 * part, part[::-1], whole]).reshape(2, 2, 30)
    together = stats.ratio_interval(grid, whole, seed=7)
    assert together.low.shape == together.high.shape == (2, 2)
    for layer, column in product(range(2), range(2)):
        alone = stats.ratio_interval(grid[layer, column][None], whole, seed=7)
        assert (together.low[layer, column], together.high[layer, column]) == pytest.approx(
            (alone.low[0], alone.high[0])
        )
    assert (together.low[0, 1], together.high[0, 1]) == pytest.approx((2 * together.low[0, 0], 2 * together.high[0, 0]))
    assert (together.low[1, 1], together.high[1, 1]) == pytest.approx((1, 1))


def test_the_seed_decides_and_the_global_generator_does_not():
    part, whole = pairs(20)
    np.random.seed(0)  # noqa: NPY002
    first = stats.ratio_interval(part[None], whole, seed=1), stats.sign_flip_p(part[None], seed=1)
    np.random.seed(1)  # noqa: NPY002
    again = stats.ratio_interval(part[None], whole, seed=1), stats.sign_flip_p(part[None], seed=1)
    other = stats.ratio_interval(part[None], whole, seed=2)
    assert (first[0].low[0], first[0].high[0], first[1][0]) == (again[0].low[0], again[0].high[0], again[1][0])
    assert other.low[0] != first[0].low[0]


def test_one_cell_without_a_grid_around_it_is_a_number():
    part, whole = pairs(20)
    found, alone = stats.ratio_interval(part[None], whole, seed=0), stats.ratio_interval(part, whole, seed=0)
    assert (float(alone.low), float(alone.high)) == pytest.approx((found.low[0], found.high[0]))
    assert float(stats.ratio_of_means(part, whole)) == pytest.approx(part.mean() / whole.mean())


def test_one_example_has_no_spread():
    found = stats.ratio_interval(np.array([[3.0]]), np.array([2.0]), seed=0)
    assert (found.low[0], found.high[0]) == (1.5, 1.5)
    assert stats.sign_flip_p(np.array([[3.0]]), seed=0)[0] == 1


@pytest.mark.parametrize("n", [9, 15])
@pytest.mark.parametrize("seed", range(6))
def test_the_sign_flip_p_value_is_scipy_s_exact_one(seed, n):
    """All 2^n flips, enumerated by scipy; ours enumerates 2^9, and draws 20,000 of 2^15."""
    rng = np.random.default_rng(seed)
    differences = np.round(rng.normal(0.2 * seed, 1.0, n), 1)  # rounded, so that there are ties
    exact = permutation_test(
        (differences, np.zeros(n)),
        lambda a, b, axis: np.abs((a - b).mean(axis)),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue
    by_hand = np.mean([abs(np.dot(signs, differences)) >= abs(differences.sum()) - 1e-9
                       for signs in product([-1, 1], repeat=n)])  # fmt: skip
    assert exact == pytest.approx(by_hand)
    ours = stats.sign_flip_p(differences[None], seed=seed, n_resamples=20_000)[0]
    drawn = 2**n > 20_000
    assert ours == pytest.approx(exact, abs=drawn * (4 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4), rel=1e-12)


def test_the_p_value_of_few_examples_is_not_below_the_smallest_possible():
    for n in (2, 3, 6, 8, 10):
        assert stats.sign_flip_p(np.linspace(1, 2, n), seed=0) == 2 / 2**n


def test_the_p_value_has_two_sides_and_does_not_depend_on_the_unit():
    differences = np.random.default_rng(0).normal(0.5, 1, (1, 25))
    found = stats.sign_flip_p(differences, seed=0)[0]
    assert stats.sign_flip_p(-differences, seed=0)[0] == found
    for unit in (1e-12, 1e12):
        assert stats.sign_flip_p(unit * differences, seed=0)[0] == found


def test_the_p_value_is_never_zero_and_one_where_nothing_happens():
    certain = stats.sign_flip_p(np.full((1, 40), 2.0) + np.linspace(0, 1, 40), seed=0, n_resamples=999)
    assert certain[0] == pytest.approx(1 / 1000)
    assert stats.sign_flip_p(np.zeros((3, 40)), seed=0).tolist() == [1, 1, 1]


def test_p_values_of_nothing_are_uniform():
    """600 cells in which nothing happens: p-values as even as they should be; a small shift is found at once."""
    rng = np.random.default_rng(11)
    nothing = rng.standard_t(5, (600, 24))
    found = stats.sign_flip_p(nothing, seed=0)
    assert kstest(found, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(found < 0.05) < 0.09
    something = stats.sign_flip_p(nothing + 1, seed=0)
    assert np.mean(something < 0.05) > 0.9
    assert kstest(something, "uniform").pvalue < 1e-9


def test_holm_on_paper():
    """Ordered .005 .01 .03 .04: times 4, 3, 2, 1 = .02 .03 .06 .04, and no smaller than the one before: .06."""
    assert stats.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm(np.array([[0.5, 0.9], [0.6, 0.001]])) == pytest.approx(np.array([[1, 1], [1, 0.004]]))


def test_benjamini_and_hochberg_on_paper():
    """Ordered .005 .01 .03 .04: times 4/1, 4/2, 4/3, 4/4 = .02 .02 .04 .04."""
    found = stats.benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.005]))
    assert found == pytest.approx([0.02, 0.04, 0.04, 0.02])


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)


@law
@given(p_values, st.randoms(use_true_random=False))
def test_corrections_keep_the_order_and_know_no_order_of_the_cells(p, shuffler):
    order = list(range(len(p)))
    shuffler.shuffle(order)
    for correct in (stats.holm, stats.benjamini_hochberg):
        adjusted = correct(p)
        assert (adjusted >= p - 1e-12).all()
        assert (adjusted <= 1).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()
        assert correct(p[order]) == pytest.approx(adjusted[order])
    assert (stats.holm(p) <= np.minimum(1, p * len(p)) + 1e-12).all(), "never worse than Bonferroni"
    assert (stats.benjamini_hochberg(p) <= stats.holm(p) + 1e-12).all()
    assert stats.benjamini_hochberg(p) == pytest.approx(false_discovery_control(p))


def test_corrections_do_what_they_are_for():
    """200 tables of 40 cells in which nothing happens: most have a finding, and one in twenty when corrected."""
    rng = np.random.default_rng(2)
    tables = rng.random((200, 40))
    assert np.mean([(table < 0.05).any() for table in tables]) > 0.8
    for correct in (stats.holm, stats.benjamini_hochberg):
        assert np.mean([(correct(table) < 0.05).any() for table in tables]) < 0.1


def grid(per_example: np.ndarray, clean: np.ndarray, corrupt: np.ndarray, **settings: object) -> Grid:
    return Grid(
        site="attn_out",
        direction="denoise",
        metric="logit_diff",
        unit="logits",
        column_kind="span",
        columns=tuple("abcdefgh"[: per_example.shape[1]]),
        per_example=per_example,
        clean=clean,
        corrupt=corrupt,
        **settings,
    )


def test_a_grid_speaks_of_the_examples_that_have_the_span():
    """Cell by cell: (patched - corrupted) over (clean - corrupted), means over the examples that are there."""
    clean, corrupt = np.array([4.0, 2.0, 6.0]), np.array([0.0, -2.0, 2.0])
    patched = np.array([[[2.0, 0.0, 4.0], [4.0, np.nan, 2.0], [np.nan, np.nan, np.nan]]])
    with np.errstate(invalid="ignore"):
        found = grid(patched, clean, corrupt)
        assert found.values[0, :2] == pytest.approx([6 / 12, 4 / 8])
        assert np.isnan(found.values[0, 2])
    assert found.n.tolist() == [[3, 2, 0]]
    raw = grid(patched[:, :2], clean, corrupt, normalised=False)
    assert raw.values[0] == pytest.approx([2, 3])


def test_the_interval_of_a_grid_is_that_of_the_examples_that_are_there():
    """What is missing adds nothing above or below; half of the examples still tell where the value lies."""
    rng = np.random.default_rng(0)
    clean, corrupt = rng.normal(6, 1, 40), rng.normal(-2, 1, 40)
    patched = corrupt + rng.normal(0.5, 0.1, 40) * (clean - corrupt)
    half = np.where(np.arange(40) % 2, np.nan, patched)
    found = grid(np.stack([patched, half])[None], clean, corrupt)
    alone = grid(patched[::2][None, None], clean[::2], corrupt[::2])
    assert found.interval.low[0, 1] == pytest.approx(alone.interval.low[0, 0], abs=0.02)
    assert found.interval.high[0, 1] == pytest.approx(alone.interval.high[0, 0], abs=0.02)
    assert found.interval.low[0, 0] < found.values[0, 0] < found.interval.high[0, 0]
    assert found.p_values[0, 1] == pytest.approx(alone.p_values[0, 0], abs=0.01)


def test_a_span_that_few_examples_have_still_has_an_interval():
    clean, corrupt = np.full(20, 4.0), np.zeros(20)
    patched = np.full((1, 1, 20), np.nan)
    patched[0, 0, :3] = [1.0, 2.0, 3.0]
    found = grid(patched, clean, corrupt)
    assert found.values[0, 0] == 0.5
    assert 0.25 <= found.interval.low[0, 0] < 0.5 < found.interval.high[0, 0] <= 0.75


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("there", [1, 3])
def test_a_rare_span_is_no_reason_for_a_warning(there):
    patched = np.full((1, 1, 20), np.nan)
    patched[0, 0, :there] = 1.0
    found = grid(patched, np.full(20, 4.0), np.zeros(20))
    assert found.values[0, 0] == found.interval.low[0, 0] == 0.25


def test_a_grid_as_a_table_has_a_row_for_every_cell():
    clean, corrupt = np.array([4.0, 2.0]), np.array([0.0, -2.0])
    table = grid(np.arange(12.0).reshape(2, 3, 2), clean, corrupt).to_frame()
    assert list(table.columns) == ["site", "layer", "span", "value", "ci_low", "ci_high", "p_value", "n"]
    assert list(zip(table["layer"], table["span"], strict=True)) == list(product([0, 1], "abc"))
    assert table["value"][4] == pytest.approx(((8 - 0) + (9 + 2)) / 2 / 4)
    assert (table["n"] == 2).all()


def test_noise_is_measured_from_the_clean_run():
    """The p-value asks whether the patch does anything: against the run that was patched."""
    clean, corrupt = np.full(12, 5.0), np.full(12, -5.0)
    patched = clean[None, None] + np.random.default_rng(0).normal(0, 1e-3, (1, 1, 12))
    parts = {
        "site": "head_z", "metric": "logit_diff", "unit": "logits", "column_kind": "head", "columns": ("0",),
        "per_example": patched, "clean": clean, "corrupt": corrupt,
    }  # fmt: skip
    assert Grid(direction="noise", **parts).p_values[0, 0] > 0.05
    assert Grid(direction="denoise", **parts).p_values[0, 0] < 0.01


def test_sizes_are_cut_to_whole_numbers():
    assert mib_sizes(32_491) == (32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491)
    assert mib_sizes(46)[:5] == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("curve", "performance", "distance"),
    [
        ([1.0] * 10, 0.999, 0.0),
        ([0.0] * 9 + [1.0], 0.25, 0.749),
        (list(MIB_SHARES), 0.4999995, 0.4990005),
        ([2.0] * 10, 1.998, 0.999),
    ],
    ids=["perfect", "nothing below full size", "linear", "twice too much"],
)
def test_areas_at_the_published_anchors(curve, performance, distance):
    assert cpr(curve) == pytest.approx(performance, abs=1e-6)
    assert cmd(curve) == pytest.approx(distance, abs=1e-6)


@law_of(50)
@given(st.lists(st.floats(-2, 3), min_size=10, max_size=10))
def test_areas_are_those_of_the_trapezoid(curve):
    assert cpr(curve) == pytest.approx(np.trapezoid(curve, MIB_SHARES))
    assert cmd(curve) == pytest.approx(np.trapezoid(np.abs(1 - np.array(curve)), MIB_SHARES))
    assert cmd(curve) >= abs(0.999 - cpr(curve)) - 1e-9


@pytest.mark.parametrize("length", [0, 9, 11])
def test_an_area_needs_a_value_for_every_share(length):
    with pytest.raises(ValueError, match="10"):
        cpr([1.0] * length)


def plain_permutation_p(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> float:
    """The permutation of means without their spread, which does not hold its level: the twin."""
    both, n = np.concatenate([first, second]), len(first)
    shuffled = rng.permuted(np.broadcast_to(both, (199, len(both))), axis=1)
    apart = np.abs(shuffled[:, :n].mean(1) - shuffled[:, n:].mean(1))
    return float((1 + (apart >= abs(first.mean() - second.mean())).sum()) / 200)


@pytest.mark.parametrize(("sizes", "spreads"), [((8, 24), (4, 1)), ((24, 8), (4, 1)), ((10, 10), (5, 1))])
def test_the_difference_of_groups_holds_its_level_where_spreads_differ(sizes, spreads):
    """Measured with 600 data sets: 0.05, 0.03 and 0.067 for means, 0.07, 0.04 and 0.05 for ranks."""
    rng, found = np.random.default_rng(0), []
    for seed in range(250):
        groups = [rng.normal(0, spread, n) for n, spread in zip(sizes, spreads, strict=True)]
        one = stats.group_difference(*groups, seed=seed, n_resamples=199)
        found.append((one.permutation_p, one.u_p, plain_permutation_p(*groups, rng)))
    by_mean, by_rank, plain = (np.array(found) <= 0.05).mean(0)
    assert 0.01 <= by_mean <= 0.08  # 0.05 with a standard error of 0.014
    assert 0.01 <= by_rank <= 0.10
    if sizes == (8, 24):
        assert plain > 0.2


def test_the_difference_of_groups_is_found_where_there_is_one():
    rng = np.random.default_rng(1)
    found = stats.group_difference(rng.normal(3, 2, 12), rng.normal(0, 0.5, 30), seed=0)
    assert found.permutation_p < 0.01
    assert found.u_p < 0.01
    apart = stats.group_difference(np.arange(5.0) + 100, np.arange(6.0), seed=0, n_resamples=999)
    assert 0 < apart.permutation_p < 0.01
    assert (apart.rank_biserial, apart.u) == (1, 30)
    same = stats.group_difference(np.ones(4), np.ones(6), seed=0)
    assert (same.permutation_p, same.u_p) == (1, 1)
    for first, second in ((np.ones(1), np.ones(4)), (np.ones(4), np.array([1.0, np.nan]))):
        with pytest.raises(ConfigError, match="a spread needs at least 2 finite ones"):
            stats.group_difference(first, second, seed=0)


def test_intervals_of_few_examples_cover_less_than_they_say_and_of_many_as_much():
    """docs/evaluation.md has the measured numbers; values are skewed."""
    rng, covered = np.random.default_rng(0), {}
    for n in (5, 100):
        hits = 0
        for seed in range(200):
            found = stats.mean_interval(rng.gamma(4.0, 1.0, n), seed=seed, n_resamples=300)
            hits += bool(found.low <= 4 <= found.high)
        covered[n] = hits / 200
    assert 0.75 < covered[5] < 0.92
    assert 0.90 < covered[100] < 0.99
