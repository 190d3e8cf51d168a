"""Where the features of a clean and a corrupted run differ, and by how much: what sweeps and attributions are about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.errors import ConfigError
from circuitlab.features.autoencoder import Autoencoder
from circuitlab.features.place import activation
from circuitlab.models.protocol import Model
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.reach import tokens_that_matter


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Differences:
    """Features that differ between the runs of a batch, one entry a token and feature; in units of the base run.

    Attributes:
        example: Which example.
        position: At which token.
        feature: Which feature.
        change: Clean minus corrupted activation.
    """

    example: Int[Tensor, " entry"]
    position: Int[Tensor, " entry"]
    feature: Int[Tensor, " entry"]
    change: Float[Tensor, " entry"]

    def __len__(self) -> int:
        return len(self.example)


@torch.no_grad()
def differences(model: Model, autoencoder: Autoencoder, baseline: Baseline) -> Differences:
    """All features that differ, where it can matter.

    Returns:
        One entry a token and feature: clean minus corrupted activation.
    """
    matter = tokens_that_matter(model.spec, baseline.batch, from_difference=True)
    example, position = matter.nonzero(as_tuple=True)
    site, layer, n = autoencoder.site, autoencoder.layer, autoencoder.n_features
    keys, values = list[Tensor](), list[Tensor]()
    for run, sign in ((baseline.clean, 1), (baseline.corrupt, -1)):
        active = autoencoder.active(activation(model, run, site, layer)[example, position])
        keys.append(active.token * n + active.feature)
        values.append(sign * active.value)
    distinct, place = torch.cat(keys).unique(return_inverse=True)
    change = autoencoder.b_dec.new_zeros(len(distinct)).index_add_(0, place, torch.cat(values))
    live = change != 0
    token, feature, change = distinct[live] // n, distinct[live] % n, change[live]
    return Differences(example=example[token], position=position[token], feature=feature, change=change)


def chosen_features(autoencoder: Autoencoder, given: Iterable[int]) -> tuple[int, ...]:
    """Features that a user names.

    Returns:
        The numbers of the features.

    Raises:
        ConfigError: One is out of range, stands twice, or there are none.
    """
    numbers, n = [int(number) for number in given], autoencoder.n_features
    if not numbers:
        raise ConfigError("no feature is chosen; leave the argument out for all that differ.")
    for number in numbers:
        if not 0 <= number < n:
            raise ConfigError(f"feature {number} is out of range: there are {n}, numbered 0 to {n - 1}.")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"features {numbers} name one of them twice.")
    return tuple(numbers)
