"""Names of TransformerLens's hooks in other programs' files: of circuits and of autoencoders. Text only, no model.

ACDC calls the two ends of an edge by hooks: a writer by the hook of its output, a reader by the hook of its input,
heads with their number as the last entry of an index such as `[:, :, 3]`. Some of its edges lie inside a node (from a
head's query input to its query, from its query to its result) and are none of ours.

References:
    Conmy et al. 2023, arXiv:2304.14997.
"""

import re

from circuitlab.errors import UnknownNameError
from circuitlab.parts import Kind, Node, Reader, Slot

EMBEDDING, POSITIONS = "hook_embed", "hook_pos_embed"
_STREAM_IN = "blocks.0.hook_resid_pre"


def writer_of(hook: str, head: int | None) -> Node:
    """The node whose output this hook holds; token and position embeddings both are the input.

    Returns:
        The node.

    Raises:
        UnknownNameError: No node writes there, or a head has no number.
    """
    if hook in (EMBEDDING, POSITIONS, _STREAM_IN):
        return Node(Kind.INPUT)
    if match := re.fullmatch(r"blocks\.(\d+)\.hook_mlp_out", hook):
        return Node(Kind.MLP, int(match[1]))
    if match := re.fullmatch(r"blocks\.(\d+)\.attn\.hook_result", hook):
        return Node(Kind.HEAD, int(match[1]), _numbered(hook, head))
    raise UnknownNameError(
        f"no node writes to hook {hook!r}; writers are {EMBEDDING}, blocks.0.attn.hook_result[:, :, 3], "
        "blocks.0.hook_mlp_out."
    )


def reader_of(hook: str, head: int | None, n_layers: int) -> Reader:
    """What reads the stream at this hook; the stream after the last block is read by the logits.

    Returns:
        The reader.

    Raises:
        UnknownNameError: Nothing reads there, or a head has no number.
    """
    if match := re.fullmatch(r"blocks\.(\d+)\.hook_([qkv])_input", hook):
        return Reader(Node(Kind.HEAD, int(match[1]), _numbered(hook, head)), Slot(match[2]))
    if match := re.fullmatch(r"blocks\.(\d+)\.(?:hook_mlp_in|hook_resid_mid)", hook):
        return Reader(Node(Kind.MLP, int(match[1])))
    if hook == f"blocks.{n_layers - 1}.hook_resid_post":
        return Reader(Node(Kind.LOGITS))
    raise UnknownNameError(
        f"nothing reads the stream at hook {hook!r}; readers are blocks.0.hook_q_input[:, :, 3], "
        f"blocks.0.hook_mlp_in, blocks.{n_layers - 1}.hook_resid_post."
    )


def inside_a_node(child: str, parent: str) -> bool:
    """Whether an edge between these hooks lies inside one node.

    Returns:
        Whether it does.
    """
    layer = re.match(r"blocks\.\d+\.", child)
    if layer is None or not parent.startswith(layer[0]):
        return False
    ends = child.removeprefix(layer[0]), parent.removeprefix(layer[0])
    slots = {(f"attn.hook_{slot}", f"hook_{slot}_input") for slot in "qkv"}
    results = {("attn.hook_result", f"attn.hook_{slot}") for slot in "qkv"}
    return ends in slots | results | {("hook_mlp_out", "hook_mlp_in"), ("hook_mlp_out", "hook_resid_mid")}


def _numbered(hook: str, head: int | None) -> int:
    if head is None:
        raise UnknownNameError(f"hook {hook!r} holds all heads of a layer; its index must end with one's number.")
    return head


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

    Returns:
        The name, such as `blocks.3.hook_resid_post`.

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
