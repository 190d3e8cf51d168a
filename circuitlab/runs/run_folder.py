"""Write what a discovery found as a folder that other programs read; whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from circuitlab.data.citation import cite_run
from circuitlab.discovery.scoring import find_method
from circuitlab.discovery.stability import Stability
from circuitlab.drawing import report
from circuitlab.errors import OutputExistsError
from circuitlab.files import path_from_here
from circuitlab.outputs import LOCK, Reserved, Rules, reserved
from circuitlab.runs.record import RunRecord

SCHEMA = "circuitlab.run/1"
REPORT = "report.html"
MANIFEST = "manifest.json"
VERSIONED = ("circuitlab", "torch", "transformer_lens", "transformers", "numpy", "scipy", "networkx", "matplotlib")


@contextmanager
def reserve_run(out: str | Path, force: bool) -> Iterator[Reserved]:
    """Reserve a run folder for as long as the block runs; nothing is left of it where the block does not finish.

    Args:
        out: The folder; `~` is the home folder.
        force: Replace a run folder, and remove what a killed run left.

    Raises:
        OutputExistsError: It exists and `force` is not given, or it is no run folder of ours, or holds files that its
            run did not write; another process is writing it; a killed run left something and `force` is not given.
        ConfigError: No folder of this name can be made.
    """
    rules = Rules(
        force=force, check=_check_free, is_ours=lambda folder: _written_by(folder) is not None, remove=_remove
    )
    with reserved(out, rules) as place:
        yield place


def write_run(run: RunRecord, place: Reserved, folder: Path) -> Path:
    """Write a run folder in the place that was reserved for it.

    Returns:
        Where it is: the folder asked for, `~` replaced.
    """
    new = place.part
    _write_data(run, new)
    _write_pictures(run, new)
    manifest = manifest_of(run, new)
    manifest["bibtex"] = cite_run(manifest, str(folder))
    _write_json(new / MANIFEST, manifest)
    # The page tells no times, so that the same seed gives the same page.
    report(run, new, name=path_from_here(folder))
    manifest["files"] = _digests(new)
    _write_json(new / MANIFEST, manifest)
    place.put_in_place()
    return folder


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
    """Names of the files that a run wrote into its folder; None where no manifest of ours says so."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            return None
        return frozenset({*manifest["files"], MANIFEST, REPORT})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_ours(folder: Path) -> bool:
    return _written_by(folder) is not None


def _foreign(folder: Path, written: frozenset[str]) -> list[str]:
    """Files in a folder that are not among those written; links count as files and are not followed."""
    found = [
        (Path(where) / name).relative_to(folder).as_posix()
        for where, folders, names in os.walk(folder)
        for name in (*names, *(each for each in folders if (Path(where) / each).is_symlink()))
    ]
    return sorted(set(found) - written)


def _remove(folder: Path) -> None:
    """Remove a run folder, the manifest last: as long as it is there, it says which files are the run's.

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


def manifest_of(run: RunRecord, folder: Path) -> dict[str, Any]:
    """What was asked of what, with which versions, and the SHA-256 of every file in the folder."""
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
        "metric": {"name": run.metric.name, "unit": run.metric.unit, "what": run.metric.what},
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
        "files": _digests(folder),
    }


def _write_data(run: RunRecord, folder: Path) -> None:
    pairs = run.pairs
    splits = {"discovery": pairs.discovery, "held_out": pairs.held_out, "reference": pairs.reference or ()}
    lines = [_one_line(pair.as_record(name)) for name, split in splits.items() for pair in split]
    (folder / "dataset.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if run.grids:
        (folder / "sweeps").mkdir()
    for site, grid in run.grids.items():
        grid.to_frame().to_csv(folder / "sweeps" / f"{site}.csv", index=False)
    run.circuit.to_frame().to_csv(folder / "edges.csv", index=False)
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
    if run.task.origin:
        shutil.copyfile(run.task.origin, folder / "task.py")


def _write_pictures(run: RunRecord, folder: Path) -> None:
    for site, grid in run.grids.items():
        grid.plot().save(folder / "sweeps" / f"{site}.png")
    drawing = run.circuit.plot(title=f"{run.task.label} in {Path(run.model_id).name}")
    for name in ("circuit.png", "circuit.svg"):
        drawing.save(folder / name)
    if run.attention:
        run.attention.plot().save(folder / "attention.png")
    for name, found in _repeated(run):
        title = f"{run.task.label} in {Path(run.model_id).name}: {len(found.chosen)} {found.repeated}"
        found.plot(title=title).save(folder / f"{name}.png")


def _repeated(run: RunRecord) -> list[tuple[str, Stability]]:
    """Repetitions of the discovery that were asked for, with the names of their files."""
    found = (("stability", run.stability), ("stability-seeds", run.stability_seeds))
    return [(name, one) for name, one in found if one is not None]


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, LOCK))
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _one_line(record: dict[str, Any]) -> str:
    """A record as one line of JSON, also for readers that take Unicode's other line ends for one."""
    text = json.dumps(record, ensure_ascii=False)
    return re.sub("[\x85\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, for which JSON has no word."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
