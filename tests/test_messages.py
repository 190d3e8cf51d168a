"""What a newcomer reads after the likeliest mistakes: whole sentences, tested like results."""

import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from layouts import spec_of
from words import Words, task_of

import circuitlab
from circuitlab import (
    Edge,
    Example,
    PairBatch,
    discover,
    errors,
    load_circuit,
    load_model,
    load_task,
    score_edges,
    sweep,
)
from circuitlab.data.registry import task_names
from circuitlab.data.sampling import sample_pairs
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.errors import CircuitLabError, UnknownNameError
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.random import random_circuit
from circuitlab.parts import Layout


def drawn(example: Example, n: int = 5) -> None:
    sample_pairs(task_of(lambda rng: example), Words(), n, 0)


def one_of_four(rng: Random) -> Example:
    name = rng.choice(["Ann", "Bo", "Cy", "Di"])
    return Example(f"{name} is kind.", f"{name} is kind;", " She", " she")


def pair(tokens: int, others: int) -> PairBatch:
    one = torch.ones((1, 1), dtype=torch.long)
    # Without the tests' own check of shapes, which would speak first.
    from_tokens = inspect.unwrap(PairBatch.from_tokens.__func__)
    return from_tokens(PairBatch, one.repeat(1, tokens), one.repeat(1, others), one, one + 1)


