"""Shares of neurons in predictions: neurons by prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from circuitlab.viz.grid import LabelledGrid
from circuitlab.viz.heatmap import heatmap


def importance_heatmap(values: Float[np.ndarray, "row word"], neurons: Sequence[str], words: Sequence[str]) -> Figure:
    """One cell a neuron and prompt, the most important neuron at the top.

    Args:
        values: Shares of the neurons in the logit of the prompts' next tokens.
        neurons: Names of the rows, `layer.neuron`.
        words: Names of the columns, the next tokens.

    Returns:
        The figure.
    """
    grid = LabelledGrid(
        values=values,
        row_labels=tuple(neurons),
        col_labels=tuple(words),
        row_title="neuron",
        col_title="predicted token",
        title="Direct effect of neurons on the prediction",
        quantity="share of all neurons",
    )
    return heatmap(grid)
