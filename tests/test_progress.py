"""Progress bars: one line in a terminal, nothing elsewhere, and what `progress=` says; for every public function."""

import fcntl
import inspect
import io
import os
import pty
import re
import struct
import sys
import termios
import threading
import tty
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from architectures import load, pairs
from features_by_hand import autoencoder
from tables import pairs as table_rows
from test_mib import copy_of, ioi_row

import circuitlab
from circuitlab import ConfigError, RunError, features, neurons, progress
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.runs import reproduce as reproducing

COLUMNS = 80
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def public_functions() -> dict[str, Callable[..., Any]]:
    """Every public function and method with a parameter `progress`, by its name."""
    found = dict[str, Callable[..., Any]]()
    for module in (circuitlab, neurons, features):
        for name in module.__all__:
            value = getattr(module, name)
            members = {f"{name}.{key}": part for key, part in vars(value).items()} if inspect.isclass(value) else {}
            for key, part in {name: value, **members}.items():
                if inspect.isfunction(part) and "progress" in inspect.signature(part).parameters:
                    found[key] = part
    return found


PUBLIC = public_functions()


def test_the_functions_that_take_long_are_among_them():
    long = {"discover", "sweep", "score_edges", "score_nodes", "select", "evaluate", "test_circuit", "stability"}
    long |= {"reproduce", "patch_edges", "path_patch", "rank_features", "sweep_features", "top_examples"}
    assert long <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_offers_the_same_choice(name):
    parameter = inspect.signature(PUBLIC[name]).parameters["progress"]
    assert parameter.kind is parameter.KEYWORD_ONLY
    assert parameter.default is None
    assert parameter.annotation in ("Progress | bool | None", progress.Progress | bool | None)
    assert "True" in (PUBLIC[name].__doc__ or "").partition("progress:")[2]
    for wrong in ("yes", 1, 0, []):
        with pytest.raises(ConfigError, match=r"progress is .*Give None"):
            PUBLIC[name](progress=wrong)


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Stderr as a terminal of 80 columns; gives what was written to it."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    pieces = list[bytes]()

    def drain() -> None:
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:
                return
            if not piece:
                return
            pieces.append(piece)

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    stream = os.fdopen(slave, "w", encoding="utf-8", buffering=1)

    def written() -> str:
        stream.close()
        reader.join(10)
        return b"".join(pieces).decode()

    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            yield written
    finally:
        written()
        os.close(master)


def frames(text: str) -> list[str]:
    """What the line showed, one state after the other."""
    return [ESCAPES.sub("", part) for part in text.split("\r") if ESCAPES.sub("", part)]


def assert_one_line_that_goes(text: str) -> None:
    shown = frames(text)
    assert any("%" in line for line in shown), text
    assert "\n" not in text
    assert max(map(len, shown)) <= COLUMNS
    assert not shown[-1].strip(), "the last thing drawn clears the line"


@pytest.fixture(scope="module")
def calls(tiny_gpt2, bundled, tmp_path_factory) -> dict[str, Callable[..., Any]]:
    """A cheap call of each public function that reports progress."""
    model, batch = load("gpt2"), pairs()
    scores = circuitlab.score_edges(model, batch, "eap")
    circuit = circuitlab.select(model, scores, batch, n_edges=40)
    own = autoencoder("gpt2", "resid_post")
    rows = [ioi_row(row) for row in table_rows(bundled)]
    data = copy_of(tmp_path_factory.mktemp("mib") / "ioi", rows[:4], rows[12:14])

    def call(function: Callable[..., Any], *args: Any, **settings: Any) -> Callable[..., Any]:
        return lambda **more: function(*args, **settings, **more)

    return {
        "discover": call(
            circuitlab.discover, "name-throw", model=str(tiny_gpt2), n=8, method="eap", selection={"n_edges": 3},
            min_accuracy=0.0, allow_weak_gap=True,
        ),
        "Task.pairs": call(circuitlab.load_task("gendered-pronouns").pairs, bundled, n=4),
        "check_task": call(circuitlab.check_task, "gendered-pronouns", bundled, n=4),
        "evaluate": call(circuitlab.evaluate, model, circuit, batch, n_random=2, n_knockouts=2),
        "mib": call(circuitlab.mib, "ioi", bundled, data=data, method="eap", allow_weak_gap=True),
        "patch_edges": call(circuitlab.patch_edges, model, batch, ["m0->logits"]),
        "path_patch": call(circuitlab.path_patch, model, batch, ["m0"], ["logits"]),
        "reproduce": call(reproduce_nothing),
        "score_edges": call(circuitlab.score_edges, model, batch, "eap"),
        "score_nodes": call(circuitlab.score_nodes, model, batch, "eap"),
        "select": call(circuitlab.select, model, scores, batch, target=0.5, allow_weak_gap=True),
        "stability": call(circuitlab.stability, model, batch, "eap", n_resamples=2, n_edges=5, allow_weak_gap=True),
        "sweep": call(circuitlab.sweep, model, batch, "head_z"),
        "test_circuit": call(circuitlab.test_circuit, model, circuit, batch, n_random=2, n_permutations=9),
        "optimise_prompts": call(neurons.optimise_prompts, model, 0, 0, n_prompts=2, n_tokens=2, steps=2),
        "top_examples": call(neurons.top_examples, bundled, ["One.", "Two."], 0, 0, k=1),
        "rank_features": call(features.rank_features, model, own, batch),
        "sweep_features": call(features.sweep_features, model, own, batch),
    }  # fmt: skip


