"""Tables of pairs as tasks: every format and layout, every kind of bad row, and what stays as it stands."""

import gzip
import json
import shutil
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from tables import OURS, lines, pairs, renamed, saved, separated

from circuitlab import (
    ConfigError,
    Example,
    FormatError,
    MissingFileError,
    Task,
    TaskError,
    TooFewPromptsError,
    UnknownNameError,
    check_task,
    load_task,
)
from circuitlab.data.encoded import Rejection
from circuitlab.data.encoding import encode_example
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.tables.cells import CellError, ids_of, span_of, split_of, text_of, words_of
from circuitlab.data.tables.draw import MOST_CHECKED
from circuitlab.data.tables.layouts import LAYOUTS, recognised
from circuitlab.errors import TableError, TableWarning


@pytest.fixture(scope="module")
def rows(bundled):
    return pairs(bundled)


def texts(task):
    return [
        (row.example.clean, row.example.corrupt, *row.example.answers, *row.example.distractors)
        for row in task.table.rows
    ]


def as_tuples(rows):
    return [tuple(row.values()) for row in rows]


# Formats


def test_every_format_gives_the_same_pairs_and_the_same_fingerprint(rows, tmp_path):
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "a.parquet")
    content = {
        "a.csv": separated(rows), "b.csv": separated(rows, ";"), "c.csv": separated(rows, "\t", index=True),
        "a.tsv": separated(rows, "\t"), "d.csv": separated(rows, "|"), "a.jsonl": lines(rows), "a.ndjson": lines(rows),
        "a.json": json.dumps(rows), "lines.json": lines(rows), "held.json": json.dumps({"prompts": rows}),
        "pandas.json": frame.to_json(), "split.json": frame.to_json(orient="split"),
        "columns.json": json.dumps({name: [row[name] for row in rows] for name in OURS}),
    }  # fmt: skip
    for name, text in content.items():
        saved(tmp_path / name, text)
    saved(tmp_path / "bom.csv", separated(rows), "utf-8-sig")
    saved(tmp_path / "wide.csv", separated(rows), "utf-16")
    saved(tmp_path / "windows.csv", separated(rows).replace("\n", "\r\n"))
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(separated(rows).encode()))
    names = (*content, "a.parquet", "bom.csv", "wide.csv", "windows.csv", "packed.csv.gz")
    found = {name: load_task(tmp_path / name) for name in names}
    found["frame"] = Task.from_frame(frame)
    found["list"] = Task.from_frame(list(rows))
    for name, task in found.items():
        assert texts(task) == as_tuples(rows), name
        assert task_fingerprint(task) == task_fingerprint(found["a.csv"]), name


@pytest.mark.parametrize("change", ["answer", "order", "row", "split"])
def test_the_fingerprint_covers_every_row(rows, change):
    changed = [dict(row) for row in rows]
    if change == "order":
        changed[-2:] = changed[:-3:-1]
    elif change == "row":
        del changed[-1]
    elif change == "split":
        changed = [{**row, "split": ("train", "test")[i % 2]} for i, row in enumerate(changed)]
    else:
        changed[-1]["answer"] += "x"
    assert task_fingerprint(Task.from_frame(changed)) != task_fingerprint(Task.from_frame(list(rows)))


def test_words_that_pandas_would_convert_stay_words(tmp_path):
    words = ("007", "NA", "null", "True", "NaN", "None", "1e5", "", " Mary", '"quoted"', "two\nlines", "a,b;c\td")
    rows = [
        {"clean": f"Say {i} {word}", "corrupted": f"Say {i} x", "answer": word or "-", "wrong": " no"}
        for i, word in enumerate(words)
    ]
    task = load_task(saved(tmp_path / "odd.csv", separated(rows)))
    assert texts(task) == as_tuples(rows)
    assert [row.number for row in task.table.rows][-2:] == [12, 15]  # the line that a row begins in


def test_a_frame_keeps_its_order_and_takes_missing_distractors_as_none(rows):
    frame = pd.DataFrame(rows).drop(columns="distractor").sample(frac=1, random_state=3)
    task = Task.from_frame(frame)
    assert [one[0] for one in texts(task)] == list(frame["clean"])
    assert task.metric == "log_prob"
    assert Task.from_frame(pd.DataFrame(rows)).metric == "logit_diff"
    with pytest.raises(
        TableError, match="row 2, column 'distractor': nan is empty|row 2, column 'distractor'.* is empty"
    ):
        Task.from_frame(pd.DataFrame(rows).assign(distractor=[" a", np.nan] * 12))


