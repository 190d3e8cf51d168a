"""Edge pruning and UGS: their gates by hand, what they find, and that they stop and resume without a trace."""

import numpy as np
import pytest
import torch
from architectures import load, mixed_pairs, pairs

from circuitlab import discover, score_edges, select
from circuitlab.data.batch import PairBatch
from circuitlab.discovery import mask_training
from circuitlab.discovery.gates import hard_concrete, open_gates, settled, uniform_gates
from circuitlab.discovery.mask_training import MaskLoss
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import ConfigError, RunError
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.metrics import resolve
from circuitlab.outputs.records import read_arrays
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment

METHODS = ("edge-pruning", "ugs")
# A KL in which an edge counts: the random models are sharper than trained ones.
OPTIONS = {"edge-pruning": {"sparsity": 0.8}, "ugs": {"penalty": 0.02}}


class TestGates:
    def test_hard_concrete_by_hand(self):
        u = torch.tensor([0.5, 0.5, 0.5, 0.001, 0.999], dtype=torch.float64)
        alpha = torch.tensor([0.0, 3.0, -3.0, 0.0, 0.0], dtype=torch.float64)
        # sigmoid(0) * 1.2 - 0.1; sigmoid(4.5) * 1.2 - 0.1 = 1.087, clamped; and its mirror.
        assert hard_concrete(alpha, u).tolist() == pytest.approx([0.5, 1.0, 0.0, 0.0, 1.0])
        middle = hard_concrete(torch.tensor([0.4], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64))
        noisy = (np.log(0.3 / 0.7) + 0.4) / (2 / 3)
        assert float(middle) == pytest.approx(1.2 / (1 + np.exp(-noisy)) - 0.1)
        assert settled(torch.tensor([0.0, 9.0, -9.0])).tolist() == pytest.approx([0.5, 1.0, 0.0])

    def test_as_many_gates_are_open_as_they_add_up_to(self):
        gates = torch.tensor([1.0, 0.9, 0.6, 0.5, 0.0, 0.1])  # 3.1
        assert open_gates(gates).tolist() == [True, True, True, False, False, False]
        assert open_gates(torch.ones(4)).all()
        assert not open_gates(torch.zeros(4)).any()
        # Two gates of equal width stand for one edge's worth: neither goes in alone.
        assert not open_gates(torch.tensor([0.5, 0.5, 0.0])).any()

    def test_uniform_gates_are_what_the_paper_says(self):
        """Uniform with probability w, else a coin; over many draws the mean is theta."""
        theta = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
        u = torch.linspace(0, 1, 200_001, dtype=torch.float64)[1:-1, None].expand(-1, 3)
        z, between = uniform_gates(theta, u)
        assert between.double().mean(0).tolist() == pytest.approx((theta * (1 - theta)).tolist(), abs=1e-3)
        assert z.mean(0).tolist() == pytest.approx(theta.tolist(), abs=1e-3)
        inside = z[:, 0][between[:, 0]]
        assert float(inside.mean()) == pytest.approx(0.5, abs=1e-3)
        assert float(inside.var()) == pytest.approx(1 / 12, abs=1e-3)


