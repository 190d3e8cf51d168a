"""`--fold-ln` and `--center-weights`: on every command that runs a model, they reach it, and do what folding does."""

import json
from typing import Any

import pytest
import typer

from circuitlab import load_model, neurons
from circuitlab.cli import main
from circuitlab.cli.app import app
from circuitlab.errors import ConfigError
from circuitlab.models import load
from circuitlab.runs import judging

BOTH = ("--fold-ln", "--center-weights")
TEXT = "Mary is a really great friend."
PROMPTS = ("<h1>Title</", "<b>Some bold text</")
AT = ("--layer", "2", "--neuron", "192")
# Enough of each command to bring it to its model.
ASKED = {
    "attribute": ("gendered-pronouns",),
    "predict": (TEXT,),
    "sweep": ("gendered-pronouns", "--site", "head_z"),
    "evaluate": ("circuit.json", "--task", "gendered-pronouns"),
    "neurons importance": PROMPTS,
    "neurons top-tokens": ("--layer", "2", "--neurons", "192"),
    "neurons top-neurons": (" She",),
    "neurons activations": (TEXT, "--layer", "2", "--neurons", "192"),
    "neurons examples": (__file__, "--layer", "2", "--neurons", "192"),
    "neurons sensitivity": (TEXT, *AT),
    "neurons simplify": (TEXT, *AT),
    "neurons ablate": (TEXT, "--layer", "2", "--neurons", "192"),
    "neurons optimise": AT,
    "neurons outliers": (TEXT,),
    "features show": ("--text", TEXT),
    "features active": ("--text", TEXT),
    "features sweep": ("gendered-pronouns",),
    "features rank": ("gendered-pronouns",),
    "tasks check": ("gendered-pronouns",),
}
# `discover` and `mib` hand them to the library (test_folding.py); the other two read a model's shape alone.
OTHERS = {"discover", "mib", "compare", "convert"}


def commands(group: Any, before: str = "") -> dict[str, Any]:
    """Every command by its name, those of groups too."""
    found = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found |= commands(command, f"{before}{name} ") if inner else {f"{before}{name}": command}
    return found


def test_every_command_that_runs_a_model_has_them():
    with_model = {
        name: {option for each in command.params for option in each.opts}
        for name, command in commands(typer.main.get_command(app)).items()
        if any("--model" in each.opts for each in command.params)
    }
    assert set(with_model) == set(ASKED) | OTHERS
    assert all(set(BOTH) <= options for name, options in with_model.items() if name not in ("compare", "convert"))


@pytest.mark.parametrize("flags", [BOTH[:1], BOTH[1:]], ids=" ".join)
@pytest.mark.parametrize("name", ASKED)
def test_they_reach_the_model(name, flags, tmp_path, monkeypatch, capsys):
    asked = []

    def stop(model=None, **keywords):
        asked.append(keywords)
        raise ConfigError("far enough")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "circuit.json").write_text('["input->logits"]')
    for module in (load, judging):
        monkeypatch.setattr(module, "load_model", stop)
    assert main([*name.split(), *ASKED[name], *flags]) == 2
    assert "far enough" in capsys.readouterr().err
    told = [asked[0].get(key, False) for key in ("fold_ln", "center_weights")]
    assert told == [option in flags for option in BOTH]


@pytest.fixture
def told(capsys):
    """A command's JSON."""

    def run(*asked: str):
        assert main([*asked, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_predictions_stay(told):
    plain, rewritten = (told("predict", TEXT, "--answer", " She", *flags) for flags in ((), BOTH))
    for before, after in zip(plain["top"], rewritten["top"], strict=True):
        assert after["token"] == before["token"]
        assert after["probability"] == pytest.approx(before["probability"], abs=1e-5)
    # One number for all logits of a position is what centring takes off.
    moved = [after["logit"] - before["logit"] for before, after in zip(plain["top"], rewritten["top"], strict=True)]
    assert moved == pytest.approx([moved[0]] * len(moved), abs=1e-3)
    assert abs(moved[0]) > 0.1


def test_attributions_move_from_part_to_part(told):
    asked = ("attribute", "gendered-pronouns", "-n", "4", "--by", "head", "--quiet")
    plain, rewritten = told(*asked), told(*asked, *BOTH)
    assert rewritten["total"] == pytest.approx(plain["total"], abs=1e-3)
    assert rewritten["title"] == f"{plain['title']} (norms folded, weights centred)"
    names = [{row["component"] for row in found["attribution"]} for found in (plain, rewritten)]
    assert "norm.bias" in names[0] - names[1]
    assert "unembed.bias" in names[1]
    shares = [{row["component"]: row["value"] for row in found["attribution"]} for found in (plain, rewritten)]
    for moved, same in (("a1.bias", "m1"), ("a3.bias", "m3")):  # the values' biases went to the output projections'
        assert abs(shares[1][moved] - shares[0][moved]) > 1e-3
        assert shares[1][same] == pytest.approx(shares[0][same], abs=1e-3)


def test_shares_of_neurons_are_those_of_the_folded_model(told):
    plain, rewritten = (told("neurons", "importance", *PROMPTS, "-k", "5", *flags) for flags in ((), BOTH))
    model = load_model(fold_ln=True, center_weights=True)
    assert rewritten == {**neurons.importance(model, list(PROMPTS)).to_record(5), "out": None}
    assert rewritten["totals"] != pytest.approx(plain["totals"], abs=1e-3)


def test_bare_weights_have_the_gain_in_them_once_folded(told):
    asked = ("neurons", "top-tokens", "--layer", "2", "--neurons", "192", "-k", "5")
    values = [
        [row["value"] for row in told(*asked, *flags)["entries"]]
        for flags in ((), BOTH, ("--bare",), ("--bare", *BOTH))
    ]
    centred, bare = load_model(center_weights=True), values[3]
    expected = neurons.top_tokens(centred, 2, 192, 5).to_record()
    assert bare == pytest.approx([row["value"] for row in expected], abs=1e-3)
    assert bare == pytest.approx(values[1], abs=1e-3)
    assert bare != pytest.approx(values[2], abs=1e-2)


def test_what_a_neuron_does_stays(told):
    asked = ("neurons", "activations", TEXT, "--layer", "2", "--neurons", "192,7")
    plain, rewritten = (told(*asked, *flags)["values"] for flags in ((), BOTH))
    assert rewritten[0] == pytest.approx(plain[0], abs=1e-4)
    assert rewritten[1] == pytest.approx(plain[1], abs=1e-4)


def test_an_autoencoder_stays_with_the_stream_that_it_was_trained_on(told, capsys):
    asked = ("features", "active", "--text", TEXT, "--top", "5")
    plain, rewritten = told(*asked), told(*asked, "--fold-ln")
    assert [row["feature"] for row in rewritten["active"]] == [row["feature"] for row in plain["active"]]
    assert main([*asked, "--center-weights"]) == 2
    assert "reads resid_post with its mean, which center_weights takes out" in capsys.readouterr().err
    assert main(["features", "show", "--fold-ln"]) == 2
    assert "--model" in capsys.readouterr().err
