"""`circuitlab sweep`: patch the cells of sites and tell where it matters."""

import re
from typing import Annotated

import typer

from circuitlab import names
from circuitlab.cli import options as opt
from circuitlab.cli.command import completing, listed
from circuitlab.cli.outputs import check_folder, write_folder
from circuitlab.errors import ConfigError
from circuitlab.settings import SETTINGS

MOST_NUMBERS = 100_000  # of a list on the command line


def numbers(text: str | None, option: str) -> list[int] | None:
    """Whole numbers as they are typed: `0,3,7` or `4-7`, or both.

    Raises:
        ConfigError: It is not spelt so.
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


def sweep(
    task: opt.SweepOptions,
    site: Annotated[
        list[str],
        typer.Option(
            "--site",
            metavar="NAME",
            help=f"Site to patch; may be repeated: {listed(names.SITES)}. See: circuitlab sites.",
            autocompletion=completing(names.SITES, "sites"),
        ),
    ],
    *,
    model: opt.ModelOptions,
    direction: Annotated[
        str | None,
        typer.Option("--direction", metavar="NAME", help="denoise: patch the corrupted run; noise: the clean run."),
    ] = None,
    axis: Annotated[str, typer.Option("--axis", metavar="NAME", help="auto, position, span or all.")] = "auto",
    head_axis: Annotated[
        str, typer.Option("--head-axis", metavar="NAME", help="The same for heads and neurons.")
    ] = "all",
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="LIST", help="Only these, such as 0,3 or 4-7.")
    ] = None,
    heads: Annotated[str | None, typer.Option("--heads", metavar="LIST", help="Only these heads.")] = None,
    neurons: Annotated[str | None, typer.Option("--neurons", metavar="LIST", help="Only these neurons.")] = None,
    positions: Annotated[str | None, typer.Option("--positions", metavar="LIST", help="Only these positions.")] = None,
    correction: Annotated[
        str | None,
        typer.Option(
            "--correction", metavar="NAME", help="Correct p-values over the grid: holm or benjamini-hochberg."
        ),
    ] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Print the estimated cost and exit.")] = False,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            min=1,
            max=2**24,
            metavar="MB",
            help="Memory for patched runs. [default: a share of free memory]",
        ),
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="FILE", help="Save finished parts to FILE, and resume from it.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="PATH", help="Folder for CSV tables and heatmaps.")
    ] = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    """Patch every layer and position, or layer and head, of a site, and measure the effect.

    With --ablation mean, mean-position or mean-span, means are computed on the held-out pairs; the discovery pairs are
    swept.
    """
    wanted = task.load()
    from circuitlab.cli import results, tables
    from circuitlab.cli.progress import progress
    from circuitlab.metrics import metric_of
    from circuitlab.outputs import check_state_file
    from circuitlab.outputs.state import resume as check_state
    from circuitlab.patching.grid import check_correction
    from circuitlab.patching.runs.baseline import check_direction
    from circuitlab.patching.runs.replacement import MEANS
    from circuitlab.patching.sweeps.estimate import estimate_sweep
    from circuitlab.patching.sweeps.plan import check_sites
    from circuitlab.patching.sweeps.sweep import by_site
    from circuitlab.patching.sweeps.sweep import sweep as run_sweep

    chosen = {
        "layers": numbers(layers, "--layers"), "heads": numbers(heads, "--heads"),
        "neurons": numbers(neurons, "--neurons"), "positions": numbers(positions, "--positions"),
    }  # fmt: skip
    check_correction(correction)
    ablation = SETTINGS["ablation"].read(task["ablation"])
    if direction is not None:
        check_direction(direction)
    if repeated := [name for name in dict.fromkeys(site) if site.count(name) > 1]:
        raise ConfigError(f"--site {repeated[0]} is given twice. Give it once.")
    sites = check_sites(
        site, axis=axis, head_axis=head_axis, **{name: chosen[name] for name in ("heads", "neurons", "positions")}
    )
    if resume is not None:
        check_state(check_state_file(resume), "sweep", None)
    judged_by = metric_of(wanted, task["metric"])
    if estimate:
        unused = {"--out": out, "--resume": resume, "--correction": correction, "--force": force or None}
        if given := [name for name, value in unused.items() if value is not None]:
            raise ConfigError(f"--estimate runs nothing, so {', '.join(given)} has no meaning with it. Leave it out.")
    opt.check_force(force, "--out", out)
    if axis != "auto" and all(one.by_member for one in sites):
        raise ConfigError(f"--axis goes with sites of the stream; for {', '.join(site)} give --head-axis {axis}.")
    if head_axis != "all" and not any(one.by_member for one in sites):
        raise ConfigError(f"--head-axis goes with sites of heads and neurons; for {', '.join(site)} give --axis.")
    if out is not None:
        out = check_folder(out, force=force)
    loaded = model.load()
    pairs = wanted.pairs(loaded, n=task["n"], seed=task["seed"])
    settings = {
        "site": site, "direction": direction, "replacement": ablation, "metric": judged_by, "axis": axis,
        "head_axis": head_axis, "reference": pairs.held_out if ablation in MEANS else None, "seed": task["seed"],
        "budget": None if budget is None else budget * 2**20, **chosen,
    }  # fmt: skip
    if estimate:
        results.show_estimate(estimate_sweep(loaded, pairs.discovery, **settings), json=json)
        return
    with progress(quiet=quiet) as report:
        found = run_sweep(loaded, pairs.discovery, **settings, progress=report, resume=resume)
    grids = by_site(found)
    if out is not None:
        write_folder(out, tables.files_of(grids, correction))
    results.show_grids(grids, folder=out, json=json, correction=correction)
