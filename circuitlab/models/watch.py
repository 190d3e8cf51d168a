"""Watch a `TransformerBridge` run: what its blocks were called with, what came by, and what gradients are asked of.

Blocks are called again with the arguments they were last called with, so any suffix of the model can be run on any
stream. Nothing is left behind.
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
from circuitlab.models.anatomy import attn_adds, mlp_adds, mlp_norm, one_key_per_query_head
from circuitlab.models.protocol import Frame, Recording, Trace
from circuitlab.models.surgery import broadcast_rows, evaluating, first_tensor, hooks
from circuitlab.parts import ModelSpec

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Insides:
    """A booted bridge and what is known of it.

    Attributes:
        bridge: The bridge.
        spec: Its shape.
        modules: Every module in it, walked once.
    """

    bridge: Any
    spec: ModelSpec
    modules: tuple[nn.Module, ...]

    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_vocab"]:
        """The model's own forward pass."""
        with evaluating(self.modules):
            device = next(self.bridge.original_model.parameters()).device
            return self.bridge(tokens.to(device), return_type="logits", use_cache=False)


@dataclass(frozen=True, slots=True, eq=False)
class BridgeFrame:
    """Arguments of one forward pass on one prompt: blocks' and attention layers', without the stream."""

    n_tokens: int
    block_calls: tuple[Call, ...]
    attn_calls: tuple[Call, ...]


def ours(frame: Frame) -> BridgeFrame:
    """The frame as what this adapter made it."""
    assert isinstance(frame, BridgeFrame), "frames come from the model that they are used with"
    return frame


def call_again(module: Any, stream: Tensor, call: Call) -> Any:
    """Call a module with its recorded arguments and another stream."""
    args, kwargs = call
    rows = stream.shape[0]
    kwargs = {key: broadcast_rows(value, rows) for key, value in kwargs.items()}
    if args:
        return module(stream, *(broadcast_rows(value, rows) for value in args[1:]), **kwargs)
    key = "hidden_states" if "hidden_states" in kwargs else "query_input"
    return module(**{**kwargs, key: stream})


@torch.no_grad()
def frame_of(insides: Insides, tokens: Int[Tensor, "batch seq"]) -> BridgeFrame:
    """Record what blocks are called with, on the first prompt: nothing there depends on the words."""
    block_calls, attn_calls = dict[int, Call](), dict[int, Call]()
    with hooks() as add:
        for layer, block in enumerate(insides.bridge.blocks):
            add.call(block, _keeper(block_calls, layer))
            add.call(block.attn, _keeper(attn_calls, layer))
        insides.forward(tokens[:1])
    n_layers = insides.spec.n_layers
    return BridgeFrame(
        tokens.shape[1],
        tuple(block_calls[layer] for layer in range(n_layers)),
        tuple(attn_calls[layer] for layer in range(n_layers)),
    )


@torch.no_grad()
def record(insides: Insides, tokens: Int[Tensor, "batch seq"]) -> Recording:
    """Run the model once and keep everything."""
    kept: dict[str, dict[int, Tensor]] = {name: {} for name in Recording.__slots__}

    def keep(name: str, layer: int) -> Callable[[Tensor], None]:
        return lambda tensor: kept[name].__setitem__(layer, tensor.detach())

    with hooks() as add:
        for layer, block in enumerate(insides.bridge.blocks):
            add.input(block, keep("resid_pre", layer))
            add.output(block.attn.q, keep("q", layer))
            add.output(block.attn.k, keep("k", layer))
            add.output(block.attn.v, keep("v", layer))
            add.output(block.attn.hook_pattern, keep("pattern", layer))
            add.input(block.attn.o, keep("z", layer))
            add.output(attn_adds(block), keep("attn_out", layer))
            if insides.spec.has_mlp:
                add.output(mlp_adds(block), keep("mlp_out", layer))
        add.input(insides.bridge.ln_final, keep("resid_final", 0))
        insides.forward(tokens)
    return _recording(insides, kept)


