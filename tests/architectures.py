"""Small random models of eight architectures, loaded by the library as any checkpoint is, and prompts for them.

Beside them TransformerLens's own toy models, as `gelu-2l`, `attn-only-2l` and `solu-2l` arrive: booted, not loaded.

Weights are drawn wide (0.2, biases and norm gains too), so that every part of a model matters to its output: with the
0.02 of fresh checkpoints attention is flat, MLPs are linear, and a test would pass whatever the code did.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from circuitlab.data.batch import PairBatch
from circuitlab.data.encoding import encode_example
from circuitlab.data.example import Example
from circuitlab.data.pair import Pair
from circuitlab.data.pairs import PairSet
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.load import load_model
from circuitlab.models.protocol import Bos, Folding
from circuitlab.models.text import TokenizerText
from circuitlab.models.verify import adapted

# What each stands for: GPT-2 (biases, learned positions), Llama (grouped queries, rotation, gated MLP), GPT-NeoX
# (attention and MLP in parallel), Qwen3 (norms on queries and keys), Gemma 2 (norms behind attention and MLP, softcaps,
# windows), OLMo 2 (norms after attention and MLP and none before, norms over all heads' queries and keys together),
# Granite (multipliers), MPT (scores with a bias by distance, MLPs that add the stream).
ARCHITECTURES = ("gpt2", "llama", "neox", "qwen3", "gemma2", "olmo2", "granite", "mpt")
GROUPED = ("llama", "qwen3", "gemma2", "olmo2", "granite", "cohere")
# Where what one head adds depends on the others.
HEADS_INTERACT = ("gemma2", "olmo2")
# Settings of TransformerLens's own models: GELU, attention alone (its norms folded into the weights), and SoLU, which
# has a layer norm between its activation and its output projection.
NATIVE: dict[str, dict[str, Any]] = {
    "native": {"act_fn": "gelu"},
    "attn-only": {"attn_only": True, "normalization_type": "LNPre"},
    "solu": {"act_fn": "solu_ln"},
}
# One of them in which every token sees every other.
BIDIRECTIONAL: dict[str, dict[str, Any]] = {"bidirectional": {"act_fn": "gelu", "attention_dir": "bidirectional"}}
# The same with their weights rewritten: `FOLDED["gpt2-folded"]` is the architecture and what is done to it.
BOTH, NORMS_ALONE = Folding(fold_ln=True, center_weights=True), Folding(fold_ln=True)
FOLDED = {f"{name}-folded": (name, BOTH) for name in ("gpt2", "neo", "neox", *NATIVE)}
FOLDED["mpt-folded"] = ("mpt", BOTH)
FOLDED |= {f"{name}-folded": (name, NORMS_ALONE) for name in ("llama", "gemma2", "olmo2", "granite", "bloom")}
# Largest difference allowed between two ways to the same number in float64. GPT-2 and TransformerLens's own models are
# float64 throughout, but for norms without weights; the others rotate, norm or take softmaxes in float32 whatever their
# weights are, where 2e-6 was measured.
TOLERANCE = {"gpt2": 1e-10, **dict.fromkeys(("llama", "neox", "qwen3", *ARCHITECTURES[4:], "bloom", "cohere"), 2e-5)}
TOLERANCE |= {"neo": 2e-5, "native": 1e-10, "attn-only": 2e-5, "solu": 1e-10, "bidirectional": 1e-10}
TOLERANCE |= {name: TOLERANCE[plain] for name, (plain, _) in FOLDED.items()}
N_LAYERS, N_HEADS, D_MODEL, D_VOCAB = 2, 4, 32, 300
WORDS = ["hello world John Mary left. He she ; </ <div> <b> and then Johnathan smiled"] * 10
BOS = "<|bos|>"


@cache
def load(name: str, dtype: str = "float64", ungrouped: bool = False) -> BridgeModel:
    """The random model of an architecture, loaded once: tests leave it as it is."""
    return fresh(name, dtype, ungrouped)


def fresh(name: str, dtype: str = "float64", ungrouped: bool = False) -> BridgeModel:
    """The same, a new one that the test may change."""
    if name in FOLDED:
        return folded(*FOLDED[name], dtype)
    own = NATIVE | BIDIRECTIONAL
    if name in own:
        return load_model(native(dtype=getattr(torch, dtype), **own[name]))
    with TemporaryDirectory() as folder:
        return load_model(save(name, Path(folder) / name, ungrouped), dtype=dtype)


def folded(name: str, folding: Folding, dtype: str = "float64") -> BridgeModel:
    """A new random model with its weights rewritten."""
    if name in NATIVE:
        return adapted(native(dtype=getattr(torch, dtype), **NATIVE[name]), name, folding)
    with TemporaryDirectory() as folder:
        source = save(name, Path(folder) / name)
        return load_model(source, dtype=dtype, fold_ln=folding.fold_ln, center_weights=folding.center_weights)


def booted(name: str, dtype: torch.dtype = torch.float64, ungrouped: bool = False) -> Any:
    """The same as a bridge that a user has booted."""
    from transformer_lens.model_bridge import TransformerBridge

    with TemporaryDirectory() as folder:
        source = save(name, Path(folder) / name, ungrouped)
        return TransformerBridge.boot_transformers(str(source), device="cpu", dtype=dtype)


def native(dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """One of TransformerLens's own models as a user boots it: two layers, GELU, layer norms if not told otherwise."""
    from transformer_lens.model_bridge import TransformerBridge

    shape = {"n_layers": N_LAYERS, "n_heads": N_HEADS, "d_model": D_MODEL, "d_head": 8, "d_mlp": 48}
    shape |= {"d_vocab": D_VOCAB, "n_ctx": 64, "act_fn": "gelu", "normalization_type": "LN", "seed": 0}
    bridge = TransformerBridge.boot_native({**shape, **settings}, device="cpu", dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in bridge.original_model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator).to(weight)
            weight.requires_grad_(False)
    return bridge


