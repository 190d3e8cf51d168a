"""Reprs: of every public result, however large, at most 15 lines and 1,500 characters, with its main facts."""

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, make_dataclass, replace
from importlib import import_module
from inspect import isfunction, signature
from pathlib import Path
from pkgutil import walk_packages
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import load, pairs
from features_by_hand import autoencoder

import circuitlab
from circuitlab import (
    Circuit,
    Edge,
    Example,
    ModelSpec,
    Node,
    PairBatch,
    PairSet,
    PairSplits,
    Task,
    drawing,
    features,
    neurons,
)
from circuitlab.attribution.lens import LogitLens, Point
from circuitlab.attribution.record import AttentionPatterns, Attribution, Component
from circuitlab.data.pair import Pair
from circuitlab.data.text_values import TextValues
from circuitlab.discovery.scores import EdgeScores
from circuitlab.discovery.stability import Stability
from circuitlab.evaluation.knockouts import Minimality
from circuitlab.features.autoencoder import Autoencoder, Standard
from circuitlab.features.descriptions import Description, Descriptions
from circuitlab.graphs.prune import real_edges
from circuitlab.neurons.direct_effects import WeightEntry, WeightTable
from circuitlab.parts import Layout, Reader
from circuitlab.patching.edges.edges import EdgeEffects
from circuitlab.patching.grid import Grid, Grids
from circuitlab.predictions.log_probs import TextLogProbs
from circuitlab.result import Result
from circuitlab.runs.mib import MibCell
from circuitlab.runs.reproduce import FileCheck, Reproduction
from circuitlab.summary import Results, Summary

LINES, CHARACTERS = 15, 1500
# A text that a careless repr would spread over lines, send to a terminal, or fail to encode.
HOSTILE = "line\nbreak \x1b[31m\x00\ud800 \u2028" + "long " * 2000


def assert_short(value: object) -> str:
    start = time.perf_counter()
    for text in (repr(value), str(value)):
        assert len(text) <= CHARACTERS, f"{type(value).__name__}: {len(text):,} characters"
        assert len(text.splitlines()) <= LINES, f"{type(value).__name__}: {len(text.splitlines())} lines"
        text.encode("utf-8")
        assert "\x1b" not in text
    assert time.perf_counter() - start < 10, f"{type(value).__name__}: {time.perf_counter() - start:.1f} s"
    return repr(value)


def inside(value: object) -> Iterator[object]:
    """A value and every object of the library in it."""
    if type(value).__module__.startswith("circuitlab.") or isinstance(value, Results):
        yield value
    if is_dataclass(value):
        for field in fields(value):
            yield from inside(getattr(value, field.name))
    elif isinstance(value, Mapping | tuple | list):
        for one in list(value.values() if isinstance(value, Mapping) else value)[:2]:
            yield from inside(one)


