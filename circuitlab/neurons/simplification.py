"""Shorten a text as long as a neuron still fires: delete the token that it needs least, again and again.

1. Delete each token of the text but the last, one at a time; all these texts are one batch.
2. Keep the one on which the neuron's activation at the last token is highest.
3. Repeat from there until a stopping rule applies.

Tokens are deleted, letters are not: what is left is run as it is and never tokenised again, and later tokens move up by
one position. The text of a step may therefore be tokenised differently; see `Step.retokenises`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from circuitlab.drawing import draw
from circuitlab.errors import ConfigError
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.neurons.chosen import neurons_of
from circuitlab.neurons.last_token import last_values
from circuitlab.neurons.prompts import Prompt, Tokens, check_count, read_prompt, same_when_typed
from circuitlab.resources import Resources
from circuitlab.summary import Summary, plural, short


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Step(Summary):
    """One text on the way.

    Attributes:
        tokens: The text.
        activation: The neuron's value at its last token.
        deleted: The token that the step before had more; None for the text as it was given.
        deleted_at: Its position in that text.
        retokenises: Whether the text, typed as it stands, is these same tokens; None without a tokenizer.
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
        """The shortest text with at least this share of the first activation."""
        whole = self.steps[0].activation
        return next((s for s in reversed(self.steps) if s.activation >= share * whole), self.steps[0])

    def to_frame(self) -> pd.DataFrame:
        """One row a step: step, n_tokens, activation, share, deleted, deleted_at, text, retokenises."""
        rows = [
            {
                "step": number,
                "n_tokens": len(step.tokens) - step.tokens.n_special,
                "activation": step.activation,
                "share": share,
                "deleted": step.deleted,
                "deleted_at": step.deleted_at,
                "text": step.tokens.text,
                "retokenises": step.retokenises,
            }
            for number, (step, share) in enumerate(zip(self.steps, self.share, strict=True))
        ]
        return pd.DataFrame(rows).astype({"deleted_at": "Int64", "deleted": object})

    def plot(self) -> Any:
        """Every step's text with the activation beside it, as a matplotlib `Figure`."""
        return draw(self)

    def to_record(self) -> dict[str, Any]:
        """The arguments and the steps, for JSON."""
        rows = self.to_frame().astype(object)
        steps = rows.where(rows.notna(), None).to_dict("records")
        return {"layer": self.layer, "neuron": self.neuron, "steps": steps}

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
        ConfigError: The layer or neuron is not there, the text is empty or too long, a number is out of range, or
            `until` is given and the activation is not positive.
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
