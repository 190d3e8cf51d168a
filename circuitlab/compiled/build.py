"""Compiled models by name: a model, pairs of prompts, and the edges of its true circuit.

Every variable of a program has directions of the residual stream for itself, orthonormal to all others'. Readers read
through the transposed directions of their variables, writers write along their own; an unused head or MLP is 0.

Without layer norm the directions are the axes. With it they are rows of a cosine transform, which sum to 0, so that
taking off the mean changes nothing; and the first attention layer's bias, which belongs to no writer, adds SIZE along
an unread direction, so that all else in the stream hardly changes its norm: by at most about |x|^2 / (2
SIZE^2), some 1e-4. The first layer reads the embedding alone, a token and a position, which always has the norm of two.

Example:
    >>> import circuitlab
    >>> circuitlab.compiled_models()[:2]
    ('copier', 'induction')
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from circuitlab.arguments import checked
from circuitlab.compiled.entry import Entry
from circuitlab.compiled.library import LIBRARY
from circuitlab.compiled.program import POSITION, TOKEN, Apply, Attend, Program
from circuitlab.compiled.truth import logits_of, run_program, true_edges
from circuitlab.data.batch import PairBatch
from circuitlab.errors import ConfigError, ModelError, UnknownNameError
from circuitlab.graphs.circuit import Circuit
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.load import DTYPES
from circuitlab.models.modes import model_function
from circuitlab.models.native import native_model
from circuitlab.parts import ModelSpec
from circuitlab.result import Result

# Of the constant that holds the norm of the stream, where the variables are of size 1.
SIZE = 300.0
# The layer norm's own, TransformerLens's default.
EPS = 1e-5

Weights = dict[str, np.ndarray]


def compile_weights(program: Program, norm: bool) -> tuple[ModelSpec, Weights]:
    """Shape and weights of the model that runs a program.

    Args:
        program: The program.
        norm: With layer norms, made harmless; else without.

    Returns:
        The shape, and the weights by parameter name, for `native_model`.
    """
    directions, constant = variable_directions(program, norm)
    heads = [operation for operation in program.operations if isinstance(operation, Attend)]
    spec = program.spec(len(constant), max(map(_width, heads), default=1))
    weights = _zeros(spec, max((len(op.bias) for op in program.operations if isinstance(op, Apply)), default=0))
    weights |= {
        "tok_embed.weight": directions[TOKEN],
        "pos.weight": directions[POSITION],
        "head.weight": program.unembed.T @ directions[program.output],
    }
    for operation in program.operations:
        if isinstance(operation, Attend):
            _write_head(program, operation, directions, spec.d_head, weights)
        else:
            _write_mlp(program, operation, directions, weights)
    if norm:
        weights["layers.0.attn.o.bias"] += SIZE * constant
        weights |= _gains(spec)
    return spec, weights


def variable_directions(
    program: Program, norm: bool
) -> tuple[dict[str, Float[np.ndarray, "value d_model"]], Float[np.ndarray, " d_model"]]:
    """Each variable's directions in the residual stream, and one more that belongs to none.

    A variable's value is the stream times its directions.

    Returns:
        The directions by variable, one row a value, and the one that is left.
    """
    sizes = program.sizes
    total = sum(sizes.values())
    if norm:
        d_model = total + 2
        row, column = np.arange(1, d_model)[:, None], np.arange(d_model)
        basis = np.sqrt(2 / d_model) * np.cos(np.pi * row * (column + 0.5) / d_model)
    else:
        basis = np.eye(total + 1, total)  # the direction of no variable is 0
    starts = np.cumsum([0, *sizes.values()])
    return {name: basis[at : at + size] for (name, size), at in zip(sizes.items(), starts, strict=False)}, basis[total]


def _width(head: Attend) -> int:
    """How wide a head must be: every match takes a direction a key value, every preference one."""
    scored = sum(1 if term.query is None else term.weight.shape[1] for term in head.score)
    return max(scored, head.through.shape[1])


def _zeros(spec: ModelSpec, d_mlp: int) -> Weights:
    inner = spec.n_heads * spec.d_head
    sizes = {f"attn.{slot}": (inner, spec.d_model) for slot in "qkv"} | {"attn.o": (spec.d_model, inner)}
    sizes |= {"mlp.fc_in": (d_mlp, spec.d_model), "mlp.fc_out": (spec.d_model, d_mlp)} if d_mlp else {}
    found = {}
    for layer in range(spec.n_layers):
        for part, size in sizes.items():
            found[f"layers.{layer}.{part}.weight"] = np.zeros(size)
            found[f"layers.{layer}.{part}.bias"] = np.zeros(size[0])
    return found


def _write_head(
    program: Program, head: Attend, directions: dict[str, np.ndarray], d_head: int, weights: Weights
) -> None:
    node = program.nodes[head.writes]
    assert node.head is not None, "heads write what an Attend writes"
    at, start = f"layers.{node.layer}.attn", node.head * d_head
    row, scale = start, np.sqrt(d_head)  # scores are divided by it
    for term in head.score:
        key = directions[term.key]
        if term.query is not None:
            rows = slice(row, row + len(key))
            weights[f"{at}.q.weight"][rows] = scale * term.weight.T @ directions[term.query]
            weights[f"{at}.k.weight"][rows] = key
            row += len(key)
        else:
            weights[f"{at}.q.bias"][row] = scale
            weights[f"{at}.k.weight"][row] = term.weight[0] @ key
            row += 1
    rows = slice(start, start + head.through.shape[1])
    weights[f"{at}.v.weight"][rows] = head.through.T @ directions[head.value]
    weights[f"{at}.o.weight"][:, rows] = directions[head.writes].T


def _write_mlp(program: Program, mlp: Apply, directions: dict[str, np.ndarray], weights: Weights) -> None:
    at, n = f"layers.{program.nodes[mlp.writes].layer}.mlp", len(mlp.bias)
    for variable, weight in mlp.reads.items():
        weights[f"{at}.fc_in.weight"][:n] += weight.T @ directions[variable]
    weights[f"{at}.fc_in.bias"][:n] = mlp.bias
    weights[f"{at}.fc_out.weight"][:, :n] = directions[mlp.writes].T @ mlp.out.T
    weights[f"{at}.fc_out.bias"][:] = directions[mlp.writes].T @ mlp.shift


def _gains(spec: ModelSpec) -> Weights:
    """Gains that undo the norms of the streams."""
    embedded, later = (np.full(spec.d_model, np.sqrt(square / spec.d_model + EPS)) for square in (2, SIZE**2 + 2))
    found = {"ln_out.weight": later}
    for layer in range(spec.n_layers):
        found[f"layers.{layer}.ln1.weight"] = later if layer else embedded
        if spec.has_mlp:
            found[f"layers.{layer}.ln2.weight"] = later
    return found


N_PAIRS = 64
# Prompts drawn for each requested reference prompt: some are among the scored ones.
DRAWS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class CompiledModel(Result):
    """A model whose circuit is known.

    Attributes:
        name: Its name in `compiled_models()`, or what the caller of `from_tracr` called it.
        entry: What it does, how prompts are drawn, whether paths of it are redundant.
        norm: Whether it has layer norms.
        model: The model; everything that takes a loaded model takes it.

    Example:
        >>> from circuitlab import compile_model
        >>> built = compile_model("copier")
        >>> built.model.spec.n_layers, len(built.pairs(n=8))
        (1, 8)
    """

    name: str
    entry: Entry
    norm: bool
    model: BridgeModel

    @property
    def program(self) -> Program:
        """What it was compiled from."""
        return self.entry.program

    def pairs(self, n: int = N_PAIRS, seed: int = 0) -> PairBatch:
        """Pairs of prompts of one length; every distractor is the corrupted prompt's right answer.

        Args:
            n: How many.
            seed: Same seed, same pairs.

        Returns:
            The pairs, in one batch.

        Raises:
            ConfigError: `n` is not positive.
        """
        if n < 1:
            raise ConfigError(f"n is {n}; it counts pairs and must be at least 1.")
        drawn = [self.entry.draw(number, np.random.default_rng([seed, number])) for number in range(n)]
        clean, corrupt = (torch.tensor([getattr(d, side) for d in drawn]) for side in ("clean", "corrupt"))
        answer_at = torch.tensor([d.answer_at for d in drawn])
        answers, distractors = (self._answers(tokens, answer_at) for tokens in (clean, corrupt))
        if self.entry.numeric:
            answers, distractors = torch.zeros_like(answers), torch.ones_like(distractors)
        return PairBatch.from_tokens(clean, corrupt, answers, distractors, answer_at)

    def reference(self, pairs: PairBatch, n: int = N_PAIRS, seed: int = 1) -> PairBatch:
        """Other pairs, to take means of: their clean prompts are none of those given, clean or corrupted.

        Args:
            pairs: The pairs that are scored.
            n: How many.
            seed: Same seed, same pairs.

        Returns:
            The pairs, in one batch.

        Raises:
            ConfigError: There are too few other prompts.
        """
        taken = {tuple(prompt) for prompt in torch.cat([pairs.clean, pairs.corrupted]).tolist()}
        more = self.pairs(DRAWS * n, seed)
        free = torch.tensor([tuple(prompt) not in taken for prompt in more.clean.tolist()]).nonzero().flatten()[:n]
        if len(free) < n:
            raise ConfigError(
                f"only {len(free)} of {DRAWS * n} prompts drawn for reference are not among the {len(pairs)} scored "
                f"pairs, {n} are asked for. Score fewer pairs of {self.name!r}, or ask for fewer."
            )
        found = more.take(free)
        return PairBatch.from_tokens(found.clean, found.corrupted, found.answers, found.distractors, found.answer_at)

    def truth(
        self, ablation: str = "corrupt", pairs: PairBatch | None = None, reference: PairBatch | None = None
    ) -> Circuit:
        """The true circuit, from the construction; see `circuitlab.compiled.truth` for the rule.

        Args:
            ablation: What excluded edges carry: "corrupt", "zero", "mean" or "mean-position".
            pairs: The prompts; `pairs()` by default.
            reference: Prompts that means are taken of; `reference(pairs)` by default.

        Returns:
            A circuit whose scores are 1 for its edges and 0 for all others.

        Raises:
            UnknownNameError: No rule is known for this ablation.
            ConfigError: Reference prompts of another length, by position.
        """
        spec, pairs = self.model.spec, self.pairs() if pairs is None else pairs
        if reference is None and ablation.startswith("mean"):
            reference = self.reference(pairs)
        mask = true_edges(self.program, spec, pairs, ablation, reference)
        return Circuit(spec=spec, mask=mask, scores=mask.astype(float))

    def to_frame(self) -> pd.DataFrame:
        """Every edge of the graph, with the true ones under the ablation "corrupt".

        Returns:
            Columns source, target, score (1 for true edges, else 0), in_circuit.
        """
        return self.truth().to_frame()

    def plot(self, title: str = "") -> Any:
        """Draw the true circuit under the ablation "corrupt".

        Returns:
            A matplotlib `Figure`.
        """
        return self.truth().plot(title=title)

    def to_record(self) -> dict[str, Any]:
        """The model for JSON.

        Returns:
            Its name, what it does, whether it has norms, and its true circuit under the ablation "corrupt".
        """
        return {"name": self.name, "what": self.entry.what, "norm": self.norm, "circuit": self.truth().to_record()}

    def _answers(self, tokens: torch.Tensor, answer_at: torch.Tensor) -> torch.Tensor:
        logits = logits_of(self.program, run_program(self.program, tokens.numpy()))
        return torch.from_numpy(logits[np.arange(len(tokens)), answer_at.numpy()].argmax(1)[:, None])

    def _summary(self) -> str:
        return f"{self.name}: {self.entry.what}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "norm", self.norm
        yield "model", self.model


@checked
def compiled_models() -> tuple[str, ...]:
    """Names of the compiled models.

    Returns:
        The names, for `compile_model`.

    Example:
        >>> from circuitlab import compiled_models
        >>> compiled_models()[:2]
        ('copier', 'induction')
    """
    return tuple(LIBRARY)


@model_function
def compile_model(name: str, *, norm: bool = False, dtype: str = "float64") -> CompiledModel:
    """Compile one of the models whose circuit is known.

    Args:
        name: One of `compiled_models()`.
        norm: With layer norms, made harmless by a large constant in the stream; else without.
        dtype: "float64" (default) or "float32"; half precision would blur what is exact here.

    Returns:
        The model with its program, pairs and true circuit.

    Raises:
        UnknownNameError: No such model.
        ConfigError: Another dtype.

    Example:
        >>> from circuitlab import compile_model
        >>> built = compile_model("copier")
        >>> [edge.name for edge, _ in built.truth("corrupt", built.pairs(n=8)).edges()]
        ['input->a0.h0<v>', 'a0.h0->logits']
    """
    UnknownNameError.check("compiled model", name, LIBRARY)
    check_dtype(dtype)
    entry = LIBRARY[name]
    spec, weights = compile_weights(entry.program, norm)
    model = native_model(replace(spec, name=f"{name}-norm") if norm else spec, weights, DTYPES[dtype])
    model.recipe = partial(_model_again, name, norm=norm, dtype=dtype)
    return CompiledModel(name=name, entry=entry, norm=norm, model=model)


def check_dtype(dtype: str) -> None:
    """Refuse half precision.

    Raises:
        ConfigError: The dtype is neither "float64" nor "float32".
    """
    if dtype not in ("float64", "float32"):
        raise ConfigError(f"dtype is {dtype!r}; a compiled model is in 'float64' or 'float32'.")


def _model_again(name: str, *, norm: bool, dtype: str, device: str) -> BridgeModel:
    """The model for another process, or a copy; compiled models are on the CPU."""
    if device != "cpu":
        raise ModelError(f"compiled model {name!r} was moved to {device}; it can be loaded again on the CPU alone.")
    return compile_model(name, norm=norm, dtype=dtype).model
