"""Figures in notebooks: what `.plot()` returns shows itself as the last value of a cell."""

import ast
from pathlib import Path

import pytest
from architectures import load, pairs

import circuitlab
from circuitlab.viz.save import InlineFigure, new_figure

PNG = b"\x89PNG\r\n\x1a\n"
MODULES = sorted((Path(circuitlab.__file__).parent).rglob("*.py"))


@pytest.fixture(scope="module")
def plots():
    """A figure of each kind of drawing: heatmap, circuit, bars, lines."""
    model, batch = load("gpt2"), pairs()
    circuit = circuitlab.select(model, circuitlab.score_edges(model, batch, "eap"), batch, n_edges=40)
    return {
        "grid": circuitlab.sweep(model, batch, "head_z").plot(),
        "circuit": circuit.plot(),
        "attribution": circuitlab.direct_attribution(model, batch).plot(),
        "lens": circuitlab.logit_lens(model, batch).plot(),
    }


def test_a_figure_shows_itself_once(plots):
    """IPython asks for the bundle first, and asks no other method for what is in it."""
    for figure in plots.values():
        data, how = figure._repr_mimebundle_(include=None, exclude=None)
        assert data["image/png"].startswith(PNG)
        assert data["image/png"] == figure._repr_png_()
        assert set(data) == {"image/png", "text/plain"}
        width, height = (int.from_bytes(data["image/png"][at : at + 4], "big") for at in (16, 20))
        shown = how["image/png"]
        assert shown["width"] / shown["height"] == pytest.approx(width / height, rel=0.02)
        assert shown["width"] < width, "sharp on screens of high resolution"
        assert not hasattr(figure, "_ipython_display_")
        assert not hasattr(figure, "_repr_svg_")


def test_figures_are_known_to_no_window(plots):
    """With pyplot's inline backend a figure that pyplot knows would be shown a second time at the end of the cell."""
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figure = new_figure()
    assert pyplot.get_fignums() == before
    assert isinstance(figure, InlineFigure)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_figure_is_made_in_one_place(path):
    made = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("Figure", "subplots")
    ]
    assert not made
    assert "pyplot" not in path.read_text(encoding="utf-8") or path.name == "save.py"
