"""Outputs: refused and reserved before the work, whole or not at all, and nobody else's files in any case."""

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from runs import TASK

from circuitlab import CircuitLabError, ConfigError, OutputExistsError, discover
from circuitlab.cli import main
from circuitlab.discovery.config import DiscoverConfig, default_folder
from circuitlab.outputs import reserve as reserve_module
from circuitlab.outputs import whole as whole_module
from circuitlab.outputs.lock import LOCK
from circuitlab.outputs.paths import check_path
from circuitlab.outputs.reserve import put_file, put_tables, reserved_file, reserved_tables
from circuitlab.outputs.whole import exchange
from circuitlab.runs.write import reserve_run

# Changes of the disk: a process is killed before each of them in turn.
CALLS = ("rename", "replace", "mkdir", "rmdir", "unlink", "open", "ftruncate", "write")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str, force: bool = False) -> None:
    """A run folder of four files, as `discover` writes one, without its hour of work."""
    with reserve_run(folder, force) as place:
        fill(place.part, text)
        place.move_into_place()


def fill(part: Path, text: str) -> None:
    (part / "sweeps").mkdir()
    files = ["edges.csv", "sweeps/head_z.csv", "report.html"]
    for name in files:
        (part / name).write_text(text)
    manifest = {"schema": "circuitlab.run/1", "files": dict.fromkeys(files, "0" * 64), "text": text}
    (part / "manifest.json").write_text(json.dumps(manifest))


