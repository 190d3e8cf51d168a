"""Load a model: the bundled one, a checkpoint folder, a GGUF file, a hub name, or a bridge that the user booted."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from circuitlab.arguments import fits
from circuitlab.data.network import offline_without_network
from circuitlab.errors import CircuitLabError, ConfigError, ModelError
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.gguf import load_dequantized, not_read, write_description
from circuitlab.models.huggingface import boot_from_hub, boot_huggingface, no_remote_code, not_loaded
from circuitlab.models.loaded_weights import check_finite, load_checked
from circuitlab.models.model_kinds import refuse_dispatched, refuse_unsupported
from circuitlab.models.modes import LOADING, model_function
from circuitlab.models.protocol import Model
from circuitlab.models.quiet import quiet
from circuitlab.models.recording import Folding
from circuitlab.models.revisions import AT_HEAD, Checkpoint
from circuitlab.models.source import BUNDLED, Source, find_source
from circuitlab.models.text import AUTO, TokenizerText, check_choice, own_tokenizer, text_of
from circuitlab.models.verify import adapted, verify_once
from circuitlab.outputs.whole import scratch_folder
from circuitlab.settings import SETTINGS

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@model_function
def load_model(
    model: Any = SETTINGS["model"].default,
    *,
    device: str | torch.device | None = SETTINGS["device"].default,
    dtype: str | torch.dtype | None = SETTINGS["dtype"].default,
    revision: str | None = SETTINGS["revision"].default,
    checkpoint_index: int | None = SETTINGS["checkpoint_index"].default,
    fold_ln: bool = SETTINGS["fold_ln"].default,
    center_weights: bool = SETTINGS["center_weights"].default,
    bos: str | None = SETTINGS["bos"].default,
) -> BridgeModel | Any:
    """Load a model and check that its parts add up.

    Args:
        model: `"bundled"`, a checkpoint folder in HuggingFace format, a GGUF file (`.gguf`), the name of a model in
            circuitlab's cache folder, any name that TransformerLens loads, a booted `TransformerBridge`, or a model:
            one that this function returned, or any object of the `Model` protocol (`circuitlab.models.protocol`), which
            comes back as it is, once its steps were compared with its record of a whole run.
        device: `"cpu"`, `"cuda"`, ...; the CPU by default, a booted bridge's own device otherwise.
        dtype: `"float32"` (default), `"float64"`, `"bfloat16"` or `"float16"`.
        revision: Branch, tag or commit of a repository on the hub; its default branch by default.
        checkpoint_index: Number of a training checkpoint in TransformerLens's list (Pythia, the Stanford CRFM GPT-2s,
            toy models); negative numbers count from the end.
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
            model that was booted before; a revision or checkpoint of a model that is no repository on the hub, or one
            that the repository does not have.
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
    checkpoint = Checkpoint(revision=revision, index=checkpoint_index)
    bos = None if bos is None else check_choice(bos)
    if not isinstance(model, str | Path):
        loaded: Model = model if fits(model, Model) else _from_bridge(model, bos)
        verify_once(loaded)
        _check_checkpoint(loaded, checkpoint)
        _check_as_it_is(loaded, None if device is None else place, None if dtype is None else kind, folding, bos)
        return loaded
    return _load(str(model), device=place, dtype=kind, folding=folding, bos=bos, checkpoint=checkpoint)


def _load(
    name: str,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    folding: Folding,
    bos: str | None,
    checkpoint: Checkpoint = AT_HEAD,
    path: Path | None = None,
) -> BridgeModel:
    """Load a model by name.

    Args:
        name: What the user calls it.
        device: Where it goes.
        dtype: Of its weights.
        folding: How they are rewritten.
        bos: Whether texts get a beginning-of-sequence token.
        checkpoint: Which checkpoint of a repository on the hub.
        path: Where it was found before, whatever the working directory was.
    """
    source = find_source(name, checkpoint, path)
    bridge, text, loaded_from = _boot(source, device_of(device), dtype, bos, checkpoint)
    loaded = adapted(bridge, name, folding, text)
    loaded.checkpoint = loaded_from
    found = source.path.resolve() if source.path is not None and name != BUNDLED else None
    loaded.recipe = partial(_load, name, dtype=dtype, folding=folding, bos=bos, checkpoint=checkpoint, path=found)
    return loaded


def _from_bridge(bridge: Any, bos: str | None) -> BridgeModel:
    if not hasattr(bridge, "cfg") or not hasattr(bridge, "original_model"):
        raise ModelError(
            f"a model is a name, a folder or a TransformerBridge; got {type(bridge).__name__}. "
            "Boot a HuggingFace model with TransformerBridge.boot_transformers(name, hf_model=...) first."
        )
    name, inner = str(getattr(bridge.cfg, "model_name", "bridge")), bridge.original_model
    refuse_unsupported(getattr(inner, "config", None), name)
    refuse_dispatched(inner, name)
    check_finite(inner, name)
    with LOADING, quiet(), offline_without_network():
        text = _text(bridge, name, bos)
    return adapted(bridge, name, text=text)


def _text(bridge: Any, name: str, bos: str | None, revision: str | None = None) -> TokenizerText | None:
    """The tokenizer, checked; None where there is none that serves, which is an error only when it is used."""
    serves = getattr(getattr(bridge, "tokenizer", None), "is_fast", False)
    tokenizer = own_tokenizer(bridge, name, revision) if serves else None
    return None if tokenizer is None and bos is None else text_of(bridge, name, bos or AUTO, tokenizer)


def _check_checkpoint(model: Model, checkpoint: Checkpoint) -> None:
    """Refuse to choose another checkpoint of a model that the user holds."""
    kept = getattr(model, "checkpoint", AT_HEAD).settings
    for name, value in checkpoint.settings.items():
        if value is not None and value != kept[name]:
            raise ConfigError(
                f"{name}={value!r} is asked for, but the given model is loaded already. Load it by its name: "
                f"load_model({model.id!r}, {name}={value!r})."
            )


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
    source: Source, device: torch.device, dtype: torch.dtype, bos: str | None, checkpoint: Checkpoint
) -> tuple[Any, TokenizerText | None, Checkpoint]:
    # HuggingFace fills weights with random numbers before it loads them, and sets torch's default dtype meanwhile.
    network = offline_without_network() if source.path is None else nullcontext()
    with LOADING, quiet(), no_remote_code(), torch.random.fork_rng(), network, scratch_folder() as scratch:
        try:
            bridge, loaded_from = _bridge_of(source, device, dtype, checkpoint, scratch)
        except CircuitLabError:
            raise
        except Exception as error:  # the loaders below raise whatever they like; the cause is kept
            if source.is_gguf:
                raise not_read(source.name, error) from error
            local = source.path is not None
            raise not_loaded(source.name, error, str(source.path or source.name), local=local) from error
        text = _text(bridge, source.name, bos, loaded_from.branch)
    bridge.eval()
    for weight in bridge.original_model.parameters():
        weight.requires_grad_(False)
    return bridge, text, loaded_from


def _bridge_of(
    source: Source, device: torch.device, dtype: torch.dtype, checkpoint: Checkpoint, scratch: Path
) -> tuple[Any, Checkpoint]:
    """The bridge; config and tokenizer of a GGUF file are written to the scratch folder first."""
    if source.path is None:
        return boot_from_hub(source.name, source.name, device, dtype, checkpoint)
    folder, load = source.path, load_checked
    if source.is_gguf:
        write_description(source.path, scratch, source.name)
        folder, load = scratch, partial(load_dequantized, source.path)
    return boot_huggingface(str(folder), source.name, device, dtype, load=load), AT_HEAD
