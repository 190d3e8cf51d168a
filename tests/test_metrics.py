"""Every metric worked out by hand on logits that fit on paper; and what a metric may not return."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import law_of

from circuitlab import Metric, MetricError, PairBatch, UnknownNameError
from circuitlab.metrics import names, resolve
from circuitlab.metrics.base import METRICS
from circuitlab.names import WHOLE_ANSWER

LN2, LN3 = math.log(2), math.log(3)


def batch_of(answers: list[list[int]], distractors: list[list[int]]) -> PairBatch:
    """Prompts that do not matter, with these answers; -1 fills a row."""
    n = len(answers)
    prompts = torch.zeros((n, 2), dtype=torch.long)
    return PairBatch.from_tokens(prompts, prompts + 1, torch.tensor(answers), torch.tensor(distractors))


def measured(
    name: str, logits: list[list[float]], batch: PairBatch, reference: list[list[float]] | None = None
) -> list:
    if reference is not None:
        batch = batch.with_reference(torch.tensor(reference))
    return resolve(name)(torch.tensor(logits), batch).tolist()


ONE = batch_of([[2]], [[0]])
# Three answers against two distractors; one of two against one of two, the places of the others filled.
SEVERAL = batch_of([[0, 1, 2], [3, -1, -1]], [[3, 4], [0, -1]])
# Probabilities in twelfths: 3 1 2 4 2, and 1 1 1 6 3.
LOGITS = [[LN3, 0.0, LN2, 2 * LN2, LN2], [0.0, 0.0, 0.0, LN2 + LN3, LN3]]

ON_PAPER = {
    "logit_diff": [(LN3 + 0 + LN2) / 3 - 3 * LN2 / 2, LN2 + LN3 - 0],
    "prob_diff": [6 / 12 - 6 / 12, 6 / 12 - 1 / 12],
    "log_prob": [math.log(6 / 12), math.log(6 / 12)],
    "accuracy": [0.0, 1.0],
    "rank": [1.0, 0.0],
    "answer_log_prob": [(LN3 + 0 + LN2) / 3 - math.log(12), math.log(6 / 12)],
    "answer_log_prob_diff": [(LN3 + 0 + LN2) / 3 - 3 * LN2 / 2, LN2 + LN3 - 0],
}


@pytest.mark.parametrize("name", ON_PAPER)
def test_metrics_on_paper(name):
    assert measured(name, LOGITS, SEVERAL) == pytest.approx(ON_PAPER[name], abs=1e-6)


def test_kl_on_paper():
    """Clean 1/2 1/4 1/4, circuit 1/4 1/4 1/2: ln 2 / 2 - ln 2 / 4 nats, summed over the vocabulary."""
    clean, circuit = [[LN2, 0.0, 0.0]], [[0.0, 0.0, LN2]]
    assert measured("kl", circuit, ONE, clean) == pytest.approx([LN2 / 4], abs=1e-6)
    assert measured("kl", clean, ONE, clean) == [0]


def test_kl_goes_from_the_clean_run_to_the_circuit():
    """Clean 1/2 1/2 against 3/4 1/4 is half of ln(4/3); the other way round it is another number."""
    even, skewed = [[0.0, 0.0, -100.0]], [[LN3, 0.0, -100.0]]
    assert measured("kl", skewed, ONE, even) == pytest.approx([math.log(4 / 3) / 2], abs=1e-6)
    assert measured("kl", even, ONE, skewed) == pytest.approx([0.75 * math.log(1.5) - 0.25 * LN2], abs=1e-6)


def test_kl_is_torch_s_sum_over_the_vocabulary():
    generator = torch.Generator().manual_seed(0)
    clean, circuit = torch.randn((7, 50), generator=generator), torch.randn((7, 50), generator=generator)
    batch = batch_of([[1]] * 7, [[2]] * 7).with_reference(clean)
    theirs = torch.nn.functional.kl_div(
        circuit.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    assert torch.allclose(resolve("kl")(circuit, batch), theirs, atol=1e-6)


def test_kl_has_no_gradient_at_the_clean_run():
    """Why gradient methods ask for another metric."""
    logits = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    resolve("kl")(logits, ONE.with_reference(logits.detach())).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6
    moved = torch.tensor([[0.3, -1.0, 2.5]], requires_grad=True)
    resolve("kl")(moved, ONE.with_reference(logits.detach())).sum().backward()
    assert moved.grad is not None
    assert moved.grad.abs().max() > 1e-2


@pytest.mark.parametrize(
    ("logits", "rank"), [([1.0, 0.0, 4.0], 0), ([4.0, 0.0, 1.0], 1), ([4.0, 5.0, 1.0], 2), ([1.0, 1.0, 1.0], 0)]
)
def test_rank_counts_the_tokens_above(logits, rank):
    assert measured("rank", [logits], ONE) == [rank]
    assert measured("accuracy", [logits], ONE) == [float(rank == 0)]


def test_the_best_of_several_answers_counts_for_rank_and_accuracy():
    batch = batch_of([[0, 3]], [[1, -1]])
    assert measured("rank", [[-5.0, 1.0, 2.0, 3.0]], batch) == [0]
    assert measured("rank", [[1.5, 1.0, 2.0, -3.0]], batch) == [1]


def test_a_filled_place_is_not_the_last_token_of_the_vocabulary():
    """-1 as an index would be the last token, which is the likeliest here: it must count as neither."""
    batch, logits = batch_of([[0, -1]], [[1, -1]]), [[0.0, LN2, LN3]]
    assert measured("logit_diff", logits, batch) == pytest.approx([-LN2])
    assert measured("prob_diff", logits, batch) == pytest.approx([-1 / 6])
    assert measured("log_prob", logits, batch) == pytest.approx([-math.log(6)])
    assert measured("rank", logits, batch) == [2]
    assert measured("accuracy", logits, batch) == [0]


logit_rows = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=5, max_size=5), min_size=2, max_size=2).map(
    torch.tensor
)


@law_of(50)
@given(logit_rows, logit_rows, st.floats(-30, 30, width=32))
def test_laws_of_all_metrics(logits, reference, shift):
    """One value an example, each from its own row; adding a number to all logits of a prompt changes nothing."""
    batch = SEVERAL.with_reference(reference)
    turned = torch.tensor([1, 0])
    for name in names():
        metric = resolve(name)
        values = metric(logits, batch)
        assert values.shape == (2,)
        assert torch.equal(metric(logits[turned], batch.take(turned)), values[turned])
        if metric.smooth:
            assert torch.allclose(metric(logits + shift, batch), values, atol=1e-3)
    assert (resolve("kl")(logits, batch) >= -1e-5).all()
    assert (resolve("log_prob")(logits, batch) <= 1e-5).all()
    assert (resolve("prob_diff")(logits, batch).abs() <= 1 + 1e-5).all()
    assert torch.equal(resolve("accuracy")(logits, batch) == 1, resolve("rank")(logits, batch) == 0)


@pytest.mark.parametrize("name", names())
def test_each_metric_declares_its_direction_and_a_better_model_moves_that_way(name):
    metric = METRICS[name]
    assert metric.name == name
    assert metric.unit
    batch = ONE.with_reference(torch.tensor([[0.0, 0.0, 5.0]]))
    good, bad = metric(torch.tensor([[0.0, 0.0, 4.0]]), batch), metric(torch.tensor([[4.0, 0.0, 0.0]]), batch)
    assert bool(good > bad) is metric.higher_is_better


@pytest.mark.parametrize("name", names())
def test_smooth_metrics_have_a_gradient_and_others_say_so(name):
    metric = METRICS[name]
    logits = torch.tensor([[0.5, -0.5, 1.0]], requires_grad=True)
    values = metric(logits, ONE.with_reference(torch.tensor([[0.0, 1.0, 0.0]])))
    assert values.requires_grad is metric.smooth
    if metric.smooth:
        values.sum().backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() > 0


def test_the_metrics_of_the_design_are_there():
    whole = ("answer_log_prob", "answer_log_prob_diff")
    assert names() == ("logit_diff", "prob_diff", "log_prob", "kl", "accuracy", "rank", *whole)
    assert {name for name in names() if resolve(name).whole_answer} == {*whole} == {*WHOLE_ANSWER}


def returning(value: object) -> Metric:
    def judged(logits, batch):
        return value

    return resolve(judged)


FOUR = batch_of([[0]] * 4, [[1]] * 4)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.tensor(1.0), "shape ()"),
        (torch.zeros(4, 1), "shape (4, 1)"),
        (torch.zeros(3), "shape (3,)"),
        (torch.zeros(4, 5), "shape (4, 5)"),
        (None, "NoneType"),
        (0.5, "float"),
        ([0.0] * 4, "list"),
    ],
    ids=["a mean", "a column", "too few", "all logits", "nothing", "a float", "a list"],
)
def test_a_metric_of_another_shape_is_refused(value, says):
    with pytest.raises(MetricError) as told:
        returning(value)(torch.zeros(4, 5), FOUR)
    assert str(told.value) == (
        f"metric 'judged' returned {says} for 4 examples; it must return one value per example, shape (4,). "
        "Means are taken by circuitlab."
    )


def test_nan_is_told_with_the_example_s_place_in_the_data():
    values = torch.tensor([0.0, math.nan, math.nan, 0.0])
    with pytest.raises(MetricError, match="metric 'judged' returned NaN, first for example 1"):
        returning(values)(torch.zeros(4, 5), FOUR)
    with pytest.raises(MetricError, match="first for example 2"):
        returning(values[2:])(torch.zeros(2, 5), FOUR.take(slice(2, 4)))


def test_whole_numbers_and_yes_or_no_become_numbers():
    for values in (torch.tensor([1, 0, 0, 1]), torch.tensor([True, False, False, True])):
        found = returning(values)(torch.zeros(4, 5), FOUR)
        assert found.dtype == torch.float32
        assert found.tolist() == [1, 0, 0, 1]


def test_a_metric_against_the_clean_run_needs_it():
    with pytest.raises(MetricError, match=r"'kl' compares with the clean run; give it batch.with_reference\(logits\)"):
        resolve("kl")(torch.zeros(4, 5), FOUR)


def test_a_plain_function_is_a_metric():
    def margin(logits, batch):
        return logits[:, 0]

    class Scaled:
        name, unit = "scaled", "bits"

        def __call__(self, logits, batch):
            return logits[:, 0] / LN2

    assert resolve(margin).name == "margin"
    assert (resolve(Scaled()).name, resolve(Scaled()).unit) == ("scaled", "bits")
    assert resolve(lambda logits, batch: logits[:, 0])(torch.ones(4, 5), FOUR).tolist() == [1] * 4
    assert resolve(resolve(margin)).name == "margin"
    assert resolve("kl") is METRICS["kl"]


def test_a_metric_that_fails_is_told_as_the_metric_s_fault():
    def wrong(logits, batch):
        return logits[:, batch.answer]

    with pytest.raises(MetricError, match=r"'wrong' raised AttributeError"):
        resolve(wrong)(torch.zeros(4, 5), FOUR)


def test_an_unknown_metric_is_told_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown metric 'logit-diff'. Did you mean 'logit_diff'.*prob_diff"):
        resolve("logit-diff")


@pytest.mark.parametrize("given_", [3, None, ["logit_diff"]])
def test_what_is_no_metric_is_refused(given_):
    with pytest.raises(MetricError, match=f"function of .logits, batch.; got {type(given_).__name__}"):
        inspect.unwrap(resolve)(given_)
