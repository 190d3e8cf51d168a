"""Scores of nodes and of the components of their outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuitlab.arguments import checked
from circuitlab.names import sign_of_scores
from circuitlab.outputs.paths import at_home
from circuitlab.outputs.records import load_record, save_record, score_file
from circuitlab.parts import Layout, ModelSpec
from circuitlab.result import Result
from circuitlab.summary import short

SCHEMA = "circuitlab.node-scores/1"
FILE = "score file"
LEVELS: dict[str, str] = {
    "node": "whole nodes: the input, heads, MLPs",
    "neuron": "components of the stream that a node writes, d_model of them a node (the neurons of MIB)",
    "mlp-neuron": "neurons of MLPs: what goes into an output projection",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NodeScores(Result):
    """Scores of every node of one model, or of every component of what nodes write.

    Attributes:
        spec: The model's shape.
        level: A name of `LEVELS`.
        values: Mean over examples, in the metric's unit: m(clean) - m(with it corrupted), exactly or estimated.
            Positive: it helps. "node": one a writer, in the order of `Layout.writers`; "neuron": `[writer, d_model]`;
            "mlp-neuron": `[layer, neuron]`.
        standard_error: Of `values` over examples.
        method: Name of the method.
        metric: Name of the metric.
        n_examples: Number of examples.
        ablation: Ablation of the values that are corrupted; None where the scores do not depend on it, and in files of
            versions without it.
        sign: What the sign of the scores means, a name of `circuitlab.names.SIGNS`: "effect" (positive: it helps),
            "size" (never negative) or "none"; None in files of versions without it.
        checks: The method's own error measures, by name.
    """

    spec: ModelSpec
    level: str
    values: Float[np.ndarray, "*score"]
    standard_error: Float[np.ndarray, "*score"]
    method: str
    metric: str
    n_examples: int
    ablation: str | None = None
    sign: str | None = None
    checks: Mapping[str, float] = field(default_factory=dict)

    @checked
    def save(self, path: str | Path) -> None:
        """Write the scores to a `.safetensors` file; whole, or not at all.

        Raises:
            FormatError: The name does not end in `.safetensors`.
            FileError: Nothing can be written there.
        """
        save_record(score_file(path), self, SCHEMA, FILE)

    @classmethod
    def load(cls, path: str | Path) -> NodeScores:
        """Read scores that `save` wrote.

        Returns:
            The scores, to the last bit.

        Raises:
            MissingFileError: There is no such file.
            FormatError: It is no file of node scores, or damaged.
        """
        return load_record(at_home(path), NodeScores, (SCHEMA,), FILE)

    def negated(self) -> NodeScores:
        """The scores with the opposite sign, for metrics where less is better.

        Returns:
            New scores.
        """
        return replace(self, values=-self.values)

    def to_frame(self) -> pd.DataFrame:
        """One row a node or component: node, (component | neuron), score, standard_error.

        Returns:
            The table.
        """
        nodes = [f"m{layer}" for layer in range(len(self.values))]
        if self.level != "mlp-neuron":
            nodes = [node.name for node in Layout.of(self.spec).writers]
        each = int(np.prod(self.values.shape[1:]))
        frame = pd.DataFrame({"node": np.repeat(nodes, each)})
        if self.level != "node":
            frame["component" if self.level == "neuron" else "neuron"] = np.tile(range(each), len(nodes))
        return frame.assign(score=self.values.ravel(), standard_error=self.standard_error.ravel())

    def _summary(self) -> str:
        shape = " x ".join(map(str, self.values.shape))
        return f"by {self.method}: {shape} {self.level} scores of {short(self.spec.name, 30)}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "metric", self.metric + (f", ablation {self.ablation}" if self.ablation else "")
        yield "pairs", self.n_examples
        yield "scores", f"{self.values.min():.4g} to {self.values.max():.4g}{sign_of_scores(self.sign, 'it')}"
        if self.checks:
            yield "checks", self.checks
