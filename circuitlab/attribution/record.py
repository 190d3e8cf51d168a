"""What attributions give back: values per component and example with their sum, and attention weights of heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuitlab import stats
from circuitlab.arguments import checked
from circuitlab.drawing import cell, draw, page
from circuitlab.errors import ConfigError, FormatError, UnknownNameError
from circuitlab.outputs.whole import write_bytes
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

        Returns:
            The mean over examples, in logits.

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

        Returns:
            The figure.

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


# Digits of a weight in files and pages; a weight has no more that anybody could see.
DIGITS = 4
SCHEMA = "circuitlab.attention/1"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class AttentionPatterns(Summary):
    """Attention weights of some heads on one prompt; each row of a pattern (a query) sums to 1.

    Attributes:
        tokens: The prompt.
        heads: Names of the heads.
        patterns: Their weights, query by key.
        title: What the prompt is.
        notes: Head -> a few words about it, such as its effect.
    """

    tokens: tuple[str, ...]
    heads: tuple[str, ...]
    patterns: Float[np.ndarray, "head query key"]
    title: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    def pattern(self, head: str) -> Float[np.ndarray, "query key"]:
        """The weights of one head.

        Returns:
            Weights `[query, key]`; a row sums to 1.

        Raises:
            UnknownNameError: It is not among the heads.
        """
        UnknownNameError.check("head", head, self.heads)
        return self.patterns[self.heads.index(head)]

    def to_frame(self) -> pd.DataFrame:
        """One row a head and pair of tokens: head, query, query_token, key, key_token, weight; later keys left out.

        Returns:
            The table.
        """
        head, query, key = np.nonzero(np.broadcast_to(self._sees, self.patterns.shape))
        return pd.DataFrame(
            {
                "head": [self.heads[i] for i in head],
                "query": query,
                "query_token": [self.tokens[i] for i in query],
                "key": key,
                "key_token": [self.tokens[i] for i in key],
                "weight": self.patterns[head, query, key],
            }
        )

    def to_record(self) -> dict[str, Any]:
        """What `attention.json` holds: weights to four digits, each row up to the query.

        Returns:
            The record.
        """
        heads = [
            {
                "head": name,
                "note": self.notes.get(name, ""),
                "weights": [
                    [round(float(w), DIGITS) for w in (row[: at + 1] if self._causal else row)]
                    for at, row in enumerate(pattern)
                ],
            }
            for name, pattern in zip(self.heads, self.patterns, strict=True)
        ]
        return {"schema": SCHEMA, "title": self.title, "tokens": list(self.tokens), "heads": heads}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> AttentionPatterns:
        """The patterns out of `to_record`; rows end at the last token that is seen.

        Returns:
            The patterns.

        Raises:
            FormatError: A field is missing or is not what it should be; the message names it.
        """
        try:
            tokens, heads = tuple(map(str, record["tokens"])), list(record["heads"])
            patterns = np.zeros((len(heads), len(tokens), len(tokens)))
            for number, head in enumerate(heads):
                if len(head["weights"]) != len(tokens):
                    raise ValueError(f"head {head['head']!r} has {len(head['weights'])} rows for {len(tokens)} tokens")
                for at, row in enumerate(head["weights"]):
                    patterns[number, at, : len(row)] = [float(weight) for weight in row]
            if not heads or not tokens or not np.isfinite(patterns).all():
                raise ValueError("there is no head, no token, or a weight that is no number")
            notes = {str(head["head"]): str(head.get("note") or "") for head in heads}
            title = str(record.get("title") or "")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                f"attention patterns: {type(error).__name__} {error}. Needed are tokens (texts) and heads "
                "[{head, note, weights: one row a token}]."
            ) from error
        names = tuple(str(head["head"]) for head in heads)
        return cls(tokens=tokens, heads=names, patterns=patterns, title=title, notes=notes)

    def plot(self) -> Any:
        """The patterns side by side as a matplotlib `Figure`, tokens on both axes.

        Returns:
            The figure.
        """
        return draw(self)

    def to_html(self) -> str:
        """A self-contained interactive page: select a head, hover over a token to see its weights as query and key.

        Returns:
            The page.
        """
        return page(self)

    def save(self, path: str | Path) -> Path:
        """Write the page of `to_html` to an `.html` file; whole, or not at all.

        Returns:
            The file.

        Raises:
            ConfigError: The name does not end in `.html`.
        """
        path = Path(path).expanduser()
        if path.suffix != ".html":
            raise ConfigError(f"{path.name!r} is no page; save attention patterns as .html, pictures by save_figure.")
        write_bytes(path, self.to_html().encode("utf-8"), "page")
        return path

    def _repr_html_(self) -> str:
        """In a notebook cell: the picture, which needs no script."""
        return cell(self)

    @property
    def _causal(self) -> bool:
        """Whether no token sees a later one."""
        return not bool(np.triu(np.abs(self.patterns), 1).any())

    @property
    def _sees(self) -> np.ndarray:
        n = len(self.tokens)
        return np.tri(n, dtype=bool) if self._causal else np.ones((n, n), dtype=bool)

    def _summary(self) -> str:
        return f"of {plural(len(self.heads), 'head')} on {plural(len(self.tokens), 'token')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "tokens", self.tokens
        for head, pattern in zip(self.heads, self.patterns, strict=True):
            key = int(pattern[-1].argmax())
            yield head, f"{pattern[-1, key]:.3f} from the last token to {self.tokens[key]!r}"
