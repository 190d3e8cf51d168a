"""Boot a checkpoint in HuggingFace's format from a folder or the hub, or state in one sentence why it does not load."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any

import torch

from circuitlab.errors import ConfigError, ModelError, UnsupportedModelError
from circuitlab.models.checkpoint_files import ADAPTER_FILE, MERGE, PICKLED, broken_json, checked_folder
from circuitlab.models.loaded_weights import check_finite, load_checked
from circuitlab.models.model_kinds import SUPPORTED, described, refuse_unsupported
from circuitlab.models.revisions import AT_HEAD, Checkpoint, commit_of
from circuitlab.models.surgery import attributes

# In messages of loaders where there is no network, in small letters.
NO_NETWORK = re.compile("connect|resolve|network|offline|timed out|proxy|ssl|unreachable|couldn't find them")
# What code raises that meets a config it was not written for; their texts are about that code, not about the model.
CONFIG_ERRORS = (AttributeError, KeyError, IndexError, TypeError, AssertionError)


def no_remote_code() -> AbstractContextManager[None]:
    """Refuse checkpoints that bring Python code; transformers would prompt on the terminal.

    Returns:
        A context in which such checkpoints raise an error.
    """
    from transformers import dynamic_module_utils

    return attributes(dynamic_module_utils, TIME_OUT_REMOTE_CODE=0)


def boot_huggingface(
    source: str,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    load: Callable[..., Any] = load_checked,
) -> Any:
    """The booted bridge, every weight of it read from the checkpoint.

    Args:
        source: A folder, or a repository on the hub.
        name: What the user calls it.
        device: Where the weights go.
        dtype: What they are cast to.
        revision: Branch, tag or commit of the repository.
        load: Loads the HuggingFace model, as `load_checked` does.

    Returns:
        A `TransformerBridge`.

    Raises:
        UnsupportedModelError: The model is of a kind that is not supported.
        ModelError: Its config is not one that transformers knows, or its weights are not the model's.
        Exception: Whatever TransformerLens, transformers and the hub's client raise.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import transformers as loading

    options: dict[str, Any] = {"device": str(device), "dtype": dtype, "revision": revision}
    config = read_config(source, name, revision)
    if config is not None:
        refuse_unsupported(config, name)
        options["model_class"] = SimpleNamespace(from_pretrained=partial(load, loader_of(config, name), name))
    # TransformerLens fetches a processor of images or sound for models that take them, and installs packages for it.
    with attributes(loading.source, load_modality_processor=lambda *_args: None):
        return TransformerBridge.boot_transformers(source, **options)


def boot_from_hub(
    source: str, name: str, device: torch.device, dtype: torch.dtype, checkpoint: Checkpoint = AT_HEAD
) -> tuple[Any, Checkpoint]:
    """Boot a bridge for any name that TransformerLens knows, or any HuggingFace model it can wrap.

    `solu-1l`, `attn-only-1l` and `gelu-2l` are short for repositories of toy models without a HuggingFace architecture,
    which older versions of TransformerLens saved: their weights are `*.pth` files by its old names, and go into one of
    its own models.

    Args:
        source: The name on the hub, or one that is short for it.
        name: What the user calls the model.
        device: Where the weights go.
        dtype: What they are cast to.
        checkpoint: Which one of the repository.

    Returns:
        A `TransformerBridge`, and the checkpoint with its commit.

    Raises:
        ModelError: It is not supported, or its weights are not complete.
        ConfigError: The repository has no such checkpoint.
        Exception: Whatever TransformerLens, transformers and the hub's client raise.
    """
    from transformer_lens.model_bridge.sources.tl_legacy import boot

    official, is_toy = repository_of(source)
    if not is_toy:
        branch = checkpoint.branch_of(official, name)
        bridge = boot_huggingface(official, name, device, dtype, branch)
        return bridge, replace(checkpoint, branch=branch, commit=commit_of(official, branch))
    _check_toy_checkpoint(checkpoint, official, name)
    with _files_listed_from_cache():
        bridge = boot(official, checkpoint_index=checkpoint.index, device=str(device), dtype=dtype)
    check_finite(bridge.original_model, name)
    return bridge, replace(checkpoint, commit=commit_of(official, None))


