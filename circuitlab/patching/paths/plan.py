"""Which paths are patched: senders, receivers and what is frozen between them, checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from circuitlab.arguments import check_each_once
from circuitlab.data.batching import check_corrupted
from circuitlab.errors import ConfigError, GraphError, UnknownNameError
from circuitlab.parts import Kind, Layout, Node, Reader, Slot
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import resolve_direction
from circuitlab.patching.runs.packing import rows_per_pack

FROZEN = ("heads", "patterns", "none")
# Readers that an error lists.
LISTED = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PathPlan:
    """A checked request.

    Attributes:
        experiment: The pairs and what is measured.
        senders: Whose output is replaced, each alone.
        receivers: Whose input is patched, all together; in the order of the layout.
        frozen: What of the heads between them is frozen: "heads", "patterns" or "none".
        freeze_mlps: Whether the MLPs between them are frozen.
        direction: "noise" patches the clean run, "denoise" the corrupted one.
    """

    experiment: Experiment
    senders: tuple[Node, ...]
    receivers: tuple[Reader, ...]
    frozen: str
    freeze_mlps: bool
    direction: str

    @property
    def kept_streams(self) -> int:
        """How many streams of a row are kept for its receivers, beside those of a block."""
        return 2 + len({(reader.node.layer, reader.slot is None) for reader in self.receivers})


def plan_paths(
    experiment: Experiment,
    senders: str | Node | Iterable[str | Node] | None,
    receivers: str | Node | Reader | Iterable[str | Node | Reader],
    *,
    frozen: str,
    freeze_mlps: bool,
    direction: str | None,
) -> PathPlan:
    """Check every argument of `path_patch`; see there.

    Returns:
        The plan.

    Raises:
        UnknownNameError: There is no such sender, receiver, direction or way to freeze heads.
        ConfigError: A receiver reads before a sender writes, a name is given twice, "logits" is not alone, or the
            budget does not hold one row.
    """
    direction = resolve_direction(direction)
    check_corrupted(experiment.pairs, "paths carry values from one run of a pair to the other", "Take patch_edges")
    UnknownNameError.check("frozen", frozen, FROZEN)
    layout = Layout.of(experiment.model.spec)
    readers = _receivers(layout, receivers)
    before = min(layout.visible[layout.reader_index(reader)] for reader in readers)
    writers = layout.writers[:before] if senders is None else _senders(layout, senders)
    _check_order(layout, writers, readers)
    plan = PathPlan(
        experiment=experiment,
        senders=writers,
        receivers=readers,
        frozen=frozen,
        freeze_mlps=freeze_mlps,
        direction=direction,
    )
    for n_tokens in {batch.n_tokens for batch in experiment.batches}:
        # Refuses a budget that does not hold one row.
        rows_per_pack(experiment.model, n_tokens, experiment.resources, plan.kept_streams)
    return plan


def _senders(layout: Layout, given: str | Node | Iterable[str | Node]) -> tuple[Node, ...]:
    names = [given] if isinstance(given, str | Node) else list(given)
    allowed = {node.name: node for node in layout.writers}
    found = []
    for name in (each.name if isinstance(each, Node) else str(each) for each in names):
        UnknownNameError.check("sender", name, allowed, owner=f"model {layout.spec.name!r}")
        found.append(allowed[name])
    check_each_once("sender", [node.name for node in found], "such as 'm0'")
    return tuple(found)


def _receivers(layout: Layout, given: str | Node | Reader | Iterable[str | Node | Reader]) -> tuple[Reader, ...]:
    names = [given] if isinstance(given, str | Node | Reader) else list(given)
    found = [reader for name in names for reader in _readers(layout, name)]
    check_each_once("receiver", [reader.name for reader in found], "such as 'logits'")
    if len(found) > 1 and any(reader.node.kind is Kind.LOGITS for reader in found):
        others = [reader.name for reader in found if reader.node.kind is not Kind.LOGITS]
        raise ConfigError(
            f"receivers {others} do nothing beside 'logits', which reads the whole stream after them. Patch the paths "
            "to 'logits' and to the others in two calls."
        )
    return tuple(sorted(found, key=layout.reader_index))


def _readers(layout: Layout, given: str | Node | Reader) -> list[Reader]:
    """The readers that a name means; a head without a slot is read through all three."""
    name = given if isinstance(given, str) else given.name
    match = re.fullmatch(r"(.*?)(?:<([qkv])>)?", str(name))
    assert match
    try:
        node, slot = Node.parse(match[1]), Slot(match[2]) if match[2] else None
        slots = tuple(Slot) if node.kind is Kind.HEAD and slot is None else (slot,)
        found = [Reader(node, slot) for slot in slots]
    except (UnknownNameError, GraphError):
        found = []
    if not found or any(reader not in layout.readers for reader in found):
        allowed = [reader.name for reader in layout.readers]
        hint = "A head without its slot means all three."
        raise UnknownNameError.of("receiver", name, allowed, hint=hint, owner=f"model {layout.spec.name!r}")
    return found


def _check_order(layout: Layout, senders: tuple[Node, ...], receivers: tuple[Reader, ...]) -> None:
    for sender, reader in product(senders, receivers):
        written = layout.writer_index(sender)
        if written >= layout.visible[layout.reader_index(reader)]:
            after = [r.name for r, visible in zip(layout.readers, layout.visible, strict=True) if written < visible]
            listed = ", ".join(after[:LISTED]) + (f" and {len(after) - LISTED} more" if len(after) > LISTED else "")
            raise ConfigError(
                f"receiver {reader.name!r} reads before sender {sender.name!r} writes. After {sender.name!r} are "
                f"{listed}."
            )
