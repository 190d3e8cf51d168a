"""Did every weight of the model come from the checkpoint, and is every weight of the checkpoint in the model?

Where a file lacks tensors, transformers fills them with random numbers and lists them in a report. Here that report is
read, and a model with other weights than the file's is rejected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from circuitlab.errors import ModelError
from circuitlab.models.checkpoint_files import MERGE, shortened

# Prefixes of training programs to the names of a model that they wrap.
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "_forward_module.": "Lightning Fabric",
    "base_model.model.": "PEFT",
    "pretrained_model.": "TRL",
}
# Names of buffers that earlier versions of the architectures saved and later ones compute: masks, rotations, positions.
COMPUTED = re.compile(
    r"(^|\.)((self_)?(attn|attention|crossattention)\.bias|masked_bias|causal_mask|inv_freq|original_inv_freq|cos_cached"
    r"|sin_cached|position_ids|embed_positions|_float_tensor|_extra_state)$"
)


def load_checked(loader: Any, name: str, source: str, **options: Any) -> Any:
    """The HuggingFace model, all of its weights read from the checkpoint.

    Args:
        loader: The class of transformers that loads it.
        name: What the user calls it.
        source: Its folder or repository.
        options: Of `from_pretrained`.

    Returns:
        The model.

    Raises:
        ModelError: Tensors are missing, have another shape or are not finite, or the checkpoint has more of them
            than the model.
    """
    model, report = loader.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"model {name!r} is an adapter on a base model. Load {MERGE}.")
    check_loaded(model, report, name)
    check_finite(model, name)
    return model


def check_loaded(model: nn.Module, report: dict[str, Any], name: str) -> None:
    """Refuse a model whose weights are not those of its checkpoint.

    Args:
        model: The HuggingFace model, as loaded.
        report: What `from_pretrained(output_loading_info=True)` returns beside it.
        name: What the user calls the model.

    Raises:
        ModelError: They are not; the message has the number of tensors, which ones, and what the file has instead.
    """
    # Buffers are the architecture's own, and of tied weights one is enough.
    weights = dict(model.named_parameters())
    missing = sorted((key for key in report["missing_keys"] if key in weights), key=_natural)
    unused = sorted((key for key in report["unexpected_keys"] if not COMPUTED.search(key)), key=_natural)
    total = len(weights)
    if missing:
        raise ModelError(
            f"model {name!r}: {len(missing)} of {_tensors(total)} {'are' if len(missing) > 1 else 'is'} missing from "
            f"its weights, and would be random: {shortened(missing)}. {_in_their_place(model, missing, unused)}"
        )
    if mismatched := sorted(report["mismatched_keys"], key=lambda each: _natural(each[0])):
        shapes = (f"{key} {tuple(ours)}, not {tuple(theirs)}" for key, ours, theirs in mismatched)
        raise ModelError(
            f"model {name!r}: {len(mismatched)} of {total} tensors {'have' if len(mismatched) > 1 else 'has'} another "
            f"shape than config.json says: {shortened(shapes)}. Save both together: model.save_pretrained(folder)."
        )
    if foreign := [key for key in unused if _belongs_to(model, key)]:
        raise ModelError(
            f"model {name!r}: its weights have {_tensors(len(foreign))} more than the {total} of a "
            f"{type(model).__name__} with this config.json: {shortened(foreign)}."
            f"{_layers(model, {*model.state_dict(), *foreign})} That is another model: use the config.json that was "
            "saved with the weights."
        )


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        ModelError: There are some; the message has their number and names.
    """
    weights = {key.replace("._original_component", ""): weight for key, weight in model.named_parameters()}
    wrong = [key for key, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    if wrong:
        dtype = weights[wrong[0]].dtype
        narrow = dtype == torch.float16
        fix = f" They may be too large for {dtype}: try float32." if narrow else " The checkpoint is damaged."
        raise ModelError(
            f"model {name!r}: NaN or infinite values are in {len(wrong)} of {len(weights)} tensors of its weights: "
            f"{shortened(wrong)}.{fix}"
        )


def _in_their_place(model: nn.Module, missing: list[str], unused: list[str]) -> str:
    """What the file has that the model has no name for, and what to do."""
    if any("lora_" in key or ".base_layer." in key for key in unused):
        return f"The file has an adapter that is not merged ({shortened(unused, 1)}). Load {MERGE}."
    if prefix := _wrapper(model, missing, unused):
        programs = [program for piece, program in WRAPPERS.items() if f".{piece}" in f".{prefix}"]
        by = f" ({', '.join(programs)})" if programs else ""
        return (
            f"The file has them with {prefix!r}{by} in their names. "
            f"Save the model inside of the wrapper, or take {prefix!r} out of the names."
        )
    head = getattr(model, "get_output_embeddings", lambda: None)()
    at_head = next((f"{key}." for key, module in model.named_modules() if module is head), None)
    fix = "Save the whole model again: model.save_pretrained(folder)."
    if at_head and all(key.startswith(at_head) for key in missing):
        fix = "It was saved without its unembedding: save the model with its language-modelling head (...ForCausalLM)."
    place = "their place" if len(missing) > 1 else "its place"
    has = f"{shortened(unused, 2)} in {place}" if unused else f"nothing in {place}"
    there = {key for key in model.state_dict() if key not in missing}
    return f"The file has {has}.{_layers(model, there | set(unused))} {fix}"


def _wrapper(model: nn.Module, missing: list[str], unused: list[str]) -> str | None:
    """A piece that is in the file's names and not in the model's."""
    base = f"{getattr(model, 'base_model_prefix', '')}."
    names = {key: key for key in missing} | {key.removeprefix(base): key for key in missing}
    pieces: Counter[str] = Counter()
    for key in unused:
        words = key.split(".")
        for first in range(len(words)):
            for stop in range(first + 1, min(first + 4, len(words))):
                if ".".join(words[:first] + words[stop:]) in names:
                    pieces[".".join(words[first:stop]) + "."] += 1
    if not pieces:
        return None
    prefix, count = max(pieces.items(), key=lambda item: (item[0] in WRAPPERS, item[1], -len(item[0])))
    return prefix if 2 * count >= len(missing) else None


def _belongs_to(model: nn.Module, key: str) -> bool:
    """Whether a tensor of the file would be inside of one of the model's own modules, and not of a head beside them."""
    body = getattr(model, getattr(model, "base_model_prefix", ""), None)
    roots = (model, body) if isinstance(body, nn.Module) else (model,)
    return any(key.split(".")[0] in dict(root.named_children()) for root in roots)


def _layers(model: nn.Module, keys: Iterable[str]) -> str:
    """A sentence on the number of layers, with a space before it, if the file has another one than the config."""
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        return ""
    name, stack = max(stacks, key=lambda each: (len(each[1]), -len(each[0])))
    inside = re.compile(rf"(^|\.){re.escape(name.rpartition('.')[2])}\.(\d+)\.")
    there = len({match[2] for key in keys if (match := inside.search(key))})
    return "" if there in (0, len(stack)) else f" Layers: {len(stack)} by config.json, {there} in the weights."


def _tensors(count: int) -> str:
    return f"{count} tensor{'' if count == 1 else 's'}"


def _natural(key: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 2."""
    return [(int(word) if word.isdigit() else -1, word) for word in key.split(".")]
