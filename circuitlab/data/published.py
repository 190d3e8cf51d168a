"""Circuits that papers describe, as data: nodes by class, with their source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from circuitlab.data.checks import check_mapping
from circuitlab.errors import TaskError, shown
from circuitlab.parts import Kind, Node
from circuitlab.references import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCircuit:
    """The nodes of a model that a paper found to do a task, by the class that the paper gives them.

    Attributes:
        source: The paper.
        classes: Class -> names of heads and MLPs, such as `{"induction": ("a5.h5", "m6")}`; no node is in two.

    Raises:
        TaskError: No node, a name that is no head or MLP, or a node in two classes.

    Example:
        >>> from circuitlab.data.published import PublishedCircuit
        >>> from circuitlab.references import WANG_2023
        >>> PublishedCircuit(source=WANG_2023, classes={"induction": ("a5.h5", "a6.h9")}).nodes
        ('a5.h5', 'a6.h9')
    """

    source: Reference
    classes: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        owner = f"the published circuit of {self.source.key}"
        check_mapping(f"classes of {owner}", self.classes)
        for name in self.nodes:
            if Node.parse(name).kind not in (Kind.HEAD, Kind.MLP):
                raise TaskError(f"{owner} names {shown(name)}; its nodes are heads and MLPs, such as a5.h5 and m6.")
        if not self.nodes:
            raise TaskError(f"{owner} has no node. Give at least one.")
        if twice := sorted({name for name in self.nodes if self.nodes.count(name) > 1}):
            raise TaskError(f"{owner} names {twice} twice; a node belongs to one class.")

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of all nodes, class by class."""
        return tuple(name for names in self.classes.values() for name in names)
