"""The command line: what it prints, its exit codes, and the one line that bad input gets."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from commands import Finished, run_anew

from circuitlab.cli import main

GOOD_TASK = """
from circuitlab import Example, Task

NAMES = ("John", "Mary", "Paul", "Anna", "Mark", "Lisa", "Gary", "Jane")

def draw(rng):
    name, other = rng.sample(NAMES, 2)
    return {example}

TASK = Task(name="my-task", version="1", summary="A test.", draw=draw)
"""


def task_file(example: str) -> Callable[[Path], None]:
    """A task whose draw() returns this."""
    return lambda folder: (folder / "task.py").write_text(GOOD_TASK.format(example=example)) and None


def file(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def folder(name: str, **files: str) -> Callable[[Path], None]:
    """A folder with files; `config_json` stands for config.json."""

    def make(here: Path) -> None:
        (here / name).mkdir()
        for key, text in files.items():
            (here / name / key.replace("_", ".")).write_text(text)

    return make


def nothing(_: Path) -> None:
    """No files are needed."""


@dataclass(frozen=True)
class Bad:
    """Something a user may type, and what the one line must hold: the value given, and what to do."""

    args: str
    says: tuple[str, ...]
    given: Callable[[Path], None] = nothing


BAD = {
    "unknown task": Bad("discover gendered-pronoun", ("'gendered-pronoun'", "Did you mean 'gendered-pronouns'", ".py")),
    "unknown task to show": Bad("tasks show nope", ("'nope'", "name-throw")),
    "unknown task to cite": Bad("cite nope", ("'nope'", "name-throw")),
    "unknown contrast": Bad("discover gendered-pronouns --contrast capitals", ("'capitals'", "'capital'", "gender")),
    "contrast of a task without": Bad("discover name-throw --contrast gender", ("'contrast'", "chain")),
    "unknown option": Bad("discover name-throw --option chian=3", ("'chian'", "'chain'")),
    "option without value": Bad("discover name-throw --option chain", ("'chain'", "KEY=VALUE")),
    "unknown method option": Bad("discover name-throw --method-option points=late", ("'late'", "published-code")),
    "another method's option": Bad(
        "discover name-throw --method eap --method-option points=paper", ("'points'", "none")),
    "method option without value": Bad("discover name-throw --method-option points", ("'points'", "KEY=VALUE")),
    "option given twice": Bad("discover name-throw --option chain=2 --option chain=4", ("'chain'", "twice")),
    "unknown method": Bad("discover name-throw --method eap-gi", ("'eap-gi'", "'eap-ig'", "exact")),
    "unknown metric": Bad("discover name-throw --metric logit-diff", ("'logit-diff'", "'logit_diff'", "prob_diff")),
    "unknown ablation": Bad("discover name-throw --ablation corupt", ("'corupt'", "corrupt")),
    "unknown site": Bad("sweep name-throw --site head-z", ("'head-z'", "'head_z'", "mlp_out")),
    "unknown direction": Bad("sweep name-throw --site head_z --direction up", ("'up'", "denoise", "noise")),
    "unknown axis": Bad("sweep name-throw --site mlp_out --axis spans", ("'spans'", "'span'", "position")),
    "layer out of range": Bad("sweep name-throw --site head_z --layers 2-9", ("layer 4", "0 to 3")),
    "layers are no numbers": Bad("sweep name-throw --site head_z --layers all", ("--layers", "'all'", "4-7")),
    "unknown correction": Bad("sweep name-throw --site head_z --correction bonf", ("'bonf'", "holm")),
    "unknown ablation of a sweep": Bad("sweep name-throw --site head_z --ablation nought", ("'nought'", "zero")),
    "a budget of nothing": Bad(
        "sweep name-throw --site head_z --budget 0", ("'0' was given", "greater than or equal to 1", "budget")
    ),
    "unknown device": Bad("discover name-throw --device gpu", ("'gpu'", "cpu")),
    "unknown dtype": Bad("discover name-throw --dtype float31", ("'float31'", "float32")),
    "a GPU that is not there": Bad("discover name-throw --device cuda:77", ("'cuda:77'", "cpu")),
    "n is 0": Bad("discover name-throw -n 0", ("'0' was given", "greater than or equal to 1")),
    "n is no number": Bad("discover name-throw -n many", ("-n", "integer")),
    "n above the distinct prompts": Bad("discover task.py -n 500", ("500", "distinct", "n <= 4"), task_file(
        "Example(f'{name} is a really great friend.', f'{name} is a really great friend;', ' He', ' he')")),
    "target above 1": Bad("discover name-throw --target 7", ("7", "target")),
    "steps is 0": Bad("discover name-throw --steps 0", ("0", "steps")),
    "unknown command": Bad("discovr name-throw", ("discovr", "discover")),
    "unknown flag": Bad("discover name-throw --sed 3", ("--sed", "--seed")),
    "no task given": Bad("discover", ("TASK",)),
    "no site given": Bad("sweep name-throw", ("--site",)),
    "output exists": Bad("discover name-throw --out taken", ("taken", "--force"), folder("taken", notes_txt="mine")),
    "output is a file": Bad("discover name-throw --out taken", ("taken",), file("taken", "mine")),
    "sweep output exists": Bad(
        "sweep name-throw --site head_z --out taken", ("taken", "--force"), folder("taken", a_txt="")),
    "task file missing": Bad("discover ./task.py", ("task.py", "does not exist")),
    "task file does not parse": Bad(
        "discover task.py", ("task.py", "line 1", "SyntaxError"), file("task.py", "def draw(:")),
    "task file does not import": Bad(
        "discover task.py", ("task.py", "line 2", "nope"), file("task.py", "\nimport nope\n")),
    "task file without task": Bad("discover task.py", ("task.py", "TASK = Task("), file("task.py", "x = 1\n")),
    "draw raises": Bad("discover task.py", ("'my-task'", "ZeroDivisionError"), task_file("1 / 0")),
    "prompts are equal": Bad("discover task.py", ("same text", "'a'"), task_file("Example('a', 'a', ' b', ' c')")),
    "answer is not one token": Bad("discover task.py", (" Heliogabalus", "one token"), task_file(
        "Example(f'{name} is kind.', f'{other} is kind.', ' Heliogabalus', ' She')")),
    "lengths differ": Bad("discover task.py", ("tokens", "equal lengths"), task_file(
        "Example(f'{name} is kind.', f'{name} is really kind.', ' He', ' She')")),
    "span is not found": Bad("discover task.py", ("'name'", "(90, 95)"), task_file(
        "Example(f'{name} is kind.', f'{other} is kind.', ' He', ' She', {'name': (90, 95)})")),
    "model does not do the task": Bad(
        "discover task.py -n 10", ("does not do the task", "0%", "The worst: '", "--min-accuracy"), task_file(
        "Example(f'{other} met {name}.', f'{other} met {name};', ' he', ' He')")),
    "model folder missing": Bad("discover name-throw --model ./nowhere", ("./nowhere", "does not exist")),
    "model folder without config": Bad(
        "discover name-throw --model ./m", ("./m", "config.json"), folder("m", a_txt="")),
    "model folder without tokenizer": Bad(
        "discover name-throw --model ./m", ("./m", "tokenizer"), folder("m", config_json="{}", model_safetensors="")),
    "model that cannot be loaded": Bad(
        "discover name-throw --model ./m", ("./m", "cannot be loaded"),
        folder("m", config_json='{"model_type": "nope"}', tokenizer_json="{}", model_safetensors="")),
    "hub name without a network": Bad("discover name-throw --model gpt2", ("'gpt2'", "network", "bundled")),
    "circuit missing": Bad("evaluate c.json --task name-throw", ("c.json",)),
    "circuit is no JSON": Bad("evaluate c.json --task name-throw", ("c.json",), file("c.json", "{")),
    "circuit of nothing": Bad("evaluate c.json --task name-throw", ("c.json",), file("c.json", "{}")),
    "run missing, reproduce": Bad("reproduce runs/none", ("runs/none",)),
    "run missing, report": Bad("report runs/none", ("runs/none",)),
    "run without manifest, reproduce": Bad("reproduce r", ("r", "manifest.json"), folder("r", a_txt="")),
    "run without manifest, cite": Bad("cite r", ("r", "manifest.json"), folder("r", a_txt="")),
    "run without manifest, report": Bad("report r", ("r", "manifest.json"), folder("r", a_txt="")),
    "damaged manifest, reproduce": Bad("reproduce r", ("manifest.json",), folder("r", manifest_json="{")),
    "damaged manifest, cite": Bad("cite r", ("manifest.json",), folder("r", manifest_json="{")),
    "empty manifest, cite": Bad("cite r", ("manifest.json",), folder("r", manifest_json="{}")),
}  # fmt: skip


@pytest.fixture
def process_state() -> Iterator[None]:
    """What `main` changes of its process is put back."""
    import logging

    disabled, handler, environment = logging.root.manager.disable, signal.getsignal(signal.SIGTERM), dict(os.environ)
    with warnings.catch_warnings():
        yield
    logging.disable(disabled)
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(environment)


def everything_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_input_gets_one_line(bad, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    bad.given(tmp_path)
    before, folders = everything_in(tmp_path), set(tmp_path.iterdir())
    assert main([*bad.args.split(), *(["--quiet"] if bad.args.startswith(("discover", "sweep")) else [])]) == 2
    told = capfd.readouterr()
    lines = told.err.splitlines()
    assert len(lines) == 1, told.err
    assert lines[0].startswith("circuitlab: error: ")
    for word in bad.says:
        assert word in lines[0]
    assert told.out == ""
    assert everything_in(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} - {path.name for path in folders} <= {"__pycache__"}


def test_bad_input_gets_one_line_in_a_process_of_its_own(tmp_path):
    """Where the imports and the model are loaded for real, and nothing but the line reaches the terminal."""
    task_file("None")(tmp_path)
    said = run_anew("-m", "circuitlab", "discover", "task.py", "--quiet", cwd=tmp_path, env={})
    assert (said.code, said.out) == (2, "")
    assert said.err == "circuitlab: error: draw() of task 'my-task' returned NoneType; it must return an Example.\n"


@pytest.mark.usefixtures("process_state")
def test_a_fault_of_ours_asks_for_a_report(monkeypatch, capfd):
    monkeypatch.setattr("circuitlab.cli.catalogue.list_models", lambda **options: 1 / 0)
    assert main(["models"]) == 1
    line = capfd.readouterr().err
    assert line.startswith("circuitlab: internal error: ZeroDivisionError")
    assert "report" in line
    assert len(line.splitlines()) == 1
    monkeypatch.setenv("CIRCUITLAB_DEBUG", "1")
    assert main(["models"]) == 1
    assert "Traceback" in capfd.readouterr().err


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, Finished]:
    """A run folder made by the command line, and what the command said, noise of the imports included."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    words = ("-m", "circuitlab", "discover", "gendered-pronouns", "-n", "24", "--out", str(folder))
    return folder, run_anew(*words, cwd=tmp_path_factory.mktemp("elsewhere"), env={"COLUMNS": "80"})


