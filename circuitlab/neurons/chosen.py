"""Layers, neurons and texts that a caller names, checked before anything runs; texts are run together by length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuitlab.data.encoded import TextEncoder
from circuitlab.data.limits import check_ids, check_length, clipped
from circuitlab.errors import ConfigError, ModelError, UnknownNameError, UnsupportedModelError, WrongTypeError
from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.parts import Stage
from circuitlab.patching.runs.packing import Packer, rows_at_once, rows_per_pack
from circuitlab.resources import DEFAULT, Resources
from circuitlab.summary import Summary, plural, short


def check_mlps(model: Model) -> None:
    """Refuse a model without neurons.

    Raises:
        UnsupportedModelError: It is attention only.
    """
    if not model.spec.has_mlp:
        raise UnsupportedModelError(
            f"model {model.id!r} has no MLPs, so that it has no neurons. Take a model with MLPs, or analyse its heads."
        )


def layers_of(model: Model, layer: int | Sequence[int] | None) -> tuple[int, ...]:
    """The named layers; all of them for None.

    Returns:
        The numbers of the layers.

    Raises:
        ConfigError: No such layer.
        UnsupportedModelError: The model has no MLPs.
    """
    check_mlps(model)
    if layer is None:
        return tuple(range(model.spec.n_layers))
    found = (layer,) if isinstance(layer, int) else tuple(layer)
    wrong = [one for one in found if not 0 <= one < model.spec.n_layers]
    if wrong or not found:
        raise ConfigError(f"model {model.id!r} has layers 0 to {model.spec.n_layers - 1}; got {wrong or 'none'}.")
    return found


def neurons_of(model: Model, layer: int, neurons: int | Sequence[int]) -> tuple[int, ...]:
    """The named neurons, each once.

    Returns:
        The numbers of the neurons, in the given order.

    Raises:
        ConfigError: No such layer, no such neuron, or none at all.
        UnsupportedModelError: The model has no MLPs.
    """
    layers_of(model, layer)
    found = (neurons,) if isinstance(neurons, int) else tuple(dict.fromkeys(neurons))
    count = model.neuron_weight(layer).shape[0]
    wrong = [one for one in found if not 0 <= one < count]
    if wrong or not found:
        raise ConfigError(f"MLP {layer} of model {model.id!r} has neurons 0 to {count - 1}; got {wrong or 'none'}.")
    return found


def stage_of(stage: str | Stage) -> Stage:
    """The named stage.

    Returns:
        The stage.

    Raises:
        UnknownNameError: No such stage.
    """
    UnknownNameError.check("stage", getattr(stage, "value", stage), [one.value for one in Stage])
    return Stage(stage)


Prompt = str | Int[Tensor, " _"]  # of any length: those of a list may differ


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Tokens(Summary):
    """A prompt as a model reads it.

    Attributes:
        ids: Token ids, a beginning-of-sequence token included where the model expects one.
        words: Each token as text; the ids themselves where the model has no tokenizer.
        text: The tokens' text, without the special one.
        n_special: How many tokens in front are no text: 1 with a beginning-of-sequence token, else 0.
    """

    ids: tuple[int, ...]
    words: tuple[str, ...]
    text: str
    n_special: int

    @classmethod
    def of(cls, model: Model, ids: Sequence[int], n_special: int) -> Tokens:
        """Token ids with their texts.

        Returns:
            The tokens.
        """
        ids = tuple(ids)
        words, tokenizer = words_of(model, ids), _tokenizer(model)
        text = "".join(words[n_special:]) if tokenizer is None else tokenizer.joined(ids[n_special:])
        return cls(ids=ids, words=words, text=text, n_special=n_special)

    def __len__(self) -> int:
        return len(self.ids)

    def tensor(self, device: torch.device) -> Int[Tensor, "1 seq"]:
        """As a batch of one.

        Returns:
            Token ids `[1, seq]`.
        """
        return torch.tensor([self.ids], device=device)

    def ids_without(self, position: int) -> tuple[int, ...]:
        """The ids without one token; nothing is tokenised again.

        Returns:
            The other ids, in their order.
        """
        assert position >= self.n_special, "the beginning-of-sequence token is no text"
        return self.ids[:position] + self.ids[position + 1 :]

    def _summary(self) -> str:
        return f"{short(self.text, 50)}: {plural(len(self.words), 'token')}"


def read_prompt(model: Model, prompt: Prompt, what: str = "the text") -> Tokens:
    """A text, or token ids, as the model reads it.

    Args:
        model: Its tokenizer reads the text and puts a beginning-of-sequence token in front if the model expects one.
        prompt: A text, or token ids as they are to be run.
        what: What the message calls it.

    Returns:
        Its tokens.

    Raises:
        ConfigError: There is nothing in it, or something else than whole numbers.
        TokenError: It is longer than the context, or an id is not in the vocabulary.
        ModelError: It is a text and the model has no tokenizer.
    """
    if isinstance(prompt, str):
        found = _from_ids(model, model.text.encode(prompt).ids, what)
    else:
        found = _from_ids(model, _whole(prompt, what), what)
    if len(found) == found.n_special:
        raise ConfigError(f"{what} is empty: {prompt!r}. Give at least one word.")
    check_length(len(found), model.spec.n_ctx, f"{what}, {clipped(found.text)},")
    return found


def read_prompts(model: Model, prompts: Sequence[Prompt]) -> list[Tokens]:
    """Several of them.

    Returns:
        Tokens of each, in the given order.

    Raises:
        ConfigError: The list is empty, or one of them is; the message names it.
        TokenError: One of them cannot be read.
    """
    if isinstance(prompts, str):
        raise ConfigError(f"a list of texts is needed, got the single text {prompts!r}. Put it in brackets.")
    if len(prompts) == 0:
        raise ConfigError("the list of texts is empty. Give at least one.")
    return [read_prompt(model, prompt, f"text {number}") for number, prompt in enumerate(prompts)]


def front_of(model: Model) -> tuple[int, ...]:
    """The tokens that the model expects in front of every text; none without a tokenizer.

    Returns:
        Their ids.
    """
    return () if _tokenizer(model) is None else model.bos.ids


def words_of(model: Model, ids: Sequence[int]) -> tuple[str, ...]:
    """Tokens as text, or as their numbers where the model has no tokenizer.

    Returns:
        One text a token.
    """
    tokenizer = _tokenizer(model)
    return tuple(f"<{i}>" for i in ids) if tokenizer is None else tokenizer.decode(tuple(ids))


def same_when_typed(model: Model, tokens: Tokens) -> bool | None:
    """Whether the tokens' text, typed as it is, gives these same tokens; None without a tokenizer.

    Returns:
        Whether it is, or None.
    """
    tokenizer = _tokenizer(model)
    return None if tokenizer is None else tokenizer.encode(tokens.text).ids == tokens.ids


def run_by_length(
    model: Model,
    prompts: Sequence[Tokens],
    run: Callable[[list[int], Int[Tensor, "row seq"], BlockArguments], None],
    resources: Resources = DEFAULT,
    *,
    rows_each: int = 1,
    extra_streams: int = 0,
) -> None:
    """Run prompts of one length together, without padding, as many at a time as memory holds.

    Args:
        model: The model.
        prompts: The prompts.
        run: Called with the numbers of some prompts of one length, their ids and what blocks are called with; again
            with fewer of them where memory ran out.
        resources: Bytes that a run may take.
        rows_each: Rows that `run` runs side by side for each prompt.
        extra_streams: Tensors of the stream's size that stay alive for each prompt.

    Raises:
        ConfigError: The budget does not hold a single prompt.
    """
    by_length, packer = defaultdict[int, list[int]](list), Packer()
    for number, prompt in enumerate(prompts):
        by_length[len(prompt)].append(number)
    for n_tokens, numbers in sorted(by_length.items()):
        ids = torch.tensor([prompts[i].ids for i in numbers], device=model.device)
        arguments = model.block_arguments(ids[:1])
        size = min(rows_at_once(model, n_tokens, resources), rows_per_pack(model, n_tokens, resources, extra_streams))

        def run_part(part: slice, numbers: list[int] = numbers, ids: Tensor = ids, arguments: Any = arguments) -> None:
            run(numbers[part], ids[part], arguments)

        packer.run(len(ids), max(1, size // rows_each), run_part)


def check_count(name: str, value: int, least: int = 1) -> int:
    """A number of things that is large enough.

    Returns:
        The number.

    Raises:
        ConfigError: It is not.
    """
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}.")
    return value


def _tokenizer(model: Model) -> TextEncoder | None:
    try:
        return model.text
    except ModelError:
        return None


def _whole(ids: Any, what: str) -> tuple[int, ...]:
    found = ids.tolist() if isinstance(ids, Tensor) else ids
    if not isinstance(found, Iterable):
        raise WrongTypeError(f"{what} must be a str or a row of token ids; got {type(ids).__name__}.")
    row = tuple(found)
    wrong = next((i for i in row if isinstance(i, bool) or not isinstance(i, Integral)), None)
    if wrong is not None:
        raise WrongTypeError(f"{what} must be a str or a row of token ids; got one with {type(wrong).__name__} in it.")
    return tuple(int(i) for i in row)


def _from_ids(model: Model, ids: tuple[int, ...], what: str) -> Tokens:
    check_ids(ids, model.spec, what)
    front = front_of(model)
    special = len(list(takewhile(lambda i: i in front, ids[: len(front)])))
    return Tokens.of(model, ids, special)