def trace(insides: Insides, start: Float[Tensor, "batch seq d_model"], frame: Frame) -> Trace:
    """Run all blocks from an embedding with gradients on; weights get none."""
    kept: dict[str, dict[int, Tensor]] = {name: {} for name in ("resid_pre", "mlp_in", "q", "k", "v", "mlp_normed")}
    start = start.detach().clone().requires_grad_(True)
    with torch.enable_grad(), ExitStack() as stack:
        stack.enter_context(evaluating(insides.modules))
        add = stack.enter_context(hooks())
        for layer, block in enumerate(insides.bridge.blocks):
            stack.enter_context(one_key_per_query_head(block.attn, insides.spec))
            _trace_block(insides, add, kept, layer, block)
        final = run_blocks(insides, start, 0, frame)
        final = final.clone()

    def layers(name: str) -> tuple[Tensor, ...]:
        return tuple(kept[name][layer] for layer in sorted(kept[name]))

    return Trace(
        start=start,
        resid_pre=layers("resid_pre"),
        mlp_in=layers("mlp_in") if insides.spec.has_mlp else (),
        q=layers("q"),
        k=layers("k"),
        v=layers("v"),
        mlp_normed=layers("mlp_normed"),
        resid_final=final,
    )


def run_blocks(
    insides: Insides, stream: Float[Tensor, "row seq d_model"], first: int, frame: Frame
) -> Float[Tensor, "row seq d_model"]:
    """The stream after the last block, from the stream on entry to block `first`."""
    for layer in range(first, insides.spec.n_layers):
        stream = first_tensor(call_again(insides.bridge.blocks[layer], stream, ours(frame).block_calls[layer]))
    return stream


def _trace_block(insides: Insides, add: Any, kept: dict[str, dict[int, Tensor]], layer: int, block: Any) -> None:
    repeats = insides.spec.n_heads // insides.spec.n_kv_heads

    def split(name: str, times: int) -> Callable[[Tensor], Tensor]:
        def see(flat: Tensor) -> Tensor:
            # A new tensor that the forward pass goes on with: the one gradients are asked for.
            heads = flat.unflatten(-1, (-1, insides.spec.d_head)).repeat_interleave(times, -2)
            kept[name][layer] = heads = heads.clone()
            return heads.flatten(-2)

        return see

    def keep(name: str, detach: bool) -> Callable[[Tensor], Tensor | None]:
        def see(tensor: Tensor) -> Tensor | None:
            kept[name][layer] = tensor.detach() if detach else tensor.clone()
            return None if detach else kept[name][layer]

        return see

    add.input(block, keep("resid_pre", detach=True))
    add.output(block.attn.q, split("q", 1))
    add.output(block.attn.k, split("k", repeats))
    add.output(block.attn.v, split("v", repeats))
    if insides.spec.has_mlp:
        norm = mlp_norm(block, insides.spec)
        add.input(norm if isinstance(norm, nn.Module) else block.mlp, keep("mlp_in", detach=True))
        add.input(block.mlp, keep("mlp_normed", detach=False))


def _recording(insides: Insides, kept: dict[str, dict[int, Tensor]]) -> Recording:
    spec = insides.spec
    missing = [f"{name} of layer {i}" for name in kept for i in range(spec.n_layers) if _absent(insides, kept, name, i)]
    if missing:
        raise UnsupportedModelError(
            f"model {insides.spec.name!r}: {missing[0]} never came by ({len(missing)} of its kind)."
        )

    def heads(name: str) -> tuple[Tensor, ...]:
        split = (kept[name][i].flatten(2).unflatten(-1, (-1, spec.d_head)) for i in range(spec.n_layers))
        return tuple(t.repeat_interleave(spec.n_heads // t.shape[2], 2) for t in split)

    def layers(name: str) -> tuple[Tensor, ...]:
        return tuple(kept[name][i] for i in range(spec.n_layers))

    nothing = torch.zeros_like(kept["resid_pre"][0])
    return Recording(
        resid_pre=layers("resid_pre"),
        attn_out=layers("attn_out"),
        mlp_out=layers("mlp_out") if spec.has_mlp else (nothing,) * spec.n_layers,
        q=heads("q"),
        k=heads("k"),
        v=heads("v"),
        pattern=layers("pattern"),
        z=heads("z"),
        resid_final=kept["resid_final"][0],
    )


def _absent(insides: Insides, kept: dict[str, dict[int, Tensor]], name: str, layer: int) -> bool:
    if name == "resid_final":
        return 0 not in kept[name]
    return layer not in kept[name] and (name != "mlp_out" or insides.spec.has_mlp)


def _keeper(store: dict[int, Call], layer: int) -> Callable[[tuple, dict], None]:
    return lambda args, kwargs: store.__setitem__(layer, (args, dict(kwargs)))
