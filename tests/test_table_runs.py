"""Whatever takes the name of a task takes a table of pairs: runs, their folders, the command line."""

import json
import shutil

import pytest
from tables import lines, pairs, saved, separated

from circuitlab import (
    ConfigError,
    RunError,
    Task,
    TooFewPromptsError,
    check_task,
    cite,
    discover,
    load_run,
    load_task,
    reproduce,
    stability,
)
from circuitlab.cli import main
from circuitlab.errors import TableError, TableWarning
from circuitlab.runs.judging import judging


@pytest.fixture(scope="module")
def rows(bundled):
    return pairs(bundled)


@pytest.fixture(scope="module")
def folder(bundled, rows, tmp_path_factory):
    """The folder of a run of a table that is gone."""
    place = tmp_path_factory.mktemp("run")
    table = [*rows[:5], {**rows[5], "answer": ""}, *rows[6:]]
    path = saved(place / "throws.csv", separated(table))
    with pytest.warns(TableWarning, match="line 7"):
        discover(
            path,
            model=bundled,
            n=6,
            sites=(),
            max_bad_rows=1,
            columns={"distractor": "distractor"},
            out=place / "a run",
        )
    path.unlink()
    return place / "a run"


def test_a_run_folder_repeats_without_the_file(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["task"]["table"]["dropped"] == {"column 'answer' is empty; it must be a text": 1}
    assert manifest["dataset"]["dropped"] == manifest["task"]["table"]["dropped"]
    assert manifest["config"]["max_bad_rows"] == 1
    assert "--max-bad-rows 1" in manifest["command"]
    assert len((folder / "table.jsonl").read_text().splitlines()) == 23
    again = reproduce(folder)
    assert again.ok, again
    assert {check.name: check.status for check in again.files}["table.jsonl"] == "same bytes"


def test_a_run_is_loaded_and_judged_with_its_table(bundled, folder):
    run = load_run(folder)
    assert run.task.table.layout == "clean, corrupt, answer"
    assert run.task.pairs(bundled, n=6).fingerprint == run.pairs.fingerprint
    judged = judging(folder, model=bundled, n=5)
    assert not judged.held_out.texts & run.pairs.discovery.texts
    assert "throws" in cite(folder)


def test_a_table_that_was_changed_in_the_folder_is_refused(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    text = (other / "table.jsonl").read_text()
    (other / "table.jsonl").write_text(text.replace(" the ", " a ", 1))
    with pytest.raises(RunError, match=r"table.jsonl .* was changed after the run"):
        reproduce(other)
    (other / "table.jsonl").unlink()
    with pytest.raises(RunError, match="its copy table.jsonl is not in the folder"):
        reproduce(other)


def test_a_run_of_a_frame_has_the_numbers_of_the_same_file(bundled, rows, tmp_path):
    path = saved(tmp_path / "pairs.jsonl", lines(rows))
    settings = {"model": bundled, "n": 3, "sites": (), "method": "eap"}
    one, two = discover(path, **settings), discover(Task.from_frame(list(rows), name="pairs"), **settings)
    assert one.task_fingerprint == two.task_fingerprint
    assert one.pairs.fingerprint == two.pairs.fingerprint
    assert one.evaluation.to_record() == two.evaluation.to_record()


def test_what_a_table_cannot_give_is_refused_before_the_work(rows, tmp_path):
    path = saved(tmp_path / "pairs.csv", separated(rows))
    with pytest.raises(TooFewPromptsError, match="has 24 pairs, but n=13 needs 26"):
        discover(path, model="no such model", n=13)
    with pytest.raises(TooFewPromptsError, match="n=10 needs 30: 10 discovery, held-out and reference"):
        discover(path, model="no such model", n=10, ablation="mean")
    split = Task.from_frame([{**row, "split": ("train", "test")[i % 2]} for i, row in enumerate(rows)])
    with pytest.raises(ConfigError, match="the splits of the data frame fix them"):
        discover(split, model="no such model", n=5, stability_seeds=2)


def test_stability_over_seeds_is_refused_for_fixed_splits(bundled, rows):
    split = Task.from_frame([{**row, "split": ("train", "test")[i % 2]} for i, row in enumerate(rows)])
    with pytest.raises(ConfigError, match="the splits of the data frame fix them"):
        stability(bundled, split, "eap", over="seeds", n=5, n_resamples=2)
    found = stability(bundled, Task.from_frame(list(rows)), "eap", over="seeds", n=5, n_resamples=2, n_edges=20)
    assert 0 <= found.jaccard <= 1


def test_a_model_does_a_table_as_it_does_the_task(bundled, rows):
    assert check_task(Task.from_frame(list(rows)), bundled, n=12).accuracy > 0.9
    turned = [{**row, "answer": row["distractor"], "distractor": row["answer"]} for row in rows]
    assert check_task(Task.from_frame(turned), bundled, n=12).accuracy < 0.1


def test_tables_are_not_named_like_tasks(rows, tmp_path):
    path = saved(tmp_path / "ioi.csv", separated(rows))
    assert load_task(path).name == "ioi-table"
    assert "The circuitlab developers" not in cite(path).split("@misc")[1]
    odd = saved(tmp_path / "my pairs (1): a.csv", separated(rows))
    assert load_task(odd).name == "my-pairs-1-a"


def test_a_name_goes_before_a_folder_that_is_called_like_it(rows, tmp_path, monkeypatch):
    (tmp_path / "ioi").mkdir()
    saved(tmp_path / "ioi" / "train.csv", separated(rows))
    monkeypatch.chdir(tmp_path)
    assert load_task("ioi").table is None
    assert load_task("./ioi").name == "ioi-table"


def test_without_a_number_a_table_gives_what_it_has(bundled, rows):
    run = discover(Task.from_frame(list(rows)), model=bundled, sites=(), method="eap")
    assert (len(run.pairs.discovery), len(run.pairs.held_out), run.config.n) == (12, 12, 12)
    split = Task.from_frame([{**row, "split": "test" if i > 16 else "train"} for i, row in enumerate(rows)])
    assert (split.usual_n(100), split.usual_n(100, reference=True), split.usual_n(5)) == (7, 7, 5)
    assert Task.from_frame(list(rows), max_bad_rows=4).usual_n(100) == 10
    assert load_task("ioi").usual_n(100) == 100


def test_a_bad_row_ends_a_command_with_2(rows, tmp_path, capsys):
    table = [{**row, "answer": "" if i in (3, 8) else row["answer"]} for i, row in enumerate(rows)]
    path = str(saved(tmp_path / "bad.csv", separated(table)))
    for words in (("tasks", "show"), ("sweep", "--site", "resid_pre", "--quiet"), ("discover", "--quiet")):
        assert main([*words, path]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "bad.csv, line 5, column 'answer': '' is empty" in said
    assert main(["tasks", "check", path, "-n", "8", "--max-bad-rows", "2", "--quiet", "--json"]) == 0
    out, said = capsys.readouterr()
    assert "warning: " in said
    assert "bad.csv: 22 pairs; layout clean, corrupt, answer: clean=clean" in said
    check = json.loads(out)["checks"][0]
    assert check["accuracy"] > 0.9
    assert check["dropped"] == {"column 'answer' is empty; it must be a text": 2}


def test_columns_on_the_command_line(rows, tmp_path, capsys):
    table = [dict(zip(("a", "b", "c", "d"), row.values(), strict=True)) for row in rows]
    path = str(saved(tmp_path / "mine.csv", separated(table)))
    assert main(["tasks", "show", path, "--columns", "clean=a,corrupt=b", "--columns", "answer=c"]) == 0
    assert "column answer" in capsys.readouterr().out
    assert main(["tasks", "show", path, "--columns", "clean=a,corupt=b"]) == 2
    assert "corupt" in capsys.readouterr().err
    assert main(["evaluate", "nothing", "--columns", "clean=a"]) == 2
    assert "--columns says how a table is read" in capsys.readouterr().err


def test_a_missing_data_set_says_what_to_do(capsys):
    assert main(["tasks", "show", "someone/nothing"]) == 2
    assert "'someone/nothing' is no file or folder here" in capsys.readouterr().err
    assert issubclass(TableError, OSError)
