"""Circuits run as defined: laws on every architecture, GPT-2 by hand, and TransformerLens's own faithfulness."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    BIDIRECTIONAL,
    GROUPED,
    HEADS_INTERACT,
    N_HEADS,
    N_LAYERS,
    NATIVE,
    TOLERANCE,
    booted,
    load,
    logit_diff,
    mixed_pairs,
    pairs,
)
from experiments import clean_and_empty
from gpt2_by_hand import Gpt2ByHand
from node_by_node import ablated_by_hand, walk

from circuitlab import patch_edges, sweep
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.errors import UnsupportedModelError
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.metrics import resolve
from circuitlab.parts import Edge, Kind, Layout, Node, Slot
from circuitlab.patching.circuits import reads
from circuitlab.patching.circuits.circuits import run_circuits
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.grid import Grid
from circuitlab.patching.runs.ablation import AblatedRun
from circuitlab.patching.runs.baseline import at_answer

METRIC = resolve("logit_diff")


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@cache
def layout_of(name: str) -> Layout:
    return Layout.of(load(name).spec)


@cache
def prepared(name: str) -> Experiment:
    return Experiment(load(name), pairs())


def values(name: str, masks: np.ndarray, budget: int | None = None) -> np.ndarray:
    """The logit difference of circuits, `[circuit, example]`."""
    return replace(prepared(name), budget=budget).measure(masks, [METRIC])["logit_diff"]


def random_masks(layout: Layout, shares: tuple[float, ...] = (0.8, 0.5, 0.3, 0.15), seed: int = 0) -> np.ndarray:
    """Random circuits; not pruned, since a run must not rely on it."""
    rng, real = np.random.default_rng(seed), real_edges(layout)
    return np.stack([real & (rng.random(real.shape) < share) for share in shares])


class TestLaws:
    def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(self, name):
        clean, corrupt = clean_and_empty(prepared(name), METRIC)
        real = real_edges(layout_of(name))
        everything, nothing = values(name, np.stack([real, np.zeros_like(real)]))
        assert everything == pytest.approx(clean, abs=TOLERANCE[name])
        assert nothing == pytest.approx(corrupt, abs=1e-12)
        assert np.abs(clean - corrupt).min() > 0.01

    def test_entries_that_are_no_edges_do_not_count(self, name):
        ones = np.ones_like(real_edges(layout_of(name)))
        assert values(name, ones[None])[0] == pytest.approx(
            clean_and_empty(prepared(name), METRIC)[0], abs=TOLERANCE[name]
        )

    def test_circuits_in_one_batch_are_the_circuits_one_by_one(self, name):
        masks = random_masks(layout_of(name))
        together = values(name, masks)
        assert np.stack([values(name, mask[None])[0] for mask in masks]) == pytest.approx(together, abs=TOLERANCE[name])
        assert np.ptp(together, axis=0).min() > 0.01
        assert values(name, masks, budget=100_000) == pytest.approx(together, abs=TOLERANCE[name])
        assert values(name, masks[::-1].copy())[::-1] == pytest.approx(together, abs=TOLERANCE[name])

    def test_pruning_changes_no_circuit(self, name):
        """An edge on no path from the input to the logits carries no difference."""
        layout = layout_of(name)
        masks = random_masks(layout)
        pruned = np.stack([prune(mask, layout) for mask in masks])
        assert (pruned.sum((1, 2)) < masks.sum((1, 2))).any()
        changed = np.abs(values(name, pruned) - values(name, masks)).max()
        # In a post-norm model a head that writes to nobody still moves the norm of its layer: there it does count.
        assert changed > 1e-3 if name in HEADS_INTERACT else changed < TOLERANCE[name]

    def test_one_edge_cut_is_the_exact_effect_of_the_edge(self, name):
        model, layout = load(name), layout_of(name)
        places = np.random.default_rng(1).permutation(np.argwhere(real_edges(layout)))[:40]
        masks = np.stack([real_edges(layout)] * len(places))
        masks[np.arange(len(places)), *places.T] = False
        clean, _ = clean_and_empty(prepared(name), METRIC)
        cut = clean - values(name, masks)
        edges = [layout.edge_name(*place) for place in places.tolist()]
        effects = patch_edges(model, pairs(), edges, metric=METRIC, direction="noise").per_example[:, 0]
        assert cut == pytest.approx(effects, abs=TOLERANCE[name])
        assert np.abs(cut).max() > 0.05

    def test_the_same_circuit_twice_costs_and_changes_nothing(self, name):
        """Circuits share what they have in common: equal ones, and one inside the other."""
        (mask,) = random_masks(layout_of(name), shares=(0.4,))
        rng = np.random.default_rng(5)
        nested = [mask & (rng.random(mask.shape) < 0.9), mask & (np.arange(len(mask)) > 3)[:, None]]
        masks = np.stack([mask, nested[0], mask, nested[1], mask])
        together = values(name, masks)
        assert (together[0] == together[2]).all()
        assert (together[0] == together[4]).all()
        assert np.stack([values(name, one[None])[0] for one in masks]) == pytest.approx(together, abs=TOLERANCE[name])
        assert np.abs(together[0] - together[3]).max() > 1e-3

    def test_several_metrics_share_a_run(self):
        masks = random_masks(layout_of("gpt2"))
        names = ["logit_diff", "kl", "accuracy", "log_prob"]
        found = prepared("gpt2").measure(masks, [resolve(metric) for metric in names])
        assert list(found) == names
        for metric in names:
            alone = prepared("gpt2").measure(masks, [resolve(metric)])
            assert found[metric] == pytest.approx(alone[metric])
        everything = real_edges(layout_of("gpt2"))[None]
        assert prepared("gpt2").measure(everything, [resolve("kl")])["kl"] == pytest.approx(0, abs=1e-12)
        assert (found["kl"] > 1e-4).any()

    def test_no_circuits_give_no_values(self):
        nothing = np.zeros((0, *real_edges(layout_of("gpt2")).shape), dtype=bool)
        assert values("gpt2", nothing).shape == (0, 4)

    def test_progress_counts_circuits(self):
        steps = []
        masks = random_masks(layout_of("gpt2"))
        experiment = replace(prepared("gpt2"), progress=lambda *at: steps.append(at))
        experiment.measure(masks, [METRIC], step="x")
        assert steps[-1] == ("x", 4, 4)
        assert [done for _, done, _ in steps] == sorted({done for _, done, _ in steps})

    @pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2"])
    def test_prompts_of_different_length_are_as_if_alone(self, name):
        model, masks = load(name), random_masks(layout_of(name))
        mixed = mixed_pairs()
        together = Experiment(model, mixed).measure(masks, [METRIC])["logit_diff"]
        for place in range(3):  # one of each length
            one = Experiment(model, PairSet((mixed[place],)))
            alone = one.measure(masks, [METRIC])["logit_diff"]
            assert together[:, place] == pytest.approx(alone[:, 0], abs=TOLERANCE[name])


@cache
def noise_sweeps(name: str) -> dict[str, Grid]:
    return sweep(load(name), pairs(), ["mlp_out", "head_z"], axis="all", direction="noise")


class TestNodes:
    """Cutting every edge at a node is patching the node, which the sweeps do in another way."""

    def noised(self, name: str, node: Node) -> np.ndarray:
        """The clean run with one node's output corrupted."""
        grid = noise_sweeps(name)["mlp_out" if node.kind is Kind.MLP else "head_z"]
        return grid.per_example[node.layer, 0 if node.head is None else node.head]

    def nodes(self, name: str) -> list[Node]:
        return [node for node in layout_of(name).writers if node.kind is not Kind.INPUT]

    def test_no_edges_into_it(self, name):
        layout, nodes = layout_of(name), self.nodes(name)
        if name == "olmo2":  # what a head reads moves the other heads of its layer, through the norm of all queries
            nodes = [node for node in nodes if node.kind is Kind.MLP]
        masks = np.stack([real_edges(layout)] * len(nodes))
        for mask, node in zip(masks, nodes, strict=True):
            mask[:, list(layout.readers_of(node))] = False
        expected = np.stack([self.noised(name, node) for node in nodes])
        assert values(name, masks) == pytest.approx(expected, abs=TOLERANCE[name])

    @pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in HEADS_INTERACT])
    def test_no_edges_out_of_it(self, name):
        # Not in post-norm models: there a head that nobody listens to still has its part in its layer's norm.
        layout, nodes = layout_of(name), self.nodes(name)
        masks = np.stack([real_edges(layout)] * len(nodes))
        for mask, node in zip(masks, nodes, strict=True):
            mask[layout.writer_index(node)] = False
        expected = np.stack([self.noised(name, node) for node in nodes])
        assert values(name, masks) == pytest.approx(expected, abs=TOLERANCE[name])


