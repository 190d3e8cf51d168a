"""MIB's circuit track: rows by the benchmark's rules, CPR and CMD, and a submission that others can read."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tables import lines, pairs, saved

from circuitlab import (
    ConfigError,
    MetricError,
    OutputExistsError,
    TooFewPromptsError,
    UnknownNameError,
    evaluate,
    load_circuit,
    load_model,
    mib,
)
from circuitlab.cli import main
from circuitlab.data.mib import MIB_TASKS, find_mib_task, mib_pairs, read_mib
from circuitlab.errors import TableError
from circuitlab.models.random_weights import with_random_weights

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


@pytest.fixture(scope="module")
def rows(bundled):
    return pairs(bundled)


def ioi_row(row, third=None):
    """A row in the columns of the benchmark's data set; answers have no space in front."""
    answer, wrong = row["answer"][1:], row["distractor"][1:]
    return {
        "prompt": row["clean"], "template": "t", "choices": [answer, wrong], "answerKey": 0,
        "metadata": {"subject": wrong, "indirect_object": answer, "random_c": third or answer, "place": "x"},
        "abc_counterfactual": {"prompt": row["corrupt"] + " the", "choices": [answer, wrong], "answerKey": 0},
        "s2_io_flip_counterfactual": {"prompt": row["corrupt"], "choices": [answer, wrong], "answerKey": 1},
    }  # fmt: skip


def choice_row(row):
    both = [row["answer"], row["distractor"]]
    return {
        "prompt": row["clean"], "choices": {"label": both[::-1], "text": ["a", "b"]}, "answerKey": 1,
        "symbol_counterfactual": {"prompt": row["corrupt"], "choices": {"label": both, "text": []}, "answerKey": 1},
    }  # fmt: skip


def sum_row(row, operator="+"):
    return {
        "prompt": row["clean"], "label": row["answer"], "operator": operator,
        "random_counterfactual": {"prompt": row["corrupt"], "label": row["distractor"]},
    }  # fmt: skip


MAKERS = {
    "ioi": ioi_row, "mcqa": choice_row, "arithmetic-addition": sum_row, "arc-easy": choice_row,
    "arithmetic-subtraction": lambda row: sum_row(row, "-"), "arc-challenge": choice_row,
}  # fmt: skip


def copy_of(folder, train, other, split="validation", kind="parquet"):
    """A data set in a folder, as the hub has it."""
    (folder / "data").mkdir(parents=True)
    for name, part in (("train", train), (split, other)):
        place = folder / "data" / f"{name}-00000-of-00001.{kind}"
        if kind == "parquet":
            pd.DataFrame(part).to_parquet(place)
        else:
            saved(place, lines(part))
    return folder


@pytest.fixture(scope="module")
def data(rows, tmp_path_factory):
    made = [ioi_row(row) for row in rows]
    return copy_of(tmp_path_factory.mktemp("mib") / "ioi", made[:12], made[12:])


@pytest.fixture(scope="module")
def submitted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "submission"
    return mib("ioi", "bundled", data=data, method="eap", out=out, control="random-weights", progress=False)


# Rows


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_every_task_gives_the_pairs_of_its_rows(bundled, rows, tmp_path, name, kind):
    made = [MAKERS[name](row) for row in rows]
    task = find_mib_task(name.replace("-", "_"))
    config = tmp_path / task.config if task.config else tmp_path
    copy_of(config, made[:12], made[12:], kind=kind)
    found = mib_pairs(task, read_mib(task, str(tmp_path)), bundled.text)
    for part, source in ((found.train, rows[:12]), (found.evaluated, rows[12:])):
        assert [pair.clean for pair in part] == [row["clean"] for row in source]
        assert [pair.corrupt for pair in part] == [row["corrupt"] for row in source]
        assert [pair.answers[0] for pair in part] == [row["answer"] for row in source]
        assert [pair.distractors[0] for pair in part] == [row["distractor"] for row in source]
    assert found.dropped == {}
    few = mib_pairs(task, read_mib(task, str(tmp_path)), bundled.text, n=3, n_evaluated=2)
    assert (len(few.train), len(few.evaluated)) == (3, 2)


