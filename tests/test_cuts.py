"""Circuits of a search: against the same circuits run from the floor, and the slopes of soft masks."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, BIDIRECTIONAL, NATIVE, load, pairs

from circuitlab import score_edges
from circuitlab.discovery.acdc_guesses import Guesses, Sizes, evenly
from circuitlab.discovery.acdc_search import Costs, _Run, search
from circuitlab.discovery.acdc_walk import Walk
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.parts import Kind, Layout, Node, Reader, Slot
from circuitlab.patching.circuits.circuits import run_circuits
from circuitlab.patching.circuits.metric import Prepared, prepare
from circuitlab.patching.circuits.soft_circuit import SoftCircuit
from circuitlab.patching.cuts.cuts import Cuts
from circuitlab.patching.cuts.rebased import RebasedCuts
from circuitlab.patching.cuts.values import CutValues
from circuitlab.progress import silent

ALL = (*ARCHITECTURES, *NATIVE, *BIDIRECTIONAL)
# Norms behind heads couple those of a layer; their circuits are not run from others.
COUPLED = tuple(name for name in ALL if load(name).has_post_norm(0))
REBASED = tuple(name for name in ALL if name not in COUPLED)
METRIC = resolve("logit_diff")


def close(name: str) -> dict[str, float]:
    return {"rtol": 0, "atol": 1e-10 if load(name).dtype == torch.float64 and name == "gpt2" else 5e-5}


def whole(name: str, prepared: Prepared, masks: np.ndarray) -> torch.Tensor:
    """The circuits run from the floor."""
    return run_circuits(load(name), prepared.baselines[0], torch.tensor(masks), prepared.floors[0])


def thinned(mask: np.ndarray, share: float, rng: np.random.Generator, columns: list[int] | None = None) -> np.ndarray:
    """A mask without some of its edges, of those into some readers."""
    lost = rng.random(mask.shape) > share
    if columns is not None:
        lost &= np.isin(np.arange(mask.shape[1]), columns)
    return mask & ~lost


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
@pytest.mark.parametrize("ready", [Cuts, RebasedCuts])
def test_circuits_from_the_clean_run_are_those_from_the_floor(name, ablation, ready):
    if (ready is RebasedCuts and name in COUPLED) or (ready is Cuts and name in BIDIRECTIONAL):
        pytest.skip("searches do not run these circuits this way")
    prepared = prepare(load(name), pairs(), replacement=ablation)
    rng, real = np.random.default_rng(0), real_edges(Layout.of(load(name).spec))
    masks = np.stack([thinned(real, share, rng) for share in (0, 0.2, 0.5, 0.8, 0.97, 1)])
    expected = whole(name, prepared, masks)
    cuts = ready(load(name), prepared.baselines[0], prepared.floors[0])
    torch.testing.assert_close(cuts.run(masks), expected, **close(name))
    # What is kept from call to call serves the next one; asked for again they are the same.
    torch.testing.assert_close(cuts.run(masks[::-1].copy()), expected.flip(0), **close(name))
    assert (expected[1] - expected[4]).abs().max() > 1e-2


@pytest.mark.parametrize("name", REBASED)
@pytest.mark.parametrize("slots", [(Slot.V,), (Slot.K,), (Slot.Q, Slot.V), (None,)])
@pytest.mark.parametrize("ablation", ["corrupt", "mean"])
def test_circuits_from_circuits_from_circuits(name, slots, ablation):
    """Edges into readers of one kind are cut, layer by layer from the last, each time from the circuit before."""
    model, layout = load(name), Layout.of(load(name).spec)
    prepared = prepare(model, pairs(), replacement=ablation, reference=pairs(seed=1) if ablation == "mean" else None)
    cuts = RebasedCuts(model, prepared.baselines[0], prepared.floors[0])
    rng, begun, apart = np.random.default_rng(1), real_edges(layout), 0.0
    for layer in reversed(range(model.spec.n_layers)):
        here = [c for c, r in enumerate(layout.readers) if r.node.layer == layer]
        asked = [column for column in here if layout.readers[column].slot in slots]
        masks = [thinned(begun, 0.7, rng, asked[:1]) for _ in range(3)]
        # Readers that all circuits cut alike, beside one that they do not.
        masks += [thinned(masks[0], 0.7, rng, asked[-1:]) for _ in range(3)]
        expected = whole(name, prepared, np.stack(masks))
        apart = max(apart, float((expected - expected[:1]).abs().max()))
        for part in (masks, masks[:3], masks[3:], masks[::-1]):
            order = [next(i for i, mask in enumerate(masks) if mask is one) for one in part]
            torch.testing.assert_close(cuts.run(np.stack(part)), expected[order], **close(name))
        begun = thinned(begun, 0.8, rng, here)
        cuts.begin(begun)
        torch.testing.assert_close(cuts.run(begun[None]), whole(name, prepared, begun[None]), **close(name))
    assert apart > 1e-3 or not asked


@pytest.mark.parametrize("name", REBASED)
def test_what_is_kept_of_a_head_says_where_it_was_heard(name):
    """The same cut into a head's values, first heard at every token and then at the answer alone."""
    model, layout = load(name), Layout.of(load(name).spec)
    prepared, real = prepare(model, pairs()), real_edges(layout)
    head = layout.writer_index(Node(Kind.HEAD, 0, 1))
    cuts, found = RebasedCuts(model, prepared.baselines[0], prepared.floors[0]), []
    column = layout.reader_index(Reader(layout.writers[head], Slot.V))
    # Readers of the answer alone: few enough are cut for the second circuits to be run from the clean run, too.
    asking = np.array([r.node.layer != 0 and r.slot in (None, Slot.Q) for r in layout.readers])
    for heard in (np.ones_like(asking), asking):
        for _ in range(2):
            mask = real.copy()
            mask[:, column] = False
            mask[head] &= heard
            found.append(cuts.run(mask[None]))
            torch.testing.assert_close(found[-1], whole(name, prepared, mask[None]), **close(name))
    assert (found[0] - found[2]).abs().max() > 1e-3


