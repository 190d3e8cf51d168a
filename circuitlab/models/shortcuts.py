"""The same function in one fused kernel: norms and activations that cost as much as matrix products in Python.

On a CPU with 300 GFLOP/s, GPT-2's GELU written out in Python takes as long as the projection before it, and a layer
norm written out takes ten times the fused one. A shortcut is used only where it gives the module's own values on a
probe, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from circuitlab.parts import ModelSpec

Function = Callable[[Tensor], Tensor]

# Largest difference to the module itself, relative to its largest value: a few roundings.
ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-6}


@torch.no_grad()
def fused_norm(norm: Any, width: int) -> Function:
    """The layer norm in one kernel if it computes the same, else the module itself."""
    inner = getattr(norm, "original_component", None)
    if not isinstance(inner, nn.LayerNorm) or inner.normalized_shape != (width,) or inner.weight is None:
        return norm

    def fused(stream: Tensor) -> Tensor:
        # Weights are looked up at every call: whoever edits them sees the effect.
        return functional.layer_norm(stream, (width,), inner.weight, inner.bias, inner.eps)

    return fused if same_values(norm, fused, inner.weight, width) else norm


@torch.no_grad()
def fused_activations(mlp: nn.Module) -> dict[nn.Module, Function]:
    """Activation modules inside an MLP, each with a kernel that computes the same."""
    found = {}
    weight = next((p for p in mlp.parameters() if p.is_floating_point()), None)
    for module in mlp.modules():
        if weight is None or type(module).__name__ not in ("NewGELUActivation", "FastGELUActivation"):
            continue

        def fused(hidden: Tensor) -> Tensor:
            return functional.gelu(hidden, approximate="tanh")

        if same_values(module, fused, weight, 64):
            found[module] = fused
    return found


def plain_attention_scale(attn: Any, spec: ModelSpec) -> float | None:
    """By what queries times keys are scaled, where attention is a causal softmax of them and nothing else.

    Classes known for it only, since a window or a bias by distance might not show on a short probe; None otherwise. The
    verification of a model compares the result with the model's own pattern.
    """
    inner, config = getattr(attn, "original_component", None), getattr(attn, "config", None)
    if type(attn).__name__ != "JointQKVAttentionBridge" or type(inner).__name__ != "GPT2Attention":
        return None
    if getattr(inner, "reorder_and_upcast_attn", False) or not getattr(inner, "scale_attn_weights", True):
        return None
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) or spec.n_kv_heads != spec.n_heads:
        return None
    return spec.d_head**-0.5


def plain_attention(
    q: Float[Tensor, "row asking head d_head"],
    k: Float[Tensor, "row seq head d_head"],
    v: Float[Tensor, "row seq head d_head"],
    scale: float,
) -> Float[Tensor, "row asking head d_head"]:
    """Causal softmax attention in one kernel; the queries are those of the last tokens."""
    asking, seq = q.shape[1], k.shape[1]
    position = torch.arange(seq, device=q.device)
    sees = position <= position[seq - asking :, None]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=scale).transpose(1, 2)


@torch.no_grad()
def same_values(slow: Function, fused: Function, like: Tensor, width: int) -> bool:
    """Whether two functions agree up to rounding, on wide values and on narrow ones, where a norm's epsilon counts."""
    allowed = ROUNDING.get(like.dtype)
    if allowed is None:
        return False  # half precision: rounding would hide a difference
    wave = torch.linspace(-4.0, 4.0, 6 * width, dtype=like.dtype, device=like.device).sin().view(1, 6, width)
    for probe in (3.0 * wave, 0.02 * wave):
        ours, theirs = fused(probe), slow(probe)
        if not bool((ours - theirs).abs().max() <= allowed * theirs.abs().max()):
            return False
    return True
