"""Watch a `TransformerBridge` run: what its blocks were called with, and what came by.

Blocks are called again with the arguments they were last called with, so any suffix of the model can be run on any
stream. Nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlab.data.limits import check_tokens
from circuitlab.errors import UnsupportedModelError
from circuitlab.models.anatomy import attn_adds, mlp_adds
from circuitlab.models.exclusive import lock_of
from circuitlab.models.families import Family
from circuitlab.models.grouped_heads import once_per_query_head
from circuitlab.models.recording import BlockArguments, Recording
from circuitlab.models.surgery import (
    EnoughError,
    broadcast_rows,
    evaluating,
    first_tensor,
    forward_replaced,
    hooks,
    times,
)
from circuitlab.parts import ModelSpec

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
    "resid_final": "the block",
}

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class BridgeInternals:
    """A booted bridge and what is known of it.

    Attributes:
        bridge: The bridge.
        spec: Its shape.
        family: What its modules do not show.
        modules: Every module in it, walked once.
    """

    bridge: Any
    spec: ModelSpec
    family: Family
    modules: tuple[nn.Module, ...]

    @property
    def lock(self) -> Any:
        """The lock that whoever runs the model holds."""
        return lock_of(self.bridge.original_model)

    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_vocab"]:
        """The model's own forward pass; raises what `check_tokens` does for tokens that the model cannot read."""
        check_tokens(tokens, self.spec)
        with evaluating(self.modules):
            device = next(self.bridge.original_model.parameters()).device
            return self.bridge(tokens.to(device).long(), return_type="logits", use_cache=False)

    def forward_until(self, module: nn.Module, tokens: Int[Tensor, "batch seq"]) -> None:
        """The same up to this module, which is not run: unembedding every position is a third of GPT-2's work."""

        def stop(_args: tuple, _kwargs: dict) -> None:
            raise EnoughError

        with hooks() as add, suppress(EnoughError):
            add.call(module, stop)
            self.forward(tokens)


@dataclass(frozen=True, slots=True, eq=False)
class BridgeArguments:
    """Arguments of one forward pass on one prompt: blocks' and attention layers', without the stream."""

    n_tokens: int
    block_calls: tuple[Call, ...]
    attn_calls: tuple[Call, ...]


def ours(arguments: BlockArguments) -> BridgeArguments:
    """The arguments as what this adapter made it."""
    assert isinstance(arguments, BridgeArguments), "arguments come from the model that they are used with"
    return arguments


def call_again(module: Any, stream: Tensor, call: Call, family: Family) -> Any:
    """Call a module with its recorded arguments and another stream."""
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
def arguments_of(internals: BridgeInternals, tokens: Int[Tensor, "batch seq"]) -> BridgeArguments:
    """Record what blocks are called with, on the first prompt: nothing there depends on the words."""
    block_calls, attn_calls = dict[int, Call](), dict[int, Call]()
    with hooks() as add, ExitStack() as stack:
        for layer, block in enumerate(internals.bridge.blocks):
            add.call(block, _keeper(block_calls, layer))
            add.call(block.attn, _keeper(attn_calls, layer))
        # Nothing there depends on any value either, so that matrix products would be for nothing.
        for module in internals.modules:
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                stack.enter_context(forward_replaced(module, _zeros(module)))
        internals.forward_until(internals.bridge.ln_final, tokens[:1])
    n_layers = internals.spec.n_layers
    return BridgeArguments(
        tokens.shape[1],
        tuple(block_calls[layer] for layer in range(n_layers)),
        tuple(attn_calls[layer] for layer in range(n_layers)),
    )


@torch.no_grad()
def embedding(internals: BridgeInternals, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_model"]:
    """The stream on entry to the first block."""
    kept: list[Tensor] = []
    first = internals.bridge.blocks[0]
    with hooks() as add:
        add.input(first, kept.append)
        internals.forward_until(first, tokens)
    return kept[0]


@torch.no_grad()
def record(internals: BridgeInternals, tokens: Int[Tensor, "batch seq"]) -> Recording:
    """Run the model once and keep everything."""
    kept: dict[str, dict[int, Tensor]] = {name: {} for name in Recording.__slots__}
    family = internals.family

    def keep(name: str, layer: int, factor: float = 1.0) -> Callable[[Tensor], None]:
        return lambda tensor: kept[name].__setitem__(layer, times(tensor.detach(), factor))

    with hooks() as add:
        for layer, block in enumerate(internals.bridge.blocks):
            add.input(block, keep("resid_pre", layer))
            add.output(block.attn.q, keep("q", layer))
            add.output(block.attn.k, keep("k", layer))
            add.output(block.attn.v, keep("v", layer))
            add.output(block.attn.hook_pattern, keep("pattern", layer))
            add.input(block.attn.o, keep("z", layer))
            add.output(attn_adds(block, family), keep("attn_out", layer, family.residual_multiplier))
            if internals.spec.has_mlp:
                add.output(mlp_adds(block, family), keep("mlp_out", layer, family.residual_multiplier))
        add.input(internals.bridge.ln_final, keep("resid_final", 0))
        internals.forward_until(internals.bridge.ln_final, tokens)
    return _recording(internals, kept)


def run_blocks(
    internals: BridgeInternals,
    stream: Float[Tensor, "row seq d_model"],
    first: int,
    arguments: BlockArguments,
    stop: int | None = None,
) -> Float[Tensor, "row seq d_model"]:
    """The stream on entry to block `stop` (after the last by default) from that on entry to block `first`."""
    for layer in range(first, internals.spec.n_layers if stop is None else stop):
        stream = run_block(internals, layer, stream, arguments)
    return stream


def run_block(
    internals: BridgeInternals, layer: int, stream: Float[Tensor, "row seq d_model"], arguments: BlockArguments
) -> Float[Tensor, "row seq d_model"]:
    """The stream behind one block; gradients follow if they are on."""
    return first_tensor(
        call_again(internals.bridge.blocks[layer], stream, ours(arguments).block_calls[layer], internals.family)
    )


def _recording(internals: BridgeInternals, kept: dict[str, dict[int, Tensor]]) -> Recording:
    spec = internals.spec
    missing = [(name, i) for name in kept for i in range(spec.n_layers) if _absent(internals, kept, name, i)]
    if missing:
        name, layer = missing[0]
        raise UnsupportedModelError(
            f"model {spec.name!r} does not run {SEEN_AT[name]} of layer {layer} as a module of its own "
            f"({len(missing)} such parts), so that it cannot be patched there."
        )

    def heads(name: str) -> tuple[Tensor, ...]:
        split = (kept[name][i].flatten(2).unflatten(-1, (-1, spec.d_head)) for i in range(spec.n_layers))
        return tuple(once_per_query_head(spec, values) for values in split)

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


def _absent(internals: BridgeInternals, kept: dict[str, dict[int, Tensor]], name: str, layer: int) -> bool:
    if name == "resid_final":
        return 0 not in kept[name]
    return layer not in kept[name] and (name != "mlp_out" or internals.spec.has_mlp)


def _keeper(store: dict[int, Call], layer: int) -> Callable[[tuple, dict], None]:
    return lambda args, kwargs: store.__setitem__(layer, (args, dict(kwargs)))


def _zeros(linear: Any) -> Callable[..., Tensor]:
    """A linear layer's output in its shape, without the product."""
    width = linear.weight.shape[0 if isinstance(linear, nn.Linear) else 1]
    return lambda stream, *_args, **_kwargs: stream.new_zeros(()).expand(*stream.shape[:-1], width)
