"""The same function in one fused kernel: norms and activations that cost as much as matrix products in Python.

On a CPU with 300 GFLOP/s, GPT-2's GELU written out in Python takes as long as the projection before it, and a layer
norm written out takes ten times the fused one. A shortcut is used only where it gives the module's own values on a
probe, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from circuitlab.models.anatomy import linear
from circuitlab.models.families import Family
from circuitlab.models.products import gelu_product, product
from circuitlab.models.surgery import first_tensor, hook_tables, hooked

Function = Callable[[Tensor], Tensor]

# Largest difference to the module itself, relative to its largest value: a few roundings.
ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-6}


@torch.no_grad()
def fused_norm(norm: Any, width: int) -> Function:
    """The layer norm in one kernel if it computes the same, else the module itself.

    Returns:
        A function with the norm's values.
    """
    inner = getattr(norm, "original_component", None)
    if not isinstance(inner, nn.LayerNorm) or inner.normalized_shape != (width,) or inner.weight is None:
        return norm

    tables = hook_tables(norm)

    def fused(stream: Tensor) -> Tensor:
        if hooked(tables):
            return norm(stream)
        # Weights are looked up at every call: edits take effect.
        return functional.layer_norm(stream, (width,), inner.weight, inner.bias, inner.eps)

    return fused if same_values(norm, fused, inner.weight, width) else norm


@torch.no_grad()
def fused_activations(mlp: nn.Module) -> dict[nn.Module, Function]:
    """Activation modules inside an MLP, each with a kernel that computes the same.

    Returns:
        Module -> kernel; empty where there is none.
    """
    weight = next((p for p in mlp.parameters() if p.is_floating_point()), None)
    fused = partial(functional.gelu, approximate="tanh")
    known = [m for m in mlp.modules() if type(m).__name__ in ("NewGELUActivation", "FastGELUActivation")]
    return {module: fused for module in known if weight is not None and same_values(module, fused, weight, 64)}


@torch.no_grad()
def plain_mlp(mlp: Any, width: int, family: Family) -> PlainMLP | None:
    """An MLP as two products around one tanh GELU, where it is that and nothing else; None otherwise.

    Returns:
        The two products, or None.
    """
    if not family.fused_mlp or not fused_activations(mlp):
        return None
    if not all(hasattr(getattr(mlp, part, None), "original_component") for part in ("in", "out")):
        return None
    plain = PlainMLP(mlp, hook_tables(mlp))
    weight = linear(mlp.out)[0]
    return plain if same_values(lambda stream: first_tensor(mlp(stream)), plain.output, weight, width) else None


@dataclass(frozen=True, slots=True, eq=False)
class PlainMLP:
    """Two products and a GELU; weights are looked up at every call."""

    mlp: Any
    tables: tuple[Mapping[int, Callable], ...]

    @property
    def usable(self) -> bool:
        """Whether the MLP is as it was booted; hooks of a user's own need the modules to be called."""
        return not hooked(self.tables)

    def before(self, normed: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row neuron"]:
        """The neurons, before their activation.

        Returns:
            Values `[..., neuron]`.
        """
        return product(normed, *linear(getattr(self.mlp, "in")))

    def hidden(self, normed: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row neuron"]:
        """The neurons, after their activation.

        Returns:
            Values `[..., neuron]`.
        """
        weight, bias = linear(getattr(self.mlp, "in"))
        assert bias is not None
        return gelu_product(normed, weight, bias)

    def output(self, normed: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What the MLP adds to the stream.

        Returns:
            Values `[..., d_model]`.
        """
        return product(self.hidden(normed), *linear(self.mlp.out))


def plain_projections(
    attn: Any, names: Sequence[str], normed: Float[Tensor, "token d_model"]
) -> Sequence[Float[Tensor, "token _"]]:
    """Queries, keys or values by their weights; all three in one product where they lie side by side in memory.

    Returns:
        A tensor `[token, head times d_head]` for each name.
    """
    parts = [linear(getattr(attn, name)) for name in names]
    weights, biases = [weight for weight, _ in parts], [bias for _, bias in parts]
    joint, bias = _side_by_side(weights), _side_by_side([b for b in biases if b is not None])
    if joint is None or bias is None or len(bias) != joint.shape[1]:
        return [product(normed, weight, bias) for weight, bias in parts]
    return product(normed, joint, bias).split([weight.shape[1] for weight in weights], -1)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    """Slices of one tensor along its last axis as the tensor that they make up together; None where they are not."""
    if len(parts) < 2 or any(part.stride() != parts[0].stride() or part.stride(-1) != 1 for part in parts):
        return None
    for one, after in pairwise(parts):
        ends = one.storage_offset() + one.shape[-1]
        if one.untyped_storage().data_ptr() != after.untyped_storage().data_ptr() or ends != after.storage_offset():
            return None
    shape = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
    return parts[0].detach().as_strided(shape, parts[0].stride(), parts[0].storage_offset())


def plain_attention(
    q: Float[Tensor, "row query head d_head"],
    k: Float[Tensor, "row seq head d_head"],
    v: Float[Tensor, "row seq head d_head"],
    scale: float,
) -> Float[Tensor, "row query head d_head"]:
    """Causal softmax attention in one kernel; the queries are those of the last tokens.

    Returns:
        Weighted sums of values `[row, query, head, d_head]`.
    """
    n_queries, seq = q.shape[1], k.shape[1]
    position = torch.arange(seq, device=q.device)
    sees = position <= position[seq - n_queries :, None]
    q, k, v = (rearrange(t, "row seq head d_head -> row head seq d_head") for t in (q, k, v))
    z = functional.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=scale)
    return rearrange(z, "row head seq d_head -> row seq head d_head")


@torch.no_grad()
def same_values(slow: Function, fused: Function, like: Tensor, width: int) -> bool:
    """Whether two functions agree up to rounding, on `probes`.

    Returns:
        True or False; False in half precision, where rounding would hide a difference.
    """
    allowed = ROUNDING.get(like.dtype)
    if allowed is None:
        return False  # half precision: rounding would hide a difference
    for probe in probes(like, width):
        ours, theirs = fused(probe), slow(probe)
        if not bool((ours - theirs).abs().max() <= allowed * theirs.abs().max()):
            return False
    return True


def probes(like: Tensor, width: int) -> tuple[Float[Tensor, "1 row width"], ...]:
    """Wide values and narrow ones, where a norm's epsilon counts.

    Returns:
        Two tensors `[1, row, width]`, the wide values first.
    """
    wave = torch.linspace(-4.0, 4.0, 6 * width, dtype=like.dtype, device=like.device).sin().view(1, 6, width)
    return 3.0 * wave, 0.02 * wave
