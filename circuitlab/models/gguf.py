"""GGUF files: config, tokenizer and dequantized weights, as transformers reads them.

`load_model("file.gguf")` and a folder that `convert_gguf` wrote give the same model.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from circuitlab.errors import CircuitLabError, ModelError
from circuitlab.models.conversion import Conversion, converted
from circuitlab.models.loaded_weights import load_checked
from circuitlab.models.model_kinds import refuse_unsupported
from circuitlab.models.surgery import attributes
from circuitlab.outputs.paths import at_home

SUFFIX, MAGIC = ".gguf", b"GGUF"
PACKAGE = "gguf"


def is_gguf(source: str | Path) -> bool:
    """Whether a model is named by the path of a GGUF file.

    Returns:
        Whether it is.
    """
    return Path(source).suffix.lower() == SUFFIX


def checked_file(path: Path, name: str) -> Path:
    """The file, if it is a GGUF file and can be read here.

    Args:
        path: The file.
        name: What the user calls it.

    Returns:
        The file.

    Raises:
        ModelError: It does not exist, is another kind of file, or the package `gguf` is missing.
    """
    from transformers.utils.import_utils import is_gguf_available

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(f"GGUF file {name!r} {what}. Give the path of a .gguf file.")
    with path.open("rb") as file:
        beginning = file.read(len(MAGIC))
    if beginning != MAGIC:
        raise ModelError(
            f"GGUF file {name!r} is no GGUF file: it begins with {beginning!r}, not {MAGIC!r}. Download it again."
        )
    if not is_gguf_available():
        raise ModelError(
            f"GGUF file {name!r} cannot be read without the package {PACKAGE!r}. Run: pip install {PACKAGE}"
        )
    return path


def write_description(path: Path, folder: Path, name: str) -> Any:
    """Write config and tokenizer of a GGUF file as a checkpoint in HuggingFace's format has them.

    Args:
        path: The file.
        folder: Where they go.
        name: What the user calls the file.

    Returns:
        The config.

    Raises:
        UnsupportedModelError: The model is of a kind that is not supported.
        Exception: Whatever transformers raises.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    _forget_quantization(config)
    if not config.architectures and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    refuse_unsupported(config, name)
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    return config


def load_dequantized(path: Path, loader: Any, name: str, _source: str, **options: Any) -> Any:
    """The HuggingFace model of a GGUF file with dense weights, all of them read from the file.

    Args:
        path: The file.
        loader: The class of transformers that loads it.
        name: What the user calls the file.
        _source: The folder of its config, which is among the options.
        options: Of `from_pretrained`.

    Returns:
        The model.

    Raises:
        ModelError: Tensors are missing, have another shape or are not finite.
    """
    from transformers import GgufConfig, modeling_gguf_pytorch_utils

    quantization = GgufConfig(dequantize=True)  # else transformers may leave the weights packed
    options |= {"gguf_file": path.name, "quantization_config": quantization}
    with attributes(modeling_gguf_pytorch_utils, tqdm=lambda tensors, **_: tensors):
        model = load_checked(loader, name, str(path.parent), **options)
    _forget_quantization(model.config)
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(attribute, None)
    return model


def convert_gguf(file: str | Path, out: str | Path, *, force: bool = False) -> Conversion:
    """Write a GGUF file as a checkpoint folder in HuggingFace's format, in float32, whole or not at all.

    Args:
        file: The GGUF file.
        out: The folder to write.
        force: Replace a folder that a conversion wrote.

    Returns:
        What was written.

    Raises:
        ModelError: The file cannot be read, or the package `gguf` is missing.
        OutputExistsError: The folder exists.

    Example:
        >>> from circuitlab.models.gguf import convert_gguf
        >>> convert_gguf("model.gguf", "model").n_parameters  # doctest: +SKIP
        134515008
    """
    path = checked_file(at_home(file), str(file))

    def write(folder: Path) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        config = write_description(path, folder, str(file))
        model = load_dequantized(path, AutoModelForCausalLM, str(file), "", config=config, dtype=torch.float32)
        model.save_pretrained(folder)
        return model

    return converted(path, out, force=force, write=partial(_explained, write, str(file)))


def _explained(write: Any, name: str, folder: Path) -> Any:
    try:
        return write(folder)
    except CircuitLabError:
        raise
    except Exception as error:
        raise not_read(name, error) from error


def not_read(name: str, error: Exception) -> ModelError:
    """The error of a reader of GGUF files, in a sentence.

    Args:
        name: What the user calls the file.
        error: What was raised.

    Returns:
        The error to raise.
    """
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
    return ModelError(
        f"GGUF file {name!r} cannot be read by transformers: {first[:200].rstrip('.')}. It may be damaged, or of an "
        "architecture or quantization that transformers does not read."
    )


def _forget_quantization(config: Any) -> None:
    """Weights are dense from here on; transformers would read the saved folder as quantized."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
