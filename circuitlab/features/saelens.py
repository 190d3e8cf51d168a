"""Folders in SAELens's format: `cfg.json`, and the weights as safetensors. Read without sae-lens, and written.

Versions before 6 keep everything in one flat `cfg.json`; from 6 on what concerns the model is nested (`metadata`, at
first `meta`). Both are read; the nested form is written.

`assemble` makes an autoencoder of named arrays, whichever file they were in. Everything that does not add up is refused
by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from circuitlab.arguments import checked
from circuitlab.errors import ConfigError, FormatError, UnknownNameError
from circuitlab.features.autoencoder import BIASES, ENCODERS, NORMALISATIONS, Autoencoder, Encoder, TopK
from circuitlab.files import check_file, parsing, read_json
from circuitlab.models.hook_names import site_of_hook
from circuitlab.outputs.paths import at_home
from circuitlab.outputs.reserve import put_tables, reserved_tables
from circuitlab.outputs.whole import writing
from circuitlab.result import named

SHARED = ("W_enc", "W_dec", "b_dec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings in a file, beside its arrays.

    Attributes:
        source: The file, for messages.
        architecture: A key of `BIASES`.
        site: What it reads.
        layer: In which layer.
        k: Of a top-k autoencoder.
        subtract_bias: Whether the decoder's bias is taken off the input.
        normalisation: See `Autoencoder`.
        input_scale: The constant that inputs were multiplied by in training, if any; folded into the weights.
        by_decoder_norm: Whether features compete, and are given, in units of their decoder norms; folded as well.
        centred: See `Autoencoder`.
        sizes: `d_in` and number of features, where the file has them.
        model_id: See `Autoencoder`.
        neuronpedia_id: See `Autoencoder`.
    """

    source: str
    architecture: str
    site: str
    layer: int
    k: int | None = None
    subtract_bias: bool = False
    normalisation: str = "none"
    input_scale: float | None = None
    by_decoder_norm: bool = False
    centred: bool = False
    sizes: tuple[int | None, int | None] = (None, None)
    model_id: str | None = None
    neuronpedia_id: str | None = None


def assemble(settings: Settings, arrays: Mapping[str, Tensor]) -> Autoencoder:
    """The autoencoder of these settings and arrays.

    Returns:
        The autoencoder, with all constant factors folded into its weights.

    Raises:
        FormatError: An array is missing, unknown, of the wrong shape, or holds NaN; `k` is out of range.
    """
    # Factors are folded in no less than float32, whatever the file has.
    arrays = {name: t if t.dtype == torch.float64 else t.float() for name, t in arrays.items()}
    feature_scale = arrays.pop("feature_scale", None)
    check_arrays(settings, arrays)
    w_enc, w_dec, b_dec = (arrays[name] for name in SHARED)
    biases = {name: arrays[name] for name in BIASES[settings.architecture]}
    if settings.by_decoder_norm:
        norm = w_dec.norm(dim=1)
        w_enc, w_dec = w_enc * norm, w_dec / norm[:, None]
        biases["b_enc"] = biases["b_enc"] * norm
    if feature_scale is not None:
        w_dec = w_dec * feature_scale[:, None]
    if settings.input_scale is not None:
        w_enc, w_dec, b_dec = w_enc * settings.input_scale, w_dec / settings.input_scale, b_dec / settings.input_scale
    return Autoencoder(
        name=settings.source,
        encoder=_encoder(settings, biases),
        w_enc=w_enc,
        w_dec=w_dec,
        b_dec=b_dec,
        **named(settings, "site", "layer", "subtract_bias", "normalisation", "centred", "model_id", "neuronpedia_id"),
    )


