"""Figures: what stands in them, where colours have their middle, and that they come out the same every time."""

import math
import re
import warnings
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitlab.errors import ConfigError, FormatError, GraphError
from circuitlab.parts import Kind, Layout, ModelSpec, Slot
from circuitlab.viz import (
    DrawnEdge,
    DrawnNode,
    FaithfulnessCurve,
    LabelledGrid,
    draw_circuit,
    faithfulness_figure,
    figure_bytes,
    grid_from_frame,
    heatmap,
    read_sweep,
    save_figure,
    style,
    visible_token,
)
from circuitlab.viz.layered import lay_out
from circuitlab.viz.style import NEGATIVE, POSITIVE, diverging, luminance, sign_colour, text_on
from circuitlab.viz.text import drawable, number

HTML_TOKENS = ("<|endoftext|>", "<", "table", "><", "th", ' class="', '$x_1$">', "Some", " bold", "\n", " 中", "</")
EVALUATION = {
    "n_edges": 61,
    "n_edges_total": 1519,
    "faithfulness": 0.93,
    "faithfulness_ci": [0.88, 0.97],
    "curve": [{"n_edges": n, "faithfulness": f} for n, f in ((0, 0.0), (10, 0.4), (1519, 1.0), (3, None))],
    "random_baseline": {"faithfulness": [0.0, 0.1, -9.0]},
}


def sweep_frame(n_layers: int, columns: dict[str, list], seed: int = 0, site: str = "resid_pre") -> pd.DataFrame:
    """A tidy sweep table; `columns` holds the column axis and, for positions, the labels."""
    rng = np.random.default_rng(seed)
    n_cols = len(next(iter(columns.values())))
    values = rng.normal(size=n_layers * n_cols) * 0.3
    table = {name: list(column) * n_layers for name, column in columns.items()}
    layer = np.repeat(np.arange(n_layers), n_cols)
    bounds = {"ci_low": values - 0.1, "ci_high": values + 0.1, "p_value": 0.5, "n": 100}
    return pd.DataFrame({"site": site, "layer": layer, **table, "value": values, **bounds})


def grid_of(values: object, **changes: object) -> LabelledGrid:
    array = np.array(values, dtype=float)
    labels = {
        "row_labels": tuple(map(str, range(array.shape[0]))),
        "col_labels": tuple(map(str, range(array.shape[1]))),
    }
    titles = {"row_title": "layer", "col_title": "head", "title": "t", "quantity": "q"}
    return LabelledGrid(values=array, **{**labels, **titles, **changes})


def random_circuit(n_layers: int, n_heads: int, n_edges: int, seed: int = 0, effects: bool = True):
    """A connected random circuit of about so many edges, as things to draw."""
    rng = np.random.default_rng(seed)
    spec = ModelSpec(
        name="x", n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads, d_model=8, d_head=1, d_vocab=9, n_ctx=9
    )
    edges = list(Layout.of(spec).edges())
    weight = {node: math.exp(1.2 * rng.normal()) for node in Layout.of(spec).nodes}
    scores = [weight[e.source] * weight[e.reader.node] * rng.normal() * 0.1 for e in edges]
    kept = set(sorted(range(len(edges)), key=lambda i: -abs(scores[i]))[:n_edges])
    # Whatever a kept edge touches is joined to both ends, so nothing dangles.
    writers, readers = {edges[i].source for i in kept}, {edges[i].reader.node for i in kept}
    for i, edge in enumerate(edges):
        into = edge.source.kind is Kind.INPUT and edge.reader.node in writers and edge.reader.slot in (None, Slot.V)
        out = edge.reader.node.kind is Kind.LOGITS and (edge.source in readers or edge.source.kind is Kind.INPUT)
        if into or out:
            kept.add(i)
    drawn = [DrawnEdge.of(edges[i].name, float(scores[i])) for i in sorted(kept)]
    names = dict.fromkeys(["input", *sorted(n for e in drawn for n in (e.source, e.target)), "logits"])
    ends = ("input", "logits")
    return [DrawnNode.of(n, float(rng.normal()) if effects and n not in ends else None) for n in names], drawn


def texts(figure) -> list[str]:
    """Everything written in a figure."""
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]


def svg(figure) -> ElementTree.Element:
    return ElementTree.fromstring(figure_bytes(figure, "svg"))


