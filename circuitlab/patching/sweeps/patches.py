"""What each cell of a sweep adds to the stream, token by token, worked out when a pack needs it.

A cell is a member (a head, a neuron; the whole layer for the others) at the tokens of a column. Heads of a layer do not
see each other, so all of them are patched in one call of the attention code and each cell takes its own head's z. Where
one norm spans all heads' queries or keys each cell has a call of its own, and takes the z of every head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.errors import CircuitLabError, ConfigError, in_one_line, shown
from circuitlab.models.changes import Change, change_of_heads, change_of_neurons
from circuitlab.models.protocol import Model, Recording
from circuitlab.models.steps import attend, changes_other_heads, query_heads, weigh_values
from circuitlab.parts import Layout, Slot
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.replacement import Replacement
from circuitlab.patching.runs.writers import replacement_messages
from circuitlab.patching.sweeps.sites import Member, Site, nodes_of


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
        start: Place of the first member among those of the sweep.
    """

    site: Site
    layer: int
    columns: Sequence[int]
    members: Sequence[int]
    live: Bool[Tensor, "member batch seq"]
    tokens: Bool[Tensor, "column batch seq"]
    delta: Change
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """The run that is patched and the one that values are taken from.

    Attributes:
        model: The model.
        baseline: The batch they come from.
        base: The run that is patched.
        source: The replacement of each activation; the patched run where a function gives outputs of nodes.
        hidden: The replacement of an MLP's neurons, by layer.
        ablation: What gives the replacements, resolved.
    """

    model: Model
    baseline: Baseline
    base: Recording
    source: Recording
    hidden: Callable[[int], Float[Tensor, "batch seq neuron"]]
    ablation: Replacement


def patches_of(
    runs: Runs, site: Site, layer: int, members: Sequence[int], tokens: Bool[Tensor, "column batch seq"]
) -> Iterator[Patches]:
    """All cells of a site at a layer.

    A key or value at one position changes its head's z at every one that sees it, so there each column is worked out
    by itself; everywhere else the columns are cuts of one difference.
    """
    if len(members) > 1 and _changes_other_heads(runs.model, site, layer):
        for start, member in enumerate(members):
            yield from (replace(one, start=start) for one in patches_of(runs, site, layer, [member], tokens))
        return
    everywhere = torch.ones_like(tokens[:1])
    changes = _WAYS[site.member] if site.read is None else _of_the_user
    changes = changes if runs.ablation.function is None else _of_outputs
    groups: list[tuple[Sequence[int], Tensor, Tensor]] = [(range(len(tokens)), tokens, everywhere[0])]
    if site.member is Member.KV_HEAD and not bool(tokens.all()):
        groups = [([column], everywhere, mask) for column, mask in enumerate(tokens)]
    for columns, inside, where in groups:
        live, delta = changes(runs, site, layer, members, where)
        yield Patches(
            site=site, layer=layer, columns=columns, members=members, live=live, tokens=inside, delta=delta
        )  # fmt: skip


def _stream(runs: Runs, site: Site, layer: int, _members: Sequence[int], _where: Tensor) -> tuple[Tensor, Change]:
    """Sites that a layer has once: the difference of the runs."""
    return _change((runs.source.at(site.name, layer) - runs.base.at(site.name, layer))[None])


def _change(difference: Float[Tensor, "member batch seq d_model"]) -> tuple[Tensor, Change]:
    """Where members differ between the runs, and what their patches add."""
    return (difference != 0).any(3), lambda member, example, position: difference[member, example, position]


def _heads(runs: Runs, site: Site, layer: int, members: Sequence[int], where: Tensor) -> tuple[Tensor, Change]:
    """Heads: what their changed z adds through the output projection."""
    spec = runs.model.spec
    groups = [query_heads(spec, m) if site.member is Member.KV_HEAD else [m] for m in members]
    if _changes_other_heads(runs.model, site, layer):
        z = _patched_z(runs, site, layer, where, groups[0])
        groups = [list(range(spec.n_heads))]
    else:
        z = _patched_z(runs, site, layer, where)
    heads = torch.tensor(groups, device=z.device)
    live = rearrange((z != runs.base.z[layer]).any(3)[:, :, heads].any(3), "batch seq member -> member batch seq")
    return live, change_of_heads(runs.model, runs.base, layer, z, heads)


