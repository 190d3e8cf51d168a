"""Load a sparse autoencoder: the bundled one, a folder in SAELens's format, or Gemma Scope's `params.npz`.

Gemma Scope's autoencoders are jumprelu; their path names layer and site, nothing is taken off their input, and no
activation is normalised.

References:
    Lieberum et al. 2024, arXiv:2408.05147 (Gemma Scope).
"""

from __future__ import annotations

import math
import re
import zipfile
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from circuitlab.errors import ConfigError, FormatError, MissingFileError
from circuitlab.features.autoencoder import Autoencoder
from circuitlab.features.place import check_fits
from circuitlab.features.saelens import CONFIG, Settings, assemble, read_folder
from circuitlab.files import check_archive, parsing
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


PARAMS = "params.npz"
_SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "head_z"}


def read_params(path: Path, *, site: str | None, layer: int | None) -> tuple[Settings, dict[str, Tensor]]:
    """Settings and arrays of a `params.npz`.

    Args:
        path: The file, best in the folders it is published in: `.../gemma-scope-2b-pt-res/layer_25/width_65k/...`.
        site: Overrides the site in the path.
        layer: Overrides the layer in the path.

    Returns:
        The settings, and the arrays by name.

    Raises:
        FormatError: The file is damaged or holds pickled objects, or the path does not name site and layer.
    """
    site_there, layer_there, model_id = named_in(path)
    site, layer = site or site_there, layer_there if layer is None else layer
    if site is None or layer is None:
        lacking = [name for name, value in (("site", site), ("layer", layer)) if value is None]
        raise FormatError(
            f"the path of {str(path)!r} does not say its {' and '.join(lacking)}. Give site='resid_post' (releases "
            "...-res), 'mlp_out' (-mlp) or 'head_z' (-att) and layer=, or keep the folders it is published in, "
            "gemma-scope-2b-pt-res/layer_25/...."
        )
    settings = Settings(source=str(path), architecture="jumprelu", site=site, layer=layer, model_id=model_id)
    return settings, _arrays(path)


def named_in(path: Path) -> tuple[str | None, int | None, str | None]:
    """Site, layer and model in a published path; None for what is not in it.

    Returns:
        Site, layer and name of the model.

    Raises:
        FormatError: The path is that of transcoders.

    Example:
        >>> named_in(Path("gemma-scope-2b-pt-res/layer_25/width_65k/average_l0_55/params.npz"))
        ('resid_post', 25, 'google/gemma-2-2b')
    """
    text = path.absolute().as_posix()
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)-(\w+)", text)
    if release and release[3].startswith("transcoder"):
        raise FormatError(f"{str(path)!r} is a transcoder, which reads at one place and writes at another; not read.")
    layer = re.search(r"/layer_(\d+)/", text)
    model = f"google/gemma-2-{release[1]}{'-it' if release[2] == 'it' else ''}" if release else None
    return _SITES.get(release[3]) if release else None, int(layer[1]) if layer else None, model


def _arrays(path: Path) -> dict[str, Tensor]:
    check_archive(path, "autoencoder file")
    if not zipfile.is_zipfile(path):
        raise FormatError(f"{path} is no npz file, or is damaged. Give the params.npz of an autoencoder.")
    with parsing(f"autoencoder file {str(path)!r}"), zipfile.ZipFile(path) as archive:
        arrays = {member.filename.removesuffix(".npy"): _array(archive, member, path) for member in archive.infolist()}
    named = {f"W_{name[2:]}" if name.startswith("w_") else name: array for name, array in arrays.items()}
    return {name: torch.from_numpy(array) for name, array in named.items()}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """One array, whose header is checked before memory is taken for it."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    name = member.filename.removesuffix(".npy")
    if dtype.hasobject:
        raise FormatError(f"{path} holds pickled objects, which could run code; it is not read.")
    if not np.issubdtype(dtype, np.floating):
        raise FormatError(f"{path}: {name} holds {dtype}, not floating-point numbers.")
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise FormatError(
            f"{path} is damaged: {name} has the shape {shape}, but only {member.file_size} bytes. Write it again."
        )
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
