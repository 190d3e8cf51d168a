"""Every site by every axis becomes a table, a CSV file and a legible figure."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from architectures import load, mixed_pairs, pairs

from circuitlab import sweep
from circuitlab.cli.outputs import table_and_picture
from circuitlab.patching.grid import Grid
from circuitlab.patching.runs.columns import AXES
from circuitlab.patching.sweeps.sites import SITES
from circuitlab.viz import grid_from_frame, heatmap, read_sweep
from circuitlab.viz.grid import STRONGEST

MODEL = "gpt2"
ASKED = [(site.name, axis) for site in SITES.values() for axis in AXES if axis != "auto"]  # which is one of the others


def values_of(grid: Any) -> np.ndarray:
    return grid.values  # noqa: PD011


@pytest.fixture(scope="module")
def grids() -> dict[tuple[str, str], Grid]:
    """Each site by each axis on a small model, a few neurons of each layer."""
    model, prompts = load(MODEL), {"position": pairs()}
    return {
        (site, axis): sweep(model, prompts.get(axis, mixed_pairs()), site=site, axis=axis, head_axis=axis,
                            neurons=[0, 3, 7] if site == "neuron" else None)
        for site, axis in ASKED
    }  # fmt: skip


@pytest.mark.parametrize(("site", "axis"), ASKED)
def test_every_site_by_every_axis_is_a_table_a_file_and_a_figure(site, axis, grids, tmp_path):
    grid = grids[site, axis]
    frame = grid.to_frame()
    cells = [name for name in ("layer", "head", "neuron", "position", "span") if name in frame.columns]
    assert not frame.duplicated(cells).any()
    assert len(frame) == values_of(grid).size
    np.testing.assert_array_equal(frame["value"], values_of(grid).ravel())
    for name, write in table_and_picture(site, grid.to_frame, grid.plot).items():
        write(tmp_path / name)
    read = read_sweep(tmp_path / f"{site}.csv")
    pd.testing.assert_frame_equal(read, frame, check_dtype=False)
    drawn = grid_from_frame(read)
    assert values_of(drawn).size == values_of(grid).size
    np.testing.assert_allclose(np.sort(values_of(drawn), axis=None), np.sort(values_of(grid), axis=None))
    assert (tmp_path / f"{site}.png").read_bytes().startswith(b"\x89PNG")


def many(kind: str, n_layers: int, n_members: int, columns: tuple[str, ...] = ()) -> Grid:
    """A grid of many heads or neurons with noise, and one strong cell in layer 1."""
    shape = (n_layers, n_members, *([len(columns)] if columns else []), 4)
    values = np.random.default_rng(0).normal(0, 0.01, shape)
    values[(1, 5, *([0] if columns else []))] += 0.9
    names = tuple(map(str, range(n_members)))
    by = {"column_kind": "span", "columns": columns, "member_kind": kind, "members": names}
    return Grid(
        site="neuron" if kind == "neuron" else "head_z", direction="denoise", metric="logit_diff", unit="logits",
        per_example=values, clean=np.ones(4), corrupt=np.zeros(4),
        **(by if columns else {"column_kind": kind, "columns": names}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "first"),
    [
        (many("neuron", 3, 3072), "L1N5"),
        (many("neuron", 2, 300, ("name", "is")), "L1N5"),
        (many("head", 8, 32, ("name", "is")), "a1.h5"),
    ],
)
def test_too_many_neurons_for_one_figure_are_the_strongest_and_the_title_says_so(grid, first):
    drawn = grid_from_frame(grid.to_frame())
    assert len(drawn.row_labels) == STRONGEST
    assert drawn.row_labels[0] == first
    total = values_of(grid).shape[0] * values_of(grid).shape[1]
    assert drawn.title.endswith(f"the {STRONGEST} strongest of {total:,}")
    reach = np.abs(values_of(drawn)).max(1)
    assert (np.diff(reach) <= 0).all()
    figure = heatmap(drawn)
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == list(drawn.row_labels), "every row has its name"
    assert max(figure.get_size_inches()) < 20


def test_few_enough_are_all_drawn():
    grid = many("neuron", 3, 64)
    drawn = grid_from_frame(grid.to_frame())
    assert values_of(drawn).shape == (3, 64)
    assert "strongest" not in drawn.title
    heads = grid_from_frame(many("head", 2, 96).to_frame())
    assert values_of(heads).shape == (2, 96)


def test_noise_is_ranked_by_the_distance_to_the_clean_run():
    grid = many("neuron", 2, 100)
    grid = replace(grid, direction="noise", per_example=1 - grid.per_example)
    drawn = grid_from_frame(grid.to_frame().assign(direction="noise"))
    assert drawn.row_labels[0] == "L1N5"
