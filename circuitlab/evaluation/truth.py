"""How well scores distinguish the edges of a known circuit from all others: AUROC and average precision.

All edges of the model's graph are ranked, including those of unused parts; folded, all pairs of nodes with an edge, q,
k and v taken together. Edges are ranked by absolute score, or by score. The smallest difference counts, such as scores
of 1e-9 from rounding. With `tolerance`, scores of at most this share of the largest count as 0 and tie.

    AUROC              the share of pairs of a true and another edge in which the true one scores higher; a tie counts
                       half. It is the area under the curve (false positive rate, true positive rate) over all
                       thresholds, which starts at (0, 0), ends at (1, 1), and is straight where scores are equal.
    average precision  the sum over thresholds of (recall gained) times (precision there); edges of equal score enter
                       together.

The interval is a bootstrap over edges, true and other ones resampled separately. It is about the choice of edges, not
of prompts.

References:
    Hanley and McNeil 1982, Radiology 143:29 (AUROC as a Mann-Whitney statistic); Conmy et al. 2023, arXiv:2304.14997
    (ROC of circuits against known ones).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.arguments import checked, renamed
from circuitlab.errors import ConfigError, GraphError
from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Layout, ModelSpec
from circuitlab.result import Result
from circuitlab.stats import CONFIDENCE, N_RESAMPLES
from circuitlab.summary import plural

# Largest number of values in memory at once; resamples are drawn in parts.
NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Recovery(Result):
    """How well scores find the true edges.

    Attributes:
        auroc: Area under the receiver operating characteristic; 0.5 is chance.
        auroc_interval: 95 % bootstrap interval over edges.
        average_precision: Its chance level is `n_true / n_edges`.
        average_precision_interval: 95 % bootstrap interval over edges.
        n_true: True edges.
        n_edges: Edges of the universe.
        folded: Whether q, k and v edges of the same nodes count as one.
    """

    auroc: float
    auroc_interval: tuple[float, float]
    average_precision: float
    average_precision_interval: tuple[float, float]
    n_true: int
    n_edges: int
    folded: bool

    def _summary(self) -> str:
        return f"of {self.n_true:,} of {plural(self.n_edges, 'edge')}: AUROC {self.auroc:.3f}"


@renamed(floor="tolerance")
@checked
def recovery(
    spec: ModelSpec,
    scores: Float[np.ndarray, "writer reader"],
    truth: Bool[np.ndarray, "writer reader"],
    *,
    signed: bool = False,
    folded: bool = False,
    tolerance: float = 0.0,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Recovery:
    """Compare scores with a known circuit.

    Args:
        spec: The model's shape.
        scores: One score an edge.
        truth: The true edges.
        signed: Rank by score; else by its absolute value.
        folded: Take q, k and v edges between the same nodes together: the highest of their scores, true if one is.
        tolerance: Scores of at most this share of the largest in size count as 0, and tie.
        seed: Of the intervals.
        n_resamples: Of the intervals.

    Returns:
        AUROC and average precision.

    Raises:
        GraphError: A matrix has the wrong shape, a score is not a number, or the truth holds no edge, or all.
        ConfigError: The tolerance is not a share.

    Example:
        >>> from circuitlab import compile_model, recovery, score_edges
        >>> built = compile_model("copier")
        >>> pairs = built.pairs(n=8)
        >>> scores = score_edges(built.model, pairs, "exact")
        >>> recovery(scores.spec, scores.values, built.truth("corrupt", pairs).mask).auroc
        1.0
    """
    if not 0 <= tolerance < 1:
        raise ConfigError(f"tolerance is {tolerance}; it is a share of the largest score, at least 0 and below 1.")
    values, true = _universe(Layout.of(spec), scores, truth, signed, folded)
    values = np.where(np.abs(values) <= tolerance * np.abs(values).max(), 0.0, values)
    of_area, of_precision = _resampled(values, true, seed, n_resamples).tolist()
    (area,), (precision,) = _judge(values, true, np.ones((1, len(values))))
    return Recovery(
        auroc=float(area),
        auroc_interval=tuple(of_area),
        average_precision=float(precision),
        average_precision_interval=tuple(of_precision),
        n_true=int(true.sum()),
        n_edges=len(true),
        folded=folded,
    )


def _universe(
    layout: Layout, scores: np.ndarray, truth: np.ndarray, signed: bool, folded: bool
) -> tuple[Float[np.ndarray, " edge"], Bool[np.ndarray, " edge"]]:
    real = real_edges(layout)
    for name, matrix in (("scores", scores), ("truth", truth)):
        if matrix.shape != real.shape:
            raise GraphError(
                f"{name} has shape {matrix.shape}; model {layout.spec.name!r} has {real.shape} writers, readers."
            )
    if bool((truth & ~real).any()):
        raise GraphError(f"the truth holds edges that model {layout.spec.name!r} does not have.")
    if not np.isfinite(scores[real]).all():
        raise GraphError("some edges have no score (NaN or infinite), so they cannot be ranked. Score every edge.")
    keys = scores if signed else np.abs(scores)
    if folded:
        owners = np.array(layout.owners)
        kept = [(real[:, owners == node].any(1), owners == node) for node in np.unique(owners)]
        values = np.concatenate([np.where(real, keys, -np.inf)[rows][:, at].max(1) for rows, at in kept])
        true = np.concatenate([truth[rows][:, at].any(1) for rows, at in kept])
    else:
        values, true = keys[real], truth[real]
    if not true.any() or true.all():
        raise GraphError(
            f"the truth holds {int(true.sum())} of {len(true)} edges; a ranking needs true edges and others."
        )
    return values, true


def _cumulated(
    scores: np.ndarray, true: np.ndarray, counts: Float[np.ndarray, "resample edge"]
) -> tuple[Float[np.ndarray, "resample point"], Float[np.ndarray, "resample point"]]:
    """True and other edges at or above each threshold; the first threshold is above every score."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)

    def up_to(weights: np.ndarray) -> np.ndarray:
        total = weights[:, order].cumsum(1)[:, last]
        return np.concatenate([np.zeros((len(total), 1)), total], 1)

    return up_to(counts * true), up_to(counts * ~true)


