"""What one discovery found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from circuitlab.attribution.record import AttentionPatterns
from circuitlab.data.pairs import PairSplits
from circuitlab.data.task import Task
from circuitlab.digests import source_sha256
from circuitlab.discovery.behaviour import Behaviour
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.discovery.scores import EdgeScores
from circuitlab.discovery.stability import Stability
from circuitlab.evaluation.evaluate import Evaluation
from circuitlab.graphs.circuit import Circuit
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Bos
from circuitlab.parts import ModelSpec
from circuitlab.patching.grid import Grid
from circuitlab.result import Result, plain
from circuitlab.summary import plural, short

RESULTS_SCHEMA = "circuitlab.results/1"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RunRecord(Result):
    """Everything one discovery found.

    Attributes:
        config: The settings.
        task: The task, options included.
        task_fingerprint: Of its prompts.
        spec: Shape of the model.
        weights_sha256: Which weights.
        bos: The tokens in front of every text.
        metric: What was measured.
        pairs: The prompts of both splits.
        behaviour: What the whole model does on the discovery pairs.
        grids: Sweeps on the discovery pairs, by site.
        scores: Scores of every edge.
        circuit: The circuit, selected on the discovery pairs.
        evaluation: Its test on the held-out pairs.
        stability: Discovery on resamples of its pairs, if requested.
        attention: Attention patterns of the circuit's strongest heads on one held-out prompt; None without heads.
        stability_seeds: Discovery on prompts of other seeds, if requested.
        seconds: Wall time by step.
        folder: The run folder, if it was written.
        sources: Of each setting that was given as objects, their names, modules and the SHA-256 of their source.
        checkpoint: Revision and commit of a model on the hub, as far as they are known.
    """

    config: DiscoverConfig
    task: Task
    task_fingerprint: str
    spec: ModelSpec
    weights_sha256: str
    bos: Bos
    metric: Metric
    pairs: PairSplits
    behaviour: Behaviour
    grids: Mapping[str, Grid]
    scores: EdgeScores
    circuit: Circuit
    evaluation: Evaluation
    seconds: Mapping[str, float]
    stability: Stability | None = None
    attention: AttentionPatterns | None = None
    stability_seeds: Stability | None = None
    folder: Path | None = None
    sources: Mapping[str, Sequence[Mapping[str, str | None]]] = field(default_factory=dict)
    checkpoint: Mapping[str, str] = field(default_factory=dict)

    @property
    def model_id(self) -> str:
        """What the user called the model."""
        return self.config.model

    @property
    def warnings(self) -> tuple[str, ...]:
        """Limitations of the result, in sentences; see `Evaluation.warnings`."""
        return self.evaluation.warnings

    def to_frame(self) -> pd.DataFrame:
        """Every edge of the graph: source, target, score, in_circuit, as in `edges.csv`.

        Returns:
            The table.
        """
        return self.circuit.to_frame()

    def plot(self) -> Any:
        """The circuit as a matplotlib `Figure`, as in `circuit.png`.

        Returns:
            The figure.
        """
        return self.circuit.plot(title=f"{self.task.label} in {Path(self.model_id).name}")

    def to_record(self) -> dict[str, Any]:
        """The run for JSON: its settings, its circuit, and its evaluation on the held-out pairs.

        Returns:
            The record.
        """
        return {
            "config": self.config.to_record(),
            "circuit": self.circuit.to_record(),
            "evaluation": plain(self.evaluation.to_record()),
            "seconds": dict(self.seconds),
        }

    def _summary(self) -> str:
        result = f"{self.circuit.n_edges:,} of {plural(self.circuit.layout.n_edges, 'edge')}"
        share = f"faithfulness {self.evaluation.faithfulness:.3f}"
        return f"of {self.task.label} on {short(self.model_id, 30)}: {result}, {share}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "method", f"{self.config.method}, ablation {self.config.ablation}, seed {self.config.seed}"
        yield "pairs", self.pairs
        yield "grids", ", ".join(self.grids)
        yield "scores", self.scores
        yield "circuit", self.circuit
        yield "evaluation", self.evaluation
        for name in ("stability", "stability_seeds", "attention"):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)
        yield "seconds", f"{sum(self.seconds.values()):.1f}"
        yield "folder", self.folder or "not written; write(folder) does"


def sources_of(objects: Mapping[str, Any]) -> dict[str, list[dict[str, str | None]]]:
    """Name, module and SHA-256 of the source of objects: functions, or a `Method`, `Metric` or `Site` that holds one.

    Args:
        objects: By setting, an object or several; names among them are left out.

    Returns:
        By setting, a record an object. The SHA-256 is None for code without a source file.
    """
    found = {}
    for setting, given in objects.items():
        each = given if isinstance(given, list | tuple) else [given]
        found[setting] = [_source_of(one) for one in each if not isinstance(one, str)]
    return found


def _source_of(given: Any) -> dict[str, str | None]:
    held = next((getattr(given, name) for name in ("score", "function", "read") if hasattr(given, name)), None) or given
    code = held if hasattr(held, "__qualname__") else type(held)
    name = str(getattr(given, "name", None) or code.__name__)
    return {"name": name, "module": code.__module__, "sha256": source_sha256(code)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Results:
    """What `results.safetensors` holds exactly; the tables of a run folder are made from it, for other programs.

    Attributes:
        behaviour: As in `RunRecord`.
        grids: As in `RunRecord`.
        evaluation: As in `RunRecord`.
        attention: As in `RunRecord`.
        stability: As in `RunRecord`.
        stability_seeds: As in `RunRecord`.
    """

    behaviour: Behaviour
    grids: Mapping[str, Grid]
    evaluation: Evaluation
    attention: AttentionPatterns | None = None
    stability: Stability | None = None
    stability_seeds: Stability | None = None

    @classmethod
    def of(cls, run: RunRecord) -> Results:
        """These results of a run.

        Returns:
            The results.
        """
        return cls(**{item.name: getattr(run, item.name) for item in fields(cls)})
