"""Answers of several tokens, in everything that scores, selects and evaluates, against answers of one token.

An answer and a distractor with the same first tokens differ in the last alone: log P(t u) - log P(t v) is the logit of
u minus that of v after the prompt and t. So pairs of such words (`WHOLE`) give what the same pairs with t moved to the
end of both prompts (`MOVED`) give under `logit_diff`. What judges every position (KL divergences) gives what the
positions give as pairs of their own (`EACH`).
"""

from dataclasses import replace

import architectures
import numpy as np
import pytest
import torch
from features_by_hand import autoencoder

from circuitlab import (
    Edge,
    PairSet,
    direct_attribution,
    evaluate,
    logit_lens,
    patch_edges,
    path_patch,
    score_edges,
    score_nodes,
    select,
    stability,
    sweep,
)
from circuitlab import test_circuit as circuit_tests
from circuitlab.data.pair import Pair, WordIds
from circuitlab.errors import ConfigError
from circuitlab.evaluation.knockouts import minimality_of
from circuitlab.features import rank_features, splice, sweep_features
from circuitlab.patching.experiment import Experiment

LENGTH, N = 6, 6
DIFF, ALONE = "answer_log_prob_diff", "answer_log_prob"
CLOSE = {"abs": 1e-9, "rel": 1e-9}


def pair(
    number: int, *, answer: WordIds, distractor: WordIds, end: tuple[int, ...] = (), at: int | None = None
) -> Pair:
    """Random prompts that differ at tokens 1 and 3, and the same tokens after both."""
    generator = torch.Generator().manual_seed(number)
    clean = torch.randint(100, 300, (LENGTH,), generator=generator).tolist()
    corrupt = [*clean]
    corrupt[1], corrupt[3] = torch.randint(100, 300, (2,), generator=generator).tolist()
    ids = [(*clean, *end), (*corrupt, *end)]
    texts = [tuple(map(str, tokens)) for tokens in ids]
    return Pair(
        id=f"{number} {at}", clean=" ".join(texts[0]), corrupt=" ".join(texts[1]), answers=(str(answer),),
        distractors=(str(distractor),), clean_ids=ids[0], corrupt_ids=ids[1], answer_ids=(answer,),
        distractor_ids=(distractor,), spans={}, clean_tokens=texts[0], corrupt_tokens=texts[1], answer_at=at,
    )  # fmt: skip


def words(number: int) -> tuple[int, int, int]:
    return 40 + number, 60 + number, 80 + number


WHOLE = PairSet(tuple(pair(i, answer=(t, u), distractor=(t, v)) for i in range(N) for t, u, v in [words(i)]))
MOVED = PairSet(tuple(pair(i, answer=u, distractor=v, end=(t,)) for i in range(N) for t, u, v in [words(i)]))
EACH = PairSet(
    tuple(
        pair(i, answer=u, distractor=v, end=(t,), at=at)
        for i in range(N)
        for t, u, v in [words(i)]
        for at in (LENGTH - 1, None)
    )
)
SWAPPED = PairSet(tuple(replace(one, answer_ids=one.distractor_ids, distractor_ids=one.answer_ids) for one in MOVED))
BOTH = ((WHOLE, DIFF), (MOVED, "logit_diff"))


@pytest.fixture(scope="module")
def model():
    return architectures.load("gpt2")


@pytest.fixture(scope="module")
def scores(model):
    return score_edges(model, MOVED, "eap-ig", metric="logit_diff")


OF_THE_METRIC = {
    "eap": {}, "eap-ig": {"steps": 2}, "eap-ig-activations": {"steps": 2}, "clean-corrupted": {}, "exact": {},
    "relp": {}, "sweep": {}, "acdc": {"objective": "metric", "threshold": 0.02}, "random": {},
}  # fmt: skip


