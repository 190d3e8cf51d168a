"""Grouped queries: several query heads share one key/value head."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from circuitlab.parts import ModelSpec


def once_per_query_head(spec: ModelSpec, values: Float[Tensor, "*row _ d_head"]) -> Float[Tensor, "*row head d_head"]:
    """Queries, keys or values with one copy per query head, from one per key/value head or per query head."""
    group = spec.n_heads // values.shape[-2]
    return values if group == 1 else values.repeat_interleave(group, -2)


def once_per_kv_head(spec: ModelSpec, values: Float[Tensor, "*row head d_head"]) -> Float[Tensor, "*row _ d_head"]:
    """Keys or values once per key/value head, from one copy per query head; a view."""
    return values[..., :: spec.n_heads // spec.n_kv_heads, :]


def query_heads(spec: ModelSpec, kv_head: int) -> list[int]:
    """The query heads that share a key/value head."""
    group = spec.n_heads // spec.n_kv_heads
    return list(range(kv_head * group, (kv_head + 1) * group))
