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
from typing import Any

from circuitlab.arguments import checked
from circuitlab.attribution.attention import AttentionPatterns, attention
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.pairs import PairSet, PairSplits
from circuitlab.data.registry import load_task
from circuitlab.data.task import Task
from circuitlab.discovery.behaviour import check_behaviour
from circuitlab.discovery.config import DiscoverConfig, checked_sites, default_folder
from circuitlab.discovery.scoring import find_method, score_edges, scored_under
from circuitlab.discovery.selection import select, with_faithfulness
from circuitlab.discovery.stability import stability as repeat
from circuitlab.evaluation.evaluate import evaluate
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.selection import SelectionRule
from circuitlab.metrics import Metric, MetricLike, metric_of
from circuitlab.models.bos import AUTO
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
from circuitlab.runs.run import Run, writes_run

SWEPT_SITES = ("resid_pre", "attn_out", "mlp_out", "head_z")
# Heads of the circuit whose patterns are kept: as many as one looks through.
HEADS_SHOWN = 6

__all__ = ["default_folder", "discover"]


@checked
@in_ordinary_modes
@reports_progress
@writes_run
def discover(
    task: str | Path | Task,
    *,
    model: Any = "bundled",
    method: str = "eap-ig",
    steps: int = 5,
    method_options: Mapping[str, Any] | None = None,
    metric: MetricLike | None = None,
    ablation: str = "corrupt",
    n: int = 100,
    seed: int = 0,
    target: float | None = None,
    selection: SelectionRule | Mapping[str, Any] | None = None,
    min_accuracy: float = 0.6,
    stability: int = 0,
    stability_seeds: int = 0,
    out: str | Path | None = None,
    force: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    bos: str | None = None,
    fold_ln: bool = False,
    center_weights: bool = False,
    allow_weak_gap: bool = False,
    sites: str | Sequence[str] | None = None,
    progress: Progress | bool | None = None,
    **options: str,
) -> Run:
    """Find the circuit behind a task, test it on held-out prompts, and write it down if told where.

    Args:
        task: Name, path of a task file, or a `Task`.
        model: Whatever `load_model` takes.
        method: How edges are scored; a name of `METHODS`.
        steps: Gradients along the path, for methods that integrate.
        method_options: What the method alone is told, by name.
        metric: What is measured; the task's own by default.
        ablation: What stands in for everything outside the circuit, a name of `REPLACEMENTS`: scores, selection and
            test are about it. Methods that compare with the corrupted run refuse others. Means and deviations are of
            `n` reference pairs, which are never scored. The sweeps patch one prompt into the other in any case.
        n: Pairs per split.
        seed: Of prompts, intervals and random circuits; the same seed gives the same bytes.
        target: Faithfulness to reach on the discovery pairs; 0.9 where nothing is asked of the selection.
        selection: How the circuit is taken out of the scored edges, where more is to be said: a number of edges or a
            threshold instead of a target, by signed scores, greedily.
        min_accuracy: Share of pairs that the model must get right: with the metric on the better side of 0 where it has
            a natural zero, else with an answer as the most likely token (`circuitlab.discovery.behaviour`).
        stability: On how many bootstrap resamples of the discovery pairs the discovery is done again, to see which
            edges stay; 0 for none.
        stability_seeds: The same on new prompts of the seeds `seed` + 1, + 2, ...: on how many; 0 for none.
        out: Folder to write; nothing is written without it.
        force: Replace that folder if it is there.
        device: Where the model goes.
        dtype: Its dtype.
        bos: Whether a beginning-of-sequence token is put in front of every text (see `load_model`).
        fold_ln: Fold its norms into the weights that read them (see `load_model`).
        center_weights: Centre what it writes to the stream, and its unembedding (see `load_model`).
        allow_weak_gap: Go on where these pairs do not tell the clean run from the corrupted one, or from the empty
            circuit: shares of a gap that may be nothing (`circuitlab.evaluation.gap`).
        sites: What is swept, names of `SITES`; by default `SWEPT_SITES`, as far as the model has them. An empty tuple
            skips the sweeps; then only the nodes of the circuit are patched, each alone, for its drawing.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).
        options: The task's options, such as `contrast="gender"`.

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
    asked = load_task(task, **options)
    judged_by = metric_of(asked, metric)
    config = DiscoverConfig(
        task=_spelling(task, asked), options=asked.settings, model=_model_name(model), method=method, steps=steps,
        method_options=find_method(method).read(method_options), metric=judged_by.name, ablation=ablation, n=n,
        seed=seed, target=target, selection=SelectionRule.of(selection, target), min_accuracy=min_accuracy,
        stability=stability, stability_seeds=stability_seeds,
        device=str(device or "cpu"), dtype=str(dtype or "float32").removeprefix("torch."),
        bos=AUTO if bos is None else bos, fold_ln=fold_ln, center_weights=center_weights,
        allow_weak_gap=allow_weak_gap, sites=None if sites is None else checked_sites(sites),
    )  # fmt: skip
    clock = _Clock(callback(progress))
    with clock("load"):
        asks = {"device": device, "dtype": dtype, "bos": bos, "fold_ln": fold_ln, "center_weights": center_weights}
        loaded: Model = load_model(model, **asks)
        config = replace(config, **_as_it_is(loaded))
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
