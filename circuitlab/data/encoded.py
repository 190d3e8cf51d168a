"""A text as tokens, and what is asked of a tokenizer and of a model that has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from circuitlab.data.example import CharRange
from circuitlab.errors import TaskError
from circuitlab.parts import ModelSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as tokens.

    Attributes:
        ids: Token ids, the beginning-of-sequence token included where the model expects one.
        offsets: Half-open character range of each token in the text; (0, 0) for special tokens.
        tokens: Each token decoded on its own.
    """

    ids: tuple[int, ...]
    offsets: tuple[CharRange, ...]
    tokens: tuple[str, ...]


class TextEncoder(Protocol):
    """A tokenizer as a model uses it."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Special tokens without text, such as the beginning of a sequence or padding."""
        ...

    @property
    def n_tokens(self) -> int:
        """How many tokens the tokenizer has; a model's embedding may hold more rows."""
        ...

    def encode(self, text: str) -> Encoded:
        """The text as the model would be given it.

        Returns:
            Token ids, character ranges and token texts.
        """
        ...

    def decode(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        """Each token as text by itself.

        Returns:
            One text a token.
        """
        ...

    def joined(self, ids: tuple[int, ...]) -> str:
        """Tokens as one text, characters that several tokens share included.

        Returns:
            The text.
        """
        ...


class LanguageModel(Protocol):
    """A model as far as prompts are made for it: its shape, its tokenizer, where its weights are."""

    _spelled = "Model"  # in messages about other types

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        ...

    @property
    def text(self) -> TextEncoder:
        """The tokenizer; raises `ModelError` where the model has none."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an example cannot be served.

    Attributes:
        kind: The error class to raise for this reason.
        reason: The reason without the example, for counting.
        message: The whole story of this example: prompt, tokens, way out.
    """

    kind: type[TaskError]
    reason: str
    message: str
