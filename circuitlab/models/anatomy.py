"""Where things are in a `TransformerBridge`: norms, projections, biases, and what is added to the stream.

Functions of one block and the model's shape; nothing here runs the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import einops
from jaxtyping import Float
from torch import Tensor, nn

from circuitlab.errors import UnsupportedModelError
from circuitlab.models.families import Family, family_of
from circuitlab.models.surgery import attributes, entry_replaced, first_tensor
from circuitlab.parts import ModelSpec, Slot

CONTEXT_LENGTHS = (
    "n_positions", "max_position_embeddings", "max_context_length", "max_length", "seq_length", "max_seq_len",
    "max_sequence_length",
)  # fmt: skip


def spec_of(bridge: Any, name: str) -> ModelSpec:
    """The shape of a booted model.

    Returns:
        The shape, with the name that the user calls it.

    Raises:
        UnsupportedModelError: It is not a decoder with attention in every block.
    """
    cfg, family = bridge.cfg, family_of(bridge)
    for needed in ("blocks", "ln_final", "unembed"):
        if not hasattr(bridge, needed):
            raise UnsupportedModelError(
                f"model {name!r} has no {needed}: circuitlab needs a decoder on one residual stream."
            )
    for layer, block in enumerate(bridge.blocks):
        if not all(hasattr(block, "attn") and hasattr(block.attn, part) for part in ("q", "k", "v", "o")):
            raise UnsupportedModelError(
                f"model {name!r}: block {layer} has no attention with q, k, v and o projections."
            )
    with_mlp = [hasattr(block, "mlp") for block in bridge.blocks]
    d_vocab = (
        max(getattr(cfg, "d_vocab_out", None) or 0, 0) or cfg.d_vocab
    )  # toy models may predict fewer than they read
    return ModelSpec(
        name=name,
        n_layers=len(with_mlp),
        n_heads=cfg.n_heads,
        n_kv_heads=getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
        d_model=cfg.d_model,
        d_head=cfg.d_head,
        d_vocab=d_vocab,
        n_ctx=context_of(bridge, family),
        parallel=bool(getattr(cfg, "parallel_attn_mlp", False)) if family.parallel is None else family.parallel,
        has_mlp=all(with_mlp),
        causal=getattr(cfg, "attention_dir", "causal") == "causal",
        d_vocab_in=None if d_vocab == cfg.d_vocab else cfg.d_vocab,
    )


def context_of(bridge: Any, family: Family) -> int | None:
    """How many tokens the model reads at most; None for ALiBi, and for configurations that name no length.

    A sliding window is no limit: tokens beyond it still act through layers between.

    Returns:
        Number of tokens, or None.
    """
    cfg = bridge.cfg
    if family.n_ctx is not None:
        return family.n_ctx
    saved: Any = getattr(bridge.original_model, "config", None)
    saved = saved.get_text_config() if hasattr(saved, "get_text_config") else saved
    if getattr(cfg, "positional_embedding_type", None) == "alibi":
        return None
    # TransformerLens assumes 2,048 where none of these is set.
    return cfg.n_ctx if any(getattr(saved, name, None) for name in CONTEXT_LENGTHS) else None


def norm_of(block: Any, name: str) -> Callable[[Tensor], Tensor]:
    """A norm of a block by its name on the bridge; the identity where there is none.

    Returns:
        The norm: the stream `[..., d_model]` to the normed stream of the same shape.
    """
    return getattr(block, name, None) or _identity


def mlp_norm(block: Any, spec: ModelSpec) -> Callable[[Tensor], Tensor]:
    """The norm that a block's MLP reads through; the identity where there is none.

    Returns:
        The norm: the stream `[..., d_model]` to the normed stream of the same shape.
    """
    # Parallel blocks with a single norm (GPT-J, Phi) give its output to attention and MLP alike.
    shared = spec.parallel and not hasattr(block, "ln2")
    return norm_of(block, "ln1" if shared else "ln2")


def adds(block: Any, sublayer: str, family: Family) -> nn.Module:
    """The module whose output a sublayer, "attn" or "mlp", adds to the stream, but for `residual_multiplier`.

    Returns:
        The module.
    """
    module = getattr(block, sublayer)
    post, last = ("ln1_post", "o") if sublayer == "attn" else ("ln2_post", "out")
    return getattr(block, post, None) or (getattr(module, last) if sublayer in family.adds_residual else module)


def run_mlp(block: Any, normed: Tensor, family: Family) -> Tensor:
    """The MLP's output, before a post-norm, from its normed input; nothing else is added.

    Returns:
        Values `[1, row, d_model]`.
    """
    stream = (normed.new_zeros(()),) if "mlp" in family.adds_residual else ()
    return first_tensor(block.mlp(normed, *stream))


def projection(
    block: Any, slot: Slot, spec: ModelSpec
) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"] | None]:
    """Weight and bias of q, k or v; k and v once per query head.

    Returns:
        Weight `[head, d_model, d_head]` and bias `[head, d_head]`, None without one.
    """
    weight, bias = linear(getattr(block.attn, slot.value))
    weight = einops.rearrange(weight, "d_model (head d_head) -> head d_model d_head", d_head=spec.d_head).detach()
    bias = None if bias is None else bias.unflatten(0, (-1, spec.d_head)).detach()
    repeats = spec.n_heads // weight.shape[0]
    if repeats > 1:
        weight = weight.repeat_interleave(repeats, 0)
        bias = None if bias is None else bias.repeat_interleave(repeats, 0)
    return weight, bias


def mlp_in(block: Any) -> list[Any]:
    """The projections into an MLP's neurons: one, or of a gated MLP the gate and the other factor.

    Returns:
        The projections, those that the activation is applied to first.
    """
    return [getattr(block.mlp, name) for name in ("gate", "in") if hasattr(block.mlp, name)]


def mlp_up(block: Any) -> Any:
    """The projection that an MLP's activation function is applied to; None where the bridge shows none.

    Returns:
        The projection, or None.
    """
    found = next(iter(mlp_in(block)), None)
    return found if hasattr(found, "hook_out") else None


def norm_inside(block: Any) -> Any | None:
    """The norm between an MLP's activation and its output projection (SoLU, BitNet); None where there is none.

    Returns:
        The norm, or None.
    """
    inside = block.mlp.original_component.children()
    return next((module for module in inside if "Norm" in type(module).__name__), None)


@contextmanager
def one_key_per_query_head(attn: Any, spec: ModelSpec, family: Family) -> Iterator[None]:
    """Let attention code take keys and values that are already repeated per query head."""
    with ExitStack() as stack:
        # The first is HuggingFace's name, the others are of TransformerLens's own attention.
        names = {"num_key_value_groups": 1, "n_kv_heads": spec.n_heads, "kv_repeats": 1}
        stack.enter_context(attributes(attn.original_component, **names))
        stack.enter_context(attributes(attn.config, n_key_value_heads=spec.n_heads))
        if family.norms_span_heads:  # of copies the mean square is that of the keys themselves
            norm = attn.k_norm.original_component
            gain = einops.repeat(
                norm.weight.detach(),
                "(kv_head d_head) -> (kv_head copy d_head)",
                kv_head=spec.n_kv_heads,
                copy=spec.n_heads // spec.n_kv_heads,
            )
            stack.enter_context(entry_replaced(norm._parameters, "weight", gain))
        yield


def linear(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight `[in, out]` and bias of a linear layer; torch's own layers store it the other way round.

    Returns:
        The weight, which may be a view, and the bias, None without one.
    """
    layer = module.original_component
    transposed = isinstance(layer, nn.Linear)
    return (layer.weight.T if transposed else layer.weight), layer.bias


def _identity(stream: Tensor) -> Tensor:
    return stream
