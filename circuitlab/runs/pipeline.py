"""The main job on one page: from a task to a tested circuit.

1. load the model          4. sweep the sites           7. test it on held-out prompts
2. draw prompts            5. score every edge          8. write it all down
3. does the model do it?   6. select a circuit
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from circuitlab.attribution.attention import attention_in
from circuitlab.attribution.record import AttentionPatterns
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.pairs import PairSet, PairSplits
from circuitlab.data.registry import load_task
from circuitlab.data.sampling import has_corrupted
from circuitlab.data.task import Task
from circuitlab.discovery.behaviour import check_behaviour
from circuitlab.discovery.config import DiscoverConfig, default_folder
from circuitlab.discovery.node_sweep import sweep_nodes
from circuitlab.discovery.registry import check_clean_only, find_method
from circuitlab.discovery.selection import select_circuit, with_faithfulness
from circuitlab.discovery.stability import Discovery, check_seeds, over_resamples, over_seeds
from circuitlab.evaluation.evaluate import evaluate_circuit
from circuitlab.graphs.circuit import Circuit
from circuitlab.metrics import metric_of
from circuitlab.models.load import load_model
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.models.revisions import AT_HEAD, Checkpoint
from circuitlab.parts import Kind, Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.grid import Grid
from circuitlab.patching.runs.replacement import needs_reference
from circuitlab.patching.sweeps.sites import Site, find_site
from circuitlab.patching.sweeps.sweep import sweep_grids
from circuitlab.progress import callback, note
from circuitlab.resources import Resources
from circuitlab.runs.keywords import takes_settings
from circuitlab.runs.record import sources_of
from circuitlab.runs.run import Run, writes_run
from circuitlab.settings import AROUND_PROMPTS, MODEL_SETTINGS, OF_TABLE, SETTINGS, Settings

SWEPT_SITES = ("resid_pre", "attn_out", "mlp_out", "head_z")
# Heads of the circuit whose attention patterns are kept.
HEADS_SHOWN = 6

__all__ = ["default_folder", "discover"]


@model_function
@writes_run
@takes_settings
def discover(task: str | Path | Task, **settings: Unpack[Settings]) -> Run:
    """Find the circuit of a task, test it on held-out prompts, and write a run folder if `out` is given.

    Args:
        task: Name, path of a task file or of a table of pairs, name of a data set on the hub, or a `Task`.
        {settings}

    Returns:
        Pairs, sweeps, scores, circuit and evaluation of the run.

    Raises:
        CircuitLabError: The task, the model or a setting is invalid; raised before the work starts.

    Example:
        >>> from circuitlab import discover
        >>> run = discover("name-throw", n=4, sites=())  # doctest: +SKIP
        >>> run.circuit.n_edges < run.evaluation.n_edges_total  # doctest: +SKIP
        True
    """
    given: dict[str, Any] = dict(settings)
    chosen = _task(task, given)
    judged_by = metric_of(chosen, given["metric"])
    config = DiscoverConfig.of_settings(
        given, task=_spelling(task, chosen), options=chosen.settings, model=_model_name(given["model"]),
        metric=judged_by.name if given["metric"] is None else given["metric"],
        split="words" if chosen.differ_in else "random", **_of_task(chosen),
    )  # fmt: skip
    resources = Resources(progress=callback(given["progress"]))
    method, ablation, clock = find_method(given["method"]), given["ablation"], _Clock(resources)
    config.selection.is_chosen(method.chooses_circuit(config.method_options))  # rejects a ranking without meaning
    with clock("load"):
        loaded: Model = load_model(**{name: given[name] for name in MODEL_SETTINGS})
        config = config.replaced(**_as_it_is(loaded))
        config.selection.check_size(Layout.of(loaded.spec).n_edges)
        swept = _sites(config, given["sites"], loaded)
    with clock("prompts"):
        pairs = chosen.pairs(
            loaded, n=config.n, seed=config.seed, reference=needs_reference(ablation),
            whole_answers=judged_by.whole_answer, progress=resources.progress,
        )  # fmt: skip
        _note(pairs)
        fingerprint = task_fingerprint(chosen, resources)
        discovery = Experiment(
            loaded, pairs.discovery, judged_by, ablation, pairs.reference, config.seed, config.allow_weak_gap,
            progress=resources.progress,
        )  # fmt: skip
        held_out = _on_other_split(discovery, pairs.held_out)
    with clock("behaviour"):
        behaviour = check_behaviour(discovery, config.min_accuracy)
        discovery.check_gradient(method.gradients_at, method.name)
    with clock("sweep"):
        # One prompt's values in the other, whatever the ablation; without corrupted prompts, the ablation's.
        patched = discovery.under_corrupt() if discovery.corrupt is not None else discovery
        grids = sweep_grids(patched, swept) if swept else {}
    how = Discovery(method, config.selection, {"steps": config.steps, **config.method_options})
    with clock("score"):
        scores = how.score(discovery)
    with clock("select"):
        circuit = with_faithfulness(discovery, select_circuit(discovery, scores, config.selection))
        effects = _node_effects(patched.quiet(), circuit, grids.get("head_z"))
        discovery.recordings.release()
    with clock("evaluate"):
        evaluation = evaluate_circuit(held_out, circuit, minimality=given["minimality"])
        patterns = _strongest_heads(held_out, circuit, effects)
        held_out.recordings.release()
    resamples = seeds = None
    if config.stability:
        with clock("stability"):
            resamples = over_resamples(discovery, how, scores, circuit, config.stability)
    if config.stability_seeds:
        with clock("stability over seeds"):
            seeds = over_seeds(discovery, how, chosen, circuit, config.stability_seeds)
    return Run(
        config=config, task=chosen, task_fingerprint=fingerprint, spec=loaded.spec,
        weights_sha256=loaded.weights_sha256(), bos=loaded.bos, metric=judged_by, pairs=pairs, behaviour=behaviour,
        grids=grids, scores=scores, circuit=circuit.with_node_effects(effects),
        evaluation=evaluation, seconds=clock.seconds, stability=resamples, stability_seeds=seeds, attention=patterns,
        sources=sources_of({name: given[name] for name in config.objects}), checkpoint=_checkpoint(loaded).to_record(),
    )  # fmt: skip


def _task(task: str | Path | Task, given: dict[str, Any]) -> Task:
    """The task, and the number of pairs where none is given; refuses what it cannot give before a model is loaded."""
    reading = {name: given[name] for name in OF_TABLE}
    found = load_task(task, task_options=given["task_options"], **reading).with_split(given["split"])
    found = found.with_prompting(**{name: given[name] for name in AROUND_PROMPTS})
    referred = needs_reference(given["ablation"])
    if given["n"] is None:
        given["n"] = found.usual_n(SETTINGS["n"].default, reference=referred)
    found.check_n(given["n"], reference=referred)
    if not has_corrupted(found):
        check_clean_only(find_method(given["method"]), given["ablation"])
    check_seeds(found, given["stability_seeds"])
    return found


def _of_task(task: Task) -> dict[str, Any]:
    """Settings that a task has: what stands around its prompts, and how its table was read."""
    return {name: getattr(task.prompting, name) for name in AROUND_PROMPTS} | (
        task.table.options.given if task.table else {}
    )


def _note(pairs: PairSplits) -> None:
    """Tell what stands around the prompts, before the work starts."""
    if pairs.frame is not None:
        note(pairs.frame.sentence)


def _sites(config: DiscoverConfig, given: Any, model: Model) -> Sequence[str | Site]:
    """What is swept: the sites given, which the model must have, or the usual ones that it has."""
    if config.sites is None:
        return [name for name in SWEPT_SITES if model.spec.has_mlp or name != "mlp_out"]
    objects: dict[Any, Any] = {site.name: site for site in given or () if isinstance(site, Site)}
    return [find_site(objects.get(name, name), model.spec) for name in config.sites]


def _node_effects(experiment: Experiment, circuit: Circuit, heads: Grid | None) -> dict[str, float]:
    """Effect of patching each node alone: of every node if heads were swept, else of the circuit's nodes."""
    if heads is not None:
        return sweep_nodes(experiment, heads=heads).effects
    inner = [node for node in circuit.nodes if node.kind in (Kind.HEAD, Kind.MLP)]
    return sweep_nodes(experiment, circuit.nodes).effects if inner else {}


