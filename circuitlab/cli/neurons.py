"""`circuitlab neurons ...`: direct effects, activations and weights of single neurons."""

from typing import TYPE_CHECKING, Annotated

import typer

from circuitlab import neurons as library
from circuitlab.cli import display, probing
from circuitlab.cli import options as opt
from circuitlab.cli.command import App
from circuitlab.cli.outputs import FigureOutput, Output, PageOutput
from circuitlab.cli.progress import progress
from circuitlab.cli.sweep import numbers
from circuitlab.cli.texts import TextOptions

if TYPE_CHECKING:
    from circuitlab.neurons.direct_effects import WeightTable

neurons_app = App(
    help="Single neurons: direct effects, activations, weights, ablation and prompt search.",
    no_args_is_help=True,
)
Layer = Annotated[int, typer.Option(min=0, help="Layer of the neurons, from 0.")]
Layers = Annotated[str | None, typer.Option(metavar="LIST", help="Layers, such as 0,3 or 4-7; all by default.")]
Neurons = Annotated[str, typer.Option(metavar="LIST", help="Neurons, such as 0,3 or 4-7.")]
Stage = Annotated[
    str,
    typer.Option(metavar="NAME", help="pre: before the activation function; mid: after it; post: after a "
                 "norm inside the MLP as well."),
]  # fmt: skip


class WeightOptions(opt.Options):
    """The rows of a table of weights."""

    k: Annotated[int, typer.Option("-k", min=1, help="Number of rows.")] = 10
    lowest: Annotated[bool, typer.Option("--lowest", help="List the most negative ones.")] = False
    bare: Annotated[bool, typer.Option("--bare", help="W_out W_U without the final norm's gain and centering.")] = False


@neurons_app.callback()
def neurons() -> None:
    """Single neurons: direct effects, activations, weights, ablation and prompt search."""


@neurons_app.command()
def importance(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Texts; effects are on the next token.")],
    answer: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help="Token, one per prompt. [default: the predicted token]"),
    ] = None,
    layer: Layers = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of rows.")] = 10,
    *,
    model: opt.ModelOptions,
    output: FigureOutput,
) -> None:
    """List the neurons with the largest direct effect on the next token, as a share of all neurons' effect."""
    layers = numbers(layer, "--layer")
    output.reserve()
    found = library.importance(model.load(), prompts, layers, answer or None)
    output.write_table(found.to_frame, lambda: found.plot(k))
    if output.as_json(found.to_record(k)):
        return
    legend = zip(found.prompts, found.answers, found.totals.tolist(), strict=True)
    display.print_rows(
        ("", "prompt", "token", "all neurons"),
        [(str(i), repr(p), repr(a), f"{t:.3f} logits") for i, (p, a, t) in enumerate(legend, start=1)],
        right=("all neurons",),
    )
    display.print_line("")
    table = found.to_frame(k)
    average = table.columns[-1]
    headings = dict(zip(found.columns, map(str, range(1, len(found.columns) + 1)), strict=True))
    display.print_table(table, {"layer": "layer", "neuron": "neuron", average: "average share", **headings})
    output.print_files()


@neurons_app.command("top-tokens")
def tokens(neurons: Neurons, layer: Layer, rows: WeightOptions, *, model: opt.ModelOptions, output: Output) -> None:
    """List the tokens that neurons promote most, from the weights alone (W_out W_U)."""
    chosen = numbers(neurons, "--neurons") or []
    loaded = model.load()
    for_each = [library.top_tokens(loaded, layer, one, rows.k, lowest=rows.lowest, final_norm=not rows.bare)
                for one in chosen]  # fmt: skip
    _show(for_each, model.name, output)


@neurons_app.command("top-neurons")
def of_token(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="One token, with its leading space.")],
    rows: WeightOptions,
    layer: Layers = None,
    *,
    model: opt.ModelOptions,
    output: Output,
) -> None:
    """List the neurons that promote a token most, from the weights alone (W_out W_U)."""
    layers = numbers(layer, "--layer")
    found = library.top_neurons(model.load(), token, layers, rows.k, lowest=rows.lowest, final_norm=not rows.bare)
    _show([found], model.name, output)


