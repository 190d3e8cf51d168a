"""Stability: resampled scores against scores of the resample, Jaccard by sets, and prompts that do not matter."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from architectures import load, mixed_pairs, pairs

from circuitlab import ConfigError, PairSet, UnknownNameError, score_edges, select, stability
from circuitlab.discovery import stability as module
from circuitlab.discovery.resampling import by_example, resampled
from circuitlab.discovery.scoring import score
from circuitlab.discovery.stability import Stability
from circuitlab.graphs.ranking import edge_places
from circuitlab.patching.experiment import Experiment
from circuitlab.viz import figure_bytes

BATCH = pairs(n=5)


@pytest.fixture(scope="module")
def found() -> Stability:
    return stability(load("gpt2"), BATCH, "eap-ig", n_resamples=8, target=0.7, steps=2)


def resample(number: int, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, 20])
    return [np.sort(rng.integers(0, n, n)) for _ in range(number + 1)][number]


def taken(index: np.ndarray):
    return replace(BATCH.take(torch.tensor(index)), index=torch.arange(len(index)))


class TestResamples:
    @pytest.mark.parametrize("method", ["eap-ig", "exact"])
    def test_scoring_a_resample_is_resampling_scores(self, method):
        """The short way against the long one: every resample scored by the model."""
        options = {"steps": 2} if method == "eap-ig" else {}
        scores = score_edges(load("gpt2"), BATCH, method, **options)
        each = by_example(Experiment(load("gpt2"), BATCH), lambda p: score_edges(load("gpt2"), p, method, **options))
        drawn = resampled(BATCH, scores, each, lambda p: pytest.fail("the model was run"), 3, seed=0)
        for number, (given, short) in enumerate(drawn):
            long = score_edges(load("gpt2"), taken(resample(number, 5)), method, **options)
            assert torch.equal(given.clean, BATCH.clean[torch.tensor(resample(number, 5))])
            assert short.values == pytest.approx(long.values, abs=1e-9)
            assert short.standard_error == pytest.approx(long.standard_error, abs=1e-9)

    def test_each_repetition_is_a_whole_discovery(self, found):
        for number in (0, 5):
            again = taken(resample(number, 5))
            scores = score_edges(load("gpt2"), again, "eap-ig", steps=2)
            places = edge_places(scores.layout)
            mask = select(load("gpt2"), scores, again, 0.7).mask
            assert np.array_equal(found.chosen[number], mask[places[:, 0], places[:, 1]])
        assert not found.rescored
        assert np.array_equal(found.circuit.mask, select(
            load("gpt2"), score_edges(load("gpt2"), BATCH, steps=2), BATCH, 0.7).mask)  # fmt: skip

    def test_a_score_that_is_no_mean_is_scored_anew(self, monkeypatch):
        """The median over examples, for one: found out, not assumed."""
        calls = []

        def by_square(experiment, method, **options):
            calls.append(experiment.n_examples)
            scores = score(experiment, "eap")
            return replace(scores, values=scores.values * np.abs(scores.values))

        monkeypatch.setattr(module, "score", by_square)
        found = stability(load("gpt2"), BATCH, "eap", n_resamples=3, n_edges=20)
        assert found.rescored
        assert calls == [5, 1, 1, 2, 5, 5, 5]

    def test_prompts_of_different_length(self):
        found = stability(load("gpt2"), mixed_pairs(), "eap", n_resamples=3, n_edges=20)
        assert isinstance(mixed_pairs(), PairSet)
        assert (found.sizes <= 20).all()
        assert not found.rescored

    def test_the_seed_decides(self, found):
        again, other = (
            stability(load("gpt2"), BATCH, n_resamples=8, target=0.7, steps=2, seed=seed) for seed in (0, 1)
        )
        assert np.array_equal(again.chosen, found.chosen)
        assert not np.array_equal(other.chosen, found.chosen)

    def test_one_prompt_many_times_is_stable(self):
        """The twin: resamples of equal prompts are all the same."""
        same = taken(np.zeros(4, dtype=int))
        found = stability(load("gpt2"), same, "eap", n_resamples=4, n_edges=30)
        assert (found.jaccard, found.jaccard_cv, found.jaccard_to_circuit) == pytest.approx((1, 0, 1), abs=1e-12)
        assert set(np.unique(found.frequency)) == {0, 1}


class TestNumbers:
    def test_jaccard_by_sets(self, found):
        kept = [set(np.flatnonzero(row)) for row in found.chosen]
        by_hand = [len(a & b) / len(a | b) for a, b in combinations(kept, 2)]
        assert found.pairwise == pytest.approx(by_hand)
        assert found.jaccard == pytest.approx(np.mean(by_hand))
        assert found.jaccard_cv == pytest.approx(np.std(by_hand) / np.mean(by_hand))
        assert 0 < found.jaccard < 1
        places = edge_places(found.circuit.layout)
        own = set(np.flatnonzero(found.circuit.mask[places[:, 0], places[:, 1]]))
        assert found.jaccard_to_circuit == pytest.approx(np.mean([len(k & own) / len(k | own) for k in kept]))

    def test_frequencies(self, found):
        frame = found.to_frame()
        places = edge_places(found.circuit.layout)
        names = [edge.name for edge in found.circuit.layout.edges()]
        by_hand = dict(zip(names, found.chosen.mean(0), strict=True))
        assert all(by_hand[edge] == share for edge, share in zip(frame["edge"], frame["frequency"], strict=True))
        assert found.frequency[places[:, 0], places[:, 1]] == pytest.approx(found.chosen.mean(0))
        assert frame["frequency"].is_monotonic_decreasing
        assert frame["in_circuit"].sum() == found.circuit.n_edges
        assert found.core(0.5).n_edges <= (found.frequency >= 0.5).sum()

    def test_the_record(self, found):
        record = json.loads(json.dumps(found.to_record()))
        assert record["n"] == 8
        assert record["jaccard_mean"] == found.jaccard
        assert record["n_edges"]["circuit"] == found.circuit.n_edges
        assert record["n_edges_always"] == int((found.chosen.mean(0) == 1).sum())

    def test_empty_circuits_are_alike(self, found):
        nothing = replace(found, chosen=np.zeros_like(found.chosen))
        assert nothing.jaccard == 1

    def test_the_drawing_shows_how_often(self, found):
        svg = figure_bytes(found.plot(title="t"), "svg").decode()
        assert all(
            f'id="{edge.name.replace("<", "&lt;").replace(">", "&gt;")}"' in svg for edge, _ in found.circuit.edges()
        )
        for text in ("selected in resamples", "in 50 to 80 %", "stroke-dasharray"):
            assert text in svg


class TestTask:
    def test_over_seeds_every_repetition_has_new_prompts(self, bundled, monkeypatch):
        seen = []

        def spy(experiment, *args, **options):
            seen.append(experiment.pairs.fingerprint)
            return score(experiment, *args, **options)

        monkeypatch.setattr(module, "score", spy)
        found = stability(bundled, "gendered-pronouns", "eap", n_resamples=3, over="seeds", n=6, n_edges=20)
        assert found.over == "seeds"
        assert len(set(seen)) == 4
        from circuitlab import load_task

        task = load_task("gendered-pronouns")
        assert seen == [task.pairs(bundled, n=6, seed=s).discovery.fingerprint for s in range(4)]

    def test_mistakes(self):
        with pytest.raises(ConfigError, match="n_resamples is 1; at least 2"):
            stability(load("gpt2"), BATCH, n_resamples=1)
        with pytest.raises(ConfigError, match="give a task instead of pairs"):
            stability(load("gpt2"), BATCH, over="seeds")
        with pytest.raises(UnknownNameError, match="unknown way to other prompts 'jackknife'"):
            stability(load("gpt2"), BATCH, over="jackknife")
