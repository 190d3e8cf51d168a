"""Circuits that keep some neurons of a node: run against every node written out, judged, read from a file."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, TOLERANCE, load, pairs
from node_by_node import ablated_by_hand, walk

from circuitlab import Circuit, GraphError, evaluate, load_task, score_edges, select, test_circuit
from circuitlab.cli import main
from circuitlab.graphs.circuit_data import NodeParts
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics.formulas import logit_diff
from circuitlab.parts import Layout
from circuitlab.patching.circuits.circuits import run_circuits
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import at_answer


def some(name: str, share: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Random edges, and random components of every writer."""
    layout = Layout.of(load(name).spec)
    rng = np.random.default_rng(8)
    mask = real_edges(layout) & (rng.random(real_edges(layout).shape) < share)
    return mask, rng.random((len(layout.writers), layout.spec.d_model)) < 0.5


def carried(mask: np.ndarray, neurons: np.ndarray) -> torch.Tensor:
    """Which components every edge carries."""
    return torch.tensor(mask[:, :, None] & neurons[:, None, :])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["corrupt", "noise"])
@torch.no_grad()
def test_each_node_written_out(name, kind):
    model, batch = load(name), pairs()
    (baseline,) = Experiment(model, batch).baselines
    start, arguments, at = baseline.clean.resid_pre[0], baseline.arguments, batch.answer_at
    layout, (mask, neurons) = Layout.of(model.spec), some(name)
    if kind == "corrupt":
        every = torch.tensor(real_edges(layout))
        given = walk(model, arguments, baseline.corrupt.resid_pre[0], every, [start] * len(layout.writers)).said
        ablated, loose = None, 100
    else:
        generator = torch.Generator().manual_seed(3)
        given = [0.3 * torch.randn(start.shape, generator=generator, dtype=start.dtype) for _ in layout.writers]
        ablated, loose = ablated_by_hand(model, arguments, start, given), 1
    expected = at_answer(walk(model, arguments, start, carried(mask, neurons), given).final, at)
    masks = torch.tensor(np.stack([mask, mask & False, mask]))
    found = run_circuits(model, baseline, masks, ablated, torch.tensor(neurons))
    scale = expected.abs().max()
    assert (found[0] - expected).abs().max() < loose * TOLERANCE[name] * scale
    assert (found[2] == found[0]).all()
    # The twins: whole nodes; the other neurons.
    assert (run_circuits(model, baseline, masks, ablated)[0] - expected).abs().max() > 0.01 * scale
    assert (
        run_circuits(model, baseline, masks, ablated, torch.tensor(~neurons))[0] - expected
    ).abs().max() > 0.01 * scale
    # The limits: all neurons are the circuit of whole nodes, none the empty one.
    whole, nothing = (
        run_circuits(model, baseline, masks, ablated, torch.full(neurons.shape, one)) for one in (True, False)
    )
    assert (whole - run_circuits(model, baseline, masks, ablated)).abs().max() == 0
    assert (nothing[0] - nothing[1]).abs().max() == 0


@cache
def judged() -> tuple[Circuit, np.ndarray]:
    model, batch = load("gpt2"), pairs(n=4)
    circuit = select(model, score_edges(model, batch, "eap"), batch, n_edges=40)
    neurons = np.random.default_rng(1).random((len(circuit.layout.writers), 32)) < 0.7
    return replace(circuit, node_parts=NodeParts(neurons=neurons)), neurons


