"""Rows and submissions as the benchmark's code reads them, written anew from what that code does.

The columns are those of the data sets on the hub. The benchmark takes the first token of each word, and keeps a row
if the words that it compares have as many tokens; a submission's JSON is a graph of which every node says whether it is
in, and every edge its score and whether it is in.
"""

import json
from pathlib import Path

import pandas as pd
import pytest
from tables import pairs
from transformers import AutoTokenizer

import circuitlab
from circuitlab import load_model, load_task, mib
from circuitlab.data.mib import MIB_TASKS, mib_pairs, read_mib

OTHERS = ("s1_io_flip", "abc", "random_names", "s1_ioi_flip_s2_ioi_flip", "random_names_s1_ioi_flip")
LONG = " Nebuchadnezzar"  # several tokens of the bundled tokenizer


@pytest.fixture(scope="module")
def rows(bundled):
    return pairs(bundled)


@pytest.fixture(scope="module")
def tokenizer():
    """The tokenizer as the benchmark uses it: that of transformers, without special tokens."""
    return AutoTokenizer.from_pretrained(Path(circuitlab.__file__).parent / "bundled")


def ioi(rows):
    for number, row in enumerate(rows):
        name, wrong = row["answer"][1:], row["distractor"][1:]
        third = LONG[1:] if number == 2 else name
        other = {"prompt": row["corrupt"] + " the", "choices": [name, wrong], "answerKey": 0, "template": "t"}
        yield {
            "template": "t", "prompt": row["clean"], "choices": [name, wrong], "answerKey": 0,
            "metadata": {
                "subject": LONG[1:] if number == 1 else wrong, "indirect_object": name, "object": "ball",
                "place": "park", "random_a": "A", "random_b": "B", "random_c": third,
            },
            "s2_io_flip_counterfactual": {**other, "prompt": row["corrupt"], "answerKey": 1},
            **{f"{kind}_counterfactual": other for kind in OTHERS},
        }  # fmt: skip


def choices(rows):
    for number, row in enumerate(rows):
        labels = [row["distractor"], row["answer"], " x", " y"]
        turned = [LONG if number == 1 else row["distractor"], row["answer"], " x", " y"]
        texts = ["red", "blue", "green", "grey"]
        yield {
            "dataset": "d", "dataset_specific_id": str(number), "arc_id": "a", "question": "q", "label": "B",
            "idx": number, "prompt": row["clean"], "choices": {"label": labels, "text": texts}, "answerKey": 1,
            "symbol_counterfactual": {
                "prompt": row["corrupt"], "choices": {"label": turned, "text": texts}, "answerKey": 0, "label": "A",
            },
            "randomLetter_counterfactual": {
                "prompt": "no", "choices": {"label": labels, "text": texts}, "answerKey": 2, "label": "C",
            },
        }  # fmt: skip


def sums(rows, operator):
    for number, row in enumerate(rows):
        found = {"prompt": row["corrupt"], "label": row["distractor"], "operand1": 1, "operand2": 2}
        yield {
            "idx": number, "template": "t", "num_digit": 2, "operand1": 3, "operand2": 4, "prompt": row["clean"],
            "label": LONG if number == 1 else row["answer"], "operator": "*" if number == 2 else operator,
            "random_counterfactual": None if number == 3 else {**found, "prompt": None} if number == 4 else found,
        }  # fmt: skip


MAKERS = {
    "ioi": ioi, "mcqa": choices, "arc-easy": choices, "arc-challenge": choices,
    "arithmetic-addition": lambda rows: sums(rows, "+"), "arithmetic-subtraction": lambda rows: sums(rows, "-"),
}  # fmt: skip


def as_the_benchmark(name, row, tokenizer):
    """Both prompts and both token ids of a row; None for a row that it filters out."""

    def ids(word):
        return tokenizer(str(word), add_special_tokens=False).input_ids

    if name == "ioi":
        about = row["metadata"]
        words = [f" {about[key]}" for key in ("indirect_object", "subject", "random_c")]
        corrupt = row["s2_io_flip_counterfactual"]["prompt"]
    elif name.startswith("arithmetic"):
        other = row["random_counterfactual"]
        if other is None or other["prompt"] is None or row["operator"] != ("-" if "subtraction" in name else "+"):
            return None
        words, corrupt = [row["label"], other["label"]], other["prompt"]
        if any(len(ids(word)) != 1 for word in words):
            return None
    else:
        other = row["symbol_counterfactual"]
        words = [one["choices"]["label"][one["answerKey"]] for one in (row, other)]
        corrupt = other["prompt"]
    if len({len(ids(word)) for word in words}) > 1:
        return None
    return row["prompt"], corrupt, ids(words[0])[0], ids(words[1])[0]


