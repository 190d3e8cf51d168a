"""A run's circuit beside the one that a paper published for its task and model."""

from __future__ import annotations

from pathlib import Path

from circuitlab.arguments import checked
from circuitlab.graphs.compare import NodeOverlap, node_overlap
from circuitlab.outputs.paths import at_home
from circuitlab.runs.reader import RunReader
from circuitlab.runs.task_files import task_of_run


@checked
def compare_published(run: str | Path, published_for: str | None = None, *, run_code: bool = False) -> NodeOverlap:
    """Compare the nodes of a run's circuit with the published ones.

    Args:
        run: A run folder.
        published_for: The model that the circuit was published for; the run's by default.
        run_code: Allow the folder's own task file to run. Read it first.

    Returns:
        Overlap, precision, recall, and how likely as large an overlap is by chance.

    Raises:
        RunError: It is no run folder, or its task file would run and is not allowed to.
        UnknownNameError: Nothing is published for this task and model.
        GraphError: The run's model lacks a published node.

    Example:
        >>> from circuitlab import compare_published
        >>> compare_published("runs/ioi-gpt2-eap-ig-0").recall  # doctest: +SKIP
        0.5
    """
    read = RunReader.open(at_home(run))
    task = task_of_run(read.path, read.manifest, run_code=run_code)
    published = task.published_for(published_for or str(read.about("model")["id"]))
    names = (Path(run).name, published.source.key)
    return node_overlap(read.circuit(), published.classes, names)
