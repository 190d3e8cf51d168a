"""Ways to take edges: greedily from the logits, above a threshold; and what is said of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from architectures import load, pairs

from circuitlab import evaluate, score_edges, select
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import ConfigError
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.graphs.ranking import edge_places, greedy_edges, mask_of
from circuitlab.parts import Layout

LAYOUT = Layout.of(load("gpt2").spec)


def keys(seed: int, ties: bool = False) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal(real_edges(LAYOUT).shape)
    return np.round(drawn) if ties else drawn


def scores_of(values: np.ndarray, per_reader: bool = False) -> EdgeScores:
    made = score_edges(load("gpt2"), pairs(), "random")
    return replace(made, values=values * real_edges(LAYOUT), per_reader=per_reader)


def greedy_by_search(keys: np.ndarray) -> list[tuple[int, int]]:
    """The same without a heap: look at every edge into what was reached, take the best, and again."""
    logits, taken = len(LAYOUT.writers), list[tuple[int, int]]()
    places = [(int(row), int(column)) for row, column in edge_places(LAYOUT)]
    while True:
        reached = {logits, *(row for row, _ in taken)}
        open_ones = [p for p in places if LAYOUT.owners[p[1]] in reached and p not in set(taken)]
        if not open_ones:
            return taken
        taken.append(max(open_ones, key=lambda p: (keys[p], -places.index(p))))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_against_a_search_through_all(seed, ties):
    found = [tuple(place) for place in greedy_edges(keys(seed, ties), LAYOUT).tolist()]
    assert found == greedy_by_search(keys(seed, ties))
    assert sorted(found) == sorted(map(tuple, edge_places(LAYOUT).tolist())), "every edge, once"


def test_edges_never_scored_come_last():
    some = keys(0)
    some[3, 20] = np.nan
    assert greedy_edges(some, LAYOUT)[-1].tolist() == [3, 20]


def test_a_grown_circuit_hangs_together_backwards():
    """Whatever greedy takes leads to the logits; the ranking of all edges at once does not."""
    scores = scores_of(keys(2))
    greedy = select(load("gpt2"), scores, pairs(), n_edges=60, greedy=True)
    at_once = select(load("gpt2"), scores, pairs(), n_edges=60)
    assert greedy.n_edges >= at_once.n_edges
    order = greedy_edges(np.abs(scores.values), LAYOUT)[:60]
    assert (greedy.mask == prune(mask_of(order, LAYOUT), LAYOUT)).all()
    heard = {LAYOUT.owners[column] for column in order[:, 1]}
    assert heard <= {len(LAYOUT.writers), *order[:, 0].tolist()}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_threshold(signed, greedy):
    scores = scores_of(keys(3))
    circuit = select(load("gpt2"), scores, pairs(), threshold=0.7, signed=signed, greedy=greedy)
    wanted = ((scores.values if signed else np.abs(scores.values)) >= 0.7) & real_edges(LAYOUT)
    assert (circuit.mask == prune(wanted, LAYOUT)).all()
    assert circuit.selection is not None
    assert (circuit.selection.nominal, circuit.selection.achieved) == (wanted.sum(), circuit.n_edges)
    assert select(load("gpt2"), scores, pairs(), threshold=99.0).n_edges == 0


def test_shares_of_a_reader_are_selected_greedily_by_default():
    grown = select(load("gpt2"), scores_of(keys(4), per_reader=True), pairs(), n_edges=30)
    assert (grown.mask == select(load("gpt2"), scores_of(keys(4)), pairs(), n_edges=30, greedy=True).mask).all()
    assert (grown.mask != select(load("gpt2"), scores_of(keys(4)), pairs(), n_edges=30).mask).any()
    assert score_edges(load("gpt2"), pairs(), "ifr").per_reader
    circuit = select(load("gpt2"), score_edges(load("gpt2"), pairs(), "ifr"), pairs(), target=0.5)
    assert circuit.selection is not None
    assert circuit.selection.greedy
    assert circuit.selection.rule == "target"


def test_what_is_said_of_it():
    scores = score_edges(load("gpt2"), pairs(), "exact")
    circuit = select(load("gpt2"), scores, pairs(), target=0.8)
    said = circuit.selection
    assert said is not None
    assert (said.rule, said.asked, said.signed, said.greedy) == ("target", 0.8, False, False)
    assert said.achieved == circuit.n_edges <= said.nominal
    assert said.n_nodes == len(circuit.nodes)
    assert said.faithfulness == pytest.approx(evaluate(load("gpt2"), circuit, pairs(), n_random=0).faithfulness)
    top = select(load("gpt2"), scores, pairs(), n_edges=20)
    assert top.selection is not None
    assert (top.selection.rule, top.selection.nominal, top.selection.faithfulness) == ("n_edges", 20, None)
    assert top.selection.achieved == top.n_edges < 20, "pruned: the size asked for is not the size achieved"
    assert json.loads(json.dumps(top.selection.to_record()))["achieved"] == top.n_edges
    assert top.with_mask(top.mask).selection is None, "another mask is another selection"


def test_mistakes():
    scores = scores_of(keys(0))
    with pytest.raises(ConfigError, match=r"n_edges=3 and threshold=0\.1 are both given"):
        select(load("gpt2"), scores, pairs(), n_edges=3, threshold=0.1)
    with pytest.raises(ConfigError, match="threshold is nan"):
        select(load("gpt2"), scores, pairs(), threshold=float("nan"))
