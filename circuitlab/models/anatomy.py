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
from circuitlab.models.surgery import attributes, first_tensor, parameter_replaced
from circuitlab.parts import ModelSpec, Slot

CONTEXT_LENGTHS = (
    "n_positions", "max_position_embeddings", "max_context_length", "max_length", "seq_length", "max_seq_len",
    "max_sequence_length",
)  # fmt: skip


def spec_of(bridge: Any, name: str) -> ModelSpec:
    """The shape of a booted model.

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
    return ModelSpec(
        name=name,
        n_layers=len(with_mlp),
        n_heads=cfg.n_heads,
        n_kv_heads=getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
        d_model=cfg.d_model,
        d_head=cfg.d_head,
        d_vocab=words_out(cfg),
        n_ctx=context_of(bridge, family),
        parallel=bool(getattr(cfg, "parallel_attn_mlp", False)) if family.parallel is None else family.parallel,
        has_mlp=all(with_mlp),
        causal=getattr(cfg, "attention_dir", "causal") == "causal",
        d_vocab_in=cfg.d_vocab if words_out(cfg) != cfg.d_vocab else None,
    )


def context_of(bridge: Any, family: Family) -> int | None:
    """How many tokens the model reads at most; None for ALiBi, and for configurations that name no length.

    A sliding window is no limit: tokens beyond it still act through layers between.
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


def words_out(cfg: Any) -> int:
    """How many logits there are: toy models may predict fewer words than they read."""
    out = getattr(cfg, "d_vocab_out", None) or -1
    return out if out > 0 else cfg.d_vocab


def attn_norm(block: Any) -> Callable[[Tensor], Tensor]:
    """The norm that a block's heads read through; nothing where there is none."""
    return getattr(block, "ln1", None) or _identity


def mlp_norm(block: Any, spec: ModelSpec) -> Callable[[Tensor], Tensor]:
    """The norm that a block's MLP reads through; nothing where there is none."""
    # Parallel blocks with a single norm (GPT-J, Phi) give its output to attention and MLP alike.
    shared = spec.parallel and not hasattr(block, "ln2")
    return attn_norm(block) if shared else getattr(block, "ln2", None) or _identity


def attn_adds(block: Any, family: Family) -> nn.Module:
    """The module whose output attention adds to the stream, but for the family's `residual_multiplier`."""
    if hasattr(block, "ln1_post"):
        return block.ln1_post
    return block.attn.o if "attn" in family.adds_residual else block.attn


def mlp_adds(block: Any, family: Family) -> nn.Module:
    """The module whose output the MLP adds to the stream, but for the family's `residual_multiplier`."""
    if hasattr(block, "ln2_post"):
        return block.ln2_post
    return mlp_down(block) if "mlp" in family.adds_residual else block.mlp


def run_mlp(block: Any, normed: Tensor, family: Family) -> Tensor:
    """The MLP's output, before a post-norm, from its normed input; nothing else is added."""
    stream = (normed.new_zeros(()),) if "mlp" in family.adds_residual else ()
    return first_tensor(block.mlp(normed, *stream))


def projection(
    block: Any, slot: Slot, spec: ModelSpec
) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"] | None]:
    """Weight and bias of q, k or v; k and v once per query head."""
    weight, bias = linear(getattr(block.attn, slot.value))
    weight = einops.rearrange(weight, "d_model (head d_head) -> head d_model d_head", d_head=spec.d_head).detach()
    bias = None if bias is None else bias.unflatten(0, (-1, spec.d_head)).detach()
    repeats = spec.n_heads // weight.shape[0]
    if repeats > 1:
        weight = weight.repeat_interleave(repeats, 0)
        bias = None if bias is None else bias.repeat_interleave(repeats, 0)
    return weight, bias


def output_weight(block: Any, spec: ModelSpec) -> Float[Tensor, "head d_head d_model"]:
    """The output projection, head by head."""
    weight, _ = linear(block.attn.o)
    return weight.detach().unflatten(0, (spec.n_heads, spec.d_head))


def mlp_down(block: Any) -> Any:
    """The MLP's output projection, whose input are the neurons."""
    return block.mlp.out


def mlp_gate(block: Any) -> Any | None:
    """The gate's projection of a gated MLP; None where one projection alone leads to the neurons."""
    return getattr(block.mlp, "gate", None)


def mlp_up(block: Any) -> Any | None:
    """The projection that an MLP's activation function is applied to; None where the bridge shows none."""
    found = mlp_gate(block) or getattr(block.mlp, "in", None)
    return found if hasattr(found, "hook_out") else None


def norm_inside(block: Any) -> Any | None:
    """The norm between an MLP's activation and its output projection (SoLU, BitNet); None where there is none."""
    inside = block.mlp.original_component.children()
    return next((module for module in inside if "Norm" in type(module).__name__), None)


@contextmanager
def one_key_per_query_head(attn: Any, spec: ModelSpec, family: Family) -> Iterator[None]:
    """Let attention code take keys and values that are already repeated per query head."""
    if spec.n_kv_heads == spec.n_heads:
        yield
        return
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
            stack.enter_context(parameter_replaced(norm, "weight", gain))
        yield


def linear(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight `[in, out]` and bias of a linear layer; torch's own layers store it the other way round."""
    layer = module.original_component
    transposed = isinstance(layer, nn.Linear)
    return (layer.weight.T if transposed else layer.weight), layer.bias


def _identity(stream: Tensor) -> Tensor:
    return stream
