"""Arguments of public functions checked against their annotations, before a function begins.

`checked` compares what is given with the annotated types and raises a `WrongTypeError` that names the argument, the
value and the types that are taken. Ranges and names are left to the functions, but for those of a `seed`.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import types
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

from circuitlab.errors import ConfigError, WrongTypeError

F = TypeVar("F", bound=Callable[..., Any])
MOST_ITEMS = 1000  # of a collection that are checked
MOST_SEED = 2**32  # what every generator of random numbers takes
_shown = Repr()
_shown.maxstring = _shown.maxother = 60


def checked(function: F) -> F:
    """Decorate a function: an argument of another type than annotated raises a `WrongTypeError`.

    Annotations that cannot be resolved in the function's module are not checked. A whole number is accepted as a float,
    a path-like object as a `Path`; a bool is not accepted as a number, nor a str as a sequence of strings.

    Returns:
        The function, with its arguments checked.

    Example:
        >>> @checked
        ... def half(n: int) -> float:
        ...     return n / 2
        >>> half("4")
        Traceback (most recent call last):
        ...
        circuitlab.errors.WrongTypeError: half(): n is '4', of type str; it must be int.
    """
    signature = inspect.signature(function)
    called = function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")

    @functools.cache
    def hints() -> dict[str, Any]:
        names = inspect.unwrap(function).__globals__
        return {p.name: resolved(p.annotation, names) for p in signature.parameters.values()}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # too few or too many: Python's own message names the function
            return function(*args, **kwargs)
        for name, value in bound.arguments.items():
            kind, hint = signature.parameters[name].kind, hints()[name]
            items = {name: value}
            if kind is inspect.Parameter.VAR_POSITIONAL:
                items = {f"{name}[{place}]": item for place, item in enumerate(value)}
            elif kind is inspect.Parameter.VAR_KEYWORD:
                items = value
            for item, given in items.items():
                if not fits(given, hint):
                    what = f"{item} is {_shown.repr(given)}, of type {type(given).__name__}"
                    raise WrongTypeError(f"{called}(): {what}; it must be {spelled(hint)}{_lacking(given, hint)}.")
        seed = bound.arguments.get("seed", 0)
        if isinstance(seed, int) and not 0 <= seed < MOST_SEED:
            raise ConfigError(f"{called}(): seed is {seed}; it must be from 0 to {MOST_SEED - 1:,}.")
        return function(*args, **kwargs)

    return typing.cast("F", call)


def renamed(**names: str) -> Callable[[F], F]:
    """Decorate a public function: arguments may be given by their former names, with a `FutureWarning`.

    Args:
        names: Former name -> name.

    Returns:
        The decorator.

    Raises:
        ConfigError: An argument is given by both names.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for former in names.keys() & kwargs.keys():
                name = names[former]
                if name in kwargs:
                    raise ConfigError(f"{function.__name__}(): {former} is now called {name}. Give {name} alone.")
                message = f"{function.__name__}(): {former}= is now called {name}=; the former name will go."
                warnings.warn(message, FutureWarning, stacklevel=2)
                kwargs[name] = kwargs.pop(former)
            return function(*args, **kwargs)

        return typing.cast("F", call)

    return decorate