def test_discover_prints_what_was_asked_and_where_the_report_is(found):
    folder, said = found
    assert said.code == 0, said.err
    for word in ("gendered-pronouns", "bundled", "clean", "corrupted", "circuit", "faithfulness", "edges", "seconds"):
        assert word in said.out
    assert f"report: {folder / 'report.html'}" in said.out.splitlines()
    assert max(map(len, said.out.splitlines()[:-1])) <= 80
    assert "\x1b" not in said.out, "no colours where nobody can see them"


def test_progress_is_all_that_stands_on_stderr(found):
    _, said = found
    assert said.err
    for line in said.err.splitlines():
        assert " s  " in line, f"noise: {line!r}"


def test_default_folder_is_named_for_the_run_and_never_overwritten(circuitlab, tmp_path):
    ask = ("discover", "gendered-pronouns", "--contrast", "gender", "-n", 8, "--quiet", "--seed", 3)
    assert circuitlab(*ask, cwd=tmp_path).code == 0
    folder = tmp_path / "runs" / "gendered-pronouns-gender-bundled-eap-ig-3"
    assert (folder / "manifest.json").is_file()
    before = everything_in(tmp_path)
    again = circuitlab(*ask, cwd=tmp_path)
    assert again.code == 2
    assert "--force" in again.err
    assert everything_in(tmp_path) == before
    forced = circuitlab(*ask, "--force", "--json", cwd=tmp_path)
    assert forced.code == 0
    assert json.loads(forced.out)["n_edges"] > 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]


