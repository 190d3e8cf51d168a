"""Arguments and options that several commands share, declared once."""

from typing import TYPE_CHECKING, Annotated

import typer

from circuitlab import names
from circuitlab.cli.command import complete_task, completing, listed
from circuitlab.errors import ConfigError

if TYPE_CHECKING:
    from circuitlab.data.task import Task

TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="A task's name, or the path of a .py file that defines TASK.",
        autocompletion=complete_task,
    ),
]
Model = Annotated[
    str, typer.Option("--model", metavar="NAME", help="bundled, a name that TransformerLens loads, or a folder.")
]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help=f"Scoring method: {listed(names.METHODS)}. See: circuitlab methods.",
        autocompletion=completing(names.METHODS),
    ),
]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, max=10_000, help="Steps of integrated gradients. [default: 5]")
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option("--method-option", metavar="KEY=VALUE", help="Method option; may be repeated."),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help=f"Metric: {listed(names.METRICS)}. See: circuitlab metrics. [default: the task's]",
        autocompletion=completing(names.METRICS),
    ),
]
Ablation = Annotated[
    str,
    typer.Option(
        "--ablation",
        metavar="NAME",
        help=f"Ablation of everything outside the circuit: {listed(names.ABLATIONS)}.",
        autocompletion=completing(names.ABLATIONS),
    ),
]
Pairs = Annotated[int, typer.Option("-n", min=1, max=100_000, help="Pairs of prompts per split.")]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, max=2**32 - 1, help="Random seed of prompts and numbers."),
]
Target = Annotated[
    float | None, typer.Option("--target", help="Faithfulness that the circuit must reach. [default: 0.9]")
]
TopEdges = Annotated[
    int | None, typer.Option("--n-edges", min=1, metavar="N", help="Select the N top edges instead of a target.")
]
Threshold = Annotated[
    float | None, typer.Option("--threshold", help="Select edges with at least this score instead of a target.")
]
Signed = Annotated[bool, typer.Option("--signed/--absolute", help="Rank edges by score, or by its absolute value.")]
Greedy = Annotated[
    bool | None,
    typer.Option("--greedy/--no-greedy", help="Grow the circuit from the logits. [default: for ifr only]"),
]
MinAccuracy = Annotated[
    float,
    typer.Option(
        "--min-accuracy",
        min=0,
        max=1,
        help="Minimum share of pairs that the model answers correctly; 0 skips the check.",
    ),
]
AllowWeakGap = Annotated[
    bool, typer.Option("--allow-weak-gap", help="Accept pairs without a significant clean-corrupted difference.")
]
Stability = Annotated[
    int,
    typer.Option("--stability", min=0, max=10_000, help="Repeat discovery on N bootstrap resamples of the pairs."),
]
StabilitySeeds = Annotated[
    int,
    typer.Option("--stability-seeds", min=0, max=10_000, help="Repeat discovery on new prompts with N other seeds."),
]
Sites = Annotated[
    list[str] | None,
    typer.Option("--sites", metavar="NAME", help="Sites to sweep, separated by commas; may be repeated."),
]
NoSweep = Annotated[bool, typer.Option("--no-sweep", help="Skip the sweeps; no heatmaps.")]
RandomCircuits = Annotated[
    int, typer.Option("--random", min=0, max=10_000, help="Number of random circuits to compare with.")
]
Knockouts = Annotated[int, typer.Option("--knockouts", min=0, max=10_000, help="Number of random parts to remove.")]
Out = Annotated[str | None, typer.Option("--out", metavar="PATH", help="Output path.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing output.")]
RunCode = Annotated[bool, typer.Option("--run-code", help="Execute the task file in the run folder. Read it first.")]
# Of `evaluate`, where a run folder has its own settings.
RunsModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="bundled, a name of TransformerLens, or a folder. [default: the run's, or bundled]",
    ),
]
RunsAblation = Annotated[
    str | None,
    typer.Option(
        "--ablation",
        metavar="NAME",
        help=(
            f"Ablation of everything outside the circuit: {listed(names.ABLATIONS)}. [default: the run's, or corrupt]"
        ),
        autocompletion=completing(names.ABLATIONS),
    ),
]
RunsPairs = Annotated[
    int | None,
    typer.Option("-n", min=1, max=100_000, help="Pairs of prompts per split. [default: the run's, or 100]"),
]
RunsSeed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=2**32 - 1,
        help="Random seed of prompts and numbers. [default: the run's, or 0]",
    ),
]
RunsWeakGap = Annotated[
    bool | None,
    typer.Option(
        "--allow-weak-gap/--no-allow-weak-gap",
        help="Accept pairs without a significant clean-corrupted difference. [default: the run's, or no]",
    ),
]
RunsFoldLn = Annotated[
    bool | None,
    typer.Option(
        "--fold-ln/--no-fold-ln",
        help="Fold the norms into the next weights. [default: the run's, or no]",
    ),
]
RunsCenterWeights = Annotated[
    bool | None,
    typer.Option(
        "--center-weights/--no-center-weights",
        help="Center the writing weights and the unembedding. [default: the run's, or no]",
    ),
]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda or cuda:0.")]
Dtype = Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="float32, bfloat16, ...")]
Bos = Annotated[
    str | None,
    typer.Option(
        "--bos",
        metavar="NAME",
        help="Prepend a beginning-of-sequence token: auto (if the tokenizer does), always or never. [default: auto]",
    ),
]
FoldLn = Annotated[bool, typer.Option("--fold-ln", help="Fold the norms into the next weights.")]
CenterWeights = Annotated[
    bool, typer.Option("--center-weights", help="Center the writing weights and the unembedding.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Contrast = Annotated[str | None, typer.Option("--contrast", metavar="VALUE", help="Short for --option contrast=VALUE.")]
TaskOptions = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Task option; may be repeated.")
]


def load(task: str, given: list[str] | None, contrast: str | None) -> "Task":
    """The task with the options of `--option KEY=VALUE` and `--contrast VALUE`.

    Raises:
        ConfigError: An option is not of the form KEY=VALUE, or is given twice.
        CircuitLabError: What `load_task` finds wrong.
    """
    from circuitlab.data.registry import load_task

    return load_task(task, task_options=options_of(given, contrast))


def options_of(given: list[str] | None, contrast: str | None) -> dict[str, str]:
    """The task options of `--option KEY=VALUE` and `--contrast VALUE`.

    Raises:
        ConfigError: One is not of the form KEY=VALUE, or is given twice.
    """
    texts = [*(given or []), *([f"contrast={contrast}"] if contrast is not None else [])]
    return keyed("--option", texts, "task option", "contrast=gender")


def swept(sites: list[str] | None, *, no_sweep: bool) -> tuple[str, ...] | None:
    """What `--sites` and `--no-sweep` ask for: names, none, or None for the usual sites.

    Raises:
        ConfigError: Both are given, or a name is empty.
    """
    if sites is None:
        return () if no_sweep else None
    names = tuple(name.strip() for text in sites for name in text.split(","))
    if no_sweep or not all(names):
        what = f"--sites {','.join(sites)!r}" + (" and --no-sweep exclude each other" if no_sweep else " holds no name")
        raise ConfigError(f"{what}. Give --sites resid_pre,head_z or --no-sweep.")
    return names


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


def steps_of(method: str, steps: int | None) -> int:
    """The steps of integrated gradients; refused where the method takes none.

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
    return 5 if steps is None else steps


def check_force(force: bool, options: str, *files: str | None) -> None:
    """Refuse --force where no file is named that it could replace.

    Raises:
        ConfigError: It is given, and none of the files is.
    """
    if force and all(file is None for file in files):
        raise ConfigError(f"--force replaces what {options} names, and that is not given. Leave it out.")
