"""The words that a prompt may be made of, and the one nearest to a vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from circuitlab.errors import ModelError, UnsupportedModelError
from circuitlab.models.protocol import Model
from circuitlab.patching.runs.baseline import LOGITS_AT_ONCE
from circuitlab.patching.runs.packing import packs

PROBED = 16
TOLERATED = 0.02  # of the differences between tokens: half precision rounds an embedding by up to 0.4 %


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocabulary:
    """Tokens that stand for text, with their embeddings.

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
        """All tokens of a model but the special ones and those that its tokenizer does not have."""
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
        """Places in `ids` of the tokens with the largest cosine to each vector."""
        flat = vectors.flatten(0, -2)
        size = max(1, LOGITS_AT_ONCE // len(self.ids))
        found = [(flat[part] @ self.directions.T).argmax(1) for part in packs(len(flat), size)]
        return torch.cat(found).view(vectors.shape[:-1])

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Int[Tensor, " *row"]:
        """Places in `ids`, every token as likely; drawn on the CPU so that they are the same everywhere."""
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