def test_evaluate_gives_the_numbers_of_the_run(circuitlab, found):
    folder, _ = found
    said = circuitlab("evaluate", folder, "--task", "gendered-pronouns", "-n", 24, "--json", "--quiet")
    assert said.code == 0, said.err
    was = json.loads((folder / "evaluation.json").read_text())
    assert json.loads(said.out)["faithfulness"] == pytest.approx(was["faithfulness"], abs=1e-5)


def test_reproduce_says_yes_file_by_file(circuitlab, found):
    folder, _ = found
    said = circuitlab("reproduce", folder, "--quiet")
    assert said.code == 0, said.out + said.err
    assert "circuit.json" in said.out
    assert "differs" not in said.out


def test_reproduce_says_no_with_code_1(circuitlab, found, tmp_path):
    """A circuit that was tampered with does not come out of the manifest again."""
    folder = tmp_path / "tampered"
    shutil.copytree(found[0], folder)
    edges = (folder / "edges.csv").read_text().splitlines()
    (folder / "edges.csv").write_text("\n".join([edges[0], *(line + "9" for line in edges[1:])]))
    said = circuitlab("reproduce", folder, "--quiet", "--json")
    assert said.code == 1
    assert {file["name"]: file["status"] for file in json.loads(said.out)["files"]}["edges.csv"] == "differs"


