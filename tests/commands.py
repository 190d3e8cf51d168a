"""Run the command line as a user does: in a process of its own, somewhere else than the checkout.

Python takes seconds to import torch, transformers and TransformerLens. A server, one for each test worker, imports them
once; every command and every script is run by a fork of it, with arguments, folder, environment and streams of its
own, without the type checks of the tests, and with another hash seed than theirs.
"""

import gc
import os
import pkgutil
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

HASH_SEED = "271828"
HERE = str(Path(__file__).parent)


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


def run_circuitlab(*args: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = 600) -> Finished:
    """`circuitlab ARGS...` in a folder, on a terminal of 80 columns that nobody looks at."""
    env = {"COLUMNS": "80", **(env or {})}
    words = list(map(str, args))
    if any(name.startswith("PYTHON") for name in env):  # what only an interpreter that starts would read
        return run_anew("-m", "circuitlab", *words, cwd=cwd, env=env, timeout=timeout)
    return _in_a_fork(_run_module, ("circuitlab", words), cwd, env, timeout)


def run_python(code: str, *args: object, cwd: Path | None = None, timeout: float = 600) -> Finished:
    """`python -c CODE ARGS...` with the hash seed `HASH_SEED`."""
    return _in_a_fork(_run_code, (code, list(map(str, args))), cwd or Path.cwd(), {}, timeout)


def run_anew(*words: str, cwd: Path, env: dict[str, str], timeout: float = 600) -> Finished:
    """`python WORDS...` in an interpreter that starts and imports everything itself."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@cache
def _server() -> ForkServerContext:
    """The server, with everything imported that a command may import; it ends with this process."""
    import circuitlab

    context = get_context("forkserver")
    modules = [module.name for module in pkgutil.walk_packages(circuitlab.__path__, "circuitlab.")]
    modules.remove("circuitlab.__main__")
    bridge = ["transformer_lens.model_bridge.sources", "transformers.models.gpt2.modeling_gpt2"]
    context.set_forkserver_preload([*modules, *bridge, "matplotlib.pyplot"])
    return context


def _in_a_fork(
    run: Callable[..., None], given: tuple[object, ...], cwd: Path, env: dict[str, str], timeout: float
) -> Finished:
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = HASH_SEED  # of the server, which the first command starts
    try:
        with TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            process = _server().Process(target=_begin, args=(run, given, cwd, {**os.environ, **env}, out, err))
            process.start()
            process.join(timeout)
            if process.exitcode is None:
                process.kill()
                raise subprocess.TimeoutExpired(list(map(str, given)), timeout)
            texts = [path.read_text(encoding="utf-8") for path in (out, err)]
    finally:
        os.environ.pop("PYTHONHASHSEED")
        if before is not None:
            os.environ["PYTHONHASHSEED"] = before
    return Finished(process.exitcode, *texts)


def _begin(
    run: Callable[..., None], given: tuple[object, ...], cwd: Path, env: dict[str, str], out: Path, err: Path
) -> None:
    """In the fork: what a process starts with, then the command."""
    gc.freeze()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:] = [str(cwd), *(path for path in sys.path if path not in ("", HERE))]
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    run(*given)


def _run_module(name: str, words: list[str]) -> None:
    sys.argv = [name, *words]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _run_code(code: str, words: list[str]) -> None:
    sys.argv = ["-c", *words]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
