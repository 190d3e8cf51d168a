"""Models that are kept on this machine by name: checkpoint folders in the cache folder.

A folder `models/NAME` in the cache folder is a model that `load_model("NAME")` and `--model NAME` load.
"""

from __future__ import annotations

import os
from pathlib import Path

from circuitlab.errors import ModelError

CACHE = "CIRCUITLAB_CACHE"
# Names that a command of the project installs, with the command; until then there is no folder of the name.
INSTALLED_BY = {"smollm2": "make real"}


def cache_folder() -> Path:
    """The folder of downloads and converted models: `CIRCUITLAB_CACHE`, or `circuitlab` in the user's cache folder.

    Returns:
        The path; the folder may not exist.

    Example:
        >>> cache_folder()  # doctest: +SKIP
        PosixPath('/home/me/.cache/circuitlab')
    """
    if given := os.environ.get(CACHE):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "circuitlab"


def model_folder(name: str) -> Path:
    """Where the model of this name is kept.

    Args:
        name: The name.

    Returns:
        The path; the folder may not exist.
    """
    return cache_folder() / "models" / name


def named_models() -> dict[str, Path]:
    """The models in the cache folder.

    Returns:
        Name -> folder, sorted by name.
    """
    found = model_folder("x").parent
    return {path.parent.name: path.parent for path in sorted(found.glob("[!.]*/config.json"))}


def find_named(name: str) -> Path | None:
    """The folder of a named model.

    Args:
        name: What the user calls the model.

    Returns:
        The folder; None where the name is none of these.

    Raises:
        ModelError: It is a name that a command installs, and it was not run.
    """
    if found := named_models().get(name):
        return found
    if command := INSTALLED_BY.get(name):
        raise ModelError(
            f"model {name!r} is not installed: {str(model_folder(name))!r} does not exist. Run {command!r} in a "
            f"checkout of circuitlab, which downloads and converts it, or set {CACHE} to the cache folder that has it."
        )
    return None
