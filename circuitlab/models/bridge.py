"""A `TransformerBridge` as a circuitlab model: each step of its forward pass, on whatever values are given.

Queries, keys and values go into an attention layer through its own q, k and v modules, whose work is skipped;
everything after them (query/key norms, rotation, softcaps, masks) is the model's own code. Nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from circuitlab.models import watch
from circuitlab.models.absorbed import attend_last_query
from circuitlab.models.anatomy import attn_norm, linear, mlp_norm, output_weight, projection, run_mlp, spec_of
from circuitlab.models.direct import DirectWrites
from circuitlab.models.exclusive import exclusive
from circuitlab.models.held_bridge import HeldBridge
from circuitlab.models.norms import norm_slope
from circuitlab.models.own_attention import attend_by_itself
from circuitlab.models.products import fast_products, product, products_by_head
from circuitlab.models.recording import AS_SAVED, BlockArguments, Bos, Folding, Recording
from circuitlab.models.shortcuts import (
    ROUNDING,
    PlainAttention,
    fused_activations,
    fused_norm,
    plain_attention,
    plain_attention_of,
    plain_mlp,
    plain_projections,
)
from circuitlab.models.stages import check_stage, from_neurons, neurons_at
from circuitlab.models.surgery import (
    as_asked,
    evaluating,
    first_tensor,
    forward_replaced,
    hook_tables,
    hooked,
    norm_gain,
    times,
)
from circuitlab.models.text import TokenizerText, text_of
from circuitlab.models.watch import BridgeArguments, BridgeInternals
from circuitlab.parts import Slot, Stage


@exclusive
class BridgeModel(HeldBridge):
    """Implements `circuitlab.models.protocol.Model` on a booted `TransformerBridge`.

    Args:
        bridge: The booted model; it is used, never changed.
        name: What the user calls it.
        folding: How its weights were rewritten since it was booted.
        digest: `weights_digest` from before they were; that of the weights as they are by default.
        causal: Whether no token sees a later one; what its configuration says by default.
        text: Its tokenizer; by default that of the bridge, with `bos="auto"`, when it is first asked for.

    Raises:
        UnsupportedModelError: It has no attention on one residual stream in every block.
    """

    def __init__(
        self,
        bridge: Any,
        name: str,
        folding: Folding = AS_SAVED,
        digest: str | None = None,
        *,
        causal: bool | None = None,
        text: TokenizerText | None = None,
    ) -> None:
        spec = spec_of(bridge, name)
        super().__init__(bridge, spec if causal is None else replace(spec, causal=causal), folding, digest)
        self._text = text
        self._internals = BridgeInternals(bridge, self.spec, self.family, self._modules)
        width = self.spec.d_model
        self._attn_norms = tuple(fused_norm(attn_norm(block), width) for block in bridge.blocks)
        like = next(bridge.original_model.parameters())
        self._attn_slopes = tuple(norm_slope(attn_norm(block), like, width) for block in bridge.blocks)
        self._mlp_norms = tuple(fused_norm(mlp_norm(block, self.spec), width) for block in bridge.blocks)
        self._plain_attn = tuple(plain_attention_of(block.attn, self.spec, self.family) for block in bridge.blocks)
        self._plain_mlps = tuple(
            plain_mlp(block.mlp, width, self.family) if self.spec.has_mlp else None for block in bridge.blocks
        )
        self._final_norm = fused_norm(bridge.ln_final, width)
        self._unembed_tables = hook_tables(bridge.unembed)
        self.direct = DirectWrites(self._internals, self._final_norm)
        self._activations = tuple(fused_activations(block.mlp) if self.spec.has_mlp else {} for block in bridge.blocks)

    @property
    def text(self) -> TokenizerText:
        """The tokenizer of the checkpoint; raises `ModelError` where there is none."""
        self._text = self._text or text_of(self.bridge, self.id)
        return self._text

    @property
    def bos(self) -> Bos:
        """The tokens in front of every text; raises `ModelError` where there is no tokenizer."""
        return self.text.bos

    @torch.no_grad()
    def block_arguments(self, tokens: Int[Tensor, "batch seq"]) -> BridgeArguments:
        """Record what blocks are called with, on the first prompt: nothing there depends on the words."""
        return watch.arguments_of(self._internals, tokens)

    @torch.no_grad()
    def record(self, tokens: Int[Tensor, "batch seq"]) -> Recording:
        """Run the model once and keep everything.

        Raises:
            UnsupportedModelError: A hook of the user's is on the model that its parts by themselves do not see.
        """
        self._check_hooks(tokens)
        with self._quick():
            return watch.record(self._internals, tokens)

    @torch.no_grad()
    def embedding(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_model"]:
        """The stream on entry to the first block; raises as `record` does."""
        self._check_hooks(tokens)
        return watch.embedding(self._internals, tokens)

    def run_blocks(
        self, stream: Float[Tensor, "row seq d_model"], first: int, arguments: BlockArguments, stop: int | None = None
    ) -> Float[Tensor, "row seq d_model"]:
        """The stream on entry to block `stop` (after the last by default) from that on entry to block `first`.

        Gradients follow if they are on and the stream asks for them.
        """
        with evaluating(self._modules), fast_products(), as_asked(stream):
            return watch.run_blocks(self._internals, stream, first, arguments, stop)

    def logits(
        self, stream: Float[Tensor, "row d_model"], tokens: Int[Tensor, " word"] | None = None
    ) -> Float[Tensor, "row word"]:
        """Final norm, unembedding, softcap; gradients follow if they are on.

        With `tokens`, the logits of these words only.
        """
        # The norm sees [row, 1, d_model]: some norm modules insist on three axes.
        normed = self._final_norm(stream[:, None])
        if tokens is None or hooked(self._unembed_tables):
            with fast_products():
                logits = self.bridge.unembed(normed).squeeze(1)
            logits = logits if tokens is None else logits[:, tokens]
        else:
            weight, bias = linear(self.bridge.unembed)
            logits = product(normed.squeeze(1), weight[:, tokens], None if bias is None else bias[tokens])
        logits = times(logits, self.family.logit_multiplier)
        cap = getattr(self.bridge.cfg, "output_logits_soft_cap", None)
        return cap * torch.tanh(logits / cap) if cap is not None and cap > 0 else logits

    def project(
        self, layer: int, slot: Slot, heads: Sequence[int], stream: Float[Tensor, "chosen row seq d_model"]
    ) -> Float[Tensor, "chosen row seq d_head"]:
        """Chosen heads' q, k or v, each from the stream that this head reads."""
        self.require("project")
        weight, bias = projection(self._blocks[layer], slot, self.spec)
        return products_by_head(self._attn_norms[layer](stream), weight, bias, heads)

    def read_attention(
        self, layer: int, slots: Sequence[Slot], stream: Float[Tensor, "token d_model"]
    ) -> tuple[Float[Tensor, "token _ d_head"], ...]:
        """Queries, keys or values of all heads, one token a row; the model's own number of key/value heads."""
        normed = self._attn_norms[layer](stream[None])
        attn = self._blocks[layer].attn
        if self._plain(layer, stream.dtype) is not None:
            flat = plain_projections(attn, [slot.value for slot in slots], normed[0])
        else:
            with fast_products():
                flat = [getattr(attn, slot.value)(normed)[0].flatten(1) for slot in slots]
        return tuple(values.unflatten(1, (-1, self.spec.d_head)) for values in flat)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "row query head d_head"],
        k: Float[Tensor, "row seq _ d_head"],
        v: Float[Tensor, "row seq _ d_head"],
        arguments: BlockArguments,
    ) -> Float[Tensor, "row query head d_head"]:
        """Every head's z at the tokens that ask, the last ones.

        By the model's own attention code with its projections skipped, or by one kernel where that is all it does.
        """
        plain = self._plain(layer, q.dtype)
        if plain is not None:
            return plain_attention(q, k, v, plain.scale)
        if q.shape[1] < k.shape[1]:
            whole = functional.pad(q, (0, 0, 0, 0, k.shape[1] - q.shape[1], 0))
            return self._attend_by_itself(layer, whole, k, v, arguments)[:, -q.shape[1] :]
        return self._attend_by_itself(layer, q, k, v, arguments)

    def _attend_by_itself(self, layer: int, q: Tensor, k: Tensor, v: Tensor, arguments: BlockArguments) -> Tensor:
        with evaluating(self._modules):
            call = watch.ours(arguments).attn_calls[layer]
            return attend_by_itself(self._blocks[layer].attn, q, k, v, call, self.spec, self.family)

    def is_standard_attention(self, layer: int) -> bool:
        """Whether attention is a softmax of scaled scores and nothing else."""
        return self._plain(layer, self.dtype) is not None

    @torch.no_grad()
    def attention_pattern(
        self, layer: int, scores: Float[Tensor, "*row query seq"], sees: Bool[Tensor, "*_ asking seq"]
    ) -> Float[Tensor, "*row query seq"]:
        """Where heads look; for layers that attend plainly."""
        return self._plainly(layer, scores.dtype).pattern(scores, sees)

    @torch.no_grad()
    def head_values(self, layer: int, head: int, read: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_head"]:
        """A head's values without their bias, from what it reads behind the norm."""
        self.require("head_values")
        return product(read, projection(self._blocks[layer], Slot.V, self.spec)[0][head])

    def _plain(self, layer: int, dtype: torch.dtype) -> PlainAttention | None:
        plain = self._plain_attn[layer]
        return plain if plain is not None and dtype in ROUNDING and plain.usable else None

    def _plainly(self, layer: int, dtype: torch.dtype) -> PlainAttention:
        plain = self._plain(layer, dtype)
        assert plain is not None, "asked only where attention is plain"
        return plain

    def attn_input(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What heads read of a stream: its norm."""
        return self._attn_norms[layer](_as_one_row(stream)).reshape(stream.shape)

    @torch.no_grad()
    def attend_last_query(
        self,
        layer: int,
        last: Float[Tensor, "row d_model"],
        read: Float[Tensor, "row seq d_model"],
        visible: Bool[Tensor, "row seq"],
    ) -> Float[Tensor, "row head d_head"]:
        """Every head's z at one token of each row, without keys or values of the others."""
        block, plain = self._blocks[layer], self._plainly(layer, last.dtype)
        q = product(last, *linear(block.attn.q)).unflatten(1, (-1, self.spec.d_head))
        keys, (values, bias) = projection(block, Slot.K, self.spec)[0], projection(block, Slot.V, self.spec)
        return attend_last_query(q, read, visible, keys, values, bias, plain.scale)

    def attn_output(self, layer: int, z: Float[Tensor, "*row head d_head"]) -> Float[Tensor, "*row d_model"]:
        """What an attention layer adds to the stream, bias and post-norm included."""
        block = self._blocks[layer]
        flat = z.flatten(-2)
        with fast_products():
            out = first_tensor(block.attn.o(flat.reshape(1, -1, flat.shape[-1])))
        out = block.ln1_post(out) if self.has_post_norm(layer) else out
        return times(out, self.family.residual_multiplier).reshape(*flat.shape[:-1], -1)

    def head_outputs(
        self, layer: int, z: Float[Tensor, "row seq head d_head"], heads: Sequence[int] | None = None
    ) -> Float[Tensor, "chosen row seq d_model"]:
        """Each head's own share of `attn_output`, without the bias."""
        self.require("head_outputs")
        block = self._blocks[layer]
        columns = rearrange(z, "row seq head d_head -> head row seq d_head")
        chosen = range(self.spec.n_heads) if heads is None else heads
        of_chosen = columns if heads is None else [columns[head] for head in chosen]
        out = products_by_head(of_chosen, output_weight(block, self.spec), None, chosen)
        if self.has_post_norm(layer):
            out = out * norm_gain(block.ln1_post, first_tensor(block.attn.o(z.flatten(2))))
        return times(out, self.family.residual_multiplier)

    def mlp_output(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What an MLP adds to the stream, from the stream it reads."""
        block, plain = self._blocks[layer], self._plain_mlps[layer]
        if plain is not None and plain.usable:
            return plain.output(self._mlp_input(layer, stream)[0]).reshape(stream.shape)
        with evaluating(self._modules), self._quick(layer):
            out = run_mlp(block, self._mlp_input(layer, stream), self.family)
            out = block.ln2_post(out) if hasattr(block, "ln2_post") else out
        return times(out, self.family.residual_multiplier).reshape(stream.shape)

    def mlp_hidden(
        self, layer: int, stream: Float[Tensor, "*row d_model"], stage: Stage = Stage.POST
    ) -> Float[Tensor, "*row neuron"]:
        """An MLP's neurons at a stage, from the stream it reads; gradients follow if on and the stream asks for them.

        Raises:
            UnsupportedModelError: The model has no MLPs, or does not show their pre-activations.
        """
        self.require("mlp_hidden")
        check_stage(self.bridge, self.spec, stage)
        block, plain = self._blocks[layer], self._plain_mlps[layer]
        with as_asked(stream):
            if plain is not None and plain.usable:
                normed = self._mlp_input(layer, stream)[0]
                found = plain.before(normed) if stage is Stage.PRE else plain.hidden(normed)
                return found.reshape(*stream.shape[:-1], -1)
            with evaluating(self._modules), self._quick(layer):
                found = neurons_at(block, self._mlp_input(layer, stream), stage, self.family)
                return found.reshape(*stream.shape[:-1], -1)

    def mlp_from_hidden(
        self, layer: int, hidden: Float[Tensor, "*row neuron"], stage: Stage = Stage.POST
    ) -> Float[Tensor, "*row d_model"]:
        """What an MLP adds to the stream, from its neurons, bias and post-norm included; gradients follow if on.

        Raises:
            UnsupportedModelError: The model has no MLPs, or gated ones whose pre-activations do not say the rest.
        """
        check_stage(self.bridge, self.spec, stage, whole=True)
        block = self._blocks[layer]
        with evaluating(self._modules), self._quick(layer):
            row = hidden.reshape(1, -1, hidden.shape[-1])
            out = from_neurons(block, row, stage, self.spec.d_model, self.family)
        out = block.ln2_post(out) if hasattr(block, "ln2_post") else out
        return times(out, self.family.residual_multiplier).reshape(*hidden.shape[:-1], -1)

    @torch.no_grad()
    def pull_back(
        self,
        layer: int,
        stream: Float[Tensor, "batch seq d_model"],
        gradients: Mapping[Slot, Float[Tensor, "batch seq head d_head"]],
        room: Float[Tensor, "_ batch seq d_model"] | None = None,
    ) -> Float[Tensor, "chosen batch seq d_model"]:
        """Gradients at heads' inputs from the gradients at their q, k or v, through projection and norm."""
        self.require("pull_back")
        n_heads = self.spec.n_heads
        n_readers = len(gradients) * n_heads
        behind = stream.new_empty(n_readers, *stream.shape) if room is None else room[:n_readers]
        for number, (slot, gradient) in enumerate(gradients.items()):
            weight = projection(self._blocks[layer], slot, self.spec)[0]
            part = behind[number * n_heads : (number + 1) * n_heads].flatten(1, 2)
            by_head = rearrange(gradient, "batch seq head d_head -> head (batch seq) d_head")
            torch.bmm(by_head, rearrange(weight, "head d_model d_head -> head d_head d_model"), out=part)
        return self._attn_slopes[layer](stream, behind)

    @torch.no_grad()
    def whole_logits(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_vocab"]:
        """The model's own forward pass, untouched: what everything else is measured against."""
        return self._internals.forward(tokens)

    def whole_block(
        self, layer: int, stream: Float[Tensor, "row seq d_model"], arguments: BlockArguments
    ) -> Float[Tensor, "row seq d_model"]:
        """The stream behind the model's own block, untouched; gradients follow if they are on."""
        with evaluating(self._modules):
            return watch.run_block(self._internals, layer, stream, arguments)

    def _mlp_input(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "1 token d_model"]:
        """What an MLP reads of a stream, its norm, as one row: some norm modules insist on three axes."""
        return self._mlp_norms[layer](_as_one_row(stream))

    @contextmanager
    def _quick(self, layer: int | None = None) -> Iterator[None]:
        """Products by the faster library, activations by their fused kernels, in one layer or in all."""
        chosen = self._activations if layer is None else self._activations[layer : layer + 1]
        with ExitStack() as stack:
            stack.enter_context(fast_products())
            for module, fused in (item for found in chosen for item in found.items()):
                stack.enter_context(forward_replaced(module, fused))
            yield


def _as_one_row(stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "1 token d_model"]:
    return stream.reshape(1, -1, stream.shape[-1])
