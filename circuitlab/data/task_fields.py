"""Checks of the fields of a task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from circuitlab import names
from circuitlab.data.checks import check_line, check_mapping, check_sequence
from circuitlab.data.example import Example
from circuitlab.data.prompting import Prompting
from circuitlab.data.published import PublishedCircuit
from circuitlab.data.tables.table import PairTable
from circuitlab.errors import TaskError, UnknownNameError, shown
from circuitlab.references import Reference

# Parameters of `draw` that no option can be called by.
RESERVED = frozenset(("rng", "split", "vocabulary"))


def parameters(draw: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function by name; none for built-in functions without a signature.

    Returns:
        The parameters.
    """
    try:
        return inspect.signature(draw).parameters
    except (TypeError, ValueError):
        return {}


def check_parts(owner: str, task: Any) -> None:
    """Refuse a task with a field of another type.

    Raises:
        TaskError: One is, or `held_out` does not go with `draw` and `fixed`.
        UnknownNameError: There is no such split.
    """
    if not isinstance(task.origin, str):
        raise TaskError(f"origin of {owner} is {shown(task.origin)}; it must be a path (str).")
    if not callable(task.draw):
        raise TaskError(f"draw of {owner} is {shown(task.draw)}; it must be a function of (rng, **options).")
    if not callable(task.metric) and not (isinstance(task.metric, str) and task.metric):
        raise TaskError(
            f"metric of {owner} is {shown(task.metric)}; it must be the name of a metric or a function of "
            "(logits, batch)."
        )
    check_held_out(owner, task.held_out, task.draw, task.fixed)
    check_line(f"split of {owner}", task.split)
    UnknownNameError.check("split", task.split, names.SPLITS, owner=owner)
    published = check_mapping(f"published of {owner}", task.published)
    if wrong := [name for name, circuit in published.items() if not isinstance(circuit, PublishedCircuit)]:
        raise TaskError(f"published[{wrong[0]!r}] of {owner} must be a PublishedCircuit.")
    if not isinstance(task.table, PairTable | None):
        raise TaskError(f"table of {owner} is {shown(task.table)}; make such a task with Task.from_frame(...).")
    if not isinstance(task.prompting, Prompting):
        raise TaskError(f"prompting of {owner} is {shown(task.prompting)}; it must be a Prompting.")


def check_held_out(owner: str, held_out: object, draw: Callable[..., object], fixed: object) -> None:
    """Refuse a task whose splits cannot differ in what it says they do.

    Raises:
        TaskError: `held_out` is neither a line nor a function, `draw` has no parameter `split` or one for nothing, or
            `fixed` does not say which examples are held out.
    """
    if not callable(held_out):
        check_line(f"held_out of {owner}", held_out, may_be_empty=True)
    if bool(held_out) != ("split" in parameters(draw)):
        raise TaskError(
            f"held_out of {owner} is {shown(held_out)}; it says what held-out prompts do not share with discovery "
            "prompts, and goes with a parameter 'split' of draw(): give both or none."
        )
    if held_out and fixed and not (callable(fixed) and "split" in parameters(fixed)):
        raise TaskError(
            f"fixed of {owner} does not say which examples are held out. Make it a function with a parameter 'split', "
            "as draw() has, that returns those of 'discovery', of 'held_out', or all for 'any'."
        )


def checked_fixed(owner: str, examples: object) -> tuple[Example, ...]:
    """The examples that always come first, if they are examples.

    Returns:
        The examples.

    Raises:
        TaskError: They are something else.
    """
    found = []
    for example in check_sequence(f"fixed of {owner}", examples, "Examples"):
        if not isinstance(example, Example):
            raise TaskError(f"fixed of {owner} holds {shown(example)}; it must hold Examples.")
        found.append(example)
    return tuple(found)


def checked_options(owner: str, options: object, draw: Callable[..., object]) -> dict[str, tuple[str, ...]]:
    """The options of a task, if `draw` takes them.

    Returns:
        Each option with its values.

    Raises:
        TaskError: They are no mapping of names to different texts, or `draw` does not take one.
    """
    found = {}
    for name, values in check_mapping(f"options of {owner}", options).items():
        if not name.isidentifier():
            raise TaskError(
                f"{owner} has an option {name!r}; draw() gets options by keyword, so that a name must be an "
                "identifier: letters, digits and '_'."
            )
        allowed = check_sequence(f"option {name!r} of {owner}", values, "texts, the default first")
        for value in allowed:
            check_line(f"a value of option {name!r} of {owner}", value)
        if not allowed or len(set(allowed)) < len(allowed):
            raise TaskError(f"option {name!r} of {owner} has the values {allowed}; give at least one, and each once.")
        found[name] = tuple(map(str, allowed))
    if taken := sorted(RESERVED & set(found)):
        raise TaskError(
            f"{owner} has options {taken}, but draw({taken[0]}, ...) is given something else by that name. "
            "Rename the option."
        )
    try:
        parameters = inspect.signature(draw).parameters
    except (TypeError, ValueError):  # built-in functions have no signature
        return found
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if missing := [name for name in found if name not in parameters and not open_ended]:
        raise TaskError(f"{owner}: draw() has no parameter for the options {missing}.")
    return found


def checked_sources(owner: str, sources: object) -> tuple[Reference, ...]:
    """Where a behaviour comes from, if it is given as references.

    Returns:
        The references.

    Raises:
        TaskError: One is no `Reference`, or has a field of another type.
    """
    found = []
    for source in check_sequence(f"sources of {owner}", sources, "References"):
        if not isinstance(source, Reference):
            raise TaskError(f"sources of {owner} holds {shown(source)}; it must hold References.")
        for name in ("key", "title"):
            check_line(f"{name} of a source of {owner}", getattr(source, name))
        for name in ("arxiv", "url"):
            if getattr(source, name) is not None:
                check_line(f"{name} of a source of {owner}", getattr(source, name))
        for author in check_sequence(f"authors of a source of {owner}", source.authors, "names"):
            check_line(f"an author of a source of {owner}", author)
        if isinstance(source.year, bool) or not isinstance(source.year, int):
            raise TaskError(f"year of a source of {owner} is {shown(source.year)}; it must be a whole number.")
        found.append(source)
    return tuple(found)
