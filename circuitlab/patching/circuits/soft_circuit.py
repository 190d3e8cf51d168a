"""Circuits with soft edges: every edge carries a mixture of its writer's output and its replacement.

    x_v = sum over u of z_uv a_u(current run) + (1 - z_uv) r_u

z = 1 keeps an edge, z = 0 cuts it, and at such masks this is the circuit run of `circuits`. Gradients follow z, so that
masks can be learned. At z = 1 everywhere the gradient of a metric with respect to z_uv is the EAP score of the edge.

References:
    Bhaskar et al. 2024, arXiv:2406.16778 (Edge Pruning), whose excluded edges carry the corrupted run's activations;
    auto-circuit's patch masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.models.protocol import Model
from circuitlab.models.steps import attend, mlp_input, project
from circuitlab.parts import Kind, Layout, Node, Reader, Slot
from circuitlab.patching.runs.ablation import AblatedRun, replacement_differences
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.writers import writer_outputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Some components of writers' outputs, on some of their edges; numbers 0 or 1.

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
        less: Part | None = None,
    ) -> Float[Tensor, "chosen d_model"]:
        """Final stream at the answer position.

        Args:
            z: Each example's mask, by the numbers of `Layout`; entries that are no edge of the model do not count.
            rows: Which examples of the batch; all by default.
            less: What is taken out of edges that z keeps: some neurons, on some edges.
        """
        rows = torch.arange(len(self), device=z.device) if rows is None else rows
        run = _SoftRun(self._layout, self._replaced[:, rows], z, less)
        run.add(self._input[rows][None])
        for layer in range(self.model.spec.n_layers):
            run.add(self._outputs_of_heads(run, layer, rows))
            if self.model.spec.has_mlp:
                run.add(self._mlp(run, layer, rows))
        at = self.baseline.batch.answer_at[rows]
        return run.at_answer(self._at_end[rows, at], at)

    def _outputs_of_heads(
        self, run: _SoftRun, layer: int, rows: Int[Tensor, " chosen"]
    ) -> Float[Tensor, "head chosen seq d_model"]:
        heads, own = range(self.model.spec.n_heads), self._at_heads[layer][rows]

        def values(slot: Slot) -> Tensor:
            first = self._layout.reader_index(Reader(Node(Kind.HEAD, layer, 0), slot))
            read = project(self.model, layer, slot, heads, run.read(first, len(heads), own))
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
    """How far each writer so far is from its replacement."""

    def __init__(
        self,
        layout: Layout,
        replaced: Float[Tensor, "writer batch seq d_model"],
        z: Float[Tensor, "batch writer reader"],
        less: Part | None,
    ) -> None:
        self._layout, self._replaced, self._z, self._less = layout, replaced, z, less
        self._differences = replaced[:0]

    def add(self, outputs: Float[Tensor, "_ batch seq d_model"]) -> None:
        """Keep the outputs of the next writers."""
        start = len(self._differences)
        self._differences = torch.cat([self._differences, outputs - self._replaced[start : start + len(outputs)]])

    def read(
        self, column: int, n: int, ablated: Float[Tensor, "batch seq d_model"]
    ) -> Float[Tensor, "reader batch seq d_model"]:
        """What `n` readers from this one on read, which see the same writers."""
        visible = self._layout.visible[column]
        # In a parallel block the MLP does not see the heads; a slice of everything would cost a copy on the way back.
        seen = self._differences if visible == len(self._differences) else self._differences[:visible]
        read = einsum(
            self._z[:, :visible, column : column + n],
            seen,
            "batch writer reader, writer batch seq d_model -> reader batch seq d_model",
        )
        if self._less is not None:
            edges, neurons = self._less.edges[:visible, column : column + n], self._less.neurons[:visible]
            read = read - einsum(
                edges,
                neurons,
                seen,
                "writer reader, writer d_model, writer batch seq d_model -> reader batch seq d_model",
            )
        return ablated + read

    def at_answer(
        self, ablated: Float[Tensor, "batch d_model"], at: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch d_model"]:
        """What the logits read."""
        there = self._differences[:, torch.arange(len(at), device=at.device), at]
        read = einsum(self._z[:, : len(there), -1], there, "batch writer, writer batch d_model -> batch d_model")
        if self._less is not None:
            edges, neurons = self._less.edges[: len(there), -1], self._less.neurons[: len(there)]
            read = read - einsum(edges, neurons, there, "writer, writer d_model, writer batch d_model -> batch d_model")
        return ablated + read