@pytest.fixture(scope="module")
def by_hand() -> Gpt2ByHand:
    return Gpt2ByHand()


class TestByHand:
    """GPT-2 node by node, each reader's input summed from what every writer says in this very run."""

    @torch.no_grad()
    def test_random_circuits(self, by_hand):
        batch, masks = pairs(), random_masks(layout_of("gpt2"))
        _, corrupt = by_hand.whole(batch.corrupt)
        expected = [by_hand.run(batch.clean, torch.tensor(mask).double(), corrupt)[0] for mask in masks]
        assert values("gpt2", masks) == pytest.approx(np.stack([logit_diff(x, batch) for x in expected]), abs=1e-10)

    @torch.no_grad()
    def test_a_fixed_difference_per_cut_edge_is_something_else(self, by_hand):
        """The twin: subtract clean minus corrupted output on cut edges, whatever their source has become."""
        batch, masks = pairs(), random_masks(layout_of("gpt2"))
        _, clean = by_hand.whole(batch.clean)
        _, corrupt = by_hand.whole(batch.corrupt)
        zeros = [torch.zeros(())] * len(clean)

        class WithFixedDifferences(Gpt2ByHand):
            def run(self, tokens: torch.Tensor, keep: torch.Tensor, replacement: list) -> tuple:
                self.keep, self.gone = keep, [a - b for a, b in zip(clean, corrupt, strict=True)]
                return super().run(tokens, torch.ones_like(keep), zeros)

            def _read(self, reader: int, said: list, shares: torch.Tensor, replacement: list) -> torch.Tensor:
                whole = super()._read(reader, said, shares, replacement)
                lost = [(1 - self.keep[w, reader]) * self.gone[w] for w in range(len(said))]
                return whole - sum(lost)

        fixed = WithFixedDifferences()
        wrong = np.stack(
            [logit_diff(fixed.run(batch.clean, torch.tensor(m).double(), corrupt)[0], batch) for m in masks]
        )
        assert np.abs(values("gpt2", masks) - wrong).max() > 0.05
        # They agree where no source of a cut edge has changed: one edge cut alone, and only there.
        one = real_edges(layout_of("gpt2"))
        one[0, 3] = False
        same = logit_diff(fixed.run(batch.clean, torch.tensor(one).double(), corrupt)[0], batch).numpy()
        assert values("gpt2", one[None])[0] == pytest.approx(same, abs=1e-10)


