"""Load a model: the bundled one, a checkpoint folder, a hub name, or a bridge that the user booted."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from circuitlab.arguments import fits
from circuitlab.data.network import offline_without_network
from circuitlab.errors import CircuitLabError, ConfigError, ModelError
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.checkpoint_files import checked_folder
from circuitlab.models.huggingface import boot_from_hub, boot_huggingface, no_remote_code, not_loaded
from circuitlab.models.loaded_weights import check_finite
from circuitlab.models.model_kinds import refuse_unsupported
from circuitlab.models.modes import LOADING, model_function
from circuitlab.models.protocol import Model
from circuitlab.models.recording import Folding
from circuitlab.models.text import AUTO, TokenizerText, check_choice, own_tokenizer, text_of
from circuitlab.models.verify import adapted
from circuitlab.settings import SETTINGS

BUNDLED = SETTINGS["model"].default
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@model_function
def load_model(
    model: Any = SETTINGS["model"].default,
    *,
    device: str | torch.device | None = SETTINGS["device"].default,
    dtype: str | torch.dtype | None = SETTINGS["dtype"].default,
    fold_ln: bool = SETTINGS["fold_ln"].default,
    center_weights: bool = SETTINGS["center_weights"].default,
    bos: str | None = SETTINGS["bos"].default,
) -> BridgeModel | Any:
    """Load a model and check that its parts add up.

    Args:
        model: `"bundled"`, a checkpoint folder in HuggingFace format, any name that TransformerLens loads, a booted
            `TransformerBridge`, or a model: one that this function returned, or any object of the `Model` protocol
            (`circuitlab.models.protocol`), which comes back as it is.
        device: `"cpu"`, `"cuda"`, ...; the CPU by default, a booted bridge's own device otherwise.
        dtype: `"float32"` (default), `"float64"`, `"bfloat16"` or `"float16"`.
        fold_ln: Fold the norms' gains and biases into the weights that read them, and the values' biases into the
            output projections'. Predictions stay the same, what single parts add to the stream does not.
        center_weights: Take the mean out of everything that is written to the stream, and out of the logits; models
            with layer norms only. Log-probabilities and differences of logits stay the same. With both a model is in
            the coordinates in which TransformerLens's HookedTransformer loads it by default.
        bos: Whether every text gets a beginning-of-sequence (BOS) token. `"auto"`: whatever the
            checkpoint's own tokenizer puts in front of a text when it is called; the default for all that is loaded
            here. `"always"`: the tokenizer's BOS token. `"never"`: nothing. `"transformer-lens"`: what TransformerLens
            does by default for the architecture. A model that this function returned keeps what it has.

    Returns:
        The model, in evaluation mode, without gradients on its weights.

    Raises:
        ConfigError: A device or dtype that this machine or library does not have; folding, or another `bos`, for a
            model that was booted before.
        UnknownNameError: `bos` is none of these.
        ModelError: The folder lacks a file or has a damaged one, the weights lack tensors that the model needs or have
            more than it takes, the name is unknown, or there is no network to fetch it; `"always"` without a BOS token;
            a tokenizer with tokens that the model has no embedding for.
        UnsupportedModelError: It is of a kind that is not supported (mixture of experts, encoder-decoder, ...), its
            parts do not add up, or it cannot be folded; the message has the reason or the measured number.

    Example:
        >>> from circuitlab import load_model
        >>> load_model("bundled").spec.n_layers
        4
    """
    place, kind = device_of(device or "cpu"), dtype_of(dtype)
    folding = Folding(fold_ln=fold_ln, center_weights=center_weights)
    bos = None if bos is None else check_choice(bos)
    if not isinstance(model, str | Path):
        loaded: Model = model if fits(model, Model) else _from_bridge(model, bos)
        _check_as_it_is(loaded, None if device is None else place, None if dtype is None else kind, folding, bos)
        return loaded
    return _load(str(model), device=place, dtype=kind, folding=folding, bos=bos)


def _load(
    name: str,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    folding: Folding,
    bos: str | None,
    folder: str | None = None,
) -> BridgeModel:
    """Load a model by name.

    Args:
        name: What the user calls it.
        device: Where it goes.
        dtype: Of its weights.
        folding: How they are rewritten.
        bos: Whether texts get a beginning-of-sequence token.
        folder: Where it was found before, whatever the working directory was.
    """
    source = str(files("circuitlab") / "bundled") if name == BUNDLED else folder or name
    looks_local = name == BUNDLED or os.path.lexists(source) or source.startswith((".", "/", "~"))
    if looks_local:
        source = str(checked_folder(Path(source).expanduser(), name))
    bridge, text = _boot(source, name, device_of(device), dtype, bos, local=looks_local)
    loaded = adapted(bridge, name, folding, text)
    found = str(Path(source).resolve()) if looks_local and name != BUNDLED else None
    loaded.recipe = partial(_load, name, dtype=dtype, folding=folding, bos=bos, folder=found)
    return loaded


def _from_bridge(bridge: Any, bos: str | None) -> BridgeModel:
    if not hasattr(bridge, "cfg") or not hasattr(bridge, "original_model"):
        raise ModelError(
            f"a model is a name, a folder or a TransformerBridge; got {type(bridge).__name__}. "
            "Boot a HuggingFace model with TransformerBridge.boot_transformers(name, hf_model=...) first."
        )
    name, inner = str(getattr(bridge.cfg, "model_name", "bridge")), bridge.original_model
    refuse_unsupported(getattr(inner, "config", None), name)
    check_finite(inner, name)
    with LOADING, _quiet(), offline_without_network():
        text = _text(bridge, name, bos)
    return adapted(bridge, name, text=text)


def _text(bridge: Any, name: str, bos: str | None) -> TokenizerText | None:
    """The tokenizer, checked; None where there is none that serves, which is an error only when it is used."""
    serves = getattr(getattr(bridge, "tokenizer", None), "is_fast", False)
    own = own_tokenizer(bridge, name) if serves else None
    return None if own is None and bos is None else text_of(bridge, name, bos or AUTO, own)


def _check_as_it_is(
    model: Model, device: torch.device | None, dtype: torch.dtype | None, folding: Folding, bos: str | None
) -> None:
    """Refuse to move, recast or rewrite a model that the user holds, or to change its tokens."""
    if bos is not None and bos != model.bos.choice:
        raise ConfigError(
            f"bos={bos!r} is asked for, but the given model was loaded with bos={model.bos.choice!r}. "
            f"Load it again: load_model({model.id!r}, bos={bos!r})."
        )
    if dtype is not None and dtype != model.dtype:
        raise ConfigError(
            f"dtype {dtype} is asked for, but the given model is in {model.dtype}. Boot it in that dtype."
        )
    if device is not None and device.type != model.device.type:
        raise ConfigError(
            f"device {device} is asked for, but the given model is on {model.device}. Move it there first."
        )
    for name in ("fold_ln", "center_weights"):
        if getattr(folding, name) and not getattr(model.folding, name):
            raise ConfigError(
                f"{name} is asked for, but the given model is booted already, and its weights stay as they are. "
                f"Load it by its name or folder: load_model({model.id!r}, {name}=True)."
            )


def device_of(device: str | torch.device) -> torch.device:
    """A device that circuitlab runs on.

    Returns:
        The device.

    Raises:
        ConfigError: It is neither the CPU nor a CUDA GPU (no other kind was ever tested), or not on this machine.
    """
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"unknown device {str(device)!r}. Use cpu, cuda or cuda:0.") from None
    if place.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {str(device)!r} is not supported: it was never tested. Use cpu, cuda or cuda:0.")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        raise ConfigError(f"device {str(device)!r} is not available on this machine. Available: {there}.")
    return place


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype:
    """A dtype by itself or by name; float32 for None.

    Returns:
        The dtype.

    Raises:
        ConfigError: It is none of `DTYPES`.
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {str(dtype)!r}. Use one of: {', '.join(DTYPES)}.")
    return DTYPES[name]


