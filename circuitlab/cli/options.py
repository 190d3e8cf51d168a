"""Options of the commands, made from the declarations of the settings, in groups that commands share.

A command with a parameter of a group's type, such as `model: ModelOptions`, has the options of the group in its place
(`App.command`), and gets what was given as one value.
"""

from collections.abc import Mapping
from dataclasses import replace
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from circuitlab import names
from circuitlab.cli.command import complete_task, completing
from circuitlab.declarations import Setting, options_of
from circuitlab.errors import ConfigError
from circuitlab.graphs.selection import SelectionRule
from circuitlab.settings import MODEL_SETTINGS, SETTINGS

if TYPE_CHECKING:
    from circuitlab.data.task import Task
    from circuitlab.models.bridge import BridgeModel

TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="A task's name, or the path of a .py file that defines TASK.",
        autocompletion=complete_task,
    ),
]
RandomCircuits = Annotated[
    int, typer.Option("--random", min=0, max=10_000, help="Number of random circuits to compare with.")
]
Knockouts = Annotated[int, typer.Option("--knockouts", min=0, max=10_000, help="Number of random parts to remove.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing output.")]
RunCode = Annotated[bool, typer.Option("--run-code", help="Execute the task file in the run folder. Read it first.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Contrast = Annotated[str | None, typer.Option("--contrast", metavar="VALUE", help="Short for --option contrast=VALUE.")]
NoSweep = Annotated[bool, typer.Option("--no-sweep", help="Skip the sweeps; no heatmaps.")]
PARTS = options_of(SelectionRule)  # of the setting `selection`


def parameter(setting: Setting, *, of_run: bool = False) -> Parameter:
    """The parameter of a command for a setting. Its default is None: the library has the declared one.

    Args:
        setting: The declaration.
        of_run: The default is that of a run folder.
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
    """What help says of a default; nothing for a flag, or where nothing is the default."""
    default, off = setting.shown or setting.recorded_default, setting.flag.partition("/")[2].lstrip("-")
    if default is False:
        default = off or ("no" if of_run else None)
    default = None if default in (None, {}) else f"the run's, or {default}" if of_run else default
    return "" if default is None else f" [default: {default}]"


class Options:
    """A group of options, as one parameter of a command.

    Attributes:
        settings: What it consists of.
        plain: Further parameters by name, with annotation and default.
        of_run: Whether defaults are those of a run folder.
        given: What was given on the command line, by name.
    """

    settings: ClassVar[tuple[Setting, ...]] = ()
    plain: ClassVar[dict[str, tuple[Any, Any]]] = {}
    of_run: ClassVar = False

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = {name: value for name, value in given.items() if value is not None}

    def __getitem__(self, name: str) -> Any:
        """What was given, or the declared default of the setting."""
        return self.given.get(name, SETTINGS[name].default)

    @classmethod
    def parameters(cls) -> list[Parameter]:
        """The parameters of a command that stand in the place of the group."""
        found = [parameter(setting, of_run=cls.of_run) for setting in cls.settings]
        return found + [
            Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, (annotation, default) in cls.plain.items()
        ]


class ModelOptions(Options):
    """Which model, and how it is loaded."""

    settings = tuple(SETTINGS[name] for name in MODEL_SETTINGS)

    @property
    def name(self) -> str:
        """The model, as it was named."""
        return self["model"]

    def load(self) -> "BridgeModel":
        """Load it; see `load_model`."""
        from circuitlab.models.load import load_model

        return load_model(**{name: value for name, value in self.given.items() if name in MODEL_SETTINGS})


class SeededOptions(ModelOptions):
    """The same, and the seed of what is drawn."""

    settings = (*ModelOptions.settings, SETTINGS["seed"])


class DeviceOption(Options):
    """Another device than that of a run."""

    settings = (replace(SETTINGS["device"], shown="the run's"),)


class TaskOptions(Options):
    """A task and its options."""

    settings = (SETTINGS["task_options"],)
    plain: ClassVar = {"task": (TaskName, Parameter.empty), "contrast": (Contrast, None)}

    @property
    def options(self) -> dict[str, str]:
        """The options of `--option KEY=VALUE` and `--contrast VALUE`.

        Raises:
            ConfigError: One is not of the form KEY=VALUE, or is given twice.
        """
        contrast = self.given.get("contrast")
        texts = [*self.given.get("task_options", ()), *([] if contrast is None else [f"contrast={contrast}"])]
        return keyed("--option", texts, "task option", "contrast=gender")

    def load(self, task: str | None = None) -> "Task":
        """The task with these options; another one than the argument, if given.

        Raises:
            ConfigError: An option is not of the form KEY=VALUE, or is given twice.
            CircuitLabError: What `load_task` finds wrong.
        """
        from circuitlab.data.registry import load_task

        return load_task(self.given["task"] if task is None else task, task_options=self.options)


class PairOptions(TaskOptions):
    """A task, which of its pairs, and what is measured on them."""

    settings = (*TaskOptions.settings, *(SETTINGS[name] for name in ("metric", "n", "seed")))


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
    plain: ClassVar = {**TaskOptions.plain, "no_sweep": (NoSweep, False)}

    def keywords(self) -> dict[str, Any]:
        """What was given, as keywords of `discover` other than the task and its options.

        Raises:
            ConfigError: A method option is not of the form KEY=VALUE or given twice; `--sites` with `--no-sweep`.
        """
        found = {name: self.given[name] for name in self.given if name in SETTINGS and not name.startswith("task")}
        found["selection"] = {part.name: self.given[part.name] for part in PARTS if part.name in self.given}
        found["method_options"] = keyed(
            "--method-option", found.get("method_options"), "method option", "points=published-code"
        )
        found["sites"] = swept(found.get("sites"), no_sweep=self.given["no_sweep"])
        return found


class JudgedOptions(TaskOptions):
    """The settings that a circuit is judged under; by default those of its run."""

    judged: ClassVar = (*MODEL_SETTINGS, "metric", "ablation", "n", "seed", "allow_weak_gap")
    settings = (*(SETTINGS[name] for name in judged), *TaskOptions.settings)
    plain: ClassVar = {"contrast": TaskOptions.plain["contrast"]}
    of_run = True

    def keywords(self) -> dict[str, Any]:
        """What was given, as keywords of `judging`."""
        return {name: value for name, value in self.given.items() if name in self.judged}


def swept(sites: list[str] | None, *, no_sweep: bool) -> tuple[str, ...] | None:
    """What `--sites` and `--no-sweep` ask for: names, none, or None for the usual sites.

    Raises:
        ConfigError: Both are given, or a name is empty.
    """
    if sites is None:
        return () if no_sweep else None
    chosen = tuple(name.strip() for text in sites for name in text.split(","))
    if no_sweep or not all(chosen):
        what = f"--sites {','.join(sites)!r}" + (" and --no-sweep exclude each other" if no_sweep else " holds no name")
        raise ConfigError(f"{what}. Give --sites resid_pre,head_z or --no-sweep.")
    return chosen


def keyed(flag: str, texts: list[str] | None, what: str, example: str) -> dict[str, str]:
    """What repeated options KEY=VALUE say.

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


def check_steps(method: str, steps: int | None) -> None:
    """Refuse steps of integrated gradients where the method takes none.

    Raises:
        UnknownNameError: There is no such method.
        ConfigError: The method takes no steps, and some are given.
    """
    from circuitlab.discovery.scoring import METHODS, find_method

    if steps is not None and "steps" not in find_method(method).takes:
        those = ", ".join(name for name, one in METHODS.items() if "steps" in one.takes)
        raise ConfigError(
            f"--steps {steps} goes with methods that integrate ({those}); {method!r} does not. Leave it out."
        )


def check_force(force: bool, options: str, *files: str | None) -> None:
    """Refuse --force where no file is named that it could replace.

    Raises:
        ConfigError: It is given, and none of the files is.
    """
    if force and all(file is None for file in files):
        raise ConfigError(f"--force replaces what {options} names, and that is not given. Leave it out.")
