"""TransformerLens's own tools for edges: edge attribution and the faithfulness of a circuit, one pair at a time.

They spell an edge once a position. Post-norms, grouped queries and TransformerLens's own toy models they refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from benchmarks.per_cell import logit_diff
from circuitlab import PairBatch
from circuitlab.parts import Kind, Layout

Edges = list[tuple[Any, Any]]


class RefusedError(Exception):
    """TransformerLens's tools do not take the model."""


def attribution(bridge: Any, layout: Layout, batch: PairBatch) -> Float[np.ndarray, "writer reader"]:
    """Edge attribution, summed over positions, mean over pairs. The gradient is that of the corrupted run.

    Raises:
        RefusedError: TransformerLens does not take the model.
    """
    from transformer_lens.tools.analysis import attribution_patching as tl

    mask = np.arange(len(layout.writers))[:, None] < np.array(layout.visible)
    scores, config = np.zeros(mask.shape), tl.EdgeAttributionConfig(granularity="edge")
    for one in _pairs(batch):
        with _refusals():
            found = tl.attribution_patch(bridge, one.clean, one.corrupted, partial(_metric, one), config)
        for row, column in np.argwhere(mask).tolist():
            spelt = _spelt(layout, row, column, one.n_tokens)
            scores[row, column] += sum(float(found.edge_scores[edge]) for edge in spelt) / len(batch)
    return scores


def faithfulness(
    bridge: Any, layout: Layout, batch: PairBatch, mask: Bool[np.ndarray, "writer reader"]
) -> Float[np.ndarray, " example"]:
    """The logit difference of a circuit, worked out from the share of the gap that it recovers.

    Raises:
        RefusedError: TransformerLens does not take the model.
    """
    from transformer_lens.tools.analysis import attribution_patching as tl

    found = []
    for one in _pairs(batch):
        edges = [e for row, column in np.argwhere(mask).tolist() for e in _spelt(layout, row, column, one.n_tokens)]
        with _refusals():
            result = tl.faithfulness(bridge, one.clean, one.corrupted, partial(_metric, one), edges)
        found.append(result.corrupt_metric + result.recovered * (result.full_metric - result.corrupt_metric))
    return np.array(found)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        raise RefusedError(str(error)) from error


def _pairs(batch: PairBatch) -> list[PairBatch]:
    return [batch.take(torch.tensor([i])) for i in range(len(batch))]


def _metric(one: PairBatch, logits: torch.Tensor) -> torch.Tensor:
    return logit_diff(logits, one)[0]


def _spelt(layout: Layout, row: int, column: int, n_tokens: int) -> Edges:
    """An edge as TransformerLens spells it, once a position."""
    from transformer_lens.tools.analysis.attribution_patching import Node

    writer, reader = layout.writers[row], layout.readers[column]
    kind: Any = {Kind.INPUT: "embed", Kind.HEAD: "attn_head_out", Kind.MLP: "mlp_out"}[writer.kind]
    into: Any = f"{reader.slot.value}_input" if reader.slot else "mlp_in"
    layer, head = reader.node.layer, reader.node.head
    if reader.node.kind is Kind.LOGITS:
        into, layer = "logits", layout.spec.n_layers - 1
    return [
        (
            Node(kind=kind, position=position, layer=writer.layer, head=writer.head),
            Node(kind=into, position=position, layer=layer, head=head),
        )
        for position in range(n_tokens)
    ]
