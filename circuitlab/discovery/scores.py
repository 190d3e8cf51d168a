"""Scores of edges: the result of every scoring method, with its error measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from circuitlab.arguments import checked
from circuitlab.errors import ConfigError, FormatError
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.circuit_data import edge_table
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.ranking import edge_places, greedy_edges, mask_of, ranked_edges
from circuitlab.names import sign_of_scores
from circuitlab.outputs.paths import at_home
from circuitlab.outputs.records import load_record, save_record, score_file
from circuitlab.parts import Layout, ModelSpec
from circuitlab.result import Result
from circuitlab.summary import Summary, largest, plural, short

SCHEMA = "circuitlab.edge-scores/1"
FILE = "score file"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ColumnScores(Summary):
    """Scores of every edge's tokens at one position or span each.

    Attributes:
        kind: "position" or "span".
        labels: Name of each column.
        scores: Mean over all examples, in the metric's unit; an example that lacks a span counts as 0.
        numbers: Positions of the columns, where they are not 0, 1, 2, ...; negative ones count from the answer
            backwards.
    """

    kind: str
    labels: tuple[str, ...]
    scores: Float[np.ndarray, "column writer reader"]
    numbers: tuple[int, ...] | None = None

    def _summary(self) -> str:
        return f"by {self.kind}: {plural(len(self.labels), 'column')}, {short(self.labels, 50)}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class EdgeScores(Result):
    """Scores of every edge of one model.

    Attributes:
        spec: The model's shape.
        values: Mean over examples, in the metric's unit: m(clean) - m(with the edge corrupted), exactly or estimated;
            or whatever the method defines (`sign`). 0 where there is no edge.
        standard_error: Of `values` over examples.
        method: Name of the method.
        metric: Name of the metric.
        n_examples: Number of examples.
        ablation: Ablation of the values that are corrupted; None where the scores do not depend on it, and in files of
            versions without it.
        sign: What the sign of the scores means, a name of `circuitlab.names.SIGNS`: "effect" (positive: it helps),
            "size" (never negative) or "none"; None in files of versions without it.
        checks: The method's own error measures, by name.
        node_effects: Node name -> effect of patching the node alone, for methods that score nodes.
        chosen: The method's own circuit, for methods that choose edges and not only score them.
        training: The curve of a method that learns, by column, one entry for every step.
        by_column: Scores by position or span, if requested. Columns that partition all tokens sum to `values`
            where scores are first-order estimates.
        per_reader: Whether only edges into one reader can be compared; then circuits are selected greedily.
        second_scores: A second score of the edges that the method did not test, by which they rank below all
            others; NaN for all others, None where the method scores every edge.
    """

    spec: ModelSpec
    values: Float[np.ndarray, "writer reader"]
    standard_error: Float[np.ndarray, "writer reader"]
    method: str
    metric: str
    n_examples: int
    ablation: str | None = None
    sign: str | None = None
    checks: Mapping[str, float] = field(default_factory=dict)
    node_effects: Mapping[str, float] = field(default_factory=dict)
    chosen: Bool[np.ndarray, "writer reader"] | None = None
    training: Mapping[str, Sequence[float]] = field(default_factory=dict)
    by_column: ColumnScores | None = None
    per_reader: bool = False
    second_scores: Float[np.ndarray, "writer reader"] | None = None

    @property
    def layout(self) -> Layout:
        """Numbers of writers and readers."""
        return Layout.of(self.spec)

    def ranked(self, signed: bool = False) -> np.ndarray:
        """All edges as (row, column), best first; ties are in the order of `Layout.edges`.

        Edges that the method did not test come after all others, by their second score.

        Args:
            signed: Rank by score; else by its absolute value.

        Returns:
            One row an edge.
        """
        return ranked_edges(*self._keys(signed))

    def grown(self, signed: bool = False) -> np.ndarray:
        """Edges with a score other than 0 as (row, column), in the order of greedy growth (`greedy_edges`).

        Returns:
            One row an edge.
        """
        return greedy_edges(*self._keys(signed), candidates=self.nonzero)

    @property
    def nonzero(self) -> Bool[np.ndarray, "writer reader"]:
        """Edges with a score other than 0, first or second: the only ones that a selection takes."""
        found = np.nan_to_num(self.values) != 0
        second = 0.0 if self.second_scores is None else np.nan_to_num(self.second_scores)
        return real_edges(self.layout) & (found | (second != 0))

    @property
    def tested(self) -> Bool[np.ndarray, "writer reader"]:
        """Edges that the method scored itself."""
        real = real_edges(self.layout)
        return real if self.second_scores is None else real & np.isnan(self.second_scores)

    def _keys(self, signed: bool) -> tuple[np.ndarray, Layout, np.ndarray | None]:
        second = self.second_scores
        if signed:
            return self.values, self.layout, second
        return np.abs(self.values), self.layout, None if second is None else np.abs(second)

    def top(self, n: int, signed: bool = False) -> Bool[np.ndarray, "writer reader"]:
        """Mask of the `n` best edges, exactly that many, not pruned.

        Returns:
            The mask.
        """
        return mask_of(self.ranked(signed)[: max(0, n)], self.layout)

    def circuit(self, mask: Bool[np.ndarray, "writer reader"]) -> Circuit:
        """A circuit with these scores and this mask.

        Returns:
            The circuit.
        """
        return Circuit(
            spec=self.spec, mask=mask, scores=self.values, node_effects=self.node_effects,
            second_scores=self.second_scores,
        )  # fmt: skip

    def negated(self) -> EdgeScores:
        """The scores with the opposite sign, for metrics where less is better.

        Returns:
            New scores.
        """
        columns = self.by_column and replace(self.by_column, scores=-self.by_column.scores)
        second = None if self.second_scores is None else -self.second_scores
        return replace(self, values=-self.values, by_column=columns, second_scores=second)

    def to_frame(self, by_column: bool = False) -> pd.DataFrame:
        """One row an edge: source, target, score, standard_error, in the order of `Layout.edges`.

        Where there are second scores, a column second_score holds them; NaN for edges that the method scored itself.

        Args:
            by_column: One row an edge and column instead: source, target, column, position | span, score.

        Returns:
            The table.

        Raises:
            ConfigError: There are no scores by column.
        """
        if not by_column:
            errors, second = self.standard_error, self.second_scores
            return edge_table(self.layout, score=self.values, standard_error=errors, second_score=second)
        if (found := self.by_column) is None:
            raise ConfigError("these scores are of whole edges. Ask for axis='position' or axis='span'.")
        frame, n = edge_table(self.layout), len(found.labels)
        return frame.loc[frame.index.repeat(n)].assign(**{
            "column": np.tile(found.numbers or range(n), len(frame)),
            found.kind: list(found.labels) * len(frame),
            "score": found.scores[:, *edge_places(self.layout).T].T.ravel(),
        }).reset_index(drop=True)  # fmt: skip

    @checked
    def save(self, path: str | Path) -> None:
        """Write the scores with everything that belongs to them to a `.safetensors` file; whole, or not at all.

        Args:
            path: The file; `~` is the home folder. A file of this name is replaced.

        Raises:
            FormatError: The name does not end in `.safetensors`.
            FileError: Nothing can be written there.
        """
        save_record(score_file(path), self, SCHEMA, FILE)

    def training_frame(self) -> pd.DataFrame:
        """One row a step, counted from 1: step and the columns of `training`.

        Returns:
            The table.
        """
        frame = pd.DataFrame(dict(self.training))
        frame.insert(0, "step", range(1, len(frame) + 1))
        return frame

    def _summary(self) -> str:
        size = plural(self.layout.n_edges, "edge")
        return f"by {self.method}: {size} of {short(self.spec.name, 30)}, {plural(self.n_examples, 'pair')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        places = edge_places(self.layout)
        values = self.values[places[:, 0], places[:, 1]]
        yield "metric", self.metric + (f", ablation {self.ablation}" if self.ablation else "")
        yield "scores", f"{values.min():.4g} to {values.max():.4g}{sign_of_scores(self.sign, 'the edge')}"
        if self.chosen is not None:
            yield "chosen", f"{plural(int(self.chosen.sum()), 'edge')} by the method itself"
        if self.by_column is not None:
            yield "by column", self.by_column
        if self.checks:
            yield "checks", self.checks
        yield from largest(values.tolist(), lambda number: self.layout.edge_name(*places[number].tolist()))


@checked
def load_scores(path: str | Path) -> EdgeScores:
    """Read scores that `EdgeScores.save` wrote; no model is needed.

    Args:
        path: A `.safetensors` file; `~` is the home folder.

    Returns:
        The scores as they were saved, to the last bit: standard errors, checks, scores by position or span and the
        method's own circuit included.

    Raises:
        MissingFileError: There is no such file.
        FormatError: It is no file of edge scores, or damaged; the matrices do not fit the model's shape.

    Example:
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> from circuitlab import ModelSpec
        >>> spec = ModelSpec(name="tiny", n_layers=1, n_heads=1, n_kv_heads=1, d_model=4, d_head=4, d_vocab=8, n_ctx=4)
        >>> scores = EdgeScores(spec=spec, values=np.ones((3, 5)), standard_error=np.zeros((3, 5)), method="eap",
        ...                     metric="logit_diff", n_examples=2)
        >>> with TemporaryDirectory() as folder:
        ...     scores.save(f"{folder}/scores.safetensors")
        ...     load_scores(f"{folder}/scores.safetensors").top(1).sum()
        np.int64(1)
    """
    file = at_home(path)
    found = load_record(file, EdgeScores, (SCHEMA,), FILE)
    named = {name: getattr(found, name) for name in ("values", "standard_error", "chosen", "second_scores")}
    columns = () if found.by_column is None else found.by_column.scores
    wanted = (len(found.layout.writers), len(found.layout.readers))
    for matrix in (*named.values(), *columns):
        if matrix is not None and matrix.shape != wanted:
            raise FormatError(
                f"{FILE} {str(file)!r} has a matrix {matrix.shape}; model {found.spec.name!r} has {wanted} writers, "
                "readers. Save the scores again."
            )
    return found
