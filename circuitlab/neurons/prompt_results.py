"""Results of a search for prompts: the prompts, the trace of the search, and the random baseline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuitlab.drawing import draw
from circuitlab.neurons.prompts import Tokens
from circuitlab.summary import Summary, plural, short


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FoundPrompt(Summary):
    """The best prompt of one search.

    Attributes:
        value: The neuron at its last token.
        tokens: The prompt, run as these tokens; its text may be tokenised differently, see `retokenises`.
        step: At which step it was found.
        retokenises: Whether the text, typed as it stands, is these same tokens; None without a tokenizer.
    """

    value: float
    tokens: Tokens
    step: int
    retokenises: bool | None

    def _summary(self) -> str:
        return f"{short(self.tokens.text, 50)}: {self.value:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RandomPrompts(Summary):
    """Prompts of random tokens, fixed words in their places.

    Attributes:
        n: How many were run.
        best: The neuron at the last token of the best ones, one for each search, best first.
        mean: Mean over all of them.
        std: Standard deviation over all of them.
    """

    n: int
    best: Float[np.ndarray, " row"]
    mean: float
    std: float

    def _summary(self) -> str:
        return f"{self.n:,} prompts: mean {self.mean:.4g}, standard deviation {self.std:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class OptimisedPrompts(Summary):
    """Prompts that maximise (or minimise) a neuron.

    Attributes:
        layer: The neuron's layer.
        neuron: Its number.
        direction: "max" or "min".
        prompts: Best first, no two the same.
        soft: The neuron by step and search at the searched vectors themselves, which are no text.
        hard: The same at the tokens nearest to them.
        texts: These tokens as text, by step and search.
        baseline: The same number of random prompts as were run here (`n_evaluated`; gradients, about two more runs
            each, not counted).
        n_evaluated: Prompts run, of tokens and of vectors.
        seed: Seed of the start and of the baseline.
    """

    layer: int
    neuron: int
    direction: str
    prompts: tuple[FoundPrompt, ...]
    soft: Float[np.ndarray, "step row"]
    hard: Float[np.ndarray, "step row"]
    texts: tuple[tuple[str, ...], ...]
    baseline: RandomPrompts
    n_evaluated: int
    seed: int

    @property
    def best(self) -> FoundPrompt:
        """The best of all."""
        return self.prompts[0]

    @property
    def margin(self) -> float:
        """How much better the best prompt is than the best random one, in units of the neuron; below 0 if worse."""
        sign = 1.0 if self.direction == "max" else -1.0
        return sign * (self.best.value - float(self.baseline.best[0]))

    @property
    def trace(self) -> pd.DataFrame:
        """How the search went: step, search, soft, hard, text."""
        n_steps, n_searches = self.hard.shape
        return pd.DataFrame(
            {
                "step": np.repeat(np.arange(n_steps), n_searches),
                "search": np.tile(np.arange(n_searches), n_steps),
                "soft": self.soft.ravel(),
                "hard": self.hard.ravel(),
                "text": [text for step in self.texts for text in step],
            }
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt, best first: rank, value, text, step, retokenises."""
        return pd.DataFrame(
            [
                {"rank": rank, "value": p.value, "text": p.tokens.text, "step": p.step, "retokenises": p.retokenises}
                for rank, p in enumerate(self.prompts, start=1)
            ]
        )

    def plot(self) -> Any:
        """The best prompt so far of each search against the step, with the random ones, as a matplotlib `Figure`."""
        return draw(self)

    def to_record(self) -> dict[str, Any]:
        """The arguments, the prompts and the baseline, for JSON."""
        random = {"n": self.baseline.n, "mean": self.baseline.mean, "std": self.baseline.std}
        return {
            "layer": self.layer, "neuron": self.neuron, "direction": self.direction, "seed": self.seed,
            "prompts": self.to_frame().to_dict("records"), "n_steps": len(self.hard), "n_evaluated": self.n_evaluated,
            "random_prompts": {**random, "best": self.baseline.best.tolist()}, "margin": self.margin,
        }  # fmt: skip

    def _summary(self) -> str:
        found = f"{self.direction} {self.best.value:.4g} after {plural(len(self.hard), 'step')}"
        return f"of neuron L{self.layer}N{self.neuron}: {found}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        for one in self.prompts[:8]:
            yield f"{one.value:.4g}", short(one.tokens.text)
        yield "random", self.baseline
