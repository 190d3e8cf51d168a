"""One thread at a time in a model: its steps change modules for a moment, which no other thread may see.

The lock belongs to the weights' module, so that two adapters of one bridge share it. It is held for one step of the
model (a recording, a projection, an MLP) or one context (`rewriting`), never while a metric or a progress callback
runs: two calls in two threads take turns step by step, and neither can wait for the other for good.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import Lock, RLock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from circuitlab.models.modes import are_ordinary, ordinary_modes

Class = TypeVar("Class", bound=type)

# Loaders set torch's default dtype and settings of other libraries while they work, for the whole process.
LOADING = RLock()

_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_finding = Lock()


def lock_of(owner: Any) -> Any:
    """The re-entrant lock of a module of weights or a tokenizer: one lock an owner."""
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