def repository_of(source: str) -> tuple[str, bool]:
    """The repository of a name on the hub.

    Args:
        source: The name of a repository, or one that is short for it.

    Returns:
        The repository, and whether it is one of a toy model of TransformerLens.
    """
    from transformer_lens.model_bridge.sources.tl_legacy import TL_LEGACY_PREFIXES
    from transformer_lens.tools.model_registry.registry_io import resolve_model_alias

    # TransformerLens resolves short names too, but warns through the root logger, which then gets a handler.
    official = resolve_model_alias(source) or source
    return official, official.startswith(TL_LEGACY_PREFIXES)


def check_on_hub(name: str, checkpoint: Checkpoint) -> None:
    """Check that a name on the hub can be loaded, as far as its config shows.

    Args:
        name: The name.
        checkpoint: Which one of its repository.

    Raises:
        CircuitLabError: It is of no kind that is supported, or has no such checkpoint.
        Exception: Whatever the hub's client raises, where there is no such repository or no network.
    """
    from huggingface_hub import hf_hub_download

    official, is_toy = repository_of(name)
    if is_toy:
        hf_hub_download(official, "config.json")
        _check_toy_checkpoint(checkpoint, official, name)
        return
    revision = checkpoint.branch_of(official, name)
    config = read_config(official, name, revision)
    if config is None:
        hf_hub_download(official, "config.json", revision=revision)
    else:
        refuse_unsupported(config, name)
        loader_of(config, name)


def _check_toy_checkpoint(checkpoint: Checkpoint, repository: str, name: str) -> None:
    from transformer_lens.tools.model_registry.checkpoints import get_checkpoint_labels

    if checkpoint.revision is not None:
        raise ConfigError(
            f"revision={checkpoint.revision!r} cannot be chosen of {name!r}, a toy model of TransformerLens. Its "
            "training checkpoints have numbers: checkpoint_index= (--checkpoint-index)."
        )
    if checkpoint.index is None:
        return
    try:
        with _files_listed_from_cache():
            labels = get_checkpoint_labels(repository)[0]
    except ValueError:
        raise ConfigError(f"checkpoint_index: model {name!r} has its final weights only. Leave it out.") from None
    checkpoint.label(labels, name)


@contextmanager
def _files_listed_from_cache() -> Iterator[None]:
    """Offline, list a repository's files from the cache: TransformerLens queries the hub even where all is cached."""
    from huggingface_hub import HfApi, constants, snapshot_download

    def cached(_api: HfApi, repo_id: str, **_options: Any) -> list[str]:
        folder = Path(snapshot_download(repo_id, local_files_only=True))
        found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        if not any(path.endswith(".pth") for path in found):
            raise FileNotFoundError(f"the weights of {repo_id} are not in the local cache, and the hub is offline")
        return found

    with attributes(HfApi, **({"list_repo_files": cached} if constants.HF_HUB_OFFLINE else {})):
        yield


def not_loaded(name: str, error: Exception, source: str, *, local: bool) -> ModelError:
    """The error of a loader, in a sentence.

    Args:
        name: What the user calls the model.
        error: What the loader raised.
        source: Its folder, or its repository on the hub.
        local: It is a folder.

    Returns:
        The error to raise, with what is wrong and what to do.
    """
    chain, seen = error, ""
    while chain is not None:
        seen += f"{type(chain).__name__}: {chain}\n"
        chain = chain.__cause__ or chain.__context__
    what = f"model folder {name!r}" if local else f"model {name!r}"
    if not local and NO_NETWORK.search(seen.lower()):
        return ModelError(
            f"model {name!r} is not in the local cache and the hub cannot be reached. Check the name and the "
            f"network, or give a local checkpoint folder, or use 'bundled'."
        )
    folder = Path(source) if local else downloaded(source)
    if folder is not None and not local:
        try:
            checked_folder(folder, name)
        except ModelError as better:
            return better
    if folder is not None and (broken := broken_json(folder)):
        return ModelError(f"{what} cannot be loaded: {broken} is not valid JSON. Copy it again.")
    if isinstance(error, CONFIG_ERRORS):
        return UnsupportedModelError(
            f"{what} cannot be loaded: transformers and TransformerLens make no model of its files. {SUPPORTED}"
        )
    if isinstance(error, UnpicklingError) or "Weights only load failed" in seen:
        return ModelError(f"{what} cannot be loaded: its weight file {PICKLED}.")
    if "can't allocate memory" in seen or "out of memory" in seen:
        return ModelError(f"{what} cannot be loaded: its weights need more memory than there is.")
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
    fix = "" if local else " Give a name that TransformerLens loads, a checkpoint folder, or 'bundled'."
    return ModelError(f"{what} cannot be loaded: {first[:200].rstrip('.')}.{fix}")


