"""Hooks of the user on a model: either every part that is run by itself sees them, or they are rejected by name.

Parts of a model are run by themselves, on other rows than those of the prompts and on several tokens at once, and some
are computed from weights alone. A hook changes them as it changes the model's own forward pass only if it is where the
part is computed and acts on every row, and in token-wise parts on every token, alike. This is measured before each
recording: the parts are compared with the whole as when a model is loaded, and the recording with one of the same
prompts in other rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from circuitlab.errors import ModelError, TokenError, UnsupportedModelError
from circuitlab.models.comparison import Difference, allowed, differences, relative
from circuitlab.models.recording import Recording
from circuitlab.models.surgery import is_of_the_user

TABLES = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# Prompts that the parts are compared on.
ROWS = 8
NAMED, REMEMBERED = 3, 4
# What a hook raises that was written for one number of rows or tokens, and is called with another.
SHAPE_ERRORS = (IndexError, KeyError, ValueError, TypeError, RuntimeError, AssertionError)
# Parts that the methods of these names compute from weights, and that not every computation needs.
WORKS_FROM_WEIGHTS = {
    "the q projection": "head_weights",
    "the k projection": "head_weights",
    "the v projection": "head_weights",
    "the sum of the heads": "head_outputs",
    "an MLP from its neurons": "mlp_hidden",
    "an MLP from its neurons before their norm": "mlp_hidden",
    "an MLP from its pre-activations": "mlp_hidden",
    "the sum of the neurons": "mlp_hidden",
    "the gradient through all readers": "attn_norm_gradients",
}


class UserHooks:
    """Finds what a user has changed on a model's modules since it was booted.

    Args:
        bridge: The booted model.
        modules: Every module in it.
    """

    def __init__(self, bridge: Any, modules: tuple[nn.Module, ...]) -> None:
        self._bridge, self._modules = bridge, modules
        self._tables = [getattr(module, name) for module in modules for name in TABLES]
        self._global = [getattr(torch_modules, f"_global{name}") for name in TABLES]
        self._children, self._forwards = self._tree(), self._replaced()
        # Hooks, prompts, the final stream that they made of them, and what did not see them.
        self._measured: deque[tuple[list[Any], Tensor, Tensor, dict[str, str]]] = deque(maxlen=REMEMBERED)

    def names(self) -> tuple[str, ...]:
        """Where they are, by the names of the bridge's modules.

        Returns:
            The names; none without hooks.

        Raises:
            ModelError: Modules were replaced.
        """
        if self._tree() != self._children:
            raise ModelError(
                "modules of the model were replaced after it was loaded. Load it again: load_model(model.bridge)."
            )
        on_all = any(map(is_of_the_user, self._global))
        if not on_all and self._forwards == self._replaced() and not any(map(is_of_the_user, self._tables)):
            return ()
        return (*self._names_of_modules(), *(["all modules (a global hook of torch)"] if on_all else []))

    def unseen(self, model: Any, tokens: Tensor, names: tuple[str, ...]) -> dict[str, str]:
        """The result of `unseen_by`, kept while the same hooks change the same prompts in the same way.

        Args:
            model: The model.
            tokens: The prompts.
            names: Where the hooks are.

        Returns:
            As `unseen_by`.

        Raises:
            UnsupportedModelError: As `unseen_by`.
        """
        try:
            final = model.record(tokens).resid_final
        except UnsupportedModelError as error:
            raise UnsupportedModelError(refusal(names, str(error).rstrip("."))) from error
        except TokenError:  # of the prompts, not of the hooks
            raise
        except SHAPE_ERRORS as error:
            raise _of_another_shape(names, error) from error
        tables = (table for table in (*self._tables, *self._global) if table)
        hooks = [*self._replaced().values(), *(hook for table in tables for hook in table.values())]
        for known, of_tokens, of_final, unseen in self._measured:
            if known == hooks and torch.equal(of_tokens, tokens) and torch.equal(of_final, final):
                return unseen
        unseen = unseen_by(model, tokens, names, final)
        self._measured.append((hooks, tokens.clone(), final, unseen))
        return unseen

    def _names_of_modules(self) -> list[str]:
        named: dict[nn.Module, str] = {}
        for prefix, root in (("", self._bridge), ("original_model.", self._bridge.original_model)):
            for name, module in root.named_modules(remove_duplicate=False):
                known, new = named.get(module), prefix + name or "the model itself"
                named[module] = new if known is None or len(new) < len(known) else known
        points: dict[nn.Module, list[str]] = {}
        for name, point in self._bridge.hook_dict.items():
            points.setdefault(point, []).append(name)
        named |= {point: " = ".join(names) for point, names in points.items()}
        changed = self._replaced()
        return [
            named.get(module, type(module).__name__)
            for number, module in enumerate(self._modules)
            if any(is_of_the_user(getattr(module, name)) for name in TABLES)
            or changed.get(number) != self._forwards.get(number)
        ]

    def _tree(self) -> list[list[int]]:
        return [[*map(id, module._modules.values())] if module._modules else [] for module in self._modules]

    def _replaced(self) -> dict[int, Any]:
        """Forward functions that were set on a module itself."""
        return {number: m.__dict__["forward"] for number, m in enumerate(self._modules) if "forward" in m.__dict__}


def unseen_by(model: Any, tokens: Tensor, names: tuple[str, ...], final: Tensor) -> dict[str, str]:
    """Measure whether parts that are run by themselves change as the model's own forward pass does.

    Args:
        model: The model.
        tokens: The prompts.
        names: Where the hooks are.
        final: The final stream of an earlier run.

    Returns:
        For each method of the model that works from weights and does not see them, the message for its caller.

    Raises:
        UnsupportedModelError: What every computation is made of does not see them.
    """
    unseen, limit, run = dict[str, str](), allowed(model), model.record(tokens)
    try:
        again = [(run.resid_final, final), *_in_other_rows(model, tokens, run)]
        moved = max(relative(ours, theirs) for ours, theirs in again)
        measured = [(part, relative(ours, theirs)) for part, ours, theirs in _parts(model, tokens)]
    except SHAPE_ERRORS as error:
        raise _of_another_shape(names, error) from error
    if not moved <= limit:
        why = f"what they do to a prompt depends on its row or on the call (by {moved:.2g} of the largest value)"
        raise UnsupportedModelError(refusal(names, why))
    for part, by in measured:
        if by <= limit:
            continue
        message = refusal(names, f"{part} differs by {by:.2g} of its size from the model's own forward pass")
        if part not in WORKS_FROM_WEIGHTS:
            raise UnsupportedModelError(message)
        unseen.setdefault(WORKS_FROM_WEIGHTS[part], message)
    return unseen


def _in_other_rows(model: Any, tokens: Tensor, run: Recording) -> list[tuple[Tensor, Tensor]]:
    """A recording of the prompts moved on by one row, with the first one twice, beside the recording of the prompts."""
    order = torch.arange(-1, len(tokens), device=tokens.device) % len(tokens)
    other = model.record(tokens[order])
    pairs = [(other.resid_final, run.resid_final[order])]
    for name in ("resid_pre", "attn_out", "mlp_out", "q", "k", "v", "pattern", "z"):
        pairs += [(ours, theirs[order]) for ours, theirs in zip(getattr(other, name), getattr(run, name), strict=True)]
    return pairs


def _parts(model: Any, tokens: Tensor) -> Iterator[Difference]:
    tokens = tokens[:ROWS]
    with torch.no_grad():
        final = model.record(tokens).resid_final
        # At every position: that of the answer may be any.
        yield "the vector of logits", model.logits(final.flatten(0, 1)), model.whole_logits(tokens).flatten(0, 1)
    yield from differences(model, tokens)


def _of_another_shape(names: tuple[str, ...], error: Exception) -> UnsupportedModelError:
    first_line = str(error).partition("\n")[0].rstrip(".")[:200]
    return UnsupportedModelError(
        refusal(names, f"on another number of rows or tokens {type(error).__name__}: {first_line}")
    )


def refusal(names: tuple[str, ...], why: str) -> str:
    """The message for a user whose hooks would not be seen.

    Args:
        names: Where they are.
        why: What was found.

    Returns:
        The message.
    """
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return (
        f"with the user's hooks at {shown} this would not give the model's numbers: {why}. Remove them "
        "(model.bridge.reset_hooks() or handle.remove()), or run the model itself: model.bridge(tokens)."
    )
