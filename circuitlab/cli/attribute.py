"""`circuitlab attribute`: the logit lens, what each part adds to the answer, and where the strongest heads look."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitlab.cli import display
from circuitlab.cli import options as opt
from circuitlab.cli.display import number
from circuitlab.cli.outputs import check_folder, write_folder
from circuitlab.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from circuitlab.attribution.lens import LogitLens
    from circuitlab.attribution.patterns import AttentionPatterns
    from circuitlab.attribution.record import Attribution

MOST_ROWS = 30  # of a split, printed; all of them are in the CSV and in --json


def attribute(
    task: opt.PairOptions,
    *,
    model: opt.ModelOptions,
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="layer, head or neuron.")] = "layer",
    run: Annotated[
        str, typer.Option("--run", metavar="NAME", help="Prompts that are run: clean or corrupt.")
    ] = "clean",
    heads: Annotated[
        str | None,
        typer.Option("--heads", metavar="LIST", help="Whose patterns: a1.h3,a3.h5; the strongest by default."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Number of heads of either sign.")] = 3,
    out: Annotated[
        str | None, typer.Option("--out", metavar="PATH", help="Folder for tables, pictures and the attention page.")
    ] = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    """Decompose a logit difference into contributions, with the logit lens and attention patterns."""
    wanted = task.load()
    from circuitlab.attribution.attention import attention
    from circuitlab.attribution.direct import check_request, direct_attribution
    from circuitlab.attribution.lens import logit_lens
    from circuitlab.attribution.record import check_number, top_heads
    from circuitlab.cli.progress import progress
    from circuitlab.metrics import metric_of
    from circuitlab.parts import Node

    if (quantity := check_request(by, task["metric"] or wanted.metric, run)) != "logit":
        metric_of(wanted, quantity)
    check_number(k)
    named = [name.strip() for name in heads.split(",")] if heads is not None else []
    for name in named:
        Node.parse(name)  # checks the spelling; the model is checked once it is loaded
    if len(set(named)) < len(named):
        raise ConfigError(f"--heads {heads!r:.80} names a head twice. Name each once.")
    opt.check_force(force, "--out", out)
    if out is not None:
        out = check_folder(out, force=force)
    loaded = model.load()
    pairs = wanted.pairs(loaded, n=task["n"], seed=task["seed"]).discovery
    common: dict[str, Any] = {"metric": task["metric"], "run": run, "seed": task["seed"]}
    with progress(quiet=quiet) as report:
        report("attribution", 0, 3)
        split = direct_attribution(loaded, pairs, by, **common)
        by_head = split if by == "head" else direct_attribution(loaded, pairs, "head", **common)
        report("attribution", 1, 3)
        lens = logit_lens(loaded, pairs, **common)
        report("attribution", 2, 3)
        strongest = top_heads(by_head, k)
        chosen = named or list(strongest["head"])
        notes = {name: number(by_head.value(name), 2) for name in chosen if name in by_head.names}
        patterns = attention(loaded, pairs[0], chosen, run=run, notes=notes) if chosen else None
        report("attribution", 3, 3)
    rewritten = f" ({loaded.folding.told})" if loaded.folding.any else ""
    found = Found(f"{wanted.label} on model {model.name}{rewritten}", lens, split, by_head, strongest, patterns)
    if out is not None:
        write_folder(out, found.files())
    found.show(folder=out, json=json)


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that one call found."""

    title: str
    lens: "LogitLens"
    split: "Attribution"
    by_head: "Attribution"
    strongest: "pd.DataFrame"
    patterns: "AttentionPatterns | None"

    def files(self) -> "dict[str, Callable[[Path], object]]":
        """Tables, pictures and the attention page: names of the files, and what writes each."""
        from circuitlab.viz import save_figure

        files: dict[str, Callable[[Path], object]] = {}
        tables: Mapping[str, Any] = {"lens": self.lens, f"attribution-{self.split.by}": self.split}
        for name, table in {**tables, "attribution-head": self.by_head}.items():
            files[f"{name}.csv"] = lambda path, table=table: table.to_frame().to_csv(path, index=False)
            files[f"{name}.png"] = lambda path, table=table: save_figure(table.plot(), path)
        if self.patterns is not None:
            patterns = self.patterns
            files["attention.csv"] = lambda path: patterns.to_frame().to_csv(path, index=False)
            files["attention.png"] = lambda path: save_figure(patterns.plot(), path)
            files["attention.html"] = patterns.save
        return files

    def show(self, *, folder: str | None, json: bool) -> None:
        """The lens, the split and the strongest heads; everything as JSON."""
        split = self.split
        if json:
            tables = {"lens": self.lens, "attribution": split, "heads": self.by_head}
            records = {name: table.to_frame().to_dict(orient="records") for name, table in tables.items()}
            totals = {"metric": split.metric, "run": split.run, "total": split.total.mean(), "gap": split.gap}
            patterns = {"attention": None if self.patterns is None else self.patterns.to_record()}
            display.print_json({"title": self.title, **totals, **records, **patterns, "folder": folder})
            return
        sum_of = number(float(split.per_example.sum(0).mean()))
        display.print_facts(
            self.title,
            [
                (
                    split.metric,
                    f"{number(float(split.total.mean()))} on {split.per_example.shape[1]:,} {split.run} prompts",
                ),
                ("sum of contributions", f"{sum_of}; maximum error {split.gap:.0e} on any prompt"),
            ],
        )
        display.print_line(f"\nlogit lens, {self.lens.metric}")
        _print_table(self.lens.to_frame(), ("after", "value", "ci_low", "ci_high"))
        table = split.to_frame()
        few = len(table) <= MOST_ROWS
        shown = table if few else table.iloc[table["value"].abs().argsort()[::-1][:MOST_ROWS]]
        display.print_line(f"\nattribution by {split.by}{'' if few else f', {MOST_ROWS} largest of {len(table):,}'}")
        _print_table(shown, ("component", "value", "ci_low", "ci_high"))
        display.print_line("\nheads with the largest contributions")
        _print_table(self.strongest, ("head", "value", "ci_low", "ci_high"))
        if self.patterns is not None:
            display.print_line(f"\nattention from the answer position in {self.patterns.title!r}")
            display.print_rows(
                ("head", "top keys"), [(head, _most(self.patterns, head)) for head in self.patterns.heads]
            )
        if folder:
            display.print_line(f"\ntables, pictures, attention.html: {folder}")


def _print_table(table: "pd.DataFrame", columns: tuple[str, ...]) -> None:
    rows = [
        [number(cell) if isinstance(cell, float) else str(cell) for cell in row]
        for row in table[list(columns)].itertuples(index=False)
    ]
    display.print_rows(columns, rows, right=columns[1:])


def _most(patterns: "AttentionPatterns", head: str) -> str:
    """The three keys with the largest weight for the last query."""
    weights = patterns.pattern(head)[-1]
    return ", ".join(
        f"{patterns.tokens[i]!r} ({i}) {number(float(weights[i]), 2)}" for i in weights.argsort()[::-1][:3]
    )