def replacements(name: str, kind: str) -> list[torch.Tensor]:
    """What excluded edges carry, by writer: nothing at all, or noise of about the size of outputs."""
    like = next(prepared(name).baselines).clean.resid_pre[0]
    generator = torch.Generator().manual_seed(3)
    size = {"zero": 0.0, "noise": 0.3}[kind]
    return [
        size * torch.randn(like.shape, generator=generator, dtype=like.dtype)
        for _ in range(len(layout_of(name).writers))
    ]


class TestFloors:
    """Other replacements than the corrupted run: every node once more, each reader's input written out as a sum."""

    @pytest.mark.parametrize("kind", ["zero", "noise"])
    @pytest.mark.parametrize("name", [*ARCHITECTURES, *NATIVE, *BIDIRECTIONAL])
    def test_node_by_node(self, name, kind):
        model, (baseline,), given = load(name), prepared(name).baselines, replacements(name, kind)
        start, at = baseline.clean.resid_pre[0], baseline.batch.answer_at
        masks = torch.tensor(random_masks(layout_of(name), shares=(0.6, 0.15)))
        expected = [at_answer(walk(model, baseline.arguments, start, mask, given).final, at) for mask in masks]
        ablated = ablated_by_hand(model, baseline.arguments, start, given)
        found = run_circuits(model, baseline, masks, ablated)
        scale = torch.stack(expected).abs().max()
        assert (found - torch.stack(expected)).abs().max() < TOLERANCE[name] * scale
        # The twins: the corrupted run as ablated run, and no offsets (a model without biases has none at 0).
        assert (run_circuits(model, baseline, masks) - found).abs().max() > 0.01 * scale
        biased = kind == "noise" or name not in (*GROUPED, "mpt")
        without = run_circuits(model, baseline, masks, AblatedRun(run=ablated.run, offsets={}))
        assert ((without - found).abs().max() > 0.01 * scale) == biased

    def test_what_nothing_makes_at_the_answer_still_has_its_offset(self, name):
        """The input is its replacement at the answer, as where means are of prompts that end alike: a node that hears
        the input alone is made of something at other tokens only, and the answer is the one that counts."""
        model, (baseline,), layout = load(name), prepared(name).baselines, layout_of(name)
        start, at, given = baseline.clean.resid_pre[0], baseline.batch.answer_at, replacements(name, "noise")
        given[0][torch.arange(len(at)), at] = start[torch.arange(len(at)), at]
        masks = torch.zeros(3, len(layout.writers), len(layout.readers), dtype=torch.bool)
        ends = layout.readers[-1]
        for column, reader in enumerate(layout.readers[:-1]):
            if reader.slot in (None, Slot.Q):  # MLPs, and queries alone
                masks[0, 0, column] = masks[1, 0, column] = True
                masks[2, : layout.visible[column], column] = True
        masks[:, 1:, layout.reader_index(ends)] = True
        masks[1, 1, :] = torch.tensor([n > 1 for n in layout.visible])  # a twin of the first, but for one head
        expected = torch.stack([at_answer(walk(model, baseline.arguments, start, m, given).final, at) for m in masks])
        ablated = ablated_by_hand(model, baseline.arguments, start, given)
        scale = expected.abs().max()
        assert (run_circuits(model, baseline, masks, ablated) - expected).abs().max() < TOLERANCE[name] * scale
        for mask, alone in zip(masks, expected, strict=True):
            found = run_circuits(model, baseline, mask[None], ablated)[0]
            assert (found - alone).abs().max() < TOLERANCE[name] * scale

    def test_the_corrupted_run_is_the_ablated_run_by_default(self, name):
        model, (baseline,) = load(name), prepared(name).baselines
        masks = torch.tensor(random_masks(layout_of(name), shares=(0.6, 0.15)))
        given = walk_of_corrupted(name)
        ablated = ablated_by_hand(model, baseline.arguments, baseline.clean.resid_pre[0], given)
        # In a post-norm model each head's share is that of its own run's scale, and so is the replacement.
        assert max(offset.abs().max() for offset in ablated.offsets.values()) < 100 * TOLERANCE[name]
        expected = run_circuits(model, baseline, masks)
        assert (run_circuits(model, baseline, masks, AblatedRun.corrupted(baseline)) == expected).all()
        assert (run_circuits(model, baseline, masks, ablated) - expected).abs().max() < 100 * TOLERANCE[name]

    def test_all_edges_are_the_clean_run_and_none_the_ablated_run(self, name):
        model, (baseline,) = load(name), prepared(name).baselines
        real = torch.tensor(real_edges(layout_of(name)))
        ablated = ablated_by_hand(model, baseline.arguments, baseline.clean.resid_pre[0], replacements(name, "noise"))
        everything, nothing = run_circuits(model, baseline, torch.stack([real, torch.zeros_like(real)]), ablated)
        at = baseline.batch.answer_at
        scale = baseline.clean.resid_final.abs().max()
        assert (everything - at_answer(baseline.clean.resid_final, at)).abs().max() < TOLERANCE[name] * scale
        assert (nothing == at_answer(ablated.run.resid_final, at)).all()

    def test_a_node_that_reads_nothing_changed_still_says_its_own(self, name):
        """One edge, from an MLP or a head to the logits: the ablated run and that writer's offset."""
        model, (baseline,), layout = load(name), prepared(name).baselines, layout_of(name)
        ablated = ablated_by_hand(model, baseline.arguments, baseline.clean.resid_pre[0], replacements(name, "noise"))
        masks = torch.zeros(len(layout.writers), len(layout.writers), len(layout.readers), dtype=torch.bool)
        masks[torch.arange(len(masks)), torch.arange(len(masks)), -1] = True
        found = run_circuits(model, baseline, masks, ablated)
        at = baseline.batch.answer_at
        base = at_answer(ablated.run.resid_final, at)
        for writer in range(1, len(masks)):
            assert (found[writer] - base - at_answer(ablated.offsets[writer], at)).abs().max() < 1e-12
            assert (found[writer] - base).abs().max() > 0.01
        entering = baseline.clean.resid_pre[0] - replacements(name, "noise")[0]
        assert (found[0] - base - at_answer(entering, at)).abs().max() < 1e-12

    @torch.no_grad()
    def test_gpt2_by_hand(self, by_hand):
        (baseline,), batch, masks = prepared("gpt2").baselines, pairs(), random_masks(layout_of("gpt2"))
        for kind in ("zero", "noise"):
            given = replacements("gpt2", kind)
            expected = [by_hand.run(batch.clean, torch.tensor(mask).double(), given)[0] for mask in masks]
            ablated = ablated_by_hand(load("gpt2"), baseline.arguments, baseline.clean.resid_pre[0], given)
            found = run_circuits(load("gpt2"), baseline, torch.tensor(masks), ablated)
            for stream, logits in zip(found, expected, strict=True):
                assert (load("gpt2").logits(stream) - at_answer(logits, batch.answer_at)).abs().max() < 1e-9

    def test_float64_keeps_twelve_digits(self):
        """GPT-2 is float64 throughout: both ends, and circuits together, in another order and one by one."""
        model, (baseline,) = load("gpt2"), prepared("gpt2").baselines
        real, at = real_edges(layout_of("gpt2")), baseline.batch.answer_at
        masks = torch.tensor(np.stack([real, real & False, *random_masks(layout_of("gpt2"))]))
        ablated = ablated_by_hand(model, baseline.arguments, baseline.clean.resid_pre[0], replacements("gpt2", "noise"))
        for given, run in ((None, baseline.corrupt), (ablated, ablated.run)):
            found = run_circuits(model, baseline, masks, given)
            assert (found[0] - at_answer(baseline.clean.resid_final, at)).abs().max() < 1e-12
            assert (found[1] - at_answer(run.resid_final, at)).abs().max() < 1e-12
            assert (run_circuits(model, baseline, masks.flip(0), given).flip(0) - found).abs().max() < 1e-12
            for mask, one in zip(masks, found, strict=True):
                assert (run_circuits(model, baseline, mask[None], given)[0] - one).abs().max() < 1e-12

    def test_bfloat16_within_its_precision(self, name):
        """Two per cent of the largest component, which is what the model itself is off by in bfloat16."""
        if name == "olmo2":
            with pytest.raises(
                UnsupportedModelError, match="rotates queries in float32, which fails in half precision"
            ):
                load(name, "bfloat16")
            return
        model = load(name, "bfloat16")
        (baseline,) = Experiment(model, pairs()).baselines
        real = torch.tensor(real_edges(layout_of(name)))
        everything, nothing = run_circuits(model, baseline, torch.stack([real, real & False]))
        clean, corrupt = (
            at_answer(r.resid_final, baseline.batch.answer_at) for r in (baseline.clean, baseline.corrupt)
        )
        assert (everything - clean).abs().max() < 0.02 * clean.abs().max()
        assert (clean - corrupt).abs().max() > 0.1 * clean.abs().max()
        assert (nothing == corrupt).all()

    def test_a_run_leaves_ablated_run_and_baseline_as_they_were(self, name):
        model, (baseline,) = load(name), prepared(name).baselines
        ablated = ablated_by_hand(model, baseline.arguments, baseline.clean.resid_pre[0], replacements(name, "noise"))
        held = [baseline.clean.resid_pre, baseline.clean.z, ablated.run.resid_pre, ablated.run.q, ablated.run.mlp_out]
        held += [tuple(ablated.offsets.values()), baseline.corrupt.resid_pre, baseline.corrupt.k]
        before = [[tensor.clone() for tensor in part] for part in held]
        masks = torch.tensor(random_masks(layout_of(name)))
        kept = masks.clone()
        for given in (ablated, None):
            run_circuits(model, baseline, masks, given)
        assert all((a == b).all() for x, y in zip(held, before, strict=True) for a, b in zip(x, y, strict=True))
        assert (masks == kept).all()


