"""Stability: the whole discovery, scores and selection, done again on other prompts, and how far the circuits agree.

Two ways to other prompts: **bootstrap** resamples of the discovery pairs (drawn with replacement, as many as there
are), and **seeds**, each of which draws new prompts from the task. A bootstrap says how much the circuit owes to these
prompts; seeds say how much it owes to prompts at all, and are the harder test.

Most scores are means over examples. For such a method the examples are scored once, each alone, and every resample is a
weighted mean of them: no model run is needed to score it. Whether a method is one is tried on two pairs of prompts, not
assumed; others (a search, learned masks) are run anew on every resample. Selection is always done anew.

References:
    Meloux et al. 2025, arXiv:2510.00845 (bootstrap resamples, pairwise Jaccard index).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from circuitlab import late
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.data.registry import load_task
from circuitlab.data.task import Task
from circuitlab.discovery.scores import EdgeScores
from circuitlab.discovery.scoring import score_edges
from circuitlab.discovery.selection import select
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.exchange import drawn_nodes
from circuitlab.graphs.ranking import edge_places
from circuitlab.metrics import Metric
from circuitlab.metrics.base import MetricFunction
from circuitlab.models.protocol import Model
from circuitlab.parts import Edge
from circuitlab.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

OVER = ("bootstrap", "seeds")
# Scores of a mean over examples agree with the mean of the scores to rounding: 1e-6 of the largest, in float32.
ADDITIVE = 1e-4
# An edge outside the circuit is drawn if it was chosen in so many repetitions.
DRAWN_OUTSIDE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stability:
    """The circuits of many repetitions.

    Attributes:
        circuit: The circuit of all discovery pairs.
        chosen: Which edges each repetition kept, in the order of `Layout.edges`.
        over: What was drawn anew: "bootstrap" or "seeds".
        method: How edges were scored.
        seed: Of the repetitions.
        rescored: Whether the model was run to score every repetition; else examples were scored once.
    """

    circuit: Circuit
    chosen: Bool[np.ndarray, "repetition edge"]
    over: str
    method: str
    seed: int
    rescored: bool

    @property
    def sizes(self) -> Int[np.ndarray, " repetition"]:
        """Edges of each repetition's circuit."""
        return self.chosen.sum(1)

    @property
    def frequency(self) -> Float[np.ndarray, "writer reader"]:
        """Share of the repetitions that kept each edge; 0 where there is no edge."""
        places = edge_places(self.circuit.layout)
        found = np.zeros(self.circuit.mask.shape)
        found[places[:, 0], places[:, 1]] = self.chosen.mean(0)
        return found

    @property
    def pairwise(self) -> Float[np.ndarray, " two"]:
        """Jaccard index of every two repetitions: shared edges as a share of those that either has."""
        kept = self.chosen.astype(np.float64)
        shared = kept @ kept.T
        either = self.sizes[:, None] + self.sizes[None, :] - shared
        index = np.where(either > 0, shared / np.maximum(either, 1), 1.0)
        return index[np.triu_indices(len(index), 1)]

    @property
    def jaccard(self) -> float:
        """Mean Jaccard index over all pairs of repetitions: 1 if all circuits are the same."""
        return float(self.pairwise.mean())

    @property
    def jaccard_cv(self) -> float:
        """Standard deviation of the pairwise indices divided by their mean; NaN if no two circuits share an edge."""
        return float(self.pairwise.std() / self.jaccard) if self.jaccard > 0 else math.nan

    @property
    def jaccard_to_circuit(self) -> float:
        """Mean Jaccard index of the repetitions with the circuit of all discovery pairs."""
        places = edge_places(self.circuit.layout)
        own = self.circuit.mask[places[:, 0], places[:, 1]]
        shared, either = (self.chosen & own).sum(1), (self.chosen | own).sum(1)
        return float(np.where(either > 0, shared / np.maximum(either, 1), 1.0).mean())

    def core(self, at_least: float = 1.0) -> Circuit:
        """The circuit of the edges that at least this share of the repetitions kept, pruned to what connects."""
        return self.circuit.with_mask((self.frequency >= at_least) & (self.frequency > 0)).pruned()

    def to_frame(self) -> pd.DataFrame:
        """One row an edge that was ever chosen or is in the circuit: edge, frequency, in_circuit, score."""
        import pandas as pd

        places = edge_places(self.circuit.layout)
        rows, columns = places[:, 0], places[:, 1]
        own, share = self.circuit.mask[rows, columns], self.chosen.mean(0)
        shown = np.flatnonzero(own | (share > 0))
        edges = list(self.circuit.layout.edges())
        frame = pd.DataFrame(
            {
                "edge": [edges[i].name for i in shown],
                "frequency": share[shown],
                "in_circuit": own[shown],
                "score": self.circuit.scores[rows[shown], columns[shown]],
            }
        )
        return frame.sort_values("frequency", ascending=False, kind="stable", ignore_index=True)

    def to_record(self) -> dict[str, Any]:
        """The content of `stability.json`; the edges are in `stability.csv`."""
        share = self.chosen.mean(0)
        return {
            "method": self.method,
            "over": self.over,
            "n": len(self.chosen),
            "seed": self.seed,
            "rescored": self.rescored,
            "jaccard_mean": self.jaccard,
            "jaccard_cv": None if math.isnan(self.jaccard_cv) else self.jaccard_cv,
            "jaccard_quartiles": [float(v) for v in np.quantile(self.pairwise, (0.25, 0.5, 0.75))],
            "jaccard_to_circuit": self.jaccard_to_circuit,
            "n_edges": {"circuit": self.circuit.n_edges, "min": int(self.sizes.min()), "max": int(self.sizes.max()),
                        "median": float(np.median(self.sizes))},
            "n_edges_ever": int((share > 0).sum()),
            "n_edges_always": int((share == 1).sum()),
        }  # fmt: skip

    def plot(self, title: str = "") -> Any:
        """The circuit as a matplotlib `Figure`, each line drawn by how often its edge was chosen.

        Edges that the circuit has not and at least half of the repetitions kept are there too, in grey.
        """
        frequency, mask = self.frequency, self.circuit.mask
        shown = self.circuit.with_mask(mask | (frequency >= DRAWN_OUTSIDE))
        at = {edge.name: self.circuit.layout.edge_index(edge) for edge, _ in shown.edges()}
        records = [_drawn(edge, score) for edge, score in shown.edges()]
        return late.call(
            "circuitlab.viz", "draw_stability", drawn_nodes(shown.nodes, self.circuit.node_effects), records,
            frequency={name: float(frequency[place]) for name, place in at.items()},
            outside=[name for name, place in at.items() if not mask[place]], title=title,
        )  # fmt: skip


