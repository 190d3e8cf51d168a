"""Circuits as values: pruning against brute force, random circuits of exact size, nothing that changes in place."""

import copy
import pickle
from dataclasses import FrozenInstanceError

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import law, law_of
from layouts import GPT2, SHAPES, names, spec_of, specs

from circuitlab import Circuit, GraphError
from circuitlab.graphs.prune import kept_nodes, prune, real_edges
from circuitlab.graphs.random import random_circuit
from circuitlab.parts import Edge, Kind, Layout, ModelSpec

BUNDLED_SHAPE = spec_of(4, 8, d_model=128)


def mask_of(layout: Layout, *edge_names: str) -> np.ndarray:
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    for name in edge_names:
        mask[layout.edge_index(Edge.parse(name))] = True
    return mask


def names_in(mask: np.ndarray, layout: Layout) -> set[str]:
    return {edge.name for edge in layout.edges() if mask[layout.edge_index(edge)]}


def random_mask(layout: Layout, seed: int, density: float) -> np.ndarray:
    return np.random.default_rng(seed).random((len(layout.writers), len(layout.readers))) < density


masks = st.tuples(specs, st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.05, 0.1, 0.2, 0.4, 0.8]))


def drawn(case: tuple[ModelSpec, int, float]) -> tuple[Layout, np.ndarray]:
    spec, seed, density = case
    return Layout.of(spec), random_mask(Layout.of(spec), seed, density)


def prune_by_definition(mask: np.ndarray, layout: Layout) -> set[str]:
    """Words for words: drop nodes without a kept edge in or out, then edges that lost an end; until neither changes."""
    edges = {edge for edge in layout.edges() if mask[layout.edge_index(edge)]}
    nodes = set(layout.nodes)
    while True:
        kept = {
            node
            for node in nodes
            if node.kind is Kind.LOGITS
            or (
                any(edge.source == node for edge in edges)
                and (node.kind is Kind.INPUT or any(edge.reader.node == node for edge in edges))
            )
        }
        left = {edge for edge in edges if edge.source in kept and edge.reader.node in kept}
        if kept == nodes and left == edges:
            return {edge.name for edge in edges}
        nodes, edges = kept, left


def on_a_path(mask: np.ndarray, layout: Layout) -> set[str]:
    """Edges on some path from the input to the logits, as networkx sees it."""
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(node.name for node in layout.nodes)
    for edge in layout.edges():
        if mask[layout.edge_index(edge)]:
            graph.add_edge(edge.source.name, edge.reader.node.name, key=edge.name)
    behind = nx.descendants(graph, "input") | {"input"}
    ahead = nx.ancestors(graph, "logits") | {"logits"}
    return {key for source, target, key in graph.edges(keys=True) if source in behind and target in ahead}


@law
@given(masks)
def test_pruning_is_the_fixed_point_of_its_definition(case):
    layout, mask = drawn(case)
    pruned = names_in(prune(mask, layout), layout)
    assert pruned == prune_by_definition(mask, layout)
    assert pruned == on_a_path(mask, layout)


@law
@given(masks)
def test_pruning_only_takes_away_and_is_done_after_one_time(case):
    layout, mask = drawn(case)
    before = mask.copy()
    pruned = prune(mask, layout)
    assert np.array_equal(mask, before), "the argument was changed"
    assert not (pruned & ~mask).any()
    assert not (pruned & ~real_edges(layout)).any()
    assert np.array_equal(prune(pruned, layout), pruned)


@law
@given(masks, st.integers(0, 2**32 - 1))
def test_more_edges_never_lose_one(case, seed):
    layout, mask = drawn(case)
    more = mask | random_mask(layout, seed, 0.1)
    assert not (prune(mask, layout) & ~prune(more, layout)).any()


@pytest.mark.parametrize("spec", SHAPES, ids=names)
def test_the_whole_graph_and_the_empty_one_are_pruned_already(spec):
    layout = Layout.of(spec)
    assert np.array_equal(prune(np.ones(real_edges(layout).shape, dtype=bool), layout), real_edges(layout))
    assert not prune(np.zeros(real_edges(layout).shape, dtype=bool), layout).any()


