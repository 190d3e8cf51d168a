"""Files as other projects and programs write them, read from the command line as a user would."""

import gzip
import json

import pytest
from tables import lines, pairs, renamed, saved, separated

from circuitlab import Task, check_task, load_task
from circuitlab.cli import main
from circuitlab.data.tables import rows as reading
from circuitlab.data.tables.table import record_of, row_of_record
from circuitlab.errors import FormatError, TableError, TableWarning, TaskFileError
from circuitlab.models import load


@pytest.fixture(scope="module")
def rows(bundled):
    return pairs(bundled)


def as_tuples(rows):
    return [tuple(row.values()) for row in rows]


def texts(task):
    """The pairs of a table, in the order of its rows, with the first answer and distractor."""
    found = [row.example for row in task.table.rows]
    return [(one.clean, one.corrupt, one.answers[0], *one.distractors[:1]) for one in found]


def shown(capsys, *words):
    """What a command says about a table on stderr, and its exit code."""
    code = main(["tasks", "show", *map(str, words)])
    return code, capsys.readouterr().err


# Programs


def excel(rows, mark="\ufeff", **how):
    """As Excel exports: a byte-order mark, semicolons, Windows line ends."""
    return mark + separated(rows, ";").replace("\n", "\r\n")


PROGRAMS = {
    "excel.csv": (excel, "utf-8"),
    "excel with a delimiter declared.csv": (lambda rows: "sep=;\r\n" + excel(rows, ""), "utf-8-sig"),
    "unicode text.csv": (lambda rows: separated(rows, "\t").replace("\n", "\r\n"), "utf-16"),
    "old mac.csv": (lambda rows: separated(rows).replace("\n", "\r"), "utf-8"),
    "index.csv": (lambda rows: separated(rows, index=True), "utf-8"),
    "all in quotes.csv": (
        lambda rows: "".join(
            ",".join(f'"{one}"' for one in cells) + "\r\n" for cells in (rows[0], *(row.values() for row in rows))
        ),
        "utf-8",
    ),
    "lines.json": (lines, "utf-8"),
    "pretty.json": (lambda rows: json.dumps(rows, indent=2), "utf-8"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_files_of_programs_hold_the_same_pairs(rows, tmp_path, capsys, name):
    """Line ends inside of cells, and spaces around them, are part of the text."""
    table = [{**row, "clean": f"A line.\n{row['clean']}", "corrupt": f"A line.\n{row['corrupt']}"} for row in rows]
    write, encoding = PROGRAMS[name]
    path = saved(tmp_path / name, write(table), encoding)
    assert as_tuples(table) == [
        tuple(text.replace("\r\n", "\n").replace("\r", "\n") for text in row) for row in texts(load_task(path))
    ]
    code, said = shown(capsys, path)
    assert code == 0
    assert f"{len(rows)} pairs; layout clean, corrupt, answer: clean=clean" in said
    table[3]["answer"] = ""
    bad = saved(tmp_path / name, write(table), encoding)
    code, said = shown(capsys, bad)
    assert code == 2
    assert "column 'answer': '' is empty" in said
    first = {"lines.json": 4, "pretty.json": 4}.get(name, 11 + ("declared" in name))  # after three rows of three lines
    assert f"{name}, {'row' if name == 'pretty.json' else 'line'} {first}, column" in said


def test_a_compressed_file_is_read(rows, tmp_path):
    for name, text in (("pairs.csv.gz", separated(rows)), ("pairs.jsonl.gz", lines(rows))):
        with gzip.open(tmp_path / name, "wt") as file:
            file.write(text)
        assert texts(load_task(tmp_path / name)) == as_tuples(rows)


def test_a_space_after_each_comma_is_noticed(rows, tmp_path):
    path = saved(tmp_path / "spaced.csv", separated(rows).replace("corrupt", " corrupt", 1))
    with pytest.warns(TableWarning, match="the name of column ' corrupt' begins with a space"):
        load_task(path)


def test_files_that_are_no_tables_are_named_with_what_is_read(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("pairs.xlsx", "pairs.txt"):
        saved(tmp_path / name, separated(rows))
        for path in (name, tmp_path / name):
            code, said = shown(capsys, path)
            assert code == 2
            assert "Give a Python file, or a table of pairs, whose name ends in .csv, .tsv, .jsonl" in said
    with pytest.raises(TaskFileError, match="does not end in .py"):
        load_task("pairs.txt")


# Projects


def test_auto_circuit(rows, tmp_path, capsys):
    """An object that holds the rows, labels of their tokens beside them, and lists of answers."""
    prompts = [
        {"clean": row["clean"], "corrupt": row["corrupt"], "answers": [row["answer"]],
         "wrong_answers": [row["distractor"]]}
        for row in rows
    ]  # fmt: skip
    for more in ({}, {"seq_labels": ["BOS", "name", "has"], "word_idxs": {"name": 1}}):
        path = saved(tmp_path / "prompts.json", json.dumps({**more, "prompts": prompts}))
        task = load_task(path)
        assert task.table.layout == "auto-circuit"
        assert texts(task) == as_tuples(rows)
        assert task.metric == "logit_diff"
    ids = [{"clean": [0, 5, 4], "corrupt": [0, 5, 3], "answers": [[0.5]], "wrong_answers": [[0.1]]}]
    code, said = shown(capsys, saved(tmp_path / "tracr.json", json.dumps({"prompts": ids})))
    assert code == 2
    assert "tracr.json, row 1, column 'clean': [0, 5, 4] is a list, which is no text" in said
    two = saved(tmp_path / "two.json", json.dumps({"prompts": prompts, "train": prompts, "n": 3}))
    with pytest.raises(TableError, match="holds an object; it must be a list of objects"):
        load_task(two)


@pytest.mark.parametrize("name", ["wrong_answers", "incorrect_answers", "corrupted_answers", "corrupt_answer"])
@pytest.mark.parametrize("prompt", ["clean", "prompt"])
def test_no_column_of_distractors_is_passed_over(rows, name, prompt):
    table = renamed(rows, clean=prompt, corrupt="corrupted", answer="answer", distractor=name)
    assert texts(Task.from_frame(table)) == as_tuples(rows)


def test_what_is_not_used_is_said(rows, tmp_path, capsys):
    path = saved(tmp_path / "a.csv", separated([{**row, "note": "x", "foil": row["distractor"]} for row in rows]))
    assert "distractor=distractor; not used: note, foil\n" in shown(capsys, path)[1]
    path = saved(tmp_path / "b.csv", separated(renamed(rows, clean="clean", corrupt="corrupt", answer="answer")))
    assert "answer=answer; no distractors\n" in shown(capsys, path)[1]
    table = [{"clean": row["clean"], "corrupted": row["corrupt"], "correct_idx": 3} for row in rows]
    path = saved(tmp_path / "c.csv", separated(table, index=True))
    assert "no distractors; token ids must be those of the model\n" in shown(capsys, path)[1]


YEARS = [("contract", 13, 52), ("plan", 16, 42), ("war", 17, 4), ("riot", 15, 98)]


def test_labels_of_greater_than_are_years_and_no_answers(tmp_path, bundled):
    """In EAP-IG's file the label is the year of the prompt; all later years are right."""
    table = [
        {
            "clean": f"The {noun} lasted from the year {century}{year:02d} to the year {century}",
            "corrupted": f"The {noun} lasted from the year {century}01 to the year {century}",
            "label": year,
        }
        for noun, century, year in YEARS
    ]
    task = load_task(saved(tmp_path / "greater_than_data.csv", separated(table)))
    assert task.table.layout == "EAP-IG, greater-than"
    assert task.metric == "prob_diff"
    for row, (_, _, year) in zip(task.table.rows, YEARS, strict=True):
        assert row.example.answers == tuple(f"{one:02d}" for one in range(year + 1, 100))
        assert row.example.distractors == tuple(f"{one:02d}" for one in range(year + 1))
        assert row.example.standalone_answers
        assert row_of_record(json.loads(json.dumps(record_of(row)))) == row  # as a run folder keeps it
    table[1]["label"] = 99
    table[1]["clean"] = table[1]["clean"].replace("1642", "1699")
    with pytest.raises(TableError, match="line 3, column 'label': '99' has no later year in its century"):
        load_task(saved(tmp_path / "late.csv", separated(table)))
    table[1]["label"] = ""
    with pytest.raises(TableError, match="line 3, column 'label': '' is empty.*1 bad row, 0 allowed"):
        load_task(saved(tmp_path / "empty.csv", separated(table)))
    table[1]["label"] = 43  # not the year of the prompt: a label is an answer then
    assert load_task(saved(tmp_path / "other.csv", separated(table))).table.layout == "EAP-IG"


@pytest.mark.parametrize(
    "form",
    [
        "The price of that lamp ranges from $ {0}{1:02d} to $ {0}",
        "{0}00, {0}01, {0}02, {0}03, {0}{1:02d}, {0}",
        "The war lasted from the year {0}{1:02d} to the year {0}",
    ],
)
def test_years_in_the_place_of_token_ids(form):
    """Files of EAP-IG name the column of years `correct_idx`, as that of token ids in others."""
    table = [
        {"clean": form.format(century, year), "corrupted": form.format(century, 1), "correct_idx": year}
        for _, century, year in YEARS
    ]
    task = Task.from_frame(table)
    assert task.table.layout == "EAP-IG, greater-than"
    assert [row.example.answers[0] for row in task.table.rows] == [f"{year + 1:02d}" for *_, year in YEARS]
    table[2]["correct_idx"] += 1
    ids = Task.from_frame(table).table
    assert ids.layout == "EAP-IG (token ids)"
    assert [row.example.answer_ids for row in ids.rows] == [(row["correct_idx"],) for row in table]
    both = Task.from_frame([{**row, "incorrect_idx": 7} for row in table]).table
    assert both.layout == "EAP-IG (token ids)"


OF_EAP_IG = {
    "gender-bias": ("clean_answer_idx", "corrupted_answer_idx", {"label": 1}),
    "hypernymy": ("answers_idx", "corrupted_answers_idx", {}),
    "fact-retrieval": ("country_idx", "corrupted_country_idx", {"capital": "Paris", "country": "France"}),
    "ioi": ("correct_idx", "incorrect_idx", {"corrupted_hard": "x"}),
}


@pytest.mark.parametrize("name", OF_EAP_IG)
def test_token_ids_of_eap_ig_go_before_its_labels(name, tmp_path):
    """In the file of gender bias `label` is the kind of the profession."""
    right, wrong, more = OF_EAP_IG[name]
    table = [{"clean": "a", "corrupted": "b", right: "[5, 6]" if name == "hypernymy" else 5, wrong: 7, **more}] * 3
    task = load_task(saved(tmp_path / "gpt2.csv", separated(table)))
    assert task.table.layout == "EAP-IG (token ids)"
    example = task.table.rows[0].example
    assert (example.answer_ids, example.distractor_ids) == ((5, 6) if name == "hypernymy" else (5,), (7,))


def test_ewok_and_blimp(rows):
    """Their words have no space in front; BLiMP's with two prefixes have no wrong one."""
    bare = [{**row, "answer": row["answer"][1:], "distractor": row["distractor"][1:]} for row in rows]
    ewok = renamed(bare, clean="Context1", corrupt="Context2", answer="Target1", distractor="Target2")
    task = Task.from_frame([{**row, "Domain": "spatial-relations"} for row in ewok])
    assert task.table.layout == "EWoK"
    assert task.metric == "answer_log_prob_diff"
    assert texts(task) == as_tuples(rows)
    blimp = renamed(
        bare, clean="two_prefix_prefix_good", corrupt="two_prefix_prefix_bad", answer="two_prefix_word"
    )  # fmt: skip
    task = Task.from_frame([{**row, "sentence_good": "a", "sentence_bad": "b", "pairID": "0"} for row in blimp])
    assert task.table.layout == "BLiMP, two prefixes"
    assert texts(task) == [row[:3] for row in as_tuples(rows)]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (("sentence_good", "sentence_bad", "pairID"), "BLiMP compares whole sentences"),
        (("clean", "corrupted", "group", "plural"), "EAP-IG's file for subject-verb agreement has no answers"),
        (("case_id", "requested_rewrite"), "CounterFact has no corrupted prompts"),
        (("base", "src", "base_label", "src_label"), "CausalGym's prompts are lists of texts. Join them"),
    ],
)
def test_known_files_without_pairs_are_refused_with_the_reason(columns, why):
    with pytest.raises(TableError, match=f"which hold no pairs of prompts. {why}"):
        Task.from_frame([dict.fromkeys(columns, "x")])


def test_columns_of_no_layout_are_named_by_the_fields_that_are_missing(tmp_path, capsys):
    path = saved(tmp_path / "faq.csv", "question,reply\na,b\n")
    code, said = shown(capsys, path)
    assert code == 2
    assert "nothing holds clean and corrupt and answer. Name the columns: columns=" in said
    assert "(--columns clean=THEIRS,corrupt=THEIRS,answer=THEIRS)" in said


# Numbers


def test_whole_numbers_of_a_data_set_are_their_digits_and_others_are_refused(tmp_path, capsys):
    table = [
        {"clean": f"{a} + {b} =", "corrupt": f"{a} + {b + 1} =", "answer": a + b, "wrong": [a + b + 1]}
        for a in range(3)
        for b in range(3)
    ]
    path = saved(tmp_path / "sums.json", json.dumps(table))
    said = shown(capsys, path)[1]
    assert "; whole numbers in 'answer' are read as their digits\n" in said
    as_text = [{**row, "answer": str(row["answer"]), "wrong": [str(row["wrong"][0])]} for row in table]
    assert texts(load_task(path)) == texts(Task.from_frame(as_text))
    assert load_task(path).version == Task.from_frame(as_text).version
    for value, kind in ((1.5, "the number 1.5"), (True, "the truth value True"), (7.0, "the number 7.0")):
        with pytest.raises(TableError, match=f"row 2, column 'answer': .* is {kind}, which is no text"):
            Task.from_frame([table[0], {**table[1], "answer": value}])
    import datasets

    columns = {name: [row[name] for row in table] for name in ("clean", "corrupt", "answer")}
    found = Task.from_frame(datasets.Dataset.from_dict(columns)).table
    assert "whole numbers in 'answer' are read as their digits" in found.described()
    assert found.rows[4].example.answers == (str(table[4]["answer"]),)
    # A CSV file that is read here keeps its text.
    path = saved(tmp_path / "sums.csv", "clean,corrupt,answer\n0 + 7 =,0 + 8 =, 07\n")
    assert texts(load_task(path)) == [("0 + 7 =", "0 + 8 =", " 07")]
    assert "whole numbers" not in shown(capsys, path)[1]


# Every row


def test_a_bad_row_at_the_end_of_a_long_table_ends_the_command(rows, tmp_path, capsys, monkeypatch):
    """Cells of every row are checked, tokens only of the rows drawn; the line on stderr says so."""
    monkeypatch.setattr(reading, "MOST_CHECKED", 100)
    n = 200
    table = [{**rows[i % 24], "clean": f"{i} {rows[i % 24]['clean']}"} for i in range(n)]
    path = saved(tmp_path / "long.csv", separated([*table[:-1], {**table[-1], "answer": ""}]))
    code, said = shown(capsys, path)
    assert code == 2
    assert f"long.csv, line {n + 1}, column 'answer': '' is empty" in said
    code, said = shown(capsys, path, "--max-bad-rows", "1")
    assert code == 0
    assert "199 pairs;" in said
    assert "the cells of every row are checked, tokens only of the rows drawn\n" in said


# CircuitKit's task files


TASK_FILE = """
name: simple_task
source:
  type: csv
  path: {path}
schema:
  prompt: question
  answer: answer
  corrupted: twin
  corrupted_answer: corrupt_answer
metric: logit_diff
"""


@pytest.fixture
def kit(rows, tmp_path):
    """A function that writes a task file, with changes, beside its table."""
    saved(
        tmp_path / "sample.csv",
        separated(renamed(rows, clean="question", corrupt="twin", answer="answer", distractor="corrupt_answer")),
    )

    def write(old="", new="", path="sample.csv"):
        text = TASK_FILE.format(path=path)
        assert old in text
        return saved(tmp_path / "task.yaml", text.replace(old, new) if old else text + new)

    return write


def test_a_task_file_names_table_and_columns(rows, kit, tmp_path, monkeypatch, capsys):
    task = load_task(kit())
    assert task.name == "simple_task"
    assert texts(task) == as_tuples(rows)
    monkeypatch.chdir(tmp_path)  # CircuitKit looks for the table from the working directory
    code, said = shown(capsys, "task.yaml")
    assert code == 0
    assert "sample.csv: 24 pairs; layout given columns: " in said
    turned = load_task("task.yaml", columns={"answer": "corrupt_answer", "distractor": "answer"})
    assert texts(turned)[0] == (rows[0]["clean"], rows[0]["corrupt"], rows[0]["distractor"], rows[0]["answer"])


def test_a_task_file_may_name_a_data_set_of_the_hub(rows, kit, monkeypatch):
    """Of one split, by default test, as CircuitKIT takes it."""
    import datasets

    asked = []

    def load_dataset(name, config, *, split, revision):
        asked.append((name, split))
        return datasets.Dataset.from_list(
            [dict(zip(("question", "twin", "answer", "corrupt_answer"), one, strict=True)) for one in as_tuples(rows)]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for more, split in (("", "test"), ("\n  split: validation", "validation")):
        task = load_task(kit("type: csv\n  path: sample.csv", f"type: hf\n  dataset_id: someone/capitals{more}"))
        assert asked.pop() == ("someone/capitals", split)
        assert texts(task) == as_tuples(rows)
        assert task.table.split_column == ""


BAD_FILES = {
    "not yaml": (("", "\n  : ]"), FormatError, "is not valid YAML"),
    "no schema": (("schema:", "columns:"), TableError, "is no task file of CircuitKIT: it must have name, source and"),
    "type": (("type: csv", "type: sql"), TableError, "source.type is 'sql'; it must be csv, jsonl or hf"),
    "no path": (("path:", "file:"), TableError, "source.path is None; it must name the table"),
    "other key": (("corrupted: twin", "corrupt_prompt: twin"), TableError, "schema.corrupt_prompt is not read. Known"),
    "context": (("corrupted: twin", "context: twin"), TableError, "schema.context is part of the prompt"),
    "strategy": (
        ("  corrupted: twin\n", ""), TableError, "names no column of corrupted prompts. Corruption strategies are not",
    ),
    "template": (("", "prompt_template: 'Q: {{ question }}'"), TableError, "has a prompt_template"),
    "code": (("simple_task", "!!python/object/apply:os.getcwd []"), FormatError, "is not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_a_task_file_asks_for_beside_columns_is_refused(kit, kind):
    change, error, message = BAD_FILES[kind]
    with pytest.raises(error, match=message):
        load_task(kit(*change))


def test_metric_and_chat_template_of_a_task_file_are_not_passed_over(kit):
    with pytest.warns(TableWarning, match="asks for metric 'kl': give --metric kl"):
        load_task(kit("metric: logit_diff", "metric: kl"))
    with pytest.warns(TableWarning, match="asks for a chat template, which is not applied"):
        load_task(kit("", "chat_template_mode: on"))


# Answers of several tokens


def test_a_check_measures_whole_answers_where_the_metric_cannot(bundled, rows, tmp_path, capsys, monkeypatch):
    """A task whose answers have several tokens for a model; given a metric, that alone is measured."""
    from random import Random

    from circuitlab import Example

    table = [{**row, "answer": row["answer"] + " the", "distractor": row["distractor"] + " the"} for row in rows]

    def draw(rng: Random) -> Example:
        row = rng.choice(table)
        return Example(row["clean"], row["corrupt"], row["answer"], row["distractor"])

    task = Task(name="two-tokens", version="1", summary="A name and more.", draw=draw)
    found = check_task(task, bundled, n=8)
    assert (found.metric, found.rule) == ("answer_log_prob_diff", "answer_log_prob_diff is above 0")
    assert "and logit_diff judges one: measured by answer_log_prob_diff. Give metric=" in found.note
    assert found.n == 8
    named = check_task(task, bundled, n=8, metric="answer_log_prob_diff")
    assert not named.note
    assert (named.accuracy, named.clean, named.corrupt) == (found.accuracy, found.clean, found.corrupt)
    given = check_task(task, bundled, n=8, metric="logit_diff")
    assert (given.n, given.note, given.metric) == (0, "", "logit_diff")
    assert "--metric answer_log_prob_diff" in given.problem
    file = saved(
        tmp_path / "two.py",
        "from circuitlab import Example, Task\n"
        f"TABLE = {table!r}\n"
        "def draw(rng):\n"
        "    row = rng.choice(TABLE)\n"
        "    return Example(row['clean'], row['corrupt'], row['answer'], row['distractor'])\n"
        "TASK = Task(name='two', version='1', summary='', draw=draw)\n",
    )
    monkeypatch.setattr(load, "load_model", lambda *_given, **_more: bundled)
    assert main(["tasks", "check", str(file), "-n", "8", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "two: right means that answer_log_prob_diff is above 0" in out
    assert "bundled: the answers have several tokens, and logit_diff judges one" in " ".join(out.split())
    for words in ("attribute", "discover"):
        assert main([words, str(file), "-n", "4", "--quiet"]) == 2
        said = capsys.readouterr().err
        assert ("This command judges the next token only" in said) == (words == "attribute")
        assert ("--metric answer_log_prob_diff" in said) == (words == "discover")
    # A table's rows are refused one by one, with the same advice.
    with pytest.raises(TableError, match="row 1, column 'answer': .*--metric answer_log_prob_diff"):
        check_task(Task.from_frame(table), bundled, n=8, metric="logit_diff")
    found = check_task(Task.from_frame(table), bundled, n=8)
    assert (found.n, found.metric, bool(found.note)) == (8, "answer_log_prob_diff", True)
    with pytest.raises(TableError, match="does not line up"):
        check_task(Task.from_frame([*table[1:], {**table[0], "corrupt": "Short."}]), bundled, n=8)


def test_a_task_that_a_tokenizer_cannot_serve_at_all_keeps_its_problem(bundled):
    from circuitlab import Example

    def draw(rng):
        name = rng.choice(("Anna", "Lisa", "Emma"))
        return Example(f"{name} is here.", f"{name} is here now.", " She", " she")

    found = check_task(Task(name="odd", version="1", summary="", draw=draw), bundled, n=2)
    assert found.problem
    assert (found.metric, found.note, found.n) == ("logit_diff", "", 0)
