"""Attention of a single query per prompt without making keys or values.

A score is q . (W_K x) = (W_K^T q) . x and a head's z is W_V (sum over tokens of a x): with one token that asks, both
projections are done once a row and not once a token. The bias of the keys adds the same to every score and drops out of
the softmax; that of the values is added once, since the weights sum to 1.
"""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor


def attend_last_query(
    q: Float[Tensor, "row head d_head"],
    seen: Float[Tensor, "row seq d_model"],
    sees: Bool[Tensor, "row seq"],
    key_weight: Float[Tensor, "head d_model d_head"],
    value_weight: Float[Tensor, "head d_model d_head"],
    value_bias: Float[Tensor, "head d_head"] | None,
    scale: float,
) -> Float[Tensor, "row head d_head"]:
    """Each head's z at the token that asks, where attention is a softmax of scaled scores and nothing else.

    Args:
        q: The query of that token.
        seen: What keys and values are read from, behind the norm.
        sees: Which tokens it may look at.
        key_weight: Projection of the keys.
        value_weight: Projection of the values.
        value_bias: Its bias.
        scale: What scores are multiplied by.
    """
    wanted = einsum(q.mul(scale), key_weight, "row head d_head, head d_model d_head -> row d_model head")
    scores = torch.bmm(seen, wanted).masked_fill_(~sees[..., None], -torch.inf)
    mixed = einsum(scores.softmax(1), seen, "row seq head, row seq d_model -> row head d_model")
    z = einsum(mixed, value_weight, "row head d_model, head d_model d_head -> row head d_head")
    return z if value_bias is None else z + value_bias
