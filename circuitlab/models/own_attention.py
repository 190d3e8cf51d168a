"""A layer's own attention code on given queries, keys and values, its projections skipped."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from jaxtyping import Float
from torch import Tensor

from circuitlab.models.anatomy import one_key_per_query_head
from circuitlab.models.families import Family
from circuitlab.models.surgery import forward_replaced
from circuitlab.models.watch import Call, call_again
from circuitlab.parts import ModelSpec


def attend_by_itself(
    attn: Any,
    q: Float[Tensor, "row seq head d_head"],
    k: Float[Tensor, "row seq _ d_head"],
    v: Float[Tensor, "row seq _ d_head"],
    call: Call,
    spec: ModelSpec,
    family: Family,
) -> Float[Tensor, "row seq head d_head"]:
    """Every head's z, by whatever the layer does between its projections and its output projection.

    Args:
        attn: The layer; it is left as it was.
        q: Queries of all tokens.
        k: Keys, once per query head or once per key/value head.
        v: Values, the same way.
        call: What the layer is called with.
        spec: Of the model.
        family: Of the model.
    """
    dummy = q.new_zeros(()).expand(q.shape[0], q.shape[1], spec.d_model)
    kept: list[Tensor] = []

    def take_z(z: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        kept.append(z)
        return dummy

    with ExitStack() as stack:
        if k.shape[2] == spec.n_heads:
            stack.enter_context(one_key_per_query_head(attn, spec, family))
        for module, value in ((attn.q, q), (attn.k, k), (attn.v, v)):
            flat = value.flatten(2)
            stack.enter_context(forward_replaced(module, lambda *_a, flat=flat, **_k: flat))
        stack.enter_context(forward_replaced(attn.o, take_z))
        call_again(attn, dummy, call, family)
    return kept[0].reshape(q.shape)
