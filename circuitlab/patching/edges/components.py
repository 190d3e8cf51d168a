"""Exact effects of single components: one dimension of what one writer adds to the stream, patched alone.

There are `d_model` of them for every writer, 120 thousand in GPT-2: for small models, and to check estimates with.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.models.row_steps import Rows
from circuitlab.models.steps import after_heads
from circuitlab.parts import Kind, Layout, Node
from circuitlab.patching.runs.baseline import Baseline, judge
from circuitlab.patching.runs.packing import Packer, rows_at_once
from circuitlab.patching.runs.reach import rows_from, tokens_that_matter
from circuitlab.patching.runs.replacement import Replacement
from circuitlab.patching.runs.suffix import run_from_middle, run_suffix
from circuitlab.patching.runs.writers import replacement_messages
from circuitlab.resources import Resources


@torch.no_grad()
def component_effects(
    model: Model,
    baseline: Baseline,
    metric: Metric,
    replacement: Replacement,
    resources: Resources,
) -> Float[np.ndarray, "batch writer d_model"]:
    """m(clean) - m(clean with this one component replaced in the stream), for every writer's components.

    After a norm that the heads of a layer share, each run has its own scale, as for edges.

    Args:
        model: The model.
        baseline: One batch, run clean and corrupted.
        metric: What is measured.
        replacement: What a component is replaced with, resolved for the data set that the batch is of.
        resources: Budget and progress.
    """
    layout, batch = Layout.of(model.spec), baseline.batch
    inside = tokens_that_matter(model.spec, batch, from_difference=replacement.kind == "corrupt")
    untouched = metric(baseline.clean_logits, batch).double()
    effects, packer = untouched.new_zeros(len(batch), len(layout.writers), model.spec.d_model), Packer()
    for number, writer in enumerate(layout.writers):
        message = replacement_messages(model, replacement, baseline, baseline.clean, [writer])[0] * inside[..., None]
        live = message != 0
        example, component = live.any(1).nonzero().T
        first = live[example, :, component].int().argmax(1)

        def pack(
            part: slice, writer: Node = writer, number: int = number, message: Tensor = message,
            about: tuple[Tensor, ...] = (example, component, first),
        ) -> None:  # fmt: skip
            example, component, first = (values[part] for values in about)
            rows = rows_from(model.spec, batch, example, first)
            final = _patched(model, baseline, rows, writer, message, component)
            values = judge(model, metric, baseline, final, example).double()
            effects[example, number, component] = untouched[example] - values

        packer.run(len(example), rows_at_once(model, batch.n_tokens, resources), pack)
        resources.progress("components", number + 1, len(layout.writers))
    return effects.cpu().numpy()


def _patched(
    model: Model, baseline: Baseline, rows: Rows, writer: Node, message: Tensor, component: Tensor
) -> Float[Tensor, "row d_model"]:
    """The final stream of each row at its answer."""
    clean, layer = baseline.clean, writer.layer or 0
    after = 0 if writer.kind is Kind.INPUT else layer + 1
    stream = rows.of(after_heads(model, clean, layer) if writer.kind is Kind.HEAD else clean.stream(after))
    at, which = torch.arange(len(stream), device=stream.device), component[rows.row]
    stream[at, which] += message[rows.example[rows.row], rows.position, which]
    if writer.kind is Kind.HEAD:
        return run_from_middle(model, clean, baseline.arguments, rows, stream, layer)
    return run_suffix(model, clean, baseline.arguments, rows, stream, after)
