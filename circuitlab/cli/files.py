"""Commands about files: `compare` two circuits, `convert` one into another format, `models convert` a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

import circuitlab
from circuitlab.cli import display, results
from circuitlab.cli import options as opt
from circuitlab.cli.outputs import Forced, Output, PictureOutput, save_plot
from circuitlab.errors import ConfigError

if TYPE_CHECKING:
    from circuitlab.graphs.circuit import Circuit
    from circuitlab.parts import ModelSpec

_READ = "A circuit file of any format that is read, or a run folder."
OfModel = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Model to assume for files that do not name one.")
]


class ConvertOutput(Forced):
    """The converted file."""

    kinds: ClassVar = {"to": None}
    to: Annotated[str, typer.Argument(help="A .json, .pt, .graphml, .node-link.json, .dot or .txt file.")]


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=_READ)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another circuit of the same model.")],
    model: OfModel = None,
    run_code: opt.RunCode = False,
    *,
    output: PictureOutput,
) -> None:
    """Compare two circuits of one model: shared edges, Jaccard indices, rank correlation of scores.

    `compare RUN published` compares the run's heads and MLPs with those that a paper lists for its task and model.
    """
    name, _, of_model = second.partition(":")
    if name == "published":
        if given := [flag for flag, value in (("--out", output.out), ("--model", model)) if value is not None]:
            raise ConfigError(f"{given[0]} has no meaning for a comparison with published nodes. Leave it out.")
        results.show_overlap(circuitlab.compare_published(first, of_model or None, run_code=run_code), json=output.json)
        return
    output.reserve()
    found = circuitlab.compare(*_both(first, second, model), names=_names(first, second))
    output.write("out", lambda path: save_plot(found.plot(title=f"{found.names[0]} and {found.names[1]}"), path))
    results.show_comparison(found, drawing=output.out, json=output.json)


def convert(
    source: Annotated[str, typer.Argument(metavar="FROM", help=_READ)],
    output: ConvertOutput,
    model: OfModel = None,
    prune: Annotated[bool, typer.Option("--prune", help="Keep only edges on a path from input to logits.")] = False,
) -> None:
    """Write a circuit in another format; information that the format does not support is dropped."""
    output.reserve()
    from circuitlab.runs.reader import named_circuit, read_circuit

    circuit = named_circuit(source)  # rejects a damaged file before a model is loaded
    if circuit is None or model is not None:
        circuit = read_circuit(source, _spec(model))
    circuit = circuit.pruned() if prune else circuit
    output.write("to", circuit.save)
    target, n, n_unscored = output.to, circuit.n_edges, circuit.n_unscored
    if output.json:
        display.print_json({"source": source, "target": target, "n_edges": n, "n_unscored": n_unscored})
    else:
        display.print_line(f"{target}: {n:,} of {circuit.layout.n_edges:,} edges")
        display.print_unscored(target, n_unscored)


def convert_model(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A GGUF file, or the folder of a LoRA adapter.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The checkpoint folder to write.")],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="NAME", help="Base model of an adapter. [default: the one that it names]"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a folder that was written by a conversion.")
    ] = False,
    *,
    output: Output,
) -> None:
    """Convert a GGUF file into a checkpoint folder in float32, or merge a LoRA adapter into its base model."""
    from circuitlab.models.adapter import merge_adapter
    from circuitlab.models.gguf import convert_gguf, is_gguf

    if is_gguf(source):
        if base is not None:
            raise ConfigError("--base is the base model of an adapter, and FROM is a GGUF file. Leave it out.")
        found = convert_gguf(source, out, force=force)
    else:
        found = merge_adapter(source, out, base=base, force=force)
    if not output.as_json(found.to_record()):
        display.print_line(f"{out}: {found.model_type}, {found.n_parameters:,} parameters, float32, from {source}")


def _both(first: str, second: str, model: str | None) -> "list[Circuit]":
    """Both circuits; a file that does not name its model takes the other's."""
    from circuitlab.runs.reader import named_circuit, read_circuit

    found = {path: named_circuit(path) for path in (first, second)}
    given = _spec(model)
    spec = given or next((circuit.spec for circuit in found.values() if circuit is not None), None)
    return [
        circuit if circuit is not None and given is None else read_circuit(path, spec)
        for path, circuit in ((path, found[path]) for path in (first, second))
    ]


def _spec(model: str | None) -> "ModelSpec | None":
    from circuitlab.models.load import load_model

    return None if model is None else load_model(model).spec


def _names(first: str, second: str) -> tuple[str, str]:
    """Names of two files: their own, or their paths where these are the same."""
    short = [Path(path).expanduser().resolve() for path in (first, second)]
    names = [path.name if path.is_dir() else path.name.split(".")[0] for path in short]
    names = [path.parent.name if name == "circuit" else name for name, path in zip(names, short, strict=True)]
    return (names[0], names[1]) if names[0] != names[1] else (first, second)
