"""Public functions given arguments of a wrong type or out of range: errors of the library, before any work."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import circuitlab
from circuitlab import CircuitLabError, WrongTypeError
from circuitlab import features as features_module
from circuitlab import neurons as neurons_module
from circuitlab.arguments import checked, fits, spelled

WRONG = (object(), b"", torch.zeros(0, dtype=torch.int8), {"a": object()}, [object()])
FUNCTIONS = {
    name: value
    for module in (circuitlab, neurons_module, features_module)
    for name in module.__all__
    if inspect.isfunction(value := getattr(module, name))
}
ANY = {("from_tracr", "assembled"), ("from_tracr", "name")}  # an object of another library, without a type of its own


def cases():
    for name, function in FUNCTIONS.items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                yield pytest.param(name, parameter.name, id=f"{name}-{parameter.name}")


def test_every_public_function_checks_its_arguments():
    for name, function in FUNCTIONS.items():
        assert hasattr(function, "__wrapped__"), f"{name} is not decorated with @checked"


@pytest.mark.parametrize(("name", "parameter"), list(cases()))
def test_a_value_that_no_parameter_takes_is_an_error_of_the_library(name, parameter):
    """Whatever stands for the other arguments: types are checked in their order, before anything else."""
    function = FUNCTIONS[name]
    needed = {
        p.name: object()
        for p in inspect.signature(function).parameters.values()
        if p.default is inspect.Parameter.empty and p.kind is not inspect.Parameter.VAR_KEYWORD
    }
    if (name, parameter) in ANY:
        pytest.skip("takes any object")
    for value in WRONG:
        with pytest.raises(CircuitLabError) as told:
            function(**{**needed, parameter: value})
        assert len(str(told.value)) < 700


class Named(Protocol):
    name: str


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [1, np.int64(3)], [True, 1.0, "1", None]),
        (float, [1, 1.5, np.float32(2)], [True, "1", None, 1j]),
        (bool, [True, np.bool_(False)], [1, "yes", None]),
        (str, ["", "a"], [b"a", 1, Path("a")]),
        (str | Path, ["a", Path("a")], [1, None]),
        (int | None, [None, 1], ["x", 1.5]),
        (Sequence[int], [[1], (), np.array([1]).tolist()], ["1", [None], 1, {1}]),
        (Sequence[str], [["a"]], ["a", [1]]),
        (Iterable[int], [[1], iter([1]), range(3)], [1, None]),
        (Mapping[str, int], [{}, {"a": 1}], [{"a": "b"}, {1: 1}, [("a", 1)]]),
        (tuple[int, str], [(1, "a")], [(1,), ("a", 1), [1, "a"]]),
        (tuple[int, ...], [(), (1, 2)], [("a",)]),
        (Callable[[int], int], [len], [1]),
        (Literal["a", "b"], ["a"], ["c", 1]),
        (Tensor, [torch.zeros(1)], [np.zeros(1), [0.0]]),
        (Float[Tensor, "batch"], [torch.zeros(1)], [[0.0]]),
        (Named, [type("T", (), {"name": "a"})()], [object()]),
        (Any, [object()], []),
        ("a name that is not known", [1], []),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value),
)
def test_what_fits_an_annotation(hint, right, wrong):
    assert [fits(value, hint) for value in right] == [True] * len(right)
    assert [fits(value, hint) for value in wrong] == [False] * len(wrong)
    assert spelled(hint)


def test_the_message_names_argument_value_and_types():
    with pytest.raises(WrongTypeError, match=r"^sweep\(\): model is 'gpt2', of type str; it must be Model\.$"):
        circuitlab.sweep("gpt2", None, "head_z")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="it must be str or Path"):
        circuitlab.load_circuit(5)  # type: ignore[arg-type]


def test_unknown_keywords_stay_pythons_business():
    @checked
    def f(a: int, *more: int, **others: str) -> int:
        return a

    assert f(1, 2, b="x") == 1
    for wrong in (lambda: f("1"), lambda: f(1, "2"), lambda: f(1, b=2)):
        with pytest.raises(WrongTypeError):
            wrong()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        f()
