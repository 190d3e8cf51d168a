"""BibTeX for the library, a task or a run folder, with versions and fingerprints."""

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.registry import is_bundled
from circuitlab.data.task import Task
from circuitlab.errors import RunError
from circuitlab.references import MARKS_2024, METHOD_SOURCES, MIB_2025, Reference

LIBRARY_TITLE = "circuitlab: automated circuit discovery in transformer language models"
LIBRARY_AUTHOR = "The circuitlab developers"
LIBRARY_YEAR = 2026

FAITHFULNESS_SOURCES = (MARKS_2024, MIB_2025)
SHORT = 16  # hexadecimal digits of a fingerprint that are printed: 64 bits distinguish any two


def cite_library() -> str:
    """The BibTeX entry of this version of the library.

    Returns:
        The entry.
    """
    return _library(version("circuitlab"))


def cite_task(task: Task) -> str:
    """BibTeX entries of the library, a task and the task's sources.

    Returns:
        The entries, separated by blank lines.
    """
    about = _task(task.name, task.label, task.version, task_fingerprint(task), task.summary)
    return _joined([cite_library(), about, *(source.bibtex() for source in task.sources)])


def cite_run(manifest: Mapping[str, Any], where: str) -> str:
    """BibTeX entries of a run, from its manifest alone.

    Args:
        manifest: What `manifest.json` holds.
        where: Folder of the run, for messages.

    Returns:
        The library, the run, its task, and the sources of task, method and measure.

    Raises:
        RunError: The manifest lacks something.
    """
    try:
        task, model, config = manifest["task"], manifest["model"], manifest["config"]
        label, method = str(task.get("label", task["name"])), str(config["method"])
        run = _entry(
            "misc",
            f"circuitlab-run-{str(manifest['dataset_fingerprint'])[:8]}",
            {
                "title": "{" + _plain(f"Circuit for {label} in {model['id']}, found with {method}") + "}",
                "note": _plain(
                    f"Run of circuitlab {manifest['versions']['circuitlab']}; task version {task['version']}, "
                    f"dataset {str(manifest['dataset_fingerprint'])[:SHORT]}, "
                    f"weights {str(model['weights_sha256'])[:SHORT]}, seed {config['seed']}"
                ),
            },
        )
        entries = [
            _library(str(manifest["versions"]["circuitlab"])),
            run,
            _task(
                str(task["name"]), label, str(task["version"]), str(task["fingerprint"]), str(task.get("summary", ""))
            ),
        ]
        sources = [*_task_sources(task), *METHOD_SOURCES.get(method, ()), *FAITHFULNESS_SOURCES]
        entries += [source.bibtex() for source in sources]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"manifest.json of run {where!r} lacks {error}. Run discover again.") from error
    return _joined(entries)


def _task_sources(task: Mapping[str, Any]) -> tuple[Reference, ...]:
    """The sources that the task named when it ran; its file, which may be untrusted, is not run."""
    return tuple(Reference(**{**source, "authors": tuple(source["authors"])}) for source in task.get("sources", ()))


def _library(release: str) -> str:
    return _entry(
        "software",
        "circuitlab",
        {
            "author": "{" + LIBRARY_AUTHOR + "}",
            "title": "{" + LIBRARY_TITLE + "}",
            "year": str(LIBRARY_YEAR),
            "version": release,
            "license": "MIT",
        },
    )


def _task(name: str, label: str, release: str, fingerprint: str, summary: str) -> str:
    """A task's entry; the author of a task that is not ours is for its author to add."""
    ours = {"author": "{" + LIBRARY_AUTHOR + "}", "year": str(LIBRARY_YEAR)} if is_bundled(name) else {}
    fields = {
        "title": "{" + _plain(f"{label}: a circuitlab task") + "}",
        "version": release,
        "note": _plain(f"Version {release}, fingerprint {fingerprint[:SHORT]}. {summary}".strip()),
    }
    return _entry("misc", f"circuitlab-{re.sub('[^A-Za-z0-9-]+', '-', label)}", {**ours, **fields})


def _entry(kind: str, key: str, fields: Mapping[str, str]) -> str:
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{body}\n}}"


def _plain(text: str) -> str:
    """Text whose special characters LaTeX prints as they are."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _joined(entries: Iterable[str]) -> str:
    """Entries with repetitions left out, by key."""
    by_key: dict[str, str] = {}
    for entry in entries:
        by_key.setdefault(entry.split(",", 1)[0], entry)
    return "\n\n".join(by_key.values())
