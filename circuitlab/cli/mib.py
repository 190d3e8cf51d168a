"""`circuitlab mib`: a cell of MIB's table, and the folder of its submission."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

import circuitlab
from circuitlab.cli import display
from circuitlab.cli import options as opt
from circuitlab.cli.display import number
from circuitlab.cli.outputs import Output
from circuitlab.cli.progress import progress
from circuitlab.settings import MODEL_SETTINGS, SETTINGS

if TYPE_CHECKING:
    from circuitlab.runs.mib import MibCell


class MibOptions(opt.ModelOptions):
    """A model, a method and the size of the draw."""

    settings = (
        *opt.ModelOptions.settings,
        *(
            SETTINGS[name]
            for name in (
                "method", "steps", "method_options", "seed", "allow_weak_gap", "data_revision", "force",
            )
        ),
    )  # fmt: skip

    def keywords(self) -> dict[str, Any]:
        """Keywords of `mib` other than the model.

        Returns:
            The keywords by name.

        Raises:
            ConfigError: A method option is not of the form KEY=VALUE.
        """
        names = ("method", "steps", "seed", "allow_weak_gap", "force")
        found = {name: self.given[name] for name in names if name in self.given}
        texts = self.given.get("method_options")
        found["method_options"] = opt.keyed("--method-option", texts, "method option", "points=published-code")
        found["revision"] = self.given.get("data_revision")
        found["loading"] = {name: self.given[name] for name in MODEL_SETTINGS if name in self.given and name != "model"}
        return found


def mib(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", help="ioi, mcqa, arithmetic-addition, arithmetic-subtraction, arc-easy, arc-challenge."
        ),
    ],
    asked: MibOptions,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="A copy of the data set, or its name on the hub. [default: MIB's]"),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="Folder of the submission; TASK_MODEL is written in it.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="Training pairs. [default: 1000 of ioi, all of mcqa, 100]")
    ] = None,
    evaluated: Annotated[int | None, typer.Option(min=1, metavar="N", help="Pairs to evaluate. [default: all]")] = None,
    data_split: Annotated[
        str, typer.Option(metavar="NAME", help="Split to evaluate: validation or test.")
    ] = "validation",
    counterfactual: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of corrupted prompts. [default: the benchmark's]")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name in the submission. [default: MIB's name]")
    ] = None,
    control: Annotated[
        str | None, typer.Option(metavar="NAME", help="random-weights: also an untrained model of the same shape.")
    ] = None,
    quiet: opt.Quiet = False,
    *,
    output: Output,
) -> None:
    """Score a task of MIB's circuit track, evaluate CPR and CMD, and write the folder of a submission."""
    with progress(quiet=quiet) as report:
        cell = circuitlab.mib(
            task,
            asked.name,
            data=data,
            out=out,
            n=n,
            n_evaluated=evaluated,
            split=data_split,
            counterfactual=counterfactual,
            model_name=model_name,
            control=control,
            progress=report,
            **asked.keywords(),
        )
    _show(cell, json=output.json)


def _show(cell: "MibCell", *, json: bool) -> None:
    """Areas, the curves, and where the submission is."""
    folder = None if cell.folder is None else str(cell.folder)
    if json:
        record: Mapping[str, Any] = cell.to_record()
        display.print_json({**record, "folder": folder})
        return
    from circuitlab.runs.mib import report_lines

    for line in report_lines(cell):
        display.print_line(line)
    frame = cell.to_frame()
    rows = [[f"{100 * row[0]:g} %", *(number(value) for value in row[1:])] for row in frame.itertuples(index=False)]
    columns = [str(name) for name in frame.columns]
    display.print_rows(columns, rows, right=columns)
    if folder:
        display.print_line(f"submission: {folder}")
