"""Sensitivity of a neuron's activation at the last token to noise on the embedding of one token.

1. Draw Gaussian noise `[sample, d_model]`, with a standard deviation that is a share of those of the text's embeddings.
2. Add each sample to the embedding of one token at a time, the same samples to every token.
3. Run all (token, sample) rows up to the neuron, and subtract its value on the text as it is.

Small noise has, on average, no effect of the first order: the mean change measures the curvature of the neuron, the
root mean square how strongly it depends on the token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab import stats
from circuitlab.data.text_values import TextValues
from circuitlab.errors import ConfigError
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.neurons.chosen import neurons_of
from circuitlab.neurons.last_token import last_values
from circuitlab.neurons.prompts import Prompt, Tokens, check_count, read_prompt
from circuitlab.resources import Resources
from circuitlab.summary import Summary, largest, plural


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NoiseSensitivity(Summary):
    """What noise at each token does to a neuron at the last token.

    Attributes:
        layer: The neuron's layer.
        neuron: Its number.
        tokens: The text.
        activation: Its value at the last token of the text as it is.
        noise_std: Standard deviation of every component of the noise, in the units of the embedding.
        changes: Value with the noise minus `activation`: positive where the noise raised it.
        seed: Seed of the noise.
    """

    layer: int
    neuron: int
    tokens: Tokens
    activation: float
    noise_std: float
    changes: Float[np.ndarray, "token sample"]
    seed: int

    @property
    def mean(self) -> Float[np.ndarray, " token"]:
        """Mean change over the samples of noise, with its sign."""
        return self.changes.mean(1)

    @property
    def standard_error(self) -> Float[np.ndarray, " token"]:
        """Standard error of `mean` over the samples; NaN for a single one."""
        return stats.standard_error(self.changes)

    @property
    def size(self) -> Float[np.ndarray, " token"]:
        """Root mean square of the change over the samples: how much the neuron depends on the token, without sign."""
        return np.sqrt((self.changes**2).mean(1))

    def to_frame(self) -> pd.DataFrame:
        """One row a token: position, token, mean, standard_error, size."""
        return pd.DataFrame(
            {
                "position": np.arange(len(self.tokens)),
                "token": list(self.tokens.words),
                "mean": self.mean,
                "standard_error": self.standard_error,
                "size": self.size,
            }
        )

    def coloured(self) -> TextValues:
        """The text coloured by both numbers, as a page or in a notebook's cell."""
        return TextValues(
            title=f"Noise at one token: neuron L{self.layer}N{self.neuron} at the last token",
            tokens=self.tokens.words,
            series=("mean change", "root mean square change"),
            values=np.stack([self.mean, self.size]),
            details=tuple(f"standard error of the mean {error:.3g}" for error in self.standard_error),
            note=(
                f"Change of the activation at the last token ({self.activation:.3g} without noise) when noise is added "
                f"to the embedding of this token alone, over {self.changes.shape[1]} samples of noise. Positive: the "
                "noise raised it."
            ),
        )

    def to_record(self) -> dict[str, Any]:
        """The arguments and the table, for JSON."""
        return {
            "layer": self.layer, "neuron": self.neuron, "text": self.tokens.text, "activation": self.activation,
            "noise_std": self.noise_std, "n_samples": self.changes.shape[1], "seed": self.seed,
            "tokens": self.to_frame().to_dict("records"),
        }  # fmt: skip

    def _summary(self) -> str:
        return f"of neuron L{self.layer}N{self.neuron} to {plural(self.changes.shape[0], 'token')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "text", self.tokens
        yield "activation", self.activation
        yield "noise", f"{self.noise_std:.4g}, {plural(self.changes.shape[1], 'sample')}"
        words = self.tokens.words
        yield from largest(self.mean, lambda number: repr(words[len(words) - len(self.mean) + number]))


@model_function
def noise_sensitivity(
    model: Model,
    text: Prompt,
    layer: int,
    neuron: int,
    *,
    scale: float = 0.5,
    n_samples: int = 32,
    seed: int = 0,
    budget: int | None = None,
) -> NoiseSensitivity:
    """Add noise to the embedding of one token at a time; see the module for the steps.

    Args:
        model: The model.
        text: A text, or token ids.
        layer: The neuron's layer.
        neuron: Its number; its value is what goes into the MLP's output projection.
        scale: Standard deviation of the noise, as a multiple of the root mean square of the components of the text's
            embeddings (the stream on entry to the first block, without the beginning-of-sequence token's).
        n_samples: Samples of noise; a single one is a noisy estimate.
        seed: Same seed, same noise, whatever the device.
        budget: Bytes that a run may take; by default a share of what is free.

    Returns:
        The change of every token and sample.

    Raises:
        ConfigError: The layer or neuron is not there, the text is empty or too long, or a number is out of range.
    """
    (neuron,) = neurons_of(model, layer, neuron)
    check_count("n_samples", n_samples)
    if not 0 < scale < float("inf"):
        raise ConfigError(f"scale is {scale}; noise needs a standard deviation above 0, such as 0.5.")
    tokens = read_prompt(model, text)
    ids = tokens.tensor(model.device)
    std = scale * float(model.embedding(ids)[0, tokens.n_special :].double().square().mean().sqrt())
    noise = _noise(model, n_samples, seed) * std
    n_tokens = len(tokens)

    def shaken(start: Float[Tensor, "row seq d_model"], part: slice) -> Float[Tensor, "row seq d_model"]:
        row = torch.arange(part.start, part.stop, device=start.device)
        new = start.clone()
        new[torch.arange(len(row), device=start.device), row // n_samples] += noise[row % n_samples]
        return new

    clean = last_values(model, ids, layer, neuron, resources=Resources(budget))
    rows = ids.expand(n_tokens * n_samples, -1)
    values = last_values(model, rows, layer, neuron, change=shaken, resources=Resources(budget))
    changes = (values - clean).double().view(n_tokens, n_samples).cpu().numpy()
    return NoiseSensitivity(
        layer=layer, neuron=neuron, tokens=tokens, activation=float(clean), noise_std=std, changes=changes, seed=seed
    )  # fmt: skip


def _noise(model: Model, n_samples: int, seed: int) -> Float[Tensor, "sample d_model"]:
    """Standard normal noise, drawn on the CPU so that it is the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_samples, model.spec.d_model, generator=generator, dtype=torch.float32).to(
        model.device, model.dtype
    )
