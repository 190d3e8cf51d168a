"""The place of a model that an autoencoder reads: value and features in recorded runs, and the model from there on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.errors import ConfigError
from circuitlab.features.autoencoder import Autoencoder
from circuitlab.models.protocol import BlockArguments, Model, Recording
from circuitlab.models.steps import after_heads, finish_block, mlp_input
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.reach import tokens_that_matter
from circuitlab.patching.sweeps.sites import SITES, Entry, enters_at, find_site

STREAMS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def check_fits(model: Model, autoencoder: Autoencoder) -> None:
    """Refuse an autoencoder that is not of this model's shape.

    Raises:
        UnknownNameError: The model has no such site.
        ConfigError: The model has no such layer, the site has another width, the model is centred and the
            autoencoder was trained on streams with their mean, or it reads heads whose values' bias was folded away.
    """
    spec, name = model.spec, autoencoder.name
    find_site(autoencoder.site, spec)
    if autoencoder.layer >= spec.n_layers:
        raise ConfigError(
            f"autoencoder {name!r} reads layer {autoencoder.layer}; model {spec.name!r} has {spec.n_layers}, numbered "
            f"0 to {spec.n_layers - 1}. Load the model it was trained on, or give layer=."
        )
    width = width_of(model, autoencoder.site, autoencoder.layer)
    if width != autoencoder.d_in:
        raise ConfigError(
            f"autoencoder {name!r} reads {autoencoder.d_in} numbers a token; {autoencoder.site} of model "
            f"{spec.name!r} has {width}. It was trained on {autoencoder.model_id or 'another model'}."
        )
    if model.folding.center_weights and autoencoder.site in STREAMS and not autoencoder.centred:
        raise ConfigError(
            f"autoencoder {name!r} reads {autoencoder.site} with its mean, which center_weights takes out: load the "
            "model without it. If the autoencoder was trained without the mean, load it with centred=True."
        )
    if model.folding.fold_ln and autoencoder.site == "head_z":
        raise ConfigError(
            f"autoencoder {name!r} reads head_z with the values' bias, which fold_ln moves after the heads: load the "
            "model without it."
        )


def fitted(model: Model, autoencoder: Autoencoder) -> Autoencoder:
    """The autoencoder on the device of a model.

    Returns:
        The autoencoder.

    Raises:
        UnknownNameError: The model has no such site.
        ConfigError: The autoencoder is not of this model; see `check_fits`.
    """
    check_fits(model, autoencoder)
    return autoencoder.to(model.device, autoencoder.w_enc.dtype)


def width_of(model: Model, site: str, layer: int) -> int:
    """How many numbers a token has at a site.

    Returns:
        The number.
    """
    if site == "head_z":
        return model.spec.n_heads * model.spec.d_head
    return model.neuron_weight(layer).shape[0] if site == "neuron" else model.spec.d_model


@torch.no_grad()
def activation(model: Model, run: Recording, site: str, layer: int) -> Float[Tensor, "batch seq d_in"]:
    """The values at a site in a recorded run.

    Returns:
        Activations `[batch, seq, d_in]`.
    """
    if site == "head_z":
        return run.z[layer].flatten(2)
    return model.mlp_hidden(layer, mlp_input(model, run, layer)) if site == "neuron" else run.at(site, layer)


def added(model: Model, site: str, layer: int, value: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_model"]:
    """What a value at a site adds to the stream: itself, or what a sublayer makes of it.

    Gradients follow if they are on.

    Returns:
        Values `[..., d_model]`.
    """
    if site == "head_z":
        return model.attn_output(layer, value.unflatten(-1, (model.spec.n_heads, model.spec.d_head)))
    return model.mlp_from_hidden(layer, value) if site == "neuron" else value


def recorded(model: Model, run: Recording, site: str, layer: int) -> Float[Tensor, "batch seq d_model"]:
    """The same of a recorded run.

    Returns:
        Values `[batch, seq, d_model]`.
    """
    if site == "head_z":
        return run.attn_out[layer]
    return run.mlp_out[layer] if site == "neuron" else activation(model, run, site, layer)


def run_on(
    model: Model, sae: Autoencoder, run: Recording, arguments: BlockArguments, value: Float[Tensor, "batch seq d_in"]
) -> Float[Tensor, "batch seq d_model"]:
    """The stream at the end with another value at an autoencoder's site, at every token; before it, the recorded run.

    Gradients follow if they are on.

    Args:
        model: The model.
        sae: The autoencoder, at whose site the value is put.
        run: The recorded run of these prompts.
        arguments: What blocks are called with.
        value: What is put there.

    Returns:
        The stream after the last block.
    """
    site, layer = sae.site, sae.layer
    entry, stream = SITES[site].entry, value
    if site not in ("resid_pre", "resid_mid", "resid_post"):
        change = added(model, site, layer, value) - recorded(model, run, site, layer)
        stream = change + (after_heads(model, run, layer) if entry is Entry.MIDDLE else run.stream(layer + 1))
    if entry is Entry.MIDDLE:
        stream = finish_block(model, layer, stream)
    return model.run_blocks(stream, enters_at(SITES[site], layer), arguments)


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
        ConfigError: One is out of range or given twice, or there are none.
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
