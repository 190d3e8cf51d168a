"""Run the model with an autoencoder in it: its reconstruction in the place of what it reads.

With the error term, `x - decode(encode(x))`, nothing changes but what is done to features; without it the model has to
live on what the autoencoder keeps, and how well it does is how good the autoencoder is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from circuitlab import stats
from circuitlab.arguments import checked
from circuitlab.data.batching import Pairs, check_answers, check_corrupted
from circuitlab.errors import ConfigError
from circuitlab.features.activations import Texts, read_texts
from circuitlab.features.autoencoder import Autoencoder
from circuitlab.features.place import activation, fitted, run_on
from circuitlab.metrics import MetricLike
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import BlockArguments, Model, Recording
from circuitlab.neurons.chosen import front_of, run_by_length
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import at_answer
from circuitlab.predictions.streams import logits_by_part
from circuitlab.resources import Resources
from circuitlab.result import Result
from circuitlab.summary import plural

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Quality(Result):
    """How well an autoencoder reconstructs what it reads. Tokens kept as they are do not count.

    Attributes:
        n_tokens: Over how many tokens.
        explained_variance: 1 minus squared error over squared distance from the mean; 1 is perfect.
        l0: Mean number of features active at a token.
        n_alive: Features active at any of these tokens.
        n_features: Number of features.
        loss: Mean loss of the model at these tokens, in nats a token.
        loss_with_error: The same with the autoencoder spliced in, error term and all; equal up to rounding.
        loss_spliced: The same with the reconstruction alone.
        loss_zero: The same with zeros in the place of what it reads.
    """

    n_tokens: int
    explained_variance: float
    l0: float
    n_alive: int
    n_features: int
    loss: float
    loss_with_error: float
    loss_spliced: float
    loss_zero: float

    @property
    def loss_recovered(self) -> float:
        """Where the spliced loss is between that of zeros, 0, and the model's own, 1."""
        return (self.loss_zero - self.loss_spliced) / (self.loss_zero - self.loss)

    def to_record(self) -> dict[str, Any]:
        """All numbers by name.

        Returns:
            The record.
        """
        return {**asdict(self), "loss_recovered": self.loss_recovered}

    def _summary(self) -> str:
        return (
            f"on {plural(self.n_tokens, 'token')}: explained variance {self.explained_variance:.3f}, L0 {self.l0:.1f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Splice(Result):
    """What is left of a behaviour when the model runs on reconstructions.

    Attributes:
        metric: Name of the metric.
        clean: It, on the clean prompts.
        corrupt: On the corrupted prompts.
        spliced: On the clean prompts with the autoencoder spliced in.
        seed: Seed of the interval.
    """

    metric: str
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"]
    spliced: Float[np.ndarray, " example"]
    seed: int = 0

    @property
    def recovered(self) -> float:
        """0: as the corrupted run; 1: as the clean one. Means first, then their ratio."""
        return float(stats.ratio_of_means(self.spliced - self.corrupt, self.clean - self.corrupt))

    @property
    def interval(self) -> stats.Interval:
        """95 % bootstrap interval of `recovered` over examples."""
        return stats.ratio_interval(self.spliced - self.corrupt, self.clean - self.corrupt, self.seed)

    def to_frame(self) -> pd.DataFrame:
        """A table of one row: metric, recovered, ci_low, ci_high, n.

        Returns:
            The table.
        """
        ends = {"ci_low": float(self.interval.low), "ci_high": float(self.interval.high)}
        return pd.DataFrame([{"metric": self.metric, "recovered": self.recovered, **ends, "n": len(self.clean)}])

    def _summary(self) -> str:
        return f"of {plural(len(self.clean), 'pair')}: {self.recovered:.3f} of {self.metric} recovered"


@checked
def attached(
    model: Model,
    autoencoder: Autoencoder,
    *,
    error: bool = True,
    edit: Edit | None = None,
    keep_first: int | None = None,
) -> AbstractContextManager[None]:
    """Every whole forward pass of the model inside runs through the autoencoder; the model is restored on exit.

    Args:
        model: A loaded model; run it as `model.bridge(tokens)`, `model.bridge.generate(...)`, or as you like.
        autoencoder: Of this model.
        error: Add what the autoencoder leaves out. Without an edit the run is then the model's own, up to rounding.
        edit: What is done to the features, `[batch, seq, feature]` in and out; the error term is that of the features
            before.
        keep_first: How many tokens at the start are left as they are: by default those in front of every text
            (`model.bos`), which autoencoders are not trained on.

    Returns:
        A context; on exit the model is as before.

    Raises:
        ConfigError: The autoencoder does not fit the model.
        UnknownNameError: The model has no such site.
    """
    spliced = _Spliced.of(model, autoencoder, keep_first)
    return model.rewriting(spliced.sae.site, spliced.sae.layer, partial(spliced.values, error=error, edit=edit))


@model_function
def quality(
    model: Model, autoencoder: Autoencoder, texts: Texts, *, keep_first: int | None = None, budget: int | None = None
) -> Quality:
    """Measure an autoencoder on texts: what it explains, how sparse it is, and what the model loses by it.

    Args:
        model: A loaded model.
        autoencoder: Of this model.
        texts: Texts, or tokens `[batch, seq]`.
        keep_first: See `attached`.
        budget: Bytes that a run may take; a share of what is free by default.

    Returns:
        Explained variance, sparsity, and losses in nats a token.

    Raises:
        ConfigError: The autoencoder does not fit the model, or a text is too long or has no token to predict.
        UnknownNameError: The model has no such site.
    """
    spliced = _Spliced.of(model, autoencoder, keep_first)
    prompts, sums, since = read_texts(model, texts), _Sums(spliced), spliced.since
    if short := next((len(prompt) for prompt in prompts if len(prompt) < since + 2), None):
        raise ConfigError(f"a text of {short} tokens has none to predict after its first {since}; give longer ones.")

    @torch.no_grad()
    def run(_numbers: list[int], ids: Tensor, arguments: BlockArguments) -> None:
        sums.add(ids, arguments)

    run_by_length(model, prompts, run, Resources(budget), extra_streams=8 * model.spec.n_layers)
    return sums.quality()


@model_function
def splice(
    model: Model,
    autoencoder: Autoencoder,
    pairs: Pairs,
    *,
    metric: MetricLike | None = None,
    error: bool = False,
    edit: Edit | None = None,
    keep_first: int | None = None,
    seed: int = 0,
    budget: int | None = None,
) -> Splice:
    """Run the clean prompts of pairs with the autoencoder spliced in; only what follows its place is run again.

    Args:
        model: A loaded model.
        autoencoder: Of this model.
        pairs: A split of a task, or a `PairBatch`.
        metric: What is measured at the answer position; by default the metric of the task that drew the pairs,
            else `logit_diff`.
        error: Add the error term.
        edit: See `attached`.
        keep_first: See `attached`.
        seed: Of the interval.
        budget: Bytes that a run may take; a share of what is free by default.

    Returns:
        The metric with the autoencoder spliced in, beside that of the clean and the corrupted run.

    Raises:
        ConfigError: The autoencoder does not fit the model.
        UnknownNameError: The model has no such site, or there is no such metric.
        MetricError: The metric cannot be used.
    """
    replaced = _Spliced.of(model, autoencoder, keep_first)
    check_answers(pairs, model.spec)
    check_corrupted(pairs, "what is restored is a share of the clean-corrupted difference")
    experiment = Experiment(model, pairs, metric, budget=budget)
    judged_by, spliced = experiment.metric, np.zeros(experiment.n_examples)
    for baseline in experiment.baselines:
        batch = baseline.batch
        final = replaced.final(baseline.clean, baseline.arguments, error=error, edit=edit)
        with torch.no_grad():
            found = judged_by(model.logits(at_answer(final, batch.answer_at)), batch)
        spliced[batch.index.cpu().numpy()] = found.double().cpu().numpy()
    clean, corrupt = experiment.clean, experiment.unit_end
    return Splice(metric=judged_by.name, clean=clean, corrupt=corrupt, spliced=spliced, seed=seed)


def through(
    autoencoder: Autoencoder, x: Float[Tensor, "*row d_in"], *, error: bool, edit: Edit | None = None
) -> Float[Tensor, "*row d_in"]:
    """What takes the place of activations, in their dtype.

    Returns:
        Activations `[..., d_in]`.
    """
    if edit is None:
        made = autoencoder.reconstruct(x)
        return (made + (x.to(made) - made) if error else made).to(x)
    features = autoencoder.encode(x)
    made = autoencoder.decode(edit(features), like=x)
    return (made + (x.to(made) - autoencoder.decode(features, like=x)) if error else made).to(x)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Spliced:
    """A model with an autoencoder in it, on its device.

    Attributes:
        model: The model.
        sae: The autoencoder.
        since: The first token that runs through it.
    """

    model: Model
    sae: Autoencoder
    since: int

    @classmethod
    def of(cls, model: Model, autoencoder: Autoencoder, keep_first: int | None) -> _Spliced:
        sae = fitted(model, autoencoder)
        if keep_first is not None and keep_first < 0:
            raise ConfigError(f"keep_first={keep_first} is negative.")
        return cls(model=model, sae=sae, since=len(front_of(model)) if keep_first is None else keep_first)

    def values(self, x: Float[Tensor, "batch seq d_in"], *, error: bool, edit: Edit | None = None) -> Tensor:
        """What takes the place of activations."""
        return torch.cat([x[:, : self.since], through(self.sae, x[:, self.since :], error=error, edit=edit)], 1)

    @torch.no_grad()
    def final(
        self, run: Recording, arguments: BlockArguments, *, error: bool, edit: Edit | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        """The stream after the last block."""
        x = activation(self.model, run, self.sae.site, self.sae.layer)
        return run_on(self.model, self.sae, run, arguments, self.values(x, error=error, edit=edit))


class _Sums:
    """Sums over tokens, in float64."""

    def __init__(self, spliced: _Spliced) -> None:
        self.spliced, sae = spliced, spliced.sae
        self.alive = torch.zeros(sae.n_features, dtype=torch.bool, device=sae.w_enc.device)
        self.total = torch.zeros(sae.d_in, dtype=torch.float64)
        self.tokens = self.predicted = self.active = 0
        self.squares = self.errors = 0.0
        self.losses = np.zeros(4)

    def add(self, tokens: Int[Tensor, "batch seq"], arguments: BlockArguments) -> None:
        """Prompts of one length, measured from a token on."""
        spliced, model, sae, since = self.spliced, self.spliced.model, self.spliced.sae, self.spliced.since
        run = model.record(tokens)
        x = activation(model, run, sae.site, sae.layer)
        zero = x.clone()
        zero[:, since:] = 0
        finals = [
            run.resid_final,
            spliced.final(run, arguments, error=True),
            spliced.final(run, arguments, error=False),
            run_on(model, sae, run, arguments, zero),
        ]
        losses = [_loss(model, final[:, since:-1], tokens[:, since + 1 :]) for final in finals]
        read = x[:, since:].flatten(0, 1)
        left, entries = (read.to(sae.w_enc) - sae.reconstruct(read)).double(), sae.active(read)
        self.losses += losses
        self.predicted += tokens[:, since + 1 :].numel()
        self.alive[entries.feature] = True
        self.active += len(entries)
        self.tokens += len(read)
        self.errors += float(left.square().sum())
        self.squares += float(read.double().square().sum())
        self.total += read.double().sum(0).cpu()

    def quality(self) -> Quality:
        """The numbers over all tokens so far."""
        spread = self.squares - float(self.total.square().sum()) / self.tokens
        names = ("loss", "loss_with_error", "loss_spliced", "loss_zero")
        return Quality(
            n_tokens=self.tokens,
            explained_variance=1 - self.errors / spread,
            l0=self.active / self.tokens,
            n_alive=int(self.alive.sum()),
            n_features=len(self.alive),
            **dict(zip(names, (self.losses / self.predicted).tolist(), strict=True)),
        )


def _loss(model: Model, final: Float[Tensor, "batch _ d_model"], following: Int[Tensor, "batch _"]) -> float:
    """Summed loss of the next tokens, a few tokens at a time."""
    streams, words = final.flatten(0, 1), following.flatten()
    return sum(
        float(cross_entropy(logits.double(), words[rows], reduction="sum"))
        for rows, logits in logits_by_part(model, streams)
    )
