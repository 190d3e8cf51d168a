"""What the library promises of the bundled model: small circuits that carry each task to prompts not seen before."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from circuitlab.data.pairs import PairSet
from circuitlab.data.registry import load_task
from circuitlab.discovery.behaviour import check_behaviour
from circuitlab.discovery.scoring import score_edges
from circuitlab.discovery.selection import select
from circuitlab.errors import TaskNotDoneError
from circuitlab.evaluation.evaluate import evaluate
from circuitlab.metrics import resolve
from circuitlab.models.bridge import BridgeModel
from circuitlab.patching.experiment import Experiment

TASKS = ("gendered-pronouns", "gendered-pronouns:gender", "name-throw", "html-tag-closing")
N = 30


@pytest.mark.parametrize(
    ("name", "seed"), [*[(name, 0) for name in TASKS], ("gendered-pronouns:gender", 1), ("name-throw", 1)]
)
def test_a_tenth_of_the_edges_carries_the_task_to_held_out_prompts(bundled: BridgeModel, name: str, seed: int) -> None:
    # Html prompts are of two dozen lengths, each a batch of its own, which takes its time under the shape checks.
    pairs = load_task(name).pairs(bundled, n=N // 2 if name.startswith("html") else N, seed=seed)
    scores = score_edges(bundled, pairs.discovery)
    circuit = select(bundled, scores, pairs.discovery)
    result = evaluate(bundled, circuit, pairs.held_out, seed=seed)
    assert circuit.n_edges <= 0.1 * result.n_edges_total
    assert 0.85 <= result.faithfulness <= 1.15
    assert len(result.random) == 20
    assert max(result.random) < result.faithfulness
    assert scores.checks["completeness_gap"] < 0.2


def test_the_worst_edges_carry_nothing(bundled: BridgeModel) -> None:
    """The twin: as many edges from the other end of the ranking."""
    pairs = load_task("name-throw").pairs(bundled, n=20, seed=0)
    scores = score_edges(bundled, pairs.discovery)
    found = select(bundled, scores, pairs.discovery)
    upside_down = replace(scores, values=1.0 / (1e-6 + np.abs(scores.values)))
    worst = select(bundled, upside_down, pairs.discovery, n_edges=3 * found.n_edges)
    assert evaluate(bundled, worst, pairs.held_out, n_random=0).faithfulness < 0.2


def test_shuffled_answers_are_a_task_that_the_model_does_not_do(bundled: BridgeModel) -> None:
    pairs = list(load_task("name-throw").pairs(bundled, n=N, seed=0).discovery)
    others = pairs[1:] + pairs[:1]
    turned = Random(0)
    shuffled = []
    for pair, other in zip(pairs, others, strict=True):
        words = [other.answer_ids, other.distractor_ids]
        turned.shuffle(words)
        shuffled.append(replace(pair, answer_ids=words[0], distractor_ids=words[1]))
    chosen = PairSet(tuple(shuffled))
    with pytest.raises(TaskNotDoneError, match=r"logit_diff is above 0 on \d+ of 30 clean prompts"):
        check_behaviour(Experiment(bundled, chosen, resolve("logit_diff")), min_accuracy=0.75)


def test_exact_scores_and_eap_ig_agree_on_what_matters(bundled: BridgeModel) -> None:
    pairs = load_task("gendered-pronouns:gender").pairs(bundled, n=8, seed=0).discovery
    exact = score_edges(bundled, pairs, method="exact")
    estimate = score_edges(bundled, pairs, method="eap-ig")
    shared = (exact.top(20) & estimate.top(20)).sum()
    assert shared >= 12
    assert np.corrcoef(exact.values.ravel(), estimate.values.ravel())[0, 1] > 0.9
