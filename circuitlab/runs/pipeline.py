"""The main job on one page: from a task to a tested circuit.

1. load the model          4. sweep the sites           7. test it on held-out prompts
2. draw prompts            5. score every edge          8. write it all down
3. does the model do it?   6. select a circuit
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from circuitlab.arguments import checked
from circuitlab.attribution.attention import AttentionPatterns, attention
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.pairs import PairSet, PairSplits
from circuitlab.data.registry import load_task
from circuitlab.data.task import Task
from circuitlab.discovery.behaviour import check_behaviour
from circuitlab.discovery.config import DiscoverConfig, default_folder
from circuitlab.discovery.scoring import find_method, score_edges, scored_under
from circuitlab.discovery.selection import select, with_faithfulness
from circuitlab.discovery.stability import stability as repeat
from circuitlab.evaluation.evaluate import evaluate
from circuitlab.graphs.circuit import Circuit
from circuitlab.metrics import Metric, metric_of
from circuitlab.models.load import load_model
from circuitlab.models.modes import in_ordinary_modes
from circuitlab.models.protocol import Model
from circuitlab.parts import Kind, Layout
from circuitlab.patching.circuits.metric import prepare
from circuitlab.patching.grid import Grid
from circuitlab.patching.runs.replacement import Replacement, needs_reference, resolve_replacement
from circuitlab.patching.sweeps.nodes import sweep_nodes, sweep_some_nodes
from circuitlab.patching.sweeps.sites import find_site
from circuitlab.patching.sweeps.sweep import by_site, sweep
from circuitlab.progress import Progress, callback, reports_progress
from circuitlab.runs.keywords import takes_settings
from circuitlab.runs.run import Run, writes_run
from circuitlab.settings import MODEL_SETTINGS, Settings

SWEPT_SITES = ("resid_pre", "attn_out", "mlp_out", "head_z")
# Heads of the circuit whose patterns are kept: as many as one looks through.
HEADS_SHOWN = 6

__all__ = ["default_folder", "discover"]


@checked
@in_ordinary_modes
@reports_progress
@writes_run
@takes_settings
def discover(task: str | Path | Task, **settings: Unpack[Settings]) -> Run:
    """Find the circuit behind a task, test it on held-out prompts, and write it down if told where.

    Args:
        task: Name, path of a task file, or a `Task`.
        {settings}

    Returns:
        Pairs, sweeps, scores, circuit and evaluation of the run.

    Raises:
        CircuitLabError: Whatever is wrong with the task, the model or the settings, told before the work starts.

    Example:
        >>> from circuitlab import discover
        >>> run = discover("name-throw", n=4, sites=())  # doctest: +SKIP
        >>> run.circuit.n_edges < run.evaluation.n_edges_total  # doctest: +SKIP
        True
    """
    given: dict[str, Any] = dict(settings)
    asked = load_task(task, task_options=given["task_options"])
    judged_by = metric_of(asked, given["metric"])
    config = DiscoverConfig.of_settings(
        given, task=_spelling(task, asked), options=asked.settings, model=_model_name(given["model"]),
        metric=judged_by.name,
    )  # fmt: skip
    progress = given["progress"]
    method, steps, ablation, n, seed = config.method, config.steps, config.ablation, config.n, config.seed
    min_accuracy, allow_weak_gap = config.min_accuracy, config.allow_weak_gap
    stability, stability_seeds = config.stability, config.stability_seeds
    clock = _Clock(callback(progress))
    with clock("load"):
        loaded: Model = load_model(**{name: given[name] for name in MODEL_SETTINGS})
        config = config.replaced(**_as_it_is(loaded))
        config.selection.check_size(Layout.of(loaded.spec).n_edges)
        _sites(config, loaded)  # refuses what the model does not have
    with clock("prompts"):
        pairs = asked.pairs(loaded, n=n, seed=seed, reference=needs_reference(ablation), progress=progress)
        fingerprint = task_fingerprint(asked, callback(progress))
        found, put_in = pairs.discovery, _put_in(loaded, ablation, pairs, seed)
    with clock("behaviour"):
        prepared = prepare(loaded, found, replacement=put_in)
        behaviour = check_behaviour(prepared, found, judged_by, min_accuracy, allow_weak_gap=allow_weak_gap)
        prepared.check_gradient(judged_by, find_method(method).gradients_at, method)
        del prepared  # runs of every pair: memory that the sweeps want
    with clock("sweep"):
        grids = _sweeps(loaded, found, _sites(config, loaded), judged_by, seed, callback(progress))
    with clock("score"):
        scores = score_edges(
            loaded, found, method, steps=steps, metric=judged_by, seed=seed, progress=progress,
            ablation=scored_under(find_method(method), put_in), **config.method_options,
        )  # fmt: skip
    told = {"metric": judged_by, "seed": seed, "allow_weak_gap": allow_weak_gap, "progress": progress}
    with clock("select"):
        circuit = select(loaded, scores, found, **config.selection.arguments, ablation=put_in, **told)
        circuit = with_faithfulness(loaded, circuit, found, metric=judged_by, ablation=put_in, seed=seed)
        effects = _node_effects(loaded, found, judged_by, circuit, grids.get("head_z"))
    with clock("evaluate"):
        evaluation = evaluate(loaded, circuit, pairs.held_out, ablation=put_in, **told)
        looks = _strongest_heads(loaded, circuit, effects, pairs.held_out)
    again = {"selection": config.selection, "method_options": config.method_options, "scores": scores, **told}
    resamples = seeds = None
    if stability:
        with clock("stability"):
            resamples = repeat(loaded, found, method, n_resamples=stability, steps=steps, ablation=put_in, **again)
    if stability_seeds:
        with clock("stability over seeds"):
            seeds = repeat(
                loaded, asked, method, over="seeds", n_resamples=stability_seeds, n=n, steps=steps, ablation=ablation,
                **again,
            )  # fmt: skip
    return Run(
        config=config, task=asked, task_fingerprint=fingerprint, spec=loaded.spec,
        weights_sha256=loaded.weights_sha256(), bos=loaded.bos, metric=judged_by, pairs=pairs, behaviour=behaviour,
        grids=grids, scores=scores, circuit=circuit.with_node_effects(effects),
        evaluation=evaluation, seconds=clock.seconds, stability=resamples, stability_seeds=seeds, attention=looks,
    )  # fmt: skip


def _sites(config: DiscoverConfig, model: Model) -> list[str]:
    """What is swept: the sites asked for, which the model must have, or the usual ones that it has."""
    if config.sites is None:
        return [name for name in SWEPT_SITES if model.spec.has_mlp or name != "mlp_out"]
    return [find_site(name, model.spec).name for name in config.sites]


def _sweeps(
    model: Model, pairs: PairSet, sites: list[str], metric: Metric, seed: int, progress: Progress
) -> Mapping[str, Grid]:
    """A grid for each site; none where nothing is to be swept."""
    return by_site(sweep(model, pairs, sites, metric=metric, seed=seed, progress=progress)) if sites else {}


def _node_effects(
    model: Model, pairs: PairSet, metric: Metric, circuit: Circuit, heads: Grid | None
) -> dict[str, float]:
    """Effect of patching each node alone: of every node if heads were swept, else of the circuit's nodes."""
    if heads is not None:
        return sweep_nodes(model, pairs, metric, heads=heads).effects
    inner = [node for node in circuit.nodes if node.kind in (Kind.HEAD, Kind.MLP)]
    return sweep_some_nodes(model, pairs, metric, circuit.nodes).effects if inner else {}


