"""A run folder of a stranger: nothing of it is run, read from elsewhere, or takes effect, unless the user says so."""

import hashlib
import json
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TASK, written
from test_report import Reader, forget_hashes

from circuitlab import CircuitLabError, ModelError, RunError, cite, load_circuit, load_model, reproduce, write_report
from circuitlab.cli import main
from circuitlab.cli.visible import visible, visible_json
from circuitlab.files import file_inside

MODULE = import_module("circuitlab.runs.reproduce")
EVIL = "from pathlib import Path\nPath({mark!r}).write_text('ran')\nfrom circuitlab import Example, Task\n" + (
    "TASK = Task(name='own', version='1', summary='x', draw=lambda rng: Example('a b', 'a c', ' d', ' e'))\n"
)


@pytest.fixture(scope="module")
def whole(bundled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(bundled, tmp_path_factory.getbasetemp())


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that attacks write; it must not be there afterwards."""
    return tmp_path / "mark"


@pytest.fixture
def again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Running again gives the folder as it was, at once; the tasks that were run are kept."""
    asked: list[Any] = []

    def discover(task: Any, *, out: Path, **settings: Any) -> None:
        asked.append(task)
        shutil.copytree(whole, out)

    monkeypatch.setattr(MODULE, "discover", discover)
    return asked


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of a manifest, places given with double underscores."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for place, value in changes.items():
        inner = manifest
        *parents, last = place.split("__")
        for key in parents:
            inner = inner[key]
        inner[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


def with_task_file(folder: Path, mark: Path, *, listed: bool = True, asked: str = "own.py") -> str:
    """A run of a task file that leaves a mark when it is run; its SHA-256."""
    (folder / "task.py").write_text(EVIL.format(mark=str(mark)))
    digest = hashlib.sha256((folder / "task.py").read_bytes()).hexdigest()
    edit(folder, config__task=asked, config__options={})
    if listed:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        edit(folder, files={**files, "task.py": digest})
    return digest


# ------------------------------------------------------------------------------------------------ code


def test_a_task_file_does_not_run_unless_allowed_and_the_message_names_it(folder, mark, again):
    digest = with_task_file(folder, mark)
    with pytest.raises(RunError) as told:
        reproduce(folder)
    assert not mark.exists()
    for part in (str(folder / "task.py"), digest, "--run-code", "run_code=True", "Read that file first"):
        assert part in str(told.value)
    assert again == []
    reproduce(folder, run_code=True)  # the twin
    assert mark.read_text() == "ran"
    assert again[0].origin == str(folder / "task.py")


def test_the_command_line_says_which_file_it_runs(folder, mark, again, capsys):
    digest = with_task_file(folder, mark)
    assert main(["reproduce", str(folder)]) == 2
    assert not mark.exists()
    assert digest in capsys.readouterr().err
    assert main(["reproduce", str(folder), "--run-code", "--quiet"]) == 1, "the task is another one: not reproduced"
    assert mark.exists()
    first = capsys.readouterr().err.splitlines()[0]
    assert str(folder / "task.py") in first
    assert digest in first


def test_a_file_that_is_not_what_the_manifest_lists_does_not_run(folder, mark, again):
    digest = with_task_file(folder, mark)
    (folder / "task.py").write_text((folder / "task.py").read_text() + "# more\n")
    with pytest.raises(RunError, match=f"is not the file that the run used: its SHA-256 is .*manifest says {digest}"):
        reproduce(folder, run_code=True)
    assert not mark.exists()


def test_a_file_that_the_manifest_does_not_list_does_not_run(folder, mark, again):
    with_task_file(folder, mark, listed=False)
    with pytest.raises(RunError, match="task.py is not listed in the manifest"):
        reproduce(folder, run_code=True)
    assert not mark.exists()


def test_a_built_in_task_stays_built_in_whatever_else_the_folder_holds(folder, mark, again):
    with_task_file(folder, mark, asked=TASK)
    edit(folder, config__options={"contrast": "capital"})
    reproduce(folder, run_code=True)
    assert not mark.exists()
    assert again[0].origin == ""


@pytest.mark.parametrize("run_code", [False, True])
@pytest.mark.parametrize("spelling", ["{0}", "{0}:TASK", "./{1}", "{1}", "~/{1}", f"{TASK}:x/../{{1}}", "{2}/evil", ""])
def test_a_path_in_the_manifest_is_never_loaded(spelling, run_code, folder, mark, tmp_path, monkeypatch, again):
    evil = tmp_path / "evil.py"
    evil.write_text(EVIL.format(mark=str(mark)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / TASK).write_text(evil.read_text())
    edit(folder, config__task=spelling.format(evil, evil.name, tmp_path), config__options={})
    with pytest.raises(RunError, match=r"task"):
        reproduce(folder, run_code=run_code)
    assert not mark.exists()
    assert again == []


def test_a_task_file_that_is_a_link_out_of_the_folder_does_not_run(folder, mark, tmp_path, again):
    with_task_file(folder, mark)
    (folder / "task.py").rename(tmp_path / "outside.py")
    (folder / "task.py").symlink_to(tmp_path / "outside.py")
    with pytest.raises(RunError, match="symbolic link that leads out of the folder"):
        reproduce(folder, run_code=True)
    assert not mark.exists()


def test_a_task_file_that_ends_the_program_is_no_reproduction(folder, mark, again, capsys):
    with_task_file(folder, mark)
    (folder / "task.py").write_text("import sys\nsys.exit(0)\n")
    digest = hashlib.sha256((folder / "task.py").read_bytes()).hexdigest()
    edit(folder, files={"task.py": digest})
    assert main(["reproduce", str(folder), "--run-code", "--quiet"]) == 2
    assert "reproduced" not in capsys.readouterr().out


def test_what_runs_the_work_again_and_leaves_is_no_reproduction(folder, monkeypatch, capsys):
    def leave(task: Any, **settings: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(MODULE, "discover", leave)
    assert main(["reproduce", str(folder), "--quiet"]) == 2
    assert "ends the program" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *(
            ({"config__options": {name: "x"}}, f"option {name!r}")
            for name in ("out", "force", "progress", "device", "model", "task", "self", "run_code", "__class__")
        ),
        ({"config__options": {"contrast": 3}}, "task_options is {'contrast': 3}"),
        ({"config__options": {"contrast": "x"}}, "unknown contrast 'x'"),
        ({"config__method_options": {"out": "x"}}, "out"),
        ({"config__method_options": {"force": True}}, "force"),
        ({"config__out": "x"}, "out"),
        ({"config__force": True}, "force"),
        ({"config__run_code": True}, "run_code"),
        ({"config__task": ["a"]}, "'config.task' is"),
        ({"config__model": {"a": 1}}, "model is"),
        ({"config__device": 3}, "device is"),
        ({"config__metric": ["x"]}, "metric is"),
    ],
)
def test_settings_that_a_run_does_not_have_are_refused(change, says, folder, again):
    edit(folder, **change)
    with pytest.raises(CircuitLabError) as told:
        reproduce(folder)
    assert says in str(told.value)
    assert again == []


# ------------------------------------------------------------------------------------------------ files


OUTSIDE = ("../../etc/passwd", "/etc/passwd", "sweeps/../../x", "C:\\x", "..\\x", "C:/x", "", "a\0b", "x" * 5000)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_folder_is_refused(name, folder, again):
    with pytest.raises(RunError):
        file_inside(folder, name)
    edit(folder, files={name: "0" * 64})
    with pytest.raises(RunError):
        reproduce(folder)
    assert again == []


def test_links_devices_and_folders_are_not_read_as_files(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "dangling").symlink_to(tmp_path / "nothing")
    (folder / "through").symlink_to(tmp_path)
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "within").symlink_to(folder / "edges.csv")
    os.mkfifo(folder / "pipe")
    for name in ("out", "dangling", "through/secret", "zero", "loop", "pipe", "sweeps"):
        with pytest.raises(RunError):
            file_inside(folder, name)
    assert file_inside(folder, "within") == folder / "within"
    assert file_inside(folder, "nothing") is None
    assert file_inside(folder, "sweeps/head_z.csv") == folder / "sweeps/head_z.csv"


def test_a_link_out_of_a_run_folder_is_not_followed_by_any_command(whole, tmp_path):
    secret = tmp_path / "secret"
    for name in ("circuit.json", "manifest.json", "evaluation.json", "circuit.svg", "sweeps/head_z.png", "notes.txt"):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(whole, folder)
        if (folder / name).exists():
            (folder / name).rename(secret)
        else:
            secret.write_text("secret")
        (folder / name).symlink_to(secret)
        with pytest.raises(RunError, match="symbolic link that leads out"):
            write_report(folder)
        for command in (cite, reproduce) if name == "manifest.json" else ():
            with pytest.raises(RunError, match="symbolic link that leads out"):
                command(folder)
    with pytest.raises(RunError, match="symbolic link that leads out"):
        load_circuit(tmp_path / "circuit.json")
    folder = tmp_path / "sweeps away"
    shutil.copytree(whole, folder)
    (folder / "sweeps").rename(tmp_path / "elsewhere")
    (folder / "sweeps").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="symbolic link that leads out"):
        write_report(folder)


