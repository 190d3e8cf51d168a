"""The values of a program on prompts, and its true edges: those of variables that lead to the answer and differ.

An edge u -> v belongs to the circuit if

1. v reads a variable that u writes, at a token that counts. At the answer the logits count. Where an MLP's variable
   counts, all that it reads counts at the same token; where a head's counts, so do the queries there, the values at the
   tokens that it attends to, and the keys at all tokens that it sees.
2. There, on some prompt, what v makes of the variable is not what v makes of its replacement: the corrupted prompt's
   value, zero, or the mean of the reference prompts. A constant path is part of no circuit under "corrupt".
3. It lies on a path of such edges from the input to the logits.

The values are the program's (`run_program`), with hard attention: a head attends, in equal parts, to the visible tokens
of the highest score, where the compiled model leaves a few nats between that score and the others. No model is run and
nothing is patched. Two consequences: an edge whose reader compares two values that change together can have an effect
when it is patched alone, and is no part of the circuit if the reader's output is the same; and a constant that makes no
difference, such as a key of a head that attends to all tokens alike, belongs to the circuit under "zero" if it is read
at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from einops import einsum
from jaxtyping import Bool, Float, Int

from circuitlab.compiled.program import POSITION, TOKEN, Attend, Program
from circuitlab.data.batch import PairBatch
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.graphs.prune import prune
from circuitlab.parts import Edge, Layout, ModelSpec, Reader, Slot
from circuitlab.summary import Summary

# Scores and values closer than this are equal; values of programs are of size 1.
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
    """Which keys each query sees.

    Returns:
        A matrix `[query, key]`.
    """
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


ABLATIONS = ("corrupt", "zero", "mean", "mean-position")

Tokens = Bool[np.ndarray, "batch seq"]


def true_edges(
    program: Program,
    spec: ModelSpec,
    pairs: PairBatch,
    ablation: str = "corrupt",
    means_of: PairBatch | None = None,
) -> Bool[np.ndarray, "writer reader"]:
    """The circuit of a program on some pairs, under one replacement.

    Args:
        program: What the model was compiled from.
        spec: The model's shape.
        pairs: The prompts.
        ablation: What excluded edges carry: "corrupt", "zero", "mean" or "mean-position".
        means_of: Prompts that means are taken of (their clean ones).

    Returns:
        Mask of the true edges.

    Raises:
        UnknownNameError: No such ablation, or one that no rule is known for (noise).
        ConfigError: A mean without reference prompts, or reference prompts of another length.
    """
    clean = run_program(program, pairs.clean.cpu().numpy())
    replaced = _replacements(program, pairs, clean, ablation, means_of)
    counts = tokens_that_count(program, clean, pairs.answer_at.cpu().numpy())
    layout = Layout.of(spec)
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    for read in program.reads():
        difference = (clean.values[read.variable] - replaced[read.variable]) @ read.through
        if bool(((np.abs(difference) > SAME).any(2) & counts[read.writes, read.reader]).any()):
            mask[layout.edge_index(Edge(program.nodes[read.variable], read.reader))] = True
    return prune(mask, layout)


def tokens_that_count(
    program: Program, meaning: Meaning, answer_at: Int[np.ndarray, " batch"]
) -> dict[tuple[str | None, Reader], Tokens]:
    """For every reader, and what is made of what it reads, the tokens that count; see the module.

    Returns:
        By what is made and where it is read, a mask of tokens.
    """
    n_tokens = next(iter(meaning.values.values())).shape[1]
    at_answer = np.arange(n_tokens) == answer_at[:, None]
    readers = defaultdict[tuple[str | None, Reader], Tokens](lambda: np.zeros_like(at_answer))
    variables = defaultdict[str, Tokens](lambda: np.zeros_like(at_answer))
    # From the logits backwards: an operation comes after all that it reads.
    for read in reversed(list(program.reads())):
        counts = at_answer if read.writes is None else variables[read.writes]
        if read.writes is not None and read.writes in meaning.patterns and read.reader.slot is not Slot.Q:
            attended = meaning.patterns[read.writes] > SAME
            seen = attended if read.reader.slot is Slot.V else visible(program, n_tokens)[None]
            counts = np.asarray((counts[:, :, None] & seen).any(1))
        readers[read.writes, read.reader] |= counts
        variables[read.variable] |= counts
    return readers


def _replacements(
    program: Program, pairs: PairBatch, clean: Meaning, ablation: str, means_of: PairBatch | None
) -> Mapping[str, Float[np.ndarray, ...]]:
    UnknownNameError.check("ablation", ablation, ABLATIONS)
    if ablation == "corrupt":
        return run_program(program, pairs.corrupted.cpu().numpy()).values
    if ablation == "zero":
        return {name: np.zeros(value.shape[2]) for name, value in clean.values.items()}
    if means_of is None:
        raise ConfigError(f"ablation {ablation!r} needs reference prompts to take means of. Give reference=.")
    if ablation == "mean-position" and means_of.n_tokens != pairs.n_tokens:
        raise ConfigError(
            f"ablation 'mean-position': prompts of {pairs.n_tokens} tokens, reference prompts of {means_of.n_tokens}; "
            "they must be as long."
        )
    axes = (0, 1) if ablation == "mean" else (0,)
    values = run_program(program, means_of.clean.cpu().numpy()).values
    return {name: value.mean(axes) for name, value in values.items()}