# Layouts


def layouts_of_others(rows):
    """Files in the columns of other projects, with columns of theirs that mean nothing here."""
    yield "EAP-IG", renamed(rows, clean="clean", corrupt="corrupted", answer="label")
    yield (
        "sparse feature circuits",
        [
            {**row, "case": "singular_plural"}
            for row in renamed(
                rows, clean="clean_prefix", corrupt="patch_prefix", answer="clean_answer", distractor="patch_answer"
            )
        ],
    )
    yield (
        "circuitkit",
        [
            {**row, "context": "", "choices": "[]"}
            for row in renamed(
                rows, clean="prompt", corrupt="corrupted_prompt", answer="answer", distractor="corrupted_answer"
            )
        ],
    )
    yield (
        "clean, corrupt, answer",
        renamed(rows, clean="Clean prompt", corrupt="corrupt", answer="answer", distractor="incorrect"),
    )
    yield "MIB, IOI", [
        {
            "prompt": row["clean"], "choices": [row["answer"][1:], row["distractor"][1:]], "answerKey": 0,
            "metadata": {"subject": row["distractor"][1:], "indirect_object": row["answer"][1:], "random_c": "x"},
            "s2_io_flip_counterfactual": {"prompt": row["corrupt"], "choices": [], "answerKey": 1},
            "abc_counterfactual": {"prompt": "no", "choices": [], "answerKey": 0},
        }
        for row in rows
    ]  # fmt: skip
    yield "MIB, multiple choice", [
        {
            "prompt": row["clean"], "choices": {"label": ["x", row["answer"]], "text": ["a", "b"]}, "answerKey": 1,
            "symbol_counterfactual": {
                "prompt": row["corrupt"], "choices": {"label": [row["distractor"], "y"], "text": []}, "answerKey": 0,
            },
        }
        for row in rows
    ]  # fmt: skip


def test_the_layouts_of_other_projects_are_recognised(rows, tmp_path):
    for name, table in layouts_of_others(rows):
        saved(tmp_path / "a.jsonl", lines(table))
        pd.DataFrame(table).to_parquet(tmp_path / "a.parquet")
        for file in ("a.jsonl", "a.parquet"):
            task = load_task(tmp_path / file)
            assert task.table.layout == name
            expected = [row[:3] for row in as_tuples(rows)] if name == "EAP-IG" else as_tuples(rows)
            assert texts(task) == expected
            assert name in task.summary


def test_nested_columns_are_read_from_csv_too(rows, tmp_path):
    """pandas writes them as Python spells them."""
    table = dict(layouts_of_others(rows))["MIB, IOI"]
    pd.DataFrame(table).to_csv(tmp_path / "ioi.csv")
    assert texts(load_task(tmp_path / "ioi.csv")) == as_tuples(rows)


def test_arithmetic_labels_may_be_numbers():
    table = [
        {"prompt": "1 + 1 =", "label": 2, "operator": "+", "random_counterfactual": {"prompt": "1 + 2 =", "label": 3}}
    ]
    assert texts(Task.from_frame(table)) == [("1 + 1 =", "1 + 2 =", "2", "3")]


def test_token_ids_are_those_of_the_model(bundled, rows, tmp_path):
    drawn = load_task("name-throw").pairs(bundled, n=12)
    ids = [(p.answer_ids[0], p.distractor_ids[0]) for p in (*drawn.discovery, *drawn.held_out)]
    table = [
        {
            "clean": row["clean"],
            "corrupted": row["corrupt"],
            "corrupted_hard": "x",
            "correct_idx": a,
            "incorrect_idx": d,
        }
        for row, (a, d) in zip(rows, ids, strict=True)
    ]
    by_ids = load_task(saved(tmp_path / "ids.csv", separated(table, index=True)))
    assert by_ids.table.layout == "EAP-IG (token ids)"
    by_words = Task.from_frame(list(rows))
    assert by_ids.pairs(bundled, n=8).fingerprint == by_words.pairs(bundled, n=8).fingerprint
    assert check_task(by_ids, bundled, n=8).accuracy == check_task(by_words, bundled, n=8).accuracy > 0.9
    n = bundled.text.n_tokens
    table[3]["correct_idx"], table[4]["incorrect_idx"] = n, min(bundled.text.special_ids)
    wrong = load_task(saved(tmp_path / "wrong.csv", separated(table, index=True)))
    with pytest.raises(
        TableError, match=rf"wrong.csv, line 5, column 'correct_idx': {n} does not serve: token {n} is no word"
    ):
        wrong.pairs(bundled, n=8)
    with pytest.raises(
        TableError, match="line 6, column 'incorrect_idx': 0 .*it as a special token.*2 bad rows, 0 allowed"
    ):
        wrong.pairs(bundled, n=8)


