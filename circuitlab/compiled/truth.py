"""The true edges of a program, from the program: which variables are read on the way to the answer, and differ.

An edge u -> v belongs to the circuit if

1. v reads a variable that u writes, at a token that counts. At the answer the logits count. Where an MLP's variable
   counts, all that it reads counts at the same token; where a head's counts, so do the queries there, the values at the
   tokens that it attends to, and the keys at all tokens that it sees.
2. There, on some prompt, what v makes of the variable is not what v makes of its replacement: the corrupted prompt's
   value, zero, or the mean of the reference prompts. A constant path is part of no circuit under "corrupt".
3. It lies on a path of such edges from the input to the logits.

The values are the program's (`run_program`); no model is run and nothing is patched. Two consequences: an edge whose
reader compares two values that change together can have an effect when it is patched alone, and is no part of the
circuit if the reader's output is the same; and a constant that makes no difference, such as a key of a head that
attends to all tokens alike, belongs to the circuit under "zero" if it is read at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitlab.compiled.meaning import Meaning, run_program, visible
from circuitlab.compiled.program import Program
from circuitlab.data.batch import PairBatch
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.graphs.prune import prune
from circuitlab.parts import Edge, Layout, ModelSpec, Reader, Slot

ABLATIONS = ("corrupt", "zero", "mean", "mean-position")
# Values closer than this are equal; those of programs are of size 1.
SAME = 1e-9

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
    if ablation not in ABLATIONS:
        raise UnknownNameError.of("ablation", ablation, ABLATIONS)
    if ablation == "corrupt":
        return run_program(program, pairs.corrupt.cpu().numpy()).values
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
