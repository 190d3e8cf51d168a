"""The queries, keys and values of a layer in a circuit run: the ablated run's, and those whose stream differs from it.

A stream that most heads of a slot read, as in circuits of nearly all edges, is read for all of them at once, the way
the model does. Others are read by those heads only that do, each in a product of its own; heads that read as many
tokens as each other share a call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.models.protocol import Model, Recording
from circuitlab.models.steps import column_of_head, project
from circuitlab.parts import Slot
from circuitlab.patching.circuits.plan import Plan, Read
from circuitlab.patching.circuits.rows import Table, grouped

# Reads by their number in the plan.
Reads = dict[int, Read]
# Vectors, and the places of each read's among them, in the order of its tokens.
Found = tuple[Float[Tensor, "_ d_head"], dict[int, Int[np.ndarray, " token"]]]


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Queries, keys and values, one vector for every token and head.

    Attributes:
        values: First the ablated run's, slot by slot, then those of the reads.
        of: By read, the places of its vectors, in the order of its tokens.
    """

    values: Float[Tensor, "_ d_head"]
    of: Mapping[int, Int[np.ndarray, " token"]]


def read_heads(model: Model, layer: int, plan: Plan, table: Table, ablated: Recording) -> Vectors:
    """Compute the reads of a layer, from what writers before it add to the ablated run.

    Returns:
        Queries, keys and values of the ablated run and of the reads, and where each is.
    """
    together, by_head = _by_call(plan, plan.of(Read, plan.heads[layer]), model.spec.n_heads)
    wanted = [[(stream, plan.tokens[stream])] for stream in together]
    wanted += [[(read.stream, plan.tokens[n]) for reads in heads for n, read in reads.items()] for heads in by_head]
    streams = table.sums(wanted, ablated.resid_pre[layer])
    calls = [_all_heads(model, layer, plan, by_slot, streams) for by_slot in together.values()]
    calls += [_some_heads(model, layer, plan, heads, streams) for heads in by_head]
    values = [part[layer].flatten(0, 2) for part in (ablated.q, ablated.k, ablated.v)]
    places, end = dict[int, np.ndarray](), sum(map(len, values))
    for found, where in chain.from_iterable(calls):
        places |= {number: end + at for number, at in where.items()}
        values.append(found)
        end += len(found)
    return Vectors(torch.cat(values), places)


def _by_call(plan: Plan, reads: Reads, n_heads: int) -> tuple[dict[int, dict[Slot, Reads]], list[Sequence[Reads]]]:
    """Reads in the calls that are made: by stream and slot where most heads read it, else several heads of a slot."""
    by_stream: dict[int, dict[Slot, Reads]] = defaultdict(lambda: defaultdict(dict))
    for number, read in reads.items():
        by_stream[read.stream][read.slot][number] = read
    together, by_head = defaultdict[int, dict[Slot, Reads]](dict), defaultdict[tuple[Slot, int], Reads](dict)
    for stream, by_slot in by_stream.items():
        for slot, same in by_slot.items():
            # Half a layer's heads one by one take as long as all of them in one product.
            if 2 * len(same) >= n_heads:
                together[stream][slot] = same
            else:
                for number, read in same.items():
                    by_head[slot, read.head][number] = read
    alike: dict[tuple[Slot, int], list[Reads]] = defaultdict(list)
    for (slot, _), of_head in by_head.items():
        alike[slot, sum(plan.sets.count(plan.tokens[number]) for number in of_head)].append(of_head)
    return dict(together), [
        group for (_, size), heads in alike.items() for group in grouped(heads, lambda _, n=size: n)
    ]


def _all_heads(
    model: Model, layer: int, plan: Plan, by_slot: Mapping[Slot, Reads], streams: Iterator[Tensor]
) -> Iterator[Found]:
    """The next stream, which most heads read in these slots."""
    for reads, found in zip(by_slot.values(), model.read_attention(layer, list(by_slot), next(streams)), strict=True):
        n_heads = found.shape[1]  # keys and values come in the model's own number of heads
        where = dict[int, np.ndarray]()
        for number, read in reads.items():
            row = plan.sets.among(plan.tokens[number], plan.tokens[read.stream])
            where[number] = row * n_heads + column_of_head(model.spec, read.head, n_heads)
        yield found.flatten(0, 1), where


def _some_heads(
    model: Model, layer: int, plan: Plan, heads: Sequence[Reads], streams: Iterator[Tensor]
) -> Iterator[Found]:
    """The next streams, which some heads read in one slot, each the same number of rows."""
    each = [next(iter(reads.values())) for reads in heads]
    read = next(streams).unflatten(0, (len(heads), -1))[:, :, None]
    found = project(model, layer, each[0].slot, [read.head for read in each], read).flatten(0, 2)
    where, end = dict[int, np.ndarray](), 0
    for number in chain.from_iterable(heads):
        start, end = end, end + plan.sets.count(plan.tokens[number])
        where[number] = np.arange(start, end)
    yield found, where