@pytest.mark.parametrize("value", ["1.5", "-1", "x", True, "[1, 1]", "[]", "[1, -2]"])
def test_what_is_no_token_id_is_refused(value):
    with pytest.raises(CellError):
        ids_of(value)
    assert ids_of("[3, 4]") == ids_of([3, 4]) == ids_of(np.array([3, 4])) == (3, 4)
    assert ids_of("7.0") == ids_of(7) == ids_of("7") == (7,)


def position_aware(bundled, rows):
    """Each span by the index of its first token, one token in front counted, and the length with it."""
    for row in rows:
        coded = bundled.text.encode(row["clean"])
        front = sum(start == end for start, end in coded.offsets)
        ends = [end for _, end in coded.offsets[front:]]
        length = len(coded.ids) - front + 1
        yield {
            "prompt": row["clean"], "corrupted": row["corrupt"], "prompt_id": 3, "prefix": 1, "second": 4,
            "last": length - 1, "length": length, "wrong_token": row["distractor"], "correct_token": row["answer"],
            "split": "circuit", "correct_prob": 0.9, "characters": ends,
        }  # fmt: skip


def test_spans_by_tokens_are_those_that_characters_give(bundled, rows):
    table = list(position_aware(bundled, rows))
    task = Task.from_frame(table, {"split": ""})
    assert task.table.layout == "position-aware circuits"
    assert {name for name in task.table.columns if name.startswith("span:")} == {
        "span:prefix",
        "span:second",
        "span:last",
    }
    by_characters = [
        {
            **row,
            "spans": {
                "prefix": [0, ends[2]], "second": [ends[2], ends[-2]], "last": [ends[-2], ends[-1]],
            },
        }
        for row, ends in ((row, made["characters"]) for row, made in zip(rows, table, strict=True))
    ]  # fmt: skip
    other = Task.from_frame(by_characters)
    for one, two in zip(task.pairs(bundled, n=8).discovery, other.pairs(bundled, n=8).discovery, strict=True):
        assert one.spans == two.spans
        assert len(one.spans) == 3
    table[2]["length"] += 1
    with pytest.raises(TableError, match="row 3, column 'length'.*is no length of this prompt"):
        Task.from_frame(table, {"split": ""}).pairs(bundled, n=8)


def test_the_splits_of_position_aware_files(bundled, rows):
    kinds = ("circuit", "eval", "ablation")
    table = [{**row, "split": kinds[i % 3]} for i, row in enumerate(position_aware(bundled, rows))]
    found = Task.from_frame(table).pairs(bundled, n=8, reference=True)
    for place, part in enumerate((found.discovery, found.held_out, found.reference)):
        assert [pair.clean for pair in part] == [row["prompt"] for row in table[place::3]]


def test_columns_that_are_named(rows):
    theirs = renamed(rows, clean="a", corrupt="b", answer="c", distractor="d, e")
    columns = {"clean": "a", "corrupt": "b", "answer": "c", "distractor": "d, e"}
    task = Task.from_frame(theirs, columns=columns, name="mine", metric="kl", summary="Mine.")
    assert texts(task) == as_tuples(rows)
    assert (task.name, task.metric, task.summary, task.table.layout) == ("mine", "kl", "Mine.", "given columns")
    assert texts(Task.from_frame(list(rows), columns={"distractor": ""})) == [row[:3] for row in as_tuples(rows)]
    with pytest.raises(UnknownNameError, match="unknown column 'aa' of the data frame. Did you mean 'a'"):
        Task.from_frame(theirs, columns=columns | {"clean": "aa"})
    with pytest.raises(UnknownNameError, match="unknown field of a pair 'clear'. Did you mean 'clean'"):
        Task.from_frame(theirs, columns={"clear": "a"})
    with pytest.raises(
        TableError, match="has the columns 'a', 'b', 'c', 'd, e'.*nothing holds corrupt.*--columns corrupt="
    ):
        Task.from_frame(theirs, columns={"clean": "a", "answer": "c"})


def test_a_table_that_lacks_a_column_is_told_which(bundled, rows):
    table = list(position_aware(bundled, rows))
    with pytest.raises(
        TableError, match=r"nothing holds corrupt for the layout position-aware.*in a second file: Task"
    ):
        Task.from_frame(pd.DataFrame(table).drop(columns="corrupted"))
    lacking = renamed(rows, clean="clean_prefix", answer="clean_answer", distractor="patch_answer")
    with pytest.raises(
        TableError, match="nothing holds corrupt for the layout sparse feature circuits.*--columns corrupt"
    ):
        Task.from_frame(lacking)


