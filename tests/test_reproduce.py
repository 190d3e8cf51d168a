"""`reproduce`: the same files again; what was edited is found, with the place; what cannot be read is told."""

import hashlib
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from runs import TASK, N, bytes_in, written, written_elsewhere

from circuitlab import RunError, discover, load_run, reproduce

MODULE = import_module("circuitlab.runs.reproduce")


@pytest.fixture(scope="module")
def folder(bundled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(bundled, tmp_path_factory.getbasetemp())


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Running again gives the folder as it was, at once; what was asked for is kept."""
    kept: dict[str, Any] = {}

    def again(task: object, *, out: Path, **settings: Any) -> None:
        kept.update(task=task, **settings)
        shutil.copytree(folder, out)

    monkeypatch.setattr(MODULE, "discover", again)
    return kept


def test_what_another_process_made_is_the_same_to_the_byte(folder, monkeypatch, tmp_path_factory):
    """Not copied but run again, elsewhere: every file is named, none is changed."""
    elsewhere, before = written_elsewhere(tmp_path_factory.getbasetemp()), bytes_in(folder)
    monkeypatch.setattr(MODULE, "discover", lambda task, *, out, **settings: shutil.copytree(elsewhere, out))
    result = reproduce(folder)
    assert result.ok
    assert result.same_weights
    assert {check.name for check in result.files} == set(before)
    others = [check for check in result.files if check.status != "same bytes"]
    # The page has the folder's path in its commands.
    expected = [("report.html", "redrawn"), ("manifest.json", "same numbers")]
    assert [(check.name, check.status) for check in others] == expected, others
    assert bytes_in(folder) == before


def test_it_asks_for_what_the_manifest_says(folder, asked):
    reproduce(folder)
    asked.pop("progress")
    task = asked.pop("task")
    assert (task.name, task.settings, task.origin) == (TASK, {"contrast": "capital"}, "")
    assert asked == {
        "model": "bundled", "method": "eap-ig", "steps": 5, "method_options": {},
        "metric": "logit_diff", "ablation": "corrupt", "n": N, "seed": 0, "target": 0.9, "min_accuracy": 0.6,
        "device": "cpu", "dtype": "float32", "fold_ln": False, "center_weights": False, "stability": 0, "bos": "auto",
        "allow_weak_gap": False, "stability_seeds": 0, "sites": None, "split": "random",
        "minimality": True, "revision": None, "checkpoint_index": None,
        "columns": {}, "max_bad_rows": 0, "data_split": None, "data_config": None, "data_revision": None,
        "chat": False, "reply_to": None, "shots": 0,
        "selection": {"n_edges": None, "threshold": None, "signed": False, "greedy": None},
    }  # fmt: skip
    reproduce(folder, device="cuda:3")
    assert asked["device"] == "cuda:3"


def test_a_folder_of_a_version_without_bos_is_asked_for_as_it_was_made(copy, asked):
    """With TransformerLens's default, and what that came to need not stand in the folder."""
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["config"]["bos"], manifest["model"]["bos_tokens"], manifest["model"]["bos_ids"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = reproduce(copy)
    assert asked["bos"] == "transformer-lens"
    (check,) = [check for check in result.files if check.name == "manifest.json"]
    assert "bos" in check.detail  # the run made here was asked for another; nothing else differs
    assert "bos_tokens" not in check.detail


def test_options_of_the_method_are_asked_for_again(copy, asked):
    in_json("config/method_options", lambda was: {"points": "published-code"})(copy / "manifest.json")
    reproduce(copy)
    assert asked["method_options"] == {"points": "published-code"}


def test_a_setting_that_is_newer_than_the_folder_had_its_default(copy, asked):
    older = in_json("config", lambda was: {name: was[name] for name in was if name != "method_options"})
    older(copy / "manifest.json")
    (check,) = (check for check in reproduce(copy).files if check.name == "manifest.json")
    assert (check.status, check.detail) == ("same numbers", "but for seconds and versions")


def test_a_folder_older_than_the_judgement_of_gaps_took_any(copy, asked):
    for key in ("config/allow_weak_gap", "behaviour/metric_gap", "behaviour/metric_gap_se", "model/causal"):
        without(key)(copy / "manifest.json")
    for key in ("metric_gap", "metric_gap_se"):
        without(key)(copy / "evaluation.json")
    checks = {check.name: check for check in reproduce(copy).files}
    assert asked["allow_weak_gap"] is True
    assert checks["evaluation.json"].status == "same numbers"
    # What is run again here is the folder as it was written, whose setting is the other one.
    assert checks["manifest.json"].detail == "config.allow_weak_gap: True against False"
    without("metric_circuit")(copy / "evaluation.json")
    checks = {check.name: check for check in reproduce(copy).files}
    assert checks["evaluation.json"].detail == "other rows or keys", "the twin: a value that every folder has"


def without(path: str) -> Callable[[Path], None]:
    """Take one key, its place given with slashes, out of a JSON file."""

    def edit(file: Path) -> None:
        content = inner = json.loads(file.read_text(encoding="utf-8"))
        *parents, last = path.split("/")
        for key in parents:
            inner = inner[key]
        inner.pop(last, None)
        file.write_text(json.dumps(content) + "\n", encoding="utf-8")

    return edit


def in_json(path: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change one value of a JSON file, its place given with slashes."""

    def edit(file: Path) -> None:
        text = file.read_text(encoding="utf-8")
        content = inner = json.loads(text.split("\n")[0]) if file.suffix == ".jsonl" else json.loads(text)
        *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in parents:
            inner = inner[key]
        inner[last] = change(inner[last])
        rest = text.split("\n", 1)[1] if file.suffix == ".jsonl" else ""
        file.write_text(json.dumps(content) + "\n" + rest, encoding="utf-8")

    return edit


def cell(line: int, column: int, change: Callable[[str], str]) -> Callable[[Path], None]:
    """Change one cell of a CSV file, counted from 1."""

    def edit(file: Path) -> None:
        rows = [row.split(",") for row in file.read_text().splitlines()]
        rows[line - 1][column - 1] = change(rows[line - 1][column - 1])
        file.write_text("\n".join(",".join(row) for row in rows) + "\n")

    return edit


def add(number: float) -> Callable[[str], str]:
    return lambda text: repr(float(text) + number)


def in_text(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda file: file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8") and None


EDITS = {
    "a score": ("edges.csv", cell(2, 3, add(0.01)), "differs", "line 2, column 3: "),
    "a score, far down": ("edges.csv", cell(1400, 3, add(-0.01)), "differs", "line 1400, column 3: "),
    "which edge is in": ("edges.csv", cell(9, 4, lambda was: str(was != "True")), "differs", "line 9, column 4: "),
    "the name of an edge": ("edges.csv", cell(5, 2, lambda was: "m3"), "differs", "line 5, column 2: "),
    "a row less": ("edges.csv", in_text(lambda t: t[: t.rstrip().rindex("\n") + 1]), "differs", "other rows or keys"),
    "a column more": ("edges.csv", in_text(lambda t: t.replace("\n", ",1\n")), "differs", "other rows or keys"),
    "faithfulness": ("evaluation.json", in_json("faithfulness", lambda f: f + 0.01), "differs", "faithfulness: "),
    "one random circuit": (
        "evaluation.json", in_json("random_baseline/faithfulness/7", lambda f: f + 0.01), "differs",
        "random_baseline.faithfulness[7]: "),
    "a key less": (
        "evaluation.json", in_text(lambda t: t.replace('"kl"', '"kl_"')), "differs", "kl_ against kl"),
    "a number of edges": ("evaluation.json", in_json("n_edges", lambda n: n + 1), "differs", "n_edges: "),
    "the number of all edges": (
        "evaluation.json", in_json("n_edges_total", lambda n: n + 1), "differs", "n_edges_total: "),
    "a token": ("dataset.jsonl", in_json("clean_ids/1", lambda n: n + 1), "differs", "line 1.clean_ids[1]: "),
    "a word": ("dataset.jsonl", in_json("clean", lambda t: t.upper()), "differs", "line 1.clean: "),
    "a split": ("dataset.jsonl", in_json("split", lambda s: "held_out"), "differs", "line 1.split: 'held_out' against"),
    "a score in the graph": (
        "circuit.graphml", in_text(lambda t: t.replace('key="score">', 'key="score">9', 1)), "differs", "part "),
    "an edge of the graph": (
        "circuit.graphml", in_text(lambda t: t.replace('source="input"', 'source="m0"', 1)), "differs", "part "),
    "an edge of the circuit": (
        "circuit.json", in_json("edges/m0->m1/in_graph", lambda b: not b), "differs", "edges.m0->m1.in_graph: "),
    "an interval of a sweep": ("sweeps/head_z.csv", cell(3, 5, add(0.5)), "differs", "line 3, column 5: "),
    "a file that is no JSON any more": ("circuit.json", in_text(lambda t: t[:-40]), "differs", "other rows or keys"),
    "a file that is no text any more": (
        "edges.csv", lambda file: file.write_bytes(b"\xff\xfe\x00") and None, "differs", "other rows or keys"),
    "the last digits": ("evaluation.json", in_json("faithfulness", lambda f: f + 1e-6), "same numbers", ""),
    "the last digits of a score": ("edges.csv", cell(2, 3, add(1e-7)), "same numbers", ""),
    "how it is written": ("circuit.json", in_text(lambda t: json.dumps(json.loads(t))), "same numbers", ""),
    "a picture": ("circuit.png", lambda file: file.write_bytes(file.read_bytes() + b"x") and None, "redrawn", "data"),
    "the drawing": ("circuit.svg", in_text(lambda t: t + "<!-- seen -->"), "redrawn", "data"),
    "the page": ("report.html", in_text(lambda t: t + "<!-- seen -->"), "redrawn", "data"),
}  # fmt: skip


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("name", "edit", "status", "detail"),
    [edit if hasattr(edit, "marks") else pytest.param(*edit) for edit in EDITS.values()],
    ids=EDITS,
)
def test_what_was_edited_is_found_with_the_place(name, edit, status, detail, copy):
    edit(copy / name)
    result = reproduce(copy)
    checks = {check.name: check for check in result.files}
    assert checks[name].status == status, checks[name]
    assert detail in checks[name].detail
    assert {check.status for check in checks.values() if check.name != name} == {"same bytes"}
    assert result.ok is (status != "differs")


SMALL = 1e-4  # of the bundled model's scores: a model of a hundred times as many edges has such


def scaled(folder: Path, by: float) -> float:
    """Make all scores of a folder's tables small; the largest of them that is left."""
    for name, before, after in (("edges.csv", ",", ","), ("circuit.json", '"score": ', ","),
                                ("circuit.graphml", 'key="score">', "<")):  # fmt: skip
        text = (folder / name).read_text()
        number = re.compile(rf"{before}(-?[0-9.]+(?:e-?[0-9]+)?)(?=\s*{after})")
        (folder / name).write_text(number.sub(lambda m: m[0].replace(m[1], repr(float(m[1]) * by)), text))
    return max(abs(float(row.split(",")[2])) for row in (folder / "edges.csv").read_text().splitlines()[1:])


@pytest.mark.parametrize(("moved", "status"), [(0.01, "differs"), (-0.002, "differs"), (1e-4, "same numbers")])
def test_small_scores_are_compared_by_their_own_size(moved, status, copy, folder, monkeypatch):
    def again(task: object, *, out: Path, **settings: Any) -> None:
        shutil.copytree(folder, out)
        scaled(out, SMALL)

    monkeypatch.setattr(MODULE, "discover", again)
    largest = scaled(copy, SMALL)
    assert largest < 1e-3, "all of them were equal within 1e-3"
    cell(2, 3, add(moved * largest))(copy / "edges.csv")
    in_json("edges/input->m0/score", lambda score: score + moved * largest)(copy / "circuit.json")
    found = {check.name: check.status for check in reproduce(copy).files}
    assert {found.pop("edges.csv"), found.pop("circuit.json")} == {status}
    assert set(found.values()) == {"same bytes"}


@pytest.mark.usefixtures("asked")
def test_an_edited_number_does_not_widen_what_is_allowed_to_others(copy):
    cell(2, 3, lambda was: "1e9")(copy / "edges.csv")
    (check,) = [check for check in reproduce(copy).files if check.status == "differs"]
    assert check.detail.startswith("line 2, column 3: 1e+09 against ")
    cell(2, 3, lambda was: "-1e9")(copy / "edges.csv")
    assert not reproduce(copy).ok


SAID = {
    "a setting": ("config/steps", lambda n: n + 1, "config.steps: 6 against 5"),
    "the seed": ("seed", lambda n: 7, "seed: 7 against 0"),
    "an option": ("config/options/contrast", lambda v: "gender", "config.options.contrast: 'gender' against 'capital'"),
    "the task's name": ("task/name", lambda v: "other", "task.name: 'other' against"),
    "the task's version": ("task/version", lambda v: "9", "task.version: '9' against"),
    "the task's fingerprint": ("task/fingerprint", lambda v: "0" * 64, "task.fingerprint: "),
    "the data's fingerprint": ("dataset_fingerprint", lambda v: "0" * 64, "dataset_fingerprint: "),
    "the weights": ("model/weights_sha256", lambda v: "0" * 64, "model.weights_sha256: "),
    "what the model does": ("behaviour/prefers_answer", lambda v: v - 0.1, "behaviour.prefers_answer: 0.9 against 1"),
}
UNSAID = {"seconds": ("seconds/load", 9.0), "a version": ("versions/torch", "1"), "a hash": ("files/edges.csv", "0")}


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("what", SAID)
def test_what_the_manifest_says_is_compared(what, copy):
    place, change, detail = SAID[what]
    in_json(place, change)(copy / "manifest.json")
    result = reproduce(copy)
    (check,) = [check for check in result.files if check.status == "differs"]
    assert check.name == "manifest.json"
    assert detail in check.detail
    assert not result.ok


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("what", UNSAID)
def test_what_differs_from_run_to_run_is_not_compared(what, copy):
    place, value = UNSAID[what]
    in_json(place, lambda was: value)(copy / "manifest.json")
    result = reproduce(copy)
    assert result.ok
    assert {c.name: c.status for c in result.files}["manifest.json"] == "same numbers"


@pytest.mark.usefixtures("asked")
def test_another_device_that_was_asked_for_is_no_difference(copy):
    in_json("config/device", lambda was: "cuda:3")(copy / "manifest.json")
    assert not reproduce(copy).ok
    assert reproduce(copy, device="cpu").ok


@pytest.mark.usefixtures("asked")
def test_both_numbers_are_told(copy):
    before = json.loads((copy / "evaluation.json").read_text())["faithfulness"]
    in_json("faithfulness", lambda f: 0.123456)(copy / "evaluation.json")
    (check,) = [check for check in reproduce(copy).files if check.status == "differs"]
    assert check.detail == f"faithfulness: 0.123456 against {before:.6g}"


@pytest.mark.usefixtures("asked")
def test_a_missing_file_is_told_on_either_side(copy):
    (copy / "edges.csv").unlink()
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["extra.csv"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (copy / "extra.csv").write_text("a\n1\n")
    result = reproduce(copy)
    missing = {check.name: check.detail for check in result.files if check.status == "missing"}
    assert missing == {"edges.csv": "not in the run folder", "extra.csv": "not made again"}
    assert not result.ok


@pytest.mark.usefixtures("asked")
def test_other_weights_are_told(copy):
    in_json("model/weights_sha256", lambda digest: "0" * 64)(copy / "manifest.json")
    assert not reproduce(copy).same_weights


@pytest.mark.usefixtures("asked")
def test_nan_is_equal_to_nan_and_to_nothing_else(copy, folder, monkeypatch):
    """A circuit file may hold NaN for edges that were never scored."""
    nan = in_json("edges/m0->m1/score", lambda score: math.nan)
    nan(copy / "circuit.json")
    assert {c.name for c in reproduce(copy).files if c.status == "differs"} == {"circuit.json"}

    def again(task: object, *, out: Path, **settings: Any) -> None:
        shutil.copytree(folder, out)
        nan(out / "circuit.json")
        in_text(lambda t: t + " ")(out / "circuit.json")

    monkeypatch.setattr(MODULE, "discover", again)
    assert {c.name: c.status for c in reproduce(copy).files}["circuit.json"] == "same numbers"


def test_a_folder_without_manifest_is_told(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            RunError, match="is not a run folder: it has no manifest.json. Give the folder that discover"
        ):
            reproduce(path)


DAMAGED = {
    "no JSON": ("{", "JSONDecodeError"),
    "no text": (b"\xff\xfe\x00", "is not UTF-8 text"),
    "a list": ("[]", "damaged"),
    "empty": ("{}", "damaged"),
}
MANIFEST_FAULTS = {
    "no config": ("config", ...),
    "no files": ("files", ...),
    "no model": ("model", ...),
    "no schema": ("schema", ...),
}
SETTINGS_FAULTS = {
    "a config without task": ("config", {"model": "bundled", "options": {}}),
    "a config without options": ("config", {"model": "bundled", "task": TASK}),
    "an unknown setting": ("config", {"model": "bundled", "task": TASK, "options": {}, "colour": "red"}),
    "a config that is no mapping": ("config", "all of it"),
    "files that are no mapping": ("files", 3),
    "a model without weights": ("model", {"id": "bundled"}),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_manifest_that_is_none_is_told(fault, tmp_path):
    content, says = DAMAGED[fault]
    (tmp_path / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=f"manifest.json' is damaged: .*{says}|is damaged: .*{says}|{says}"):
        reproduce(tmp_path)


def check_fault(copy: Path, key: str, value: Any) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest[key] = value
    if value is ...:
        del manifest[key]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="manifest.json' is damaged: .*. Run discover again"):
        reproduce(copy)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("fault", MANIFEST_FAULTS)
def test_a_manifest_that_lacks_something_is_told(fault, copy):
    check_fault(copy, *MANIFEST_FAULTS[fault])


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("fault", SETTINGS_FAULTS)
def test_a_manifest_whose_parts_are_damaged_is_told(fault, copy):
    check_fault(copy, *SETTINGS_FAULTS[fault])


FIELDS = {  # the place in the manifest, the value (... for none), and what the message says of it
    "schema": (..., "no field 'schema'"),
    "config": (..., "no field 'config'"),
    "config/task": (..., "no field 'config.task'"),
    "config/seed": ("x", "'config' cannot be used: seed is 'x'; it must be a whole number"),
    "config/options": (None, "'config.options' is null; it must be a JSON object"),
    "model": (None, "'model' is null; it must be a JSON object"),
    "model/weights_sha256": (3, "'model.weights_sha256' is 3; it must be a text"),
    "files": ([], r"'files' is \[\]; it must be a JSON object"),
    "config/objects": (3, "'config' cannot be used: objects is 3; it lists settings among method"),
    "task/version": (..., "no field 'task.version'"),
    "metric": (None, "'metric' is null; it must be a JSON object"),
    "seconds": (..., "no field 'seconds'"),
}


@pytest.mark.parametrize("place", FIELDS)
def test_the_message_names_the_field_of_a_damaged_manifest(place, copy):
    value, says = FIELDS[place]
    manifest = inner = json.loads((copy / "manifest.json").read_text())
    *parents, last = place.split("/")
    for name in parents:
        inner = inner[name]
    inner[last] = value
    if value is ...:
        inner.pop(last, None)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=f"is damaged: it(s field| has) {says}"):
        load_run(copy)


@pytest.mark.parametrize("content", [b'{"schema": ', b"\xff\xfe\x00"])
def test_the_message_names_a_manifest_that_is_none_once(content, copy):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(RunError) as caught:
        load_run(copy)
    assert str(caught.value).count("manifest.json") == 1


@pytest.mark.parametrize("schema", ["circuitlab.run/2", "other", 3])
def test_another_schema_is_told(schema, copy):
    in_json("schema", lambda was: schema)(copy / "manifest.json")
    with pytest.raises(RunError, match=f"has the schema {schema!r}; this version reads circuitlab.run/1"):
        reproduce(copy)


@pytest.mark.usefixtures("asked")
def test_a_schema_that_begins_the_same_is_another(copy):
    in_json("schema", lambda was: "circuitlab.run/10")(copy / "manifest.json")
    with pytest.raises(RunError, match="schema"):
        reproduce(copy)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("config/task", "name-thrown", "unknown task 'name-thrown'"),
        ("config/model", "./nowhere", "model folder './nowhere' does not exist"),
        ("config/metric", "my_metric", "unknown metric 'my_metric'"),
    ],
)
def test_a_run_that_cannot_be_repeated_says_why(place, value, says, copy):
    in_json(place, lambda was: value)(copy / "manifest.json")
    with pytest.raises(RunError) as told:
        reproduce(copy)
    assert str(told.value).startswith(f"run {str(copy)!r} cannot be repeated: ")
    assert says in str(told.value)


OWN_TASK = """
from circuitlab import Example, Task

NAMES = ("Anna", "Mary", "Lisa", "Jane", "Susan", "Laura", "Emma", "Lucy")

def draw(rng):
    name = rng.choice(NAMES)
    return Example(f"{name} is a very good cook.", f"{name} is a very good cook;", " She", " she")

def margin(logits, batch):
    rows = range(len(batch))
    return logits[rows, batch.answers[:, 0]] - logits[rows, batch.distractors[:, 0]]

TASK = Task(name="own", version="1", summary="Mine.", draw=draw, metric={metric})
"""


@pytest.fixture(scope="module")
def plainly() -> Iterator[None]:
    """Without pictures and page, and with Python's compiled files, which the shell that runs the tests may forbid."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circuitlab.runs.write._write_pictures", lambda run, folder: None)
        patch.setattr("circuitlab.report.write_report", lambda folder, **options: None)
        patch.setattr(sys, "dont_write_bytecode", False)
        yield


@pytest.fixture(scope="module")
def own(bundled, plainly, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a user's own task file; the file is gone afterwards."""
    here = tmp_path_factory.mktemp("own")
    (here / "own.py").write_text(OWN_TASK.format_map({"metric": '"logit_diff"', "name": "{name}"}))
    discover(here / "own.py", model=bundled, n=3, min_accuracy=0.0, out=here / "run")
    (here / "own.py").rename(here / "kept.txt")
    return here


def test_a_run_of_an_own_task_keeps_the_file(own):
    assert (own / "run" / "task.py").read_bytes() == (own / "kept.txt").read_bytes()
    assert "task.py" in json.loads((own / "run" / "manifest.json").read_text())["files"]


def test_a_run_of_an_own_task_holds_nothing_that_was_not_written_for_it(own):
    assert [name for name in bytes_in(own / "run") if "pycache" in name] == []
    assert [
        name for name in json.loads((own / "run" / "manifest.json").read_text())["files"] if "pycache" in name
    ] == []


def test_a_run_of_an_own_task_can_be_repeated_from_the_folder_alone(own):
    result = reproduce(own / "run", run_code=True)
    assert result.ok, [check for check in result.files if check.status not in ("same bytes", "redrawn")]


def test_a_run_of_a_task_with_its_own_metric_can_be_repeated(folder, tmp_path, monkeypatch):
    """Only how the metric is found: the work itself is stopped when it begins."""
    (tmp_path / "own.py").write_text(OWN_TASK.format_map({"metric": "margin", "name": "{name}"}))
    reached = []

    def loading(*given: object, **options: object) -> None:
        reached.append("model")
        raise RunError("far enough")

    monkeypatch.setattr("circuitlab.runs.pipeline.load_model", loading)
    shutil.copytree(folder, tmp_path / "run")
    shutil.copyfile(tmp_path / "own.py", tmp_path / "run" / "task.py")
    in_json("config/options", lambda was: {})(tmp_path / "run" / "manifest.json")
    in_json("config/metric", lambda was: "margin")(tmp_path / "run" / "manifest.json")
    in_json("config/task", lambda was: "own.py")(tmp_path / "run" / "manifest.json")
    digest = hashlib.sha256((tmp_path / "own.py").read_bytes()).hexdigest()
    in_json("files", lambda was: {**was, "task.py": digest})(tmp_path / "run" / "manifest.json")
    with pytest.raises(RunError, match="far enough"):
        reproduce(tmp_path / "run", run_code=True)
    assert reached == ["model"]