@pytest.mark.parametrize("name", REBASED)
@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_the_worth_of_edges_is_the_slope_of_their_masks(name, ablation):
    """A soft mask's slope at z = 1 is what cutting the edge takes away, to first order, in any circuit."""
    model, layout = load(name), Layout.of(load(name).spec)
    real, rng, n_layers = real_edges(layout), np.random.default_rng(2), model.spec.n_layers
    values = CutValues(model, pairs(), METRIC, ablation=ablation)
    soft, largest = SoftCircuit(model, values.prepared.baselines[0], values.prepared.floors[0]), 0.0
    for layer in (n_layers, n_layers - 1, 0):
        into = np.array([n_layers if r.node.layer is None else r.node.layer for r in layout.readers])
        # Only what lies behind the layer has been cut, as in a search.
        mask = thinned(real, 0.8, rng, np.flatnonzero(into > layer).tolist())
        values.begin(real)
        values.begin(mask)
        z = torch.tensor(mask).to(model.dtype).expand(len(soft), -1, -1).clone().requires_grad_()
        final = soft.final(z)
        slope = torch.autograd.grad(METRIC(model.logits(final), soft.baseline.batch).sum(), z)[0].mean(0).numpy()
        fresh = CutValues(model, pairs(), METRIC, ablation=ablation)
        fresh.begin(mask)
        found = fresh.worth(layer)
        there = real & (into == layer) & ~np.isnan(found)
        np.testing.assert_allclose(found[there], -slope[there], atol=1e-5 * np.abs(slope).max() + 1e-9)
        assert np.isnan(found[:, into != layer]).all()
        assert (slope[real & (into == layer) & np.isnan(found)] == 0).all()
        largest = max(largest, np.abs(found[there]).max(initial=0))
    assert largest > 1e-3, "the sign of these numbers counts"


