"""Direct logit attribution: what every part of the model adds to the answer by itself.

1. Record a run. The final stream at the answer position is the sum of all that was written to it.
2. The quantity is a weighted sum of logits: a direction after the final norm. With the norm's scale as it was on the
   whole stream the norm is linear, so the direction has a twin in front of it.
3. A component's share is the product of what it wrote with that twin. What is not in the stream (biases of norm and
   unembedding) is listed beside, so that the shares add up to the model's own value; `Attribution.gap` is by how much
   they do not.

With post-norms (Gemma 2 and 3), a head's or neuron's contribution passes through them with the
scale that they had on the whole layer. Where logits are capped (Gemma 2), the shares are those of the uncapped logits,
and what the cap does to their sum is a component of its own, "softcap".

References:
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Wang et al. 2023, arXiv:2211.00593.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.attribution.record import Attribution, Component
from circuitlab.attribution.request import check_quantity, check_run, per_example, weighted_words
from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import check_answers
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.metrics import MetricLike, metric_for
from circuitlab.models.modes import model_function
from circuitlab.models.norms import frozen_norm
from circuitlab.models.protocol import Model, Recording
from circuitlab.models.steps import mlp_reads
from circuitlab.patching.runs.baseline import at_answer

SPLITS = ("layer", "head", "neuron")

Share = tuple[Component, Float[Tensor, " batch"]]


@model_function
@torch.no_grad()
def direct_attribution(
    model: Model,
    pairs: PairSet | PairBatch,
    by: str = "layer",
    *,
    metric: MetricLike | None = None,
    run: str = "clean",
    seed: int = 0,
) -> Attribution:
    """Split a logit difference over everything that writes to it.

    Args:
        model: A loaded model.
        pairs: A split of a task, or a `PairBatch`.
        by: "layer": each attention layer and MLP; "head": attention by head, its biases by themselves; "neuron": MLPs
            by neuron, their biases by themselves.
        metric: "logit_diff", mean logit of the answers minus that of the distractors; or "logit", that of the
            answers. By default the metric of the task that drew the pairs, which must then be one of these, else
            `logit_diff`.
        run: "clean" or "corrupt": which prompts are run. Answers and distractors are those of the clean prompt.
        seed: Of the intervals.

    Returns:
        One value per component and example, whose sum is the metric.

    Raises:
        UnknownNameError: No such split, run or metric.
        ConfigError: The metric is no sum of logits, or the model has no MLPs to split.
        UnsupportedModelError: The final norm is neither a layer norm nor an RMS norm.

    Example:
        >>> from circuitlab import direct_attribution, load_model, load_task
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> found = direct_attribution(model, pairs.discovery)
        >>> found.names[:4], found.gap < 1e-3
        (('embed.token', 'embed.position', 'a0', 'm0'), True)
    """
    check_answers(pairs, model.spec)
    quantity = check_request(by, _asked(metric, pairs), run)
    if by == "neuron" and not model.spec.has_mlp:
        raise ConfigError(f"model {model.id!r} has attention alone, and so no neurons. Split by layer or head.")
    components: list[Component] = []

    def of_batch(batch: PairBatch) -> Float[Tensor, "row batch"]:
        shares, total = _of_batch(model, batch, by, quantity)
        components[:], values = zip(*shares, strict=True)
        return torch.stack([total, *values])

    total, *table = per_example(model, pairs, run, of_batch)
    # Biases that a model does not have are no components of it.
    there = [c.kind not in ("bias", "softcap") or bool(row.any()) for c, row in zip(components, table, strict=True)]
    return Attribution(
        metric=quantity,
        run=run,
        by=by,
        components=tuple(c for c, keep in zip(components, there, strict=True) if keep),
        per_example=np.stack(table)[there],
        total=total,
        seed=seed,
    )


def check_request(by: str, metric: object, run: str) -> str:
    """Refuse what needs no model to be refused; the name of the quantity otherwise.

    Returns:
        Name of the quantity.

    Raises:
        UnknownNameError: No such split, run or metric.
        ConfigError: The metric is no sum of logits.
    """
    UnknownNameError.check("split", by, SPLITS)
    check_run(run)
    return check_quantity(metric)


def _asked(metric: MetricLike | None, pairs: PairSet | PairBatch) -> object:
    """The metric, or the name of a quantity that is none, such as "logit"."""
    try:
        return metric_for(metric, pairs)
    except UnknownNameError:
        return metric


def _of_batch(model: Model, batch: PairBatch, by: str, quantity: str) -> tuple[list[Share], Float[Tensor, " batch"]]:
    """Every component's share, and the model's own value of the quantity."""
    recorded = model.record(batch.clean)
    final = at_answer(recorded.resid_final, batch.answer_at)
    words, weights = weighted_words(quantity, batch)
    weights = weights.to(final)
    columns, biases = model.unembedding(words)
    after_norm = weights @ columns.T
    norm = frozen_norm(model.final_norm, final, model.id)
    shares = [
        *_of_embedding(model, batch, recorded, norm.back(after_norm)),
        *_of_blocks(model, batch, recorded, norm.back(after_norm), by),
        (Component("norm.bias", "bias"), after_norm @ norm.bias),
        (Component("unembed.bias", "bias"), weights @ biases),
    ]
    if (cap := model.logit_cap) is not None:
        uncapped = model.final_norm(final) @ columns + biases
        capped = cap * torch.tanh(uncapped / cap)
        shares.append((Component("softcap", "softcap"), ((capped - uncapped) * weights).sum(-1)))
    return shares, (model.logits(final, words) * weights).sum(-1)


def _of_embedding(
    model: Model, batch: PairBatch, recorded: Recording, direction: Float[Tensor, "batch d_model"]
) -> Iterator[Share]:
    for part, stream in model.embedding_parts(batch.clean, recorded.resid_pre[0]).items():
        name = "embed" if part == "embedding" else f"embed.{part}"
        yield Component(name, "embedding"), (at_answer(stream, batch.answer_at) * direction).sum(-1)


def _of_blocks(
    model: Model, batch: PairBatch, recorded: Recording, direction: Float[Tensor, "batch d_model"], by: str
) -> Iterator[Share]:
    spec, at = model.spec, batch.answer_at
    for layer in range(spec.n_layers):
        attn_out = at_answer(recorded.attn_out[layer], at)
        if by == "head":
            z = recorded.z[layer][torch.arange(len(batch), device=at.device), at]
            yield from _of_heads(model, layer, z, direction)
        else:
            yield Component(f"a{layer}", "attention", layer), (attn_out * direction).sum(-1)
        if spec.has_mlp and by == "neuron":
            before = at_answer(recorded.resid_pre[layer], at)
            yield from _of_neurons(model, layer, mlp_reads(spec, before, before + attn_out), direction)
        elif spec.has_mlp:
            mlp_out = at_answer(recorded.mlp_out[layer], at)
            yield Component(f"m{layer}", "mlp", layer), (mlp_out * direction).sum(-1)


def _of_heads(
    model: Model, layer: int, z: Float[Tensor, "batch head d_head"], direction: Float[Tensor, "batch d_model"]
) -> Iterator[Share]:
    written = model.head_outputs(layer, z[:, None])[:, :, 0]
    for head, values in enumerate((written * direction).sum(-1)):
        yield Component(f"a{layer}.h{head}", "head", layer, head), values
    bias = model.attention_bias(layer, z)
    if bias is not None:
        yield Component(f"a{layer}.bias", "bias", layer), (bias * direction).sum(-1)


def _of_neurons(
    model: Model, layer: int, read: Float[Tensor, "batch d_model"], direction: Float[Tensor, "batch d_model"]
) -> Iterator[Share]:
    by_neuron, bias = model.neurons_along(layer, model.mlp_hidden(layer, read), direction)
    for neuron, values in enumerate(by_neuron.T):
        yield Component(f"m{layer}.n{neuron}", "neuron", layer, neuron), values
    if bias is not None:
        yield Component(f"m{layer}.bias", "bias", layer), bias
