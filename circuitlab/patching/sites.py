"""Sites of a sweep: where a value of one run can be put into the other."""

from dataclasses import dataclass

from circuitlab.errors import UnknownNameError
from circuitlab.parts import ModelSpec


@dataclass(frozen=True, slots=True)
class Site:
    """A kind of place.

    Attributes:
        name: What users call it.
        by_head: Cells are (layer, head); otherwise (layer, position or span).
        what: One line for help and docs.
    """

    name: str
    by_head: bool
    what: str


SITES: dict[str, Site] = {
    site.name: site
    for site in (
        Site("resid_pre", False, "the residual stream before a block"),
        Site("resid_mid", False, "the residual stream between attention and MLP"),
        Site("resid_post", False, "the residual stream after a block"),
        Site("attn_out", False, "what an attention layer adds to the stream"),
        Site("mlp_out", False, "what an MLP adds to the stream"),
        Site("head_z", True, "a head's weighted sum of values, before its output projection"),
        Site("head_q", True, "a head's queries"),
        Site("head_k", True, "a head's keys (the model's own key/value heads)"),
        Site("head_v", True, "a head's values (the model's own key/value heads)"),
        Site("pattern", True, "a head's attention pattern"),
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
    if name == "resid_mid" and (spec.parallel or not spec.has_mlp):
        raise UnknownNameError(
            f"model {spec.name!r} has no site 'resid_mid': nothing stands between attention and MLP."
        )
    if name == "mlp_out" and not spec.has_mlp:
        raise UnknownNameError(f"model {spec.name!r} has no site 'mlp_out': it has attention layers only.")
    return SITES[name]


def n_columns(site: Site, spec: ModelSpec) -> int:
    """How many heads a by-head site has in each layer."""
    return spec.n_kv_heads if site.name in ("head_k", "head_v") else spec.n_heads
