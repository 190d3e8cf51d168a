"""Every result of a public function has a table, a record and a figure."""

import inspect
import json
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import load, pairs

import circuitlab
from circuitlab import compile_model, estimate_sweep, evaluate, recovery, score_edges, score_nodes, select
from circuitlab import test_circuit as tested
from circuitlab.drawing import _load, _views, draw
from circuitlab.errors import ConfigError, WrongTypeError
from circuitlab.evaluation.curve import Areas
from circuitlab.graphs.compare import NodeOverlap
from circuitlab.patching.gap import Gap
from circuitlab.predictions.log_probs import TextLogProbs
from circuitlab.predictions.next_token import Continuation, NextToken, Prediction
from circuitlab.result import Result
from circuitlab.runs.mib import MibCell
from circuitlab.runs.reproduce import FileCheck, Reproduction
from circuitlab.summary import Summary

# What public functions return that is an input of others, and no result: models, tasks, autoencoders, paths, tables.
NO_RESULTS = {"BridgeModel", "Any", "Autoencoder", "Task", "Path", "DataFrame", "T"}


def result_types() -> dict[str, type]:
    """The classes that the public functions of `circuitlab` return, and results among the fields of an evaluation."""
    found: dict[str, type] = {"Areas": Areas}
    for name in circuitlab.__all__:
        function = getattr(circuitlab, name)
        if not inspect.isfunction(function):
            continue
        module = vars(sys.modules[inspect.unwrap(function).__module__])
        annotation = inspect.signature(function).return_annotation
        for word in re.findall(r"\b[A-Z]\w*", annotation if isinstance(annotation, str) else annotation.__name__):
            if word not in NO_RESULTS:
                found[word] = module[word] if word in module else getattr(circuitlab, word)
    return found


TYPES = result_types()


def has_figure(kind: type) -> bool:
    _load()
    return any(("figure", f"{cls.__module__}:{cls.__qualname__}") in _views for cls in kind.__mro__)


def test_the_types_are_those_of_the_door():
    assert {"Areas", "EdgeScores", "NodeScores", "Circuit", "CircuitTests", "Evaluation", "Grid", "Grids"} <= set(TYPES)
    assert {"Estimate", "MibCell", "Prediction", "Recovery", "Reproduction", "Run", "TaskCheck"} <= set(TYPES)
    assert len(TYPES) >= 25


@pytest.mark.parametrize("name", TYPES)
def test_each_has_a_table_a_record_and_a_figure(name):
    kind = TYPES[name]
    assert issubclass(kind, Summary)
    assert [word for word in ("to_frame", "plot", "to_record") if not callable(getattr(kind, word, None))] == []
    assert "plot" in {word for cls in kind.__mro__ if cls is not Result for word in vars(cls)} or has_figure(kind)


def test_a_result_without_a_figure_is_found():
    class Bare(Result):
        pass

    assert not has_figure(Bare)
    with pytest.raises(WrongTypeError, match="Bare has no figure"):
        Bare().plot()


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    model, batch = load("gpt2"), pairs()
    scores = score_edges(model, batch, "eap")
    circuit = select(model, scores, batch, n_edges=60)
    judged = evaluate(model, circuit, batch, n_random=2, n_knockouts=2)
    tests = tested(model, circuit, batch, n_random=20, n_permutations=50)
    built = compile_model("copier")
    known = built.pairs(n=4)
    found = score_edges(built.model, known, "eap")
    one = NextToken(token=" a", id=1, rank=0, logit=2.0, log_prob=-0.2, probability=0.8)
    half = np.linspace(0.1, 1.0, 10)
    cell: dict[str, Any] = {
        "task": "ioi", "model": "tiny", "name": "ioi_tiny", "method": "eap", "split": "validation", "n_train": 4,
        "n_evaluated": 4, "dropped": {}, "accuracy": 1.0, "clean": 2.0, "empty": -1.0, "areas": judged.areas,
        "by_sign": tuple(half), "by_size": tuple(half**2), "scores": scores,
    }  # fmt: skip
    return {
        "edges": scores,
        "random": score_edges(model, batch, "random"),
        "sizes": score_edges(model, batch, "ifr"),
        "nodes": score_nodes(model, batch, "eap"),
        "neurons": score_nodes(model, batch, "eap", level="mlp-neuron"),
        "minimality": judged.minimality,
        "areas": judged.areas,
        "tests": tests,
        "tests of edges": tests.edges,
        "recovery": recovery(found.spec, found.values, built.truth("corrupt", known).mask),
        "estimate": estimate_sweep(model, batch, "head_z"),
        "overlap": NodeOverlap(
            names=("circuit", "paper"), classes={"name movers of the last layers": ("a1.h0", "a1.h1")},
            found=("a1.h0",), n_nodes=8,
        ),
        "prediction": Prediction(text="a $b", tokens=("a",), answers=(one,), top=(one,)),
        "continuation": Continuation(text="a", continued=" a", tokens=(" a",), ids=(1,), log_probs=(-0.2,)),
        "log-probabilities": TextLogProbs(
            text="a a", tokens=("a", " a"), ids=(1, 1), log_probs=np.array([np.nan, -0.2]), ranks=np.array([-1, 0]),
            best=("", " a"), best_log_probs=np.array([np.nan, -0.2]),
        ),
        "check": circuitlab.discovery.behaviour.TaskCheck(
            task="t", model="tiny", metric="logit_diff", n=4, accuracy=1.0, top_token=1.0, clean=2.0, corrupt=-1.0,
            gap=Gap(mean=3.0, standard_error=0.1, low=2.5, high=3.5, n=4), dropped={},
        ),
        "reproduction": Reproduction(files=(FileCheck(name="x", status="same bytes", detail=""),), same_weights=True),
        "cell": MibCell(**cell),
        "cell with control": MibCell(**cell, control=MibCell(**cell)),
    }  # fmt: skip


