"""What a set of neurons does for the prediction of a text: hold them at a value, and see each token's log-probability.

Texts of one length are run together. The blocks before the first changed layer are run once; after it the clean
and the ablated run continue side by side. Logits are made a few tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.text_values import TextValues, save_text_page
from circuitlab.errors import ConfigError
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.models.steps import half_block, mlp_stream
from circuitlab.neurons.chosen import Prompt, Tokens, neurons_of, read_prompts, run_by_length, words_of
from circuitlab.parts import Stage
from circuitlab.predictions.streams import largest_changes, log_probs_of
from circuitlab.resources import Resources
from circuitlab.result import named, plain
from circuitlab.summary import Summary, plural

Held = Mapping[int, tuple[Sequence[int], Float[Tensor, " _"]]]
"""Neurons by layer, and the values that they are held at: one for all, or one each."""
Sets = Mapping[int, Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TextEffect(Summary):
    """What the ablation does to one text. All changes are with the neurons held minus without, in nats.

    Attributes:
        tokens: The text.
        log_prob: Log-probability of each token given those before it, of the text as it is; the first has none (NaN).
        change: How much it changes; below 0 where the neurons helped to predict the token.
        most_changed: At each token, the token of the vocabulary whose log-probability as the next one changes most.
        most_changed_word: The same as text.
        most_change: By how much, with its sign.
    """

    tokens: Tokens
    log_prob: Float[np.ndarray, " seq"]
    change: Float[np.ndarray, " seq"]
    most_changed: Int[np.ndarray, " seq"]
    most_changed_word: tuple[str, ...]
    most_change: Float[np.ndarray, " seq"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class AblationEffect(Summary):
    """What holding a set of neurons at a value does to texts.

    Attributes:
        neurons: The set, by layer.
        value: What they were held at: "zero", "mean" or a number.
        stage: Where on their way: "pre", "mid" or "post".
        texts: The effect on each text, in the order given.
    """

    neurons: dict[int, tuple[int, ...]]
    value: str | float
    stage: str
    texts: tuple[TextEffect, ...]

    @property
    def mean_change(self) -> float:
        """Mean change of the log-probability of the true next token, over all tokens of all texts, in nats."""
        return float(np.nanmean(np.concatenate([text.change for text in self.texts])))

    def to_frame(self) -> pd.DataFrame:
        """One row a token: text, position, token, log_prob, change, most_changed, most_change.

        Returns:
            The table.
        """
        columns = (
            {
                "text": number,
                "position": np.arange(len(text.tokens)),
                "token": list(text.tokens.words),
                **named(text, "log_prob", "change"),
                "most_changed": list(text.most_changed_word),
                "most_change": text.most_change,
            }
            for number, text in enumerate(self.texts)
        )
        return pd.concat(map(pd.DataFrame, columns), ignore_index=True)

    def coloured(self) -> list[TextValues]:
        """Every text coloured by the change at its true tokens and by the largest one; see `text_page` for a page.

        Returns:
            One a text.
        """
        return [
            TextValues(
                title=f"Text {number}",
                tokens=text.tokens.words,
                series=("true token", "token changed most"),
                values=np.stack([text.change, text.most_change]),
                unit="nats",
                details=tuple(f"the next token changed most: {word!r}" for word in text.most_changed_word),
                note=(
                    "True token: change of the log-probability of this token when the neurons are held, minus without; "
                    "below 0 they helped to predict it. Token changed most: the change of whichever next token, after "
                    "this one, changes most."
                ),
            )
            for number, text in enumerate(self.texts)
        ]

    def save_html(self, path: str | Path, *, force: bool = False) -> Path:
        """Write all coloured texts as one page.

        Returns:
            The file.

        Raises:
            OutputExistsError: The file exists, and `force` is not given.
        """
        return save_text_page(self.coloured(), path, title="Log-probabilities with neurons held", force=force)

    def to_record(self) -> dict[str, Any]:
        """The arguments and the tables, for JSON.

        Returns:
            The record.
        """
        return {
            "neurons": {layer: list(chosen) for layer, chosen in self.neurons.items()},
            **named(self, "value", "stage", "mean_change"),
            "tokens": plain(self.to_frame()),
        }

    def _summary(self) -> str:
        count, texts = plural(sum(map(len, self.neurons.values())), "neuron"), plural(len(self.texts), "text")
        return f"of {count} on {texts}: mean change {self.mean_change:.4g} nats"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "neurons", self.neurons
        yield "value", f"{self.value} ({self.stage})"
        yield "first text", self.texts[0].tokens if self.texts else "none"


@model_function
def ablation_effect(
    model: Model,
    texts: Sequence[Prompt],
    neurons: Sets | Sequence[int],
    *,
    layer: int | None = None,
    value: str | float = "zero",
    stage: Stage = Stage.POST,
    reference: Sequence[Prompt] | None = None,
    budget: int | None = None,
) -> AblationEffect:
    """Hold neurons at a value at every token, and compare the log-probabilities of next tokens.

    Args:
        model: The model.
        texts: Texts, or token ids.
        neurons: By layer, such as `{0: [3, 17], 2: [5]}`, or those of the one `layer`.
        layer: Where `neurons` are the neurons of one layer.
        value: "zero", a number, or "mean": the mean of each neuron over all tokens of `reference`, the
            beginning-of-sequence token left out.
        stage: Where on their way neurons are held; by default what goes into the MLP's output projection.
        reference: Texts for the mean; `texts` themselves by default.
        budget: Bytes that a run may take; by default a share of what is free.

    Returns:
        The effect on each text.

    Raises:
        ConfigError: A layer or neuron is not there, the list or a text is empty, a text is too long, or the value is
            none of these.
    """
    chosen = _by_layer(model, neurons, layer)
    if not (value in ("zero", "mean") if isinstance(value, str) else math.isfinite(value)):
        raise ConfigError(f"value is {value!r}; neurons are held at 'zero', at their 'mean', or at a number.")
    if reference is not None and value != "mean":
        raise ConfigError(f"reference= is for value='mean'; value is {value!r}. Leave one of them out.")
    prompts = read_prompts(model, texts)
    resources = Resources(budget)
    over = prompts if reference is None else read_prompts(model, reference)
    if value == "mean":
        values = _means(model, over, chosen, stage, resources)
    else:
        number = 0.0 if value == "zero" else float(value)
        values = dict.fromkeys(chosen, torch.tensor([number], dtype=model.dtype, device=model.device))
    held = {layer: (numbers, values[layer]) for layer, numbers in chosen.items()}
    found: dict[int, TextEffect] = {}

    @torch.no_grad()
    def run(numbers: list[int], ids: Tensor, arguments: BlockArguments) -> None:
        clean, ablated = final_streams(model, arguments, ids, held, stage)
        for number, text_ids, before, after in zip(numbers, ids, clean, ablated, strict=True):
            unchanged, changed = (
                log_probs_of(model, x[:-1], text_ids[1:]).double().cpu().numpy() for x in (before, after)
            )
            most, by = (each.cpu().numpy() for each in largest_changes(model, before, after))
            found[number] = TextEffect(
                tokens=prompts[number],
                log_prob=np.append(np.nan, unchanged),
                change=np.append(np.nan, changed - unchanged),
                most_changed=most,
                most_changed_word=words_of(model, tuple(int(i) for i in most)),
                most_change=by.astype(np.float64),
            )

    run_by_length(model, prompts, run, resources, rows_each=2)
    return AblationEffect(
        neurons=chosen, value=value, stage=stage.value, texts=tuple(found[i] for i in range(len(prompts)))
    )


def final_streams(
    model: Model, arguments: BlockArguments, ids: Int[Tensor, "row seq"], held: Held, stage: Stage = Stage.POST
) -> tuple[Float[Tensor, "row seq d_model"], Float[Tensor, "row seq d_model"]]:
    """The final streams of texts as they are, and with neurons held.

    Args:
        model: The model.
        arguments: What blocks are called with at this length.
        ids: Texts.
        held: By layer, the neurons and the values that they are held at.
        stage: Where they are held.

    Returns:
        Streams after the last block: of the clean run, and of the ablated run.
    """
    first, end = min(held), max(held) + 1
    middle, read = half_block(model, first, model.run_blocks(model.embedding(ids), 0, arguments, first), arguments)
    hidden = model.mlp_hidden(first, read, stage)
    # Both in the same steps, so that rounding is the same where nothing changes.
    clean = middle + model.mlp_from_hidden(first, hidden, stage)
    ablated = middle + model.mlp_from_hidden(first, _with(hidden, *held[first]), stage)
    clean = model.run_blocks(clean, first + 1, arguments, end)
    for layer in range(first + 1, end):
        if layer not in held:
            ablated = model.run_blocks(ablated, layer, arguments, layer + 1)
            continue
        middle, read = half_block(model, layer, ablated, arguments)
        hidden = model.mlp_hidden(layer, read, stage)
        ablated = middle + model.mlp_from_hidden(layer, _with(hidden, *held[layer]), stage)
    both = model.run_blocks(torch.cat([clean, ablated]), end, arguments)
    return both[: len(ids)], both[len(ids) :]


def _with(
    hidden: Float[Tensor, "row seq neuron"], neurons: Sequence[int], values: Float[Tensor, " _"]
) -> Float[Tensor, "row seq neuron"]:
    new = hidden.clone()
    new[..., list(neurons)] = values
    return new


def _means(
    model: Model, prompts: Sequence[Tokens], chosen: Mapping[int, tuple[int, ...]], stage: Stage, resources: Resources
) -> dict[int, Float[Tensor, " neuron"]]:
    """Each neuron's mean over all tokens of some texts but the beginning-of-sequence ones."""
    sums = {layer: torch.zeros(len(c), dtype=torch.float64, device=model.device) for layer, c in chosen.items()}

    @torch.no_grad()
    def run(numbers: list[int], ids: Tensor, arguments: BlockArguments) -> None:
        stream, at = model.embedding(ids), 0
        part_sums = {}
        for layer, neurons in chosen.items():
            stream, at = model.run_blocks(stream, at, arguments, layer), layer
            values = model.mlp_hidden(layer, mlp_stream(model, layer, stream, arguments), stage)
            part_sums[layer] = values[:, prompts[numbers[0]].n_special :, list(neurons)].double().sum((0, 1))
        for layer, total in part_sums.items():  # at the end: where memory runs out, the run is repeated in parts
            sums[layer] += total

    run_by_length(model, prompts, run, resources)
    count = sum(len(prompt) - prompt.n_special for prompt in prompts)
    return {layer: (total / count).to(model.dtype) for layer, total in sums.items()}


def _by_layer(model: Model, neurons: Sets | Sequence[int], layer: int | None) -> dict[int, tuple[int, ...]]:
    """Sets of neurons by layer, lowest layer first, each neuron once."""
    if not isinstance(neurons, Mapping):
        if layer is None:
            raise ConfigError("of which layer? Give layer=, or neurons by layer such as {0: [3, 17]}.")
        neurons = {layer: neurons}
    elif layer is not None:
        raise ConfigError(f"neurons are given by layer already, and layer={layer} besides. Leave layer out.")
    if not neurons:
        raise ConfigError("no neurons are given. Name a layer and at least one neuron, such as {0: [3, 17]}.")
    return {at: neurons_of(model, at, neurons[at]) for at in sorted(neurons)}