def test_report_is_made_again_without_a_model(circuitlab, found):
    folder, _ = found
    page = folder / "report.html"
    before = page.read_bytes()
    page.unlink()
    said = circuitlab("report", folder)
    assert said.out.strip() == str(page)
    assert page.read_bytes() == before


def test_cite_names_task_run_and_library(circuitlab, found):
    folder, _ = found
    manifest = json.loads((folder / "manifest.json").read_text())
    said = circuitlab("cite", folder).out
    for word in ("@software{circuitlab,", "circuitlab-run-", manifest["task"]["fingerprint"][:16], "2403.17806"):
        assert word in said
    task = circuitlab("cite", "gendered-pronouns").out
    assert manifest["task"]["fingerprint"][:16] in task
    assert "version = {1.0.0}" in task


def test_sweep_prints_the_strongest_cells_and_writes_tables(circuitlab, tmp_path):
    ask = ("sweep", "name-throw", "--site", "head_z", "--site", "mlp_out", "-n", 8, "--quiet")
    said = circuitlab(*ask, "--out=~/sweeps", env={"HOME": str(tmp_path)})  # no shell replaces this `~`
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == f"tables and heatmaps: {tmp_path / 'sweeps'}"
    assert max(map(len, said.out.splitlines()[:-1])) <= 80
    assert {path.name for path in (tmp_path / "sweeps").iterdir()} == {
        "head_z.csv",
        "head_z.png",
        "mlp_out.csv",
        "mlp_out.png",
    }
    cells = json.loads(circuitlab(*ask, "--json").out)["sites"]["head_z"]
    assert len(cells) == len((tmp_path / "sweeps" / "head_z.csv").read_text().splitlines()) - 1


def test_sweep_of_some_heads_by_position(capfd):
    ask = "sweep name-throw --site head_z --layers 3 --heads 0,2-3 --head-axis span --ablation mean -n 8 --quiet --json"
    assert main(ask.split()) == 0
    cells = json.loads(capfd.readouterr().out)["sites"]["head_z"]
    assert {(cell["layer"], cell["head"]) for cell in cells} == {(3, 0), (3, 2), (3, 3)}
    assert len({cell["span"] for cell in cells}) > 3


def test_sweep_says_what_it_would_take(capfd):
    assert (
        main(["sweep", "name-throw", "--site", "head_z", "--site", "resid_pre", "-n", "8", "--quiet", "--estimate"])
        == 0
    )
    said = capfd.readouterr().out
    assert "patched prompts" in said
    assert len(said.splitlines()) == 1
    assert len(said.rstrip()) <= 80 + 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(number, tmp_path):
    ask = [sys.executable, "-m", "circuitlab", "discover", "name-throw", "--out", "runs/mine"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell that runs the tests in the background has its children ignore an interrupt.
    heard = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(ask, cwd=tmp_path, preexec_fn=heard, **pipes) as running:
        assert running.stderr
        running.stderr.readline()  # the first step has begun
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    (said,) = [line for line in err.splitlines() if line.startswith("circuitlab:")]
    assert said.startswith("circuitlab: interrupted; no partial output is left. Run the same command again")
    assert everything_in(tmp_path) == {}
    assert [path for path in tmp_path.rglob("*") if path.name != "runs"] == []


def test_a_reader_that_leaves_is_no_error():
    """`circuitlab tasks | head -0`: the pipe is closed before anything is written."""
    ask = [sys.executable, "-m", "circuitlab", "tasks"]
    with subprocess.Popen(ask, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.close()
        assert running.stderr.read() == ""


def test_words_that_the_terminal_cannot_show_do_not_stop_it(circuitlab, tmp_path):
    task_file("Example('Zo\u00eb is kind.', 'Zo\u00eb is kind;', ' She', ' she')")(tmp_path)
    said = circuitlab("tasks", "show", "task.py", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert said.code == 0, said.err
    assert "Zo\\xeb" in said.out


@pytest.mark.parametrize("args", [["tasks"], ["tasks", "show", "html-tag-closing"], ["models"]])
def test_listings_fit_the_terminal_and_have_a_json_twin(circuitlab, args):
    said = circuitlab(*args)
    assert said.code == 0
    assert said.err == ""
    assert max(map(len, said.out.splitlines())) <= 80
    assert json.loads(circuitlab(*args, "--json").out)


def test_prompts_are_never_read_as_markup(circuitlab):
    """The HTML task is full of brackets; what is shown is what the model is given."""
    example = json.loads(circuitlab("tasks", "show", "html-tag-closing", "--json").out)["example"]
    shown = "".join(circuitlab("tasks", "show", "html-tag-closing").out.split())
    assert "".join(repr(example["clean"]).split()) in shown
