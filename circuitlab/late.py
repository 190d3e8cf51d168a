"""What is imported only when it is asked for: public names, and the one upward call.

Results are drawn by `circuitlab.viz`, which knows them, so they reach it by name and late.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def call(module: str, function: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function of a module that is imported only now."""
    return getattr(importlib.import_module(module), function)(*args, **kwargs)


def names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose public names are loaded when they are first asked for (PEP 562).

    Args:
        package: Its `__name__`.
        homes: Public name -> the module that it lives in.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, listed