def _judge(
    scores: np.ndarray, true: np.ndarray, counts: Float[np.ndarray, "resample edge"]
) -> tuple[Float[np.ndarray, " resample"], Float[np.ndarray, " resample"]]:
    """AUROC and average precision, with a count for each edge."""
    hits, others = _cumulated(scores, true, counts)
    gained, passed = np.diff(hits), np.diff(others)
    middle = (hits[:, 1:] + hits[:, :-1]) / 2
    area = (passed * middle).sum(1) / (others[:, -1] * hits[:, -1])
    named = hits[:, 1:] + others[:, 1:]
    precision = np.divide(hits[:, 1:], named, out=np.zeros_like(named), where=named > 0)
    return area, (gained * precision).sum(1) / hits[:, -1]


def _resampled(scores: np.ndarray, true: np.ndarray, seed: int, n_resamples: int) -> Float[np.ndarray, "measure end"]:
    """The 95 % bootstrap intervals of AUROC and average precision."""
    rng = np.random.default_rng([seed, 3])
    size = max(1, NUMBERS_AT_ONCE // len(scores))
    found: list[np.ndarray] = []
    for start in range(0, n_resamples, size):
        counts = np.zeros((min(size, n_resamples - start), len(scores)))
        for group in (true, ~true):
            many = int(group.sum())
            counts[:, group] = rng.multinomial(many, np.full(many, 1 / many), size=len(counts))
        found.append(np.stack(_judge(scores, true, counts)))
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(np.concatenate(found, 1), [tail, 1 - tail], axis=1).T
