"""Logit lens: what the model would answer if it stopped here, at every point of the residual stream.

The stream at the answer position goes through the final norm and the unembedding as if nothing came after it. The norm
is applied to each stream by itself, with that stream's own scale: this is the logit lens. With `norm="frozen"` the
scale is that of the final stream instead; then the steps from point to point are the shares of `direct_attribution`,
layer by layer, but a value is no prediction of the model's any more. Both end at the model's own value.

`lens_tokens` gives the most likely next tokens at every point, for every token of one prompt.

Points are the streams before the first block (`resid_pre` of layer 0), between attention and MLP (`resid_mid`) and
after each block (`resid_post`). Blocks that run attention and MLP in parallel (GPT-NeoX, GPT-J, Phi) have no stream
between the two, and attention-only blocks none but the end: there a layer has one point, `resid_post`.

References:
    nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.arguments import renamed_value
from circuitlab.attribution.request import (
    QUANTITIES,
    Prompt,
    check_quantity,
    check_run,
    per_example,
    tokens_of,
    weighted_words,
)
from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import check_answers
from circuitlab.data.pairs import PairSet
from circuitlab.drawing import draw
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.metrics import Metric, MetricLike, metric_for
from circuitlab.models.modes import model_function
from circuitlab.models.norms import frozen_norm
from circuitlab.models.protocol import Model, Recording
from circuitlab.models.steps import mlp_reads_heads
from circuitlab.models.text import words_of
from circuitlab.parts import ModelSpec
from circuitlab.patching.effects import Means
from circuitlab.patching.runs.baseline import at_answer
from circuitlab.result import Result
from circuitlab.summary import plural

NORMS = ("applied", "frozen")


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the residual stream: `site` is "resid_pre", "resid_mid" or "resid_post" of a layer."""

    layer: int
    site: str

    @property
    def label(self) -> str:
        """What precedes it: "embedding", "attention 3", "MLP 3" or "block 3"."""
        words = {"resid_pre": "embedding", "resid_mid": f"attention {self.layer}", "resid_post": f"block {self.layer}"}
        return words[self.site]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class LogitLens(Means):
    """A metric at every point of the stream.

    Columns of `to_frame`: layer, site, after, value, ci_low, ci_high, n. `plot` draws the metric along the stream with
    its interval; thin lines are single prompts.

    Attributes:
        metric: Name of the metric.
        unit: Its unit.
        run: "clean" or "corrupt": the prompts that were run.
        norm: "applied": the final norm with the scale of each stream; "frozen": with that of the final stream.
        points: Where, in the order in which the model computes them.
        per_example: The metric there.
        seed: Of the intervals.
    """

    metric: str
    unit: str
    run: str
    norm: str
    points: tuple[Point, ...]
    per_example: Float[np.ndarray, "point example"]
    seed: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """What was written last before each point."""
        return tuple(point.label for point in self.points)

    def _labels(self) -> dict[str, Any]:
        layers, sites = zip(*((point.layer, point.site) for point in self.points), strict=True)
        return {"layer": layers, "site": sites, "after": self.labels}

    def _summary(self) -> str:
        return f"of {self.metric}: {plural(len(self.points), 'point')}, {plural(self.per_example.shape[-1], 'prompt')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "run", f"{self.run}, norm {self.norm}"
        values = self.values
        for at in np.unique(np.linspace(0, len(values) - 1, 10).astype(int)):
            yield self.labels[at], f"{values[at]:.4g}"


