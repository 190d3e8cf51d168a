"""Exact edge patching: brute force with plain hooks, GPT-2 by hand, TransformerLens, the laws, and bad requests."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    BIDIRECTIONAL,
    GROUPED,
    N_HEADS,
    N_LAYERS,
    NATIVE,
    TOLERANCE,
    as_users_run_it,
    load,
    logit_diff,
    mixed_pairs,
    pairs,
)
from gpt2_by_hand import N_READERS, N_WRITERS, Gpt2ByHand

from circuitlab import score_edges, sweep
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, MetricError, UnknownNameError
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.ranking import edge_places
from circuitlab.parts import Edge, Kind, Layout, Slot
from circuitlab.patching.edges.edges import EdgeEffects, patch_edges
from circuitlab.patching.runs.baseline import record_baseline
from circuitlab.patching.runs.writers import writer_differences

EVERYTHING = (*ARCHITECTURES, *NATIVE, *BIDIRECTIONAL)
# Holds two prompts of a packed run and no more.
SMALL_BUDGET = 200_000


@pytest.fixture(params=EVERYTHING)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@cache
def layout_of(name: str) -> Layout:
    return Layout.of(load(name).spec)


@cache
def patched(name: str, axis: str = "all", direction: str = "noise") -> EdgeEffects:
    """Every edge of an architecture."""
    return patch_edges(load(name), pairs(), axis=axis, direction=direction)


@cache
def some_edges(name: str, n: int = 10) -> tuple[Edge, ...]:
    """Edges into every kind of reader of both layers, drawn at random."""
    edges, rng = list(layout_of(name).edges()), np.random.default_rng(0)
    kinds: dict[object, list[Edge]] = {}
    for edge in edges:
        kinds.setdefault((edge.reader.slot, edge.reader.node.kind, edge.reader.node.layer), []).append(edge)
    chosen = [some[int(rng.integers(len(some)))] for some in kinds.values()]
    others = [edge for edge in edges if edge not in chosen]
    return (*chosen, *(others[i] for i in rng.permutation(len(others))[: max(0, n - len(chosen))]))


class PlainHooks:
    """One edge of one run by the model's own forward pass: a hook where its reader reads, everything else as it is."""

    def __init__(self, name: str, direction: str) -> None:
        self.bridge = load(name, ungrouped=name in GROUPED).bridge
        self.batch, self.layout = pairs(), layout_of(name)
        clean_minus_corrupt = writer_differences(load(name), record_baseline(load(name), self.batch))
        self.messages = -clean_minus_corrupt if direction == "noise" else clean_minus_corrupt
        self.tokens = self.batch.clean if direction == "noise" else self.batch.corrupt
        self.sign = 1 if direction == "noise" else -1
        with torch.no_grad():
            self.untouched = logit_diff(self.bridge(self.tokens), self.batch)

    @torch.no_grad()
    def effect(self, edge: Edge, where: torch.Tensor) -> np.ndarray:
        """How much the edge helps with its message swapped at these tokens, per example."""
        message = self.messages[self.layout.writer_index(edge.source)] * where[..., None]
        node, hooks = edge.reader.node, []
        block = None if node.layer is None else self.bridge.blocks[node.layer]
        if edge.reader.slot is not None:
            hooks = [(f"blocks.{node.layer}.attn.hook_{edge.reader.slot.value}", self._head(edge, block, message))]
            logits = self.bridge.run_with_hooks(self.tokens, fwd_hooks=hooks)
        else:
            reads = self.bridge.ln_final if block is None else getattr(block, "ln2", block.mlp)
            changed = self._read_by_mlp_of(block, message)
            handle = reads.register_forward_pre_hook(lambda _, args: (changed(args[0]), *args[1:]))
            try:
                logits = self.bridge(self.tokens)
            finally:
                handle.remove()
        return (self.sign * (self.untouched - logit_diff(logits, self.batch))).numpy()

    def _read_by_mlp_of(self, block, message):
        """What the module that is hooked reads; an MLP that shares the norm of attention reads it after the norm."""
        if block is None or hasattr(block, "ln2") or not getattr(block, "ln1", None):
            return lambda read: read + message
        stream = self.bridge.run_with_cache(self.tokens)[1][
            f"blocks.{list(self.bridge.blocks).index(block)}.hook_resid_pre"
        ]
        return lambda _: block.ln1(stream + message)

    def _head(self, edge, block, message):
        stream = self.bridge.run_with_cache(self.tokens)[1][f"blocks.{edge.reader.node.layer}.hook_resid_pre"]
        norm = getattr(block, "ln1", None) or (lambda stream: stream)
        slot = getattr(block.attn, edge.reader.slot.value)
        changed = slot(norm(stream + message)).unflatten(-1, (N_HEADS, -1))[:, :, edge.reader.node.head]

        def put(values, hook):
            values = values.clone()
            values.view(*values.shape[:2], N_HEADS, -1)[:, :, edge.reader.node.head] = changed
            return values

        return put


