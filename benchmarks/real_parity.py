"""Numbers on a real model by circuitlab and by plain hooks: part of `make parity`.

SmolLM2-135M-Instruct in float64, its oracle transformers' own LlamaForCausalLM (`benchmarks.llama_hooks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks import llama_hooks
from benchmarks.real_model import NAME, NotToBeHadError, install
from benchmarks.table import as_markdown
from circuitlab import (
    Edge,
    PairBatch,
    evaluate,
    load_model,
    load_task,
    patch_edges,
    score_edges,
    select,
    sweep,
)
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import ModelError
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.named import model_folder
from circuitlab.parts import Kind, Layout, Slot

TASK, N_PAIRS = "ioi", 4
# Cells, and edges into each kind of reader, half of them the strongest; edges of two circuits.
N_CELLS, N_EDGES, N_KEPT = 12, 12, (300, 20_000)
TOLERANCE = 2e-5
HEADER = ("Quantity", "Compared", "Oracle", "Tolerance", "Largest difference", "Share of")


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """A model in circuitlab and as transformers loads it, and pairs.

    Attributes:
        model: In circuitlab.
        plain: The HuggingFace model.
        batch: Discovery pairs, as one batch.
        held_out: Held-out pairs, as one batch.
    """

    model: BridgeModel
    plain: Any
    batch: PairBatch
    held_out: PairBatch

    @property
    def layout(self) -> Layout:
        """Writers and readers of the graph."""
        return Layout.of(self.model.spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison.

    Attributes:
        quantity: What is compared.
        compared: How many of them.
        oracle: The independent way, in words.
        difference: The largest difference, as a share.
        of: What it is a share of.
    """

    quantity: str
    compared: str
    oracle: str
    difference: float
    of: str = "gap"


def section() -> str:
    """The generated part of the parity page about the real model; a sentence where it cannot be had."""
    try:
        install()
    except (NotToBeHadError, ModelError) as error:
        return f"Skipped: {NAME} is not installed, and {error}."
    rows = compare(_real())
    table = [(r.quantity, r.compared, r.oracle, f"{TOLERANCE:.0e}", f"{r.difference:.0e}", r.of) for r in rows]
    return as_markdown(HEADER, table)


def compare(both: Both, n_kept: Sequence[int] = N_KEPT) -> list[Row]:
    """Every comparison; the last ones change the HuggingFace model, keys and values once a query head."""
    with torch.no_grad():
        before = both.plain(both.batch.clean, use_cache=False).logits
    ours = both.model.whole_logits(both.batch.clean)
    largest = float((ours - before).abs().max() / before.abs().max())
    logits = {"quantity": "logits", "compared": f"{before.numel():,}", "of": "largest logit"}
    rows = [Row(**logits, oracle="one forward pass", difference=largest)]
    rows += [_cells(both, "resid_pre", llama_hooks.resid_pre), _cells(both, "head_z", llama_hooks.head_z)]
    llama_hooks.written_out(both.plain)
    with torch.no_grad():
        after = both.plain(both.batch.clean, use_cache=False).logits
    largest = float((after - before).abs().max() / before.abs().max())
    rows.append(
        Row(**logits, oracle="one forward pass, before and after `llama_hooks.written_out`", difference=largest)
    )
    scores = score_edges(both.model, both.batch, "eap", progress=False)
    return [*rows, *_edges(both, scores), *(_circuit(both, scores, n) for n in n_kept)]