def _show(found: "list[WeightTable]", model: str, output: Output) -> None:
    entries = [entry for table in found for entry in table.to_record()]
    if not output.as_json({"model": model, "entries": entries}):
        display.print_table(entries, ("layer", "neuron", "token", "value"))


@neurons_app.command()
def activations(
    neurons: Neurons,
    layer: Layer,
    text: TextOptions,
    stage: Stage = "post",
    *,
    model: opt.ModelOptions,
    output: PageOutput,
) -> None:
    """Show neuron activations at every token of a text; --html writes an interactive page."""
    given, chosen = text.read(), numbers(neurons, "--neurons") or []
    output.reserve()
    from circuitlab.neurons.chosen import stage_of

    stage_of(stage)
    found = library.activations(model.load(), given, layer, chosen, stage)
    output.write("html", found.save_html)
    record = {"model": model.name, "layer": layer, "stage": stage, "neurons": chosen, "tokens": list(found.tokens)}
    if output.as_json({**record, "values": found.values.tolist()}):
        return
    highest = found.values.argmax(1).tolist()
    rows = [
        {"neuron": name, "highest": row.max(), "at": at, "token": found.tokens[at], "lowest": row.min()}
        for name, row, at in zip(found.series, found.values, highest, strict=True)
    ]
    display.print_table(rows)
    output.print_files()


@neurons_app.command()
def examples(
    corpus: Annotated[
        str, typer.Argument(metavar="CORPUS", help="A text file, a .jsonl file, or a folder of .txt and .jsonl files.")
    ],
    neurons: Neurons,
    layer: Layer,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of texts per neuron.")] = 10,
    stage: Stage = "post",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Truncate texts at N tokens. [default: the context]")
    ] = None,
    separator: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Separator of texts in a text file. [default: \\n, a line break]")
    ] = None,
    field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Key of the text in .jsonl files. [default: text]")
    ] = None,
    *,
    model: opt.ModelOptions,
    quiet: opt.Quiet = False,
    output: PageOutput,
) -> None:
    """Find the texts of a corpus with the highest activations; --html writes an interactive page."""
    chosen = numbers(neurons, "--neurons") or []
    output.reserve()
    from circuitlab.neurons.chosen import stage_of
    from circuitlab.neurons.corpus import check_corpus

    stage_of(stage)
    between = None if separator is None else separator.replace("\\n", "\n").replace("\\t", "\t")
    check_corpus(corpus, separator=between, field=field)
    loaded = model.load()
    with progress(quiet=quiet) as report:
        found = library.top_examples(
            loaded, corpus, layer, chosen, k, stage=stage, max_tokens=max_tokens, progress=report,
            field="text" if field is None else field, separator="\n" if between is None else between,
        )  # fmt: skip
    output.write("html", found.save_html)
    if output.as_json(found.to_record()):
        return
    rows = [
        {"neuron": one.neuron, "": one.rank + 1, "value": one.value, "token": one.token,
         "context": _context(one.tokens, one.position)}
        for one in found.examples
    ]  # fmt: skip
    display.print_table(rows)
    cut = f", {found.n_truncated:,} cut at {found.max_tokens:,} tokens" if found.n_truncated else ""
    display.print_line(f"{found.n_texts:,} texts, {found.n_tokens:,} tokens{cut}")
    output.print_files()


def _context(tokens: tuple[str, ...], position: int) -> str:
    """The tokens up to a position, the last nine of them."""
    start = max(1, position - 8)
    before = "".join(tokens[start : position + 1]).replace("\n", "\\n")
    return f"{'...' if start > 1 else ''}{before}"


# Commands of other modules: neurons_app.command("name")(function)
for command in (probing.sensitivity, probing.simplify, probing.ablate, probing.optimise, probing.outliers):
    neurons_app.command(command.__name__)(command)