def cell_colours(figure) -> np.ndarray:
    mesh = figure.axes[0].collections[0]
    return mesh.to_rgba(mesh.get_array())


class TestGrid:
    def test_positions_carry_tokens_and_their_numbers(self):
        frame = sweep_frame(3, {"position": range(4), "label": ["<s>", " is", "\n", ""]})
        grid = grid_from_frame(frame)
        assert grid.col_labels == ("<s>", "␣is", "↵", "∅")
        assert grid.col_numbers == ("0", "1", "2", "3")
        assert grid.row_labels == ("0", "1", "2")
        assert grid.n_examples == (100, 100)
        np.testing.assert_array_equal(grid.values, frame["value"].to_numpy().reshape(3, 4))

    def test_spans_keep_their_order_and_heads_are_sorted(self):
        assert grid_from_frame(sweep_frame(2, {"span": ["name", "is", "end"]})).col_labels == ("name", "is", "end")
        assert grid_from_frame(sweep_frame(1, {"head": [10, 2, 1]})).col_labels == ("1", "2", "10")

    def test_a_shuffled_table_gives_the_same_grid(self):
        frame = sweep_frame(4, {"head": range(5)})
        shuffled = frame.sample(frac=1, random_state=0)
        np.testing.assert_array_equal(grid_from_frame(frame).values, grid_from_frame(shuffled).values)

    def test_heads_by_position_make_a_row_a_head(self):
        grid = grid_from_frame(sweep_frame(2, {"head": [0, 0, 1, 1], "position": [0, 1, 0, 1]}, site="pattern"))
        assert grid.row_labels == ("a0.h0", "a0.h1", "a1.h0", "a1.h1")
        assert np.shape(grid.values) == (4, 2)

    def test_missing_cells_are_nan(self):
        grid = grid_from_frame(sweep_frame(2, {"head": range(3)}).drop(index=4))
        assert np.argwhere(np.isnan(grid.values)).tolist() == [[1, 1]]

    def test_noise_is_centred_on_the_clean_run(self):
        frame = sweep_frame(2, {"head": range(3)})
        assert grid_from_frame(frame.assign(direction="noise")).centre == 1.0
        assert grid_from_frame(frame.assign(direction="denoise")).centre == 0.0

    def test_tokens_that_look_like_missing_values_survive_the_file(self, tmp_path):
        path = tmp_path / "resid_pre.csv"
        sweep_frame(1, {"position": range(3), "label": ["null", "NA", " nan"]}).to_csv(path, index=False)
        assert grid_from_frame(read_sweep(path)).col_labels == ("null", "NA", "␣nan")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: f.drop(columns="site"), "no column site"),
            (lambda f: pd.concat([f, f]), "more than once"),
            (lambda f: f.assign(site=["a", "b"] * 3), "one site"),
            (lambda f: f.assign(value="x"), "no number"),
            (lambda f: f.assign(layer="x"), "whole numbers"),
            (lambda f: f[:0], "one site"),
        ],
    )
    def test_a_bad_table_is_refused(self, change, message):
        with pytest.raises(FormatError, match=message):
            grid_from_frame(change(sweep_frame(2, {"head": range(3)})))

    def test_a_file_that_is_no_table_is_refused(self, tmp_path):
        (tmp_path / "a.csv").write_text("", encoding="utf-8")
        (tmp_path / "b.csv").write_text("x,y\n1,2\n", encoding="utf-8")
        for name in ("a.csv", "b.csv"):
            with pytest.raises(FormatError, match=name):
                read_sweep(tmp_path / name)

    def test_sizes_go_together(self):
        with pytest.raises(ConfigError, match="one label"):
            grid_of([[1.0, 2.0]], col_labels=("a",))
        with pytest.raises(ConfigError, match="no cell"):
            grid_of(np.zeros((0, 0)))