def chosen_edges(scores: EdgeScores, n: int = N_EDGES) -> list[Edge]:
    """Edges into queries, keys, values, MLPs and the logits: of each the strongest, and as many at random."""
    rng, found, layout = np.random.default_rng(0), list[Edge](), scores.layout
    edges = [Edge(layout.writers[row], layout.readers[column]) for row, column in scores.ranked()]
    for kind in ("q", "k", "v", "mlp", "logits"):
        into = [edge for edge in edges if _kind(edge) == kind]
        others = rng.permutation(len(into) - n // 2)[: n - n // 2] + n // 2
        found += [*into[: n // 2], *(into[i] for i in others)]
    return found


def _kind(edge: Edge) -> str:
    slot = edge.reader.slot
    if slot is not None:
        return {Slot.Q: "q", Slot.K: "k", Slot.V: "v"}[slot]
    return "mlp" if edge.reader.node.kind is Kind.MLP else "logits"


def _cells(both: Both, site: str, oracle: Any) -> Row:
    """A dozen cells: of the corrupted prompt's positions those that matter to the metric, and random ones."""
    spec, rng = both.model.spec, np.random.default_rng(0)
    n_columns = both.batch.n_tokens if site == "resid_pre" else spec.n_heads
    layers = np.unique(np.linspace(0, spec.n_layers - 1, 4).astype(int))
    columns = np.unique([n_columns - 1, *rng.choice(n_columns, min(N_CELLS // 4, n_columns), replace=False)])[-3:]
    chosen = {"positions" if site == "resid_pre" else "heads": columns.tolist()}
    grid = sweep(
        both.model, both.batch, site, axis="position", layers=layers.tolist(), normalise=False, progress=False, **chosen
    )
    cells = [(int(layer), int(column)) for layer in layers for column in columns]
    ours = grid.per_example.reshape(len(cells), -1)  # pyright: ignore[reportAttributeAccessIssue]
    theirs = np.stack([oracle(both.plain, both.batch, cell) for cell in cells])
    oracle_name = f"`llama_hooks.{site}`, one forward pass a cell"
    return Row(quantity=site, compared=f"{len(cells)} cells", oracle=oracle_name, difference=_share(both, ours, theirs))


def _edges(both: Both, scores: EdgeScores) -> list[Row]:
    edges = chosen_edges(scores)
    found = patch_edges(both.model, both.batch, edges, direction="noise", progress=False)
    theirs = llama_hooks.edge_effects(both.plain, both.layout, both.batch, edges)
    where = {edge: number for number, edge in enumerate(found.edges)}
    ours = np.stack([found.per_example[where[edge], 0] for edge in edges])
    rows = []
    for kind, name in {"q": "queries", "k": "keys", "v": "values", "mlp": "MLPs", "logits": "the logits"}.items():
        into = [number for number, edge in enumerate(edges) if _kind(edge) == kind]
        rows.append(
            Row(
                quantity=f"edges into {name}", compared=f"{len(into)} edges", oracle="`llama_hooks.edge_effects`",
                difference=_share(both, ours[into], theirs[into]),
            )
        )  # fmt: skip
    return rows


def _circuit(both: Both, scores: EdgeScores, n_kept: int) -> Row:
    """The held-out faithfulness of the strongest edges by EAP."""
    circuit = select(both.model, scores, both.batch, n_edges=n_kept, progress=False)
    circuit = replace(circuit, scores=np.full_like(circuit.scores, np.nan))  # without scores there are no curves
    test = evaluate(
        both.model, circuit, both.held_out, n_random=0, n_knockouts=0, minimality=False, allow_weak_gap=True,
        progress=False,
    )  # fmt: skip
    kept = llama_hooks.circuit_run(both.plain, both.layout, both.held_out, circuit.mask)
    ends = (
        llama_hooks.whole_run(both.plain, tokens).logits for tokens in (both.held_out.clean, both.held_out.corrupted)
    )
    clean, corrupt = (_logit_diff(logits, both.held_out) for logits in ends)
    faithfulness = (kept - corrupt).mean() / (clean - corrupt).mean()
    compared = f"{circuit.n_edges} edges, {len(kept)} held-out pairs: {test.faithfulness:.6f} and {faithfulness:.6f}"
    return Row(
        quantity="held-out faithfulness", compared=compared, oracle="`llama_hooks.circuit_run`, node by node",
        difference=abs(test.faithfulness - faithfulness),
    )  # fmt: skip


def _share(both: Both, ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    with torch.no_grad():
        ends = (both.plain(tokens, use_cache=False).logits for tokens in (both.batch.clean, both.batch.corrupted))
        clean, corrupt = (_logit_diff(logits, both.batch) for logits in ends)
    return float(np.abs(ours - theirs).max() / abs((clean - corrupt).mean()))


def _logit_diff(logits: torch.Tensor, batch: PairBatch) -> np.ndarray:
    from benchmarks.per_cell import logit_diff

    return logit_diff(logits, batch).double().cpu().numpy()


def _real() -> Both:
    """SmolLM2 twice, in float64, and pairs of one length."""
    from transformers import AutoModelForCausalLM

    model = load_model(NAME, dtype="float64")
    plain = AutoModelForCausalLM.from_pretrained(
        model_folder(NAME), dtype=torch.float64, attn_implementation="eager"
    ).eval()
    pairs = load_task(TASK).pairs(model, n=4 * N_PAIRS, seed=0)
    batch, held_out = (_first(split.batches()) for split in (pairs.discovery, pairs.held_out))
    return Both(model=model, plain=plain, batch=batch, held_out=held_out)


def _first(batches: Sequence[PairBatch]) -> PairBatch:
    """Some pairs of the most frequent length."""
    return max(batches, key=len).take(slice(0, N_PAIRS))