class TestOracles:
    @pytest.mark.parametrize("direction", ["noise", "denoise"])
    def test_plain_hooks(self, name, direction):
        oracle, everywhere = PlainHooks(name, direction), torch.ones_like(pairs().clean)
        edges = some_edges(name)
        found = patch_edges(load(name), pairs(), edges, direction=direction)
        expected = np.stack([oracle.effect(edge, everywhere) for edge in edges])
        assert found.per_example[:, 0] == pytest.approx(expected, abs=TOLERANCE[name])
        assert np.abs(expected).max() > 0.05
        # The twin: the next edge's effect is another.
        assert np.abs(found.per_example[:, 0] - np.roll(expected, 1, 0)).max() > 0.01

    def test_plain_hooks_at_one_position(self, name):
        oracle, batch, edges = PlainHooks(name, "noise"), pairs(), some_edges(name)
        found = patch_edges(load(name), batch, edges, axis="position", positions=[5, 7, 0], direction="noise")
        for column, position in enumerate([5, 7, 0]):
            where = torch.zeros_like(batch.clean)
            where[:, position] = 1
            expected = np.stack([oracle.effect(edge, where) for edge in edges])
            assert found.per_example[:, column] == pytest.approx(expected, abs=TOLERANCE[name])
        assert (np.abs(found.values[:, :2]).max(0) > 5e-4).all()
        assert found.values[:, 2].any() == (name in BIDIRECTIONAL)

    @torch.no_grad()
    def test_gpt2_by_hand(self):
        """Every edge, example by example, against a forward pass written out node by node."""
        by_hand, batch, layout = Gpt2ByHand(), pairs(), layout_of("gpt2")
        shares = torch.ones(N_WRITERS, N_READERS, dtype=torch.float64)
        whole, corrupt = by_hand.whole(batch.clean)[0], by_hand.whole(batch.corrupt)[1]
        expected = []
        for row, column in edge_places(layout):
            shares[row, column] = 0
            expected.append(logit_diff(whole, batch) - logit_diff(by_hand.run(batch.clean, shares, corrupt)[0], batch))
            shares[row, column] = 1
        assert patched("gpt2").per_example[:, 0] == pytest.approx(torch.stack(expected).numpy(), abs=1e-12)

    @pytest.mark.parametrize("slot", Slot)
    def test_transformer_lens_direct_paths(self, slot):
        """It puts the clean value into the corrupted run, all positions at once."""
        from transformer_lens.patching import get_act_patch_direct_path

        batch, bridge = pairs(), load("gpt2").bridge

        def metric(logits: torch.Tensor) -> torch.Tensor:
            return logit_diff(logits, batch).mean()

        with torch.no_grad():
            _, clean = bridge.run_with_cache(batch.clean)
            logits, corrupt = bridge.run_with_cache(batch.corrupt)
            theirs = get_act_patch_direct_path(
                bridge, batch.corrupt, clean, corrupt, metric, 0, 1, slot.value, verbose=False
            )
        edges = [f"a0.h1->a1.h{head}<{slot.value}>" for head in range(N_HEADS)]
        ours = patch_edges(load("gpt2"), batch, edges, direction="denoise").values[:, 0]
        assert float(metric(logits)) + ours == pytest.approx(theirs[1].numpy(), abs=1e-5)
        assert np.abs(ours).max() > 0.005


