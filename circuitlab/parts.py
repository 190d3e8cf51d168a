"""Nodes, slots and edges of the computational graph, and the shape of a model. No torch, no networkx.

A **writer** adds its output to the residual stream: the input embedding, a head, an MLP. A **reader** takes the stream
in: a head's q, k or v input, an MLP, the logits. An **edge** is the direct path from one writer to one reader. Names
are those of the MIB / EAP-IG files: `input`, `a3.h2`, `m0`, `logits`; `m0->a3.h2<q>`, `a0.h1->m2`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from circuitlab.errors import GraphError, UnknownNameError, WrongTypeError

_NUMBER = "0|[1-9][0-9]*"


class Kind(Enum):
    """What a node is."""

    INPUT = "input"
    HEAD = "head"
    MLP = "mlp"
    LOGITS = "logits"


class Slot(Enum):
    """Which input of a head an edge enters."""

    Q = "q"
    K = "k"
    V = "v"


class Stage(Enum):
    """Where on an MLP's way from its input projection to its output projection a neuron's value is read.

    Without a norm inside the MLP `mid` is `post`. In a gated MLP `pre` is the gate's: what the activation function is
    applied to, without the other factor.
    """

    PRE = "pre"  # before the activation function
    MID = "mid"  # after it (in a gated MLP after the product), before a norm inside the MLP, as in SoLU
    POST = "post"  # what goes into the output projection


@dataclass(frozen=True, slots=True, repr=False)
class Node:
    """One component. `layer` and `head` are None where the kind has none.

    Raises:
        GraphError: The kind and the indices do not go together.

    Example:
        >>> Node.parse("a0.h1").name, Node.parse("m2").layer
        ('a0.h1', 2)
    """

    kind: Kind
    layer: int | None = None
    head: int | None = None

    def __repr__(self) -> str:
        return f"Node.parse({self.name!r})"

    def __post_init__(self) -> None:
        needed = self.kind in (Kind.MLP, Kind.HEAD), self.kind is Kind.HEAD
        if needed != (self.layer is not None, self.head is not None):
            raise GraphError(f"a node of kind {self.kind.value!r} cannot have layer={self.layer}, head={self.head}.")
        if min(self.layer or 0, self.head or 0) < 0:
            raise GraphError(f"layers and heads count from 0; got layer={self.layer}, head={self.head}.")

    @property
    def name(self) -> str:
        """The name in exchange files."""
        if self.kind is Kind.HEAD:
            return f"a{self.layer}.h{self.head}"
        return f"m{self.layer}" if self.kind is Kind.MLP else self.kind.value

    @classmethod
    def parse(cls, name: str) -> Node:
        """The node with this name.

        Returns:
            The node.

        Raises:
            UnknownNameError: The name is not spelt as a node.
        """
        if not isinstance(name, str):
            raise WrongTypeError(f"a node is named by a str such as 'a3.h2'; got {str(name)[:60]!r}.")
        if name in ("input", "logits"):
            return cls(Kind(name))
        if match := re.fullmatch(rf"a({_NUMBER})\.h({_NUMBER})", name):
            return cls(Kind.HEAD, int(match[1]), int(match[2]))
        if match := re.fullmatch(rf"m({_NUMBER})", name):
            return cls(Kind.MLP, int(match[1]))
        raise UnknownNameError(f"{name!r} is no node. Nodes are spelt input, a3.h2, m0, logits.")


@dataclass(frozen=True, slots=True, repr=False)
class Reader:
    """A place where the stream is read: a node, and for a head the slot.

    Example:
        >>> Edge.parse("m0->a3.h2<q>").reader.node.name
        'a3.h2'
    """

    node: Node
    slot: Slot | None = None

    def __repr__(self) -> str:
        return f"<Reader {self.name}>"

    def __post_init__(self) -> None:
        if (self.node.kind is Kind.HEAD) != (self.slot is not None) or self.node.kind is Kind.INPUT:
            raise GraphError(f"{self.node.name!r} cannot be read through slot {self.slot}.")

    @property
    def name(self) -> str:
        """The right half of an edge name, `a3.h2<q>` or `m0`."""
        return f"{self.node.name}<{self.slot.value}>" if self.slot else self.node.name


@dataclass(frozen=True, slots=True, repr=False)
class Edge:
    """The direct path from a writer to a reader.

    Example:
        >>> edge = Edge.parse("m0->a3.h2<q>")
        >>> edge.source.name, edge.reader.node.name, edge.reader.slot.value
        ('m0', 'a3.h2', 'q')
    """

    source: Node
    reader: Reader

    def __repr__(self) -> str:
        return f"Edge.parse({self.name!r})"

    @property
    def name(self) -> str:
        """The full edge name, `m0->a3.h2<q>`."""
        return f"{self.source.name}->{self.reader.name}"

    @classmethod
    def parse(cls, name: str) -> Edge:
        """The edge with this name; `Layout.edge_index` checks whether a model has it.

        Returns:
            The edge.

        Raises:
            UnknownNameError: The name is not spelt as an edge.
        """
        if not isinstance(name, str):
            raise WrongTypeError(f"an edge is named by a str such as 'm0->a3.h2<q>'; got {str(name)[:60]!r}.")
        match = re.fullmatch(r"([\w.]+)->([\w.]+)(?:<([qkv])>)?", name)
        if not match:
            raise UnknownNameError(f"{name!r} is no edge. Edges are spelt m0->a3.h2<q>, a0.h1->m2, input->logits.")
        try:
            return cls(Node.parse(match[1]), Reader(Node.parse(match[2]), Slot(match[3]) if match[3] else None))
        except UnknownNameError as error:
            raise UnknownNameError(f"{name!r} is no edge: {error}") from error
        except GraphError as error:
            raise UnknownNameError(
                f"{name!r} is no edge: a head is read through <q>, <k> or <v>, others are not."
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The shape of a model, as far as its graph depends on it.

    Attributes:
        name: What the user called the model.
        n_layers: Number of blocks.
        n_heads: Query heads a layer (grouped-query models have one reader per query head for k and v too).
        n_kv_heads: Key/value heads a layer.
        d_model: Width of the residual stream.
        d_head: Width of a head.
        d_vocab: Number of tokens that are predicted.
        n_ctx: Tokens of the longest prompt; None where nothing limits it (ALiBi).
        parallel: Attention and MLP of a block read the same stream.
        has_mlp: False for attention-only models.
        causal: No token sees a later one; False for bidirectional models.
        d_vocab_in: Number of tokens that are read, where it is not `d_vocab`.

    Example:
        >>> from circuitlab import load_model
        >>> spec = load_model("bundled").spec
        >>> spec.n_layers, spec.n_heads, spec.d_model
        (4, 8, 128)
    """

    name: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    n_ctx: int | None
    parallel: bool = False
    has_mlp: bool = True
    causal: bool = True
    d_vocab_in: int | None = None

    @property
    def n_embeddings(self) -> int:
        """Rows of the embedding: ids of tokens that can be read are below it."""
        return self.d_vocab if self.d_vocab_in is None else self.d_vocab_in

    @property
    def writers_per_layer(self) -> int:
        """Heads, and the MLP where there is one."""
        return self.n_heads + self.has_mlp

    @property
    def readers_per_layer(self) -> int:
        """Three slots a head, and the MLP where there is one."""
        return 3 * self.n_heads + self.has_mlp


