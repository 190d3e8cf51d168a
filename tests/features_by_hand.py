"""Random autoencoders for the small models, and features put in by whole forward passes with plain hooks."""

import numpy as np
import torch
from architectures import load, logit_diff
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.features import Autoencoder
from circuitlab.features.autoencoder import Gated, JumpRelu, Standard, TopK

WIDTH = 12
HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_attn_out",  # the middle of a block is changed by changing what attention adds
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "head_z": "blocks.{}.attn.hook_z",
    "neuron": "blocks.{}.mlp.out.hook_in",
}


def autoencoder(name: str, site: str, layer: int = 0, kind: str = "jumprelu", **changed: object) -> Autoencoder:
    """A random one for a site of a small model, with about half of its features active."""
    generator = torch.Generator().manual_seed(3)
    d_in = value_at(name, torch.zeros(1, 3, dtype=torch.long), site, layer).shape[-1]

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    bias, other = 0.3 * drawn(WIDTH), 0.3 * drawn(WIDTH)
    encoder = {
        "standard": Standard(bias=bias),
        "topk": TopK(bias=bias, k=4),
        "jumprelu": JumpRelu(bias=bias, threshold=other.abs()),
        "gated": Gated(gate_bias=bias, log_scale=0.3 * drawn(WIDTH), magnitude_bias=other),
    }[kind]
    return Autoencoder(
        name="random", site=site, layer=layer, encoder=encoder, w_enc=drawn(d_in, WIDTH) / d_in**0.5,
        w_dec=0.5 * drawn(WIDTH, d_in), b_dec=0.2 * drawn(d_in), **changed,  # type: ignore[arg-type]
    )  # fmt: skip


def value_at(name: str, tokens: Tensor, site: str, layer: int) -> Tensor:
    """The activation at a site, by hooks alone."""
    bridge = load(name).bridge
    hooks = [HOOKS[site].format(layer), f"blocks.{layer}.hook_resid_pre"]
    with torch.no_grad():
        cache = bridge.run_with_cache(tokens, names_filter=hooks)[1]
    value = cache[hooks[0]].flatten(2)
    return value + cache[hooks[1]] if site == "resid_mid" else value


def run_with(name: str, tokens: Tensor, site: str, layer: int, delta: Tensor) -> Tensor:
    """Logits of a whole forward pass with something added at a site."""
    hook = HOOKS[site].format(layer)
    with torch.no_grad():
        return load(name).bridge.run_with_hooks(
            tokens, fwd_hooks=[(hook, lambda value, hook: (value.flatten(2) + delta).reshape(value.shape))]
        )


def swept(name: str, own: Autoencoder, batch: PairBatch, direction: str, *, whole: bool = False) -> np.ndarray:
    """Every feature at every position (or at all at once), a whole pass for each: [feature, position, example].

    The passes are rows of one batch.
    """
    base, source = (batch.corrupt, batch.clean) if direction == "denoise" else (batch.clean, batch.corrupt)
    x, y = (value_at(name, tokens, own.site, own.layer) for tokens in (base, source))
    change = own.encode(y) - own.encode(x)
    scale = own.scaled(x).scale
    moved = [change[..., feature, None] * own.w_dec[feature] * scale for feature in range(own.n_features)]
    n = batch.n_tokens
    masks = [torch.ones(n, 1)] if whole else [torch.eye(n)[position][:, None] for position in range(n)]
    delta = torch.cat([one * mask.to(one) for one in moved for mask in masks])
    cells = len(moved) * len(masks)
    logits = run_with(name, base.repeat(cells, 1), own.site, own.layer, delta)
    judged = torch.stack([logit_diff(part, batch) for part in logits.split(len(batch))])
    return judged.unflatten(0, (len(moved), len(masks))).numpy()
