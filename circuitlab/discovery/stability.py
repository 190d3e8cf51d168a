"""Stability: discovery, scores and selection, repeated on other prompts, and the agreement of the circuits.

There are two kinds of other prompts: **bootstrap** resamples of the discovery pairs (drawn with replacement, of the
same size), and **seeds**, each of which draws new prompts from the task. A bootstrap measures the dependence on these
prompts; seeds also measure the dependence on the choice of prompts, and are the harder test.

Most scores are means over examples. For such a method the examples are scored once, each alone, and every resample is a
weighted mean of them, without a model run. Whether a method is such a mean is tested on two pairs of prompts; others (a
search, learned masks) score every resample anew. Selection is always repeated.

References:
    Meloux et al. 2025, arXiv:2510.00845 (bootstrap resamples, pairwise Jaccard index).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from circuitlab.data.batching import Pairs
from circuitlab.data.pairs import PairSet
from circuitlab.data.registry import load_task
from circuitlab.data.task import Task
from circuitlab.discovery.method import Method, MethodLike
from circuitlab.discovery.registry import find_method, scored_under
from circuitlab.discovery.resampling import by_example, resampled
from circuitlab.discovery.scores import EdgeScores
from circuitlab.discovery.scoring import score
from circuitlab.discovery.selection import select_circuit
from circuitlab.drawing import draw
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.ranking import edge_places
from circuitlab.graphs.selection import SelectionRule
from circuitlab.metrics import MetricLike, metric_for
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.replacement import AblationLike, needs_reference
from circuitlab.progress import Progress, callback, silent
from circuitlab.settings import SETTINGS
from circuitlab.summary import Summary, largest, plural

OVER = ("bootstrap", "seeds")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Stability(Summary):
    """The circuits of many repetitions.

    Attributes:
        circuit: The circuit of all discovery pairs.
        chosen: Which edges each repetition kept, in the order of `Layout.edges`.
        over: The kind of repetitions: "bootstrap" or "seeds".
        method: Name of the scoring method.
        seed: Random seed of the repetitions.
        rescored: Whether the model was run to score every repetition; else examples were scored once.
    """

    circuit: Circuit
    chosen: Bool[np.ndarray, "repetition edge"]
    over: str
    method: str
    seed: int
    rescored: bool

    @property
    def repeated(self) -> str:
        """The kind of repetitions: resamples or seeds."""
        return "seeds" if self.over == "seeds" else "resamples"

    @property
    def sizes(self) -> Int[np.ndarray, " repetition"]:
        """Edges of each repetition's circuit."""
        return self.chosen.sum(1)

    @property
    def frequency(self) -> Float[np.ndarray, "writer reader"]:
        """Share of the repetitions that kept each edge; 0 where there is no edge."""
        found = np.zeros(self.circuit.mask.shape)
        found[tuple(edge_places(self.circuit.layout).T)] = self.chosen.mean(0)
        return found

    @property
    def pairwise(self) -> Float[np.ndarray, " two"]:
        """Jaccard index of every two repetitions: shared edges as a share of those that either has."""
        kept = self.chosen.astype(np.float64)
        shared = kept @ kept.T
        index = _jaccard(shared, self.sizes[:, None] + self.sizes[None, :] - shared)
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
        mask = self.circuit.mask[tuple(edge_places(self.circuit.layout).T)]
        return float(_jaccard((self.chosen & mask).sum(1), (self.chosen | mask).sum(1)).mean())

    def core(self, at_least: float = 1.0) -> Circuit:
        """The circuit of the edges that at least this share of the repetitions kept, pruned.

        Returns:
            The circuit.
        """
        return self.circuit.with_mask((self.frequency >= at_least) & (self.frequency > 0)).pruned()

    def to_frame(self) -> pd.DataFrame:
        """One row an edge that was ever chosen or is in the circuit: edge, frequency, in_circuit, score.

        Returns:
            The table, most frequent edges first.
        """
        places = tuple(edge_places(self.circuit.layout).T)
        frame = pd.DataFrame({
            "edge": [edge.name for edge in self.circuit.layout.edges()],
            "frequency": self.chosen.mean(0),
            "in_circuit": self.circuit.mask[places],
            "score": self.circuit.scores[places],
        })  # fmt: skip
        frame = frame.loc[frame["in_circuit"] | (frame["frequency"] > 0)]
        return frame.sort_values("frequency", ascending=False, kind="stable", ignore_index=True)

    def to_record(self) -> dict[str, Any]:
        """The content of `stability.json`; the edges are in `stability.csv`.

        Returns:
            Plain values.
        """
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

        Returns:
            The figure.
        """
        return draw(self, title=title)

    def _summary(self) -> str:
        return f"over {plural(len(self.chosen), self.repeated[:-1])}: mean Jaccard index {self.jaccard:.3f}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        share, sizes = self.chosen.mean(0), self.sizes
        yield "method", f"{self.method}, seed {self.seed}"
        yield "circuit", self.circuit
        yield "sizes", f"{sizes.min()} to {sizes.max()} edges, median {np.median(sizes):g}"
        yield "edges", f"{(share > 0).sum():,} kept at least once, {(share == 1).sum():,} always"
        yield "Jaccard", f"{self.jaccard_to_circuit:.3f} with the circuit of all pairs"
        layout = self.circuit.layout
        places = edge_places(layout)
        yield from largest(
            share.tolist(), lambda number: layout.edge_name(*places[number].tolist()), label="most frequent"
        )


@model_function
def stability(
    model: Model,
    pairs: Pairs | Task | str | Path,
    method: MethodLike = SETTINGS["method"].default,
    *,
    n_resamples: int = 100,
    over: str = "bootstrap",
    n: int = SETTINGS["n"].default,
    target: float | None = None,
    n_edges: int | None = None,
    selection: SelectionRule | None = None,
    metric: MetricLike | None = None,
    ablation: AblationLike = SETTINGS["ablation"].default,
    reference: Pairs | None = None,
    seed: int = SETTINGS["seed"].default,
    scores: EdgeScores | None = None,
    method_options: Mapping[str, Any] | None = None,
    allow_weak_gap: bool = SETTINGS["allow_weak_gap"].default,
    budget: int | None = None,
    progress: Progress | bool | None = None,
    **options: Any,
) -> Stability:
    """Repeat the discovery on other prompts; see the module.

    Args:
        model: A loaded model.
        pairs: The discovery pairs; or a task (its name, its file, or a `Task`), whose discovery pairs are drawn.
        method: How edges are scored, as in `score_edges`.
        n_resamples: Number of repetitions, at least 2.
        over: "bootstrap": resamples of the pairs. "seeds": new prompts for each of the seeds `seed` + 1, + 2, ...;
            what the method draws is of the same seed. It needs a task.
        n: Pairs, where a task is given.
        target: Faithfulness that each circuit must reach on its own pairs, as in `select`; 0.9 by default.
        n_edges: Take this many top edges (before pruning) instead: circuits of one size, and no circuit is run.
        selection: The rule of selection, where a target is not enough.
        metric: The metric; by default the task's own, or `logit_diff`.
        ablation: What excluded edges carry, in scores and selection; for a method that takes it.
        reference: Prompts that means are taken of, none of them among `pairs`. A task draws its own, for every seed.
        seed: Of the resamples, of noise and of what the method draws; with a task also of its pairs.
        scores: Scores of all the pairs, where they are known already.
        method_options: Options of the method, by name.
        allow_weak_gap: As in `select`. The gap of resamples is not checked.
        budget: Bytes that a packed run may take.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).
        options: Further options, such as `steps=5`.

    Returns:
        The circuits of all repetitions, and that of the pairs themselves.

    Raises:
        ConfigError: Fewer than 2 repetitions, seeds without a task, or two things that a selection shall reach.
        UnknownNameError: No such method, metric, ablation, task or way to other prompts.
        CircuitLabError: Scoring or selection rejects the arguments.

    Example:
        >>> from circuitlab import load_model, load_task, stability
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> found = stability(model, pairs.discovery, "eap", n_resamples=2, n_edges=20)
        >>> 0 <= found.jaccard <= 1
        True
    """
    UnknownNameError.check("way to other prompts", over, OVER)
    most = SETTINGS["stability"].most or 0
    if isinstance(n_resamples, bool) or not isinstance(n_resamples, int) or not 2 <= n_resamples <= most:
        raise ConfigError(f"n_resamples is {n_resamples!r}; at least 2 circuits can be compared, and at most {most:,}.")
    task = None if isinstance(pairs, Pairs) else load_task(pairs)
    if over == "seeds" and task is None:
        raise ConfigError("stability over seeds draws new prompts; give a task instead of pairs.")
    if task is not None and over == "seeds":
        check_seeds(task, n_resamples)
    rule = SelectionRule.of(selection, target)
    rule = rule if n_edges is None else replace(rule, n_edges=n_edges)
    discovery = Discovery(find_method(method), rule, {**options, **(method_options or {})})

    given = pairs
    if task is not None:
        given, reference = _draw(task, model, n, seed, ablation, metric)
    assert isinstance(given, Pairs)
    experiment = Experiment(model, given, metric, ablation, reference, seed, allow_weak_gap, budget, callback(progress))
    known = discovery.score(experiment) if scores is None else scores
    circuit = select_circuit(experiment, known, rule)
    experiment.recordings.release()  # memory for the repetitions
    if over == "bootstrap":
        return over_resamples(experiment, discovery, known, circuit, n_resamples)
    assert task is not None
    return over_seeds(experiment, discovery, task, circuit, n_resamples)


def check_seeds(task: Task, n_seeds: int) -> None:
    """Refuse to draw prompts of other seeds where the rows of a table are the same for every seed.

    Raises:
        ConfigError: The task is a table that is divided by a column.
    """
    if n_seeds and task.table is not None and task.table.split_column and task.split == "words":
        raise ConfigError(
            f"stability over seeds draws other prompts, but the splits of {task.table.source} fix them. Use bootstrap "
            "resamples, or split='random' (--split random)."
        )


@dataclass(frozen=True, slots=True)
class Discovery:
    """How circuits are discovered.

    Attributes:
        method: The method that scores edges.
        rule: The rule that selects the circuit.
        options: Options of the method, `steps` among them.
    """

    method: Method
    rule: SelectionRule
    options: Mapping[str, Any]

    def score(self, experiment: Experiment) -> EdgeScores:
        """Score the edges on an experiment's pairs.

        Returns:
            The scores.
        """
        return score(scored_under(self.method, experiment), self.method, **self.options)

    def repeated(
        self, experiment: Experiment, circuit: Circuit, circuits: Iterable[Circuit], n: int, **about: Any
    ) -> Stability:
        """Collect the circuits of `n` repetitions.

        Returns:
            The stability.
        """
        places = tuple(edge_places(circuit.layout).T)
        chosen = np.zeros((n, circuit.layout.n_edges), dtype=bool)
        for number, found in enumerate(circuits):
            chosen[number] = found.mask[places]
            experiment.progress(f"stability over {about['over']}", number + 1, n)
        return Stability(circuit=circuit, chosen=chosen, method=self.method.name, seed=experiment.seed, **about)


def over_resamples(
    experiment: Experiment, discovery: Discovery, scores: EdgeScores, circuit: Circuit, n: int
) -> Stability:
    """Repeat a discovery on bootstrap resamples of an experiment's pairs.

    Args:
        experiment: The pairs.
        discovery: Method, options and selection.
        scores: The scores of the pairs.
        circuit: The circuit of the pairs.
        n: The number of resamples.

    Returns:
        The circuits of all resamples.
    """

    def scored(given: Pairs) -> EdgeScores:
        return discovery.score(experiment.on(given))

    each = by_example(experiment, scored)
    drawn = resampled(experiment.pairs, scores, each, scored, n, experiment.seed)
    circuits = (select_circuit(experiment.on(given), found, discovery.rule) for given, found in drawn)
    return discovery.repeated(experiment, circuit, circuits, n, over="bootstrap", rescored=each is None)


def over_seeds(experiment: Experiment, discovery: Discovery, task: Task, circuit: Circuit, n: int) -> Stability:
    """Repeat a discovery on new prompts of the `n` seeds after the experiment's; arguments as of `over_resamples`.

    Returns:
        The circuits of all seeds.
    """

    def found_by(seed: int) -> Circuit:
        given, reference = _draw(
            task, experiment.model, experiment.n_examples, seed, experiment.ablation, experiment.metric
        )
        one = replace(experiment, pairs=given, reference=reference, seed=seed, progress=silent)
        return select_circuit(one, discovery.score(one), discovery.rule)

    seeds = range(experiment.seed + 1, experiment.seed + 1 + n)
    return discovery.repeated(experiment, circuit, map(found_by, seeds), n, over="seeds", rescored=True)


def _jaccard(shared: np.ndarray, either: np.ndarray) -> np.ndarray:
    """Shared edges as a share of those in either circuit; 1 for two empty circuits."""
    return np.where(either > 0, shared / np.maximum(either, 1), 1.0)


def _draw(
    task: Task, model: Model, n: int, seed: int, ablation: AblationLike, metric: MetricLike | None
) -> tuple[PairSet, PairSet | None]:
    """A task's discovery pairs, and the reference pairs that an ablation needs."""
    whole_answers = metric_for(metric, task).whole_answer
    splits = task.pairs(model, n=n, seed=seed, reference=needs_reference(ablation), whole_answers=whole_answers)
    return splits.discovery, splits.reference
