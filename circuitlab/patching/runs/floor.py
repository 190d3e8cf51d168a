"""The floor of a circuit: the run in which every edge carries its replacement, and none what its writer says.

A circuit run starts from there and adds, along its kept edges, how far each writer is from its replacement. Where the
replacement is the corrupted run, a writer that reads nothing changed is its replacement. With zeros or means it is not:
a node still computes something from what it reads at the floor, and its *offset* is how far that is from the value that
stands in for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.models.protocol import Model, Recording
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.writers import writer_differences, writer_outputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Floor:
    """The run with every edge replaced.

    Streams are what readers read there: biases of attention layers and the replacements `r_u` of all writers before.
    Everything else is what a node makes of it, which nobody reads there.

    Attributes:
        run: `resid_pre` and `resid_final` are streams, and `attn_out` is the step between them (the layer's replaced
            heads and its bias), so that `resid_pre + attn_out` is what the MLP reads. `q`, `k`, `v`, `pattern`, `z` and
            `mlp_out` are the nodes' own.
        offsets: By writer number, a node's own output there minus its replacement `r_u`; a writer without one is its
            replacement there. The input needs none: what it says is the clean run's embedding, and its replacement is
            `run.resid_pre[0]`.
    """

    run: Recording
    offsets: Mapping[int, Float[Tensor, "batch seq d_model"]]

    @classmethod
    def corrupted(cls, baseline: Baseline) -> Floor:
        """Excluded edges carry what their writer says in the corrupted run (resample ablation)."""
        return cls(run=baseline.corrupt, offsets={})


@torch.no_grad()
def replaced_apart(
    model: Model, baseline: Baseline, floor: Floor | None = None
) -> Float[Tensor, "writer batch seq d_model"]:
    """How far what replaces each writer is from what it says in the clean run."""
    if floor is None or floor.run is baseline.corrupt:
        return -writer_differences(model, baseline)
    apart = writer_outputs(model, floor.run) - writer_outputs(model, baseline.clean)
    for writer in range(1, len(apart)):
        if writer in floor.offsets:
            apart[writer] -= floor.offsets[writer]
    return apart
