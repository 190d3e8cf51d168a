"""How results are shown: figures, pages and reports, registered by module and name of the result's class.

`circuitlab.viz` registers figures, `circuitlab.report` pages. Both are in higher layers than the results and are found
by the entry points `circuitlab.pictures`. Another package shows its own results the same way: it lists a module under
that group, and the module registers functions with `shows`.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from circuitlab import plugins
from circuitlab.errors import WrongTypeError

GROUP = "circuitlab.pictures"
F = TypeVar("F", bound=Callable[..., Any])
_views: dict[tuple[str, str], Callable[..., Any]] = {}


def shows(view: str, name: str) -> Callable[[F], F]:
    """Register a function as how results of a class, and of classes that derive from it, are shown.

    Args:
        view: "figure", "page" (HTML by itself), "cell" (HTML in a notebook) or "report" (of a run).
        name: Module and name of the class, such as "my_package.results:Profile"; it need not be imported for it.

    Returns:
        A decorator of a function of the result and, by keyword, of options.
    """

    def register(function: F) -> F:
        _views[view, name] = function
        return function

    return register


def draw(value: Any, **options: Any) -> Any:
    """Draw a result.

    Args:
        value: The result.
        options: Those of its `plot`.

    Returns:
        A matplotlib `Figure`.

    Raises:
        WrongTypeError: There is no picture of such a value.
    """
    return _shown("figure", value, options)


def page(value: Any) -> str:
    """A result as an HTML page that needs nothing but itself.

    Returns:
        The HTML.
    """
    return str(_shown("page", value, {}))


def cell(value: Any) -> str:
    """A result as HTML for a notebook's cell.

    Returns:
        The HTML.
    """
    return str(_shown("cell", value, {}))


def report(run: Any, folder: Path, name: str, hashed: Mapping[str, str]) -> None:
    """Write the report of a run into its folder, which is called `name` in it; `hashed` are SHA-256 of its files."""
    _shown("report", run, {"folder": folder, "name": name, "hashed": hashed})


def _shown(view: str, value: Any, options: dict[str, Any]) -> Any:
    _load()
    for cls in type(value).__mro__:
        if function := _views.get((view, f"{cls.__module__}:{cls.__qualname__}")):
            return function(value, **options)
    known = ", ".join(sorted(name.partition(":")[2] for kind, name in _views if kind == view))
    raise WrongTypeError(f"{type(value).__name__} has no {view}. Give one of {known}.")


@cache
def _load() -> None:
    for entry in plugins.installed(GROUP).values():
        plugins.load(entry)
