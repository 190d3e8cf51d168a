"""Data on which the model cannot be told from the empty circuit: the rule by hand, and shuffled answers as the twin."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from random import Random

import numpy as np
import pytest
from experiments import clean_and_empty
from scipy import stats as scipy_stats

from circuitlab import discover, evaluate, score_edges, select, stability
from circuitlab.data.example import Example
from circuitlab.data.pair import Pair
from circuitlab.data.pairs import PairSet, PairSplits
from circuitlab.data.registry import load_task
from circuitlab.data.task import Task
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.errors import MetricError
from circuitlab.metrics import resolve
from circuitlab.models.bridge import BridgeModel
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.gap import FEWEST, Gap, check_gap

METRIC = resolve("logit_diff")
N, SEEDS = 16, range(10)
TASKS = ("gendered-pronouns", "gendered-pronouns:gender", "name-throw", "html-tag-closing")
# Every clean prompt of it wants a capitalised word and every corrupted one a small one: moving the pair of answers from
# one prompt to another leaves that as it is.
SAME_CONTRAST = "gendered-pronouns"


@cache
def drawn(model: BridgeModel, name: str) -> PairSplits:
    return load_task(name).pairs(model, n=N, seed=0)


def turned(pair: Pair) -> Pair:
    return replace(
        pair, answers=pair.distractors, distractors=pair.answers,
        answer_ids=pair.distractor_ids, distractor_ids=pair.answer_ids,
    )  # fmt: skip


def swapped(pairs: PairSet, seed: int) -> PairSet:
    """A random half of the pairs with answer and distractor in each other's place."""
    half = set(Random(seed).sample(range(len(pairs)), len(pairs) // 2))
    return PairSet(tuple(turned(pair) if i in half else pair for i, pair in enumerate(pairs)))


def permuted(pairs: PairSet, seed: int) -> PairSet:
    """Every pair with the answer and distractor of another one, at random."""
    order = Random(seed).sample(list(pairs), len(pairs))
    return PairSet(
        tuple(
            replace(
                pair, answers=other.answers, distractors=other.distractors,
                answer_ids=other.answer_ids, distractor_ids=other.distractor_ids,
            )
            for pair, other in zip(pairs, order, strict=True)
        )
    )  # fmt: skip


SHUFFLES: dict[str, Callable[[PairSet, int], PairSet]] = {"swapped": swapped, "permuted": permuted}


def gap_of(model: BridgeModel, pairs: PairSet) -> Gap:
    return Gap.of(*clean_and_empty(Experiment(model, pairs), METRIC))


def refused(clean: np.ndarray, empty: np.ndarray) -> bool:
    try:
        check_gap(METRIC, clean, empty)
    except MetricError:
        return True
    return False


class TestTheRule:
    def test_the_interval_is_that_of_scipy(self):
        clean, empty = np.random.default_rng(0).normal(1, 2, (2, 23))
        gap = Gap.of(clean, empty)
        test = scipy_stats.ttest_rel(clean, empty)
        assert (gap.low, gap.high) == pytest.approx(tuple(test.confidence_interval(0.99)))
        assert gap.mean / gap.standard_error == pytest.approx(test.statistic)
        assert gap.weak == (test.pvalue > 0.01)

    def test_one_in_a_hundred_sets_of_noise_passes(self):
        rng = np.random.default_rng(1)
        passed = sum(not Gap.of(rng.normal(size=20), np.zeros(20)).weak for _ in range(2000))
        assert scipy_stats.binomtest(passed, 2000, 0.01).pvalue > 1e-3

    @pytest.mark.parametrize("n", [FEWEST - 1, FEWEST])
    def test_fewer_than_eight_are_not_judged(self, n):
        """The same spread; and 8 is where gaps of one sign are rarer by chance than one set in a hundred."""
        assert Gap.of(np.resize([3.0, -2.9], n), np.zeros(n)).weak == (n == FEWEST)
        assert (2 / 2**n < 0.01) == (n == FEWEST)

    def test_one_pair_has_no_standard_error(self):
        gap = Gap.of(np.array([2.0]), np.array([1.0]))
        assert (gap.mean, gap.low, gap.high, gap.weak) == (1, -np.inf, np.inf, False)
        assert np.isnan(gap.standard_error)

    def test_a_gap_of_the_other_sign_is_a_gap(self):
        assert not Gap.of(np.zeros(10), np.linspace(1, 2, 10)).weak

    def test_the_message(self):
        with pytest.raises(MetricError) as told:
            check_gap(METRIC, np.resize([3.0, -2.0], 10), np.zeros(10))
        said = str(told.value)
        assert said == (
            "metric 'logit_diff' is 0.5 on the clean and 0 on the corrupted prompts: the mean gap is 0.5, its standard "
            "error over 10 pairs 0.833, and its 99% interval (-2.21 to 3.21) holds 0, so that no share of it means "
            "anything. Check answers and corruption, or take more pairs; allow_weak_gap (--allow-weak-gap) "
            "overrides the check."
        )
        assert check_gap(METRIC, np.resize([3.0, -2.0], 10), np.zeros(10), allow_weak_gap=True).mean == 0.5

    def test_a_tie_is_refused_in_any_case(self):
        with pytest.raises(MetricError, match="nothing to explain"):
            check_gap(METRIC, np.ones(3), np.ones(3), allow_weak_gap=True)


@pytest.mark.parametrize("name", TASKS)
def test_answers_that_go_with_their_prompts_are_far_from_refused(bundled, name):
    for pairs in (drawn(bundled, name).discovery, drawn(bundled, name).held_out):
        gap = gap_of(bundled, pairs)
        assert gap.mean > 8 * gap.standard_error


@pytest.mark.parametrize("kind", SHUFFLES)
@pytest.mark.parametrize("name", TASKS)
def test_shuffled_answers_find_no_circuit(bundled, name, kind):
    """Refused, but for as many seeds as chance allows: one in a hundred, to which ten seeds must not say no."""
    if (name, kind) == (SAME_CONTRAST, "permuted"):
        pytest.skip("a capital stays a capital: see the test of that")
    pairs = drawn(bundled, name).discovery
    every = PairSet(tuple(pair for seed in SEEDS for pair in SHUFFLES[kind](pairs, seed)))
    clean, empty = (values.reshape(len(SEEDS), N) for values in clean_and_empty(Experiment(bundled, every), METRIC))
    found = [refused(*runs) for runs in zip(clean, empty, strict=True)]
    passed = len(found) - sum(found)
    assert scipy_stats.binomtest(passed, len(found), 0.01, alternative="greater").pvalue > 0.01


def test_what_every_shuffle_leaves_in_place_is_found(bundled):
    """The twin of the twin: any prompt's capital against any prompt's small letter is the same question."""
    pairs = drawn(bundled, SAME_CONTRAST)
    found, tested = permuted(pairs.discovery, 0), permuted(pairs.held_out, 1)
    circuit = select(bundled, score_edges(bundled, found), found)
    result = evaluate(bundled, circuit, tested, n_knockouts=0, minimality=False)
    assert result.faithfulness > max(result.random)


@pytest.mark.parametrize("kind", SHUFFLES)
def test_the_whole_way_refuses(bundled, kind):
    """Selection and evaluation alike; and who looks anyway sees what that is worth."""
    pairs = drawn(bundled, "name-throw")
    found, tested = SHUFFLES[kind](pairs.discovery, 0), SHUFFLES[kind](pairs.held_out, 1)
    scores = score_edges(bundled, found)
    with pytest.raises(MetricError, match=r"the mean gap is .* holds 0"):
        select(bundled, scores, found)
    circuit = select(bundled, scores, found, n_edges=20)
    with pytest.raises(MetricError, match=r"the mean gap is .* holds 0"):
        evaluate(bundled, circuit, tested)
    result = evaluate(bundled, circuit, tested, allow_weak_gap=True, n_random=2, n_knockouts=0, minimality=False)
    record = result.to_record()
    assert abs(record["metric_gap"]) < 3 * record["metric_gap_se"]
    assert record["metric_gap"] == pytest.approx(record["metric_clean"] - record["metric_empty"])
    assert record["metric_gap_se"] == pytest.approx(scipy_stats.sem(result.clean - result.empty))


def test_discover_refuses_before_it_sweeps(bundled):
    """A task whose answers are turned by a coin, with min_accuracy out of the way."""
    honest = load_task("gendered-pronouns:gender")

    def draw(rng: Random, **options: str) -> Example:
        made = honest.example(rng)
        if rng.random() < 0.5:
            return made
        return replace(made, answer=made.distractor, distractor=made.answer)

    steps: list[str] = []
    task = Task(name="turned-by-a-coin", version="1", summary="No behaviour.", draw=draw)
    with pytest.raises(MetricError, match=r"99% interval .* holds 0"):
        discover(task, model=bundled, n=N, min_accuracy=0.0, progress=lambda step, done, total: steps.append(step))
    assert steps[-1] == "behaviour"


def test_means_that_hold_the_answer_are_refused(bundled):
    with pytest.raises(MetricError, match=r"in the empty circuit \(ablation 'mean-span'\): the mean gap is"):
        discover("gendered-pronouns", model=bundled, n=N, method="eap", ablation="mean-span")


def test_resamples_of_a_gap_that_was_judged_are_not_judged_again(bundled):
    """Of a clear mean, but so few pairs that carry it that some resamples hold none."""
    pairs = list(drawn(bundled, "gendered-pronouns:gender").discovery)
    mixed = PairSet((*pairs[:13], *map(turned, pairs[13:])))
    assert not gap_of(bundled, mixed).weak
    rng = np.random.default_rng(0)
    again = [PairSet(tuple(mixed[int(i)] for i in rng.integers(0, N, N))) for _ in range(12)]
    assert any(gap_of(bundled, one).weak for one in again)
    assert len(stability(bundled, mixed, "eap", n_resamples=4).chosen) == 4


def test_the_setting_and_its_flag():
    asked = DiscoverConfig(task="name-throw", model="bundled", allow_weak_gap=True)
    assert asked.command == "circuitlab discover name-throw --allow-weak-gap"
    assert DiscoverConfig.of_record(asked.to_record()) == asked
    older = {name: value for name, value in asked.to_record().items() if name != "allow_weak_gap"}
    assert DiscoverConfig.of_record(older).allow_weak_gap, "older versions took any gap"
    assert not DiscoverConfig(task="name-throw", model="bundled").allow_weak_gap
