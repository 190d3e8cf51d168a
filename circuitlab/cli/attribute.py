"""`circuitlab attribute`: the logit lens, the contribution of every part to the answer, and attention patterns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

import circuitlab
from circuitlab.cli import display
from circuitlab.cli import options as opt
from circuitlab.cli.display import number
from circuitlab.cli.outputs import Files, FolderOutput, table_and_picture
from circuitlab.cli.progress import progress
from circuitlab.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from circuitlab.attribution.lens import LogitLens
    from circuitlab.attribution.record import AttentionPatterns, Attribution

MOST_ROWS = 30  # of a split, printed; all of them are in the CSV and in --json
COLUMNS = ("value", "ci_low", "ci_high")


def attribute(
    task: opt.PairOptions,
    *,
    model: opt.ModelOptions,
    by: Annotated[str, typer.Option(metavar="NAME", help="layer, head or neuron.")] = "layer",
    run: Annotated[str, typer.Option(metavar="NAME", help="Prompts that are run: clean or corrupt.")] = "clean",
    heads: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Heads whose patterns are shown: a1.h3,a3.h5; the strongest by default."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Number of heads of either sign.")] = 3,
    quiet: opt.Quiet = False,
    output: FolderOutput,
) -> None:
    """Decompose a logit difference into contributions, with the logit lens and attention patterns."""
    wanted = task.load()
    from circuitlab.attribution.direct import check_request
    from circuitlab.attribution.record import check_number
    from circuitlab.metrics import metric_of

    if (quantity := check_request(by, task["metric"] or wanted.metric, run)) != "logit":
        metric_of(wanted, quantity)
    check_number(k)
    named = [name.strip() for name in heads.split(",")] if heads is not None else []
    for name in named:
        circuitlab.Node.parse(name)  # checks the spelling; the model is checked once it is loaded
    if len(set(named)) < len(named):
        raise ConfigError(f"--heads {heads!r:.80} names a head twice. Name each once.")
    output.reserve()
    loaded = model.load()
    pairs = task.next_token_pairs(wanted, loaded)
    common: dict[str, Any] = {"metric": task["metric"], "run": run, "seed": task["seed"]}
    with progress(quiet=quiet) as report:
        report("attribution", 0, 3)
        split = circuitlab.direct_attribution(loaded, pairs, by, **common)
        by_head = split if by == "head" else circuitlab.direct_attribution(loaded, pairs, "head", **common)
        report("attribution", 1, 3)
        lens = circuitlab.logit_lens(loaded, pairs, **common)
        report("attribution", 2, 3)
        strongest = circuitlab.top_heads(by_head, k)
        chosen = named or list(strongest["head"])
        notes = {name: number(by_head.value(name), 2) for name in chosen if name in by_head.names}
        patterns = circuitlab.attention(loaded, pairs[0], chosen, run=run, notes=notes) if chosen else None
        report("attribution", 3, 3)
    rewritten = f" ({loaded.folding.description})" if loaded.folding.any else ""
    found = Found(f"{wanted.label} on model {model.name}{rewritten}", lens, split, by_head, strongest, patterns)
    output.write_folder(found.files())
    if output.json:
        display.print_json({**found.to_record(), "folder": output.folder})
        return
    found.show()
    if output.folder:
        display.print_line(f"\ntables, pictures, attention.html: {output.folder}")


@dataclass(frozen=True, slots=True)
class Found:
    """The results of one call."""

    title: str
    lens: "LogitLens"
    split: "Attribution"
    by_head: "Attribution"
    strongest: "pd.DataFrame"
    patterns: "AttentionPatterns | None"

    def files(self) -> Files:
        """How to write tables, pictures and the attention page.

        Returns:
            The writers by file name.
        """
        found = {"lens": self.lens, f"attribution-{self.split.by}": self.split, "attribution-head": self.by_head}
        found |= {} if self.patterns is None else {"attention": self.patterns}
        files = {file: write for name, one in found.items()
                 for file, write in table_and_picture(name, one.to_frame, one.plot).items()}  # fmt: skip
        return files if self.patterns is None else {**files, "attention.html": self.patterns.save}

    def to_record(self) -> dict[str, Any]:
        """All numbers as plain values.

        Returns:
            The record.
        """
        split = self.split
        tables = {"lens": self.lens, "attribution": split, "heads": self.by_head}
        records = {name: table.to_frame().to_dict(orient="records") for name, table in tables.items()}
        totals = {"metric": split.metric, "run": split.run, "total": split.total.mean(), "gap": split.gap}
        patterns = None if self.patterns is None else self.patterns.to_record()
        return {"title": self.title, **totals, **records, "attention": patterns}

    def show(self) -> None:
        """Print the lens, the split and the heads with the largest contributions."""
        split = self.split
        total, sum_of = number(float(split.total.mean())), number(float(split.per_example.sum(0).mean()))
        prompts = f"{split.per_example.shape[1]:,} {split.run} prompts"
        sums = f"{sum_of}; maximum error {split.gap:.0e} on any prompt"
        display.print_facts(self.title, [(split.metric, f"{total} on {prompts}"), ("sum of contributions", sums)])
        display.print_line(f"\nlogit lens, {self.lens.metric}")
        display.print_table(self.lens.to_frame(), ("after", *COLUMNS))
        table = split.to_frame()
        few = len(table) <= MOST_ROWS
        shown = table if few else table.iloc[table["value"].abs().argsort()[::-1][:MOST_ROWS]]
        display.print_line(f"\nattribution by {split.by}{'' if few else f', {MOST_ROWS} largest of {len(table):,}'}")
        display.print_table(shown, ("component", *COLUMNS))
        display.print_line("\nheads with the largest contributions")
        display.print_table(self.strongest, ("head", *COLUMNS))
        if self.patterns is not None:
            display.print_line(f"\nattention from the answer position in {self.patterns.title!r}")
            rows = [{"head": head, "top keys": _top_keys(self.patterns, head)} for head in self.patterns.heads]
            display.print_table(rows)


def _top_keys(patterns: "AttentionPatterns", head: str) -> str:
    """The three keys with the largest weight for the last query."""
    weights = patterns.pattern(head)[-1]
    return ", ".join(
        f"{patterns.tokens[i]!r} ({i}) {number(float(weights[i]), 2)}" for i in weights.argsort()[::-1][:3]
    )