@pytest.fixture(scope="module")
def results(bundled) -> dict[str, Any]:
    """What every public function gives, by its name."""
    c, model, batch = circuitlab, load("gpt2"), pairs()
    task = c.load_task("gendered-pronouns")
    splits = task.pairs(bundled, n=8)
    scores = c.score_edges(model, batch, "eap", axis="position")
    circuit = c.select(model, scores, batch, n_edges=40)
    text, own = "Sally is a good person.", autoencoder("gpt2", "resid_post")
    small = c.load_autoencoder(model=bundled)
    run = c.discover(
        task, model=bundled, n=8, method="eap", selection={"n_edges": 20}, stability=2, allow_weak_gap=True
    )
    curves = {
        name: tuple(point.faithfulness for point in getattr(run.evaluation, curve))
        for name, curve in (("by_size", "curve"), ("by_sign", "curve_signed"))
    }
    cell = MibCell(
        task="ioi", model="bundled", name="ioi_bundled", method="eap", split="validation", n_train=8, n_evaluated=8,
        dropped={HOSTILE: 1}, accuracy=1.0, clean=1.0, empty=-1.0, areas=run.evaluation.areas, scores=scores, **curves,
    )  # fmt: skip
    found = {
        "attention": c.attention(bundled, splits.discovery[0], ["a0.h0"]),
        "check_task": c.check_task(task, bundled, n=8),
        "circuit_of_nodes": c.circuit_of_nodes(bundled.spec, ["a0.h1", "m3"]),
        "node_overlap": c.node_overlap(circuit, {"both": ["a0.h1", "m1"]}),
        "compare": c.compare(circuit, circuit.with_mask(circuit.mask & False)),
        "compile_model": c.compile_model(c.compiled_models()[0]),
        "continue_text": c.continue_text(bundled, [text, "He"], 2),
        "direct_attribution": c.direct_attribution(model, batch),
        "discover": run,
        "estimate_sweep": c.estimate_sweep(model, batch, "head_z"),
        "evaluate": run.evaluation,
        "lens_tokens": c.lens_tokens(bundled, splits.discovery[0]),
        "load_autoencoder": small,
        "load_circuit": circuit,
        "load_model": bundled,
        "load_task": task,
        "logit_lens": c.logit_lens(model, batch),
        "mib": replace(cell, control=cell),
        "patch_edges": c.patch_edges(model, batch, ["m0->logits"], axis="position"),
        "path_patch": c.path_patch(model, batch, None, ["logits"]),
        "predict": c.predict(bundled, [text, "He"], answers=[" She", " He"]),
        "recovery": c.recovery(circuit.spec, circuit.scores, circuit.mask, n_resamples=10),
        "score_edges": scores,
        "score_nodes": c.score_nodes(model, batch, "eap", level="neuron"),
        "select": circuit,
        "stability": run.stability,
        "sweep": c.sweep(model, batch, ["head_z", "resid_pre", "neuron"], metric=["logit_diff", "prob_diff"]),
        "test_circuit": c.test_circuit(model, circuit, batch, n_random=2, n_permutations=9),
        "text_log_probs": c.text_log_probs(bundled, [text, "He is"]),
        "ablation_effect": neurons.ablation_effect(bundled, [text], [1, 2], layer=0),
        "activations": neurons.activations(bundled, text, 0, [1, 2]),
        "importance": neurons.importance(bundled, "<b>Bold</"),
        "noise_sensitivity": neurons.noise_sensitivity(bundled, text, 0, 3, n_samples=4),
        "optimise_prompts": neurons.optimise_prompts(bundled, 0, 3, n_prompts=2, n_tokens=2, steps=2),
        "simplify": neurons.simplify(bundled, text, 0, 3),
        "top_examples": neurons.top_examples(bundled, [text, "He."], 0, 3, k=2),
        "top_neurons": neurons.top_neurons(bundled, " She"),
        "top_tokens": neurons.top_tokens(bundled, 0, 3),
        "features": features.features(bundled, small, [text]),
        "load_descriptions": Descriptions(entries=tuple(Description(feature=i, text=HOSTILE) for i in range(20))),
        "quality": features.quality(bundled, small, [text]),
        "rank_features": features.rank_features(model, own, batch),
        "search_descriptions": Results(Description(feature=i, text="word") for i in range(1000)),
        "splice": features.splice(model, own, batch),
        "sweep_features": features.sweep_features(model, own, batch),
    }
    found["outliers"] = neurons.outliers(bundled, [text, "He was a very polite and kind doctor."], 0)
    with_norm = neurons.outliers(load("solu"), [torch.arange(20), torch.arange(5, 25)], 0)
    found["norm_ratios"] = neurons.norm_ratios(with_norm, n=3)
    return found


# What gives a text, words, a path, a table of pandas or a context manager, a `Run`, a `NodeOverlap` or `EdgeScores` as
# above, and `reproduce`, which is `FileCheck`s below.
NO_RESULT = {
    "cite",
    "compare_published",
    "compiled_models",
    "from_tracr",
    "load_run",
    "load_scores",
    "reproduce",
    "top_heads",
    "words_of",
    "write_report",
    "attached",
}
NO_RESULT |= {"save_autoencoder"}


def test_every_public_function_is_there(results):
    functions = {
        name
        for module in (circuitlab, neurons, features)
        for name in module.__all__
        if isfunction(getattr(module, name))
    }
    assert functions == set(results) | NO_RESULT


