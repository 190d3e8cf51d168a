"""The type checker that the jaxtyping import hook applies to circuitlab while tests run: beartype, protocols on trust.

A protocol is a promise to pyright. Checking one at run time reads every property of the model on every call (one of
them raises, rightly, for a model without tokenizer), so hints that name a protocol are left out.

A check costs more than most of the calls that it checks. So a function is checked when a file of tests calls it first,
and `CALLS` times in all; from then on it runs as it is until the next file begins (`begin_anew`). Functions inside
functions, which would be wrapped anew at every call of the outer one, are not checked: they were half of the time.
"""

import ast
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from functools import reduce, wraps
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import _import_hook, install_import_hook

# Calls of a function that are checked in each file of tests.
CALLS = 100
# Where a float is asked for, a whole number serves, as for pyright.
_TOWER = BeartypeConf(is_pep484_tower=True)
# jaxtyping's wrapper looks for this attribute of the function at every call.
_OFF = "__no_type_check__"

_calls = Counter[str]()
_unchecked = list[Any]()


def install() -> None:
    """Check circuitlab's functions and data classes, as they are imported from now on."""
    decorate = _import_hook.JaxtypingTransformer.visit_FunctionDef

    def visit(self: Any, node: ast.FunctionDef) -> ast.AST:
        inside = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        return node if inside else decorate(self, node)

    # jaxtyping keeps compiled modules under the checker's name: another rule needs another name.
    _import_hook.JaxtypingTransformer.visit_FunctionDef = visit
    install_import_hook("circuitlab", "shapes.check_outermost")


def check_outermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function with checks of its annotations; commands are typer's to call, with a context of its own type."""
    if function.__module__ == "circuitlab.cli.app":
        return function
    function.__annotations__ = {
        name: Any if _names_protocol(hint) else hint for name, hint in function.__annotations__.items()
    }
    checked = beartype(function, conf=_TOWER)
    name = f"{function.__module__}:{function.__qualname__}"

    @wraps(checked)
    def counted(*args: Any, **kwargs: Any) -> Any:
        _calls[name] += 1
        if _calls[name] == CALLS:
            _leave_unchecked(name)
        return checked(*args, **kwargs)

    return counted


def begin_anew() -> None:
    """Check every function again."""
    _calls.clear()
    while _unchecked:
        delattr(_unchecked.pop(), _OFF)


def _leave_unchecked(name: str) -> None:
    """Let a function run as it is; those that no module holds by their name are checked on."""
    module, _, path = name.partition(":")
    try:
        found = reduce(lambda owner, part: owner.__dict__[part], path.split("."), sys.modules[module])
    except (KeyError, AttributeError):
        return
    found = inspect.unwrap(getattr(found, "__func__", getattr(found, "fget", found)))
    if not hasattr(found, _OFF):
        setattr(found, _OFF, True)
        _unchecked.append(found)


def _names_protocol(hint: object) -> bool:
    if isinstance(hint, list | tuple):
        return any(map(_names_protocol, hint))
    return bool(getattr(hint, "_is_protocol", False)) or any(map(_names_protocol, get_args(hint)))
