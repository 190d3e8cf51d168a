"""Hook points as TransformerLens names them, and the sites and layers they are. Text only, no model.

Sparse autoencoders say by such a name what they were trained on.
"""

import re

from circuitlab.errors import UnknownNameError

# What follows `blocks.{layer}.` -> site. The first name of a site is the one that is written.
_SITE_OF = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_z": "head_z",
    "mlp.hook_post": "neuron",
    # TransformerLens 4's own names for the two ends of a block.
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
}


def site_of_hook(hook: str) -> tuple[str, int]:
    """The site and layer of a hook point.

    Args:
        hook: Such as `blocks.5.hook_resid_pre`.

    Returns:
        The site by the name that sweeps use, and the layer.

    Raises:
        UnknownNameError: It is no hook point that autoencoders are known to sit at.

    Example:
        >>> site_of_hook("blocks.5.attn.hook_z")
        ('head_z', 5)
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if match is None or match[2] not in _SITE_OF:
        raise UnknownNameError(
            f"hook {hook!r} is none that an autoencoder can be attached to here. Known: "
            f"{', '.join(f'blocks.0.{name}' for name in _SITE_OF)}. If it is one of these under another name, give "
            "site= and layer= instead."
        )
    return _SITE_OF[match[2]], int(match[1])


def hook_of_site(site: str, layer: int) -> str:
    """The hook point of a site and layer.

    Raises:
        UnknownNameError: No hook point holds this site.

    Example:
        >>> hook_of_site("resid_post", 3)
        'blocks.3.hook_resid_post'
    """
    for name, known in _SITE_OF.items():
        if known == site:
            return f"blocks.{layer}.{name}"
    raise UnknownNameError.of("site of an autoencoder", site, dict.fromkeys(_SITE_OF.values()))
