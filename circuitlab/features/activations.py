"""The features of an autoencoder on texts: token by token, and only those that are active."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.limits import is_whole
from circuitlab.drawing import draw
from circuitlab.errors import ConfigError
from circuitlab.features.autoencoder import Autoencoder
from circuitlab.features.descriptions import Descriptions
from circuitlab.features.place import activation, fitted
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.neurons.chosen import Tokens, read_prompts, run_by_length
from circuitlab.resources import Resources
from circuitlab.result import Result
from circuitlab.summary import largest, plural

Texts = str | Sequence[str] | Int[Tensor, "batch seq"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveFeature:
    """A feature that is active at a token.

    Attributes:
        feature: Its number.
        value: Its activation, above 0.
    """

    feature: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class FeatureActivations(Result):
    """Active features on prompts, one entry each, by prompt, position, feature.

    Attributes:
        autoencoder: Name of the autoencoder.
        hook: Its place.
        n_features: How many features it has.
        tokens: Each prompt's tokens as text; their numbers where the model has no tokenizer.
        prompt: Which prompt an entry is of.
        position: At which of its tokens.
        feature: Which feature.
        value: Its activation, above 0.
    """

    autoencoder: str
    hook: str
    n_features: int
    tokens: tuple[tuple[str, ...], ...]
    prompt: Int[np.ndarray, " entry"]
    position: Int[np.ndarray, " entry"]
    feature: Int[np.ndarray, " entry"]
    value: Float[np.ndarray, " entry"]

    def __len__(self) -> int:
        return len(self.value)

    def active(self, position: int = -1, k: int | None = 10, prompt: int = 0) -> tuple[ActiveFeature, ...]:
        """The features at a token, the strongest first.

        Args:
            position: Which token; negative numbers count from the end.
            k: Maximum number of features; None for all.
            prompt: Of which prompt.

        Returns:
            The features.

        Raises:
            ConfigError: There is no such prompt or position.
        """
        here = np.flatnonzero((self.prompt == prompt) & (self.position == self._place(prompt, position)))
        return self._features(here[np.argsort(-self.value[here], kind="stable")][:k])

    def of(self, feature: int, prompt: int = 0) -> Float[np.ndarray, " seq"]:
        """One feature's activation at every token of a prompt.

        Returns:
            Activations `[seq]`.

        Raises:
            ConfigError: There is no such feature or prompt.
        """
        if not 0 <= feature < self.n_features:
            raise ConfigError(f"feature {feature} is out of range: there are {self.n_features}, numbered from 0.")
        values = np.zeros(len(self.tokens[self._prompt(prompt)]))
        here = (self.prompt == prompt) & (self.feature == feature)
        values[self.position[here]] = self.value[here]
        return values

    def strongest(self, k: int = 10, prompt: int | None = None, first: int = 0) -> tuple[ActiveFeature, ...]:
        """The features with the largest activation, the strongest first.

        Args:
            k: Maximum number of features.
            prompt: Only in this prompt.
            first: Only from this token on; 1 leaves out a beginning-of-sequence token.

        Returns:
            The features, each once.

        Raises:
            ConfigError: There is no such prompt.
        """
        inside = self.position >= first
        here = np.flatnonzero(inside if prompt is None else inside & (self.prompt == self._prompt(prompt)))
        order = here[np.argsort(-self.value[here], kind="stable")]
        _, strongest = np.unique(self.feature[order], return_index=True)
        return self._features(order[np.sort(strongest)][:k])

    def to_frame(self, descriptions: Descriptions | None = None) -> pd.DataFrame:
        """One row an entry: prompt, position, token, feature, activation, (description).

        Returns:
            The table.
        """
        tokens = [self.tokens[p][i] for p, i in zip(self.prompt, self.position, strict=True)]
        frame = pd.DataFrame(
            {
                "prompt": self.prompt,
                "position": self.position,
                "token": tokens,
                "feature": self.feature,
                "activation": self.value,
            }
        )
        return frame if descriptions is None else descriptions.join(frame)

    def plot(self, k: int = 12, prompt: int = 0, *, first: int = 0, names: Mapping[int, str] | None = None) -> Any:
        """The strongest features of a prompt, token by token, as a matplotlib `Figure`.

        Args:
            k: How many features.
            prompt: Which prompt.
            first: From this token on; 1 leaves out a beginning-of-sequence token.
            names: Words beside the numbers of features.

        Returns:
            The figure.

        Raises:
            ConfigError: There is no such prompt, or no feature is active in it.
        """
        return draw(self, k=k, prompt=prompt, first=first, names=names)

    def _features(self, entries: Int[np.ndarray, " _"]) -> tuple[ActiveFeature, ...]:
        return tuple(ActiveFeature(feature=int(self.feature[i]), value=float(self.value[i])) for i in entries)

    def _prompt(self, prompt: int) -> int:
        if not 0 <= prompt < len(self.tokens):
            raise ConfigError(f"prompt {prompt} is out of range: there are {len(self.tokens)}, numbered from 0.")
        return prompt

    def _place(self, prompt: int, position: int) -> int:
        n = len(self.tokens[self._prompt(prompt)])
        if not -n <= position < n:
            raise ConfigError(f"position {position} is out of range: prompt {prompt} has {n} tokens.")
        return position % n

    def _summary(self) -> str:
        found = plural(len(self.value), "value")
        return f"of {plural(self.n_features, 'feature')}: {found} on {plural(len(self.tokens), 'prompt')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "autoencoder", f"{self.autoencoder}, {self.hook}"
        yield "first prompt", self.tokens[0] if self.tokens else "none"
        yield from largest(
            self.value,
            lambda entry: f"feature {self.feature[entry]} at {self.tokens[self.prompt[entry]][self.position[entry]]!r}",
        )


@model_function
def features(model: Model, autoencoder: Autoencoder, texts: Texts, *, budget: int | None = None) -> FeatureActivations:
    """Run the model on texts and read the active features at every token.

    Args:
        model: A loaded model.
        autoencoder: Of this model.
        texts: A text, several of any length, or tokens `[batch, seq]`.
        budget: Bytes that a run may take; a share of what is free by default.

    Returns:
        Every active feature of every token, with its activation.

    Raises:
        ConfigError: The autoencoder does not fit the model; a text is empty, or longer than the model reads.
        UnknownNameError: The model has no such site.
    """
    autoencoder = fitted(model, autoencoder)
    prompts, found = read_texts(model, texts), list[tuple[np.ndarray, ...]]()

    @torch.no_grad()
    def run(numbers: list[int], ids: Tensor, _arguments: BlockArguments) -> None:
        x = activation(model, model.record(ids), autoencoder.site, autoencoder.layer)
        active = autoencoder.active(x.flatten(0, 1))
        token, feature, value = (t.cpu().numpy() for t in (active.token, active.feature, active.value.double()))
        found.append((np.array(numbers)[token // ids.shape[1]], token % ids.shape[1], feature, value))

    run_by_length(model, prompts, run, Resources(budget), extra_streams=8 * model.spec.n_layers)
    prompt, position, feature, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((feature, position, prompt))
    return FeatureActivations(
        autoencoder=autoencoder.name,
        hook=autoencoder.hook,
        n_features=autoencoder.n_features,
        tokens=tuple(prompt.words for prompt in prompts),
        prompt=prompt[order],
        position=position[order],
        feature=feature[order],
        value=value[order],
    )


def read_texts(model: Model, texts: Texts) -> list[Tokens]:
    """Texts, or rows of tokens, as the model reads them.

    Args:
        model: Its tokenizer reads the texts.
        texts: A text, several of any length, or tokens `[batch, seq]`.

    Returns:
        One prompt for each.

    Raises:
        ConfigError: There is none, one is empty, or tokens are not whole numbers of that shape.
        TokenError: One is longer than the context, or holds an id that the model does not have.
        ModelError: Texts are given, and the model has no tokenizer.
    """
    if isinstance(texts, Tensor) and (texts.ndim != 2 or texts.numel() == 0 or not is_whole(texts)):
        raise ConfigError(f"tokens must be whole numbers [batch, seq]; got {tuple(texts.shape)} {texts.dtype}.")
    return read_prompts(model, [texts] if isinstance(texts, str) else list(texts))
