"""Bad input to the commands on neurons, features and predictions: one line, exit 2, before a model where it can be."""

import pytest

from circuitlab.cli import main
from circuitlab.models import load

AT = ("--layer", "1", "--neurons", "1")
ONE = ("--layer", "1", "--neuron", "1")
LONG = "word " * 600
BEFORE = [
    (("neurons", "importance", "</", "--layer", "x"), "--layer 'x' is not a list of numbers"),
    (("neurons", "importance", "</", "-k", "0"), "'-k': Input should be greater than or equal to 1; '0' was given"),
    (("neurons", "top-tokens", *AT, "-k", "0"), "'-k'"),
    (("neurons", "top-neurons", " She", "-k", "0"), "'-k'"),
    (("neurons", "top-neurons", " She", "--layer", "one"), "not a list of numbers"),
    (("neurons", "activations", "a", "--layer=-1", "--neurons", "1"), "greater than or equal to 0; '-1' was given"),
    (
        ("neurons", "activations", "a", *AT, "--stage", "last"),
        "unknown stage 'last'. Did you mean 'post'? Allowed: pre, mid, post",
    ),
    (("neurons", "activations", "", *AT), "TEXT '' is empty"),
    (("neurons", "activations", "--file", "nowhere.txt", *AT), "'nowhere.txt'"),
    (("neurons", "examples", "nowhere", *AT), "corpus 'nowhere' does not exist"),
    (("neurons", "examples", "empty.txt", *AT), "the corpus 'empty.txt' is empty"),
    (("neurons", "examples", "folder", *AT), "corpus folder 'folder' has no file"),
    (("neurons", "examples", "a.jsonl", *AT, "--field", "body"), "no JSON object with a text 'body'"),
    (("neurons", "examples", "a.jsonl", *AT, "--stage", "last"), "unknown stage 'last'"),
    (("neurons", "examples", "a.jsonl", *AT, "-k", "0"), "'-k'"),
    (("neurons", "sensitivity", "a", *ONE, "--samples", "0"), "'--samples'"),
    (("neurons", "simplify", "", *ONE), "TEXT '' is empty"),
    (("neurons", "simplify", "a", *ONE, "--keep", "0"), "'--keep'"),
    (("neurons", "ablate", "a b"), "no neurons are given"),
    (("neurons", "ablate", "--file", "empty.txt", *AT), "holds no text"),
    (("neurons", "ablate", "a b", *AT, "--value", "x"), "neither zero nor mean nor a number"),
    (("neurons", "optimise", *ONE, "--prompts", "0"), "'--prompts'"),
    (("neurons", "outliers", "a b", "--top", "0"), "'--top'"),
    (("neurons", "outliers", "--file", "nowhere.txt"), "'nowhere.txt'"),
    (("predict",), "give a text or --file"),
    (("predict", ""), "TEXT '' is empty"),
    (("predict", "a", "-k", "-1"), "'-k'"),
    (("predict", "a", "--continue", "-2"), "'-2' was given"),
    (("attribute", "gendered-pronouns", "-k", "0"), "k is 0"),
    (("attribute", "gendered-pronouns", "--by", "parts"), "unknown split 'parts'. Allowed: layer, head, neuron"),
    (("features", "active", "--text", "a", "--top", "0"), "greater than or equal to 1; '0' was given"),
    (("features", "active", "--text", "a", "--autoencoder", "nowhere"), "no autoencoder at 'nowhere'"),
    (("features", "search", "a", "--descriptions", "nowhere"), "no descriptions at 'nowhere'"),
]
WITH = [
    (("neurons", "importance", "</", "--layer", "9"), "layers 0 to 3; got [9]"),
    (("neurons", "top-tokens", "--layer", "2", "--neurons", "9999"), "neurons 0 to 511; got [9999]"),
    (("neurons", "top-neurons", "two words"), "is not one token for this tokenizer"),
    (("neurons", "activations", LONG, *AT), "has 604 tokens, but the context holds 256"),
    (("neurons", "examples", "a.jsonl", *AT, "--max-tokens", "999"), "the context holds 1 to 256 tokens"),
    (("neurons", "sensitivity", LONG, *ONE), "has 604 tokens"),
    (("neurons", "ablate", LONG, *AT), "has 604 tokens"),
    (("neurons", "optimise", *ONE, "--tokens", "999"), "the context holds 256"),
    (("neurons", "outliers", "a b", "--layer", "9"), "layers 0 to 3; got [9]"),
    (("predict", LONG), "has 604 tokens, but the context holds 256"),
    (("predict", "a", "--answer", "two words"), "is not one token after the prompt"),
    (("attribute", "gendered-pronouns", "-n", "4", "--heads", "a9.h0", "--quiet"), "unknown head 'a9.h0'"),
    (("features", "active", "--text", LONG), "has 604 tokens"),
    (("features", "active", "--text", "a", "--position", "99"), "position 99 is out of range"),
    (("features", "sweep", "gendered-pronouns", "-n", "4", "--features", "999", "--quiet"), "numbered 0 to 511"),
]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """A folder with an empty file, an empty folder, and a corpus of one text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jsonl").write_text('{"text": "Mary is a friend."}\n')


def told(asked, capsys) -> str:
    assert main(asked) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("asked", "said"), BEFORE, ids=lambda one: " ".join(one)[:40] if isinstance(one, tuple) else ""
)
def test_what_needs_no_model_is_told_before_one_is_loaded(asked, said, monkeypatch, capsys):
    def never(*_given, **_more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(load, "load_model", never)
    assert said in told(asked, capsys)


@pytest.mark.parametrize(("asked", "said"), WITH, ids=lambda one: " ".join(one)[:40] if isinstance(one, tuple) else "")
def test_what_the_model_must_be_asked_for_is_told_in_its_numbers(asked, said, monkeypatch, capsys, bundled):
    monkeypatch.setattr(load, "load_model", lambda *_given, **_more: bundled)
    assert said in told(asked, capsys)