def test_the_report_is_not_written_through_a_link(folder, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (folder / "report.html").unlink()
    (folder / ".report.html.partial").symlink_to(precious)
    with pytest.raises(RunError, match="symbolic link that leads out"):
        write_report(folder)
    (folder / ".report.html.partial").unlink()
    write_report(folder)
    assert precious.read_text() == "mine"
    assert (folder / "report.html").is_file()


def test_no_command_but_reproduce_runs_the_task_file(folder, mark, tmp_path, monkeypatch):
    """Nor does it with another name in the manifest, from the working folder or on Python's path."""
    with_task_file(folder, mark, asked="task.py")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    write_report(folder)
    cite(folder)
    load_circuit(folder)
    assert main(["cite", "."]) == 0
    assert main(["compare", ".", "circuit.json"]) == 0
    assert main(["convert", ".", str(tmp_path / "out.dot")]) == 0
    assert not mark.exists()


# ------------------------------------------------------------------------------------------------ pages


ATTACKS = (
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "'\"><b onclick=x()>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>", "<base href='//evil.example/'>", "<!--", "]]>",
    "<form action='//evil.example'><button>", "<style>*{display:none}</style>",
    "<link rel=stylesheet href=//evil.example>",
    "<iframe src='//evil.example'>", "javascript:alert(1)", "\u2028alert(1)\u2029", "&lt;script&gt;", "<a href='//x'>",
    "\x1b[2J\x9b2J", "\0",
)  # fmt: skip
EVERYTHING = "".join(ATTACKS)
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:h="http://www.w3.org/1999/xhtml" width="99" height="99" '
    'onload="alert(1)"><h:meta http-equiv="refresh" content="0;url=//evil.example"/><h:base href="//evil.example"/>'
    '<h:form action="//evil.example"><h:button autofocus="" onfocus="alert(1)">x</h:button></h:form><style>*{}</style>'
    '<script>alert(1)</script><foreignObject><h:body onload="alert(1)"/></foreignObject>'
    '<image href="//evil.example/x.png"/><use href="//evil.example/#x"/><rect width="9" height="9"/></svg>'
)


