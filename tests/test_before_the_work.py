"""Faults of metrics and tasks that would show in the scores, or after them, are found before the sweeps."""

from itertools import count
from random import Random
from types import SimpleNamespace

import pytest
import torch
from words import numbered, task_of

from circuitlab import Example, Metric, MetricError, PairBatch, Task, TaskFileError, TaskNotDoneError, discover
from circuitlab.data import fingerprint
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.discovery.scoring import METHODS, score_edges
from circuitlab.metrics import names, resolve
from circuitlab.metrics.checks import check_gradient, check_row_wise
from circuitlab.models.load import load_model
from circuitlab.resources import Resources

N = 6


@pytest.fixture(scope="module")
def model():
    return load_model("bundled")


@pytest.fixture(scope="module")
def runs():
    """Clean and corrupted logits of a few examples."""
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randn(2, N, 11, generator=generator)
    tokens = torch.zeros(N, 3, dtype=torch.long)
    batch = PairBatch.from_tokens(tokens, tokens + 1, torch.arange(N)[:, None], torch.arange(N)[:, None] + 1)
    return clean, corrupt, batch.with_reference(clean)


def margin(logits, batch):
    return (logits.gather(1, batch.answers) - logits.gather(1, batch.distractors))[:, 0]


MIXED = {
    "mean of the batch": lambda logits, batch: margin(logits, batch) - margin(logits, batch).mean(),
    "rank in the batch": lambda logits, batch: margin(logits, batch).argsort().argsort().float(),
    "number of the row": lambda logits, batch: margin(logits, batch) + torch.arange(len(batch)),
    "random": lambda logits, batch: margin(logits, batch) + torch.randn(len(batch)),
    "count of calls": lambda logits, batch, calls=count(): margin(logits, batch) + next(calls),  # noqa: B008
}
FLAT = {
    "detached": lambda logits, batch: margin(logits, batch).detach(),
    "numpy": lambda logits, batch: torch.from_numpy(margin(logits, batch).detach().numpy()),
    "compared": lambda logits, batch: margin(logits, batch) > 0,
    "whole": lambda logits, batch: margin(logits, batch).long(),
    "rounded": lambda logits, batch: margin(logits, batch).round(),
    "times 0": lambda logits, batch: margin(logits, batch).detach() + 0 * margin(logits, batch),
    "no logits": lambda logits, batch: torch.ones(len(batch), requires_grad=True) * margin(logits, batch).detach(),
}
OF_GRADIENTS = {name: method.gradients_at for name, method in METHODS.items() if method.gradients_at}


@pytest.mark.parametrize("kind", MIXED)
def test_a_metric_is_about_one_example(runs, kind):
    clean, _, batch = runs
    with pytest.raises(MetricError, match="same example in another batch"):
        check_row_wise(resolve(MIXED[kind]), clean, batch)


@pytest.mark.parametrize("name", [*names(), margin])
def test_metrics_of_one_example_pass(runs, name):
    clean, corrupt, batch = runs
    for rows in (slice(0, N), slice(0, 2), slice(0, 1)):
        check_row_wise(resolve(name), clean[rows], batch.take(rows))
        check_row_wise(resolve(name), corrupt[rows], batch.take(rows))


@pytest.mark.parametrize("method", OF_GRADIENTS)
@pytest.mark.parametrize("metric", [*FLAT.values(), "accuracy", "rank"], ids=[*FLAT, "accuracy", "rank"])
def test_a_metric_without_a_gradient_is_refused(runs, method, metric):
    with pytest.raises(MetricError, match=f"(?s)metric .*{method!r}"):
        check_gradient(resolve(metric), *runs, OF_GRADIENTS[method], method)


@pytest.mark.parametrize("method", OF_GRADIENTS)
@pytest.mark.parametrize("metric", ["logit_diff", "prob_diff", "log_prob", margin])
def test_a_metric_with_a_gradient_passes(runs, method, metric):
    check_gradient(resolve(metric), *runs, OF_GRADIENTS[method], method)