class TestLaws:
    def test_the_only_edge_out_of_a_node_is_the_node(self, name):
        """The last MLP (in a parallel block each last head too) is read by the logits alone."""
        layout, last = layout_of(name), N_LAYERS - 1
        grids = sweep(
            load(name),
            pairs(),
            ["mlp_out", "head_z"] if layout.spec.has_mlp else ["head_z"],
            axis="all",
            direction="noise",
            normalise=False,
        )
        alone = [node for node in layout.writers if _n_readers(layout, node) == 1]
        assert alone
        found = patch_edges(load(name), pairs(), [f"{node.name}->logits" for node in alone], direction="noise")
        for node, effect in zip(alone, found.per_example[:, 0], strict=True):
            grid = grids["mlp_out" if node.kind is Kind.MLP else "head_z"]
            noised = grid.per_example[last, 0 if node.head is None else node.head]
            assert effect == pytest.approx(grid.clean - noised, abs=TOLERANCE[name])
            assert np.abs(effect).max() > 1e-3

    def test_what_is_read_at_the_answer_alone_is_the_sum_over_positions(self, name):
        """Logits, and the last layer's queries and MLP: no other token of theirs reaches the answer."""
        found, layout = patched(name, "position"), layout_of(name)
        at_answer = [
            n
            for n, edge in enumerate(found.edges)
            if edge.reader.node.layer in (None, N_LAYERS - 1) and edge.reader.slot in (None, Slot.Q)
        ]
        assert found.per_example[at_answer].sum(1) == pytest.approx(
            patched(name).per_example[at_answer, 0], abs=TOLERANCE[name]
        )
        answers = pairs().answer_at.tolist()
        for example, answer in enumerate(answers):
            others = [position for position in range(pairs().n_tokens) if position != answer]
            assert not found.per_example[at_answer][:, others, example].any()
        # The twin: keys and values are read at every token, and pass through a softmax.
        rest = np.setdiff1d(np.arange(layout.n_edges), at_answer)
        assert np.abs(found.per_example[rest].sum(1) - patched(name).per_example[rest, 0]).max() > 1e-3

    def test_before_the_first_difference_and_behind_the_answer_nothing_happens(self, name):
        """Unless every token sees every other."""
        found = patched(name, "position").per_example
        assert found[:, :2].any() == (name in BIDIRECTIONAL)
        assert found[:, 7, pairs().answer_at == 6].any() == (name in BIDIRECTIONAL)
        assert np.abs(found[:, 2]).max() > 1e-3

    def test_a_message_at_one_token_is_the_column_of_that_token(self, name):
        """The embedding differs at tokens 2 and 5: no other column does anything."""
        found = patched(name, "position")
        out_of_input = [n for n, edge in enumerate(found.edges) if edge.source.kind is Kind.INPUT]
        assert not found.per_example[out_of_input][:, [3, 4, 6, 7]].any()
        assert found.per_example[out_of_input][:, [2, 5]].any()

    def test_denoising_is_noising_with_the_prompts_swapped(self, name):
        swapped = patch_edges(load(name), pairs().swapped(), direction="noise")
        assert patched(name, direction="denoise").per_example == pytest.approx(
            -swapped.per_example, abs=TOLERANCE[name]
        )
        assert np.abs(patched(name, direction="denoise").values - patched(name).values).max() > 0.01

    def test_packing_and_order_change_nothing(self, name):
        model, edges, whole = load(name), some_edges(name), patched(name, "position")
        places = [whole.edges.index(edge) for edge in edges]
        for budget in (SMALL_BUDGET, 400_000):
            small = patch_edges(model, pairs(), edges, axis="position", direction="noise", budget=budget)
            assert small.per_example == pytest.approx(whole.per_example[places], abs=TOLERANCE[name])
        order = torch.tensor([2, 0, 3, 1])
        turned = patch_edges(model, pairs().take(order), edges[::-1], axis="position", direction="noise")
        assert turned.per_example[::-1] == pytest.approx(whole.per_example[places][:, :, order], abs=TOLERANCE[name])

    def test_masks_names_and_edges_are_the_same_edges(self, name):
        layout, edges = layout_of(name), some_edges(name)
        mask = np.zeros(real_edges(layout).shape, dtype=bool)
        mask[tuple(np.array([layout.edge_index(edge) for edge in edges]).T)] = True
        by_name = patch_edges(load(name), pairs(), [edge.name for edge in edges])
        assert by_name.edges == edges
        for given in (mask, torch.tensor(mask), mask | ~real_edges(layout)):
            by_mask = patch_edges(load(name), pairs(), given)
            places = [by_mask.edges.index(edge) for edge in edges]
            assert by_mask.per_example[places] == pytest.approx(by_name.per_example, abs=TOLERANCE[name])

    def test_exact_scores_are_these(self, name):
        scores, layout = score_edges(load(name), pairs(), "exact"), layout_of(name)
        places = edge_places(layout)
        assert scores.values[*places.T] == pytest.approx(patched(name).values[:, 0], abs=1e-12)
        standard_errors = patched(name).per_example[:, 0].std(1, ddof=1) / np.sqrt(len(pairs()))
        assert scores.standard_error[*places.T] == pytest.approx(standard_errors, abs=1e-9)


