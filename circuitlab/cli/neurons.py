"""`circuitlab neurons ...`: what single neurons of a model do.

A command that needs a page of its own lives in a module beside this one and is registered at the end.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from circuitlab.cli import options as opt
from circuitlab.cli import probing
from circuitlab.cli.command import App
from circuitlab.cli.outputs import PAGE, TABLE_OR_PICTURE, Page, check_file, write_file, write_result
from circuitlab.cli.sweep import numbers
from circuitlab.cli.texts import TextArgument, TextFile, text_of

if TYPE_CHECKING:
    from circuitlab.neurons.weights import WeightTable

neurons_app = App(
    help="Single neurons: direct effects, activations, weights, ablation and prompt search.",
    no_args_is_help=True,
)
Layer = Annotated[int, typer.Option("--layer", min=0, help="Layer of the neurons, from 0.")]
Layers = Annotated[
    str | None, typer.Option("--layer", metavar="LIST", help="Layers, such as 0,3 or 4-7; all by default.")
]
Neurons = Annotated[str, typer.Option("--neurons", metavar="LIST", help="Neurons, such as 0,3 or 4-7.")]
Stage = Annotated[
    str,
    typer.Option("--stage", metavar="NAME", help="pre: before the activation function; mid: after it; post: after a "
                 "norm inside the MLP as well."),
]  # fmt: skip
Count = Annotated[int, typer.Option("-k", min=1, help="Number of rows.")]
Lowest = Annotated[bool, typer.Option("--lowest", help="List the most negative ones.")]
Bare = Annotated[bool, typer.Option("--bare", help="W_out W_U without the final norm's gain and centering.")]


@neurons_app.callback()
def neurons() -> None:
    """Single neurons: direct effects, activations, weights, ablation and prompt search."""


@neurons_app.command()
def importance(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Texts; effects are on the next token.")],
    answer: Annotated[
        list[str] | None,
        typer.Option("--answer", metavar="WORD", help="Token, one per prompt. [default: the predicted token]"),
    ] = None,
    layer: Layers = None,
    k: Count = 10,
    out: Annotated[
        str | None, typer.Option("--out", metavar="PATH", help="Write the table (.csv) or a heatmap (.png, .svg).")
    ] = None,
    *,
    model: opt.ModelOptions,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """List the neurons with the largest direct effect on the next token, as a share of all neurons' effect."""
    layers = numbers(layer, "--layer")
    opt.check_force(force, "--out", out)
    check_file(out, force=force, kinds=TABLE_OR_PICTURE)
    from circuitlab.cli import display
    from circuitlab.neurons.direct_effects import importance as run_importance

    loaded = model.load()
    found = run_importance(loaded, prompts, layers, answer or None)
    write_result(found.to_frame, out, lambda: found.plot(k))
    if json:
        display.print_json({**found.to_record(k), "out": out})
        return
    legend = zip(found.prompts, found.answers, found.totals.tolist(), strict=True)
    display.print_rows(
        ("", "prompt", "token", "all neurons"),
        [(str(i), repr(p), repr(a), f"{t:.3f} logits") for i, (p, a, t) in enumerate(legend, start=1)],
        right=("all neurons",),
    )
    display.print_line("")
    heads = [str(i) for i in range(1, len(found.prompts) + 1)]
    rows = [
        (f"{found.layers[i]}", f"{found.neurons[i]}", display.number(float(found.average[i])),
         *(display.number(share) for share in found.shares[i].tolist()))
        for i in found.top(k)
    ]  # fmt: skip
    columns = ("layer", "neuron", "average share", *heads)
    display.print_rows(columns, rows, right=columns)


@neurons_app.command("top-tokens")
def tokens(
    neurons: Neurons,
    layer: Layer,
    k: Count = 10,
    lowest: Lowest = False,
    bare: Bare = False,
    *,
    model: opt.ModelOptions,
    json: opt.Json = False,
) -> None:
    """List the tokens that neurons promote most, from the weights alone (W_out W_U)."""
    from circuitlab.neurons.weights import WeightTable, top_tokens

    chosen = numbers(neurons, "--neurons") or []
    loaded = model.load()
    tables = [top_tokens(loaded, layer, one, k, lowest=lowest, final_norm=not bare) for one in chosen]
    _show(WeightTable(entries=tuple(entry for table in tables for entry in table.entries)), model.name, json=json)


@neurons_app.command("top-neurons")
def of_token(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="One token, with its leading space.")],
    layer: Layers = None,
    k: Count = 10,
    lowest: Lowest = False,
    bare: Bare = False,
    *,
    model: opt.ModelOptions,
    json: opt.Json = False,
) -> None:
    """List the neurons that promote a token most, from the weights alone (W_out W_U)."""
    layers = numbers(layer, "--layer")
    from circuitlab.neurons.weights import top_neurons

    loaded = model.load()
    found = top_neurons(loaded, token, layers, k, lowest=lowest, final_norm=not bare)
    _show(found, model.name, json=json)


