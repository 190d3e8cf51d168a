"""The values of neurons over texts: of one text, token by token, and of the texts of a corpus where they are highest.

A corpus is streamed: memory grows with k and not with the corpus. Texts are read until a buffer is full, run in batches
of similar length, and only those that beat the k best so far are kept, with their values. A text's value is the largest
at any of its tokens; the token that begins the sequence has no text and does not count. Of texts that are the
same to the model only the first is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from circuitlab.data.encoded import Encoded
from circuitlab.data.text_values import TextValues, save_text_page, text_frame, text_page
from circuitlab.data.texts import encode_text, filled, shown_tokens
from circuitlab.errors import ConfigError
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.neurons.chosen import neurons_of, stage_of
from circuitlab.neurons.corpus import CorpusText, empty, read_corpus
from circuitlab.parts import Stage
from circuitlab.patching.runs.neuron_values import neuron_values
from circuitlab.predictions.streams import packs_by_length
from circuitlab.progress import Progress, callback
from circuitlab.result import named
from circuitlab.summary import Summary, plural, short

STAGES = {
    Stage.PRE: "before the activation function",
    Stage.MID: "after the activation function",
    Stage.POST: "as they go into the output projection",
}


@model_function
@torch.no_grad()
def activations(
    model: Model, text: str, layer: int, neurons: int | Sequence[int], stage: str | Stage = "post"
) -> TextValues:
    """The values of neurons at every token of a text.

    Args:
        model: A model with MLPs.
        text: The text; all of it must fit the context.
        layer: Layer of the neurons.
        neurons: One neuron or several, a series each.
        stage: "pre" (before the activation function), "mid" (after it) or "post" (what goes into the output
            projection: in SoLU models after one more norm, elsewhere the same as "mid").

    Returns:
        The values; a notebook cell displays them, `.save_html(path)` writes the page, `.to_frame()` gives the table.

    Raises:
        ConfigError: No such layer or neuron.
        TokenError: The text has no token, or more than fit the context.
        UnknownNameError: No such stage.
        UnsupportedModelError: The model has no MLPs, or does not show its pre-activations.
    """
    chosen, where = neurons_of(model, layer, neurons), stage_of(stage)
    encoded = encode_text(text, model.text, model.spec.n_ctx)
    tokens = torch.tensor([encoded.ids], device=model.device)
    values = neuron_values(model, tokens, layer, where, chosen)[0]
    which = f"neuron {chosen[0]}" if len(chosen) == 1 else f"{len(chosen)} neurons"
    return TextValues(
        title=f"{which[0].upper()}{which[1:]} of layer {layer} over a text",
        tokens=shown_tokens(text, encoded),
        series=tuple(map(str, chosen)),
        values=values.T.cpu().double().numpy(),
        note=f"Model {model.id}, values {STAGES[where]}. Each neuron has its own scale, symmetric about zero.",
        kind="neuron",
    )


BUFFER_TOKENS = 32_768  # read before they are run: enough for batches of similar length, a few megabytes
# Characters that one token is taken to have at most when a text is cut before it is tokenised.
_LONGEST_TOKEN = 64
# Tokens read of a text where the model has no longest prompt.
_WITHOUT_LIMIT = 2048


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Example(Summary):
    """One text at which a neuron is active.

    Attributes:
        neuron: The neuron.
        rank: 0 for the most active text.
        value: The neuron's largest value in the text.
        position: Of the token where it is that large, from 0, the beginning-of-sequence token counted.
        token: That token.
        text: The text, as far as the model read it.
        where: Where the text is from: `file.txt:12`, or its number in a list.
        tokens: All tokens.
        values: The neuron's value at each; NaN at a token without a text.
    """

    neuron: int
    rank: int
    value: float
    position: int
    token: str
    text: str
    where: str
    tokens: tuple[str, ...]
    values: Float[np.ndarray, " token"]

    def to_values(self) -> TextValues:
        """The neuron's values over the text, for a page.

        Returns:
            The values.
        """
        return TextValues(
            title=f"{self.rank + 1}. {self.value:.4g} at {self.token!r} ({self.where})",
            tokens=self.tokens,
            series=(str(self.neuron),),
            values=self.values[None],
            kind="neuron",
        )

    def _summary(self) -> str:
        return f"of neuron {self.neuron}: {self.value:.4g} at {self.token!r} in {short(self.text, 40)}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TopExamples(Summary):
    """The most active texts of each neuron.

    Attributes:
        model: Name of the model.
        layer: Layer of the neurons.
        stage: Where their values were read.
        max_tokens: How many tokens of each text were read, at most.
        n_texts: How many texts the corpus had.
        n_truncated: How many of them were longer.
        n_tokens: How many tokens were read.
        examples: Neuron by neuron, in the given order, the most active text first.
    """

    model: str
    layer: int
    stage: Stage
    max_tokens: int
    n_texts: int
    n_truncated: int
    n_tokens: int
    examples: tuple[Example, ...]

    def of(self, neuron: int) -> tuple[Example, ...]:
        """The examples of one neuron, the most active text first.

        Returns:
            The examples.
        """
        return tuple(one for one in self.examples if one.neuron == neuron)

    def to_frame(self) -> pd.DataFrame:
        """One row an example: neuron, rank, value, position, token, text, where.

        Returns:
            The table.
        """
        columns = ["neuron", "rank", "value", "position", "token", "text", "where"]
        return pd.DataFrame([named(one, *columns) for one in self.examples], columns=columns)

    def to_record(self) -> dict[str, Any]:
        """Everything but the values of single tokens as JSON can hold it.

        Returns:
            The record.
        """
        record = named(self, *(name for name in self.__dataclass_fields__ if name != "examples"))
        return {**record, "stage": self.stage.value, "examples": self.to_frame().to_dict("records")}

    def to_html(self) -> str:
        """A page of the texts coloured by the neuron that is chosen from a list.

        Returns:
            The page.
        """
        return text_page(self._texts, title=self._title)

    def save_html(self, path: str | Path, *, force: bool = False) -> Path:
        """Write `to_html` to a file.

        Returns:
            The file.

        Raises:
            OutputExistsError: The file exists, and `force` is not given.
        """
        return save_text_page(self._texts, path, title=self._title, force=force)

    def _repr_html_(self) -> str:
        return text_frame(self._texts, title=self._title)

    @property
    def _title(self) -> str:
        return f"Most active texts of neurons in layer {self.layer}"

    @property
    def _texts(self) -> list[TextValues]:
        note = (
            f"Model {self.model}, values {STAGES[self.stage]}. {self.n_texts:,} texts were read, the first "
            f"{self.max_tokens:,} tokens of each ({self.n_truncated:,} were longer)."
        )
        return [replace(one.to_values(), note=note) for one in self.examples]

    def _summary(self) -> str:
        count = plural(len(self.examples), "example")
        return f"of layer {self.layer}: {count} from {plural(self.n_texts, 'text')}, {plural(self.n_tokens, 'token')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        for one in self.examples[:8]:
            yield f"neuron {one.neuron}", f"{one.value:.4g} at {one.token!r} in {short(one.text, 50)}"


@model_function
@torch.no_grad()
def top_examples(
    model: Model,
    corpus: str | Path | Iterable[str],
    layer: int,
    neurons: int | Sequence[int],
    k: int = 10,
    *,
    stage: str | Stage = "post",
    max_tokens: int | None = None,
    separator: str = "\n",
    field: str = "text",
    progress: Progress | bool | None = None,
) -> TopExamples:
    """The k texts of a corpus at which each neuron is most active, by its largest value at any token.

    Args:
        model: A model with MLPs.
        corpus: A text file, a folder of `.txt` and `.jsonl` files, or texts (a list, a generator).
        layer: Layer of the neurons.
        neurons: One neuron or several, which share the passes.
        k: How many texts a neuron.
        stage: "pre", "mid" or "post", see `activations`.
        max_tokens: How many tokens of each text are read, the beginning-of-sequence token included; the context by
            default, or 2,048 where nothing limits it. Longer texts are cut there, and counted in `n_truncated`.
        separator: What separates the texts of a text file; each line is a text by default.
        field: Which entry of a JSON object is the text, in `.jsonl` files.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total) after every batch; the total is not known before the corpus ends.

    Returns:
        The examples. Of texts equally active the earlier comes first; the same corpus gives the same list.

    Raises:
        ConfigError: No such layer, neuron, file or folder; an empty corpus; k or max_tokens out of range.
        FormatError: A file is not UTF-8, or a `.jsonl` line is not a JSON object with the field.
        UnknownNameError: No such stage.
        UnsupportedModelError: The model has no MLPs, or does not show its pre-activations.
    """
    chosen, where = neurons_of(model, layer, neurons), stage_of(stage)
    limit = model.spec.n_ctx
    longest = (limit or _WITHOUT_LIMIT) if max_tokens is None else max_tokens
    if k < 1:
        raise ConfigError(f"k is {k}; ask for one example or more.")
    if longest < 1 or (limit is not None and longest > limit):
        rule = "it must be at least 1" if limit is None else f"the context holds 1 to {limit:,} tokens"
        raise ConfigError(f"max_tokens is {longest}; {rule}.")
    texts = read_corpus(corpus, separator=separator, field=field, most=_LONGEST_TOKEN * (longest + 1))
    best: list[_Best] = [{} for _ in chosen]
    n_texts = n_tokens = n_truncated = 0
    for buffer in _buffers(model, texts, longest):
        _offer(model, buffer, layer, where, chosen, best, n_texts, k)
        n_texts += len(buffer)
        n_tokens += sum(len(one.encoded.ids) for one in buffer)
        n_truncated += sum(one.cut for one in buffer)
        callback(progress)("texts", n_texts, n_texts)
    if not n_texts:
        raise ConfigError(empty(corpus))
    return TopExamples(
        model=model.id,
        layer=layer,
        stage=where,
        max_tokens=longest,
        n_texts=n_texts,
        n_truncated=n_truncated,
        n_tokens=n_tokens,
        examples=tuple(replace(example, rank=rank) for kept in best for rank, (_, example) in enumerate(kept.values())),
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """A text as far as it was read, with its tokens."""

    text: str
    where: str
    encoded: Encoded
    cut: bool


# The best texts of one neuron so far, by their tokens: the number of the text in the corpus, and the example.
_Best = dict[tuple[int, ...], tuple[int, Example]]


def _buffers(model: Model, texts: Iterable[CorpusText], longest: int) -> Iterator[list[_Read]]:
    """Texts with their tokens, as many at a time as a buffer holds."""
    buffer, held = list[_Read](), 0
    for source in texts:
        encoded, text = model.text.encode(source.text), source.text
        if cut := len(encoded.ids) > longest:
            encoded = Encoded(encoded.ids[:longest], encoded.offsets[:longest], encoded.tokens[:longest])
            text = text[: encoded.offsets[-1][1]]
        buffer.append(_Read(text, source.where, encoded, cut))
        held += len(encoded.ids)
        if held >= BUFFER_TOKENS:
            yield buffer
            buffer, held = [], 0
    if buffer:
        yield buffer


def _offer(
    model: Model,
    buffer: Sequence[_Read],
    layer: int,
    stage: Stage,
    neurons: Sequence[int],
    best: list[_Best],
    before: int,
    k: int,
) -> None:
    """Run the texts of a buffer and keep the k best of each neuron; of equal ones the first in the corpus."""
    counted = [i for i, read in enumerate(buffer) if any(_of_text(read.encoded))]
    for pack in packs_by_length(model, [len(buffer[i].encoded.ids) for i in counted]):
        members = sorted(counted[i] for i in pack)
        tokens, _ = filled([buffer[i].encoded.ids for i in members])
        values = neuron_values(model, tokens.to(model.device), layer, stage, neurons).cpu().double()
        for row, member in enumerate(members):
            counts = torch.tensor(_of_text(buffer[member].encoded))
            values[row, : len(counts)][~counts] = -torch.inf
            values[row, len(counts) :] = -torch.inf
        highest, at = values.max(1)
        for column, (neuron, kept) in enumerate(zip(neurons, best, strict=True)):
            bar = min(example.value for _, example in kept.values()) if len(kept) == k else -torch.inf
            for row, member in enumerate(members):
                read, ids, value = buffer[member], buffer[member].encoded.ids, float(highest[row, column])
                if value < bar or ids in kept:
                    continue
                shown, place = shown_tokens(read.text, read.encoded), int(at[row, column])
                activations = values[row, : len(ids), column]
                finite = activations.masked_fill(activations.isinf(), torch.nan).numpy()
                kept[ids] = before + member, Example(
                    neuron=neuron, rank=0, value=value, position=place, token=shown[place], text=read.text,
                    where=read.where, tokens=shown, values=finite,
                )  # fmt: skip
            best[column] = dict(sorted(kept.items(), key=lambda item: (-item[1][1].value, item[1][0]))[:k])


def _of_text(text: Encoded) -> list[bool]:
    """Which tokens count: those that have a text."""
    return [end > start for start, end in text.offsets]
