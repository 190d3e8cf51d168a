"""`circuitlab sweep`: patch the cells of sites and measure the effects."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

import circuitlab
from circuitlab import names
from circuitlab.cli import display
from circuitlab.cli import options as opt
from circuitlab.cli.command import completing
from circuitlab.cli.outputs import FolderOutput, table_and_picture
from circuitlab.cli.progress import progress
from circuitlab.errors import ConfigError
from circuitlab.settings import SETTINGS

if TYPE_CHECKING:
    import pandas as pd

    from circuitlab.patching.grid import Grid

MOST_NUMBERS = 100_000  # of a list on the command line
TOP_CELLS = 10  # printed; all of them are in the CSV and in --json


def numbers(text: str | None, option: str) -> list[int] | None:
    """Read whole numbers from a list such as `0,3,7` or `4-7`, or both.

    Returns:
        The numbers; None without a text.

    Raises:
        ConfigError: It is no such list, or names a number twice.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        if match is None:
            given = repr(text if len(text) <= 40 else text[:37] + "...")
            raise ConfigError(f"{option} {given} is not a list of numbers; write 0,3,7 or 4-7, each below 10**9.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"{option} {part.strip()!r} runs backwards; write the smaller number first.")
        if len(found) + last - first >= MOST_NUMBERS:
            raise ConfigError(f"{option} {text[:40]!r} names more than {MOST_NUMBERS:,} numbers. Give fewer.")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        twice = next(number for number in found if found.count(number) > 1)
        raise ConfigError(f"{option} {text[:40]!r} names {twice} twice. Name it once.")
    return found


class CellOptions(opt.Options):
    """The cells of the sites to patch."""

    axis: Annotated[str, typer.Option(metavar="NAME", help="auto, position, span or all.")] = "auto"
    head_axis: Annotated[str, typer.Option(metavar="NAME", help="The same for heads and neurons.")] = "all"
    layers: opt.List = None
    heads: opt.List = None
    neurons: opt.List = None
    positions: opt.List = None

    def keywords(self, site: list[str]) -> dict[str, Any]:
        """Keywords of `sweep`.

        Args:
            site: The sites to patch.

        Returns:
            The axes and the chosen layers, heads, neurons and positions.

        Raises:
            UnknownNameError: No such site or axis.
            ConfigError: A site is given twice, a list is no list of numbers, or an option does not apply to the sites.
        """
        from circuitlab.patching.sweeps.plan import CellChoice, check_sites

        if repeated := [name for name in dict.fromkeys(site) if site.count(name) > 1]:
            raise ConfigError(f"--site {repeated[0]} is given twice. Give it once.")
        lists = {"layers": self.layers, "heads": self.heads, "neurons": self.neurons, "positions": self.positions}
        chosen: dict[str, Any] = {name: numbers(text, f"--{name}") for name, text in lists.items()}
        chosen |= {"axis": self.axis, "head_axis": self.head_axis}
        sites = check_sites(site, CellChoice(**chosen))
        listed = f"for {', '.join(site)} give"
        if self.axis != "auto" and all(one.by_member for one in sites):
            raise ConfigError(f"--axis goes with sites of the stream; {listed} --head-axis {self.axis}.")
        if self.head_axis != "all" and not any(one.by_member for one in sites):
            raise ConfigError(f"--head-axis goes with sites of heads and neurons; {listed} --axis.")
        return chosen


def sweep(
    task: opt.SweepOptions,
    site: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help=f"Site to patch; may be repeated: {', '.join(names.SITES)}. See: circuitlab sites.",
            autocompletion=completing(names.SITES, "sites"),
        ),
    ],
    cells: CellOptions,
    *,
    model: opt.ModelOptions,
    direction: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="denoise: patch the corrupted run; noise: the clean run. [default: denoise for --ablation corrupt]",
        ),
    ] = None,
    correction: Annotated[
        str | None, typer.Option(metavar="NAME", help="Correct p-values over the grid: holm or benjamini-hochberg.")
    ] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Print the estimated cost and exit.")] = False,
    budget: Annotated[
        int | None,
        typer.Option(min=1, max=2**24, metavar="MB", help="Memory for runs. [default: part of what is free]"),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="FILE", help="Save finished parts to FILE, and resume from it.")
    ] = None,
    quiet: opt.Quiet = False,
    output: FolderOutput,
) -> None:
    """Patch every layer and position, or layer and head, of a site, and measure the effect.

    With --ablation mean, mean-position or mean-span, means are computed on the held-out pairs; the discovery pairs are
    swept. Tasks without corrupted prompts take --ablation zero, noise or a mean.
    """
    wanted = task.load()
    from circuitlab.metrics import metric_of
    from circuitlab.outputs.paths import check_state_file
    from circuitlab.outputs.records import resume as check_state
    from circuitlab.patching.effects import check_correction
    from circuitlab.patching.runs.baseline import resolve_direction
    from circuitlab.patching.runs.replacement import MEANS

    chosen = cells.keywords(site)
    check_correction(correction)
    ablation = SETTINGS["ablation"].read(task["ablation"])
    resolve_direction(direction)
    if resume is not None:
        check_state(check_state_file(resume), "sweep", None)
    judged_by = metric_of(wanted, task["metric"])
    if estimate:
        unused = {**output.files, "resume": resume, "correction": correction, "force": output.force or None}
        if meaningless := [f"--{name}" for name, value in unused.items() if value is not None]:
            raise ConfigError(
                f"--estimate runs nothing, so {', '.join(meaningless)} has no meaning with it. Leave it out."
            )
    output.reserve()
    loaded = model.load()
    pairs = wanted.pairs(loaded, n=task["n"], seed=task["seed"], whole_answers=judged_by.whole_answer)
    display.print_around(pairs.frame)
    settings = {
        "site": site, "direction": direction, "ablation": ablation, "metric": judged_by, "seed": task["seed"],
        "reference": pairs.held_out if ablation in MEANS else None, **chosen,
        "budget": None if budget is None else budget * 2**20,
    }  # fmt: skip
    if estimate:
        cost = circuitlab.estimate_sweep(loaded, pairs.discovery, **settings)
        display.print_json(asdict(cost)) if output.json else display.print_line(str(cost))
        return
    with progress(quiet=quiet) as report:
        grids: Any = circuitlab.sweep(loaded, pairs.discovery, **settings, progress=report, resume=resume)
    _show(grids, correction, output)


