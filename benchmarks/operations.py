"""Operations of matrix products, counted while they run: what a forward pass costs, and what a job costs in passes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Not in torch's table: attention on the CPU, two products of queries, keys and values; and oneDNN's product, which is
# missing from some builds.
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class Counted(TorchDispatchMode):
    """Counts the operations of all matrix products inside the block, those of backward passes included.

    Two operations are one multiplication with its addition, as torch counts them.

    Attributes:
        total: So far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._basic = set[Any]()  # operations that consist of no others

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation and count it; see `TorchDispatchMode`.

        Returns:
            Its result.
        """
        given = dict(kwargs or {})
        packet = func._overloadpacket
        if packet not in flop_registry and func not in self._basic:
            with self:  # an operation that consists of others, under inference mode
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
            self._basic.add(func)
        found = func(*args, **given)
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **given, out_val=found)
        elif packet is ONEDNN:
            self.total += 2 * found.numel() * args[0].shape[-1]
        elif packet is ATTENTION:
            query, key, value = args[:3]
            scores = prod(query.shape[:-1]) * key.shape[-2]
            self.total += 2 * scores * (query.shape[-1] + value.shape[-1])
        return found
