"""The circuit that others are run from: what every reader reads in it, and what every node makes of that."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.models.protocol import Model
from circuitlab.models.steps import mlp_input
from circuitlab.parts import Kind, Layout
from circuitlab.patching.runs.baseline import Baseline, at_answer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CutState:
    """A circuit that has been run.

    Tokens before the first at which any replacement differs are as in the clean run, and are kept for keys and values
    alone. What nothing in the circuit needs may be as in the clean run, too.

    Attributes:
        mask: The edges that it keeps.
        streams: What each reader reads, by its number, from the first token that can differ; of the logits at the
            answer position only.
        slots: By layer, queries, keys and values of all heads at all tokens.
        z: By layer, all heads' z from the first token that can differ.
        mlps: By layer, what the MLP says from there on.
        apart: By writer that says something else than in the clean run, the difference.
        patterns: By layer, where heads look from these tokens among them; filled in as it is asked for.
        kept: What heads read and say when some edges into them are cut from this circuit, by these; filled in by the
            runs that begin with it.
    """

    mask: Bool[np.ndarray, "writer reader"]
    streams: tuple[Float[Tensor, "batch _ d_model"], ...]
    slots: tuple[tuple[Float[Tensor, "batch seq head d_head"], ...], ...]
    z: tuple[Float[Tensor, "batch token head d_head"], ...]
    mlps: tuple[Float[Tensor, "batch token d_model"], ...]
    apart: dict[int, Float[Tensor, "batch token d_model"]]
    patterns: dict[int, Float[Tensor, "batch head token token"]] = field(default_factory=dict)
    kept: dict[object, Float[Tensor, "1 batch _ _"]] = field(default_factory=dict)


def clean_state(model: Model, baseline: Baseline, mask: Bool[np.ndarray, "writer reader"], since: int) -> CutState:
    """The clean run, which keeps every edge, from a token on."""
    clean, batch, layout = baseline.clean, baseline.batch, Layout.of(model.spec)
    heads = [stream[:, since:].contiguous() for stream in clean.resid_pre]
    mlps = [mlp_input(model, clean, layer)[:, since:].contiguous() for layer in range(model.spec.n_layers)]
    final = at_answer(clean.resid_final, batch.answer_at)[:, None]
    streams = []
    for reader in layout.readers:
        layer = reader.node.layer
        if layer is None:
            streams.append(final)
        else:
            # Heads of a layer read the same tensor, by which those that still do are known.
            streams.append(heads[layer] if reader.node.kind is Kind.HEAD else mlps[layer])
    return CutState(
        mask=mask,
        streams=tuple(streams),
        slots=tuple(zip(clean.q, clean.k, clean.v, strict=True)),
        z=tuple(z[:, since:] for z in clean.z),
        mlps=tuple(out[:, since:].contiguous() for out in clean.mlp_out),
        apart={},
    )
