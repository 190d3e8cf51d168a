"""The other way to sweep: `transformer_lens.patching`, one forward pass of the whole model a cell.

Its functions are called by name with an `index_df` of sampled cells. The metric is the logit difference of each prompt,
kept here in the model's own dtype: TransformerLens stores what it returns in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from circuitlab import PairBatch


@dataclass(frozen=True, slots=True)
class Way:
    """How TransformerLens sweeps a site.

    Attributes:
        function: Its function in `transformer_lens.patching`.
        cell: Its names for the numbers of a cell, in the order of our grids.
        index: The same in the order that it takes them.
        activation: For the general function: the activation's name, and the setter that patches it.
    """

    function: str
    cell: tuple[str, ...]
    index: tuple[str, ...]
    activation: tuple[str, str] | None = None


def _by_position(function: str) -> Way:
    return Way(function, ("layer", "pos"), ("layer", "pos"))


def _by_head(function: str, head: str = "head") -> Way:
    return Way(function, ("layer", head), ("layer", head))


def _by_head_and_position(function: str) -> Way:
    return Way(function, ("layer", "head", "pos"), ("layer", "pos", "head"))


# TransformerLens has no functions for resid_post and neurons, but its general one takes the name of any activation.
GENERAL = "generic_activation_patch"
WAYS: dict[str, Way] = {
    "resid_pre": _by_position("get_act_patch_resid_pre"),
    "resid_post": Way(GENERAL, ("layer", "pos"), ("layer", "pos"), ("resid_post", "layer_pos_patch_setter")),
    "attn_out": _by_position("get_act_patch_attn_out"),
    "mlp_out": _by_position("get_act_patch_mlp_out"),
    "head_z": _by_head("get_act_patch_attn_head_out_all_pos"),
    "head_q": _by_head("get_act_patch_attn_head_q_all_pos"),
    "head_k": _by_head("get_act_patch_attn_head_k_all_pos"),
    "head_v": _by_head("get_act_patch_attn_head_v_all_pos"),
    "pattern": _by_head("get_act_patch_attn_head_pattern_all_pos", "head_index"),
    "neuron": Way(GENERAL, ("layer", "head"), ("layer", "head"), ("post", "layer_head_vector_patch_setter")),
    "head_z by position": _by_head_and_position("get_act_patch_attn_head_out_by_pos"),
    "head_q by position": _by_head_and_position("get_act_patch_attn_head_q_by_pos"),
    "head_k by position": _by_head_and_position("get_act_patch_attn_head_k_by_pos"),
    "head_v by position": _by_head_and_position("get_act_patch_attn_head_v_by_pos"),
    "pattern by position": Way(
        "get_act_patch_attn_head_pattern_by_pos",
        ("layer", "head_index", "dest_pos"),
        ("layer", "head_index", "dest_pos"),
    ),
}
Cells = Sequence[tuple[int, ...]]


def clean_cache(bridge: Any, batch: PairBatch) -> Any:
    """Every activation of the clean prompts, as TransformerLens's guide to patching records them."""
    with torch.no_grad():
        return bridge.run_with_cache(batch.clean)[1]


def patched(
    bridge: Any, batch: PairBatch, cache: Any, cells: Mapping[str, Cells]
) -> dict[str, Float[np.ndarray, "_ example"]]:
    """Patch the clean value of each of these cells into the corrupted run, one pass a cell."""
    import pandas as pd
    from transformer_lens import patching

    found = {}
    for site, places in cells.items():
        way = WAYS[site]
        extra: dict[str, Any] = {"index_axis_names": None}
        if way.activation is not None:
            extra = {"activation_name": way.activation[0], "patch_setter": getattr(patching, way.activation[1])}
        kept: list[np.ndarray] = []

        def metric(logits: torch.Tensor, kept: list[np.ndarray] = kept) -> torch.Tensor:
            values = logit_diff(logits, batch)
            kept.append(values.detach().double().cpu().numpy())
            return values

        with _without_progress_bar(patching):
            index = pd.DataFrame(list(places), columns=list(way.cell))[list(way.index)]
            run = getattr(patching, way.function)
            run(bridge, batch.corrupted, cache, metric, index_df=index, reduce="none", **extra)
        found[site] = np.stack(kept)
    return found


def logit_diff(logits: Float[torch.Tensor, "batch seq d_vocab"], batch: PairBatch) -> Float[torch.Tensor, " batch"]:
    """The default metric, written once more, from the logits of every position."""
    rows = torch.arange(len(batch), device=logits.device)
    at = logits[rows, batch.answer_at]
    return at[rows, batch.answers[:, 0]] - at[rows, batch.distractors[:, 0]]


@contextmanager
def weights_ask_for_gradients(bridge: Any) -> Iterator[None]:
    """As TransformerLens boots a model: a pass outside `torch.no_grad` keeps what a backward pass would need."""
    before = {weight: weight.requires_grad for weight in bridge.parameters()}
    for weight in before:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, required in before.items():
            weight.requires_grad_(required)


@contextmanager
def _without_progress_bar(module: Any) -> Iterator[None]:
    bar = module.tqdm
    module.tqdm = list
    try:
        yield
    finally:
        module.tqdm = bar
