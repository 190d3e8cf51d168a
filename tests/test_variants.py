"""Variants of values in several circuits: against indexing, on random indices and on those of a search."""

import numpy as np
import pytest
import torch

from circuitlab.patching.cuts.variants import SAME, add_up, distinct, runs

INDICES = [np.random.default_rng(seed).integers(SAME, 4, 12) for seed in range(8)]
INDICES += [np.array(index) for index in ([0, 1, 2, 2, 2], [-1, -1, 0, 1], [-1, 0, 0, 1], [3], [-1], [2, 1, 0])]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_runs_say_what_the_index_says(index):
    found = np.full(len(index), SAME)
    for places, which in runs(index):
        assert (found[places] == SAME).all()
        found[places] = np.arange(which.start, which.stop)
    assert (found == index).all()


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_sums_are_those_of_indexing(index):
    generator = torch.Generator().manual_seed(0)
    base, first, second = (torch.randn(*shape, 3, 2, 5, generator=generator) for shape in ((), (4,), (4,)))
    out, expected = torch.empty(len(index), 3, 2, 5), base.expand(len(index), 3, 2, 5).clone()
    turned = index[::-1].copy()
    for values, which in ((first, index), (second, turned)):
        there = torch.tensor(which != SAME)
        expected[there] += values[torch.tensor(which)[there]]
    add_up(out, base, [(first, index), (second, turned)])
    torch.testing.assert_close(out, expected)
    if len(set(index.tolist())) > 1:
        add_up(out, base, [(first, turned), (second, turned)])
        assert (index == turned).all() or not torch.allclose(out, expected)


def test_equal_rows_share_a_number_and_rows_of_same_have_none():
    of, first = distinct(np.array([[-1, -1], [2, -1], [0, 1], [2, -1], [-1, 2], [-1, -1]]))
    assert of.tolist() == [SAME, 0, 1, 0, 2, SAME]
    assert first.tolist() == [1, 2, 4]
    assert [len(part) for part in distinct(np.zeros((3, 0), dtype=int))] == [3, 0]
