"""Does the model do the task? Asked as the metric asks it, for any number of answers, with distractors or without.

Each rule is worked out by hand on logits that are given, and the refusals are tried before a model is loaded.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import pytest
import torch
from architectures import as_users_run_it
from words import Words, task_of

from circuitlab import (
    Example,
    Metric,
    MetricError,
    PairBatch,
    Task,
    TaskNotDoneError,
    cite,
    discover,
    load_task,
)
from circuitlab.cli import main
from circuitlab.data.batch import batch_by_length
from circuitlab.data.encoded import Rejection
from circuitlab.data.encoding import encode_example
from circuitlab.data.pair import Pair
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.behaviour import TOP_TOKEN, Behaviour, check_behaviour, different_digits
from circuitlab.errors import WrongTypeError
from circuitlab.metrics import metric_of, names, resolve
from circuitlab.metrics.base import METRICS
from circuitlab.patching.experiment import Experiment
from circuitlab.runs import judging, pipeline

DOCS = Path(__file__).parent.parent / "docs"
NEED_NONE = [name for name, metric in METRICS.items() if not metric.needs_distractor]
NEED_ONE = [name for name, metric in METRICS.items() if metric.needs_distractor]


@dataclass(frozen=True)
class Given:
    """Recordings whose logits are given."""

    batch: PairBatch
    clean: torch.Tensor
    corrupt: torch.Tensor

    @property
    def n_examples(self) -> int:
        return len(self.batch)

    def ends(self, *metrics: Metric) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(self._of(metric, self.clean), self._of(metric, self.corrupt)) for metric in metrics]

    def _of(self, metric: Metric, logits: torch.Tensor) -> np.ndarray:
        return metric(logits, self.batch.with_reference(self.clean)).double().numpy()


def pair_of(number: int, answers: tuple[int, ...], distractors: tuple[int, ...] = ()) -> Pair:
    return Pair(
        id=str(number), clean=f"prompt {number} .", corrupt=f"prompt {number} ;",
        answers=tuple(f" {i}" for i in answers), distractors=tuple(f" {i}" for i in distractors),
        clean_ids=(0, number, 1), corrupt_ids=(0, number, 2), answer_ids=answers, distractor_ids=distractors,
        spans={}, clean_tokens=("a", "b", "c"), corrupt_tokens=("a", "b", "d"),
    )  # fmt: skip


def turned(pair: Pair) -> Pair:
    """Answers and distractors in each other's place."""
    return replace(
        pair, answers=pair.distractors, distractors=pair.answers,
        answer_ids=pair.distractor_ids, distractor_ids=pair.answer_ids,
    )  # fmt: skip


def checked(
    pairs: list[Pair], clean: torch.Tensor, corrupt: torch.Tensor, metric: object, min_accuracy: float = 0.6
) -> Behaviour:
    (batch,) = batch_by_length(pairs)
    with as_users_run_it():
        recordings, model = Given(batch, clean, corrupt), cast("Any", None)
        experiment = Experiment(model, PairSet(tuple(pairs)), resolve(metric), allow_weak_gap=True)
        experiment.known["recordings"] = recordings
        return check_behaviour(experiment, min_accuracy)


def greater_than(n: int = 20) -> tuple[list[Pair], torch.Tensor, torch.Tensor]:
    """Years: those after the first one are right, the others wrong. The model spreads over the next few."""
    pairs, clean, corrupt = [], torch.full((n, 102), -2.0), torch.zeros(n, 102)
    for i in range(n):
        year = 10 + 4 * i
        pairs.append(pair_of(i + 3, tuple(range(year + 1, 100)), tuple(range(2, year + 1))))
        clean[i, year + 1 : year + 6] = 6.0
        clean[i, 2 : year + 1] = -1.0  # above the many years to come that the model hardly thinks of
    return pairs, clean, corrupt


def test_greater_than_passes_though_no_pair_has_every_answer_above_every_distractor():
    pairs, clean, corrupt = greater_than()
    every = [
        bool(logits[list(pair.answer_ids)].min() > logits[list(pair.distractor_ids)].max())
        for pair, logits in zip(pairs, clean, strict=True)
    ]
    assert not any(every)
    assert len({len(pair.answers) for pair in pairs}) == len(pairs)  # ragged
    found = checked(pairs, clean, corrupt, "prob_diff")
    assert (found.rule, found.prefers) == ("prob_diff is above 0", 1.0)
    assert found.clean.mean() > 0.9
    with pytest.raises(TaskNotDoneError, match="prob_diff is above 0 on 0 of 20 clean prompts"):
        checked(list(map(turned, pairs)), clean, corrupt, "prob_diff")


