"""Bad input to the commands on neurons, features and predictions: one line, exit 2, before a model where it can be."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import typer.core
import typer.main

from circuitlab import names
from circuitlab.cli import main
from circuitlab.cli.app import app
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import real_edges
from circuitlab.models import load
from circuitlab.parts import Layout
from circuitlab.runs import judging

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
    (("neurons", "examples", "a.jsonl", *AT, "--field", "body"), "not a JSON object with a text 'body'"),
    (("neurons", "examples", "a.jsonl", *AT, "--stage", "last"), "unknown stage 'last'"),
    (("neurons", "examples", "a.jsonl", *AT, "-k", "0"), "'-k'"),
    (("neurons", "sensitivity", "a", *ONE, "--samples", "0"), "'--samples'"),
    (("neurons", "simplify", "", *ONE), "TEXT '' is empty"),
    (("neurons", "simplify", "a", *ONE, "--keep", "0"), "'--keep'"),
    (("neurons", "ablate", "a b"), "no neurons are given"),
    (("neurons", "ablate", "--file", "empty.txt", *AT), "contains no text"),
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
T = "gendered-pronouns"
OFTEN = {  # options that many commands share, and values that none of them takes
    "-n": ("0", "-1", "1.5", "nan", "1e400", "99999999", "x", "", "9" * 30),
    "--seed": ("-1", "1.5", "4294967296", "9" * 30, "inf", " "),
    "--metric": ("", "  "),
    "--model": ("", "\t"),
    "--device": ("",),
}
BEFORE += [
    ((*command, option, value), said)
    for command in (("discover", T), ("sweep", T, "--site", "head_z"), ("attribute", T), ("features", "rank", T))
    for option, values in OFTEN.items()
    for value in values
    for said in ("is empty" if not value.strip() else repr(value),)
]
BEFORE += [
    (("discover", T, "--target", "0"), "target is 0"),
    (("discover", T, "--target", "1.5"), "target is 1.5"),
    (("discover", T, "--target", "nan"), "target is nan"),
    (("discover", T, "--threshold", "nan"), "threshold is nan"),
    (("discover", T, "--n-edges", "0"), "'0' was given"),
    (("discover", T, "--n-edges", "3", "--target", ".5"), "target=0.5 and n_edges=3 are both given"),
    (("discover", T, "--min-accuracy", "2"), "'2' was given"),
    (("discover", T, "--stability", "-1"), "'-1' was given"),
    (("discover", T, "--steps", "0"), "'0' was given"),
    (("discover", T, "--method", "eap", "--steps", "7"), "--steps 7 goes with methods that integrate"),
    (("discover", T, "--method", "nope"), "unknown method 'nope'"),
    (("discover", T, "--method-option", "x=1"), "method 'eap-ig' has no option 'x'"),
    (("discover", T, "--method", "eap-ig", "--ablation", "zero"), "method 'eap-ig' takes no ablation 'zero'"),
    (("discover", T, "--sites", "nope"), "unknown site 'nope'"),
    (("discover", T, "--option", "x=1"), "unknown option 'x'"),
    (("discover", T, "--split", "nope"), "unknown split 'nope'"),
    (("mib", "ioi", "--method", "nope"), "unknown method 'nope'"),
    (("mib", "ioi", "--method-option", "x=1"), "method 'eap-ig' has no option 'x'"),
    (("mib", "ioi", "--method", "eap", "--steps", "7"), "--steps 7 goes with methods that integrate"),
    (("mib", "ioi", "--control", "nope"), "unknown control 'nope'"),
    (("mib", "ioi", "--data-split", "nope"), "unknown split 'nope'"),
    (("tasks", "check", T, "--metric", "nope"), "unknown metric 'nope'"),
    (("tasks", "check", T, "--option", "x=1"), "unknown option 'x'"),
    (("attribute", T, "--metric", "nope"), "unknown metric 'nope'"),
    (("features", "sweep", T, "--direction", "up"), "unknown direction 'up'"),
    (("features", "sweep", T, "--axis", "up"), "unknown axis 'up'"),
    (("features", "rank", T, "--at", "up"), "unknown end 'up'"),
    (("discover", T, "-n", "4", "-n", "5"), "-n is given twice"),
    (("discover", T, "--signed", "--absolute"), "--signed/--absolute is given twice"),
    (("discover", T, "--contrast", "x"), "unknown contrast 'x'"),
    (("sweep", T, "--site", "head_z", "--layers", "0-9999999999"), "--layers '0-9999999999' is not a list of numbers"),
    (("sweep", T, "--site", "head_z", "--layers", "0-99999999"), "names more than 100,000 numbers"),
    (("sweep", T, "--site", "head_z", "--layers", "3-1"), "runs backwards"),
    (("sweep", T, "--site", "head_z", "--heads", "0,0"), "names 0 twice"),
    (("sweep", T, "--site", "head_z", "--heads", "\u0662"), "is not a list of numbers"),
    (("sweep", T, "--site", "head_z", "--axis", "span"), "--axis goes with sites of the stream"),
    (("sweep", T, "--site", "resid_pre", "--head-axis", "span"), "--head-axis goes with sites of heads"),
    (("sweep", T, "--site", "head_z", "--estimate", "--out", "x"), "--estimate runs nothing, so --out"),
    (("sweep", T, "--site", "head_z", "--budget", "0"), "'0' was given"),
    (("sweep", T, "--site", "head_z", "--force"), "--force replaces what --out names"),
    (("sweep", T, "--site", ""), "--site '' is empty"),
    (("attribute", T, "--heads", "a1.h0,a1.h0"), "names a head twice"),
    (("attribute", T, "--force"), "--force replaces what --out names"),
    (("evaluate", "nowhere.json", "--task", T, "--random", "-1"), "'-1' was given"),
    (("evaluate", "nowhere.json", "--task", T, "--knockouts", "-3"), "'-3' was given"),
    (("evaluate", "nowhere.json", "--task", ""), "--task '' is empty"),
    (("compare", "nowhere.json", "empty.txt"), "circuit file 'nowhere.json' does not exist"),
    (("compare", "/dev/zero", "empty.txt"), "only regular files are read"),
    (("convert", "/dev/null", "c.json"), "only regular files are read"),
    (("convert", "loop", "c.json"), "cannot be read: Too many levels of symbolic links"),
    (("convert", "a.jsonl", "c.json"), "cfg: Field required"),
    (("convert", "a.jsonl", "loop"), "'loop' is a symbolic link"),
    (("convert", "a.jsonl", "folder"), "exists and is no regular file"),
    (("convert", "\ud800", "c.json"), "bytes that are not UTF-8"),
    (("convert", "a\0b", "c.json"), "contains a NUL"),
    (("compare", "a.jsonl", "a.jsonl", "--force"), "--force replaces what --out names"),
    (("predict", "  "), "TEXT ' ' is empty"),
    (("predict", "a", "--html", "page.docx"), "--html 'page.docx' is written as .html"),
    (("predict", "a", "--html", "loop.html"), "'loop.html' is a symbolic link"),
    (("predict", "--file", "/dev/zero"), "only regular files are read"),
    (("predict", "--file", "folder"), "is a folder"),
    (("predict", "--file", "empty.txt"), "contains no text"),
    (("predict", "--file", "binary.txt"), "is not UTF-8 text"),
    (("predict", "a", "--force"), "--force replaces what --html names"),
    (("neurons", "importance", "a", ""), "is empty"),
    (("neurons", "top-tokens", "--layer", "99999999999999999999", "--neurons", "x"), "--neurons 'x'"),
    (("neurons", "ablate", "a", " ", *AT), "is empty"),
    (("neurons", "outliers", "a b", "--force"), "--force replaces what --out names"),
    (("features", "show", "--layer", "99"), "--site and --layer say resid_post of layer 99"),
    (("features", "show", "--layer", "-1"), "'-1' was given"),
    (("features", "active", "--text", ""), "--text '' is empty"),
    (("features", "search", "a", "--descriptions", "/dev/zero"), "only regular files are read"),
    (("features", "rank", T, "--steps", "0"), "'0' was given"),
    (("report", "nowhere"), "no run folder 'nowhere'"),
    (("report", "folder"), "manifest.json"),
    (("cite", "folder"), "manifest.json"),
    (("reproduce", "empty.txt"), "manifest.json"),
    (("tasks", "--json", "show", T), "--json must follow the command"),
    (("tasks", "show", "x" * 3000), "unknown task"),
    (("nope",), "No such command 'nope'"),
    (("discover",), "Missing argument 'TASK'"),
    (("discover", T, "--seed", "4294967290", "--stability-seeds", "6"), "run past 4294967295. Give fewer"),
    (("discover", "folder/../a.jsonl"), "nothing holds clean and corrupt and answer"),
    (("cite", "./a.jsonl"), "nothing holds clean and corrupt and answer"),
    (("discover", T, "-n=10"), "'=10' was given"),
    (("discover", T, "-n1.5"), "'1.5' was given"),
    (("sweep", T, "--site", "head"), "unknown site 'head'. Did you mean 'head_z'?"),
    (("sweep", T, "--site", "head_z", "--direction", "up"), "unknown direction 'up'"),
    (("sweep", T, "--site", "head_z", "--ablation", "men"), "unknown ablation 'men'. Did you mean 'mean'?"),
    (("sweep", T, "--site", "head_z", "--head-axis", "pos"), "unknown axis 'pos'"),
    (("sweep", T, "--site", "mlp_out", "--heads", "1"), "(--heads) has no meaning for site mlp_out"),
    (("sweep", T, "--site", "head_z", "--site", "head_z"), "--site head_z is given twice"),
    (("sweep", T, "--site", "head_z", "--resume", "a.jsonl"), "Name another file, or remove it if a sweep wrote it"),
    (("convert", "a.dot", "c.json"), "is DOT, which is only written"),
    (("evaluate", "nowhere"), "circuit file 'nowhere' does not exist"),
    (("evaluate", "a.jsonl", "--task", T), "Expected the MIB / EAP-IG format: cfg, nodes and edges"),
    (("convert", "a.jsonl", "c.json", "--model", "bundled"), "cfg: Field required"),
    (("report", "/"), "'/' is not a run folder: it has no manifest.json"),
    (("neurons", "examples", "a.txt", *AT, "--field", "body"), "field (--field) 'body' goes with .jsonl files"),
    (("neurons", "examples", "a.jsonl", *AT, "--separator", ";"), "separator (--separator) ';' goes with text files"),
    (("neurons", "sensitivity", "a", *ONE, "--samples", "100000000"), "less than or equal to 10000"),
    (("neurons", "optimise", *ONE, "--prompts", "100000000"), "less than or equal to 10000"),
]
WITH = [
    (
        ("sweep", T, "--site", "resid_pre", "-n", "4", "--heads", "1"),
        "(--heads) has no meaning for site resid_pre",
    ),
    (
        ("sweep", T, "--site", "head_z", "-n", "4", "--neurons", "1"),
        "(--neurons) has no meaning for site head_z",
    ),
    (("sweep", T, "--site", "head_z", "-n", "4", "--positions", "1"), "positions (--positions) has no meaning"),
    (("sweep", T, "--site", "head_z", "-n", "4", "--layers", "99"), "layer 99 is out of range"),
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
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    for name in ("loop", "loop.html"):
        (tmp_path / name).symlink_to(name)
    (tmp_path / "a.txt").write_text("Mary is a friend.\n")
    (tmp_path / "a.jsonl").write_text('{"text": "Mary is a friend."}\n')


def told(asked, capsys) -> str:
    assert main(asked) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert len(lines[0]) < 1100
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


def test_kept_edges_without_a_score_are_counted(bundled, monkeypatch, capsys):
    monkeypatch.setattr(load, "load_model", lambda *_given, **_more: bundled)
    monkeypatch.setattr(judging, "load_model", lambda *_given, **_more: bundled)
    mask = real_edges(Layout.of(bundled.spec))
    some_scores = mask.astype(float)
    some_scores[:2][mask[:2]] = np.nan
    Circuit(spec=bundled.spec, mask=mask, scores=mask.astype(float)).save("scored.json")
    some = Circuit(spec=bundled.spec, mask=mask, scores=some_scores)
    some.save("some.json")
    n = int(mask[:2].sum())
    assert some.n_unscored == n > 0
    few = ("-n", "4", "--random", "0", "--knockouts", "0", "--no-minimality", "--quiet", "--task", "gendered-pronouns")
    line = f"{n:,} of its edges have no score (NaN); they are kept."
    for command in (
        ("convert", "some.json", "c.json"),
        ("compare", "some.json", "scored.json"),
        ("evaluate", "some.json", *few),
    ):
        assert main(command) == 0
        assert capsys.readouterr().out.count(line) == 1
    assert main(("convert", "scored.json", "d.json")) == 0
    assert "score" not in capsys.readouterr().out.replace("scored", "")
    assert main(("convert", "some.json", "e.json", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["n_unscored"] == n


@pytest.mark.parametrize("group", [(), ("neurons",), ("features",)])
def test_a_group_by_itself_prints_its_help(group, capsys):
    assert main(group) == 0
    told = capsys.readouterr()
    assert f"Usage: {' '.join(('circuitlab', *group))} [OPTIONS] COMMAND" in told.out
    assert not told.err


@pytest.mark.parametrize(
    ("command", "registry"),
    [
        ("methods", "circuitlab.discovery.scoring.METHODS"),
        ("metrics", "circuitlab.metrics.base.METRICS"),
        ("sites", "circuitlab.patching.sweeps.sites.SITES"),
    ],
)
def test_the_lists_are_those_of_the_functions(command, registry, capsys):
    module, _, name = registry.rpartition(".")
    functions = getattr(import_module(module), name)
    assert main((command, "--json")) == 0
    told = json.loads(capsys.readouterr().out)[command]
    assert list(told) == list(functions)
    assert all(told.values())
    assert main((command,)) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in functions)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (("discover",), (*names.METHODS, *names.METRICS, *names.ABLATIONS)),
        (("sweep",), (*names.SITES, *names.METRICS, *names.ABLATIONS)),
        (("evaluate",), (*names.METRICS, *names.ABLATIONS)),
    ],
)
def test_help_lists_the_names_whole(command, names, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main((*command, "--help")) == 0
    words = re.split(r"[\s,;.:]+", capsys.readouterr().out)
    assert [name for name in names if name not in words] == []


def commands_below(words: tuple[str, ...], group: typer.core.TyperGroup) -> list[tuple[str, ...]]:
    found = [words]
    for name, command in group.commands.items():
        inner = (*words, name)
        found += commands_below(inner, command) if isinstance(command, typer.core.TyperGroup) else [inner]
    return found


def test_every_help_fits_80_columns_and_nothing_in_it_is_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    root = typer.main.get_command(app)
    assert isinstance(root, typer.core.TyperGroup)
    every = commands_below((), root)
    assert len(every) > 30
    for command in every:
        assert main((*command, "--help")) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 80
        assert "\N{HORIZONTAL ELLIPSIS}" not in out
        assert "\N{NON-BREAKING HYPHEN}" not in out
        assert not re.search(r"\w-$", out, re.MULTILINE)  # no line ends within a name
        assert not re.search(r"^  \w+ .*[a-z]\.\.\.$", out, re.MULTILINE)  # no summary is cut


def completed(words: str, monkeypatch, capsys) -> list[str]:
    monkeypatch.setenv("_CIRCUITLAB_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    with pytest.raises(SystemExit) as end:
        main(())
    assert end.value.code in (0, None)
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("circuitlab discover gen", ["gendered-professions", "gendered-pronouns"]),
        ("circuitlab discover name-throw --method eap-ig", ["eap-ig", "eap-ig-activations"]),
        ("circuitlab sweep name-throw --site resid", ["resid_pre", "resid_mid", "resid_post"]),
        ("circuitlab evaluate c.json --metric lo", ["logit_diff", "log_prob"]),
        ("circuitlab feat", ["features"]),
    ],
)
def test_the_shell_completes_names(words, expected, monkeypatch, capsys):
    assert completed(words, monkeypatch, capsys) == expected


def test_the_completion_script_is_there(monkeypatch, capsys):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    with pytest.raises(SystemExit):
        main(("--show-completion", "bash"))
    assert "_CIRCUITLAB_COMPLETE=complete_bash" in capsys.readouterr().out


@pytest.mark.parametrize("command", [("tasks",), ("methods",), ("--help",), ("neurons",), ("nope",)])
def test_a_closed_pipe_is_quiet(command):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "circuitlab", *command], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == (2 if command == ("nope",) else 141)
    assert (done.stderr == "") == (command != ("nope",))
