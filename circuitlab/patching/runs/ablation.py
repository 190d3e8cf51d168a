"""The ablated run under any replacement: what every node reads, and computes, where no edge is kept.

1. The replacement of each writer, r_u, is fixed: the embedding, each head's z taken through the output projection, each
   MLP's output, as `replaced` has them for the clean run.
2. Every reader's stream is the sum of r_u over the writers before it and the biases of the attention layers before it,
   which belong to no writer and stay.
3. From its stream each node computes an output of its own. A kept edge out of it carries that, not r_u: the difference
   is the node's offset.

A post-norm after attention is linear once its scale is given. A head's r_u is taken with the scale of the
layer with all its heads replaced, so that they add up to what that layer adds; its own output with the scale of what
all heads of the layer compute in the ablated run, as in any circuit.

References:
    Conmy et al. 2023, arXiv:2304.14997 (zero ablation of edges); Mueller et al. 2025 (MIB), arXiv:2504.13151.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.models.changes import head_differences
from circuitlab.models.protocol import Model, Recording
from circuitlab.models.steps import attend, head_inputs, heads_interact, mlp_reads
from circuitlab.parts import Kind, Layout, Node, Slot
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.given_outputs import OfWriter, layer_outputs
from circuitlab.patching.runs.replacement import Replacement, replacement_values
from circuitlab.patching.runs.writers import writer_differences, writer_outputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AblatedRun:
    """The run with every edge replaced.

    Streams are what readers read there: biases of attention layers and the replacements `r_u` of all writers before.
    Everything else is what a node makes of it, which nobody reads there.

    Attributes:
        run: `resid_pre` and `resid_final` are streams, and `attn_out` is the step between them (the layer's replaced
            heads and its bias), so that `resid_pre + attn_out` is what the MLP reads. `q`, `k`, `v`, `pattern`, `z` and
            `mlp_out` are the nodes' own.
        offsets: By writer number, a node's own output there minus its replacement `r_u`; a writer without one is its
            replacement there. The input needs none: its output is the clean run's embedding, and its replacement is
            `run.resid_pre[0]`.
    """

    run: Recording
    offsets: Mapping[int, Float[Tensor, "batch seq d_model"]]

    @classmethod
    def corrupted(cls, baseline: Baseline) -> AblatedRun:
        """Excluded edges carry the output of their writer in the corrupted run (resample ablation).

        Returns:
            The run.
        """
        return cls(run=baseline.corrupt, offsets={})


@torch.no_grad()
def replacement_differences(
    model: Model, baseline: Baseline, ablated: AblatedRun | None = None
) -> Float[Tensor, "writer batch seq d_model"]:
    """The replacement of each writer minus its output in the clean run.

    Args:
        model: The model.
        baseline: One batch, run clean and corrupted.
        ablated: The run with every edge replaced; the corrupted run by default.

    Returns:
        One difference a writer, at every token, in the order of the layout.
    """
    if ablated is None or baseline.is_corrupt(ablated.run):
        return -writer_differences(model, baseline)
    differences = writer_outputs(model, ablated.run) - writer_outputs(model, baseline.clean)
    for writer in range(1, len(differences)):
        if writer in ablated.offsets:
            differences[writer] -= ablated.offsets[writer]
    return differences


@torch.no_grad()
def ablated_run(model: Model, baseline: Baseline, replacement: Replacement) -> AblatedRun:
    """The run in which every edge carries its replacement.

    Args:
        model: The model.
        baseline: One batch, run clean and corrupted.
        replacement: Resolved for the data set that the batch is of.

    Returns:
        For "corrupt" the corrupted run itself, without offsets. Else the streams and what nodes make of them;
        attention patterns are left as zeros, since nothing is computed from them.
    """
    if replacement.kind == "corrupt":
        return AblatedRun.corrupted(baseline)
    clean, n_layers = baseline.clean, range(model.spec.n_layers)
    if replacement.outputs is not None:
        replaced = _given(model, clean, replacement.outputs.of(baseline.batch))
    else:
        replace = replacement_values(model, replacement, baseline.batch)
        z = tuple(replace(("z", layer), clean.z[layer]) for layer in n_layers)
        replaced = _Replaced(
            embedding=replace(("resid_pre", 0), clean.resid_pre[0]),
            attn_out=tuple(model.attn_output(layer, z[layer]) for layer in n_layers),
            mlp_out=tuple(replace(("mlp_out", layer), clean.mlp_out[layer]) for layer in n_layers),
            z=z,
        )
    run = _ablated_recording(model, baseline, replaced)
    return AblatedRun(run=run, offsets=_Offsets(model, run, replaced))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Replaced:
    """The replacement of every writer's output; of heads together with the bias, and by their z or one by one."""

    embedding: Float[Tensor, "batch seq d_model"]
    attn_out: tuple[Float[Tensor, "batch seq d_model"], ...]
    mlp_out: tuple[Float[Tensor, "batch seq d_model"], ...]
    z: tuple[Float[Tensor, "batch seq head d_head"], ...] = ()
    heads: tuple[Float[Tensor, "head batch seq d_model"], ...] = ()


