"""The queries, keys and values of a layer in a circuit run: the floor's, and those whose stream differs from it.

A stream that most heads of a slot read, as in circuits of nearly all edges, is read for all of them at once, the way
the model does; others are read head by head, only for the heads that do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.models.protocol import Model, Recording
from circuitlab.parts import Slot
from circuitlab.patching.circuit_plan import Plan, Read
from circuitlab.patching.circuit_rows import Table

# Reads by their number in the plan.
Reads = dict[int, Read]
# Vectors, and where each read's stand among them, in the order of its tokens.
Found = tuple[Float[Tensor, "_ d_head"], dict[int, Int[np.ndarray, " token"]]]


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Queries, keys and values, one vector for every token and head.

    Attributes:
        values: First the floor's, slot by slot, then those of the reads.
        of: By read, where its vectors stand, in the order of its tokens.
    """

    values: Float[Tensor, "_ d_head"]
    of: Mapping[int, Int[np.ndarray, " token"]]


def read_heads(model: Model, layer: int, plan: Plan, table: Table, floor: Recording) -> Vectors:
    """Compute the reads of a layer, from what writers before it add to the floor."""
    at_once, by_head = _calls(plan.of(Read, plan.heads[layer]), model.spec.n_heads)
    wanted = [[(stream, plan.tokens[stream])] for stream in at_once]
    wanted += [[(read.stream, plan.tokens[number]) for number, read in reads.items()] for reads in by_head]
    streams = table.sums(wanted, floor.resid_pre[layer])
    calls = [_all_heads(model, layer, plan, by_slot, streams) for by_slot in at_once.values()]
    calls += [_one_head(model, layer, plan, reads, streams) for reads in by_head]
    values = [part[layer].flatten(0, 2) for part in (floor.q, floor.k, floor.v)]
    places, end = dict[int, np.ndarray](), sum(map(len, values))
    for found, where in chain.from_iterable(calls):
        places |= {number: end + at for number, at in where.items()}
        values.append(found)
        end += len(found)
    return Vectors(torch.cat(values), places)


def _calls(reads: Reads, n_heads: int) -> tuple[dict[int, dict[Slot, Reads]], list[Reads]]:
    """Reads in the calls that are made: by stream and slot where most heads read it, else by slot and head."""
    by_stream: dict[int, dict[Slot, Reads]] = defaultdict(lambda: defaultdict(dict))
    for number, read in reads.items():
        by_stream[read.stream][read.slot][number] = read
    at_once, by_head = defaultdict[int, dict[Slot, Reads]](dict), defaultdict[tuple[Slot, int], Reads](dict)
    for stream, by_slot in by_stream.items():
        for slot, same in by_slot.items():
            # Half a layer's heads one by one take as long as all of them in one product.
            if 2 * len(same) >= n_heads:
                at_once[stream][slot] = same
            else:
                for number, read in same.items():
                    by_head[slot, read.head][number] = read
    return at_once, list(by_head.values())


def _all_heads(
    model: Model, layer: int, plan: Plan, by_slot: Mapping[Slot, Reads], streams: Iterator[Tensor]
) -> Iterator[Found]:
    """The next stream, which most heads read in these slots."""
    for reads, found in zip(by_slot.values(), model.read_attention(layer, list(by_slot), next(streams)), strict=True):
        n_heads = found.shape[1]  # keys and values come in the model's own number of heads
        where = dict[int, np.ndarray]()
        for number, read in reads.items():
            row = plan.sets.among(plan.tokens[number], plan.tokens[read.stream])
            where[number] = row * n_heads + read.head * n_heads // model.spec.n_heads
        yield found.flatten(0, 1), where


def _one_head(model: Model, layer: int, plan: Plan, reads: Reads, streams: Iterator[Tensor]) -> Iterator[Found]:
    """The next streams, which one head reads in one slot."""
    read = next(iter(reads.values()))
    found = model.project(layer, read.slot, [read.head], next(streams)[None, :, None])[0, :, 0]
    sizes = [plan.sets.count(plan.tokens[number]) for number in reads]
    yield found, dict(zip(reads, np.split(np.arange(len(found)), np.cumsum(sizes)[:-1]), strict=True))
