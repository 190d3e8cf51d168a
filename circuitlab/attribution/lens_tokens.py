"""The logit lens on one prompt: the most likely next tokens at every point of the stream, for every token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from circuitlab.attribution.lens import Point, points_of, streams_of
from circuitlab.attribution.prompts import Prompt, tokens_of
from circuitlab.drawing import draw
from circuitlab.errors import ConfigError
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.models.text import words_of
from circuitlab.result import Result
from circuitlab.summary import plural

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class LensTokens(Result):
    """Next-token predictions at every point and token of a prompt.

    Attributes:
        tokens: The prompt.
        points: Places along the stream.
        ids: The most likely tokens, the likeliest first.
        words: The same as text, by point, token and rank.
        probabilities: Of these tokens.
    """

    tokens: tuple[str, ...]
    points: tuple[Point, ...]
    ids: Int[np.ndarray, "point seq word"]
    words: tuple[tuple[tuple[str, ...], ...], ...]
    probabilities: Float[np.ndarray, "point seq word"]

    def to_frame(self) -> pd.DataFrame:
        """One row a point, token and rank: layer, site, after, position, token, rank, predicted, probability."""
        import pandas as pd

        rows = [
            (point.layer, point.site, point.label, at, token, rank, word, float(self.probabilities[number, at, rank]))
            for number, point in enumerate(self.points)
            for at, token in enumerate(self.tokens)
            for rank, word in enumerate(self.words[number][at])
        ]
        names = ("layer", "site", "after", "position", "token", "rank", "predicted", "probability")
        return pd.DataFrame(rows, columns=list(names))

    def at(self, position: int = -1) -> pd.DataFrame:
        """The likeliest tokens after one position, a row a point, a column a rank."""
        import pandas as pd

        cells = [
            [f"{word!r} {p:.2f}" for word, p in zip(words[position], shares[position], strict=True)]
            for words, shares in zip(self.words, self.probabilities, strict=True)
        ]
        return pd.DataFrame(cells, index=[point.label for point in self.points]).rename_axis("after")

    def plot(self) -> Any:
        """A matplotlib `Figure`: points by tokens, in each cell the likeliest next token, darker where likelier."""
        return draw(self)

    def _summary(self) -> str:
        return f"of {plural(len(self.points), 'point')} x {plural(len(self.tokens), 'token')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "tokens", self.tokens
        for at in np.unique(np.linspace(0, len(self.points) - 1, 10).astype(int)):
            yield (
                self.points[at].label,
                f"{self.words[at][-1][0]!r} {self.probabilities[at, -1, 0]:.3f} at the last token",
            )


@model_function
@torch.no_grad()
def lens_tokens(model: Model, prompt: Prompt, k: int = 5, *, run: str = "clean") -> LensTokens:
    """Read the most likely next tokens off every point of the stream; the final norm with each stream's own scale.

    Args:
        model: A loaded model.
        prompt: Text, a pair of a task, or one row of token ids.
        k: How many tokens.
        run: Of a pair: "clean" or "corrupt".

    Returns:
        For each point and token, the most likely next tokens with their probabilities.

    Raises:
        ConfigError: No prompt, one too long, or `k` out of range.
        ModelError: Text, and the model has no tokenizer.
        UnknownNameError: No such run.

    Example:
        >>> from circuitlab import lens_tokens, load_model, load_task
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> lens_tokens(model, pairs.discovery[0], k=2).to_frame().shape  # 9 points, 21 tokens, 2 ranks
        (378, 8)
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= model.spec.d_vocab:
        raise ConfigError(f"k is {k!r}; it counts tokens, from 1 to the {model.spec.d_vocab} of the vocabulary.")
    ids, tokens = tokens_of(model, prompt, run)
    streams = [stream[0] for _, stream in streams_of(model, model.record(ids))]
    ranked = [torch.topk(model.logits(stream).softmax(-1), k) for stream in streams]
    shares, found = (torch.stack(parts) for parts in zip(*ranked, strict=True))
    texts = iter(words_of(model, tuple(found.flatten().tolist())))
    return LensTokens(
        tokens=tokens,
        points=points_of(model.spec),
        ids=found.cpu().numpy(),
        words=tuple(tuple(tuple(next(texts) for _ in row) for row in rows) for rows in found),
        probabilities=shares.double().cpu().numpy(),
    )