def test_every_result_and_all_in_it_is_short(results):
    seen = set[str]()
    for result in results.values():
        for value in inside(result):
            text = assert_short(value)
            seen.add(type(value).__name__)
            if isinstance(value, Summary):
                assert text.startswith(f"<{type(value).__name__}")
    assert {"Grid", "Run", "Evaluation", "PairSplits", "Selection", "BridgeModel", "CurvePoint"} <= seen


def test_no_dataclass_hides_the_short_repr():
    for module in walk_packages(circuitlab.__path__, "circuitlab."):
        if not module.name.endswith("__main__"):
            for value in vars(import_module(module.name)).values():
                if isinstance(value, type) and issubclass(value, Summary) and value is not Summary:
                    assert value.__repr__ is Summary.__repr__, value


def test_public_return_types_are_short(results):
    """Each function gives what its signature says: a class of the loop above."""
    for module in (circuitlab, neurons, features):
        for name in set(module.__all__) & set(results):
            said = str(signature(getattr(module, name)).return_annotation)
            assert type(results[name]).__name__ in said or isinstance(results[name], Results), name


# What is loaded to work with, and has files of its own.
NO_TABLE = {"load_autoencoder", "load_model", "load_task"}


def assert_a_result(value: Any, tmp_path: Path) -> None:
    """A table, a record that JSON takes, and the picture if there is one."""
    frame, record = value.to_frame(), value.to_record()
    assert isinstance(frame, pd.DataFrame)
    assert len(frame)
    assert isinstance(record, dict | list)
    assert json.loads(json.dumps(record, allow_nan=False)) is not None
    if any(("figure", f"{cls.__module__}:{cls.__qualname__}") in drawing._views for cls in type(value).__mro__):
        value.plot().save(tmp_path / "drawn.png")
        assert (tmp_path / "drawn.png").stat().st_size > 1000


def test_every_result_has_a_table_a_record_and_its_picture(results, tmp_path):
    assert drawing.draw(results["select"]) is not None  # all pictures are registered now
    parts = {"of one metric": results["sweep"]["head_z"].of_metric("prob_diff"), "of": results["sweep"]["neuron"]}
    parts["load_descriptions"] = Descriptions(entries=(Description(feature=1, text="word"),))
    selection, reproduced = results["select"].selection, Reproduction((FileCheck("a.csv", "differs"),), True)
    spans = circuitlab.patch_edges(load("gpt2"), pairs(), ["m0->logits", "m0->m1"])
    failed = []
    for name, value in (results | parts | {"selection": selection, "reproduce": reproduced, "all": spans}).items():
        if name not in NO_TABLE:
            try:
                assert_a_result(value, tmp_path)
            except Exception as error:
                failed.append(f"{name}: {type(value).__name__}: {error!r}")
    assert not failed, "\n".join(failed)


