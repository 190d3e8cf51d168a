"""The gradient of a metric at every reader's input and every writer's output, from one backward pass.

Neither the forward pass nor the stream is split. The gradient at a head's q, k and v, pulled back through its
projection and the norm, is the gradient at that head's input; a writer's is that of the stream after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.errors import MetricError
from circuitlab.metrics import Metric, MetricLike, metric_for
from circuitlab.metrics.checks import no_gradient
from circuitlab.models.protocol import Model
from circuitlab.models.traced import PassGradients, Traced, Window, pass_gradients, pull_back, trace
from circuitlab.parts import Kind, Layout, Node, Reader, Slot


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gradients:
    """Gradients of each example's metric, in the order of the layout.

    Attributes:
        readers: At what each reader reads.
        writers: At what each writer adds to the stream. The sum of the gradients of all readers that see the writer.
        z: At each head's z, per layer; with a norm after the heads this follows that norm's scale, which `writers`
            takes as given.
    """

    readers: Float[Tensor, "reader batch seq d_model"]
    writers: Float[Tensor, "writer batch seq d_model"]
    z: tuple[Float[Tensor, "batch seq head d_head"], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ReaderGradients:
    """Gradients at the inputs of some readers.

    Attributes:
        columns: The readers, by their numbers in the layout.
        values: At the tokens of the window, or at the answer alone where nothing reaches the metric from the others.
            Overwritten by those of the next layer.
        at_answer: Whether it is the answer alone.
    """

    columns: list[int]
    values: Float[Tensor, "chosen batch _ d_model"]
    at_answer: bool


def metric_gradients(
    model: Model,
    batch: PairBatch,
    metric: MetricLike | None = None,
    start: Float[Tensor, "batch seq d_model"] | None = None,
) -> Gradients:
    """Run the model and take the gradient of the metric at every reader and writer.

    Both are held in memory for every token: `(readers + writers) * batch * seq * d_model` numbers, for GPT-2 1.8 MB a
    token. Scores are taken layer by layer instead, from `reader_gradients`.

    Args:
        model: The model.
        batch: The examples; says where the answer is.
        metric: What is differentiated; examples do not interact, so the sum over them gives each its own gradient.
            By default the metric of the task that drew the batch, else `logit_diff`.
        start: Embedding to start from (`model.embedding`); that of the clean prompts by default.

    Returns:
        The gradients.

    Raises:
        UnknownNameError: No such metric.
        MetricError: The metric has no gradient (accuracy, rank).
    """
    window, layout = Window.whole(batch), Layout.of(model.spec)
    start = model.embedding(batch.clean) if start is None else start
    traced = trace(model, model.block_arguments(batch.clean), window, start)
    found, _ = gradients_and_values(model, traced, metric_for(metric, batch), batch)
    shape = (len(batch), batch.n_tokens, model.spec.d_model)
    readers = start.new_zeros(len(layout.readers), *shape)
    for part in reader_gradients(model, traced, found):
        readers[part.columns] = _everywhere(window, part.values, part.at_answer)
    writers, z = start.new_zeros(len(layout.writers), *shape), []
    writers[0] = found.start
    for layer, block in enumerate(found.blocks):
        last = layer == model.spec.n_layers - 1
        first = layout.writer_index(Node(Kind.HEAD, layer, 0))
        writers[first : first + model.spec.n_heads] = _everywhere(window, block.attn, last)
        if block.mlp is not None:
            writers[first + model.spec.n_heads] = _everywhere(window, block.mlp, last)
        z.append(_everywhere(window, block.z.flatten(2), last).unflatten(2, block.z.shape[2:]))
    return Gradients(readers=readers, writers=writers, z=tuple(z))


def gradients_and_values(
    model: Model, traced: Traced, metric: Metric, batch: PairBatch
) -> tuple[PassGradients, Float[Tensor, " batch"]]:
    """Gradients at the points of a pass, and the metric's values there. The pass's graph is gone after it.

    Returns:
        The gradients, and one value an example.

    Raises:
        MetricError: The metric has no gradient.
    """
    if not metric.smooth:
        raise MetricError(no_gradient(metric))
    with torch.enable_grad():
        values = judged(model, metric, batch, traced.final)
        total = values.sum()
    if not total.requires_grad:
        raise MetricError(
            f"metric {metric.name!r} does not depend on the logits in a way that torch can differentiate."
        )
    return pass_gradients(total, traced), values.detach()


def judged(
    model: Model, metric: Metric, batch: PairBatch, final: Float[Tensor, "batch d_model"]
) -> Float[Tensor, " batch"]:
    """The metric of final streams, from the logits of the words it needs; gradients follow if they are on.

    Returns:
        One value an example.
    """
    words, batch = batch.compact() if metric.local else (None, batch)
    return metric(model.logits(final, words), batch)


def reader_gradients(model: Model, traced: Traced, found: PassGradients) -> Iterator[ReaderGradients]:
    """Gradients at all readers' inputs, some readers at a time: heads layer by layer, then MLPs, then the rest."""
    layout, window, first, last = Layout.of(model.spec), traced.window, traced.first, model.spec.n_layers - 1

    def heads(layer: int, *slots: Slot) -> list[int]:
        return [
            layout.reader_index(Reader(Node(Kind.HEAD, layer, h), s)) for s in slots for h in range(model.spec.n_heads)
        ]

    # Memory that is new costs a CPU as much as the product that fills it: 5 % of all of EAP.
    buffer = found.start.new_empty(len(Slot) * model.spec.n_heads, *found.start.shape)
    for layer, (block, stream) in enumerate(zip(found.blocks, traced.streams, strict=True), first):
        by_slot = {Slot.Q: block.q, Slot.K: block.k, Slot.V: block.v}
        if layer == last:
            del by_slot[Slot.Q]
        yield ReaderGradients(heads(layer, *by_slot), pull_back(model, layer, stream, by_slot, buffer), at_answer=False)
    # An MLP's gradient needs no pulling back, and a product for all of them reads every writer once.
    reads = [block.mlp_read for block in found.blocks if block.mlp_read is not None]
    mlps = [layout.reader_index(Reader(Node(Kind.MLP, first + number))) for number in range(len(reads))]
    if reads[:-1]:
        yield ReaderGradients(mlps[:-1], torch.stack(reads[:-1]), at_answer=False)
    at_end, columns = torch.stack([*reads[-1:], found.final[:, None]]), [*mlps[-1:], len(layout.readers) - 1]
    if found.blocks:
        queries = pull_back(model, last, window.at_answer(traced.streams[-1]), {Slot.Q: found.blocks[-1].q})
        at_end, columns = torch.cat([queries, at_end]), [*heads(last, Slot.Q), *columns]
    yield ReaderGradients(columns, at_end, at_answer=True)


def _everywhere(
    window: Window, values: Float[Tensor, "*chosen batch _ d_model"], at_answer: bool
) -> Float[Tensor, "*chosen batch seq d_model"]:
    """Values of a window of whole prompts; those at the answer alone with zeros at every other token."""
    if not at_answer:
        return values
    whole = values.new_zeros(*values.shape[:-2], window.stop - window.first, values.shape[-1])
    rows = torch.arange(values.shape[-3], device=values.device)
    whole[..., rows, window.answer_at, :] = values[..., 0, :]
    return whole