def test_layouts_name_fields_and_no_two_are_the_same():
    headers = {tuple(sorted(paths[0] for paths in layout.needed.values())) for layout in LAYOUTS}
    assert len(headers) == len(LAYOUTS)
    for layout in LAYOUTS:
        found = recognised([path for paths in layout.needed.values() for path in paths[:1]])
        assert found is None or found[0].needed.keys() == layout.needed.keys()
    assert recognised(("question", "reply")) is None


# Several answers, spans, splits


def test_several_answers(bundled, rows, tmp_path):
    names = [" Mary", " Lucy", " Karen"]
    table = [{**row, "distractor": json.dumps([n for n in names if n != row["answer"]])} for row in rows]
    python = [{**row, "distractor": str([n for n in names if n != row["answer"]])} for row in rows]
    for kind in (table, python):
        task = load_task(saved(tmp_path / "many.csv", separated(kind)))
        for row, source in zip(task.table.rows, rows, strict=True):
            assert row.example.distractors == tuple(n for n in names if n != source["answer"])
    assert words_of("[") == ("[",)
    assert words_of("[x]") == ("[x]",)
    assert words_of(" ") == (" ",)
    for wrong in ("[]", "[1]", '["a", "a"]', ""):
        with pytest.raises(CellError):
            words_of(wrong)


def test_spans_by_text_and_by_range(bundled, rows):
    table = [
        {**row, "span:verb": " threw the ball to" if i else [0, 3], "span:back": " back", "corrupt_span:back": " back"}
        for i, row in enumerate(rows)
    ]
    for row in table[1:]:
        row["span:verb"] = " back to"
    task = Task.from_frame(table)
    assert task.table.rows[0].example.spans["verb"] == (0, 3)
    last = task.table.rows[1].example
    assert last.clean[slice(*last.spans["verb"])] == " back to"
    pair = task.pairs(bundled, n=8).discovery[0]
    assert pair.clean_tokens[slice(*pair.spans["back"])] == (" back",)
    assert span_of("3:7", "0123456789") == span_of("[3, 7]", "0123456789") == span_of([3, 7], "0123456789") == (3, 7)
    for wrong, why in (("a", "occurs 2 times"), ("z", "is not in"), ([2, 2], "or empty"), ("[0, 99]", "outside the 3")):
        with pytest.raises(CellError, match=why):
            span_of(wrong, "aba")


def test_a_split_column_and_the_order_are_kept(bundled, rows, tmp_path):
    table = [{**row, "split": ("train", "test", "validation")[i % 3]} for i, row in enumerate(rows)]
    task = load_task(saved(tmp_path / "split.csv", separated(table)))
    found = task.pairs(bundled, n=5, reference=True)
    for place, part in enumerate((found.discovery, found.held_out, found.reference)):
        assert [pair.clean for pair in part] == [row["clean"] for row in rows[place::3]][:5]
    assert found.fingerprint == task.pairs(bundled, n=5, seed=7, reference=True).fingerprint
    assert found.differ_in == "rows, as column 'split' divides them"
    without_test = [{**row, "split": ("train", "validation")[i % 2]} for i, row in enumerate(rows)]
    held_out = Task.from_frame(without_test).pairs(bundled, n=5).held_out
    assert [pair.clean for pair in held_out] == [row["clean"] for row in rows[1::2]][:5]
    for name in ("discovery", "Train", "held-out", "held_out", "dev", "TEST"):
        assert split_of(name)
    table[6]["split"] = "tset"
    with pytest.raises(TableError, match="line 8, column 'split': 'tset' is no split; use train, validation and test"):
        load_task(saved(tmp_path / "wrong.csv", separated(table)))


def test_without_a_split_column_the_seed_divides_the_rows(bundled, rows):
    task = Task.from_frame(list(rows))
    order = [row["clean"] for row in rows]
    found = [task.pairs(bundled, n=6, seed=seed) for seed in (0, 0, 1)]
    assert found[0].fingerprint == found[1].fingerprint != found[2].fingerprint
    for splits in found:
        assert not splits.discovery.texts & splits.held_out.texts
        for part in (splits.discovery, splits.held_out):
            places = [order.index(pair.clean) for pair in part]
            assert places == sorted(places)
    assert task.pairs(bundled, n=8, reference=True).discovery == task.pairs(bundled, n=8).discovery
    assert found[0].differ_in == ""


