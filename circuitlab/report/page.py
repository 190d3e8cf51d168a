"""The report of a run: one HTML file that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from circuitlab.arguments import checked
from circuitlab.errors import CircuitLabError, RunError
from circuitlab.files import write_bytes
from circuitlab.report import sections, trust
from circuitlab.report.attention_script import ATTENTION_SCRIPT, ATTENTION_STYLE
from circuitlab.report.attention_view import attention_section
from circuitlab.report.document import document
from circuitlab.report.folder import REPORT, RunFolder, read_run
from circuitlab.report.markup import Html


@checked
def write_report(folder: str | Path, *, name: str | None = None) -> Path:
    """Write `report.html` from what a run folder holds.

    No model is loaded, no network is used; the page opens from disk, and runs no script but the one that this package
    holds for attention patterns. The same folder gives the same bytes. The page is written under a temporary name and
    renamed.

    Args:
        folder: A run folder of `discover`.
        name: The folder's path in the commands that the page shows, for one that is yet to be renamed; by default its
            path from the working folder, absolute where it lies outside.

    Returns:
        The path of the page.

    Raises:
        RunError: The folder is incomplete or damaged; the message names the file and what to do.
    """
    with _readable(Path(folder)):
        run = read_run(folder, name)
        written = page(run).encode("utf-8", "backslashreplace")
    path = run.path / REPORT
    write_bytes(path, written, "report")
    return path


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Whatever a file with other contents than a run writes leads to, as a `RunError`."""
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


def page(run: RunFolder) -> Html:
    """The whole page."""
    task = run.about("task")
    title = f"{task.get('label') or task['name']} in {run.about('model')['id']} · circuitlab"
    return document(
        title,
        sections.opening(run),
        sections.question(run),
        sections.model(run),
        sections.behaviour(run),
        sections.heatmaps(run),
        sections.circuit(run),
        attention_section(run.attention, run.attention_png),
        sections.evaluation(run),
        trust.completeness(run),
        trust.stability(run),
        sections.certainty(run),
        sections.citing(run),
        style=ATTENTION_STYLE if run.attention else "",
        script=ATTENTION_SCRIPT if run.attention else "",
    )