class TestLoss:
    def test_its_slope_falls_along_what_edges_are_worth(self):
        """At half-open gates: opening the edges with the steepest fall lowers the KL, and the others raise it."""
        loss = MaskLoss(Experiment(load("gpt2"), pairs(), seed=0, budget=None), batch_size=4)
        circuit, rows = loss.draw(loss.generator(0))
        gates = torch.full((len(rows), int(loss.edges.sum())), 0.5, dtype=torch.float64)
        kl, slope = loss.gradients(circuit, rows, gates)
        better, _ = loss.gradients(circuit, rows, gates - 0.01 * slope / slope.abs().max())
        worse, _ = loss.gradients(circuit, rows, gates + 0.01 * slope / slope.abs().max())
        assert better.mean() < kl.mean() < worse.mean()
        full, _ = loss.gradients(circuit, rows, torch.ones_like(gates))
        assert full.abs().max() < 1e-10

    def test_a_budget_splits_a_step_and_changes_nothing_else(self):
        found = []
        for budget in (None, 700_000):
            loss = MaskLoss(Experiment(load("gpt2"), pairs(), seed=0, budget=budget), batch_size=4)
            circuit, rows = loss.draw(loss.generator(0))
            found.append(loss.gradients(circuit, rows, loss.noise(len(rows), loss.generator(0)).double()))
            found[-1] = (*found[-1], loss)
        assert found[1][2]._at_once < 4 <= found[0][2]._at_once
        torch.testing.assert_close(found[0][:2], found[1][:2])

    def test_every_length_is_drawn_as_often_as_it_has_examples(self):
        loss = MaskLoss(Experiment(load("gpt2"), mixed_pairs(), seed=0, budget=None), batch_size=4)
        seen = [loss.draw(loss.generator(step))[0].baseline.batch.n_tokens for step in range(60)]
        assert len(set(seen)) == 3
        assert loss.experiment.n_examples == 6

    def test_what_is_drawn_depends_on_seed_and_step_alone(self):
        loss = MaskLoss(Experiment(load("gpt2"), pairs(), seed=3, budget=None), batch_size=2)
        torch.manual_seed(1)
        first = loss.noise(2, loss.generator(5))
        torch.manual_seed(2)
        assert (loss.noise(2, loss.generator(5)) == first).all()
        assert (loss.noise(2, loss.generator(6)) != first).all()


@pytest.mark.parametrize("method", METHODS)
class TestLearning:
    def test_it_finds_edges_that_matter(self, method):
        model = load("gpt2")
        scores = score_edges(model, pairs(), method, updates=150, **OPTIONS[method])
        layout, prepared = Layout.of(model.spec), Experiment(model, pairs())
        n = 30
        rng, places = np.random.default_rng(0), np.argwhere(real_edges(layout))
        masks = [prune(scores.top(n), layout), np.zeros_like(real_edges(layout))]
        masks[1][tuple(rng.permutation(places)[:n].T)] = True
        shuffled = np.zeros_like(scores.values)
        shuffled[real_edges(layout)] = rng.permutation(scores.values[real_edges(layout)])
        masks.append(shuffled >= np.sort(shuffled[real_edges(layout)])[-n])
        own, random, mixed = prepared.measure(np.stack(masks), [resolve("kl")])["kl"].mean(1)
        assert own < 0.5 * min(random, mixed)
        assert ((scores.values >= 0) & (scores.values <= 1)).all()
        assert (scores.values[~real_edges(layout)] == 0).all()
        assert scores.n_examples == 4

    def test_the_same_seed_gives_the_same_bytes_and_another_does_not(self, method):
        model = load("gpt2")
        first, again, other = (score_edges(model, pairs(), method, updates=6, seed=seed) for seed in (1, 1, 2))
        assert first.values.tobytes() == again.values.tobytes()
        assert first.training == again.training
        assert (first.values != other.values).any()

    def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(self, method, tmp_path, monkeypatch):
        monkeypatch.setattr(mask_training, "KEEP_EVERY", 4)
        model, path = load("gpt2"), tmp_path / "new" / "state.safetensors"
        whole = score_edges(model, pairs(), method, updates=12)

        def stop(step: str, done: int, total: int) -> None:
            if done == 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            score_edges(model, pairs(), method, updates=12, checkpoint=str(path), progress=stop)
        assert read_arrays(path, "file")[0]["record"]["numbers"] == {"step": 4}
        steps = []
        resumed = score_edges(
            model, pairs(), method, updates=12, checkpoint=str(path), progress=lambda *at: steps.append(at[1])
        )
        assert steps == list(range(5, 13))
        assert resumed.values.tobytes() == whole.values.tobytes()
        assert resumed.training == whole.training
        assert [p.name for p in path.parent.iterdir()] == ["state.safetensors"]

    def test_a_file_of_another_training_is_refused(self, method, tmp_path):
        model, path = load("gpt2"), str(tmp_path / "state.safetensors")
        score_edges(model, pairs(), method, updates=2, checkpoint=path)
        before = (tmp_path / "state.safetensors").read_bytes()
        with pytest.raises(RunError, match="keeps another training"):
            score_edges(model, pairs(), method, updates=2, seed=1, checkpoint=path)
        with pytest.raises(RunError, match="keeps another training"):
            score_edges(model, pairs(seed=1), method, updates=2, checkpoint=path)
        assert (tmp_path / "state.safetensors").read_bytes() == before
        (tmp_path / "state.safetensors").write_bytes(b"no such thing")
        with pytest.raises(RunError, match="cannot be read"):
            score_edges(model, pairs(), method, updates=2, checkpoint=path)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"updates": 0}, "from 1 to 1000000: steps"),
            ({"rate": 0.0}, "above 0"),
            ({"batch_size": 0}, "from 1 to 100000: examples"),
        ],
    )
    def test_what_cannot_be_is_refused(self, method, options, text):
        with pytest.raises(ConfigError, match=text):
            score_edges(load("gpt2"), pairs(), method, **options)

    def test_no_weight_is_touched(self, method):
        model = load("gpt2")
        before = model.bridge.original_model.state_dict()
        before = {name: weight.clone() for name, weight in before.items()}
        score_edges(model, pairs(), method, updates=2)
        assert all((weight == before[name]).all() for name, weight in model.bridge.original_model.state_dict().items())
        assert all(weight.grad is None for weight in model.bridge.parameters())


