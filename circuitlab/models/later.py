"""The blocks of a model from one layer on, as a model of its own: its embedding is the stream before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from circuitlab.models.protocol import Model
from circuitlab.models.recording import BlockArguments
from circuitlab.models.traced import Traced
from circuitlab.parts import Slot


class LaterBlocks:
    """Blocks `first` and later of a model, at least one, numbered from 0.

    Enough of `Model` to trace them and to take gradients: everything that runs a block is the model's own, with its
    layer counted from `first`; what knows no layer is the model's as it is.

    Args:
        model: The model.
        first: The first block.
    """

    def __init__(self, model: Model, first: int) -> None:
        assert 0 <= first < model.spec.n_layers, "at least one block"
        self._model, self._first = model, first
        self.spec = replace(model.spec, n_layers=model.spec.n_layers - first)

    def __getattr__(self, name: str) -> Any:
        """What knows no layer: device, dtype, logits."""
        if name not in ("device", "dtype", "logits"):
            raise AttributeError(f"LaterBlocks has no {name!r}")
        return getattr(self._model, name)

    def of(self, run: Traced) -> Traced:
        """These blocks of a run of the whole model."""
        first = self._first
        return replace(run, start=run.streams[first], streams=run.streams[first:], blocks=run.blocks[first:])

    def read_attention(
        self, layer: int, slots: Sequence[Slot], stream: Float[Tensor, "token d_model"]
    ) -> tuple[Float[Tensor, "token _ d_head"], ...]:
        """See `Model`."""
        return self._model.read_attention(layer + self._first, slots, stream)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "row query head d_head"],
        k: Float[Tensor, "row seq _ d_head"],
        v: Float[Tensor, "row seq _ d_head"],
        arguments: BlockArguments,
    ) -> Float[Tensor, "row query head d_head"]:
        """See `Model`."""
        return self._model.attend(layer + self._first, q, k, v, arguments)

    def attn_output(self, layer: int, z: Float[Tensor, "*row head d_head"]) -> Float[Tensor, "*row d_model"]:
        """See `Model`."""
        return self._model.attn_output(layer + self._first, z)

    def mlp_output(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """See `Model`."""
        return self._model.mlp_output(layer + self._first, stream)

    def pull_back(
        self,
        layer: int,
        stream: Float[Tensor, "batch seq d_model"],
        gradients: Mapping[Slot, Float[Tensor, "batch seq head d_head"]],
        room: Float[Tensor, "_ batch seq d_model"] | None = None,
    ) -> Float[Tensor, "chosen batch seq d_model"]:
        """See `Model`."""
        return self._model.pull_back(layer + self._first, stream, gradients, room)
