"""Two circuits side by side: counts by hand, correlations by scipy, and the drawing of both."""

import json
from dataclasses import replace

import numpy as np
import pytest
from layouts import spec_of
from scipy import stats
from test_exchange import SMALL, circuit_of

from circuitlab import Circuit, GraphError, compare
from circuitlab.cli import main
from circuitlab.graphs.prune import real_edges
from circuitlab.viz import figure_bytes

OTHER = circuit_of(SMALL.spec, 15, seed=4)


@pytest.fixture(scope="module")
def found():
    return compare(SMALL, OTHER, names=("one", "other"))


def kept(circuit: Circuit) -> set[str]:
    return {edge.name for edge, _ in circuit.edges()}


def test_edges_by_hand(found):
    ours, theirs = kept(SMALL), kept(OTHER)
    assert {edge.name for edge in found.shared} == ours & theirs != set()
    assert {edge.name for edge in found.only_first} == ours - theirs != set()
    assert {edge.name for edge in found.only_second} == theirs - ours != set()
    assert found.jaccard_edges == len(ours & theirs) / len(ours | theirs)
    nodes = [{node.name for node in circuit.nodes} for circuit in (SMALL, OTHER)]
    assert found.jaccard_nodes == len(nodes[0] & nodes[1]) / len(nodes[0] | nodes[1])
    frame = found.to_frame()
    assert set(frame["edge"]) == ours | theirs
    assert set(frame[frame["in_first"]]["edge"]) == ours


def test_correlations_are_scipy_s_over_every_real_edge(found):
    real = real_edges(SMALL.layout)
    a, b = SMALL.scores[real], OTHER.scores[real]
    assert found.n_ranked == SMALL.layout.n_edges
    assert found.spearman == pytest.approx(stats.pearsonr(stats.rankdata(a), stats.rankdata(b)).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(a, b).statistic)
    assert found.spearman_absolute == pytest.approx(stats.spearmanr(abs(a), abs(b)).statistic)


def test_a_circuit_and_itself():
    same = compare(SMALL, SMALL)
    assert (same.jaccard_edges, same.jaccard_nodes) == (1, 1)
    assert (same.spearman, same.kendall, same.spearman_absolute) == pytest.approx((1, 1, 1))
    assert (same.only_first, same.only_second) == ((), ())


def test_a_wrong_sign_is_seen():
    turned = compare(SMALL, replace(SMALL, scores=-SMALL.scores))
    assert turned.spearman == pytest.approx(-1)
    assert turned.spearman_absolute == pytest.approx(1)


def test_only_edges_that_both_have_scored_are_ranked():
    scores = SMALL.scores.copy()
    scores[0] = np.nan
    found = compare(SMALL, replace(SMALL, scores=scores))
    assert found.n_ranked == SMALL.layout.n_edges - int(real_edges(SMALL.layout)[0].sum())
    assert found.spearman == pytest.approx(1)
    bare = compare(SMALL, replace(SMALL, scores=np.full_like(scores, np.nan)))
    assert bare.n_ranked == 0
    assert bare.to_record()["spearman"] is None


def test_two_empty_circuits_are_alike():
    empty = SMALL.with_mask(np.zeros_like(SMALL.mask))
    assert compare(empty, empty).jaccard_edges == 1
    assert compare(empty, SMALL).jaccard_edges == 0


def test_circuits_of_different_models_are_refused():
    with pytest.raises(GraphError, match="'a' and 'b' are circuits of different graphs: n_heads is 2 and 3"):
        compare(SMALL, circuit_of(spec_of(2, 3), 5), names=("a", "b"))


def test_the_drawing_holds_every_edge_of_either_in_three_colours(found):
    svg = figure_bytes(found.plot(title="both"), "svg").decode()
    for name in kept(SMALL) | kept(OTHER):
        assert f'id="{name.replace(">", "&gt;").replace("<", "&lt;")}"' in svg
    for text in ("only one (", "only other (", f"both ({len(found.shared)})"):
        assert text in svg
    assert len({"#1d2329", "#7b3294", "#1b8a4b"} & set(svg.replace(";", " ").split())) == 3
    assert figure_bytes(found.plot(), "png") == figure_bytes(found.plot(), "png")


class TestCommand:
    def test_files_of_any_format(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        SMALL.save("a.json")
        OTHER.save("b.txt")
        for order in (("a.json", "b.txt"), ("b.txt", "a.json")):
            assert main(["compare", *order, "--json"]) == 0
            record = json.loads(capsys.readouterr().out)
            assert record["jaccard_edges"] == compare(SMALL, OTHER).jaccard_edges
            assert record["names"] == [name.split(".")[0] for name in order]
        assert main(["compare", "a.json", "b.txt", "--out", "deep/both.png"]) == 0
        assert "drawing: deep/both.png" in capsys.readouterr().out
        assert (tmp_path / "deep" / "both.png").read_bytes().startswith(b"\x89PNG")
        assert main(["compare", "a.json", "b.txt", "--out", "deep/both.png"]) == 2
        assert main(["compare", "a.json", "b.txt", "--out", "both.pdf"]) == 2
        assert main(["compare", "b.txt", "b.txt"]) == 2
        assert "Give its spec (--model)" in capsys.readouterr().err

    def test_convert(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        SMALL.save("a.json")
        for name in ("b.pt", "c.graphml", "d.node-link.json", "e.dot", "f.txt"):
            assert main(["convert", "a.json", name]) == 0
            assert capsys.readouterr().out == f"{name}: 12 of 46 edges\n"
        assert main(["convert", "b.pt", "again.json", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["n_edges"] == 12
        ours, theirs = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "again.json"))
        assert ours["edges"] == theirs["edges"]
        assert main(["convert", "a.json", "b.pt"]) == 2
        assert "b.pt' exists" in capsys.readouterr().err
        assert main(["convert", "a.json", "b.pt", "--force"]) == 0
        loose = SMALL.with_mask(SMALL.mask | (real_edges(SMALL.layout) & (np.arange(15) == 0)))
        loose.save("loose.json")
        assert main(["convert", "loose.json", "tight.json", "--prune", "--json"]) == 0
        assert json.loads(capsys.readouterr().out.split("edges\n")[-1])["n_edges"] == loose.pruned().n_edges
