"""Numbers that mislead: edges never asked about, scores of 0, circuits that explain nothing, pairs that are not new."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from architectures import load, mixed_pairs, pairs

from circuitlab import evaluate, load_circuit, score_edges, select
from circuitlab.discovery.scores import EdgeScores
from circuitlab.discovery.scoring import METHODS
from circuitlab.errors import FormatError, GraphError
from circuitlab.evaluation.curve import curves
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.graphs.ranking import greedy_edges, mask_of, ranked_edges
from circuitlab.graphs.selection import Selection
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment

FEW = {"n_random": 0, "n_knockouts": 0, "minimality": False}
HIGH = 0.05  # nats: many edges are never asked about
QUICK = {"edge-pruning": {"updates": 3}, "ugs": {"updates": 3}}


@cache
def acdc(**options) -> EdgeScores:
    return score_edges(load("gpt2"), pairs(), "acdc", **dict(options))


def with_zeros(keep: int) -> EdgeScores:
    """EAP scores of which all but the `keep` largest are 0."""
    scores = score_edges(load("gpt2"), pairs(), "eap")
    return replace(scores, values=np.where(scores.top(keep), scores.values, 0.0))


class TestRanking:
    def test_unasked_edges_come_after_all_others_by_their_second_score(self):
        layout, rng = Layout.of(load("gpt2").spec), np.random.default_rng(0)
        keys = rng.normal(size=(len(layout.writers), len(layout.readers)))
        unasked = rng.random(keys.shape) < 0.4
        second = np.where(unasked, 100 * rng.random(keys.shape), np.nan)
        for order in (ranked_edges(keys, layout, second), greedy_edges(keys, layout, second)):
            assert len(order) == layout.n_edges
        order = ranked_edges(keys, layout, second)
        late = unasked[tuple(order.T)]
        assert not late[: np.argmax(late)].any()
        assert late[np.argmax(late) :].all()
        for part, by in ((~late, keys), (late, second)):
            assert (np.diff(by[tuple(order[part].T)]) <= 0).all()

    @pytest.mark.parametrize("objective", ["kl", "metric"])
    @pytest.mark.parametrize("speculate", [1, None])
    def test_acdc_says_what_it_never_asked(self, objective, speculate):
        scores = acdc(objective=objective, speculate=speculate)
        eap = score_edges(load("gpt2"), pairs(), "eap").values
        unasked = ~np.isnan(scores.second_scores)
        assert 0 < unasked.sum() == scores.checks["edges_never_asked"] < scores.layout.n_edges
        assert (scores.values[unasked] == 0).all()
        assert scores.second_scores[unasked] == pytest.approx(eap[unasked], rel=1e-5, abs=1e-9)
        assert not unasked[scores.chosen].any()
        assert (scores.tested == real_edges(scores.layout) & ~unasked).all()

    def test_the_second_score_has_a_gradient_whatever_the_metric(self):
        for metric in ("kl", "accuracy", "rank"):
            found = score_edges(load("gpt2"), pairs(), "acdc", metric=metric, threshold=HIGH)
            assert (np.nan_to_num(found.second_scores) != 0).sum() > 20

    def test_a_target_takes_edges_by_their_second_score(self):
        scores = acdc(threshold=HIGH)
        found = select(load("gpt2"), scores, pairs(), target=0.999)
        order = scores.ranked()
        order = order[(scores.values != 0)[tuple(order.T)] | (np.nan_to_num(scores.second_scores) != 0)[tuple(order.T)]]
        taken = mask_of(order[: found.selection.nominal], scores.layout)
        assert (found.mask == prune(taken, scores.layout)).all()
        assert (taken & ~np.isnan(scores.second_scores)).any()
        # The twin: without second scores there is nothing to take them by.
        alone = select(load("gpt2"), replace(scores, second_scores=None), pairs(), target=0.999)
        assert alone.selection.nominal < found.selection.nominal
        assert "is not reached" in alone.selection.warnings[0]


class TestZeros:
    @pytest.mark.parametrize("method", METHODS)
    def test_no_method_has_an_edge_of_score_0_selected(self, method):
        model, given = load("gpt2"), pairs()
        scores = score_edges(model, given, method, **QUICK.get(method, {}))
        for rule in ({"n_edges": scores.layout.n_edges}, {"threshold": 0.0}, {"target": 0.99}):
            circuit = select(model, scores, given, **rule)
            second = 0 if scores.second_scores is None else np.nan_to_num(scores.second_scores)
            assert not (circuit.mask & (scores.values == 0) & (second == 0)).any(), rule

    def test_fewer_edges_than_asked_for_are_told(self):
        circuit = select(load("gpt2"), with_zeros(12), pairs(), n_edges=40)
        assert (circuit.selection.nominal, circuit.selection.asked, circuit.selection.n_scored) == (12, 40, 12)
        assert circuit.selection.warnings == (
            "40 edges were requested and 12 selected: no other selectable edge has a score other than 0.",
        )
        assert select(load("gpt2"), with_zeros(12), pairs(), n_edges=12).selection.warnings == ()

    def test_a_target_out_of_reach_is_told(self):
        circuit = select(load("gpt2"), with_zeros(3), pairs(), target=0.99)
        assert circuit.selection.nominal == 3
        (said,) = circuit.selection.warnings
        assert said.startswith("The target 0.99 is not reached: all 3 edges with a score other than 0 are selected")
        assert said in evaluate(load("gpt2"), circuit, pairs(), **FEW).warnings
        assert select(load("gpt2"), score_edges(load("gpt2"), pairs()), pairs(), target=0.8).selection.warnings == ()

    def test_scores_that_are_not_there(self):
        none = replace(with_zeros(3), values=np.zeros_like(with_zeros(3).values))
        for rule in ({}, {"n_edges": 5}, {"threshold": 0.0}):
            with pytest.raises(GraphError, match="no edge has a score other than 0"):
                select(load("gpt2"), none, pairs(), **rule)
        unknown = replace(with_zeros(3), values=np.where(with_zeros(3).values != 0, 1.0, np.nan))
        assert select(load("gpt2"), unknown, pairs(), n_edges=40).selection.nominal == 3


class TestFiles:
    @pytest.mark.parametrize("name", ["c.json", "c.pt"])
    def test_second_scores_and_selection_come_back(self, name, tmp_path):
        circuit = select(load("gpt2"), acdc(threshold=HIGH), pairs(), target=0.8)
        circuit.save(tmp_path / name)
        back = load_circuit(tmp_path / name, load("gpt2").spec)
        assert np.array_equal(back.second_scores, circuit.second_scores, equal_nan=True)
        assert back.selection == circuit.selection
        assert back.selection.metric == "logit_diff"
        on, without = Experiment(load("gpt2"), pairs()), replace(circuit, second_scores=None)
        assert curves(on, back) == curves(on, circuit) != curves(on, without)

    @pytest.mark.parametrize("selection", [3, {"rule": 1}, {"rule": "target"}, {"faithfulness_ci": "ab"}])
    def test_a_selection_that_is_none(self, selection, tmp_path):
        circuit = select(load("gpt2"), acdc(), pairs(), target=0.8)
        circuit.save(tmp_path / "c.json")
        content = json.loads((tmp_path / "c.json").read_text())
        if isinstance(selection, dict) and selection != {"rule": "target"}:
            selection = {**content["selection"], **selection}
        (tmp_path / "c.json").write_text(json.dumps({**content, "selection": selection}))
        with pytest.raises(FormatError, match="selection"):
            load_circuit(tmp_path / "c.json")


def judged(share: float, then: Selection | None = None, n: int = 40, spread: float = 0.02, **changes):
    """An evaluation with this faithfulness."""
    rng = np.random.default_rng(0)
    found = evaluate(load("gpt2"), select(load("gpt2"), acdc(), pairs(), n_edges=20), pairs(), **FEW)
    clean, noise = rng.normal(10, 0.3, n), spread * 10 * np.resize((1.0, -1.0), n)
    return replace(
        found, clean=clean, empty=np.zeros(n), corrupt=np.zeros(n), circuit=share * clean + noise, selection=then,
        n_seen=0, **changes,
    )  # fmt: skip


def then(faithfulness: float, half: float = 0.02, **changes) -> Selection:
    given = {
        "rule": "target", "asked": 0.9, "signed": False, "greedy": False, "nominal": 20, "achieved": 20, "n_nodes": 8,
        "metric": "logit_diff", "ablation": "corrupt", "n_pairs": 40,
    }  # fmt: skip
    interval = (faithfulness - half, faithfulness + half)
    return Selection(**{**given, "faithfulness": faithfulness, "interval": interval, **changes})


class TestWarnings:
    @pytest.mark.parametrize(
        ("found", "says"),
        [
            (lambda: judged(0.137), "does not explain the behaviour: its faithfulness is 0.1"),
            (lambda: judged(-0.015), "does not explain the behaviour"),
            (lambda: judged(3.0), "exceeds the whole model"),
            (lambda: judged(0.9, random=(0.1, 0.95)), "1 of 2 random circuits with as many edges reach"),
            (lambda: judged(0.465, then(0.907)), "the intervals do not overlap. Select on more pairs."),
            (lambda: judged(0.95, then(0.9, 0.005), spread=0.001), "the intervals do not overlap"),
            (lambda: judged(0.9, then(0.9, metric="kl")), "selected under metric kl and is judged under metric logit"),
            (lambda: judged(0.9, then(0.9, ablation="mean")), "selected under ablation mean and is judged under"),
            (lambda: replace(judged(0.9), n_seen=3), "3 of these 40 pairs have prompts that the circuit was selected"),
            (lambda: replace(judged(0.9), clean=np.tile((5.0, -5.0), 20)), "Faithfulness"),
        ],
    )
    def test_what_is_said(self, found, says):
        assert any(says in text for text in found().warnings), found().warnings

    @pytest.mark.parametrize("share", [0.52, 0.9, 1.0, 1.3])
    def test_nothing_is_said_of_a_circuit_that_explains_the_behaviour(self, share):
        assert judged(share, random=(0.1, 0.2)).warnings == ()
        assert judged(share, then(share, asked=0.5), random=(0.1,)).warnings == ()

    def test_an_interval_that_reaches_a_half_is_no_proof(self):
        assert judged(0.45, spread=0.5, n=8).interval[1] > 0.5
        assert judged(0.45, spread=0.5, n=8).warnings == ()

    def test_they_stand_in_the_record(self):
        found = judged(0.465, then(0.907))
        record = json.loads(json.dumps(found.to_record()))
        assert record["warnings"] == list(found.warnings)
        assert record["discovery"] == {
            "faithfulness": 0.907, "faithfulness_ci": [0.887, 0.927], "metric": "logit_diff", "ablation": "corrupt",
            "n_pairs": 40,
        }  # fmt: skip

    def test_pairs_that_the_circuit_was_selected_on(self):
        model, mixed = load("gpt2"), mixed_pairs()
        circuit = select(model, score_edges(model, pairs()), pairs(), target=0.8)
        assert evaluate(model, circuit, pairs(), **FEW).n_seen == len(pairs())
        assert evaluate(model, circuit, mixed, allow_weak_gap=True, **FEW).n_seen == 0
        circuit = select(model, score_edges(model, mixed), mixed[:1], target=0.5, allow_weak_gap=True)
        shared = {mixed[0].clean_ids, mixed[0].corrupt_ids}
        expected = sum(bool(shared & {pair.clean_ids, pair.corrupt_ids}) for pair in mixed)
        assert evaluate(model, circuit, mixed, allow_weak_gap=True, **FEW).n_seen == expected
