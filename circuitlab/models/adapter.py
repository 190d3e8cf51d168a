"""LoRA adapters: merged into their base model, W + scale * B A, without the package peft.

The weights of an adapter are, for a module M, `base_model.model.M.lora_A.weight` [rank, in] and `...lora_B.weight`
[out, rank]; of an embedding `lora_embedding_A` [rank, words] and `lora_embedding_B` [d_model, rank]. The scale is
alpha / rank, or alpha / sqrt(rank) with `use_rslora`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitlab.arguments import checked
from circuitlab.data.network import offline_without_network
from circuitlab.errors import CircuitLabError, ModelError
from circuitlab.files import read_json
from circuitlab.models.checkpoint_files import ADAPTER_FILE, ADAPTER_WEIGHTS, MERGE, damage_of, shortened
from circuitlab.models.conversion import Conversion, converted
from circuitlab.models.gguf import load_dequantized, write_description
from circuitlab.models.huggingface import not_loaded, read_config, repository_of
from circuitlab.models.loaded_weights import load_checked
from circuitlab.models.model_kinds import refuse_unsupported
from circuitlab.models.source import Source, find_source
from circuitlab.outputs.paths import at_home

PREFIX = "base_model.model."
# Of embeddings, peft saves the weight that is changed as well.
BASE = ".base_layer.weight"
PIECE = re.compile(r"^(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<piece>[AB])(\.default)?(\.weight)?$")
# Settings of an adapter under which the merged weight is another formula, or is not the only change.
OTHER_FORMULAS = (
    "use_dora",
    "modules_to_save",
    "layer_replication",
    "lora_bias",
    "alora_invocation_tokens",
    "use_qalora",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update:
    """The low-rank change of one module.

    Attributes:
        a: The first matrix.
        b: The second matrix.
        scale: What their product is multiplied by.
        of_embedding: Whether the module is an embedding, whose weight has one row a word.
        base: The weight that is changed, where the adapter has it; else that of the base model.
    """

    a: Float[Tensor, "rank in_"]
    b: Float[Tensor, "out rank"]
    scale: float
    of_embedding: bool
    base: Float[Tensor, "_ _"] | None = None

    def added(self, *, transposed: bool) -> Float[Tensor, "_ _"]:
        """What is added to the weight, in float32.

        Args:
            transposed: Whether the weight has its inputs in rows, as in a Conv1D of GPT-2.

        Returns:
            The change.
        """
        change = self.scale * (self.b.float() @ self.a.float())
        return change.T if transposed or self.of_embedding else change


def read_updates(folder: Path, name: str) -> dict[str, Update]:
    """The changes in an adapter folder, by the name of the module.

    Args:
        folder: The folder.
        name: What the user calls it.

    Returns:
        One change for each module.

    Raises:
        ModelError: The adapter is none of LoRA, has settings under which the formula is another, or is damaged.
    """
    config = read_json(folder / ADAPTER_FILE, "adapter")
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError(f"adapter {name!r} is of type {kind!r}; only LORA is merged here. Load {MERGE}.")
    others = [key for key in OTHER_FORMULAS if config.get(key)]
    if config.get("bias", "none") != "none":
        others.append("bias")
    if others:
        raise ModelError(f"adapter {name!r} has {shortened(others)}, which are not merged here. Load {MERGE}.")
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise ModelError(f"adapter {name!r} has no {ADAPTER_WEIGHTS}. Save it as safetensors: save_pretrained(folder).")
    if wrong := damage_of(path):
        raise ModelError(f"adapter {name!r} cannot be loaded: {path.name} {wrong}.")
    return _updates(_tensors(path), config, name)


def merge(model: nn.Module, updates: Mapping[str, Update], name: str) -> None:
    """Add the changes of an adapter to the weights of its base model, in place.

    Args:
        model: The HuggingFace model.
        updates: By module.
        name: What the user calls the adapter.

    Raises:
        ModelError: The model has no such module, or one of another shape.
    """
    from transformers.pytorch_utils import Conv1D

    for key, update in updates.items():
        try:
            module = model.get_submodule(key)
        except AttributeError:
            raise ModelError(
                f"adapter {name!r} changes {key!r}, which the base model does not have. Give its own: --base NAME."
            ) from None
        weight = module.weight
        change = update.added(transposed=isinstance(module, Conv1D))
        shapes = {change.shape} if update.base is None else {change.shape, update.base.shape}
        if not isinstance(weight, Tensor) or shapes != {weight.shape}:
            shape = tuple(weight.shape) if isinstance(weight, Tensor) else None
            raise ModelError(
                f"adapter {name!r} changes {key!r} by a matrix {tuple(change.shape)}, and the base model has {shape}. "
                "Give its own: --base NAME."
            )
        with torch.no_grad():
            before = weight if update.base is None else update.base
            weight.copy_((before.float() + change).to(weight.dtype))


@checked
def merge_adapter(
    adapter: str | Path, out: str | Path, *, base: str | Path | None = None, force: bool = False
) -> Conversion:
    """Write the model that a LoRA adapter makes of its base model, in float32, whole or not at all.

    Args:
        adapter: The adapter folder (`adapter_config.json`, `adapter_model.safetensors`).
        out: The folder to write.
        base: The base model: a folder, a GGUF file or a name; by default the one that the adapter names.
        force: Replace a folder that a conversion wrote.

    Returns:
        What was written.

    Raises:
        ModelError: The adapter or its base model cannot be loaded, or they do not fit.
        OutputExistsError: The folder exists.

    Example:
        >>> from circuitlab.models.adapter import merge_adapter
        >>> merge_adapter("my-adapter", "merged", base="gpt2").n_parameters  # doctest: +SKIP
        124439808
    """
    folder, name = at_home(adapter), str(adapter)
    if not (folder / ADAPTER_FILE).is_file():
        raise ModelError(f"{name!r} has no {ADAPTER_FILE}. Give the folder of a LoRA adapter, or a GGUF file (.gguf).")
    updates = read_updates(folder, name)
    named = base or read_json(folder / ADAPTER_FILE, "adapter").get("base_model_name_or_path")
    if not isinstance(named, str | Path) or not str(named):
        raise ModelError(f"adapter {name!r} does not name its base model. Give it: --base NAME.")
    source = find_source(str(named))

    def write(target: Path) -> Any:
        with offline_without_network():
            model = _base_model(source, target)
        merge(model, updates, name)
        model.save_pretrained(target)
        return model

    return converted(folder / ADAPTER_WEIGHTS, out, force=force, write=write)


def _base_model(source: Source, target: Path) -> Any:
    """The base model in float32; its tokenizer is written to the target."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = source.path is not None
    try:
        if source.is_gguf:
            assert source.path is not None
            config = write_description(source.path, target, source.name)
            return load_dequantized(
                source.path, AutoModelForCausalLM, source.name, "", config=config, dtype=torch.float32
            )
        where = str(source.path or repository_of(source.name)[0])
        refuse_unsupported(read_config(where, source.name), source.name)
        AutoTokenizer.from_pretrained(where).save_pretrained(target)
        return load_checked(AutoModelForCausalLM, source.name, where, dtype=torch.float32)
    except CircuitLabError:
        raise
    except Exception as error:  # the loaders raise whatever they like; the cause is kept
        raise not_loaded(source.name, error, str(source.path or source.name), local=local) from error


