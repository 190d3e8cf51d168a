"""The clean and the corrupted run of a batch, between which gradients are taken."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.models.traced import Traced, Window, run_plain, trace
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.gradients.edge_products import EdgeProducts, WriterValues, replacement_of_writers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BothRuns:
    """The two runs of a batch, for methods that take gradients.

    Attributes:
        batch: The examples, with the clean run's logits where the metric compares with them.
        arguments: The arguments of the blocks.
        window: The tokens whose values differ between clean run and replacement.
        ends: The embeddings of the corrupted and the clean prompt, on the window.
        corrupt: The corrupted run, on whole prompts.
        replacement: The replacement of every writer's output.
        products: The difference of every writer's clean output to its replacement.
    """

    batch: PairBatch
    arguments: BlockArguments
    window: Window
    ends: tuple[Float[Tensor, "batch seq d_model"], Float[Tensor, "batch seq d_model"]]
    corrupt: Traced
    replacement: WriterValues
    products: EdgeProducts


@torch.no_grad()
def both_runs(model: Model, experiment: Experiment, batch: PairBatch) -> tuple[BothRuns, Traced]:
    """Run both prompts of a batch.

    Args:
        model: The experiment's model, or the same with another backward pass.
        experiment: The experiment; it has the replacement and the metric.
        batch: Pairs of one length.

    Returns:
        The two runs, and the clean run with its graph, by itself so that it can be released.
    """
    arguments, replacement = model.block_arguments(batch.clean), experiment.replacement
    clean, start, window = model.embedding(batch.clean), model.embedding(batch.corrupt), Window.whole(batch)
    corrupt = run_plain(model, arguments, window, start)
    if replacement.kind == "corrupt":
        window, other = Window.between(batch, clean - start, causal=model.spec.causal), WriterValues.of(corrupt)
    else:  # differs at every token
        other = replacement_of_writers(model, replacement, batch, experiment.recordings.clean(batch))
    ends = window.of(start), window.of(clean)
    traced = trace(model, arguments, window, ends[1], around=corrupt)
    runs = BothRuns(
        batch=batch if experiment.metric.local else batch.with_reference(model.logits(traced.final)),
        arguments=arguments, window=window, ends=ends, corrupt=corrupt, replacement=other,
        products=EdgeProducts(model, traced, other),
    )  # fmt: skip
    return runs, traced
