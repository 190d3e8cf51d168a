"""`circuitlab predict`: what a model expects after a text, how it goes on, and how likely the text itself is."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitlab.cli import options as opt
from circuitlab.cli.outputs import PAGE, Page, check_file, write_file
from circuitlab.cli.texts import TextArgument, TextFile, text_of

if TYPE_CHECKING:
    from circuitlab.predictions.next_token import NextToken


def predict(
    text: TextArgument = None,
    answer: Annotated[
        list[str] | None, typer.Option("--answer", metavar="WORD", help="Token to report; may be repeated.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=0, help="Number of most likely tokens to list.")] = 10,
    go_on: Annotated[int, typer.Option("--continue", metavar="N", min=0, help="Generate N tokens greedily.")] = 0,
    file: TextFile = None,
    html: Page = None,
    *,
    model: opt.ModelOptions,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Predict the next token: rank, logit and probability of answers and of the most likely tokens.

    With --continue also how it goes on; with --html how likely each token of the text itself was.
    """
    given = text_of(text, file)
    opt.check_force(force, "--html", html)
    check_file(html, force=force, option="--html", kinds=PAGE)
    from circuitlab.cli import display
    from circuitlab.predictions.continuation import continue_text
    from circuitlab.predictions.log_probs import text_log_probs
    from circuitlab.predictions.next_token import predict as run_predict

    loaded = model.load()
    found = run_predict(loaded, given, answer or (), k)
    written = continue_text(loaded, given, go_on) if go_on else None
    likely = text_log_probs(loaded, given) if html is not None else None
    if likely is not None and html is not None:
        write_file(html, likely.save_html)
    if json:
        more: dict[str, Any] = {} if written is None else {"continuation": written.to_record()}
        more |= {} if likely is None else {"log_probs": likely.to_record(), "html": html}
        display.print_json({"model": model.name, **found.to_record(), **more})
        return
    rows = [("answer", *_row(one)) for one in found.answers] + [("", *_row(one)) for one in found.top]
    columns = ("", "token", "rank", "logit", "log-prob", "probability")
    display.print_rows(columns, rows, right=columns[2:])
    if written is not None:
        display.print_line(f"continued: {written.continued!r}")
    if likely is not None:
        display.print_line(f"text: {likely.total:.3f} nats, perplexity {likely.perplexity:.4g}")
        display.print_line(f"page: {html}")


def _row(one: "NextToken") -> tuple[str, ...]:
    return repr(one.token), f"{one.rank:,}", f"{one.logit:.3f}", f"{one.log_prob:.3f}", f"{one.probability:.4f}"
