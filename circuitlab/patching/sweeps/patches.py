"""What each cell of a sweep adds to the stream, token by token, worked out when a pack needs it.

A cell is a member (a head, a neuron; the whole layer for the others) at the tokens of a column. Heads of a layer do not
see each other, so all of them are patched in one call of the attention code and each cell takes its own head's z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.models.protocol import Model, Recording
from circuitlab.parts import Slot
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.writers import mlp_input
from circuitlab.patching.sweeps.sites import Member, Site

# (member, example, position) of tokens -> what the patch adds to the stream there
Delta = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Patches:
    """Cells of one site at one layer.

    Attributes:
        site: Which site.
        layer: Which layer.
        columns: Numbers of the columns that `tokens` holds.
        members: Numbers of the heads or neurons; a single 0 for sites without.
        live: Where a member's value differs between the runs.
        tokens: The tokens of each column.
        delta: What the patch adds to the stream, from (place in `members`, example, position) of each token.
    """

    site: Site
    layer: int
    columns: Sequence[int]
    members: Sequence[int]
    live: Bool[Tensor, "member batch seq"]
    tokens: Bool[Tensor, "column batch seq"]
    delta: Delta


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """The run that is patched and the one that values are taken from.

    Attributes:
        model: The model.
        baseline: The batch they come from.
        base: The run that is patched.
        source: What is put in, activation by activation.
        hidden: An MLP's neurons to put in, by layer.
    """

    model: Model
    baseline: Baseline
    base: Recording
    source: Recording
    hidden: Callable[[int], Float[Tensor, "batch seq neuron"]]


def patches_of(
    runs: Runs, site: Site, layer: int, members: Sequence[int], tokens: Bool[Tensor, "column batch seq"]
) -> Iterator[Patches]:
    """All cells of a site at a layer.

    A key or value at one position changes its head's z at every one that sees it, so there each column is worked out
    by itself; everywhere else the columns are cuts of one difference.
    """
    everywhere = torch.ones_like(tokens[:1])
    several = bool((~tokens.all((1, 2))).any())
    if site.member is Member.KV_HEAD and several:
        for column, mask in enumerate(tokens):
            live, delta = _heads(runs, site, layer, members, mask)
            yield Patches(
                site=site, layer=layer, columns=[column], members=members, live=live, tokens=everywhere, delta=delta
            )
        return
    live, delta = _WAYS[site.member](runs, site, layer, members, everywhere[0])
    yield Patches(
        site=site,
        layer=layer,
        columns=range(len(tokens)),
        members=members,
        live=live,
        tokens=tokens,
        delta=delta,
    )


def _stream(runs: Runs, site: Site, layer: int, _members: Sequence[int], _where: Tensor) -> tuple[Tensor, Delta]:
    """Sites that a layer has once: the difference of the runs."""
    read: dict[str, Callable[[Recording], Tensor]] = {
        "resid_pre": lambda run: run.resid_pre[layer],
        "resid_mid": lambda run: run.resid_pre[layer] + run.attn_out[layer],
        "resid_post": lambda run: run.stream(layer + 1),
        "attn_out": lambda run: run.attn_out[layer],
        "mlp_out": lambda run: run.mlp_out[layer],
    }
    difference = read[site.name](runs.source) - read[site.name](runs.base)
    return (difference != 0).any(2)[None], lambda _member, example, position: difference[example, position]


def _heads(runs: Runs, site: Site, layer: int, members: Sequence[int], where: Tensor) -> tuple[Tensor, Delta]:
    """Heads: what their changed z adds through the output projection."""
    model, base = runs.model, runs.base
    z, own = _patched_z(runs, site, layer, where), base.z[layer]
    group = model.spec.n_heads // model.spec.n_kv_heads if site.member is Member.KV_HEAD else 1
    heads = torch.tensor([[m * group + i for i in range(group)] for m in members], device=z.device)
    live = (z != own).any(3)[:, :, heads].any(3).permute(2, 0, 1)
    if not model.has_post_norm(layer):
        shares = model.head_outputs(layer, z - own, heads.flatten().tolist())
        summed = shares.unflatten(0, heads.shape).sum(1)
        return live, lambda member, example, position: summed[member, example, position]

    def through_the_norm(member: Tensor, example: Tensor, position: Tensor) -> Tensor:
        patched = own[example, position]
        rows = torch.arange(len(patched), device=patched.device)[:, None]
        patched[rows, heads[member]] = z[example, position][rows, heads[member]]
        return model.attn_output(layer, patched) - base.attn_out[layer][example, position]

    return live, through_the_norm


def _patched_z(runs: Runs, site: Site, layer: int, where: Bool[Tensor, "batch seq"]) -> Tensor:
    """The z of every head with every head's value of this site put in at these tokens."""
    model, base, source = runs.model, runs.base, runs.source
    q, k, v = base.q[layer], base.k[layer], base.v[layer]
    if site.name == "head_z":
        return source.z[layer]
    if site.name == "pattern":
        return torch.einsum("bhqk,bkhd->bqhd", source.pattern[layer].to(v.dtype), v)
    values = {Slot.Q: q, Slot.K: k, Slot.V: v}
    slot = Slot(site.name[-1])
    theirs = {Slot.Q: source.q, Slot.K: source.k, Slot.V: source.v}[slot][layer]
    values[slot] = torch.where(where[..., None, None], theirs, values[slot])
    return model.attend(layer, values[Slot.Q], values[Slot.K], values[Slot.V], runs.baseline.arguments)


def _neurons(runs: Runs, _site: Site, layer: int, members: Sequence[int], _where: Tensor) -> tuple[Tensor, Delta]:
    """Neurons: one column of the output projection each, behind a post-norm the whole MLP's output again."""
    model, base = runs.model, runs.base
    chosen = torch.tensor(list(members), device=base.resid_final.device)
    own = model.mlp_hidden(layer, mlp_input(model, base, layer))
    change = runs.hidden(layer)[..., chosen] - own[..., chosen]
    live = (change != 0).permute(2, 0, 1)

    if not model.has_post_norm(layer):
        weight = model.neuron_weight(layer)
        return (
            live,
            lambda member, example, position: change[example, position, member][:, None] * weight[chosen[member]],
        )

    def through_the_norm(member: Tensor, example: Tensor, position: Tensor) -> Tensor:
        patched = own[example, position]
        patched[torch.arange(len(patched), device=patched.device), chosen[member]] += change[example, position, member]
        return model.mlp_from_hidden(layer, patched) - base.mlp_out[layer][example, position]

    return live, through_the_norm


_WAYS = {Member.NONE: _stream, Member.HEAD: _heads, Member.KV_HEAD: _heads, Member.NEURON: _neurons}
