"""Prompts that go on after the place where the answer is judged, and prompts after a common text."""

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from circuitlab import Example, Task, estimate_sweep, score_edges, sweep
from circuitlab.data.encoded import Rejection
from circuitlab.data.encoding import encode_example
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.pair import Pair
from circuitlab.errors import SpanError, TaskError
from circuitlab.outputs.records import from_plain

NAMES = ("Anna", "Mary", "Lisa", "Emma", "Kate", "Sarah", "John", "Paul", "Mark", "David")


def draw(rng: Random) -> Example:
    name, stop = rng.choice(NAMES), "."
    fields = {"name": name, "stop": stop, "rest": " They left."}
    return Example.from_template(
        "{name} is kind{stop}{rest}", fields, corrupt={"stop": ";"}, answer=" She", distractor=" she",
        answer_before="rest",
    )  # fmt: skip


TASK = Task(name="goes-on", version="1", summary="Goes on.", draw=draw)


@pytest.fixture(scope="module")
def pairs(bundled):
    return TASK.pairs(bundled, n=4).discovery


@pytest.fixture(scope="module")
def cut(bundled, pairs):
    """The same pairs without the text after the answer's place."""
    made = [
        encode_example(
            Example(p.clean.removesuffix(" They left."), p.corrupt.removesuffix(" They left."), " She", " she"),
            bundled.text,
        )
        for p in pairs
    ]
    return replace(pairs, pairs=tuple(made))


def test_the_text_after_it_changes_no_number(bundled, pairs, cut):
    assert all(len(p) > len(c) == p.judged_at + 1 for p, c in zip(pairs, cut, strict=True))
    at_the_end = replace(pairs, pairs=tuple(replace(p, answer_at=None) for p in pairs))
    ours, theirs, wrong = (sweep(bundled, some, "head_z") for some in (pairs, cut, at_the_end))
    assert not np.allclose(wrong.clean, theirs.clean, atol=1e-2)
    assert ours.clean == pytest.approx(theirs.clean, abs=1e-4)
    assert ours.per_example == pytest.approx(theirs.per_example, abs=1e-3)
    ours, theirs = (score_edges(bundled, some, "eap").values for some in (pairs, cut))
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_positions_count_from_the_answer(bundled, pairs):
    longer = encode_example(
        Example("It is said that Anna is kind. They left.", "It is said that Anna is kind; They left.", " She", " she",
                answer_at=29),
        bundled.text,
    )  # fmt: skip
    assert isinstance(longer, Pair)
    assert longer.clean_tokens[longer.judged_at] == "."
    grid = sweep(bundled, replace(pairs, pairs=(replace(pairs[0], spans={}), longer)), "resid_pre")
    assert grid.numbers[-1] == -1
    assert grid.columns[-1] == "."


def test_it_is_kept_in_records_and_fingerprints(bundled, pairs):
    record = json.loads(json.dumps(pairs[0].to_record("discovery")))
    del record["split"]
    assert from_plain(Pair, record) == pairs[0]
    one = Example("Anna left. Then", "Anna left; Then", " She", " she")
    tasks = [replace(TASK, draw=lambda rng, at=at: replace(one, answer_at=at)) for at in (None, 10)]
    assert len({task_fingerprint(task) for task in tasks}) == 2


@pytest.mark.parametrize("at", [0, 99, True, "end"])
def test_a_place_outside_the_prompt_is_refused(at):
    with pytest.raises(TaskError, match="answer_at of prompt 'Anna left.' is .*; it must be a place in"):
        Example("Anna left.", "Anna left;", " She", " she", answer_at=at)


def test_a_field_that_is_not_there_is_refused():
    with pytest.raises(TaskError, match="answer_before is 'there'; fields are"):
        Example.from_template("{a} left", {"a": "Ann"}, corrupt={"a": "Tom"}, answer=" x", answer_before="there")


def test_a_place_that_is_at_no_token_is_refused(bundled):
    one = Example("Anna is kind. They left.", "Anna is kind; They left.", " She", " she", answer_at=16)
    found = encode_example(one, bundled.text)
    assert isinstance(found, Rejection)
    assert found.reason == "the answer's place is inside a token"


SHOTS = "Tom is nice. He left. Sue is nice. She left. "


def test_a_prefix_belongs_to_both_prompts_and_costs_no_row(bundled, pairs):
    few = replace(TASK, draw=lambda rng: draw(rng).after(SHOTS))
    shots = few.pairs(bundled, n=4).discovery
    for one, other in zip(shots, pairs, strict=True):
        assert one.clean == SHOTS + other.clean
        assert one.corrupt == SHOTS + other.corrupt
        assert one.clean_tokens[slice(*one.spans["stop"])] == (".",)
        assert one.judged_at == one.spans["stop"][0]
    for site in ("resid_pre", "head_z"):
        assert estimate_sweep(bundled, shots, site).rows == estimate_sweep(bundled, pairs, site).rows
    # A text that differs between the prompts costs rows.
    apart = replace(
        shots, pairs=tuple(replace(p, corrupt_ids=(p.corrupt_ids[0], 5, *p.corrupt_ids[2:])) for p in shots)
    )
    assert estimate_sweep(bundled, apart, "resid_pre").rows > estimate_sweep(bundled, pairs, "resid_pre").rows


def test_a_prefix_does_not_move_spans_of_tokens():
    one = Example("Anna left.", "Anna left;", " She", " she", token_spans={"stop": (2, 3)})
    with pytest.raises(SpanError, match="a prefix moves the spans of tokens"):
        one.after("So ")