class TestHeatmap:
    def test_axes_carry_the_labels_and_layer_0_is_at_the_top(self):
        figure = heatmap(grid_from_frame(sweep_frame(4, {"position": range(12), "label": HTML_TOKENS})))
        axes = figure.axes[0]
        shown = [label.get_text() for label in axes.get_xticklabels()]
        assert shown == [drawable(visible_token(token)) for token in HTML_TOKENS]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2", "3"]
        assert axes.yaxis_inverted()
        assert "0 = corrupted, 1 = clean" in figure.axes[1].get_ylabel()
        assert "Residual stream" in axes.get_title(loc="left")

    def test_colours_are_symmetric_about_the_centre(self):
        zero, up, down = cell_colours(heatmap(grid_of([[0.0, 0.2, -0.8]])))[0, :, :3]
        assert zero.min() > 0.93
        assert up[2] > up[0]
        assert down[0] > down[2]
        # The scale reaches as far up as down, so a fifth is pale although it is the largest positive value.
        assert luminance(tuple(up)) > luminance(tuple(down))
        scale = heatmap(grid_of([[0.0, 0.2, -0.8]])).axes[0].collections[0].norm
        assert (scale.vmin, scale.vmax) == (-0.8, 0.8)

    def test_a_centre_other_than_zero_is_neutral(self):
        colours = cell_colours(heatmap(grid_of([[1.0, 0.0]], centre=1.0)))[0]
        assert colours[0, :3].min() > 0.93
        assert colours[1, 0] > colours[1, 2]

    def test_noise_around_zero_stays_pale_on_the_recovered_scale(self):
        frame = sweep_frame(2, {"head": range(4)})
        frame["value"] /= 100
        pale = cell_colours(heatmap(grid_from_frame(frame)))[..., :3]
        loud = cell_colours(heatmap(grid_from_frame(frame, quantity="logits")))[..., :3]
        assert pale.min() > 0.85
        assert loud.min() < 0.5

    def test_numbers_stand_where_there_is_room_in_readable_ink(self):
        figure = heatmap(grid_of([[0.934, -0.021, 0.0], [0.5, -0.9, float("nan")]]))
        inside = [t for t in figure.axes[0].texts if re.fullmatch(r"\N{MINUS SIGN}?[\d.]+", t.get_text())]
        assert [t.get_text() for t in inside] == ["0.93", "\N{MINUS SIGN}0.02", "0", "0.50", "\N{MINUS SIGN}0.90"]
        colours = cell_colours(figure).reshape(-1, 4)[:5, :3]
        for text, colour in zip(inside, colours, strict=True):
            bright, dark = sorted((luminance(tuple(colour)), luminance(text.get_color())), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) > 4.5
        assert not heatmap(grid_of(np.full((4, 64), 0.1))).axes[0].texts

    @pytest.mark.parametrize(
        ("value", "written"), [(123.4, "123"), (12.34, "12.3"), (0.1234, "0.12"), (0.0123, "0.012")]
    )
    def test_small_and_large_units_keep_their_digits(self, value, written):
        assert written in texts(heatmap(grid_of([[value]])))

    def test_bold_means_that_the_interval_leaves_out_the_centre(self):
        low, high = np.array([[0.1, -0.1]]), np.array([[0.3, 0.3]])
        figure = heatmap(grid_of([[0.2, 0.1]], low=low, high=high))
        weights = {t.get_text(): t.get_fontweight() for t in figure.axes[0].texts}
        assert weights["0.20"] == "bold"
        assert weights["0.10"] == "normal"
        assert any("bold" in text for text in texts(figure))
        assert not any("bold" in text for text in texts(heatmap(grid_of([[0.2, 0.1]]))))

    @pytest.mark.parametrize(("n_rows", "n_cols"), [(1, 1), (4, 8), (4, 32), (48, 64)])
    def test_labels_neither_overlap_nor_leave_the_figure(self, n_rows, n_cols):
        tokens = [HTML_TOKENS[i % len(HTML_TOKENS)] for i in range(n_cols)]
        figure = heatmap(grid_from_frame(sweep_frame(n_rows, {"position": range(n_cols), "label": tokens})))
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        width, height = figure.canvas.get_width_height()
        axes = figure.axes[0]
        for artist in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, figure.axes[1].yaxis.label):
            box = artist.get_window_extent(renderer)
            assert -1 < box.x0 < box.x1 < width + 1
            assert -1 < box.y0 < box.y1 < height + 1
        rows = [label.get_window_extent(renderer) for label in axes.get_yticklabels()]
        assert all(above.y0 >= below.y1 - 1 for above, below in pairwise(rows))
        cols = axes.get_xticklabels()
        if cols[0].get_rotation():
            # Turned by 45 degrees, neighbours are apart by their step over the root of two.
            step = np.diff([axes.transData.transform((tick, 0))[0] for tick in axes.get_xticks()])
            assert (step / math.sqrt(2) > cols[0].get_fontsize() / 72 * figure.dpi * 0.95).all()
        else:
            boxes = [label.get_window_extent(renderer) for label in cols]
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes))

    def test_a_missing_cell_is_hatched_and_named(self):
        whole, holed = heatmap(grid_of([[0.1, 0.2]])), heatmap(grid_of([[0.1, float("nan")]]))
        assert any("not measured" in text for text in texts(holed))
        assert not any("not measured" in text for text in texts(whole))
        assert heatmap(grid_of([[float("nan")]])).axes