def renamed_value(**values: Mapping[str, str]) -> Callable[[F], F]:
    """Decorate a public function: values of keywords may be given by their former names, with a `FutureWarning`.

    Args:
        values: Keyword -> former value -> value.

    Returns:
        The decorator.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for keyword, names in values.items():
                given = kwargs.get(keyword)
                if isinstance(given, str) and given in names:
                    kwargs[keyword] = names[given]
                    message = (
                        f"{function.__name__}(): {keyword}={given!r} is now called {names[given]!r}; the former name "
                        "will go."
                    )
                    warnings.warn(message, FutureWarning, stacklevel=2)
            return function(*args, **kwargs)

        return typing.cast("F", call)

    return decorate


C = TypeVar("C", bound=type)


def checked_fields(cls: C) -> C:
    """Decorate a dataclass: a field of another type than annotated raises a `WrongTypeError`.

    Returns:
        The class, with its fields checked.
    """
    cls.__init__ = checked(cls.__init__)  # pyright: ignore[reportAttributeAccessIssue]
    return cls


def check_each_once(kind: str, names: Collection[str], hint: str) -> None:
    """Refuse an empty list, and one that names something twice.

    Args:
        kind: What the names are of, such as "edge".
        names: As the user gave them.
        hint: What to do about an empty list.

    Raises:
        ConfigError: There is no name, or one twice.
    """
    if not names:
        raise ConfigError(f"{kind}s is empty; name at least one, {hint}.")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ConfigError(f"{kind} {name!r} is named twice; name each once.")


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type; types that are not known fit everything.

    Returns:
        Whether it is.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Annotated:
        return fits(value, inner[0])
    if origin is typing.Literal:
        return value in inner
    if hint is None or hint is type(None):
        return value is None
    if hasattr(hint, "array_type"):  # jaxtyping; shapes are the function's business
        return fits(value, hint.array_type)
    if origin is Callable or hint is Callable:
        return callable(value)
    if isinstance(origin, type):
        return _collection_fits(value, origin, inner)
    if hint is Any or not isinstance(hint, type) or hint is inspect.Parameter.empty:
        return True
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not _is_bool(value)
    if hint is bool:
        return _is_bool(value)
    if issubclass(hint, Path):
        return isinstance(value, os.PathLike)
    if getattr(hint, "_is_protocol", False):
        return _has_members(value, hint)
    return isinstance(value, hint)


def _collection_fits(value: object, origin: type, inner: tuple[Any, ...]) -> bool:
    if not isinstance(value, origin) or isinstance(value, str | bytes):
        return False
    if isinstance(value, Mapping) and len(inner) == 2:
        return all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in list(value.items())[:MOST_ITEMS])
    if isinstance(value, tuple) and origin is tuple and inner and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(fits, value, inner))
    if isinstance(value, Sequence | Set) and inner:
        return all(fits(item, inner[0]) for item in list(value)[:MOST_ITEMS])
    return True


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def _has_members(value: object, protocol: type) -> bool:
    """Whether a value has what a protocol asks for, by name."""
    members = _members(protocol)
    return all(_has(value, name) for name in members) and (members != set() or callable(value))


def _members(protocol: type) -> set[str]:
    return {
        name
        for base in protocol.__mro__
        if getattr(base, "_is_protocol", False)
        for name in (*inspect.get_annotations(base), *vars(base))
        if not name.startswith("_")
    }


def _lacking(value: object, hint: Any) -> str:
    """The members of a protocol that an object lacks which has some of them, for a message."""
    if not (isinstance(hint, type) and getattr(hint, "_is_protocol", False)):
        return ""
    members = _members(hint)
    missing = sorted(name for name in members if not _has(value, name))
    return f", and lacks {', '.join(missing)}" if 0 < len(missing) < len(members) else ""


def _has(value: object, name: str) -> bool:
    """Whether a value has an attribute, without asking for it: a property may raise."""
    try:
        inspect.getattr_static(value, name)
    except AttributeError:
        try:
            return hasattr(value, name)
        except Exception:  # of the object that this one hands the question on to
            return True
    return True


def spelled(hint: Any) -> str:
    """An annotation in words, for a message.

    Returns:
        The words.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(spelled(one) for one in inner))
    if hint is None or hint is type(None):
        return "None"
    if origin is Callable or hint is Callable:
        return "a function"
    if hasattr(hint, "array_type"):
        return f"a {hint.array_type.__name__} [{hint.dim_str}]"
    if isinstance(origin, type):
        if issubclass(origin, Mapping):
            return f"a dict of {' to '.join(map(spelled, inner))}" if inner else "a dict"
        items = " or ".join(dict.fromkeys(spelled(one) for one in inner if one is not Ellipsis))
        name = (
            "a tuple" if origin is tuple else "a list" if issubclass(origin, Collection | Iterable) else origin.__name__
        )
        return f"{name} of {items}" if items else name
    return getattr(hint, "_spelled", None) or getattr(hint, "__name__", str(hint))


def resolved(annotation: Any, names: Mapping[str, Any]) -> Any:
    """An annotation as an object; `Any` where a name in it is not known.

    Returns:
        The object.
    """
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names))
    except Exception:  # a name that type checkers alone import
        return Any