def test_in_the_whole_model_it_is_eap_turned_around():
    model, layout = load("gpt2"), Layout.of(load("gpt2").spec)
    values, scores = CutValues(model, pairs(), METRIC), score_edges(model, pairs(), "eap")
    real = real_edges(layout)
    for layer in reversed(range(model.spec.n_layers + 1)):
        found = values.worth(layer)
        there = real & ~np.isnan(found)
        assert there.any()
        np.testing.assert_allclose(found[there], -scores.values[there], atol=1e-9)


class TestGuesses:
    def test_refined_ones_come_true_more_often(self):
        """Fewer circuits than with no guesses; with the sign turned more than with them; and the same answers."""
        model, layout = load("gpt2"), Layout.of(load("gpt2").spec)
        costs = Costs(CutValues(model, pairs(), METRIC), silent_cuts=False)
        plain, refined = (search(costs, layout, 0.05, refined=refined) for refined in (False, True))
        costs.values.worth = lambda layer: -CutValues.worth(costs.values, layer)
        turned = search(costs, layout, 0.05, refined=True)
        for other in (refined, turned):
            assert (other.mask == plain.mask).all()
            assert [a.edge for a in other.answers] == [a.edge for a in plain.answers]
        assert refined.batches < min(plain.batches, turned.batches)
        assert refined.circuits < turned.circuits

    def test_what_is_unknown_is_expected_to_be_cut(self):
        guesses = Guesses(threshold=0.1)
        guesses.learn(np.array([[0.3, np.nan], [0.09, -0.5]]))
        assert [guesses.cut(edge) for edge in ((0, 0), (0, 1), (1, 0), (1, 1))] == [False, True, True, True]
        doubts = [guesses.doubt(edge) for edge in ((1, 0), (0, 0), (1, 1), (0, 1))]
        assert doubts == sorted(doubts, reverse=True)
        assert doubts[-1] == -np.inf

    def test_batches_share_out_what_is_left(self):
        for n in range(1, 200):
            for at_once, most in ((16, 24), (1, 1), (5, 7), (16, 16)):
                size = evenly(n, at_once, most)
                assert 1 <= size <= most
                n_batches = -(-n // size)
                assert n_batches <= -(-n // at_once) + (most < 1.5 * at_once)
        sizes = Sizes(at_once=16, most=24, refined=True, fixed=None)
        assert sizes.bounds(17) == (17, 17)
        least, most = sizes.bounds(100)
        assert least < 100 / 6 < most
        assert Sizes(at_once=16, most=24, refined=True, fixed=3).bounds(100) == (3, 3)

    def test_they_grow_while_guesses_come_true(self):
        sizes, seen = Sizes(at_once=100, most=150, refined=False, fixed=None), []
        for n_taken in (4, 8, 16, 2, 4, 8):
            n_asked, _ = sizes.bounds(1000)
            seen.append(n_asked)
            sizes.note(n_asked, n_taken)
        assert seen == [4, 8, 16, 32, 4, 8]
        assert Sizes(at_once=2, most=3, refined=True, fixed=None).bounds(100)[1] <= 3

    def test_a_batch_ends_where_a_guess_is_in_doubt(self):
        layout = Layout.of(load("gpt2").spec)
        costs = Costs(CutValues(load("gpt2"), pairs(), METRIC), silent_cuts=False)
        found = search(costs, layout, 0.05, speculate=1)
        order = [answer.edge for answer in found.answers]
        for number in (7, 11, 15):
            run = _Run(costs, Walk.from_all(layout), Guesses(0.05), silent)
            for answer in found.answers:
                run.guesses.expect(answer.edge, answer.effect)
            run.guesses.expect(order[number], 0.05 + (-1e-9 if found.answers[number].cut else 1e-9))
            asked = run.look_ahead(8, 16)
            assert [one.edge for one in asked] == order[: number + 1]
            assert len(run.look_ahead(5, 5)) == 5
