"""What a circuit is judged under: the settings of the run that found it, unless others are given.

Prompts are drawn so that none of the held-out ones is among those that the run was found on, whatever the seed. Pairs
that are given instead are refused where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuitlab.data.framing import PromptFrame
from circuitlab.data.pairs import PairSet
from circuitlab.data.registry import load_task
from circuitlab.data.task import Task
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.errors import ConfigError, RunError
from circuitlab.evaluation.evaluate import Evaluation, evaluate
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.compare import circuit_of_nodes
from circuitlab.metrics import metric_of
from circuitlab.models.load import load_model
from circuitlab.models.protocol import Model
from circuitlab.outputs.paths import at_home
from circuitlab.patching.runs.replacement import needs_reference
from circuitlab.progress import Progress, reports_progress
from circuitlab.runs.manifest import MANIFEST
from circuitlab.runs.reader import RunReader, named_circuit, read_circuit
from circuitlab.runs.task_files import task_of_run
from circuitlab.settings import AROUND_PROMPTS, MODEL_SETTINGS

# The nodes that a paper lists for the task and the model; `published:gpt2` for those of another model.
PUBLISHED = "published"
SHOWN = 12  # characters of a digest
# Settings of `discover` that also apply to an evaluation, in addition to those of the model.
_ALWAYS = ("metric", "ablation", "n", "seed", "split", *AROUND_PROMPTS, "allow_weak_gap")
# Settings that another number of prompts, another machine or another draw may differ in.
_FREE = frozenset(("n", "seed", "split", "device", "allow_weak_gap"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judging:
    """A circuit, the model it is of, and held-out pairs to judge it on.

    Attributes:
        title: Which circuit, task and model, in words.
        model: The model.
        circuit: The circuit.
        held_out: The pairs.
        arguments: Further arguments of `evaluate` and `test_circuit`: metric, ablation, reference and seed.
        allow_weak_gap: Whether pairs without a significant clean-corrupted difference are accepted.
        notes: A sentence where this is not as the run was, naming every difference.
        frame: The text around every prompt: chat template and solved examples; None if there is none.
    """

    title: str
    model: Model
    circuit: Circuit
    held_out: PairSet
    arguments: Mapping[str, Any]
    allow_weak_gap: bool
    notes: tuple[str, ...] = ()
    frame: PromptFrame | None = None

    def evaluate(self, **options: Any) -> Evaluation:
        """The circuit's evaluation on these pairs, with further arguments of `evaluate`.

        Returns:
            The evaluation.
        """
        arguments = {"allow_weak_gap": self.allow_weak_gap, **self.arguments, **options}
        found = evaluate(self.model, self.circuit, self.held_out, **arguments)
        return replace(found, notes=self.notes)


def judging(
    circuit: str | Path,
    *,
    task: str | Path | Task | None = None,
    options: Mapping[str, str] | None = None,
    pairs: PairSet | None = None,
    run_code: bool = False,
    **settings: Any,
) -> Judging:
    """Load a circuit and what it is judged on.

    Args:
        circuit: A run folder, a circuit file of any format that is read, or `published`: all edges among the nodes that
            a paper lists (`Task.published`).
        task: Its task; the run's by default. A circuit file does not know its task.
        options: Options of the task; those that are not given are the run's, and the task's defaults for a file.
        pairs: Pairs to judge on, instead of those that the task draws.
        run_code: Allow the task file inside a run folder to run.
        settings: `metric`, `ablation`, `n`, `seed`, `split`, `chat`, `shots`, `allow_weak_gap` and the arguments of
            `load_model`. None, and what is left out, is the run's; the default of `discover` for a file.

    Returns:
        Circuit, model and held-out pairs.

    Raises:
        ConfigError: A circuit file without a task; pairs that the run was found on; a setting that there is not.
        RunError: The folder is damaged, or its task file would run and is not allowed to.
        CircuitLabError: What the task, the model, the circuit or the settings have wrong.
    """
    if unknown := sorted({*settings} - {*MODEL_SETTINGS, *_ALWAYS}):
        raise ConfigError(f"{unknown[0]!r} is no setting that circuits are judged under.")
    given = {name: value for name, value in settings.items() if value is not None}
    folder = at_home(circuit)
    read = RunReader.open(folder) if (folder / MANIFEST).is_file() else None
    run = None if read is None else read.manifest
    if run is not None and not isinstance(run.get("task"), Mapping):
        raise RunError(f"{str(folder / MANIFEST)!r} does not say which task the run is of. Run discover again.")
    if run is None and not _is_published(circuit):
        named_circuit(circuit)  # refuses what is no circuit
    if run is None and task is None:
        raise ConfigError(
            f"{str(circuit)!r} is not a run folder, and a circuit file does not say which task it is of. Give task= "
            "(--task NAME)."
        )
    if task is not None:
        wanted = load_task(task, task_options=options)
    else:
        assert run is not None
        wanted = task_of_run(folder, run, run_code=run_code).with_options(**(options or {}))
    kept = DiscoverConfig(task=wanted.name, model="bundled", metric="") if read is None else read.config()
    if run is not None and wanted.name != run["task"].get("name"):
        given = {"metric": "", **given}  # another task has a metric of its own
    given = _of_others(given) | given
    # How edges were scored does not matter here; the method `exact` accepts every ablation.
    source = given.pop("model", kept.model)
    chosen = kept.replaced(method="exact", method_options={}, **given)
    wanted = wanted.with_split(given["split"]) if "split" in given else replace(wanted, split=chosen.split)
    wanted = wanted.with_prompting(**{name: getattr(chosen, name) for name in AROUND_PROMPTS if name in given or run})
    _check_objects(kept, given, circuit)
    ablation = given.get("ablation", chosen.ablation)
    metric = metric_of(wanted, chosen.metric or None)
    booted = not isinstance(source, str | Path)
    loading = {} if booted else {name: getattr(chosen, name) for name in MODEL_SETTINGS}
    model = load_model(**loading | {"model": source})
    if _is_published(circuit):
        listed = wanted.published_for(str(circuit).partition(":")[2] or str(source))
        found = circuit_of_nodes(model.spec, listed.nodes)
    else:
        found = read_circuit(folder, model.spec)
    seen = frozenset[str]() if read is None else read.discovery_texts()
    reference = frame = None
    if pairs is None:
        which: Any = {"reference": needs_reference(ablation), "whole_answers": metric.whole_answer, "exclude": seen}
        drawn = wanted.pairs(model, n=_number(given, chosen, wanted), seed=chosen.seed, **which)
        pairs, reference, frame = drawn.held_out, drawn.reference, drawn.frame
    else:
        _check_unseen(pairs, seen, circuit)
    return Judging(
        title=f"{circuit} on {wanted.label}, model {model.id if booted else source}",
        model=model,
        circuit=found,
        held_out=pairs,
        arguments={"metric": metric, "ablation": ablation, "reference": reference, "seed": chosen.seed},
        allow_weak_gap=chosen.allow_weak_gap,
        notes=() if run is None else _notes(run, kept, chosen.replaced(metric=metric.name), wanted, model),
        frame=frame,
    )


def _of_others(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the run that go with another model, or with a chat, than those that are given."""
    left = ("revision", "checkpoint_index") if "model" in given else ()
    return dict.fromkeys((*left, *(("reply_to",) if given.get("chat") is False else ())))