def check_arrays(settings: Settings, arrays: Mapping[str, Tensor]) -> None:
    """Refuse arrays that are not those of the architecture.

    Raises:
        FormatError: One is missing, unknown, of the wrong shape, or holds NaN.
    """
    kind = settings.architecture
    where, needed = f"autoencoder {settings.source!r} ({kind})", (*SHARED, *BIASES[kind])
    if missing := [name for name in needed if name not in arrays]:
        raise FormatError(f"{where} has no {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
    if unknown := sorted(set(arrays) - set(needed)):
        raise FormatError(f"{where} holds {', '.join(unknown)} too; a {kind} one is {', '.join(needed)}.")
    if arrays["W_enc"].ndim != 2:
        raise FormatError(f"{where}: W_enc has the shape {tuple(arrays['W_enc'].shape)}; it must be (d_in, d_sae).")
    d_in, width = arrays["W_enc"].shape
    for declared, real, name in zip(settings.sizes, (d_in, width), ("d_in", "d_sae"), strict=True):
        if declared is not None and declared != real:
            raise FormatError(f"{where}: its settings say {name} = {declared}, its W_enc {real}.")
    shapes = {"W_enc": (d_in, width), "W_dec": (width, d_in), "b_dec": (d_in,)}
    for name in needed:
        wanted, tensor = shapes.get(name, (width,)), arrays[name]
        if tuple(tensor.shape) != wanted:
            raise FormatError(f"{where}: {name} has the shape {tuple(tensor.shape)}; with this W_enc it is {wanted}.")
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{where}: {name} holds NaN or infinite numbers; the file is damaged.")


def _encoder(settings: Settings, biases: Mapping[str, Tensor]) -> Encoder:
    values: dict[str, Any] = {field: biases[name] for name, field in BIASES[settings.architecture].items()}
    if settings.architecture == "topk":
        n_features = len(values["bias"])
        if settings.k is None or not 1 <= settings.k <= n_features:
            raise FormatError(
                f"autoencoder {settings.source!r} (topk): k is {settings.k}; it must be between 1 and its {n_features} "
                "features."
            )
        values["k"] = settings.k
    return ENCODERS[settings.architecture](**values)


CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.0.0"  # of the format that is written
_TRAINING = ("batchtopk", "matryoshka_batchtopk")
_TRANSCODERS = ("transcoder", "jumprelu_transcoder", "skip_transcoder", "jumprelu_skip_transcoder")
_OTHERS: dict[str, str] = dict.fromkeys(
    _TRAINING, "is a training checkpoint; save it for inference, which turns it into jumprelu"
)
_OTHERS |= dict.fromkeys(_TRANSCODERS, "reads at one place and writes at another, so it has no error term to keep")


def read_folder(
    folder: Path, *, site: str | None, layer: int | None, scaling_factor: float | None, centred: bool | None
) -> tuple[Settings, dict[str, Tensor]]:
    """Settings and arrays of a folder.

    Args:
        folder: With `cfg.json` and one file of weights.
        site: Overrides the site of the hook point.
        layer: Overrides the layer of the hook point.
        scaling_factor: The constant of `expected_average_only_in`, which the folder does not hold.
        centred: Overrides the settings.

    Returns:
        The settings, and the arrays by name.

    Raises:
        FormatError: A file is missing or damaged, or the settings are not ones that can be honoured.
        UnknownNameError: An architecture or hook point that is not known.
    """
    config, name = _Config.read(folder / CONFIG), str(folder)
    architecture = _architecture(config, name)
    if site is None or layer is None:
        if config.hook_name is None:
            raise FormatError(f"{name}/{CONFIG} names no hook point (hook_name). Give site= and layer=.")
        site_there, layer_there = site_of_hook(config.hook_name)
        site, layer = site or site_there, layer_there if layer is None else layer
    _check_head(config, site, name)
    kind, input_scale = _normalisation(config.normalize_activations, scaling_factor, name)
    processing = config.model_from_pretrained_kwargs
    if processing.get("fold_value_biases") and site == "head_z":
        raise FormatError(f"{name} was trained on z with folded value biases, which this model's z does not have.")
    arrays = _weights(folder, architecture)
    # Centred writing weights take the mean out of what is written to the stream, and of nothing else.
    streams_centred = bool(processing.get("center_writing_weights")) and site not in ("head_z", "neuron")
    return Settings(
        source=name,
        architecture=architecture,
        site=site,
        layer=layer,
        k=config.k,
        subtract_bias=config.apply_b_dec_to_input,
        normalisation=kind,
        input_scale=input_scale,
        by_decoder_norm=config.rescale_acts_by_decoder_norm and architecture == "topk",
        centred=streams_centred if centred is None else centred,
        sizes=(config.d_in, config.d_sae),
        model_id=config.model_name,
        neuronpedia_id=config.neuronpedia_id,
    ), _scaled_features(arrays, config, name)


@checked
def save_autoencoder(autoencoder: Autoencoder, folder: str | Path, *, force: bool = False) -> Path:
    """Write an autoencoder as a folder that SAELens reads.

    Args:
        autoencoder: What to write; what was folded into its weights stays folded.
        folder: A new folder.
        force: Replace the two files where the folder exists.

    Returns:
        The folder.

    Raises:
        OutputExistsError: The folder exists, and `force` is not given.
    """
    from safetensors.torch import save_file

    settings = json.dumps(_settings(autoencoder), indent=2) + "\n"
    arrays = {name: tensor.detach().cpu().contiguous() for name, tensor in _arrays(autoencoder).items()}

    def write_arrays(path: Path) -> None:
        save_file(arrays, path)
        path.chmod(0o644)  # save_file makes files that only their owner can read

    with writing(folder, "autoencoder folder"), reserved_tables(folder, force=force) as place:
        put_tables(place, {WEIGHTS: write_arrays, CONFIG: lambda path: path.write_text(settings, encoding="utf-8")})
    return at_home(folder)


class _Config(BaseModel):
    """The settings of `cfg.json`, those of the model among them; null counts as absent."""

    model_config = ConfigDict(strict=True)

    architecture: str = "standard"
    activation_fn: str = Field("relu", validation_alias=AliasChoices("activation_fn", "activation_fn_str"))
    k: int | None = Field(None, validation_alias=AliasChoices("k", AliasPath("activation_fn_kwargs", "k")))
    hook_name: str | None = Field(None, validation_alias=AliasChoices("hook_name", "hook_point"))
    hook_head_index: Any = None
    reshape_activations: Any = "none"
    normalize_activations: Any = None
    apply_b_dec_to_input: bool = True
    rescale_acts_by_decoder_norm: bool = False
    finetuning_scaling_factor: Any = None
    model_from_pretrained_kwargs: dict[str, Any] = {}
    d_in: int | None = None
    d_sae: int | None = None
    model_name: str | None = None
    neuronpedia_id: str | None = None

    @classmethod
    def read(cls, path: Path) -> _Config:
        """The settings in a file."""
        config = read_json(path, "autoencoder settings", hint="Give a folder as SAELens writes it.")
        if not isinstance(config, dict):
            raise FormatError(f"{path} holds a {type(config).__name__}, not an object of settings.")
        nested = config.get("metadata") or config.get("meta") or {}
        merged = {**config, **(nested if isinstance(nested, dict) else {})}
        try:
            return cls.model_validate({name: value for name, value in merged.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise FormatError(f"{path}: {place} is {str(first['input'])[:40]!r}. {first['msg']}.") from error


def _architecture(config: _Config, name: str) -> str:
    given = "topk" if (config.architecture, config.activation_fn) == ("standard", "topk") else config.architecture
    if given in _OTHERS:
        raise UnknownNameError(f"autoencoder {name!r}: a {given} {_OTHERS[given]}. Read are {', '.join(BIASES)}.")
    UnknownNameError.check("architecture", given, BIASES, owner=f"autoencoder {name!r}")
    if config.activation_fn not in ("relu", "topk"):
        raise FormatError(
            f"autoencoder {name!r} has the activation function {config.activation_fn!r}; read are relu and topk."
        )
    if given == "topk" and config.k is None:
        raise FormatError(f"autoencoder {name!r} (topk): its settings have no whole number k.")
    return given


def _check_head(config: _Config, site: str, name: str) -> None:
    if config.hook_head_index is not None:
        raise FormatError(
            f"autoencoder {name!r} reads head {config.hook_head_index} alone; read are those of all heads together."
        )
    reshape = config.reshape_activations
    if reshape != "none" and not (reshape == "hook_z" and site == "head_z"):
        raise FormatError(f"autoencoder {name!r} reshapes {site} by {reshape!r}; known is hook_z, of all heads' z.")


def _normalisation(given: Any, scaling_factor: float | None, name: str) -> tuple[str, float | None]:
    if isinstance(given, bool):  # as the first versions wrote it
        given = "expected_average_only_in" if given else "none"
    kind = "none" if given is None else given
    if kind == "expected_average_only_in":
        if scaling_factor is None:
            raise FormatError(
                f"autoencoder {name!r} was trained on activations times a constant (expected_average_only_in) that the "
                "folder does not hold. Give scaling_factor=: sqrt(d_in) over the mean norm of the activations."
            )
        if not 0 < scaling_factor < float("inf"):
            raise ConfigError(f"scaling_factor={scaling_factor} is not a positive number.")
        return "none", scaling_factor
    if scaling_factor is not None:
        raise ConfigError(f"scaling_factor goes with expected_average_only_in; {name!r} has {kind!r}.")
    if kind not in NORMALISATIONS:
        raise FormatError(f"autoencoder {name!r} normalises activations by {kind!r}, which is not known.")
    return kind, None


def _weights(folder: Path, architecture: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    files = [file for file in sorted(folder.glob("*.safetensors")) if file.name != "sparsity.safetensors"]
    path = folder / WEIGHTS if (folder / WEIGHTS).is_file() else files[0] if len(files) == 1 else None
    if path is None:
        raise FormatError(
            f"autoencoder folder {str(folder)!r} has no {WEIGHTS} (it has {len(files)} other files of it)."
        )
    check_file(path, "autoencoder weights")
    with parsing(f"safetensors file {str(path)!r}"):
        arrays = load_file(path)
    if other := [name for name, tensor in arrays.items() if not tensor.is_floating_point()]:
        raise FormatError(f"{path}: {other[0]} holds {arrays[other[0]].dtype}, not floating-point numbers.")
    if architecture == "jumprelu" and "threshold" not in arrays and "log_threshold" in arrays:
        arrays["threshold"] = arrays.pop("log_threshold").exp()
    return arrays


def _scaled_features(arrays: dict[str, Tensor], config: _Config, name: str) -> dict[str, Tensor]:
    """The factor of each feature from fine-tuning, as older versions kept it; factors of 1 are ignored."""
    for key in ("scaling_factor", "finetuning_scaling_factor"):
        factor = arrays.pop(key, None)
        if factor is None or bool(torch.allclose(factor, torch.ones_like(factor))):
            continue
        if not config.finetuning_scaling_factor:
            raise FormatError(f"autoencoder {name!r} holds a {key}, but its settings declare none.")
        if "W_enc" in arrays and factor.shape != arrays["W_enc"].shape[1:]:
            raise FormatError(f"autoencoder {name!r}: {key} has the shape {tuple(factor.shape)}, not one a feature.")
        arrays["feature_scale"] = factor
    return arrays


def _arrays(autoencoder: Autoencoder) -> dict[str, Tensor]:
    arrays = {"W_enc": autoencoder.w_enc, "W_dec": autoencoder.w_dec, "b_dec": autoencoder.b_dec}
    fields = BIASES[autoencoder.architecture].items()
    return arrays | {name: getattr(autoencoder.encoder, field) for name, field in fields}


def _settings(autoencoder: Autoencoder) -> dict[str, Any]:
    metadata = {
        "model_name": autoencoder.model_id,
        "hook_name": autoencoder.hook,
        "hook_head_index": None,
        "neuronpedia_id": autoencoder.neuronpedia_id,
        "sae_lens_version": VERSION,
        "model_from_pretrained_kwargs": {"center_writing_weights": True} if autoencoder.centred else {},
    }
    return {
        "architecture": autoencoder.architecture,
        "d_in": autoencoder.d_in,
        "d_sae": autoencoder.n_features,
        "dtype": str(autoencoder.w_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": autoencoder.subtract_bias,
        "normalize_activations": autoencoder.normalisation,
        "reshape_activations": "hook_z" if autoencoder.site == "head_z" else "none",
        **({"k": autoencoder.encoder.k} if isinstance(autoencoder.encoder, TopK) else {}),
        "metadata": metadata,
    }
