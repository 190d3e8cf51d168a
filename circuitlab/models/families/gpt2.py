"""GPT-2: attention that is a causal softmax of scaled scores and nothing else, and MLPs with one tanh GELU."""

from typing import Any

from circuitlab.models.families.family import Family
from circuitlab.parts import ModelSpec

MODEL_TYPES = ("gpt2",)


def family(_config: Any) -> Family:
    """Kernels that compute the same; each is compared with the modules before it is used.

    Returns:
        The record.
    """
    return Family(score_scale=score_scale, fused_mlp=True)


def score_scale(attn: Any, spec: ModelSpec) -> float | None:
    """By what queries times keys are scaled; None where attention is something else.

    By class and settings, since a window or a bias by distance might not show on a short probe. The verification of a
    model compares the result with the model's own pattern.

    Returns:
        The factor, or None.
    """
    inner, config = getattr(attn, "original_component", None), getattr(attn, "config", None)
    if type(attn).__name__ != "JointQKVAttentionBridge" or type(inner).__name__ != "GPT2Attention":
        return None
    if not spec.causal:
        return None
    if getattr(inner, "reorder_and_upcast_attn", False) or not getattr(inner, "scale_attn_weights", True):
        return None
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) or spec.n_kv_heads != spec.n_heads:
        return None
    return spec.d_head**-0.5