def _boot(
    source: str, name: str, device: torch.device, dtype: torch.dtype, bos: str | None, *, local: bool
) -> tuple[Any, TokenizerText | None]:
    # HuggingFace fills weights with random numbers before it loads them, and sets torch's default dtype meanwhile.
    network = nullcontext() if local else offline_without_network()
    with LOADING, _quiet(), no_remote_code(), torch.random.fork_rng(), network:
        try:
            boot = boot_huggingface if local else boot_from_hub
            bridge = boot(source, name, device, dtype)
        except CircuitLabError:
            raise
        except Exception as error:  # the loaders below raise whatever they like; the cause is kept
            raise not_loaded(name, error, source, local=local) from error
        text = _text(bridge, name, bos)
    bridge.eval()
    for weight in bridge.original_model.parameters():
        weight.requires_grad_(False)
    return bridge, text


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no messages from the loaders; their settings are restored."""
    from transformers.utils import logging as chatter

    with ExitStack() as stack:
        stack.callback(chatter.set_verbosity, chatter.get_verbosity())
        if chatter.is_progress_bar_enabled():
            stack.callback(chatter.enable_progress_bar)
        chatter.set_verbosity_error()
        chatter.disable_progress_bar()
        for name in ("transformer_lens", "huggingface_hub"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        advice = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
        before = os.environ.get(advice)
        stack.callback(lambda: os.environ.pop(advice) if before is None else os.environ.update({advice: before}))
        os.environ[advice] = "1"
        yield
