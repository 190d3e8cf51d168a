"""Verify the decomposition of a model: its parts, run one by one, give what the whole model computes.

A model that passes can be patched at every reader and writer; one whose decomposition is inexact is rejected before any
work, with the part that differs and the error. The assumptions of the engine are measured too: that heads do not see
each other, that gradients through the parts are those of the whole, and, unless the model is taken as bidirectional,
that no token sees a later one.
"""

from contextlib import suppress
from traceback import walk_tb
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from circuitlab.errors import CircuitLabError, UnsupportedModelError, in_one_line
from circuitlab.models.anatomy import spec_of
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.bridge_base import BridgeBase, weights_digest
from circuitlab.models.comparison import NOT_CAUSAL, allowed, declared_differences, differences, relative
from circuitlab.models.families import family_of
from circuitlab.models.folding import PROBE_TOKENS, fold_weights, probe_tokens
from circuitlab.models.model_kinds import SUPPORTED, described
from circuitlab.models.modes import lock_of
from circuitlab.models.protocol import Model
from circuitlab.models.recording import AS_SAVED, Folding
from circuitlab.models.text import TokenizerText

# These make a bridge split its attention's input or output, and skip the modules that the parts are read from.
FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in")
# Models of the user's own class that were verified, by their id: such a class may compare its models or hash none.
_verified: dict[int, ref[Any]] = {}
# What code raises that is called in a way it was not written for.
CANNOT_RUN = (UnsupportedModelError, RuntimeError, AttributeError, TypeError, KeyError, IndexError)


def adapted(bridge: Any, name: str, folding: Folding = AS_SAVED, text: TokenizerText | None = None) -> BridgeModel:
    """The model of a booted bridge, if every part of it can be run by itself.

    It is bidirectional by its configuration, or where changing a token is measured to change the stream before it.

    Args:
        bridge: The bridge; it is changed only where `folding` says so.
        name: What the user calls it.
        folding: How its weights are to be rewritten.
        text: Its tokenizer (see `BridgeModel`).

    Returns:
        The model.

    Raises:
        UnsupportedModelError: A part differs by more than the dtype's tolerance, or cannot be run by itself; or the
            weights cannot be rewritten so.
    """
    with lock_of(bridge.original_model):
        if any(weight.is_inference() for weight in bridge.original_model.parameters()):
            raise UnsupportedModelError(
                f"model {name!r}: its weights were made under torch.inference_mode(), so that no gradient can be taken "
                "through it. Boot it outside of that mode."
            )
        try:
            digest = weights_digest(bridge, folding) if folding.any else None
            if folding.any:
                fold_weights(bridge, spec_of(bridge, name), folding)
            model = BridgeModel(bridge, name, folding, digest, text=text)
        except CANNOT_RUN as error:
            raise _not_taken_apart(name, error, bridge) from error
        wrong = _first_wrong(model)
        if wrong and wrong[0] == NOT_CAUSAL:
            model = BridgeModel(bridge, name, folding, digest, causal=False, text=text)
            wrong = _first_wrong(model)
        _refuse(model, wrong)
        return model


def verify(model: Model) -> None:
    """Run every part of a model on two short random prompts and compare with the whole.

    A model of the user's own class is compared with what its `record` keeps of a whole run.

    Raises:
        UnsupportedModelError: A part differs by more than the dtype's tolerance, has another shape, or cannot be run by
            itself.
    """
    if isinstance(model, BridgeModel):
        _refuse(model, _first_wrong(model))
    else:
        _verify_declared(model)


def verify_once(model: Model) -> None:
    """Verify a model of the user's own class when it is first used; others were verified when they were loaded.

    Raises:
        UnsupportedModelError: As `verify`.
    """
    key, known = id(model), _verified.get(id(model))
    if isinstance(model, BridgeBase) or (known is not None and known() is model):
        return
    verify(model)
    with suppress(TypeError):  # a class with slots alone has no references; its models are verified each time
        _verified[key] = ref(model, lambda _: _verified.pop(key, None))