class TestText:
    @pytest.mark.parametrize(
        ("token", "shown"),
        [(" He", "␣He"), ("  ", "␣␣"), ("a b ", "a b␣"), ("\n\n", "↵↵"), ("\t", "⇥"), ("", "∅"), ("</", "</"),
         ("<|endoftext|>", "<|endoftext|>"), ("\x00", "□")],
    )  # fmt: skip
    def test_tokens_are_visible(self, token, shown):
        assert visible_token(token) == shown

    def test_long_tokens_are_clipped(self):
        assert visible_token("x" * 30, 10) == "x" * 9 + "…"
        assert visible_token("x" * 10, 10) == "x" * 10

    @settings(max_examples=30, deadline=None)
    @given(st.text())
    def test_nothing_invisible_is_left(self, token):
        shown = visible_token(token)
        assert shown
        assert shown == shown.strip(" \n\r\t")
        assert shown.isprintable()

    def test_numbers(self):
        assert (number(-0.0001, 2), number(-1.5, 1), number(math.inf * 0, 2)) == ("0", "\N{MINUS SIGN}1.5", "")


class TestStyle:
    def test_both_arms_are_equally_light(self):
        colours = diverging()
        for reach in (0.1, 0.25, 0.5):
            up, down = (luminance(colours(0.5 + side * reach)[:3]) for side in (1, -1))
            assert abs(up - down) < 0.12
        lightness = [luminance(colours(i / 20)[:3]) for i in range(21)]
        assert lightness[:11] == sorted(lightness[:11])
        assert lightness[10:] == sorted(lightness[10:], reverse=True)

    def test_sign_colours(self):
        assert (sign_colour(0.1), sign_colour(-0.1)) == (POSITIVE, NEGATIVE)
        assert sign_colour(float("nan")) not in (POSITIVE, NEGATIVE)
        assert text_on("#ffffff") != text_on("#000000")

    def test_no_setting_of_the_caller_is_changed_or_used(self):
        before = dict(matplotlib.rcParams)
        figure = heatmap(grid_of([[0.1, -0.2]]))
        plain = figure_bytes(figure, "png")
        with style():
            assert matplotlib.rcParams["text.parse_math"] is False
        assert dict(matplotlib.rcParams) == before
        with matplotlib.rc_context(
            {"font.size": 30, "image.cmap": "jet", "axes.facecolor": "red", "svg.fonttype": "path"}
        ):
            assert figure_bytes(heatmap(grid_of([[0.1, -0.2]])), "png") == plain
            assert b"<text" in figure_bytes(figure, "svg")


