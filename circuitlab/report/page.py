"""The report of a run: one HTML file that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path

from circuitlab.report import sections, trust
from circuitlab.report.folder import REPORT, RunFolder, read_run
from circuitlab.report.markup import Html, element, joined
from circuitlab.report.stylesheet import STYLESHEET

# A browser that reads this loads nothing and runs nothing, whatever stands in a prompt.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(folder: str | Path, *, name: str | None = None) -> Path:
    """Write `report.html` from what a run folder holds.

    No model is loaded, no network is used; the page holds no script and opens from disk. The same folder gives the same
    bytes. The page is written under a temporary name and renamed.

    Args:
        folder: A run folder of `discover`.
        name: What the folder is called in the commands that the page shows, for one that is yet to be renamed; by
            default its own name.

    Returns:
        The path of the page.

    Raises:
        RunError: The folder is incomplete or damaged; the message names the file and what to do.
    """
    run = read_run(folder, name)
    path = run.path / REPORT
    temporary = path.with_name(f".{REPORT}.partial")
    try:
        temporary.write_bytes(page(run).encode("utf-8"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def page(run: RunFolder) -> Html:
    """The whole page."""
    task = run.about("task")
    title = f"{task.get('label') or task['name']} in {run.about('model')['id']} · circuitlab"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLESHEET)),
    )
    body = element(
        "main",
        sections.opening(run),
        sections.question(run),
        sections.model(run),
        sections.behaviour(run),
        sections.heatmaps(run),
        sections.circuit(run),
        sections.evaluation(run),
        trust.completeness(run),
        trust.stability(run),
        sections.certainty(run),
        sections.citing(run),
    )
    return joined(Html("<!DOCTYPE html>\n"), element("html", head, element("body", body), lang="en"), Html("\n"))