def walk_of_corrupted(name: str) -> list[torch.Tensor]:
    """What every writer says in the corrupted run."""
    (baseline,) = prepared(name).baselines
    everything = torch.tensor(real_edges(layout_of(name)))
    start = baseline.corrupt.resid_pre[0]
    return walk(load(name), baseline.arguments, start, everything, [start] * len(layout_of(name).writers)).said


class TestCost:
    """What the model is asked to compute follows the circuits, their nodes and the tokens that count."""

    def rows(self, monkeypatch: pytest.MonkeyPatch, masks: np.ndarray) -> dict[str, int]:
        """Rows that go through MLPs and projections; GPT-2, four prompts that differ at tokens 2 and 5."""
        model, (baseline,), seen = load("gpt2"), prepared("gpt2").baselines, {"mlp": 0, "heads": 0}
        owners = {"mlp_output": model, "project": reads, "read_attention": model}
        whole = {name: getattr(owner, name) for name, owner in owners.items()}

        def counting(name: str, what: str, stream_at: int, heads: int) -> Any:
            def call(*args: Any) -> Any:
                slots = len(args[1]) if name == "read_attention" else 1
                seen[what] += slots * heads * args[stream_at].shape[:-1].numel()
                return whole[name](*args)

            return call

        for name, what, stream_at, heads in (
            ("mlp_output", "mlp", 1, 1),
            ("project", "heads", 4, 1),
            ("read_attention", "heads", 2, N_HEADS),
        ):
            monkeypatch.setattr(owners[name], name, counting(name, what, stream_at, heads))
        run_circuits(model, baseline, torch.tensor(masks))
        monkeypatch.undo()
        return seen

    def mask(self, *edges: str) -> np.ndarray:
        found = np.zeros_like(real_edges(layout_of("gpt2")))
        for edge in edges:
            found[layout_of("gpt2").edge_index(Edge.parse(edge))] = True
        return found

    def test_tokens_that_differ_and_count(self, monkeypatch):
        path = self.mask("input->a0.h0<v>", "a0.h0->m1", "m1->logits")
        # The value at the tokens 2 and 5, then one MLP at the answers; for each of four prompts.
        assert self.rows(monkeypatch, path[None]) == {"mlp": 4, "heads": 8}
        # Nobody hears it; it hears nobody; its MLPs change at tokens that are not the answer's.
        for edges in (["input->a0.h0<v>", "a0.h0->m1"], ["a0.h0->m1", "m1->logits"], ["input->m0", "m0->logits"]):
            assert self.rows(monkeypatch, self.mask(*edges)[None]) == {"mlp": 0, "heads": 0}

    def test_circuits_share_what_they_have_in_common(self, monkeypatch):
        path = self.mask("input->a0.h0<v>", "a0.h0->m1", "m1->logits")
        longer = path | self.mask("input->a1.h2<k>", "a1.h2->logits")
        assert self.rows(monkeypatch, np.stack([path, longer, path])) == {"mlp": 4, "heads": 16}

    def test_all_edges_cost_no_more_than_the_model(self, monkeypatch):
        everything = self.rows(monkeypatch, real_edges(layout_of("gpt2"))[None])
        # Of each prompt, tokens 2 to the answer, which is the last or the one before; of MLPs in the end the answer's.
        tokens = 2 * 6 + 2 * 5
        assert everything["mlp"] == tokens + 4
        # The first layer reads the tokens 2 and 5, which differ.
        assert everything["heads"] == 3 * N_HEADS * (8 + tokens)


