"""The type checker that the jaxtyping import hook applies to circuitlab while tests run: beartype, protocols on trust.

A protocol is a promise to pyright. Checking one at run time reads every property of the model on every call (one of
them raises, rightly, for a model without tokenizer), so hints that name a protocol are left out.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import BeartypeConf, beartype

# Where a float is asked for, a whole number serves, as for pyright.
_TOWER = BeartypeConf(is_pep484_tower=True)


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function with checks of its annotations; commands are typer's to call, with a context of its own type."""
    if function.__module__ == "circuitlab.cli.app":
        return function
    function.__annotations__ = {
        name: Any if _names_protocol(hint) else hint for name, hint in function.__annotations__.items()
    }
    return beartype(function, conf=_TOWER)


def _names_protocol(hint: object) -> bool:
    if isinstance(hint, list | tuple):
        return any(map(_names_protocol, hint))
    return bool(getattr(hint, "_is_protocol", False)) or any(map(_names_protocol, get_args(hint)))