def test_split_random_takes_no_notice_of_the_column(bundled, rows):
    from dataclasses import replace

    task = replace(Task.from_frame([{**row, "split": "train"} for row in rows]), split="random")
    assert task.pairs(bundled, n=6).fingerprint == Task.from_frame(list(rows)).pairs(bundled, n=6).fingerprint


def test_texts_of_both_splits_are_not_held_out(bundled, rows):
    table = [{**row, "split": ("train", "test")[i % 2]} for i, row in enumerate(rows)]
    table[1]["corrupt"], table[1]["clean"] = rows[0]["corrupt"], rows[1]["clean"]
    table[5] = {**table[3], "split": "test"}
    found = Task.from_frame(table).pairs(bundled, n=9)
    assert not found.discovery.texts & found.held_out.texts
    assert found.dropped == {
        "rows with a prompt of the other split": 1, "rows with the prompts of another row": 1,
    }  # fmt: skip


def test_more_pairs_than_rows_are_refused_at_once(bundled, rows):
    task = Task.from_frame(list(rows))
    with pytest.raises(TooFewPromptsError, match=r"has 24 pairs, but n=13 needs 26.*Ask for at most 12 \(-n 12\)"):
        task.pairs(bundled, n=13)
    with pytest.raises(TooFewPromptsError, match=r"n=9 needs 27.*at most 8"):
        task.pairs(bundled, n=9, reference=True)
    split = Task.from_frame([{**row, "split": "test" if i > 20 else "train"} for i, row in enumerate(rows)])
    with pytest.raises(
        TooFewPromptsError, match="21 discovery and 3 held-out pairs by column 'split', but n=4.*at most 3"
    ):
        split.check_n(4)
    alone = Task.from_frame([{**row, "split": "train"} for row in rows])
    with pytest.raises(TableError, match="has no held-out rows: column 'split' says discovery only.*--split random"):
        alone.check_n(4)
    with pytest.raises(ConfigError, match="n is 0"):
        task.check_n(0)
    same = [{**row, "corrupt": rows[0]["corrupt"]} for row in rows]
    with pytest.raises(TooFewPromptsError, match="share no prompt"):
        Task.from_frame(same).pairs(bundled, n=6)


# Bad rows


BAD = {
    "empty": ({"clean": ""}, r"column 'clean': '' is empty; it must be a text"),
    "blank": (
        {"corrupt": "  "},
        r"column 'corrupt': '  ' holds nothing but blanks|column 'corrupt': ' ' holds nothing",
    ),
    "no answer": ({"answer": ""}, r"column 'answer': '' is empty"),
    "same": ({"corrupt": "clean"}, r"column 'corrupt': .* is the clean prompt as well"),
    "both": ({"distractor": "answer"}, r"column 'distractor': .* is answer and distractor at once"),
    "list": ({"answer": "[1, 2]"}, r"column 'answer': '\[1, 2\]' is the number 1, which is no text"),
    "nul": ({"clean": "a\0b"}, r"column 'clean': .* makes no pair: the clean prompt holds the character"),
}
BAD_FOR_MODEL = {
    "longer": ({"corrupt": "+ today"}, r"column 'corrupt': .* does not line up: clean has \d+ tokens, corrupted \d+"),
    "two tokens": (
        {"answer": " Nebuchadnezzar"},
        r"column 'answer': ' Nebuchadnezzar' does not serve: .*not one token",
    ),
    "two tokens wrong": ({"distractor": " Nebuchadnezzar"}, r"column 'distractor': ' Nebuchadnezzar' does not serve"),
    "too long": (
        {"clean": "* 40", "corrupt": "* 40"},
        r"column 'clean': .* has \d+ tokens; the context of the model holds",
    ),
}


def broken(row, changes):
    changed = dict(row)
    for name, value in changes.items():
        if value in row:
            value = row[value]
        elif value.startswith("+"):
            value = row[name] + value[1:]
        elif value.startswith("*"):
            value = row[name] * int(value[1:])
        changed[name] = value
    return changed


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_with_file_line_column_and_value(rows, tmp_path, kind):
    changes, message = BAD[kind]
    table = [broken(row, changes) if i == 4 else row for i, row in enumerate(rows)]
    path = saved(tmp_path / "bad.csv", separated(table))
    with pytest.raises(TableError, match=f"bad.csv, line 6, {message}") as caught:
        load_task(path)
    assert "1 bad row, 0 allowed" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.warns(TableWarning, match=f"line 6, {message}.*1 bad row left out"):
        task = load_task(path, max_bad_rows=1)
    assert texts(task) == as_tuples([row for i, row in enumerate(rows) if i != 4])
    assert task.table.n_dropped == 1