@pytest.mark.parametrize("name", MAKERS)
def test_the_rows_of_each_task_are_read_as_the_benchmark_reads_them(bundled, rows, tokenizer, tmp_path, name):
    made = list(MAKERS[name](rows))
    for split, part in (("train", made[:12]), ("validation", made[12:])):
        pd.DataFrame(part).to_parquet(tmp_path / f"{split}.parquet")
    found = mib_pairs(MIB_TASKS[name], read_mib(MIB_TASKS[name], str(tmp_path)), bundled.text)
    for part, kept in ((made[:12], found.train), (made[12:], found.evaluated)):
        expected = [one for row in part if (one := as_the_benchmark(name, row, tokenizer)) is not None]
        assert [(one.clean, one.corrupt, *one.answer_ids, *one.distractor_ids) for one in kept] == expected
    assert 8 <= len(found.train) < 12
    assert sum(found.dropped.values()) == 12 - len(found.train)


@pytest.mark.parametrize("name", ["ioi", "mcqa", "arithmetic-addition"])
def test_a_data_set_of_the_benchmark_is_a_task_too(rows, tmp_path, name):
    """By the same columns, with the split that the files have; rows of longer words are named."""
    kept = [row for number, row in enumerate(MAKERS[name](rows)) if number not in (1, 2, 3, 4)]
    for split, part in (("train", kept[:10]), ("test", kept[10:])):
        pd.DataFrame(part).to_parquet(tmp_path / f"{split}.parquet")
    task = load_task(tmp_path)
    assert task.table.layout.startswith("MIB, ")
    words = [(row["clean"], row["corrupt"], row["answer"], row["distractor"]) for row in (rows[0], *rows[5:])]
    found = [row.example for row in task.table.rows]
    assert [(one.clean, one.corrupt, one.answers[0], one.distractors[0]) for one in found] == [*words[10:], *words[:10]]
    assert [row.split for row in task.table.rows] == ["held_out"] * 10 + ["discovery"] * 10  # in the order of the files


def graph_of(cfg):
    """The names of nodes and edges that the benchmark's graph has for a model of this shape."""
    layers, heads, parallel = range(cfg["n_layers"]), range(cfg["n_heads"]), cfg["parallel_attn_mlp"]
    edges, before = set(), ["input"]
    for layer in layers:
        attention = [f"a{layer}.h{head}" for head in heads]
        edges |= {f"{one}->{head}<{slot}>" for one in before for head in attention for slot in "qkv"}
        edges |= {f"{one}->m{layer}" for one in (before if parallel else before + attention)}
        before += [*attention, f"m{layer}"]
    return {*before, "logits"}, edges | {f"{one}->logits" for one in before}


def test_a_submission_fits_the_graph_of_the_benchmark(rows, tmp_path):
    made = list(ioi(rows))
    for split, part in (("train", made[:12]), ("validation", made[12:])):
        pd.DataFrame(part).to_parquet(tmp_path / f"{split}.parquet")
    cell = mib("ioi", "bundled", data=tmp_path, method="eap", out=tmp_path / "out", progress=False)
    content = json.loads((cell.folder / "importances.json").read_text())
    assert {"cfg", "nodes", "edges"} <= content.keys()
    assert content["cfg"]["d_model"] == load_model("bundled").spec.d_model  # a graph with neurons is made of it
    nodes, edges = graph_of(content["cfg"])
    assert content["nodes"].keys() == nodes
    assert all(type(node["in_graph"]) is bool for node in content["nodes"].values())
    assert content["edges"].keys() == edges
    for edge in content["edges"].values():
        assert type(edge["in_graph"]) is bool
        assert type(edge["score"]) is float
        assert edge["score"] == edge["score"]