@pytest.mark.parametrize(
    ("given_", "left"),
    [
        (("input->logits",), {"input->logits"}),
        (("input->a0.h0<q>", "a0.h0->logits"), {"input->a0.h0<q>", "a0.h0->logits"}),
        # Dead ends on both sides, the chain behind each included: one pass over the nodes is not enough.
        (("input->a0.h0<v>", "a0.h0->m0", "m0->a1.h0<q>", "input->logits"), {"input->logits"}),
        (("a0.h0->m0", "m0->a1.h0<k>", "a1.h0->m1", "m1->logits", "input->logits"), {"input->logits"}),
        # Nothing reaches the logits; nothing leaves the input.
        (("input->a0.h0<q>", "a0.h0->m0", "m0->m1"), set()),
        (("a0.h0->m0", "m0->logits"), set()),
        # A node that is kept keeps its edges to and from kept nodes only.
        (
            ("input->m0", "m0->logits", "m0->a1.h1<q>", "a0.h1->m0"),
            {"input->m0", "m0->logits"},
        ),
    ],
)
def test_pruning_on_paper(given_, left):
    layout = Layout.of(spec_of(2, 2))
    assert names_in(prune(mask_of(layout, *given_), layout), layout) == left


def test_a_long_dead_chain_goes_whole():
    """The repair of EAP-IG's issues 16 and 17: nodes alone do not tell when the work is done."""
    layout = Layout.of(spec_of(4, 1))
    chain = ["input->m0", "m0->m1", "m1->m2", "m2->m3"]
    assert not prune(mask_of(layout, *chain), layout).any()
    assert prune(mask_of(layout, *chain, "m3->logits"), layout).sum() == 5


@law
@given(masks)
def test_kept_nodes_are_the_ends_of_kept_edges(case):
    layout, mask = drawn(case)
    mask = mask & real_edges(layout)
    edges = [edge for edge in layout.edges() if mask[layout.edge_index(edge)]]
    ends = {edge.source for edge in edges} | {edge.reader.node for edge in edges}
    assert {n for n, keep in zip(layout.nodes, kept_nodes(mask, layout), strict=True) if keep} == ends


def test_owners_name_the_node_behind_each_column():
    layout = Layout.of(spec_of(2, 2))
    assert [layout.nodes[i] for i in layout.owners] == [reader.node for reader in layout.readers]


