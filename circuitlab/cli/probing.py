"""Commands of `circuitlab neurons` that change an activation or a prompt, and measure the effect."""

from typing import Annotated, TypeVar

import typer

from circuitlab import neurons as library
from circuitlab.cli import display
from circuitlab.cli import options as opt
from circuitlab.cli.outputs import FigureOutput, TableOutput, TablePageOutput
from circuitlab.cli.progress import progress
from circuitlab.cli.sweep import numbers
from circuitlab.cli.texts import TextOptions, TextsOptions
from circuitlab.errors import ConfigError

Number = TypeVar("Number", int, float)
Layer = Annotated[int, typer.Option(min=0, help="The layer, counted from 0.")]
Neuron = Annotated[int, typer.Option(min=0, help="The neuron, counted from 0.")]


def sensitivity(
    layer: Layer,
    neuron: Neuron,
    text: TextOptions,
    scale: Annotated[
        float, typer.Option(help="Standard deviation of the noise, relative to the rms of the embeddings.")
    ] = 0.5,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="Samples of noise, the same for every token.")] = 32,
    *,
    model: opt.SeededOptions,
    output: TablePageOutput,
) -> None:
    """Add noise to one token at a time, and measure the change of a neuron's activation at the last token."""
    given = text.read()
    output.reserve()
    found = library.noise_sensitivity(
        model.load(), given, layer, neuron, scale=scale, n_samples=samples, seed=model["seed"]
    )
    output.write("html", found.coloured().save_html)
    output.write_table(found.to_frame)
    if output.as_json({"model": model.name, **found.to_record()}):
        return
    display.print_line(
        f"neuron L{layer}N{neuron} at the last token: {found.activation:.3f}; {samples} samples of noise"
    )
    headings = {"mean": "mean change", "standard_error": "standard error", "size": "rms change"}
    display.print_table(found.to_frame(), {"position": "position", "token": "token", **headings})
    output.print_files()


def simplify(
    layer: Layer,
    neuron: Neuron,
    text: TextOptions,
    keep: Annotated[int, typer.Option(min=1, help="Stop at N tokens.")] = 1,
    until: Annotated[
        float | None, typer.Option(help="Stop before the activation falls below this share of the first.")
    ] = None,
    *,
    model: opt.ModelOptions,
    output: TableOutput,
) -> None:
    """Delete tokens one by one, keeping the activation at the last token as high as possible."""
    given = text.read()
    output.reserve()
    found = library.simplify(model.load(), given, layer, neuron, keep=keep, until=until)
    output.write_table(found.to_frame)
    if output.as_json({"model": model.name, **found.to_record()}):
        return
    table = found.to_frame()
    table["text"] += [_star(step.retokenises) for step in found.steps]
    headings = {"n_tokens": "tokens", "activation": "activation", "deleted": "deleted", "text": "text"}
    display.print_table(table, headings)
    if any(step.retokenises is False for step in found.steps):
        display.print_line("* this text would be tokenized differently")
    output.print_files()


def ablate(
    texts: TextsOptions,
    layer: Annotated[int | None, typer.Option(help="The layer, for --neurons.")] = None,
    neurons: Annotated[
        str | None, typer.Option(metavar="LIST", help="Neurons of --layer, such as 3,17 or 4-7.")
    ] = None,
    at: Annotated[
        list[str] | None, typer.Option("--set", metavar="LAYER=LIST", help="Neurons of a layer; may be repeated.")
    ] = None,
    value: Annotated[str, typer.Option(help="zero, mean (over the texts), or a number.")] = "zero",
    *,
    model: opt.ModelOptions,
    output: TablePageOutput,
) -> None:
    """Ablate a set of neurons, and measure the change of every token's log-probability."""
    given = texts.read()
    chosen = _sets(layer, neurons, at)
    message = f"--value {value!r} is neither zero nor mean nor a number."
    held = value if value in ("zero", "mean") else _parsed(float, value, message)
    output.reserve()
    found = library.ablation_effect(model.load(), given, chosen, value=held)
    output.write("html", found.save_html)
    output.write_table(found.to_frame)
    if output.as_json({"model": model.name, **found.to_record()}):
        return
    display.print_line(f"mean change of the true token's log-probability: {found.mean_change:.4f} nats")
    headings = {"text": "text", "token": "token", "log_prob": "log-prob", "change": "change"}
    headings |= {"most_changed": "most changed token", "most_change": "its change"}
    display.print_table(found.to_frame(), headings)
    output.print_files()


