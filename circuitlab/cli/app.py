"""The commands. Each body imports what it needs when it runs, calls one library function, and prints the result."""

from typing import Annotated

import typer

from circuitlab import names, plugins
from circuitlab.cli import options as opt
from circuitlab.cli.attribute import attribute
from circuitlab.cli.command import App
from circuitlab.cli.features import app as features_app
from circuitlab.cli.files import compare, convert
from circuitlab.cli.neurons import neurons_app
from circuitlab.cli.predict import predict
from circuitlab.cli.sweep import sweep
from circuitlab.errors import ConfigError

app = App(
    name="circuitlab",
    help="Find the circuit behind a behaviour of a transformer language model, evaluate it, and report it.",
    epilog="Start with: circuitlab discover gendered-pronouns",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
tasks_app = App(help="List the tasks that come with the library, or show one.", invoke_without_command=True)
app.add_typer(tasks_app, name="tasks")
app.add_typer(neurons_app, name="neurons")
app.add_typer(features_app, name="features")


def _version(wanted: bool) -> bool:
    if wanted:
        from circuitlab import __version__

        print(f"circuitlab {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def circuitlab(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the circuit behind a behaviour of a transformer language model, evaluate it, and report it."""


@tasks_app.callback()
def tasks(context: typer.Context, json: opt.Json = False) -> None:
    """List the tasks that come with the library, or show one."""
    if context.invoked_subcommand is not None:
        if json:
            raise ConfigError("--json must follow the command: circuitlab tasks show TASK --json.")
    else:
        from circuitlab.cli.catalogue import list_tasks

        list_tasks(json=json)


@tasks_app.command("show")
def tasks_show(
    task: opt.TaskOptions,
    json: opt.Json = False,
) -> None:
    """Show a task: an example, its options, version, fingerprint and sources."""
    from circuitlab.cli.catalogue import show_task

    show_task(task.load(), json=json)


@app.command()
def models(json: opt.Json = False) -> None:
    """Show the bundled model, and other values of --model."""
    from circuitlab.cli.catalogue import list_models

    list_models(json=json)


@app.command()
def methods(json: opt.Json = False) -> None:
    """List the methods that score edges, for --method."""
    from circuitlab.cli.catalogue import list_names

    list_names("methods", plugins.described("methods", names.METHODS), json=json)


@app.command()
def metrics(json: opt.Json = False) -> None:
    """List the metrics, for --metric."""
    from circuitlab.cli.catalogue import list_names

    list_names("metrics", plugins.described("metrics", names.METRICS), json=json)


@app.command()
def sites(json: opt.Json = False) -> None:
    """List the sites that can be patched, for --site."""
    from circuitlab.cli.catalogue import list_names

    list_names("sites", plugins.described("sites", names.SITES), json=json)


@app.command()
def discover(asked: opt.RunOptions, quiet: opt.Quiet = False, json: opt.Json = False) -> None:
    """Run the whole pipeline: sweep, score, select, evaluate on held-out prompts, draw, and write a run folder.

    With --ablation mean, mean-position, mean-span or noise, means and deviations are computed on -n further pairs of
    the task, which are never scored.
    """
    wanted, settings = asked.load(), asked.keywords()  # before the imports that take seconds
    from circuitlab.cli import results
    from circuitlab.cli.progress import progress
    from circuitlab.discovery.config import DiscoverConfig, default_folder
    from circuitlab.runs.pipeline import discover as run_discover

    opt.check_steps(asked["method"], settings.get("steps"))
    main = DiscoverConfig(task=wanted.name, **{name: asked[name] for name in ("model", "method", "seed")})
    settings = {"out": default_folder(main, wanted.label)} | settings
    with progress(quiet=quiet) as report:
        run = run_discover(wanted, **settings, progress=report)
    results.show_run(run, json=json)


app.command()(sweep)
app.command()(attribute)


@app.command()
def evaluate(
    circuit: Annotated[
        str, typer.Argument(metavar="RUN|CIRCUIT", help="A run folder, or a circuit file in any supported format.")
    ],
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="A task's name, or the path of a .py file. [default: the run's]"),
    ] = None,
    *,
    asked: opt.JudgedOptions,
    n_random: opt.RandomCircuits = 20,
    knockouts: opt.Knockouts = 10,
    minimality: Annotated[bool, typer.Option(help="Measure the effect of removing each edge.")] = True,
    tests: Annotated[bool, typer.Option("--tests", help="Also run the five hypothesis tests of Shi et al.")] = False,
    run_code: opt.RunCode = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    """Evaluate a circuit on held-out pairs, by default with the settings of its run.

    For a run folder, task, model, metric, ablation, -n, seed and options default to those of the run, and prompts on
    which the circuit was found are excluded. A circuit file does not record its task and needs --task.

    With --ablation mean, mean-position, mean-span or noise, means and deviations are computed on -n further pairs of
    the task, which are in neither split.
    """
    options = asked.options
    wanted = None if task is None else asked.load(task)  # before the imports that take seconds
    from circuitlab.cli import results
    from circuitlab.cli.progress import progress
    from circuitlab.evaluation.hypotheses.battery import test_circuit
    from circuitlab.runs.judging import judging

    judged = judging(circuit, task=wanted, options=None if wanted else options, run_code=run_code, **asked.keywords())
    with progress(quiet=quiet) as report:
        found = judged.evaluate(n_random=n_random, n_knockouts=knockouts, minimality=minimality, progress=report)
        tested = None
        if tests:
            tested = test_circuit(judged.model, judged.circuit, judged.held_out, progress=report, **judged.arguments)
    results.show_evaluation(judged.title, found, tested, n_unscored=judged.circuit.n_unscored, json=json)


app.command()(compare)
app.command()(convert)
app.command()(predict)


@app.command()
def reproduce(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder of discover.")],
    run_code: opt.RunCode = False,
    *,
    device: opt.DeviceOption,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    """Repeat a run from its manifest and compare the files one by one (exit 1 if one differs).

    A folder with a task file needs --run-code; built-in tasks do not.
    """
    from circuitlab.cli import results
    from circuitlab.cli.progress import progress
    from circuitlab.runs.reproduce import reproduce as run_again
    from circuitlab.runs.reproduce import task_file

    if run_code and (code := task_file(run)) is not None:
        typer.echo(f"circuitlab: running the task file {code.path} (SHA-256 {code.sha256})", err=True)
    with progress(quiet=quiet) as report:
        again = run_again(run, run_code=run_code, progress=report, **device.given)
    results.show_reproduction(again, json=json)
    if not again.ok:
        raise typer.Exit(1)


@app.command()
def cite(
    target: Annotated[str, typer.Argument(metavar="TASK|RUN", help="A task's name or file, or a run folder.")],
    json: opt.Json = False,
) -> None:
    """Print BibTeX for the library, a task or a run, with versions and fingerprints."""
    from circuitlab.cli import display
    from circuitlab.runs.cite import cite as bibtex

    text = bibtex(target)
    if json:
        display.print_json({"target": target, "bibtex": text})
    else:
        display.print_line(text)


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder of discover.")],
    json: opt.Json = False,
) -> None:
    """Write report.html of a run folder again, without a model."""
    from circuitlab.cli import display
    from circuitlab.report.page import write_report

    page = write_report(run)
    if json:
        display.print_json({"report": str(page)})
    else:
        display.print_line(str(page))
