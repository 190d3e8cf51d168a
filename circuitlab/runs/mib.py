"""One cell of MIB's table: score the edges on the training rows, evaluate CPR and CMD, write the submission.

The evaluation is the benchmark's: circuits of ten sizes, edges ranked by signed score for CPR and by absolute score for
CMD, everything else replaced by the corrupted run; faithfulness is a ratio of means over the evaluated rows.

References:
    Mueller et al. 2025, arXiv:2504.13151.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitlab.arguments import checked
from circuitlab.data.mib import MibPairs, MibTask, check_counterfactual, find_mib_task, mib_pairs, read_mib
from circuitlab.discovery.method import MethodLike
from circuitlab.discovery.registry import find_method
from circuitlab.discovery.scores import EdgeScores
from circuitlab.discovery.scoring import check_options, score
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.evaluation.curve import MIB_SHARES, Areas, curves
from circuitlab.graphs.prune import real_edges
from circuitlab.models.load import load_model
from circuitlab.models.modes import in_ordinary_modes
from circuitlab.models.protocol import Model
from circuitlab.models.random_weights import with_random_weights
from circuitlab.outputs.paths import at_home
from circuitlab.outputs.reserve import put_tables, reserved_tables
from circuitlab.patching.experiment import Experiment
from circuitlab.progress import Progress, callback, reports_progress
from circuitlab.result import Result, plain
from circuitlab.settings import SETTINGS

if TYPE_CHECKING:
    import pandas as pd

IMPORTANCES = "importances.json"
CONTROLS = ("random-weights",)
# The benchmark's names of its models, by the end of the name of a checkpoint.
MODELS = {
    "gpt2": "gpt2", "gpt2-small": "gpt2", "qwen2.5-0.5b": "qwen2.5", "gemma-2-2b": "gemma2", "llama-3.1-8b": "llama3",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MibCell(Result):
    """The numbers of one task, one model and one method.

    Attributes:
        task: The task.
        model: The model's id.
        name: The folder's name in a submission, `{task}_{model}`.
        method: The scoring method.
        split: The split that was evaluated.
        n_train: Pairs that were scored.
        n_evaluated: Pairs that were evaluated.
        dropped: Reason -> how many rows are left out.
        accuracy: Share of evaluated pairs whose answer has a larger logit than the distractor.
        clean: Mean metric of the clean prompts.
        empty: Mean metric of the empty circuit, in which everything is corrupted.
        areas: CPR and CMD, and the same on other axes.
        by_sign: Faithfulness at the shares of `MIB_SHARES`, edges ranked by signed score.
        by_size: The same, ranked by absolute score.
        control: The same on weights that were never trained; None if it was not requested.
        scores: The scores.
        folder: Where the submission was written; None if it was not.
    """

    task: str
    model: str
    name: str
    method: str
    split: str
    n_train: int
    n_evaluated: int
    dropped: Mapping[str, int]
    accuracy: float
    clean: float
    empty: float
    areas: Areas
    by_sign: tuple[float, ...]
    by_size: tuple[float, ...]
    control: MibCell | None = None
    scores: EdgeScores
    folder: Path | None = None

    @property
    def gap(self) -> float:
        """How far the metric of the model is above that of the empty circuit."""
        return self.clean - self.empty

    def shifts(self, *, signed: bool = True, unit: float | None = None) -> tuple[float, ...]:
        """How far the circuits of each size move the metric from that of the empty circuit.

        Args:
            signed: Edges ranked by signed score, else by absolute score.
            unit: What 1 means; by default the gap, which gives faithfulness.

        Returns:
            One number for each share of `MIB_SHARES`.
        """
        values = self.by_sign if signed else self.by_size
        return tuple(value * self.gap / (self.gap if unit is None else unit) for value in values)

    def to_frame(self) -> pd.DataFrame:
        """The curves as a table.

        Returns:
            One row a size: share of the edges, and both faithfulnesses; of a control, its shifts in units of the gap.
        """
        import pandas as pd

        columns = {"share": MIB_SHARES, "by_sign": self.by_sign, "by_size": self.by_size}
        if self.control is not None:
            columns["control_by_sign"] = self.control.shifts(unit=self.gap)
            columns["control_by_size"] = self.control.shifts(signed=False, unit=self.gap)
        return pd.DataFrame(columns)

    def to_record(self) -> dict[str, Any]:
        """The numbers as JSON holds them; of a control also its gap and shifts in units of the trained model's gap.

        Returns:
            Plain values.
        """
        names = (
            "task", "model", "name", "method", "split", "n_train", "n_evaluated", "accuracy", "clean", "empty", "gap",
        )  # fmt: skip
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        found |= {"dropped": dict(self.dropped), "areas": self.areas.to_record()}
        found |= {"shares": MIB_SHARES, "by_sign": self.by_sign, "by_size": self.by_size}
        if self.control is not None:
            found["control"] = {
                **self.control.to_record(),
                "gap_in_trained_gaps": self.control.gap / self.gap,
                "shift_by_sign_in_trained_gaps": self.control.shifts(unit=self.gap),
                "shift_by_size_in_trained_gaps": self.control.shifts(signed=False, unit=self.gap),
            }
        return plain(found)

    def _summary(self) -> str:
        return f"{self.name}, {self.method}: CPR {self.areas.cpr:.3f}, CMD {self.areas.cmd:.3f}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "evaluated on", f"{self.n_evaluated:,} {self.split} pairs, found on {self.n_train:,}"
        yield "metric", f"clean {self.clean:.3f}, empty circuit {self.empty:.3f}"
        if self.control is not None:
            yield "random weights", f"gap {self.control.gap / self.gap:.3f} of the trained model's"
        if self.folder:
            yield "folder", self.folder


@checked
@in_ordinary_modes
@reports_progress
def mib(
    task: str,
    model: Any = SETTINGS["model"].default,
    *,
    data: str | Path | None = None,
    method: MethodLike = SETTINGS["method"].default,
    out: str | Path | None = None,
    force: bool = False,
    n: int | None = None,
    n_evaluated: int | None = None,
    split: str = "validation",
    counterfactual: str | None = None,
    model_name: str | None = None,
    control: str | None = None,
    revision: str | None = None,
    loading: Mapping[str, Any] | None = None,
    seed: int = SETTINGS["seed"].default,
    allow_weak_gap: bool = SETTINGS["allow_weak_gap"].default,
    budget: int | None = None,
    method_options: Mapping[str, Any] | None = None,
    progress: Progress | bool | None = None,
    **options: Any,
) -> MibCell:
    """Score a task of MIB's circuit track on a model, evaluate CPR and CMD, and write the submission.

    Args:
        task: `ioi`, `mcqa`, `arithmetic-addition`, `arithmetic-subtraction`, `arc-easy` or `arc-challenge`.
        model: Whatever `load_model` takes. The benchmark puts a beginning-of-sequence token in front of every prompt:
            a name is loaded with `bos="transformer-lens"`; load others so.
        data: A folder with a copy of the data set, or a name on the hub; by default the benchmark's own.
        method: How edges are scored, as in `score_edges`.
        out: Folder of the submission, in which a folder `{task}_{model}` is written; nothing is written without it.
        force: Replace that inner folder if it is there.
        n: The most training pairs; by default 1,000 of IOI, all of MCQA, 100 of the others.
        n_evaluated: The most pairs to evaluate on; by default all of the split.
        split: The split to evaluate on, `validation` or `test`.
        counterfactual: Another column of corrupted prompts, such as `abc_counterfactual`.
        model_name: The model's name in the submission; by default the benchmark's name for it, else the end of its own.
        control: `random-weights` repeats everything on the same architecture with weights that were never trained.
        revision: The revision of a data set on the hub.
        loading: Arguments of `load_model` for a name, such as `{"device": "cuda"}`.
        seed: Of what the method draws, and of the weights of the control.
        allow_weak_gap: Accept pairs without a significant clean-corrupted difference; of the control they always are.
        budget: Bytes of memory for a packed run.
        method_options: Options of the method, by name.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).
        options: Further options, such as `steps=5`.

    Returns:
        CPR, CMD, both curves, and what was left out.

    Raises:
        UnknownNameError: There is no such task, split, method or control.
        ConfigError: The method has no such option, or takes no steps.
        TableError: The data cannot be read, or do not have the columns of this task.
        MetricError: The metric of clean and corrupted prompts does not differ significantly.
        OutputExistsError: The folder exists and `force` is not given.

    Example:
        >>> from circuitlab import mib
        >>> mib("ioi", "gpt2", data="copies/ioi", out="submission").areas.cpr  # doctest: +SKIP
        1.2
    """
    wanted, scored_by = find_mib_task(task), find_method(method)
    options |= method_options or {}
    check_options(scored_by, **options)
    if control is not None:
        UnknownNameError.check("control", control, CONTROLS)
    for name, value in (("n", n), ("n_evaluated", n_evaluated)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it counts pairs and must be at least 1.")
    name, report = _folder_name(wanted, model, model_name), callback(progress)

    def cell(one: Model, *, weak: bool) -> MibCell:
        pairs = mib_pairs(
            wanted, tables, one.text, n=n, n_evaluated=n_evaluated, counterfactual=counterfactual, n_ctx=one.spec.n_ctx
        )
        train = Experiment(one, pairs.train, None, seed=seed, allow_weak_gap=weak, budget=budget, progress=report)
        scores = score(train, scored_by, **options)
        train.recordings.release()
        return _evaluated(replace(train, pairs=pairs.evaluated), pairs, scores, name)

    with nullcontext() if out is None else reserved_tables(at_home(out) / name, force=force) as place:
        tables = read_mib(wanted, None if data is None else str(data), split=split, revision=revision)
        check_counterfactual(wanted, tables, counterfactual)
        given = {"bos": "transformer-lens"} if isinstance(model, str | Path) else {}
        trained: Model = load_model(model, **{**given, **(loading or {})})
        found = cell(trained, weak=allow_weak_gap)
        if control is not None:
            found = replace(found, control=cell(with_random_weights(trained, seed), weak=True))
        if place is None:
            return found
        put_tables(place, _files(found))
        return replace(found, folder=place.path)


def _files(cell: MibCell) -> dict[str, Callable[[Path], object]]:
    """The files of a submission's folder; readers of submissions take `.json` and `.pt` for circuits."""
    scores = cell.scores
    # Every edge of a submission has a score; one that no method scored has none of its own.
    whole = replace(scores.circuit(real_edges(scores.layout)), scores=np.nan_to_num(scores.values))
    table = cell.to_frame()
    return {
        IMPORTANCES: whole.save,
        "curves.csv": lambda path: table.to_csv(path, index=False),
        "report.txt": lambda path: path.write_text("\n".join(report_lines(cell)) + "\n", encoding="utf-8"),
    }


