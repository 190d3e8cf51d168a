"""Greedy continuation of texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload

import torch

from circuitlab.data.texts import as_texts, encode_text
from circuitlab.errors import ConfigError
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.predictions.streams import last_streams, logits_by_part
from circuitlab.result import Result
from circuitlab.summary import Results, plural, short

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Continuation(Result):
    """A text and the model's continuation.

    Attributes:
        text: The text that was given.
        continued: What was written, without the text.
        tokens: The same, token by token.
        ids: Their numbers in the vocabulary.
        log_probs: Natural logarithm of each token's probability when it was taken.
    """

    text: str
    continued: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a token: token, id, log_prob."""
        import pandas as pd

        return pd.DataFrame({"token": self.tokens, "id": self.ids, "log_prob": self.log_probs})

    def to_record(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return asdict(self)

    def _summary(self) -> str:
        return f"of {short(self.text, 40)} by {plural(len(self.tokens), 'token')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "continued", short(self.continued)
        yield "log probability", f"{sum(self.log_probs):.4g} nats"


@overload
def continue_text(model: Model, text: str, n: int) -> Continuation: ...


@overload
def continue_text(model: Model, text: Sequence[str], n: int) -> tuple[Continuation, ...]: ...


@model_function
@torch.no_grad()
def continue_text(model: Model, text: str | Sequence[str], n: int) -> Continuation | tuple[Continuation, ...]:
    """Generate n tokens greedily after one text, or after each of several, which are run together.

    The whole text is read again for every token: meant for a few of them. A token that ends texts is taken like any
    other, and generation continues after it.

    Args:
        model: The model.
        text: One text, or several.
        n: Number of tokens to generate.

    Returns:
        One continuation for one text, a tuple for several. Of two tokens equally likely the first of the vocabulary is
        taken.

    Raises:
        ConfigError: There is no text, or n is below 1.
        TokenError: A text and n more tokens do not fit the context.

    Example:
        >>> from circuitlab import continue_text, load_model
        >>> continue_text(load_model("bundled"), "<b>Some bold text</", n=1).continued
        'b'
    """
    if n < 1:
        raise ConfigError(f"n is {n}; a continuation has at least one token.")
    texts = as_texts(text)
    # The last token written is not read again, so it needs no place in the context.
    starts = [encode_text(one, model.text, model.spec.n_ctx, room=n - 1).ids for one in texts]
    written: list[list[int]] = [[] for _ in texts]
    log_probs: list[list[float]] = [[] for _ in texts]
    for _ in range(n):
        streams = last_streams(model, [(*start, *new) for start, new in zip(starts, written, strict=True)])
        for rows, logits in logits_by_part(model, streams):
            best = logits.argmax(1)
            chosen = logits.log_softmax(1).gather(1, best[:, None])[:, 0]
            for i, token, log_prob in zip(range(rows.start, rows.stop), best.tolist(), chosen.tolist(), strict=True):
                written[i].append(token)
                log_probs[i].append(log_prob)
    found = Results(
        Continuation(
            text=one,
            continued=model.text.joined(tuple(ids)),
            tokens=model.text.decode(tuple(ids)),
            ids=tuple(ids),
            log_probs=tuple(own),
        )
        for one, ids, own in zip(texts, written, log_probs, strict=True)
    )
    return found[0] if isinstance(text, str) else found
