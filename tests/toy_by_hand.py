"""TransformerLens's toy models by hand: random weights under the old names, the forward pass in plain torch, the hub.

Nothing of the library and nothing of TransformerLens is used: what its loader makes of such a checkpoint is held
against this.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from architectures import D_MODEL, D_VOCAB, N_HEADS, tokenizer
from torch import Tensor
from torch.nn import functional

D_HEAD, D_MLP, N_CTX = 8, 48, 64
TOKENIZER = "NeelNanda/gpt-neox-tokenizer-digits"
# The repository behind each name, and what its config says. Norms of "LNPre" are folded: they have no weights.
TOYS: dict[str, tuple[str, dict[str, Any]]] = {
    "solu-1l": ("NeelNanda/SoLU_1L512W_C4_Code", {"n_layers": 1, "act_fn": "solu_ln", "normalization": "LN"}),
    "gelu-2l": ("NeelNanda/GELU_2L512W_C4_Code", {"n_layers": 2, "act_fn": "gelu", "normalization": "LNPre"}),
    "attn-only-1l": ("NeelNanda/Attn_Only_1L512W_C4_Code", {"n_layers": 1, "attn_only": True, "normalization": "LN"}),
    # An older layout: weights the other way round, norms by another name; its last norm is an RMS norm.
    "solu-1l-pile": (
        "NeelNanda/SoLU_1L_v9_old",
        {"n_layers": 1, "act_fn": "solu_ln", "normalization": "LN", "final_rms": True},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ran:
    """What a forward pass did, per layer."""

    z: list[Tensor]
    neurons: list[Tensor]
    mlp_out: list[Tensor]
    logits: Tensor


def config(name: str) -> dict[str, Any]:
    """The repository's config.json."""
    shape = {"d_model": D_MODEL, "d_mlp": D_MLP, "d_head": D_HEAD, "n_heads": N_HEADS, "n_ctx": N_CTX}
    common = {"d_vocab": D_VOCAB, "act_fn": "gelu", "attn_only": False, "tokenizer_name": TOKENIZER}
    return {**shape, **common, **TOYS[name][1]}


def weights(name: str) -> dict[str, Tensor]:
    """Random weights by TransformerLens's old names, float32 as checkpoints are."""
    cfg, generator = config(name), torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.25 * torch.randn(*shape, generator=generator)

    def norm(at: str, width: int) -> dict[str, Tensor]:
        return {f"{at}.w": 1 + draw(width), f"{at}.b": draw(width)}

    folded = cfg["normalization"] == "LNPre"
    found = {"embed.W_E": draw(D_VOCAB, D_MODEL), "pos_embed.W_pos": draw(N_CTX, D_MODEL)}
    for layer in range(cfg["n_layers"]):
        at = f"blocks.{layer}"
        for slot in "QKV":
            found[f"{at}.attn.W_{slot}"] = 2 * draw(N_HEADS, D_MODEL, D_HEAD)
            found[f"{at}.attn.b_{slot}"] = draw(N_HEADS, D_HEAD)
        found |= {f"{at}.attn.W_O": draw(N_HEADS, D_HEAD, D_MODEL), f"{at}.attn.b_O": draw(D_MODEL)}
        # Buffers that the old models saved along.
        found |= {f"{at}.attn.mask": torch.ones(N_CTX, N_CTX).tril().bool(), f"{at}.attn.IGNORE": torch.tensor(-1e5)}
        found |= {} if folded else norm(f"{at}.ln1", D_MODEL)
        if not cfg["attn_only"]:
            found |= {f"{at}.mlp.W_in": draw(D_MODEL, D_MLP), f"{at}.mlp.b_in": draw(D_MLP)}
            found |= {f"{at}.mlp.W_out": draw(D_MLP, D_MODEL), f"{at}.mlp.b_out": draw(D_MODEL)}
            found |= {} if folded else norm(f"{at}.ln2", D_MODEL)
            found |= norm(f"{at}.mlp.ln", D_MLP) if cfg["act_fn"] == "solu_ln" else {}
    found |= {} if folded else norm("ln_final", D_MODEL)
    return found | {"unembed.W_U": draw(D_MODEL, D_VOCAB), "unembed.b_U": draw(D_VOCAB)}


