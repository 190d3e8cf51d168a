"""ACDC: against a search written once more, one question and one whole circuit at a time; its limits and records."""

import numpy as np
import pytest
from architectures import load, mixed_pairs, pairs
from commands import HERE, run_python
from experiments import clean_and_empty

from circuitlab import score_edges, select
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.acdc import sweep_acdc
from circuitlab.discovery.acdc_search import Costs, search
from circuitlab.discovery.acdc_walk import steps_of
from circuitlab.errors import ConfigError, MetricError, UnknownNameError
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.metrics import resolve
from circuitlab.parts import Kind, Layout
from circuitlab.patching.experiment import Experiment

NAMES = ("gpt2", "llama", "neox", "gemma2", "olmo2", "attn-only")


def one_by_one(name: str, data: PairBatch | PairSet, metric: str, threshold: float, ablation: str = "corrupt"):
    """The algorithm as published, on circuits that are run whole: kept edges, and every edge's answer."""
    model, judged_by = load(name), resolve(metric)
    layout, prepared = Layout.of(model.spec), Experiment(load(name), data, ablation=ablation)
    sign = -1 if judged_by.higher_is_better else 1
    mask, answers = real_edges(layout).copy(), {}

    def cost() -> float:
        return sign * prepared.measure(mask[None], [judged_by])[metric].mean()

    def drop(node: int) -> None:
        columns = [c for c, owner in enumerate(layout.owners) if owner == node]
        if node < len(layout.writers) and not mask[:, columns].any():
            behind = [layout.owners[c] for c in np.flatnonzero(mask[node])]
            mask[node] = False
            for other in behind:
                drop(other)

    now = cost()
    for node in range(len(layout.writers), 0, -1):
        # Of a head v before k before q, each from its last writer to its first.
        columns = [c for c, owner in enumerate(layout.owners) if owner == node][::-1]
        if node < len(layout.writers) and not mask[node].any():
            mask[:, columns] = False
            now = cost()
            continue
        for column in columns:
            for row in range(layout.visible[column] - 1, -1, -1):
                mask[row, column] = False
                after = cost()
                answers[row, column] = after - now
                if after - now < threshold:
                    now = after
                else:
                    mask[row, column] = True
        drop(node)
        now = cost()
    return mask, answers, now


class TestTheSameAnswers:
    @pytest.mark.parametrize(
        ("name", "metric", "threshold"),
        [
            ("gpt2", "kl", 0.01),
            ("gpt2", "logit_diff", 0.4),
            ("llama", "kl", 0.05),
            ("neox", "logit_diff", 0.1),
            ("gemma2", "kl", 0.02),
            ("attn-only", "logit_diff", 0.05),
        ],
    )
    def test_speculation_gives_the_edges_of_the_search_one_by_one(self, name, metric, threshold):
        objective = "kl" if metric == "kl" else "metric"
        mask, answers, cost = one_by_one(name, pairs(), metric, threshold)
        scores = score_edges(load(name), pairs(), "acdc", threshold=threshold, objective=objective)
        assert (scores.chosen == mask).all()
        assert 0 < mask.sum() < len(answers)
        assert scores.checks["cost"] == pytest.approx(cost, abs=1e-5)
        assert scores.checks["questions"] == len(answers)
        assert scores.checks["batches"] < 0.7 * len(answers), scores.checks
        for edge, effect in answers.items():
            if mask[edge] or effect < threshold:
                assert scores.values[edge] == pytest.approx(effect, abs=2e-5)

    def test_wrong_guesses_cost_runs_and_change_nothing(self):
        """A twin of the guesses: turned around they are nearly all wrong, and the answers are the same."""
        model = load("gpt2")
        layout, costs = Layout.of(model.spec), _costs("gpt2", "logit_diff")
        right = search(costs, layout, 0.05, estimates=np.where(search(costs, layout, 0.05).mask, 1.0, 0.0))
        wrong = search(costs, layout, 0.05, estimates=np.where(right.mask, 0.0, 1.0))
        fixed = [search(costs, layout, 0.05, speculate=size) for size in (1, 5, 1000)]
        assert fixed[0].batches == fixed[0].circuits == len(fixed[0].answers)
        assert all((other.mask == right.mask).all() for other in (wrong, *fixed))
        assert all([a.edge for a in other.answers] == [a.edge for a in right.answers] for other in (wrong, *fixed))
        assert wrong.circuits > 1.3 * right.circuits

    def test_keeping_answers_behind_a_wrong_guess_would_show(self):
        """A search that took whole batches at their word ends elsewhere, so the tests above can fail."""
        layout, costs = Layout.of(load("gpt2").spec), _costs("gpt2", "logit_diff")
        found = search(costs, layout, 0.05)
        naive, current = real_edges(layout).copy(), costs.whole
        for place in in_order_of_tests(layout):
            naive[place] = False
            (cost,) = costs.of([naive])
            naive[place] = bool((cost - current).mean() >= 0.05)
            current = cost  # the wrong step: goes on from the cut circuit although the edge was kept
        assert (naive != found.mask).any()

    def test_zeros_in_place_of_the_corrupted_run(self):
        mask, answers, cost = one_by_one("gpt2", pairs(), "kl", 0.05, "zero")
        scores = score_edges(load("gpt2"), pairs(), "acdc", threshold=0.05, ablation="zero")
        assert (scores.chosen == mask).all()
        assert scores.checks["questions"] == len(answers)
        assert scores.checks["cost"] == pytest.approx(cost, abs=1e-9)
        other = score_edges(load("gpt2"), pairs(), "acdc", threshold=0.05)
        assert (other.chosen != mask).any()

    def test_the_same_in_any_process(self):
        """Sets and dicts of strings come in another order with every PYTHONHASHSEED."""
        code = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from architectures import load, pairs\n"
            "from circuitlab import score_edges\n"
            "print(score_edges(load('gpt2'), pairs(), 'acdc', threshold=0.05).to_frame().to_csv())"
        )
        done = run_python(code, HERE)
        here = score_edges(load("gpt2"), pairs(), "acdc", threshold=0.05).to_frame().to_csv()
        assert len(here.splitlines()) > 100
        assert (done.code, done.out) == (0, here + "\n"), done.err