@pytest.mark.parametrize("kind", BAD_FOR_MODEL)
def test_a_row_that_the_model_cannot_be_given_is_named_too(bundled, rows, tmp_path, kind):
    changes, message = BAD_FOR_MODEL[kind]
    table = [broken(row, changes) if i == 4 else row for i, row in enumerate(rows)]
    path = saved(tmp_path / "bad.jsonl", lines(table))
    with pytest.raises(TableError, match=f"bad.jsonl, line 5, {message}"):
        load_task(path).pairs(bundled, n=3)
    with pytest.warns(TableWarning, match=f"line 5, {message}"):
        found = load_task(path, max_bad_rows=1).pairs(bundled, n=11)
    assert sum(found.dropped.values()) == 1
    kept = {row["clean"] for i, row in enumerate(rows) if i != 4}
    assert {pair.clean for part in (found.discovery, found.held_out) for pair in part} <= kept


def test_answers_of_several_tokens_go_with_a_metric_of_whole_answers(bundled, rows):
    table = [{**row, "answer": " Nebuchadnezzar" if i == 4 else row["answer"]} for i, row in enumerate(rows)]
    found = Task.from_frame(table, metric="answer_log_prob_diff").pairs(bundled, n=12)
    assert found.dropped == {}
    assert " Nebuchadnezzar" in {pair.answers[0] for part in (found.discovery, found.held_out) for pair in part}
    with pytest.raises(TableError, match="column 'answer': ' Nebuchadnezzar' does not serve"):
        Task.from_frame(table, metric="logit_diff").pairs(bundled, n=12)


def test_many_bad_rows_are_counted(rows, tmp_path):
    table = [{**row, "answer": "" if i % 2 else row["answer"]} for i, row in enumerate(rows)]
    path = saved(tmp_path / "bad.csv", separated(table))
    with pytest.raises(
        TableError, match=r"line 3, .*line 5, .*line 7, .*; \.\.\.\. 12 bad rows, 11 allowed.*--max-bad-rows 12"
    ):
        load_task(path, max_bad_rows=11)
    with pytest.warns(TableWarning, match="12 bad rows left out"):
        assert len(load_task(path, max_bad_rows=12).table.rows) == 12
    with pytest.raises(TableError, match="No row holds a pair"):
        load_task(saved(tmp_path / "none.csv", separated([{**row, "answer": ""} for row in rows])), max_bad_rows=99)
    with pytest.raises(ConfigError, match="max_bad_rows is -1"):
        load_task(path, max_bad_rows=-1)


def test_numbers_and_truth_values_are_no_texts():
    for value, why in ((42, "the number 42"), (True, "the truth value True"), (1.5, "the number 1.5"), ({}, "{}")):
        with pytest.raises(CellError, match=f"is {why}, which is no text"):
            text_of(value)


# Files that are no tables


def test_files_without_rows_or_columns(tmp_path):
    cases = {
        "empty.csv": ("", "is empty. Give a file with a header and rows"),
        "blank.jsonl": ("\n\n", "is empty"),
        "header.csv": ("clean,corrupted,answer\n", "has a header and no rows"),
        "twice.csv": ("clean,clean,answer\na,b,c\n", "has the column 'clean' 2 times"),
        "none.json": ("[]", "has no rows"),
        "one.json": ('{"clean": "a"}', "holds an object; it must be a list of objects, one a pair"),
        "text.json": ('"text"', "holds a text; it must be a list of objects"),
        "list.jsonl": ("[1]\n", "line 1 is a list; it must be an object of columns"),
        "other.csv": (
            "question,reply\na,b\n",
            "has the columns 'question', 'reply'.*nothing holds clean and corrupt and answer",
        ),
    }
    for name, (text, message) in cases.items():
        with pytest.raises(TableError, match=message):
            load_task(saved(tmp_path / name, text))
    with pytest.raises(FormatError, match="line 2: unexpected end of data.*close every quote"):
        load_task(saved(tmp_path / "quote.csv", 'clean,corrupted,answer\n"a,b,c\n'))
    with pytest.raises(FormatError, match="is not UTF-8 text"):
        load_task(saved(tmp_path / "latin.csv", "clean,corrupted,answer\né,b,c\n", "latin-1"))
    with pytest.raises(FormatError, match=r"line 2.* is not valid JSON"):
        load_task(saved(tmp_path / "cut.jsonl", '{"clean": "a"}\n{"clean": \n'))
    with pytest.raises(FormatError, match="table .*s.json' is damaged or of another format"):
        load_task(saved(tmp_path / "s.json", '{"columns": ["clean"], "index": [0], "data": [["a", "b"]]}'))
    with pytest.raises(FormatError, match="table .*p.parquet' is damaged or of another format"):
        load_task(saved(tmp_path / "p.parquet", "PAR1 no"))
    with pytest.raises(MissingFileError, match="absent.csv' does not exist"):
        load_task(tmp_path / "absent.csv")
    ragged = saved(tmp_path / "ragged.csv", "clean,corrupted,answer\na,b,c\na,b\na,b,c,d\n")
    with pytest.raises(
        TableError, match=r"line 3, column 'corrupted': 'b' is the last of 2 cells; the header names 3.*of 4"
    ):
        load_task(ragged)
    with pytest.raises(TableError, match="a frame of type int is no table"):
        Task.from_frame(3)
    twice = pd.DataFrame([["a", "b"]], columns=["clean", "clean"])
    with pytest.raises(TableError, match="the data frame has the column 'clean' twice"):
        Task.from_frame(twice)


