"""How functions and classes that run a model are called: under torch's ordinary modes, one thread at a time.

Inference mode makes tensors that no gradient can be taken through, autocast rounds products to half precision, and a
default device puts new tensors elsewhere than the model's. Functions that run a model switch all three off while they
work, so that their numbers do not depend on where they are called.

Steps of a model change its modules for a moment, which no other thread may see. The lock belongs to the weights'
module, so that two adapters of one bridge share it. It is held for one step of the model (a recording, a projection, an
MLP) or one context (`rewriting`), never while a metric or a progress callback runs: two calls in two threads take turns
step by step, and neither can wait for the other forever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from inspect import signature
from threading import Lock, RLock
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch

from circuitlab.arguments import checked
from circuitlab.errors import CircuitLabError, ConfigError
from circuitlab.models.memory import ERRORS, is_out_of_memory
from circuitlab.progress import reports_progress

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Class = TypeVar("Class", bound=type)

AUTOCAST_DEVICES = ("cpu", "cuda")
# Loaders set torch's default dtype and settings of other libraries while they work, for the whole process.
LOADING = RLock()

_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_finding = Lock()


def model_function(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a public function that runs a model.

    Its arguments are checked (`checked`), torch is in its ordinary modes (`in_ordinary_modes`), and `progress=`, where
    the function has it, becomes a plain function (`reports_progress`).

    Returns:
        The function, wrapped.
    """
    reporting = reports_progress(function) if "progress" in signature(function).parameters else function
    return checked(in_ordinary_modes(reporting))


def in_ordinary_modes(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function run without inference mode, autocast and default device.

    Returns:
        The function, wrapped.

    Raises:
        ConfigError: Memory ran out, whatever torch raised then.
    """

    @wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            if are_ordinary() and torch.get_default_device().type == "cpu":
                return function(*args, **kwargs)
            with ordinary_modes(), torch.device("cpu"):
                return function(*args, **kwargs)
        except ERRORS as error:
            if isinstance(error, CircuitLabError) or not is_out_of_memory(error):
                raise
            first_line = str(error).strip().partition("\n")[0][:160] or type(error).__name__
            raise ConfigError(
                f"memory ran out ({first_line}). Give a smaller budget=, fewer or shorter prompts, or a smaller dtype."
            ) from error

    return run


def are_ordinary() -> bool:
    """Whether neither inference mode nor autocast is on.

    Returns:
        Whether both are off.
    """
    return not (torch.is_inference_mode_enabled() or any(map(torch.is_autocast_enabled, AUTOCAST_DEVICES)))


@contextmanager
def ordinary_modes() -> Iterator[None]:
    """Switch inference mode and autocast off; both are as before when the block is left.

    Gradients are on inside where inference mode was on outside, and as outside otherwise.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def lock_of(owner: Any) -> Any:
    """The re-entrant lock of a module of weights or a tokenizer: one lock an owner.

    Returns:
        The lock; the same one for the same owner.
    """
    with _finding:
        return _locks.setdefault(owner, RLock())


def exclusive(cls: Class) -> Class:
    """Let public methods of a class hold the instance's `lock` and run under torch's ordinary modes.

    Gradients are on inside where they are on outside and an argument requires them; weights alone require none.

    Returns:
        The class, changed.
    """
    for name, value in list(vars(cls).items()):
        if callable(value) and not name.startswith("_"):
            setattr(cls, name, _held(value))
    return cls


def _held(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            if are_ordinary() and not torch.is_grad_enabled():
                return method(self, *args, **kwargs)
            required = any(getattr(value, "requires_grad", False) for value in (*args, *kwargs.values()))
            with ordinary_modes(), torch.set_grad_enabled(required and torch.is_grad_enabled()):
                return method(self, *args, **kwargs)

    return run
