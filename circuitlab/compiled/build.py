"""Compiled models by name: a model, pairs of prompts, and the edges of its true circuit.

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

from circuitlab.arguments import checked
from circuitlab.compiled.entry import Entry
from circuitlab.compiled.library import LIBRARY
from circuitlab.compiled.program import Program
from circuitlab.compiled.truth import logits_of, run_program, true_edges
from circuitlab.compiled.weights import compile_weights
from circuitlab.data.batch import PairBatch
from circuitlab.errors import ConfigError, ModelError, UnknownNameError
from circuitlab.graphs.circuit import Circuit
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.load import DTYPES
from circuitlab.models.modes import model_function
from circuitlab.models.native import native_model
from circuitlab.result import Result

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
        taken = {tuple(prompt) for prompt in torch.cat([pairs.clean, pairs.corrupt]).tolist()}
        more = self.pairs(DRAWS * n, seed)
        free = torch.tensor([tuple(prompt) not in taken for prompt in more.clean.tolist()]).nonzero().flatten()[:n]
        if len(free) < n:
            raise ConfigError(
                f"only {len(free)} of {DRAWS * n} prompts drawn for reference are not among the {len(pairs)} scored "
                f"pairs, {n} are asked for. Score fewer pairs of {self.name!r}, or ask for fewer."
            )
        found = more.take(free)
        return PairBatch.from_tokens(found.clean, found.corrupt, found.answers, found.distractors, found.answer_at)

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
