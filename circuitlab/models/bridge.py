"""A `TransformerBridge` as a circuitlab model: the only module that spells its submodules.

Blocks are called again with the arguments they were last called with, so any suffix of the model can be run on any
stream. Queries, keys and values go into an attention layer through its own q, k and v modules, whose work is skipped;
everything after them (query/key norms, rotation, softcaps, masks) is the model's own code. Nothing is left behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlab.errors import ModelError, UnsupportedModelError
from circuitlab.models.anatomy import (
    attn_adds,
    attn_norm,
    mlp_adds,
    mlp_norm,
    one_key_per_query_head,
    output_weight,
    projection,
    spec_of,
)
from circuitlab.models.protocol import Frame, Recording, Trace
from circuitlab.models.surgery import (
    broadcast_rows,
    evaluating,
    first_tensor,
    forward_replaced,
    hooks,
    norm_gain,
)
from circuitlab.models.text import TokenizerText
from circuitlab.parts import Slot

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class BridgeFrame:
    """Arguments of one forward pass on one prompt: blocks' and attention layers', without the stream."""

    n_tokens: int
    block_calls: tuple[Call, ...]
    attn_calls: tuple[Call, ...]


class BridgeModel:
    """Implements `circuitlab.models.protocol.Model` on a booted `TransformerBridge`.

    Args:
        bridge: The booted model; it is used, never changed.
        name: What the user calls it.

    Raises:
        UnsupportedModelError: It is not a decoder with attention in every block.
    """

    def __init__(self, bridge: Any, name: str) -> None:
        self.bridge = bridge
        self.spec = spec_of(bridge, name)
        # Walking the module tree at every call took a fifth of a sweep over prompts of many lengths.
        # The HuggingFace model has some that the bridge does not list, such as the dropout behind the embedding.
        self._modules = tuple(dict.fromkeys([*bridge.modules(), *bridge.original_model.modules()]))

    @property
    def id(self) -> str:
        """What the user called it."""
        return self.spec.name

    @property
    def text(self) -> TokenizerText:
        """The tokenizer of the checkpoint; raises `ModelError` where there is none."""
        return self._text

    @cached_property
    def _text(self) -> TokenizerText:
        tokenizer = getattr(self.bridge, "tokenizer", None)
        if tokenizer is None:
            raise ModelError(f"model {self.id!r} has no tokenizer. Give tokens instead: PairBatch.from_tokens(...).")
        bos = tokenizer.bos_token_id is not None and getattr(self.bridge.cfg, "default_prepend_bos", True)
        return TokenizerText(tokenizer, prepend_bos=bos)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.bridge.original_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.bridge.original_model.parameters()).dtype

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, weight in sorted(self.bridge.original_model.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def weights_sha256(self) -> str:
        """SHA-256 over names and bytes of all weights; computed once."""
        return self._digest

    @torch.no_grad()
    def frame(self, tokens: Int[Tensor, "batch seq"]) -> BridgeFrame:
        """Record what blocks are called with, on the first prompt: nothing there depends on the words."""
        block_calls, attn_calls = dict[int, Call](), dict[int, Call]()
        with hooks() as add, evaluating(self._modules):
            for layer, block in enumerate(self._blocks):
                add.call(block, _keeper(block_calls, layer))
                add.call(block.attn, _keeper(attn_calls, layer))
            self._forward(tokens[:1])
        n_layers = self.spec.n_layers
        return BridgeFrame(
            tokens.shape[1],
            tuple(block_calls[layer] for layer in range(n_layers)),
            tuple(attn_calls[layer] for layer in range(n_layers)),
        )

    @torch.no_grad()
    def record(self, tokens: Int[Tensor, "batch seq"]) -> Recording:
        """Run the model once and keep everything."""
        kept: dict[str, dict[int, Tensor]] = {name: {} for name in Recording.__slots__}

        def keep(name: str, layer: int) -> Callable[[Tensor], None]:
            return lambda tensor: kept[name].__setitem__(layer, tensor.detach())

        with hooks() as add, evaluating(self._modules):
            for layer, block in enumerate(self._blocks):
                add.input(block, keep("resid_pre", layer))
                add.output(block.attn.q, keep("q", layer))
                add.output(block.attn.k, keep("k", layer))
                add.output(block.attn.v, keep("v", layer))
                add.output(block.attn.hook_pattern, keep("pattern", layer))
                add.input(block.attn.o, keep("z", layer))
                add.output(attn_adds(block), keep("attn_out", layer))
                if self.spec.has_mlp:
                    add.output(mlp_adds(block), keep("mlp_out", layer))
            add.input(self.bridge.ln_final, keep("resid_final", 0))
            self._forward(tokens)
        return self._recording(kept)

    def trace(self, start: Float[Tensor, "batch seq d_model"], frame: Frame) -> Trace:
        """Run all blocks from an embedding with gradients on; weights get none."""
        kept: dict[str, dict[int, Tensor]] = {name: {} for name in ("resid_pre", "mlp_in", "q", "k", "v", "mlp_normed")}
        start = start.detach().clone().requires_grad_(True)
        with torch.enable_grad(), ExitStack() as stack:
            stack.enter_context(evaluating(self._modules))
            add = stack.enter_context(hooks())
            for layer, block in enumerate(self._blocks):
                stack.enter_context(one_key_per_query_head(block.attn, self.spec))
                self._trace_block(add, kept, layer, block)
            final = self._run(start, 0, frame)
            final = final.clone()

        def layers(name: str) -> tuple[Tensor, ...]:
            return tuple(kept[name][layer] for layer in sorted(kept[name]))

        return Trace(
            start=start,
            resid_pre=layers("resid_pre"),
            mlp_in=layers("mlp_in") if self.spec.has_mlp else (),
            q=layers("q"),
            k=layers("k"),
            v=layers("v"),
            mlp_normed=layers("mlp_normed"),
            resid_final=final,
        )

    @torch.no_grad()
    def run_blocks(
        self, stream: Float[Tensor, "row seq d_model"], first: int, frame: Frame
    ) -> Float[Tensor, "row seq d_model"]:
        """The stream after the last block, from the stream on entry to block `first`."""
        with evaluating(self._modules):
            return self._run(stream, first, frame)

    def logits(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Final norm, unembedding, softcap; gradients follow if they are on."""
        # The norm sees [row, 1, d_model]: some norm modules insist on three axes.
        logits = self.bridge.unembed(self.bridge.ln_final(stream[:, None])).squeeze(1)
        cap = getattr(self.bridge.cfg, "output_logits_soft_cap", None)
        return cap * torch.tanh(logits / cap) if cap is not None and cap > 0 else logits

    @torch.no_grad()
    def project(
        self, layer: int, slot: Slot, heads: Sequence[int], stream: Float[Tensor, "chosen row seq d_model"]
    ) -> Float[Tensor, "chosen row seq d_head"]:
        """Chosen heads' q, k or v, each from the stream that this head reads."""
        weight, bias = projection(self._blocks[layer], slot, self.spec)
        chosen = list(heads)
        normed = attn_norm(self._blocks[layer])(stream)
        out = torch.einsum("crsm,cmh->crsh", normed, weight[chosen])
        return out if bias is None else out + bias[chosen][:, None, None]

    @torch.no_grad()
    def attend(
        self,
        layer: int,
        q: Float[Tensor, "row seq head d_head"],
        k: Float[Tensor, "row seq head d_head"],
        v: Float[Tensor, "row seq head d_head"],
        frame: Frame,
    ) -> Float[Tensor, "row seq head d_head"]:
        """Every head's z, by the model's own attention code with its projections skipped."""
        attn = self._blocks[layer].attn
        args, kwargs = _ours(frame).attn_calls[layer]
        dummy = q.new_zeros(q.shape[0], q.shape[1], self.spec.d_model)
        kept: list[Tensor] = []

        def take_z(z: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
            kept.append(z)
            return dummy

        with ExitStack() as stack:
            stack.enter_context(evaluating(self._modules))
            stack.enter_context(one_key_per_query_head(attn, self.spec))
            for module, value in ((attn.q, q), (attn.k, k), (attn.v, v)):
                flat = value.flatten(2)
                stack.enter_context(forward_replaced(module, lambda *_a, flat=flat, **_k: flat))
            stack.enter_context(forward_replaced(attn.o, take_z))
            _call(attn, dummy, (args, kwargs))
        return kept[0].reshape(q.shape)

    @torch.no_grad()
    def attn_output(self, layer: int, z: Float[Tensor, "row seq head d_head"]) -> Float[Tensor, "row seq d_model"]:
        """What an attention layer adds to the stream, bias and post-norm included."""
        block = self._blocks[layer]
        out = first_tensor(block.attn.o(z.flatten(2)))
        return block.ln1_post(out) if self.has_post_norm(layer) else out

    @torch.no_grad()
    def head_outputs(
        self, layer: int, z: Float[Tensor, "row seq head d_head"], heads: Sequence[int] | None = None
    ) -> Float[Tensor, "chosen row seq d_model"]:
        """Each head's own share of `attn_output`, without the bias."""
        block = self._blocks[layer]
        weight = output_weight(block, self.spec)
        chosen = list(range(self.spec.n_heads)) if heads is None else list(heads)
        out = torch.einsum("rshd,hdm->hrsm", z[:, :, chosen], weight[chosen])
        if self.has_post_norm(layer):
            out = out * norm_gain(block.ln1_post, first_tensor(block.attn.o(z.flatten(2))))
        return out

    @torch.no_grad()
    def mlp_output(self, layer: int, stream: Float[Tensor, "*row seq d_model"]) -> Float[Tensor, "*row seq d_model"]:
        """What an MLP adds to the stream, from the stream it reads."""
        block = self._blocks[layer]
        with evaluating(self._modules):
            out = first_tensor(block.mlp(mlp_norm(block, self.spec)(stream)))
            return block.ln2_post(out) if hasattr(block, "ln2_post") else out

    def pull_back(
        self,
        layer: int,
        slot: Slot | None,
        stream: Float[Tensor, "batch seq d_model"],
        gradient: Float[Tensor, "batch seq ..."],
    ) -> Float[Tensor, "chosen batch seq d_model"]:
        """Gradient at the readers' input, through projection and norm."""
        block = self._blocks[layer]
        if slot is None:
            norm, behind = mlp_norm(block, self.spec), gradient[None]
        else:
            norm = attn_norm(block)
            behind = torch.einsum("bshd,hmd->hbsm", gradient, projection(block, slot, self.spec)[0])
        with torch.enable_grad():
            copies = stream.detach()[None].expand_as(behind).clone().requires_grad_(True)
            (out,) = torch.autograd.grad(norm(copies), copies, behind)
        return out

    @torch.no_grad()
    def whole_logits(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_vocab"]:
        """The model's own forward pass, untouched: what everything else is measured against."""
        with evaluating(self._modules):
            return self._forward(tokens)

    def has_post_norm(self, layer: int) -> bool:
        """Whether a norm stands between the heads' sum and the stream (Gemma 2 and 3)."""
        return hasattr(self._blocks[layer], "ln1_post")

    # Below: how a bridge is run.

    @property
    def _blocks(self) -> Any:
        return self.bridge.blocks

    def _forward(self, tokens: Tensor) -> Tensor:
        return self.bridge(tokens.to(self.device), return_type="logits", use_cache=False)

    def _run(self, stream: Tensor, first: int, frame: Frame) -> Tensor:
        for layer in range(first, self.spec.n_layers):
            stream = first_tensor(_call(self._blocks[layer], stream, _ours(frame).block_calls[layer]))
        return stream

    def _trace_block(self, add: Any, kept: dict[str, dict[int, Tensor]], layer: int, block: Any) -> None:
        repeats = self.spec.n_heads // self.spec.n_kv_heads

        def split(name: str, times: int) -> Callable[[Tensor], Tensor]:
            def see(flat: Tensor) -> Tensor:
                # A new tensor that the forward pass goes on with: the one gradients are asked for.
                heads = flat.unflatten(-1, (-1, self.spec.d_head)).repeat_interleave(times, -2)
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
        if self.spec.has_mlp:
            norm = mlp_norm(block, self.spec)
            add.input(norm if isinstance(norm, nn.Module) else block.mlp, keep("mlp_in", detach=True))
            add.input(block.mlp, keep("mlp_normed", detach=False))

    def _recording(self, kept: dict[str, dict[int, Tensor]]) -> Recording:
        spec = self.spec
        missing = [f"{name} of layer {i}" for name in kept for i in range(spec.n_layers) if self._absent(kept, name, i)]
        if missing:
            raise UnsupportedModelError(f"model {self.id!r}: {missing[0]} never came by ({len(missing)} of its kind).")

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

    def _absent(self, kept: dict[str, dict[int, Tensor]], name: str, layer: int) -> bool:
        if name == "resid_final":
            return 0 not in kept[name]
        return layer not in kept[name] and (name != "mlp_out" or self.spec.has_mlp)


def _ours(frame: Frame) -> BridgeFrame:
    assert isinstance(frame, BridgeFrame), "frames come from the model that they are used with"
    return frame


def _call(module: Any, stream: Tensor, call: Call) -> Any:
    """Call a module with its recorded arguments and another stream."""
    args, kwargs = call
    rows = stream.shape[0]
    kwargs = {key: broadcast_rows(value, rows) for key, value in kwargs.items()}
    if args:
        return module(stream, *(broadcast_rows(value, rows) for value in args[1:]), **kwargs)
    key = "hidden_states" if "hidden_states" in kwargs else "query_input"
    return module(**{**kwargs, key: stream})


def _keeper(store: dict[int, Call], layer: int) -> Callable[[tuple, dict], None]:
    return lambda args, kwargs: store.__setitem__(layer, (args, dict(kwargs)))
