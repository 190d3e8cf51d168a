"""What edges carry: every writer's message, and where a change of it can reach the answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.models.protocol import Model, Recording
from circuitlab.parts import Edge, Layout, Node
from circuitlab.patching.edges.plan import EdgePlan
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.reach import tokens_that_matter
from circuitlab.patching.runs.writers import replacement_messages


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeRun:
    """One batch and the messages that are patched in it.

    Attributes:
        model: The model.
        baseline: The batch, run clean and corrupted.
        base: The run that is patched.
        edges: The edges.
        writers: Their sources, in the order of `messages`.
        messages: What each edge of a writer carries instead, minus the writer's output in `base`.
        tokens: The tokens of each column.
        live: Where a message differs and what it changes can reach the answer.
        first: The first such token of each column; `seq` where there is none.
    """

    model: Model
    baseline: Baseline
    base: Recording
    edges: tuple[Edge, ...]
    writers: tuple[Node, ...]
    messages: Float[Tensor, "writer batch seq d_model"]
    tokens: Bool[Tensor, "column batch seq"]
    live: Bool[Tensor, "writer batch seq"]
    first: Int[Tensor, "writer column batch"]

    @property
    def answer_at(self) -> Int[Tensor, " batch"]:
        """Where each example is judged."""
        return self.baseline.batch.answer_at


@torch.no_grad()
def edge_run(
    experiment: Experiment, plan: EdgePlan, baseline: Baseline, tokens: Bool[Tensor, "column batch seq"]
) -> EdgeRun:
    """Take the messages of a batch: the differences of both runs, or of one run and its replacement.

    Args:
        experiment: The model, and the replacement that a patched edge carries.
        plan: The edges and the direction.
        baseline: The batch, run clean and corrupted.
        tokens: The tokens of each column.
    """
    model, replacement = experiment.model, experiment.replacement
    base = baseline.clean if plan.direction == "noise" else baseline.corrupt
    writers = tuple(sorted({edge.source for edge in plan.edges}, key=Layout.of(model.spec).writer_index))
    messages = replacement_messages(model, replacement, baseline, base, writers)
    matters = tokens_that_matter(model.spec, baseline.batch, from_difference=replacement.kind == "corrupt")
    live = (messages != 0).any(3) & matters
    return EdgeRun(
        model=model,
        baseline=baseline,
        base=base,
        edges=plan.edges,
        writers=writers,
        messages=messages,
        tokens=tokens,
        live=live,
        first=_first_tokens(live, tokens),
    )


def _first_tokens(
    live: Bool[Tensor, "writer batch seq"], tokens: Bool[Tensor, "column batch seq"]
) -> Int[Tensor, "writer column batch"]:
    """Writer by writer, to keep the memory small."""
    first = torch.empty((len(live), *tokens.shape[:2]), dtype=torch.long, device=live.device)
    for writer, here in enumerate(live):
        both = tokens & here
        first[writer] = torch.where(both.any(2), both.int().argmax(2), tokens.shape[2])
    return first
