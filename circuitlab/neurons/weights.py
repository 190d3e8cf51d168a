"""Tokens that a neuron promotes and neurons that promote a token, from the weights alone: W_out W_U.

A neuron of value 1 adds its row w of W_out to the stream, and the final norm divides whatever is there by its scale:
times that scale, the logit of a token grows by (gain * (w - mean(w))) . W_U[:, token], without the mean for RMS norms.
That is the table here; it is W_out W_U itself on weights into which norms have been folded and which are centred, and
folding does not change it. With `final_norm=False` gain and centring are left out: the bare product.

One row or one column is computed at a time; the table of all neurons by all tokens never stands in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.errors import ConfigError, TokenError, UnsupportedModelError
from circuitlab.models.modes import model_function
from circuitlab.models.norms import FrozenNorm, frozen_norm
from circuitlab.models.protocol import Model
from circuitlab.models.steps import neurons_interact
from circuitlab.neurons.chosen import layers_of, neurons_of
from circuitlab.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WeightEntry(Summary):
    """One entry of W_out W_U.

    Attributes:
        layer: Layer of the neuron.
        neuron: Its number in the layer.
        token: The token as text.
        id: Its number in the vocabulary.
        value: What the neuron, at value 1, adds to the token's logit, times the scale of the final norm.
    """

    layer: int
    neuron: int
    token: str
    id: int
    value: float

    def _summary(self) -> str:
        return f"L{self.layer}N{self.neuron} {self.token!r}: {self.value:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WeightTable(Summary):
    """Entries of W_out W_U, the largest first (or the lowest first, with `lowest=True`)."""

    entries: tuple[WeightEntry, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row an entry: layer, neuron, token, id, value."""
        return pd.DataFrame([asdict(one) for one in self.entries], columns=list(WeightEntry.__dataclass_fields__))

    def to_record(self) -> list[dict[str, Any]]:
        """The entries as JSON can hold them."""
        return [asdict(one) for one in self.entries]

    def _summary(self) -> str:
        return f"of {len(self.entries):,} rows"

    def _facts(self) -> Iterable[tuple[str, object]]:
        for one in self.entries[:10]:
            yield f"L{one.layer}N{one.neuron}", f"{one.value:.4g}  {one.token!r}"


@model_function
@torch.no_grad()
def top_tokens(
    model: Model, layer: int, neuron: int, k: int = 10, *, lowest: bool = False, final_norm: bool = True
) -> WeightTable:
    """The tokens that a neuron promotes most.

    Args:
        model: A model with MLPs.
        layer: Layer of the neuron.
        neuron: Its number in the layer.
        k: How many tokens.
        lowest: The tokens that it suppresses most instead.
        final_norm: Whether the final norm's gain and centring count; False gives the bare product of the weights.

    Returns:
        The k largest entries of the neuron's row, largest first; equals by their number in the vocabulary.

    Raises:
        ConfigError: No such layer or neuron, or k is outside the vocabulary.
        UnsupportedModelError: The model has no MLPs, or norms after them, where a neuron's value alone does not
            determine what it adds.
    """
    neurons_of(model, layer, neuron)
    _check_k(k, model.spec.d_vocab, "tokens of the vocabulary")
    _check_plain(model, layer)
    written = model.neuron_weight(layer)[neuron][None]
    if final_norm:
        norm = _norm_at_scale_one(model, written)
        written = (written - written.mean() if norm.centred else written) * norm.factor
    values = (written @ model.unembedding()[0])[0]
    return _table(model, [(layer, neuron)], range(model.spec.d_vocab), values, k, lowest)


@model_function
@torch.no_grad()
def top_neurons(
    model: Model,
    token: str | int,
    layer: int | Sequence[int] | None = None,
    k: int = 10,
    *,
    lowest: bool = False,
    final_norm: bool = True,
) -> WeightTable:
    """The neurons that promote a token most.

    Args:
        model: A model with MLPs.
        token: The token as text, with its leading space, or its number in the vocabulary.
        layer: One layer or several; all by default.
        k: How many neurons.
        lowest: The neurons that suppress it most instead.
        final_norm: Whether the final norm's gain and centring count; False gives the bare product of the weights.

    Returns:
        The k largest entries of the token's column, largest first; equals by layer and neuron.

    Raises:
        ConfigError: No such layer, or `k` is larger than the number of neurons.
        TokenError: The text is not one token, or there is no token of this number.
        UnsupportedModelError: The model has no MLPs, or norms after them, where a neuron's value alone does not
            determine what it adds.
    """
    layers = layers_of(model, layer)
    for one in layers:
        _check_plain(model, one)
    widths = [model.neuron_weight(one).shape[0] for one in layers]
    _check_k(k, sum(widths), "neurons")
    number = _token_id(model, token)
    column = model.unembedding()[0][:, number][None]
    column = _norm_at_scale_one(model, column).back(column) if final_norm else column
    values = torch.cat([model.neuron_weight(one) @ column[0] for one in layers])
    places = [(one, neuron) for one, width in zip(layers, widths, strict=True) for neuron in range(width)]
    return _table(model, places, [number], values, k, lowest)


def _table(
    model: Model,
    neurons: Sequence[tuple[int, int]],
    tokens: Sequence[int],
    values: Float[Tensor, " entry"],
    k: int,
    lowest: bool,
) -> WeightTable:
    """The k largest (or lowest) entries; equals in their order.

    Args:
        model: Whose tokens they are.
        neurons: Layer and number of the neuron of each entry, or of all.
        tokens: The token of each entry, or of all.
        values: The entries.
        k: How many.
        lowest: The lowest instead.
    """
    values = values if values.dtype == torch.float64 else values.float()
    order = torch.sort(values, descending=not lowest, stable=True).indices[:k].tolist()
    ids = [tokens[i % len(tokens)] for i in order]
    found = []
    for i, token, word in zip(order, ids, model.text.decode(tuple(ids)), strict=True):
        layer, neuron = neurons[i % len(neurons)]
        found.append(WeightEntry(layer=layer, neuron=neuron, token=word, id=token, value=float(values[i])))
    return WeightTable(entries=tuple(found))


def _norm_at_scale_one(model: Model, like: Float[Tensor, "1 d_model"]) -> FrozenNorm:
    """The final norm as a linear map, at scale 1: gain and centring alone."""
    signs = 1.0 - 2.0 * (torch.arange(like.shape[-1], device=like.device) % 2).to(like)
    return frozen_norm(model.final_norm, signs[None], model.id)


def _check_k(k: int, most: int, what: str) -> None:
    if not 1 <= k <= most:
        raise ConfigError(f"k is {k}; there are {most:,} {what}, so take 1 to that many.")


def _check_plain(model: Model, layer: int) -> None:
    if neurons_interact(model, layer):
        raise UnsupportedModelError(
            f"model {model.id!r} has a norm after MLP {layer}: what a neuron adds depends on all the others, so that "
            "its weights alone do not determine it. importance(...) holds that norm as it was in a run."
        )


def _token_id(model: Model, token: str | int) -> int:
    if isinstance(token, int):
        if not 0 <= token < model.spec.d_vocab:
            raise TokenError(f"token {token} does not exist; the vocabulary has 0 to {model.spec.d_vocab - 1}.")
        return token
    encoded = model.text.encode(token)
    own = [i for i, (start, end) in zip(encoded.ids, encoded.offsets, strict=True) if end > start]
    if len(own) != 1:
        pieces = list(model.text.decode(tuple(own)))
        raise TokenError(
            f"{token!r} is not one token for this tokenizer, but {pieces}. Mind the leading space, or give the token's "
            "number."
        )
    return own[0]
