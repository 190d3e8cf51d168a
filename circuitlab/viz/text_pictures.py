"""Figures of predictions and checks: bars of single numbers, one a token, a class or a file."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from circuitlab.drawing import shows
from circuitlab.errors import ConfigError
from circuitlab.summary import plural
from circuitlab.viz.attribution import bars
from circuitlab.viz.text import clipped, visible_token

if TYPE_CHECKING:
    from circuitlab.discovery.behaviour import TaskCheck
    from circuitlab.graphs.compare import NodeOverlap
    from circuitlab.patching.sweeps.sweep import Estimate
    from circuitlab.predictions.log_probs import TextLogProbs
    from circuitlab.predictions.next_token import Continuation, Prediction
    from circuitlab.runs.reproduce import Reproduction

MOST_TOKENS = 40
_TITLE = 44  # characters of a text in a title


@shows("figure", "circuitlab.predictions.next_token:Prediction")
def prediction(found: Prediction) -> Figure:
    """Bars of the probabilities of the requested tokens, then of the most likely ones.

    Returns:
        The figure.

    Raises:
        ConfigError: No token was requested.
    """
    shown = {one.id: one for one in (*found.answers, *found.top)}.values()
    if not shown:
        raise ConfigError("this prediction holds no token; there is nothing to draw. Predict with k of at least 1.")
    answers = {one.id for one in found.answers}
    names = [f"{visible_token(one.token)}{' (answer)' if one.id in answers else ''}" for one in shown]
    return bars(names, np.array([one.probability for one in shown]), title=_after(found.text), quantity="probability")


@shows("figure", "circuitlab.predictions.next_token:Continuation")
def continuation(found: Continuation) -> Figure:
    """Bars of the probability of each token of the continuation, from the first.

    Returns:
        The figure.

    Raises:
        ConfigError: It has no token.
    """
    if not found.tokens:
        raise ConfigError("this continuation has no token; there is nothing to draw. Continue by at least 1.")
    names = [visible_token(token) for token in found.tokens[:MOST_TOKENS]]
    values = np.exp(np.array(found.log_probs[:MOST_TOKENS]))
    return bars(names, values, title=_after(found.text), quantity="probability")


@shows("figure", "circuitlab.predictions.log_probs:TextLogProbs")
def text_log_probs(found: TextLogProbs) -> Figure:
    """Bars of the surprisal of each predicted token, from the first; of a long text the first 40.

    Returns:
        The figure.

    Raises:
        ConfigError: No token of the text is predicted.
    """
    rows = np.flatnonzero(found.ranks >= 0)
    if not len(rows):
        raise ConfigError("no token of this text is predicted; there is nothing to draw. Give a text of two tokens.")
    shown = rows[:MOST_TOKENS]
    title = "Surprisal of each token" + (f", first {len(shown)} of {len(rows):,}" if len(rows) > len(shown) else "")
    names = [visible_token(found.tokens[row]) for row in shown]
    return bars(names, -found.log_probs[shown], title=title, quantity="minus log-probability [nats]")


@shows("figure", "circuitlab.discovery.behaviour:TaskCheck")
def task_check(found: TaskCheck) -> Figure:
    """Bars of the mean metric on both prompts and of their difference with its 99 % interval.

    Returns:
        The figure.

    Raises:
        ConfigError: There are no pairs.
    """
    if found.gap is None or found.clean is None or found.corrupt is None:
        raise ConfigError(f"there are no pairs to draw: {found.problem or 'none could be drawn'}")
    values = np.array([found.clean, found.corrupt, found.gap.mean])
    low, high = (np.array([*values[:2], end]) for end in (found.gap.low, found.gap.high))
    return bars(
        ["clean prompts", "corrupted prompts", "difference"], values, low, high, level=99,
        title=f"{clipped(found.task, 30)} on {clipped(found.model, 20)}, {found.n:,} pairs",
        quantity=f"mean {found.metric.replace('_', ' ')}",
    )  # fmt: skip


@shows("figure", "circuitlab.graphs.compare:NodeOverlap")
def node_overlap(found: NodeOverlap) -> Figure:
    """Bars of the share of each class of the list that the circuit has, and of precision and recall.

    Returns:
        The figure.
    """
    kept = {label: sum(name in found.found for name in nodes) for label, nodes in found.classes.items()}
    names = [f"{clipped(label, 18)} ({kept[label]} of {len(nodes)})" for label, nodes in found.classes.items()]
    values = [kept[label] / len(nodes) if nodes else np.nan for label, nodes in found.classes.items()]
    ours, theirs = (clipped(name, 24) for name in found.names)
    return bars(
        [*names, "precision", "recall"], np.array([*values, found.precision, found.recall]),
        title=f"{ours} and {theirs}: {plural(len(found.shared), 'shared node')}", quantity="share",
    )  # fmt: skip


@shows("figure", "circuitlab.runs.reproduce:Reproduction")
def reproduction(found: Reproduction) -> Figure:
    """Bars of the number of files with each result.

    Returns:
        The figure.
    """
    counts = Counter(one.status for one in found.files)
    title = "Reproduced" if found.ok else "Not reproduced"
    return bars(list(counts), np.array([*counts.values()], dtype=float), title=title, quantity="files", digits=0)


@shows("figure", "circuitlab.patching.sweeps.sweep:Estimate")
def estimate(found: Estimate) -> Figure:
    """Bars of the work: patched prompts and the forward passes that they cost; time and memory are in the title.

    Returns:
        The figure.
    """
    _, _, title = str(found).rpartition(": ")
    names, values = ["patched prompts", "forward passes"], np.array([found.rows, found.forward_passes])
    return bars(names, values, title=f"Estimated cost of the sweep: {title}", quantity="count", digits=1)


def _after(text: str) -> str:
    return f"After {visible_token(clipped(text, _TITLE))!r}"