def _drawn(edge: Edge, score: float) -> dict[str, Any]:
    slot = edge.reader.slot.value if edge.reader.slot else None
    return {"source": edge.source.name, "target": edge.reader.node.name, "slot": slot, "score": score}


def stability(
    model: Model,
    pairs: PairSet | PairBatch | Task | str | Path,
    method: str = "eap-ig",
    *,
    n_resamples: int = 100,
    over: str = "bootstrap",
    n: int = 100,
    target: float = 0.9,
    n_edges: int | None = None,
    metric: str | Metric | MetricFunction | None = None,
    seed: int = 0,
    scores: EdgeScores | None = None,
    budget: int | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Stability:
    """Do the discovery again on other prompts, many times; see the module.

    Args:
        model: A loaded model.
        pairs: The discovery pairs; or a task (its name, its file, or a `Task`), whose discovery pairs are drawn.
        method: How edges are scored.
        n_resamples: How many repetitions, at least 2.
        over: "bootstrap": resamples of the pairs. "seeds": new prompts for each of the seeds `seed` + 1, + 2, ...;
            needs a task.
        n: Pairs, where a task is given.
        target: Faithfulness that each circuit must reach on its own pairs, as in `select`.
        n_edges: Take this many top edges (before pruning) instead: circuits of one size, and no circuit is run.
        metric: What is measured; by default the task's own, or `logit_diff`.
        seed: Of the resamples; with a task also of its pairs.
        scores: Scores of all the pairs, where they are known already.
        budget: Bytes that a packed run may take.
        progress: Called with (step, done, total).
        options: What the method is told beside, such as `steps=5`.

    Returns:
        The circuits of all repetitions beside that of the pairs themselves.

    Raises:
        ConfigError: Fewer than 2 repetitions, or seeds without a task.
        UnknownNameError: No such method, metric, task or way to other prompts.
        CircuitLabError: What scoring and selection refuse.
    """
    if over not in OVER:
        raise UnknownNameError.of("way to other prompts", over, OVER)
    if isinstance(n_resamples, bool) or not isinstance(n_resamples, int) or n_resamples < 2:
        raise ConfigError(f"n_resamples is {n_resamples!r}; at least 2 circuits can be compared.")
    task = None if isinstance(pairs, PairSet | PairBatch) else load_task(pairs)
    if over == "seeds" and task is None:
        raise ConfigError("stability over seeds draws new prompts; give a task instead of pairs.")
    own: PairSet | PairBatch = task.pairs(model, n=n, seed=seed).discovery if task else pairs  # type: ignore[assignment]
    judged_by = metric or (task.metric if task else "logit_diff")

    def scored(given: PairSet | PairBatch) -> EdgeScores:
        return score_edges(model, given, method, metric=judged_by, budget=budget, **options)

    def selected(found: EdgeScores, given: PairSet | PairBatch) -> Circuit:
        return select(model, found, given, target, n_edges=n_edges, metric=judged_by, seed=seed, budget=budget)

    whole = scored(own) if scores is None else scores
    circuit = selected(whole, own)
    if task and over == "seeds":
        drawn = (
            (split := task.pairs(model, n=n, seed=seed + 1 + i).discovery, scored(split)) for i in range(n_resamples)
        )
        rescored = True
    else:
        each = _by_example(own, scored, progress)
        rescored, drawn = each is None, _resampled(own, whole, each, scored, n_resamples, seed)
    places = edge_places(circuit.layout)
    chosen = np.zeros((n_resamples, len(places)), dtype=bool)
    for number, (given, found) in enumerate(drawn):
        chosen[number] = selected(found, given).mask[places[:, 0], places[:, 1]]
        progress("stability", number + 1, n_resamples)
    return Stability(circuit=circuit, chosen=chosen, over=over, method=method, seed=seed, rescored=rescored)


def _resampled(
    pairs: PairSet | PairBatch,
    whole: EdgeScores,
    each: Float[np.ndarray, "example edge"] | None,
    scored: Callable[[PairSet | PairBatch], EdgeScores],
    n_resamples: int,
    seed: int,
) -> Iterator[tuple[PairSet | PairBatch, EdgeScores]]:
    """Resamples of the pairs with their scores."""
    places, rng = edge_places(whole.layout), np.random.default_rng([seed, 20])
    for _ in range(n_resamples):
        index = np.sort(rng.integers(0, len(pairs), len(pairs)))
        given = _taken(pairs, index)
        if each is None:
            yield given, scored(given)
            continue
        mean, error = np.zeros(whole.standard_error.shape), np.zeros(whole.standard_error.shape)
        mean[places[:, 0], places[:, 1]] = each[index].mean(0)
        error[places[:, 0], places[:, 1]] = each[index].std(0, ddof=1) / math.sqrt(len(index)) if len(index) > 1 else 0
        yield given, replace(whole, values=mean, standard_error=error)


def _by_example(
    pairs: PairSet | PairBatch, scored: Callable[[PairSet | PairBatch], EdgeScores], progress: Progress
) -> Float[np.ndarray, "example edge"] | None:
    """Every example's scores, if the score of a set is the mean of those; None if it is not.

    GPT-2's 32,491 edges on 100 examples take 26 MB.
    """

    def of(index: list[int]) -> Float[np.ndarray, " edge"]:
        given = scored(_taken(pairs, np.array(index)))
        rows, columns = edge_places(given.layout).T
        return given.values[rows, columns]  # noqa: PD011 - scores, no data frame

    first = [of([i]) for i in range(min(2, len(pairs)))]
    if len(pairs) > 1:
        both = of([0, 1])
        if np.abs(both - np.mean(first, axis=0)).max() > ADDITIVE * max(float(np.abs(both).max()), 1e-30):
            return None
    rest = []
    for i in range(len(first), len(pairs)):
        rest.append(of([i]))
        progress("score examples", i + 1, len(pairs))
    return np.stack([*first, *rest])


def _taken(pairs: PairSet | PairBatch, index: Int[np.ndarray, " example"]) -> PairSet | PairBatch:
    """Some of the pairs, possibly several times, as a set of their own."""
    if isinstance(pairs, PairSet):
        return PairSet(tuple(pairs[int(i)] for i in index))
    at = torch.as_tensor(index, device=pairs.clean.device)
    return replace(pairs.take(at), index=torch.arange(len(index), device=pairs.clean.device))
