"""What direct logit attribution gives back: one value per component and example, and their sum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuitlab import stats
from circuitlab.arguments import checked
from circuitlab.drawing import draw
from circuitlab.errors import ConfigError
from circuitlab.patching.effects import Means
from circuitlab.summary import Summary, largest, plural, short

# Rows whose intervals are taken together: a bootstrap of GPT-2's 36,864 neurons at once would take 600 MB.
ROWS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True, order=True, repr=False)
class Component(Summary):
    """A summand of the final stream, or of the logits.

    Attributes:
        name: "embed", "embed.token", "embed.position", "a0" (an attention layer with its bias), "a0.h1", "a0.bias",
            "m0" (an MLP with its bias), "m0.n17", "m0.bias", "norm.bias", "unembed.bias", "softcap".
        kind: "embedding", "attention", "head", "mlp", "neuron", "bias" or "softcap".
        layer: Of the layer's parts.
        index: Of a head or a neuron.
    """

    name: str
    kind: str
    layer: int | None = None
    index: int | None = None

    def _summary(self) -> str:
        return short(self.name, 60)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Attribution(Means):
    """A quantity at the answer position, split over everything that adds to it.

    Positive: without what this component writes, and with the final norm's scale as it was, the quantity would be
    smaller by so much. It is the direct path alone: what a head does through later layers is in their values.

    Columns of `to_frame`: component, kind, layer, index, value, ci_low, ci_high, n. `plot` draws heads as a heatmap,
    layers as bars, and neurons as the bars of the 24 largest.

    Attributes:
        metric: "logit_diff" or "logit".
        run: "clean" or "corrupt": the prompts that were run.
        by: "layer", "head" or "neuron".
        components: What the rows are.
        per_example: Each component's share, in logits.
        total: The quantity as the model itself gives it.
        seed: Of the intervals.
    """

    metric: str
    run: str
    by: str
    components: tuple[Component, ...]
    per_example: Float[np.ndarray, "component example"]
    total: Float[np.ndarray, " example"]
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the components, in the order of the rows."""
        return tuple(component.name for component in self.components)

    @property
    def interval(self) -> stats.Interval:
        """95 % bootstrap interval of `values` over examples."""
        parts = range(0, len(self.components), ROWS_AT_ONCE)
        found = [stats.mean_interval(self.per_example[at : at + ROWS_AT_ONCE], self.seed) for at in parts]
        return stats.Interval(np.concatenate([i.low for i in found]), np.concatenate([i.high for i in found]))

    @property
    def gap(self) -> float:
        """Largest difference, over examples, between the sum of all components and the model's own value.

        Roundings only: about 1e-14 in float64, 1e-5 in float32, and in half precision what the model itself loses.
        """
        return float(np.abs(self.per_example.sum(0) - self.total).max())

    def value(self, name: str) -> float:
        """The mean of one component.

        Raises:
            ConfigError: There is no such component in this split.
        """
        if name not in self.names:
            raise ConfigError(f"no component {name!r} in a split by {self.by}. First are: {', '.join(self.names[:8])}.")
        return float(self.values[self.names.index(name)])

    @property
    def heads(self) -> Float[np.ndarray, "layer head"]:
        """The means of all heads as a table.

        Raises:
            ConfigError: It is no split by head.
        """
        rows = [(c, v) for c, v in zip(self.components, self.values.tolist(), strict=True) if c.kind == "head"]
        if not rows:
            raise ConfigError(f"a split by {self.by} has no heads. Ask for them: direct_attribution(..., by='head').")
        table = np.zeros((1 + max(c.layer or 0 for c, _ in rows), 1 + max(c.index or 0 for c, _ in rows)))
        for component, value in rows:
            table[component.layer, component.index] = value
        return table

    def _labels(self) -> dict[str, Any]:
        return {
            "component": self.names,
            "kind": [component.kind for component in self.components],
            "layer": pd.array([component.layer for component in self.components], dtype="Int64"),
            "index": pd.array([component.index for component in self.components], dtype="Int64"),
        }

    def plot_components(self, names: Sequence[str]) -> Any:
        """Bars of some components, in this order.

        Raises:
            ConfigError: There is no such component in this split.
        """
        for name in names:
            self.value(name)
        return draw(self, names=names)

    def _summary(self) -> str:
        size = plural(len(self.components), "component")
        return f"of {self.metric} by {self.by}: {size}, {plural(self.per_example.shape[-1], 'prompt')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "run", self.run
        yield "total", f"{self.total.mean():.4g}"
        yield from largest(self.values, lambda number: self.components[number].name)


@checked
def top_heads(attribution: Attribution, k: int = 5) -> pd.DataFrame:
    """The heads that add most to the quantity, and those that take most away.

    Args:
        attribution: A split by head.
        k: At most so many of either sign.

    Returns:
        Columns head, sign, value, ci_low, ci_high: positive heads first, the largest first; then the negative ones, the
        most negative first.

    Raises:
        ConfigError: It is no split by head, or k is no positive number.

    Example:
        >>> from circuitlab import direct_attribution, load_model, load_task, top_heads
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> top_heads(direct_attribution(model, pairs.discovery, by="head"), 1)["head"].tolist()
        ['a2.h5', 'a3.h5']
    """
    check_number(k)
    attribution.heads  # noqa: B018  # refuses other splits
    frame = attribution.to_frame()
    ranked = frame.loc[frame["kind"] == "head"].sort_values("value", ascending=False, kind="stable")
    positive, negative = ranked.loc[ranked["value"] > 0].head(k), ranked.loc[ranked["value"] < 0].iloc[::-1].head(k)
    parts = [positive.assign(sign="positive"), negative.assign(sign="negative")]
    both = pd.concat(parts, ignore_index=True).rename(columns={"component": "head"})
    return both.loc[:, ["head", "sign", "value", "ci_low", "ci_high"]]


def check_number(k: int) -> None:
    """Refuse a number of heads that is none, before any work.

    Raises:
        ConfigError: It is no positive whole number.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"k is {k!r}; it counts heads of either sign and must be a whole number of at least 1.")