def _updates(tensors: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> dict[str, Update]:
    pieces: dict[str, dict[str, Tensor]] = {}
    embeddings, strange = set[str](), []
    bases = {key[: -len(BASE)].removeprefix(PREFIX): value for key, value in tensors.items() if key.endswith(BASE)}
    for key, tensor in tensors.items():
        if key.endswith(BASE):
            continue
        match = PIECE.match(key.removeprefix(PREFIX))
        if match is None or tensor.ndim != 2:
            strange.append(key)
            continue
        pieces.setdefault(match["module"], {})[match["piece"]] = tensor
        if match["kind"]:
            embeddings.add(match["module"])
    strange += [module + BASE for module in bases if module not in pieces]
    strange += [module for module, found in pieces.items() if len(found) != 2]
    if strange or not pieces:
        what = f"tensors that are not pairs of LoRA matrices: {shortened(strange)}" if strange else "no LoRA matrices"
        raise ModelError(f"adapter {name!r} has {what}. Load {MERGE}.")
    return {
        module: Update(
            a=found["A"], b=found["B"], scale=_scale(config, module, found["A"].shape[0], name),
            of_embedding=module in embeddings, base=bases.get(module),
        )
        for module, found in pieces.items()
    }  # fmt: skip


def _scale(config: Mapping[str, Any], module: str, rank: int, name: str) -> float:
    """Alpha / rank, both of the module where the adapter has patterns of modules."""
    alpha = _of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    due = _of_pattern(config.get("rank_pattern"), module, config.get("r"))
    if not isinstance(alpha, int | float) or due != rank:
        raise ModelError(
            f"adapter {name!r}: module {module!r} has rank {rank}, and {ADAPTER_FILE} says rank {due!r} and alpha "
            f"{alpha!r}. Use the {ADAPTER_FILE} that was saved with the weights."
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(patterns: Any, module: str, usual: Any) -> Any:
    """The value of the first pattern that matches the end of the module's name, as in peft."""
    with suppress(re.error):  # one that is no pattern matches nothing, and the rank is compared
        return next((v for p, v in (patterns or {}).items() if re.match(rf"(.*\.)?({p})$", module)), usual)
    return usual


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
