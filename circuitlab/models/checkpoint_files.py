"""What a checkpoint folder must hold: a config, a tokenizer, and weight files that are whole."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitlab.errors import CircuitLabError, ModelError
from circuitlab.files import parse_json, read_text

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# In the order in which transformers looks for them; an index names the files that the tensors are divided over.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "what peft's model.merge_and_unload().save_pretrained(folder) writes"
# Formats of other programs, by how the file's name ends, and what to do about each.
FOREIGN_FORMATS = {
    ".distcp": "a distributed checkpoint (*.distcp): merge its parts and save them with model.save_pretrained(folder)",
    ".gguf": "a GGUF file: give its path instead of the folder's",
    ".h5": "TensorFlow weights: load them there and save them for PyTorch",
    ".msgpack": "Flax weights: load them there and save them for PyTorch",
    ".onnx": "an ONNX graph: use the checkpoint that it was exported from",
    ".pth": "weights in their author's own format: convert them to HuggingFace's",
    ".pt": "weights in their author's own format: save them with model.save_pretrained(folder)",
    ".ckpt": "a training checkpoint: load it and save its model with model.save_pretrained(folder)",
}
SMALLEST_HEADER = 8  # bytes that a safetensors file begins with: the length of the header that follows them
PICKLED = (
    "is damaged, or holds more than tensors, which could run code. Save safetensors: model.save_pretrained(folder)"
)
SHOWN = 3  # names in a message, the rest is counted
LONGEST = 52  # letters of a name in a message


def checked_folder(folder: Path, name: str) -> Path:
    """The folder, if it has every file that loading needs and none of them is damaged.

    Args:
        folder: A checkpoint as `save_pretrained` writes it.
        name: What the user calls it.

    Returns:
        The folder.

    Raises:
        ModelError: It is no folder, lacks a file, holds an adapter without its model, or has a weight file that is
            empty, cut short, or something else than weights.
    """
    try:
        _check(folder)
    except ModelError as error:
        raise ModelError(f"model folder {name!r}{error}") from error.__cause__
    return folder


def _check(folder: Path) -> None:
    """Raise what is wrong with a folder, as what follows its name in a message."""
    if not folder.is_dir():
        missing = "is a link to nothing" if folder.is_symlink() else "does not exist"
        what = "is a file, not a folder" if folder.exists() else missing
        raise ModelError(f" {what}. Give a HuggingFace checkpoint folder, a hub name, or 'bundled'.")
    if (folder / ADAPTER_FILE).is_file():
        raise ModelError(
            f" holds an adapter ({ADAPTER_FILE}, LoRA or the like), which is not a model by itself. Run: circuitlab "
            f"models convert {folder.name} MERGED --base BASE, and load MERGED (LoRA); or load {MERGE}."
        )
    config = _config(folder)
    tokenizers = [folder / file for file in TOKENIZER_FILES if (folder / file).is_file()]
    if not tokenizers:
        if (folder / "tokenizer_config.json").is_file():
            raise ModelError(
                f" has a tokenizer_config.json, but none of {', '.join(TOKENIZER_FILES)}. Tokenizers without a fast "
                "version (tokenizer.json) are not supported: they do not report where their tokens are in the text."
            )
        raise ModelError(
            f" has no tokenizer ({', '.join(TOKENIZER_FILES)}). Save it there too: tokenizer.save_pretrained(folder)."
        )
    for path in tokenizers:
        _refuse(path, _not_a_file_of_its_kind(_beginning(path)))
    for path in _weight_files(folder, config):
        _refuse(path, damage_of(path))


def _refuse(path: Path, wrong: str | None) -> None:
    if wrong:
        raise ModelError(f" cannot be loaded: {path.name} {wrong}.")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        inside = sorted(str(found.parent.relative_to(folder)) for found in folder.glob("*/config.json"))
        hint = f" It has folders with one: {shortened(inside)}. Give one of them." if inside else ""
        raise ModelError(f" has no config.json; it is no HuggingFace checkpoint (save_pretrained).{hint}")
    _refuse(path, _not_a_file_of_its_kind(_beginning(path)))
    return _json_object(path)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_text(path, "file"), path.name, "Copy it again.")
    except CircuitLabError as error:
        raise ModelError(f" cannot be loaded: {error}") from error
    _refuse(path, None if isinstance(found, dict) else "holds no JSON object")
    return found


def broken_json(folder: Path) -> str | None:
    """The name of the first JSON file that is none: messages of loaders do not name the file.

    Returns:
        Its name; None where all can be read.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return path.name
    return None


