"""Shared parts of all commands: layout of the help, checks of options given twice or empty, completion of names."""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from circuitlab import plugins
from circuitlab.errors import ConfigError

LONGEST_HELP = 1000  # characters of a command's line in the list of commands
BLANK, EMPTY = ("separator", "answer", "token"), ("separator",)  # parameters that may be blank, or empty
NO_BREAK = "\N{NON-BREAKING HYPHEN}"


class _WholeNames:
    """Help without a line break inside a name such as `mean-position`."""

    def get_help(self, ctx: Any) -> str:
        """The help; see `typer.core`."""
        return super().get_help(ctx).replace(NO_BREAK, "-")  # pyright: ignore[reportAttributeAccessIssue]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; see `typer.core`."""
        super().format_help(ctx, wrapping_at_spaces(formatter))  # pyright: ignore[reportAttributeAccessIssue]


class Command(_WholeNames, TyperCommand):
    """A command that rejects an option given twice, of which only the last would count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command's name; see the parent class.

        Returns:
            The remaining words.
        """
        if not ctx.resilient_parsing:
            values, _, order = self.make_parser(ctx).parse_args(list(args))
            check_once(order)
            check_filled(order, values)
        return super().parse_args(ctx, args)


class Group(_WholeNames, TyperGroup):
    """A group whose help has the first sentence of every command in full."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands; the parent class cuts what does not fit one line."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [
            (name, found.get_short_help_str(LONGEST_HELP)) for name, found in commands if found and not found.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def wrapping_at_spaces(formatter: Any) -> Any:
    """Make a formatter break lines at spaces only: a name with hyphens stays whole.

    Returns:
        The same formatter.
    """
    write_list, write_text = formatter.write_dl, formatter.write_text
    formatter.write_dl = lambda rows, *args, **settings: write_list(
        [(name, text.replace("-", NO_BREAK)) for name, text in rows], *args, **settings
    )
    formatter.write_text = lambda text: write_text(text.replace("-", NO_BREAK))
    return formatter


def check_once(order: Iterable[Any]) -> None:
    """Reject an option that occurs twice among the parsed ones.

    Raises:
        ConfigError: One does, and is neither one that may be repeated nor a plain flag.
    """
    seen = set[str]()
    for param in order:
        if param.param_type_name != "option" or param.multiple or (param.is_flag and not param.secondary_opts):
            continue
        if param.name in seen:
            raise ConfigError(f"{'/'.join([*param.opts, *param.secondary_opts])} is given twice. Give it once.")
        seen.add(param.name)


def check_filled(order: Iterable[Any], values: Mapping[str, Any]) -> None:
    """Reject options and arguments whose value is empty or blank; a token or a separator may be a blank.

    Raises:
        ConfigError: One is.
    """
    for param in order:
        given = values.get(param.name)
        for value in given if isinstance(given, list | tuple) else [given]:
            if isinstance(value, str) and not value.strip() and not (value and param.name in BLANK):
                if value == "" and param.name in EMPTY:
                    continue
                name = param.opts[0] if param.param_type_name == "option" else param.metavar or param.name
                raise ConfigError(f"{name.rstrip('.')} {value!r} is empty. Give a value, or leave it out.")


def expanded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the options of its groups instead of the groups.

    Returns:
        The function for typer.
    """
    groups: dict[str, tuple[Any, list[str]]] = {}
    found: list[Parameter] = []
    for one in signature(function).parameters.values():
        if hasattr(one.annotation, "parameters"):  # a subclass of `options.Options`
            added: list[Parameter] = one.annotation.parameters()
            groups[one.name] = one.annotation, [parameter.name for parameter in added]
            found += added
        else:
            found.append(one.replace(kind=Parameter.KEYWORD_ONLY))

    @wraps(function)
    def command(**given: Any) -> Any:
        for name, (group, names) in groups.items():
            given[name] = group({each: given.pop(each) for each in names})
        return function(**given)

    vars(command)["__signature__"] = Signature(found)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in found}
    return command


class App(typer.Typer):
    """A group of such commands. Its help is plain text: in tables of 80 columns, names would be cut."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"cls": Group, "rich_markup_mode": None, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Register a function as a command, its groups of options expanded; see the parent class.

        Returns:
            The decorator.
        """
        register = super().command(name, **{"cls": Command, **settings})
        return lambda function: register(expanded(function))


def completing(names: Mapping[str, str], group: str = "") -> Callable[[str], list[tuple[str, str]]]:
    """Completion of names, with a line for each; includes those of other packages (see `plugins.added`).

    Returns:
        The function for typer.
    """

    def complete(incomplete: str) -> list[tuple[str, str]]:
        found = plugins.described(group, names) if group else names
        return [(name, what) for name, what in found.items() if name.startswith(incomplete)]

    return complete


def complete_task(incomplete: str) -> list[str]:
    """Completion of task names.

    Returns:
        The matching names.
    """
    from circuitlab.data.registry import task_names

    return [name for name in task_names() if name.startswith(incomplete)]
