"""Rank features by attribution: how far each would move the metric, to first order, all from one gradient.

    score(f) = sum over tokens of (f_clean - f_corrupt) * dm/df,     dm/df = (dm/dx) . W_dec[f]

What features do not carry is the error term's score. Features and error term together give
(x_clean - x_corrupt) . dm/dx, the first-order change of the metric when the whole activation is moved. With several
steps the gradient is averaged along the straight line between the two activations (integrated gradients), and the sum
is the real change but for the steps.

References:
    Marks et al. 2024, arXiv:2403.19647 (features and error terms as nodes of circuits).
    Sundararajan et al. 2017, arXiv:1703.01365.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab import stats
from circuitlab.data.batching import Pairs, check_answers, check_corrupted
from circuitlab.errors import ConfigError, MetricError, UnknownNameError
from circuitlab.features.autoencoder import Autoencoder
from circuitlab.features.descriptions import Descriptions
from circuitlab.features.place import activation, differences, fitted, run_on
from circuitlab.metrics import Metric, MetricLike, metric_for
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.gradients.metric_gradients import judged
from circuitlab.patching.grid import Grid
from circuitlab.patching.runs.baseline import Baseline, at_answer
from circuitlab.patching.runs.reach import tokens_that_matter
from circuitlab.progress import Progress, callback
from circuitlab.result import Result
from circuitlab.summary import largest, plural

ENDS = ("corrupt", "clean")
ENTRIES_AT_ONCE = 2**24  # numbers of gathered decoder rows: 64 MB in float32
ALIVE = 24  # tensors of the stream's size that a block keeps for its gradient, about


def check_end(at: str) -> None:
    """Refuse an end that there is not.

    Raises:
        UnknownNameError: It is neither "corrupt" nor "clean".
    """
    UnknownNameError.check("end", at, ENDS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class FeatureRanking(Result):
    """What features add to the metric's way from the corrupted to the clean run, to first order, largest size first.

    Attributes:
        autoencoder: Name of the autoencoder.
        metric: Name of the metric.
        unit: Its unit.
        at: Where the gradient was taken: "corrupt", "clean", or "between" (integrated).
        steps: Over how many points it was averaged.
        features: Numbers of the features, the largest mean score (in size) first.
        per_example: Their scores; positive where moving the feature from corrupted to clean raises the metric.
        change: Mean over examples of clean minus corrupted activation, summed over tokens.
        error: Score of the error term.
        total: First-order change of the metric when everything at this place is moved.
        clean: Metric of the clean run.
        corrupt: Metric of the corrupted run.
        seed: Seed of intervals and p-values.
    """

    autoencoder: str
    metric: str
    unit: str
    at: str
    steps: int
    features: tuple[int, ...]
    per_example: Float[np.ndarray, "feature example"]
    change: Float[np.ndarray, " feature"]
    error: Float[np.ndarray, " example"]
    total: Float[np.ndarray, " example"]
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"]
    seed: int = 0

    @property
    def scores(self) -> Float[np.ndarray, " feature"]:
        """Mean over examples, in the unit of the metric."""
        return self.per_example.mean(-1)

    @property
    def gap(self) -> float:
        """How far the metric really goes: clean minus corrupted, mean over examples."""
        return float((self.clean - self.corrupt).mean())

    @property
    def remainder(self) -> float:
        """What features and error term leave of `total`: rounding, and the scales of an autoencoder that normalises."""
        return float((self.total - self.error - self.per_example.sum(0)).mean())

    def agreement(self, grid: Grid) -> float:
        """Spearman correlation with an exact sweep over all tokens at once, of the features that both have.

        Args:
            grid: `sweep_features(..., axis="all")` of the same pairs.

        Returns:
            The correlation, from -1 to 1.

        Raises:
            ConfigError: It is no such sweep, or shares fewer than three features.
        """
        if grid.site != "feature" or grid.column_kind != "feature":
            raise ConfigError('agreement is with sweep_features(..., axis="all"), which has one cell a feature.')
        moved = grid.per_example[0].mean(-1) - (grid.unit_end if grid.direction == "denoise" else grid.clean).mean()
        exact = dict(zip(map(int, grid.columns), moved * (1 if grid.direction == "denoise" else -1), strict=True))
        ours = dict(zip(self.features, self.scores, strict=True))
        shared = [feature for feature in ours if feature in exact]
        if len(shared) < 3:
            raise ConfigError(f"sweep and ranking share {len(shared)} features; a correlation needs three.")
        from scipy.stats import spearmanr

        found: Any = spearmanr([ours[f] for f in shared], [exact[f] for f in shared])
        return float(found.statistic)

    def to_frame(self, descriptions: Descriptions | None = None) -> pd.DataFrame:
        """One row a feature: feature, score, share (of the gap), ci_low, ci_high, p_value, change, n, (description).

        Returns:
            The table.
        """
        interval = stats.mean_interval(self.per_example, self.seed)
        frame = pd.DataFrame(
            {
                "feature": self.features,
                "score": self.scores,
                "share": self.scores / self.gap,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "p_value": stats.sign_flip_p(self.per_example, self.seed),
                "change": self.change,
                "n": self.per_example.shape[-1],
            }
        )
        return frame if descriptions is None else descriptions.join(frame)

    def _summary(self) -> str:
        size = plural(len(self.features), "feature")
        return f"of {self.autoencoder}: {size}, {plural(self.per_example.shape[-1], 'pair')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "metric", f"{self.metric}: clean {self.clean.mean():.4g}, corrupted {self.corrupt.mean():.4g}"
        yield from largest(self.scores, lambda number: f"feature {self.features[number]}")


@model_function
def rank_features(
    model: Model,
    autoencoder: Autoencoder,
    pairs: Pairs,
    *,
    metric: MetricLike | None = None,
    at: str = "corrupt",
    steps: int = 1,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress | bool | None = None,
) -> FeatureRanking:
    """Score every feature that differs between clean and corrupted run.

    Args:
        model: A loaded model.
        autoencoder: Of this model.
        pairs: A split of a task, or a `PairBatch`.
        metric: What is differentiated; by default the metric of the task that drew the pairs, else `logit_diff`.
        at: With one step: take the gradient on the "corrupt" or on the "clean" run.
        steps: With more than one: average it over this many points between the two activations (the middle of each
            step); the rest of the run follows from them.
        seed: Of intervals and p-values.
        budget: Bytes that a run may take; a share of what is free by default.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total) after each batch of prompts.

    Returns:
        Scores of all features that differ, the largest in size first, in the unit of the metric; positive where moving
        the feature from corrupted to clean raises the metric.

    Raises:
        ConfigError: The autoencoder does not fit the model, `steps` is below 1, or no feature differs.
        UnknownNameError: No such end or metric, or the model has no such site.
        MetricError: The metric has no gradient, or does not distinguish the two runs.
    """
    check_end(at)
    if steps < 1:
        raise ConfigError(f"steps={steps}: the gradient is taken at one point at least.")
    sae = fitted(model, autoencoder)
    check_answers(pairs, model.spec)
    check_corrupted(pairs, "the feature's values in clean and corrupted run are compared")
    resolved = metric_for(metric, pairs)
    if not resolved.smooth:
        raise MetricError(f"metric {resolved.name!r} has no gradient. Use logit_diff, prob_diff or log_prob.")
    experiment = Experiment(
        model, pairs, resolved, seed=seed, allow_weak_gap=True, budget=budget, progress=callback(progress)
    )
    experiment.prompt_gap  # noqa: B018 - refuses a metric that does not distinguish the two runs
    parts = experiment.recordings.parts(ALIVE * (model.spec.n_layers - sae.layer))
    ends = np.zeros((4, experiment.n_examples))  # clean, corrupt, error, total
    entries: list[pd.DataFrame] = []
    for number, batch in enumerate(parts):
        baseline, where = experiment.recordings.baseline(batch), batch.index.cpu().numpy()
        gradient = mean_gradient(model, sae, baseline, resolved, at, steps)
        scored, error, total = _scores(model, sae, baseline, gradient, at)
        both = torch.stack([*baseline.gap(resolved), error, total])
        ends[:, where] = both.double().cpu().numpy()
        entries.append(scored.assign(example=where[scored["example"]]))
        experiment.progress("attribution", number + 1, len(parts))
    table = pd.concat(entries)
    if table.empty:
        raise ConfigError(f"no feature of autoencoder {sae.name!r} differs between the clean and the corrupted runs.")
    scores = table.pivot_table("score", "feature", "example", "sum", fill_value=0.0)
    scores = scores.reindex(columns=range(experiment.n_examples), fill_value=0.0)
    scores = scores.iloc[np.argsort(-np.abs(scores.to_numpy().mean(1)), kind="stable")]
    change = table.pivot_table("change", "feature", aggfunc="sum").reindex(scores.index) / experiment.n_examples
    clean, corrupt, error, total = ends
    return FeatureRanking(
        autoencoder=sae.name,
        metric=resolved.name,
        unit=resolved.unit,
        at=at if steps == 1 else "between",
        steps=steps,
        features=tuple(map(int, scores.index)),
        per_example=scores.to_numpy(),
        change=change["change"].to_numpy(),
        error=error,
        total=total,
        clean=clean,
        corrupt=corrupt,
        seed=seed,
    )


def mean_gradient(
    model: Model, sae: Autoencoder, baseline: Baseline, metric: Metric, at: str, steps: int
) -> Float[Tensor, "batch seq d_in"]:
    """The gradient of each example's metric at the autoencoder's place, at one end or averaged between both.

    Returns:
        Gradients `[batch, seq, d_in]`, each example's own.

    Raises:
        MetricError: The metric does not depend on the logits in a way that torch can follow.
    """
    clean, corrupt = (activation(model, run, sae.site, sae.layer) for run in (baseline.clean, baseline.corrupt))
    run = baseline.clean if at == "clean" and steps == 1 else baseline.corrupt
    places = [(i + 0.5) / steps for i in range(steps)] if steps > 1 else [1.0 if at == "clean" else 0.0]
    gradient = torch.zeros_like(corrupt)
    for share in places:
        with torch.enable_grad():
            value = (corrupt + share * (clean - corrupt)).detach().requires_grad_()
            final = run_on(model, sae, run, baseline.arguments, value)
            total = judged(model, metric, baseline.batch, at_answer(final, baseline.batch.answer_at)).sum()
        if not total.requires_grad:
            raise MetricError(f"metric {metric.name!r} does not depend on the logits in a way that torch can follow.")
        gradient += torch.autograd.grad(total, value)[0] / steps
    return gradient


def _scores(
    model: Model, sae: Autoencoder, baseline: Baseline, gradient: Float[Tensor, "batch seq d_in"], at: str
) -> tuple[pd.DataFrame, Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Scores of features, of the error term, and of the whole activation, by example.

    Returns:
        Columns example, feature, score and change of the features that differ; the other two scores.
    """
    found = differences(model, sae, baseline)
    base = baseline.clean if at == "clean" else baseline.corrupt
    scale = sae.scaled(activation(model, base, sae.site, sae.layer)).scale[found.example, found.position, 0]
    # The gradient along each entry's decoder row, some entries at a time.
    parts = (each.split(max(1, ENTRIES_AT_ONCE // sae.d_in)) for each in (found.example, found.position, found.feature))
    along = [(gradient[e, p].to(sae.w_dec) * sae.w_dec[f]).sum(1) for e, p, f in zip(*parts, strict=True)]
    score = found.change * scale * torch.cat(along)
    clean, corrupt = (activation(model, run, sae.site, sae.layer) for run in (baseline.clean, baseline.corrupt))
    gradient = gradient * tokens_that_matter(model.spec, baseline.batch, from_difference=True)[:, :, None]
    total = ((clean - corrupt) * gradient).sum((1, 2))
    left = [x - sae.reconstruct(x).to(x) for x in (clean, corrupt)]
    error = ((left[0] - left[1]) * gradient).sum((1, 2))
    keys, place = (found.example * sae.n_features + found.feature).unique(return_inverse=True)
    both = torch.zeros(2, len(keys), dtype=torch.float64, device=keys.device)
    both.index_add_(1, place, torch.stack([score, found.change]).double())
    example, feature, both = (t.cpu().numpy() for t in (keys // sae.n_features, keys % sae.n_features, both))
    columns = {"example": example, "feature": feature, "score": both[0], "change": both[1]}
    return pd.DataFrame(columns), error, total