def _verify_declared(model: Any) -> None:
    shape, generator = (2, min(PROBE_TOKENS, model.spec.n_ctx or PROBE_TOKENS)), torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.spec.d_vocab, shape, generator=generator).to(model.device)
    try:
        for part, ours, theirs in declared_differences(model, tokens):
            if ours.shape != theirs.shape:
                raise UnsupportedModelError(
                    f"model {model.id!r}: {part} has shape {tuple(ours.shape)}; its own record has "
                    f"{tuple(theirs.shape)}. Correct the step (circuitlab.models.protocol.Model)."
                )
            if not (value := relative(ours, theirs)) <= allowed(model):
                raise UnsupportedModelError(
                    f"model {model.id!r}: {part} differs by {value:.2g} of its size from what its own record has (at "
                    f"most {allowed(model):.0e} in {model.dtype}). Correct the step (circuitlab.models.protocol.Model)."
                )
    except CircuitLabError:
        raise
    except Exception as error:  # of a step of the user's model, whatever it raises
        raise UnsupportedModelError(
            f"model {model.id!r}: its step {_failing_step(model, error)} raised {in_one_line(error)} when it was run "
            "by itself. Correct the step (circuitlab.models.protocol.Model)."
        ) from error


def _failing_step(model: Any, error: BaseException) -> str:
    """The method of the model in which an error was raised."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    names = [frame.f_code.co_name for frame in frames if frame.f_locals.get("self") is model]
    declared = [name for name in names if hasattr(Model, name)]
    return repr(declared[-1]) if declared else "of another shape"


def _first_wrong(model: BridgeModel) -> tuple[str, float] | None:
    """The first part that differs by more than is allowed, and by how much."""
    measured = (
        (part, relative(ours, theirs))
        for part, ours, theirs in differences(model, probe_tokens(model.bridge, model.spec))
    )
    try:
        return next(((part, value) for part, value in measured if not value <= allowed(model)), None)
    except CANNOT_RUN as error:
        raise _not_taken_apart(model.id, error, model.bridge) from error


def _refuse(model: BridgeModel, wrong: tuple[str, float] | None) -> None:
    if wrong:
        raise UnsupportedModelError(
            f"model {model.id!r}: {wrong[0]} differs by {wrong[1]:.2g} of its size from the model's own forward pass "
            f"(at most {allowed(model):.0e} in {model.dtype}). Patching it would give wrong numbers."
            f"{_advice(model.bridge)}"
        )


def measure(model: BridgeModel, tokens: Tensor) -> dict[str, float]:
    """Largest relative difference of each part to the whole model, over all layers.

    Returns:
        By part, the largest difference as a share of the largest value.
    """
    worst: dict[str, float] = {}
    for part, ours, theirs in differences(model, tokens):
        worst[part] = max(worst.get(part, 0.0), relative(ours, theirs))
    return worst


def _not_taken_apart(name: str, error: Exception, bridge: Any) -> UnsupportedModelError:
    advice = _advice(bridge)
    if isinstance(error, UnsupportedModelError):
        return UnsupportedModelError(f"{error}{advice}")
    config = getattr(bridge.original_model, "config", None)
    return UnsupportedModelError(
        f"model {name!r} ({described(config)}) is not supported: its layers cannot be run part by part.{advice} "
        f"{SUPPORTED}"
    )


def _advice(bridge: Any) -> str:
    """What a user who booted the bridge can do about it, or why it is so, with a space before it."""
    on = [flag for flag in FLAGS if getattr(bridge.cfg, flag, False)]
    if on:
        calls = " and ".join(f"set_{flag}(False)" for flag in on)
        return f" It has {' and '.join(on)} set; call {calls} on it."
    reason, config = family_of(bridge).refused, getattr(bridge.original_model, "config", None)
    return f" In models of type {config.model_type} {reason}." if reason and config is not None else ""