def test_the_check_of_results_can_fail(results, tmp_path):
    @dataclass(frozen=True, repr=False)
    class Bare(Summary):
        value: float = 1.0

    @dataclass(frozen=True, repr=False)
    class NotFinite(Result):
        def to_record(self):
            return {"value": float("nan")}

        def to_frame(self):
            return pd.DataFrame({"value": [1.0]})

    with pytest.raises(AttributeError, match="to_frame"):
        assert_a_result(Bare(), tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        assert_a_result(NotFinite(), tmp_path)


def test_rows_of_records_are_those_of_tables(results):
    grid = results["sweep"]["head_z"]
    assert [row["value"] for row in grid.to_record()["rows"]] == pytest.approx(grid.to_frame()["value"].tolist())
    table = results["sweep"].to_frame()
    assert [*table["site"].drop_duplicates()] == [*results["sweep"]]
    assert len(table) == sum(len(one.to_frame()) for one in results["sweep"].values())
    assert table["head"].dtype == "Int64"
    assert table.loc[table["site"] == "resid_pre", "head"].isna().all()
    several = results["predict"]
    assert several.to_frame()["result"].max() == 1
    assert several.to_record() == [one.to_record() for one in several]


SPEC = ModelSpec(
    name="HuggingFaceTB/SmolLM2-135M", n_layers=30, n_heads=9, n_kv_heads=3, d_model=576, d_head=64, d_vocab=49152,
    n_ctx=8192, parallel=False, has_mlp=True, causal=True,
)  # fmt: skip


def pair(number: int) -> Pair:
    words = {"answers": (HOSTILE,), "distractors": (HOSTILE,), "spans": {HOSTILE: (0, 1)}}
    ids = {name: tuple(range(500)) for name in ("clean_ids", "corrupt_ids", "answer_ids", "distractor_ids")}
    tokens = dict.fromkeys(("clean_tokens", "corrupt_tokens"), ("token",) * 500)
    return Pair(id=f"discovery-{number}", clean=HOSTILE, corrupt=HOSTILE, **words, **ids, **tokens)


@pytest.fixture(scope="module")
def large() -> dict[str, Any]:
    layout, rng = Layout.of(SPEC), np.random.default_rng(0)
    real = real_edges(layout)
    values = rng.normal(size=real.shape) * real
    scores = EdgeScores(
        spec=SPEC, values=values, standard_error=np.abs(values), method="eap", metric="logit_diff", n_examples=100,
        checks={f"check {i}": 0.1 for i in range(50)}, chosen=real,
    )  # fmt: skip
    circuit = scores.circuit(real)
    edges = tuple(layout.edges())
    long = np.zeros(len(edges))
    words, many = (HOSTILE,) * 3000, np.zeros(3000)
    sets = PairSet(tuple(pair(number) for number in range(300)))
    grid = Grid(
        site="neuron", direction="denoise", metric=HOSTILE, unit="logits", column_kind="position", columns=words[:50],
        per_example=rng.normal(size=(30, 200, 50, 2)), clean=np.ones(2), corrupt=np.zeros(2), member_kind="neuron",
        members=tuple(map(str, range(200))),
    )  # fmt: skip
    huge = torch.empty(49152, 576, device="meta")
    return {
        "scores": scores,
        "circuit": circuit,
        "grid": grid,
        "grids": Grids(replace(grid, site=f"site {i}") for i in range(40)),
        "comparison": circuitlab.compare(circuit, circuit.with_mask(real & False)),
        "stability": Stability(
            circuit=circuit, chosen=rng.random((20, len(edges))) < 0.1, over="bootstrap", method="eap", seed=0,
            rescored=True,
        ),
        "minimality": Minimality(edges=edges, effect=long, low=long, high=long),
        "edge effects": EdgeEffects(
            edges=edges, direction="noise", metric="logit_diff", unit="logits", column_kind="", columns=("all",),
            per_example=rng.normal(size=(len(edges), 1, 2)), clean=np.ones(2), corrupt=np.zeros(2), seed=0,
        ),
        "pairs": sets,
        "splits": PairSplits(discovery=sets, held_out=sets, dropped={HOSTILE: 3}),
        "batch": PairBatch.from_tokens(*(torch.zeros(500, 900, dtype=torch.long) for _ in range(4))),
        "task": Task(name="task", version="1", summary="long " * 90, draw=lambda rng: None, metric="m" * 9000),
        "example": Example(clean="a" * 10_000, corrupt="b\n" * 5000, answer="c" * 10_000, distractor="d"),
        "attention": AttentionPatterns(
            tokens=words[:40], heads=tuple(f"a0.h{i}" for i in range(270)), patterns=np.zeros((270, 40, 40))
        ),
        "lens": LogitLens(
            metric="logit_diff", unit="", run="clean", norm="applied",
            points=tuple(Point(i, "resid_post") for i in range(200)), per_example=np.zeros((200, 3)),
        ),
        "attribution": Attribution(
            metric="m", run="clean", by="neuron", components=tuple(Component(HOSTILE, "neuron") for _ in many),
            per_example=np.zeros((3000, 2)), total=np.zeros(2),
        ),
        "text values": TextValues(title=HOSTILE, tokens=words, series=words[:300], values=np.zeros((300, 3000))),
        "log probs": TextLogProbs(
            text=HOSTILE, tokens=words, ids=(1,) * 3000, log_probs=many, ranks=many.astype(int), best=words,
            best_log_probs=many,
        ),
        "weights": WeightTable(
            entries=tuple(WeightEntry(layer=0, neuron=i, token=HOSTILE, id=i, value=0.1) for i in range(5000))
        ),
        "autoencoder": Autoencoder(
            name=HOSTILE, site="resid_post", layer=1, encoder=Standard(bias=huge[:, 0]), w_enc=huge.T, w_dec=huge,
            b_dec=huge[0],
        ),
        "results": Results([grid] * 100),
    }  # fmt: skip


def test_of_real_size(large):
    assert Layout.of(SPEC).n_edges == 123_211
    for value in large.values():
        for one in inside(value):
            assert_short(one)


def test_the_check_above_can_fail(large):
    """What data classes print by themselves is what was complained about."""
    edges = Minimality(edges=large["minimality"].edges, effect=np.zeros(1), low=np.zeros(1), high=np.zeros(1)).edges
    plain = make_dataclass("Plain", [("edges", tuple)])
    with pytest.raises(AssertionError, match="characters"):
        assert_short(plain(edges))


def test_a_repr_says_what_matters(results, large):
    text = repr(results["select"])
    assert f"{results['select'].n_edges:,} of 110 edges" in text
    assert "n_edges 40" in text
    best, score = max(results["select"].edges(), key=lambda one: abs(one[1]))
    assert f"{best.name}" in text
    assert f"{score:.4g}" in text
    evaluation = results["evaluate"]
    low, high = evaluation.interval
    assert f"faithfulness {evaluation.faithfulness:.3f}, 95 % interval [{low:.3f}, {high:.3f}]" in repr(evaluation)
    grid = large["grid"]
    at = np.unravel_index(np.argmax(np.abs(grid.values)), grid.per_example.shape[:-1])
    assert f"layer {at[0]}, neuron {at[1]}, position {at[2]}" in repr(grid)
    assert "123,211 edges" in repr(large["scores"])


def test_a_grid_of_spans_and_missing_cells(results):
    grid = results["sweep"]["head_z"].of_metric("logit_diff")
    gone = replace(grid, per_example=np.full_like(grid.per_example, np.nan))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "largest" not in assert_short(gone)
    assert "layers" in assert_short(replace(grid, normalised=False))


def test_parts_are_named_by_their_names():
    edge = Edge.parse("m0->a3.h2<q>")
    assert repr(edge) == "Edge.parse('m0->a3.h2<q>')"
    assert eval(repr(edge)) == edge
    assert eval(repr(edge.source)) == edge.source == Node.parse("m0")
    assert repr(edge.reader) == "<Reader a3.h2<q>>"
    assert Reader(Node.parse("m0")) != edge.reader


class TestContainers:
    def test_in_ipython_one_line_each(self, results):
        """IPython prints what is inside containers with the same method, and says how deep it is."""
        grid, told = results["sweep"]["head_z"], list[str]()
        for depth in (1, 2):
            printer = SimpleNamespace(stack=list(range(depth)), text=told.append)
            grid._repr_pretty_(printer, cycle=False)
        assert told[0] == repr(grid)
        assert told[1] == repr(grid).splitlines()[0]

    def test_several_grids(self, results):
        text = repr(results["sweep"])
        assert len(text.splitlines()) == 4
        assert "neuron     <Grid of neuron: 2 metrics x 2 layers x" in text
        assert isinstance(results["sweep"], Mapping)

    def test_several_texts(self, results):
        text = repr(results["predict"])
        assert text.splitlines()[0] == "<2 results>"
        assert isinstance(results["predict"], tuple)
        assert results["predict"] == tuple(results["predict"])

    def test_a_result_in_a_result_is_one_line(self):
        @dataclass(repr=False)
        class Inner(Summary):
            numbers: list[int]

        @dataclass(repr=False)
        class Outer(Summary):
            inner: Inner
            text: str

        assert repr(Outer(Inner([1]), "a\nb")) == "<Outer>\n  inner  <Inner>\n  text   'a\\nb'"
        assert repr(Inner(list(range(9)))) == "<Inner>\n  numbers  (0, 1, 2, 3, ... (9 in all))"


def test_circuits_without_edges_or_names():
    layout = Layout.of(SPEC)
    shape = (len(layout.writers), len(layout.readers))
    empty = Circuit(spec=SPEC, mask=np.zeros(shape, dtype=bool), scores=np.full(shape, np.nan))
    assert "0 of 123,211 edges" in assert_short(empty)
    assert_short(empty.with_mask(real_edges(layout)))
