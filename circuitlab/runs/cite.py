"""BibTeX for the library, a task or a run folder."""

from __future__ import annotations

from pathlib import Path

from circuitlab.arguments import checked
from circuitlab.data.citation import cite_library, cite_run, cite_task
from circuitlab.data.registry import load_task
from circuitlab.data.tables.sources import is_data_folder
from circuitlab.data.task import Task
from circuitlab.outputs.paths import at_home
from circuitlab.runs.manifest import MANIFEST, read_manifest


@checked
def cite(target: str | Path | Task) -> str:
    """BibTeX entries, one for each source, separated by blank lines.

    Args:
        target: `"circuitlab"`, a task (its name, its file, a table, or the `Task`), or a run folder of `discover`.

    Returns:
        The library; for a task also the task and its sources; for a run also the run and its method's sources, as its
        manifest has them: no code of a run folder is executed.

    Raises:
        UnknownNameError: No task has this name and no folder this path.
        TaskFileError: A task file that cannot be used.
        RunError: A folder without a readable manifest.

    Example:
        >>> print(cite("name-throw").splitlines()[0])
        @software{circuitlab,
    """
    if target == "circuitlab":
        return cite_library()
    if not isinstance(target, Task) and (folder := at_home(target)).is_dir() and not _is_data(folder):
        manifest = read_manifest(folder)
        written = manifest.get("bibtex")
        return written if isinstance(written, str) and written else cite_run(manifest, str(folder))
    return cite_task(load_task(target))


def _is_data(folder: Path) -> bool:
    """Whether a folder holds tables of pairs and is no run folder."""
    return not (folder / MANIFEST).is_file() and is_data_folder(folder)
