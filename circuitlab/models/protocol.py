"""What the engine needs of a model: the stream, its readers and its writers, in plain tensors.

No transformer_lens here. A model is a stack of blocks on a residual stream; every method below is one step of the
forward pass with its input given, so that any part of the pass can be run again on other values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.encoded import LanguageModel
from circuitlab.models.recording import BlockArguments, Bos, Folding, Recording
from circuitlab.parts import Slot, Stage


class Model(LanguageModel, Protocol):
    """A transformer on a residual stream. Methods take no gradients unless stated otherwise."""

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
    def logit_cap(self) -> float | None:
        """The bound c of logits that leave the model as c tanh(logit / c); None where they leave as they are."""
        ...

    def weights_sha256(self) -> str:
        """SHA-256 over names and bytes of all weights of the checkpoint, and over how they were rewritten.

        Returns:
            64 hexadecimal digits.
        """
        ...

    def block_arguments(self, tokens: Int[Tensor, "batch seq"]) -> BlockArguments:
        """Record what blocks are called with for prompts of this length.

        Returns:
            What `attend` and `run_blocks` take: any object, or None. It is handed back to the model as it is, for
            prompts of this length (masks, positions).
        """
        ...

    def record(self, tokens: Int[Tensor, "batch seq"]) -> Recording:
        """Run the model once and keep everything.

        Returns:
            The run, keys and values with one copy per query head.
        """
        ...

    def embedding(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_model"]:
        """The stream on entry to the first block.

        Returns:
            The stream, positions included.
        """
        ...

    def run_blocks(
        self, stream: Float[Tensor, "row seq d_model"], first: int, arguments: BlockArguments, stop: int | None = None
    ) -> Float[Tensor, "row seq d_model"]:
        """The stream on entry to block `stop` (after the last block by default) from that on entry to block `first`.

        Gradients follow if they are on and the stream requires them.

        Returns:
            The stream on entry to block `stop`.
        """
        ...

    def rewriting(self, site: str, layer: int, change: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        """Whole forward passes inside have `change(activation)` in the place of an activation.

        Args:
            site: A stream, what a sublayer adds to it, `head_z` (all heads side by side) or `neuron` (a whole MLP).
            layer: In which layer.
            change: From the activation `[batch, seq, width]` to what takes its place.

        Returns:
            A context manager, which undoes the change.
        """
        ...

    def logits(
        self, stream: Float[Tensor, "row d_model"], tokens: Int[Tensor, " word"] | None = None
    ) -> Float[Tensor, "row word"]:
        """Next-token logits from the final stream at one position a row; gradients follow if they are on.

        For the logits at every position of long texts flatten the streams to rows and take some rows at a time: what
        `[batch, seq, d_vocab]` would need is never held in memory.

        Args:
            stream: Final streams.
            tokens: Words whose logits are wanted; the whole vocabulary by default.

        Returns:
            The logits, softcap included.
        """
        ...

    def head_weights(
        self, layer: int, slot: Slot
    ) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"] | None]:
        """Weight and bias of all heads' queries, keys or values; those of keys and values once per query head.

        Returns:
            The weight, and the bias or None: heads' inputs are `attn_input @ weight + bias`.
        """
        ...

    def read_attention(
        self, layer: int, slots: Sequence[Slot], stream: Float[Tensor, "token d_model"]
    ) -> tuple[Float[Tensor, "token _ d_head"], ...]:
        """Queries, keys or values of all heads of a layer, one token a row, before norms and rotation.

        Keys and values come in the model's own number of heads (`spec.n_kv_heads`).

        Returns:
            One tensor a slot, in the order of `slots`.
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

        Returns:
            The z of the queries' tokens.
        """
        ...

    def score_scale(self, layer: int) -> float | None:
        """The factor of the scores where attention is a causal softmax of scaled scores and nothing else.

        Returns:
            The factor; None for any other attention, which `attend` alone computes.
        """
        ...

    def attn_input(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What heads read of a stream: its norm.

        Returns:
            The normed stream; the stream itself where there is no norm.
        """
        ...

    def attn_output(self, layer: int, z: Float[Tensor, "*row head d_head"]) -> Float[Tensor, "*row d_model"]:
        """What an attention layer adds to the stream, bias and post-norm included.

        Returns:
            The sum over heads, bias and post-norm included.
        """
        ...

    def head_outputs(
        self, layer: int, z: Float[Tensor, "row seq head d_head"], heads: Sequence[int] | None = None
    ) -> Float[Tensor, "chosen row seq d_model"]:
        """Each head's own share of `attn_output`, without the bias; a post-norm is taken with the scale of this z.

        Gradients follow to z if they are on.

        Returns:
            One output a head, in the order of `heads`; all heads by default.
        """
        ...

    def mlp_output(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What an MLP adds to the stream, from the stream it reads.

        Returns:
            Bias and post-norm included.
        """
        ...

    def mlp_hidden(
        self, layer: int, stream: Float[Tensor, "*row d_model"], stage: Stage = Stage.POST
    ) -> Float[Tensor, "*row neuron"]:
        """An MLP's neurons from the stream it reads; gradients follow if they are on and the stream requires them.

        Args:
            layer: The layer.
            stream: What the MLP reads, before its norm.
            stage: Where they are read; by default what goes into the output projection.

        Returns:
            The neurons' values.

        Raises:
            UnsupportedModelError: The model has no MLPs, or does not show their pre-activations.
        """
        ...

    def mlp_from_hidden(
        self, layer: int, hidden: Float[Tensor, "*row neuron"], stage: Stage = Stage.POST
    ) -> Float[Tensor, "*row d_model"]:
        """What an MLP adds to the stream, from its neurons at a stage; bias and post-norm included.

        Returns:
            Bias and post-norm included.

        Raises:
            UnsupportedModelError: The model has no MLPs, or gated ones, whose output takes more than pre-activations.
        """
        ...

    def neuron_weight(self, layer: int) -> Float[Tensor, "neuron d_model"]:
        """The output projection of an MLP: what a neuron of value 1 adds to the stream, before any post-norm.

        Returns:
            One row a neuron.
        """
        ...

    @property
    def embedding_matrix(self) -> Float[Tensor, "_ d_model"]:
        """One row a token, as the checkpoint has it: without positions, and without a factor some models apply."""
        ...

    def final_norm(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """What the unembedding reads of final streams.

        Returns:
            The normed streams.
        """
        ...

    def unembedding(
        self, words: Int[Tensor, " word"] | None = None
    ) -> tuple[Float[Tensor, "d_model word"], Float[Tensor, " word"]]:
        """Weight and bias from the normed final stream to the logits (before a softcap); zeros without a bias.

        Args:
            words: Words whose logits are wanted; the whole vocabulary by default.

        Returns:
            Weight and bias.
        """
        ...

    def embedding_parts(
        self, tokens: Int[Tensor, "batch seq"], start: Float[Tensor, "batch seq d_model"]
    ) -> dict[str, Float[Tensor, "batch seq d_model"]]:
        """The stream before the first block, `start`, as "token" and "position", or as "embedding" alone.

        Returns:
            Parts that add up to `start`, by name.
        """
        ...

    def attention_bias(self, layer: int, z: Float[Tensor, "row head d_head"]) -> Float[Tensor, "row d_model"] | None:
        """What the bias of an attention layer adds to the stream; a post-norm is taken with this z's scale.

        Returns:
            The bias, one a row; None without one.
        """
        ...

    def neurons_along(
        self, layer: int, hidden: Float[Tensor, "row neuron"], direction: Float[Tensor, "row d_model"]
    ) -> tuple[Float[Tensor, "row neuron"], Float[Tensor, " row"] | None]:
        """Products with a direction of what each neuron of an MLP adds to the stream, and of what its bias adds.

        A post-norm is taken with the scale of these neurons.

        Returns:
            One product a neuron, and that of the bias; None without one.
        """
        ...

    def has_post_norm(self, layer: int) -> bool:
        """Whether norms follow attention and MLP, so that what one head or neuron adds depends on all (Gemma 2).

        Returns:
            True or False.
        """
        ...

    def heads_share_a_norm(self, layer: int) -> bool:
        """Whether one norm spans all heads' queries, and one their keys, so that each moves the others' z (OLMo 2).

        Returns:
            True or False.
        """
        ...

    def attn_norm_gradients(
        self,
        layer: int,
        stream: Float[Tensor, "batch seq d_model"],
        gradients: Float[Tensor, "chosen batch seq d_model"],
    ) -> Float[Tensor, "chosen batch seq d_model"]:
        """Gradients at the stream before a block from those at `attn_input`, which may be overwritten.

        Returns:
            Gradients at the stream.
        """
        ...
