"""Methods that choose their circuit themselves: a target replaces it; without one the result says what it reached."""

import pytest
from architectures import load, pairs

from circuitlab import ConfigError, discover, score_edges, select
from circuitlab.cli import main
from circuitlab.discovery.scoring import METHODS
from circuitlab.graphs.selection import Selection, SelectionRule
from circuitlab.models import load as loading
from circuitlab.settings import SETTINGS

CHOOSING = {name for name, method in METHODS.items() if method.chooses_circuit()}
OPTIONS = {"acdc": {"n_edges": 5}, "edge-pruning": {"updates": 2}}


def selection(rule: str, reached: float) -> Selection:
    return Selection(
        rule=rule, asked=18, signed=False, greedy=False, nominal=18, achieved=18, n_nodes=9, faithfulness=reached
    )  # fmt: skip


def test_the_methods_are_named_in_the_help_of_the_target():
    assert set(OPTIONS) == CHOOSING
    assert all(name in SETTINGS["target"].help and name in SETTINGS["target"].what for name in CHOOSING)
    assert not METHODS["acdc"].chooses_circuit({"sweep": 3}), "a sweep over thresholds ranks edges"


@pytest.mark.parametrize("method", sorted(CHOOSING))
def test_a_target_replaces_their_circuit(method):
    model, scores = load("gpt2"), score_edges(load("gpt2"), pairs(), method, **OPTIONS[method])
    assert scores.chosen is not None
    assert select(model, scores, pairs(), allow_weak_gap=True).selection.rule == "chosen"
    found = select(model, scores, pairs(), 0.9, allow_weak_gap=True).selection
    assert found.rule == "target"
    assert abs(found.faithfulness - 1) <= 0.1 + 1e-4 or "0.9 is not reached" in found.warnings[0]


@pytest.mark.parametrize(("reached", "expected"), [(0.677, True), (0.95, False), (1.05, False), (1.4, True)])
def test_a_chosen_circuit_says_that_it_misses_the_usual_target(reached, expected):
    text = " ".join(selection("chosen", reached).warnings)
    assert (f"faithfulness {reached:.3f} on the pairs the circuit was selected on is not within 0.1 of 1" in text) is (
        expected
    )
    assert not selection("n_edges", reached).warnings, "a number of edges aims at no faithfulness"


@pytest.mark.parametrize("given", [{"signed": True}, {"greedy": True}, {"greedy": False}])
def test_a_ranking_has_no_meaning_for_a_chosen_circuit(given):
    model, scores = load("gpt2"), score_edges(load("gpt2"), pairs(), "acdc", n_edges=5)
    name = next(iter(given))
    with pytest.raises(ConfigError, match=f"{name}=.* says how edges are ranked, but the method chooses its circuit"):
        select(model, scores, pairs(), **given)
    with pytest.raises(ConfigError, match=f"{name}=.* says how edges are ranked"):
        discover("name-throw", model="no-such-model", method="acdc", selection=given)
    assert select(model, scores, pairs(), n_edges=5, **given).selection.rule == "n_edges"
    assert not SelectionRule(**given).is_chosen(own_circuit=False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), True),
        (("--target", "0.9"), False),
        (("--n-edges", "9"), False),
        (("--method-option", "sweep=3"), False),
    ],
)
def test_the_command_says_so_before_the_work(options, expected, monkeypatch, capsys):
    def fails(*_given, **_more):
        raise ConfigError("no model here")

    monkeypatch.setattr(loading, "load_model", fails)
    monkeypatch.setattr("circuitlab.runs.pipeline.load_model", fails)
    assert main(["discover", "name-throw", "--method", "acdc", "--quiet", *options]) == 2
    said = capsys.readouterr().err
    assert "no model here" in said
    assert ("acdc chooses its circuit itself, whatever its faithfulness; --target 0.9" in said) is expected