class TestLimits:
    def test_a_threshold_below_every_effect_keeps_all_and_one_above_keeps_none(self):
        model = load("gpt2")
        layout = Layout.of(model.spec)
        everything = score_edges(model, pairs(), "acdc", threshold=-1e6)
        assert (everything.chosen == real_edges(layout)).all()
        assert everything.checks["cost"] == pytest.approx(0, abs=1e-9)
        nothing = score_edges(model, pairs(), "acdc", threshold=1e6)
        assert not nothing.chosen.any()
        # Only the logits were asked about: nothing listens to any other node.
        assert nothing.checks["questions"] == layout.visible[-1]

    def test_all_batches_count(self):
        """Prompts of three lengths: every one moves the answer, not those of the first length alone."""
        model, mixed = load("gpt2"), mixed_pairs()
        first = PairSet(tuple(pair for pair in mixed if len(pair) == len(mixed[0])))
        together, alone = (score_edges(model, data, "acdc", threshold=0.001) for data in (mixed, first))
        assert (together.chosen != alone.chosen).any()
        mask, _, _ = one_by_one("gpt2", mixed, "kl", 0.001)
        assert (together.chosen == mask).all()
        assert together.n_examples == len(mixed)

    def test_a_budget_changes_batches_and_no_answer(self):
        model = load("gpt2")
        small, large = (score_edges(model, pairs(), "acdc", threshold=0.05, budget=b) for b in (250_000, None))
        assert (small.chosen == large.chosen).all()

    def test_n_edges(self):
        model = load("gpt2")
        scores = score_edges(model, pairs(), "acdc", n_edges=20)
        assert 15 <= scores.chosen.sum() <= 20
        again = score_edges(model, pairs(), "acdc", threshold=scores.checks["threshold"])
        assert (again.chosen == scores.chosen).all()


