"""One rule for the metric where none is given: the task's that drew the pairs, else `logit_diff`; in every function."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
from architectures import load, mixed_pairs, pairs

import circuitlab
from circuitlab import evaluate, score_edges, select, stability, sweep
from circuitlab import test_circuit as put_to_tests
from circuitlab.attribution.direct import direct_attribution
from circuitlab.attribution.lens import logit_lens
from circuitlab.data.pairs import PairSet
from circuitlab.data.registry import load_task
from circuitlab.discovery.scoring import score_nodes
from circuitlab.discovery.selection import with_faithfulness
from circuitlab.errors import ConfigError
from circuitlab.metrics import metric_for, resolve
from circuitlab.patching.edges.edges import patch_edges
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.paths.paths import path_patch

FEW = {"n_random": 2, "n_knockouts": 0, "minimality": False}


def half_log_prob(logits, batch):
    """A task's own metric."""
    return resolve("log_prob")(logits, batch) / 2


@cache
def circuit():
    return select(load("gpt2"), score_edges(load("gpt2"), pairs(), metric="logit_diff"), pairs(), n_edges=30)


def selected(model, given, **metric):
    scores = score_edges(model, given, "acdc")
    assert scores.metric == "kl"
    return select(model, scores, given, target=0.5, allow_weak_gap=True, **metric).selection


# Every public function that takes pairs and a metric -> what it says its metric was.
FUNCTIONS: dict[str, Callable] = {
    "evaluate": lambda m, p, **k: evaluate(m, circuit(), p, allow_weak_gap=True, **FEW, **k).metric,
    "test_circuit": lambda m, p, **k: put_to_tests(m, circuit(), p, n_random=2, n_permutations=2, **k).metric,
    "score_edges": lambda m, p, **k: score_edges(m, p, "eap", **k).metric,
    "score_nodes": lambda m, p, **k: score_nodes(m, p, "eap", **k).metric,
    "sweep": lambda m, p, **k: sweep(m, p, "mlp_out", **k).metric,
    "select": lambda m, p, **k: selected(m, p, **k).metric,
    "stability": lambda m, p, **k: stability(
        m, p, "eap", n_resamples=2, target=0.5, allow_weak_gap=True, **k
    ).circuit.selection.metric,
    "patch_edges": lambda m, p, **k: patch_edges(m, p, ["m0->logits"], **k).metric,
    "path_patch": lambda m, p, **k: path_patch(m, p, ["a0.h0"], ["logits"], **k).metric,
    "logit_lens": lambda m, p, **k: logit_lens(m, p, **k).metric,
    "Experiment": lambda m, p, **k: Experiment(m, p, *k.values()).metric.name,
    "with_faithfulness": lambda m, p, **k: with_faithfulness(Experiment(m, p, *k.values()), circuit()).selection.metric,
}  # fmt: skip


def from_a_task(metric) -> PairSet:
    return replace(mixed_pairs(), metric=metric)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_tasks_metric_is_used_unless_another_is_given(name):
    model, call = load("gpt2"), FUNCTIONS[name]
    given = from_a_task("prob_diff")
    assert call(model, given) == "prob_diff"
    assert call(model, given, metric="log_prob") == "log_prob"
    assert call(model, mixed_pairs()) == call(model, pairs()) == "logit_diff"  # drawn by no task
    own = from_a_task(half_log_prob)
    assert call(model, own) == call(model, own, metric="half_log_prob") == "half_log_prob"


def test_every_public_function_with_pairs_and_a_metric_is_among_these():
    known = {"test_circuit", *FUNCTIONS, "direct_attribution", "discover"}  # the last takes a task itself
    for name in set(circuitlab.__all__) - known:
        value = getattr(circuitlab, name)
        if inspect.isfunction(value):
            parameters = inspect.signature(value).parameters
            assert not {"pairs", "metric"} <= set(parameters), name
    for name in known - {"Experiment", "with_faithfulness"}:
        function = getattr(circuitlab, name, score_nodes)
        assert inspect.signature(function).parameters["metric"].default is None, name


def test_direct_attribution_splits_sums_of_logits_only():
    model = load("gpt2")
    assert direct_attribution(model, mixed_pairs()).metric == "logit_diff"
    with pytest.raises(ConfigError, match="prob_diff"):
        direct_attribution(model, from_a_task("prob_diff"))
    assert direct_attribution(model, from_a_task("prob_diff"), metric="logit").metric == "logit"


def test_select_and_evaluate_mean_the_same_faithfulness():
    model, given = load("gpt2"), from_a_task("prob_diff")
    scores = score_edges(model, given, "acdc")
    found = select(model, scores, given, target=0.8, allow_weak_gap=True)
    again = evaluate(model, found, given, allow_weak_gap=True, **FEW)
    assert again.metric == found.selection.metric == "prob_diff"
    assert again.faithfulness == pytest.approx(found.selection.faithfulness, abs=1e-9)
    assert again.interval == pytest.approx(found.selection.interval, abs=1e-9)
    # The twin: under the scores' own metric it is another number.
    other = evaluate(model, found, given, metric="kl", allow_weak_gap=True, **FEW)
    assert abs(other.faithfulness - again.faithfulness) > 0.01
    assert any("selected under metric prob_diff and is judged under metric kl" in text for text in other.warnings)


def test_a_task_hands_its_metric_to_its_pairs(bundled):
    task = replace(load_task("name-throw"), metric=half_log_prob)
    drawn = task.pairs(bundled, n=4, seed=0, reference=True)
    for part in (drawn.discovery, drawn.held_out, drawn.reference):
        assert metric_for(None, part).name == "half_log_prob"
    some = drawn.discovery[1:3]
    assert (len(some), some.metric) == (2, half_log_prob)
    assert all(batch.metric is half_log_prob for batch in some.batches())
    assert all(batch.take(slice(0, 1)).metric is half_log_prob for batch in some.batches())
    # The data are the same, whatever they are judged by.
    assert drawn.fingerprint == load_task("name-throw").pairs(bundled, n=4, seed=0, reference=True).fingerprint


def test_what_has_no_metric_is_judged_by_the_default():
    assert metric_for(None, SimpleNamespace()).name == "logit_diff"
    assert metric_for("kl", SimpleNamespace(metric="no such metric")).name == "kl"