class TestJudging:
    @torch.no_grad()
    def test_every_number_by_hand(self):
        model, batch, (circuit, neurons) = load("gpt2"), pairs(n=4), judged()
        (baseline,) = Experiment(model, batch).baselines
        start, every = baseline.clean.resid_pre[0], torch.tensor(real_edges(circuit.layout))
        replaced = walk(model, baseline.arguments, baseline.corrupt.resid_pre[0], every, [start] * len(every)).said

        def share(kept: torch.Tensor) -> float:
            final = at_answer(walk(model, baseline.arguments, start, kept, replaced).final, batch.answer_at)
            value = logit_diff(model.logits(final), batch).mean().item()
            return (value - found.metric_empty) / (found.metric_clean - found.metric_empty)

        found = evaluate(model, circuit, batch, n_random=2, n_knockouts=3)
        own = carried(circuit.mask, neurons)
        assert found.faithfulness == pytest.approx(share(own), abs=1e-8)
        assert found.complement == pytest.approx(share(every[:, :, None] & ~own), abs=1e-8)
        first = np.argwhere(circuit.mask)[0]
        less = circuit.mask.copy()
        less[tuple(first)] = False
        name = next(e.name for e, _ in circuit.edges() if circuit.layout.edge_index(e) == tuple(first))
        effect = found.minimality.to_frame().set_index("edge")["effect"][name]
        assert effect == pytest.approx(found.faithfulness - share(carried(less, neurons)), abs=1e-8)
        weighted = sum(neurons[circuit.layout.edge_index(edge)[0]].mean() for edge, _ in circuit.edges())
        assert found.n_edges_weighted == pytest.approx(weighted)
        assert found.n_edges_weighted < found.n_edges
        # The twin: whole nodes.
        plain = evaluate(model, circuit.with_mask(circuit.mask), batch, n_random=2, n_knockouts=3)
        assert abs(plain.faithfulness - found.faithfulness) > 0.01
        assert abs(plain.complement - found.complement) > 0.01
        assert plain.n_edges_weighted == plain.n_edges == found.n_edges
        assert (plain.random, plain.curve) == (found.random, found.curve), "these are of whole nodes"

    def test_knockouts_of_everything_are_the_empty_circuit_and_the_complement(self, monkeypatch):
        model, batch, (circuit, _) = load("gpt2"), pairs(n=4), judged()
        from circuitlab.evaluation import knockouts

        monkeypatch.setattr(knockouts, "_part", lambda mask, rng: mask.copy())
        found = evaluate(model, circuit, batch, n_random=0, n_knockouts=1, minimality=False)
        (one,) = found.knockouts
        assert (one.circuit, one.model) == pytest.approx((0, found.complement), abs=1e-9)

    def test_all_neurons_are_whole_nodes(self):
        model, batch, (circuit, neurons) = load("gpt2"), pairs(n=4), judged()
        told = {"n_random": 0, "n_knockouts": 2, "minimality": False}
        full = replace(circuit, node_parts=NodeParts(neurons=np.ones_like(neurons)))
        a, b = (evaluate(model, one, batch, **told).to_record() for one in (full, circuit.with_mask(circuit.mask)))
        assert {k: v for k, v in a.items() if k != "n_edges_nominal"} == {
            k: v for k, v in b.items() if k != "n_edges_nominal"
        }

    def test_hypothesis_tests_are_about_whole_nodes(self):
        with pytest.raises(GraphError, match="keeps only some neurons of .* hypothesis tests are about edges of whole"):
            test_circuit(load("gpt2"), judged()[0], pairs(n=4))


def test_a_file_with_neurons_on_the_command_line(bundled, tmp_path, capsys):
    batch = load_task("name-throw").pairs(bundled, n=4, seed=0).discovery
    circuit = select(bundled, score_edges(bundled, batch, "eap"), batch, n_edges=30)
    neurons = np.ones((len(circuit.layout.writers), 128), dtype=bool)
    neurons[:, :32] = False
    told = ["--task", "name-throw", "-n", "4", "--random", "1", "--knockouts", "1", "--no-minimality", "--quiet"]
    for name in ("c.json", "c.pt"):
        replace(circuit, node_parts=NodeParts(neurons=neurons)).save(tmp_path / name)
        assert main(["evaluate", str(tmp_path / name), *told, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["n_edges_weighted"] == pytest.approx(0.75 * found["n_edges"])
    assert main(["evaluate", str(tmp_path / "c.json"), *told]) == 0
    assert "weighted by share of neurons" in " ".join(capsys.readouterr().out.split())
