"""What the engine asks of a model: the stream, its readers and its writers, in plain tensors.

No transformer_lens here. A model is a stack of blocks on a residual stream; every method below is one step of the
forward pass with its input given, so that any part of the pass can be run again on other values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.data.encoding import LanguageModel
from circuitlab.models.recording import BlockArguments, Bos, Folding, Recording
from circuitlab.parts import Slot, Stage

if TYPE_CHECKING:
    from circuitlab.models.direct import DirectWrites


class Model(LanguageModel, Protocol):
    """A transformer on a residual stream. All methods are without gradients unless they say otherwise."""

    @property
    def id(self) -> str:
        """What the user called it."""
        ...

    @property
    def bos(self) -> Bos:
        """The tokens in front of every text; raises `ModelError` where the model has no tokenizer."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        ...

    @property
    def folding(self) -> Folding:
        """How its weights were rewritten when it was loaded."""
        ...

    @property
    def direct(self) -> DirectWrites:
        """What the model writes to its logits, part by part: final norm, unembedding, biases, neurons."""
        ...

    def weights_sha256(self) -> str:
        """SHA-256 over names and bytes of all weights of the checkpoint, and over how they were rewritten."""
        ...

    def block_arguments(self, tokens: Int[Tensor, "batch seq"]) -> BlockArguments:
        """Record what blocks are called with for prompts of this length."""
        ...

    def record(self, tokens: Int[Tensor, "batch seq"]) -> Recording:
        """Run the model once and keep everything."""
        ...

    def embedding(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_model"]:
        """The stream on entry to the first block."""
        ...

    def run_blocks(
        self, stream: Float[Tensor, "row seq d_model"], first: int, arguments: BlockArguments, stop: int | None = None
    ) -> Float[Tensor, "row seq d_model"]:
        """The stream on entry to block `stop` (after the last block by default) from that on entry to block `first`.

        Gradients follow if they are on and the stream asks for them.
        """
        ...

    def rewriting(self, site: str, layer: int, change: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        """Whole forward passes inside have `change(activation)` in the place of an activation.

        Args:
            site: A stream, what a sublayer adds to it, `head_z` (all heads side by side) or `neuron` (a whole MLP).
            layer: In which layer.
            change: From the activation `[batch, seq, width]` to what takes its place.
        """
        ...

    def logits(
        self, stream: Float[Tensor, "row d_model"], tokens: Int[Tensor, " word"] | None = None
    ) -> Float[Tensor, "row word"]:
        """Next-token logits from the final stream at one position a row; gradients follow if they are on.

        For the logits at every position of long texts flatten the streams to rows and take some rows at a time: what
        `[batch, seq, d_vocab]` would need never stands in memory.

        Args:
            stream: Final streams.
            tokens: Words whose logits are asked for; the whole vocabulary by default.
        """
        ...

    def project(
        self, layer: int, slot: Slot, heads: Sequence[int], stream: Float[Tensor, "chosen row seq d_model"]
    ) -> Float[Tensor, "chosen row seq d_head"]:
        """Chosen heads' q, k or v, each from the stream that this head reads; gradients follow to the stream."""
        ...

    def read_attention(
        self, layer: int, slots: Sequence[Slot], stream: Float[Tensor, "token d_model"]
    ) -> tuple[Float[Tensor, "token _ d_head"], ...]:
        """Queries, keys or values of all heads of a layer, one token a row, before norms and rotation.

        Keys and values come in the model's own number of heads (`spec.n_kv_heads`).
        """
        ...

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "row query head d_head"],
        k: Float[Tensor, "row seq _ d_head"],
        v: Float[Tensor, "row seq _ d_head"],
        arguments: BlockArguments,
    ) -> Float[Tensor, "row query head d_head"]:
        """Every head's z from its queries, keys and values; or that of some heads alone, where attention is standard.

        Args:
            layer: The layer.
            q: Queries of the last tokens, or of all.
            k: Keys of all tokens, once per query head or once per key/value head.
            v: Values of all tokens, the same way.
            arguments: What the layer is called with at this length.
        """
        ...

    def is_standard_attention(self, layer: int) -> bool:
        """Whether attention is a softmax of scaled scores and nothing else, as `attend_last_query` needs it."""
        ...

    def attention_pattern(
        self, layer: int, scores: Float[Tensor, "*row query seq"], sees: Bool[Tensor, "*_ asking seq"]
    ) -> Float[Tensor, "*row query seq"]:
        """Attention patterns; for layers of standard attention.

        Args:
            layer: The layer.
            scores: Products of queries with keys.
            sees: Which keys a query attends to.
        """
        ...

    def head_values(self, layer: int, head: int, read: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_head"]:
        """A head's values without their bias, from what it reads after the norm (`attn_input`)."""
        ...

    def attn_input(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What heads read of a stream: its norm."""
        ...

    def attend_last_query(
        self,
        layer: int,
        last: Float[Tensor, "row d_model"],
        read: Float[Tensor, "row seq d_model"],
        visible: Bool[Tensor, "row seq"],
    ) -> Float[Tensor, "row head d_head"]:
        """Every head's z at one token of each row, without keys or values of the others.

        Args:
            layer: The layer.
            last: What the heads read at that token (`attn_input`).
            read: The same at all tokens.
            visible: Which tokens the query attends to.
        """
        ...

    def attn_output(self, layer: int, z: Float[Tensor, "*row head d_head"]) -> Float[Tensor, "*row d_model"]:
        """What an attention layer adds to the stream, bias and post-norm included."""
        ...

    def head_outputs(
        self, layer: int, z: Float[Tensor, "row seq head d_head"], heads: Sequence[int] | None = None
    ) -> Float[Tensor, "chosen row seq d_model"]:
        """Each head's own share of `attn_output`, without the bias; a post-norm is taken with the scale of this z.

        Gradients follow to z if they are on.
        """
        ...

    def mlp_output(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What an MLP adds to the stream, from the stream it reads."""
        ...

    def mlp_hidden(
        self, layer: int, stream: Float[Tensor, "*row d_model"], stage: Stage = Stage.POST
    ) -> Float[Tensor, "*row neuron"]:
        """An MLP's neurons from the stream it reads; gradients follow if they are on and the stream asks for them.

        Args:
            layer: The layer.
            stream: What the MLP reads, before its norm.
            stage: Where they are read; by default what goes into the output projection.

        Raises:
            UnsupportedModelError: The model has no MLPs, or does not show their pre-activations.
        """
        ...

    def mlp_from_hidden(
        self, layer: int, hidden: Float[Tensor, "*row neuron"], stage: Stage = Stage.POST
    ) -> Float[Tensor, "*row d_model"]:
        """What an MLP adds to the stream, from its neurons at a stage; bias and post-norm included.

        Raises:
            UnsupportedModelError: The model has no MLPs, or gated ones whose pre-activations do not say the rest.
        """
        ...

    def neuron_weight(self, layer: int) -> Float[Tensor, "neuron d_model"]:
        """The output projection of an MLP: what a neuron of value 1 adds to the stream, before any post-norm."""
        ...

    @property
    def embedding_matrix(self) -> Float[Tensor, "_ d_model"]:
        """One row a token, as the checkpoint has it: without positions, and without a factor some models apply."""
        ...

    def unembedding(self) -> tuple[Float[Tensor, "d_model word"], Float[Tensor, " word"]]:
        """Weight and bias from the normed final stream to the logits (before a softcap); zeros without a bias."""
        ...

    def has_post_norm(self, layer: int) -> bool:
        """Whether norms follow attention and MLP, so that what one head or neuron adds depends on all (Gemma 2)."""
        ...

    def heads_share_a_norm(self, layer: int) -> bool:
        """Whether one norm spans all heads' queries, and one their keys, so that each moves the others' z (OLMo 2)."""
        ...

    def pull_back(
        self,
        layer: int,
        stream: Float[Tensor, "batch seq d_model"],
        gradients: Mapping[Slot, Float[Tensor, "batch seq head d_head"]],
        room: Float[Tensor, "_ batch seq d_model"] | None = None,
    ) -> Float[Tensor, "chosen batch seq d_model"]:
        """Gradients at heads' inputs from the gradients at their q, k or v, through projection and norm.

        Args:
            layer: The layer.
            stream: The stream that the heads read.
            gradients: By slot; at keys and values once per query head.
            room: Memory for as many gradients or more, which is overwritten; new memory by default.

        Returns:
            One gradient per slot and head: all heads of the first slot, then of the next.
        """
        ...