def test_two_right_answers_of_which_one_is_rarely_said():
    pairs = [pair_of(i + 3, (10, 11), (12,)) for i in range(10)]
    clean = torch.zeros(10, 20)
    clean[:, 10], clean[:, 11], clean[:, 12] = 5.0, -1.0, 0.5
    found = checked(pairs, clean, torch.zeros(10, 20), "prob_diff")
    assert (found.prefers, found.turns) == (1.0, 0.0)  # two answers share twice the mass of one distractor
    assert checked(pairs, clean, torch.zeros(10, 20), "logit_diff").clean == pytest.approx([2 - 0.5] * 10)


def test_with_one_answer_and_one_distractor_the_rule_is_that_the_answer_is_above():
    generator = torch.Generator().manual_seed(0)
    pairs = [pair_of(i + 3, (10,), (12,)) for i in range(40)]
    clean, corrupt = torch.randn((2, 40, 20), generator=generator)
    clean[:, 10] += 1
    found = checked(pairs, clean, corrupt, "logit_diff", min_accuracy=0.1)
    assert found.prefers == pytest.approx(float((clean[:, 10] > clean[:, 12]).double().mean()))
    assert found.turns == pytest.approx(float((corrupt[:, 10] <= corrupt[:, 12]).double().mean()))
    for name in ("log_prob", "rank", "accuracy"):
        top = checked(pairs, clean, corrupt, name, min_accuracy=0.01)
        assert top.rule == TOP_TOKEN
        assert top.prefers == pytest.approx(float((clean.argmax(1) == 10).double().mean()))
        assert top.turns == pytest.approx(float((corrupt.argmax(1) != 10).double().mean()))


def test_a_metric_of_one_s_own_is_asked_by_its_sign_only_where_it_says_so():
    """Less is better here: a loss that is negative where the answer wins."""
    pairs = [pair_of(i + 3, (10,), (12,)) for i in range(10)]
    clean, corrupt = torch.zeros(10, 20), torch.zeros(10, 20)
    clean[:, 10], clean[:, 5], corrupt[:, 12] = 2.0, 3.0, 2.0  # the answer wins over the distractor, not over token 5

    def loss(logits, batch):
        return logits.gather(1, batch.distractors)[:, 0] - logits.gather(1, batch.answers)[:, 0]

    declared = Metric(name="loss", function=loss, unit="logits", higher_is_better=False, natural_zero=True)
    assert checked(pairs, clean, corrupt, declared).rule == "loss is below 0"
    assert checked(pairs, clean, corrupt, declared).prefers == 1
    with pytest.raises(TaskNotDoneError, match=f"{TOP_TOKEN} on 0 of 10 clean prompts"):
        checked(pairs, clean, corrupt, replace(declared, natural_zero=False))

    def gain(logits, batch):
        return -loss(logits, batch)

    gain.natural_zero, gain.unit = True, "logits"
    assert checked(pairs, clean, corrupt, gain).rule == "gain is above 0"
    with pytest.raises(TaskNotDoneError, match="gain is above 0 on 0 of 10"):
        checked(pairs, corrupt, clean, gain)
    gain.natural_zero = "yes"
    with as_users_run_it(), pytest.raises((MetricError, WrongTypeError), match="natural_zero.* is .yes.*; it must be "):
        resolve(gain)


@pytest.mark.parametrize(
    ("right", "n", "needed"),
    [(599, 1000, 0.6), (2, 3, 0.667), (59, 100, 0.6), (0, 7, 1e-9), (1, 3, 0.33333334), (99, 100, 1.0)],
)
def test_the_numbers_of_the_message_agree_with_the_refusal(right, n, needed):
    pairs = [pair_of(i + 3, (10,), (12,)) for i in range(n)]
    clean = torch.zeros(n, 20)
    clean[:right, 10], clean[right:, 12] = 8.0, 1.0
    with pytest.raises(TaskNotDoneError) as told:
        checked(pairs, clean, torch.zeros(n, 20), "logit_diff", needed)
    found = re.search(
        r"above 0 on (\d+) of (\d+) clean prompts \((.+?)%\), and min_accuracy asks for (.+?)%", str(told.value)
    )
    assert found
    assert (int(found[1]), int(found[2])) == (right, n)
    assert float(found[3]) < float(found[4])
    assert float(found[3]) == pytest.approx(100 * right / n, rel=1e-2)
    checked(pairs, clean, torch.zeros(n, 20), "logit_diff", right / n)  # exactly as many as asked for are enough