def _weight_files(folder: Path, config: dict[str, Any]) -> list[Path]:
    """The files that transformers will read.

    Raises:
        ModelError: There are none, or one that the index names is not there.
    """
    if any(folder.glob("*.distcp")):  # transformers prefers these to whatever else is there
        raise ModelError(f" has no weights but {FOREIGN_FORMATS['.distcp']}.")
    named = config.get("transformers_weights")
    names = ([named] if isinstance(named, str) else []) + list(WEIGHT_FILES)
    first = next((file for file in names if (folder / file).is_file()), None)
    if first is None:
        for file in names:
            if (folder / file).is_symlink() or (folder / file).exists():
                raise ModelError(f": {file} is a broken link, or no file. Copy the weights again.")
        raise ModelError(f" has no weights {_instead(folder)}")
    if not first.endswith(".json"):
        return [folder / first]
    weight_map = _json_object(folder / first).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ModelError(f": {first} has no weight_map, which says which file has which tensor.")
    files = sorted(set(weight_map.values()))
    if gone := [file for file in files if not (folder / file).is_file()]:
        tensors = sum(file in gone for file in weight_map.values())
        raise ModelError(
            f": {len(gone)} of the {len(files)} weight files that {first} names are not there "
            f"({tensors} of {len(weight_map)} tensors): {shortened(gone)}. Copy or download them too."
        )
    return [folder / file for file in files]


def _instead(folder: Path) -> str:
    """What the folder has in the place of weights, and what to do about it."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    if shards := [file for file in found if "-of-" in file]:
        return f"index: it has {shortened(shards)}, but no model.safetensors.index.json. Copy that file too."
    if found:
        return f"under the names that transformers reads ({', '.join(WEIGHT_FILES[::2])}): it has {shortened(found)}."
    for path in sorted(folder.iterdir()):
        if path.suffix in FOREIGN_FORMATS:
            return f"that transformers reads, but {path.name}, {FOREIGN_FORMATS[path.suffix]}."
    return "(*.safetensors). Save them: model.save_pretrained(folder)."


def damage_of(path: Path) -> str | None:
    """What is wrong with a weight file.

    Returns:
        The end of a sentence; None where nothing is wrong.
    """
    beginning, size = _beginning(path), path.stat().st_size
    if wrong := _not_a_file_of_its_kind(beginning):
        return wrong
    if beginning.isascii() and (text := beginning.decode().strip()).isprintable():
        return f"is text and no weights; it begins with {text[:30]!r}. Download it again"
    if path.suffix == ".safetensors":
        return _damage_of_safetensors(path, size)
    if beginning.startswith(b"PK"):
        whole = zipfile.is_zipfile(path)
        return _damage_of_bin(path) if whole else f"is cut short or damaged ({size:,} bytes). Copy it again"
    whole = beginning.startswith(b"\x80")
    return _damage_of_bin(path) if whole else "is not a file that torch.save wrote. Copy it again"


def _damage_of_bin(path: Path) -> str | None:
    try:
        found = torch.load(path, map_location="meta", weights_only=True)  # names and shapes only
    except Exception:  # of many kinds
        return PICKLED
    tensors = isinstance(found, dict) and {key: value for key, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        holds = f"{shortened(map(str, found))} and no tensors" if isinstance(found, dict) and found else "no tensors"
        return f"holds {holds} by name. Save it with model.save_pretrained(folder)"
    return _no_numbers({key: value.is_floating_point() for key, value in tensors.items()})


def _no_numbers(is_real: dict[str, bool]) -> str | None:
    """Integers are cast like any other number, without the scales that make weights of them."""
    wrong = [key for key, real in is_real.items() if key.endswith(".weight") and not real]
    if not wrong:
        return None
    return f"holds weights that are no floating-point numbers: {shortened(wrong)}. Dequantize them and save them again"


def _damage_of_safetensors(path: Path, size: int) -> str | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(SMALLEST_HEADER), "little")
        if size < SMALLEST_HEADER + length:
            return f"is cut short or damaged: it has {size:,} bytes, fewer than its header. Copy it again"
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
            is_real = {key: entry["dtype"].startswith(("F", "BF")) for key, entry in header.items()}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "is damaged: its header cannot be read. Copy it again"
    due = SMALLEST_HEADER + length + max(ends, default=0)
    if size != due:
        what = "is cut short" if size < due else "is damaged"
        return f"{what}: it has {size:,} bytes, and its header describes {due:,}. Copy it again"
    return _no_numbers(is_real) if ends else "holds no tensors"


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(200)
    except OSError as error:
        raise ModelError(f": {path.name} cannot be read: {error.strerror}.") from None


def _not_a_file_of_its_kind(beginning: bytes) -> str | None:
    """What a file is where a download or checkout went wrong, as the end of a sentence."""
    if not beginning:
        return "is empty. Copy it again"
    if beginning.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer and not the file itself. Run: git lfs pull"
    if beginning.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page and not the file itself. Download it again"
    return None


def shortened(names: Iterable[str], shown: int = SHOWN) -> str:
    """The first few names, each cut to a readable length, and how many more there are.

    Returns:
        The names, separated by commas.
    """
    every = list(names)
    first = [each if len(each) <= LONGEST else f"{each[:24]}...{each[-24:]}" for each in every[:shown]]
    return ", ".join(first) + (f" and {len(every) - shown} more" if len(every) > shown else "")
