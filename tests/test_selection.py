"""Selecting a circuit: the size it stops at, what it gives back, and the check that there is a behaviour at all."""

from functools import cache

import numpy as np
import pytest
import torch
from architectures import load, mixed_pairs, pairs
from experiments import clean_and_empty

from circuitlab import Circuit, evaluate, score_edges, select
from circuitlab.data.batch import PairBatch
from circuitlab.discovery.behaviour import check_behaviour
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import ConfigError, GraphError, MetricError, TaskNotDoneError, UnknownNameError
from circuitlab.graphs.prune import prune
from circuitlab.graphs.ranking import mask_of
from circuitlab.graphs.selection import SelectionRule
from circuitlab.metrics import resolve
from circuitlab.patching.experiment import Experiment

METRIC = resolve("logit_diff")


@cache
def scored(name: str) -> EdgeScores:
    return score_edges(load(name), pairs(), "exact")


def candidates(name: str, signed: bool) -> np.ndarray:
    """Edges in order of their score, without those that score 0."""
    order = scored(name).ranked(signed)
    return order[[bool(scored(name).values[tuple(place)] != 0) for place in order]]


@cache
def faithfulness_by_size(name: str, signed: bool) -> np.ndarray:
    """Faithfulness of the pruned top-n circuit for every n there is; index 0 is the empty circuit."""
    scores, order = scored(name), candidates(name, signed)
    masks = [prune(mask_of(order[:n], scores.layout), scores.layout) for n in range(len(order) + 1)]
    ready = Experiment(load(name), pairs())
    clean, corrupt = clean_and_empty(ready, METRIC)
    values = ready.measure(np.stack(masks), [METRIC])["logit_diff"].mean(1)
    return (values - corrupt.mean()) / (clean.mean() - corrupt.mean())


def expected_size(found: np.ndarray, target: float) -> int:
    """Where the documented search ends: sizes grow by a fifth until one fits; then at most twelve before it are tried.

    It asks for far fewer sizes than there are, so it can jump over a smaller one that happens to fit.
    """

    def fits(n: int) -> bool:
        return bool(target <= found[n] <= 2 - target)

    size, miss = 1.0, 0
    while int(size) < len(found) - 1 and not fits(int(size)):
        miss, size = int(size), max(size * 1.2, size + 1)
    last = min(int(size), len(found) - 1)
    between = [int(n) for n in np.linspace(miss + 1, last, min(12, last - miss))]
    return next(n for n in [*between, last] if fits(n))


class TestSize:
    @pytest.mark.parametrize("signed", [False, True])
    @pytest.mark.parametrize("target", [0.3, 0.6, 0.8, 0.9, 0.99])
    @pytest.mark.parametrize("name", ["gpt2", "neox"])
    def test_against_every_size(self, name, target, signed):
        found = faithfulness_by_size(name, signed)
        size = expected_size(found, target)
        circuit = select(load(name), scored(name), pairs(), target, signed=signed)
        wanted = prune(mask_of(candidates(name, signed)[:size], circuit.layout), circuit.layout)
        assert (circuit.mask == wanted).all()
        smallest_of_all = int(np.argmax((found >= target) & (found <= 2 - target)))
        assert size >= smallest_of_all

    def test_the_target_is_reached_and_not_overshot(self):
        for target in (0.5, 0.8, 0.95):
            circuit = select(load("gpt2"), scored("gpt2"), pairs(), target)
            reached = evaluate(load("gpt2"), circuit, pairs(), n_random=0).faithfulness
            assert target <= reached <= 2 - target

    def test_everything_is_taken_if_nothing_less_will_do(self):
        scores = scored("gpt2")
        assert select(load("gpt2"), scores, pairs(), 1.0).n_edges <= scores.layout.n_edges
        worst_first = EdgeScores(
            spec=scores.spec,
            values=np.where(scores.values != 0, 1 / np.where(scores.values != 0, scores.values, 1), 1e9),
            standard_error=scores.standard_error,
            method="backwards",
            metric="logit_diff",
            n_examples=4,
        )
        # The twin: with edges ranked the wrong way round, the same target takes many more of them.
        backwards = select(load("gpt2"), worst_first, pairs(), 0.9)
        assert backwards.n_edges > 1.3 * select(load("gpt2"), scores, pairs(), 0.9).n_edges

    def test_prompts_of_different_length(self):
        mixed, model = mixed_pairs(), load("llama")
        scores = score_edges(model, mixed)
        circuit = select(model, scores, mixed, 0.8)
        assert 0.8 <= evaluate(model, circuit, mixed, n_random=0).faithfulness <= 1.2

    def test_the_metric_is_not_the_scores_own_unless_it_is_given(self):
        model, by_probability = load("gpt2"), score_edges(load("gpt2"), pairs(), metric="prob_diff")
        own = select(model, by_probability, pairs(), 0.9)
        assert own.selection.metric == "logit_diff"
        assert 0.9 <= evaluate(model, own, pairs(), n_random=0).faithfulness <= 1.1
        other = select(model, by_probability, pairs(), 0.9, metric="prob_diff")
        assert 0.9 <= evaluate(model, other, pairs(), metric="prob_diff", n_random=0).faithfulness <= 1.1
        assert (own.mask != other.mask).any()