def test_a_difference_on_the_wrong_side_is_told_as_such_and_not_as_the_share():
    pairs = [pair_of(i + 3, (10,), (12,)) for i in range(10)]
    clean = torch.zeros(10, 20)
    clean[:, 10] = 1.0
    with pytest.raises(TaskNotDoneError) as told:
        checked(pairs, clean, clean + 1e-4 * (torch.arange(20) == 10), "logit_diff")
    said = str(told.value)
    assert "min_accuracy asks for" not in said
    one, other = map(float, re.search(r"logit_diff is (\S+) on the clean and (\S+) on the corrupted", said).groups())
    assert one < other
    assert "it should be more on the clean ones" in said


@pytest.mark.parametrize(
    "numbers", [(1.0, 1.0 + 1e-12), (59.99, 60), (0.1, 0.30000000000000004), (-1e-9, 1e-9), (2, 2)]
)
def test_different_numbers_are_printed_differently(numbers):
    one, other = different_digits(*numbers)
    assert (one == other) is (numbers[0] == numbers[1])


def test_long_prompts_and_many_answers_leave_a_message_of_one_line():
    pairs, clean, corrupt = greater_than()
    long = [replace(turned(pair), clean="word " * 500 + pair.clean) for pair in pairs]
    with pytest.raises(TaskNotDoneError) as told:
        checked(long, clean, corrupt, "prob_diff")
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 1200
    assert "more)" in str(told.value)


def test_the_pages_say_what_each_metric_makes_of_several_answers():
    page = (DOCS / "conventions.md").read_text()
    for name, metric in METRICS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        _, _, _, needed, zero, _ = row.split("|")
        assert (needed.strip() == "needed") is metric.needs_distractor
        assert (zero.strip() == "yes") is metric.natural_zero
        assert metric.what
        assert metric.function.__doc__


# ----------------------------------------------------------------------------------------- without distractors


TOKENS = torch.tensor([[0, 1], [0, 2]])


@pytest.mark.parametrize("name", names())
def test_a_batch_without_distractors_serves_the_metrics_that_need_none(name):
    without = PairBatch.from_tokens(TOKENS, TOKENS + 3, torch.tensor([[1, 2], [3, -1]]))
    partly = replace(without, distractors=torch.tensor([[4], [-1]]))
    full = replace(without, distractors=torch.tensor([[4], [5]]))
    logits, reference = torch.randn((2, 2, 8), generator=torch.Generator().manual_seed(0))
    values = METRICS[name](logits, full.with_reference(reference))
    for batch in (without, partly):
        assert not batch.has_distractors
        if name in NEED_ONE:
            with pytest.raises(MetricError, match=f"metric '{name}' compares answers with distractors.*log_prob, kl"):
                METRICS[name](logits, batch)
        else:
            assert torch.equal(METRICS[name](logits, batch.with_reference(reference)), values)
    assert full.has_distractors


def test_batches_without_distractors_are_taken_apart_like_others():
    batch = PairBatch.from_tokens(TOKENS, TOKENS + 3, torch.tensor([[1, 2], [3, -1]]), distractors=None)
    words, compact = batch.compact()
    assert words.tolist() == [1, 2, 3]
    assert compact.answers.tolist() == [[0, 1], [2, -1]]
    assert batch.take(torch.tensor([1])).distractors.shape == (1, 0)
    (bucket,) = batch_by_length([pair_of(3, (10,)), pair_of(4, (10, 11))])
    assert bucket.distractors.shape == (2, 0)
    assert not bucket.has_distractors


TASK_FILE = """
from circuitlab import Example, Task

def draw(rng):
    name = rng.choice(["Anna", "Mary", "Lisa", "Jane", "Susan", "Laura", "John", "Paul", "Mark", "Gary"])
    mark = rng.choice([",", ":", "!"])
    return Example(f"{name} is a very good {rng.choice(['cook', 'friend'])}.", f"{name} is a very good friend{mark}",
                   answer=(" She", " He"))

TASK = Task(name="no-distractor", version="1", summary="A capital follows a full stop.", draw=draw, metric="log_prob")
"""


@pytest.fixture
def task_file(tmp_path: Path) -> str:
    (tmp_path / "task.py").write_text(TASK_FILE)
    return str(tmp_path / "task.py")


