"""Parts of this package and of others that are found by entry points.

A package lists a part in its metadata, by group and name:

    [project.entry-points."circuitlab.tasks"]
    my-task = "my_package.tasks:TASK"

Only metadata is read until a part is used. Lower modules of this package reach the upper ones the same way
(`circuitlab.drawing`), so that nothing is imported upwards.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from circuitlab.errors import ConfigError, in_one_line

PACKAGE = "circuitlab"


def installed(group: str, *, ours: bool = True) -> dict[str, EntryPoint]:
    """The entry points of a group by name, this package's first; another package cannot take a name of ours.

    Args:
        group: Such as "circuitlab.tasks".
        ours: This package has entry points in the group itself.

    Raises:
        ConfigError: Ours are not there: the installed metadata is older than the code.
    """
    found = sorted(entry_points(group=group), key=lambda entry: (not is_ours(entry), entry.name))
    if ours and not (found and is_ours(found[0])):
        raise ConfigError(
            f"the installed metadata of {PACKAGE} has no entry points {group!r}: it is older than the code. Install "
            "again: `pip install -e .` in a checkout, else `pip install --force-reinstall circuitlab`."
        )
    named: dict[str, EntryPoint] = {}
    for entry in found:
        named.setdefault(entry.name, entry)
    return named


def is_ours(entry: EntryPoint) -> bool:
    """Whether an entry point is this package's own."""
    return entry.dist is not None and entry.dist.name == PACKAGE


def load(entry: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        ConfigError: It cannot be imported; the message names the package.
    """
    try:
        return entry.load()
    except Exception as error:
        package = entry.dist.name if entry.dist else "an unknown package"
        raise ConfigError(
            f"{entry.name!r} of {entry.group}, {entry.value} in {package}, cannot be imported: {in_one_line(error)} "
            f"Update {package}, or uninstall it."
        ) from error
