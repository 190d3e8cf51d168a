"""The two runs of path patching, packed: what the receivers hear of a sender, and what follows from it.

A row is one sender and one example: under causal attention from the first token of the sender's message that differs to
the answer, else the whole prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.models.protocol import Model, Recording
from circuitlab.parts import Kind, Node, Reader, Slot
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.suffix import Rows, run_suffix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paths:
    """What all rows have in common.

    Attributes:
        model: The model.
        baseline: The batch, run clean and corrupted.
        base: The run that is patched.
        receivers: Who hears of the senders.
        frozen: What of the heads between is held: "heads", "patterns" or "none".
        freeze_mlps: Whether MLPs are held.
    """

    model: Model
    baseline: Baseline
    base: Recording
    receivers: tuple[Reader, ...]
    frozen: str
    freeze_mlps: bool

    def of_layer(self, layer: int, kind: Kind) -> list[Reader]:
        """The receivers of this kind in a layer."""
        return [reader for reader in self.receivers if reader.node.kind is kind and reader.node.layer == layer]

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
        return [end if reader.node.layer is None else reader.node.layer for reader in self.receivers]


@dataclass(slots=True, kw_only=True, eq=False)
class Heard:
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
        sender: Where the message enters the stream (rows of several heads of one layer may share a run).
        rows: Senders and examples.
        message: What the stream gets more of than in the base run, at the rows' tokens.
    """
    heard = listen(paths, sender, rows, message)
    return heard.logits if heard.logits is not None else answer(paths, rows, heard)


def listen(paths: Paths, sender: Node, rows: Rows, message: Float[Tensor, "token d_model"]) -> Heard:
    """The first run: the sender says something else, what is frozen stays, and the receivers' inputs are kept."""
    model, base, n_layers = paths.model, paths.base, paths.model.spec.n_layers
    heard, layer = Heard(), sender.layer or 0
    if sender.kind is Kind.HEAD and model.spec.has_mlp and not model.spec.parallel:
        middle = rows.of(base.resid_pre[layer] + base.attn_out[layer]) + message
        stream = _behind_mlp(paths, rows, heard, middle, middle, layer)
        layer += 1
    else:
        layer += sender.kind is not Kind.INPUT
        stream = rows.of(base.stream(layer)) + message
    for at in range(layer, min(paths.last_layer + 1, n_layers)):
        if paths.of_layer(at, Kind.HEAD):
            heard.heads[at] = stream
        if at == paths.last_layer and not paths.of_layer(at, Kind.MLP):
            break
        middle = stream + _attention_between(paths, rows, stream, at)
        stream = _behind_mlp(paths, rows, heard, stream if model.spec.parallel else middle, middle, at)
    if paths.last_layer == n_layers:
        heard.logits = stream[rows.at_answer]
    return heard


def answer(paths: Paths, rows: Rows, heard: Heard) -> Float[Tensor, "row d_model"]:
    """The second run: only the receivers take what they heard, and everything else follows from it."""
    model, base, spec = paths.model, paths.base, paths.model.spec
    stream = rows.of(base.stream(paths.first_layer))
    for layer in range(paths.first_layer, paths.last_layer + 1):
        values = _whole(model, base, rows, stream, layer)
        for reader in paths.of_layer(layer, Kind.HEAD):
            assert reader.slot is not None
            own = _per_query_head(model, layer, reader.slot, heard.heads[layer])
            head = reader.node.head or 0
            values[reader.slot][rows.row, rows.position, head] = own[:, head]
        middle = stream + _attended(paths, rows, values, layer)
        read = heard.mlps.get(layer, stream if spec.parallel else middle)
        stream = middle + model.mlp_output(layer, read) if spec.has_mlp else middle
    return run_suffix(model, base, paths.baseline.arguments, rows, stream, paths.last_layer + 1)


def _behind_mlp(
    paths: Paths,
    rows: Rows,
    heard: Heard,
    read: Float[Tensor, "token d_model"],
    middle: Float[Tensor, "token d_model"],
    layer: int,
) -> Float[Tensor, "token d_model"]:
    """The stream behind a block in the first run, from what its MLP reads and the stream without what it says."""
    if not paths.model.spec.has_mlp:
        return middle
    if paths.of_layer(layer, Kind.MLP):
        heard.mlps[layer] = read
    if layer == paths.last_layer:
        return middle  # nobody reads on
    own = rows.of(paths.base.mlp_out[layer]) if paths.freeze_mlps else paths.model.mlp_output(layer, read)
    return middle + own


def _attention_between(
    paths: Paths, rows: Rows, stream: Float[Tensor, "token d_model"], layer: int
) -> Float[Tensor, "token d_model"]:
    """What an attention layer adds to the stream in the first run."""
    model, base = paths.model, paths.base
    if paths.frozen == "heads":
        return rows.of(base.attn_out[layer])
    if paths.frozen == "none":
        return _attended(paths, rows, _whole(model, base, rows, stream, layer), layer)
    values = base.v[layer].new_zeros((len(rows), *base.v[layer].shape[1:]))
    own = _per_query_head(model, layer, Slot.V, stream)
    values[rows.row, rows.position] = own - base.v[layer][rows.example[rows.row], rows.position]
    pattern = base.pattern[layer][rows.example].to(values.dtype)
    # Differences through the recorded pattern: where nothing differs nothing is added, whatever the last bits say.
    change = torch.einsum("rhqk,rkhd->rqhd", pattern, values)[rows.row, rows.position]
    return model.attn_output(layer, base.z[layer][rows.example[rows.row], rows.position] + change)


def _whole(
    model: Model, base: Recording, rows: Rows, stream: Float[Tensor, "token d_model"], layer: int
) -> dict[Slot, Float[Tensor, "row seq head d_head"]]:
    """Queries, keys and values of whole prompts, per query head: recorded ones, and the rows' own from their stream."""
    recorded = {Slot.Q: base.q[layer], Slot.K: base.k[layer], Slot.V: base.v[layer]}
    whole = {slot: values[rows.example] for slot, values in recorded.items()}
    for slot, values in whole.items():
        values[rows.row, rows.position] = _per_query_head(model, layer, slot, stream)
    return whole


def _per_query_head(
    model: Model, layer: int, slot: Slot, stream: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token head d_head"]:
    (values,) = model.read_attention(layer, (slot,), stream)
    return values.repeat_interleave(model.spec.n_heads // values.shape[1], 1)


def _attended(
    paths: Paths, rows: Rows, values: dict[Slot, Float[Tensor, "row seq head d_head"]], layer: int
) -> Float[Tensor, "token d_model"]:
    z = paths.model.attend(layer, values[Slot.Q], values[Slot.K], values[Slot.V], paths.baseline.arguments)
    return paths.model.attn_output(layer, z[rows.row, rows.position])
