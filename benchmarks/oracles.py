"""The same numbers another way: whole forward passes of the bridge with plain hooks, and TransformerLens's own tools.

Nothing here uses circuitlab's adapter or engine. A reader is given another input by hooking what it reads: a head's
query is recomputed by the block's own norm and projection from the stream that this head is to see and put in at
`hook_q`; an MLP's stream goes in before its norm, the logits' before the final norm. Readers of keys and values are
one a query head, so a grouped-query model has to come written out with one key/value head a query head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks.per_cell import logit_diff
from circuitlab import Edge, Node, PairBatch, Reader
from circuitlab.parts import Kind, Layout, Slot

Hook = tuple[str, Callable[..., Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """One untouched run.

    Attributes:
        logits: At every position.
        read: The stream that each layer's heads read, that its MLP reads (None without MLPs), and the last one.
        outputs: What every writer adds to the stream, in the order of the layout.
    """

    logits: Float[Tensor, "batch seq d_vocab"]
    read: dict[tuple[str, int], Float[Tensor, "batch seq d_model"]]
    outputs: list[Float[Tensor, "batch seq d_model"]]


@torch.no_grad()
def whole_run(bridge: Any, layout: Layout, tokens: Int[Tensor, "batch seq"]) -> Whole:
    """Run the bridge once and keep what readers read and writers say."""
    spec = layout.spec
    logits, cache = bridge.run_with_cache(tokens)
    read = {("heads", i): cache[f"blocks.{i}.hook_in"] for i in range(spec.n_layers)}
    outputs = [cache["blocks.0.hook_in"]]
    for layer in range(spec.n_layers):
        outputs += _head_outputs(bridge, layer, cache[f"blocks.{layer}.attn.o.hook_in"])
        if spec.has_mlp:
            read["mlp", layer] = cache[_mlp_hook(bridge, layer)]
            outputs.append(cache[f"blocks.{layer}.hook_mlp_out"])
    read["logits", 0] = cache["ln_final.hook_in"]
    return Whole(logits, read, outputs)


@torch.no_grad()
def edge_effects(
    bridge: Any, layout: Layout, batch: PairBatch, edges: Iterable[Edge]
) -> Float[np.ndarray, "_ example"]:
    """m(clean) - m(clean with this one edge corrupted): one plain pass an edge."""
    clean, corrupt = (whole_run(bridge, layout, tokens) for tokens in (batch.clean, batch.corrupted))
    before = logit_diff(clean.logits, batch)
    found = []
    for edge in edges:
        writer = layout.writer_index(edge.source)
        changed = clean.read[_place(edge.reader)] - (clean.outputs[writer] - corrupt.outputs[writer])
        after = bridge.run_with_hooks(batch.clean, fwd_hooks=[_given(bridge, edge.reader, changed)])
        found.append((before - logit_diff(after, batch)).double().cpu().numpy())
    return np.stack(found)


@torch.no_grad()
def circuit_run(
    bridge: Any, layout: Layout, batch: PairBatch, mask: Bool[np.ndarray, "writer reader"]
) -> Float[np.ndarray, " example"]:
    """The logit difference with only the masked edges kept: node by node, a forward pass for each layer's parts.

    A reader reads what it read in the corrupted run plus, for each kept edge, how far the edge's writer is now from
    what it wrote there.
    """
    spec = layout.spec
    clean, corrupt = (whole_run(bridge, layout, tokens) for tokens in (batch.clean, batch.corrupted))
    moved = [clean.outputs[0] - corrupt.outputs[0]]

    def reads(reader: Reader) -> Tensor:
        column = layout.reader_index(reader)
        kept = [delta for writer, delta in enumerate(moved[: layout.visible[column]]) if mask[writer, column]]
        return sum(kept, corrupt.read[_place(reader)])

    for layer in range(spec.n_layers):
        hooks = [
            _given(bridge, reader, reads(reader))
            for reader in (Reader(Node(Kind.HEAD, layer, h), slot) for h in range(spec.n_heads) for slot in Slot)
        ]
        z = _seen(bridge, batch.corrupted, hooks, f"blocks.{layer}.attn.o.hook_in")
        first = len(moved)
        now = _head_outputs(bridge, layer, z)
        if spec.has_mlp:
            reader = Reader(Node(Kind.MLP, layer))
            if not spec.parallel:  # heads first: the MLP of their own block reads them
                moved += [after - corrupt.outputs[first + i] for i, after in enumerate(now)]
            out = _seen(
                bridge, batch.corrupted, [_given(bridge, reader, reads(reader))], f"blocks.{layer}.hook_mlp_out"
            )
            now = [*now, out] if spec.parallel else [out]
            first = len(moved)
        moved += [after - corrupt.outputs[first + i] for i, after in enumerate(now)]
    logits = Reader(Node(Kind.LOGITS))
    after = bridge.run_with_hooks(batch.corrupted, fwd_hooks=[_given(bridge, logits, reads(logits))])
    return logit_diff(after, batch).double().cpu().numpy()


def reader_gradients(bridge: Any, layout: Layout, batch: PairBatch) -> Float[Tensor, "reader batch seq d_model"]:
    """The gradient of the clean run's logit difference at every reader's input, from a zero added to each of them."""
    spec, clean = layout.spec, whole_run(bridge, layout, batch.clean)
    start = clean.read["heads", 0]
    probes = [torch.zeros_like(start, requires_grad=True) for _ in layout.readers]
    added: dict[str, Tensor] = {}
    with torch.enable_grad():
        for reader, probe in zip(layout.readers, probes, strict=True):
            stream = clean.read[_place(reader)]
            name, head = _hook_of(bridge, reader), reader.node.head
            change = probe
            if head is not None:
                moved, still = (_projected(bridge, reader, x) for x in (stream + probe, stream))
                change = (moved - still.detach()) * (torch.arange(spec.n_heads, device=probe.device) == head)[:, None]
            added[name] = added[name] + change if name in added else change
        hooks = [(name, lambda value, hook, change=change: value + change) for name, change in added.items()]
        total = logit_diff(bridge.run_with_hooks(batch.clean, fwd_hooks=hooks), batch).sum()
        return torch.stack(torch.autograd.grad(total, probes))


def writer_gradients(bridge: Any, layout: Layout, batch: PairBatch) -> Float[Tensor, "writer batch seq d_model"]:
    """The gradient of the clean run's logit difference at every writer's output, from a zero added to the stream there.

    All heads of a layer add to it in one place and have one gradient.
    """
    names = {Kind.INPUT: "blocks.0.hook_in", Kind.HEAD: "blocks.{}.hook_attn_out", Kind.MLP: "blocks.{}.hook_mlp_out"}
    places = [names[writer.kind].format(writer.layer) for writer in layout.writers]
    shape = whole_run(bridge, layout, batch.clean).outputs[0]
    probes = {name: torch.zeros_like(shape, requires_grad=True) for name in places}
    with torch.enable_grad():
        hooks = [(name, lambda value, hook, probe=probe: value + probe) for name, probe in probes.items()]
        total = logit_diff(bridge.run_with_hooks(batch.clean, fwd_hooks=hooks), batch).sum()
        found = dict(zip(probes, torch.autograd.grad(total, list(probes.values())), strict=True))
    return torch.stack([found[name] for name in places])


def eap(bridge: Any, layout: Layout, batch: PairBatch) -> Float[np.ndarray, "writer reader"]:
    """EAP at the clean run: each writer's difference times each reader's gradient, mean over prompts."""
    clean, corrupt = (whole_run(bridge, layout, tokens) for tokens in (batch.clean, batch.corrupted))
    differences = torch.stack(clean.outputs) - torch.stack(corrupt.outputs)
    scores = torch.einsum("wbsd,rbsd->wr", differences, reader_gradients(bridge, layout, batch)) / len(batch)
    edges = np.arange(len(layout.writers))[:, None] < np.array(layout.visible)
    return scores.double().cpu().numpy() * edges


@torch.no_grad()
def resid_mid(bridge: Any, batch: PairBatch, n_layers: int) -> Float[np.ndarray, "layer position example"]:
    """The stream between attention and MLP patched, skip connection and all: the same added to the attention's output.

    TransformerLens's `hook_resid_mid` is what the MLP alone reads; patching it leaves the skip connection as it was.
    """
    caches = [bridge.run_with_cache(tokens)[1] for tokens in (batch.clean, batch.corrupted)]
    found = []
    for layer in range(n_layers):
        clean, corrupt = (c[f"blocks.{layer}.hook_in"] + c[f"blocks.{layer}.hook_attn_out"] for c in caches)
        cells = []
        for position in range(batch.n_tokens):
            delta = torch.zeros_like(clean)
            delta[:, position] = (clean - corrupt)[:, position]
            hook = (f"blocks.{layer}.hook_attn_out", lambda value, hook, delta=delta: value + delta)
            cells.append(logit_diff(bridge.run_with_hooks(batch.corrupted, fwd_hooks=[hook]), batch).cpu().numpy())
        found.append(cells)
    return np.array(found)


def _head_outputs(bridge: Any, layer: int, z: Float[Tensor, "batch seq head d_head"]) -> list[Tensor]:
    """Each head's z through its rows of the output projection, and through the scale of a norm after it."""
    block = bridge.blocks[layer]
    nothing, whole = (_first(block.attn.o(x.flatten(2))) for x in (torch.zeros_like(z), z))
    # A norm after the heads (Gemma 2) divides their sum by one number a token: the ratio of its output to its input.
    scale = block.ln1_post(whole) / whole if hasattr(block, "ln1_post") else torch.ones_like(whole)
    # Granite multiplies their sum on its way to the stream.
    scale = scale * getattr(getattr(bridge.original_model, "config", None), "residual_multiplier", 1.0)
    found = []
    for head in range(z.shape[2]):
        alone = torch.zeros_like(z)
        alone[:, :, head] = z[:, :, head]
        found.append((_first(block.attn.o(alone.flatten(2))) - nothing) * scale)
    return found