def _given(model: Model, clean: Recording, outputs: OfWriter) -> _Replaced:
    """The outputs that a function gives; the biases of attention layers, which belong to no head, stay."""
    layout, layers = Layout.of(model.spec), range(model.spec.n_layers)
    heads = tuple(layer_outputs(model.spec, outputs, layer) for layer in layers)
    biases = (_bias(model, clean, layer) for layer in layers)
    return _Replaced(
        embedding=outputs(0),
        attn_out=tuple(each.sum(0) + bias for each, bias in zip(heads, biases, strict=True)),
        mlp_out=tuple(
            outputs(layout.writer_index(Node(Kind.MLP, layer))) if model.spec.has_mlp else clean.mlp_out[layer]
            for layer in layers
        ),
        heads=heads,
    )


def _bias(model: Model, clean: Recording, layer: int) -> Float[Tensor, "batch seq d_model"]:
    """The bias of an attention layer; after a post-norm with the scale of the clean run."""
    z = clean.z[layer]
    alone = model.attn_output(layer, torch.zeros_like(z))
    if heads_interact(model, layer) and bool(alone.any()):
        return clean.attn_out[layer] - model.head_outputs(layer, z).sum(0)
    return alone


def _ablated_recording(model: Model, baseline: Baseline, replaced: _Replaced) -> Recording:
    spec, stream = model.spec, replaced.embedding
    kept: dict[str, list[Tensor]] = {name: [] for name in ("resid_pre", "attn_out", "mlp_out", "q", "k", "v", "z")}
    for layer in range(spec.n_layers):
        inputs = head_inputs(model, layer, stream)
        step = replaced.attn_out[layer]
        middle = stream + step
        read = mlp_reads(spec, stream, middle)
        values = {
            "resid_pre": stream,
            "attn_out": step,
            "mlp_out": model.mlp_output(layer, read) if spec.has_mlp else torch.zeros_like(stream),
            "q": inputs[Slot.Q],
            "k": inputs[Slot.K],
            "v": inputs[Slot.V],
            "z": attend(model, layer, inputs, baseline.arguments),
        }
        for name, value in values.items():
            kept[name].append(value)
        stream = middle + replaced.mlp_out[layer]
    nothing = tuple(pattern.new_zeros(()).expand(pattern.shape) for pattern in baseline.clean.pattern)
    return Recording(**{name: tuple(values) for name, values in kept.items()}, pattern=nothing, resid_final=stream)


class _Offsets(Mapping[int, Tensor]):
    """How far each writer's own output in the ablated run is from its replacement, computed when it is read.

    All at once they take a stream for every writer: 157 times the size of the residual stream in GPT-2.
    """

    def __init__(self, model: Model, run: Recording, replaced: _Replaced) -> None:
        self._model, self._run, self._replaced = model, run, replaced
        self._layout = Layout.of(model.spec)

    def __len__(self) -> int:
        return len(self._layout.writers) - 1  # not the input: it reads nothing

    def __iter__(self) -> Iterator[int]:
        return iter(range(1, len(self._layout.writers)))

    def __contains__(self, writer: object) -> bool:
        return isinstance(writer, int) and 1 <= writer < len(self._layout.writers)

    @torch.no_grad()
    def __getitem__(self, writer: int) -> Float[Tensor, "batch seq d_model"]:
        if writer not in self:
            raise KeyError(writer)
        node = self._layout.writers[writer]
        layer = node.layer or 0
        if node.kind is Kind.MLP:
            return self._run.mlp_out[layer] - self._replaced.mlp_out[layer]
        z, head = self._run.z[layer], node.head or 0
        if self._replaced.heads:
            return self._model.head_outputs(layer, z, [head])[0] - self._replaced.heads[layer][head]
        return head_differences(self._model, layer, z, self._replaced.z[layer], [head])[0]
