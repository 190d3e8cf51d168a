"""Record runs of a `TransformerBridge`: what its blocks were called with, and their values.

Blocks are called again with the arguments they were last called with, so any suffix of the model can be run on any
stream. Every change is undone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlab.errors import UnsupportedModelError
from circuitlab.models.anatomy import adds, one_key_per_query_head
from circuitlab.models.bridge_base import BridgeBase
from circuitlab.models.families import Family
from circuitlab.models.recording import BlockArguments, Recording
from circuitlab.models.steps import once_per_query_head
from circuitlab.models.surgery import broadcast_rows, first_tensor, forward_replaced, hooks, times
from circuitlab.parts import Slot

# Where each part of a recording is seen, for the message where it is not.
SEEN_AT = {
    "resid_pre": "the block",
    "q": "the q projection",
    "k": "the k projection",
    "v": "the v projection",
    "pattern": "the pattern",
    "z": "the output projection",
    "attn_out": "the attention",
    "mlp_out": "the MLP",
}

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class BridgeArguments:
    """Arguments of one forward pass on one prompt: blocks' and attention layers', without the stream."""

    block_calls: tuple[Call, ...]
    attn_calls: tuple[Call, ...]


def own_arguments(arguments: BlockArguments) -> BridgeArguments:
    """The arguments as what this adapter made it.

    Returns:
        The same object.
    """
    assert isinstance(arguments, BridgeArguments), "arguments are made by the model that they are used with"
    return arguments


def call_again(module: Any, stream: Tensor, call: Call, family: Family) -> Any:
    """Call a module with its recorded arguments and another stream.

    Returns:
        What the module returns.
    """
    args, kwargs = call
    rows = stream.shape[0]
    kwargs = {
        key: torch.cat([value] * rows) if key in family.by_row_and_head else broadcast_rows(value, rows)
        for key, value in kwargs.items()
    }
    if args:
        return module(stream, *(broadcast_rows(value, rows) for value in args[1:]), **kwargs)
    key = "hidden_states" if "hidden_states" in kwargs else "query_input"
    return module(**{**kwargs, key: stream})


@torch.no_grad()
def arguments_of(model: BridgeBase, tokens: Int[Tensor, "batch seq"]) -> BridgeArguments:
    """Record what blocks are called with, on the first prompt: nothing there depends on the words.

    Returns:
        The arguments, for any number of prompts of this length.
    """
    block_calls, attn_calls = list[Call](), list[Call]()
    with hooks() as add, ExitStack() as stack:
        for block in model.bridge.blocks:
            add.call(block, lambda args, kwargs: block_calls.append((args, dict(kwargs))))
            add.call(block.attn, lambda args, kwargs: attn_calls.append((args, dict(kwargs))))
        # Nothing there depends on any value either, so that matrix products would be for nothing.
        for module in model.modules:
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                stack.enter_context(forward_replaced(module, _zeros(module)))
        model.forward_until(model.bridge.ln_final, tokens[:1])
    return BridgeArguments(tuple(block_calls), tuple(attn_calls))


@torch.no_grad()
def record(model: BridgeBase, tokens: Int[Tensor, "batch seq"]) -> Recording:
    """Run the model once and keep everything.

    Returns:
        The stream, sublayer outputs and head values of every layer.

    Raises:
        UnsupportedModelError: A part of the model was not seen while it ran.
    """
    spec, family = model.spec, model.family
    kept = dict[tuple[str, int], Tensor]()

    def keep(name: str, layer: int, factor: float = 1.0) -> Callable[[Tensor], None]:
        return lambda tensor: kept.__setitem__((name, layer), times(tensor.detach(), factor))

    with hooks() as add:
        for layer, block in enumerate(model.bridge.blocks):
            add.input(block, keep("resid_pre", layer))
            for slot in Slot:
                add.output(getattr(block.attn, slot.value), keep(slot.value, layer))
            add.output(block.attn.hook_pattern, keep("pattern", layer))
            add.input(block.attn.o, keep("z", layer))
            for sublayer in ("attn", "mlp") if spec.has_mlp else ("attn",):
                keep_added = keep(f"{sublayer}_out", layer, family.residual_multiplier)
                add.output(adds(block, sublayer, family), keep_added)
        final: list[Tensor] = []
        add.input(model.bridge.ln_final, lambda stream: final.append(stream.detach()))
        model.forward_until(model.bridge.ln_final, tokens)
    names = [name for name in SEEN_AT if name != "mlp_out" or spec.has_mlp]
    missing = [(name, layer) for name in names for layer in range(spec.n_layers) if (name, layer) not in kept]
    if missing or not final:
        name, layer = missing[0] if missing else ("resid_pre", spec.n_layers - 1)
        raise UnsupportedModelError(
            f"model {spec.name!r} does not run {SEEN_AT[name]} of layer {layer} as a module of its own "
            f"({len(missing)} such parts), so that it cannot be patched there."
        )
    layers = {name: tuple(kept[name, layer] for layer in range(spec.n_layers)) for name in names}
    for name in ("q", "k", "v", "z"):
        split = (values.flatten(2).unflatten(-1, (-1, spec.d_head)) for values in layers[name])
        layers[name] = tuple(once_per_query_head(spec, values) for values in split)
    if not spec.has_mlp:
        layers["mlp_out"] = (torch.zeros_like(final[0]),) * spec.n_layers
    return Recording(**layers, resid_final=final[0])


def run_block(
    model: BridgeBase, layer: int, stream: Float[Tensor, "row seq d_model"], arguments: BlockArguments
) -> Float[Tensor, "row seq d_model"]:
    """The stream after one block; gradients follow if they are on.

    Returns:
        The stream `[row, seq, d_model]`.
    """
    call = own_arguments(arguments).block_calls[layer]
    return first_tensor(call_again(model.bridge.blocks[layer], stream, call, model.family))


def attend_with_own_code(
    model: BridgeBase,
    layer: int,
    q: Float[Tensor, "row seq head d_head"],
    k: Float[Tensor, "row seq _ d_head"],
    v: Float[Tensor, "row seq _ d_head"],
    arguments: BlockArguments,
) -> Float[Tensor, "row seq head d_head"]:
    """Every head's z, by whatever the layer does between its projections and its output projection.

    Args:
        model: The model; it is left as it was.
        layer: The layer.
        q: Queries of all tokens.
        k: Keys, once per query head or once per key/value head.
        v: Values, the same way.
        arguments: What the layer is called with.

    Returns:
        The z of all tokens.
    """
    attn, spec = model.bridge.blocks[layer].attn, model.spec
    dummy = q.new_zeros(()).expand(q.shape[0], q.shape[1], spec.d_model)
    kept: list[Tensor] = []

    def take_z(z: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        kept.append(z)
        return dummy

    with ExitStack() as stack:
        if k.shape[2] == spec.n_heads > spec.n_kv_heads:
            stack.enter_context(one_key_per_query_head(attn, spec, model.family))
        for module, value in ((attn.q, q), (attn.k, k), (attn.v, v)):
            flat = value.flatten(2)
            stack.enter_context(forward_replaced(module, lambda *_a, flat=flat, **_k: flat))
        stack.enter_context(forward_replaced(attn.o, take_z))
        call_again(attn, dummy, own_arguments(arguments).attn_calls[layer], model.family)
    return kept[0].reshape(q.shape)


def _zeros(linear: Any) -> Callable[..., Tensor]:
    """A linear layer's output in its shape, without the product."""
    width = linear.weight.shape[0 if isinstance(linear, nn.Linear) else 1]
    return lambda stream, *_args, **_kwargs: stream.new_zeros(()).expand(*stream.shape[:-1], width)