def test_rows_that_the_benchmark_leaves_out(bundled, rows, tmp_path):
    made = [ioi_row(row) for row in rows]
    made[1] = ioi_row(rows[1], third="Nebuchadnezzar")
    made[2]["s2_io_flip_counterfactual"]["prompt"] += " the"
    made[3]["metadata"]["subject"] = made[3]["metadata"]["indirect_object"]
    made[13] = made[0]
    task = MIB_TASKS["ioi"]
    tables = read_mib(task, str(copy_of(tmp_path / "a", made[:12], made[12:])))
    found = mib_pairs(task, tables, bundled.text)
    assert found.dropped == {
        "answers of different numbers of tokens": 1, "clean and corrupted differ in length": 1,
        "answer and distractor begin with the same token": 1, "a prompt of a training row": 1,
    }  # fmt: skip
    assert (len(found.train), len(found.evaluated)) == (9, 11)
    sums = [sum_row(row) for row in rows]
    sums[0]["operator"] = "-"
    sums[1]["random_counterfactual"] = None
    sums[2]["label"] = " Nebuchadnezzar"
    added = MIB_TASKS["arithmetic-addition"]
    tables = read_mib(added, str(copy_of(tmp_path / "b", sums[:12], sums[12:], split="test")), split="test")
    found = mib_pairs(added, tables, bundled.text)
    assert found.dropped == {
        "the operator is not '+'": 1, "no counterfactual": 1, "answers of more than one token": 1,
    }  # fmt: skip
    assert found.split == "test"
    with pytest.raises(TooFewPromptsError, match="no test row of .* is left for this model .* x the operator is not"):
        mib_pairs(MIB_TASKS["arithmetic-subtraction"], {"train": tables["train"], "test": tables["test"]}, bundled.text)


def test_numbers_are_labels_too(bundled, rows, tmp_path):
    sums = [{**sum_row(row), "label": 7} for row in rows]
    for row in sums:
        row["random_counterfactual"] = {**row["random_counterfactual"], "label": 8}
    task = MIB_TASKS["arithmetic-addition"]
    tables = read_mib(task, str(copy_of(tmp_path / "a", sums[:12], sums[12:])))
    ids = [bundled.text.encode(text).ids[-1] for text in ("7", "8")]
    if len(set(ids)) == 2:
        pair = mib_pairs(task, tables, bundled.text).train[0]
        assert [*pair.answer_ids, *pair.distractor_ids] == ids


def test_data_of_another_task_or_without_a_split_are_refused(bundled, rows, data, tmp_path):
    with pytest.raises(TableError, match=r"has no column 'random_counterfactual'; it has .*Is this data of arithmetic"):
        mib("arithmetic-addition", bundled, data=data)
    with pytest.raises(TableError, match="has no split 'test'; its splits are train, validation"):
        mib("ioi", bundled, data=data, split="test")
    with pytest.raises(
        UnknownNameError, match="unknown split 'train'. Allowed: validation, test|unknown split 'train'"
    ):
        mib("ioi", bundled, data=data, split="train")
    with pytest.raises(UnknownNameError, match="unknown task of MIB 'ioj'. Did you mean 'ioi'"):
        mib("ioj", bundled, data=data)
    with pytest.raises(UnknownNameError, match="unknown control 'none'. Allowed: random-weights"):
        mib("ioi", bundled, data=data, control="none")
    with pytest.raises(ConfigError, match="n is 0"):
        mib("ioi", bundled, data=data, n=0)
    with pytest.raises(TableError, match="has no column 'abc'; it has abc_counterfactual, s2_io"):
        mib("ioi", bundled, data=data, counterfactual="abc")
    turned = [{**row, "corrupt": rows[i - 1]["clean"]} for i, row in enumerate(rows)]
    same = [ioi_row(row) for row in turned]
    with pytest.raises((MetricError, TooFewPromptsError)):
        mib("ioi", bundled, data=copy_of(tmp_path / "same", same[:2], same[2:3]), n=2)


def test_without_a_copy_and_a_network_the_message_comes_before_the_model():
    with pytest.raises(TableError, match="'mib-bench/ioi' is no file or folder here, and it cannot be fetched"):
        mib("ioi", "no-such-model")


# Numbers


def kept_by_hand(scores: dict[str, float], n: int) -> set[str]:
    """The n edges of highest score without those that lead nowhere, by the names in the file alone."""
    kept = set(sorted(scores, key=lambda name: -scores[name])[:n])

    def ends(name: str) -> tuple[str, str]:
        source, target = name.split("->")
        return source, target.split("<")[0]

    while True:
        sources, targets = {ends(name)[0] for name in kept}, {ends(name)[1] for name in kept}
        left = {
            name
            for name in kept
            if (ends(name)[0] == "input" or ends(name)[0] in targets)
            and (ends(name)[1] == "logits" or ends(name)[1] in sources)
        }
        if left == kept:
            return kept
        kept = left