def attacked(value: Any, key: str = "") -> Any:
    """A value of JSON with an attack at the end of every text, and as a further name in every object."""
    if isinstance(value, dict):
        more = {EVERYTHING: EVERYTHING} if key in ("settings", "dropped", "versions") else {}
        return {name: attacked(item, name) for name, item in value.items()} | more
    if isinstance(value, list):
        return [attacked(item) for item in value]
    return value + EVERYTHING if isinstance(value, str) else value


@pytest.fixture
def hostile(folder: Path) -> Path:
    """A run folder whose every text is an attack."""
    forget_hashes(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        json.dumps(attacked({**manifest, "files": {}}) | {"schema": manifest["schema"]})
    )
    pairs = [json.loads(line) for line in (folder / "dataset.jsonl").read_text().splitlines()]
    pairs = [{**attacked(pair), "split": pair["split"], "spans": {EVERYTHING: [1, 3]}} for pair in pairs]
    (folder / "dataset.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    patterns = json.loads((folder / "attention.json").read_text())
    (folder / "attention.json").write_text(json.dumps(attacked(patterns)))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps(attacked(evaluation)))
    table = (folder / "sweeps" / "resid_pre.csv").read_text().splitlines()
    head, at = table[0].split(","), table[0].split(",").index("label")
    quoted = '"' + EVERYTHING.replace('"', '""').replace("\0", "").replace("\x1b", "") + '"'
    rows = [[quoted if i == at else cell for i, cell in enumerate(line.split(","))] for line in table[1:]]
    (folder / "sweeps" / "resid_pre.csv").write_text("\n".join([",".join(head), *map(",".join, rows)]) + "\n")
    (folder / "circuit.svg").write_text(SVG)
    (folder / "<img src=x onerror=alert(1)>.txt").write_text("x")
    return folder


TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "section", "h1", "h2", "p", "div", "span", "b",
    "small", "dl", "dt", "dd", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption",
    "img", "ul", "li", "script",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "id", "hidden", "src", "alt", "width", "height",
    "style", "title", "scope", "type",
}  # fmt: skip


