"""Where the files of a model are, from what the user calls it: a folder, a GGUF file, or a repository on the hub."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from circuitlab.data.network import offline_without_network
from circuitlab.errors import CircuitLabError, ConfigError
from circuitlab.models.checkpoint_files import checked_folder
from circuitlab.models.gguf import checked_file, is_gguf
from circuitlab.models.huggingface import check_on_hub, no_remote_code, not_loaded
from circuitlab.models.modes import LOADING
from circuitlab.models.named import find_named
from circuitlab.models.quiet import quiet
from circuitlab.models.revisions import AT_HEAD, Checkpoint
from circuitlab.settings import SETTINGS

BUNDLED = SETTINGS["model"].default


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The files of a model.

    Attributes:
        name: What the user calls it.
        path: The folder or GGUF file; None for a repository on the hub.
    """

    name: str
    path: Path | None

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path is not None and is_gguf(self.path)


def find_source(name: str, checkpoint: Checkpoint = AT_HEAD, path: Path | None = None) -> Source:
    """Find the files of a model, and check those that are on this machine.

    Args:
        name: What the user calls it: `"bundled"`, a folder, a GGUF file, a model in the cache folder, or a name on the
            hub. A folder of the name in the working directory comes before the cache folder.
        checkpoint: Which checkpoint of a repository on the hub.
        path: Where it was found before, whatever the working directory was.

    Returns:
        The source.

    Raises:
        ModelError: A file is missing or damaged.
        ConfigError: A checkpoint is chosen, and it is no repository on the hub.
    """
    found = path or _path_of(name)
    if found is None:
        return Source(name=name, path=None)
    if checkpoint != AT_HEAD:
        chosen = next(f"{flag}={value!r}" for flag, value in checkpoint.settings.items() if value is not None)
        raise ConfigError(
            f"{chosen} chooses a checkpoint of a repository on "
            f"the hub, and model {name!r} is on this machine. Leave it out, or give the folder of that checkpoint."
        )
    check = checked_file if is_gguf(found) else checked_folder
    return Source(name=name, path=check(found, name))


def check_sources(names: Iterable[str], checkpoint: Checkpoint = AT_HEAD) -> None:
    """Check several models before the first of them is loaded: files, and names on the hub by their config.

    Args:
        names: What the user calls them.
        checkpoint: Which checkpoint, of repositories on the hub.

    Raises:
        CircuitLabError: Loading one of them would fail for a missing or damaged file, an unknown name, or a kind of
            model that is not supported.
    """
    for name in names:
        if find_source(name, checkpoint).path is None:
            with LOADING, quiet(), no_remote_code(), offline_without_network():
                try:
                    check_on_hub(name, checkpoint)
                except CircuitLabError:
                    raise
                except Exception as error:  # the hub's client raises whatever it likes
                    raise not_loaded(name, error, name, local=False) from error


def _path_of(name: str) -> Path | None:
    if name == BUNDLED:
        return Path(str(files("circuitlab"))) / "bundled"
    if os.path.lexists(name) or name.startswith((".", "/", "~")) or is_gguf(name):
        return Path(name).expanduser()
    return find_named(name)