@pytest.mark.parametrize("name", NEED_ONE)
@pytest.mark.parametrize(
    "command",
    ["discover", "sweep --site head_z", "evaluate circuit.json --task", "attribute", "features rank", "features sweep"],
)
def test_a_metric_that_needs_a_distractor_is_refused_before_a_model_is_loaded(
    command, name, task_file, tmp_path, monkeypatch, capsys
):
    if command == "attribute" and name != "logit_diff":
        pytest.skip("it splits logit differences only")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("circuitlab.models.load.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    for module in (judging, pipeline):
        monkeypatch.setattr(module, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    (tmp_path / "circuit.json").write_text('["input->logits"]')
    words = command.split()
    first, rest = (words[:2], words[2:]) if words[0] in ("features", "evaluate") else (words[:1], words[1:])
    if command.startswith("features"):
        rest += ["--autoencoder", "none.safetensors", "--site", "mlp_out", "--layer", "0"]
    target = [*rest, task_file] if words[0] == "evaluate" else [task_file, *rest]
    assert main([*first, *target, "--metric", name]) == 2
    error = capsys.readouterr().err
    assert f"metric '{name}' compares answers with distractors, and task 'no-distractor' has none" in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def folder(bundled, tmp_path_factory) -> Path:
    """A run of a task without distractors, with two right answers."""
    place = tmp_path_factory.mktemp("runs") / "run"
    scope: dict = {}
    exec(TASK_FILE, scope)
    discover(scope["TASK"], model=bundled, n=8, min_accuracy=0.1, method="eap", target=0.5, sites=(), out=place)
    return place


def test_a_task_without_distractors_runs_whole(folder):
    lines = [json.loads(line) for line in (folder / "dataset.jsonl").read_text().splitlines()]
    assert len(lines) == 16
    assert all(line["distractors"] == line["distractor_ids"] == [] for line in lines)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["behaviour"]["rule"] == TOP_TOKEN
    metric = METRICS["log_prob"]
    told = {name: getattr(metric, name) for name in ("name", "unit", "what", "higher_is_better", "needs_distractor")}
    assert {name: manifest["metric"][name] for name in told} == told
    page = (folder / "report.html").read_text()
    assert METRICS["log_prob"].what in page
    assert f"In the discovery pairs, {TOP_TOKEN} on" in page
    assert "right after the corrupted" not in page
    assert "no-distractor" in cite(folder)


def test_a_task_without_distractors_is_shown(task_file, capsys):
    assert main(["tasks", "show", task_file]) == 0
    assert re.search(r"distractor\s+none", capsys.readouterr().out)
    assert main(["tasks", "show", task_file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["example"]["distractors"] == []


def test_the_metric_of_a_task_may_be_chosen_by_name_or_given():
    task = load_task("name-throw")
    assert metric_of(task).name == "logit_diff"
    assert metric_of(task, "kl").name == "kl"

    def draw(rng: Random) -> Example:
        return Example("Ann is kind .", "Ann is kind ;", " Yes")

    lacking = task_of(draw)
    for name in NEED_NONE:
        assert metric_of(lacking, name).name == name
    for name in (None, *NEED_ONE):
        with pytest.raises(MetricError, match="task 'test' has none"):
            metric_of(lacking, name)
    with pytest.raises(MetricError, match="task 'test' has none"):
        metric_of(replace(lacking, fixed=(Example("a", "b", " c", " d"), Example("a", "c", " c"))), "prob_diff")


def test_the_report_says_what_was_measured_of_a_corruption_that_turns_nothing_over(bundled, tmp_path):
    """The name stays of the same gender: the corrupted run prefers the same answer."""

    def draw(rng: Random) -> Example:
        one, other = rng.sample(["Anna", "Mary", "Lisa", "Jane", "Susan", "Laura"], 2)
        prompt = "{} is a very good " + rng.choice(["cook", "friend", "teacher"]) + "."
        return Example(prompt.format(one), prompt.format(other), " She", " He")

    task = Task(name="abc", version="1", summary="Another woman.", draw=draw)
    discover(
        task, model=bundled, n=8, method="random", target=None, selection={"n_edges": 20}, min_accuracy=0,
        sites=(), allow_weak_gap=True, out=tmp_path / "run",
    )  # fmt: skip
    turned = json.loads((tmp_path / "run" / "manifest.json").read_text())["behaviour"]["corruption_turns_over"]
    assert turned < 0.5
    page = (tmp_path / "run" / "report.html").read_text()
    assert re.search(r"logit diff is above 0 on [\d.]+\s?% of the clean prompts and on [\d.]+\s?% of the", page)


# ----------------------------------------------------------------------------------------------- same tokens


def test_words_that_a_tokenizer_does_not_tell_from_each_other_are_dropped():
    class Small(Words):
        def encode(self, text: str):
            return super().encode(text.lower())

    found = encode_example(Example("ann is kind .", "ann is kind ;", " She", " she"), Small())
    assert isinstance(found, Rejection)
    assert found.reason == "' She' and ' she' are the same token"
    twice = encode_example(Example("ann is kind .", "ann is kind ;", (" She", " she"), " no"), Small())
    assert isinstance(twice, Rejection)
    assert isinstance(encode_example(Example("ann is kind .", "ann is kind ;", " She", " no"), Small()), Pair)
