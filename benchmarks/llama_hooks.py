"""The same numbers another way on a Llama: whole forward passes of the HuggingFace model with plain forward hooks.

Nothing of circuitlab's adapter and engine is used, and nothing of TransformerLens. A head's query, key or value is
computed by the block's own norm and projection from the stream that this head is to read, and replaces its columns of
the projection's output; an MLP and the logits read another stream through their norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.per_cell import logit_diff
from circuitlab import Edge, PairBatch, Reader
from circuitlab.parts import Kind, Layout, Slot

# A module, and what its output is replaced by.
Change = tuple[nn.Module, Callable[[Tensor], Tensor]]
Values = Float[np.ndarray, " example"]


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """One run without changes.

    Attributes:
        logits: At every position.
        read: The stream that each layer's heads read, that its MLP reads, and the last one.
        z: Of every head, layer by layer.
        outputs: What every writer adds to the stream, in the order of the layout.
    """

    logits: Float[Tensor, "batch seq d_vocab"]
    read: dict[tuple[str, int], Float[Tensor, "batch seq d_model"]]
    z: list[Float[Tensor, "batch seq _"]]
    outputs: list[Float[Tensor, "batch seq d_model"]]


def written_out(model: Any) -> Any:
    """Change a Llama with grouped queries, in place, into the same function with keys and values for every query head.

    Returns:
        The model.
    """
    for layer in model.model.layers:
        attention = layer.self_attn
        groups, width = attention.num_key_value_groups, attention.head_dim
        for slot in ("k_proj", "v_proj"):
            weight = getattr(attention, slot).weight.detach()
            rows = weight.unflatten(0, (-1, width)).repeat_interleave(groups, 0).flatten(0, 1)
            wide = nn.Linear(weight.shape[1], rows.shape[0], bias=False, dtype=weight.dtype)
            wide.weight = nn.Parameter(rows, requires_grad=False)
            setattr(attention, slot, wide)
        attention.num_key_value_groups = 1
    return model


@torch.no_grad()
def whole_run(model: Any, tokens: Int[Tensor, "batch seq"]) -> Whole:
    """Run the model once and keep what readers read and what writers add."""
    layers, seen = model.model.layers, dict[Any, Tensor]()
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            _see_input(stack, layer.input_layernorm, seen, ("heads", number))
            _see_input(stack, layer.post_attention_layernorm, seen, ("mlp", number))
            _see_input(stack, layer.self_attn.o_proj, seen, ("z", number))
            _see_output(stack, layer.mlp, seen, ("out", number))
        _see_input(stack, model.model.norm, seen, ("logits", 0))
        logits = model(tokens, use_cache=False).logits
    outputs = [seen["heads", 0]]
    for number, layer in enumerate(layers):
        outputs += [*_head_outputs(layer, seen["z", number]), seen["out", number]]
    read = {key: value for key, value in seen.items() if key[0] in ("heads", "mlp", "logits")}
    return Whole(logits, read, [seen["z", number] for number in range(len(layers))], outputs)


@torch.no_grad()
def resid_pre(model: Any, batch: PairBatch, cell: tuple[int, int]) -> Values:
    """The stream before a block at one position, from the clean run, in the corrupted run."""
    (layer, position), block = cell, model.model.layers[cell[0]]
    clean = whole_run(model, batch.clean).read["heads", layer]

    def patched(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream = (args[0] if args else kwargs["hidden_states"]).clone()
        stream[:, position] = clean[:, position]
        return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})

    handle = block.register_forward_pre_hook(patched, with_kwargs=True)
    try:
        return _values(model(batch.corrupted, use_cache=False).logits, batch)
    finally:
        handle.remove()


@torch.no_grad()
def head_z(model: Any, batch: PairBatch, cell: tuple[int, int]) -> Values:
    """A head's z at all positions, from the clean run, in the corrupted run."""
    layer, head = cell
    attention, clean = model.model.layers[layer].self_attn, whole_run(model, batch.clean).z[layer]
    columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)

    def patched(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[..., columns] = clean[..., columns]
        return (z,)

    handle = attention.o_proj.register_forward_pre_hook(patched)
    try:
        return _values(model(batch.corrupted, use_cache=False).logits, batch)
    finally:
        handle.remove()


@torch.no_grad()
def edge_effects(model: Any, layout: Layout, batch: PairBatch, edges: Sequence[Edge]) -> Float[np.ndarray, "_ example"]:
    """m(clean) - m(clean with this one edge corrupted): one forward pass an edge, of a model that is written out."""
    clean, corrupt = (whole_run(model, tokens) for tokens in (batch.clean, batch.corrupted))
    before, found = _values(clean.logits, batch), []
    for edge in edges:
        writer = layout.writer_index(edge.source)
        stream = clean.read[_place(edge.reader)] - (clean.outputs[writer] - corrupt.outputs[writer])
        with _changed([_given(model, edge.reader, stream)]):
            found.append(before - _values(model(batch.clean, use_cache=False).logits, batch))
    return np.stack(found)


@torch.no_grad()
def circuit_run(model: Any, layout: Layout, batch: PairBatch, mask: Bool[np.ndarray, "writer reader"]) -> Values:
    """The logit difference with only the masked edges kept: node by node, of a model that is written out.

    A reader reads what it read in the corrupted run plus, for each kept edge, how far the edge's writer is now from
    what it added there.
    """
    clean, corrupt = (whole_run(model, tokens) for tokens in (batch.clean, batch.corrupted))
    moved = [clean.outputs[0] - corrupt.outputs[0]]

    def reads(reader: Reader) -> Tensor:
        column = layout.reader_index(reader)
        kept = [delta for writer, delta in enumerate(moved[: layout.visible[column]]) if mask[writer, column]]
        return sum(kept, corrupt.read[_place(reader)])

    def seen_in_layer(number: int, readers: list[Reader]) -> tuple[Tensor, Tensor]:
        layer, seen = model.model.layers[number], dict[Any, Tensor]()
        with _changed([_given(model, reader, reads(reader)) for reader in readers]), ExitStack() as stack:
            _see_input(stack, layer.self_attn.o_proj, seen, "z")
            _see_output(stack, layer.mlp, seen, "out")
            model(batch.corrupted, use_cache=False)
        return seen["z"], seen["out"]

    for number, layer in enumerate(model.model.layers):
        here = [reader for reader in layout.readers if reader.node.layer == number]
        z, _ = seen_in_layer(number, [reader for reader in here if reader.node.kind is Kind.HEAD])
        first = len(moved)
        moved += [now - corrupt.outputs[first + i] for i, now in enumerate(_head_outputs(layer, z))]
        _, out = seen_in_layer(number, [reader for reader in here if reader.node.kind is Kind.MLP])
        moved.append(out - corrupt.outputs[len(moved)])
    last = next(reader for reader in layout.readers if reader.node.kind is Kind.LOGITS)
    with _changed([_given(model, last, reads(last))]):
        return _values(model(batch.corrupted, use_cache=False).logits, batch)


def _values(logits: Tensor, batch: PairBatch) -> np.ndarray:
    return logit_diff(logits, batch).double().cpu().numpy()


def _place(reader: Reader) -> tuple[str, int]:
    kinds = {Kind.HEAD: "heads", Kind.MLP: "mlp", Kind.LOGITS: "logits"}
    return kinds[reader.node.kind], reader.node.layer or 0


def _given(model: Any, reader: Reader, stream: Tensor) -> Change:
    """What changes when this reader, and no other, reads this stream."""
    if reader.node.kind is Kind.LOGITS:
        return model.model.norm, lambda _: model.model.norm.forward(stream)
    layer = model.model.layers[reader.node.layer]
    if reader.node.kind is Kind.MLP:
        norm = layer.post_attention_layernorm
        return norm, lambda _: norm.forward(stream)  # `forward` itself, so that no hook runs
    assert reader.slot is not None
    assert reader.node.head is not None
    names = {Slot.Q: "q_proj", Slot.K: "k_proj", Slot.V: "v_proj"}
    projection, width = getattr(layer.self_attn, names[reader.slot]), layer.self_attn.head_dim
    rows = slice(reader.node.head * width, (reader.node.head + 1) * width)
    read = linear(layer.input_layernorm.forward(stream), projection.weight[rows])

    def replaced(output: Tensor) -> Tensor:
        return torch.cat([output[..., : rows.start], read, output[..., rows.stop :]], dim=-1)

    return projection, replaced


@contextmanager
def _changed(changes: Sequence[Change]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, replaced in changes:
            handle = module.register_forward_hook(lambda _m, _i, output, replaced=replaced: replaced(output))
            stack.callback(handle.remove)
        yield


def _head_outputs(layer: Any, z: Tensor) -> list[Tensor]:
    """Each head's z through its columns of the output projection."""
    width, weight = layer.self_attn.head_dim, layer.self_attn.o_proj.weight
    return [
        linear(z[..., first : first + width], weight[:, first : first + width])
        for first in range(0, z.shape[-1], width)
    ]


def _see_input(stack: ExitStack, module: nn.Module, seen: dict[Any, Tensor], key: Any) -> None:
    handle = module.register_forward_pre_hook(lambda _m, args: seen.update({key: args[0]}))
    stack.callback(handle.remove)


def _see_output(stack: ExitStack, module: nn.Module, seen: dict[Any, Tensor], key: Any) -> None:
    handle = module.register_forward_hook(lambda _m, _args, output: seen.update({key: output}))
    stack.callback(handle.remove)
