"""The commands: each checks its options, calls one library function, and prints the result."""

from typing import Annotated

import typer

import circuitlab as library
from circuitlab import names, plugins
from circuitlab.cli import catalogue, display, results
from circuitlab.cli import options as opt
from circuitlab.cli.attribute import attribute
from circuitlab.cli.command import App
from circuitlab.cli.features import app as features_app
from circuitlab.cli.files import compare, convert, convert_model
from circuitlab.cli.mib import mib
from circuitlab.cli.neurons import neurons_app
from circuitlab.cli.outputs import Output
from circuitlab.cli.predict import predict
from circuitlab.cli.progress import progress
from circuitlab.cli.sweep import sweep
from circuitlab.errors import ConfigError
from circuitlab.graphs.selection import USUAL_TARGET, SelectionRule
from circuitlab.progress import notes_to

app = App(
    name="circuitlab",
    help="Find the circuit that implements a behaviour of a transformer language model, evaluate it, and report it.",
    epilog="Start with: circuitlab discover gendered-pronouns",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
tasks_app = App(help="List the tasks that come with the library, or show one.", invoke_without_command=True)
models_app = App(
    help="Show values of --model, or convert a file into a checkpoint folder.", invoke_without_command=True
)
app.add_typer(tasks_app, name="tasks")
app.add_typer(models_app, name="models")
app.add_typer(neurons_app, name="neurons")
app.add_typer(features_app, name="features")


# Settings in the name of a run folder.
_IN_NAME = ("model", "revision", "checkpoint_index", "method", "seed")


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"circuitlab {library.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def circuitlab(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the circuit that implements a behaviour of a transformer language model, evaluate it, and report it."""


@tasks_app.callback()
def tasks(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """List the tasks that come with the library, or show one."""
    if context.invoked_subcommand is None:
        catalogue.list_tasks(json=json)
    elif json:
        raise ConfigError("--json must follow the command: circuitlab tasks show TASK --json.")


@tasks_app.command("show")
def tasks_show(task: opt.TaskOptions, output: Output) -> None:
    """Show a task: an example, its options, version, fingerprint and sources."""
    catalogue.show_task(task.load(), json=output.json)


@tasks_app.command("check")
def tasks_check(asked: opt.PairOptions, models: opt.ModelsOptions, quiet: opt.Quiet = False, *, output: Output) -> None:
    """Measure whether models do a task: accuracy, clean-corrupted gap, and examples that their tokenizers drop."""
    catalogue.show_checks(asked, models, quiet=quiet, json=output.json)


@models_app.callback()
def models(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Show the bundled model and other values of --model, or convert a file into a checkpoint folder."""
    if context.invoked_subcommand is None:
        catalogue.list_models(json=json)
    elif json:
        raise ConfigError("--json must follow the command: circuitlab models convert FILE OUT --json.")


models_app.command("convert")(convert_model)


@app.command()
def methods(output: Output) -> None:
    """List the methods that score edges, for --method."""
    _list("methods", names.METHODS, output)


@app.command()
def metrics(output: Output) -> None:
    """List the metrics, for --metric."""
    _list("metrics", names.METRICS, output)


@app.command()
def sites(output: Output) -> None:
    """List the sites that can be patched, for --site."""
    _list("sites", names.SITES, output)


def _list(what: str, built_in: dict[str, str], output: Output) -> None:
    found, broken = plugins.described(what, built_in), plugins.refused(what, built_in)
    if output.as_json({what: found, **({"broken": broken} if broken else {})}):
        return
    display.print_facts(what, found.items())
    if broken:
        display.print_facts("cannot be used", broken.items())


@app.command()
def discover(asked: opt.RunOptions, quiet: opt.Quiet = False, *, output: Output) -> None:
    """Run the whole pipeline: sweep, score, select, evaluate on held-out prompts, draw, and write a run folder.

    With --ablation mean, mean-position, mean-span or noise, means and deviations are computed on -n further pairs of
    the task, which are never scored.
    """
    wanted, settings = asked.load(), asked.keywords()  # before the imports that take seconds
    from circuitlab.discovery.config import DiscoverConfig, default_folder
    from circuitlab.discovery.scoring import check_options, find_method

    method, rule = find_method(asked["method"]), SelectionRule.of(settings["selection"], settings.get("target"))
    check_options(method, steps=settings.get("steps"), **settings["method_options"])
    if rule.is_chosen(method.chooses_circuit(method.read(settings["method_options"]))):
        typer.echo(
            f"circuitlab: method {method.name} chooses its circuit itself, whatever its faithfulness; --target "
            f"{USUAL_TARGET} selects by faithfulness",
            err=True,
        )
    main = DiscoverConfig(task=wanted.name, **{name: asked[name] for name in _IN_NAME})
    settings = {"out": default_folder(main, wanted.label)} | settings
    with progress(quiet=quiet) as report, notes_to(display.print_note):
        run = library.discover(wanted, **settings, progress=report)
    results.show_run(run, json=output.json)


app.command()(sweep)
app.command()(attribute)


@app.command()
def evaluate(
    circuit: Annotated[
        str, typer.Argument(metavar="RUN|CIRCUIT", help="A run folder, or a circuit file in any supported format.")
    ],
    asked: opt.JudgedOptions,
    n_random: Annotated[
        int, typer.Option("--random", min=0, max=10_000, help="Number of random circuits to compare with.")
    ] = 20,
    knockouts: Annotated[int, typer.Option(min=0, max=10_000, help="Number of random parts to remove.")] = 10,
    minimality: Annotated[bool, typer.Option(help="Measure the effect of removing each edge.")] = True,
    tests: Annotated[bool, typer.Option("--tests", help="Also run the five hypothesis tests of Shi et al.")] = False,
    run_code: opt.RunCode = False,
    quiet: opt.Quiet = False,
    *,
    output: Output,
) -> None:
    """Evaluate a circuit on held-out pairs, by default with the settings of its run.

    For a run folder, task, model, metric, ablation, -n, seed and options default to those of the run, and prompts on
    which the circuit was found are excluded. A circuit file does not record its task and needs --task.

    With --ablation mean, mean-position, mean-span or noise, means and deviations are computed on -n further pairs of
    the task, which are in neither split.
    """
    settings = asked.keywords()  # before the imports that take seconds
    from circuitlab.runs.judging import judging

    judged = judging(circuit, run_code=run_code, **settings)
    display.print_around(judged.frame)
    with progress(quiet=quiet) as report:
        found = judged.evaluate(n_random=n_random, n_knockouts=knockouts, minimality=minimality, progress=report)
        tested = None
        if tests:
            tested = library.test_circuit(
                judged.model, judged.circuit, judged.held_out, progress=report, **judged.arguments
            )
    results.show_evaluation(judged.title, found, tested, n_unscored=judged.circuit.n_unscored, json=output.json)


app.command()(compare)
app.command()(convert)
app.command()(predict)
app.command()(mib)


@app.command()
def reproduce(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder of discover.")],
    run_code: opt.RunCode = False,
    *,
    device: opt.DeviceOption,
    quiet: opt.Quiet = False,
    output: Output,
) -> None:
    """Repeat a run from its manifest and compare the files one by one (exit 1 if one differs).

    A folder with a task file needs --run-code; built-in tasks do not.
    """
    from circuitlab.runs.reproduce import task_file

    if run_code and (code := task_file(run)) is not None:
        typer.echo(f"circuitlab: running the task file {code.path} (SHA-256 {code.sha256})", err=True)
    with progress(quiet=quiet) as report:
        again = library.reproduce(run, run_code=run_code, progress=report, **device.given)
    results.show_reproduction(again, json=output.json)
    if not again.ok:
        raise typer.Exit(1)


@app.command()
def cite(
    target: Annotated[str, typer.Argument(metavar="TASK|RUN", help="A task's name or file, or a run folder.")],
    output: Output,
) -> None:
    """Print BibTeX for the library, a task or a run, with versions and fingerprints."""
    text = library.cite(target)
    if not output.as_json({"target": target, "bibtex": text}):
        display.print_line(text)


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder of discover.")], output: Output
) -> None:
    """Write report.html of a run folder again, without a model."""
    page = str(library.write_report(run))
    if not output.as_json({"report": page}):
        display.print_line(page)
