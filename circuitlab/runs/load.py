"""A run folder as the `Run` that wrote it. No model is loaded, and no code of the folder is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuitlab.arguments import checked
from circuitlab.data.batching import prompt_keys
from circuitlab.data.framing import PromptFrame
from circuitlab.data.pairs import Pair, PairSet, PairSplits
from circuitlab.data.prompting import PLAIN, Prompting
from circuitlab.data.registry import is_bundled, load_task
from circuitlab.data.task import Task
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.errors import CircuitLabError, RunError
from circuitlab.metrics import Metric
from circuitlab.metrics.base import METRICS
from circuitlab.models.protocol import Bos
from circuitlab.outputs.records import from_plain
from circuitlab.patching.grid import Grids
from circuitlab.references import Reference
from circuitlab.runs.earlier import results_of_tables, scores_of_table, spec_of
from circuitlab.runs.manifest import DATASET, MANIFEST, OF_METRIC, field_of
from circuitlab.runs.reader import RunReader
from circuitlab.runs.run import Run
from circuitlab.runs.tables import is_of_table, task_of_table
from circuitlab.runs.task_files import TASK_FILE
from circuitlab.settings import AROUND_PROMPTS


@checked
def load_run(folder: str | Path) -> Run:
    """Read a run folder of `discover`.

    Args:
        folder: The folder; `~` is the home folder.

    Returns:
        The run as `discover` returned it, with `config`, `pairs`, `scores`, `circuit`, `evaluation`, `grids` and all
        else, to the last bit; times are in milliseconds. What a task file computes (`task.draw`, a metric of its own)
        is named but not there: `load_task(folder / "task.py")` runs that file. A folder of an earlier version holds
        tables only: scores have no standard errors, and what was measured pair by pair is NaN. A method or
        site of a package that is not installed is named, and `config.objects` lists the setting.

    Raises:
        RunError: It is no run folder, or a file is missing, damaged, or was changed after the run.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from circuitlab import discover
        >>> with TemporaryDirectory() as folder:
        ...     run = discover("name-throw", n=8, sites=[], out=f"{folder}/run", progress=False)
        ...     again = load_run(f"{folder}/run")
        >>> again.evaluation.faithfulness == run.evaluation.faithfulness
        True
    """
    read = RunReader.open(folder)
    read.digests()
    try:
        return _run(read)
    except RunError:
        raise
    except CircuitLabError as error:
        raise read.damaged(MANIFEST, str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise read.damaged(MANIFEST, f"{type(error).__name__}: {error}") from error


def _run(read: RunReader) -> Run:
    manifest, config = read.manifest, read.config()
    for name in ("task.name", "task.version", "task.fingerprint", "metric.name"):
        field_of(manifest, name, str)
    field_of(manifest, "seconds", dict)
    scores, results = read.scores(), read.results()
    spec = spec_of(read) if scores is None else scores.spec
    circuit = read.circuit(spec)
    model, task = read.about("model"), _task(read, config)
    metric = _metric(read.about("metric"))
    pairs = _pairs(read, task.metric if isinstance(task.metric, str) else metric)
    scores = scores_of_table(read, circuit) if scores is None else scores
    results = results_of_tables(read) if results is None else results
    # Which prompts a circuit was selected on, selections keep in memory only.
    prompts = frozenset(key for keys in prompt_keys(pairs.discovery) for key in keys)

    def with_prompts(found: Any) -> Any:
        return found and replace(found, selection=found.selection and replace(found.selection, prompts=prompts))

    return Run(
        config=config, task=task, task_fingerprint=read.about("task")["fingerprint"], spec=spec,
        weights_sha256=model["weights_sha256"], metric=metric, pairs=pairs, scores=scores,
        bos=Bos(choice=config.bos, ids=tuple(model.get("bos_ids", ())), tokens=tuple(model.get("bos_tokens", ()))),
        circuit=with_prompts(circuit), behaviour=results.behaviour, grids=Grids(results.grids.values()),
        evaluation=with_prompts(results.evaluation), attention=results.attention,
        **{
            name: found and replace(found, circuit=with_prompts(found.circuit))
            for name, found in (("stability", results.stability), ("stability_seeds", results.stability_seeds))
        },
        seconds=dict(manifest["seconds"]), folder=read.path, sources=read.about("objects"),
        checkpoint={name: model[name] for name in ("revision", "commit") if name in model},
    )  # fmt: skip


def _pairs(read: RunReader, metric: str | Callable[..., Any]) -> PairSplits:
    splits: dict[str, list[Pair]] = {}
    for number, line in enumerate(read.pairs(), start=1):
        try:
            record = dict(line)
            splits.setdefault(record.pop("split"), []).append(from_plain(Pair, record))
        except (KeyError, TypeError, ValueError) as error:
            raise read.damaged(DATASET, f"line {number} is no pair ({type(error).__name__}: {error})") from error
    sets = {name: PairSet(tuple(pairs), metric) for name, pairs in splits.items()}
    if not {"discovery", "held_out"} <= set(sets) <= {"discovery", "held_out", "reference"}:
        raise read.damaged(DATASET, f"its splits are {', '.join(sets)}; a run has discovery and held_out pairs")
    return PairSplits(
        discovery=sets["discovery"], held_out=sets["held_out"], reference=sets.get("reference"),
        dropped=dict(read.about("dataset").get("dropped", {})),
        differ_in=read.about("dataset").get("held_out_differ_in", ""),
        frame=from_plain(PromptFrame, around) if (around := read.about("dataset").get("around")) else None,
    )  # fmt: skip


def _task(read: RunReader, config: DiscoverConfig) -> Task:
    """The task: a built-in one of the same version, or the one that the manifest describes, without its code."""
    about = read.about("task")
    separator = about.get("shot_separator", PLAIN.separator)
    prompting = Prompting(**{name: getattr(config, name) for name in AROUND_PROMPTS}, separator=separator)
    if is_of_table(read.manifest):
        return replace(task_of_table(read.path, read.manifest), split=config.split, prompting=prompting)
    if is_bundled(config.task) and (ours := load_task(config.task)).version == about["version"]:
        changed = {name: value for name, value in config.options.items() if value != ours.settings.get(name)}
        return replace(ours.with_options(**changed), split=config.split, prompting=prompting)
    settings = about.get("settings", {})
    options = about.get("options", {name: [value] for name, value in settings.items()})
    missing = _missing(read, "the prompts of this task")
    kept = read.find(TASK_FILE)
    return Task(
        name=about["name"], version=about["version"], summary=about.get("summary", ""), draw=missing,
        options={name: tuple(values) for name, values in options.items()}, chosen=settings,
        metric=about.get("metric") or _missing(read, read.about("metric")["name"]),
        sources=tuple(from_plain(Reference, source) for source in about.get("sources", ())),
        origin="" if kept is None else str(kept), prompting=prompting,
    )  # fmt: skip


def _metric(about: Mapping[str, Any]) -> Metric:
    name = about["name"]
    if name in METRICS:
        return METRICS[name]
    declared = {field: about[field] for field in OF_METRIC if field in about}
    return Metric(name=name, function=_missing(None, f"metric {name!r}"), **declared)


def _missing(read: RunReader | None, what: str) -> Callable[..., Any]:
    """A replacement of code of a task file; it raises when it is called."""
    where = "" if read is None else f" {str(read.path)!r}"

    def missing(*given: object, **options: object) -> Any:
        raise RunError(
            f"{what} needs the code of a task file, which load_run does not run{where}. Read the file, then load it "
            "with load_task."
        )

    return missing
