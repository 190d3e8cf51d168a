"""Carry out a sweep: batch by batch and block by block, all sites together.

Everything a part of the work needs is in the plan and the recorded runs, so parts can be counted, skipped when an
earlier run finished them, and run in packs of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from circuitlab.digests import sha256
from circuitlab.outputs.records import State, resume, save_state
from circuitlab.patching.runs.baseline import Baseline, judge_all
from circuitlab.patching.runs.packing import Packer, budget_of, rows_at_once
from circuitlab.patching.runs.replacement import replaced, replaced_hidden
from circuitlab.patching.sweeps.cells import Cells, cells_of, run_cells, window
from circuitlab.patching.sweeps.patches import Runs, patches_of
from circuitlab.patching.sweeps.plan import SweepPlan
from circuitlab.patching.sweeps.sites import Site, enters_at
from circuitlab.resources import Resources

JOB, DONE = "sweep", "finished parts"  # of the file to resume from


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """All cells of one batch whose next whole block is the same.

    Attributes:
        number: Its place among all parts.
        batch: Which batch.
        block: The first whole block after the patches; `n_layers`: none.
        work: About how much there is to do, in blocks times prompts.
    """

    number: int
    batch: int
    block: int
    work: int


@dataclass(frozen=True, slots=True, eq=False)
class SweepRun:
    """A plan with its recorded runs and the tables being filled.

    Attributes:
        plan: What to do.
        tables: Site -> raw values.
        clean: Metrics of the clean run, in the order of the data set.
        unit_end: The same where normalised values are 0: of the corrupted run, or of the empty circuit for pairs
            without corrupted prompts.
    """

    plan: SweepPlan
    tables: dict[str, Float[np.ndarray, "metric layer member column example"]]
    clean: Float[np.ndarray, "metric example"]
    unit_end: Float[np.ndarray, "metric example"]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The work, in order."""
        n_layers = self.plan.experiment.model.spec.n_layers
        blocks = sorted({enters_at(s, layer) for s in self.plan.sites for layer in self.plan.layers})
        where = [(batch, block) for batch in range(len(self.plan.experiment.batches)) for block in blocks]
        return tuple(
            Part(number=i, batch=b, block=at, work=(n_layers - at + 1) * len(self.plan.experiment.batches[b]))
            for i, (b, at) in enumerate(where)
        )

    def key(self) -> str:
        """Digest of everything that the numbers depend on.

        Returns:
            64 hexadecimal digits.
        """
        plan, model = self.plan, self.plan.experiment.model
        names = ("answers", "distractors", "answer_at", "index")
        tensors = [getattr(batch, name) for batch in plan.experiment.batches for name in (*batch.sides, *names)]
        tensors += [mask for site in plan.sites for mask in plan.columns[site.name].masks]
        settings = (
            model.weights_sha256(), model.dtype, plan.layers, plan.direction, plan.experiment.replacement.fingerprint,
            [(site.name, plan.members[site.name], plan.columns[site.name].labels) for site in plan.sites],
            [metric.name for metric in plan.metrics], self.clean.tolist(),
            [(tensor.dtype, tensor.shape) for tensor in tensors],
        )  # fmt: skip
        return sha256(repr(settings), *tensors)

    def cells(self, part: Part) -> tuple[Runs, Cells, Bool[torch.Tensor, "batch seq"]]:
        """The rows of a part.

        Returns:
            The runs, the cells, and the tokens whose change can reach the metric.
        """
        plan = self.plan
        runs = self._runs(plan.experiment.recordings.baseline(plan.experiment.batches[part.batch]))
        inside = window(runs, part.block, from_difference=plan.experiment.replacement.kind == "corrupt")
        patches = [
            patch
            for site, layer in self._entering(part.block)
            for patch in patches_of(
                runs, site, layer, plan.members[site.name], plan.columns[site.name].masks[part.batch]
            )
        ]
        return runs, cells_of(patches, inside), inside

    def run(self, part: Part, resources: Resources, packer: Packer) -> None:
        """Fill the cells of a part."""
        runs, cells, inside = self.cells(part)
        batch, plan = runs.baseline.batch, self.plan
        where = batch.index.cpu().numpy()
        of_several_rows = plan.metrics if batch.n_words is not None else ()
        untouched = [runs.baseline.unpatched(metric, plan.direction).double() for metric in of_several_rows]

        def pack(rows: slice) -> None:
            some = cells.take(rows)
            final = run_cells(runs, some, part.block, inside)
            judged = [v.double() for v in judge_all(runs.model, plan.metrics, runs.baseline, final, some.example)]
            if untouched:  # one of several rows of a pair: by how much it changes
                judged = [values - before[some.example] for values, before in zip(judged, untouched, strict=True)]
            self._write(some, torch.stack(judged).cpu().numpy(), where, add=bool(untouched))

        packer.run(len(cells), rows_at_once(plan.experiment.model, batch.n_tokens, resources), pack)

    def copy_shared(self) -> None:
        """The stream after a block is the stream before the next one: their cells were run once."""
        place = self.plan.layers.index
        for layer, at in self._shared():
            self.tables["resid_post"][:, place(layer)] = self.tables["resid_pre"][:, place(at)]

    def _shared(self) -> list[tuple[int, int]]:
        names = {s.name for s in self.plan.sites}
        if not {"resid_pre", "resid_post"} <= names:
            return []
        return [(layer, layer + 1) for layer in self.plan.layers if layer + 1 in self.plan.layers]

    def _entering(self, block: int) -> Iterator[tuple[Site, int]]:
        """Sites and layers whose next whole block is this one."""
        shared = {layer for layer, _ in self._shared()}
        for site in self.plan.sites:
            for layer in self.plan.layers:
                if enters_at(site, layer) == block and not (site.name == "resid_post" and layer in shared):
                    yield site, layer

    def _runs(self, baseline: Baseline) -> Runs:
        plan = self.plan
        base = baseline.patched_run(plan.direction)
        about = (plan.experiment.model, plan.experiment.replacement, baseline, base)
        hidden: Callable[[int], torch.Tensor] = partial(replaced_hidden, *about)
        return Runs(
            model=plan.experiment.model,
            baseline=baseline,
            base=base,
            source=base if plan.experiment.replacement.function else replaced(*about),
            hidden=lru_cache(maxsize=1)(hidden),
            ablation=plan.experiment.replacement,
        )

    def _write(self, cells: Cells, values: Float[np.ndarray, "metric row"], where: np.ndarray, *, add: bool) -> None:
        patch, member, column, example = (
            t.cpu().numpy() for t in (cells.patch, cells.member, cells.column, cells.example)
        )
        for number in np.unique(patch):
            made, here = cells.patches[number], patch == number
            table = self.tables[made.site.name][:, self.plan.layers.index(made.layer)]
            columns = np.array(made.columns)[column[here]]
            at: Any = slice(None), made.start + member[here], columns, where[example[here]]
            if add:
                np.add.at(table, at, values[:, here])
            else:
                table[at] = values[:, here]


