"""Sites of a sweep: where a value of one run can be replaced by that of another."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from circuitlab import names
from circuitlab.errors import UnknownNameError
from circuitlab.models.steps import mlp_reads_heads
from circuitlab.parts import ModelSpec


class Entry(Enum):
    """Where in its block a patch enters the stream."""

    BEFORE = "before the block"
    MIDDLE = "between attention and MLP"
    AFTER = "after the block"


class Member(Enum):
    """What a site has several of in every layer."""

    NONE = ""
    HEAD = "head"
    KV_HEAD = "key/value head"
    NEURON = "neuron"


@dataclass(frozen=True, slots=True)
class Site:
    """A kind of place.

    Attributes:
        name: What users call it.
        entry: Where its patch enters the stream.
        member: Whether each layer has it once, once a head, or once a neuron.
        what: One line for help and docs.
    """

    name: str
    entry: Entry
    member: Member
    what: str

    @property
    def by_head(self) -> bool:
        """Whether cells are (layer, head)."""
        return self.member in (Member.HEAD, Member.KV_HEAD)

    @property
    def by_member(self) -> bool:
        """Whether a layer has several: heads or neurons."""
        return self.member is not Member.NONE

    @property
    def kind(self) -> str:
        """What the members are called in tables: "head" or "neuron"."""
        return "neuron" if self.member is Member.NEURON else "head"


SITES: dict[str, Site] = {
    site.name: site
    for site in (
        Site("resid_pre", Entry.BEFORE, Member.NONE, names.SITES["resid_pre"]),
        Site("resid_mid", Entry.MIDDLE, Member.NONE, names.SITES["resid_mid"]),
        Site("resid_post", Entry.AFTER, Member.NONE, names.SITES["resid_post"]),
        Site("attn_out", Entry.MIDDLE, Member.NONE, names.SITES["attn_out"]),
        Site("mlp_out", Entry.AFTER, Member.NONE, names.SITES["mlp_out"]),
        Site("head_z", Entry.MIDDLE, Member.HEAD, names.SITES["head_z"]),
        Site("head_q", Entry.MIDDLE, Member.HEAD, names.SITES["head_q"]),
        Site("head_k", Entry.MIDDLE, Member.KV_HEAD, names.SITES["head_k"]),
        Site("head_v", Entry.MIDDLE, Member.KV_HEAD, names.SITES["head_v"]),
        Site("pattern", Entry.MIDDLE, Member.HEAD, names.SITES["pattern"]),
        Site("neuron", Entry.AFTER, Member.NEURON, names.SITES["neuron"]),
    )
}


def find_site(name: str, spec: ModelSpec) -> Site:
    """The site with this name, if the model has it.

    Raises:
        UnknownNameError: There is no such site, or this model has none: attention-only models have no `mlp_out`, blocks
            whose attention and MLP read the same stream no `resid_mid`.
    """
    if name not in SITES:
        raise UnknownNameError.of("site", name, SITES)
    if name == "resid_mid" and not mlp_reads_heads(spec):
        raise UnknownNameError(
            f"model {spec.name!r} has no site 'resid_mid': nothing stands between attention and MLP."
        )
    if name in ("mlp_out", "neuron") and not spec.has_mlp:
        raise UnknownNameError(f"model {spec.name!r} has no site {name!r}: it has attention layers only.")
    return SITES[name]


def enters_at(site: Site, layer: int) -> int:
    """The first whole block that runs after a patch; `n_layers` where none does."""
    return layer if site.entry is Entry.BEFORE else layer + 1
