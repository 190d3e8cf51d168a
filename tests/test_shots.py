"""Solved examples before both prompts: which ones, that they cost no row of a sweep, and that cells are right."""

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from chats import NAMES, TASK, TEMPLATES, chat_checkpoint

from circuitlab import Example, Prompting, Task, estimate_sweep, load_model, load_task, score_edges, sweep
from circuitlab.data.encoding import encode_example
from circuitlab.data.framing import framing_of
from circuitlab.data.pair import Pair
from circuitlab.data.sampling import drawn_shots
from circuitlab.data.splits import words_of
from circuitlab.errors import TaskError, TooFewPromptsError
from circuitlab.outputs.records import from_plain


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(chat_checkpoint(tmp_path_factory.mktemp("shots") / "tiny", TEMPLATES["qwen2"])))


@pytest.fixture(scope="module")
def splits(model):
    return TASK.pairs(model, n=3, shots=2)


def alone(pair: Pair, model, chat: bool) -> Pair:
    """The same pair without the shots."""
    before, after = pair.around
    texts = (text[before : len(text) - after] for text in (pair.clean, pair.corrupt))
    words = (tuple(f" {word.strip()}" for word in some) for some in (pair.answers, pair.distractors))
    return framing_of(model.text, Prompting(chat=chat), ()).encode(Example(*texts, *words))


def test_they_are_solved_with_discovery_words_and_are_no_pair(model, splits):
    before = splits.frame.before
    lines = before.splitlines()
    assert len(lines) == 2
    assert before.endswith("\n")
    discovery = {name for names in NAMES.values() for name in words_of(names, "discovery")}
    for line in lines:
        first, _, second, *_ = line.split()
        assert {first, second} <= discovery
        right = next(pronoun for pronoun, names in NAMES.items() if first in names)
        assert line.endswith(f"is kind. {right}")
    prompts = {line.rpartition(" ")[0] for line in lines}
    texts = splits.discovery.texts | splits.held_out.texts
    assert not prompts & texts
    # There are 24 prompts of discovery words: 20 shots leave 4 pairs, none of which is a shot.
    most = TASK.pairs(model, n=4, shots=20)
    solved = {line.rpartition(" ")[0] for line in most.frame.before.splitlines()}
    assert len(solved) == 20
    assert len(solved | {pair.clean[pair.around[0] :] for pair in most.discovery}) == 24
    with pytest.raises(TooFewPromptsError):
        TASK.pairs(model, n=4, shots=21)


def test_their_answers_differ_as_far_as_they_can(model):
    for n, seed in ((2, 0), (2, 1), (4, 2)):
        lines = TASK.pairs(model, n=2, shots=n, seed=seed).frame.before.splitlines()
        assert sum(line.endswith("She") for line in lines) == n / 2


def test_they_come_before_both_prompts_and_follow_the_seed(model, splits):
    for pair in splits.discovery:
        assert pair.clean.startswith(splits.frame.before)
        assert pair.corrupt.startswith(splits.frame.before)
        assert "".join(pair.clean_tokens[slice(*pair.spans["stop"])]) == "."
        assert pair.spans["shots"][1] <= pair.spans["first"][0]
    again, other = (TASK.pairs(model, n=3, shots=2, seed=seed) for seed in (0, 1))
    assert again.fingerprint == splits.fingerprint
    assert other.frame != splits.frame
    assert TASK.pairs(model, n=4, shots=2).frame == splits.frame


def test_pairs_are_kept_in_records(splits):
    record = json.loads(json.dumps(splits.discovery[0].to_record("discovery")))
    del record["split"]
    assert from_plain(Pair, record) == splits.discovery[0]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("site", ["resid_pre", "head_z", "attn_out"])
def test_they_cost_no_row(model, site, chat):
    shots = TASK.pairs(model, n=3, chat=chat, shots=2).discovery
    plain = replace(shots, pairs=tuple(alone(pair, model, chat) for pair in shots))
    ours, theirs = (estimate_sweep(model, some, site, axis="position") for some in (shots, plain))
    assert ours.rows == theirs.rows > 0
    differing = replace(
        shots, pairs=tuple(replace(p, corrupt_ids=(p.corrupt_ids[0], 5, *p.corrupt_ids[2:])) for p in shots)
    )
    if site != "head_z":  # whose cells cover all tokens
        assert estimate_sweep(model, differing, site, axis="position").rows > theirs.rows


