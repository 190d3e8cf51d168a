"""Write what a discovery found as a folder that other programs read; whole, or not at all.

The folder's name is reserved before the work; which files may be replaced is decided then.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from circuitlab.data.citation import cite_run
from circuitlab.digests import file_sha256
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.discovery.scoring import find_method
from circuitlab.discovery.stability import Stability
from circuitlab.drawing import report
from circuitlab.errors import OutputExistsError
from circuitlab.files import path_from_here
from circuitlab.outputs.lock import LOCK
from circuitlab.outputs.records import save_record
from circuitlab.outputs.reserve import Reserved, Rules, reserved
from circuitlab.result import plain
from circuitlab.runs.manifest import DATASET, MANIFEST, OF_METRIC, REPORT, RESULTS, SCHEMA, SCORES
from circuitlab.runs.record import RESULTS_SCHEMA, Results, RunRecord
from circuitlab.runs.tables import about_table, one_line, write_table

# Recorded in the manifest.
OF_MODEL = ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_vocab", "causal")
VERSIONED = ("circuitlab", "torch", "transformer_lens", "transformers", "numpy", "scipy", "networkx", "matplotlib")


def write_run(run: RunRecord, place: Reserved, folder: Path) -> Path:
    """Write a run folder in the place that was reserved for it.

    Returns:
        Where it is: the folder asked for, `~` replaced.
    """
    new = place.part
    _write_data(run, new)
    _write_pictures(run, new)
    files = _digests(new)
    manifest = manifest_of(run) | {"files": files}
    manifest["bibtex"] = cite_run(manifest, str(folder))
    _write_json(new / MANIFEST, manifest)
    # The page has no times, so that the same seed gives the same page.
    report(run, new, path_from_here(folder), files)
    manifest["files"] = dict(sorted({**files, REPORT: file_sha256(new / REPORT)}.items()))
    _write_json(new / MANIFEST, manifest)
    place.move_into_place()
    return folder


def _write_data(run: RunRecord, folder: Path) -> None:
    pairs = run.pairs
    splits = {"discovery": pairs.discovery, "held_out": pairs.held_out, "reference": pairs.reference or ()}
    lines = [one_line(pair.to_record(name)) for name, split in splits.items() for pair in split]
    (folder / DATASET).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if run.grids:
        (folder / "sweeps").mkdir()
    for site, grid in run.grids.items():
        grid.to_frame().to_csv(folder / "sweeps" / f"{site}.csv", index=False)
    run.circuit.to_frame().to_csv(folder / "edges.csv", index=False)
    run.scores.save(folder / SCORES)
    save_record(folder / RESULTS, Results.of(run), RESULTS_SCHEMA, "results")
    if run.scores.training:
        run.scores.training_frame().to_csv(folder / "training.csv", index=False)
    run.circuit.save(folder / "circuit.json")
    run.circuit.save(folder / "circuit.graphml")
    _write_json(folder / "evaluation.json", run.evaluation.to_record())
    if run.attention:
        _write_json(folder / "attention.json", run.attention.to_record())
    for name, found in _repeated(run):
        _write_json(folder / f"{name}.json", found.to_record())
        found.to_frame().to_csv(folder / f"{name}.csv", index=False)
    if run.task.table is not None:
        write_table(run.task.table, folder)
    elif run.task.origin:
        shutil.copyfile(run.task.origin, folder / "task.py")


def _write_pictures(run: RunRecord, folder: Path) -> None:
    for site, grid in run.grids.items():
        grid.plot().save(folder / "sweeps" / f"{site}.png")
    drawing = run.plot()
    for name in ("circuit.png", "circuit.svg"):
        drawing.save(folder / name)
    if run.attention:
        run.attention.plot().save(folder / "attention.png")
    for name, found in _repeated(run):
        title = f"{run.task.label} in {Path(run.model_id).name}: {len(found.chosen)} {found.repeated}"
        found.plot(title=title).save(folder / f"{name}.png")


def _repeated(run: RunRecord) -> list[tuple[str, Stability]]:
    """Repetitions of the discovery that were requested, with the names of their files."""
    found = (("stability", run.stability), ("stability-seeds", run.stability_seeds))
    return [(name, one) for name, one in found if one is not None]


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, LOCK))
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in files}


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


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
            **({"shot_separator": task.prompting.separator} if task.prompting.shots else {}),
        },
        "dataset_fingerprint": run.pairs.fingerprint,
        "dataset": {
            "n_discovery": len(run.pairs.discovery),
            "n_held_out": len(run.pairs.held_out),
            **({"n_reference": len(run.pairs.reference)} if run.pairs.reference else {}),
            "dropped": dict(run.pairs.dropped),
            **({"held_out_differ_in": run.pairs.differ_in} if run.pairs.differ_in else {}),
            **({"around": asdict(run.pairs.frame)} if run.pairs.frame else {}),
        },
        "model": {
            "id": run.model_id,
            "weights_sha256": run.weights_sha256,
            **{name: getattr(run.spec, name) for name in OF_MODEL},
            "bos_tokens": list(run.bos.tokens),
            "bos_ids": list(run.bos.ids),
            **run.checkpoint,
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


def reserve_run(out: str | Path, force: bool) -> AbstractContextManager[Reserved]:
    """Reserve a run folder for as long as the block runs; nothing is left of it where the block does not finish.

    Args:
        out: The folder; `~` is the home folder.
        force: Replace a run folder, and remove what a killed run left.

    Returns:
        A context manager of the reservation.

    Raises:
        OutputExistsError: It exists and `force` is not given, or it is no run folder of ours, or holds files that its
            run did not write; another process is writing it; a killed run left something and `force` is not given.
        ConfigError: No folder of this name can be made.
    """
    rules = Rules(
        force=force, check=_check_free, is_ours=lambda folder: _written_by(folder) is not None, remove=_remove
    )
    return reserved(out, rules)


def _check_free(folder: Path, force: bool) -> None:
    """Refuse a name that is taken by something that may not be replaced."""
    if not os.path.lexists(folder):
        return
    if not force:
        raise OutputExistsError(
            f"output folder {str(folder)!r} exists. Name another with --out, or replace it with --force."
        )
    if not folder.is_dir() or folder.is_symlink() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise OutputExistsError(
            f"output {str(folder)!r} is not a run folder ({MANIFEST} is not in it), so --force does not replace it. "
            "Name another with --out."
        )
    written = _written_by(folder)
    if written is None and any(folder.iterdir()):
        raise OutputExistsError(
            f"output {str(folder)!r} has a {MANIFEST} that is damaged or not of this program, so --force does not "
            "replace it. Name another with --out."
        )
    if foreign := _foreign(folder, written or frozenset()):
        raise _holds_foreign(folder, foreign)


def _holds_foreign(folder: Path, foreign: Sequence[str]) -> OutputExistsError:
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    return OutputExistsError(
        f"run folder {str(folder)!r} holds files that its run did not write ({', '.join(map(repr, foreign[:3]))}{more})"
        ", which --force does not delete. Move them away, or name another folder with --out."
    )


def _written_by(folder: Path) -> frozenset[str] | None:
    """Names of the files that a run wrote into its folder; None without a manifest of this program."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            return None
        return frozenset({*manifest["files"], MANIFEST, REPORT})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _foreign(folder: Path, written: frozenset[str]) -> list[str]:
    """Files in a folder that are not among those written; links count as files and are not followed."""
    found = [
        (Path(where) / name).relative_to(folder).as_posix()
        for where, folders, names in os.walk(folder)
        for name in (*names, *(each for each in folders if (Path(where) / each).is_symlink()))
    ]
    return sorted(set(found) - written)


def _remove(folder: Path) -> None:
    """Remove a run folder, the manifest last, because it lists the run's files.

    Raises:
        OutputExistsError: It holds files that the run did not write; nothing is removed.
    """
    written = _written_by(folder) or frozenset()
    if foreign := _foreign(folder, written):
        raise _holds_foreign(folder, foreign)
    for where, folders, names in os.walk(folder, topdown=False):
        for name in names:
            if Path(where) != folder or name != MANIFEST:
                (Path(where) / name).unlink()
        for name in folders:
            (Path(where) / name).rmdir()
    (folder / MANIFEST).unlink(missing_ok=True)
    folder.rmdir()