def optimise(
    layer: Layer,
    neuron: Neuron,
    prompts: Annotated[int, typer.Option(min=1, max=10_000, help="Number of prompts.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 8,
    fixed: Annotated[
        list[str] | None,
        typer.Option(metavar="POSITION=WORD", help="A fixed word; 0 is the first, -1 the last token."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=1_000_000, help="Maximum number of steps.")] = 200,
    patience: Annotated[int, typer.Option(min=1, help="Stop after N steps without improvement.")] = 30,
    diversity: Annotated[float, typer.Option(help="Weight of the penalty on similar prompts.")] = 0.1,
    direction: Annotated[str, typer.Option(metavar="NAME", help="max or min.")] = "max",
    *,
    model: opt.SeededOptions,
    quiet: opt.Quiet = False,
    output: FigureOutput,
) -> None:
    """Search prompts that maximize a neuron at the last token by gradients, compared with random prompts."""
    words = _by_number("--fixed", fixed, "word at", "'0=The'")
    output.reserve()
    loaded = model.load()
    with progress(quiet=quiet) as report:
        found = library.optimise_prompts(
            loaded, layer, neuron, n_prompts=prompts, n_tokens=tokens, fixed=words, steps=steps, patience=patience,
            diversity=diversity, direction=direction, seed=model["seed"], progress=report,
        )  # fmt: skip
    output.write_table(lambda: found.trace, found.plot)
    if output.as_json({"model": model.name, **found.to_record()}):
        return
    rows = [
        {"value": one.value, "step": one.step, "prompt": one.tokens.text + _star(one.retokenises)}
        for one in found.prompts
    ]
    display.print_table(rows)
    if any(one.retokenises is False for one in found.prompts):
        display.print_line("* this prompt would be tokenized differently")
    display.print_line(f"best of {found.baseline.n:,} random prompts: {found.baseline.best[0]:.3f}")
    output.print_files()


def outliers(
    texts: TextsOptions,
    layer: Layer = 0,
    top: Annotated[int, typer.Option(min=1, help="Number of positions to list and to compare with random ones.")] = 10,
    *,
    model: opt.SeededOptions,
    output: FigureOutput,
) -> None:
    """Find positions where an MLP matters but no single neuron does, in texts or the included sentences."""
    output.reserve()
    given = texts.read() if texts.given else list(library.SENTENCES)
    found = library.outliers(model.load(), given, layer)
    ratios = library.norm_ratios(found, n=top, seed=model["seed"]) if found.has_norm else None
    output.write_table(found.to_frame, lambda: found.plot(top))
    if output.as_json({**found.to_record(top), "norm_ratios": None if ratios is None else ratios.to_record()}):
        return
    headings = {"token": "token", "position": "at", "ablation_loss": "loss", "outlier_score": "score"}
    display.print_table(found.top(top), {**headings, "combination": "combined", "text": "prompt"})
    if ratios is None:
        display.print_line("this model's MLPs have no inner layer norm to compare")
    else:
        one = ratios.difference
        display.print_line(
            f"outlier score after / before the inner norm: {one.first_mean:.3f} at these positions, "
            f"{one.second_mean:.3f} at random ones (p = {one.permutation_p:.3f})"
        )
    output.print_files()


def _star(retokenises: bool | None) -> str:
    return " *" if retokenises is False else ""


def _sets(layer: int | None, neurons: str | None, at: list[str] | None) -> dict[int, list[int]]:
    """Neurons by layer, from --layer with --neurons, or from --set."""
    chosen = _by_number("--set", at, "set of layer", "2=3,17")
    if (layer is None) != (neurons is None):
        raise ConfigError("--layer and --neurons go together, such as --layer 2 --neurons 3,17.")
    found = {number: numbers(value, "--set") or [] for number, value in chosen.items()}
    if layer is not None:
        found.setdefault(layer, []).extend(numbers(neurons, "--neurons") or [])
    if not found:
        raise ConfigError("no neurons are given. Name some, such as --layer 2 --neurons 3,17 or --set 2=3,17.")
    return found


def _by_number(option: str, texts: list[str] | None, what: str, example: str) -> dict[int, str]:
    """The values of a repeated option NUMBER=VALUE by number."""
    return {
        _parsed(int, key, f"{option}: {key!r} is not a whole number."): value
        for key, value in opt.keyed(option, texts, what, example).items()
    }


def _parsed(kind: type[Number], text: str, message: str) -> Number:
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(message) from error