def file(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def folder(name: str, *files: str) -> str:
    Path(name).mkdir()
    for each in files:
        (Path(name) / each).write_text("{}")
    return name


def save_circuit(name: str) -> str:
    real = real_edges(Layout.of(spec_of(1, 1)))
    Circuit(spec=spec_of(1, 1), mask=real, scores=real * 1.0).save(name)
    return name


# What was done -> what is read. Everything happens in an empty folder; nothing here needs a model.
MISTAKES: dict[str, tuple[Callable[[], object], type[CircuitLabError], str]] = {
    "a task's name misspelt": (
        lambda: load_task("gender-pronouns"),
        errors.UnknownNameError,
        f"unknown task 'gender-pronouns'. Did you mean 'gendered-pronouns'? Allowed: {', '.join(task_names())}. "
        "A task of your own is given as the path of its .py file.",
    ),
    "an option misspelt": (
        lambda: load_task("gendered-pronouns", task_options={"contrast": "capitals"}),
        errors.UnknownNameError,
        "unknown contrast 'capitals' of task 'gendered-pronouns'. Did you mean 'capital'? Allowed: capital, gender.",
    ),
    "a task file that is elsewhere": (
        lambda: load_task("my_task.py"),
        errors.TaskFileError,
        f"task file 'my_task.py' does not exist. Give a name ({', '.join(task_names())}) or a file.",
    ),
    "a task file that forgot its task": (
        lambda: load_task(file("my_task.py", "def draw(rng): ...\n")),
        errors.TaskFileError,
        "task file 'my_task.py' defines no task. Write: TASK = Task(name=..., version=..., summary=..., draw=...)",
    ),
    "prompts that do not differ": (
        lambda: Example("Anna is kind.", "Anna is kind.", " She", " she"),
        errors.TaskError,
        "clean and corrupted prompt are the same text: 'Anna is kind.'. Change what matters in one.",
    ),
    "an answer without its space": (
        lambda: drawn(Example("Anna sees Mary", "Mary sees Anna", "Anna", "Mary")),
        errors.TokenError,
        "task 'test' has no prompt that this tokenizer serves (1 dropped: 'Anna' is not one token). 'Anna' is "
        "not one token after the prompt 'Anna sees Mary': the text ends in the tokens [' Mar', 'yAnn', 'a'], "
        "where the prompt alone ends in ' Mary'. Use an answer that this tokenizer has as one token (mind its "
        "leading space), or another model.",
    ),
    "prompts of different length": (
        lambda: drawn(Example("Ann is kind.", "Ann is not kind.", " Yes", " No")),
        errors.PairLengthError,
        "task 'test' has no prompt that this tokenizer serves (1 dropped: clean and corrupted differ in "
        "length). clean has 5 tokens, corrupted 6: 'Ann is kind.' / 'Ann is not kind.'. They part at token 3 "
        "([' kind', '.'] / [' not', ' kind', '.']). Position-wise patching needs equal lengths: choose words "
        "of as many tokens.",
    ),
    "a span counted in words": (
        lambda: drawn(Example("Ann is kind.", "Ann is kind;", " Yes", " No", {"end": (12, 13)})),
        errors.SpanError,
        "span 'end' is (12, 13), outside the 12 characters of prompt 'Ann is kind.' or empty. Give the half-open "
        "character range (start, end) of a text in the prompt.",
    ),
    "more prompts than there are": (
        lambda: sample_pairs(task_of(one_of_four), Words(), 100, 0),
        errors.TooFewPromptsError,
        "task 'test': n=100 needs 200 distinct pairs (100 per split, no text in both), but 4 distinct draws "
        "gave 2 + 2, and the last 4,000 draws brought no other. Ask for n <= 2, or give the task more words.",
    ),
    "a method spelt with an underscore": (
        lambda: DiscoverConfig(task="name-throw", model="bundled", method="eap_ig"),
        errors.UnknownNameError,
        "unknown method 'eap_ig'. Did you mean 'eap-ig'? Allowed: eap-ig, eap, eap-ig-activations, clean-corrupted, "
        "exact, sweep, relp, ifr, random, acdc, edge-pruning, ugs.",
    ),
    "a percentage for a share": (
        lambda: DiscoverConfig(task="name-throw", model="bundled", target=90.0),
        errors.ConfigError,
        "target is 90.0; it must be above 0 and at most 1. The default is 0.9.",
    ),
    "a model folder that is elsewhere": (
        lambda: load_model("./my-model"),
        errors.ModelError,
        "model folder './my-model' does not exist. Give a HuggingFace checkpoint folder, a hub name, or 'bundled'.",
    ),
    "a checkpoint without tokenizer": (
        lambda: load_model("./" + folder("my-model", "config.json", "model.safetensors")),
        errors.ModelError,
        "model folder './my-model' has no tokenizer (tokenizer.json, tokenizer.model, vocab.json). Save it "
        "there too: tokenizer.save_pretrained(folder).",
    ),
    "a device of another library": (
        lambda: load_model("bundled", device="gpu"),
        errors.ConfigError,
        "unknown device 'gpu'. Use cpu, cuda or cuda:0.",
    ),
    "an output folder that is taken": (
        lambda: discover("name-throw", out=folder("results", "thesis.tex")),
        errors.OutputExistsError,
        "output folder 'results' exists. Name another with --out, or replace it with --force.",
    ),
    "token tensors of different length": (
        lambda: pair(7, 8),
        errors.PairLengthError,
        "clean prompts have 7 tokens, corrupted 8. Position-wise patching needs equal lengths: cut or reword, "
        "one batch per length.",
    ),
    "an edge without its slot": (
        lambda: Edge.parse("m0->a3.h2"),
        errors.UnknownNameError,
        "'m0->a3.h2' is no edge: a head is read through <q>, <k> or <v>, others are not.",
    ),
    "an edge to a node that is none": (
        lambda: Edge.parse("m0->x1"),
        errors.UnknownNameError,
        "'m0->x1' is no edge: 'x1' is no node. Nodes are spelt input, a3.h2, m0, logits.",
    ),
    "an edge that runs backwards": (
        lambda: Layout.of(spec_of(2, 2)).edge_index(Edge.parse("m1->a0.h0<q>")),
        errors.UnknownNameError,
        "unknown edge 'm1->a0.h0<q>': m1 writes after a0.h0<q> has read.",
    ),
    "a circuit that was saved elsewhere": (
        lambda: load_circuit("runs/mine"),
        errors.MissingFileError,
        "circuit file 'runs/mine' does not exist. Give a circuit.json or a run folder.",
    ),
    "a circuit as pickle": (
        lambda: save_circuit("circuit.pkl"),
        errors.FormatError,
        "a circuit is saved as .json or .pt (MIB / EAP-IG), .graphml, .node-link.json, .dot or .txt (edge names), not "
        "as 'circuit.pkl'.",
    ),
    "more edges than there are": (
        lambda: random_circuit(Layout.of(spec_of(1, 1)), 9, np.random.default_rng(0)),
        errors.GraphError,
        "a random circuit of 9 edges is not possible; the graph has 8.",
    ),
    "a folder that is no run": (
        lambda: circuitlab.reproduce(folder("results")),
        errors.RunError,
        "'results' is not a run folder: it has no manifest.json. Give the folder that discover wrote.",
    ),
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_likeliest_mistakes_are_told_in_these_words(mistake):
    make, error, text = MISTAKES[mistake]
    with pytest.raises(error) as told:
        make()
    assert type(told.value) is error
    assert str(told.value) == text


def test_a_circuit_of_another_model_is_told_with_both_shapes():
    with pytest.raises(
        errors.FormatError, match=r"'circuit.json': it is of another model: .*\(1, 1, 16, .*'L2H2' has \(2, 2, 16, "
    ):
        load_circuit(save_circuit("circuit.json"), spec_of(2, 2))


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (
            lambda model, pairs: sweep(model, pairs, site="head-z"),
            "unknown site 'head-z'. Did you mean 'head_z'? Allowed: resid_pre, ",
        ),
        (
            lambda model, pairs: sweep(model, pairs, direction="denoising"),
            "unknown direction 'denoising'. Did you mean 'denoise'? Allowed: denoise, noise.",
        ),
        (
            lambda model, pairs: score_edges(model, pairs, "hisp"),
            "unknown method 'hisp'. Allowed: eap-ig, eap, eap-ig-activations, clean-corrupted, exact, sweep, relp, "
            "ifr, random, acdc, edge-pruning, ugs.",
        ),
        (
            lambda model, pairs: score_edges(model, pairs, metric="logit-diff"),
            "unknown metric 'logit-diff'. Did you mean 'logit_diff'? Allowed: logit_diff, prob_diff, log_prob, "
            "kl, accuracy, rank, answer_log_prob, answer_log_prob_diff.",
        ),
    ],
    ids=["site", "direction", "method", "metric"],
)
def test_names_are_checked_before_the_model_runs(ask, text, bundled, monkeypatch):
    pairs = load_task("name-throw").pairs(bundled, n=2).discovery
    monkeypatch.setattr(type(bundled), "record", lambda *given: pytest.fail("the model ran"))
    with pytest.raises(UnknownNameError) as told:
        ask(bundled, pairs)
    assert str(told.value).startswith(text)