def test_nothing_of_a_stranger_takes_effect_in_the_report(hostile):
    page = write_report(hostile).read_text(encoding="utf-8")
    own = [tag for tag, _ in Reader(page).elements]
    assert set(own) <= TAGS
    metas = [attributes for tag, attributes in Reader(page).elements if tag == "meta"]
    assert [set(meta) for meta in metas] == [{"charset"}, {"http-equiv", "content"}, {"name", "content"}]
    assert "default-src 'none'" in metas[1]["content"]
    assert "base-uri 'none'; form-action 'none'" in metas[1]["content"]
    scripts = [attributes for tag, attributes in Reader(page).elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "attention-data"}, {}]
    assert own.count("style") == own.count("title") == 1
    for tag, attributes in Reader(page).elements:
        assert set(attributes) <= ATTRIBUTES, tag
        if "src" in attributes:
            assert attributes["src"].startswith(("data:image/png;base64,", "data:image/svg+xml;base64,"))
        if "style" in attributes:
            assert attributes["style"].removeprefix("width:").removesuffix("%").replace(".", "").isdigit()
    text = " ".join(Reader(page).text)
    for attack in ATTACKS[:-5]:
        assert attack in text, "an attack that does not reach the page proves nothing"
    assert "\u2028" not in page.split('id="attention-data">')[1].split("</script>")[0]


def test_the_check_above_can_fail(hostile):
    page = write_report(hostile).read_text(encoding="utf-8")
    spoilt = page.replace("&lt;meta http-equiv=refresh", "<meta http-equiv=refresh", 1)
    assert len([1 for tag, _ in Reader(spoilt).elements if tag == "meta"]) == 4


ODD: tuple[Any, ...] = (None, [], {}, "text", 7, -1, 1e308, True, [1, 2, 3], {"a": [{}]})


def test_values_of_any_kind_give_a_page_or_one_line(folder):
    """No fault of ours, whatever stands in the place of a value."""
    forget_hashes(folder)
    for name in ("manifest.json", "evaluation.json"):
        content = json.loads((folder / name).read_text())
        for number, key in enumerate(content):
            (folder / name).write_text(json.dumps({**content, key: ODD[number % len(ODD)]}))
            error = error_of_page(folder)
            assert error is None or "\n" not in error
        (folder / name).write_text(json.dumps(content))
    assert error_of_page(folder) is None, "the twin"


def error_of_page(folder: Path) -> str | None:
    try:
        run_page(folder)
    except RunError as error:
        return str(error)
    return None


def run_page(folder: Path) -> None:
    """The report without the pictures that take long to draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circuitlab.report.values.curve_figure", lambda run, evaluation: None)
        patch.setattr("circuitlab.report.pages.write_bytes", lambda *given: None)
        write_report(folder)


def test_control_characters_of_a_folder_do_not_reach_the_terminal(folder, capsys):
    edit(folder, bibtex="@misc{a\x1b]0;evil\x07\x1b[2J\x9b31m\u202e}\n\tline")
    assert main(["cite", str(folder)]) == 0
    assert main(["cite", str(folder), "--json"]) == 0
    edit(folder, config__task="\x1b[2J.py")
    assert main(["reproduce", str(folder)]) == 2
    told = capsys.readouterr()
    for sign in "\x1b\x07\x9b\u202e":
        assert sign not in told.out + told.err
    assert "\n\tline" in told.out
    assert json.loads(visible_json(json.dumps("\x9b\u202e", ensure_ascii=False))) == "\x9b\u202e"
    assert visible("plain é 汉 \n") == "plain é 汉 \n"


# ------------------------------------------------------------------------------------------------ models


class Pickled:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "ran")


@pytest.mark.parametrize(
    "kind", ["of a known type", "of an unknown type", "without a class here", "tokenizer", "pickle"]
)
def test_no_code_of_a_checkpoint_is_run(kind, mark, tmp_path, monkeypatch):
    """Whatever is answered to a question: none is asked."""
    monkeypatch.setattr("builtins.input", lambda *prompt: "yes")
    folder = tmp_path / "model"
    bundled = Path(import_module("circuitlab").__file__).parent / "bundled"
    shutil.copytree(bundled, folder, ignore=shutil.ignore_patterns("autoencoder"))
    names = "from transformers import GPT2Config as C, GPT2LMHeadModel as M, PreTrainedTokenizerFast as T\n"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').write('ran')\n{names}")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    if kind == "of an unknown type":
        config["model_type"] = "evil"
    if kind == "without a class here":
        config |= {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "evil.M"}}
    if kind == "tokenizer":
        about = json.loads((folder / "tokenizer_config.json").read_text())
        about["auto_map"] = {"AutoTokenizer": ["evil.T", "evil.T"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
        del config["auto_map"]
    if kind == "pickle":
        (folder / "model.safetensors").unlink()
        torch.save({"transformer.wte.weight": Pickled(mark)}, folder / "pytorch_model.bin")
        torch.load(folder / "pytorch_model.bin", weights_only=False)
        assert mark.read_text() == "ran", "the attack works where it is let"
        mark.unlink()
    (folder / "config.json").write_text(json.dumps(config))
    try:
        load_model(folder)
    except ModelError:
        assert kind not in ("of a known type", "tokenizer")
    assert not mark.exists()
