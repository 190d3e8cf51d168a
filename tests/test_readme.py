"""The README as a newcomer reads it: every line pasted into a new shell, in order, in a folder with just a checkout.

The commands behind the last block of Python, of which there are many, are run in the same folder by the library under
test (`commands.py`), which the shell's environment holds a copy of.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_circuitlab
from test_docs import ROOT, assert_shows, blocks, commands

README = ROOT / "README.md"
# What `pip install` reads; a checkout holds more.
CHECKOUT = ("pyproject.toml", "README.md", "LICENSE", "circuitlab", "tasks")
MARK = "@@ line "
END = "END_OF_BLOCK"


def pasted(line: str) -> str:
    """The line as it is run here.

    `make` installs locked versions from the network, and other models come from there: of these lines only the target
    and the options are checked.
    """
    words = shlex.split(line)
    if words[0] == "make":
        return f"make --dry-run --always-make {words[1]} > make.txt"
    if "--model" in words and words[words.index("--model") + 1] != "bundled":
        return shlex.join([*words[: words.index("--model")], "--help"])
    return line


def pieces(readme: Path) -> list[tuple[str, str | None, str]]:
    """Everything on the page in order: a script for the shell, the command in it if it is one, the output shown."""
    found = list[tuple[str, str | None, str]]()
    for block in blocks(readme):
        if block.title:
            found.append((f"cat > {block.title} <<'{END}'\n{block.body}{END}", None, ""))
        elif block.language == "python":
            found.append((f"python - <<'{END}'\n{block.body}{END}", None, ""))
        elif block.language == "console":
            found += [(pasted(line), line, output) for line, output in commands(block.body)]
    return found


def session(readme: Path) -> tuple[str, list[tuple[str, str]], list[tuple[str, str]]]:
    """A script of the page up to the last line that is no `circuitlab` command, its commands, and those behind it."""
    found = pieces(readme)
    last = max(i for i, (_, line, _) in enumerate(found) if not (line or "").startswith("circuitlab "))
    script, shown = list[str](), list[tuple[str, str]]()
    for text, line, output in found[: last + 1]:
        if line is None:
            script.append(text)
        else:
            script.append(f"echo '{MARK}{len(shown)}'\n{text}")
            shown.append((line, output))
    return "\n".join(script), shown, [(line, output) for _, line, output in found[last + 1 :] if line]


def paste(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a new shell. Dependencies are those installed here; `pip` fetches nothing."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.base_prefix) / "bin"), "/usr/local/bin", "/usr/bin", "/bin"]),
        "PYTHONPATH": os.pathsep.join(packages), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "COLUMNS": "80", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.run(
        ["bash", "-e"], input=script, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path) -> Path:
    for name in CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_every_line_works_as_pasted(checkout):
    script, shown, behind = session(README)
    assert len(shown) >= 7
    assert len(behind) >= 10
    done = paste(script, checkout)
    outputs = re.split(rf"^{MARK}(\d+)$\n?", done.stdout, flags=re.MULTILINE)
    reached = list(map(int, outputs[1::2]))
    assert done.returncode == 0, f"{shown[reached[-1]][0]}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
    assert reached == list(range(len(shown)))
    for (line, expected), output in zip(shown, outputs[2::2], strict=True):
        if pasted(line) == line:
            assert_shows(output, expected)
    for line, expected in behind:
        done = run_circuitlab(*shlex.split(pasted(line))[1:], cwd=checkout)
        assert done.code == 0, f"{line}\n{done.err}"
        if pasted(line) == line:
            assert_shows(done.out, expected)
    where = subprocess.run(
        [checkout / "venv" / "bin" / "python", "-c", "import circuitlab; print(circuitlab.__file__)"],
        capture_output=True, text=True, check=False, cwd="/", env={},
    )  # fmt: skip
    assert Path(where.stdout.strip()) == checkout / "circuitlab" / "__init__.py", where


def test_the_check_above_can_fail(checkout):
    """The command before it is installed, as the README once had it; and a command that does not exist."""
    for line in ("circuitlab tasks", "source venv/bin/activate"):
        assert paste(f"{line}\n", checkout).returncode != 0
