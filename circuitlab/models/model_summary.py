"""What a loaded model prints: its name, shape, graph and weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from circuitlab.models.recording import Folding
from circuitlab.parts import Layout, ModelSpec
from circuitlab.summary import Summary, plural, short


class ModelSummary(Summary):
    """The short repr of a model on a bridge."""

    bridge: Any
    spec: ModelSpec
    folding: Folding

    def _summary(self) -> str:
        spec = self.spec
        shape = f"{plural(spec.n_layers, 'layer')}, {plural(spec.n_heads, 'head')} each, width {spec.d_model:,}"
        return f"{short(spec.name, 40)}: {shape}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        spec, weight = self.spec, next(self.bridge.original_model.parameters())
        yield "architecture", type(self.bridge.original_model).__name__
        yield "parts", "attention and MLP" if spec.has_mlp else "attention only"
        yield "key/value heads", spec.n_kv_heads
        yield "graph", plural(Layout.of(spec).n_edges, "edge")
        context = "no limit" if spec.n_ctx is None else f"{spec.n_ctx:,}"
        yield "vocabulary", f"{spec.d_vocab:,} tokens, context {context}"
        yield "weights", f"{str(weight.dtype).removeprefix('torch.')}, on {weight.device}"
        yield "folding", self.folding