def some_sizes(layout: Layout) -> list[int]:
    """Every size of a small graph (2 has a test of its own); small, half, nearly full and full of a larger one."""
    total = layout.n_edges
    if total <= 60:
        return [size for size in range(1, total + 1) if size != 2]
    return [1, 3, 4, 5, 25, total // 2, total - 1, total]


@pytest.mark.parametrize("spec", [*SHAPES, BUNDLED_SHAPE, spec_of(3, 3, parallel=True)], ids=names)
def test_a_random_circuit_has_exactly_the_edges_asked_for_and_all_connect(spec):
    layout = Layout.of(spec)
    for size in some_sizes(layout):
        mask = random_circuit(layout, size, np.random.default_rng(size))
        assert mask.sum() == size
        assert np.array_equal(prune(mask, layout), mask)


def test_a_random_circuit_of_two_edges():
    layout = Layout.of(spec_of(4, 1))
    for seed in range(30):
        assert random_circuit(layout, 2, np.random.default_rng(seed)).sum() == 2


@law_of(30)
@given(specs, st.data(), st.integers(0, 2**32 - 1))
def test_random_circuits_of_any_layout_and_size(spec, data, seed):
    layout = Layout.of(spec)
    size = data.draw(st.integers(1, layout.n_edges).filter(lambda n: n != 2))
    mask = random_circuit(layout, size, np.random.default_rng(seed))
    assert mask.sum() == size
    assert np.array_equal(prune(mask, layout), mask)


class Counted(np.random.Generator):
    """A generator that counts how often it is asked."""

    draws = 0

    def integers(self, *args, **kwargs):
        self.draws += 1
        return super().integers(*args, **kwargs)

    def permutation(self, *args, **kwargs):
        self.draws += 1
        return super().permutation(*args, **kwargs)


@pytest.mark.parametrize("size", [1, 2, 4, 300, 16_000, 31_000, 32_490, 32_491])
def test_a_random_circuit_of_gpt2_is_drawn_at_once(size):
    """The smallest and the largest once took 45 s and 16 s; the number of draws does not depend on the machine."""
    layout, rng = Layout.of(GPT2), Counted(np.random.PCG64(0))
    mask = random_circuit(layout, size, rng)
    assert rng.draws < 10 * size + 100
    assert mask.sum() == size
    assert np.array_equal(prune(mask, layout), mask)


def test_nearly_full_circuits_lack_edges_all_over_the_graph():
    """Past half of the graph the edges no longer come from walks; those of the shortest walks are nearly always in."""
    layout = Layout.of(spec_of(2, 2))
    rng = np.random.default_rng(0)
    drawn = [random_circuit(layout, 40, rng) for _ in range(200)]
    share = np.mean(drawn, axis=0)[real_edges(layout)]
    assert share.min() > 0.6
    assert (share < 1).mean() > 0.9
    again = [random_circuit(layout, 40, np.random.default_rng(3)) for _ in range(2)]
    assert np.array_equal(*again)


def test_the_generator_decides_and_nothing_else():
    layout = Layout.of(BUNDLED_SHAPE)
    np.random.seed(0)  # noqa: NPY002
    first = [random_circuit(layout, 60, np.random.default_rng(seed)) for seed in range(5)]
    np.random.seed(1)  # noqa: NPY002
    again = [random_circuit(layout, 60, np.random.default_rng(seed)) for seed in range(5)]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({mask.tobytes() for mask in first}) == 5


def test_random_circuits_are_spread_over_the_graph():
    """Each edge comes up, none is in every circuit, and no two circuits are the same."""
    layout = Layout.of(spec_of(2, 2))
    rng = np.random.default_rng(0)
    drawn = [random_circuit(layout, 12, rng) for _ in range(200)]
    share = np.mean(drawn, axis=0)[real_edges(layout)]
    assert share.min() > 0.02
    assert share.max() < 1
    assert len({mask.tobytes() for mask in drawn}) == 200


@pytest.mark.parametrize("size", [-1, 0, 47, 10**6])
def test_a_random_circuit_that_cannot_be_is_refused(size):
    with pytest.raises(GraphError, match=f"{size} edges is not possible; the graph has 46"):
        random_circuit(Layout.of(spec_of(2, 2)), size, np.random.default_rng(0))


def circuit_of(spec: ModelSpec, *edge_names: str) -> Circuit:
    """A circuit that keeps these edges; every edge is scored with a number of its own."""
    layout = Layout.of(spec)
    mask = mask_of(layout, *edge_names)
    scores = np.where(real_edges(layout), np.arange(mask.size).reshape(mask.shape) / 7 - 3, 0.0)
    return Circuit(spec=spec, mask=mask, scores=scores)


KEPT = ("input->a0.h1<q>", "input->m0", "a0.h1->m0", "m0->logits", "m0->m1")


def test_a_circuit_tells_what_it_keeps():
    circuit = circuit_of(spec_of(2, 2), *KEPT)
    assert circuit.n_edges == 5
    assert [node.name for node in circuit.nodes] == ["input", "a0.h1", "m0", "m1", "logits"]
    assert {edge.name for edge, _ in circuit.edges()} == set(KEPT)
    for edge, score in circuit.edges():
        assert score == circuit.scores[circuit.layout.edge_index(edge)]
    assert circuit.pruned().n_edges == 4


def test_the_table_of_a_circuit_has_every_edge_of_the_graph():
    circuit = circuit_of(spec_of(2, 2), *KEPT)
    table = circuit.to_frame()
    assert list(table.columns) == ["source", "target", "score", "in_circuit"]
    assert list(table["source"] + "->" + table["target"]) == [edge.name for edge in circuit.layout.edges()]
    assert set((table["source"] + "->" + table["target"])[table["in_circuit"]]) == set(KEPT)
    for row in table.itertuples():
        assert row.score == circuit.scores[circuit.layout.edge_index(Edge.parse(f"{row.source}->{row.target}"))]


def test_a_circuit_does_not_change():
    circuit = circuit_of(spec_of(2, 2), *KEPT)
    with pytest.raises(FrozenInstanceError):
        circuit.mask = circuit.mask
    for matrix in (circuit.mask, circuit.scores):
        with pytest.raises(ValueError, match="read-only"):
            matrix[0, 0] = 1
    before = circuit.mask.tobytes(), circuit.scores.tobytes()
    circuit.pruned(), circuit.to_networkx(), circuit.to_frame(), list(circuit.edges()), circuit.nodes
    changed = circuit.with_mask(np.zeros_like(circuit.mask)).with_node_effects({"m0": 1.0})
    assert changed.n_edges == 0
    assert changed.node_effects == {"m0": 1.0}
    assert circuit.node_effects == {}
    assert (circuit.mask.tobytes(), circuit.scores.tobytes()) == before


def test_a_circuit_leaves_the_caller_s_arrays_alone():
    layout = Layout.of(spec_of(2, 2))
    mask, scores = mask_of(layout, *KEPT), np.zeros(real_edges(layout).shape)
    Circuit(spec=layout.spec, mask=mask, scores=scores)
    mask[:] = False
    scores += 1


def test_a_circuit_does_not_change_with_what_it_was_made_of():
    layout = Layout.of(spec_of(2, 2))
    stack, effects = np.stack([mask_of(layout, *KEPT)] * 2), {"m0": 0.5}
    circuit = Circuit(spec=layout.spec, mask=stack[0], scores=np.zeros(real_edges(layout).shape), node_effects=effects)
    stack[:], effects["m0"] = False, 9.0
    assert circuit.n_edges == len(KEPT)
    assert circuit.node_effects == {"m0": 0.5}


@pytest.mark.parametrize("again", [copy.deepcopy, lambda circuit: pickle.loads(pickle.dumps(circuit))])
def test_a_circuit_can_be_copied_and_sent(again):
    circuit = circuit_of(spec_of(2, 2), *KEPT).with_node_effects({"m0": 1.0})
    other = again(circuit)
    assert np.array_equal(other.mask, circuit.mask)
    assert np.array_equal(other.scores, circuit.scores)
    assert (other.spec, dict(other.node_effects)) == (circuit.spec, {"m0": 1.0})


def test_a_matrix_of_another_shape_is_refused():
    layout = Layout.of(spec_of(2, 2))
    right, wrong = np.zeros((7, 15), dtype=bool), np.zeros((7, 14), dtype=bool)
    assert right.shape == real_edges(layout).shape
    with pytest.raises(GraphError, match=r"mask has shape \(7, 14\); model 'L2H2' has \(7, 15\)"):
        Circuit(spec=layout.spec, mask=wrong, scores=wrong.astype(float))
    with pytest.raises(GraphError, match=r"mask has shape \(7, 15\); model 'L1H2' has \(4, 8\)"):
        Circuit(spec=spec_of(1, 2), mask=right, scores=right.astype(float))


@pytest.mark.parametrize("fake", [(3, 0), (6, 7), (6, 0)])
def test_an_edge_that_runs_backwards_is_refused(fake):
    layout = Layout.of(spec_of(2, 2))
    mask = mask_of(layout, *KEPT)
    mask[fake] = True
    assert not real_edges(layout)[fake]
    with pytest.raises(GraphError, match="keeps edges that model 'L2H2' does not have"):
        Circuit(spec=layout.spec, mask=mask, scores=np.zeros(mask.shape))