def test_edge_pruning_reaches_its_sparsity_and_brings_a_circuit():
    model = load("gpt2")
    scores = score_edges(model, pairs(), "edge-pruning", sparsity=0.8, updates=150)
    real = real_edges(Layout.of(model.spec))
    assert scores.checks["sparsity"] == pytest.approx(1 - scores.chosen.sum() / real.sum())
    assert 0.65 < scores.checks["sparsity"] < 0.95
    kept, gone = scores.values[scores.chosen], scores.values[real & ~scores.chosen]
    assert kept.min() > gone.max()
    assert (select(model, scores, pairs()).mask == prune(scores.chosen, scores.layout)).all()
    assert list(scores.training) == ["kl", "sparsity", "target"]
    assert scores.training["target"][-1] == 0.8


def test_ugs_keeps_fewer_edges_where_they_cost_more():
    model = load("gpt2")
    cheap, dear = (score_edges(model, pairs(), "ugs", penalty=penalty, updates=80) for penalty in (1e-3, 0.2))
    assert dear.checks["edges"] < 0.8 * cheap.checks["edges"]
    assert cheap.chosen is None
    with pytest.raises(ConfigError, match="above 0"):
        score_edges(model, pairs(), "ugs", penalty=0.0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        score_edges(model, pairs(), "edge-pruning", sparsity=1.0)


def test_shuffled_clean_prompts_give_another_circuit():
    """A twin: what is learned follows from the pairs."""
    model, batch = load("gpt2"), pairs()
    other = PairBatch.from_tokens(batch.clean, batch.corrupt.roll(1, 0), batch.answers, batch.distractors)
    found: list[EdgeScores] = [score_edges(model, b, "ugs", updates=40, penalty=0.02) for b in (batch, other)]
    assert (found[0].top(20) != found[1].top(20)).sum() > 4


def test_the_curve_stands_in_the_run_folder(tmp_path):
    few = {"n_edges": 20}  # what three updates find is large, and dear to judge
    run = discover("name-throw", method="ugs", method_options={"updates": 3}, selection=few, n=8, out=tmp_path / "run")
    lines = (run.folder / "training.csv").read_text().splitlines()
    assert lines[0] == "step,kl,edges"
    assert [line.partition(",")[0] for line in lines[1:]] == ["1", "2", "3"]