def save(name: str, folder: Path, ungrouped: bool = False) -> Path:
    """Write the random checkpoint of an architecture, with a tokenizer of 300 tokens."""
    huggingface(name, ungrouped).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def huggingface(name: str, ungrouped: bool = False) -> Any:
    """The HuggingFace model; ungrouped: the same function with keys and values written out once per query head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _untrained(name, n_kv_heads=2)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.2 * torch.randn_like(weight)
        if ungrouped:
            grouped, model = model.state_dict(), _untrained(name, n_kv_heads=N_HEADS)
            model.load_state_dict({key: _per_query_head(key, weight) for key, weight in grouped.items()})
    return model.eval()


def _untrained(name: str, n_kv_heads: int) -> Any:
    import transformers as hf

    common = {"vocab_size": D_VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    gpt2 = {**common, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_embd": D_MODEL, "n_positions": 64}
    shape = {
        **common,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "hidden_size": D_MODEL,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    grouped = {**shape, "num_key_value_heads": n_kv_heads}
    # One layer looks at everything, the next at the last four tokens only.
    neo = {"num_layers": N_LAYERS, "num_heads": N_HEADS, "hidden_size": D_MODEL, "max_position_embeddings": 64}
    neo |= {**common, "attention_types": [[["global", "local"], N_LAYERS // 2]], "window_size": 4}
    multipliers = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4}
    multipliers["logits_scaling"] = 1.25
    mpt = {**common, "n_layers": N_LAYERS, "n_heads": N_HEADS, "d_model": D_MODEL, "max_seq_len": 64}
    bloom = {**common, "n_layer": N_LAYERS, "n_head": N_HEADS, "hidden_size": D_MODEL}
    makers = {
        "neo": lambda: hf.GPTNeoForCausalLM(hf.GPTNeoConfig(**neo)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**gpt2)),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped)),
        "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**shape)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**grouped, head_dim=12)),
        "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**grouped, head_dim=12, sliding_window=4)),
        "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**grouped)),
        "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**grouped, **multipliers)),
        "mpt": lambda: hf.MptForCausalLM(hf.MptConfig(**mpt)),
        "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**bloom)),
        "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**grouped, logit_scale=0.5)),
        "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**shape, ffn_dim=48, word_embed_proj_dim=D_MODEL)),
    }
    return makers[name]()


def _per_query_head(key: str, weight: torch.Tensor) -> torch.Tensor:
    of_all_keys = "k_norm" in key and weight.numel() == D_MODEL // 2  # OLMo 2's
    if "k_proj" not in key and "v_proj" not in key and not of_all_keys:
        return weight
    return weight.unflatten(0, (2, -1)).repeat_interleave(N_HEADS // 2, 0).flatten(0, 1)


@cache
def tokenizer() -> Any:
    """A byte-level tokenizer of at most 300 tokens, trained on a few words, that puts its BOS token in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=D_VOCAB, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(WORDS, trainer)
    made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=BOS, eos_token=BOS, pad_token=BOS)


def pairs(n: int = 4, n_tokens: int = 8, seed: int = 0) -> PairBatch:
    """Random prompts that differ at tokens 2 and 5; every other one is judged one token before the last.

    They begin with the beginning-of-sequence token, which is the padding token too and stands once in the middle.
    """
    generator = torch.Generator().manual_seed(seed)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(1, D_VOCAB, shape, generator=generator)

    clean = tokens(n, n_tokens)
    clean[:, 0] = clean[0, 4] = 0
    corrupt = clean.clone()
    corrupt[:, 2], corrupt[:, 5] = tokens(n), tokens(n)
    answer_at = n_tokens - 1 - torch.arange(n) % 2
    return PairBatch.from_tokens(clean, corrupt, tokens(n, 1), tokens(n, 1), answer_at)


def mixed_pairs() -> PairSet:
    """Six prompts of three lengths, in turn, with the spans opening, name and end; the name is corrupted."""
    openings = ("hello", "hello, John and world", "hello world")
    found = []
    for number in range(6):
        fields = {"opening": openings[number % 3], "name": "John" if number < 3 else "Mary", "end": ";>."[number % 3]}
        example = Example.from_template(
            "{opening} {name} left{end}", fields, corrupt={"name": "He"}, answer=" and", distractor=" then"
        )
        made = encode_example(example, TokenizerText(tokenizer(), Bos(choice="auto", ids=(0,), tokens=(BOS,))))
        assert isinstance(made, Pair), made
        found.append(replace(made, id=str(number)))
    assert len({len(pair) for pair in found}) == 3
    return PairSet(tuple(found))


def logit_diff(logits: torch.Tensor, batch: PairBatch) -> torch.Tensor:
    """The default metric of whole-sequence logits, written once more."""
    rows = torch.arange(len(batch))
    at = logits[rows, batch.answer_at]
    return at[rows, batch.answers[:, 0]] - at[rows, batch.distractors[:, 0]]


@contextmanager
def as_users_run_it() -> Iterator[None]:
    """Without the types checked that the tests switch on: what a user who gives the wrong type is told."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)