def test_options_of_tables_are_for_tables(rows, tmp_path):
    path = saved(tmp_path / "a.csv", separated(rows))
    task = load_task(path, max_bad_rows=2)
    assert load_task(task, max_bad_rows=2) is not None
    for call in (lambda: load_task("ioi", columns={"clean": "x"}), lambda: load_task(task, max_bad_rows=3)):
        with pytest.raises(ConfigError, match="only applies to tables of pairs"):
            call()
    with pytest.raises(TableError, match="data_revision goes with data sets"):
        load_task(path, data_revision="main")
    with pytest.raises(UnknownNameError, match=r"unknown split 'test' .*Allowed: \(none\)"):
        load_task(path, data_split="test")


# Folders and data sets


def test_folders_and_saved_data_sets(bundled, rows, tmp_path):
    import datasets

    parts = {"train": list(rows[:10]), "validation": list(rows[10:14]), "test": list(rows[14:])}
    folder = tmp_path / "own"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("A copy.")
    for name, part in parts.items():
        pd.DataFrame(part).to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    named = tmp_path / "configs"
    for config in ("one", "two"):
        (named / config).mkdir(parents=True)
        for name, part in parts.items():
            saved(named / config / f"{name}.jsonl", lines(part))
    data = datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()})
    data.save_to_disk(tmp_path / "disk")
    saved(tmp_path / "splits.json", json.dumps(parts))
    found = {
        "parquet": load_task(folder), "config": load_task(named, data_config="two"),
        "disk": load_task(f"{tmp_path}/disk/"), "json": load_task(tmp_path / "splits.json"),
        "object": Task.from_frame(data),
    }  # fmt: skip
    for name, task in found.items():
        splits = task.pairs(bundled, n=4, reference=True)
        for part, source in zip(
            (splits.discovery, splits.held_out, splits.reference), ("train", "test", "validation"), strict=True
        ):
            assert [pair.clean for pair in part] == [row["clean"] for row in parts[source]][:4], name
    assert found["disk"].name == "disk"
    alone = load_task(folder, data_split="train")
    assert texts(alone) == as_tuples(parts["train"])
    assert alone.table.split_column == ""
    with pytest.raises(
        UnknownNameError, match="unknown split 'dev' .*Allowed: train, validation, test|unknown split 'dev'"
    ):
        load_task(folder, data_split="dev")
    with pytest.raises(TableError, match="has several configurations: one, two. Give data_config="):
        load_task(named)
    with pytest.raises(UnknownNameError, match="unknown configuration 'three'"):
        load_task(named, data_config="three")
    shutil.copy(tmp_path / "splits.json", folder / "data" / "more.json")
    with pytest.raises(TableError, match="the name of 'more.json' has no split in it"):
        load_task(folder)