def test_a_submission_is_read_by_what_the_format_says(bundled, rows, data, submitted):
    """One folder `{task}_{model}`, in it one `importances.json` with a float score on every edge."""
    assert submitted.folder.name == "ioi_bundled"
    assert [path.name for path in submitted.folder.iterdir() if path.suffix in (".json", ".pt")] == ["importances.json"]
    content = json.loads((submitted.folder / "importances.json").read_text())
    assert content["cfg"]["n_layers"] == bundled.spec.n_layers
    scores = {name: edge["score"] for name, edge in content["edges"].items()}
    assert len(scores) == 1519
    assert all(isinstance(score, float) and np.isfinite(score) for score in scores.values())
    # One point of the curve from the file: its names, its scores, and circuits that are run as any other.
    model = load_model("bundled", bos="transformer-lens")
    found = mib_pairs(MIB_TASKS["ioi"], read_mib(MIB_TASKS["ioi"], str(data)), model.text)
    circuit = load_circuit(submitted.folder / "importances.json")
    kept = kept_by_hand(scores, int(0.02 * 1519))
    layout = circuit.layout
    mask = np.array(
        [[f"{writer.name}->{reader.name}" in kept for reader in layout.readers] for writer in layout.writers]
    )
    judged = evaluate(
        model, circuit.with_mask(mask & circuit.mask), found.evaluated, n_random=0, n_knockouts=0, minimality=False
    )
    assert judged.faithfulness == pytest.approx(submitted.by_sign[4], abs=1e-5)
    assert judged.faithfulness > 0.5


def test_cpr_and_cmd_are_areas_of_the_curves(submitted):
    cpr = np.trapezoid(submitted.by_sign, SHARES)
    cmd = np.trapezoid(np.abs(1 - np.array(submitted.by_size)), SHARES)
    assert submitted.areas.cpr == pytest.approx(cpr, abs=1e-12)
    assert submitted.areas.cmd == pytest.approx(cmd, abs=1e-12)
    assert submitted.by_sign[-1] == pytest.approx(1, abs=1e-4)


def test_random_scores_are_worse_and_other_answers_turn_the_gap(rows, data, submitted, tmp_path):
    chance = mib("ioi", "bundled", data=data, method="random", progress=False)
    assert chance.areas.cpr < submitted.areas.cpr - 0.2
    assert chance.areas.cmd > submitted.areas.cmd + 0.2
    turned = [ioi_row({**row, "answer": row["distractor"], "distractor": row["answer"]}) for row in rows]
    other = mib("ioi", "bundled", data=copy_of(tmp_path / "t", turned[:12], turned[12:]), method="eap", progress=False)
    assert other.gap == pytest.approx(-submitted.gap, rel=1e-4)
    assert other.accuracy == pytest.approx(1 - submitted.accuracy)


def test_a_control_is_in_units_of_the_trained_models_gap(submitted):
    control = submitted.control
    record = submitted.to_record()["control"]
    assert abs(record["gap_in_trained_gaps"]) < 0.05
    assert max(map(abs, record["shift_by_sign_in_trained_gaps"])) < 0.05
    by_hand = [f * (control.clean - control.empty) / (submitted.clean - submitted.empty) for f in control.by_sign]
    assert record["shift_by_sign_in_trained_gaps"] == pytest.approx(by_hand)
    assert submitted.shifts() == pytest.approx(submitted.by_sign)
    assert "random weights: gap" in (submitted.folder / "report.txt").read_text()
    frame = submitted.to_frame()
    assert list(frame["control_by_sign"]) == pytest.approx(record["shift_by_sign_in_trained_gaps"])


def test_weights_drawn_anew_are_of_the_seed(bundled):
    one, two, other = (with_random_weights(bundled, seed) for seed in (0, 0, 1))
    assert one.weights_sha256() == two.weights_sha256() != other.weights_sha256()
    assert one.weights_sha256() != bundled.weights_sha256()
    assert replace(one.spec, name="") == replace(bundled.spec, name="")
    assert one.text.encode("Mary is a friend.") == bundled.text.encode("Mary is a friend.")


# Folders


def test_folders_are_named_as_in_the_benchmark_and_not_overwritten(data, submitted, bundled):
    from circuitlab.runs.mib import _folder_name

    task = MIB_TASKS["arithmetic-addition"]
    names = {"gpt2": "gpt2", "Qwen/Qwen2.5-0.5B": "qwen2.5", "google/gemma-2-2b": "gemma2", "x/Llama-3.1-8B": "llama3"}
    for model, name in names.items():
        assert _folder_name(task, model, None) == f"arithmetic-addition_{name}"
    with pytest.raises(OutputExistsError, match="ioi_bundled' exists"):
        mib("ioi", "no such model", data=data, out=submitted.folder.parent, model_name="bundled")
    with pytest.raises(ConfigError, match="model_name is 'a/b'"):
        mib("ioi", bundled, data=data, model_name="a/b")


def test_the_command(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["mib", "ioi", "--data", str(data), "--method", "eap", "-n", "3", "--evaluated", "4", "--quiet", "--json"]
    assert main([*words, "--out", "s", "--model-name", "tiny"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_train"], found["n_evaluated"], found["folder"]) == (3, 4, str(tmp_path / "s" / "ioi_tiny"))
    assert found["areas"]["cpr"] == pytest.approx(np.trapezoid(found["by_sign"], SHARES))
    assert (tmp_path / "s" / "ioi_tiny" / "importances.json").is_file()
    assert main(["mib", "ioi", "--data", str(data), "--data-split", "test"]) == 2
    assert "has no split 'test'" in capsys.readouterr().err
