"""Records of models: recorded runs, arguments of blocks, tokens before a text, how weights were rewritten."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from circuitlab.parts import Slot
from circuitlab.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Recording(Summary):
    """Everything one forward pass did, per layer. Heads' k and v are given once per query head.

    Attributes:
        resid_pre: The stream before each block.
        attn_out: What each attention layer adds to the stream (after a post-norm, where there is one).
        mlp_out: What each MLP adds to the stream; zeros where the model has none.
        q: Queries after their projection, before norms and rotation.
        k: Keys at the same point, one copy per query head.
        v: Values at the same point, one copy per query head.
        pattern: Attention weights, query position by key position.
        z: Each head's weighted sum of values.
        resid_final: The stream after the last block, before the final norm.
    """

    resid_pre: tuple[Float[Tensor, "batch seq d_model"], ...]
    attn_out: tuple[Float[Tensor, "batch seq d_model"], ...]
    mlp_out: tuple[Float[Tensor, "batch seq d_model"], ...]
    q: tuple[Float[Tensor, "batch seq head d_head"], ...]
    k: tuple[Float[Tensor, "batch seq head d_head"], ...]
    v: tuple[Float[Tensor, "batch seq head d_head"], ...]
    pattern: tuple[Float[Tensor, "batch head seq seq"], ...]
    z: tuple[Float[Tensor, "batch seq head d_head"], ...]
    resid_final: Float[Tensor, "batch seq d_model"]

    def stream(self, layer: int) -> Float[Tensor, "batch seq d_model"]:
        """The stream on entry to block `layer`; `layer = n_layers` is the end.

        Returns:
            The stream.
        """
        return self.resid_final if layer == len(self.resid_pre) else self.resid_pre[layer]

    def resid_mid(self, layer: int) -> Float[Tensor, "batch seq d_model"]:
        """The stream before block `layer` with what its attention adds.

        Returns:
            The stream `[batch, seq, d_model]`.
        """
        return self.resid_pre[layer] + self.attn_out[layer]

    def at(self, site: str, layer: int) -> Float[Tensor, "batch seq d_model"]:
        """The stream ("resid_pre", "resid_mid", "resid_post") or what a layer adds to it ("attn_out", "mlp_out").

        Returns:
            Its value at every token.
        """
        if site == "resid_mid":
            return self.resid_mid(layer)
        return self.stream(layer + 1) if site == "resid_post" else getattr(self, site)[layer]

    def head_inputs(self, layer: int) -> dict[Slot, Float[Tensor, "batch seq head d_head"]]:
        """Queries, keys and values of a layer's heads.

        Returns:
            A tensor `[batch, seq, head, d_head]` for each slot.
        """
        return {Slot.Q: self.q[layer], Slot.K: self.k[layer], Slot.V: self.v[layer]}

    def prompts(self, part: slice) -> Recording:
        """The run of some of the prompts; the tensors are views of these.

        Returns:
            Their run.
        """
        whole = {item.name: getattr(self, item.name) for item in fields(self)}
        layers = {name: tuple(one[part] for one in value) for name, value in whole.items() if isinstance(value, tuple)}
        return replace(self, **layers, resid_final=self.resid_final[part])


@dataclass(frozen=True, slots=True, kw_only=True)
class Folding:
    """How a model's weights were rewritten when it was loaded, its predictions being the same.

    Attributes:
        fold_ln: The norms' gains and biases are folded into the weights that read them.
        center_weights: What is written to the stream has mean zero, and so has every column of logits.
    """

    fold_ln: bool = False
    center_weights: bool = False

    @property
    def any(self) -> bool:
        """Whether anything was rewritten."""
        return self.fold_ln or self.center_weights

    @property
    def description(self) -> str:
        """What was done, in words; nothing where nothing was."""
        words = (("norms folded", self.fold_ln), ("weights centred", self.center_weights))
        return ", ".join(text for text, done in words if done)


AS_SAVED = Folding()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bos:
    """What comes before every text: the beginning-of-sequence (BOS) token, if any.

    Attributes:
        choice: The setting: `"auto"`, `"always"`, `"never"` or `"transformer-lens"`.
        ids: The tokens before the text; usually one or none, more where the tokenizer's template has more.
        tokens: The same as text.
    """

    choice: str
    ids: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()


# What blocks are called with beside the stream (masks, positions), for one prompt length: any object of the model.
BlockArguments = Any
