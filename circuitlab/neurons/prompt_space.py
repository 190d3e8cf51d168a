"""The prompts that a search may run: fixed tokens, free places, and the words that may be there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from circuitlab.data.limits import check_length
from circuitlab.errors import ConfigError, ModelError, TokenError, UnsupportedModelError
from circuitlab.models.protocol import Model
from circuitlab.neurons.chosen import front_of
from circuitlab.patching.runs.baseline import LOGITS_AT_ONCE
from circuitlab.patching.runs.packing import packs


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A prompt of one length.

    Attributes:
        ids: Its tokens; 0 at the free places.
        free: The free places, a beginning-of-sequence token counted.
        n_special: How many tokens in front are no text.
    """

    ids: tuple[int, ...]
    free: tuple[int, ...]
    n_special: int

    def filled(self, words: Int[Tensor, "row _"]) -> Int[Tensor, "row seq"]:
        """Prompts with tokens in the free places.

        Returns:
            Token ids `[row, seq]`.
        """
        rows = torch.tensor([self.ids], device=words.device).repeat(len(words), 1)
        rows[:, list(self.free)] = words
        return rows


def template_of(model: Model, n_tokens: int, fixed: Mapping[int, str]) -> Template:
    """The template of prompts of `n_tokens` tokens with some words fixed.

    Args:
        model: Its tokenizer makes tokens of the words, and puts the beginning-of-sequence token in front.
        n_tokens: Tokens, fixed ones counted and a beginning-of-sequence token not.
        fixed: Word by position; negative positions count from the end.

    Returns:
        The fixed tokens and the free positions.

    Raises:
        ConfigError: A position is outside of the prompt, or no place is free.
        TokenError: The prompt is longer than the context, or a word is not one token.
    """
    front = front_of(model)
    check_length(n_tokens, model.spec.n_ctx, f"a prompt of n_tokens={n_tokens}", more=len(front))
    ids = [*front, *[0] * n_tokens]
    taken: dict[int, str] = {}
    for position, word in fixed.items():
        if not -n_tokens <= position < n_tokens:
            raise ConfigError(f"a word is fixed at {position}; a prompt of {n_tokens} tokens has 0 to {n_tokens - 1}.")
        at = len(front) + position % n_tokens
        if at in taken:
            raise ConfigError(f"{taken[at]!r} and {word!r} are fixed at the same place. Leave one of them out.")
        taken[at] = word
        ids[at] = _single_token(model, word, front)
    free = tuple(at for at in range(len(front), len(ids)) if at not in taken)
    if not free:
        raise ConfigError(f"all {n_tokens} tokens are fixed, so that there is nothing to search for. Raise n_tokens.")
    return Template(ids=tuple(ids), free=free, n_special=len(front))


def _single_token(model: Model, word: str, front: tuple[int, ...]) -> int:
    coded = model.text.encode(word)
    ids, pieces = coded.ids[len(front) :], coded.tokens[len(front) :]
    if len(ids) != 1:
        raise TokenError(
            f"the fixed word {word!r} is {len(ids)} tokens for model {model.id!r}: {list(pieces)}. Fix single tokens "
            "(mind the leading space), or its tokens at neighbouring positions."
        )
    return ids[0]


PROBED = 16
TOLERATED = 0.02  # of the differences between tokens: half precision rounds an embedding by up to 0.4 %


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocabulary:
    """Tokens that have a text, with their embeddings.

    Attributes:
        ids: The tokens, special ones left out.
        vectors: Their embeddings, without any position's.
        directions: The same at length 1.
    """

    ids: Int[Tensor, " word"]
    vectors: Float[Tensor, "word d_model"]
    directions: Float[Tensor, "word d_model"]

    @classmethod
    def of(cls, model: Model) -> Vocabulary:
        """All tokens of a model but the special ones and those that its tokenizer does not have.

        Returns:
            The tokens with their embeddings.
        """
        try:
            special, known = model.text.special_ids, model.text.n_tokens
        except ModelError:
            special, known = frozenset[int](), model.spec.d_vocab
        weight = model.embedding_matrix
        usable = [i for i in range(min(known, len(weight))) if i not in special]
        ids = torch.tensor(usable, device=model.device)
        vectors = weight[ids].float() * _factor(model, ids, weight)
        return cls(ids=ids, vectors=vectors, directions=functional.normalize(vectors, dim=-1))

    def nearest(self, vectors: Float[Tensor, "*row d_model"]) -> Int[Tensor, "*row"]:
        """Places in `ids` of the tokens with the largest cosine to each vector.

        Returns:
            One place a vector.
        """
        flat = vectors.flatten(0, -2)
        size = max(1, LOGITS_AT_ONCE // len(self.ids))
        found = [(flat[part] @ self.directions.T).argmax(1) for part in packs(len(flat), size)]
        return torch.cat(found).view(vectors.shape[:-1])

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Int[Tensor, " *row"]:
        """Places in `ids`, every token as likely; drawn on the CPU so that they are the same everywhere.

        Returns:
            The places, of the shape that was asked for.
        """
        return torch.randint(len(self.ids), shape, generator=generator).to(self.ids.device)


def _factor(model: Model, ids: Int[Tensor, " word"], weight: Float[Tensor, "_ d_model"]) -> float:
    """What the model multiplies its embedding by (Gemma does), measured: at one place, tokens differ by that alone.

    Raises:
        UnsupportedModelError: They differ by something else, such as a norm or a projection.
    """
    some = ids[:: max(1, len(ids) // PROBED)][:PROBED]
    stream = model.embedding(some[:, None])[:, 0].double()
    table = weight[some].double()
    if stream.shape == table.shape:
        found, wanted = stream - stream.mean(0), table - table.mean(0)
        factor = float((found * wanted).sum() / (wanted * wanted).sum())
        if float((found - factor * wanted).norm()) <= TOLERATED * float(found.norm()):
            return factor
    raise UnsupportedModelError(
        f"the embedding of model {model.id!r} is not one vector per token plus one per position (it has a norm or a "
        "projection of its own), so that no vector can be moved in it. Take another model."
    )
