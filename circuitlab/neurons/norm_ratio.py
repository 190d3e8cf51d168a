"""Compare how the layer norm inside an MLP treats chosen positions and random ones.

The norm divides by the spread of all neurons, so it can lift a position where no neuron stands out. This lift is the
outlier score after the norm over that before it; the positions of the highest combination (`Outliers.top`) are compared
with as many drawn from the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from circuitlab.arguments import checked
from circuitlab.errors import ConfigError
from circuitlab.neurons.outlier_scores import Outliers
from circuitlab.neurons.prompts import check_count
from circuitlab.result import Result
from circuitlab.stats import GroupDifference, group_difference
from circuitlab.summary import plural


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NormRatios(Result):
    """Outlier scores before and after the norm, at the top positions and at random ones.

    Attributes:
        top: prompt, position, token, before, after, ratio (after / before) of the top positions.
        control: The same of as many positions drawn at random from all others.
        difference: Mean ratio of the top positions minus that of the control, with two tests of it.
        seed: Seed of the control positions and of the permutations.
    """

    top: pd.DataFrame
    control: pd.DataFrame
    difference: GroupDifference
    seed: int

    def to_frame(self) -> pd.DataFrame:
        """Both groups below each other: group ("top" or "control"), prompt, position, token, before, behind, ratio."""
        import pandas as pd

        return pd.concat({"top": self.top, "control": self.control}, names=["group"]).reset_index("group")

    def to_record(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "top": self.top.to_dict("records"),
            "control": self.control.to_dict("records"),
            "difference": self.difference.to_record(),
            "seed": self.seed,
        }

    def _summary(self) -> str:
        difference = self.difference.difference
        return f"of {plural(len(self.top), 'neuron')} and {len(self.control):,} controls: difference {difference:.4g}"


@checked
def norm_ratios(found: Outliers, *, n: int = 10, seed: int = 0) -> NormRatios:
    """Compare the top positions with random ones.

    Args:
        found: What `outliers` returned.
        n: How many positions a group has.
        seed: Same seed, same control and same p-value.

    Returns:
        Both groups, and the difference of their mean ratios with its tests.

    Raises:
        ConfigError: The model has no norm there, or there are fewer than twice `n` positions.
    """
    check_count("n", n, least=2)
    if not found.has_norm:
        raise ConfigError(
            f"model {found.model_id!r} has no layer norm between the neurons and the output projection of its MLPs: "
            "the scores before and after it are the same and every ratio is 1. Take a SoLU model, such as solu-1l."
        )
    rows = found.to_frame().rename(columns={"outlier_score": "before", "score_after_norm": "after"})
    if len(rows) < 2 * n:
        raise ConfigError(f"{len(rows)} positions do not make two groups of {n}. Give more prompts, or a smaller n.")
    rows = rows.assign(ratio=rows["after"] / rows["before"])
    rows = rows[["prompt", "position", "token", "before", "after", "ratio"]]
    drawn = np.random.default_rng(seed).choice(np.arange(n, len(rows)), n, replace=False)
    top, control = rows.iloc[:n], rows.iloc[np.sort(drawn)].reset_index(drop=True)
    difference = group_difference(top["ratio"].to_numpy(), control["ratio"].to_numpy(), seed)
    return NormRatios(top=top, control=control, difference=difference, seed=seed)
