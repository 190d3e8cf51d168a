"""Features of an autoencoder over the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from circuitlab.viz.grid import LabelledGrid
from circuitlab.viz.heatmap import heatmap
from circuitlab.viz.text import visible_token


def feature_map(
    values: Float[np.ndarray, "grid_row grid_col"], features: Sequence[str], tokens: Sequence[str], first: int = 0
) -> Figure:
    """Draw activations, a row a feature and a column a token.

    Args:
        values: Activations.
        features: A name for each row.
        tokens: The text of each column.
        first: The number of the first of them.

    Returns:
        The figure.
    """
    return heatmap(
        LabelledGrid(
            values=values,
            row_labels=tuple(features),
            col_labels=tuple(map(visible_token, tokens)),
            row_title="feature",
            col_title="token",
            title="Active features",
            quantity="activation",
            one_sided=bool((values >= 0).all()),
            col_numbers=tuple(map(str, range(first, first + len(tokens)))),
        )
    )
