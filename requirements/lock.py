"""Write locked.txt and dev.txt from the environment this runs in.

Run it with the interpreter of an environment in which `pip install -e .[dev]` has just been done and the tests pass:

    python requirements/lock.py

Every package that circuitlab needs, directly or through another, is pinned to the version installed there; what only
the `dev` extra needs goes to dev.txt. A local version (`2.13.0+cpu`) is cut to the public one, which every index
serves.
"""

from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
PACKAGE = "circuitlab"


def closure(roots: Iterable[Requirement]) -> set[str]:
    """Names of all packages that the roots need here, themselves included."""
    found, queue = set[str](), [(canonicalize_name(root.name), frozenset(root.extras)) for root in roots]
    done = set[tuple[str, frozenset[str]]]()
    while queue:
        name, extras = queue.pop()
        if (name, extras) in done:
            continue
        done.add((name, extras))
        found.add(name)
        queue += [(canonicalize_name(need.name), frozenset(need.extras)) for need in needs(name, extras)]
    return found - {PACKAGE}


def needs(name: str, extras: Iterable[str] = ()) -> list[Requirement]:
    """What one installed package requires on this platform with these extras."""
    wanted = [Requirement(line) for line in distribution(name).requires or []]
    cases = [{"extra": extra} for extra in ("", *extras)]
    return [need for need in wanted if need.marker is None or any(need.marker.evaluate(case) for case in cases)]


def pins(names: Iterable[str]) -> list[str]:
    """One `name==version` line per package, sorted."""
    return [f"{name}=={Version(distribution(name).version).public}" for name in sorted(names)]


def locked() -> tuple[list[str], list[str]]:
    """The lines of locked.txt and of dev.txt."""
    runtime = closure([Requirement(PACKAGE)])
    return pins(runtime), pins(closure([Requirement(f"{PACKAGE}[dev]")]) - runtime)


if __name__ == "__main__":
    runtime_pins, dev_pins = locked()
    note = "# Written by requirements/lock.py; see CONTRIBUTING.md."
    (HERE / "locked.txt").write_text("\n".join([note, *runtime_pins, ""]))
    (HERE / "dev.txt").write_text("\n".join([note, "-r locked.txt", *dev_pins, ""]))
