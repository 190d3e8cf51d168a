"""Descriptions of features: the forms of an export, searching, joining, and files that are none."""

import gzip
import json

import pandas as pd
import pytest

from circuitlab import ConfigError, FormatError
from circuitlab.features import load_descriptions, search_descriptions

RECORDS = [
    {"modelId": "gemma-2-2b", "layer": "25-gemmascope-res-65k", "index": "7", "description": "names of people"},
    {"modelId": "gemma-2-2b", "layer": "25-gemmascope-res-65k", "index": 12, "description": " the Name of a town "},
    {"index": 7, "description": "a second opinion", "layer": "25-gemmascope-res-65k", "explanationModelName": "x"},
]


def written(folder, name, text):
    path = folder / name
    folder.mkdir(exist_ok=True)
    raw = text.encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


LINES = "\n".join(map(json.dumps, RECORDS)) + "\n"
FORMS = {
    "a.json": json.dumps(RECORDS),
    "b.json": json.dumps({"explanations": RECORDS}),
    "c.jsonl": LINES,
    "d.json.gz": json.dumps(RECORDS),
    "batch-0.jsonl.gz": LINES,
}


@pytest.mark.parametrize("name", list(FORMS))
def test_every_form_of_an_export(name, tmp_path):
    found = load_descriptions(written(tmp_path, name, FORMS[name]))
    assert [(entry.feature, entry.text) for entry in found.entries] == [
        (7, "names of people"),
        (12, "the Name of a town"),
        (7, "a second opinion"),
    ]
    assert found.entries[0].model_id == "gemma-2-2b"
    assert found.entries[2].by == "x"
    assert found.of(7) == "names of people"
    assert found.of(8) is None


def test_a_folder_of_batches(tmp_path):
    for number, record in enumerate(RECORDS):
        written(tmp_path / "e", f"batch-{number}.jsonl.gz", json.dumps(record))
    assert len(load_descriptions(tmp_path / "e")) == 3


def test_words_are_found(tmp_path):
    path = written(tmp_path, "a.json", FORMS["a.json"])
    assert [entry.feature for entry in search_descriptions(path, "NAME")] == [7, 12]
    assert [entry.feature for entry in search_descriptions(path, "name", whole=True)] == [12]
    assert [entry.feature for entry in search_descriptions(path, "town name")] == [12]
    assert search_descriptions(load_descriptions(path), "verb") == ()
    assert search_descriptions(path, "n.mes") == (), "words, not patterns"
    with pytest.raises(ConfigError, match="empty"):
        search_descriptions(path, " ")


def test_joined_to_a_table(tmp_path):
    found = load_descriptions(written(tmp_path, "a.json", FORMS["a.json"]))
    frame = found.join(pd.DataFrame({"feature": [12, 3, 7]}))
    assert list(frame["description"]) == ["the Name of a town", "", "names of people"]


def test_several_autoencoders_in_one_file(tmp_path):
    other = {"index": 7, "description": "something else", "layer": "3-other"}
    path = written(tmp_path, "a.json", json.dumps([*RECORDS, other]))
    with pytest.raises(ConfigError, match="describes 2 autoencoders; name one: 25-gemmascope-res-65k, 3-other"):
        load_descriptions(path)
    assert load_descriptions(path, "3-other").of(7) == "something else"
    with pytest.raises(ConfigError, match="no descriptions of 'x'"):
        load_descriptions(path, "x")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "is not valid JSON"),
        ("a.json", '{"a": 1}', "no list of records"),
        ("a.json", "[]", "holds no descriptions"),
        ("a.json", '[{"index": 1}]', "record 1: a record has an index and a description"),
        ("a.json", '[{"index": "x", "description": "a"}]', "index 'x' is not the number"),
        ("a.json", '[{"index": 1, "description": null}]', "description None is not a text"),
        ("a.jsonl", '{"index": 1, "description": "a"}\n{', "line 2 is not valid JSON"),
    ],
)
def test_files_that_are_none(name, text, said, tmp_path):
    with pytest.raises(FormatError, match=said):
        load_descriptions(written(tmp_path, name, text))


def test_damaged_and_absent_files(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(b"plain")
    with pytest.raises(FormatError, match="is no gzip file"):
        load_descriptions(tmp_path / "a.json.gz")
    with pytest.raises(ConfigError, match="no descriptions at"):
        load_descriptions(tmp_path / "none.json")
