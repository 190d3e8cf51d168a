"""Statistics of every activation over a set of prompts: means over groups of its tokens, and standard deviations.

Every token counts once, whatever the length of its prompt and its batch, tokens of answers of several tokens too: sums
and numbers of tokens are added up over batches, and divided at the end. Sums are float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import batches_for
from circuitlab.data.pairs import PairSet
from circuitlab.digests import sha256
from circuitlab.models.protocol import Model, Recording
from circuitlab.models.steps import mlp_input
from circuitlab.parts import ModelSpec
from circuitlab.patching.runs.columns import span_masks
from circuitlab.patching.runs.packing import fitting
from circuitlab.resources import Resources
from circuitlab.stats import RunningMean
from circuitlab.summary import Summary

# Which activation: its name in `Recording` (or HIDDEN, the neurons of an MLP), and its layer.
Place = tuple[str, int]
# Which tokens are averaged together: all of them, those of a span, or those at a position of prompts of one length.
Label = str | tuple[int, int]

BY_TOKEN = ("resid_pre", "attn_out", "mlp_out", "q", "k", "v", "z")
FINAL: Place = ("resid_final", 0)
HIDDEN = "hidden"
EVERYWHERE = "all tokens"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Statistics(Summary):
    """Means, or standard deviations, of every activation over the clean prompts of a reference set.

    Attributes:
        kind: Which groups of tokens: "mean", "mean-position", "mean-span"; or "noise" for standard deviations.
        spec: Shape and name of the model that was run.
        labels: The groups of tokens, in the order of the tables' rows.
        tables: For each activation one vector a group `[group, *width]`, in the model's dtype and on its device. For
            "noise" also a number a head for attention patterns.
        patterns: Prompt length -> mean attention pattern of each layer; empty for "noise".
        prompts: The reference prompts as tokens.
    """

    kind: str
    spec: ModelSpec
    labels: tuple[Label, ...]
    tables: Mapping[Place, Float[Tensor, "_ ..."]]
    patterns: Mapping[int, tuple[Float[Tensor, "head seq seq"], ...]]
    prompts: frozenset[tuple[int, ...]]

    def digest(self) -> str:
        """SHA-256 over all of them: what a number that was made with them depends on.

        Returns:
            64 hexadecimal digits.
        """
        tables = [*sorted(self.tables.items()), *self._patterns()]
        named = (part for key, table in tables for part in (repr(key), table))
        return sha256(repr((self.kind, self.spec, self.labels)), *named)

    def _patterns(self) -> Iterator[tuple[Place, Tensor]]:
        for n, layers in sorted(self.patterns.items()):
            for layer, pattern in enumerate(layers):
                yield (f"pattern of {n}", layer), pattern

    def rows(self, batch: PairBatch) -> Int[Tensor, "batch seq"]:
        """Which row of the tables is each token's.

        Returns:
            Numbers `[batch, seq]`.
        """
        labels, group = token_groups(self.kind, batch)
        return torch.tensor([self.labels.index(label) for label in labels], device=group.device)[group]


def token_groups(kind: str, batch: PairBatch) -> tuple[tuple[Label, ...], Int[Tensor, "batch seq"]]:
    """Groups of tokens that share a mean, and the group of every token; each token is in exactly one.

    Args:
        kind: "mean": one group. "mean-position": the position, of prompts of this length. "mean-span": the shortest
            span that the token is in; a token in none is in the gap after a span, as in sweeps by span.
        batch: The prompts; by span they must carry spans.

    Returns:
        The labels of the groups, and the number of the group of every token.
    """
    n, places = batch.n_tokens, torch.arange(batch.n_tokens, device=batch.clean.device)
    if kind == "mean-position":
        return tuple((n, place) for place in range(n)), places.expand(len(batch), n)
    if kind != "mean-span":
        return (EVERYWHERE,), torch.zeros_like(places).expand(len(batch), n)
    masks = span_masks(batch)
    names = sorted(name for name, mask in masks.items() if bool(mask.any()))
    there = torch.stack([masks[name] for name in names])
    size = there.sum(2, keepdim=True).expand(there.shape)
    return tuple(names), size.masked_fill(~there, n + 1).argmin(0)


@torch.no_grad()
def measure_means(model: Model, pairs: PairSet | PairBatch, kind: str, resources: Resources) -> Statistics:
    """Run the clean prompts of a reference set and average every activation over each group of tokens.

    Returns:
        The means, and mean attention patterns by prompt length.

    Raises:
        ConfigError: The budget does not hold one prompt.
    """
    batches = _batches(model, pairs, resources)
    labels: dict[Label, int] = {}
    for batch in batches:
        for label in token_groups(kind, batch)[0]:
            labels.setdefault(label, len(labels))
    counts = torch.zeros(len(labels), dtype=torch.float64, device=model.device)
    sums = dict[Place, Tensor]()
    patterns, lengths = dict[int, list[Tensor]](), dict[int, Tensor]()
    for batch in batches:
        run, in_prompt = model.record(batch.clean), batch.own_tokens
        found, group = token_groups(kind, batch)
        row = torch.tensor([labels[label] for label in found], device=model.device)[group][in_prompt]
        counts += torch.bincount(row, minlength=len(labels))
        for place, value in activations(model, run):
            if place not in sums:
                sums[place] = value.new_zeros((len(labels), *value.shape[2:]), dtype=torch.float64)
            sums[place].index_add_(0, row, value[in_prompt].double())
        queries = in_prompt[:, None, :, None]
        sum_over_examples = [pattern.double().masked_fill(~queries, 0.0).sum(0) for pattern in run.pattern]
        before = patterns.get(batch.n_tokens)
        patterns[batch.n_tokens] = (
            sum_over_examples if before is None else [a + b for a, b in zip(before, sum_over_examples, strict=True)]
        )
        lengths[batch.n_tokens] = lengths.get(batch.n_tokens, 0) + in_prompt.sum(0)[:, None]  # by query
    return Statistics(
        kind=kind,
        spec=model.spec,
        labels=tuple(labels),
        tables={p: (s / counts.view(-1, *[1] * (s.ndim - 1))).to(model.dtype) for p, s in sums.items()},
        patterns={n: tuple((s / lengths[n]).to(model.dtype) for s in layers) for n, layers in patterns.items()},
        prompts=prompts_of(batches),
    )


@torch.no_grad()
def measure_deviations(model: Model, pairs: PairSet | PairBatch, resources: Resources) -> Statistics:
    """Run the clean prompts of a set and take the standard deviation of every component over all their tokens.

    The standard deviation of these very tokens (divided by their number, not by one less). For attention patterns one
    number a head, over the weights of all visible keys.

    Returns:
        The standard deviations.

    Raises:
        ConfigError: The budget does not hold one prompt.
    """
    batches = _batches(model, pairs, resources)
    spreads = dict[Place, RunningMean]()
    for batch in batches:
        run, in_prompt = model.record(batch.clean), batch.own_tokens
        for place, value in activations(model, run):
            spreads.setdefault(place, RunningMean()).add(value[in_prompt].double())
        for layer, pattern in enumerate(run.pattern):
            queries = rearrange(pattern.double(), "batch head query key -> batch query key head")[in_prompt]
            by_head = rearrange(queries, "query key head -> (query key) head")
            # A key that the query does not see has a weight of exactly 0.
            spreads.setdefault(("pattern", layer), RunningMean()).add(by_head, by_head != 0)
    return Statistics(
        kind="noise",
        spec=model.spec,
        labels=(EVERYWHERE,),
        tables={place: spread.deviation[None].to(model.dtype) for place, spread in spreads.items()},
        patterns={},
        prompts=prompts_of(batches),
    )


def activations(model: Model, run: Recording) -> Iterator[tuple[Place, Float[Tensor, "batch seq ..."]]]:
    """Every activation that has a value at each token, MLPs' neurons too; patterns are not among them.

    Returns:
        Name and layer, and the activation, one after the other.
    """
    for name in BY_TOKEN:
        for layer, value in enumerate(getattr(run, name)):
            yield (name, layer), value
    yield FINAL, run.resid_final
    if model.spec.has_mlp:
        for layer in range(model.spec.n_layers):
            yield (HIDDEN, layer), model.mlp_hidden(layer, mlp_input(model, run, layer))


def prompts_of(batches: Sequence[PairBatch]) -> frozenset[tuple[int, ...]]:
    """The clean prompts as tokens.

    Returns:
        The set of prompts.
    """
    return frozenset(prompt for batch in batches for prompt in batch.prompts())


def _batches(model: Model, pairs: PairSet | PairBatch, resources: Resources) -> list[PairBatch]:
    """The prompts in parts whose whole recording fits the budget, with a copy of one layer in float64."""
    found = []
    for batch in batches_for(model, pairs, whole_answers=True):
        spec = model.spec
        scores = spec.n_layers * spec.n_heads * batch.n_tokens // spec.d_model
        found += fitting(model, batch, resources, 8 * spec.n_layers + scores + 12)
    return found