def test_a_divergence_from_the_clean_run_has_a_gradient_elsewhere_only(runs):
    for method, shares in OF_GRADIENTS.items():
        if shares == (1.0,):
            with pytest.raises(MetricError, match=f"no gradient at the clean prompt.*{method!r}.*or eap-ig"):
                check_gradient(resolve("kl"), *runs, shares, method)
        else:
            check_gradient(resolve("kl"), *runs, shares, method)


def test_methods_say_whether_they_take_the_gradient_of_the_metric(model):
    """The declaration against the methods themselves; those that search or learn have a cost of their own."""
    from circuitlab import load_task

    pairs = load_task("name-throw").pairs(model, n=2, seed=0).discovery
    for name in set(METHODS) - {"acdc", "edge-pruning", "ugs", "exact"}:
        if name in OF_GRADIENTS:
            with pytest.raises(MetricError, match="no gradient"):
                score_edges(model, pairs, name, metric="accuracy")
        else:
            score_edges(model, pairs, name, metric="accuracy")


@pytest.mark.parametrize("metric", ["accuracy", FLAT["detached"], MIXED["mean of the batch"]])
def test_discover_finds_it_before_the_sweeps(model, metric):
    steps = []
    with pytest.raises(MetricError):
        discover("name-throw", model=model, n=8, metric=metric, progress=lambda step, *_: steps.append(step))
    assert "behaviour" in steps
    assert not {"sweep", "score"} & set(steps)


def test_the_prompts_shown_have_the_numbers_of_the_rule_that_failed(model):
    def loss(logits, batch):
        return -logits.log_softmax(-1).gather(1, batch.answers)[:, 0]

    asked = {"model": model, "n": 8, "sites": (), "progress": False}
    with pytest.raises(TaskNotDoneError, match=r"wants ' \w+': [\d.e-]+ clean, [\d.]+ corrupted;.*higher_is_better"):
        discover("name-throw", metric=loss, **asked)
    less = Metric(name="loss", function=loss, higher_is_better=False)
    assert discover("name-throw", metric=less, **asked).evaluation.faithfulness > 0.5


# ------------------------------------------------------------------------------------------- the fingerprint of a task


def clocked(monkeypatch, seconds) -> list[Example]:
    """Draws that take so many seconds by the clock of the fingerprint; returns what is drawn."""
    now, drawn = [0.0], []
    monkeypatch.setattr(fingerprint, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def draw(rng: Random) -> Example:
        now[0] += seconds(len(drawn))
        drawn.append(numbered(rng))
        return drawn[-1]

    monkeypatch.setattr(clocked, "draw", draw, raising=False)
    return drawn


def test_slow_draws_make_a_short_fingerprint_that_says_so(monkeypatch):
    seen = []
    drawn = clocked(monkeypatch, lambda number: 0.1)
    slow = task_fingerprint(task_of(clocked.draw), Resources(progress=lambda *step: seen.append(step)))
    assert len(drawn) == fingerprint.SLOW_DRAWS
    assert slow.startswith("64-")
    assert len(slow) == 3 + 64
    assert seen[-1] == ("fingerprint", 64, 64)
    assert len(seen) == 64
    # However slow: the same draws, so the same fingerprint.
    clocked(monkeypatch, lambda number: 7.0 + number)
    assert task_fingerprint(task_of(clocked.draw)) == slow


def test_other_tasks_keep_theirs(monkeypatch):
    usual = task_fingerprint(task_of(numbered))
    assert len(usual) == 64
    for seconds in (lambda number: 0.001, lambda number: 30.0 if number < 4 else 0.0):  # the first draws read files
        drawn = clocked(monkeypatch, seconds)
        assert task_fingerprint(task_of(clocked.draw)) == usual
        assert len(drawn) == fingerprint.DRAWS


def test_a_draw_that_fails_late_is_found_before_the_work(model):
    """The fingerprint draws more than the pairs; it was made when everything else was done."""
    from circuitlab.tasks import name_throw

    calls, steps = count(), []

    def draw(rng: Random) -> Example:
        if next(calls) > 1000:
            raise LookupError("no more words")
        return name_throw.draw(rng)

    task = Task(name="ends", version="1", summary="Ends.", draw=draw)
    with pytest.raises(TaskFileError, match="no more words"):
        discover(task, model=model, n=4, progress=lambda step, *_: steps.append(step))
    assert "behaviour" not in steps