class TestResult:
    def test_the_circuit_connects_and_costs_what_was_recorded(self):
        model = load("gpt2")
        scores = score_edges(model, pairs(), "acdc", threshold=0.05)
        layout, prepared = Layout.of(model.spec), Experiment(model, pairs())
        assert (prune(scores.chosen, layout) == scores.chosen).all()
        cost = prepared.measure(scores.chosen[None], [resolve("kl")])["kl"].mean()
        assert scores.checks["cost"] == pytest.approx(cost, abs=1e-9)
        # A random circuit of as many edges costs more.
        rng, places = np.random.default_rng(0), np.argwhere(real_edges(layout))
        other = np.zeros_like(scores.chosen)
        other[tuple(rng.permutation(places)[: scores.chosen.sum()].T)] = True
        assert prepared.measure(other[None], [resolve("kl")])["kl"].mean() > 1.5 * cost

    def test_scores_rank_kept_edges_first(self):
        scores = score_edges(load("gpt2"), pairs(), "acdc", threshold=0.05)
        kept, rest = scores.values[scores.chosen], scores.values[~scores.chosen]
        assert kept.min() >= 0.05 > rest.max()
        assert (scores.standard_error[scores.chosen] > 0).all()
        n = int(scores.chosen.sum())
        assert (scores.top(n, signed=True) == scores.chosen).all()

    def test_select_takes_the_circuit_that_was_chosen(self):
        model = load("gpt2")
        scores = score_edges(model, pairs(), "acdc", threshold=0.05)
        assert (select(model, scores, pairs()).mask == scores.chosen).all()
        assert select(model, scores, pairs(), n_edges=3).mask.sum() <= 3

    def test_the_sign(self):
        """With answers and distractors exchanged the metric's sign turns, and with it what is worth keeping."""
        model, batch = load("gpt2"), pairs()
        turned = PairBatch.from_tokens(batch.clean, batch.corrupt, batch.distractors, batch.answers, batch.answer_at)
        found = [score_edges(model, b, "acdc", threshold=0.05, objective="metric") for b in (batch, turned)]
        layout, prepared = Layout.of(model.spec), Experiment(model, batch)
        clean, corrupt = (values.mean() for values in clean_and_empty(prepared, resolve("logit_diff")))
        kept = [prepared.measure(s.chosen[None], [resolve("logit_diff")])["logit_diff"] for s in found]
        assert abs(clean - corrupt) > 0.1
        assert kept[0].mean() > kept[1].mean() + 0.1
        assert (found[0].chosen != found[1].chosen).any()
        assert layout.n_edges == real_edges(layout).sum()

    def test_a_sweep_gives_each_edge_the_largest_threshold_it_survives(self):
        model, thresholds = load("gpt2"), [0.05, 0.002, 0.01]
        scores = sweep_acdc(Experiment(model, pairs(), resolve("kl")), thresholds)
        expected = np.zeros_like(scores.values)
        for threshold in sorted(thresholds):
            expected[score_edges(model, pairs(), "acdc", threshold=threshold).chosen] = threshold
        assert (scores.values == expected).all()
        assert scores.chosen is None
        assert len(np.unique(scores.values)) == 4
        spread = score_edges(model, pairs(), "acdc", sweep=3)
        assert 2 <= len(np.unique(spread.values)) <= 4

    def test_the_order_is_from_the_logits_backwards(self):
        layout = Layout.of(load("gpt2").spec)
        order = in_order_of_tests(layout)
        assert len(set(order)) == len(order) == layout.n_edges
        owners = [layout.owners[column] for _, column in order]
        assert owners == sorted(owners, reverse=True)
        kinds = [layout.readers[column].node.kind for _, column in order]
        assert kinds[0] is Kind.LOGITS
        slots = [layout.readers[c].slot.value for r, c in order if r == 0 and layout.readers[c].node.name == "a1.h3"]
        assert slots == ["v", "k", "q"]

    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"threshold": 0.1, "n_edges": 3}, ConfigError, "one of threshold, n_edges and sweep"),
            ({"n_edges": 10_000}, ConfigError, "the graph has"),
            ({"sweep": 1}, ConfigError, "from 2 to 1000"),
            ({"speculate": 0}, ConfigError, "from 1 to 10000"),
            ({"objective": "loss"}, UnknownNameError, "Allowed: kl, metric"),
        ],
    )
    def test_what_cannot_be_is_refused(self, options, error, text):
        with pytest.raises(error, match=text):
            score_edges(load("gpt2"), pairs(), "acdc", **options)

    def test_no_threshold_follows_from_no_gap(self):
        batch = pairs()
        same = PairBatch.from_tokens(batch.clean, batch.clean, batch.answers, batch.distractors, batch.answer_at)
        with pytest.raises(MetricError, match="give threshold="):
            score_edges(load("gpt2"), same, "acdc")
        with pytest.raises(ConfigError, match="all of them positive"):
            sweep_acdc(Experiment(load("gpt2"), batch, resolve("kl")), [0.0, 0.1])


def in_order_of_tests(layout: Layout) -> list[tuple[int, int]]:
    """The edges in the order in which a search that cuts nothing untested asks for them."""
    return [step.edge for step in steps_of(layout) if step.edge is not None]


def _costs(name: str, metric: str) -> Costs:
    return Costs(Experiment(load(name), pairs(), resolve(metric)), silent_cuts=False)
