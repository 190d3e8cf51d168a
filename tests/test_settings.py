"""One declaration of each setting: what is declared is found everywhere, and what is not is refused everywhere."""

import inspect
import json
import subprocess
import sys
from typing import Annotated

import pytest

from circuitlab import Example, Task, discover, load_model, load_task, score_edges, stability
from circuitlab.cli import main
from circuitlab.declarations import Setting, options_of
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.errors import ConfigError, UnknownNameError, WrongTypeError
from circuitlab.settings import SETTINGS

# What a newcomer's setting shows up in, asked of a process in which it is declared and nothing else is changed.
DECLARED = """
import inspect, json, warnings
from circuitlab.settings import SETTINGS, Setting

SETTINGS["shade"] = Setting(
    name="shade", what="How dark it is.", kind=int, default=3, least=1, most=9, flag="--shade", before=5
)
import circuitlab
from circuitlab.cli import main
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.errors import CircuitLabError

def refused(function):
    try:
        function()
    except CircuitLabError as error:
        return str(error)

with warnings.catch_warnings(record=True) as told:
    circuitlab.load_task("gendered-pronouns", contrast="gender")

print(json.dumps({
    "warned": [(one.category.__name__, one.filename) for one in told],
    "signature": str(inspect.signature(circuitlab.discover).parameters["shade"]),
    "docstring": "shade: How dark it is." in circuitlab.discover.__doc__,
    "record": DiscoverConfig(task="t", shade=7).to_record()["shade"],
    "default": DiscoverConfig(task="t").to_record()["shade"],
    "older": DiscoverConfig.of_record({"task": "t"}).shade,
    "command": DiscoverConfig(task="t", shade=7).command,
    "range": refused(lambda: circuitlab.discover("name-throw", shade=10)),
    "reserved": refused(lambda: circuitlab.load_task("name-throw", shade="7")),
}))
main(["discover", "--help"])
"""


def test_a_setting_that_is_declared_once_is_found_everywhere():
    ran = subprocess.run([sys.executable, "-c", DECLARED], capture_output=True, text=True, check=True)
    found, _, page = ran.stdout.partition("\n")
    assert json.loads(found) == {
        "warned": [["FutureWarning", "<string>"]],
        "signature": "shade: int = 3",
        "docstring": True,
        "record": 7,
        "default": 3,
        "older": 5,
        "command": "circuitlab discover t --shade 7",
        "range": "shade is 10; it must be a whole number from 1 to 9.",
        "reserved": "load_task(): shade is a setting of discover. Give the option in "
        "task_options={'shade': ...} alone.",
    }
    assert "--shade <int range>" in page
    assert "How dark it is. [default: 3]  [1<=x<=9]" in " ".join(page.split()).replace("] [1", "]  [1")


def test_a_setting_that_is_not_declared_is_refused_everywhere(capsys):
    assert "shade" not in inspect.signature(discover).parameters
    with pytest.raises(UnknownNameError, match="unknown setting 'shade'.*Options of the task go into task_options"):
        discover("name-throw", shade=3)
    with pytest.raises(UnknownNameError, match="unknown setting 'stpes'. Did you mean 'steps'"):
        discover("name-throw", stpes=3)
    with pytest.raises(UnknownNameError, match="unknown setting 'shade'"):
        DiscoverConfig(task="t", shade=3)
    with pytest.raises(KeyError, match="unknown setting 'shade'"):
        DiscoverConfig.of_record({"task": "t", "shade": 3})
    assert main(["discover", "name-throw", "--shade", "3"]) == 2
    assert "No such option: --shade" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.recorded and name != "task"])
def test_a_recorded_setting_reads_back_as_it_was(name):
    config = DiscoverConfig(task="t")
    assert DiscoverConfig.of_record(config.to_record()) == config
    key = SETTINGS[name].record or name
    assert key in json.loads(json.dumps(config.to_record()))
    with pytest.raises((WrongTypeError, UnknownNameError, TypeError), match=key):
        DiscoverConfig.of_record(config.to_record() | {key: object()})


def test_an_option_of_a_task_may_be_given_by_its_former_keyword(monkeypatch):
    asked = []
    monkeypatch.setattr("circuitlab.runs.pipeline.metric_of", lambda task, metric: asked.append(task.settings) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        discover("gendered-pronouns", task_options={"contrast": "gender"})
    with pytest.warns(FutureWarning, match="task_options={'contrast': 'gender'}"), pytest.raises(ZeroDivisionError):
        discover("gendered-pronouns", contrast="gender")
    assert asked == [{"contrast": "gender"}] * 2


def scored(
    model: object,
    *,
    share: Annotated[float, Setting(what="share of edges", above=0, below=1)] = 0.5,
    word: Annotated[str | None, Setting(what="a word", allowed=("one", "two"))] = None,
    plain: int = 0,
) -> None:
    """A scoring function with two options."""


def test_options_of_a_function_are_read_from_its_signature():
    share, word = options_of(scored)
    assert (share.name, share.default, word.name, word.default) == ("share", 0.5, "word", None)
    assert (share.read("0.25"), share.read(0.25), word.read("none"), word.read("two")) == (0.25, 0.25, None, "two")
    for value in (0, 1, "1.5", "nan"):
        with pytest.raises(ConfigError, match="option 'share' of method 'm' is .*a number between 0 and 1: share of"):
            share.read(value, "method 'm'")
    with pytest.raises(UnknownNameError, match="unknown value of option 'word' 'tow' of method 'm'. Did you"):
        word.read("tow", "method 'm'")


@pytest.mark.parametrize("function", [score_edges, stability, load_model])
def test_functions_take_their_defaults_from_the_declarations(function):
    given = {name: one.default for name, one in inspect.signature(function).parameters.items() if name in SETTINGS}
    given = {name: default for name, default in given.items() if default is not inspect.Parameter.empty}
    assert given == {name: SETTINGS[name].default for name in given}
    source = inspect.getsource(inspect.unwrap(function))
    assert source.count('SETTINGS["') >= sum(default is not None for default in given.values()) > 0


def test_the_help_of_a_setting_names_every_allowed_value():
    for setting in SETTINGS.values():
        if setting.flag and setting.allowed:
            assert [value for value in setting.allowed if value not in setting.help] == []


PLAIN = Task(
    name="plain", version="1", summary="No words held out.", draw=lambda rng: Example("a b.", "a c.", " d", " e")
)


@pytest.mark.parametrize(("task", "split"), [(load_task("ioi"), "words"), (PLAIN, "random")], ids=["words", "random"])
def test_help_record_and_command_of_the_split_agree(task, split, capsys):
    assert ("words" if task.differ_in else "random") == split, "the test is about one task of each kind"
    assert main(["discover", "--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "[default: words if the task holds words out, else random]" in page
    config = DiscoverConfig(task=task.name, split=split)
    assert ("--split random" in config.command) is (split == "random")
    assert task.with_split(config.split).differ_in == task.differ_in
