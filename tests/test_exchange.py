"""Circuits in other programs' formats: the MIB / EAP-IG JSON both ways, networkx, GraphML that reads back equal."""

import json
import math
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import law_of
from layouts import GPT2, SHAPES, names, spec_of, specs

from circuitlab import Circuit, ConfigError, FormatError, MissingFileError, ModelSpec, load_circuit
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.random import random_circuit
from circuitlab.parts import Edge, Layout


def circuit_of(spec: ModelSpec, n_edges: int, seed: int = 0, **effects: float) -> Circuit:
    layout, rng = Layout.of(spec), np.random.default_rng(seed)
    scores = rng.normal(size=real_edges(layout).shape) * real_edges(layout)
    return Circuit(spec=spec, mask=random_circuit(layout, n_edges, rng), scores=scores, node_effects=effects)


SMALL = circuit_of(spec_of(2, 2), 12, m0=0.25, m1=-1.5)


def saved(circuit: Circuit, folder: Path) -> Path:
    circuit.save(folder / "circuit.json")
    return folder / "circuit.json"


def content(circuit: Circuit, folder: Path) -> dict[str, Any]:
    return json.loads(saved(circuit, folder).read_text(encoding="utf-8"))


def written(folder: Path, changed: Any) -> Path:
    path = folder / "changed.json"
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed), encoding="utf-8")
    return path


class TheirGraph:
    """A reader in the manner of EAP-IG's `Graph.from_model` and `Graph.from_json`: strict, and knowing nothing of ours.

    Every name in the file must be one of the graph's, `nodes` have `in_graph`, `edges` have `score` and `in_graph`;
    `logits` is skipped; matrices are indexed by their formulas.
    """

    def __init__(self, path: Path) -> None:
        d = json.loads(path.read_text())
        assert all(key in d for key in ("cfg", "nodes", "edges"))
        self.L, self.H = d["cfg"]["n_layers"], d["cfg"]["n_heads"]
        self.parallel, _ = d["cfg"]["parallel_attn_mlp"], d["cfg"]["d_model"]
        self.names = dict.fromkeys(self._edge_names())
        self.nodes_in_graph = np.zeros(1 + self.L * (self.H + 1), dtype=bool)
        self.scores = np.zeros((1 + self.L * (self.H + 1), self.L * (3 * self.H + 1) + 1))
        self.in_graph = np.zeros(self.scores.shape, dtype=bool)
        for name, entry in d["nodes"].items():
            if name != "logits":
                self.nodes_in_graph[self.forward(name)] = entry["in_graph"]
        for name, entry in d["edges"].items():
            self.names[name]  # a KeyError for an edge that is not in the graph
            at = self.matrix_index(name)
            self.scores[at], self.in_graph[at] = float(entry["score"]), bool(entry["in_graph"])

    def _edge_names(self):
        stream = ["input"]
        for layer in range(self.L):
            heads = [f"a{layer}.h{h}" for h in range(self.H)]
            for node in stream:
                yield from (f"{node}->{to}<{slot}>" for to in heads for slot in "qkv")
                if self.parallel:
                    yield f"{node}->m{layer}"
            stream = [*stream, *heads]
            if not self.parallel:
                yield from (f"{node}->m{layer}" for node in stream)
            stream.append(f"m{layer}")
        yield from (f"{node}->logits" for node in stream)

    def forward(self, name: str) -> int:
        if name == "input":
            return 0
        if name[0] == "m":
            return 1 + int(name[1:]) * (self.H + 1) + self.H
        layer, head = name[1:].split(".h")
        return 1 + int(layer) * (self.H + 1) + int(head)

    def matrix_index(self, name: str) -> tuple[int, int]:
        source, target = name.split("->")
        if target == "logits":
            return self.forward(source), -1
        if target[0] == "m":
            return self.forward(source), int(target[1:]) * (3 * self.H + 1) + 3 * self.H
        layer, rest = target[1:].split(".h")
        head, slot = rest[:-1].split("<")
        return self.forward(source), int(layer) * (3 * self.H + 1) + "qkv".index(slot) * self.H + int(head)


