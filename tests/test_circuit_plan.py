"""Plans of circuit runs, without a model: what is computed, at which tokens, and what circuits share."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import SHAPES, names, spec_of, specs

from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.random import random_circuit
from circuitlab.parts import Edge, Kind, Layout, ModelSpec, Slot
from circuitlab.patching.circuits.plan import (
    ComputedWriter,
    HeadResult,
    JointHeads,
    Plan,
    Read,
    Step,
    Stream,
    UnchangedWriter,
    plan_circuits,
)
from circuitlab.patching.circuits.token_sets import TokenSets

BATCH, SEQ = 2, 5
SETS = TokenSets(BATCH, SEQ)
# Examples differ at tokens 1 and 3, or at token 2; answers stand at tokens 3 and 4.
ENTERING = np.array([[0, 1, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=bool)
ANSWERS = np.array([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], dtype=bool)


def plan_of(
    layout: Layout, masks: np.ndarray, offsets: tuple[int, ...] = (), heads_interact: bool = False, causal: bool = True
) -> Plan:
    return plan_circuits(
        layout,
        masks,
        TokenSets(BATCH, SEQ, causal),
        entering=SETS.of(ENTERING),
        answers=SETS.of(ANSWERS),
        offsets=dict.fromkeys(offsets, SETS.all),
        heads_interact=[heads_interact] * layout.spec.n_layers,
    )


def members(tokens: int) -> set[int]:
    return set(SETS.indices(tokens).tolist())


def said_at(plan: Plan) -> dict[int, set[int]]:
    """By writer, the tokens at which any version of it is computed."""
    found: dict[int, set[int]] = {}
    for number, step in {**plan.of(UnchangedWriter), **plan.of(ComputedWriter)}.items():
        found.setdefault(step.writer, set()).update(members(plan.tokens[number]))
    return found


def mask_of(layout: Layout, *edges: str) -> np.ndarray:
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    for edge in edges:
        mask[layout.edge_index(Edge.parse(edge))] = True
    return mask


def random_mask(layout: Layout, share: float, seed: int) -> np.ndarray:
    real = real_edges(layout)
    return real & (np.random.default_rng(seed).random(real.shape) < share)


class TestTokenSets:
    @given(st.integers(1, 3), st.integers(1, 19), st.integers(0, 2**20))
    def test_against_lists(self, batch, seq, seed):
        sets, rng = TokenSets(batch, seq), np.random.default_rng(seed)
        here = rng.random((batch, seq)) < 0.2
        tokens = sets.of(here)
        assert sets.indices(tokens).tolist() == np.flatnonzero(here).tolist()
        assert sets.count(tokens) == here.sum()
        assert tokens & ~sets.all == 0
        behind = [[here[b, : p + 1].any() for p in range(seq)] for b in range(batch)]
        before = [[here[b, p:].any() for p in range(seq)] for b in range(batch)]
        assert sets.after(tokens) == sets.of(np.array(behind))
        assert sets.before(tokens) == sets.of(np.array(before))
        among = sets.indices(sets.before(tokens))[sets.among(tokens, sets.before(tokens))]
        assert among.tolist() == sets.indices(tokens).tolist()

    @given(st.integers(1, 3), st.integers(1, 19), st.integers(0, 2**20))
    def test_where_every_token_sees_every_other(self, batch, seq, seed):
        sets, rng = TokenSets(batch, seq, causal=False), np.random.default_rng(seed)
        here = rng.random((batch, seq)) < 0.1
        whole = sets.of(np.broadcast_to(here.any(1, keepdims=True), here.shape))
        assert sets.after(sets.of(here)) == sets.before(sets.of(here)) == whole

    def test_examples_do_not_see_each_other(self):
        last_of_first = SETS.of(np.array([[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=bool))
        assert members(SETS.after(last_of_first)) == {4}
        assert members(SETS.before(last_of_first)) == {0, 1, 2, 3, 4}
        assert members(SETS.after(last_of_first << 1)) == {5, 6, 7, 8, 9}


class TestTokens:
    """A step is computed where something changed can reach it and where it can reach an answer, and nowhere else."""

    @staticmethod
    def reachable(layout: Layout, mask: np.ndarray, causal: bool = True) -> dict[int, set[int]]:
        """The same by walking from token to token, forwards and backwards."""
        n_writers, spots = len(layout.writers), range(BATCH * SEQ)
        after: dict[tuple, set[tuple]] = {}
        for writer, reader, t in product(range(n_writers), range(len(layout.readers)), spots):
            if mask[writer, reader]:
                after.setdefault(("says", writer, t), set()).add(("reads", reader, t))
        for column, reader in enumerate(layout.readers):
            if reader.node.kind is Kind.LOGITS:
                continue
            for t in spots:
                start, end = t // SEQ * SEQ, (t // SEQ + 1) * SEQ
                reach = range(t if causal else start, end) if reader.slot in (Slot.K, Slot.V) else [t]
                owner = layout.owners[column]
                after.setdefault(("reads", column, t), set()).update(("says", owner, to) for to in reach)
        ends = {("reads", len(layout.readers) - 1, t) for t in members(SETS.of(ANSWERS))}
        before: dict[tuple, set[tuple]] = {}
        for one, others in after.items():
            for other in others:
                before.setdefault(other, set()).add(one)
        forwards = TestTokens.closure({("says", 0, t) for t in members(SETS.of(ENTERING))}, after)
        both = forwards & TestTokens.closure(ends, before)
        found: dict[int, set[int]] = {}
        for what, number, t in both:
            if what == "says":
                found.setdefault(number, set()).add(t)
        return found

    @staticmethod
    def closure(start: set[tuple], steps: dict[tuple, set[tuple]]) -> set[tuple]:
        found, todo = set(start), list(start)
        while todo:
            for other in steps.get(todo.pop(), ()):
                if other not in found:
                    found.add(other)
                    todo.append(other)
        return found

    @settings(max_examples=30, deadline=None)
    @given(specs, st.floats(0.02, 1.0), st.integers(0, 2**20))
    def test_against_walking_from_token_to_token(self, spec, share, seed):
        layout = Layout.of(spec)
        mask = random_mask(layout, share, seed)
        for causal in (True, False):
            plan = plan_of(layout, mask[None], causal=causal)
            assert said_at(plan) == self.reachable(layout, mask, causal)

    def test_a_path_through_queries_needs_the_answer_position_only(self):
        layout = Layout.of(spec_of(2, 1))
        path = ["input->a0.h0<v>", "a0.h0->m0", "m0->a1.h0<q>", "a1.h0->logits"]
        found = said_at(plan_of(layout, mask_of(layout, *path)[None]))
        assert found == {0: {1, 3, 7}, 1: {3, 9}, 2: {3, 9}, 3: {3, 9}}
        # The twin: through values, what is written behind the first difference counts.
        path[2] = "m0->a1.h0<v>"
        found = said_at(plan_of(layout, mask_of(layout, *path)[None]))
        assert found == {0: {1, 3, 7}, 1: {1, 2, 3, 7, 8, 9}, 2: {1, 2, 3, 7, 8, 9}, 3: {3, 9}}

    def test_a_path_that_never_reaches_an_answer_costs_nothing(self):
        layout = Layout.of(spec_of(2, 1))
        # Tokens differ at the answer of the first example only, and MLPs do not look around.
        assert said_at(plan_of(layout, mask_of(layout, "input->m0", "m0->logits")[None])) == {0: {3}, 2: {3}}
        for edges in (["input->m0"], ["m0->logits"], ["a0.h0->m0", "m0->logits"], []):
            plan = plan_of(layout, mask_of(layout, *edges)[None])
            assert said_at(plan) == {}
            assert not any(plan.tokens)

    def test_an_offset_is_said_where_it_is_needed_and_nothing_is_computed_for_it(self):
        layout = Layout.of(spec_of(2, 1))
        plan = plan_of(layout, mask_of(layout, "m0->logits")[None], offsets=(2,))
        assert said_at(plan) == {2: {3, 9}}
        assert not plan.of(ComputedWriter)
        # With a changed input the same writer is computed where that is, and its offset stays everywhere.
        plan = plan_of(layout, mask_of(layout, "input->m0", "m0->logits")[None], offsets=(2,))
        ((number, _),) = plan.of(ComputedWriter).items()
        (made,) = plan.made(plan.mlps[0])
        assert (members(plan.tokens[number]), members(made.tokens)) == ({3, 9}, {3})

    def test_heads_that_share_a_post_norm_are_computed_together(self):
        layout = Layout.of(spec_of(1, 2))
        edges = mask_of(layout, "input->a0.h0<q>", "a0.h1->logits")[None]
        assert said_at(plan_of(layout, edges)) == {}
        assert said_at(plan_of(layout, edges, heads_interact=True)) == {0: {3}, 2: {3}}


class TestSharing:
    @pytest.mark.parametrize("spec", SHAPES, ids=names)
    def test_equal_circuits_are_one(self, spec: ModelSpec):
        layout = Layout.of(spec)
        mask = random_mask(layout, 0.7, seed=1)
        one, many = plan_of(layout, mask[None]), plan_of(layout, np.stack([mask] * 5))
        assert (one.steps, one.tokens) == (many.steps, many.tokens)
        assert many.final == one.final * 5

    def test_what_stands_before_a_difference_is_shared(self):
        layout = Layout.of(spec_of(3, 2))
        full = real_edges(layout)
        cut = full.copy()
        cut[layout.edge_index(Edge.parse("input->m1"))] = False
        plan = plan_of(layout, np.stack([full, cut]))
        versions = [
            layout.writers[v.writer].name
            for v in (*plan.of(UnchangedWriter).values(), *plan.of(ComputedWriter).values())
        ]
        once = {"input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1"}
        assert {name for name in versions if versions.count(name) == 1} == once
        assert {name for name in versions if versions.count(name) == 2} == {"m1", "a2.h0", "a2.h1", "m2"}
        assert len(set(plan.final)) == 2

    @pytest.mark.parametrize("heads_interact", [False, True])
    def test_a_circuit_is_planned_among_others_as_it_is_alone(self, heads_interact: bool):
        """Followed from its end, every step has the same steps before it, at all tokens that it needs alone."""
        layout = Layout.of(spec_of(2, 2))
        masks = np.stack([random_mask(layout, share, seed) for seed, share in enumerate([0.2, 0.5, 0.8, 0.3])])
        together = plan_of(layout, masks, offsets=(2, 3), heads_interact=heads_interact)

        def compare(alone: Plan, here: int | None, there: int | None) -> None:
            assert (here is None) == (there is None)
            if here is not None and there is not None:
                assert members(alone.tokens[here]) <= members(together.tokens[there])
                (what, before), (other, others) = taken_apart(alone.steps[here]), taken_apart(together.steps[there])
                assert what == other
                for a, b in zip(before, others, strict=True):
                    compare(alone, a, b)

        for circuit, mask in enumerate(masks):
            alone = plan_of(layout, mask[None], offsets=(2, 3), heads_interact=heads_interact)
            compare(alone, alone.final[0], together.final[circuit])

    def test_cost_follows_the_circuit(self):
        layout = Layout.of(spec_of(4, 4))
        sizes = [sum(map(SETS.count, _plan(layout, n).tokens)) for n in (5, 40, 200)]
        assert sizes == sorted(sizes)
        assert 4 * sizes[0] < sizes[2]


def taken_apart(step: Step) -> tuple[tuple, tuple[int | None, ...]]:
    """What a step is, and the steps it is made of."""
    match step:
        case Stream(place, sources):
            return ("stream", place), sources
        case Read(slot, head, stream):
            return ("read", slot, head), (stream,)
        case HeadResult(head, reads):
            return ("attended", head), reads
        case JointHeads(heads):
            return ("mixed",), heads
        case ComputedWriter(writer, made_of):
            return ("version", writer), (made_of,)
        case UnchangedWriter(writer):
            return ("resting", writer), ()


def _plan(layout: Layout, n_edges: int) -> Plan:
    return plan_of(layout, random_circuit(layout, n_edges, np.random.default_rng(0))[None])