def test_a_data_set_of_the_hub(bundled, rows, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config=None, **given):
        asked.append((name, config, given))
        return datasets.Dataset.from_list(list(rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task("someone/pairs", data_config="c", data_split="train", data_revision="abc")
    assert texts(task) == as_tuples(rows)
    assert asked == [("someone/pairs", "c", {"split": "train", "revision": "abc"})]
    assert task.name == "pairs"


def test_the_hub_without_a_network_answers_at_once(monkeypatch):
    import socket

    def refused(*given, **more):
        raise OSError("no address")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    start = time.monotonic()
    with pytest.raises(
        TableError, match="'someone/nothing' is no file or folder here, and it cannot be fetched"
    ) as caught:
        load_task("someone/nothing")
    assert "give the folder of a copy" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10


def test_no_code_of_a_data_set_runs(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("raise SystemExit('ran')")
    with pytest.raises(TaskError):
        load_task(folder)


# Large tables


def test_a_large_table_is_read_and_checked_in_seconds(bundled, rows, tmp_path):
    table = [
        {**rows[i % 24], "clean": f"{i} {rows[i % 24]['clean']}", "corrupt": f"{i} {rows[i % 24]['corrupt']}"}
        for i in range(MOST_CHECKED + 1)
    ]
    task = load_task(saved(tmp_path / "large.csv", separated(table)))
    assert len(task.table.rows) == MOST_CHECKED + 1
    start = time.process_time()
    found = task.pairs(bundled, n=50)
    assert time.process_time() - start < 2
    assert len(found.discovery) == len(found.held_out) == 50


# Examples with tokens


def test_examples_in_tokens_are_checked():
    given = {"clean": "a b", "corrupt": "a c", "answer": ()}
    with pytest.raises(TaskError, match="has no answer"):
        Example(**given)
    with pytest.raises(TaskError, match="answer_ids .* stands beside the words"):
        Example(**given | {"answer": "x"}, answer_ids=(1,))
    with pytest.raises(TaskError, match="token 1 is answer and distractor at once"):
        Example(**given, answer_ids=(1,), distractor_ids=(1, 2))
    with pytest.raises(TaskError, match="must hold whole numbers"):
        Example(**given, answer_ids=(-1,))
    with pytest.raises(TaskError, match="a range of tokens"):
        Example(**given, answer_ids=(1,), token_spans={"a": (2, 2)})


def test_tokens_of_examples_are_in_the_fingerprint():
    def task(*ids):
        def draw(rng):
            return Example(f"a {rng.random()}", "b", (), answer_ids=ids)

        return Task(name="ids", version="1", summary="Ids.", draw=draw)

    assert task_fingerprint(task(1)) == task_fingerprint(task(1)) != task_fingerprint(task(2))


def test_token_spans_outside_the_prompt_are_rejected(bundled, rows):
    one = rows[0]
    made = Example(one["clean"], one["corrupt"], one["answer"], token_spans={"late": (90, 99)})
    found = encode_example(made, bundled.text)
    assert isinstance(found, Rejection)
    assert found.reason == "span 'late' is not found"


def test_answers_without_their_space_are_noticed(rows):
    bare = [{**row, "answer": row["answer"].strip()} for row in rows]
    with pytest.warns(TableWarning, match="every answer continues the last word of its prompt, such as '\\w+' after '"):
        Task.from_frame(bare)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TableWarning)
        Task.from_frame([*bare[1:], rows[0]])
        Task.from_frame([{**row, "clean": row["clean"] + "."} for row in bare])


def test_a_table_is_shown_in_a_few_lines(rows):
    table = Task.from_frame([{**row, "note": "x" * 9999} for row in rows] * 20).table
    assert len(repr(table).splitlines()) < 10
    assert len(repr(table)) < 1000
    assert "480 pairs" in repr(table)
    wrong = {"clean": "a\x1b" * 999, "corrupt": "b", "answer": 9.5, "distractor": " x"}
    with pytest.warns(TableWarning):
        bad = Task.from_frame([*rows, wrong], max_bad_rows=1).table.bad
    assert len(repr(bad[0])) < 300
    assert repr(bad[0]).isprintable()


def test_good_rows_warn_of_nothing(bundled, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error", TableWarning)
        Task.from_frame(list(rows)).pairs(bundled, n=4)


def test_some_columns_may_be_given_and_the_others_recognised(rows):
    theirs = renamed(rows, clean="sentence", corrupt="corrupted", answer="label", distractor="wrong")
    task = Task.from_frame(theirs, columns={"clean": "sentence"})
    assert (task.table.layout, texts(task)) == ("EAP-IG", as_tuples(rows))
    given = Task.from_frame(theirs, columns={"clean": "sentence", "corrupt": "corrupted", "answer": "label"})
    assert (given.table.layout, texts(given)) == ("given columns", as_tuples(rows))
    other = Task.from_frame(theirs, columns={"clean": "sentence", "answer": "wrong", "distractor": "label"})
    assert texts(other) == [(a, b, d, c) for a, b, c, d in as_tuples(rows)]
