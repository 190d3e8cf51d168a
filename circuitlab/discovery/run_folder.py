"""Write what a discovery found as a folder that other programs read; whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitlab import late
from circuitlab.data.citation import cite_run
from circuitlab.data.sampling import task_fingerprint
from circuitlab.errors import ConfigError, OutputExistsError

if TYPE_CHECKING:
    from circuitlab.discovery.pipeline import Run
    from circuitlab.discovery.stability import Stability

SCHEMA = "circuitlab.run/1"
REPORT = "report.html"
MANIFEST = "manifest.json"
VERSIONED = ("circuitlab", "torch", "transformer_lens", "transformers", "numpy", "scipy", "networkx", "matplotlib")


def check_free(folder: Path, force: bool) -> None:
    """Refuse a folder that is taken, before any work; `~` is the home folder.

    Raises:
        OutputExistsError: It exists and `force` is not given, or it is no folder of ours that could be replaced.
        ConfigError: It would lie inside a file.
    """
    folder = at_home(folder)
    for parent in folder.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(f"output folder {str(folder)!r} cannot be made: {str(parent)!r} is a file. Name another.")
    if not folder.exists():
        return
    if not force:
        raise OutputExistsError(
            f"output folder {str(folder)!r} exists. Name another with --out, or replace it with --force."
        )
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise OutputExistsError(
            f"output {str(folder)!r} is not a run folder ({MANIFEST} is not in it), so --force does not replace it. "
            "Name another with --out."
        )


def at_home(path: str | Path) -> Path:
    """A path with `~` replaced by the home folder, as a shell does where it sees it (in `--out=~/x` it does not)."""
    return Path(os.path.expanduser(path))


def write_run(run: Run, folder: Path, force: bool) -> Path:
    """Write a run folder under a temporary name, then put it in its place.

    Returns:
        Where it is: the folder asked for, `~` replaced.

    Raises:
        OutputExistsError: The folder is there and `force` is not given.
        ConfigError: It would lie inside a file.
    """
    folder = at_home(folder)
    check_free(folder, force)
    with _new_folder(folder) as new:
        _write_data(run, new)
        _write_pictures(run, new)
        manifest = manifest_of(run, new)
        manifest["bibtex"] = cite_run(manifest, str(folder))
        _write_json(new / MANIFEST, manifest)
        # The page tells no times, so that the same seed gives the same page.
        late.call("circuitlab.report", "write_report", new, name=folder.name)
        manifest["files"] = _digests(new)
        _write_json(new / MANIFEST, manifest)
    return folder


def manifest_of(run: Run, folder: Path) -> dict[str, Any]:
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
            "fingerprint": task_fingerprint(task),
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
        "behaviour": {
            "prefers_answer": run.behaviour.prefers,
            "corruption_turns_over": run.behaviour.turns,
            "metric_gap": run.behaviour.gap.mean,
            "metric_gap_se": run.behaviour.gap.standard_error,
        },
        "method": {"name": run.scores.method, "checks": dict(run.scores.checks)},
        "selection": None if run.circuit.selection is None else run.circuit.selection.to_record(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}},
        "device": run.config.device,
        "dtype": run.config.dtype,
        "seconds": {step: round(seconds, 3) for step, seconds in run.seconds.items()},
        "files": _digests(folder),
    }


def _write_data(run: Run, folder: Path) -> None:
    pairs = run.pairs
    splits = {"discovery": pairs.discovery, "held_out": pairs.held_out, "reference": pairs.reference or ()}
    lines = [_one_line(pair.as_record(name)) for name, split in splits.items() for pair in split]
    (folder / "dataset.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
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


def _write_pictures(run: Run, folder: Path) -> None:
    def save(figure: Any, path: Path) -> None:
        late.call("circuitlab.viz", "save_figure", figure, path)

    for site, grid in run.grids.items():
        save(grid.plot(), folder / "sweeps" / f"{site}.png")
    drawing = run.circuit.plot(title=f"{run.task.label} in {Path(run.model_id).name}")
    for name in ("circuit.png", "circuit.svg"):
        save(drawing, folder / name)
    if run.attention:
        save(run.attention.plot(), folder / "attention.png")
    for name, found in _repeated(run):
        title = f"{run.task.label} in {Path(run.model_id).name}: {len(found.chosen)} {found.repeated}"
        save(found.plot(title=title), folder / f"{name}.png")


def _repeated(run: Run) -> list[tuple[str, Stability]]:
    """Repetitions of the discovery that were asked for, with the names of their files."""
    found = (("stability", run.stability), ("stability-seeds", run.stability_seeds))
    return [(name, one) for name, one in found if one is not None]


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling that takes the folder's place when the block succeeds, and is gone when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield new
        new.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
            os.replace(folder, old)
            try:
                os.replace(new, folder)
            except BaseException:
                os.replace(old, folder)
                raise
            shutil.rmtree(old)
        else:
            os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
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
