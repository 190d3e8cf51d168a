"""What can be wrong with a task, kind by kind: each is an error of one line, and none is an internal error."""

import random
from dataclasses import fields, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from architectures import as_users_run_it
from words import Words, numbered, task_of

from circuitlab import Example, Metric, MetricError, PairBatch, SpanError, Task, TaskError, TaskFileError, load_task
from circuitlab.cli import main
from circuitlab.data import sampling
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.sampling import sample_pairs
from circuitlab.discovery.config import DiscoverConfig, default_folder
from circuitlab.errors import CircuitLabError, TooFewPromptsError, WrongTypeError
from circuitlab.metrics import resolve
from circuitlab.references import Reference
from circuitlab.resources import Resources

SURROGATE, NUL = "a\ud800b", "a\0b"


def spelt(value):
    """The same name in every process, which a plain object's repr is not."""
    return "object" if type(value) is object else repr(value)


WRONG = (None, 5, 2.5, float("nan"), object(), b"bytes", [], {}, {1}, "", True, np.zeros(2), (1, 2), {1: 2}, [None])
GOOD = Example("Ann is kind .", "Ann is kind ;", " Yes", " No", {"name": (0, 3)}, {"name": (0, 3)})


def told(make) -> str:
    """The message of an error that a user can mend, which is one line."""
    with as_users_run_it(), pytest.raises(CircuitLabError) as caught:
        make()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert message.isprintable()
    return message


# What a field takes besides values of its own kind.
ALLOWED_EXAMPLE = {"corrupt": (None,), "distractor": (None, [], ()), "spans": ({},), "corrupt_spans": ({},),
                   "standalone_answers": (True,), "separate_spans": (True,),
                   "answer_ids": ([], ()), "distractor_ids": ([], ()), "token_spans": ({},),
                   "answer_at": (None, 5)}  # fmt: skip
ALLOWED_TASK = {
    "summary": ("",), "options": ({},), "chosen": ({},), "sources": ([], ()), "fixed": ([], ()), "origin": ("",),
    "held_out": ("",), "published": ({},), "table": (None,),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=spelt)
@pytest.mark.parametrize("field", [f.name for f in fields(Example)])
def test_every_field_of_an_example_is_checked(field, wrong):
    if any(type(wrong) is type(ok) and wrong == ok for ok in ALLOWED_EXAMPLE.get(field, ())):
        with as_users_run_it():
            assert replace(replace(GOOD, corrupt_spans={}), **{field: wrong})
        return
    told(lambda: replace(replace(GOOD, corrupt_spans={}), **{field: wrong}))


@pytest.mark.parametrize("wrong", WRONG, ids=spelt)
@pytest.mark.parametrize("field", [f.name for f in fields(Task)])
def test_every_field_of_a_task_is_checked(field, wrong):
    task = task_of(numbered)
    if any(type(wrong) is type(ok) and wrong == ok for ok in ALLOWED_TASK.get(field, ())):
        with as_users_run_it():
            assert replace(task, **{field: wrong})
        return
    told(lambda: replace(task, **{field: wrong}))


@pytest.mark.parametrize("text", [SURROGATE, NUL, ""])
@pytest.mark.parametrize("field", ["clean", "corrupt", "answer", "distractor"])
def test_texts_that_no_file_can_hold(field, text):
    told(lambda: replace(GOOD, spans={}, corrupt_spans={}, **{field: text}))
    if field in ("answer", "distractor"):
        told(lambda: replace(GOOD, **{field: (" fine", text)}))


BAD_NAMES = ("../../x", "/etc/x", "a/b", "a\\b", "..", ".", ".hidden", "-x", NUL, SURROGATE, "a\nb", "a\x1b[31mb", " ",
             "x" * 101, "é" * 60, "a:b", "x.", "\u202eevil")  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_no_folder_can_have(name):
    told(lambda: replace(task_of(numbered), name=name))


