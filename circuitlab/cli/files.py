"""Commands about circuit files: `compare` two of them, `convert` one into another format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuitlab.cli import options as opt
from circuitlab.cli.outputs import check_file, write_file
from circuitlab.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from circuitlab.graphs.circuit import Circuit
    from circuitlab.parts import ModelSpec

_READ = "A circuit file of any format that is read, or a run folder."
OfModel = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Model to assume for files that do not name one."),
]


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=_READ)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another circuit of the same model.")],
    model: OfModel = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="PATH", help="Draw both circuits in one picture (.png, .svg).")
    ] = None,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Compare two circuits of one model: shared edges, Jaccard indices, rank correlation of scores."""
    opt.check_force(force, "--out", out)
    if out is not None:
        if Path(out).suffix not in (".png", ".svg"):
            raise ConfigError(f"--out {out!r} is not a picture; drawings are written as .png or .svg.")
        check_file(out, force=force)
    from circuitlab.cli import results
    from circuitlab.graphs.compare import compare as set_side_by_side

    found = set_side_by_side(*_both(first, second, model), names=_names(first, second))
    if out is not None:
        from circuitlab.viz import save_figure

        figure = found.plot(title=f"{found.names[0]} and {found.names[1]}")
        write_file(out, lambda path: save_figure(figure, path))
    results.show_comparison(found, drawing=out, json=json)


def convert(
    source: Annotated[str, typer.Argument(metavar="FROM", help=_READ)],
    target: Annotated[
        str, typer.Argument(metavar="TO", help="A .json, .pt, .graphml, .node-link.json, .dot or .txt file.")
    ],
    model: OfModel = None,
    prune: Annotated[bool, typer.Option("--prune", help="Keep only edges on a path from input to logits.")] = False,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Write a circuit in another format; information that the format does not support is dropped."""
    check_file(target, force=force, option="TO")
    from circuitlab.cli import display
    from circuitlab.runs.reader import read_circuit

    _needs_spec(source)  # refuses a damaged file before a model is loaded
    circuit = read_circuit(source, _spec(model))
    circuit = circuit.pruned() if prune else circuit
    write_file(target, circuit.save)
    if json:
        display.print_json(
            {"source": source, "target": target, "n_edges": circuit.n_edges, "n_unscored": circuit.n_unscored}
        )
    else:
        display.print_line(f"{target}: {circuit.n_edges:,} of {circuit.layout.n_edges:,} edges")
        display.print_unscored(target, circuit.n_unscored)


def _both(first: str, second: str, model: str | None) -> "list[Circuit]":
    """Both circuits; a file that does not say of which model it is takes the other's."""
    from circuitlab.runs.reader import read_circuit

    needs = {path: _needs_spec(path) for path in (first, second)}
    spec = _spec(model)
    if spec is None:
        known = next((read_circuit(path).spec for path in needs if not needs[path]), None)
        return [read_circuit(path, known if needs[path] else None) for path in (first, second)]
    return [read_circuit(path, spec) for path in (first, second)]


def _needs_spec(path: str) -> bool:
    """Whether a circuit file does not say of which model it is; one that is damaged is refused."""
    from circuitlab.runs.reader import read_circuit

    try:
        read_circuit(path)
    except FormatError as error:
        if "does not say of which model" not in str(error):
            raise
        return True
    return False


def _spec(model: str | None) -> "ModelSpec | None":
    if model is None:
        return None
    from circuitlab.models.load import load_model

    return load_model(model).spec


def _names(first: str, second: str) -> tuple[str, str]:
    """What two files are called: by their own names, or by their paths where these are the same."""
    short = [Path(path).expanduser().resolve() for path in (first, second)]
    names = [path.name if path.is_dir() else path.name.split(".")[0] for path in short]
    names = [path.parent.name if name == "circuit" else name for name, path in zip(names, short, strict=True)]
    return (names[0], names[1]) if names[0] != names[1] else (first, second)