class Layout:
    """Numbers of writers and readers, as EAP-IG's matrices have them; which pairs are edges.

    Writers: input, then per layer heads and MLP. Readers: per layer all heads' q, then k, then v, then the MLP; last
    the logits. Score and mask matrices `[writer, reader]` are indexed by these numbers.

    Example:
        >>> spec = ModelSpec(name="gpt2", n_layers=12, n_heads=12, n_kv_heads=12, d_model=768, d_head=64,
        ...                  d_vocab=50257, n_ctx=1024)
        >>> layout = Layout.of(spec)
        >>> layout.n_edges, len(layout.writers) + 1
        (32491, 158)
    """

    __slots__ = ("_reader_index", "_writer_index", "owners", "readers", "spec", "visible", "writers")

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.writers: tuple[Node, ...] = tuple(_writers(spec))
        self.readers: tuple[Reader, ...] = tuple(_readers(spec))
        self._writer_index = {node: i for i, node in enumerate(self.writers)}
        self._reader_index = {reader: i for i, reader in enumerate(self.readers)}
        # The number of the writer that each reader belongs to; the logits get one more than there are writers.
        self.owners: tuple[int, ...] = tuple(self._writer_index.get(r.node, len(self.writers)) for r in self.readers)
        # A reader sees the first `visible[reader]` writers and no other.
        self.visible: tuple[int, ...] = tuple(self._visible(reader) for reader in self.readers)

    @staticmethod
    @lru_cache(maxsize=16)
    def of(spec: ModelSpec) -> Layout:
        """The layout of a spec; built once, it never changes.

        Returns:
            The layout.
        """
        return Layout(spec)

    @property
    def n_edges(self) -> int:
        """How many edges the graph has."""
        return sum(self.visible)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node: the writers, then the logits."""
        return (*self.writers, Node(Kind.LOGITS))

    def edges(self) -> Iterator[Edge]:
        """Every edge, writer by writer within reader, in a fixed order."""
        for reader, n_visible in zip(self.readers, self.visible, strict=True):
            for writer in self.writers[:n_visible]:
                yield Edge(writer, reader)

    def writer_index(self, node: Node) -> int:
        """The row of a writer.

        Returns:
            Its number.

        Raises:
            UnknownNameError: The model has no such writer.
        """
        if node not in self._writer_index:
            raise UnknownNameError.of("writer", node.name, (w.name for w in self.writers))
        return self._writer_index[node]

    def reader_index(self, reader: Reader) -> int:
        """The column of a reader.

        Returns:
            Its number.

        Raises:
            UnknownNameError: The model has no such reader.
        """
        if reader not in self._reader_index:
            raise UnknownNameError.of("reader", reader.name, (r.name for r in self.readers))
        return self._reader_index[reader]

    def edge_name(self, row: int, column: int) -> str:
        """The name of the edge from this writer to this reader, by their numbers.

        Returns:
            The name.
        """
        return f"{self.writers[row].name}->{self.readers[column].name}"

    def edge_index(self, edge: Edge) -> tuple[int, int]:
        """Row and column of an edge.

        Returns:
            Both numbers.

        Raises:
            UnknownNameError: The model has no such edge, or it would run backwards.
        """
        try:
            row, column = self.writer_index(edge.source), self.reader_index(edge.reader)
        except UnknownNameError as error:
            raise UnknownNameError(f"unknown edge {edge.name!r} in model {self.spec.name!r}: {error}") from error
        if row >= self.visible[column]:
            raise UnknownNameError(
                f"unknown edge {edge.name!r}: {edge.source.name} writes after {edge.reader.name} has read."
            )
        return row, column

    def readers_of(self, node: Node) -> tuple[int, ...]:
        """The columns through which a node reads: three for a head, one for an MLP and the logits.

        Returns:
            The numbers; none for the input.
        """
        if node.kind is Kind.INPUT:
            return ()
        if node.kind is Kind.HEAD:
            return tuple(self.reader_index(Reader(node, slot)) for slot in Slot)
        return (self.reader_index(Reader(node)),)

    def _visible(self, reader: Reader) -> int:
        node, spec = reader.node, self.spec
        if node.kind is Kind.LOGITS:
            return len(self.writers)
        before = 1 + (node.layer or 0) * spec.writers_per_layer
        return before + (spec.n_heads if node.kind is Kind.MLP and not spec.parallel else 0)


def _writers(spec: ModelSpec) -> Iterator[Node]:
    yield Node(Kind.INPUT)
    for layer in range(spec.n_layers):
        for head in range(spec.n_heads):
            yield Node(Kind.HEAD, layer, head)
        if spec.has_mlp:
            yield Node(Kind.MLP, layer)


def _readers(spec: ModelSpec) -> Iterator[Reader]:
    for layer in range(spec.n_layers):
        for slot in Slot:
            for head in range(spec.n_heads):
                yield Reader(Node(Kind.HEAD, layer, head), slot)
        if spec.has_mlp:
            yield Reader(Node(Kind.MLP, layer))
    yield Reader(Node(Kind.LOGITS))
