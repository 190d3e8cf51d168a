"""Parts of this package and of others that are found by entry points.

A package lists a part in its metadata, by group and name:

    [project.entry-points."circuitlab.tasks"]
    my-task = "my_package.tasks:TASK"

Only metadata is read until a part is used. Lower modules of this package reach the upper ones the same way
(`circuitlab.drawing`), so that nothing is imported upwards.
"""

from collections.abc import Collection, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from circuitlab.errors import ConfigError, UnknownNameError, in_one_line

PACKAGE = "circuitlab"


def installed(group: str, *, ours: bool = True) -> dict[str, EntryPoint]:
    """The entry points of a group by name, this package's first; another package cannot take a name of ours.

    Args:
        group: Such as "circuitlab.tasks".
        ours: This package has entry points in the group itself.

    Returns:
        Entry points by name.

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


def added(kind: str, built_in: Collection[str]) -> dict[str, EntryPoint]:
    """The entry points by which other packages add to a registry of this one.

    Args:
        kind: "methods", "metrics" or "sites", of the entry points `circuitlab.methods` and so on.
        built_in: The names in the registry.

    Returns:
        Entry points by name, without those of `refused`.
    """
    bad = refused(kind, built_in)
    return {entry.name: entry for entry in entry_points(group=f"{PACKAGE}.{kind}") if entry.name not in bad}


def refused(kind: str, built_in: Collection[str]) -> dict[str, str]:
    """The names of other packages that cannot be used: those of built-in parts, and those that two packages list.

    Args:
        kind: As of `added`.
        built_in: The names in the registry.

    Returns:
        By name the reason and what to do.
    """
    first, reasons = dict[str, EntryPoint](), dict[str, str]()
    for entry in entry_points(group=f"{PACKAGE}.{kind}"):
        other = first.setdefault(entry.name, entry)
        if entry.name in built_in or other != entry:
            reasons[entry.name] = (
                f"{_package(entry)} lists {entry.name!r} under {entry.group}, a name that "
                f"{PACKAGE if entry.name in built_in else _package(other)} has. Rename it there, or uninstall "
                f"{_package(entry)}."
            )
    return reasons


def described(kind: str, built_in: Mapping[str, str]) -> dict[str, str]:
    """Names with a line each: the built-in ones and those of `added`; no other package is imported.

    Returns:
        Lines by name.
    """
    return {**built_in, **{name: f"of {_package(entry)}" for name, entry in added(kind, built_in).items()}}


def find(kind: str, name: str, built_in: Collection[str]) -> Any:
    """What another package adds under a name.

    Returns:
        The object.

    Raises:
        UnknownNameError: Nobody does; the message lists all names.
        ConfigError: It cannot be imported, or two packages list the name.
    """
    if reason := refused(kind, built_in).get(name):
        raise ConfigError(reason)
    there = added(kind, built_in)
    if name not in there:
        raise UnknownNameError.of(kind.removesuffix("s"), name, [*built_in, *there])
    return load(there[name])


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown package"


def owner(group: str, name: str) -> str:
    """The package that lists a name under a group.

    Returns:
        The name of the package.
    """
    return _package(installed(group)[name])


def is_ours(entry: EntryPoint) -> bool:
    """Whether an entry point is this package's own.

    Returns:
        Whether it is.
    """
    return entry.dist is not None and entry.dist.name == PACKAGE


def load(entry: EntryPoint) -> Any:
    """What an entry point names.

    Returns:
        The object.

    Raises:
        ConfigError: It cannot be imported; the message names the package.
    """
    try:
        return entry.load()
    except Exception as error:
        raise ConfigError(
            f"{entry.name!r} of {entry.group}, {entry.value} in {_package(entry)}, cannot be imported: "
            f"{in_one_line(error)} Update {_package(entry)}, or uninstall it."
        ) from error