@pytest.mark.parametrize("line", [NUL, SURROGATE, "a\nb", "a\tb", "x" * 501], ids=ascii)
def test_lines_are_one_line(line):
    task = task_of(lambda rng, size="1": numbered(rng))
    for field in ("version", "summary"):
        told(lambda field=field: replace(task, **{field: line}))
    told(lambda: replace(task, options={line: ("1",)}))
    told(lambda: replace(task, options={"size": ("1", line)}))
    told(lambda: replace(GOOD, spans={line: (0, 3)}, corrupt_spans={}))
    source = Reference(key="k", authors=("Ann",), title="T", year=2026)
    for change in (
        {"key": line},
        {"title": line},
        {"authors": (line,)},
        {"url": line},
        {"authors": "Ann"},
        {"year": "x"},
    ):
        told(lambda change=change: replace(task, sources=(replace(source, **change),)))
    with as_users_run_it():
        assert replace(task, sources=[source]).sources == (source,)


@pytest.mark.parametrize("values", ["12", (), [], ("",), ("1", "1"), (1, 2), None, {"1"}, 5])
def test_option_values(values):
    told(lambda: task_of(lambda rng, size="1": numbered(rng), options={"size": values}))


@pytest.mark.parametrize("name", ["a-b", "1a", "", "a b", "../x"])
def test_option_names(name):
    told(lambda: task_of(lambda rng, **options: numbered(rng), options={name: ("1", "2")}))


SPANS = (5, (5, 999), (-1, 3), (0.0, 3.0), (3, 3), (3, 1), (0,), (0, 1, 2), (float("nan"), 3), (True, 3), "ab", None,
         {0, 3}, [None, 3], (0, 14))  # fmt: skip


@pytest.mark.parametrize("span", SPANS, ids=repr)
@pytest.mark.parametrize("field", ["spans", "corrupt_spans"])
def test_spans(field, span):
    with as_users_run_it(), pytest.raises(SpanError):
        replace(GOOD, **{field: {"name": span}})
    with as_users_run_it():
        assert replace(GOOD, **{field: {"name": [np.int64(0), 3]}}) == GOOD


def test_a_corrupted_span_needs_a_clean_one():
    with pytest.raises(SpanError, match=r"names \['other'\], which spans does not"):
        replace(GOOD, corrupt_spans={"other": (0, 3)})


def test_run_folders_stay_in_place_whatever_the_options_are():
    config = DiscoverConfig(task="t", model="bundled")
    for value in ("../../x", "/etc", "a/b", "x" * 400, "é" * 300, "..", "a:b"):
        folder = default_folder(config, f"task-{value}")
        assert folder.parent == Path("runs")
        assert len(folder.name.encode()) <= 255
    assert default_folder(config, "name-throw-3").name == "name-throw-3-bundled-eap-ig-0"


# ------------------------------------------------------------------------------------------------- task files

HEAD = "from circuitlab import Example, Task\n"
FILE = (
    HEAD
    + """
def draw(rng):
    {body}
    return Example(f"case {{rng.randrange(999)}} .", f"case {{rng.randrange(999)}} ;", " Yes", " no")

TASK = Task(name="mine", version="1", summary="Mine.", draw=draw{more})
"""
)
FILES = {
    "exit": b"import sys\nsys.exit(0)\n",
    "system exit": b"raise SystemExit\n",
    "another end": b"class End(BaseException): pass\nraise End\n",
    "generator exit": b"raise GeneratorExit\n",
    "latin-1": "# -*- no coding -*-\nx = 'é'\n".encode("latin-1"),
    "utf-16": HEAD.encode("utf-16"),
    "empty": b"",
    "NUL": b"x = 1\0\n",
    "missing package": b"import no_such_package\n",
    "syntax": b"def (:\n",
    "TASK is a number": b"TASK = 5\n",
    "TASK is a dict": HEAD.encode() + b"TASK = {'name': 'x'}\n",
    "TASK is the class": HEAD.encode() + b"TASK = Task\n",
    "recursive": b"def f(): f()\nf()\n",
    "nested": b"x = " + b"(" * 5000 + b")" * 5000 + b"\n",
    "huge": b"#" * 10_000_001,
    "an error without text": b"class E(Exception):\n    def __str__(self): raise ValueError\nraise E\n",
    "an error of many lines": b"raise ValueError('a\\nb' * 9999)\n",
    "loads itself": b"from circuitlab import load_task\nTASK = load_task(__file__)\n",
}


