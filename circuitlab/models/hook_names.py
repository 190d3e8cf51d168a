"""Names of TransformerLens's hooks as other programs' circuit files spell nodes with them. Text only, no model.

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
    """Whether an edge between these hooks lies inside one node."""
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