@pytest.mark.parametrize("method", OF_THE_METRIC)
def test_every_method_of_the_metric_scores_edges_as_with_the_first_tokens_in_the_prompt(model, method):
    whole, moved = (score_edges(model, pairs, method, metric=metric, **OF_THE_METRIC[method]) for pairs, metric in BOTH)
    assert whole.values == pytest.approx(moved.values, **CLOSE, nan_ok=True)
    assert (whole.chosen is None) == (moved.chosen is None)
    assert whole.chosen is None or (whole.chosen == moved.chosen).all()
    if method != "random":
        swapped = score_edges(model, SWAPPED, method, metric="logit_diff", **OF_THE_METRIC[method])
        assert whole.values != pytest.approx(swapped.values, **CLOSE, nan_ok=True)


def test_acdc_adds_the_divergences_of_all_judged_positions(model):
    """A mean over the pairs of sums of two is twice the mean over all positions."""
    threshold = 0.02
    whole = score_edges(model, WHOLE, "acdc", metric=DIFF, threshold=threshold)
    each = score_edges(model, EACH, "acdc", threshold=threshold / 2)
    assert (whole.chosen == each.chosen).all()
    assert whole.values == pytest.approx(2 * each.values, **CLOSE, nan_ok=True)
    last = score_edges(model, MOVED, "acdc", threshold=threshold)
    assert (whole.chosen != last.chosen).any()


@pytest.mark.parametrize("method", ["edge-pruning", "ugs"])
def test_learned_masks_take_every_judged_position_as_an_example(model, method):
    whole = score_edges(model, WHOLE, method, metric=DIFF, updates=4)
    each = score_edges(model, EACH, method, updates=4)
    assert whole.values == pytest.approx(each.values, **CLOSE, nan_ok=True)
    last = score_edges(model, MOVED, method, updates=4)
    assert whole.values != pytest.approx(last.values, **CLOSE, nan_ok=True)