def _n_readers(layout: Layout, node) -> int:
    return int(real_edges(layout)[layout.writer_index(node)].sum())


class TestRequests:
    @pytest.mark.parametrize("name", ["gpt2", "llama"])
    def test_prompts_of_different_length_by_span(self, name):
        mixed, edges = mixed_pairs(), some_edges(name)
        together = patch_edges(load(name), mixed, edges, axis="span")
        assert {"opening", "name", "end"} <= set(together.columns)
        for place in (0, 4):
            alone = patch_edges(load(name), PairSet((mixed[place],)), edges, axis="span")
            columns = [together.columns.index(column) for column in alone.columns]
            assert together.per_example[:, columns, place] == pytest.approx(
                alone.per_example[:, :, 0], abs=TOLERANCE[name]
            )
        frame = together.to_frame()
        assert list(frame) == ["source", "target", "span", "value", "ci_low", "ci_high", "p_value", "n"]

    def test_a_column_that_an_example_lacks_is_absent(self):
        batch = replace(pairs(), spans={"a": torch.tensor([[2, 3], [2, 3], [0, 0], [2, 3]])})
        found = patch_edges(load("gpt2"), batch, ["input->logits", "input->m0"], axis="span")
        column = found.columns.index("a")
        assert np.isnan(found.per_example[:, column, 2]).all()
        assert found.n[:, column].tolist() == [3, 3]
        assert not np.isnan(found.values[:, column]).any()

    def test_frame(self):
        frame = patched("gpt2", "position").to_frame()
        columns = ["source", "target", "position", "label", "value", "ci_low", "ci_high", "p_value", "n"]
        assert list(frame) == columns
        assert len(frame) == layout_of("gpt2").n_edges * 8
        row = frame[(frame.source == "m1") & (frame.target == "logits") & (frame.position == 7)].iloc[0]
        n = next(i for i, edge in enumerate(patched("gpt2").edges) if edge.name == "m1->logits")
        assert row.value == pytest.approx(patched("gpt2", "position").values[n, 7])
        assert row.ci_low <= row.value <= row.ci_high
        corrected = patched("gpt2", "position").to_frame(correction="holm")
        assert (corrected.p_value >= frame.p_value).all()
        with pytest.raises(UnknownNameError, match="benjamini-hochberg"):
            patched("gpt2").to_frame(correction="benjamini")

    def test_some_positions_keep_their_numbers(self):
        found = patch_edges(load("gpt2"), pairs(), ["m0->m1"], axis="position", positions=[5, 2])
        assert found.to_frame().position.tolist() == [5, 2]
        every = [edge.name for edge in patched("gpt2").edges].index("m0->m1")
        assert found.values[0] == pytest.approx(patched("gpt2", "position").values[every, [5, 2]], abs=1e-12)

    def test_where_less_is_better_positive_still_helps(self):
        found = patch_edges(load("gpt2"), pairs(), ["input->m0", "m1->logits"], metric="kl", direction="noise")
        assert (found.per_example[found.per_example != 0] > 0).all()
        assert (found.clean < found.corrupt).all()

    def test_progress_ends_at_its_end(self):
        steps: list[tuple[str, int, int]] = []
        patch_edges(load("gpt2"), mixed_pairs(), some_edges("gpt2"), progress=lambda *at: steps.append(at))
        assert steps[-1][1] == steps[-1][2]
        assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)

    def test_a_model_in_half_precision(self):
        model = load("gpt2", "bfloat16")
        edges = ["m0->m1", "m1->logits", "input->a0.h0<v>", "m0->a1.h3<q>"]
        found, exact = (patch_edges(m, pairs(), edges).values for m in (model, load("gpt2")))
        assert found == pytest.approx(exact, abs=0.1)
        assert np.abs(exact).max() > 0.15


