"""Options of the commands in groups that commands share, most of them made from the declarations of the settings.

A command with a parameter of a group's type, such as `model: ModelOptions`, has the options of the group instead
(`App.command`), and receives their values as one object.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_origin, get_type_hints

import typer

import circuitlab
from circuitlab import names
from circuitlab.cli.command import complete_task, completing
from circuitlab.cli.display import print_around
from circuitlab.cli.visible import visible
from circuitlab.data.tables.options import parsed_columns
from circuitlab.declarations import Setting, options_of
from circuitlab.errors import CircuitLabError, ConfigError
from circuitlab.graphs.selection import SelectionRule
from circuitlab.settings import AROUND_PROMPTS, MODEL_SETTINGS, OF_TABLE, SETTINGS

if TYPE_CHECKING:
    from circuitlab.data.pairs import PairSet
    from circuitlab.data.task import Task
    from circuitlab.models.bridge import BridgeModel

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
RunCode = Annotated[bool, typer.Option("--run-code", help="Execute the task file in the run folder. Read it first.")]
List = Annotated[str | None, typer.Option(metavar="LIST", help="Only these, such as 0,3 or 4-7.")]
PARTS = options_of(SelectionRule)  # of the setting `selection`


def parameter(setting: Setting, *, of_run: bool = False) -> Parameter:
    """The parameter of a command for a setting.

    Args:
        setting: The declaration.
        of_run: The default is that of a run folder.

    Returns:
        A keyword parameter with default None: the library has the declared default.
    """
    repeated = setting.flag and setting.plain in (dict[str, str], dict[str, Any], tuple[str, ...])
    listed = setting.allowed or setting.known
    option = typer.Option(
        f"{setting.flag}/--no-{setting.flag[2:]}" if of_run and setting.plain is bool else setting.flag,
        metavar=setting.metavar or None,
        min=setting.least,
        max=setting.most,
        help=(setting.help or setting.what) + _default(setting, of_run=of_run),
        show_default=False,
        autocompletion=completing(listed, setting.group) if isinstance(listed, Mapping) else None,
    )
    kind = list[str] if repeated else setting.plain
    return Parameter(setting.name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


def _default(setting: Setting, *, of_run: bool) -> str:
    """The default as help shows it; empty for a flag, or where nothing is the default."""
    default, off = setting.shown or setting.recorded_default, setting.flag.partition("/")[2].lstrip("-")
    if default is False:
        default = off or ("no" if of_run else None)
    default = None if default in (None, {}) else f"the run's, or {default}" if of_run else default
    return "" if default is None else f" [default: {default}]"


class Options:
    """A group of options, as one parameter of a command.

    Options without a setting are annotated attributes of the class, as typer takes parameters.

    Attributes:
        settings: The settings that are options of the group.
        of_run: Whether defaults are those of a run folder.
        given: The values from the command line, by name, without those that are None.
    """

    settings: ClassVar[tuple[Setting, ...]] = ()
    of_run: ClassVar = False

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = {name: value for name, value in given.items() if value is not None}
        vars(self).update({name: given[name] for name in self._annotated()})

    def __getitem__(self, name: str) -> Any:
        """The given value, or the declared default of the setting."""
        return self.given.get(name, SETTINGS[name].default)

    @classmethod
    def parameters(cls) -> list[Parameter]:
        """The parameters of a command that belong to the group.

        Returns:
            Those of the settings, then those of the annotated attributes; their names are the keys of `given`.
        """
        found = [parameter(setting, of_run=cls.of_run) for setting in cls.settings]
        return found + [
            Parameter(name, Parameter.KEYWORD_ONLY, annotation=hint, default=getattr(cls, name, Parameter.empty))
            for name, hint in cls._annotated().items()
        ]

    @classmethod
    def _annotated(cls) -> dict[str, Any]:
        hints = get_type_hints(cls, include_extras=True)
        return {name: hint for name, hint in hints.items() if get_origin(hint) is Annotated}


class ModelOptions(Options):
    """A model and how it is loaded."""

    settings = tuple(SETTINGS[name] for name in MODEL_SETTINGS)

    @property
    def name(self) -> str:
        """The value of --model."""
        return self["model"]

    def load(self) -> "BridgeModel":
        """Load the model; see `load_model`.

        Returns:
            The model.
        """
        from circuitlab.models.load import load_model

        return load_model(**{name: self.given[name] for name in MODEL_SETTINGS if name in self.given})


class ModelsOptions(Options):
    """Some models and how they are loaded."""

    settings = tuple(SETTINGS[name] for name in MODEL_SETTINGS if name != "model")
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME", help="A model; may be repeated. [default: bundled]")
    ] = None

    @property
    def names(self) -> list[str]:
        """The values of --model."""
        return self.model or [SETTINGS["model"].default]

    def check(self) -> None:
        """Check the files and names of all models before the first is loaded.

        Raises:
            CircuitLabError: One of them cannot be loaded; see `check_sources`.
        """
        from circuitlab.models.revisions import Checkpoint
        from circuitlab.models.source import check_sources

        chosen = Checkpoint(revision=self.given.get("revision"), index=self.given.get("checkpoint_index"))
        check_sources(self.names, chosen)

    def load(self) -> "Iterator[tuple[str, BridgeModel]]":
        """Load one model after the other.

        Yields:
            The model's name as it was given, and the model.
        """
        from circuitlab.models.load import load_model

        for name in self.names:
            yield (
                name,
                load_model(name, **{one.name: self.given[one.name] for one in self.settings if one.name in self.given}),
            )


class SeededOptions(ModelOptions):
    """The same, and a random seed."""

    settings = (*ModelOptions.settings, SETTINGS["seed"])


class DeviceOption(Options):
    """Another device than that of a run."""

    settings = (replace(SETTINGS["device"], shown="the run's"),)


class OptionsOfTask(Options):
    """Options of a task."""

    settings = (SETTINGS["task_options"], *(SETTINGS[name] for name in OF_TABLE))
    contrast: Annotated[
        str | None, typer.Option("--contrast", metavar="VALUE", help="Short for --option contrast=VALUE.")
    ] = None

    @property
    def options(self) -> dict[str, str]:
        """The options of `--option KEY=VALUE` and `--contrast VALUE`.

        Raises:
            ConfigError: One is not of the form KEY=VALUE, or is given twice.
        """
        texts = [*self.given.get("task_options", ()), *([f"contrast={self.contrast}"] if self.contrast else [])]
        return keyed("--option", texts, "task option", "contrast=gender")

    @property
    def reading(self) -> dict[str, Any]:
        """How a table of pairs is read: keywords of `load_task`.

        Raises:
            CircuitLabError: `--columns` is not of the form FIELD=COLUMN.
        """
        found = {name: self.given[name] for name in OF_TABLE if name in self.given}
        return {**found, "columns": parsed_columns(found.get("columns", ()))}

    def loaded(self, task: str) -> "Task":
        """A task with these options; of a table, stderr says how it was read.

        Returns:
            The task.

        Raises:
            CircuitLabError: `load_task` rejects the task or its options.
        """
        found = circuitlab.load_task(task, task_options=self.options, **self.reading)
        if found.table is not None:
            typer.echo(visible(f"circuitlab: {found.table.source}: {found.table.described()}"), err=True)
        return found


class TaskOptions(OptionsOfTask):
    """A task as an argument, and its options."""

    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="A task's name, the path of a .py file that defines TASK or of a table of pairs, or a hub data set.",
            autocompletion=complete_task,
        ),
    ]

    def load(self) -> "Task":
        """Load the task with these options.

        Returns:
            The task.

        Raises:
            ConfigError: An option is not of the form KEY=VALUE, or is given twice.
            CircuitLabError: `load_task` rejects the task or its options.
        """
        found = self.loaded(self.task).with_split(self.given.get("split"))
        return found.with_prompting(**{name: self.given.get(name) for name in AROUND_PROMPTS})


class PairOptions(TaskOptions):
    """A task, its pairs, and the metric."""

    settings = (*TaskOptions.settings, *(SETTINGS[name] for name in ("metric", "n", "seed", "split", *AROUND_PROMPTS)))

    def load(self) -> "Task":
        """Load the task; where no number of pairs is given, it is what a table has.

        Returns:
            The task.

        Raises:
            CircuitLabError: As for `TaskOptions.load`.
        """
        found = super().load()
        self.given.setdefault("n", found.usual_n(self["n"]))
        return found

    def next_token_pairs(self, task: "Task", model: "BridgeModel") -> "PairSet":
        """The discovery pairs, for a command that judges the next token whatever the metric.

        Returns:
            Pairs with answers of one token.

        Raises:
            CircuitLabError: As for `Task.pairs`; no metric is advised where answers have several tokens.
        """
        from circuitlab.data.encoding import SEVERAL

        advice = SEVERAL.rstrip(".")
        try:
            found = task.pairs(model, n=self["n"], seed=self["seed"], whole_answers=False)
        except CircuitLabError as error:
            if advice not in str(error):
                raise
            raise type(error)(str(error).replace(advice, "This command judges the next token only")) from error
        print_around(found.frame)
        return found.discovery


class SweepOptions(PairOptions):
    """The same, and the replacement."""

    settings = (
        *PairOptions.settings,
        replace(
            SETTINGS["ablation"],
            help=f"Replacement: {', '.join(names.ABLATIONS)}; corrupt is the other prompt's value.",
        ),
    )


class RunOptions(TaskOptions):
    """The settings of `discover`."""

    settings = tuple(
        one
        for setting in SETTINGS.values()
        for one in (PARTS if setting.name == "selection" else (setting,))
        if one.flag
    )
    no_sweep: Annotated[bool, typer.Option("--no-sweep", help="Skip the sweeps; no heatmaps.")] = False

    def keywords(self) -> dict[str, Any]:
        """Keywords of `discover` other than the task and its options.

        Returns:
            The keywords by name.

        Raises:
            ConfigError: A method option is not of the form KEY=VALUE or given twice; `--sites` with `--no-sweep`.
        """
        others = {name for name in SETTINGS if not name.startswith("task")} - {*OF_TABLE}
        found = {name: value for name, value in self.given.items() if name in others}
        found["selection"] = {part.name: self.given[part.name] for part in PARTS if part.name in self.given}
        options = found.get("method_options")
        found["method_options"] = keyed("--method-option", options, "method option", "points=published-code")
        found["sites"] = swept(found.get("sites"), no_sweep=self.no_sweep)
        return found


class JudgedOptions(OptionsOfTask):
    """The settings of an evaluation; by default those of the run."""

    judged: ClassVar = (*MODEL_SETTINGS, "metric", "ablation", "n", "seed", "split", *AROUND_PROMPTS, "allow_weak_gap")
    settings = (*(SETTINGS[name] for name in judged), *OptionsOfTask.settings)
    of_run = True
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="TASK", help="A task's name, or the path of a .py file or a table. [default: the run's]"
        ),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Keywords of `judging`, the task with its options among them.

        Returns:
            The keywords by name.

        Raises:
            CircuitLabError: The task cannot be loaded, or an option is not of the form KEY=VALUE.
        """
        options, found = self.options, {name: value for name, value in self.given.items() if name in self.judged}
        if self.task is not None:
            return {**found, "task": self.loaded(self.task)}
        if meaningless := [SETTINGS[name].flag for name in OF_TABLE if self.given.get(name)]:
            raise ConfigError(
                f"{meaningless[0]} says how a table is read. Give the table with --task, or leave it out."
            )
        return {**found, "options": options}


def swept(sites: list[str] | None, *, no_sweep: bool) -> tuple[str, ...] | None:
    """The sites that `--sites` and `--no-sweep` select.

    Returns:
        Their names, or None for the usual sites.

    Raises:
        ConfigError: Both options are given, or a name is empty.
    """
    if sites is None:
        return () if no_sweep else None
    chosen = tuple(name.strip() for text in sites for name in text.split(","))
    if no_sweep or not all(chosen):
        what = f"--sites {','.join(sites)!r}" + (" and --no-sweep exclude each other" if no_sweep else " holds no name")
        raise ConfigError(f"{what}. Give --sites resid_pre,head_z or --no-sweep.")
    return chosen


def keyed(flag: str, texts: list[str] | None, what: str, example: str) -> dict[str, str]:
    """Read a repeated option KEY=VALUE.

    Returns:
        The values by key.

    Raises:
        ConfigError: One is not of the form KEY=VALUE, or a key has two values.
    """
    chosen: dict[str, str] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"{flag} {text!r} is not of the form KEY=VALUE, such as {flag} {example}.")
        if chosen.setdefault(key, value) != value:
            raise ConfigError(f"{what} {key!r} is given twice, as {chosen[key]!r} and as {value!r}. Give one.")
    return chosen