def run(name: str, tokens: Tensor) -> Ran:
    """The forward pass in float64."""
    cfg, w = config(name), {key: value.double() for key, value in weights(name).items()}
    n_tokens, z, neurons, mlp_out = tokens.shape[1], [], [], []

    def norm(x: Tensor, at: str) -> Tensor:
        rms = at == "ln_final" and cfg.get("final_rms", False)
        x = x if rms else x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{at}.w"] + (0 if rms else w[f"{at}.b"]) if f"{at}.w" in w else x

    stream = w["embed.W_E"][tokens] + w["pos_embed.W_pos"][:n_tokens]
    for layer in range(cfg["n_layers"]):
        at = f"blocks.{layer}"
        normed = norm(stream, f"{at}.ln1")
        q, k, v = (
            torch.einsum("bsm,nmh->bnsh", normed, w[f"{at}.attn.W_{slot}"]) + w[f"{at}.attn.b_{slot}"][:, None]
            for slot in "QKV"
        )
        scores = (q @ k.transpose(-1, -2)) / D_HEAD**0.5
        later = torch.ones(n_tokens, n_tokens).triu(1).bool()
        z.append((scores.masked_fill(later, float("-inf")).softmax(-1) @ v).transpose(1, 2))
        stream = stream + torch.einsum("bsnh,nhm->bsm", z[-1], w[f"{at}.attn.W_O"]) + w[f"{at}.attn.b_O"]
        if not cfg["attn_only"]:
            hidden = norm(stream, f"{at}.ln2") @ w[f"{at}.mlp.W_in"] + w[f"{at}.mlp.b_in"]
            solu = cfg["act_fn"] == "solu_ln"
            hidden = norm(hidden * hidden.softmax(-1), f"{at}.mlp.ln") if solu else functional.gelu(hidden)
            neurons.append(hidden)
            mlp_out.append(hidden @ w[f"{at}.mlp.W_out"] + w[f"{at}.mlp.b_out"])
            stream = stream + mlp_out[-1]
    logits = norm(stream, "ln_final") @ w["unembed.W_U"] + w["unembed.b_U"]
    return Ran(z=z, neurons=neurons, mlp_out=mlp_out, logits=logits)


def publish(name: str, cache: Path) -> Path:
    """Put a toy model into a cache folder as a download from the hub leaves it; the folder with its files."""
    folder = _repository(cache, TOYS[name][0])
    (folder / "config.json").write_text(json.dumps(config(name)))
    saved = weights(name)
    torch.save(_old_layout(saved) if TOYS[name][0].endswith("_old") else saved, folder / "model_final.pth")
    words = _repository(cache, TOKENIZER)
    tokenizer().save_pretrained(words)
    # The hub's client notes which files it asked for in vain.
    absent = words.parents[1] / ".no_exist" / words.name
    absent.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "adapter_config.json"):
        (absent / file).touch()
    return folder


def _old_layout(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights `[out, in]` and positions in columns; norms are called norms, and the last one has no bias."""
    found = {}
    for key, value in saved.items():
        turned = value.T if key == "pos_embed.W_pos" else value.transpose(-2, -1) if "W_" in key else value
        found[key.replace("ln_final", "ln").replace("ln", "norm")] = turned.contiguous()
    return {key: value for key, value in found.items() if key != "norm.b"}


def repository(cache: Path, name: str) -> Path:
    """An empty folder where a download of this repository would lie."""
    return _repository(cache, name)


def _repository(cache: Path, repository: str) -> Path:
    base = cache / f"models--{repository.replace('/', '--')}"
    folder = base / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True, exist_ok=True)
    (base / "refs").mkdir(exist_ok=True)
    (base / "refs" / "main").write_text(folder.name)
    return folder
