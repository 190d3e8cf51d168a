"""Commands of `circuitlab neurons` that change something, and see what a neuron or the prediction does."""

from typing import Annotated

import typer

from circuitlab.cli import options as opt
from circuitlab.cli.outputs import (
    PAGE,
    TABLE,
    TABLE_OR_PICTURE,
    Page,
    check_file,
    places,
    tell,
    write_file,
    write_result,
)
from circuitlab.cli.sweep import numbers
from circuitlab.cli.texts import Lines, TextArgument, TextFile, Texts, text_of, texts_of
from circuitlab.errors import ConfigError

Layer = Annotated[int, typer.Option("--layer", min=0, help="The layer, counted from 0.")]
Neuron = Annotated[int, typer.Option("--neuron", min=0, help="The neuron, counted from 0.")]
Table = Annotated[str | None, typer.Option("--out", metavar="PATH", help="Write the table (.csv).")]


def sensitivity(
    layer: Layer,
    neuron: Neuron,
    text: TextArgument = None,
    scale: Annotated[
        float, typer.Option("--scale", help="Standard deviation of the noise, relative to the rms of the embeddings.")
    ] = 0.5,
    samples: Annotated[
        int, typer.Option("--samples", min=1, max=10_000, help="Samples of noise, the same for every token.")
    ] = 32,
    file: TextFile = None,
    html: Page = None,
    out: Table = None,
    *,
    model: opt.SeededOptions,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Add noise to one token at a time, and measure the change of a neuron's activation at the last token."""
    given = text_of(text, file)
    opt.check_force(force, "--out or --html", out, html)
    check_file(html, force=force, option="--html", kinds=PAGE)
    check_file(out, force=force, kinds=TABLE)
    from circuitlab.cli import display
    from circuitlab.neurons import noise_sensitivity

    loaded = model.load()
    found = noise_sensitivity(loaded, given, layer, neuron, scale=scale, n_samples=samples, seed=model["seed"])
    write_file(html, found.coloured().save_html)
    write_result(found.to_frame, out)
    if json:
        display.print_json({"model": model.name, **found.to_record(), **places(out, html)})
        return
    display.print_line(
        f"neuron L{layer}N{neuron} at the last token: {found.activation:.3f}; {samples} samples of noise"
    )
    rows = [
        (str(row["position"]), repr(row["token"]), *(f"{row[key]:.3f}" for key in ("mean", "standard_error", "size")))
        for row in found.to_frame().to_dict("records")
    ]
    columns = ("position", "token", "mean change", "standard error", "rms change")
    display.print_rows(columns, rows, right=("position", *columns[2:]))
    tell(out, html)


def simplify(
    layer: Layer,
    neuron: Neuron,
    text: TextArgument = None,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Stop at N tokens.")] = 1,
    until: Annotated[
        float | None,
        typer.Option("--until", help="Stop before the activation falls below this share of the first."),
    ] = None,
    file: TextFile = None,
    out: Table = None,
    *,
    model: opt.ModelOptions,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Delete tokens one by one, keeping the activation at the last token as high as possible."""
    given = text_of(text, file)
    opt.check_force(force, "--out", out)
    check_file(out, force=force, kinds=TABLE)
    from circuitlab.cli import display
    from circuitlab.neurons import simplify as run_simplify

    loaded = model.load()
    found = run_simplify(loaded, given, layer, neuron, keep=keep, until=until)
    write_result(found.to_frame, out)
    if json:
        display.print_json({"model": model.name, **found.to_record(), **places(out)})
        return
    rows = [
        (
            str(len(step.tokens) - step.tokens.n_special),
            f"{step.activation:.3f}",
            "" if step.deleted is None else repr(step.deleted),
            step.tokens.text + ("" if step.retokenises is not False else " *"),
        )
        for step in found.steps
    ]
    display.print_rows(("tokens", "activation", "deleted", "text"), rows, right=("tokens", "activation"))
    if any(step.retokenises is False for step in found.steps):
        display.print_line("* this text would be tokenized differently")
    tell(out)


def ablate(
    texts: Texts = None,
    layer: Annotated[int | None, typer.Option("--layer", help="The layer, for --neurons.")] = None,
    neurons: Annotated[
        str | None, typer.Option("--neurons", metavar="LIST", help="Neurons of --layer, such as 3,17 or 4-7.")
    ] = None,
    at: Annotated[
        list[str] | None, typer.Option("--set", metavar="LAYER=LIST", help="Neurons of a layer; may be repeated.")
    ] = None,
    value: Annotated[str, typer.Option("--value", help="zero, mean (over the texts), or a number.")] = "zero",
    file: Lines = None,
    html: Page = None,
    out: Table = None,
    *,
    model: opt.ModelOptions,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Ablate a set of neurons, and measure the change of every token's log-probability."""
    given = texts_of(texts, file)
    chosen = _sets(layer, neurons, at)
    held = value if value in ("zero", "mean") else _number(value)
    opt.check_force(force, "--out or --html", out, html)
    check_file(html, force=force, option="--html", kinds=PAGE)
    check_file(out, force=force, kinds=TABLE)
    from circuitlab.cli import display
    from circuitlab.neurons import ablation_effect

    loaded = model.load()
    found = ablation_effect(loaded, given, chosen, value=held)
    write_file(html, found.save_html)
    write_result(found.to_frame, out)
    if json:
        display.print_json({"model": model.name, **found.to_record(), **places(out, html)})
        return
    display.print_line(f"mean change of the true token's log-probability: {found.mean_change:.4f} nats")
    rows = [
        (
            str(row["text"]), repr(row["token"]), display.number(row["log_prob"]), display.number(row["change"]),
            repr(row["most_changed"]), display.number(row["most_change"]),
        )
        for row in found.to_frame().to_dict("records")
    ]  # fmt: skip
    columns = ("text", "token", "log-prob", "change", "most changed token", "its change")
    display.print_rows(columns, rows, right=("log-prob", "change", "its change"))
    tell(out, html)


def optimise(
    layer: Layer,
    neuron: Neuron,
    prompts: Annotated[int, typer.Option("--prompts", min=1, max=10_000, help="Number of prompts.")] = 8,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of a prompt.")] = 8,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--fixed", metavar="POSITION=WORD", help="A fixed word; 0 is the first, -1 the last token."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1_000_000, help="Maximum number of steps.")] = 200,
    patience: Annotated[int, typer.Option("--patience", min=1, help="Stop after N steps without improvement.")] = 30,
    diversity: Annotated[float, typer.Option("--diversity", help="Weight of the penalty on similar prompts.")] = 0.1,
    direction: Annotated[str, typer.Option("--direction", metavar="NAME", help="max or min.")] = "max",
    out: Annotated[
        str | None, typer.Option("--out", metavar="PATH", help="Write the trace (.csv) or a figure (.png, .svg).")
    ] = None,
    *,
    model: opt.SeededOptions,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    """Search prompts that maximize a neuron at the last token by gradients, compared with random prompts."""
    words = _fixed(fixed)
    opt.check_force(force, "--out", out)
    check_file(out, force=force, kinds=TABLE_OR_PICTURE)
    from circuitlab.cli import display
    from circuitlab.cli.progress import progress
    from circuitlab.neurons import optimise_prompts

    loaded = model.load()
    with progress(quiet=quiet) as report:
        found = optimise_prompts(
            loaded, layer, neuron, n_prompts=prompts, n_tokens=tokens, fixed=words, steps=steps, patience=patience,
            diversity=diversity, direction=direction, seed=model["seed"], progress=report,
        )  # fmt: skip
    write_result(lambda: found.trace, out, found.plot)
    if json:
        display.print_json({"model": model.name, **found.to_record(), **places(out)})
        return
    rows = [(f"{one.value:.3f}", str(one.step), one.tokens.text + _star(one.retokenises)) for one in found.prompts]
    display.print_rows(("value", "step", "prompt"), rows, right=("value", "step"))
    if any(one.retokenises is False for one in found.prompts):
        display.print_line("* this prompt would be tokenized differently")
    display.print_line(f"best of {found.baseline.n:,} random prompts: {found.baseline.best[0]:.3f}")
    tell(out)


def outliers(
    texts: Texts = None,
    layer: Layer = 0,
    top: Annotated[
        int, typer.Option("--top", min=1, help="Number of positions to list and to compare with random ones.")
    ] = 10,
    file: Lines = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="PATH", help="Write all positions (.csv) or a figure (.png, .svg).")
    ] = None,
    *,
    model: opt.SeededOptions,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Find positions where an MLP matters but no single neuron does, in texts or the included sentences."""
    opt.check_force(force, "--out", out)
    check_file(out, force=force, kinds=TABLE_OR_PICTURE)
    from circuitlab.cli import display
    from circuitlab.neurons import SENTENCES, norm_ratios
    from circuitlab.neurons import outliers as run_outliers

    given = list(SENTENCES) if texts is None and file is None else texts_of(texts, file)
    loaded = model.load()
    found = run_outliers(loaded, given, layer)
    ratios = norm_ratios(found, n=top, seed=model["seed"]) if found.has_norm else None
    write_result(found.to_frame, out, lambda: found.plot(top))
    if json:
        more = {"norm_ratios": None if ratios is None else ratios.to_record()}
        display.print_json({**found.to_record(top), **more, **places(out)})
        return
    rows = [
        (repr(row["token"]), str(row["position"]), *(f"{row[key]:.3f}" for key in _OUTLIER_KEYS), row["text"])
        for row in found.top(top).to_dict("records")
    ]
    columns = ("token", "at", "loss", "score", "combined", "prompt")
    display.print_rows(columns, rows, right=columns[1:5])
    if ratios is None:
        display.print_line("this model's MLPs have no inner layer norm to compare")
    else:
        one = ratios.difference
        display.print_line(
            f"outlier score after / before the inner norm: {one.first_mean:.3f} at these positions, "
            f"{one.second_mean:.3f} at random ones (p = {one.permutation_p:.3f})"
        )
    tell(out)


_OUTLIER_KEYS = ("ablation_loss", "outlier_score", "combination")


def _star(retokenises: bool | None) -> str:
    return " *" if retokenises is False else ""


def _sets(layer: int | None, neurons: str | None, at: list[str] | None) -> dict[int, list[int]]:
    """Neurons by layer, from --layer with --neurons, or from --set."""
    chosen = opt.keyed("--set", at, "set of layer", "2=3,17")
    if (layer is None) != (neurons is None):
        raise ConfigError("--layer and --neurons go together, such as --layer 2 --neurons 3,17.")
    found = {_whole(key, "--set"): numbers(value, "--set") or [] for key, value in chosen.items()}
    if layer is not None:
        found.setdefault(layer, []).extend(numbers(neurons, "--neurons") or [])
    if not found:
        raise ConfigError("no neurons are given. Name some, such as --layer 2 --neurons 3,17 or --set 2=3,17.")
    return found


def _fixed(fixed: list[str] | None) -> dict[int, str]:
    return {_whole(k, "--fixed"): word for k, word in opt.keyed("--fixed", fixed, "word at", "'0=The'").items()}


def _whole(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r} is not a whole number.") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--value {text!r} is neither zero nor mean nor a number.") from error