class TestTransformerLens:
    """`tools.analysis.faithfulness` takes one pair at a time and the edges of every position."""

    @pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "qwen3"])
    def test_faithfulness(self, name):
        from transformer_lens.tools.analysis import faithfulness

        bridge, batch, layout = self.bridge(name), pairs(n=2), layout_of(name)
        ready = Experiment(load(name), batch)
        clean, corrupt = clean_and_empty(ready, METRIC)
        masks = np.stack([prune(mask, layout) for mask in random_masks(layout)])
        found = ready.measure(masks, [METRIC])["logit_diff"]
        for mask, ours in zip(masks, found, strict=True):
            edges = transformer_lens_edges(layout, mask, batch.n_tokens)
            theirs = []
            for i in range(len(batch)):
                one = batch.take(torch.tensor([i]))
                result = faithfulness(
                    bridge, one.clean, one.corrupt, lambda logits, one=one: logit_diff(logits, one)[0], edges
                )
                assert result.total_edges == layout.n_edges * batch.n_tokens
                theirs.append(result.corrupt_metric + result.recovered * (result.full_metric - result.corrupt_metric))
            assert ours == pytest.approx(theirs, abs=1e-4)
            ratio = (np.mean(theirs) - corrupt.mean()) / (clean.mean() - corrupt.mean())
            assert (ours.mean() - corrupt.mean()) / (clean.mean() - corrupt.mean()) == pytest.approx(ratio, abs=1e-3)

    @staticmethod
    def metric(one: PairBatch, logits: torch.Tensor) -> torch.Tensor:
        return logit_diff(logits, one)[0]

    @staticmethod
    @cache
    def bridge(name: str) -> Any:
        # It refuses grouped queries, so it gets the same model with keys and values written out per query head.
        return booted(name, ungrouped=name in GROUPED)


