"""Names of nodes, readers and edges; which edges a model has; their numbers in the MIB / EAP-IG files."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import law
from layouts import GPT2, SHAPES, names, spec_of, specs

from circuitlab import GraphError, UnknownNameError
from circuitlab.parts import Edge, Kind, Layout, Node, Reader, Slot

INPUT, LOGITS = Node(Kind.INPUT), Node(Kind.LOGITS)


def head(layer: int, number: int) -> Node:
    return Node(Kind.HEAD, layer, number)


def mlp(layer: int) -> Node:
    return Node(Kind.MLP, layer)


numbers = st.integers(0, 200)
heads, mlps = st.builds(head, numbers, numbers), st.builds(mlp, numbers)
readers = st.one_of(st.builds(Reader, heads, st.sampled_from(Slot)), st.builds(Reader, mlps), st.just(Reader(LOGITS)))
edges = st.builds(Edge, st.one_of(heads, mlps, st.just(INPUT)), readers)


@pytest.mark.parametrize(
    ("node", "name"),
    [(INPUT, "input"), (head(3, 2), "a3.h2"), (head(11, 10), "a11.h10"), (mlp(0), "m0"), (LOGITS, "logits")],
)
def test_nodes_are_spelt_as_in_the_exchange_files(node, name):
    assert node.name == name
    assert Node.parse(name) == node


@pytest.mark.parametrize(
    ("edge", "name"),
    [
        (Edge(mlp(0), Reader(head(3, 2), Slot.Q)), "m0->a3.h2<q>"),
        (Edge(INPUT, Reader(head(0, 11), Slot.V)), "input->a0.h11<v>"),
        (Edge(head(0, 1), Reader(mlp(2))), "a0.h1->m2"),
        (Edge(INPUT, Reader(LOGITS)), "input->logits"),
    ],
)
def test_edges_are_spelt_as_in_the_exchange_files(edge, name):
    assert edge.name == name
    assert Edge.parse(name) == edge


@law
@given(st.one_of(heads, mlps, st.sampled_from([INPUT, LOGITS])))
def test_a_node_comes_back_from_its_name(node):
    assert Node.parse(node.name) == node


@law
@given(edges)
def test_an_edge_comes_back_from_its_name(edge):
    assert Edge.parse(edge.name) == edge
    assert hash(Edge.parse(edge.name)) == hash(edge)


@law
@given(edges, edges)
def test_different_edges_have_different_names(one, other):
    assert (one == other) == (one.name == other.name)


NO_NODES = (
    "", " ", "a3", "h2", "a3h2", "a3.h", "a.h2", "a3.h2 ", " a3.h2", "a3.h2\n", "A3.H2", "a-1.h2", "m", "m1.5", "m1.h2",
    "mlp0", "blocks.0.attn", "inputs", "Logits", "a3.h2<q>", "a3.h2.q", "input->m0",
)  # fmt: skip
NO_EDGES = (
    "", "m0", "m0->", "->m0", "m0-> m1", "m0 -> m1", "m0->m1->m2", "m0->a3.h2", "m0->a3.h2<>", "m0->a3.h2<o>",
    "m0->a3.h2<qk>", "m0->a3.h2<q", "m0->a3.h2<q> ", "m0->m1<q>", "m0->logits<v>", "m0->input", "input->input",
    "m0=>m1", "m0->x1", "a0.h0<q>->m0", "m0->m1\n",
)  # fmt: skip


@pytest.mark.parametrize("name", NO_NODES)
def test_what_is_no_node_is_refused_with_the_spelling(name):
    with pytest.raises(UnknownNameError) as told:
        Node.parse(name)
    assert repr(name) in str(told.value)
    assert "input, a3.h2, m0, logits" in str(told.value)


@pytest.mark.parametrize("name", NO_EDGES)
def test_what_is_no_edge_is_refused_with_the_name(name):
    with pytest.raises(UnknownNameError) as told:
        Edge.parse(name)
    assert repr(name) in str(told.value) or "'x1'" in str(told.value)


@pytest.mark.parametrize(
    "name",
    ["a00.h1", "m007", "a\u0663.h2", "m\uff11"],
)
def test_a_name_has_one_spelling(name):
    """Two spellings of one edge in a file would be two entries that overwrite each other."""
    with pytest.raises(UnknownNameError):
        Node.parse(name)


@pytest.mark.parametrize(
    ("kind", "layer", "number"),
    [
        (Kind.INPUT, 0, None),
        (Kind.LOGITS, None, 3),
        (Kind.MLP, None, None),
        (Kind.MLP, 1, 2),
        (Kind.HEAD, 1, None),
        (Kind.HEAD, None, 1),
    ],
)
def test_a_node_that_cannot_be_is_refused(kind, layer, number):
    with pytest.raises(GraphError, match=f"kind '{kind.value}' cannot have layer={layer}, head={number}"):
        Node(kind, layer, number)


@pytest.mark.parametrize(("kind", "layer", "number"), [(Kind.MLP, -1, None), (Kind.HEAD, 0, -1)])
def test_a_node_counts_from_zero(kind, layer, number):
    with pytest.raises(GraphError):
        Node(kind, layer, number)


@pytest.mark.parametrize(
    ("node", "slot"), [(head(0, 0), None), (mlp(0), Slot.Q), (LOGITS, Slot.K), (INPUT, None), (INPUT, Slot.V)]
)
def test_a_reader_that_cannot_be_is_refused(node, slot):
    with pytest.raises(GraphError, match=f"'{node.name}' cannot be read"):
        Reader(node, slot)


def test_parts_do_not_change():
    with pytest.raises(FrozenInstanceError):
        mlp(0).layer = 1
    assert len({Edge.parse("m0->m1"), Edge.parse("m0->m1"), Edge.parse("m0->m2")}) == 2


def test_gpt2_has_the_published_numbers():
    layout = Layout.of(GPT2)
    assert layout.n_edges == 32_491
    assert len(layout.nodes) == 158
    assert (len(layout.writers), len(layout.readers)) == (157, 445)


def test_the_smallest_graph_on_paper():
    """One layer of one head: input, a0.h0, m0, logits."""
    written = {edge.name for edge in Layout.of(spec_of(1, 1)).edges()}
    to_head = {f"input->a0.h0<{slot}>" for slot in "qkv"}
    assert written == to_head | {"input->m0", "a0.h0->m0", "input->logits", "a0.h0->logits", "m0->logits"}
    assert len(list(Layout.of(spec_of(2, 2)).edges())) == 46


def test_attention_and_mlp_in_parallel_do_not_see_each_other():
    one_after_the_other = {edge.name for edge in Layout.of(spec_of(2, 2)).edges()}
    in_parallel = {edge.name for edge in Layout.of(spec_of(2, 2, parallel=True)).edges()}
    own_mlp = {f"a{layer}.h{number}->m{layer}" for layer in (0, 1) for number in (0, 1)}
    assert one_after_the_other - in_parallel == own_mlp
    assert in_parallel < one_after_the_other


def test_without_mlps_there_are_no_mlps():
    layout = Layout.of(spec_of(2, 2, has_mlp=False))
    assert [node.name for node in layout.nodes] == ["input", "a0.h0", "a0.h1", "a1.h0", "a1.h1", "logits"]
    assert layout.n_edges == 2 * 3 * 1 + 2 * 3 * 3 + 5


@law
@given(specs)
def test_counts_follow_the_formula(spec):
    layers, heads_, mlp_ = spec.n_layers, spec.n_heads, int(spec.has_mlp)
    before = [1 + layer * (heads_ + mlp_) for layer in range(layers)]
    to_heads = sum(3 * heads_ * seen for seen in before)
    to_mlps = mlp_ * sum(seen + heads_ * (not spec.parallel) for seen in before)
    assert Layout.of(spec).n_edges == to_heads + to_mlps + 1 + layers * (heads_ + mlp_)


def moment(node: Node, spec, *, reads: bool) -> float:
    """When a node reads or writes: block 2 begins at 2.0, its MLP reads at 2.5 (in parallel at 2.0), writes at 2.9."""
    if node.kind in (Kind.INPUT, Kind.LOGITS):
        return -1.0 if node.kind is Kind.INPUT else float("inf")
    assert node.layer is not None
    if node.kind is Kind.HEAD:
        return node.layer + (0.0 if reads else 0.4)
    return node.layer + (0.0 if spec.parallel else 0.5) if reads else node.layer + 0.9


@law
@given(specs)
def test_an_edge_is_a_pair_whose_writer_comes_first(spec):
    layout = Layout.of(spec)
    real = {
        (writer, reader)
        for writer in layout.writers
        for reader in layout.readers
        if moment(writer, spec, reads=False) < moment(reader.node, spec, reads=True)
    }
    listed = [(edge.source, edge.reader) for edge in layout.edges()]
    assert len(listed) == len(set(listed)) == layout.n_edges
    assert set(listed) == real


@pytest.mark.parametrize("spec", [spec_of(3, 4), spec_of(3, 4, parallel=True), GPT2], ids=names)
def test_numbers_are_those_of_the_exchange_files(spec):
    layout, n = Layout.of(spec), spec.n_heads
    for layer in range(spec.n_layers):
        for h in range(n):
            assert layout.writer_index(head(layer, h)) == 1 + layer * (n + 1) + h
            for place, slot in enumerate("qkv"):
                assert layout.reader_index(Reader(head(layer, h), Slot(slot))) == layer * (3 * n + 1) + place * n + h
        assert layout.writer_index(mlp(layer)) == 1 + layer * (n + 1) + n
        assert layout.reader_index(Reader(mlp(layer))) == layer * (3 * n + 1) + 3 * n
    assert layout.writer_index(INPUT) == 0
    assert len(layout.writers) == 1 + spec.n_layers * (n + 1)
    assert layout.reader_index(Reader(LOGITS)) == len(layout.readers) - 1 == spec.n_layers * (3 * n + 1)


def test_writers_and_readers_stand_in_the_order_of_the_files():
    layout = Layout.of(spec_of(2, 2))
    assert [node.name for node in layout.nodes] == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    first = ["a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0"]
    assert [reader.name for reader in layout.readers[:7]] == first
    assert layout.readers[-1].name == "logits"


@law
@given(specs, st.data())
def test_an_edge_has_its_own_row_and_column(spec, data):
    layout = Layout.of(spec)
    edge = data.draw(st.sampled_from(list(layout.edges())))
    row, column = layout.edge_index(edge)
    assert Edge(layout.writers[row], layout.readers[column]) == edge
    assert row < layout.visible[column]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("m0->a0.h0<q>", "m0 writes after a0.h0<q> has read"),
        ("a0.h0->a0.h1<v>", "a0.h0 writes after a0.h1<v> has read"),
        ("m1->m1", "m1 writes after m1 has read"),
        ("a2.h0->logits", "unknown writer 'a2.h0'. Did you mean 'a1.h0'"),
        ("a0.h2->m1", "unknown writer 'a0.h2'"),
        ("input->m2", "unknown reader 'm2'"),
        ("logits->m1", "unknown writer 'logits'"),
    ],
)
def test_an_edge_that_the_model_lacks_is_refused(name, says):
    with pytest.raises(UnknownNameError) as told:
        Layout.of(spec_of(2, 2)).edge_index(Edge.parse(name))
    assert repr(name) in str(told.value)
    assert says in str(told.value)


def test_a_head_feeds_its_own_mlp_unless_they_are_parallel():
    edge = Edge.parse("a1.h0->m1")
    assert Layout.of(spec_of(2, 2)).edge_index(edge) == (4, 13)
    with pytest.raises(UnknownNameError, match="a1.h0 writes after m1 has read"):
        Layout.of(spec_of(2, 2, parallel=True)).edge_index(edge)


def test_a_node_reads_through_its_own_columns():
    layout = Layout.of(spec_of(2, 2))
    assert layout.readers_of(INPUT) == ()
    assert [layout.readers[i].name for i in layout.readers_of(head(1, 0))] == ["a1.h0<q>", "a1.h0<k>", "a1.h0<v>"]
    assert [layout.readers[i].name for i in layout.readers_of(mlp(0))] == ["m0"]
    assert [layout.readers[i].name for i in layout.readers_of(LOGITS)] == ["logits"]


@pytest.mark.parametrize("spec", SHAPES, ids=names)
def test_every_column_belongs_to_one_node(spec):
    layout = Layout.of(spec)
    owned = [column for node in layout.nodes for column in layout.readers_of(node)]
    assert sorted(owned) == list(range(len(layout.readers)))


def test_a_layout_is_built_once_for_a_shape():
    assert Layout.of(spec_of(2, 2)) is Layout.of(spec_of(2, 2))
    assert Layout.of(spec_of(2, 2)) is not Layout.of(spec_of(2, 2, parallel=True))
