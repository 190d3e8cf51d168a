"""Kinds of models that are not supported, recognised by their config before any weights are read.

There is no list of supported models: whatever TransformerLens wraps is loaded and measured (`verify.py`). The kinds
below are known not to pass, and the message about one of them gives the reason instead of the first part that differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from circuitlab.errors import UnsupportedModelError

SUPPORTED = (
    "Supported are decoder-only language models whose layers are attention and a dense MLP on one residual stream, "
    "such as GPT-2, GPT-NeoX, Llama, Mistral, Qwen, Gemma, Phi, OLMo and Granite."
)
# What a model is, and why it is not supported.
Kind = tuple[str, str]
STATE_SPACE: Kind = ("a state-space or recurrent model", "its layers carry a state where others have attention")
POST_NORM: Kind = ("a post-norm model", "the stream is normed after each addition, so that it is no sum of parts")
TWO_STREAMS: Kind = ("a model with two residual streams", "parts write to one or the other")
SPEECH: Kind = ("no language model", "it reads sound")
NOT_SUPPORTED = {
    "bert": POST_NORM,
    "falcon_mamba": STATE_SPACE,
    "hubert": SPEECH,
    "mamba": STATE_SPACE,
    "mamba2": STATE_SPACE,
    "openai-gpt": POST_NORM,
    "recurrent_gemma": STATE_SPACE,
    "reformer": TWO_STREAMS,
    "rwkv": STATE_SPACE,
    "wav2vec2": SPEECH,
    "xlnet": TWO_STREAMS,
    "xlstm": STATE_SPACE,
}
# What a checkpoint was saved as, by how the class's name ends.
TASK_HEADS = {
    "ForSequenceClassification": "a sequence classifier",
    "ForTokenClassification": "a token classifier",
    "ForQuestionAnswering": "a question-answering model",
    "ForMultipleChoice": "a multiple-choice model",
    "ForNextSentencePrediction": "a next-sentence classifier",
    "ForImageClassification": "an image classifier",
    "ForAudioClassification": "an audio classifier",
    "ForCTC": "a speech recognizer",
    "RewardModel": "a reward model",
}
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
ATTENTION_LAYERS = ("full_attention", "sliding_attention", "chunked_attention", "attention", "global", "local")


def refuse_unsupported(config: Any, name: str) -> None:
    """Refuse a model whose kind is known not to be supported.

    Args:
        config: A HuggingFace config, or a dictionary read from config.json where there is no class for it.
        name: What the user calls the model.

    Raises:
        UnsupportedModelError: It is not; the message has what the model is, and what is supported.
    """
    if kind := _kind(config):
        what, why = kind
        raise UnsupportedModelError(
            f"model {name!r} ({described(config)}) is {what}: not supported ({why}). {SUPPORTED}"
        )


def refuse_dispatched(model: Any, name: str) -> None:
    """Refuse a model whose weights are on several devices, or on disk: its parts are run on values of one device.

    Args:
        model: The HuggingFace model.
        name: What the user calls it.

    Raises:
        UnsupportedModelError: It is; the message names the devices.
    """
    places = sorted({str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(places) > 1 or "disk" in places or any(weight.is_meta for weight in model.parameters()):
        raise UnsupportedModelError(
            f"model {name!r} is on several devices ({', '.join(places) or 'meta'}; device_map): not supported, for its "
            'parts are run on one. Boot it without device_map, device="cuda" or "cpu", in a smaller dtype if it is too '
            "large."
        )


def described(config: Any) -> str:
    """Model type and class, as far as the config has them.

    Returns:
        Such as `type llama, LlamaForCausalLM`.
    """
    model_type, classes = _type(config), _classes(config)
    return ", ".join([*([f"type {model_type}"] if model_type else ["no model_type"]), *classes[:1]])


def _kind(config: Any) -> Kind | None:
    model_type, saved_as = _type(config), (_classes(config) or [""])[0]
    if quantization := _of(config, "quantization_config"):
        method = _of(quantization, "quant_method") or _of(quantization, "quant_algo") or "of an unnamed method"
        fix = "give the .gguf file itself" if method == "gguf" else "load the checkpoint that it was made from"
        return f"quantized ({method})", fix
    if what := next((what for ending, what in TASK_HEADS.items() if saved_as.endswith(ending)), None):
        return what, "it predicts no next token"
    if _is_encoder_decoder(config):
        return "an encoder-decoder model", "two stacks joined by cross-attention"
    if _is_encoder(model_type, saved_as):
        return "an encoder", "it fills in masked tokens and predicts no next token"
    if _has_no_vocabulary(config):
        return "no language model", "it has no vocabulary"
    if count := _number_of_experts(config):
        return "a mixture of experts", f"{count} experts a layer"
    if model_type in NOT_SUPPORTED:
        return NOT_SUPPORTED[model_type]
    if other := _other_layers(config):
        return "a hybrid model", f"it has layers that are not attention: {', '.join(other)}"
    if any(_of(part, "kv_lora_rank") for part in _parts(config)):
        return "a model with multi-head latent attention", "its keys and values are compressed together"
    return None


def _is_encoder_decoder(config: Any) -> bool:
    """Also the decoder of one alone, which keeps its cross-attention."""
    return bool(_of(config, "is_encoder_decoder")) or getattr(type(config), "is_encoder_decoder", False) is True


def _is_encoder(model_type: str, saved_as: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    decoder = "CausalLM" in saved_as or "LMHead" in saved_as
    return saved_as.endswith("ForMaskedLM") or (model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder)


def _has_no_vocabulary(config: Any) -> bool:
    """Of a type that transformers knows, and no part of it reads tokens."""
    if isinstance(config, dict) or not hasattr(config, "get_text_config"):
        return False
    return not any(isinstance(_of(part, "vocab_size"), int) for part in (config.get_text_config(), *_parts(config)))


def _number_of_experts(config: Any) -> int:
    for part in _parts(config):
        if _of(part, "is_moe") is False or _of(part, "enable_moe_block") is False:
            continue
        for key in EXPERT_COUNTS:
            counts = _of(part, key)
            counts = counts if isinstance(counts, list | tuple) else [counts]
            most = max((count for count in counts if isinstance(count, int)), default=0)
            if most > 1:
                return most
    return 0


def _other_layers(config: Any) -> list[str]:
    """Kinds of layers that a hybrid model has beside attention."""
    keys = ("layer_types", "layers_block_type", "block_types")
    listed = (_of(part, key) for part in _parts(config) for key in keys)
    kinds = {kind for kinds in listed if isinstance(kinds, list | tuple) for kind in kinds if isinstance(kind, str)}
    return sorted(kinds.difference(ATTENTION_LAYERS))


def _parts(config: Any) -> Iterator[Any]:
    """The config and those of its parts that describe a decoder."""
    yield config
    for key in ("text_config", "llm_config", "language_config", "ffn_config"):
        if part := _of(config, key):
            yield part


def _type(config: Any) -> str:
    """The model type, empty where the config has none or another thing than a word in its place."""
    found = _of(config, "model_type")
    return found if isinstance(found, str) else ""


def _classes(config: Any) -> list[str]:
    listed = _of(config, "architectures")
    return [each for each in listed if isinstance(each, str)] if isinstance(listed, list | tuple) else []


def _of(config: Any, key: str) -> Any:
    if isinstance(config, dict):
        return config.get(key)
    try:
        return getattr(config, key, None)
    except Exception:  # configs whose layers differ raise errors of their own for what is not one number
        return None