def _show(grids: "Mapping[str, Grid]", correction: str | None, output: FolderOutput) -> None:
    """Write every table and heatmap, and print the largest effects of each site."""
    tables = {name: grid.to_frame(correction) for name, grid in grids.items()}
    output.write_folder(
        {file: write for name, grid in grids.items()
         for file, write in table_and_picture(name, lambda name=name: tables[name], grid.plot).items()}
    )  # fmt: skip
    if output.json:
        sites = {name: table.to_dict(orient="records") for name, table in tables.items()}
        display.print_json({"sites": sites, "folder": output.folder})
        return
    for name, table in tables.items():
        grid = grids[name]
        display.print_line(f"{name}, {grid.direction}, {grid.metric}: 0: {grid.unit_end_name}, 1: clean run")
        columns = [column for column in table.columns if column != "site"]
        display.print_table(strongest(table, grid.direction, TOP_CELLS), columns)
        display.print_line("")
    if output.folder:
        display.print_line(f"tables and heatmaps: {output.folder}")


def strongest(table: "pd.DataFrame", direction: str, n: int) -> "pd.DataFrame":
    """The cells with the largest distance from the value of the patched run.

    Returns:
        The first `n` rows.
    """
    neutral = 0.0 if direction == "denoise" else 1.0
    return table.iloc[(table["value"] - neutral).abs().argsort(kind="stable")[::-1][:n]]
