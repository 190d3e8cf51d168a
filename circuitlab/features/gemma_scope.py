"""Gemma Scope's autoencoders: one `params.npz`, whose path says which layer and site it is of.

They are jumprelu; nothing is taken off their input, and no activation is normalised.

References:
    Lieberum et al. 2024, arXiv:2408.05147.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from circuitlab.errors import FormatError
from circuitlab.features.weights import Settings

PARAMS = "params.npz"
_SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "head_z"}


def read_params(path: Path, *, site: str | None, layer: int | None) -> tuple[Settings, dict[str, Tensor]]:
    """Settings and arrays of a `params.npz`.

    Args:
        path: The file, best in the folders it is published in: `.../gemma-scope-2b-pt-res/layer_25/width_65k/...`.
        site: Instead of what the path says.
        layer: Instead of what the path says.

    Raises:
        FormatError: The file is damaged or holds pickled objects, or the path does not say where it belongs.
    """
    told_site, told_layer, model_id = told_by(path)
    site, layer = site or told_site, told_layer if layer is None else layer
    if site is None or layer is None:
        lacking = [name for name, value in (("site", site), ("layer", layer)) if value is None]
        raise FormatError(
            f"the path of {str(path)!r} does not say its {' and '.join(lacking)}. Give site='resid_post' (releases "
            "...-res), 'mlp_out' (-mlp) or 'head_z' (-att) and layer=, or keep the folders it is published in, "
            "gemma-scope-2b-pt-res/layer_25/...."
        )
    settings = Settings(source=str(path), architecture="jumprelu", site=site, layer=layer, model_id=model_id)
    return settings, _arrays(path)


def told_by(path: Path) -> tuple[str | None, int | None, str | None]:
    """Site, layer and model that a published path tells; None where it tells nothing.

    Raises:
        FormatError: The path is that of transcoders.

    Example:
        >>> told_by(Path("gemma-scope-2b-pt-res/layer_25/width_65k/average_l0_55/params.npz"))
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
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise FormatError(f"{path} holds a single array, not the named arrays of an autoencoder.")
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except ValueError as error:
        raise FormatError(
            f"{path} holds pickled objects, which could run code, or is no npz file; it is not read ({error})."
        ) from error
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise FormatError(f"{path} is damaged: {error}.") from error
    named = {f"W_{name[2:]}" if name.startswith("w_") else name: array for name, array in arrays.items()}
    if other := [name for name, array in named.items() if not np.issubdtype(array.dtype, np.floating)]:
        raise FormatError(f"{path}: {other[0]} holds {named[other[0]].dtype}, not numbers with a point.")
    return {name: torch.from_numpy(array) for name, array in named.items()}
