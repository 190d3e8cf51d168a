"""A HuggingFace tokenizer as the model uses it, beginning-of-sequence token included."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import date
from itertools import chain, takewhile
from typing import Any

from circuitlab.data.encoded import Encoded
from circuitlab.data.framing import ASSISTANT, Message
from circuitlab.errors import ModelError, UnknownNameError, in_one_line, shown
from circuitlab.models.modes import exclusive, lock_of
from circuitlab.models.protocol import Model
from circuitlab.models.recording import Bos
from circuitlab.names import BOS

AUTO, ALWAYS, NEVER = "auto", "always", "never"
TRANSFORMER_LENS = "transformer-lens"  # what versions without the setting did
CHOICES = tuple(BOS)
CHAT_DATE = date(2024, 7, 26)
_FORMAT = re.compile(r"""strftime_now\(\s*["']([^"']*)["']""")


def check_choice(bos: str) -> str:
    """The choice, if it is one of `CHOICES`.

    Returns:
        The choice.

    Raises:
        UnknownNameError: It is not.
    """
    UnknownNameError.check("bos", bos, CHOICES)
    return bos


def own_tokenizer(bridge: Any, name: str, revision: str | None = None) -> Any:
    """The checkpoint's tokenizer as it was saved; None where it cannot be known.

    Booting a bridge replaces the tokenizer's template by one that adds a BOS token, and fills in special tokens that
    the tokenizer does not have.

    Args:
        bridge: The booted model.
        name: What the user calls it.
        revision: Branch, tag or commit that it was booted from.

    Returns:
        The tokenizer, or None.

    Raises:
        ModelError: It has token ids that the model has no embedding for.
    """
    from transformer_lens.utilities.hf_utils import autotokenizer_with_special_token_compat

    booted = bridge.tokenizer
    try:
        saved: Any = autotokenizer_with_special_token_compat(booted.name_or_path, revision=revision)
    except Exception:  # whatever transformers and the hub's client raise: made in memory, or its folder is gone
        if booted.init_kwargs.get("add_bos_token"):
            return None
        # A bridge leaves the template as it is where there is no BOS token, and then fills one in.
        saved = deepcopy(booted)
        saved.bos_token = None
    else:
        _check_vocabulary(saved.get_vocab(), bridge, name)
    return saved


def resolve(tokenizer: Any, bridge: Any, choice: str, name: str) -> Bos:
    """The tokens in front of every text.

    Args:
        tokenizer: The checkpoint's own, or None where it is not known.
        bridge: The booted model; `"transformer-lens"` reads its configuration.
        choice: One of `CHOICES`.
        name: What the user calls the model.

    Returns:
        The tokens, as ids and as text; none where texts get none.

    Raises:
        UnknownNameError: No such choice.
        ModelError: `"always"`, and the tokenizer has no BOS token; the tokenizer's own behaviour is not known; or the
            token has no embedding.
    """
    if check_choice(choice) == NEVER:
        return Bos(choice=choice)
    if choice == TRANSFORMER_LENS:
        filled = bridge.tokenizer.bos_token_id
        if filled is None or not getattr(bridge.cfg, "default_prepend_bos", True):
            return Bos(choice=choice)
        _check_vocabulary({bridge.tokenizer.bos_token: filled}, bridge, name)
        return _bos(bridge.tokenizer, choice, [filled])
    if tokenizer is None:
        raise ModelError(
            f"model {name!r}: the tokenizer was changed when the bridge was booted and cannot be loaded again from "
            f"{bridge.tokenizer.name_or_path!r}, so that bos={choice!r} is not known. Use bos={NEVER!r} or "
            f"bos={TRANSFORMER_LENS!r} (what the bridge itself does)."
        )
    added, bos_id = _added_in_front(tokenizer), tokenizer.bos_token_id
    if choice == AUTO or bos_id in added:
        return _bos(tokenizer, choice, added)
    if bos_id is None:
        instead = f" Its template starts texts with {tokenizer.decode(added)!r}: use bos={AUTO!r}." if added else ""
        raise ModelError(
            f"model {name!r}: bos={ALWAYS!r}, but its tokenizer has no BOS token.{instead or f' Use bos={AUTO!r}.'}"
        )
    return _bos(tokenizer, choice, [bos_id, *added])


def _check_vocabulary(tokens: Mapping[str, int], bridge: Any, name: str) -> None:
    """Refuse tokens that the model has no embedding for; more embeddings than tokens are fine."""
    n_rows = bridge.cfg.d_vocab
    above = {number: token for token, number in tokens.items() if number >= n_rows}
    if above:
        first = min(above)
        raise ModelError(
            f"model {name!r} has {n_rows:,} embeddings, but its tokenizer has {len(above):,} tokens without one, the "
            f"first {above[first]!r} with id {first:,}. Save the model after "
            "model.resize_token_embeddings(len(tokenizer)), or give it the tokenizer that it was trained with."
        )


def _bos(tokenizer: Any, choice: str, ids: list[int]) -> Bos:
    return Bos(choice=choice, ids=tuple(ids), tokens=tuple(tokenizer.decode([number]) for number in ids))


def _added_in_front(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts in front of a text when it is called; not what it adds after it."""
    # Small vocabularies drop words that they do not know.
    called = (tokenizer(text, return_special_tokens_mask=True) for text in chain("a", tokenizer.get_vocab()))
    coded = next((coded for coded in called if not all(coded["special_tokens_mask"])), None)
    if coded is None:
        return []
    pairs = zip(coded["input_ids"], coded["special_tokens_mask"], strict=True)
    return [number for number, _ in takewhile(lambda pair: pair[1], pairs)]


def undated(template: str) -> str:
    """A chat template in which `strftime_now`, today's date, is that of `CHAT_DATE`.

    Args:
        template: The template.

    Returns:
        The same, or a template that defines the function before it begins.
    """
    if "strftime_now" not in template:
        return template
    dates = {form: CHAT_DATE.strftime(form) for form in _FORMAT.findall(template)}
    return (
        f"{{%- macro strftime_now(format) -%}}{{{{ {dates!r}.get(format, {str(CHAT_DATE)!r}) }}}}{{%- endmacro -%}}"
        + template
    )


@exclusive
class TokenizerText:
    """Encodes text with offsets; implements `circuitlab.data.encoded.TextEncoder`.

    Args:
        tokenizer: A fast HuggingFace tokenizer.
        bos: The tokens before every text.

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

        A text that begins with one of these tokens, spelt out, gets none. No token comes after a text.

        Returns:
            The tokens, with the beginning-of-sequence tokens of `bos` in front.
        """
        coded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = tuple(coded["input_ids"])
        offsets = tuple((int(start), int(end)) for start, end in coded["offset_mapping"])
        front = self.bos.ids
        if not ids or ids[0] not in front:
            ids, offsets = front + ids, ((0, 0),) * len(front) + offsets
        return Encoded(ids, offsets, self.decode(ids))

    def chat(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        """Messages as the checkpoint's chat template writes them; with `reply`, to where the next reply begins.

        If the last message is the assistant's, it is left open with `reply`.

        A template that writes today's date is given the date that Llama's templates have where there is no clock, so
        that the text is the same tomorrow.

        Returns:
            The text, with special tokens spelt out.

        Raises:
            ModelError: There is no chat template, or it refuses the messages; or `bos` is "always" or
                "transformer-lens", and the template does not begin with the token.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise ModelError(
                "this model's tokenizer has no chat template. Use a checkpoint that was trained on chats, save a "
                "template with its tokenizer (tokenizer.chat_template), or leave chat (--chat) out."
            )
        goes_on = messages[-1].role == ASSISTANT
        written = [{"role": one.role, "content": one.content} for one in messages]
        try:
            template = undated(self._tokenizer.get_chat_template())
            text = self._tokenizer.apply_chat_template(
                written, chat_template=template, tokenize=False,
                add_generation_prompt=reply and not goes_on, continue_final_message=reply and goes_on,
            )  # fmt: skip
        except Exception as error:  # a template raises what it likes
            raise ModelError(
                f"this model's chat template refuses the message {shown(messages[-1].content)}: {in_one_line(error)}. "
                "Change the prompt or the template, or leave chat (--chat) out."
            ) from error
        if self.bos.choice in (ALWAYS, TRANSFORMER_LENS) and self.for_chat().encode(text).ids[:1] != self.bos.ids[:1]:
            raise ModelError(
                f"bos is {self.bos.choice!r}, but this model's chat template begins without {self.bos.tokens!r}, and "
                f"in a chat the template decides. Use bos={AUTO!r} (--bos auto), or leave chat (--chat) out."
            )
        return str(text)

    def for_chat(self) -> TokenizerText:
        """The tokenizer for texts of the template, which has its own beginning-of-sequence token if it wants one.

        Returns:
            The tokenizer without tokens in front.
        """
        return TokenizerText(self._tokenizer, Bos(choice=NEVER))

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens without a text, such as the beginning of a sequence or padding."""
        return frozenset(self._tokenizer.all_special_ids)

    @property
    def n_tokens(self) -> int:
        """How many tokens the tokenizer has; a model's embedding may hold more rows."""
        return len(self._tokenizer)

    def decode(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        """Each token as text by itself.

        Returns:
            One text a token.
        """
        for new in set(ids) - self._decoded.keys():
            self._decoded[new] = self.joined((new,))
        return tuple(self._decoded[i] for i in ids)

    def joined(self, ids: tuple[int, ...]) -> str:
        """Tokens as one text, characters that several tokens share included.

        Returns:
            The text.
        """
        return self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def text_of(bridge: Any, name: str, choice: str = AUTO, saved: Any = None) -> TokenizerText:
    """The tokenizer of a booted model, as its checkpoint has it.

    Args:
        bridge: The booted model.
        name: What the user calls it.
        choice: Whether texts get a beginning-of-sequence token; one of `CHOICES`.
        saved: The checkpoint's tokenizer, if it is loaded already.

    Returns:
        The tokenizer.

    Raises:
        ModelError: There is none, it cannot serve, it has tokens that the model does not, or the choice needs a token
            that it lacks.
        UnknownNameError: No such choice.
    """
    if getattr(bridge, "tokenizer", None) is None:
        raise ModelError(f"model {name!r} has no tokenizer. Give tokens instead: PairBatch.from_tokens(...).")
    saved = own_tokenizer(bridge, name) if saved is None else saved
    return TokenizerText(bridge.tokenizer if saved is None else saved, resolve(saved, bridge, choice, name))


def words_of(model: Model, ids: Sequence[int]) -> tuple[str, ...]:
    """Tokens as text, each by itself, or as numbers where the model has no tokenizer.

    Returns:
        One text a token.
    """
    try:
        return model.text.decode(tuple(ids))
    except ModelError:
        return tuple(map(str, ids))
