"""Circuits of other programs: the `.pt` of EAP-IG, node and neuron parts, edge lists, node-link JSON and DOT."""

import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import law_of
from layouts import GPT2, SHAPES, names, spec_of, specs
from test_exchange import SMALL, TheirGraph, circuit_of

from circuitlab import Circuit, FormatError, GraphError, MissingFileError, UnknownNameError, load_circuit
from circuitlab.graphs.circuit_data import NodeParts
from circuitlab.graphs.files.lists import edges_of
from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Edge, Layout, ModelSpec

SPEC = spec_of(2, 2)
LAYOUT = Layout.of(SPEC)
ALL = [edge.name for edge in LAYOUT.edges()]


def with_parts(spec: ModelSpec = SPEC, seed: int = 0) -> Circuit:
    """A circuit of which everything is known that the formats can say."""
    rng, n = np.random.default_rng(seed), len(Layout.of(spec).writers)
    parts = NodeParts(
        kept=rng.random(n) < 0.5,
        scores=np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
        neurons=rng.random((n, spec.d_model)) < 0.5,
        neuron_scores=np.where(rng.random((n, spec.d_model)) < 0.2, np.nan, rng.normal(size=(n, spec.d_model))),
    )
    return replace(circuit_of(spec, min(9, Layout.of(spec).n_edges), seed), node_parts=parts)


def assert_same(a: Circuit, b: Circuit) -> None:
    assert np.array_equal(a.mask, b.mask)
    real = real_edges(a.layout)
    assert a.scores[real].tobytes() == b.scores[real].tobytes()
    for name in ("kept", "scores", "neurons", "neuron_scores"):
        one, other = getattr(a.node_parts, name), getattr(b.node_parts, name)
        assert (one is None) == (other is None), name
        assert one is None or np.array_equal(one, other, equal_nan=one.dtype != bool), name
    shape = ("n_layers", "n_heads", "d_model", "parallel", "has_mlp")
    assert [getattr(a.spec, name) for name in shape] == [getattr(b.spec, name) for name in shape]


class TheirTensors:
    """A reader in the manner of EAP-IG's `Graph.from_pt`, to which the names mean nothing."""

    def __init__(self, path: Path) -> None:
        d = torch.load(path, weights_only=True)
        assert all(key in d for key in ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph"))
        n_layers, n_heads = d["cfg"]["n_layers"], d["cfg"]["n_heads"]
        shape = (1 + n_layers * (n_heads + 1), n_layers * (3 * n_heads + 1) + 1)
        self.in_graph, self.scores = torch.zeros(shape).bool(), torch.zeros(shape)
        self.in_graph[:], self.scores[:] = d["edges_in_graph"], d["edges_scores"]
        self.nodes_in_graph = torch.zeros(shape[0]).bool()
        self.nodes_in_graph[:] = d["nodes_in_graph"]
        self.rest = d


class TestTensors:
    @pytest.mark.parametrize("spec", SHAPES, ids=names)
    def test_everything_comes_back_from_both_formats(self, spec, tmp_path):
        circuit = with_parts(spec)
        for name in ("c.pt", "c.json"):
            circuit.save(tmp_path / name)
            assert_same(load_circuit(tmp_path / name), circuit)
            assert load_circuit(tmp_path / name, spec).spec is spec

    @law_of(25)
    @given(specs, st.integers(0, 1000), st.data())
    def test_from_one_to_the_other_and_back(self, tmp_path, spec, seed, data):
        circuit = with_parts(spec, seed)
        dropped = data.draw(st.sets(st.sampled_from(["kept", "scores", "neurons", "neuron_scores"])))
        circuit = replace(circuit, node_parts=replace(circuit.node_parts, **dict.fromkeys(dropped)))
        circuit.save(tmp_path / "a.pt")
        load_circuit(tmp_path / "a.pt").save(tmp_path / "b.json")
        load_circuit(tmp_path / "b.json").save(tmp_path / "c.pt")
        assert_same(load_circuit(tmp_path / "c.pt"), circuit)
        assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "c.pt").read_bytes()

    def test_their_reader_sees_our_circuit(self, tmp_path):
        circuit = circuit_of(spec_of(3, 2, parallel=True), 20)
        circuit.save(tmp_path / "c.pt")
        theirs = TheirTensors(tmp_path / "c.pt")
        assert np.array_equal(theirs.in_graph.numpy(), circuit.mask)
        assert np.array_equal(theirs.scores.numpy(), circuit.scores.astype(np.float32))
        kept = {node.name for node in circuit.nodes} - {"logits"}
        assert {n for n, k in zip(theirs.rest["src_nodes"], theirs.nodes_in_graph.tolist(), strict=True) if k} == kept
        assert theirs.rest["dst_nodes"][:4] == ["a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>"]

    def test_gpt2_has_the_published_numbers(self, tmp_path):
        circuit_of(GPT2, 756).save(tmp_path / "c.pt")
        theirs = TheirTensors(tmp_path / "c.pt")
        assert theirs.in_graph.sum() == 756
        assert theirs.scores.shape == (157, 445)

    def test_a_float32_file_as_they_write_it(self, tmp_path):
        d = torch.load(saved(SMALL, tmp_path), weights_only=True)
        d["edges_scores"] = d["edges_scores"].float()
        d["edges_scores"][0, 0] = math.nan
        # Their selection of nodes fills whole rows, also where the model has no edge.
        d["edges_in_graph"] = d["edges_in_graph"] | d["nodes_in_graph"][:, None]
        back = load_circuit(written(d, tmp_path))
        assert np.isnan(back.scores[0, 0])
        assert not (back.mask & ~real_edges(LAYOUT)).any()
        assert back.mask.sum() == (d["edges_in_graph"].numpy() & real_edges(LAYOUT)).sum()

    def test_a_file_that_could_run_code_is_not_loaded(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "ran",))

        for name, save in (("a.pt", lambda p: torch.save({"cfg": Evil()}, p)),
                           ("b.pt", lambda p: p.write_bytes(pickle.dumps(Evil())))):  # fmt: skip
            save(tmp_path / name)
            with pytest.raises(FormatError, match="not loaded, for it could run code|is no .pt file") as told:
                load_circuit(tmp_path / name)
            assert "\n" not in str(told.value)
        assert not (tmp_path / "ran").exists()
        with pytest.raises(FormatError, match="is a pickle by its name"):
            load_circuit(tmp_path / "edges.pkl")