@renamed_value(norm={"own": "applied"})
@model_function
@torch.no_grad()
def logit_lens(
    model: Model,
    pairs: PairSet | PairBatch,
    metric: MetricLike | None = None,
    *,
    run: str = "clean",
    norm: str = "applied",
    seed: int = 0,
) -> LogitLens:
    """Read a metric off the residual stream at every layer and half-layer.

    Args:
        model: A loaded model.
        pairs: A split of a task, or a `PairBatch`.
        metric: Any metric, by default that of the task that drew the pairs, else `logit_diff`; with `norm="frozen"` one
            that is a sum of logits, "logit_diff" or "logit". Logits are capped where the model caps them; a frozen lens
            reads them uncapped.
        run: "clean" or "corrupt": which prompts are run. Answers and distractors are those of the clean prompt.
        norm: "applied", the final norm of each stream: the logit lens; or "frozen", the final stream's scale for all.
        seed: Of the intervals.

    Returns:
        One value per point and example; the last is the model's own.

    Raises:
        UnknownNameError: No such metric, run or norm.
        ConfigError: A frozen norm and a metric that is no sum of logits.
        MetricError: The metric gives the wrong shape or NaN.

    Example:
        >>> from circuitlab import load_model, load_task, logit_lens
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> logit_lens(model, pairs.discovery).to_frame()["after"].tolist()[:3]
        ['embedding', 'attention 0', 'block 0']
    """
    check_run(run)
    UnknownNameError.check("norm", norm, NORMS)
    check_answers(pairs, model.spec)
    judged = Metric(name="logit", function=_mean_logit, unit="logits", local=True) if metric == "logit" else None
    judged = judged or metric_for(metric, pairs)
    if norm == "frozen":
        check_quantity(judged)

    def of_batch(batch: PairBatch) -> Float[Tensor, "point batch"]:
        recorded = model.record(batch.clean)
        streams = [at_answer(stream, batch.answer_at) for _, stream in streams_of(model, recorded)]
        if judged.needs_reference:
            batch = batch.with_reference(_clean_logits(model, batch, streams[-1], run))
        read = (
            _frozen(model, batch, judged.name, streams) if norm == "frozen" else _applied(model, batch, judged, streams)
        )
        return torch.stack(read)

    return LogitLens(
        metric=judged.name,
        unit=judged.unit,
        run=run,
        norm=norm,
        points=points_of(model.spec),
        per_example=per_example(model, pairs, run, of_batch),
        seed=seed,
    )


def points_of(spec: ModelSpec) -> tuple[Point, ...]:
    """The points of a model's stream, in its order.

    Returns:
        The points.
    """
    halves = ("resid_mid", "resid_post") if mlp_reads_heads(spec) else ("resid_post",)
    return (Point(0, "resid_pre"), *(Point(layer, site) for layer in range(spec.n_layers) for site in halves))


def streams_of(model: Model, recorded: Recording) -> Iterator[tuple[Point, Float[Tensor, "batch seq d_model"]]]:
    """The points of a run with the streams there."""
    for point in points_of(model.spec):
        yield point, recorded.at(point.site, point.layer)


def _applied(
    model: Model, batch: PairBatch, metric: Metric, streams: list[Float[Tensor, "batch d_model"]]
) -> list[Float[Tensor, " batch"]]:
    words, judged = batch.compact() if metric.local else (None, batch)
    return [metric(model.logits(stream, words), judged) for stream in streams]


def _frozen(
    model: Model, batch: PairBatch, name: str, streams: list[Float[Tensor, "batch d_model"]]
) -> list[Float[Tensor, " batch"]]:
    words, weights = weighted_words(name, batch)
    weights = weights.to(streams[-1])
    columns, biases = model.unembedding(words)
    norm, after_norm = frozen_norm(model.final_norm, streams[-1], model.id), weights @ columns.T
    direction, constant = norm.back(after_norm), after_norm @ norm.bias + weights @ biases
    return [(stream * direction).sum(-1) + constant for stream in streams]


def _clean_logits(
    model: Model, batch: PairBatch, final: Float[Tensor, "batch d_model"], run: str
) -> Float[Tensor, "batch d_vocab"]:
    """Predictions of the clean run; for a corrupted run, clean and corrupted prompts are swapped."""
    if run != "clean":
        final = at_answer(model.record(batch.corrupted).resid_final, batch.answer_at)
    return model.logits(final)


def _mean_logit(logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Float[Tensor, " batch"]:
    return (logits * QUANTITIES["logit"](batch, logits.shape[1]).to(logits)).sum(-1)


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
        """One row a point, token and rank: layer, site, after, position, token, rank, predicted, probability.

        Returns:
            The table.
        """
        rows = [
            (point.layer, point.site, point.label, at, token, rank, word, float(self.probabilities[number, at, rank]))
            for number, point in enumerate(self.points)
            for at, token in enumerate(self.tokens)
            for rank, word in enumerate(self.words[number][at])
        ]
        names = ("layer", "site", "after", "position", "token", "rank", "predicted", "probability")
        return pd.DataFrame(rows, columns=list(names))

    def at(self, position: int = -1) -> pd.DataFrame:
        """The likeliest tokens after one position, a row a point, a column a rank.

        Returns:
            The table.
        """
        cells = [
            [f"{word!r} {p:.2f}" for word, p in zip(words[position], shares[position], strict=True)]
            for words, shares in zip(self.words, self.probabilities, strict=True)
        ]
        return pd.DataFrame(cells, index=[point.label for point in self.points]).rename_axis("after")

    def plot(self) -> Any:
        """A matplotlib `Figure`: points by tokens, in each cell the likeliest next token, darker where likelier.

        Returns:
            The figure.
        """
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