def _strongest_heads(
    model: Model, circuit: Circuit, effects: Mapping[str, float], held_out: PairSet
) -> AttentionPatterns | None:
    """The patterns of the circuit's heads whose patch moves the metric most, on the first held-out clean prompt."""
    heads = [node.name for node in circuit.nodes if node.kind is Kind.HEAD]
    shown = sorted(heads, key=lambda name: -abs(effects[name]))[:HEADS_SHOWN]
    if not shown:
        return None
    notes = {name: f"{effects[name]:.2f}".replace("-", "\N{MINUS SIGN}") for name in shown}
    return attention(model, held_out[0], shown, notes=notes)


class _Clock:
    """Names steps, tells their progress, and keeps how long each took."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        self._progress(step, 0, 1)
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start
        self._progress(step, 1, 1)


def _put_in(model: Model, ablation: str, pairs: PairSplits, seed: int) -> Replacement:
    """What excluded edges carry, measured once and checked against both splits before anything runs."""
    found = resolve_replacement(model, ablation, pairs=pairs.discovery, reference=pairs.reference, seed=seed)
    return resolve_replacement(model, found, pairs=pairs.held_out, reference=None, seed=seed)


def _spelling(given: str | Path | Task, task: Task) -> str:
    """How the task can be asked for again."""
    return task.origin or (task.name if isinstance(given, Task) else str(given).partition(":")[0])


def _as_it_is(model: Model) -> dict[str, Any]:
    """Settings that a model which was given brings along."""
    return {
        "device": str(model.device), "dtype": str(model.dtype).removeprefix("torch."),
        "bos": model.bos.choice, "fold_ln": model.folding.fold_ln, "center_weights": model.folding.center_weights,
    }  # fmt: skip


def _model_name(model: Any) -> str:
    """How the model can be asked for again; booted models are called by their own name."""
    if isinstance(model, str | Path):
        return str(model)
    return str(getattr(model, "id", None) or getattr(getattr(model, "cfg", None), "model_name", "bridge"))