def _place(reader: Reader) -> tuple[str, int]:
    kinds = {Kind.HEAD: "heads", Kind.MLP: "mlp", Kind.LOGITS: "logits"}
    return kinds[reader.node.kind], reader.node.layer or 0


def _mlp_hook(bridge: Any, layer: int | None) -> str:
    """Where an MLP reads the stream: before its norm, or at the MLP itself where there is none (OLMo 2)."""
    name = f"blocks.{layer}.ln2.hook_in"
    return name if name in bridge.hook_dict else f"blocks.{layer}.mlp.hook_in"


def _hook_of(bridge: Any, reader: Reader) -> str:
    layer = reader.node.layer
    if reader.slot is not None:
        return f"blocks.{layer}.attn.hook_{reader.slot.value}"
    return _mlp_hook(bridge, layer) if reader.node.kind is Kind.MLP else "ln_final.hook_in"


def _projected(bridge: Any, reader: Reader, stream: Tensor) -> Float[Tensor, "batch seq head d_head"]:
    """All heads' q, k or v from one stream, by the block's own norm and projection."""
    block, slot = bridge.blocks[reader.node.layer], reader.slot
    assert slot is not None
    flat = getattr(block.attn, slot.value)(block.ln1(stream) if hasattr(block, "ln1") else stream)
    return flat.unflatten(-1, (-1, bridge.cfg.d_head)) if flat.ndim == 3 else flat


def _given(bridge: Any, reader: Reader, stream: Float[Tensor, "batch seq d_model"]) -> Hook:
    """A hook that lets this reader, and no other, read this stream."""
    head = reader.node.head
    if head is None:
        return _hook_of(bridge, reader), lambda value, hook: stream
    projected = _projected(bridge, reader, stream)[:, :, head]

    def put(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[:, :, head] = projected
        return value

    return _hook_of(bridge, reader), put


def _seen(bridge: Any, tokens: Tensor, hooks: Sequence[Hook], name: str) -> Tensor:
    """What comes by at a hook point of one run with hooks."""
    kept: list[Tensor] = []

    def see(value: Tensor, hook: object) -> None:
        kept.append(value)

    bridge.run_with_hooks(tokens, fwd_hooks=[*hooks, (name, see)])
    return kept[0]


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
