"""Circuits run from the clean run: against the same circuits run from the ablated run; and what searches predict."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, BIDIRECTIONAL, NATIVE, load, pairs

from circuitlab.discovery.acdc_search import FIRST_BATCH, BatchSizes, Costs, Predictions, search
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.parts import Kind, Layout, Node, Reader, Slot
from circuitlab.patching.circuits.circuits import run_circuits
from circuitlab.patching.circuits.clean_start import CleanStart
from circuitlab.patching.circuits.variants import slices
from circuitlab.patching.experiment import Experiment

ALL = (*ARCHITECTURES, *NATIVE, *BIDIRECTIONAL)
METRIC = resolve("logit_diff")


def close(name: str) -> dict[str, float]:
    return {"rtol": 0, "atol": 1e-10 if load(name).dtype == torch.float64 and name == "gpt2" else 5e-5}


def whole(name: str, prepared: Experiment, masks: np.ndarray) -> torch.Tensor:
    """The circuits run from the ablated run."""
    return run_circuits(load(name), next(prepared.baselines), torch.tensor(masks), next(prepared.runs)[1])


def thinned(mask: np.ndarray, share: float, rng: np.random.Generator, columns: list[int] | None = None) -> np.ndarray:
    """A mask without some of its edges, of those into some readers."""
    lost = rng.random(mask.shape) > share
    if columns is not None:
        lost &= np.isin(np.arange(mask.shape[1]), columns)
    return mask & ~lost


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_circuits_from_the_clean_run_are_those_from_the_ablated_run(name, ablation):
    prepared = Experiment(load(name), pairs(), ablation=ablation)
    rng, real = np.random.default_rng(0), real_edges(Layout.of(load(name).spec))
    masks = np.stack([thinned(real, share, rng) for share in (0, 0.2, 0.5, 0.8, 0.97, 1)])
    expected = whole(name, prepared, masks)
    found = run_circuits(
        load(name), next(prepared.baselines), torch.tensor(masks), next(prepared.runs)[1], start="clean"
    )
    torch.testing.assert_close(found, expected, **close(name))
    cuts = CleanStart(load(name), *next(prepared.runs))
    torch.testing.assert_close(cuts.run(masks), expected, **close(name))
    # What is kept from call to call serves the next one; asked for again they are the same.
    torch.testing.assert_close(cuts.run(masks[::-1].copy()), expected.flip(0), **close(name))
    assert (expected[1] - expected[4]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ALL)
# What is put in has no part in which readers are cut: every architecture meets both, and every kind of reader one.
@pytest.mark.parametrize(
    ("slots", "ablation"),
    [((Slot.V,), "corrupt"), ((Slot.K,), "mean"), ((Slot.Q, Slot.V), "mean"), ((None,), "corrupt")],
)
def test_circuits_of_a_search(name, slots, ablation):
    """Edges into readers of one kind are cut, layer by layer from the last, on top of those cut before."""
    model, layout = load(name), Layout.of(load(name).spec)
    prepared = Experiment(model, pairs(), ablation=ablation, reference=pairs(seed=1) if ablation == "mean" else None)
    cuts = CleanStart(model, *next(prepared.runs))
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
        torch.testing.assert_close(cuts.run(begun[None]), whole(name, prepared, begun[None]), **close(name))
    assert apart > 1e-3 or not asked


@pytest.mark.parametrize("name", ALL)
def test_what_is_kept_of_a_head_says_where_it_was_heard(name):
    """The same cut into a head's values, first heard at every token and then at the answer alone."""
    model, layout = load(name), Layout.of(load(name).spec)
    prepared, real = Experiment(model, pairs()), real_edges(layout)
    head = layout.writer_index(Node(Kind.HEAD, 0, 1))
    cuts, found = CleanStart(model, *next(prepared.runs)), []
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


class TestPredictions:
    def test_better_ones_run_fewer_circuits_and_answers_are_the_same(self):
        """Fewer batches with the true effects than with none; more with their sign turned; and the same answers."""
        model, layout = load("gpt2"), Layout.of(load("gpt2").spec)
        costs = Costs(Experiment(model, pairs(), METRIC), silent_cuts=False)
        alone, effects = search(costs, layout, 0.05, speculate=1), np.full(real_edges(layout).shape, np.nan)
        for answer in alone.answers:
            effects[answer.edge] = answer.effect
        known, turned = (search(costs, layout, 0.05, estimates=sign * effects) for sign in (1, -1))
        unknown = search(costs, layout, 0.05)
        for other in (known, turned, unknown):
            assert (other.mask == alone.mask).all()
            assert [(a.edge, a.cut) for a in other.answers] == [(a.edge, a.cut) for a in alone.answers]
        assert known.batches < min(unknown.batches, turned.batches)
        assert known.circuits < turned.circuits

    def test_what_is_unknown_is_predicted_to_be_cut(self):
        predictions = Predictions(threshold=0.1)
        predictions.learn(np.array([[0.3, np.nan], [0.09, -0.5]]))
        assert [predictions.cut(edge) for edge in ((0, 0), (0, 1), (1, 0), (1, 1))] == [False, True, True, True]
        found = [predictions.uncertainty(edge) for edge in ((1, 0), (0, 0), (1, 1), (0, 1))]
        assert found == sorted(found, reverse=True)
        assert found[-1] == -np.inf

    def test_batches_grow_while_predictions_come_true(self):
        sizes, seen = BatchSizes(at_once=100, fixed=None), []
        for n_taken in (FIRST_BATCH, 2 * FIRST_BATCH, 2, FIRST_BATCH):
            least, most = sizes.bounds()
            seen.append((least + most) // 2)
            sizes.note(seen[-1], n_taken)
        assert seen == [FIRST_BATCH, 2 * FIRST_BATCH, 4 * FIRST_BATCH, FIRST_BATCH]
        assert BatchSizes(at_once=2, fixed=None).bounds() == (1, 3)
        assert BatchSizes(at_once=16, fixed=3).bounds() == (3, 3)


class TestSlices:
    def test_slices_give_the_index_back(self):
        rng = np.random.default_rng(0)
        for length in rng.integers(1, 9, 500):
            index = rng.integers(-1, 4, length)
            found = np.full(length, -9)
            for here, which in slices(index):
                values = [-1] if which is None else range(which.start, which.stop)
                assert len(values) in (1, here.stop - here.start)
                found[here] = values
            assert (found == index).all()
