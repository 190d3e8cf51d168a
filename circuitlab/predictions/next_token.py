"""Next tokens of texts: rank, logit and probability of answers, the most likely tokens, and greedy continuations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.texts import answer_ids, as_texts, encode_text
from circuitlab.errors import ConfigError
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.predictions.streams import last_streams, logits_by_part
from circuitlab.result import Result
from circuitlab.summary import Results, Summary, plural, short


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NextToken(Summary):
    """One token of the vocabulary as the continuation of a text.

    Attributes:
        token: The token as text.
        id: Its number in the vocabulary.
        rank: How many tokens are more likely; 0 is best.
        logit: Its logit, a softcap applied where the model has one.
        log_prob: Natural logarithm of its probability.
        probability: Its probability among all tokens.
    """

    token: str
    id: int
    rank: int
    logit: float
    log_prob: float
    probability: float

    def _summary(self) -> str:
        return f"{self.token!r}: rank {self.rank}, probability {self.probability:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Prediction(Result):
    """Next-token predictions after a text.

    Attributes:
        text: The text.
        tokens: Its tokens.
        answers: The requested tokens, in the given order.
        top: The most likely tokens, best first; equals by their number in the vocabulary.
    """

    text: str
    tokens: tuple[str, ...]
    answers: tuple[NextToken, ...]
    top: tuple[NextToken, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row an answer and then one a top token: kind, token, id, rank, logit, log_prob, probability.

        Returns:
            The table.
        """
        rows = [("answer", one) for one in self.answers] + [("top", one) for one in self.top]
        columns = ["kind", *NextToken.__dataclass_fields__]
        return pd.DataFrame([{"kind": kind, **asdict(one)} for kind, one in rows], columns=columns)

    def to_record(self) -> dict[str, Any]:
        """Everything as JSON can hold it.

        Returns:
            The record.
        """
        return asdict(self)

    def _summary(self) -> str:
        return f"after {short(self.text, 60)}: {self.top[0].token!r}" if self.top else f"after {short(self.text, 60)}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        for label, group in (("answer", self.answers[:5]), ("top", self.top[:5])):
            for number, one in enumerate(group):
                yield "" if number else label, f"{one.token!r}  rank {one.rank}, probability {one.probability:.4g}"


@overload
def predict(model: Model, text: str, answers: str | Sequence[str] = (), k: int = 10) -> Prediction: ...


@overload
def predict(
    model: Model, text: Sequence[str], answers: Sequence[str | Sequence[str]] = (), k: int = 10
) -> tuple[Prediction, ...]: ...


@model_function
@torch.no_grad()
def predict(
    model: Model, text: str | Sequence[str], answers: str | Sequence[str | Sequence[str]] = (), k: int = 10
) -> Prediction | tuple[Prediction, ...]:
    """Predict the next token after one text or after each of several.

    Args:
        model: The model.
        text: One text, or several, which are run together.
        answers: Words to report rank, logit and probability of, with their leading space; each must be one token
            right after the text. For several texts one word, or one list of words, a text.
        k: How many of the most likely tokens to list.

    Returns:
        One prediction for one text, a tuple for several.

    Raises:
        ConfigError: There is no text, k is outside the vocabulary, or the numbers of answers and texts differ.
        TokenError: A text does not fit the context, or an answer is not one token; the message gives its tokens.

    Example:
        >>> from circuitlab import load_model
        >>> predict(load_model("bundled"), "Anna is a good friend.", " She").answers[0].rank
        0
    """
    texts = as_texts(text)
    wanted = _one_each(answers, text, len(texts))
    if not 0 <= k <= model.spec.d_vocab:
        raise ConfigError(f"k is {k}; the vocabulary has {model.spec.d_vocab:,} tokens, so take 0 to that many.")
    encoded = [encode_text(one, model.text, model.spec.n_ctx) for one in texts]
    chosen_ids = [answer_ids(one, words, e, model.text) for one, words, e in zip(texts, wanted, encoded, strict=True)]
    streams = last_streams(model, [e.ids for e in encoded])
    found: list[Prediction] = []
    for rows, logits in logits_by_part(model, streams):
        for i, row in zip(range(rows.start, rows.stop), logits, strict=True):
            chosen = next_tokens(model, row, chosen_ids[i], k)
            found.append(Prediction(text=texts[i], tokens=encoded[i].tokens, answers=chosen[0], top=chosen[1]))
    return found[0] if isinstance(text, str) else Results(found)


def next_tokens(
    model: Model, logits: Float[Tensor, " d_vocab"], chosen: Sequence[int], k: int
) -> tuple[tuple[NextToken, ...], tuple[NextToken, ...]]:
    """Chosen tokens, and the k most likely, out of one position's logits.

    Returns:
        The chosen tokens in their order, and the k most likely, the likeliest first.
    """
    log_probs = logits.log_softmax(0)
    top = torch.sort(logits, descending=True, stable=True).indices[:k].tolist()

    def described(ids: Sequence[int]) -> tuple[NextToken, ...]:
        words = model.text.decode(tuple(ids))
        return tuple(
            NextToken(
                token=word,
                id=i,
                rank=int((logits > logits[i]).sum()),
                logit=float(logits[i]),
                log_prob=float(log_probs[i]),
                probability=float(log_probs[i].exp()),
            )
            for i, word in zip(ids, words, strict=True)
        )

    return described(chosen), described(top)


def _one_each(
    answers: str | Sequence[str | Sequence[str]], text: str | Sequence[str], n_texts: int
) -> list[tuple[str, ...]]:
    """The requested words after each text."""
    if isinstance(text, str):
        words = (answers,) if isinstance(answers, str) else tuple(answers)
        wrong = next((word for word in words if not isinstance(word, str)), None)
        if wrong is not None:
            raise ConfigError(f"for one text answers are words; got {wrong!r}. Give one list of words.")
        return [tuple(str(word) for word in words)]
    if not isinstance(answers, str) and len(answers) == 0:
        return [()] * n_texts
    if isinstance(answers, str) or len(answers) != n_texts:
        given = 1 if isinstance(answers, str) else len(answers)
        raise ConfigError(f"{n_texts} texts need answers for each; got {given}. Give one word, or one list, a text.")
    return [(one,) if isinstance(one, str) else tuple(one) for one in answers]


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
        """One row a token: token, id, log_prob.

        Returns:
            The table.
        """
        return pd.DataFrame({"token": self.tokens, "id": self.ids, "log_prob": self.log_probs})

    def to_record(self) -> dict[str, Any]:
        """Everything as JSON can hold it.

        Returns:
            The record.
        """
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
    starts = [encode_text(one, model.text, model.spec.n_ctx, extra=n - 1).ids for one in texts]
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
            log_probs=tuple(taken),
        )
        for one, ids, taken in zip(texts, written, log_probs, strict=True)
    )
    return found[0] if isinstance(text, str) else found
