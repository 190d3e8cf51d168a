"""The content of a run's manifest: settings, task, model and versions."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from circuitlab.discovery.config import DiscoverConfig
from circuitlab.discovery.scoring import find_method
from circuitlab.runs.manifest import OF_METRIC, SCHEMA
from circuitlab.runs.record import RunRecord
from circuitlab.runs.tables import about_table

OF_MODEL = ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_vocab", "causal")
VERSIONED = ("circuitlab", "torch", "transformer_lens", "transformers", "numpy", "scipy", "networkx", "matplotlib")


def manifest_of(run: RunRecord) -> dict[str, Any]:
    """Settings, task, model and versions of a run; the SHA-256 of its files are added when all are written.

    Returns:
        The content of `manifest.json`.
    """
    task = run.task
    return {
        "schema": SCHEMA,
        "circuitlab_version": _version("circuitlab"),
        "command": run.config.command,
        "config": run.config.to_record(),
        "seed": run.config.seed,
        **({"objects": dict(run.sources)} if run.sources else {}),
        "task": {
            **{name: getattr(task, name) for name in ("name", "label", "version", "summary", "settings")},
            "options": {name: list(values) for name, values in task.options.items()},
            "metric": task.metric if isinstance(task.metric, str) else None,
            "fingerprint": run.task_fingerprint,
            "sources": [asdict(source) for source in task.sources],
            **({"table": about_table(task.table)} if task.table else {}),
        },
        "dataset_fingerprint": run.pairs.fingerprint,
        "dataset": {
            "n_discovery": len(run.pairs.discovery),
            "n_held_out": len(run.pairs.held_out),
            **({"n_reference": len(run.pairs.reference)} if run.pairs.reference else {}),
            "dropped": dict(run.pairs.dropped),
            **({"held_out_differ_in": run.pairs.differ_in} if run.pairs.differ_in else {}),
        },
        "model": {
            "id": run.model_id,
            "weights_sha256": run.weights_sha256,
            **{name: getattr(run.spec, name) for name in OF_MODEL},
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
            "steps": _steps(run.config),
            "checks": dict(run.scores.checks),
        },
        "selection": None if run.circuit.selection is None else run.circuit.selection.to_record(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}},
        "device": run.config.device,
        "dtype": run.config.dtype,
        "seconds": {step: round(seconds, 3) for step, seconds in run.seconds.items()},
    }


def _steps(config: DiscoverConfig) -> int | None:
    """Steps of integrated gradients, where the method takes them; a method that was an object may."""
    takes = "method" in config.objects or "steps" in find_method(config.method).takes
    return config.steps if takes else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
