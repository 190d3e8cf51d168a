"""The report of a run, one self-contained HTML file; and pages and notebook cells of results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from circuitlab.arguments import checked
from circuitlab.attribution.record import AttentionPatterns
from circuitlab.drawing import shows
from circuitlab.errors import CircuitLabError, RunError
from circuitlab.outputs.whole import write_bytes
from circuitlab.report import text_view
from circuitlab.report.folder import RunFolder, read_run
from circuitlab.report.render import render
from circuitlab.report.values import attention_picture, attention_values, values_of
from circuitlab.runs.manifest import REPORT

if TYPE_CHECKING:
    from circuitlab.data.text_values import TextPage
    from circuitlab.runs.record import RunRecord


@checked
def write_report(folder: str | Path, *, name: str | None = None) -> Path:
    """Write `report.html` from the files of a run folder.

    No model is loaded and no network is used. The page can be opened from disk; its only script is the one of this
    package that shows attention patterns. The same folder gives the same bytes. The page is written under a temporary
    name and renamed.

    Args:
        folder: A run folder of `discover`.
        name: Path of the folder in the commands that the page shows, for a folder that is going to be renamed; default:
            its path relative to the working directory, or absolute if it lies outside.

    Returns:
        The path of the page.

    Raises:
        RunError: The folder is incomplete or damaged; the message names the file and what to do.

    Example:
        >>> run = circuitlab.discover("name-throw", n=16, out="runs/throw")  # doctest: +SKIP
        >>> circuitlab.write_report("runs/throw")  # doctest: +SKIP
        PosixPath('runs/throw/report.html')
    """
    return write_page(folder, name)


def write_page(folder: str | Path, name: str | None, hashed: Mapping[str, str] | None = None) -> Path:
    """`write_report`, given the SHA-256 of files that were just written, by name.

    Returns:
        The path of the page.

    Raises:
        RunError: As of `write_report`.
    """
    with _readable(Path(folder)):
        run = read_run(folder, name, hashed)
        written = page(run).encode("utf-8", "backslashreplace")
    path = run.path / REPORT
    write_bytes(path, written, "report")
    return path


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Any error that unexpected contents of a file lead to, as a `RunError`."""
    try:
        yield
    except CircuitLabError:
        raise
    except Exception as error:
        raise RunError(
            f"run folder {str(folder)!r} is damaged: a file does not hold what the report needs "
            f"({type(error).__name__}: {str(error)[:200]}). Make the run again with "
            f"`circuitlab discover ... --out {folder} --force`."
        ) from error


def page(run: RunFolder) -> Markup:
    """The whole page.

    Returns:
        The page as HTML.
    """
    return render("report.html.j2", **values_of(run))


@shows("page", "circuitlab.data.text_values:TextPage")
def texts(page: TextPage) -> str:
    """Texts coloured token by token.

    Returns:
        The page as HTML.
    """
    return text_view.page(page.texts, title=page.title)


@shows("cell", "circuitlab.data.text_values:TextPage")
def texts_cell(page: TextPage) -> str:
    """The page in a frame of its own.

    Returns:
        The frame as HTML.
    """
    return text_view.frame(page.texts, title=page.title)


@shows("report", "circuitlab.runs.record:RunRecord")
def report(_run: RunRecord, folder: Path, name: str, hashed: Mapping[str, str]) -> None:
    """The report of a run, from what its folder holds."""
    write_page(folder, name, hashed)


@shows("page", "circuitlab.attribution.record:AttentionPatterns")
def attention_page(found: AttentionPatterns) -> Markup:
    """A page: select a head, point at a token.

    Returns:
        The page.
    """
    return render("attention.html.j2", attention=attention_values(found))


@shows("cell", "circuitlab.attribution.record:AttentionPatterns")
def attention_cell(found: AttentionPatterns) -> Markup:
    """The picture alone, which needs no script.

    Returns:
        The picture as HTML.
    """
    return render("picture.html.j2", picture=attention_picture(found, None))