def transformer_lens_edges(layout: Layout, mask: np.ndarray, n_tokens: int) -> list:
    """The kept edges as TransformerLens spells them, once per position."""
    from transformer_lens.tools.analysis.attribution_patching import Node as Theirs

    kinds = {Kind.INPUT: "embed", Kind.HEAD: "attn_head_out", Kind.MLP: "mlp_out"}
    found = []
    for row, column in np.argwhere(mask):
        writer, reader = layout.writers[row], layout.readers[column]
        into = f"{reader.slot.value}_input" if reader.slot else "mlp_in" if reader.node.kind is Kind.MLP else "logits"
        layer = N_LAYERS - 1 if into == "logits" else reader.node.layer
        for position in range(n_tokens):
            source = Theirs(kind=kinds[writer.kind], position=position, layer=writer.layer, head=writer.head)
            found.append((source, Theirs(kind=into, position=position, layer=layer, head=reader.node.head)))
    return found


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_queries_are_the_same_model_written_out_per_query_head(name):
    masks = random_masks(layout_of(name))
    spelt_out = load(name, ungrouped=True)
    assert spelt_out.spec.n_kv_heads == 2 * load(name).spec.n_kv_heads
    assert [e.name for e in Layout.of(spelt_out.spec).edges()] == [e.name for e in layout_of(name).edges()]
    expected = Experiment(spelt_out, pairs()).measure(masks, [METRIC])["logit_diff"]
    assert values(name, masks) == pytest.approx(expected, abs=TOLERANCE[name])


def test_values_stand_in_the_order_of_the_examples():
    batch, rows = pairs(n=5), torch.tensor([3, 1, 4])
    whole, part = (clean_and_empty(Experiment(load("gpt2"), given), METRIC) for given in (batch, batch.take(rows)))
    for everything, some in zip(whole, part, strict=True):
        assert some == pytest.approx(everything[rows])
