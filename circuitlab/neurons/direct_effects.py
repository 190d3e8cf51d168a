"""Direct effects of neurons on tokens: on the prediction of a prompt, and from the weights alone (W_out W_U).

At the last token of a prompt a neuron with value a (what goes into the output projection: after a norm inside the MLP,
where there is one) adds a * w to the stream, w its row of W_out. The final norm is linear once its scale s is held at
what it was in the run: gain * (x - mean(x)) / s, without the mean for RMS norms. So the neuron adds

    effect = a * (gain * (w - mean(w)) / s) . W_U[:, token]

to the token's logit, in logits before a softcap. Its share is its effect over the sum of all neurons' effects on that
prompt. The scale s is the same for all of them and cancels in the share; gain and centring do not. On weights with the
norm folded in and centred, they are in W_U and W_out already, and the share is that of a * (W_out W_U)[neuron, token].
With a norm after the MLP (Gemma 2) its scale is held too.

From the weights alone, the table of neurons and tokens is the effect at value 1 times the scale,
(gain * (w - mean(w))) . W_U[:, token]: W_out W_U itself on folded and centred weights, and folding does not change it.
With `final_norm=False` gain and centring are left out: the bare product. The whole table is never computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.texts import answer_ids, as_texts, encode_text, filled
from circuitlab.drawing import draw
from circuitlab.errors import ConfigError, TokenError, UnsupportedModelError
from circuitlab.models.modes import model_function
from circuitlab.models.norms import FrozenNorm, frozen_norm
from circuitlab.models.protocol import Model
from circuitlab.models.steps import mlp_reads, neurons_interact
from circuitlab.neurons.chosen import layers_of, neurons_of
from circuitlab.predictions.streams import packs_by_length
from circuitlab.summary import Summary, largest, plural, short

AVERAGE = "average"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Importance(Summary):
    """Direct effects of neurons on the next token of several prompts.

    Attributes:
        model: Name of the model.
        prompts: The prompts.
        answers: The token of each prompt whose logit is meant.
        answer_ids: Their numbers in the vocabulary.
        layers: Layer of each neuron.
        neurons: Number of each neuron in its layer.
        effects: What each neuron adds to the token's logit at the last position, the final norm's scale held: in
            logits, positive where it promotes the token.
    """

    model: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    answer_ids: tuple[int, ...]
    layers: Int[np.ndarray, " neuron"]
    neurons: Int[np.ndarray, " neuron"]
    effects: Float[np.ndarray, "neuron text"]

    @property
    def totals(self) -> Float[np.ndarray, " text"]:
        """What all neurons of the table add together, in logits. Where it is below zero, a positive share hinders."""
        return self.effects.sum(0)

    @property
    def shares(self) -> Float[np.ndarray, "neuron text"]:
        """Each neuron's effect over `totals`: the shares of a prompt sum to 1, single ones may be negative."""
        return self.effects / self.totals

    @property
    def average(self) -> Float[np.ndarray, " neuron"]:
        """Mean of a neuron's shares over the prompts."""
        return self.shares.mean(1)

    def top(self, k: int | None = None) -> Int[np.ndarray, " row"]:
        """Rows of the neurons with the largest average share, the largest first; all by default.

        Returns:
            Numbers of rows of `to_frame` before it is sorted.
        """
        return np.argsort(-self.average, kind="stable")[:k]

    def to_frame(self, k: int | None = None, *, values: Literal["share", "effect"] = "share") -> pd.DataFrame:
        """One row a neuron, sorted by its average share: layer, neuron, one column a prompt, average.

        Args:
            k: How many neurons; all by default.
            values: Shares, or effects in logits and their average.

        Returns:
            The table.
        """
        chosen = self.top(k)
        shown = (self.shares if values == "share" else self.effects)[chosen]
        table = {"layer": self.layers[chosen], "neuron": self.neurons[chosen]}
        columns = dict(zip(self.columns, shown.T, strict=True))
        return pd.DataFrame({**table, **columns, AVERAGE: shown.mean(1)})

    @property
    def columns(self) -> tuple[str, ...]:
        """A name for each prompt's column: the prompt, numbered where it occurs twice."""
        counts = {prompt: self.prompts.count(prompt) for prompt in self.prompts}
        return tuple(
            prompt if counts[prompt] == 1 else f"{prompt} [{number}]" for number, prompt in enumerate(self.prompts)
        )

    def to_record(self, k: int = 10) -> dict[str, Any]:
        """The first rows as JSON can hold them.

        Returns:
            The record.
        """
        columns = {"layer": self.layers, "neuron": self.neurons, "shares": self.shares, "effects": self.effects}
        columns[AVERAGE] = self.average
        rows = [{name: values[i].tolist() for name, values in columns.items()} for i in self.top(k)]
        given = {"model": self.model, "prompts": list(self.prompts), "answers": list(self.answers)}
        return {**given, "totals": self.totals.tolist(), "neurons": rows}

    def plot(self, k: int = 10) -> Any:
        """A heatmap as a matplotlib `Figure`: the first k neurons by prompt, and their average.

        Returns:
            The figure.
        """
        return draw(self, k=k)

    def _summary(self) -> str:
        count, prompts = plural(len(self.neurons), "neuron"), plural(len(self.prompts), "prompt")
        return f"of {count} of {short(self.model, 30)[1:-1]} for {prompts}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "first prompt", f"{short(self.prompts[0], 50)} -> {self.answers[0]!r}"
        top = self.top(5)
        yield from largest(
            self.average[top], lambda row: f"L{self.layers[top[row]]}N{self.neurons[top[row]]}", label="largest share"
        )


