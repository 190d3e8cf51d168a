"""Load a sparse autoencoder: the bundled one, a folder in SAELens's format, or Gemma Scope's `params.npz`."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch

from circuitlab.errors import ConfigError, FormatError, MissingFileError
from circuitlab.features.autoencoder import Autoencoder
from circuitlab.features.gemma_scope import PARAMS, read_params
from circuitlab.features.place import check_fits
from circuitlab.features.saelens import CONFIG, read_folder
from circuitlab.features.weights import assemble
from circuitlab.models.hook_names import hook_of_site
from circuitlab.models.load import device_of, dtype_of
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model

BUNDLED = "bundled"


@model_function
def load_autoencoder(
    path: str | Path = BUNDLED,
    *,
    model: Model | None = None,
    site: str | None = None,
    layer: int | None = None,
    scaling_factor: float | None = None,
    centred: bool | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Autoencoder:
    """Load a sparse autoencoder from local files. Nothing is fetched, nothing unpickled.

    Args:
        path: `"bundled"`; a folder with `cfg.json` and safetensors, as SAELens writes it (standard, top-k, jumprelu,
            gated); or a `params.npz` of Gemma Scope, or its folder.
        model: The model it will be used with: checked against it, and put on its device, in its dtype.
        site: The site that it reads, such as `resid_post`; overrides the files.
        layer: Its layer; overrides the files.
        scaling_factor: For SAELens's `expected_average_only_in`: the constant that activations were multiplied by.
        centred: Whether it was trained on streams with their mean taken out (TransformerLens's
            `center_writing_weights`); by default as in the files.
        device: Instead of the model's; the CPU where there is no model.
        dtype: Instead of the model's; float32 where there is no model.

    Returns:
        The autoencoder.

    Raises:
        MissingFileError: There is nothing at the path.
        FileError: A file is no regular file, or unpacks to far more than its size.
        ConfigError: An argument does not go with the files, or they do not fit the model.
        FormatError: A file is missing or damaged, arrays do not go together, or settings cannot be honoured.
        UnknownNameError: The architecture, the hook point or the site is not known, or the model has no such site.

    Example:
        >>> from circuitlab import load_autoencoder
        >>> load_autoencoder("bundled").n_features
        512
    """
    source = Path(str(files("circuitlab") / "bundled" / "autoencoder") if str(path) == BUNDLED else path).expanduser()
    if site is not None:
        hook_of_site(site, 0)
    if layer is not None and layer < 0:
        raise ConfigError(f"layer {layer} is negative; layers are numbered from 0.")
    if not source.exists():
        raise MissingFileError(
            f"there is no autoencoder at {str(path)!r}: give a folder with {CONFIG}, a {PARAMS}, or 'bundled'."
        )
    params = source / PARAMS if source.is_dir() else source
    if source.is_dir() and not (source / PARAMS).is_file():
        read = read_folder(source, site=site, layer=layer, scaling_factor=scaling_factor, centred=centred)
    elif params.suffix == ".npz":
        if scaling_factor is not None or centred is not None:
            raise ConfigError("scaling_factor and centred go with a SAELens folder; Gemma Scope needs neither.")
        read = read_params(params, site=site, layer=layer)
    else:
        raise FormatError(f"{str(path)!r} is neither a folder with {CONFIG} nor a {PARAMS}.")
    found = replace(assemble(*read), name=str(path))
    if model is not None:
        check_fits(model, found)
    device_there = torch.device("cpu") if model is None else model.device
    dtype = model.dtype if dtype is None and model is not None else dtype_of(dtype)
    return found.to(device_there if device is None else device_of(device), dtype)
