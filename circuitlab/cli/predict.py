"""`circuitlab predict`: what a model expects after a text, how it goes on, and how likely the text itself is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitlab.cli import options as opt
from circuitlab.errors import ConfigError, OutputExistsError

if TYPE_CHECKING:
    from circuitlab.predictions.next_token import NextToken

TextArgument = Annotated[
    str | None, typer.Argument(metavar="TEXT", help="The text, its spaces as they are; or give --file.")
]
TextFile = Annotated[str | None, typer.Option("--file", metavar="PATH", help="Read the text from a file.")]
Page = Annotated[
    str | None, typer.Option("--html", metavar="PATH", help="Write the text as a page, coloured token by token.")
]


def text_of(text: str | None, file: str | None) -> str:
    """The text that was typed, or that stands in a file.

    Raises:
        ConfigError: Neither or both are given, or the file cannot be read as UTF-8.
    """
    if (text is None) == (file is None):
        raise ConfigError(f"give a text or --file, {'one of both' if text is None else 'not both'}.")
    if file is None:
        assert text is not None
        return text
    path = Path(file).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"file {file!r} is not UTF-8 text: {error}. Save it as UTF-8.") from error


def check_page(page: str | None, *, force: bool, option: str = "--html") -> None:
    """Refuse a page that is there already, before any work.

    Raises:
        OutputExistsError: It exists and `force` is not given.
    """
    if page is None:
        return
    path = Path(page).expanduser()
    if path.is_dir() or (path.exists() and not force):
        raise OutputExistsError(f"file {page!r} exists. Name another with {option}, or replace it with --force.")


def predict(
    text: TextArgument = None,
    answer: Annotated[
        list[str] | None, typer.Option("--answer", metavar="WORD", help="Ask for this token; may be repeated.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many of the most likely tokens to list.")] = 10,
    go_on: Annotated[int, typer.Option("--continue", metavar="N", help="Go on greedily by so many tokens.")] = 0,
    file: TextFile = None,
    html: Page = None,
    model: opt.Model = "bundled",
    force: opt.Force = False,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    json: opt.Json = False,
) -> None:
    """Say what the model expects after a text: rank, logit and probability of answers and of the likeliest tokens.

    With --continue also how it goes on; with --html how likely each token of the text itself was.
    """
    given = text_of(text, file)
    check_page(html, force=force)
    from circuitlab.cli import display
    from circuitlab.models.load import load_model
    from circuitlab.predictions.continuation import continue_text
    from circuitlab.predictions.log_probs import text_log_probs
    from circuitlab.predictions.next_token import predict as run_predict

    loaded = load_model(model, device=device, dtype=dtype)
    found = run_predict(loaded, given, answer or (), k)
    written = continue_text(loaded, given, go_on) if go_on else None
    likely = text_log_probs(loaded, given) if html is not None else None
    if likely is not None and html is not None:
        likely.save_html(html, force=force)
    if json:
        more: dict[str, Any] = {} if written is None else {"continuation": written.to_record()}
        more |= {} if likely is None else {"log_probs": likely.to_record(), "html": html}
        display.print_json({"model": model, **found.to_record(), **more})
        return
    rows = [("asked", *_row(one)) for one in found.answers] + [("", *_row(one)) for one in found.top]
    columns = ("", "token", "rank", "logit", "log-prob", "probability")
    display.print_rows(columns, rows, right=columns[2:])
    if written is not None:
        display.print_line(f"continued: {written.continued!r}")
    if likely is not None:
        display.print_line(f"the text: {likely.total:.3f} nats, perplexity {likely.perplexity:.4g}")
        display.print_line(f"page: {html}")


def _row(one: "NextToken") -> tuple[str, ...]:
    return repr(one.token), f"{one.rank:,}", f"{one.logit:.3f}", f"{one.log_prob:.3f}", f"{one.probability:.4f}"
