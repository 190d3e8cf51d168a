"""The two runs of path patching, packed: what the receivers read given the sender, and what follows from it.

A row is one sender and one example: under causal attention from the first token of the sender's message that differs to
the answer, else the whole prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.models.protocol import Model, Recording
from circuitlab.models.row_steps import Rows, RowSteps
from circuitlab.models.steps import add_mlp, after_heads, mlp_reads, mlp_reads_heads
from circuitlab.parts import Kind, Node, Reader, Slot
from circuitlab.patching.paths.plan import PathPlan
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.suffix import run_suffix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paths:
    """What all rows have in common.

    Attributes:
        plan: The receivers, and what is frozen before them.
        baseline: The batch, run clean and corrupted.
        base: The run that is patched.
    """

    plan: PathPlan
    baseline: Baseline
    base: Recording

    @property
    def model(self) -> Model:
        """The model that runs."""
        return self.plan.experiment.model

    def of_layer(self, layer: int, kind: Kind) -> list[Reader]:
        """The receivers of this kind in a layer.

        Returns:
            The receivers, in the order of the readers.
        """
        return [reader for reader in self.plan.receivers if reader.node.kind is kind and reader.node.layer == layer]

    @property
    def first_layer(self) -> int:
        """The layer of the first receiver; the number of layers for the logits."""
        return min(self._layers)

    @property
    def last_layer(self) -> int:
        """The layer of the last receiver."""
        return max(self._layers)

    @property
    def _layers(self) -> list[int]:
        end = self.model.spec.n_layers
        return [end if reader.node.layer is None else reader.node.layer for reader in self.plan.receivers]


@dataclass(slots=True, kw_only=True, eq=False)
class ReaderInputs:
    """What receivers read in the first run, at the rows' tokens.

    Attributes:
        heads: Layer -> the stream that its heads read.
        mlps: Layer -> the stream that its MLP reads.
        logits: The stream that the logits read, at the answer.
    """

    heads: dict[int, Float[Tensor, "token d_model"]] = field(default_factory=dict)
    mlps: dict[int, Float[Tensor, "token d_model"]] = field(default_factory=dict)
    logits: Float[Tensor, "row d_model"] | None = None


@torch.no_grad()
def run_paths(
    paths: Paths, sender: Node, rows: Rows, message: Float[Tensor, "token d_model"]
) -> Float[Tensor, "row d_model"]:
    """The final stream of the second run at each row's answer.

    Args:
        paths: What all rows have in common.
        sender: The node whose output is replaced (rows of several heads of one layer may share a run).
        rows: Senders and examples.
        message: What the stream gets more of than in the base run, at the rows' tokens.

    Returns:
        Streams `[row, d_model]`.
    """
    read_before = run_sender(paths, sender, rows, message)
    return read_before.logits if read_before.logits is not None else run_receivers(paths, rows, read_before)


def run_sender(paths: Paths, sender: Node, rows: Rows, message: Float[Tensor, "token d_model"]) -> ReaderInputs:
    """The first run: the sender's output is changed, what is frozen stays, and the receivers' inputs are kept.

    Returns:
        The inputs of the receivers.
    """
    model, base, n_layers = paths.model, paths.base, paths.model.spec.n_layers
    read_before, layer = ReaderInputs(), sender.layer or 0
    if sender.kind is Kind.HEAD:
        stream = rows.of(after_heads(model, base, layer)) + message
        if mlp_reads_heads(model.spec):
            stream = _after_mlp(paths, rows, read_before, stream, stream, layer)
        layer += 1
    else:
        layer += sender.kind is not Kind.INPUT
        stream = rows.of(base.stream(layer)) + message
    for at in range(layer, min(paths.last_layer + 1, n_layers)):
        if paths.of_layer(at, Kind.HEAD):
            read_before.heads[at] = stream
        if at == paths.last_layer and not paths.of_layer(at, Kind.MLP):
            break
        middle = stream + _attention_between(paths, rows, stream, at)
        stream = _after_mlp(paths, rows, read_before, mlp_reads(model.spec, stream, middle), middle, at)
    if paths.last_layer == n_layers:
        read_before.logits = stream[rows.at_answer]
    return read_before


def run_receivers(paths: Paths, rows: Rows, read_before: ReaderInputs) -> Float[Tensor, "row d_model"]:
    """The second run: only the receivers take their inputs of the first, and everything else follows from it.

    Returns:
        Streams `[row, d_model]`.
    """
    model, base, arguments = paths.model, paths.base, paths.baseline.arguments
    stream = rows.of(base.stream(paths.first_layer))
    steps = RowSteps(model=model, base=base, arguments=arguments, rows=rows)
    for layer in range(paths.first_layer, paths.last_layer + 1):
        inputs = steps.inputs(layer, stream)
        for slot in Slot:
            heads = [reader.node.head or 0 for reader in paths.of_layer(layer, Kind.HEAD) if reader.slot is slot]
            if heads:
                steps.set_inputs(layer, inputs, slot, heads, read_before.heads[layer])
        middle = stream + steps.attention(layer, inputs)
        read = read_before.mlps.get(layer, mlp_reads(model.spec, stream, middle))
        stream = add_mlp(model, layer, middle, read)
    return run_suffix(model, base, arguments, rows, stream, paths.last_layer + 1)


def _after_mlp(
    paths: Paths,
    rows: Rows,
    read_before: ReaderInputs,
    read: Float[Tensor, "token d_model"],
    middle: Float[Tensor, "token d_model"],
    layer: int,
) -> Float[Tensor, "token d_model"]:
    """The stream after a block in the first run, from what its MLP reads and the stream without its output."""
    if not paths.model.spec.has_mlp:
        return middle
    if paths.of_layer(layer, Kind.MLP):
        read_before.mlps[layer] = read
    if layer == paths.last_layer:
        return middle  # no later reader
    out = rows.of(paths.base.mlp_out[layer]) if paths.plan.freeze_mlps else paths.model.mlp_output(layer, read)
    return middle + out


def _attention_between(
    paths: Paths, rows: Rows, stream: Float[Tensor, "token d_model"], layer: int
) -> Float[Tensor, "token d_model"]:
    """What an attention layer adds to the stream in the first run."""
    model, base = paths.model, paths.base
    if paths.plan.frozen == "heads":
        return rows.of(base.attn_out[layer])
    steps = RowSteps(model=model, base=base, arguments=paths.baseline.arguments, rows=rows)
    if paths.plan.frozen == "patterns":
        return steps.attention_frozen(layer, stream)
    return steps.attention(layer, steps.inputs(layer, stream))
