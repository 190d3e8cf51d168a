"""A HuggingFace tokenizer as the model uses it, beginning-of-sequence token included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from circuitlab.data.encoding import Encoded
from circuitlab.errors import ModelError
from circuitlab.models.bos import AUTO, own_tokenizer, resolve
from circuitlab.models.exclusive import exclusive, lock_of
from circuitlab.models.protocol import Model
from circuitlab.models.recording import Bos


@exclusive
class TokenizerText:
    """Encodes text with offsets; implements `circuitlab.data.encoding.TextEncoder`.

    Args:
        tokenizer: A fast HuggingFace tokenizer.
        bos: The tokens in front of every text.

    Raises:
        ModelError: The tokenizer cannot tell where in the text its tokens are.
    """

    def __init__(self, tokenizer: Any, bos: Bos) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"tokenizer {type(tokenizer).__name__} is not a fast one and cannot tell where its tokens are "
                f"in the text. "
                "Save the checkpoint with a tokenizer.json."
            )
        self._tokenizer, self.lock = tokenizer, lock_of(tokenizer)  # a fast one refuses two threads at once
        self.bos = bos
        self._decoded = dict[int, str]()

    def encode(self, text: str) -> Encoded:
        """Token ids, character ranges and token texts of a prompt.

        A text that begins with one of the tokens in front, spelt out, gets none. No token is put after a text.
        """
        coded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = tuple(coded["input_ids"])
        offsets = tuple((int(start), int(end)) for start, end in coded["offset_mapping"])
        front = self.bos.ids
        if not ids or ids[0] not in front:
            ids, offsets = front + ids, ((0, 0),) * len(front) + offsets
        return Encoded(ids, offsets, self.decode(ids))

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text, such as the beginning of a sequence or padding."""
        return frozenset(self._tokenizer.all_special_ids)

    @property
    def n_tokens(self) -> int:
        """How many tokens the tokenizer has; a model's embedding may hold more rows."""
        return len(self._tokenizer)

    def decode(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        """Each token as text by itself."""
        for new in set(ids) - self._decoded.keys():
            self._decoded[new] = self.joined((new,))
        return tuple(self._decoded[i] for i in ids)

    def joined(self, ids: tuple[int, ...]) -> str:
        """Tokens as one text, characters that several tokens share included."""
        return self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def text_of(bridge: Any, name: str, choice: str = AUTO, own: Any = None) -> TokenizerText:
    """The tokenizer of a booted model, as its checkpoint has it.

    Args:
        bridge: The booted model.
        name: What the user calls it.
        choice: Whether texts get a beginning-of-sequence token; one of `CHOICES`.
        own: The checkpoint's own tokenizer, if it is loaded already.

    Raises:
        ModelError: There is none, it cannot serve, it has tokens that the model does not, or the choice needs a token
            that it lacks.
        UnknownNameError: No such choice.
    """
    if getattr(bridge, "tokenizer", None) is None:
        raise ModelError(f"model {name!r} has no tokenizer. Give tokens instead: PairBatch.from_tokens(...).")
    own = own_tokenizer(bridge, name) if own is None else own
    return TokenizerText(bridge.tokenizer if own is None else own, resolve(own, bridge, choice, name))


def words_of(model: Model, ids: Sequence[int]) -> tuple[str, ...]:
    """Tokens as text, each by itself, or as numbers where the model has no tokenizer."""
    try:
        return model.text.decode(tuple(ids))
    except ModelError:
        return tuple(map(str, ids))