@pytest.mark.parametrize("chat", [False, True])
def test_every_cell_is_what_a_whole_forward_pass_gives(model, chat):
    pairs = TASK.pairs(model, n=2, chat=chat, shots=1).discovery
    pairs = replace(pairs, pairs=pairs.pairs[:1])
    pair, network = pairs[0], model.bridge.original_model
    grid = sweep(model, pairs, "resid_pre", axis="position")
    blocks = network.transformer.h

    def run(ids, layer=None, place=None, value=None):
        def put(module, args):
            stream = args[0].clone()
            stream[0, place] = value
            return (stream, *args[1:])

        streams = []
        hooks = [block.register_forward_pre_hook(lambda _, args: streams.append(args[0][0])) for block in blocks]
        hooks += [] if layer is None else [blocks[layer].register_forward_pre_hook(put)]
        try:
            with torch.no_grad():
                logits = network(torch.tensor([ids])).logits[0, -1]
        finally:
            for hook in hooks:
                hook.remove()
        return streams, float(logits[pair.answer_ids[0]] - logits[pair.distractor_ids[0]])

    streams, _ = run(pair.clean_ids)
    _, corrupted = run(pair.corrupt_ids)
    expected = np.array(
        [[run(pair.corrupt_ids, layer, i, streams[layer][i])[1] for i in range(len(pair))] for layer in range(2)]
    )
    assert grid.per_example[..., 0] == pytest.approx(expected, abs=1e-4)
    first = next(i for i, (a, b) in enumerate(zip(pair.clean_ids, pair.corrupt_ids, strict=True)) if a != b)
    assert expected[:, :first] == pytest.approx(corrupted, abs=1e-4)
    assert np.abs(expected[:, first] - corrupted).max() > 1e-3


def test_scores_are_those_of_the_same_text_written_by_hand(model, splits):
    by_hand = [
        encode_example(Example(pair.clean, pair.corrupt, pair.answers, pair.distractors), model.text)
        for pair in splits.discovery
    ]
    ours = score_edges(model, splits.discovery, "eap").values
    assert ours == pytest.approx(score_edges(model, replace(splits.discovery, pairs=tuple(by_hand)), "eap").values)


def test_a_task_says_what_separates_them(model):
    task = replace(TASK, prompting=Prompting(separator=" ### "))
    assert task.pairs(model, n=2, shots=2).frame.before.count(" ### ") == 2
    assert task.pairs(model, n=2).frame is None
    shots = drawn_shots(load_task("copy-colors").with_prompting(shots=1), model.text, 0)
    assert shots[0].solved.partition("Answer:")[2].strip() in "ABCD"


def test_an_answer_inside_a_prompt_is_written_there(model):
    def inside(rng: Random) -> Example:
        example = TASK.draw(rng)
        return replace(
            example, clean=f"{example.clean} left", corrupt=f"{example.corrupt} left", answer_at=len(example.clean)
        )

    task = Task(name="inside", version="1", summary="", draw=inside)
    before = task.pairs(model, n=2, shots=1).frame.before
    assert before.split(". ")[1] in ("He left\n", "She left\n")
    with pytest.raises(TaskError, match="is no turn of a chat"):
        task.pairs(model, n=2, shots=1, chat=True)


def test_rows_of_a_table(model):
    rows = [
        {
            "clean": f"{name} is kind.",
            "corrupt": f"{name} is kind;",
            "answer": f" {is_}",
            "distractor": f" {is_.lower()}",
        }
        for is_, names in NAMES.items()
        for name in names
    ]
    table = Task.from_frame(rows, name="rows")
    splits = table.pairs(model, n=5, shots=2)
    solved = [line.rpartition(" ")[0] for line in splits.frame.before.splitlines()]
    assert set(solved) < {row["clean"] for row in rows}
    assert not set(solved) & (splits.discovery.texts | splits.held_out.texts)
    assert table.with_prompting(shots=2).usual_n(100) == 5
    with pytest.raises(TooFewPromptsError, match="6 discovery .* each besides 2 solved examples. Ask for at most 5"):
        table.with_prompting(shots=2).check_n(6)
    with pytest.raises(TooFewPromptsError, match="besides 13 solved examples"):
        table.with_prompting(shots=13).check_n(1)
    divided = Task.from_frame(
        [row | {"split": "train" if i % 2 else "test"} for i, row in enumerate(rows)], name="rows"
    ).with_prompting(shots=2)
    train = {row["clean"] for i, row in enumerate(rows) if i % 2}
    found = divided.pairs(model, n=4)
    assert {line.rpartition(" ")[0] for line in found.frame.before.splitlines()} < train
    with pytest.raises(TooFewPromptsError, match="besides 2 solved examples, but n=5"):
        divided.check_n(5)


def test_more_than_there_are_is_refused(model):
    few = Task(name="few", version="1", summary="", draw=lambda rng: TASK.draw(Random(rng.randrange(2))))
    with pytest.raises(
        TooFewPromptsError, match="shots=3 needs .* prompts, but after 2 the next 4,000 draws brought no other"
    ):
        few.pairs(model, n=1, shots=3)
