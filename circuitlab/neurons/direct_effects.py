"""The direct effect of each neuron on a prediction: neuron by prompt, as a share of what all neurons add.

At the last token of a prompt a neuron with value a (what goes into the output projection: after a norm inside the MLP,
where there is one) adds a * w to the stream, w its row of W_out. The final norm is linear once its scale s is held at
what it was in the run: gain * (x - mean(x)) / s, without the mean for RMS norms. So the neuron adds

    effect = a * (gain * (w - mean(w)) / s) . W_U[:, token]

to the token's logit, in logits before a softcap. Its share is its effect over the sum of all neurons' effects on that
prompt. The scale s is the same for all of them and cancels in the share; gain and centring do not. On weights with the
norm folded in and centred, they are in W_U and W_out already, and the share is that of a * (W_out W_U)[neuron, token].
With a norm after the MLP (Gemma 2) its scale is held too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.texts import answer_ids, as_texts, encode_text, filled
from circuitlab.drawing import draw
from circuitlab.errors import ConfigError
from circuitlab.models.modes import model_function
from circuitlab.models.norms import frozen_norm
from circuitlab.models.protocol import Model
from circuitlab.models.steps import mlp_reads
from circuitlab.neurons.chosen import layers_of
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
        """Rows of the neurons with the largest average share, the largest first; all by default."""
        return np.argsort(-self.average, kind="stable")[:k]

    def to_frame(self, k: int | None = None, *, values: Literal["share", "effect"] = "share") -> pd.DataFrame:
        """One row a neuron, sorted by its average share: layer, neuron, one column a prompt, average.

        Args:
            k: How many neurons; all by default.
            values: Shares, or effects in logits and their average.
        """
        chosen = self.top(k)
        shown = (self.shares if values == "share" else self.effects)[chosen]
        table = {"layer": self.layers[chosen], "neuron": self.neurons[chosen]}
        columns = dict(zip(self.columns, shown.T, strict=True))
        return pd.DataFrame({**table, **columns, AVERAGE: shown.mean(1)})

    @property
    def columns(self) -> tuple[str, ...]:
        """A name for each prompt's column: the prompt, numbered where it stands twice."""
        counts = {prompt: self.prompts.count(prompt) for prompt in self.prompts}
        return tuple(
            prompt if counts[prompt] == 1 else f"{prompt} [{number}]" for number, prompt in enumerate(self.prompts)
        )

    def to_record(self, k: int = 10) -> dict[str, Any]:
        """The first rows as JSON can hold them."""
        rows = [
            {
                "layer": int(self.layers[i]),
                "neuron": int(self.neurons[i]),
                "shares": self.shares[i].tolist(),
                "effects": self.effects[i].tolist(),
                AVERAGE: float(self.average[i]),
            }
            for i in self.top(k)
        ]
        given = {"model": self.model, "prompts": list(self.prompts), "answers": list(self.answers)}
        return {**given, "totals": self.totals.tolist(), "neurons": rows}

    def plot(self, k: int = 10) -> Any:
        """A heatmap as a matplotlib `Figure`: the first k neurons by prompt, and their average."""
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
