"""Put something else in the place of an activation, in whole forward passes of a bridge, for a while.

Under the bridge the stream in the middle of a block has no module of its own whose output all that follows reads: it is
changed by changing what attention adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from circuitlab.models.anatomy import attn_adds, mlp_adds, mlp_down
from circuitlab.models.families import family_of
from circuitlab.models.surgery import hooks

Change = Callable[[Tensor], Tensor]


@contextmanager
def rewriting(bridge: Any, site: str, layer: int, change: Change) -> Iterator[None]:
    """Every forward pass inside has `change(activation)` in the place of an activation; nothing is left behind.

    Args:
        bridge: A booted `TransformerBridge`.
        site: A stream, what a sublayer adds to it, `head_z` (all heads side by side), or `neuron` (all of an MLP).
        layer: In which layer.
        change: From the activation `[batch, seq, width]` to what takes its place.
    """
    block, family = bridge.blocks[layer], family_of(bridge)
    factor = family.residual_multiplier

    def added(out: Tensor) -> Tensor:
        return change(out * factor) / factor

    with hooks() as add:
        if site == "resid_pre":
            add.input(block, change)
        elif site == "resid_post":
            add.output(block, change)
        elif site == "attn_out":
            add.output(attn_adds(block, family), added)
        elif site == "mlp_out":
            add.output(mlp_adds(block, family), added)
        elif site == "head_z":
            add.input(block.attn.o, lambda z: change(z.flatten(2)).reshape(z.shape))
        elif site == "neuron":
            add.output(mlp_down(block).hook_in, change)
        else:
            assert site == "resid_mid", f"no way to rewrite {site}"
            before: list[Tensor] = []
            add.input(block, before.append)
            add.output(
                attn_adds(block, family), lambda out: (change(before[-1] + out * factor) - before.pop()) / factor
            )
        yield