def read_config(source: str, name: str, revision: str | None = None) -> Any:
    """The config of a checkpoint.

    Args:
        source: A folder, or a repository on the hub.
        name: What the user calls it.
        revision: Branch, tag or commit of the repository.

    Returns:
        The config; None where it cannot be fetched, which the loader explains.

    Raises:
        UnsupportedModelError: The model needs code of its own, or is of no kind that is supported.
        ModelError: transformers does not know the type of model, or a value of the config does not fit it.
    """
    import transformers
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, revision=revision)
    except Exception as error:  # one of many, some of them about a missing network
        try:
            raw, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        except Exception:
            _refuse_adapter(source, name)
            return None
        refuse_unsupported(raw, name)
        model_type = raw.get("model_type")
        if "auto_map" in raw:
            raise UnsupportedModelError(
                f"model {name!r} ({described(raw)}) cannot be loaded: it needs Python code from its own repository "
                f"(auto_map in config.json), which is not run. {SUPPORTED}"
            ) from error
        if not isinstance(model_type, str):
            why = "its config.json has no model_type, which says what kind of model it is"
        elif model_type not in CONFIG_MAPPING:
            known_to = f"transformers {transformers.__version__}"
            why = f"its config.json has model_type {model_type!r}, which {known_to} does not know"
        else:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            why = f"its config.json does not fit model type {model_type!r}"
            if lines and not isinstance(error, CONFIG_ERRORS):
                why += f" ({re.sub(r'^[a-zA-Z]+Error: ', '', lines[-1])[:200]})"
        raise ModelError(f"model {name!r} cannot be loaded: {why}.") from error


def _refuse_adapter(source: str, name: str) -> None:
    """Refuse a repository that has an adapter and no model; one that cannot be reached passes."""
    from transformers.utils.hub import cached_file

    quietly = ("gated_repo", "missing_entries", "connection_errors")
    try:
        found = cached_file(source, ADAPTER_FILE, **{f"_raise_exceptions_for_{what}": False for what in quietly})
    except Exception:  # no such repository, or no such name for one: the loader's error explains it
        return
    if found is not None:
        raise ModelError(f"model {name!r} is an adapter (LoRA or the like) without its model. Load {MERGE}.")


def downloaded(source: str) -> Path | None:
    """The folder of the hub's cache that has the files of a repository, if its config is there.

    Returns:
        The folder, or None.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(source, "config.json")
    except Exception:  # no name of a repository
        return None
    return Path(found).parent if isinstance(found, str) else None


def loader_of(config: Any, name: str) -> Any:
    """The class of transformers that loads a model of this architecture.

    Args:
        config: Its config.
        name: What the user calls the model.

    Returns:
        The class.

    Raises:
        UnsupportedModelError: TransformerLens does not wrap it.
    """
    from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
    from transformer_lens.model_bridge.sources.transformers.helpers import get_hf_model_class_for_architecture

    try:
        architecture = determine_architecture_from_hf_config(config)
    except ValueError as error:
        raise UnsupportedModelError(
            f"model {name!r} ({described(config)}) is not supported: TransformerLens does not wrap this architecture. "
            f"{SUPPORTED}"
        ) from error
    return get_hf_model_class_for_architecture(architecture)