@pytest.mark.parametrize("spec", [spec_of(2, 2), spec_of(3, 2, parallel=True), spec_of(4, 8, d_model=128)], ids=names)
def test_their_reader_sees_our_circuit(spec, tmp_path):
    circuit = circuit_of(spec, 20)
    theirs = TheirGraph(saved(circuit, tmp_path))
    assert np.array_equal(theirs.in_graph, circuit.mask)
    assert np.array_equal(theirs.scores, circuit.scores)
    ours = {node.name for node in circuit.nodes}
    assert {n.name for n, kept in zip(circuit.layout.writers, theirs.nodes_in_graph, strict=True) if kept} == ours - {
        "logits"
    }


def test_their_reader_would_notice_a_file_that_is_not_theirs(tmp_path):
    d = content(SMALL, tmp_path)
    without_score = {**d, "edges": {name: {"in_graph": True} for name in d["edges"]}}
    renamed = {**d, "edges": {name.replace("<q>", ".q"): entry for name, entry in d["edges"].items()}}
    without_key = {key: d[key] for key in ("cfg", "edges")}
    for bad, error in ((without_score, KeyError), (renamed, KeyError), (without_key, AssertionError)):
        with pytest.raises(error):
            TheirGraph(written(tmp_path, bad))


def test_the_file_holds_the_whole_graph_in_their_form(tmp_path):
    d = content(SMALL, tmp_path)
    assert list(d) == ["cfg", "nodes", "edges"]
    assert d["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 16}
    assert list(d["nodes"]) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    assert len(d["edges"]) == 46
    for entry in d["edges"].values():
        assert set(entry) == {"score", "in_graph"}
        assert type(entry["score"]) is float
        assert type(entry["in_graph"]) is bool
    assert sum(entry["in_graph"] for entry in d["edges"].values()) == SMALL.n_edges == 12


def test_gpt2_s_file_has_the_published_numbers(tmp_path):
    d = content(circuit_of(GPT2, 756), tmp_path)
    assert (len(d["nodes"]), len(d["edges"])) == (158, 32_491)
    assert sum(entry["in_graph"] for entry in d["edges"].values()) == 756


@pytest.mark.parametrize("parallel", [False, True])
def test_edges_stand_in_the_order_of_their_construction(parallel, tmp_path):
    path = saved(circuit_of(spec_of(2, 2, parallel=parallel), 5), tmp_path)
    assert list(json.loads(path.read_text())["edges"]) == list(TheirGraph(path).names)


numbers = st.floats(allow_nan=False, allow_infinity=False)


@law_of(40)
@given(specs, st.data())
def test_a_circuit_comes_back_from_json_to_the_bit(tmp_path, spec, data):
    layout = Layout.of(spec)
    mask, scores = np.zeros(real_edges(layout).shape, dtype=bool), np.zeros(real_edges(layout).shape)
    for edge in data.draw(st.lists(st.sampled_from(list(layout.edges())), max_size=12)):
        mask[layout.edge_index(edge)] = data.draw(st.booleans())
        scores[layout.edge_index(edge)] = data.draw(numbers)
    circuit = Circuit(spec=spec, mask=mask, scores=scores)
    back = load_circuit(saved(circuit, tmp_path))
    assert np.array_equal(back.mask, mask)
    assert back.scores.tobytes() == scores.tobytes()
    ours, theirs = circuit.spec, back.spec
    for name in ("n_layers", "n_heads", "d_model", "parallel", "has_mlp"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert load_circuit(tmp_path / "circuit.json", spec).spec is spec


def test_the_effects_of_nodes_come_back_and_their_reader_does_not_mind(tmp_path):
    path = saved(SMALL, tmp_path)
    assert load_circuit(path).node_effects == {"m0": 0.25, "m1": -1.5}
    nodes = json.loads(path.read_text())["nodes"]
    assert {name: set(entry) for name, entry in nodes.items() if set(entry) != {"in_graph"}} == {
        "m0": {"in_graph", "sweep_effect"},
        "m1": {"in_graph", "sweep_effect"},
    }
    assert np.array_equal(TheirGraph(path).in_graph, SMALL.mask)
    assert nx.utils.graphs_equal(load_circuit(path).to_networkx(), Circuit(
        spec=load_circuit(path).spec, mask=SMALL.mask, scores=SMALL.scores, node_effects=SMALL.node_effects
    ).to_networkx())  # fmt: skip
    without = circuit_of(spec_of(2, 2), 12)
    assert load_circuit(saved(without, tmp_path)).node_effects == {}


def test_the_same_circuit_gives_the_same_bytes(tmp_path):
    first = saved(SMALL, tmp_path).read_bytes()
    assert saved(load_circuit(tmp_path / "circuit.json"), tmp_path).read_bytes() == first


def test_a_folder_stands_for_the_circuit_in_it(tmp_path):
    saved(SMALL, tmp_path)
    assert np.array_equal(load_circuit(str(tmp_path)).mask, SMALL.mask)


def test_nan_is_an_edge_that_was_never_scored(tmp_path):
    """EAP-IG writes NaN (as Python's json does) and reads it; so do we, and nothing else of the file suffers."""
    layout = SMALL.layout
    at = layout.edge_index(Edge.parse("m0->m1"))
    scores = SMALL.scores.copy()
    scores[at] = math.nan
    path = saved(Circuit(spec=SMALL.spec, mask=SMALL.mask.copy(), scores=scores), tmp_path)
    assert '"score": NaN' in path.read_text()
    for reader in (load_circuit, TheirGraph):
        back = reader(path).scores
        assert math.isnan(back[at])
        assert np.array_equal(np.delete(back.ravel(), np.ravel_multi_index(at, back.shape)),
                              np.delete(scores.ravel(), np.ravel_multi_index(at, back.shape)))  # fmt: skip


def test_null_is_taken_as_nan(tmp_path):
    """Programs that may not write NaN write null."""
    d = content(SMALL, tmp_path)
    d["edges"]["m0->m1"]["score"] = None
    back = load_circuit(written(tmp_path, d))
    assert math.isnan(back.scores[back.layout.edge_index(Edge.parse("m0->m1"))])


def test_edges_that_the_file_leaves_out_are_out(tmp_path):
    d = content(SMALL, tmp_path)
    d["edges"] = {"m0->m1": {"score": -2, "in_graph": True}}
    back = load_circuit(written(tmp_path, d))
    assert [(edge.name, score) for edge, score in back.edges()] == [("m0->m1", -2.0)]
    assert np.abs(back.scores).sum() == 2


def test_what_other_programs_add_is_left_alone(tmp_path):
    d = content(SMALL, tmp_path)
    d["nodes"]["m0"] |= {"score": 0.5, "neurons": [True] * 16, "neurons_scores": [0.1] * 16}
    d["edges"]["m0->m1"]["weight"] = 3
    d["note"] = "made elsewhere"
    d["cfg"]["act_fn"] = "gelu"
    d["nodes"]["m0"].pop("sweep_effect")
    assert load_circuit(written(tmp_path, d)).node_effects == {"m1": -1.5}, "their node scores are no effects of ours"
    assert np.array_equal(load_circuit(written(tmp_path, d)).mask, SMALL.mask)


def changed(path: str, value: Any) -> Any:
    """A change of the file's content: `a.b` is set to the value, or taken out where the value is `...`."""

    def apply(d: dict[str, Any]) -> dict[str, Any]:
        *parents, last = path.split("/")
        inner = d
        for key in parents:
            inner = inner[key]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
        return d

    return apply


FAULTS = {
    "no cfg": (changed("cfg", ...), ("cfg", "Field required")),
    "no nodes": (changed("nodes", ...), ("nodes", "Field required")),
    "no edges": (changed("edges", ...), ("edges", "Field required")),
    "no layers": (changed("cfg/n_layers", ...), ("cfg.n_layers",)),
    "no in_graph": (changed("edges/m0->m1", {"score": 1.0}), ("edges.m0->m1.in_graph", "Field required")),
    "a score in words": (changed("edges/m0->m1/score", "high"), ("edges.m0->m1.score", "number")),
    "a list of edges": (changed("edges", ["m0->m1"]), ("edges", "dictionary")),
    "infinity": (changed("edges/m0->m1/score", math.inf), ("'m0->m1'", "inf", "finite")),
    "minus infinity": (changed("edges/m0->m1/score", -math.inf), ("'m0->m1'", "-inf", "finite")),
    "an edge that runs backwards": (changed("edges/m1->m0", {"score": 1, "in_graph": True}), ("'m1->m0'", "after")),
    "an edge of a larger model": (changed("edges/m0->m7", {"score": 1, "in_graph": False}), ("'m0->m7'", "unknown")),
    "no edge at all": (changed("edges/m0 to m1", {"score": 1, "in_graph": True}), ("'m0 to m1'", "m0->a3.h2<q>")),
    "not an object": (lambda d: 7, ("an object", "cfg, nodes, edges")),
    "a list of no edges": (lambda d: [d], ("a list of edges", "--model")),
    "a node's score in words": (changed("nodes/m0/score", "high"), ("nodes.m0.score", "number", "'high'")),
    "an infinite node score": (changed("nodes/m0/score", math.inf), ("'m0'", "inf", "finite")),
    "too few neurons": (changed("nodes/m0/neurons", [True] * 3), ("'m0'", "3 neurons", "d_model is 16")),
    "neurons in words": (changed("nodes/m0/neurons", ["yes"] * 16), ("nodes.m0.neurons.0", "boolean", "'yes'")),
    "too many neuron scores": (changed("nodes/m0/neurons_scores", [0.5] * 17), ("'m0'", "17 neuron scores")),
    "an infinite neuron score": (changed("nodes/m0/neurons_scores", [math.inf] * 16), ("'m0'", "inf")),
    "a node of a larger model": (changed("nodes/a7.h0", {"in_graph": False}), ("unknown node 'a7.h0'", "a1.h0")),
    "a node that is none": (changed("nodes/mlp", {"in_graph": False}), ("'mlp' is no node", "a3.h2")),
    "yes for true": (changed("edges/m0->m1/in_graph", "yes"), ("edges.m0->m1.in_graph", "boolean", "'yes'")),
    "1 for true": (changed("edges/m0->m1/in_graph", 1), ("edges.m0->m1.in_graph", "boolean", "got 1")),
    "yes for true at a node": (changed("nodes/m0/in_graph", "yes"), ("nodes.m0.in_graph", "boolean", "'yes'")),
    "a score in quotes": (changed("edges/m0->m1/score", "0.5"), ("edges.m0->m1.score", "number", "'0.5'")),
    "a score that is true": (changed("edges/m0->m1/score", True), ("edges.m0->m1.score", "number", "True")),
    "an effect in words": (changed("nodes/m0/sweep_effect", "all"), ("nodes.m0.sweep_effect", "number", "'all'")),
    "a million layers": (changed("cfg/n_layers", 10**6), ("n_layers=1000000", "n_heads=2", "at most 1e+08")),
    "a thousand by a thousand heads": (
        lambda d: {**d, "cfg": {**d["cfg"], "n_layers": 1000, "n_heads": 1000}}, ("n_layers=1000", "3e+12")),
    "more layers than there are numbers": (changed("cfg/n_layers", 10**400), ("cfg.n_layers", "1000000")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_with_the_place(fault, tmp_path):
    change, says = FAULTS[fault]
    path = written(tmp_path, change(content(SMALL, tmp_path)))
    with pytest.raises(FormatError) as told:
        load_circuit(path)
    for word in (str(path), *says):
        assert word in str(told.value)
    assert "\n" not in str(told.value)
    assert "pydantic" not in str(told.value)


def test_an_absurd_size_is_no_matter_where_the_model_is_known(tmp_path):
    d = content(SMALL, tmp_path)
    d["cfg"]["n_layers"] = 10**6
    with pytest.raises(FormatError, match="is of another model"):
        load_circuit(written(tmp_path, d), SMALL.spec)


@pytest.mark.parametrize("text", ["", "{", "not json", '{"cfg": }', "\x00", "[" * 100_000, "9" * 5000],
                         ids=["empty", "open", "words", "no value", "zero", "deep", "long"])  # fmt: skip
def test_a_file_that_is_no_json_is_refused(text, tmp_path):
    with pytest.raises(FormatError, match="is not valid JSON.*Expected the MIB / EAP-IG format"):
        load_circuit(written(tmp_path, text))


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "circuit.pt").write_bytes(b"PK\x03\x04\x80\xff\xfe")
    with pytest.raises(FormatError, match=r"'.*circuit\.pt' is damaged"):
        load_circuit(tmp_path / "circuit.pt")
    (tmp_path / "circuit.json").write_bytes(b"PK\x03\x04\x80\xff\xfe")
    with pytest.raises(FormatError, match="is not UTF-8 text"):
        load_circuit(tmp_path / "circuit.json")


def test_a_missing_file_is_told_with_the_way_out(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.json' does not exist. Give a circuit.json or a run folder"):
        load_circuit(tmp_path / "nowhere.json")
    with pytest.raises(MissingFileError, match="does not exist"):
        load_circuit(tmp_path)


@pytest.mark.parametrize(
    "other", [spec_of(2, 3), spec_of(3, 2), spec_of(2, 2, parallel=True), spec_of(2, 2, d_model=32)], ids=names
)
def test_a_circuit_of_another_model_is_refused(other, tmp_path):
    with pytest.raises(FormatError) as told:
        load_circuit(saved(SMALL, tmp_path), other)
    assert "(2, 2, 16, False" in str(told.value)
    assert repr(other.name) in str(told.value)


def test_an_attention_only_circuit_is_not_one_of_a_model_with_mlps(tmp_path):
    path = saved(circuit_of(spec_of(2, 2, has_mlp=False), 5), tmp_path)
    with pytest.raises(FormatError):
        load_circuit(path, spec_of(2, 2))


@pytest.mark.parametrize(("key", "value"), [("n_layers", -1), ("n_heads", 0), ("d_model", 0)])
def test_a_model_that_cannot_be_is_refused(key, value, tmp_path):
    d = content(SMALL, tmp_path)
    d["cfg"][key], d["edges"] = value, {}
    with pytest.raises(FormatError):
        load_circuit(written(tmp_path, d))


@pytest.mark.parametrize("name", ["circuit", "circuit.png", "circuit.pkl", "circuit.JSON"])
def test_other_formats_are_refused_by_name(name, tmp_path):
    with pytest.raises(FormatError, match=rf"saved as .json or .pt \(MIB / EAP-IG\), .*, not as '{name}'"):
        SMALL.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = saved(SMALL, tmp_path)
    before = path.read_bytes()

    def half(self: Path, text: str, **options: Any) -> None:
        self.write_bytes(text[:40].encode())
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="disk full"):
        SMALL.with_mask(np.zeros_like(SMALL.mask)).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["c.json", "c.graphml", "c.pt", "c.dot", "c.node-link.json", "c.txt"])
def test_a_folder_that_is_not_there_is_made(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    SMALL.save(f"~/deep/er/{name}")
    assert [file.name for file in (tmp_path / "deep" / "er").iterdir()] == [name]
    if name == "c.json":
        assert np.array_equal(load_circuit("~/deep/er/c.json").mask, SMALL.mask)


@pytest.mark.parametrize("at", ["taken/c.json", "taken/deeper/c.json", "folder.json"])
def test_a_place_where_nothing_can_be_written_is_told(at, tmp_path):
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError) as told:
        SMALL.save(tmp_path / at)
    assert str(told.value).startswith(f"circuit file {str(tmp_path / at)!r} cannot be written: ")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["folder.json", "taken"]


def read_graphml(path: Path) -> nx.MultiDiGraph:
    return nx.read_graphml(path, force_multigraph=True)


@pytest.mark.parametrize("spec", SHAPES, ids=names)
def test_graphml_reads_back_equal(spec, tmp_path):
    circuit = circuit_of(spec, min(9, Layout.of(spec).n_edges), **{"m0": 1 / 3, "a0.h0": -0.0, "input": 1e-300})
    circuit.save(tmp_path / "c.graphml")
    back = read_graphml(tmp_path / "c.graphml")
    assert nx.utils.graphs_equal(back, circuit.to_networkx())
    assert isinstance(back, nx.MultiDiGraph)


@law_of(40)
@given(st.lists(numbers, min_size=9, max_size=9), st.lists(numbers, min_size=2, max_size=2))
def test_graphml_keeps_every_digit(tmp_path, scores, effects):
    layout = Layout.of(spec_of(2, 2))
    circuit = circuit_of(layout.spec, 9, m0=effects[0], logits=effects[1])
    matrix = np.zeros(circuit.mask.shape)
    matrix[circuit.mask] = scores
    circuit = Circuit(spec=circuit.spec, mask=circuit.mask.copy(), scores=matrix, node_effects=circuit.node_effects)
    circuit.save(tmp_path / "c.graphml")
    back = read_graphml(tmp_path / "c.graphml")
    assert nx.utils.graphs_equal(back, circuit.to_networkx())
    assert {key: d["score"] for _, _, key, d in back.edges(keys=True, data=True)} == {
        edge.name: score for edge, score in circuit.edges()
    }


def test_graphml_would_not_read_back_equal_if_a_score_moved(tmp_path):
    SMALL.save(tmp_path / "c.graphml")
    back = read_graphml(tmp_path / "c.graphml")
    _, _, first = next(iter(back.edges(data=True)))
    first["score"] = math.nextafter(first["score"], 10)
    assert not nx.utils.graphs_equal(back, SMALL.to_networkx())


def test_an_empty_circuit_reads_back_too(tmp_path):
    empty = SMALL.with_mask(np.zeros_like(SMALL.mask))
    empty.save(tmp_path / "c.graphml")
    assert nx.utils.graphs_equal(read_graphml(tmp_path / "c.graphml"), empty.to_networkx())
    assert len(empty.to_networkx()) == 0


@pytest.mark.parametrize("name", ['runs/<b> & "co"', "модель", "it's"])
def test_a_model_may_be_called_anything(name, tmp_path):
    from dataclasses import replace

    circuit = Circuit(spec=replace(SMALL.spec, name=name), mask=SMALL.mask.copy(), scores=SMALL.scores.copy())
    circuit.save(tmp_path / "c.graphml")
    assert read_graphml(tmp_path / "c.graphml").graph["model"] == name


def test_networkx_gets_one_edge_per_slot_with_its_full_name():
    graph = SMALL.to_networkx()
    assert type(graph) is nx.MultiDiGraph
    assert graph.graph["model"] == "L2H2"
    assert nx.is_directed_acyclic_graph(graph)
    found = {}
    for source, target, key, data in graph.edges(keys=True, data=True):
        assert set(data) == {"slot", "score"}
        edge = Edge.parse(key)
        assert (edge.source.name, edge.reader.node.name) == (source, target)
        assert data["slot"] == (edge.reader.slot.value if edge.reader.slot else "")
        found[key] = data["score"]
    assert found == {edge.name: score for edge, score in SMALL.edges()}


def test_networkx_nodes_say_what_they_are():
    graph = circuit_of(spec_of(2, 2), 46, m0=0.25, **{"a1.h0": -1.5}).to_networkx()
    assert dict(graph.nodes(data=True)) == {
        "input": {"kind": "input"},
        "a0.h0": {"kind": "head", "layer": 0, "head": 0},
        "a0.h1": {"kind": "head", "layer": 0, "head": 1},
        "m0": {"kind": "mlp", "layer": 0, "sweep_effect": 0.25},
        "a1.h0": {"kind": "head", "layer": 1, "head": 0, "sweep_effect": -1.5},
        "a1.h1": {"kind": "head", "layer": 1, "head": 1},
        "m1": {"kind": "mlp", "layer": 1},
        "logits": {"kind": "logits"},
    }


def test_collapsed_there_is_one_edge_between_two_nodes():
    circuit = circuit_of(spec_of(2, 2), 46)
    graph = circuit.to_networkx(collapse=True)
    assert type(graph) is nx.DiGraph
    sums: dict[tuple[str, str], float] = {}
    for edge, score in circuit.edges():
        pair = edge.source.name, edge.reader.node.name
        sums[pair] = sums.get(pair, 0.0) + score
    assert {(a, b): d["score"] for a, b, d in graph.edges(data=True)} == pytest.approx(sums)
    assert dict(graph.nodes(data=True)) == dict(circuit.to_networkx().nodes(data=True))
    assert graph.number_of_edges() < circuit.n_edges


def test_a_graph_handed_out_is_the_caller_s():
    """Changing the graph changes no circuit, and two calls share nothing."""
    graph = SMALL.to_networkx()
    before = SMALL.scores.copy()
    graph.remove_node("input")
    assert "input" in SMALL.to_networkx()
    assert np.array_equal(SMALL.scores, before)
