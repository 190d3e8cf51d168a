"""A `TransformerBridge` as a circuitlab model: each step of its forward pass, on whatever values are given.

Queries, keys and values go into an attention layer through its own q, k and v modules, whose work is skipped;
everything after them (query/key norms, rotation, softcaps, masks) is the model's own code. Every change is undone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from circuitlab.models import shortcuts, surgery, watch
from circuitlab.models.anatomy import linear, mlp_norm, norm_of, projection, run_mlp, spec_of
from circuitlab.models.bridge_base import BridgeBase
from circuitlab.models.modes import exclusive
from circuitlab.models.norms import norm_pull_back
from circuitlab.models.products import fast_products, product, products_by_head
from circuitlab.models.recording import AS_SAVED, BlockArguments, Bos, Folding, Recording
from circuitlab.models.stages import check_stage, from_neurons, neurons_at
from circuitlab.models.text import TokenizerText, text_of
from circuitlab.models.watch import BridgeArguments
from circuitlab.parts import Slot, Stage


@exclusive
class BridgeModel(BridgeBase):
    """Implements `circuitlab.models.protocol.Model` on a booted `TransformerBridge`.

    Args:
        bridge: The booted model; it is used, never changed.
        name: What the user calls it.
        folding: How its weights were rewritten since it was booted.
        digest: `weights_digest` from before they were; that of the weights as they are by default.
        causal: Whether no token sees a later one; by default as in its configuration.
        text: Its tokenizer; by default that of the bridge, with `bos="auto"`, when it is first used.

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
        width = self.spec.d_model
        self._attn_norms = tuple(shortcuts.fused_norm(norm_of(block, "ln1"), width) for block in bridge.blocks)
        self._attn_pull_backs = tuple(
            norm_pull_back(norm_of(block, "ln1"), self._weight, width) for block in bridge.blocks
        )
        self._attn_posts = tuple(norm_of(block, "ln1_post") for block in bridge.blocks)
        self._mlp_norms = tuple(shortcuts.fused_norm(mlp_norm(block, self.spec), width) for block in bridge.blocks)
        of_scores = self.family.score_scale
        self._scales = tuple(None if of_scores is None else of_scores(b.attn, self.spec) for b in bridge.blocks)
        self._attn_tables = tuple(surgery.hook_tables(block.attn) for block in bridge.blocks)
        self._plain_mlps = tuple(
            shortcuts.plain_mlp(block.mlp, width, self.family) if self.spec.has_mlp else None for block in bridge.blocks
        )
        self._final_norm = shortcuts.fused_norm(bridge.ln_final, width)
        self._unembed_tables = surgery.hook_tables(bridge.unembed)
        self._activations = tuple(
            shortcuts.fused_activations(block.mlp) if self.spec.has_mlp else {} for block in bridge.blocks
        )

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
        """Record what blocks are called with, on the first prompt: nothing there depends on the words.

        Returns:
            The positional and keyword arguments of every block and every attention.
        """
        return watch.arguments_of(self, tokens)

    @torch.no_grad()
    def record(self, tokens: Int[Tensor, "batch seq"]) -> Recording:
        """Run the model once and keep everything.

        Returns:
            The stream, sublayer outputs and head values of every layer.

        Raises:
            UnsupportedModelError: A hook of the user's is on the model that its parts by themselves do not see.
        """
        self._check_hooks(tokens)
        with self._quick():
            return watch.record(self, tokens)

    @torch.no_grad()
    def embedding(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_model"]:
        """The stream on entry to the first block; raises as `record` does.

        Returns:
            The stream `[batch, seq, d_model]`.
        """
        self._check_hooks(tokens)
        kept: list[Tensor] = []
        with surgery.hooks() as add:
            add.input(self._blocks[0], kept.append)
            self.forward_until(self._blocks[0], tokens)
        return kept[0]

    def run_blocks(
        self, stream: Float[Tensor, "row seq d_model"], first: int, arguments: BlockArguments, stop: int | None = None
    ) -> Float[Tensor, "row seq d_model"]:
        """The stream on entry to block `stop` (after the last by default) from that on entry to block `first`.

        Gradients follow if they are on and the stream requires them.

        Returns:
            The stream `[row, seq, d_model]`.
        """
        with surgery.evaluating(self.modules), fast_products(), surgery.gradients_if_required(stream):
            for layer in range(first, self.spec.n_layers if stop is None else stop):
                stream = watch.run_block(self, layer, stream, arguments)
            return stream

    def logits(
        self, stream: Float[Tensor, "row d_model"], tokens: Int[Tensor, " word"] | None = None
    ) -> Float[Tensor, "row word"]:
        """Final norm, unembedding, softcap; gradients follow if they are on.

        With `tokens`, the logits of these words only.

        Returns:
            Logits `[row, word]`: of the whole vocabulary, or of `tokens` in their order.
        """
        normed = self.final_norm(stream)
        if tokens is None or surgery.hooked(self._unembed_tables):
            with fast_products():
                logits = self.bridge.unembed(normed[:, None]).squeeze(1)
            logits = logits if tokens is None else logits[:, tokens]
        else:
            weight, bias = linear(self.bridge.unembed)
            logits = product(normed, weight[:, tokens], None if bias is None else bias[tokens])
        return surgery.capped(surgery.times(logits, self.family.logit_multiplier), self.logit_cap)

    def final_norm(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """What the unembedding reads of final streams; gradients follow if they are on.

        Returns:
            The normed streams `[row, d_model]`.
        """
        return self._final_norm(stream[:, None]).squeeze(1)  # some norm modules insist on three axes

    def head_weights(
        self, layer: int, slot: Slot
    ) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"] | None]:
        """Weight and bias of all heads' queries, keys or values; those of keys and values once per query head.

        Returns:
            Weight `[head, d_model, d_head]`, and bias `[head, d_head]` or None.
        """
        self.require("head_weights")
        return projection(self._blocks[layer], slot, self.spec)

    def read_attention(
        self, layer: int, slots: Sequence[Slot], stream: Float[Tensor, "token d_model"]
    ) -> tuple[Float[Tensor, "token _ d_head"], ...]:
        """Queries, keys or values of all heads, one token a row; the model's own number of key/value heads.

        Returns:
            A tensor `[token, head or kv_head, d_head]` for each slot.
        """
        normed = self._attn_norms[layer](stream[None])
        attn = self._blocks[layer].attn
        if self._scale(layer, stream.dtype) is not None:
            flat = shortcuts.plain_projections(attn, [slot.value for slot in slots], normed[0])
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
        """Every head's z at the last tokens, as many as there are queries.

        By the model's own attention code with its projections skipped, or by one kernel where that is all it does.

        Returns:
            Weighted sums of values `[row, query, head, d_head]`, before the output projection.
        """
        scale = self._scale(layer, q.dtype)
        if scale is not None:
            return shortcuts.plain_attention(q, k, v, scale)
        if q.shape[1] < k.shape[1]:
            whole = functional.pad(q, (0, 0, 0, 0, k.shape[1] - q.shape[1], 0))
            return self.attend(layer, whole, k, v, arguments)[:, -q.shape[1] :]
        with surgery.evaluating(self.modules):
            return watch.attend_with_own_code(self, layer, q, k, v, arguments)

    def score_scale(self, layer: int) -> float | None:
        """The factor of the scores where attention is a softmax of scaled scores and nothing else; None elsewhere.

        Returns:
            The factor, or None.
        """
        return self._scale(layer, self.dtype)

    def _scale(self, layer: int, dtype: torch.dtype) -> float | None:
        """The factor of the scores where attention is standard and no hook of the user's is on it; None elsewhere."""
        known = dtype in shortcuts.ROUNDING and not surgery.hooked(self._attn_tables[layer])
        return self._scales[layer] if known else None

    def attn_input(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What heads read of a stream: its norm.

        Returns:
            The normed stream, of the same shape.
        """
        return self._attn_norms[layer](stream.reshape(1, -1, stream.shape[-1])).reshape(stream.shape)

    def attn_output(self, layer: int, z: Float[Tensor, "*row head d_head"]) -> Float[Tensor, "*row d_model"]:
        """What an attention layer adds to the stream, bias and post-norm included.

        Returns:
            Values `[..., d_model]`, in units of the stream.
        """
        flat = z.flatten(-2)
        with fast_products():
            out = surgery.first_tensor(self._blocks[layer].attn.o(flat.reshape(1, -1, flat.shape[-1])))
        added = surgery.times(self._attn_posts[layer](out), self.family.residual_multiplier)
        return added.reshape(*flat.shape[:-1], -1)

    def head_outputs(
        self, layer: int, z: Float[Tensor, "row seq head d_head"], heads: Sequence[int] | None = None
    ) -> Float[Tensor, "chosen row seq d_model"]:
        """Each head's own share of `attn_output`, without the bias.

        Returns:
            Values `[chosen, row, seq, d_model]`, in units of the stream.
        """
        self.require("head_outputs")
        block = self._blocks[layer]
        columns = rearrange(z, "row seq head d_head -> head row seq d_head")
        chosen = range(self.spec.n_heads) if heads is None else heads
        of_chosen = columns if heads is None else [columns[head] for head in chosen]
        weight = linear(block.attn.o)[0].detach().unflatten(0, (self.spec.n_heads, -1))
        out = products_by_head(of_chosen, weight, None, chosen)
        if self.has_post_norm(layer):
            out = out * surgery.norm_gain(block.ln1_post, surgery.first_tensor(block.attn.o(z.flatten(2))))
        return surgery.times(out, self.family.residual_multiplier)

    def mlp_output(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What an MLP adds to the stream, from the stream it reads.

        Returns:
            Values of the shape of `stream`, in its units.
        """
        block, plain = self._blocks[layer], self._plain_mlps[layer]
        if plain is not None and plain.usable:
            return plain.output(self._mlp_input(layer, stream)[0]).reshape(stream.shape)
        with surgery.evaluating(self.modules), self._quick(layer):
            out = norm_of(block, "ln2_post")(run_mlp(block, self._mlp_input(layer, stream), self.family))
        return surgery.times(out, self.family.residual_multiplier).reshape(stream.shape)

    def mlp_hidden(
        self, layer: int, stream: Float[Tensor, "*row d_model"], stage: Stage = Stage.POST
    ) -> Float[Tensor, "*row neuron"]:
        """An MLP's neurons at a stage, from the stream it reads; gradients follow if on and the stream requires them.

        Returns:
            Neurons `[..., neuron]`.

        Raises:
            UnsupportedModelError: The model has no MLPs, or does not show their pre-activations.
        """
        self.require("mlp_hidden")
        check_stage(self.bridge, self.spec, stage)
        block, plain = self._blocks[layer], self._plain_mlps[layer]
        with surgery.gradients_if_required(stream):
            if plain is not None and plain.usable:
                normed = self._mlp_input(layer, stream)[0]
                found = plain.before(normed) if stage is Stage.PRE else plain.hidden(normed)
                return found.reshape(*stream.shape[:-1], -1)
            with surgery.evaluating(self.modules), self._quick(layer):
                found = neurons_at(block, self._mlp_input(layer, stream), stage, self.family)
                return found.reshape(*stream.shape[:-1], -1)

    def mlp_from_hidden(
        self, layer: int, hidden: Float[Tensor, "*row neuron"], stage: Stage = Stage.POST
    ) -> Float[Tensor, "*row d_model"]:
        """What an MLP adds to the stream, from its neurons, bias and post-norm included; gradients follow if on.

        Returns:
            Values `[..., d_model]`, in units of the stream.

        Raises:
            UnsupportedModelError: The model has no MLPs, or gated ones, whose output takes more than pre-activations.
        """
        check_stage(self.bridge, self.spec, stage, whole=True)
        block = self._blocks[layer]
        with surgery.evaluating(self.modules), self._quick(layer):
            row = hidden.reshape(1, -1, hidden.shape[-1])
            out = from_neurons(block, row, stage, self.spec.d_model, self.family)
        added = surgery.times(norm_of(block, "ln2_post")(out), self.family.residual_multiplier)
        return added.reshape(*hidden.shape[:-1], -1)

    @torch.no_grad()
    def attn_norm_gradients(
        self,
        layer: int,
        stream: Float[Tensor, "batch seq d_model"],
        gradients: Float[Tensor, "chosen batch seq d_model"],
    ) -> Float[Tensor, "chosen batch seq d_model"]:
        """Gradients at the stream before a block from those at `attn_input`, which may be overwritten.

        Returns:
            Gradients of the shape of `gradients`.
        """
        self.require("attn_norm_gradients")
        return self._attn_pull_backs[layer](stream, gradients)

    @torch.no_grad()
    def whole_logits(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_vocab"]:
        """The model's own forward pass, untouched: what everything else is measured against.

        Returns:
            Logits `[batch, seq, d_vocab]`.
        """
        return self.forward(tokens)

    def whole_block(
        self, layer: int, stream: Float[Tensor, "row seq d_model"], arguments: BlockArguments
    ) -> Float[Tensor, "row seq d_model"]:
        """The stream after the model's own block, untouched; gradients follow if they are on.

        Returns:
            The stream `[row, seq, d_model]`.
        """
        with surgery.evaluating(self.modules):
            return watch.run_block(self, layer, stream, arguments)

    def _mlp_input(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "1 token d_model"]:
        """What an MLP reads of a stream, its norm, as one row: some norm modules insist on three axes."""
        return self._mlp_norms[layer](stream.reshape(1, -1, stream.shape[-1]))

    @contextmanager
    def _quick(self, layer: int | None = None) -> Iterator[None]:
        """Products by the faster library, activations by their fused kernels, in one layer or in all."""
        chosen = self._activations if layer is None else self._activations[layer : layer + 1]
        with ExitStack() as stack:
            stack.enter_context(fast_products())
            for module, fused in (item for found in chosen for item in found.items()):
                stack.enter_context(surgery.forward_replaced(module, fused))
            yield