class TestCircuit:
    def test_it_is_pruned_and_carries_the_scores(self):
        circuit = select(load("gpt2"), scored("gpt2"), pairs(), 0.8)
        assert isinstance(circuit, Circuit)
        assert (circuit.mask == circuit.pruned().mask).all()
        assert (circuit.scores == scored("gpt2").values).all()
        assert circuit.spec == load("gpt2").spec

    def test_node_effects_come_along(self):
        scores = score_edges(load("gpt2"), pairs(), "sweep")
        assert select(load("gpt2"), scores, pairs(), n_edges=20).node_effects == scores.node_effects

    @pytest.mark.parametrize("n_edges", [1, 5, 30])
    @pytest.mark.parametrize("signed", [False, True])
    def test_a_number_of_edges_instead(self, n_edges, signed):
        circuit = select(load("gpt2"), scored("gpt2"), pairs(), n_edges=n_edges, signed=signed)
        assert (circuit.mask == prune(scored("gpt2").top(n_edges, signed), circuit.layout)).all()
        assert circuit.n_edges <= n_edges

    def test_all_of_them_but_those_that_score_0(self):
        scores = scored("gpt2")
        circuit = select(load("gpt2"), scores, pairs(), n_edges=scores.layout.n_edges)
        assert circuit.n_edges == circuit.selection.nominal == (scores.values != 0).sum() < scores.layout.n_edges

    def test_the_scores_stay_as_they_are(self):
        scores = score_edges(load("gpt2"), pairs())
        before = scores.values.copy()
        circuit = select(load("gpt2"), scores, pairs(), 0.8)
        assert (scores.values == before).all()
        assert scores.values.flags.writeable
        assert not np.shares_memory(circuit.scores, scores.values)


class TestMistakes:
    @pytest.mark.parametrize("n_edges", [0, -3, 10**6])
    def test_a_number_of_edges_that_there_is_not(self, n_edges):
        total = scored("gpt2").layout.n_edges
        says = f"the graph has {total} edges, so 1 to that many" if n_edges > 0 else "a whole number of at least 1"
        with pytest.raises(ConfigError, match=f"n_edges is {n_edges}; .*{says}"):
            select(load("gpt2"), scored("gpt2"), pairs(), n_edges=n_edges)

    @pytest.mark.parametrize("target", [0.0, -0.5, 1.5, float("nan")])
    def test_a_target_that_cannot_be_reached(self, target):
        with pytest.raises(ConfigError, match=f"target is {target}; it must be above 0 and at most"):
            select(load("gpt2"), scored("gpt2"), pairs(), target)

    def test_another_models_scores(self):
        with pytest.raises(GraphError, match=r"the scores are of model .*gpt2.*, not of .*neox"):
            select(load("neox"), scored("gpt2"), pairs())

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_prompts_without_a_difference(self):
        batch = pairs()
        same = PairBatch.from_tokens(batch.clean, batch.clean, batch.answers, batch.distractors)
        with pytest.raises(MetricError, match="nothing to explain"):
            select(load("gpt2"), scored("gpt2"), same)


class TestBehaviour:
    """Asked before anything else: does the model do the task?"""

    def measured(self, min_accuracy: float):
        mixed = mixed_pairs()
        return check_behaviour(Experiment(load("gpt2"), mixed, METRIC), min_accuracy)

    def by_hand(self) -> np.ndarray:
        """Answer minus distractor at the end of each clean and corrupted prompt."""
        bridge, margins = load("gpt2").bridge, []
        for pair in mixed_pairs():
            ends = [bridge(torch.tensor([ids]))[0, -1] for ids in (pair.clean_ids, pair.corrupt_ids)]
            margins.append([float(end[pair.answer_ids[0]] - end[pair.distractor_ids[0]]) for end in ends])
        return np.array(margins)

    def test_what_it_finds(self):
        found, margins = self.measured(min_accuracy=0.0), self.by_hand()
        assert found.prefers == pytest.approx((margins[:, 0] > 0).mean())
        assert found.turns == pytest.approx((margins[:, 1] <= 0).mean())
        assert found.clean == pytest.approx(margins[:, 0], abs=1e-6)
        assert found.corrupt == pytest.approx(margins[:, 1], abs=1e-6)

    def test_a_model_that_does_not_do_it_is_refused_with_the_five_worst_prompts(self):
        margins = self.by_hand()[:, 0]
        with pytest.raises(TaskNotDoneError) as caught:
            self.measured(min_accuracy=1.01)
        message = str(caught.value)
        share = (margins > 0).mean()
        n_right = (margins > 0).sum()
        assert f"logit_diff is above 0 on {n_right} of 6 clean prompts ({100 * share:.3g}%)" in message
        assert "min_accuracy asks for 101%" in message
        worst = np.argsort(margins)[:5]
        quoted = [mixed_pairs()[int(i)].clean for i in worst]
        assert [message.index(repr(text)) for text in quoted] == sorted(message.index(repr(text)) for text in quoted)
        for text, place in zip(quoted, worst, strict=True):
            assert f"{text!r} wants ' and' over ' then': {margins[place]:+.3g} logits" in message
        assert repr(mixed_pairs()[int(np.argmax(margins))].clean) not in message
        assert "--min-accuracy" in message

    def test_a_metric_that_does_not_speak_for_the_clean_prompts_is_refused_too(self):
        mixed = mixed_pairs()
        ready = Experiment(load("gpt2"), mixed)
        clean, corrupt = clean_and_empty(ready, METRIC)
        sign = np.sign(corrupt.mean() - clean.mean())  # turns the metric against the clean prompts
        backwards = resolve(lambda logits, batch: float(sign) * METRIC(logits, batch))
        with pytest.raises(TaskNotDoneError):
            check_behaviour(ready.measured_by(backwards), min_accuracy=1e-9)
        assert check_behaviour(ready.measured_by(backwards), min_accuracy=0.0)


def test_a_setting_that_a_selection_does_not_have_is_named():
    with pytest.raises(UnknownNameError, match="unknown setting 'n_edge' of selection. Did you mean 'n_edges'"):
        SelectionRule.of({"n_edge": 4})