def _strongest_heads(held_out: Experiment, circuit: Circuit, effects: Mapping[str, float]) -> AttentionPatterns | None:
    """The patterns of the circuit's heads whose patch moves the metric most, on the first held-out clean prompt."""
    heads = [node.name for node in circuit.nodes if node.kind is Kind.HEAD]
    shown = sorted(heads, key=lambda name: -abs(effects[name]))[:HEADS_SHOWN]
    if not shown:
        return None
    notes = {name: f"{effects[name]:.2f}".replace("-", "\N{MINUS SIGN}") for name in shown}
    assert isinstance(held_out.pairs, PairSet), "a task draws pairs of texts"
    return attention_in(held_out.model, held_out.pairs[0], shown, held_out.recordings.prompt(0), notes=notes)


class _Clock:
    """Reports the progress of steps and keeps the time that each took."""

    def __init__(self, resources: Resources) -> None:
        self._progress = resources.progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        self._progress(step, 0, 1)
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start
        self._progress(step, 1, 1)


def _on_other_split(discovery: Experiment, pairs: PairSet) -> Experiment:
    """The same experiment on held-out pairs, with the same replacement, which is checked against them."""
    held_out = replace(discovery, pairs=pairs, ablation=discovery.replacement, reference=None)
    held_out.replacement  # noqa: B018
    return held_out


def _spelling(given: str | Path | Task, task: Task) -> str:
    """How the task is named in the manifest: it can be loaded by this again."""
    return task.origin or (task.name if isinstance(given, Task) else str(given).partition(":")[0])


def _as_it_is(model: Model) -> dict[str, Any]:
    """Settings that a model which was given brings along."""
    return {
        "device": str(model.device), "dtype": str(model.dtype).removeprefix("torch."),
        "bos": model.bos.choice, "fold_ln": model.folding.fold_ln, "center_weights": model.folding.center_weights,
        **_checkpoint(model).settings,
    }  # fmt: skip


def _checkpoint(model: Model) -> Checkpoint:
    """Which checkpoint of a repository a model is; a model of the user's own class has none."""
    return getattr(model, "checkpoint", AT_HEAD)


def _model_name(model: Any) -> str:
    """How the model is named in the manifest; booted models have a name of their own."""
    if isinstance(model, str | Path):
        return str(model)
    return str(getattr(model, "id", None) or getattr(getattr(model, "cfg", None), "model_name", "bridge"))