def test_a_model_that_does_not_do_the_task_is_told_with_numbers_and_the_worst_prompts(bundled):
    names = ("Anna", "Mary", "Lisa", "Jane", "Susan", "Laura", "John", "Paul", "Mark", "Gary")

    def draw(rng: Random) -> Example:
        name = rng.choice(names)
        return Example(f"{name} is a very good cook.", f"{name} is a very good cook;", " he", " He")

    with pytest.raises(errors.TaskNotDoneError) as told:
        discover(task_of(draw), model=bundled, n=5)
    said = str(told.value)
    assert re.match(
        r"the model does not do the task: logit_diff is above 0 on \d of 5 clean prompts \(\d+%\), and min_accuracy "
        r"asks for 60%\. The worst: ",
        said,
    )
    assert len(re.findall(r"'\w+ is a very good cook\.' wants ' he' over ' He': [+-]\d+\.\d+ logits", said)) == 5
    assert said.endswith(
        "Use a model that does it, change the task, or lower min_accuracy (--min-accuracy; 0 skips this check)."
    )


@pytest.mark.parametrize("mistake", MISTAKES)
def test_messages_are_one_line_of_plain_words(mistake):
    _, _, text = MISTAKES[mistake]
    assert "\n" not in text
    assert len(text) < 500
    assert text[-1] in ".)"
    for noise in ("<class", "object at 0x", "tensor(", "None", "Traceback", "  "):
        assert noise not in text


def test_a_name_far_from_all_others_is_not_guessed():
    said = str(UnknownNameError.of("task", "zzz", ["name-throw", "html-tag-closing"]))
    assert said == "unknown task 'zzz'. Allowed: name-throw, html-tag-closing."


def test_of_a_long_list_the_nearest_names_are_listed_or_the_first():
    names = [f"m{i}" for i in range(100)]
    said = str(UnknownNameError.of("reader", "m777", names))
    assert "Did you mean 'm77'? Nearest: m77, " in said
    assert said.count("m") < 10
    said = str(UnknownNameError.of("reader", "far", names))
    assert "m19, ..." in said
    assert "m20" not in said


def test_the_tree_of_errors_is_the_one_that_is_drawn():
    """The picture at the top of errors.py: each class under its parent, none forgotten."""
    assert errors.__doc__
    parents, path = {}, ["CircuitLabError"]
    for line in errors.__doc__.splitlines():
        if match := re.match(r"\s*((?:│   |    )*)[├└]── (\w+)", line.removeprefix("    ")):
            depth = 1 + len(match[1]) // 4
            del path[depth:]
            parents[match[2]] = path[-1]
            path.append(match[2])
    real = {
        name: value.__bases__[0].__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, CircuitLabError) and value is not CircuitLabError
    }
    assert parents == real
    assert len(real) > 10


BUILTINS = {
    "UnknownNameError": (KeyError, ValueError),
    "ConfigError": (ValueError,),
    "WrongTypeError": (TypeError, ValueError),
    "FileError": (OSError, ValueError),
    "MissingFileError": (FileNotFoundError, ValueError),
    "OutputExistsError": (FileExistsError, ValueError),
    "TaskFileError": (OSError, ValueError),
    "ModelError": (OSError,),
    "UnsupportedModelError": (OSError, ValueError),
    "RunError": (OSError,),
}


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CircuitLabError)]
)
def test_an_error_is_also_the_builtin_one_that_fits_and_its_message_stays_plain(kind):
    error = kind("unknown task 'x'. Allowed: y.")
    assert str(error) == "unknown task 'x'. Allowed: y."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    if kind is not CircuitLabError:
        assert all(isinstance(error, builtin) for builtin in BUILTINS.get(kind.__name__, (ValueError,)))
