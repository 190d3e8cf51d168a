"""`circuitlab predict`: next-token predictions after a text, its continuation, and the likelihood of the text."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

import circuitlab
from circuitlab.cli import display
from circuitlab.cli import options as opt
from circuitlab.cli.outputs import PageOutput
from circuitlab.cli.texts import TextOptions

if TYPE_CHECKING:
    from circuitlab.predictions.next_token import NextToken


def predict(
    text: TextOptions,
    answer: Annotated[list[str] | None, typer.Option(metavar="WORD", help="Token to report; may be repeated.")] = None,
    k: Annotated[int, typer.Option("-k", min=0, help="Number of most likely tokens to list.")] = 10,
    go_on: Annotated[int, typer.Option("--continue", metavar="N", min=0, help="Generate N tokens greedily.")] = 0,
    *,
    model: opt.ModelOptions,
    output: PageOutput,
) -> None:
    """Predict the next token: rank, logit and probability of answers and of the most likely tokens.

    With --continue, also a greedy continuation; with --html, also the likelihood of each token of the text.
    """
    given = text.read()
    output.reserve()
    loaded = model.load()
    found = circuitlab.predict(loaded, given, answer or (), k)
    written = circuitlab.continue_text(loaded, given, go_on) if go_on else None
    likely = circuitlab.text_log_probs(loaded, given) if output.html is not None else None
    more: dict[str, Any] = {} if written is None else {"continuation": written.to_record()}
    if likely is not None:
        output.write("html", likely.save_html)
        more["log_probs"] = likely.to_record()
    if output.as_json({"model": model.name, **found.to_record(), **more}):
        return
    rows = [("answer", *_row(one)) for one in found.answers] + [("", *_row(one)) for one in found.top]
    columns = ("", "token", "rank", "logit", "log-prob", "probability")
    display.print_rows(columns, rows, right=columns[2:])
    if written is not None:
        display.print_line(f"continued: {written.continued!r}")
    if likely is not None:
        display.print_line(f"text: {likely.total:.3f} nats, perplexity {likely.perplexity:.4g}")
    output.print_files()


def _row(one: "NextToken") -> tuple[str, ...]:
    return repr(one.token), f"{one.rank:,}", f"{one.logit:.3f}", f"{one.log_prob:.3f}", f"{one.probability:.4f}"
