"""What each method finds in the bundled model, and that its twin with a wrong sign or turned answers finds nothing."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from circuitlab import evaluate, score_edges, select
from circuitlab.data.pairs import PairSet, PairSplits
from circuitlab.data.registry import load_task
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import MetricError
from circuitlab.models.bridge import BridgeModel

FIND = ("eap-ig", "eap", "eap-ig-activations", "clean-corrupted", "relp", "ifr")
N_EDGES = 100


@cache
def drawn(model: BridgeModel) -> PairSplits:
    return load_task("gendered-pronouns").pairs(model, n=12, seed=0)


def held_out(model: BridgeModel, scores: EdgeScores, signed: bool = False) -> float:
    """Faithfulness of the top hundred edges on prompts not seen before."""
    circuit = select(model, scores, drawn(model).discovery, n_edges=N_EDGES, signed=signed)
    return evaluate(model, circuit, drawn(model).held_out, n_random=0).faithfulness


@pytest.mark.parametrize("method", FIND)
def test_it_finds_a_circuit_and_its_negative_does_not(bundled, method):
    scores = score_edges(bundled, drawn(bundled).discovery, method)
    assert held_out(bundled, scores) > 0.75
    # Of shares, which have no sign, the least: what brings nothing carries nothing.
    wrong = np.where(scores.values > 0, 1 / (scores.values + 1e-9), 0.0) if method == "ifr" else -scores.values
    assert abs(held_out(bundled, replace(scores, values=wrong, per_reader=False), signed=True)) < 0.1


def test_random_scores_find_nothing(bundled):
    assert abs(held_out(bundled, score_edges(bundled, drawn(bundled).discovery, "random"))) < 0.1


@pytest.mark.parametrize("method", [name for name in FIND if name != "ifr"])
def test_answers_turned_over_on_half_of_the_prompts_leave_nothing_to_find(bundled, method):
    """Every prompt once with its answer and once with its distractor: whatever helps one hurts the other."""
    pairs = list(drawn(bundled).discovery)
    turned = [
        replace(pair, id=f"{pair.id} turned", answer_ids=pair.distractor_ids, distractor_ids=pair.answer_ids)
        for pair in pairs
    ]
    with pytest.raises(MetricError, match="every score would be 0"):
        score_edges(bundled, PairSet((*pairs, *turned)), method)