NAMES = (
    "edges", "random", "sizes", "nodes", "neurons", "minimality", "areas", "tests", "tests of edges", "recovery",
    "estimate", "overlap", "prediction", "continuation", "log-probabilities", "check", "reproduction", "cell",
    "cell with control",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_drawn_and_their_labels_do_not_overlap(results, name, tmp_path: Path):
    result = results[name]
    figure = result.plot()
    assert (figure.save(tmp_path / "x.png")).stat().st_size > 3000
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()
    rows, columns = (
        [label.get_window_extent(renderer) for label in labels if label.get_text()]
        for labels in (axes.get_yticklabels(), axes.get_xticklabels())
    )
    for group in (rows, columns):
        assert not any(one.overlaps(other) for one, other in combinations(group, 2))
    title = axes.get_title(loc="left")
    assert title
    assert axes.get_xlabel()
    texts = [text for text in axes.get_children() if getattr(text, "get_text", str)() == title]
    boxes = [text.get_window_extent(renderer) for text in (*texts, axes.xaxis.label)]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes), "inside of the figure"
    assert len(result.to_frame()) >= 1
    assert json.dumps(result.to_record(), allow_nan=True)
    assert draw(result).get_size_inches().tolist() == figure.get_size_inches().tolist()


def bars_of(figure: Any) -> np.ndarray:
    return np.array([bar.get_width() for bar in figure.axes[0].patches])


def test_bars_are_the_largest_scores_in_their_order(results):
    scores = results["edges"]
    frame = scores.to_frame().sort_values("score", key=abs, ascending=False, kind="stable")
    assert np.allclose(bars_of(scores.plot(k=5)), frame["score"][:5])
    assert not np.allclose(bars_of(scores.plot(k=5)), frame["score"][1:6])
    nodes = results["nodes"].to_frame().sort_values("score", key=abs, ascending=False, kind="stable")
    assert np.allclose(bars_of(results["nodes"].plot(k=4)), nodes["score"][:4])


def test_bars_have_the_intervals_that_there_are(results):
    minimal = results["minimality"]
    lines = minimal.plot(k=3).axes[0].collections[0].get_segments()
    order = np.argsort(-np.abs(minimal.effect), kind="stable")[:3]
    assert np.allclose([[line[0][0], line[1][0]] for line in lines], np.c_[minimal.low[order], minimal.high[order]])
    assert "95 % intervals" in minimal.plot().axes[0].get_xlabel()
    assert "interval" not in results["areas"].plot().axes[0].get_xlabel()
    assert "99 % intervals" in results["check"].plot().axes[0].get_xlabel()


def test_units_follow_the_sign_of_the_scores(results):
    said = {name: results[name].plot().axes[0].get_xlabel() for name in ("edges", "random", "sizes")}
    assert "[logit diff]" in said["edges"]
    assert said["random"] == "score (the sign has no meaning)"
    assert "a size, never negative" in said["sizes"]


def test_areas_are_a_table_of_one_row(results):
    areas = results["areas"]
    assert areas.to_frame().iloc[0].to_dict() == pytest.approx(areas.to_record())
    assert repr(areas).startswith("<Areas CPR ")


def test_nothing_to_draw_is_said():
    for empty in (
        Prediction(text="a", tokens=("a",), answers=(), top=()),
        Continuation(text="a", continued="", tokens=(), ids=(), log_probs=()),
    ):
        with pytest.raises(ConfigError, match="nothing to draw"):
            empty.plot()