def _show(found: "WeightTable", model: str, *, json: bool) -> None:
    from circuitlab.cli import display

    if json:
        display.print_json({"model": model, "entries": found.to_record()})
        return
    rows = [(str(one.layer), str(one.neuron), repr(one.token), f"{one.value:.3f}") for one in found.entries]
    display.print_rows(("layer", "neuron", "token", "value"), rows, right=("layer", "neuron", "value"))


@neurons_app.command()
def activations(
    neurons: Neurons,
    layer: Layer,
    text: TextArgument = None,
    file: TextFile = None,
    stage: Stage = "post",
    html: Page = None,
    *,
    model: opt.ModelOptions,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Show neuron activations at every token of a text; --html writes an interactive page."""
    given, chosen = text_of(text, file), numbers(neurons, "--neurons") or []
    opt.check_force(force, "--html", html)
    check_file(html, force=force, option="--html", kinds=PAGE)
    from circuitlab.cli import display
    from circuitlab.neurons.chosen import stage_of
    from circuitlab.neurons.over_text import activations as run_activations

    stage_of(stage)
    loaded = model.load()
    found = run_activations(loaded, given, layer, chosen, stage)
    write_file(html, found.save_html)
    if json:
        told = {
            "model": model.name,
            "layer": layer,
            "stage": stage,
            "neurons": list(chosen),
            "tokens": list(found.tokens),
        }
        display.print_json({**told, "values": found.values.tolist(), "html": html})
        return
    highest = found.values.argmax(1)
    rows = [
        (name, f"{row.max():.3f}", str(at), repr(found.tokens[at]), f"{row.min():.3f}")
        for name, row, at in zip(found.series, found.values, highest.tolist(), strict=True)
    ]
    display.print_rows(
        ("neuron", "highest", "at", "token", "lowest"), rows, right=("neuron", "highest", "at", "lowest")
    )
    if html is not None:
        display.print_line(f"page: {html}")


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
        int | None, typer.Option("--max-tokens", min=1, help="Truncate texts at N tokens. [default: the context]")
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator", metavar="TEXT", help="Separator of texts in a text file. [default: \\n, a line break]"
        ),
    ] = None,
    field: Annotated[
        str | None, typer.Option("--field", metavar="NAME", help="Key of the text in .jsonl files. [default: text]")
    ] = None,
    html: Page = None,
    *,
    model: opt.ModelOptions,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    """Find the texts of a corpus with the highest activations; --html writes an interactive page."""
    chosen = numbers(neurons, "--neurons") or []
    opt.check_force(force, "--html", html)
    check_file(html, force=force, option="--html", kinds=PAGE)
    from circuitlab.cli import display
    from circuitlab.cli.progress import progress
    from circuitlab.neurons.chosen import stage_of
    from circuitlab.neurons.corpus import check_corpus
    from circuitlab.neurons.examples import top_examples

    stage_of(stage)
    between = None if separator is None else separator.replace("\\n", "\n").replace("\\t", "\t")
    check_corpus(corpus, separator=between, field=field)
    loaded = model.load()
    with progress(quiet=quiet) as report:
        found = top_examples(
            loaded, corpus, layer, chosen, k, stage=stage, max_tokens=max_tokens, progress=report,
            field="text" if field is None else field, separator="\n" if between is None else between,
        )  # fmt: skip
    write_file(html, found.save_html)
    if json:
        display.print_json({**found.to_record(), "html": html})
        return
    rows = [
        (str(one.neuron), str(one.rank + 1), f"{one.value:.3f}", repr(one.token), _around(one.tokens, one.position))
        for one in found.examples
    ]
    display.print_rows(("neuron", "", "value", "token", "context"), rows, right=("neuron", "", "value"))
    cut = f", {found.n_truncated:,} cut at {found.max_tokens:,} tokens" if found.n_truncated else ""
    display.print_line(f"{found.n_texts:,} texts, {found.n_tokens:,} tokens{cut}")
    if html is not None:
        display.print_line(f"page: {html}")


def _around(tokens: tuple[str, ...], position: int) -> str:
    """A few tokens up to the one that counts."""
    start = max(1, position - 8)
    before = "".join(tokens[start : position + 1]).replace("\n", "\\n")
    return f"{'...' if start > 1 else ''}{before}"


# Commands of other modules: neurons_app.command("name")(function)
for command in (probing.sensitivity, probing.simplify, probing.ablate, probing.optimise, probing.outliers):
    neurons_app.command(command.__name__)(command)
