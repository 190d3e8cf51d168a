"""How each result is drawn: `plot()` of a result, and `circuitlab.viz.plot(result)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from circuitlab.drawing import shows
from circuitlab.errors import ConfigError
from circuitlab.viz.attention import attention_figure
from circuitlab.viz.bars import bars, head_heatmap
from circuitlab.viz.circuit import draw_circuit
from circuitlab.viz.drawn import DrawnEdge, DrawnNode
from circuitlab.viz.grid import LabelledGrid, grid_from_frame
from circuitlab.viz.heatmap import heatmap
from circuitlab.viz.looks import by_frequency, by_owner
from circuitlab.viz.neurons import importance, optimised_prompts, outliers, simplification  # noqa: F401 - registered
from circuitlab.viz.stream import lens_figure, stream_figure
from circuitlab.viz.text import visible_token

if TYPE_CHECKING:
    from circuitlab.attribution.lens import LogitLens
    from circuitlab.attribution.lens_tokens import LensTokens
    from circuitlab.attribution.patterns import AttentionPatterns
    from circuitlab.attribution.record import Attribution
    from circuitlab.discovery.stability import Stability
    from circuitlab.features.activations import FeatureActivations
    from circuitlab.graphs.circuit import Circuit
    from circuitlab.graphs.compare import Comparison
    from circuitlab.parts import Node
    from circuitlab.patching.grid import Grid

# An edge outside the circuit is drawn if it was chosen in so many repetitions.
DRAWN_OUTSIDE = 0.5
MOST_NEURONS = 24


@shows("figure", "circuitlab.patching.grid:Grid")
def grid(found: Grid) -> Figure:
    """A heatmap of a sweep."""
    raw = {} if found.normalised else {"quantity": f"{found.metric} [{found.unit}]" if found.unit else found.metric}
    return heatmap(grid_from_frame(found.to_frame().assign(direction=found.direction), **raw))


@shows("figure", "circuitlab.graphs.circuit:Circuit")
def circuit(found: Circuit, title: str = "") -> Figure:
    """A circuit: input at the bottom, logits at the top."""
    return draw_circuit(_nodes(found.nodes, found.node_effects), _edges(found), title=title)


@shows("figure", "circuitlab.graphs.compare:Comparison")
def comparison(found: Comparison, title: str = "") -> Figure:
    """Two circuits in one drawing."""
    owners = {"both": found.shared, "first": found.only_first, "second": found.only_second}
    owner_of = {edge.name: owner for owner, group in owners.items() for edge in group}
    nodes = dict.fromkeys((*found.first.nodes, *found.second.nodes))
    edges = [DrawnEdge.of(name) for name in owner_of]
    return draw_circuit(_nodes(nodes, {}), edges, title=title, looks=by_owner(owner_of, found.names))


@shows("figure", "circuitlab.discovery.stability:Stability")
def stability(found: Stability, title: str = "") -> Figure:
    """A circuit with how often each edge was chosen, and the edges that are often chosen without being in it."""
    frequency, mask, layout = found.frequency, found.circuit.mask, found.circuit.layout
    shown = found.circuit.with_mask(mask | (frequency >= DRAWN_OUTSIDE))
    places = {edge.name: layout.edge_index(edge) for edge, _ in shown.edges()}
    looks = by_frequency(
        {name: float(frequency[place]) for name, place in places.items()},
        frozenset(name for name, place in places.items() if not mask[place]),
        found.repeated,
    )
    return draw_circuit(_nodes(shown.nodes, found.circuit.node_effects), _edges(shown), title=title, looks=looks)


def _nodes(nodes: Iterable[Node], effects: Mapping[str, float]) -> list[DrawnNode]:
    """The nodes to draw, the logits always among them."""
    names = dict.fromkeys((*(node.name for node in nodes), "logits"))
    return [DrawnNode.of(name, effects.get(name)) for name in names]


def _edges(found: Circuit) -> list[DrawnEdge]:
    return [DrawnEdge.of(edge.name, score) for edge, score in found.edges()]


@shows("figure", "circuitlab.attribution.record:Attribution")
def attribution(found: Attribution, names: Sequence[str] | None = None) -> Figure:
    """Heads as a heatmap, layers as bars, neurons as the bars of the 24 largest rows; or bars of some components."""
    title = f"Direct logit attribution by {found.by}, {found.run} prompts"
    quantity = f"adds to {found.metric.replace('_', ' ')} [logits]"
    if found.by == "head" and names is None:
        return head_heatmap(found.heads, title, quantity)
    rows = list(range(len(found.components)))
    if names is not None:
        rows = [found.names.index(name) for name in names]
    elif found.by != "layer":
        rows = sorted(sorted(rows, key=lambda i: -abs(found.values[i]))[:MOST_NEURONS])
    interval, labels = found.interval, [found.names[i] for i in rows]
    return bars(labels, found.values[rows], interval.low[rows], interval.high[rows], title=title, quantity=quantity)


@shows("figure", "circuitlab.attribution.lens:LogitLens")
def logit_lens(found: LogitLens) -> Figure:
    """The metric along the stream."""
    kind = "Logit lens" if found.norm == "own" else "Stream so far, final norm's scale frozen"
    unit = f" [{found.unit}]" if found.unit else ""
    return stream_figure(
        found.labels, found.per_example, found.interval.low, found.interval.high,
        title=f"{kind}, {found.run} prompts", quantity=found.metric.replace("_", " ") + unit,
    )  # fmt: skip


@shows("figure", "circuitlab.attribution.lens_tokens:LensTokens")
def lens_tokens(found: LensTokens) -> Figure:
    """Points by tokens, in each cell the likeliest next token."""
    first = [[words[0] for words in row] for row in found.words]
    return lens_figure(found.tokens, [point.label for point in found.points], first, found.probabilities[:, :, 0])


@shows("figure", "circuitlab.attribution.patterns:AttentionPatterns")
def attention(found: AttentionPatterns) -> Figure:
    """Patterns side by side."""
    return attention_figure(found.tokens, found.heads, found.patterns, title=found.title, notes=found.notes)


@shows("figure", "circuitlab.features.activations:FeatureActivations")
def features(
    found: FeatureActivations, k: int = 12, prompt: int = 0, first: int = 0, names: Mapping[int, str] | None = None
) -> Figure:
    """The strongest features of a prompt, token by token, in the order of their peaks.

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