def report_lines(cell: MibCell) -> list[str]:
    """The numbers of a cell for a person; those of a control in units of the trained model's gap.

    Returns:
        The lines.
    """
    lines = [
        f"{cell.name}, {cell.method}: CPR {cell.areas.cpr:.4f}, CMD {cell.areas.cmd:.4f}",
        f"found on {cell.n_train:,} train pairs, evaluated on {cell.n_evaluated:,} {cell.split} pairs",
        f"logit difference {cell.clean:.4f}, empty circuit {cell.empty:.4f}, gap {cell.gap:.4f}",
        *(f"{count:,} rows left out: {reason}" for reason, count in cell.dropped.items()),
    ]
    if cell.control is not None:
        shifts = cell.control.shifts(unit=cell.gap)
        largest = max(map(abs, shifts))
        lines += [
            f"random weights: gap {cell.control.gap / cell.gap:.4f} of the trained model's",
            f"random weights: circuits shift the metric by at most {largest:.4f} of the trained model's gap",
        ]
    return lines


def _evaluated(experiment: Experiment, pairs: MibPairs, scores: EdgeScores, name: str) -> MibCell:
    """CPR and CMD of scores on an experiment's pairs."""
    circuit = scores.circuit(real_edges(scores.layout))
    by_size, by_sign = curves(experiment, circuit)
    return MibCell(
        task=pairs.task.name,
        model=experiment.model.id,
        name=name,
        method=scores.method,
        split=pairs.split,
        n_train=len(pairs.train),
        n_evaluated=len(pairs.evaluated),
        dropped=pairs.dropped,
        accuracy=float((experiment.clean > 0).mean()),
        clean=float(experiment.clean.mean()),
        empty=float(experiment.empty.mean()),
        areas=Areas.of(by_sign, by_size, scores.layout.n_edges),
        by_sign=tuple(point.faithfulness for point in by_sign),
        by_size=tuple(point.faithfulness for point in by_size),
        scores=scores,
    )


def _folder_name(task: MibTask, model: Any, given: str | None) -> str:
    """The name of the folder of a cell."""
    known = str(model if isinstance(model, str | Path) else getattr(model, "id", "model")).rstrip("/")
    last = known.rpartition("/")[2]
    name = given or MODELS.get(last.lower(), last)
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise ConfigError(f"model_name is {name!r}; it is part of a folder's name: letters, digits, '.', '+' and '-'.")
    return f"{task.name}_{name}"
