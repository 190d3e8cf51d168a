"""How each result is drawn: `plot()` of a result, and `circuitlab.viz.plot(result)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from circuitlab.drawing import shows
from circuitlab.errors import ConfigError
from circuitlab.viz import score_pictures as score_pictures
from circuitlab.viz import text_pictures as text_pictures
from circuitlab.viz.attribution import attention_figure, bars, head_heatmap, lens_figure, stream_figure
from circuitlab.viz.circuit import draw_circuit
from circuitlab.viz.curves import FaithfulnessCurve, faithfulness_figure
from circuitlab.viz.grid import LEFT, RECOVERED, LabelledGrid, grid_from_frame
from circuitlab.viz.heatmap import heatmap
from circuitlab.viz.looks import DrawnEdge, DrawnNode, by_frequency, by_owner
from circuitlab.viz.save import canvas
from circuitlab.viz.style import FAINT, INK, MUTED, POSITIVE, legend_above, mixed, sign_colour
from circuitlab.viz.text import clipped, drawable, number, visible_token

if TYPE_CHECKING:
    from circuitlab.attribution.lens import LensTokens, LogitLens
    from circuitlab.attribution.record import AttentionPatterns, Attribution
    from circuitlab.discovery.stability import Stability
    from circuitlab.evaluation.evaluate import Evaluation
    from circuitlab.features.activations import FeatureActivations
    from circuitlab.graphs.circuit import Circuit
    from circuitlab.graphs.compare import Comparison
    from circuitlab.neurons.direct_effects import Importance
    from circuitlab.neurons.last_token import Simplification
    from circuitlab.neurons.outlier_scores import Outliers
    from circuitlab.neurons.prompt_search import OptimisedPrompts
    from circuitlab.parts import Node
    from circuitlab.patching.edges.edges import EdgeEffects
    from circuitlab.patching.grid import Grid, Grids
    from circuitlab.patching.paths.paths import PathEffects

# Share of repetitions from which an edge outside the circuit is drawn.
DRAWN_OUTSIDE = 0.5
MOST_BARS = 24


@shows("figure", "circuitlab.patching.grid:Grid")
def grid(found: Grid) -> Figure:
    """A heatmap of a sweep, one a metric.

    Returns:
        The figure.
    """
    names = (found.metric,) if isinstance(found.metric, str) else found.metric
    return heatmap(*(_labelled(found.of_metric(name), name if len(names) > 1 else "") for name in names))


@shows("figure", "circuitlab.patching.grid:Grids")
def grids(found: Grids) -> Figure:
    """Heatmaps of several sites side by side, of the first metric.

    Returns:
        The figure.
    """
    return heatmap(
        *(_labelled(one if isinstance(one.metric, str) else one.of_metric(one.metric[0])) for one in found.values())
    )


def _labelled(found: Grid, title: str = "") -> LabelledGrid:
    quantity = RECOVERED if found.corrupt is not None else LEFT
    if not found.normalised:
        quantity = f"{found.metric} [{found.unit}]" if found.unit else str(found.metric)
    labelled = grid_from_frame(found.to_frame().assign(direction=found.direction), quantity=quantity)
    return replace(labelled, title=f"{labelled.title}: {title}") if title else labelled


@shows("figure", "circuitlab.patching.edges.edges:EdgeEffects")
def edge_effects(found: EdgeEffects) -> Figure:
    """Bars of the 24 largest edges; edges by positions or spans as a heatmap.

    Returns:
        The figure.
    """
    values, interval = found.values, found.interval
    rows = _largest(np.abs(values).max(1, initial=0, where=~np.isnan(values)))
    names = tuple(found.edges[row].name for row in rows)
    title, quantity = "Direct effects of edges", _quantity(found)
    if len(found.columns) == 1:
        low, high = interval.low[rows, 0], interval.high[rows, 0]
        return bars(names, values[rows, 0], low, high, title=title, quantity=quantity)
    return heatmap(
        LabelledGrid(
            values=values[rows], row_labels=names, col_labels=tuple(map(visible_token, found.columns)),
            row_title="edge", col_title=found.column_kind, title=title, quantity=quantity, low=interval.low[rows],
            high=interval.high[rows],
        )
    )  # fmt: skip


@shows("figure", "circuitlab.patching.paths.paths:PathEffects")
def path_effects(found: PathEffects) -> Figure:
    """Bars of the 24 largest senders.

    Returns:
        The figure.
    """
    rows, interval = _largest(np.abs(found.values)), found.interval
    return bars(
        [found.senders[row].name for row in rows], found.values[rows], interval.low[rows], interval.high[rows],
        title=f"Paths to {', '.join(reader.name for reader in found.receivers)}", quantity=_quantity(found),
    )  # fmt: skip


def _largest(sizes: np.ndarray) -> list[int]:
    """Places of the `MOST_BARS` largest, in their order."""
    return sorted(np.argsort(-sizes, kind="stable")[:MOST_BARS].tolist())


def _quantity(found: EdgeEffects | PathEffects) -> str:
    return f"effect on {found.metric.replace('_', ' ')}" + (f" [{found.unit}]" if found.unit else "")


@shows("figure", "circuitlab.graphs.circuit:Circuit")
def circuit(found: Circuit, title: str = "") -> Figure:
    """A circuit: input at the bottom, logits at the top.

    Returns:
        The figure.
    """
    return draw_circuit(_nodes(found.nodes, found.node_effects), _edges(found), title=title, sign=_sign(found))


@shows("figure", "circuitlab.graphs.compare:Comparison")
def comparison(found: Comparison, title: str = "") -> Figure:
    """Two circuits in one drawing.

    Returns:
        The figure.
    """
    owners = {"both": found.shared, "first": found.only_first, "second": found.only_second}
    owner_of = {edge.name: owner for owner, group in owners.items() for edge in group}
    nodes = dict.fromkeys((*found.first.nodes, *found.second.nodes))
    edges = [DrawnEdge.of(name) for name in owner_of]
    return draw_circuit(_nodes(nodes, {}), edges, title=title, looks=by_owner(owner_of, found.names))


@shows("figure", "circuitlab.discovery.stability:Stability")
def stability(found: Stability, title: str = "") -> Figure:
    """A circuit with how often each edge was chosen, and the edges that are often chosen without being in it.

    Returns:
        The figure.
    """
    frequency, mask, layout = found.frequency, found.circuit.mask, found.circuit.layout
    shown = found.circuit.with_mask(mask | (frequency >= DRAWN_OUTSIDE))
    places = {edge.name: layout.edge_index(edge) for edge, _ in shown.edges()}
    looks = by_frequency(
        {name: float(frequency[place]) for name, place in places.items()},
        frozenset(name for name, place in places.items() if not mask[place]),
        found.repeated,
    )
    nodes = _nodes(shown.nodes, found.circuit.node_effects)
    return draw_circuit(nodes, _edges(shown), title=title, looks=looks, sign=_sign(found.circuit))


def _sign(found: Circuit) -> str | None:
    """What the sign of the scores means, where the circuit was selected from scores that say so."""
    return found.selection and found.selection.sign


def _nodes(nodes: Iterable[Node], effects: Mapping[str, float]) -> list[DrawnNode]:
    """The nodes to draw, the logits always among them."""
    names = dict.fromkeys((*(node.name for node in nodes), "logits"))
    return [DrawnNode.of(name, effects.get(name)) for name in names]


def _edges(found: Circuit) -> list[DrawnEdge]:
    return [DrawnEdge.of(edge.name, score) for edge, score in found.edges()]


@shows("figure", "circuitlab.evaluation.evaluate:Evaluation")
def evaluation(found: Evaluation, title: str = "") -> Figure:
    """Faithfulness over the number of edges.

    Returns:
        The figure.
    """
    return faithfulness_figure(FaithfulnessCurve.of(found.to_record()), title=title)


@shows("figure", "circuitlab.attribution.record:Attribution")
def attribution(found: Attribution, names: Sequence[str] | None = None) -> Figure:
    """Heads as a heatmap, layers as bars, neurons as the bars of the 24 largest rows; or bars of some components.

    Returns:
        The figure.
    """
    title = f"Direct logit attribution by {found.by}, {found.run} prompts"
    quantity = f"adds to {found.metric.replace('_', ' ')} [logits]"
    if found.by == "head" and names is None:
        return head_heatmap(found.heads, title, quantity)
    rows = list(range(len(found.components)))
    if names is not None:
        rows = [found.names.index(name) for name in names]
    elif found.by != "layer":
        rows = _largest(np.abs(found.values))
    interval, labels = found.interval, [found.names[i] for i in rows]
    return bars(labels, found.values[rows], interval.low[rows], interval.high[rows], title=title, quantity=quantity)


@shows("figure", "circuitlab.attribution.lens:LogitLens")
def logit_lens(found: LogitLens) -> Figure:
    """The metric along the stream.

    Returns:
        The figure.
    """
    kind = "Logit lens" if found.norm == "applied" else "Stream so far, final norm's scale frozen"
    unit = f" [{found.unit}]" if found.unit else ""
    return stream_figure(
        found.labels, found.per_example, found.interval.low, found.interval.high,
        title=f"{kind}, {found.run} prompts", quantity=found.metric.replace("_", " ") + unit,
    )  # fmt: skip


@shows("figure", "circuitlab.attribution.lens:LensTokens")
def lens_tokens(found: LensTokens) -> Figure:
    """Points by tokens, in each cell the likeliest next token.

    Returns:
        The figure.
    """
    first = [[words[0] for words in row] for row in found.words]
    return lens_figure(found.tokens, [point.label for point in found.points], first, found.probabilities[:, :, 0])


@shows("figure", "circuitlab.attribution.record:AttentionPatterns")
def attention(found: AttentionPatterns) -> Figure:
    """Patterns side by side.

    Returns:
        The figure.
    """
    return attention_figure(found.tokens, found.heads, found.patterns, title=found.title, notes=found.notes)


@shows("figure", "circuitlab.features.activations:FeatureActivations")
def features(
    found: FeatureActivations, k: int = 12, prompt: int = 0, first: int = 0, names: Mapping[int, str] | None = None
) -> Figure:
    """The strongest features of a prompt, token by token, in the order of their peaks.

    Returns:
        A heatmap, a feature a row.

    Raises:
        ConfigError: No feature is active in the prompt.
    """
    chosen = [each.feature for each in found.strongest(k, prompt, first)]
    if not chosen:
        raise ConfigError(f"no feature is active in prompt {prompt}; there is nothing to draw.")
    rows = {feature: found.of(feature, prompt)[first:] for feature in chosen}
    order = sorted(chosen, key=lambda feature: (int(rows[feature].argmax()), feature))
    values = np.stack([rows[feature] for feature in order])
    words, tokens = names or {}, found.tokens[prompt]
    return heatmap(
        LabelledGrid(
            values=values,
            row_labels=tuple(f"{feature} {words[feature]}" if feature in words else str(feature) for feature in order),
            col_labels=tuple(map(visible_token, tokens[first:])),
            row_title="feature",
            col_title="token",
            title="Active features",
            quantity="activation",
            one_sided=bool((values >= 0).all()),
            col_numbers=tuple(map(str, range(first, len(tokens)))),
        )
    )


_SCATTER, _SEARCH = (4.6, 3.0), (4.8, 2.7)
_LINE = 0.155  # of the list beside a scatter
_STEP, _BAR, _LONGEST = 0.19, 1.7, 90


@shows("figure", "circuitlab.neurons.direct_effects:Importance")
def importance(found: Importance, k: int = 10) -> Figure:
    """The first k neurons by prompt, and their average; the most important neuron at the top.

    Returns:
        The figure.
    """
    chosen = found.top(k)
    return heatmap(
        LabelledGrid(
            values=np.column_stack([found.shares[chosen], found.average[chosen]]),
            row_labels=tuple(f"{found.layers[i]}.{found.neurons[i]}" for i in chosen),
            col_labels=(*found.answers, "average"),
            row_title="neuron",
            col_title="predicted token",
            title="Direct effect of neurons on the prediction",
            quantity="share of all neurons",
        )
    )


@shows("figure", "circuitlab.neurons.outlier_scores:Outliers")
def outliers(found: Outliers, n_top: int = 10) -> Figure:
    """Ablation loss against outlier score, one dot a position; the highest combinations are numbered and listed.

    Returns:
        The figure.
    """
    positions = found.to_frame()
    top, rest = positions.iloc[:n_top], positions.iloc[n_top:]
    with canvas(*_SCATTER, "outliers") as (figure, axes):
        axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
        axes.scatter(rest["outlier_score"], rest["ablation_loss"], s=9, color=MUTED, alpha=0.55, lw=0)
        axes.scatter(top["outlier_score"], top["ablation_loss"], s=16, color=POSITIVE, lw=0, zorder=3)
        axes.set_xlabel("outlier score: largest neuron minus mean over neurons")
        axes.set_ylabel("ablation loss [nats]")
        axes.text(1.03, 1.0, "highest combination", transform=axes.transAxes, fontsize=7, color=MUTED, va="top")
        for rank, row in enumerate(top.to_dict("records"), start=1):
            at = (row["outlier_score"], row["ablation_loss"])
            axes.annotate(str(rank), at, (3.5, 1.5), textcoords="offset points", fontsize=6, color=INK)
            token = visible_token(str(row["token"]), 16)
            line = f"{rank}.  {token}   prompt {row['prompt']}, position {row['position']}"
            y = 1.0 - (rank + 0.3) * _LINE / _SCATTER[1]
            axes.text(1.03, y, drawable(line), transform=axes.transAxes, fontsize=7, color=INK, va="top")
    return figure


@shows("figure", "circuitlab.neurons.prompt_search:OptimisedPrompts")
def optimised_prompts(found: OptimisedPrompts) -> Figure:
    """The best prompt so far of each search against the step, with the best of as many random prompts.

    Returns:
        The figure.
    """
    best = (np.maximum if found.direction == "max" else np.minimum).accumulate(found.hard)
    steps = np.arange(len(best))
    with canvas(*_SEARCH, "search") as (figure, axes):
        lines = axes.plot(steps, best, color=mixed(POSITIVE, 0.45), lw=0.9)
        lines[0].set_label("one search each")
        whole = best.max(1) if found.direction == "max" else best.min(1)
        axes.plot(steps, whole, color=INK, lw=1.6, label="best of all")
        random = float(found.baseline.best[0])
        axes.axhline(random, color=MUTED, lw=1.0, ls=(0, (4, 1.6)), label="best of as many random prompts")
        axes.set_xlabel("step")
        axes.set_ylabel("neuron at the last token")
        legend_above(axes)
    return figure


@shows("figure", "circuitlab.neurons.last_token:Simplification")
def simplification(found: Simplification) -> Figure:
    """One line a step: the text, and a bar for the activation at its last token.

    Returns:
        The figure.
    """
    texts = [drawable(clipped(visible_token(step.tokens.text), _LONGEST)) for step in found.steps]
    values, places = [step.activation for step in found.steps], range(len(texts))
    with canvas(_BAR, len(texts) * _STEP, "steps") as (figure, axes):
        axes.barh(list(places), values, height=0.62, color=[sign_colour(value) for value in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_yticks(list(places), texts, fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color=FAINT, lw=0.8)
        axes.axvline(values[0], color=MUTED, lw=0.7, ls=(0, (2, 2)))
        axes.spines["left"].set_visible(False)
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                number(value, 2), (max(value, 0.0), place), (3, 0), textcoords="offset points", fontsize=6.5,
                color=INK, va="center",
            )  # fmt: skip
        axes.set_xlabel("neuron at the last token")
    return figure
