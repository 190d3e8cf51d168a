"""`manifest.json`: what ran, of what, with which versions; written from a run, read from a folder."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from circuitlab.discovery.scoring import find_method
from circuitlab.errors import FileError, FormatError, RunError
from circuitlab.files import file_inside, read_json
from circuitlab.runs.record import RunRecord

SCHEMA = "circuitlab.run/1"
MANIFEST, REPORT, DATASET = "manifest.json", "report.html", "dataset.jsonl"
SCORES, RESULTS = "scores.safetensors", "results.safetensors"
VERSIONED = ("circuitlab", "torch", "transformer_lens", "transformers", "numpy", "scipy", "networkx", "matplotlib")
# What a metric says of itself, beside its name.
OF_METRIC = (
    "unit", "what", "higher_is_better", "smooth", "natural_zero", "needs_distractor", "needs_reference", "local",
)  # fmt: skip


def manifest_of(run: RunRecord) -> dict[str, Any]:
    """What was asked of what, with which versions; the SHA-256 of every file is added when all are there."""
    spec, task = run.spec, run.task
    return {
        "schema": SCHEMA,
        "circuitlab_version": _version("circuitlab"),
        "command": run.config.command,
        "config": run.config.as_record(),
        "seed": run.config.seed,
        "task": {
            "name": task.name,
            "label": task.label,
            "version": task.version,
            "summary": task.summary,
            "settings": task.settings,
            "options": {name: list(values) for name, values in task.options.items()},
            "metric": task.metric if isinstance(task.metric, str) else None,
            "fingerprint": run.task_fingerprint,
            "sources": [asdict(source) for source in task.sources],
        },
        "dataset_fingerprint": run.pairs.fingerprint,
        "dataset": {
            "n_discovery": len(run.pairs.discovery),
            "n_held_out": len(run.pairs.held_out),
            **({"n_reference": len(run.pairs.reference)} if run.pairs.reference else {}),
            "dropped": dict(run.pairs.dropped),
        },
        "model": {
            "id": run.model_id,
            "weights_sha256": run.weights_sha256,
            "n_layers": spec.n_layers,
            "n_heads": spec.n_heads,
            "n_kv_heads": spec.n_kv_heads,
            "d_model": spec.d_model,
            "d_vocab": spec.d_vocab,
            "causal": spec.causal,
            "bos_tokens": list(run.bos.tokens),
            "bos_ids": list(run.bos.ids),
        },
        "metric": {"name": run.metric.name, **{name: getattr(run.metric, name) for name in OF_METRIC}},
        "behaviour": {
            "rule": run.behaviour.rule,
            "prefers_answer": run.behaviour.prefers,
            "corruption_turns_over": run.behaviour.turns,
            "metric_gap": run.behaviour.gap.mean,
            "metric_gap_se": run.behaviour.gap.standard_error,
        },
        "method": {
            "name": run.scores.method,
            "steps": run.config.steps if "steps" in find_method(run.config.method).takes else None,
            "checks": dict(run.scores.checks),
        },
        "selection": None if run.circuit.selection is None else run.circuit.selection.to_record(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}},
        "device": run.config.device,
        "dtype": run.config.dtype,
        "seconds": {step: round(seconds, 3) for step, seconds in run.seconds.items()},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder; what it says of the run's settings is checked where they are used.

    Raises:
        RunError: There is none, it is damaged, or of another schema; or a file that it lists has a path that leads out
            of the folder.
    """
    path = file_inside(folder, MANIFEST) if folder.is_dir() else None
    if path is None:
        raise RunError(
            f"{str(folder)!r} is not a run folder: it has no {MANIFEST}. Give the folder that discover wrote."
        )
    try:
        manifest = read_json(path, "manifest")
        if not isinstance(manifest, dict):
            raise TypeError("it holds no JSON object")
        schema = manifest["schema"]
        if schema == SCHEMA:
            files, weights = manifest["files"], manifest["model"]["weights_sha256"]
            if not (isinstance(files, dict) and isinstance(weights, str)):
                raise TypeError("files or weights are not what they should be")
            for name in files:  # before the work: a name that leads out of the folder ends it
                file_inside(folder, name)
    except (FileError, FormatError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{str(path)!r} is damaged: {type(error).__name__}: {error}. Run discover again.") from error
    if schema != SCHEMA:
        raise RunError(f"{str(path)!r} has the schema {schema!r}; this version reads {SCHEMA}.")
    return manifest
