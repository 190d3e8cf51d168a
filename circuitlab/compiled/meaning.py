"""Run a program on a prompt: the value of every variable at every token, without a model.

Attention is hard here: a head attends, in equal parts, to the visible tokens of the highest score. The compiled model
attends softly, with a few nats between the highest score and the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from einops import einsum
from jaxtyping import Bool, Float, Int

from circuitlab.compiled.program import POSITION, TOKEN, Attend, Program
from circuitlab.summary import Summary

# Scores closer than this are equal.
SAME = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Meaning(Summary):
    """A program's values on some prompts.

    Attributes:
        values: Variable -> its value at every token.
        patterns: Variable -> the attention pattern of the head that writes it, query by key.
    """

    values: Mapping[str, Float[np.ndarray, "batch seq _"]]
    patterns: Mapping[str, Float[np.ndarray, "batch seq seq"]]


def visible(program: Program, n_tokens: int) -> Bool[np.ndarray, "seq seq"]:
    """Which keys each query sees."""
    everything = np.ones((n_tokens, n_tokens), dtype=bool)
    return np.tril(everything) if program.causal else everything


def run_program(program: Program, tokens: Int[np.ndarray, "batch seq"]) -> Meaning:
    """The value of every variable on some prompts.

    Returns:
        Values of all variables, and attention patterns of all heads.
    """
    n_examples, n_tokens = tokens.shape
    values = {
        TOKEN: np.eye(len(program.words))[tokens],
        POSITION: np.broadcast_to(np.eye(program.n_ctx)[:n_tokens], (n_examples, n_tokens, program.n_ctx)),
    }
    patterns = {}
    for operation in program.operations:
        if isinstance(operation, Attend):
            patterns[operation.writes] = pattern = _pattern(program, operation, values)
            values[operation.writes] = pattern @ (values[operation.value] @ operation.through)
        else:
            read = sum(values[name] @ weight for name, weight in operation.reads.items()) + operation.bias
            values[operation.writes] = np.maximum(read, 0) @ operation.out + operation.shift
    return Meaning(values=values, patterns=patterns)


def logits_of(program: Program, meaning: Meaning) -> Float[np.ndarray, "batch seq word"]:
    """What the program predicts.

    Returns:
        The logits, as far as the program defines them.
    """
    return meaning.values[program.output] @ program.unembed


def _pattern(program: Program, head: Attend, values: Mapping[str, np.ndarray]) -> Float[np.ndarray, "batch seq seq"]:
    n_examples, n_tokens = values[TOKEN].shape[:2]
    scores = np.zeros((n_examples, n_tokens, n_tokens))
    for term in head.score:
        key = values[term.key]
        query = np.broadcast_to(term.weight, key.shape) if term.query is None else values[term.query] @ term.weight
        scores += einsum(query, key, "batch query width, batch key width -> batch query key")
    scores = np.where(visible(program, n_tokens), scores, -np.inf)
    best = scores >= scores.max(2, keepdims=True) - SAME
    return best / best.sum(2, keepdims=True)
