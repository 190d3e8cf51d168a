"""One neuron at the last token of a text, and the tokens of the text that it depends on.

By noise (`noise_sensitivity`):

1. Draw Gaussian noise `[sample, d_model]`, with a standard deviation that is a share of those of the text's embeddings.
2. Add each sample to the embedding of one token at a time, the same samples to every token.
3. Run all (token, sample) rows up to the neuron, and subtract its value on the text as it is.

Small noise has, on average, no effect of the first order: the mean change measures the curvature of the neuron, the
root mean square how strongly it depends on the token.

By deletion (`simplify`): shorten the text as long as the neuron still fires.

1. Delete each token of the text but the last, one at a time; all these texts are one batch.
2. Keep the one on which the neuron's activation at the last token is highest.
3. Repeat from there until a stopping rule applies.

Tokens are deleted, not letters: what is left is never tokenised again (see `Step.retokenises`), and later tokens move
up by one position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab import stats
from circuitlab.data.text_values import TextValues
from circuitlab.drawing import draw
from circuitlab.errors import ConfigError
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.neurons.chosen import Prompt, Tokens, check_count, neurons_of, read_prompt, same_when_typed
from circuitlab.parts import Stage
from circuitlab.patching.runs.neuron_values import run_to_mlp
from circuitlab.patching.runs.packing import Packer, rows_at_once
from circuitlab.resources import DEFAULT, Resources
from circuitlab.result import named, plain
from circuitlab.summary import Summary, largest, plural, short

Change = Callable[[Float[Tensor, "row seq d_model"], slice], Tensor]


def at_last_token(
    model: Model, arguments: BlockArguments, start: Float[Tensor, "row seq d_model"], layer: int, neuron: int
) -> Float[Tensor, " row"]:
    """A neuron's value at the last token, from the stream on entry to the first block; gradients follow if on.

    Returns:
        One value a row.
    """
    return model.mlp_hidden(layer, run_to_mlp(model, start, layer, arguments)[:, -1], Stage.POST)[:, neuron]


@torch.no_grad()
def last_values(
    model: Model,
    tokens: Int[Tensor, "row seq"],
    layer: int,
    neuron: int,
    *,
    change: Change | None = None,
    resources: Resources = DEFAULT,
) -> Float[Tensor, " row"]:
    """A neuron's value at the last token of each prompt.

    Args:
        model: The model.
        tokens: Prompts of one length.
        layer: The neuron's layer.
        neuron: Its number.
        change: What becomes of the embeddings of a slice of rows; they are run as they are by default.
        resources: Bytes that a run may take.

    Returns:
        One value a prompt.
    """
    arguments = model.block_arguments(tokens[:1])
    found = torch.zeros(len(tokens), dtype=model.dtype, device=model.device)

    def run(part: slice) -> None:
        start = model.embedding(tokens[part])
        start = start if change is None else change(start, part)
        found[part] = at_last_token(model, arguments, start, layer, neuron)

    Packer().run(len(tokens), rows_at_once(model, tokens.shape[1], resources), run)
    return found


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
        """One row a token: position, token, mean, standard_error, size.

        Returns:
            The table.
        """
        tokens = {"position": np.arange(len(self.tokens)), "token": list(self.tokens.words)}
        return pd.DataFrame(tokens | named(self, "mean", "standard_error", "size"))

    def coloured(self) -> TextValues:
        """The text coloured by both numbers, as a page or in a notebook's cell.

        Returns:
            The values over the text.
        """
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
        """The arguments and the table, for JSON.

        Returns:
            The record.
        """
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
    # Drawn on the CPU, so that it is the same everywhere.
    shape, generator = (n_samples, model.spec.d_model), torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(model.device, model.dtype) * std

    def shaken(start: Float[Tensor, "row seq d_model"], part: slice) -> Float[Tensor, "row seq d_model"]:
        row = torch.arange(part.start, part.stop, device=start.device)
        new = start.clone()
        new[torch.arange(len(row), device=start.device), row // n_samples] += noise[row % n_samples]
        return new

    clean = last_values(model, ids, layer, neuron, resources=Resources(budget))
    rows = ids.expand(len(tokens) * n_samples, -1)
    values = last_values(model, rows, layer, neuron, change=shaken, resources=Resources(budget))
    changes = (values - clean).double().view(len(tokens), n_samples).cpu().numpy()
    return NoiseSensitivity(
        layer=layer, neuron=neuron, tokens=tokens, activation=float(clean), noise_std=std, changes=changes, seed=seed
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Step(Summary):
    """One text on the way.

    Attributes:
        tokens: The text.
        activation: The neuron's value at its last token.
        deleted: The token that the step before had more; None for the text as it was given.
        deleted_at: Its position in that text.
        retokenises: Whether the text, typed as it is, gives these same tokens; None without a tokenizer.
    """

    tokens: Tokens
    activation: float
    deleted: str | None
    deleted_at: int | None
    retokenises: bool | None

    def _summary(self) -> str:
        return f"{short(self.tokens.text, 50)}: {self.activation:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Simplification(Summary):
    """The way from a text to a short one.

    Attributes:
        layer: The neuron's layer.
        neuron: Its number.
        steps: From the text as it was given to the shortest.
    """

    layer: int
    neuron: int
    steps: tuple[Step, ...]

    @property
    def share(self) -> list[float]:
        """Each step's activation as a share of the first one's."""
        first = self.steps[0].activation
        return [step.activation / first if first else float("nan") for step in self.steps]

    def shortest(self, share: float = 0.8) -> Step:
        """The shortest text with at least this share of the first activation.

        Returns:
            Its step.
        """
        whole = self.steps[0].activation
        return next((s for s in reversed(self.steps) if s.activation >= share * whole), self.steps[0])

    def to_frame(self) -> pd.DataFrame:
        """One row a step: step, n_tokens, activation, share, deleted, deleted_at, text, retokenises.

        Returns:
            The table.
        """
        rows = [
            {
                "step": number,
                "n_tokens": len(step.tokens) - step.tokens.n_special,
                "activation": step.activation,
                "share": share,
                **named(step, "deleted", "deleted_at"),
                "text": step.tokens.text,
                "retokenises": step.retokenises,
            }
            for number, (step, share) in enumerate(zip(self.steps, self.share, strict=True))
        ]
        return pd.DataFrame(rows).astype({"deleted_at": "Int64", "deleted": object})

    def plot(self) -> Any:
        """Every step's text with the activation beside it, as a matplotlib `Figure`.

        Returns:
            The figure.
        """
        return draw(self)

    def to_record(self) -> dict[str, Any]:
        """The arguments and the steps, for JSON.

        Returns:
            The record.
        """
        return named(self, "layer", "neuron") | {"steps": plain(self.to_frame())}

    def _summary(self) -> str:
        return f"of neuron L{self.layer}N{self.neuron}: {plural(len(self.steps), 'step')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        for number in sorted({*range(min(6, len(self.steps))), *range(max(0, len(self.steps) - 6), len(self.steps))}):
            yield f"{self.steps[number].activation:.4g}", short(self.steps[number].tokens.text)


@model_function
def simplify(
    model: Model,
    text: Prompt,
    layer: int,
    neuron: int,
    *,
    keep: int = 1,
    until: float | None = None,
    budget: int | None = None,
) -> Simplification:
    """Delete tokens one by one, always the one whose deletion lowers the activation least (or raises it most).

    Args:
        model: The model.
        text: A text, or token ids. The last token, where the neuron is read, and a beginning-of-sequence token stay.
        layer: The neuron's layer.
        neuron: Its number; its value is what goes into the MLP's output projection.
        keep: Tokens to stop at, the beginning-of-sequence token not counted.
        until: Stop before the activation falls below this share of the first one; None goes on to `keep` tokens.
        budget: Bytes that a run may take; by default a share of what is free.

    Returns:
        Every step. Of deletions that leave the same activation the first in the text is taken.

    Raises:
        ConfigError: No such layer or neuron, no text, one that is too long, or a number out of range.
    """
    (neuron,) = neurons_of(model, layer, neuron)
    check_count("keep", keep)
    tokens = read_prompt(model, text)
    activation = float(last_values(model, tokens.tensor(model.device), layer, neuron, resources=Resources(budget)))
    if until is not None and not until > 0:
        raise ConfigError(f"until is {until}; it is a share of the first activation, such as 0.5.")
    if until is not None and activation <= 0:
        raise ConfigError(
            f"neuron {neuron} of layer {layer} is {activation:.3g} at the last token {tokens.words[-1]!r}: until= is a "
            "share of a positive activation. Give a text that ends where the neuron fires, or leave until out."
        )
    least = -float("inf") if until is None else until * activation
    steps = [_step(model, tokens, activation)]
    while len(tokens) - tokens.n_special > keep:
        at, activation = _best_deletion(model, tokens, layer, neuron, Resources(budget))
        if activation < least:
            break
        deleted, tokens = tokens.words[at], Tokens.of(model, tokens.ids_without(at), tokens.n_special)
        steps.append(_step(model, tokens, activation, deleted, at))
    return Simplification(layer=layer, neuron=neuron, steps=tuple(steps))


def _best_deletion(model: Model, tokens: Tokens, layer: int, neuron: int, resources: Resources) -> tuple[int, float]:
    """The position whose deletion leaves the highest activation, and that activation; one batch."""
    candidates = range(tokens.n_special, len(tokens) - 1)
    rows = torch.tensor([tokens.ids_without(at) for at in candidates], device=model.device)
    values = last_values(model, rows, layer, neuron, resources=resources)
    best = int(values.argmax())
    return candidates[best], float(values[best])


def _step(
    model: Model, tokens: Tokens, activation: float, deleted: str | None = None, deleted_at: int | None = None
) -> Step:
    again = same_when_typed(model, tokens)
    return Step(tokens=tokens, activation=activation, deleted=deleted, deleted_at=deleted_at, retokenises=again)
