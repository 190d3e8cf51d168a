"""Circuits with soft edges: every edge carries a mixture of its writer's output and its replacement.

    x_v = sum over u of z_uv a_u(current run) + (1 - z_uv) r_u

z = 1 keeps an edge, z = 0 cuts it, and at such masks this is the circuit run of `circuits`. Gradients follow z, so that
masks can be learned. At z = 1 everywhere the gradient of a metric with respect to z_uv is the EAP score of the edge.

References:
    Bhaskar et al. 2024, arXiv:2406.16778 (Edge Pruning), whose excluded edges carry the corrupted run's activations;
    auto-circuit's patch masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.graphs.prune import real_edges
from circuitlab.models.protocol import Model
from circuitlab.models.steps import attend, mlp_input, project
from circuitlab.parts import Kind, Layout, Node, Reader, Slot
from circuitlab.patching.runs.ablation import AblatedRun, replacement_differences
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.packing import packs, rows_per_pack
from circuitlab.patching.runs.writers import writer_outputs
from circuitlab.resources import Resources


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Removed:
    """Components of writers' outputs that are replaced on some of their edges; numbers 0 or 1.

    Attributes:
        edges: On which edges.
        neurons: Which components of each writer's output.
    """

    edges: Float[Tensor, "writer reader"]
    neurons: Float[Tensor, "writer d_model"]


class SoftCircuit:
    """One batch, ready to run with soft masks.

    Args:
        model: The model.
        baseline: The batch, run clean and corrupted.
        ablated: The run with every edge replaced; the corrupted run by default.
    """

    def __init__(self, model: Model, baseline: Baseline, ablated: AblatedRun | None = None) -> None:
        self.model, self.baseline = model, baseline
        self._layout = Layout.of(model.spec)
        run = baseline.corrupt if ablated is None else ablated.run
        # Under causal attention no token after the last answer reaches an answer.
        last = int(baseline.batch.answer_at.max()) + 1 if model.spec.causal else baseline.batch.n_tokens
        self._n_tokens = last
        self._replaced = (replacement_differences(model, baseline, ablated) + writer_outputs(model, baseline.clean))[
            :, :, :last
        ]
        self._input = baseline.clean.resid_pre[0][:, :last]
        self._at_heads = [stream[:, :last] for stream in run.resid_pre]
        self._at_mlps = [mlp_input(model, run, layer)[:, :last] for layer in range(model.spec.n_layers)]
        self._at_end = run.resid_final[:, :last]

    def __len__(self) -> int:
        return len(self.baseline.batch)

    def final(
        self,
        z: Float[Tensor, "chosen writer reader"],
        rows: Int[Tensor, " chosen"] | None = None,
        removed: Removed | None = None,
    ) -> Float[Tensor, "chosen d_model"]:
        """Final stream at the answer position.

        Args:
            z: Each example's mask, by the numbers of `Layout`; entries that are no edge of the model do not count.
            rows: Which examples of the batch; all by default.
            removed: What edges that z keeps carry the replacement of.

        Returns:
            Streams `[chosen, d_model]`; gradients with respect to the mask follow if they are on.
        """
        rows = torch.arange(len(self), device=z.device) if rows is None else rows
        run = _SoftRun(self._layout, self._replaced[:, rows], z, removed)
        run.add(self._input[rows][None])
        for layer in range(self.model.spec.n_layers):
            run.add(self._outputs_of_heads(run, layer, rows))
            if self.model.spec.has_mlp:
                run.add(self._mlp(run, layer, rows))
        column = len(self._layout.readers) - 1
        return run.read(column, 1, self._at_end[rows], self.baseline.batch.answer_at[rows])[0, :, 0]

    def _outputs_of_heads(
        self, run: _SoftRun, layer: int, rows: Int[Tensor, " chosen"]
    ) -> Float[Tensor, "head chosen seq d_model"]:
        heads, at_heads = range(self.model.spec.n_heads), self._at_heads[layer][rows]

        def values(slot: Slot) -> Tensor:
            first = self._layout.reader_index(Reader(Node(Kind.HEAD, layer, 0), slot))
            read = project(self.model, layer, slot, heads, run.read(first, len(heads), at_heads))
            return self._whole(rearrange(read, "head batch seq d_head -> batch seq head d_head"))

        z = attend(self.model, layer, {slot: values(slot) for slot in Slot}, self.baseline.arguments)
        return self.model.head_outputs(layer, z[:, : self._n_tokens])

    def _mlp(self, run: _SoftRun, layer: int, rows: Int[Tensor, " chosen"]) -> Float[Tensor, "1 chosen seq d_model"]:
        column = self._layout.reader_index(Reader(Node(Kind.MLP, layer)))
        return self.model.mlp_output(layer, run.read(column, 1, self._at_mlps[layer][rows]))

    def _whole(self, values: Float[Tensor, "batch seq head d_head"]) -> Float[Tensor, "batch _ head d_head"]:
        """Padded to the length that blocks are called with; no token that counts attends to the padding."""
        missing = self.baseline.batch.n_tokens - self._n_tokens
        return torch.nn.functional.pad(values, (0, 0, 0, 0, 0, missing)) if missing else values


class _SoftRun:
    """The difference of each writer so far to its replacement."""

    def __init__(
        self,
        layout: Layout,
        replaced: Float[Tensor, "writer batch seq d_model"],
        z: Float[Tensor, "batch writer reader"],
        removed: Removed | None,
    ) -> None:
        self._layout, self._replaced, self._z, self._removed = layout, replaced, z, removed
        self._differences = replaced[:0]

    def add(self, outputs: Float[Tensor, "_ batch seq d_model"]) -> None:
        """Keep the outputs of the next writers."""
        start = len(self._differences)
        self._differences = torch.cat([self._differences, outputs - self._replaced[start : start + len(outputs)]])

    def read(
        self,
        column: int,
        n: int,
        ablated: Float[Tensor, "batch seq d_model"],
        at: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "reader batch _ d_model"]:
        """The inputs of `n` readers from this one on, which see the same writers.

        Args:
            column: The first of them.
            n: How many.
            ablated: Their input in the ablated run.
            at: One position of each example; all by default.
        """
        visible, readers = self._layout.visible[column], slice(column, column + n)
        # In a parallel block the MLP does not see the heads; a slice of everything would cost a copy on the way back.
        seen = self._differences if visible == len(self._differences) else self._differences[:visible]
        if at is not None:
            rows = torch.arange(len(at), device=at.device)
            seen, ablated = seen[:, rows, at][:, :, None], ablated[rows, at][:, None]
        axes = "writer batch seq d_model -> reader batch seq d_model"
        read = einsum(self._z[:, :visible, readers], seen, f"batch writer reader, {axes}")
        if self._removed is not None:
            edges, neurons = self._removed.edges[:visible, readers], self._removed.neurons[:visible]
            read = read - einsum(edges, neurons, seen, f"writer reader, writer d_model, {axes}")
        return ablated + read


@torch.no_grad()
def run_without(
    model: Model,
    baseline: Baseline,
    ablated: AblatedRun,
    removed: Bool[np.ndarray, "circuit writer reader"],
    neurons: Bool[np.ndarray, "writer d_model"],
    resources: Resources,
) -> Iterator[tuple[int, Float[Tensor, "batch d_model"]]]:
    """Run the whole model with some neurons replaced on some edges: the complement of a circuit of neurons.

    A circuit that keeps some neurons of a node carries these along its edges. Its complement is everything else: all
    other edges, and along its own edges the other neurons. So a reader's input is

        x_v = sum over all u of a_u - sum over edges u -> v that are removed of n_u (a_u - r_u)

    with n_u 1 for kept neurons and 0 for others. Every node is computed, one circuit after the other.

    Args:
        model: A model of `load_model`.
        baseline: One batch, run clean and corrupted.
        ablated: The run of it in which every edge is replaced.
        removed: Edges on which these neurons are replaced, one mask a circuit.
        neurons: Which components of each writer's output.
        resources: Bytes that a packed run may take.

    Yields:
        The number of a circuit, and the final stream at the answer without it.

    Raises:
        UnsupportedModelError: The model is not one that `load_model` made.
    """
    layout, like = Layout.of(model.spec), {"dtype": model.dtype, "device": model.device}
    whole, kept = torch.tensor(real_edges(layout), **like), torch.tensor(neurons, **like)
    batch, circuit = baseline.batch, SoftCircuit(model, baseline, ablated)
    at_once = rows_per_pack(model, batch.n_tokens, resources, len(layout.writers) + 3 * model.spec.n_heads)
    for number, edges in enumerate(removed):
        part = Removed(edges=torch.tensor(edges, **like) * whole, neurons=kept)
        found = []
        for chosen in packs(len(batch), at_once):
            rows = torch.arange(chosen.start, chosen.stop, device=model.device)
            found.append(circuit.final(whole.expand(len(rows), *whole.shape), rows, part))
        yield number, torch.cat(found)
