"""The table of methods: what each can be told, how it is read, and what is refused before any work."""

import re

import pytest
from architectures import load, pairs

from circuitlab import Replacement, score_edges
from circuitlab.declarations import Setting
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.discovery.method import SHARED, Method
from circuitlab.discovery.scoring import METHODS, find_method
from circuitlab.errors import ConfigError, UnknownNameError

KINDS = {"n": int, "x": float, "yes": bool, "word": str, "maybe": float}
TOY = Method(
    name="toy",
    what="a method that takes everything",
    source=METHODS["eap"].source,
    score=lambda: None,
    options=tuple(
        Setting(name=name, kind=kind, default=None if name == "maybe" else kind(), what=f"what {name} is")
        for name, kind in KINDS.items()
    ),
)


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("n", 3, 3), ("n", "3", 3), ("x", 2, 2.0), ("x", "1e-4", 1e-4), ("x", 0.5, 0.5), ("yes", "True", True),
        ("yes", "no", False), ("yes", True, True), ("word", "a", "a"), ("maybe", None, None), ("maybe", "none", None),
        ("maybe", "2", 2.0),
    ],
)  # fmt: skip
def test_text_and_values_are_read_alike(name, given, read):
    found = TOY.read({name: given})
    assert found == {name: read}
    assert type(found[name]) is type(read)


@pytest.mark.parametrize(
    ("name", "given"),
    [("n", "x"), ("n", 2.5), ("n", "2.5"), ("n", True), ("n", None), ("x", "nan"), ("x", float("inf")), ("x", "a"),
     ("yes", "maybe"), ("yes", 1), ("word", 3), ("x", None)],
)  # fmt: skip
def test_another_kind_is_refused(name, given):
    with pytest.raises(ConfigError, match=rf"option '{name}' of method 'toy' is .*; it must be .*: what {name} is"):
        TOY.read({name: given})


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("edge-pruning", {"sparsity": "2"}, "'sparsity' of method 'edge-pruning' is '2'; .* between 0 and 1: share"),
        ("edge-pruning", {"updates": 0}, "'updates' of method 'edge-pruning' is 0; .* from 1 to 1000000: steps"),
        ("ugs", {"updates": 10**9}, "'updates' of method 'ugs' is 1000000000; .* from 1 to 1000000: steps"),
        ("ugs", {"penalty": "-1"}, "'penalty' of method 'ugs' is '-1'; .* above 0"),
        ("ugs", {"batch_size": "0"}, "'batch_size' of method 'ugs' is '0'; .* from 1 to 100000: examples a step"),
        ("acdc", {"threshold": "1", "sweep": "3"}, "threshold=1.0 and sweep=3 are given"),
        ("acdc", {"speculate": 0}, "'speculate' of method 'acdc' is 0; .* from 1 to 10000"),
    ],
)
def test_options_out_of_range_are_refused_before_a_model_is_loaded(method, given, said):
    with pytest.raises(ConfigError, match=said):
        find_method(method).read(given)


def test_options_that_a_method_does_not_have():
    with pytest.raises(ConfigError, match=r"method 'toy' has no option 'm'. It takes n: what n is; x: what x is"):
        TOY.read({"m": 1})
    with pytest.raises(ConfigError, match=r"method 'eap' has no option 'points'. It takes none: leave it out"):
        score_edges(load("gpt2"), pairs(), "eap", points="paper")
    with pytest.raises(ConfigError, match="'steps' is an argument of its own"):
        find_method("eap-ig").read({"steps": "3"})
    with pytest.raises(UnknownNameError, match=r"unknown value of option 'points' 'papr' of method 'eap-ig'.*'paper'"):
        score_edges(load("gpt2"), pairs(), "eap-ig", points="papr")


@pytest.mark.parametrize("name", METHODS)
def test_the_table_is_in_order(name):
    method = METHODS[name]
    assert set(method.takes) <= set(SHARED)
    assert method.levels[0] == "edge"
    assert re.fullmatch("[^.]+", method.what)
    for option in method.options:
        assert option.default is None or option.read(option.default, name) == option.default


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "ablation" not in method.takes])
def test_an_ablation_that_a_method_cannot_take(name):
    with pytest.raises(ConfigError, match=f"method '{name}' takes no ablation 'zero': "):
        score_edges(load("gpt2"), pairs(), name, ablation="zero")
    with pytest.raises(ConfigError, match=f"method '{name}' takes no ablation 'noise'"):
        score_edges(load("gpt2"), pairs(), name, ablation=Replacement(kind="noise"))
    with pytest.raises(ConfigError, match=f"method '{name}' takes no reference set: "):
        score_edges(load("gpt2"), pairs(), name, reference=pairs(seed=1))


def test_names_that_do_not_exist():
    with pytest.raises(UnknownNameError, match="unknown replacement 'zeor'"):
        score_edges(load("gpt2"), pairs(), "eap", ablation="zeor")
    with pytest.raises(UnknownNameError, match="unknown axis 'positon'"):
        score_edges(load("gpt2"), pairs(), "eap", axis="positon")


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "axis" not in method.takes])
def test_an_axis_that_a_method_cannot_take(name):
    with pytest.raises(ConfigError, match=f"method '{name}' has no scores by position"):
        score_edges(load("gpt2"), pairs(), name, axis="position")


def test_a_run_is_asked_for_with_its_options():
    config = DiscoverConfig(task="name-throw", model="bundled", method_options={"points": "published-code"})
    assert config.to_record()["method_options"] == {"points": "published-code"}
    assert config.command == "circuitlab discover name-throw --method-option points=published-code"
    with pytest.raises(ConfigError, match="no option 'point'"):
        DiscoverConfig(task="name-throw", model="bundled", method_options={"point": "paper"})
