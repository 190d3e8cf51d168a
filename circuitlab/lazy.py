"""Public names of a package that are loaded when they are first used (PEP 562), and the modules of a folder."""

import ast
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any


def homes_of(package: str) -> dict[str, str]:
    """Public names of a package, each with the module it lives in: what the package imports for type checkers.

    Returns:
        Modules by public name.
    """
    loader: Any = vars(sys.modules[package])["__loader__"]
    blocks = (block for block in ast.parse(loader.get_source(package)).body if isinstance(block, ast.If))
    imports = (line for block in blocks for line in block.body if isinstance(line, ast.ImportFrom))
    return {alias.name: str(line.module) for line in imports for alias in line.names}


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: Its `__name__`.
        homes: Public name -> the module that it lives in.

    Returns:
        Both functions.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, listed


def modules_in(package: str, path: Iterable[str]) -> Iterator[ModuleType]:
    """The modules in the folder of a package, in the order of their names.

    Args:
        package: Its `__name__`.
        path: Its `__path__`.
    """
    for found in iter_modules(path):
        yield import_module(f"{package}.{found.name}")
