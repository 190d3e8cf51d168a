"""What a family of models does beyond the anatomy of its blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from circuitlab.parts import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Facts about one model that its modules do not show; the defaults are those of most models.

    Attributes:
        residual_multiplier: Factor between the output of attention or MLP and what is added to the stream.
        logit_multiplier: Factor between the output of the unembedding and the logits.
        adds_residual: Sublayers, `"attn"` or `"mlp"`, whose modules return the stream with their output added.
        by_row_and_head: Names of arguments of blocks whose first axis is rows times heads.
        norms_span_heads: Queries and keys have norms over all heads together, so that heads share a scale.
        parallel: Whether attention and MLP read the same stream; None where TransformerLens's config has it.
        n_ctx: Longest prompt, where TransformerLens's config does not have it.
        score_scale: From an attention layer and the model's shape to the factor of its scores, where attention is a
            causal softmax of scaled scores and nothing else; None for another layer.
        fused_mlp: An MLP may be run as two products around one tanh GELU, where a probe gives the same values.
        refused: Why models of this family do not add up, as the end of a sentence.
    """

    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    adds_residual: frozenset[str] = frozenset()
    by_row_and_head: frozenset[str] = frozenset()
    norms_span_heads: bool = False
    parallel: bool | None = None
    n_ctx: int | None = None
    score_scale: Callable[[Any, ModelSpec], float | None] | None = None
    fused_mlp: bool = False
    refused: str | None = None