class TestBadRequests:
    """Each is refused before anything runs."""

    def refused(self, match: str, error: type[Exception], edges=("m0->m1",), **settings) -> None:
        model = load("gpt2")

        def never(*_args: object, **_kwargs: object) -> None:
            raise AssertionError("the model was run")

        handle = model.bridge.blocks[0].register_forward_pre_hook(never)
        try:
            with as_users_run_it(), pytest.raises(error, match=match):
                patch_edges(model, settings.pop("pairs", pairs()), edges, **settings)
        finally:
            handle.remove()

    def test_names(self):
        self.refused("Did you mean 'm0->m1'", UnknownNameError, ["m0->m01"])
        self.refused("Did you mean 'm0->a1.h0<.>'.*a head is read through <q>", UnknownNameError, ["m0->a1.h0"])
        self.refused(r"m1 writes after a1\.h0<q> has read", UnknownNameError, ["m1->a1.h0<q>"])
        self.refused(
            r"unknown edge 'm0->a9\.h0<q>'.*2 layers of 4 heads", UnknownNameError, [Edge.parse("m0->a9.h0<q>")]
        )
        self.refused("'m0->m1' is named twice", ConfigError, ["m0->m1", "m0->logits", "m0->m1"])
        self.refused("edges is empty", ConfigError, [])

    def test_a_single_name_is_one_edge(self):
        assert [edge.name for edge in patch_edges(load("gpt2"), pairs(), "m0->m1").edges] == ["m0->m1"]

    def test_masks(self):
        self.refused(r"shape \(11, 27\)", ConfigError, np.ones((3, 3), dtype=bool))
        self.refused("boolean", ConfigError, np.ones((11, 27)))
        self.refused("holds no edge", ConfigError, np.zeros((11, 27), dtype=bool))

    def test_settings(self):
        self.refused("unknown direction 'noisy'", UnknownNameError, direction="noisy")
        self.refused("unknown metric", UnknownNameError, metric="logit_dif")
        self.refused("unknown axis", UnknownNameError, axis="tokens")
        self.refused("position 8 is out of range: there are 8", ConfigError, axis="position", positions=[2, 8])
        self.refused("twice", ConfigError, axis="position", positions=[2, 2])
        self.refused("no position is chosen", ConfigError, axis="position", positions=[])
        self.refused("go with axis='position'", ConfigError, positions=[2])
        self.refused("position 2 is out of range", ConfigError, pairs=mixed_pairs(), axis="position", positions=[2])
        self.refused("budget of 10 bytes", ConfigError, budget=10)
        self.refused("it must be task.pairs", ConfigError, pairs=[1])

    def test_metrics_that_tell_nothing_apart(self):
        same = PairBatch.from_tokens(pairs().clean, pairs().clean, pairs().answers, pairs().distractors)
        with pytest.raises(MetricError, match="no difference"):
            patch_edges(load("gpt2"), same, ["m0->m1"])
        with pytest.raises(MetricError, match="one value per example"):
            patch_edges(load("gpt2"), pairs(), ["m0->m1"], metric=lambda *_: 0.0)
