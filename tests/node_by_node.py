"""A circuit run one node after the other: the oracle for circuits on every architecture, for any replacement.

Every reader's stream is written out as the biases, plus what each kept edge's writer says in this very run, plus the
replacement of each excluded one. All nodes are computed at all tokens, for one circuit at a time. The steps of a model
(`project`, `attend`, ...) are the library's; tests of the models hold those against the whole forward pass.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuitlab.models.protocol import BlockArguments, Model, Recording
from circuitlab.models.steps import project
from circuitlab.parts import Layout, Slot
from circuitlab.patching.runs.ablation import AblatedRun


@dataclass
class Walk:
    """What came by: streams that nodes read if every edge is replaced, and what each node makes of its own."""

    final: Tensor
    said: list[Tensor]
    kept: dict[str, list[Tensor]] = field(default_factory=lambda: {name: [] for name in Recording.__slots__[:-1]})


@torch.no_grad()
def walk(model: Model, arguments: BlockArguments, start: Tensor, mask: Tensor, replacement: list[Tensor]) -> Walk:
    """The final stream, every writer's output, and everything in between.

    `mask[writer, reader]` keeps an edge, `mask[writer, reader, d_model]` some components of what it carries;
    `replacement[writer]` is what its excluded edges carry.
    """
    spec, said, bias = model.spec, [start], torch.zeros_like(start)
    found = Walk(start, said)

    def read(column: int) -> Tensor:
        carried = (torch.where(mask[w, column] > 0, now, replacement[w]) for w, now in enumerate(said))
        return bias + sum(carried)

    def replaced(first: int, last: int) -> Tensor:
        return torch.stack(replacement[first:last]).sum(0)

    for layer in range(spec.n_layers):
        first = layer * spec.readers_per_layer
        values = {}
        for number, slot in enumerate(Slot):
            streams = [read(first + number * spec.n_heads + head) for head in range(spec.n_heads)]
            values[slot] = torch.stack(
                [project(model, layer, slot, [h], stream[None])[0] for h, stream in enumerate(streams)], 2
            )
        z = model.attend(layer, values[Slot.Q], values[Slot.K], values[Slot.V], arguments)
        heads = list(model.head_outputs(layer, z))
        own_bias = model.attn_output(layer, torch.zeros_like(z))
        stream = bias + replaced(0, len(said))
        if not spec.parallel:
            said += heads
            bias = bias + own_bias
        mlp = [model.mlp_output(layer, read(first + 3 * spec.n_heads))] if spec.has_mlp else []
        if spec.parallel:
            said += heads
            bias = bias + own_bias
        step = replaced(len(said) - len(heads), len(said)) + own_bias
        said += mlp
        for name, value in (("resid_pre", stream), ("attn_out", step), ("mlp_out", mlp[0] if mlp else 0 * step)):
            found.kept[name].append(value)
        for name, value in (("q", values[Slot.Q]), ("k", values[Slot.K]), ("v", values[Slot.V]), ("z", z)):
            found.kept[name].append(value)
        found.kept["pattern"].append(z.new_zeros(len(z), spec.n_heads, z.shape[1], z.shape[1]))
    found.final = read(len(Layout.of(spec).readers) - 1)
    return found


def ablated_by_hand(model: Model, arguments: BlockArguments, start: Tensor, replacement: list[Tensor]) -> AblatedRun:
    """The run with no edge kept."""
    layout = Layout.of(model.spec)
    nothing = torch.zeros(len(layout.writers), len(layout.readers), dtype=torch.bool)
    empty = walk(model, arguments, start, nothing, replacement)
    run = Recording(**{name: tuple(values) for name, values in empty.kept.items()}, resid_final=empty.final)
    offsets = {w: empty.said[w] - replacement[w] for w in range(1, len(layout.writers))}
    return AblatedRun(run=run, offsets=offsets)