def _changes_other_heads(model: Model, site: Site, layer: int) -> bool:
    """Whether a patch of one head changes the z of others, so that each member has a call of its own."""
    return site.name in ("head_q", "head_k") and changes_other_heads(model, layer, Slot(site.name[-1]))


def _patched_z(
    runs: Runs, site: Site, layer: int, where: Bool[Tensor, "batch seq"], heads: Sequence[int] | None = None
) -> Tensor:
    """The z of every head with these heads' values of this site (by default all heads') replaced at these tokens."""
    base, source = runs.base, runs.source
    if site.name == "head_z":
        return source.z[layer]
    if site.name == "pattern":
        return weigh_values(source.pattern[layer], base.v[layer])
    slot, inputs = Slot(site.name[-1]), base.head_inputs(layer)
    there = where[..., None]
    if heads is not None:
        every = torch.arange(runs.model.spec.n_heads, device=where.device)
        there = there & torch.isin(every, torch.tensor(heads, device=where.device))
    inputs[slot] = torch.where(there[..., None], source.head_inputs(layer)[slot], inputs[slot])
    return attend(runs.model, layer, inputs, runs.baseline.arguments)


def _neurons(runs: Runs, _site: Site, layer: int, members: Sequence[int], _where: Tensor) -> tuple[Tensor, Change]:
    """Neurons: what their changed values add."""
    chosen = torch.tensor(list(members), device=runs.base.resid_final.device)
    change, delta = change_of_neurons(runs.model, runs.base, layer, runs.hidden(layer), chosen)
    return rearrange(change != 0, "batch seq member -> member batch seq"), delta


def _of_outputs(runs: Runs, site: Site, layer: int, members: Sequence[int], _where: Tensor) -> tuple[Tensor, Change]:
    """Sites that are sums of nodes' outputs, which a function of the user gives."""
    writers = Layout.of(runs.model.spec).writers
    groups = [nodes_of(site, writers, layer, member) for member in members]
    messages = partial(replacement_messages, runs.model, runs.ablation, runs.baseline, runs.base)
    return _change(torch.stack([reduce(torch.add, (messages([node])[0] for node in group)) for group in groups]))


def _of_the_user(runs: Runs, site: Site, layer: int, members: Sequence[int], _where: Tensor) -> tuple[Tensor, Change]:
    """Sites of the user: the difference of what they add to the stream in the two runs."""
    found = _read(runs, site, layer, runs.source) - _read(runs, site, layer, runs.base)
    heads = rearrange(found, "batch seq head d_model -> head batch seq d_model") if site.by_member else found[None]
    return _change(heads[list(members)])


def _read(runs: Runs, site: Site, layer: int, run: Recording) -> Float[Tensor, "batch seq *head d_model"]:
    """What a site of the user adds in a run.

    Raises:
        ConfigError: Its function raised, or returned another shape or values that are not finite.
    """
    assert site.read is not None
    try:
        found = site.read(runs.model, run, layer)
    except (CircuitLabError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit() in a function of the user must not end the program
        raise ConfigError(f"site {site.name!r} raised {in_one_line(error)}") from error
    heads = [runs.model.spec.n_heads] if site.by_member else []
    stream = run.resid_pre[layer].shape
    wanted = (*stream[:2], *heads, stream[2])
    if not torch.is_tensor(found) or tuple(found.shape) != wanted:
        got = f"shape {tuple(found.shape)}" if torch.is_tensor(found) else shown(found)
        named = "[batch, seq, head, d_model]" if heads else "[batch, seq, d_model]"
        raise ConfigError(f"site {site.name!r} returned {got}; it must return a tensor {named}, here {wanted}.")
    if not bool(found.isfinite().all()):
        raise ConfigError(f"site {site.name!r} returned NaN or infinite values at layer {layer}; they must be finite.")
    return found.detach().to(run.resid_final)


_WAYS = {Member.NONE: _stream, Member.HEAD: _heads, Member.KV_HEAD: _heads, Member.NEURON: _neurons}