@pytest.mark.parametrize("fault", FILES)
def test_task_files(fault, tmp_path, capsys):
    path = tmp_path / "task.py"
    path.write_bytes(FILES[fault])
    with pytest.raises(TaskFileError):
        load_task(path)
    assert len(told(lambda: load_task(path))) < 700
    assert main(["tasks", "show", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_is_no_task_file_and_a_byte_order_mark_is_none_of_its_text(tmp_path):
    (tmp_path / "folder.py").mkdir()
    assert "is a folder" in told(lambda: load_task(tmp_path / "folder.py"))
    (tmp_path / "bom.py").write_bytes(b"\xef\xbb\xbf" + FILE.format(body="pass", more="").encode())
    assert load_task(tmp_path / "bom.py").name == "mine"


@pytest.mark.parametrize("end", ["__import__('sys').exit(0)", "raise SystemExit", "raise GeneratorExit", "1 / 0"])
@pytest.mark.parametrize("place", ["draw", "fixed"])
def test_a_task_does_not_end_the_program(end, place, tmp_path, capsys):
    path = tmp_path / "task.py"
    fixed = f"\ndef fixed():\n    {end}\n"
    text = FILE.format(body=end if place == "draw" else "pass", more=", fixed=fixed" if place == "fixed" else "")
    path.write_text(HEAD + fixed + text.removeprefix(HEAD))
    assert main(["discover", str(path), "-n", "2"]) == 2
    assert "of task 'mine' raised" in capsys.readouterr().err
    with pytest.raises(TaskFileError):
        sample_pairs(load_task(path), Words(), 2, 0)


def generated(rng: Random):
    yield numbered(rng)


RETURNS = (
    generated,
    lambda rng: None,
    lambda rng: [numbered(rng)],
    lambda rng: iter([numbered(rng)]),
    lambda: numbered,
)


@pytest.mark.parametrize("draw", RETURNS)
def test_draws_that_return_no_example(draw):
    assert "draw() of task 'test'" in told(lambda: sample_pairs(task_of(draw), Words(), 2, 0))


# ------------------------------------------------------------------------------------------------- randomness


def test_randomness_from_elsewhere_is_refused():
    counted = iter(range(10**6))
    for number in (
        lambda rng: random.randrange(10**6),
        lambda rng: int(np.random.randint(10**6)),  # noqa: NPY002
        lambda rng: int(torch.randint(10**6, ())),
        lambda rng: next(counted),
    ):
        task = task_of(lambda rng, number=number: replace(numbered(rng), clean=f"case {number(rng)} ."))
        message = told(lambda task=task: sample_pairs(task, Words(), 2, 0))
        assert "from the same generator" in message
    sampling.check_repeatable(task_of(numbered), "seed")


def test_global_generators_are_left_alone():
    def draw(rng: Random) -> Example:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(rng.randrange(1000))
        return numbered(Random(random.random()))

    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002

    with as_users_run_it():  # the tests' own type checks draw random numbers
        before = states()
        sample_pairs(task_of(draw), Words(), 4, 0)
        task_fingerprint(task_of(draw))
        after = states()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_draws_end_after_a_time_and_show_progress(monkeypatch):
    """A clock that goes 7 seconds a look, in place of a draw that sleeps."""
    now = iter(range(0, 10**9, 7))
    monkeypatch.setattr(sampling.time, "monotonic", lambda: float(next(now)))
    steps = []
    few = task_of(lambda rng: numbered(rng, below=3))
    with pytest.raises(TooFewPromptsError, match=r"draws in 60 s brought no other"):
        sample_pairs(few, Words(), 40, 0, resources=Resources(progress=lambda *at: steps.append(at)))
    assert steps == [("prompts", done, 80) for done in range(1, len(steps) + 1)]
    monkeypatch.undo()
    with pytest.raises(TooFewPromptsError, match="the last 4,000 draws brought no other"):
        sample_pairs(few, Words(), 40, 0)


# ---------------------------------------------------------------------------------------------------- metrics

BATCH = PairBatch.from_tokens(torch.tensor([[0, 1]] * 3), torch.tensor([[0, 2]] * 3), torch.tensor([[1], [2], [3]]))
WEIGHT = torch.ones(8, requires_grad=True)


def exits(logits, batch):
    raise SystemExit(0)


def in_place(logits, batch):
    return logits.mul_(2)[:, 0]


METRICS = {
    "raises": lambda logits, batch: 1 / 0,
    "exits": exits,
    "in place": in_place,
    "NaN": lambda logits, batch: logits[:, 0] * float("nan"),
    "infinite": lambda logits, batch: logits[:, 0] + float("inf"),
    "minus infinity": lambda logits, batch: (logits[:, 0] * 0).log(),
    "list": lambda logits, batch: [0.0] * 3,
    "array": lambda logits, batch: np.zeros(3),
    "mean": lambda logits, batch: logits.mean(),
    "column": lambda logits, batch: logits[:, :1],
    "complex": lambda logits, batch: logits[:, 0].to(torch.complex64),
    "nothing": lambda logits, batch: None,
}


@pytest.mark.parametrize("fault", METRICS)
def test_metrics_that_cannot_be_used(fault):
    logits = torch.zeros(3, 8)
    with as_users_run_it(), pytest.raises(MetricError):
        resolve(METRICS[fault])(logits, BATCH)
    assert told(lambda: resolve(METRICS[fault])(logits, BATCH))


def test_metrics_of_other_types_serve():
    logits = torch.zeros(3, 8)
    with as_users_run_it():
        for dtype in (torch.float64, torch.int64, torch.bool, torch.bfloat16):
            assert resolve(lambda logits, batch, dtype=dtype: logits[:, 0].to(dtype))(logits, BATCH).tolist() == [0] * 3
        weighted = resolve(lambda logits, batch: (logits * WEIGHT).sum(1))
        assert not weighted(logits, BATCH).requires_grad
        assert weighted(logits.requires_grad_(), BATCH).requires_grad


@pytest.mark.parametrize("fault", ["infinite", "NaN", "exits", "list", "in place"])
def test_a_metric_is_refused_before_anything_is_swept(fault, bundled, monkeypatch):
    from circuitlab.runs import pipeline

    monkeypatch.setattr(pipeline, "sweep_grids", lambda *a, **k: pytest.fail("a sweep began"))
    task = replace(load_task("name-throw"), metric=METRICS[fault])
    assert "metric" in told(lambda: pipeline.discover(task, model=bundled, n=2))


@pytest.mark.parametrize("change", [{"name": ""}, {"name": 5}, {"name": "a\nb"}, {"unit": SURROGATE}, {"what": None},
                                    {"natural_zero": 1}, {"function": None}])  # fmt: skip
def test_metrics_declare_what_they_are(change):
    own = {"name": "own", "function": exits, "unit": ""} | change
    with as_users_run_it(), pytest.raises((MetricError, WrongTypeError)):
        Metric(**own)


def test_errors_of_tasks_are_task_errors():
    for make in (
        lambda: replace(GOOD, clean=NUL),
        lambda: replace(task_of(numbered), name="../x"),
        lambda: replace(task_of(numbered), sources=None),
        lambda: task_of(lambda rng, size="1": numbered(rng), options={"size": ()}),
    ):
        with as_users_run_it(), pytest.raises(TaskError):
            make()
