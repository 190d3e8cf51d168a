"""How likely a model finds each token of a text, given the tokens before it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.encoded import Encoded
from circuitlab.data.text_values import TextValues
from circuitlab.data.texts import as_texts, encode_text, filled, shown_tokens
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.predictions.streams import final_stream, logits_by_part, packs_by_length
from circuitlab.result import Result, plain
from circuitlab.summary import Results, largest, plural, short

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TextLogProbs(Result):
    """How likely each token of a text was.

    Attributes:
        text: The text.
        tokens: Its tokens, as in the text.
        ids: Their numbers in the vocabulary.
        log_probs: Natural logarithm of each token's probability given those before it, in nats, at most 0; NaN for the
            first token, which nothing predicts, and for the tokens that the model's `bos` puts in front.
        ranks: How many tokens were more likely there; 0 is best, -1 where there is no log-probability.
        best: The most likely token in the place of each; empty where there is no log-probability.
        best_log_probs: Natural logarithm of its probability; NaN where there is none.
    """

    text: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    log_probs: Float[np.ndarray, " token"]
    ranks: Int[np.ndarray, " token"]
    best: tuple[str, ...]
    best_log_probs: Float[np.ndarray, " token"]

    @property
    def total(self) -> float:
        """Log-probability of the text in nats: the sum over its tokens, but for the first where no other precedes."""
        return float(self._predicted.sum())

    @property
    def mean(self) -> float:
        """`total` by the number of predicted tokens; NaN where there is none."""
        return self.total / len(self._predicted) if len(self._predicted) else math.nan

    @property
    def _predicted(self) -> Float[np.ndarray, " predicted"]:
        return self.log_probs[self.ranks >= 0]

    @property
    def perplexity(self) -> float:
        """E to the minus `mean`."""
        return math.exp(-self.mean)

    def to_frame(self) -> pd.DataFrame:
        """One row a token: position, token, id, log_prob, rank, best, best_log_prob.

        Returns:
            The table.
        """
        return pd.DataFrame(
            {
                "position": np.arange(len(self.ids)),
                "token": self.tokens,
                "id": self.ids,
                "log_prob": self.log_probs,
                "rank": self.ranks,
                "best": self.best,
                "best_log_prob": self.best_log_probs,
            }
        )

    def to_record(self) -> dict[str, Any]:
        """Everything for JSON, one list a column; None for NaN.

        Returns:
            The record.
        """
        columns = self.to_frame().drop(columns="position").to_dict("list")
        sums = {"total": self.total, "mean": self.mean, "perplexity": self.perplexity}
        return plain({"text": self.text, **sums, **columns})

    def to_values(self) -> TextValues:
        """The log-probabilities over the text, for a page.

        Returns:
            The values.
        """
        tokens = zip(self.ranks.tolist(), self.best, np.exp(self.best_log_probs).tolist(), strict=True)
        return TextValues(
            title="Log-probability of each token",
            tokens=self.tokens,
            series=("log-probability",),
            values=self.log_probs[None],
            unit="nats",
            details=tuple(
                f"rank {rank}; most likely {best!r} ({100 * p:.3g} %)" if rank >= 0 else "not predicted"
                for rank, best, p in tokens
            ),
            note=f"Given the tokens before it; darker red: less likely. {self._sums}",
            kind="value",
        )

    @property
    def _sums(self) -> str:
        sums = f"The whole text: {self.total:.2f} nats, {self.mean:.3f} a token"
        return f"{sums.replace('-', MINUS)}, perplexity {self.perplexity:.4g}."

    def to_html(self) -> str:
        """A self-contained page: the text coloured by log-probability, rank and most likely token on hover.

        Returns:
            The page.
        """
        return self.to_values().to_html()

    def save_html(self, path: str | Path, *, force: bool = False) -> Path:
        """Write `to_html` to a file.

        Returns:
            The file.

        Raises:
            OutputExistsError: The file exists, and `force` is not given.
        """
        return self.to_values().save_html(path, force=force)

    def _repr_html_(self) -> str:
        return self.to_values()._repr_html_()

    def _summary(self) -> str:
        return f"of {short(self.text, 40)}: {plural(len(self.tokens), 'token')}, perplexity {self.perplexity:.4g}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "total", f"{self.total:.4g} nats"
        yield "mean", f"{self.mean:.4g} nats a token"
        yield from largest(self.log_probs, lambda number: repr(self.tokens[number]), label="least likely")


@overload
def text_log_probs(model: Model, text: str) -> TextLogProbs: ...


@overload
def text_log_probs(model: Model, text: Sequence[str]) -> tuple[TextLogProbs, ...]: ...


@model_function
@torch.no_grad()
def text_log_probs(model: Model, text: str | Sequence[str]) -> TextLogProbs | tuple[TextLogProbs, ...]:
    """How likely the model finds each token of one text, or of each of several, which are run together.

    Logits are computed for a part of the positions at a time, so that a long text with a large vocabulary fits memory.

    Args:
        model: The model.
        text: One text, or several.

    Returns:
        One record for one text, a tuple for several.

    Raises:
        ConfigError: There is no text.
        TokenError: A text has no token, or more than fit the context.

    Example:
        >>> from circuitlab import load_model
        >>> text_log_probs(load_model("bundled"), "Anna is a good friend. She").ranks[-1]
        np.int64(0)
    """
    texts = as_texts(text)
    encoded = [encode_text(one, model.text, model.spec.n_ctx) for one in texts]
    found: dict[int, TextLogProbs] = {}
    for chosen in packs_by_length(model, [len(one.ids) for one in encoded]):
        tokens, _ = filled([encoded[i].ids for i in chosen])
        for i, stream in zip(chosen, final_stream(model, tokens), strict=True):
            found[i] = _judged(model, texts[i], encoded[i], stream[: len(encoded[i].ids) - 1])
    return found[0] if isinstance(text, str) else Results(found[i] for i in range(len(texts)))


def _judged(model: Model, text: str, encoded: Encoded, stream: Float[Tensor, "seq d_model"]) -> TextLogProbs:
    """Each token of the text as predicted by the stream before it; not the tokens in front, which are no text."""
    n = len(encoded.ids)
    log_probs, best_log_probs = np.full(n, np.nan), np.full(n, np.nan)
    ranks, best = np.full(n, -1), []
    came = torch.tensor(encoded.ids[1:], device=stream.device, dtype=torch.long)
    for rows, logits in logits_by_part(model, stream):
        taken = logits.gather(1, came[rows, None])
        all_of_it = logits.logsumexp(1)
        highest, at = logits.max(1)
        after = slice(rows.start + 1, rows.stop + 1)
        log_probs[after] = (taken[:, 0] - all_of_it).cpu().double().numpy()
        best_log_probs[after] = (highest - all_of_it).cpu().double().numpy()
        ranks[after] = (logits > taken).sum(1).cpu().numpy()
        best += at.tolist()
    front = model.bos.ids
    first = max(1, len(front)) if encoded.ids[: len(front)] == front else 1
    log_probs[:first], best_log_probs[:first], ranks[:first] = np.nan, np.nan, -1
    return TextLogProbs(
        text=text,
        tokens=shown_tokens(text, encoded),
        ids=encoded.ids,
        log_probs=log_probs,
        ranks=ranks,
        best=("",) * first + model.text.decode(tuple(best))[first - 1 :],
        best_log_probs=best_log_probs,
    )
