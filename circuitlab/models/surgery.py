"""Temporary changes of torch modules: every one is a context manager."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Hooks that the libraries put on modules themselves, and that leave every value as it is.
OBSERVERS = ("transformer_lens.model_bridge", "transformers.utils.output_capturing")


class ForwardStoppedError(Exception):
    """Raised by a hook to end a pass whose rest is not needed; suppressed where the hook is set."""


def first_tensor(output: Any) -> Tensor:
    """The hidden states of a module's output, which is a tensor or a tuple that begins with one.

    Returns:
        The tensor.
    """
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def hooks() -> Iterator[Hooks]:
    """Collect hooks on modules; all of them are gone when the block is left, however it is left."""
    with ExitStack() as stack:
        yield Hooks(stack)


class Hooks:
    """Adds hooks whose removal is already arranged."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def output(self, module: nn.Module, see: Callable[[Tensor], Tensor | None]) -> None:
        """Call `see` with the module's output tensor; what it returns, if anything, takes the output's place."""

        def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
            new = see(first_tensor(output))
            if new is None:
                return None
            return (new, *output[1:]) if isinstance(output, tuple) else new

        self._stack.callback(module.register_forward_hook(hook).remove)

    def input(self, module: nn.Module, see: Callable[[Tensor], Tensor | None]) -> None:
        """Call `see` with the module's first input; what it returns, if anything, takes the input's place."""

        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> Any:
            if args:
                new = see(args[0])
                return None if new is None else ((new, *args[1:]), kwargs)
            new = see(kwargs["hidden_states"])
            return None if new is None else (args, {**kwargs, "hidden_states": new})

        self._stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def call(self, module: nn.Module, see: Callable[[tuple, dict], None]) -> None:
        """Call `see` with everything the module is called with."""
        handle = module.register_forward_pre_hook(lambda _, args, kwargs: see(args, kwargs), with_kwargs=True)
        self._stack.callback(handle.remove)


@contextmanager
def entry_replaced(table: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """Put another value into a dictionary for a while: a parameter of a module, or its `forward` (`vars(module)`).

    A module whose own dictionary has a `forward` computes that and skips its class's work.
    """
    had, before = name in table, table.get(name)
    table[name] = value
    try:
        yield
    finally:
        if had:
            table[name] = before
        else:
            table.pop(name, None)


def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> AbstractContextManager[None]:
    """Let a module compute something else for a while, and skip its own work.

    Returns:
        A context; the module's own code is back when it is left.
    """
    return entry_replaced(vars(module), "forward", forward)


@contextmanager
def attributes(target: Any, **values: Any) -> Iterator[None]:
    """Set attributes that the target already has, and set them back. Absent ones are left alone."""
    before = {name: getattr(target, name) for name in values if getattr(target, name, None) is not None}
    try:
        for name in before:
            setattr(target, name, values[name])
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Dropout off, and the training flag of every one of these modules back as it was."""
    training = [m for m in modules if m.training]
    try:
        for m in training:
            m.training = False
        yield
    finally:
        for m in training:
            m.training = True


def gradients_if_required(values: Tensor) -> torch.set_grad_enabled:
    """Gradients on where they were on and these values require them, else off: weights alone require none.

    Returns:
        A context.
    """
    return torch.set_grad_enabled(torch.is_grad_enabled() and values.requires_grad)


def broadcast_rows(value: Any, rows: int) -> Any:
    """Tensors recorded for one prompt, viewed as for `rows` prompts; other values unchanged.

    Returns:
        The values; tensors `[1, ...]` as views `[rows, ...]`.
    """
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == 1 and rows != 1:
        return value.expand(rows, *value.shape[1:])
    if isinstance(value, tuple):
        return tuple(broadcast_rows(item, rows) for item in value)
    return value


def hook_tables(module: nn.Module) -> tuple[Mapping[int, Callable], ...]:
    """The tables that hold the hooks of a module and of everything in it.

    Returns:
        The tables, which follow later changes of the hooks.
    """
    return tuple(table for part in module.modules() for table in (part._forward_pre_hooks, part._forward_hooks))


def hooked(tables: Iterable[Mapping[int, Callable]]) -> bool:
    """Whether there is a hook of the user's, so that the modules' own code has to run.

    Returns:
        Whether there is one.
    """
    return any(map(is_of_the_user, tables))


def is_of_the_user(table: Mapping[int, Callable]) -> bool:
    """Whether a table of hooks holds one that is not of the libraries.

    Returns:
        Whether it does.
    """
    return bool(table) and any(
        not (getattr(_as_given(hook), "__module__", None) or "").startswith(OBSERVERS) for hook in table.values()
    )


def _as_given(hook: Callable) -> Any:
    """The function that a hook point of TransformerLens was given, which it calls from a closure of its own.

    TransformerLens itself adds some where a block has no MLP module (OPT, XGLM).
    """
    variables = getattr(getattr(hook, "__code__", None), "co_freevars", ())
    if getattr(hook, "__module__", None) != "transformer_lens.hook_points" or "hook" not in variables:
        return hook
    return (hook.__closure__ or ())[variables.index("hook")].cell_contents


def norm_gain(norm: nn.Module, normed_of: Tensor) -> Tensor:
    """The factor `g / sigma(x)` by which an RMS norm scales each component of x; linear once sigma is given.

    The gain g is read off the norm of a vector of ones, up to the norm's epsilon (1e-6), which the verification of a
    model measures along with everything else. Gradients of sigma follow if they are on.

    Returns:
        One factor a component and token.
    """
    with torch.no_grad():
        gain = norm(torch.ones_like(normed_of))
    scaled, normed = normed_of * gain, norm(normed_of)
    inverse = (normed * scaled).sum(-1, keepdim=True) / (scaled * scaled).sum(-1, keepdim=True).clamp_min(1e-30)
    return gain * inverse


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits after a softcap, `cap * tanh(logits / cap)`; as they are without one.

    Returns:
        Logits of the same shape.
    """
    return logits if cap is None else cap * torch.tanh(logits / cap)


def times(values: Tensor, factor: float) -> Tensor:
    """The product; by 1 the values themselves.

    Returns:
        Values of the same shape.
    """
    return values if factor == 1 else values * factor