class TestCircuit:
    def test_every_node_and_edge_is_drawn(self):
        nodes, edges = random_circuit(4, 8, 40)
        figure = draw_circuit(nodes, edges, title="a $title$ & more")
        assert {node.name for node in nodes} | {"a $title$ & more"} <= set(texts(figure))
        ids = {element.get("id") for element in svg(figure).iter()}
        assert {edge.name for edge in edges} <= ids

    def test_input_is_at_the_bottom_and_layers_follow(self):
        nodes, edges = random_circuit(3, 4, 30)
        height = {t.get_text(): t.get_position()[1] for t in draw_circuit(nodes, edges).axes[0].texts}
        assert min(height[node.name] for node in nodes) == height["input"]
        assert max(height[node.name] for node in nodes) == height["logits"]
        for edge in edges:
            assert height[edge.source] < height[edge.target]

    def test_colour_is_sign_and_width_is_strength(self):
        nodes = [DrawnNode.of("input"), DrawnNode.of("m0"), DrawnNode.of("m1"), DrawnNode.of("logits")]
        scores = {"input->m0": 1.0, "m0->m1": -0.5, "m1->logits": 0.01, "input->logits": math.nan}
        figure = draw_circuit(nodes, [DrawnEdge.of(name, score) for name, score in scores.items()])
        line = {a.get_gid(): a for a in figure.axes[0].get_children() if a.get_gid() in scores}
        red, _, blue = (line["input->m0"].get_edgecolor()[i] for i in range(3))
        assert blue > red
        red, _, blue = (line["m0->m1"].get_edgecolor()[i] for i in range(3))
        assert red > blue
        widths = [line[name].get_linewidth() for name in scores]
        assert widths[0] > widths[1] > widths[2] >= widths[3] > 0
        assert {"helps (score > 0)", "hurts (score < 0)", "not scored"} <= set(texts(figure))

    def test_slots_end_at_their_own_ports(self):
        nodes = [DrawnNode.of(name) for name in ("input", "a0.h0", "logits")]
        edges = [DrawnEdge.of(f"input->a0.h0<{slot}>", 1.0) for slot in "qkv"] + [DrawnEdge.of("a0.h0->logits", 1.0)]
        figure = draw_circuit(nodes, edges)
        ends = {
            a.get_gid(): a.get_path().vertices[-1][0] for a in figure.axes[0].get_children() if "->" in str(a.get_gid())
        }
        assert ends["input->a0.h0<q>"] < ends["input->a0.h0<k>"] < ends["input->a0.h0<v>"]
        assert {"q", "k", "v", "query"} <= set(texts(figure))
        assert "query" not in texts(draw_circuit([DrawnNode.of("input"), DrawnNode.of("logits")], []))

    def test_nodes_are_filled_by_their_effect_if_there_is_one(self):
        effects = {"m0": 0.5, "m1": -0.5, "m2": None}
        nodes = [DrawnNode.of("input"), *(DrawnNode.of(n, e) for n, e in effects.items()), DrawnNode.of("logits")]
        figure = draw_circuit(nodes, [DrawnEdge.of("input->logits", 1.0)])
        fill = {a.get_gid(): a.get_facecolor() for a in figure.axes[0].patches if a.get_gid() in effects}
        assert fill["m0"][2] > fill["m0"][0]
        assert fill["m1"][0] > fill["m1"][2]
        assert fill["m2"][:3] == (1.0, 1.0, 1.0)
        assert "effect of patching the node alone" in texts(figure)
        bare = draw_circuit([DrawnNode.of("input"), DrawnNode.of("logits")], [DrawnEdge.of("input->logits", 1.0)])
        assert "effect of patching the node alone" not in texts(bare)

    @pytest.mark.parametrize(("n_layers", "n_heads", "n_edges"), [(4, 8, 30), (4, 8, 150), (12, 12, 40)])
    def test_node_boxes_do_not_overlap_and_no_edge_runs_behind_one(self, n_layers, n_heads, n_edges):
        nodes, edges = random_circuit(n_layers, n_heads, n_edges)
        axes = draw_circuit(nodes, edges).axes[0]
        boxes = {
            a.get_gid(): a.get_path().get_extents(a.get_patch_transform())
            for a in axes.patches
            if "->" not in str(a.get_gid()) and a.get_gid()
        }
        assert set(boxes) == {node.name for node in nodes}
        for name, box in boxes.items():
            others = [other for key, other in boxes.items() if key != name]
            assert not any(box.overlaps(other) for other in others)
        lines = [a for a in axes.get_children() if "->" in str(a.get_gid())]
        assert len(lines) == len(edges)
        for line in lines:
            source, target = line.get_gid().split("<")[0].split("->")
            points = line.get_path().interpolated(1).to_polygons(closed_only=False)[0]
            for name, box in boxes.items():
                assert name in (source, target) or not any(box.contains(*point) for point in points), line.get_gid()

    def test_beyond_a_bound_the_strongest_edges_are_drawn_and_the_figure_says_so(self, monkeypatch):
        monkeypatch.setattr("circuitlab.viz.circuit.MOST_EDGES", 25)
        nodes, edges = random_circuit(4, 8, 60)
        figure = draw_circuit(nodes, edges)
        drawn = {a.get_gid() for a in figure.axes[0].get_children() if "->" in str(a.get_gid())}
        assert drawn == {edge.name for edge in sorted(edges, key=lambda edge: -edge.strength)[:25]}
        assert any(f"the 25 strongest of {len(edges):,} edges" in text for text in texts(figure))

    def test_ordering_removes_crossings_that_need_not_be(self):
        rows = [["a", "b", "c"], ["d", "e", "f"]]
        half = dict.fromkeys("abcdef", 0.5)
        assert lay_out(rows, [("a", "f", 0.0), ("b", "e", 0.0), ("c", "d", 0.0)], half).n_crossings == 0
        # Three sources that all reach three targets cannot be drawn without crossings.
        full = [(source, target, 0.0) for source in "abc" for target in "def"]
        assert lay_out(rows, full, half).n_crossings == 9

    @pytest.mark.parametrize(
        ("nodes", "edges", "message"),
        [
            ([], [], "without nodes"),
            (["input", "input"], [], "twice"),
            (["input"], ["input->logits"], "not among the nodes"),
            (["m0", "a0.h0"], ["m0->a0.h0<q>"], "does not run forward"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused(self, nodes, edges, message):
        with pytest.raises(GraphError, match=message):
            draw_circuit([DrawnNode.of(name) for name in nodes], [DrawnEdge.of(name, 1.0) for name in edges])


class TestCurve:
    def test_it_shows_circuit_interval_random_and_references(self):
        figure = faithfulness_figure(FaithfulnessCurve.of(EVALUATION))
        shown = " ".join(texts(figure))
        for part in ("61 edges, 0.93", "3 random circuits", "whole model", "corrupted run", "1,519", "1 below"):
            assert part in shown
        assert figure.axes[0].get_xscale() == "log"
        low, high = figure.axes[0].get_ylim()
        assert low <= -0.1 < 1 < high

    def test_points_that_have_no_place_on_the_axis_are_left_out(self):
        assert FaithfulnessCurve.of(EVALUATION).points == ((10, 0.4), (1519, 1.0))
        assert faithfulness_figure(FaithfulnessCurve.of({"n_edges": 1, "faithfulness": math.nan})).axes

    def test_a_missing_field_is_named(self):
        with pytest.raises(FormatError, match="n_edges"):
            FaithfulnessCurve.of({"faithfulness": 1.0})
        with pytest.raises(FormatError, match="faithfulness_ci"):
            FaithfulnessCurve.of({"n_edges": 1, "faithfulness": 1.0, "faithfulness_ci": [1.0]})


class TestSave:
    @pytest.fixture(params=["heatmap", "circuit", "curve"])
    def figure(self, request):
        return {
            "heatmap": lambda: heatmap(grid_from_frame(sweep_frame(3, {"position": range(12), "label": HTML_TOKENS}))),
            "circuit": lambda: draw_circuit(*random_circuit(4, 8, 20), title="<b>&amp; $x$"),
            "curve": lambda: faithfulness_figure(FaithfulnessCurve.of(EVALUATION), title="a_b$"),
        }[request.param]

    @pytest.mark.parametrize("suffix", [".png", ".svg"])
    def test_equal_figures_give_equal_bytes_without_a_date(self, figure, suffix, tmp_path):
        first = save_figure(figure(), tmp_path / f"a{suffix}").read_bytes()
        assert save_figure(figure(), tmp_path / f"b{suffix}").read_bytes() == first
        assert b"Matplotlib" not in first
        assert b"dc:date" not in first
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]

    def test_other_values_give_other_bytes(self):
        a, b = (figure_bytes(heatmap(grid_of([[value]])), "png") for value in (0.5, -0.5))
        assert a != b

    def test_prompt_text_is_escaped_and_warns_of_nothing(self, figure):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            root = svg(figure())
        assert not [e for e in root.iter() if e.tag.endswith(("script", "}b"))]

    def test_dollars_and_underscores_are_letters(self):
        figure = heatmap(grid_of([[0.1, 0.2, 0.3]], col_labels=("$x^2$", "a_b", "</script>"), title="$broken"))
        written = {e.text for e in svg(figure).iter() if e.tag.endswith("text")}
        assert {"$x^2$", "a_b", "</script>", "$broken"} <= written

    def test_another_suffix_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"\.png or \.svg"):
            save_figure(heatmap(grid_of([[0.1]])), tmp_path / "a.pdf")
        assert not list(tmp_path.iterdir())