def text_in(folder: Path) -> str | None:
    """What a whole run folder holds; None where there is none. A folder by halves fails the test."""
    if not folder.exists():
        return None
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads(found.pop("manifest.json"))
    assert set(found) == {"edges.csv", "sweeps/head_z.csv", "report.html"}
    assert set(found.values()) == {manifest["text"]}
    return manifest["text"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------ refused


def bad_places(here: Path) -> dict[str, str]:
    (here / "file").write_text("mine")
    (here / "folder").mkdir()
    (here / "link").symlink_to(here / "folder")
    (here / "dangling").symlink_to(here / "nowhere")
    (here / "to_file").symlink_to(here / "file")
    (here / "loop").symlink_to(here / "loop")
    (here / "a" / "b").mkdir(parents=True)
    os.mkfifo(here / "pipe")
    return {
        "a link to a folder": "link", "a link to a folder, with a slash": "link/", "a dangling link": "dangling",
        "a link to a file": "to_file", "a loop of links": "loop", "this folder": ".", "this folder again": "./",
        "the folder above": "..", "the folder above a folder": "a/..", "the root": "/", "nothing": "", "a file": "file",
        "inside a file": "file/x", "deep inside a file": "file/x/y", "inside a dangling link": "dangling/x",
        "inside a loop": "loop/x", "a pipe": "pipe", "a device": "/dev/null", "inside a device": "/dev/null/x",
        "NUL": "a\0b", "a line break": "a\nb", "an escape": "a\x1b[31mb", "too long": "x" * 300,
        "almost too long": "x" * 250, "a path too long": "x/" * 3000 + "x", "no UTF-8": "a\udc80b",
        "as Windows writes": "C:\\runs\\x", "backslashes": "runs\\x", "where nothing can be made": "/proc/x/y",
    }  # fmt: skip


NAMES = (
    "a link to a folder", "a link to a folder, with a slash", "a dangling link", "a link to a file", "a loop of links",
    "this folder", "this folder again", "the folder above", "the folder above a folder", "the root", "nothing",
    "a file", "inside a file", "deep inside a file", "inside a dangling link", "inside a loop", "a pipe", "a device",
    "inside a device", "NUL", "a line break", "an escape", "too long", "almost too long", "a path too long", "no UTF-8",
    "as Windows writes", "backslashes", "where nothing can be made",
)  # fmt: skip


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("what", NAMES)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(what, force, here):
    out = bad_places(here)[what]
    before = names(here)
    with pytest.raises(ConfigError) as told:
        discover(TASK, model="no such model", out=out, force=force)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600
    assert names(here) == before
    assert (here / "file").read_text() == "mine"


def test_places_that_are_odd_and_can_be_written(here):
    (here / "real").mkdir()
    (here / "link").symlink_to(here / "real")
    for out in ("a run/", "-x", "é", "link/x", "deep/er/x", "../" + here.name + "/up", "a*b", "x" * 200):
        write(Path(out), "new")
        assert text_in(here / out) == "new"
    (here / "empty").mkdir()
    with pytest.raises(OutputExistsError):
        write(here / "empty", "new")
    write(here / "empty", "new", force=True)
    assert text_in(here / "empty") == "new"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_what_the_system_refuses_is_told_before_the_work(number, here, monkeypatch):
    def refuse(path: Any, *mode: int, **where: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(ConfigError, match=os.strerror(number)):
        discover(TASK, model="no such model", out="x")
    with pytest.raises(ConfigError, match=os.strerror(number)):
        discover(TASK, model="no such model", out="deep/x")
    assert names(here) == set()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused_before_the_work(here):
    (here / "locked").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        discover(TASK, model="no such model", out="locked/x")


@pytest.mark.parametrize("out", [5, b"x", ["x"], True])
def test_what_is_no_path_is_refused(out, here):
    with pytest.raises((ConfigError, TypeError)):
        reserve_run(out, False).__enter__()
    assert names(here) == set()


@pytest.mark.parametrize("label", ["task-a/b", "../../x", "/abs", "a\\b", "a b\n", "..", "a\0"])
def test_the_default_folder_is_inside_runs_whatever_task_and_options_are_called(label, here):
    config = DiscoverConfig(task=TASK, model="models/gpt2")
    folder = default_folder(config, label)
    assert folder.parent == Path("runs")
    check_path(folder)
    assert str(default_folder(config, "name-throw")) == "runs/name-throw-gpt2-eap-ig-0"


def test_work_that_fails_leaves_nothing_not_even_the_folders_above(here):
    with pytest.raises(CircuitLabError):
        discover(TASK, model="no such model", out="deep/er/x")
    for failure in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(failure):
            fail(failure)
    assert names(here) == set()


def fail(failure: type[BaseException]) -> None:
    with reserve_run("deep/x", False) as place:
        (place.part / "half").write_text("half")
        raise failure


# ------------------------------------------------------------------------------------------------ --force


def test_force_replaces_what_the_earlier_run_wrote(here):
    write(here / "x", "old")
    write(here / "x", "new", force=True)
    assert text_in(here / "x") == "new"
    assert names(here) == {"x"}


@pytest.mark.parametrize("name", ["notes.txt", "sweeps/notes.txt", "mine/deep/notes.txt", ".hidden", "link", "folder"])
def test_force_never_deletes_a_file_that_the_earlier_run_did_not_write(name, here):
    write(here / "x", "old")
    foreign = here / "x" / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    if name in ("link", "folder"):
        (here / "theirs").mkdir()
        (here / "theirs" / "precious").write_text("mine")
        foreign.symlink_to(here / "theirs" if name == "folder" else here / "theirs" / "precious")
    else:
        foreign.write_text("mine")
    with pytest.raises(OutputExistsError) as told:
        write(here / "x", "new", force=True)
    assert repr(name) in str(told.value)
    assert os.path.lexists(foreign)
    assert (here / "x" / "edges.csv").read_text() == "old"
    foreign.unlink()
    write(here / "x", "new", force=True)
    assert text_in(here / "x") == "new"


def test_many_foreign_files_are_counted(here):
    write(here / "x", "old")
    for number in range(9):
        (here / "x" / f"{number}.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"'0.txt', '1.txt', '2.txt' and 6 more"):
        write(here / "x", "new", force=True)


def test_a_file_that_came_during_the_work_is_not_deleted_and_the_result_is_kept(here):
    write(here / "x", "old")
    with pytest.raises(OutputExistsError, match=r"'notes.txt'.*new result is kept in .*\.x\.part"):
        late_file(here)
    assert (here / "x" / "notes.txt").read_text() == "mine"
    (here / "x" / "notes.txt").unlink()
    assert text_in(here / ".x.part") == "new"
    write(here / "x", "newer", force=True)
    assert names(here) == {"x"}


def late_file(here: Path) -> None:
    with reserve_run(here / "x", True) as place:
        (here / "x" / "notes.txt").write_text("mine")
        fill(place.part, "new")
        place.move_into_place()


def test_a_folder_of_the_same_name_that_came_during_the_work_stays(here):
    def meanwhile() -> None:
        with reserve_run(here / "x", False) as place:
            (here / "x").mkdir()
            (here / "x" / "thesis.tex").write_text("mine")
            place.move_into_place()

    with pytest.raises(OutputExistsError, match="new result is kept"):
        meanwhile()
    assert (here / "x" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    "manifest", ["{", "[]", "{}", '{"schema": "web", "files": {}}', '{"name": "app", "icons": []}']
)
def test_force_replaces_no_folder_with_a_manifest_of_something_else(manifest, here):
    (here / "x").mkdir()
    (here / "x" / "manifest.json").write_text(manifest)
    with pytest.raises(OutputExistsError, match=r"damaged or not of this program"):
        write(here / "x", "new", force=True)
    assert (here / "x" / "manifest.json").read_text() == manifest


def test_a_name_outside_in_a_manifest_deletes_nothing_outside(here):
    (here / "precious").write_text("mine")
    write(here / "x", "old")
    manifest = json.loads((here / "x" / "manifest.json").read_text())
    manifest["files"] |= {"../precious": "", str(here / "precious"): ""}
    (here / "x" / "manifest.json").write_text(json.dumps(manifest))
    write(here / "x", "new", force=True)
    assert (here / "precious").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ two at once


@contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """A process of its own that does the work; exit code 0, or 2 where it is refused. Killed at the end."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        except OutputExistsError:
            code = 2
        finally:
            os._exit(code)
    try:
        yield process
    finally:
        try:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def ended(process: int) -> int:
    """Exit code of a process, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def hold_on(here: Path, force: bool = False) -> None:
    """Reserve and wait to be killed."""
    with reserve_run(here / "x", force):
        (here / "reserved").touch()
        time.sleep(60)


def wait_for(path: Path) -> None:
    for _ in range(1000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not come")


@pytest.mark.parametrize("force", [False, True])
def test_the_second_of_two_ends_at_once_whether_forced_or_not(force, here):
    with child(lambda: hold_on(here)) as first:
        wait_for(here / "reserved")
        with pytest.raises(OutputExistsError) as told:
            discover(TASK, model="no such model", out=here / "x", force=force)
        assert os.waitpid(first, os.WNOHANG) == (0, 0)  # the first still runs: the second did not wait for it
        for part in ("being written by another run", f"process {first} on", "--out"):
            assert part in str(told.value)
    with pytest.raises(OutputExistsError, match="was left by a run that was killed"):
        write(here / "x", "new")
    write(here / "x", "new", force=True)
    assert text_in(here / "x") == "new"
    assert names(here) == {"x", "reserved"}


def test_of_many_that_start_together_one_wins(here):
    go = time.monotonic() + 0.3

    def compete() -> None:
        while time.monotonic() < go:
            pass
        with reserve_run(here / "x", False) as place:
            time.sleep(0.5)
            fill(place.part, "new")
            place.move_into_place()

    with child(compete) as a, child(compete) as b, child(compete) as c, child(compete) as d:
        codes = sorted(ended(process) for process in (a, b, c, d))
    assert codes == [0, 2, 2, 2]
    assert text_in(here / "x") == "new"
    assert names(here) == {"x"}


def test_one_process_reserves_a_name_once(here):
    with reserve_run("x", False), pytest.raises(OutputExistsError, match="being written"):
        write(Path("x"), "new", force=True)
    write(Path("x"), "new")


# ------------------------------------------------------------------------------------------------ kills


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Do the work in a process that is killed at its n-th change of the disk; whether it came so far."""

    def patched() -> None:
        left = [number]
        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((os, name) for name in CALLS):
                patch.setattr(module, name, deadly(getattr(module, name), left))
            patch.setattr(whole_module, "exchange", deadly(whole_module.exchange, left))
            work()

    with child(patched) as process:
        code = ended(process)
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def deadly(real: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **settings: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **settings)

    return call


@pytest.mark.parametrize("force", [False, True])
def test_a_kill_at_any_moment_leaves_the_name_whole(force, here):
    for number in range(1, 200):
        place = here / str(number)
        place.mkdir()
        if force:
            write(place / "x", "old")
        came_so_far = killed_at(number, lambda place=place: write(place / "x", "new", force=force))
        found = text_in(place / "x")
        assert found in (("old", "new") if force else (None, "new")), "never empty where there was a result"
        if not came_so_far:
            assert names(place) == {"x"}
            break
        left = names(place) - {"x"}
        if found or left:
            with pytest.raises(OutputExistsError) as told:
                write(place / "x", "next")
            assert not left or ".x." in str(told.value)
        write(place / "x", "next", force=True)
        assert text_in(place / "x") == "next"
        assert names(place) == {"x"}, number
    assert number > (14 if force else 7), "the moments were counted"


def test_where_two_folders_cannot_be_exchanged_the_old_one_comes_back(here, monkeypatch):
    """A kill between two renames, on a file system without an exchange: the next command puts the old result back."""
    monkeypatch.setattr(whole_module, "exchange", lambda one, other: False)
    seen = set()
    for number in range(1, 60):
        place = here / str(number)
        place.mkdir()
        write(place / "x", "old")
        if not killed_at(number, lambda place=place: write(place / "x", "new", force=True)):
            break
        seen.add(text_in(place / "x"))
        with pytest.raises(OutputExistsError):
            write(place / "x", "next")
        assert text_in(place / "x") in ("old", "new")
        write(place / "x", "next", force=True)
        assert names(place) == {"x"}
    assert seen == {"old", "new", None}


def test_an_exchange_leaves_both_names(here):
    (here / "a").mkdir()
    (here / "b").mkdir()
    (here / "a" / "x").touch()
    if exchange(here / "a", here / "b"):
        assert (names(here / "a"), names(here / "b")) == (set(), {"x"})
    assert not exchange(here / "a", here / "none")


def test_where_there_are_no_locks_a_process_that_runs_is_found_by_its_number(here, monkeypatch):
    monkeypatch.setattr(reserve_module, "hold", lambda descriptor, wait=False: None)
    with reserve_run("x", False):
        with pytest.raises(OutputExistsError, match="being written"):
            write(Path("x"), "new", force=True)
        holder = json.loads((here / ".x.part" / LOCK).read_text())
        (here / ".x.part" / LOCK).write_text(json.dumps({**holder, "pid": 2**22 + 1}))
        with pytest.raises(OutputExistsError, match="was left"):
            write(Path("x"), "new")


def test_what_somebody_else_called_so_is_left_alone(here):
    (here / ".x.part").mkdir()
    (here / ".x.part" / "mine").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputExistsError, match=r"in the way"):
            write(here / "x", "new", force=force)
    (here / ".y.old").write_text("mine")
    (here / ".z.part").symlink_to(here / ".x.part")
    for name in "yz":
        with pytest.raises(OutputExistsError, match=r"in the way"):
            write(here / name, "new", force=True)
    assert (here / ".x.part" / "mine").read_text() == (here / ".y.old").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ files and tables


def test_a_file_is_reserved_and_written_whole(here):
    with reserved_file("t.csv", force=False) as place:
        with pytest.raises(OutputExistsError, match="being written"), reserved_file("t.csv", force=True):
            pass
        put_file(place, lambda path: path.write_text("a"))
    assert (here / "t.csv").read_text() == "a"
    with pytest.raises(OutputExistsError), reserved_file("t.csv", force=False):
        pass
    with pytest.raises(ZeroDivisionError), reserved_file("t.csv", force=True) as place:
        put_file(place, lambda path: (path.write_text("half"), 1 / 0))
    assert (here / "t.csv").read_text() == "a"
    assert names(here) == {"t.csv"}


def test_a_file_that_came_during_the_work_is_not_overwritten(here):
    def meanwhile() -> None:
        with reserved_file("t.csv", force=False) as place:
            (here / "t.csv").write_text("mine")
            put_file(place, lambda path: path.write_text("a"))

    with pytest.raises(OutputExistsError):
        meanwhile()
    assert (here / "t.csv").read_text() == "mine"


def test_tables_come_together_or_not_at_all(here):
    files = {"a.csv": lambda path: path.write_text("a"), "b.csv": lambda path: 1 / 0}
    with pytest.raises(ZeroDivisionError), reserved_tables("t", force=False) as place:
        put_tables(place, files)
    assert names(here) == set()
    with reserved_tables("t", force=False) as place:
        put_tables(place, {"a.csv": files["a.csv"]})
    (here / "t" / "notes").write_text("mine")
    with reserved_tables("t", force=True) as place:
        put_tables(place, {"a.csv": lambda path: path.write_text("b")})
    assert names(here / "t") == {"a.csv", "notes"}
    assert (here / "t" / "a.csv").read_text() == "b"


CIRCUIT = "circuit.json"
COMMANDS = {
    "discover": ["discover", TASK, "--out", "{}"],
    "sweep": ["sweep", TASK, "--site", "head_z", "--out", "{}"],
    "sweep, state": ["sweep", TASK, "--site", "head_z", "--resume", "{}"],
    "attribute": ["attribute", TASK, "--out", "{}"],
    "compare": ["compare", CIRCUIT, CIRCUIT, "--out", "{}.png"],
    "convert": ["convert", CIRCUIT, "{}.dot"],
    "predict": ["predict", "a text", "--html", "{}.html"],
    "importance": ["neurons", "importance", "a text", "--out", "{}.csv"],
    "activations": ["neurons", "activations", "a text", "--layer", "0", "--neurons", "1", "--html", "{}.html"],
}
BAD = ("file/x", "dangling", "a\nb", "x" * 300, "back\\slash", "dangling/x")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("out", BAD)
def test_every_command_refuses_a_bad_place_before_a_model_is_loaded(command, out, here, monkeypatch, capsys):
    bad_places(here)
    for name in ("dangling.png", "dangling.dot", "dangling.html", "dangling.csv"):
        (here / name).symlink_to(here / "nowhere")
    (here / CIRCUIT).write_text("{")

    def no_model(*given: Any, **settings: Any) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("circuitlab.models.load.load_model", no_model)
    monkeypatch.setattr("circuitlab.runs.pipeline.load_model", no_model)
    before = names(here)
    assert main([word.format(out) for word in COMMANDS[command]]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1, told.err
    assert repr(out)[1:4] in told.err
    assert names(here) == before