RULES = (
    {"target": 0.8}, {"n_edges": 20}, {"threshold": 0.02}, {"target": 0.8, "signed": True},
    {"n_edges": 20, "signed": True}, {"target": 0.8, "greedy": True}, {"n_edges": 20, "greedy": True},
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_selects_the_same_circuit(model, scores, rule):
    found = [select(model, scores, pairs, metric=metric, **rule, allow_weak_gap=True) for pairs, metric in BOTH]
    assert found[0].n_edges > 0
    assert (found[0].mask == found[1].mask).all()


def test_evaluation_minimality_and_knockouts_are_the_same(model, scores):
    circuit = select(model, scores, MOVED, metric="logit_diff", n_edges=20, allow_weak_gap=True)
    records, effects = [], []
    for pairs, metric in BOTH:
        found = evaluate(model, circuit, pairs, metric=metric, allow_weak_gap=True, n_random=2, n_knockouts=2)
        # What judges the next token of each position has more positions here.
        records.append({k: v for k, v in found.to_record().items() if k not in ("metric", "kl", "accuracy_model")})
        experiment = Experiment(model, pairs, metric, allow_weak_gap=True)
        effects.append(minimality_of(experiment, circuit, experiment.values(circuit.mask[None])[0]))
    assert _numbers(records[0]) == pytest.approx(_numbers(records[1]), abs=1e-8, rel=1e-8, nan_ok=True)
    assert effects[0].effect == pytest.approx(effects[1].effect, **CLOSE)
    assert np.abs(effects[0].effect).max() > 0.01


def _numbers(value) -> list[float]:
    """All numbers of a record, in order."""
    if isinstance(value, dict):
        return [number for key in value for number in _numbers(value[key])]
    if isinstance(value, list | tuple):
        return [number for one in value for number in _numbers(one)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize("method", ["eap", "acdc"])
def test_stability_finds_the_same_circuits_on_the_same_resamples(model, method):
    more = OF_THE_METRIC["acdc"] if method == "acdc" else {}
    found = [
        stability(model, pairs, method, metric=metric, n_resamples=3, allow_weak_gap=True, **more)
        for pairs, metric in BOTH
    ]
    assert found[0].jaccard == pytest.approx(found[1].jaccard, **CLOSE)
    whole, moved = (one.to_frame().to_dict("list") for one in found)
    for name, column in whole.items():
        assert column == (pytest.approx(moved[name], **CLOSE) if name in ("frequency", "score") else moved[name]), name


def test_nodes_edges_and_paths_are_the_same(model):
    edges = [Edge.parse("a0.h1->m1"), Edge.parse("m0->logits")]
    for way in (
        lambda pairs, metric: score_nodes(model, pairs, "eap", metric=metric).values,
        lambda pairs, metric: patch_edges(model, pairs, edges, metric=metric).per_example,
        lambda pairs, metric: path_patch(model, pairs, "a0.h1", ["logits"], metric=metric).per_example,
    ):
        whole, moved = (np.asarray(way(pairs, metric)) for pairs, metric in BOTH)
        assert whole == pytest.approx(moved, **CLOSE)


def test_a_sweep_by_several_metrics_gives_what_each_gives_alone(model):
    """Cells of both kinds of metric, those of the distractor included."""
    both = sweep(model, WHOLE, "head_z", metric=[DIFF, ALONE], axis="all")
    for metric in (DIFF, ALONE):
        alone = sweep(model, WHOLE, "head_z", metric=metric, axis="all")
        assert both.of_metric(metric).per_example == pytest.approx(alone.per_example, **CLOSE)
    moved = sweep(model, MOVED, "head_z", metric="logit_diff", axis="all")
    assert both.of_metric(DIFF).per_example == pytest.approx(moved.per_example, **CLOSE)


def test_what_judges_one_position_does_not_advise_a_metric(model):
    """Attribution, the logit lens and features refuse such pairs whatever the metric, and say which to draw."""
    fix = r"'\(40, 60\)' of pair '0 None' has several tokens, and here only the next token is judged\. Draw pairs with"
    site = autoencoder("gpt2", "resid_pre", 1)
    for way in (
        lambda metric: direct_attribution(model, WHOLE, metric=metric),
        lambda metric: logit_lens(model, WHOLE, metric=metric),
        lambda metric: sweep_features(model, site, WHOLE, metric=metric),
        lambda metric: rank_features(model, site, WHOLE, metric=metric),
        lambda metric: splice(model, site, WHOLE, metric=metric),
    ):
        for metric in (None, "logit_diff", DIFF):
            with pytest.raises(ConfigError, match=fix):
                way(metric)


def test_the_five_tests_of_a_circuit_are_the_same(model, scores):
    circuit = select(model, scores, MOVED, metric="logit_diff", n_edges=20)
    whole, moved = (
        circuit_tests(model, circuit, pairs, metric=metric, n_random=3, n_permutations=20) for pairs, metric in BOTH
    )
    assert _numbers(whole.to_record()) == pytest.approx(_numbers(moved.to_record()), abs=1e-8, rel=1e-8, nan_ok=True)


def reference(*, moved: bool) -> PairSet:
    """Other prompts with other answers, for means."""
    return PairSet(
        tuple(
            pair(i + 20, answer=u, distractor=v, end=(t,)) if moved else pair(i + 20, answer=(t, u), distractor=(t, v))
            for i in range(4)
            for t, u, v in [words(i)]
        )
    )


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean-position", "noise"])
def test_every_ablation_replaces_the_same_values(model, scores, ablation):
    """Means are of prompts and answers, every token once."""
    circuit = select(model, scores, MOVED, n_edges=20)
    found = []
    for (pairs, metric), moved in zip(BOTH, (False, True), strict=True):
        how = {"metric": metric, "ablation": ablation}
        how |= {} if ablation == "zero" else {"reference": reference(moved=moved)}
        acdc = score_edges(model, pairs, "acdc", **OF_THE_METRIC["acdc"], **how)
        judged = evaluate(model, circuit, pairs, **how, allow_weak_gap=True, n_random=1, n_knockouts=1)
        found.append((score_edges(model, pairs, "eap", **how).values, acdc.values, judged.faithfulness))
    for whole, moved in zip(*found, strict=True):
        assert whole == pytest.approx(moved, **CLOSE, nan_ok=True)


def test_scores_by_position_are_the_same(model):
    """The tokens of an answer have the positions after those of the prompt."""
    whole, moved = (
        score_edges(model, pairs, "eap", metric=metric, axis="position").by_column for pairs, metric in BOTH
    )
    assert whole.scores == pytest.approx(moved.scores, **CLOSE)
    assert whole.labels == moved.labels
    assert len(whole.labels) == LENGTH + 1
