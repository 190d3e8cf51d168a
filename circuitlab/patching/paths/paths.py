"""Path patching: the effect of a sender through a set of receivers alone.

For each sender by itself:

1. First run. The sender's output is that of the other run. Between it and the receivers, heads are frozen: their output
   ("heads", as in the paper), only their attention patterns, so that values still change ("patterns"), or nothing
   ("none"). MLPs are recomputed, or frozen too. The inputs of the receivers are recorded: the q, k or v of a head, the
   input of an MLP, the stream before the logits. A receiver before another one is in this run a head like any other.
2. Second run. Only the receivers take the recorded inputs, whatever else has changed before them, and everything else
   is recomputed; the metric is taken at the answer.

With heads and MLPs frozen, and no receiver after another, this patches the direct edges from the sender to the
receivers. With nothing frozen and the logits as the receiver, it patches the sender's output.

With a post-norm (Gemma 2 and 3) a head's output is its share under the scale of its own run, as for edges, so that the
outputs of the heads of a layer add up.

References:
    Wang et al. 2023, arXiv:2211.00593, appendix on path patching; Goldowsky-Dill et al. 2023, arXiv:2304.05969.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batching import Pairs
from circuitlab.metrics import MetricLike
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.parts import Kind, Node, Reader
from circuitlab.patching.effects import Effects
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.paths.plan import PathPlan, plan_paths
from circuitlab.patching.paths.run import Paths, run_paths
from circuitlab.patching.runs.baseline import Baseline, judge
from circuitlab.patching.runs.packing import Packer, rows_at_once, rows_per_pack
from circuitlab.patching.runs.reach import rows_from, tokens_that_matter
from circuitlab.patching.runs.writers import messages_of
from circuitlab.progress import Progress, callback
from circuitlab.summary import largest, plural


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PathEffects(Effects):
    """Effects of senders through the paths to a set of receivers, each sender patched alone.

    Columns of `to_frame`: sender, receivers, value, share, ci_low, ci_high, p_value, n.

    Attributes:
        senders: Whose output was replaced, in the given order.
        receivers: Whose input was patched, all together.
        frozen: What of the heads between was frozen: "heads", "patterns" or "none".
        freeze_mlps: Whether the MLPs between were frozen.
        direction: "noise": corrupted in the clean run; "denoise": clean in the corrupted run.
        metric: Name of the metric.
        unit: Its unit.
        per_example: How much the paths help: m(clean) - m(clean with them corrupted), or m(corrupted with them clean) -
            m(corrupted); negated for metrics where less is better.
        clean: Metric of the clean run.
        corrupt: Metric of the corrupted run.
        seed: Seed of intervals and p-values.
    """

    senders: tuple[Node, ...]
    receivers: tuple[Reader, ...]
    frozen: str
    freeze_mlps: bool
    direction: str
    metric: str
    unit: str
    per_example: Float[np.ndarray, "sender example"]
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"]
    seed: int = 0

    @property
    def shares(self) -> Float[np.ndarray, " sender"]:
        """`values` as a share of the clean-corrupted difference (ratio of means)."""
        return self.values / abs(float((self.clean - self.unit_end).mean()))

    def to_frame(self, correction: str | None = None) -> pd.DataFrame:
        """As of `Effects`, with the shares.

        Returns:
            The table.
        """
        frame = Effects.to_frame(self, correction)
        frame.insert(3, "share", self.shares)
        return frame

    def _labels(self) -> dict[str, Any]:
        receivers = " ".join(reader.name for reader in self.receivers)
        return {"sender": [node.name for node in self.senders], "receivers": receivers}

    def _summary(self) -> str:
        return (
            f"by {self.direction}: {plural(len(self.senders), 'sender')}, {plural(self.per_example.shape[-1], 'pair')}"
        )

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "receivers", " ".join(one.name for one in self.receivers)
        yield "metric", self._ends
        yield from largest(self.per_example.mean(-1), lambda number: self.senders[number].name)


@model_function
def path_patch(
    model: Model,
    pairs: Pairs,
    senders: str | Node | Iterable[str | Node] | None,
    receivers: str | Node | Reader | Iterable[str | Node | Reader],
    *,
    frozen: str = "heads",
    freeze_mlps: bool = False,
    metric: MetricLike | None = None,
    direction: str | None = None,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress | bool | None = None,
) -> PathEffects:
    """Patch the paths from each of several senders to a set of receivers; see the module for the two runs.

    Args:
        model: A loaded model.
        pairs: A split of a task, or a `PairBatch`.
        senders: Nodes that write ("a5.h5", "m3", "input"), each patched alone; None: every one that writes before all
            the receivers read.
        receivers: Nodes that read, patched together: a slot of a head ("a9.h9<q>"), a head (all its slots), an MLP
            ("m10"), or "logits" by itself.
        frozen: What of the heads between is frozen to the run that is patched: "heads", "patterns" or "none".
        freeze_mlps: Freeze the MLPs between too.
        metric: What is measured at the answer position; by default the metric of the task that drew the pairs,
            else `logit_diff`.
        direction: "denoise", the default: the corrupted run with the paths clean. "noise": the clean run with the paths
            corrupted.
        seed: Of intervals and p-values.
        budget: Bytes that a packed run may take; a share of what is free by default.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).

    Returns:
        `PathEffects`, per sender and example in the metric's unit. "noise": m(clean) - m(clean with the paths
        corrupted); "denoise": m(corrupted with the paths clean) - m(corrupted). Positive: the paths help; where less is
        better (`kl`, `rank`) the sign is turned, so that positive helps there too.

    Raises:
        UnknownNameError: No such sender, receiver, direction, metric, or thing to freeze.
        ConfigError: No senders or receivers, one of them twice, a receiver that reads before a sender writes, "logits"
            beside other receivers, a budget that holds no prompt, pairs without corrupted prompts.
        MetricError: The metric gives the wrong shape or NaN, or does not distinguish the two runs.

    Example:
        >>> from circuitlab import load_model, load_task, path_patch
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> path_patch(model, pairs.discovery, "a0.h1", ["logits"])  # doctest: +ELLIPSIS
        <PathEffects by denoise: 1 sender, 4 pairs>...
    """
    experiment = Experiment(
        model, pairs, metric, seed=seed, allow_weak_gap=True, budget=budget,
        progress=callback(progress),
    )  # fmt: skip
    plan = plan_paths(
        experiment, senders, receivers, frozen=frozen, freeze_mlps=freeze_mlps, direction=direction
    )  # fmt: skip
    return _path_effects(plan)


def _path_effects(plan: PathPlan) -> PathEffects:
    experiment, packer, done = plan.experiment, Packer(), 0
    experiment.prompt_gap  # noqa: B018 - refuses a metric that does not distinguish the two runs
    metric, effects = experiment.metric, np.zeros((len(plan.senders), experiment.n_examples))
    for baseline in experiment.baselines:
        where = baseline.batch.places.cpu().numpy()
        for numbers, found in _effects(plan, baseline, packer):
            effects[np.array(numbers)[:, None], where] = found
            done += len(numbers)
            experiment.progress("paths", done, len(experiment.batches) * len(plan.senders))
    return PathEffects(
        senders=plan.senders,
        receivers=plan.receivers,
        frozen=plan.frozen,
        freeze_mlps=plan.freeze_mlps,
        direction=plan.direction,
        metric=metric.name,
        unit=metric.unit,
        per_example=effects if metric.higher_is_better else -effects,
        clean=experiment.clean,
        corrupt=experiment.unit_end,
        seed=experiment.seed,
    )


@torch.no_grad()
def _effects(
    plan: PathPlan, baseline: Baseline, packer: Packer
) -> Iterator[tuple[list[int], Float[np.ndarray, "sender pair"]]]:
    """How much the paths help, for the senders that enter the stream at one point, point after point."""
    runs, noise = (baseline.clean, baseline.corrupt), plan.direction == "noise"
    base, other = runs if noise else runs[::-1]
    paths = Paths(plan=plan, baseline=baseline, base=base)
    untouched = baseline.unpatched(plan.experiment.metric, plan.direction).double()
    for sender, numbers in _entering_together(plan.senders).items():
        messages = messages_of(plan.experiment.model, base, other, [plan.senders[number] for number in numbers])
        found = untouched.expand(len(numbers), -1).clone()
        _run_senders(plan, paths, sender, messages, packer, found)
        change = (untouched - found) if noise else (found - untouched)
        yield numbers, baseline.batch.per_pair(change).cpu().numpy()


def _run_senders(
    plan: PathPlan,
    paths: Paths,
    sender: Node,
    messages: Float[Tensor, "writer batch seq d_model"],
    packer: Packer,
    values: Float[Tensor, "writer batch"],
) -> None:
    """Fill in the metric of senders that enter the stream where this one does."""
    model, metric, resources = plan.experiment.model, plan.experiment.metric, plan.experiment.resources
    baseline, batch = paths.baseline, paths.baseline.batch
    live = (messages != 0).any(3) & tokens_that_matter(model.spec, batch, from_difference=True)
    number, example = live.any(2).nonzero().T
    first = live.int().argmax(2)
    fits = rows_per_pack(model, batch.n_tokens, resources, plan.kept_streams)

    def pack(part: slice) -> None:
        who, which = number[part], example[part]
        rows = rows_from(model.spec, batch, which, first[who, which])
        message = messages[who[rows.row], which[rows.row], rows.position]
        final = run_paths(paths, sender, rows, message)
        values[who, which] = judge(model, metric, baseline, final, which).double()

    packer.run(len(number), min(fits, rows_at_once(model, batch.n_tokens, resources)), pack)


def _entering_together(senders: tuple[Node, ...]) -> dict[Node, list[int]]:
    """Numbers of the senders that enter the stream at the same point, by the first of them."""
    found: dict[tuple[Kind, int | None], list[int]] = {}
    for number, sender in enumerate(senders):
        found.setdefault((sender.kind, sender.layer), []).append(number)
    return {senders[numbers[0]]: numbers for numbers in found.values()}