def saved(circuit: Circuit, folder: Path) -> Path:
    circuit.save(folder / "circuit.pt")
    return folder / "circuit.pt"


def written(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "changed.pt")
    return folder / "changed.pt"


def changing(**values: Any):
    def change(d: dict[str, Any]) -> dict[str, Any]:
        d |= {name: value(d[name]) if callable(value) else value for name, value in values.items()}
        return {name: value for name, value in d.items() if value is not ...}

    return change


FAULTS = {
    "no nodes": (changing(nodes_in_graph=...), "has no 'nodes_in_graph'; needed are cfg"),
    "a list": (lambda d: [d], "holds a list; expected a dictionary"),
    "no layers": (changing(cfg=lambda c: {"n_heads": 2, "d_model": 16}), "cfg.n_layers is missing"),
    "half a layer": (changing(cfg=lambda c: c | {"n_layers": 2.5}), "cfg.n_layers is 2.5"),
    "too many layers": (changing(cfg=lambda c: c | {"n_layers": 10**6}), "n_layers=1000000"),
    "another model": (changing(cfg=lambda c: c | {"n_layers": 3}), "src_nodes has 7 names; .* has 10"),
    "other names": (changing(src_nodes=lambda s: ["embed", *s[1:]]), r"src_nodes\[0\] is 'embed'; expected 'input'"),
    "another order": (changing(dst_nodes=lambda s: [s[1], s[0], *s[2:]]), r"dst_nodes\[0\] is 'a0.h1<q>'"),
    "no names": (changing(src_nodes="input"), "src_nodes is a str"),
    "transposed": (changing(edges_scores=lambda t: t.T), r"edges_scores is a tensor \(15, 7\); expected a tensor"),
    "no tensor": (changing(edges_scores=0.5), "edges_scores is a float"),
    "scores for choices": (changing(edges_in_graph=lambda t: t.double()), "edges_in_graph holds torch.float64"),
    "choices for scores": (changing(edges_scores=lambda t: t > 0), "edges_scores holds torch.bool; expected numbers"),
    "infinity": (changing(edges_scores=lambda t: t / 0), "edges_scores has the score -?inf; scores are finite"),
    "too few neurons": (changing(neurons_in_graph=torch.zeros(7, 3).bool()), r"neurons_in_graph is a tensor \(7, 3\)"),
    "infinite node scores": (changing(nodes_scores=torch.full((7,), math.inf)), "nodes_scores has the score inf"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_tensor_file_is_refused_in_one_line(fault, tmp_path):
    change, says = FAULTS[fault]
    path = written(change(torch.load(saved(SMALL, tmp_path), weights_only=True)), tmp_path)
    with pytest.raises(FormatError, match=says) as told:
        load_circuit(path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


def test_tensors_of_another_model_or_of_none(tmp_path):
    with pytest.raises(FormatError, match="is of another model: layers, heads, d_model"):
        load_circuit(saved(SMALL, tmp_path), spec_of(2, 3))
    with pytest.raises(MissingFileError, match="does not exist"):
        load_circuit(tmp_path / "nowhere.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(FormatError, match="is damaged or of another format|is no tensor file"):
        load_circuit(tmp_path / "empty.pt")


class TestNodeParts:
    def test_their_json_reader_does_not_mind(self, tmp_path):
        circuit = with_parts()
        circuit.save(tmp_path / "c.json")
        theirs = TheirGraph(tmp_path / "c.json")
        assert np.array_equal(theirs.in_graph, circuit.mask)
        assert np.array_equal(theirs.nodes_in_graph, circuit.node_parts.kept)
        nodes = json.loads((tmp_path / "c.json").read_text())["nodes"]
        assert set(nodes["m0"]) == {"in_graph", "score", "neurons", "neurons_scores"}
        assert set(nodes["logits"]) == {"in_graph"}

    def test_a_node_that_the_file_leaves_unscored_has_nan(self, tmp_path):
        SMALL.save(tmp_path / "c.json")
        d = json.loads((tmp_path / "c.json").read_text())
        d["nodes"]["m0"]["score"], d["nodes"]["m1"]["score"] = 0.5, None
        (tmp_path / "c.json").write_text(json.dumps(d))
        scores = load_circuit(tmp_path / "c.json").node_parts.scores
        assert scores is not None
        assert scores[3] == 0.5
        assert np.isnan(scores[[0, 1, 2, 4, 5, 6]]).all()

    def test_another_choice_of_edges_forgets_the_choice_of_neurons(self):
        circuit = with_parts()
        other = circuit.with_mask(circuit.mask.copy()).node_parts
        assert (other.kept, other.neurons) == (None, None)
        assert other.neuron_scores is not None
        assert circuit.pruned().node_parts.kept is None

    def test_matrices_of_another_model_are_refused(self):
        with pytest.raises(GraphError, match=r"node_parts.neurons has shape \(7, 3\); model 'L2H2' wants \(7, 16\)"):
            replace(SMALL, node_parts=NodeParts(neurons=np.zeros((7, 3), dtype=bool)))

    def test_they_are_the_circuit_s_own(self):
        scores = np.zeros(7)
        parts = NodeParts(scores=scores)
        scores[0] = 5
        assert parts.scores is not None
        assert parts.scores[0] == 0


def listed(content: Any, folder: Path, name: str = "edges.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


AUTO_CIRCUIT = {
    "Resid Start->A0.1.Q": ["input->a0.h1<q>"],
    "A0.1->MLP 0": ["a0.h1->m0"],
    "MLP 0->A1.0.V": ["m0->a1.h0<v>"],
    "MLP 0->A1.0": ["m0->a1.h0<q>", "m0->a1.h0<k>", "m0->a1.h0<v>"],
    "A1.1->Resid End": ["a1.h1->logits"],
    "MLP 1->Resid End": ["m1->logits"],
    "Resid Start->Resid End": ["input->logits"],
}  # fmt: skip
HEAD = "blocks.{}.attn.hook_result"
ACDC = {
    ("blocks.1.hook_resid_post", (None,), HEAD.format(0), (None, None, 1)): ["a0.h1->logits"],
    ("blocks.1.hook_q_input", (None, None, 0), HEAD.format(0), (None, None, 1)): ["a0.h1->a1.h0<q>"],
    ("blocks.1.hook_v_input", (None, None, 1), "blocks.0.hook_mlp_out", (None,)): ["m0->a1.h1<v>"],
    ("blocks.1.hook_mlp_in", (None,), "blocks.0.hook_resid_pre", (None,)): ["input->m1"],
    ("blocks.0.hook_resid_mid", (None,), HEAD.format(0), (None, None, 0)): ["a0.h0->m0"],
    ("blocks.1.attn.hook_q", (None, None, 0), "blocks.1.hook_q_input", (None, None, 0)): [],
    ("blocks.1.attn.hook_result", (None, None, 0), "blocks.1.attn.hook_k", (None, None, 0)): [],
    ("blocks.1.hook_mlp_out", (None,), "blocks.1.hook_mlp_in", (None,)): [],
}


class TestLists:
    @pytest.mark.parametrize("given", [*AUTO_CIRCUIT, *ACDC], ids=str)
    def test_names_of_other_programs(self, given):
        expected = (AUTO_CIRCUIT | ACDC)[given]
        assert [edge.name for edge in edges_of(given, 2)] == expected

    @law_of(25)
    @given(
        st.lists(st.sampled_from(ALL), unique=True, min_size=1),
        st.sampled_from(["names", "pairs", "lines", "acdc", "auto"]),
    )
    def test_a_list_in_any_spelling_is_the_same_circuit(self, tmp_path, kept, spelling):
        """An independent speller writes what the reader reads."""
        edges = [Edge.parse(name) for name in kept]
        forms = {
            "names": kept,
            "pairs": [name.split("->") for name in kept],
            "lines": "# a comment\n\n" + "\n".join(kept),
            "acdc": [acdc(edge) for edge in edges],
            "auto": [auto(edge) for edge in edges],
        }
        name = "edges.txt" if spelling == "lines" else "edges.json"
        back = load_circuit(listed(forms[spelling], tmp_path, name), SPEC)
        assert [edge.name for edge, _ in back.edges()] == [name for name in ALL if name in kept]
        assert np.isnan(back.scores[back.mask]).all()

    def test_tuples_as_python_prints_them_are_read_from_text(self, tmp_path):
        text = "\n".join(f"{one}," for one in ACDC)
        back = load_circuit(listed(text, tmp_path, "edges.txt"), SPEC)
        assert {edge.name for edge, _ in back.edges()} == {name for names in ACDC.values() for name in names}

    def test_a_text_list_comes_back(self, tmp_path):
        SMALL.save(tmp_path / "c.txt")
        assert np.array_equal(load_circuit(tmp_path / "c.txt", SPEC).mask, SMALL.mask)

    def test_two_embeddings_are_one_node(self, tmp_path):
        def hears(*parents: str) -> list[Any]:
            return [["blocks.0.hook_mlp_in", [None], parent, [None]] for parent in parents]

        both = load_circuit(listed(hears("hook_embed", "hook_pos_embed"), tmp_path), SPEC)
        assert [edge.name for edge, _ in both.edges()] == ["input->m0"]
        assert load_circuit(listed(hears("hook_embed"), tmp_path), SPEC).n_edges == 1
        with pytest.raises(
            FormatError, match="has an edge from one of hook_embed and hook_pos_embed but not from the other"
        ):
            load_circuit(listed(hears("hook_pos_embed"), tmp_path), SPEC)

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            (["m0->m7"], "unknown edge 'm0->m7'"),
            (["m1->m0"], "m1 writes after m0 has read"),
            (["m0 to m1"], "'m0 to m1' is no edge"),
            (["MLP 0->A1.9.Q"], "unknown edge 'm0->a1.h9<q>'"),
            (["A0.1.Q->MLP 0"], "'A0.1.Q' does not write: a head writes as a whole, A0.1"),
            (["MLP 0->m1"], "'MLP 0->m1' is no edge"),
            ([7], "'7' is no edge"),
            ([["m0"]], r"\['m0'\]\" is no edge|is no edge"),
            ([["blocks.5.hook_resid_post", [None], "hook_embed", [None]]], "nothing reads the stream at hook"),
            ([["blocks.1.hook_mlp_in", [None], "blocks.0.hook_scale", [None]]], "no node writes to hook"),
            ([["blocks.1.hook_q_input", [None], "hook_embed", [None]]], "index must end with one's number"),
            ([["blocks.1.hook_q_input", [0, 1, 2], "hook_embed", [None]]], "picks batches or positions"),
            ([["blocks.1.hook_q_input", [None, None, 9], "hook_embed", [None]]], "unknown edge 'input->a1.h9<q>'"),
        ],
    )  # fmt: skip
    def test_what_is_no_edge_is_told_in_one_line(self, given, says, tmp_path):
        path = listed(given, tmp_path)
        with pytest.raises(FormatError, match=says) as told:
            load_circuit(path, SPEC)
        assert str(path) in str(told.value)
        assert "\n" not in str(told.value)

    def test_a_line_that_is_none(self, tmp_path):
        with pytest.raises(FormatError, match="line 2: .* is no edge"):
            load_circuit(listed("m0->m1\n(__import__('os'), 1)\n", tmp_path, "e.txt"), SPEC)
        (tmp_path / "e.txt").write_bytes(b"\xff\xfe<\x00")
        with pytest.raises(FormatError, match="is no edge"):
            load_circuit(tmp_path / "e.txt", SPEC)

    def test_a_list_does_not_say_of_which_model(self, tmp_path):
        with pytest.raises(FormatError, match=r"does not say of which model. Give its spec \(--model\)"):
            load_circuit(listed(["m0->m1"], tmp_path))

    def test_a_misspelt_name_is_not_passed_over(self):
        with pytest.raises(UnknownNameError):
            edges_of("m0->a1.h0<z>", 2)


def acdc(edge: Edge) -> list[Any]:
    """An edge as ACDC's correspondence has it."""
    layer, head = edge.source.layer, edge.source.head
    parent = {
        "input": ["blocks.0.hook_resid_pre", [None]],
        "mlp": [f"blocks.{layer}.hook_mlp_out", [None]],
        "head": [f"blocks.{layer}.attn.hook_result", [None, None, head]],
    }[edge.source.kind.value]
    layer, head, slot = edge.reader.node.layer, edge.reader.node.head, edge.reader.slot
    child = {
        "logits": ["blocks.1.hook_resid_post", [None]],
        "mlp": [f"blocks.{layer}.hook_mlp_in", [None]],
        "head": [f"blocks.{layer}.hook_{slot.value if slot else ''}_input", [None, None, head]],
    }[edge.reader.node.kind.value]
    return [*child, *parent]


def auto(edge: Edge) -> str:
    """An edge as auto-circuit calls it."""

    def name(text: str) -> str:
        text = re.sub(r"a(\d+)\.h(\d+)", r"A\1.\2", re.sub(r"m(\d+)", r"MLP \1", text))
        return re.sub(r"<(.)>", lambda found: "." + found[1].upper(), text)

    source, target = edge.name.split("->")
    return (
        f"{name(source) if source != 'input' else 'Resid Start'}->{name(target) if target != 'logits' else 'Resid End'}"
    )


class TestGraphs:
    def test_node_link_reads_back_equal(self, tmp_path):
        SMALL.save(tmp_path / "c.node-link.json")
        back = nx.node_link_graph(json.loads((tmp_path / "c.node-link.json").read_text()), edges="edges")
        assert nx.utils.graphs_equal(back, SMALL.to_networkx())

    @pytest.mark.parametrize("name", ["c.node-link.json", "c.graphml"])
    def test_a_graph_of_kept_edges_is_read_where_the_model_is_known(self, name, tmp_path):
        SMALL.save(tmp_path / name)
        back = load_circuit(tmp_path / name, SPEC)
        assert np.array_equal(back.mask, SMALL.mask)
        assert np.array_equal(back.scores, np.where(SMALL.mask, SMALL.scores, 0.0))
        assert back.node_effects == SMALL.node_effects
        with pytest.raises(FormatError, match="does not say of which model"):
            load_circuit(tmp_path / name)
        with pytest.raises(FormatError, match="unknown edge"):
            load_circuit(tmp_path / name, spec_of(1, 1))

    def test_files_that_are_none(self, tmp_path):
        for name, says in (("c.graphml", "is no GraphML"), ("c.json", "is no node-link JSON")):
            (tmp_path / name).write_text('{"nodes": []}' if name == "c.json" else "<not xml")
            with pytest.raises(FormatError, match=says):
                load_circuit(tmp_path / name, SPEC)
        with pytest.raises(MissingFileError, match="does not exist"):
            load_circuit(tmp_path / "d.graphml", SPEC)

    def test_dot_holds_every_edge_and_any_name(self, tmp_path):
        circuit = replace(SMALL, spec=replace(SMALL.spec, name='runs/"x"\\y\nz'))
        circuit.save(tmp_path / "c.dot")
        text = (tmp_path / "c.dot").read_text()
        assert text.splitlines()[0] == 'digraph "runs/\\"x\\"\\\\y z" {'
        found = re.findall(r'^  "([^"]+)" -> "([^"]+)" \[key="([^"]+)".* score="([^"]+)".*color=(\w+)\];$', text, re.M)
        assert {key: float(score) for _, _, key, score, _ in found} == {e.name: s for e, s in SMALL.edges()}
        assert all(colour == ("firebrick" if float(score) < 0 else "steelblue") for *_, score, colour in found)
        assert all(key.startswith(f"{source}->{target}") for source, target, key, *_ in found)
        assert text.count("{") == text.count("}") == 1

    def test_dot_of_a_circuit_without_scores(self, tmp_path):
        bare = replace(SMALL, scores=np.full_like(SMALL.scores, np.nan))
        bare.save(tmp_path / "c.dot")
        assert (tmp_path / "c.dot").read_text().count("gray50") == SMALL.n_edges