@model_function
@torch.no_grad()
def importance(
    model: Model,
    prompts: str | Sequence[str],
    layer: int | Sequence[int] | None = None,
    answers: Sequence[str] | None = None,
) -> Importance:
    """Direct effect of every neuron on the next token of each prompt, and its share of what all neurons add.

    Args:
        model: A model with MLPs.
        prompts: Texts; the effect is on the token that follows each.
        layer: One layer or several, over whose neurons the shares are taken; all layers by default.
        answers: The token meant for each prompt, with its leading space; by default what the model finds most likely.

    Returns:
        Effects of all neurons of these layers; `.to_frame()` is the sorted table.

    Raises:
        ConfigError: No such layer, no prompt, or not as many answers as prompts.
        TokenError: A prompt does not fit the context, or an answer is not one token.
        UnsupportedModelError: The model has no MLPs, or its final norm is of another kind.
    """
    layers, texts = layers_of(model, layer), as_texts(prompts)
    if answers is not None and (isinstance(answers, str) or len(answers) != len(texts)):
        count = 1 if isinstance(answers, str) else len(answers)
        raise ConfigError(f"{len(texts)} prompts need as many answers; got {count}. Give one word a prompt.")
    encoded = [encode_text(one, model.text, model.spec.n_ctx) for one in texts]
    given = None
    if answers is not None:
        given = [answer_ids(t, (w,), e, model.text)[0] for t, w, e in zip(texts, answers, encoded, strict=True)]
    ids = [one.ids for one in encoded]
    widths = [model.neuron_weight(one).shape[0] for one in layers]
    found, words = np.zeros((sum(widths), len(ids))), [0] * len(ids)
    for members in packs_by_length(model, list(map(len, ids)), extra_streams=10 * model.spec.n_layers):
        meant = None if given is None else [given[i] for i in members]
        effects, chosen = _effects(model, [ids[i] for i in members], layers, meant)
        found[:, members] = effects.T.cpu().double().numpy()
        for i, word in zip(members, chosen, strict=True):
            words[i] = word
    return Importance(
        model=model.id,
        prompts=texts,
        answers=model.text.decode(tuple(words)),
        answer_ids=tuple(words),
        layers=np.repeat(layers, widths),
        neurons=np.concatenate([np.arange(width) for width in widths]),
        effects=found,
    )


def _effects(
    model: Model, ids: Sequence[Sequence[int]], layers: Sequence[int], given: Sequence[int] | None
) -> tuple[Float[Tensor, "text neuron"], list[int]]:
    """Effects of the layers' neurons, one layer after the other, and the token that each is on."""
    tokens, lengths = filled(ids)
    run = model.record(tokens.to(model.device))
    rows, last = torch.arange(len(ids)), lengths - 1
    final = run.resid_final[rows, last]
    words = model.logits(final).argmax(1) if given is None else torch.tensor(list(given), device=final.device)
    columns, _ = model.unembedding(words)
    direction = frozen_norm(model.final_norm, final, model.id).back(columns.T)
    found = []
    for layer in layers:
        stream = run.resid_pre[layer][rows, last]
        read = mlp_reads(model.spec, stream, stream + run.attn_out[layer][rows, last])
        found.append(model.neurons_along(layer, model.mlp_hidden(layer, read), direction)[0])
    return torch.cat(found, 1), words.tolist()


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
        """One row an entry: layer, neuron, token, id, value.

        Returns:
            The table.
        """
        return pd.DataFrame([asdict(one) for one in self.entries], columns=list(WeightEntry.__dataclass_fields__))

    def to_record(self) -> list[dict[str, Any]]:
        """The entries as JSON can hold them.

        Returns:
            One record an entry.
        """
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
        UnsupportedModelError: The model has no MLPs, or norms after them, which depend on all neurons.
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
        UnsupportedModelError: The model has no MLPs, or norms after them, which depend on all neurons.
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
    """The k largest (or lowest) entries; equals in their order. `neurons` and `tokens` are of each entry, or of all."""
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
    ids = [i for i, (start, end) in zip(encoded.ids, encoded.offsets, strict=True) if end > start]
    if len(ids) != 1:
        pieces = list(model.text.decode(tuple(ids)))
        raise TokenError(
            f"{token!r} is not one token for this tokenizer, but {pieces}. Mind the leading space, or give its number."
        )
    return ids[0]
