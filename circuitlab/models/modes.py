"""Run under torch's ordinary modes, whatever the caller has switched on.

Inference mode makes tensors that no gradient can be taken through, autocast rounds products to half precision, and a
default device puts new tensors elsewhere than the model's. Functions that run a model switch all three off while they
work, so that their numbers do not depend on where they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

import torch

from circuitlab.arguments import checked
from circuitlab.errors import CircuitLabError, ConfigError
from circuitlab.models.memory import ERRORS, is_out_of_memory
from circuitlab.progress import reports_progress

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

AUTOCAST_DEVICES = ("cpu", "cuda")


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
    """Whether neither inference mode nor autocast is on."""
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
