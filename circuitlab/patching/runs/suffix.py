"""Run many variants of recorded prompts from the middle of the model, and no token that cannot differ.

A row is one variant of one example, with a stream of its own at the tokens that can differ. Under causal attention that
is the first changed token and all up to the answer, with the recorded run before them; else the whole prompt. What a
block does on such rows is `circuitlab.models.row_steps`.

The same runs through a cache of keys and values need the model's code to take one and its masks and positions to be
cut; this needs neither, so it is exact on every architecture whose steps add up.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.models.protocol import BlockArguments, Model, Recording
from circuitlab.models.row_steps import Rows, RowSteps


@torch.no_grad()
def run_suffix(
    model: Model,
    base: Recording,
    arguments: BlockArguments,
    rows: Rows,
    stream: Float[Tensor, "token d_model"],
    layer: int,
    touched: Bool[Tensor, " token"] | None = None,
) -> Float[Tensor, "row d_model"]:
    """The final stream at each row's answer position.

    Args:
        model: The model.
        base: The recorded run that the rows are variants of.
        arguments: What blocks are called with at this length.
        rows: The variants.
        stream: Their stream on entry to block `layer`.
        layer: The first block to run; `n_layers`: none.
        touched: Which tokens differ from the recorded run on entry; all of them by default. The others' queries, keys
            and values are the recorded ones.

    Returns:
        One final stream a row.
    """
    steps = RowSteps(model=model, base=base, arguments=arguments, rows=rows)
    for at in range(layer, model.spec.n_layers):
        stream = steps.run_block(at, stream, touched if at == layer else None)
    return stream if layer < model.spec.n_layers else stream[rows.at_answer]


@torch.no_grad()
def run_from_middle(
    model: Model,
    base: Recording,
    arguments: BlockArguments,
    rows: Rows,
    middle: Float[Tensor, "token d_model"],
    layer: int,
    touched: Bool[Tensor, " token"] | None = None,
) -> Float[Tensor, "row d_model"]:
    """The same from the stream that the heads of a block have written to (see `after_heads` in `models.steps`).

    Returns:
        One final stream a row.
    """
    if layer == model.spec.n_layers - 1:
        middle = middle[rows.at_answer]
        touched = None if touched is None else touched[rows.at_answer]
        rows = rows.answers_only()
    stream = RowSteps(model=model, base=base, arguments=arguments, rows=rows).finish_block(layer, middle, touched)
    return run_suffix(model, base, arguments, rows, stream, layer + 1, touched)