def _number(given: Mapping[str, Any], chosen: DiscoverConfig, task: Task) -> int:
    """Pairs to draw: as many as were requested, else as the run has, or as a table has."""
    return chosen.n if "n" in given else task.usual_n(chosen.n, reference=needs_reference(chosen.ablation))


def _is_published(circuit: str | Path) -> bool:
    return str(circuit).partition(":")[0] == PUBLISHED


def _check_objects(kept: DiscoverConfig, given: Mapping[str, Any], circuit: str | Path) -> None:
    for name in ("ablation", "metric"):
        if name in kept.objects and name not in given:
            raise RunError(
                f"run {str(circuit)!r} is under the {name} {getattr(kept, name)!r}, an object of Python that is not in "
                f"its folder. Give {name}=, the object or a name (--{name} NAME)."
            )


def _check_unseen(pairs: PairSet, seen: frozenset[str], circuit: str | Path) -> None:
    if shared := sum(not seen.isdisjoint(pair.prompts) for pair in pairs):
        raise ConfigError(
            f"{shared} of {len(pairs)} pairs have prompts that run {str(circuit)!r} was found on: this would be no "
            "held-out test. Leave them out, or have others drawn with seed=."
        )


@reports_progress
def evaluate_run(
    folder: str | Path,
    *,
    task: str | Path | Task | None = None,
    options: Mapping[str, str] | None = None,
    pairs: PairSet | None = None,
    run_code: bool = False,
    n_random: int = 20,
    n_knockouts: int = 10,
    minimality: bool = True,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Evaluation:
    """Judge the circuit of a run folder on held-out pairs, under the run's settings unless others are given.

    Args:
        folder: A run folder of `discover`.
        task: Another task than the run's.
        options: Other options of the task.
        pairs: Pairs to judge on; by default they are drawn, and none has a prompt that the run was found on.
        run_code: Allow the folder's own task file to run. Read it first.
        n_random: As in `evaluate`.
        n_knockouts: As in `evaluate`.
        minimality: As in `evaluate`.
        progress: As in `evaluate`.
        settings: Other settings than the run's: `model`, `metric`, `ablation`, `n`, `seed`, `chat`, `shots`,
            `allow_weak_gap`, and those of `load_model`.

    Returns:
        The evaluation. Its `warnings` name every setting that is not the run's.

    Raises:
        ConfigError: Pairs that the run was found on; a setting that there is not.
        RunError: It is no run folder, it is damaged, or its task file would run and is not allowed to.
        CircuitLabError: What `evaluate` refuses.
    """
    if not (at_home(folder) / MANIFEST).is_file():
        RunReader.open(folder)  # raises the error
    found = judging(folder, task=task, options=options, pairs=pairs, run_code=run_code, **settings)
    return found.evaluate(n_random=n_random, n_knockouts=n_knockouts, minimality=minimality, progress=progress)


def _notes(
    run: Mapping[str, Any], then: DiscoverConfig, now: DiscoverConfig, task: Task, model: Model
) -> tuple[str, ...]:
    """One sentence that names every setting which is not the run's."""
    about = run["task"]
    compared: dict[str, tuple[Any, Any]] = {"task": (about.get("name"), task.name)}
    if about.get("name") == task.name:
        settings = about.get("settings") or {}
        compared["task version"] = about.get("version"), task.version
        compared |= {name: (settings.get(name), value) for name, value in task.settings.items()}
    for name in (*sorted({*MODEL_SETTINGS} - {"model"}), *_ALWAYS):
        if name not in _FREE:
            compared[name] = getattr(then, name), getattr(now, name)
    if (weights := model.weights_sha256()) != run["model"]["weights_sha256"]:
        compared["weights"] = run["model"]["weights_sha256"][:SHOWN], weights[:SHOWN]
    changed = [f"{name} {new} (the run: {old})" for name, (old, new) in compared.items() if old != new]
    return (f"Not judged as the run was: {', '.join(changed)}.",) if changed else ()
