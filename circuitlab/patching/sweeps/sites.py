"""Sites of a sweep: where a value of one run can be replaced by that of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from jaxtyping import Float
from torch import Tensor

from circuitlab import names, plugins
from circuitlab.arguments import checked_fields
from circuitlab.data.checks import check_name
from circuitlab.errors import ConfigError, TaskError, UnknownNameError, WrongTypeError, shown
from circuitlab.models.protocol import Model, Recording
from circuitlab.models.steps import mlp_reads_heads
from circuitlab.parts import Kind, ModelSpec, Node

# Of (model, run, layer): what a site adds to the stream.
ReadSite = Callable[[Model, Recording, int], Float[Tensor, "batch seq *head d_model"]]


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


@checked_fields
@dataclass(frozen=True, slots=True)
class Site:
    """A kind of place.

    A site of your own has a function `read` that returns what it adds to the stream in a run. A patch adds the
    difference of its values in the two runs, where the site enters the stream.

    Attributes:
        name: What users call it; files of a run folder are named after it.
        entry: Where its patch enters the stream.
        member: Whether each layer has it once, once a head, or once a neuron.
        what: One line for help and docs.
        read: Of (model, run, layer), returns what the site adds to the stream, `[batch, seq, d_model]`, or with
            `Member.HEAD` what each head does, `[batch, seq, head, d_model]`. Built-in sites need none.

    Raises:
        WrongTypeError: A field is of another type than stated.
        ConfigError: No file could be named after the name.

    Example:
        >>> def first_heads(model, run, layer):
        ...     return model.head_outputs(layer, run.z[layer], [0, 1]).sum(0)
        >>> Site("first_heads", Entry.MIDDLE, read=first_heads).by_head
        False
    """

    name: str
    entry: Entry
    member: Member = Member.NONE
    what: str = ""
    read: ReadSite | None = None

    def __post_init__(self) -> None:
        try:
            check_name("name of a site", self.name, "files of the run folder")
        except TaskError as error:
            raise ConfigError(str(error)) from None

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


def named_site(site: str | Site) -> Site:
    """The site that is meant by a name of `SITES` or of the entry points `circuitlab.sites`, or a `Site` of the user.

    Returns:
        The site.

    Raises:
        UnknownNameError: No site has this name.
        ConfigError: A site of the user has the name of a built-in one, or cannot be read; two packages list the
            name.
        WrongTypeError: Another package lists something else than a `Site`.
    """
    if isinstance(site, str) and site not in SITES:
        found = plugins.find("sites", site, SITES)
        if not isinstance(found, Site):
            raise WrongTypeError(f"site {site!r} of the entry points is {shown(found)}; it must be a Site.")
        site = replace(found, name=site)
    if isinstance(site, str) or SITES.get(site.name) == site:
        return SITES[site if isinstance(site, str) else site.name]
    if site.name in SITES:
        raise ConfigError(f"site {site.name!r} is built in. Give your Site another name.")
    if site.read is None or site.member not in (Member.NONE, Member.HEAD):
        raise ConfigError(
            f"site {site.name!r} has {'no read' if site.read is None else f'members {site.member.value!r}'}. A Site of "
            "your own has read=, a function of (model, run, layer), and a member of Member.NONE or Member.HEAD."
        )
    return site


def find_site(site: str | Site, spec: ModelSpec) -> Site:
    """The site that is meant, if the model has it; see `named_site`.

    Returns:
        The site.

    Raises:
        UnknownNameError: There is no such site, or this model has none: attention-only models have no `mlp_out`, blocks
            whose attention and MLP read the same stream no `resid_mid`.
    """
    found = named_site(site)
    name = found.name
    if name == "resid_mid" and not mlp_reads_heads(spec):
        raise UnknownNameError(f"model {spec.name!r} has no site 'resid_mid': attention and MLP read the same stream.")
    if name in ("mlp_out", "neuron") and not spec.has_mlp:
        raise UnknownNameError(f"model {spec.name!r} has no site {name!r}: it has attention layers only.")
    return found


# Sites that outputs of nodes determine, and so functions as ablations.
SUMS_OF_NODES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_z")


def nodes_of(site: Site, writers: Sequence[Node], layer: int, head: int) -> list[Node]:
    """The nodes whose outputs, with biases, sum to a site of `SUMS_OF_NODES`.

    Returns:
        The nodes, in the order of the writers.
    """
    before = [node for node in writers if node.layer is None or node.layer < layer]
    heads = [node for node in writers if node.layer == layer and node.kind is Kind.HEAD]
    mlps = [node for node in writers if node.layer == layer and node.kind is Kind.MLP]
    return {
        "resid_pre": before,
        "resid_mid": [*before, *heads],
        "resid_post": [*before, *heads, *mlps],
        "attn_out": heads,
        "mlp_out": mlps,
        "head_z": heads[head : head + 1],
    }[site.name]


def enters_at(site: Site, layer: int) -> int:
    """The first whole block that runs after a patch; `n_layers` where none does.

    Returns:
        Number of the block.
    """
    return layer if site.entry is Entry.BEFORE else layer + 1