def reproduce_nothing(**settings: Any) -> None:
    """`reproduce` of a folder whose discovery is called and fails: a whole one takes a second of drawing figures."""

    def discover(*args: Any, progress: progress.Progress, **config: Any) -> None:
        progress("load", 0, 1)
        raise RunError("nothing is run.")

    manifest = {"config": DiscoverConfig(task="name-throw", model="bundled").to_record()}
    with pytest.MonkeyPatch.context() as patch:
        read = reproducing.RunReader(path=Path("no-folder"), manifest=manifest)
        patch.setattr(reproducing.RunReader, "open", lambda folder: read)
        patch.setattr(reproducing, "task_file_of", lambda folder, manifest: None)
        patch.setattr(reproducing, "task_of_run", lambda folder, manifest, run_code: "name-throw")
        patch.setattr(reproducing, "discover", discover)
        with pytest.raises(RunError, match="nothing is run"):
            circuitlab.reproduce("no-folder", **settings)


def test_every_public_function_is_called_below(calls):
    assert set(calls) == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_one_bar_in_a_terminal_and_nothing_elsewhere(name, calls, monkeypatch, capfd):
    """Functions call each other (`discover` nearly all of them), and still there is one bar."""
    with terminal(monkeypatch) as written:
        calls[name]()
        assert_one_line_that_goes(written())
    calls[name](progress=None)
    assert capfd.readouterr() == ("", "")


def test_false_silences_and_true_forces(calls, monkeypatch, capfd):
    with terminal(monkeypatch) as written:
        calls["sweep"](progress=False)
        calls["discover"](progress=False)
        assert written() == ""
    calls["sweep"](progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "sweep" in err
    assert_one_line_that_goes(err)


def test_a_function_is_called_and_nothing_drawn(calls, monkeypatch):
    steps = []
    with terminal(monkeypatch) as written:
        calls["discover"](progress=lambda *at: steps.append(at))
        assert written() == ""
    assert {"load", "prompts", "sweep", "score", "select", "evaluate"} <= {step for step, _, _ in steps}
    assert all(0 <= done <= total for _, done, total in steps)


@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError, SystemExit])
def test_the_line_is_cleared_whatever_ends_the_work(end, monkeypatch):
    @progress.reports_progress
    def work(*, progress: Any = None) -> None:
        for i in range(3):
            progress("step", i, 10)
        raise end

    with terminal(monkeypatch) as written:
        with pytest.raises(end):
            work()
        assert not progress._nested.get()
        assert_one_line_that_goes(written())


def test_long_names_and_totals_that_grow_stay_on_one_line(monkeypatch):
    @progress.reports_progress
    def work(*, progress: Any = None) -> None:
        for i in range(1, 30):
            progress("a step whose name nearly fills a narrow terminal, or a slow one", i, i)
        progress("another", 5, 3)
        progress("another", 0, 0)

    monkeypatch.setattr(progress, "tqdm_class", lambda make=progress.tqdm_class: eager(make()))
    with terminal(monkeypatch) as written:
        work()
        assert_one_line_that_goes(written())


def eager(bar: type) -> Callable[..., Any]:
    """A bar that draws at every call, not ten times a second."""
    return lambda **settings: bar(**settings, mininterval=0, miniters=1)


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_process_without_stderr(stream, monkeypatch):
    """As under pythonw, or where a parent closed it."""
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    steps = []

    @progress.reports_progress
    def work(*, progress: Any = None) -> int:
        progress("step", 1, 2)
        steps.append(progress)
        return 1

    monkeypatch.setattr(sys, "stderr", stream)
    assert work() == work(progress=True) == 1
    assert steps[0] is progress.silent


def test_threads_draw_each_their_own(monkeypatch):
    """That a bar is drawn in one thread keeps no other from it, and none is left."""
    drawn = []
    both = threading.Barrier(2, timeout=30)

    @progress.reports_progress
    def work(*, progress: Any = None) -> None:
        drawn.append(progress)
        both.wait()
        progress("step", 1, 2)

    with terminal(monkeypatch) as written, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: work(), range(2)))
        before = threading.active_count()
        written()
    assert [type(one).__name__ for one in drawn] == ["_Bar", "_Bar"]
    assert threading.active_count() <= before


@pytest.mark.parametrize(("config", "watched"), [({"IPKernelApp": {}}, True), ({}, False)])
def test_notebooks_are_watched(config, watched, monkeypatch):
    """And IPython in a pipe is not."""
    shell = SimpleNamespace(config=config)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress._is_watched() is watched
    with progress.no_bars():
        assert not progress._is_watched()


def test_a_notebook_without_ipywidgets_gets_a_text_bar_and_no_warning(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tqdm", "ipywidgets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(config={})))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        bar = progress.tqdm_class()
    assert not seen
    assert "notebook" not in [base.__module__.rpartition(".")[2] for base in bar.__mro__]


def test_the_command_line_draws_its_own(tmp_path, monkeypatch):
    """`--quiet` in a terminal is quiet, whichever functions a command calls."""
    from circuitlab.cli import main

    with terminal(monkeypatch) as written:
        assert main(["sweep", "name-throw", "--site", "head_z", "--layers", "0", "-n", "8", "--quiet", "--json"]) == 0
        assert written() == ""
