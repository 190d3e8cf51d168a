"""The description that models are compiled from: variables, heads that look them up, MLPs that compute them.

A **variable** holds a small vector at every token: one number, or one of several values as a one-hot vector. The input
writes two, TOKEN and POSITION. Every other is written by one operation, which becomes one node of the graph:

    Attend  a head: a weighted sum of one variable over earlier tokens; scores are sums of terms, in nats
    Apply   an MLP: out(relu(bias + what it reads)) + shift

Each variable has a part of the residual stream for itself, so a writer reaches exactly the readers that read its
variable: the edges of the model are those of the description.

References:
    Weiss et al. 2021 (RASP), arXiv:2106.06981; Lindner et al. 2023 (Tracr), arXiv:2301.05062.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from jaxtyping import Float

from circuitlab.errors import ConfigError
from circuitlab.parts import Kind, ModelSpec, Node, Reader, Slot
from circuitlab.summary import Summary, plural

TOKEN, POSITION = "token", "position"
Matrix = Float[np.ndarray, "_ _"]
Vector = Float[np.ndarray, " _"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Match(Summary):
    """A term of a head's score: `weight[query value, key value]`, in nats.

    Attributes:
        query: The variable that queries have; None for a term that is the same for all queries.
        key: The variable that keys have.
        weight: One row a value of the query, or one row alone.
    """

    query: str | None
    key: str
    weight: Matrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Attend(Summary):
    """A head; without terms it attends to all visible tokens alike.

    Attributes:
        writes: The variable it writes.
        value: The variable whose values it sums.
        through: From a value to what is written of it, `[value, written]`.
        score: Terms of the attention score.
    """

    writes: str
    value: str
    through: Matrix
    score: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Apply(Summary):
    """An MLP.

    Attributes:
        writes: The variable it writes.
        reads: Variable -> weights into the neurons, `[value, neuron]`.
        bias: Of the neurons.
        out: From the neurons to what is written, `[neuron, written]`.
        shift: What is written where no neuron is active.
    """

    writes: str
    reads: Mapping[str, Matrix]
    bias: Vector
    out: Matrix
    shift: Vector


Operation = Attend | Apply


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Read(Summary):
    """What one reader takes from one variable.

    Attributes:
        writes: The variable that is made of it; none for the logits.
        reader: Where it is read.
        variable: The variable.
        through: From its value to what the reader makes of it, `[value, _]`.
    """

    writes: str | None
    reader: Reader
    variable: str
    through: Matrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Program(Summary):
    """A whole model.

    Attributes:
        name: What it is called.
        words: The vocabulary.
        n_ctx: Longest prompt.
        operations: In an order in which each reads only earlier ones.
        output: The variable that the logits are read from.
        unembed: From its value to logits, `[value, word]`; by default the values are the words.
        causal: Whether no token sees a later one.
        placed: The node of every operation's variable; by default as early as what it reads allows.
        nodes: The node that writes each variable.

    Raises:
        ConfigError: An operation reads a variable that nothing before it writes, or writes one twice.
    """

    name: str
    words: tuple[str, ...]
    n_ctx: int
    operations: tuple[Operation, ...]
    output: str
    unembed: Matrix
    causal: bool = True
    placed: Mapping[str, Node] | None = None
    nodes: Mapping[str, Node] = field(init=False)

    def __post_init__(self) -> None:
        known = {TOKEN, POSITION}
        for operation in self.operations:
            if missing := sorted({variable for _, variable, _ in _reads(operation)} - known):
                raise ConfigError(f"{operation.writes!r} of {self.name!r} reads {missing}, which nothing writes yet.")
            if operation.writes in known:
                raise ConfigError(f"{operation.writes!r} of {self.name!r} is written twice.")
            known.add(operation.writes)
        if self.output not in known:
            raise ConfigError(f"the logits of {self.name!r} read {self.output!r}, which nothing writes.")
        inputs = dict.fromkeys((TOKEN, POSITION), Node(Kind.INPUT))
        nodes = _placed(self.operations) if self.placed is None else inputs | dict(self.placed)
        object.__setattr__(self, "nodes", nodes)

    @property
    def sizes(self) -> dict[str, int]:
        """Width of each variable, in the order of the stream."""
        found = {TOKEN: len(self.words), POSITION: self.n_ctx}
        for operation in self.operations:
            found[operation.writes] = (operation.through if isinstance(operation, Attend) else operation.out).shape[1]
        return found

    def reads(self) -> Iterator[Read]:
        """Everything that is read, operation by operation; last what the logits read."""
        for operation in self.operations:
            node = self.nodes[operation.writes]
            for slot, variable, through in _reads(operation):
                yield Read(writes=operation.writes, reader=Reader(node, slot), variable=variable, through=through)
        yield Read(writes=None, reader=Reader(Node(Kind.LOGITS)), variable=self.output, through=self.unembed)

    def spec(self, d_model: int, d_head: int) -> ModelSpec:
        """The shape of the model: as many layers and heads as its nodes need.

        Returns:
            The shape, under the program's name.
        """
        nodes = [node for node in self.nodes.values() if node.kind is not Kind.INPUT]
        n_heads = 1 + max((node.head or 0 for node in nodes), default=0)
        return ModelSpec(
            name=self.name,
            n_layers=1 + max((node.layer or 0 for node in nodes), default=0),
            n_heads=n_heads,
            n_kv_heads=n_heads,
            d_model=d_model,
            d_head=d_head,
            d_vocab=len(self.words),
            n_ctx=self.n_ctx,
            has_mlp=any(node.kind is Kind.MLP for node in nodes),
            causal=self.causal,
        )

    def _summary(self) -> str:
        return f"{self.name}: {plural(len(self.operations), 'operation')}, {plural(len(self.words), 'word')}"


def _reads(operation: Operation) -> Iterator[tuple[Slot | None, str, Matrix]]:
    """Slot, variable and function of its value; terms that read the same through one slot are adjacent."""
    if isinstance(operation, Apply):
        for variable, weight in operation.reads.items():
            yield None, variable, weight
        return
    for slot in (Slot.Q, Slot.K):
        found: dict[str, list[np.ndarray]] = {}
        for term in operation.score:
            if slot is Slot.K:
                found.setdefault(term.key, []).append(term.weight.T)
            elif term.query is not None:
                found.setdefault(term.query, []).append(term.weight)
        for variable, weights in found.items():
            yield slot, variable, np.concatenate(weights, 1)
    yield Slot.V, operation.value, operation.through


def _placed(operations: tuple[Operation, ...]) -> dict[str, Node]:
    """The node of every variable's writer: as early as what it reads allows, heads of a layer in order."""
    nodes: dict[str, Node] = {TOKEN: Node(Kind.INPUT), POSITION: Node(Kind.INPUT)}
    at: dict[str, int] = {TOKEN: -1, POSITION: -1}  # half-layers: attention is even, MLPs are odd
    for operation in operations:
        half = 1 + max(at[variable] for _, variable, _ in _reads(operation))
        half += half % 2 != isinstance(operation, Apply)
        if isinstance(operation, Apply):
            half = next(free for free in count(half, 2) if free not in at.values())
            node = Node(Kind.MLP, half // 2)
        else:
            node = Node(Kind.HEAD, half // 2, list(at.values()).count(half))
        at[operation.writes], nodes[operation.writes] = half, node
    return nodes