def start(plan: SweepPlan) -> SweepRun:
    """Record the runs of every batch; every cell begins as "the patch does nothing".

    Returns:
        The sweep, with tables that `carry_out` fills.

    Raises:
        MetricError: A metric cannot be used, or does not distinguish the two runs.
    """
    each = [plan.experiment.measured_by(metric) for metric in plan.metrics]
    plan.experiment.recordings.ends(*plan.metrics)  # all at once
    clean, unit_end = (np.stack([getattr(one, end) for one in each]) for end in ("clean", "unit_end"))
    for one in each:
        one.prompt_gap  # noqa: B018 - refuses a metric that does not distinguish the two
    untouched = unit_end if plan.direction == "denoise" else clean
    return SweepRun(plan, {site.name: _untouched(plan, site, untouched) for site in plan.sites}, clean, unit_end)


def _untouched(plan: SweepPlan, site: Site, untouched: Float[np.ndarray, "metric example"]) -> np.ndarray:
    """A table of cells that do nothing; NaN where an example lacks the column."""
    columns = plan.columns[site.name]
    cells = (len(plan.layers), len(plan.members[site.name]), len(columns.labels))
    table = np.broadcast_to(untouched[:, None, None, None], (len(untouched), *cells, untouched.shape[1])).copy()
    for batch, mask in zip(plan.experiment.batches, columns.masks, strict=True):
        absent = ~mask.any(2).cpu().numpy()  # [column, example of the batch]
        column, example = absent.nonzero()
        table[..., column, batch.index.cpu().numpy()[example]] = np.nan
    return table


def carry_out(run: SweepRun, resume: Path | None) -> None:
    """Run every part that is not done yet.

    Raises:
        RunError: `resume` is the file of another sweep.
        ConfigError: The budget does not hold one prompt, or the memory does not.
    """
    plan = run.plan
    resources = plan.experiment.resources
    budget = budget_of(resources, plan.experiment.model.device)
    kept = Checkpoint(path=resume, key=run.key() if resume is not None else "", tables=run.tables, budget=budget)
    kept.load()
    total = sum(part.work for part in run.parts)
    done, packer = 0, Packer()
    for part in run.parts:
        if part.number not in kept.done:
            run.run(part, Resources(kept.budget), packer)
            kept.finish(part.number)
        done += part.work
        resources.progress("sweep", done, total)
    run.copy_shared()
    kept.remove()


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """Finished parts of a long sweep in a file to resume from, which is removed when all are done.

    Attributes:
        path: Where it is; None keeps nothing.
        key: Digest of the sweep.
        tables: The arrays being filled, by name; a part is a set of their cells.
        budget: Bytes a pack may take: packs of another size would round differently.
        done: Numbers of the finished parts.
    """

    path: Path | None
    key: str
    tables: Mapping[str, np.ndarray]
    budget: int
    done: set[int] = field(default_factory=set)

    def load(self) -> None:
        """Take over what an earlier run finished.

        Raises:
            RunError: The file is of another sweep, or damaged.
        """
        if self.path is not None:
            resume(self.path, JOB, self.key, self._take)

    def _take(self, state: State) -> None:
        done, budget = state.arrays[DONE], state.numbers["budget"]
        for name, table in self.tables.items():
            kept = state.arrays[name]
            if (kept.shape, kept.dtype) != (table.shape, table.dtype):
                raise ValueError(f"table {name} is {kept.dtype} {kept.shape}")
        if budget < 1 or done.dtype.kind != "i":
            raise ValueError(f"budget {budget} or the list of finished parts is no whole number")
        for name, table in self.tables.items():
            table[...] = state.arrays[name]
        self.done, self.budget = set(done.ravel().tolist()), budget

    def finish(self, part: int) -> None:
        """Take note of a finished part, on disk."""
        self.done.add(part)
        if self.path is not None:
            arrays = {**self.tables, DONE: np.array(sorted(self.done))}
            save_state(self.path, State(job=JOB, key=self.key, numbers={"budget": self.budget}, arrays=arrays))

    def remove(self) -> None:
        """The sweep is done; nothing is left to resume."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
