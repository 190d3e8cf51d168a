"""Path patching: two runs with plain hooks, exact edges, whole nodes and circuits as oracles, and bad requests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    as_users_run_it,
    load,
    logit_diff,
    mixed_pairs,
    pairs,
)

from circuitlab import sweep
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.parts import Kind, Layout, Node, Reader, Slot
from circuitlab.patching.edges.edges import patch_edges
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.paths.paths import PathEffects, path_patch
from circuitlab.patching.paths.plan import FROZEN
from circuitlab.patching.runs.baseline import record_baseline
from circuitlab.patching.runs.writers import writer_differences

EVERYTHING = (*ARCHITECTURES, *NATIVE, *BIDIRECTIONAL)


@pytest.fixture(params=EVERYTHING)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@cache
def layout_of(name: str) -> Layout:
    return Layout.of(load(name).spec)


@cache
def patched(name: str, receivers: tuple[str, ...], frozen: str, freeze_mlps: bool, direction: str) -> PathEffects:
    return path_patch(load(name), pairs(), None, receivers, frozen=frozen, freeze_mlps=freeze_mlps, direction=direction)


class TwoRuns:
    """Path patching by the model's own forward pass, twice, with plain hooks."""

    def __init__(self, name: str, direction: str, batch: PairBatch | None = None) -> None:
        self.bridge = load(name, ungrouped=name in GROUPED).bridge
        self.batch, self.layout = pairs() if batch is None else batch, layout_of(name)
        difference = writer_differences(load(name), record_baseline(load(name), self.batch))
        self.messages = -difference if direction == "noise" else difference
        self.tokens = self.batch.clean if direction == "noise" else self.batch.corrupt
        self.sign = 1 if direction == "noise" else -1
        # What is held, from the run that is patched.
        self.held: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            self.untouched = logit_diff(self.run(self._every_point(self._keep)), self.batch)

    @torch.no_grad()
    def effect(self, sender: Node, receivers: list[Reader], frozen: str, freeze_mlps: bool) -> np.ndarray:
        """How much the paths from a sender to the receivers help, per example."""
        held = [name for name in self.held if self._is_held(name, frozen, freeze_mlps)]
        hooks = [(name, lambda _, name=name: self.held[name]) for name in held]
        hooks.append((self._output_of(sender), self._add(self.messages[self.layout.writer_index(sender)])))
        heard: dict[Reader, torch.Tensor] = {}
        for reader in receivers:
            hooks.append((self._input_of(reader), lambda value, reader=reader: heard.update({reader: value.clone()})))
        self.run(hooks)
        hooks = [(self._input_of(reader), self._hear(reader, heard[reader])) for reader in receivers]
        return (self.sign * (self.untouched - logit_diff(self.run(hooks), self.batch))).numpy()

    def run(self, hooks: list[tuple[str, Callable[[torch.Tensor], torch.Tensor | None]]]) -> torch.Tensor:
        """A forward pass; each hook sees a point's value and may put another in its place, in the order given."""
        with ExitStack() as stack:
            for point, see in hooks:
                stack.enter_context(self._hooked(point, see))
            return self.bridge(self.tokens)

    @contextmanager
    def _hooked(self, point: str, see: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
        """Points are spelt `q 0`, `z 0`, `attn 0`, `mlp 0`, `into mlp 0`, `pattern 0`, `embed`, `into logits`."""
        *what, layer = point.rsplit(" ", 1)
        block: Any = self.bridge.blocks[int(layer)] if layer.isdigit() else None
        own = None if block is None else block.original_component
        # Granite multiplies what these modules return; MPT's MLP returns the stream with its output added.
        factor = getattr(own, "residual_multiplier", 1.0) if what in (["attn"], ["mlp"]) else 1.0
        adds_the_stream = type(own).__name__ == "MptBlock"

        def before(_module: Any, args: tuple, kwargs: dict) -> Any:
            if args:
                new = see(args[0])
                return None if new is None else ((new, *args[1:]), kwargs)
            new = see(kwargs["hidden_states"])
            return None if new is None else (args, {**kwargs, "hidden_states": new})

        def behind(_module: Any, _args: tuple, output: Any) -> Any:
            new = see(factor * (output[0] if isinstance(output, tuple) else output))
            new = None if new is None else new / factor
            return new if new is None or not isinstance(output, tuple) else (new, *output[1:])

        after = {
            "attn": lambda: getattr(block, "ln1_post", block.attn),
            "mlp": lambda: getattr(block, "ln2_post", block.mlp.out if adds_the_stream else block.mlp),
            "pattern": lambda: block.attn.hook_pattern,
            **{slot: lambda slot=slot: getattr(block.attn, slot) for slot in "qkv"},
        }
        ahead = {
            "embed": lambda: self.bridge.blocks[0],
            "into logits": lambda: self.bridge.ln_final,
            "into mlp": lambda: getattr(block, "ln2", block.mlp),
        }
        key = " ".join(what) if block is not None else point
        if key in ahead:
            handle = ahead[key]().register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = after[key]().register_forward_hook(behind)
        try:
            yield
        finally:
            handle.remove()

    def _every_point(self, see: Callable[[str], Callable]) -> list[tuple[str, Callable]]:
        kinds = ("attn", "pattern", "mlp") if self.layout.spec.has_mlp else ("attn", "pattern")
        return [(f"{kind} {layer}", see(f"{kind} {layer}")) for layer in range(N_LAYERS) for kind in kinds]

    def _keep(self, point: str) -> Callable[[torch.Tensor], None]:
        return lambda value: self.held.update({point: value.clone()})

    def _is_held(self, point: str, frozen: str, freeze_mlps: bool) -> bool:
        kind = point.split()[0]
        return {"attn": frozen == "heads", "pattern": frozen == "patterns", "mlp": freeze_mlps}[kind]

    def _output_of(self, sender: Node) -> str:
        return {Kind.INPUT: "embed", Kind.HEAD: f"attn {sender.layer}", Kind.MLP: f"mlp {sender.layer}"}[sender.kind]

    def _input_of(self, reader: Reader) -> str:
        if reader.slot is not None:
            return f"{reader.slot.value} {reader.node.layer}"
        return f"into mlp {reader.node.layer}" if reader.node.kind is Kind.MLP else "into logits"

    def _add(self, message: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda value: value + message

    def _hear(self, reader: Reader, heard: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        def hear(value: torch.Tensor) -> torch.Tensor:
            if reader.slot is None:
                return heard
            heads = value.clone().unflatten(-1, (N_HEADS, -1)) if value.ndim == 3 else value.clone()
            heads[:, :, reader.node.head] = heard.reshape(heads.shape)[:, :, reader.node.head]
            return heads.reshape(value.shape)

        return hear


def readers(name: str, *names: str) -> list[Reader]:
    return [reader for reader in layout_of(name).readers if reader.name in names or reader.node.name in names]


def receiver_sets(name: str) -> list[tuple[str, ...]]:
    """Several heads, the logits, and some of which one is behind another."""
    chain = ("m0", "a1.h1<v>", "m1") if layout_of(name).spec.has_mlp else ("a0.h1<v>", "a1.h0<q>", "a1.h2<v>")
    return [("a1.h1", "a1.h3<k>"), ("logits",), chain]


class TestOracles:
    @pytest.mark.parametrize("frozen", FROZEN)
    @pytest.mark.parametrize("freeze_mlps", [False, True])
    def test_two_runs_with_plain_hooks(self, name, frozen, freeze_mlps):
        direction = "noise" if freeze_mlps else "denoise"
        oracle, largest = TwoRuns(name, direction), 0.0
        for receivers in receiver_sets(name):
            found = patched(name, receivers, frozen, freeze_mlps, direction)
            assert list(found.receivers) == readers(name, *receivers)
            for number in {0, *np.random.default_rng(0).permutation(len(found.senders))[:2].tolist()}:
                expected = oracle.effect(found.senders[number], readers(name, *receivers), frozen, freeze_mlps)
                assert found.per_example[number] == pytest.approx(expected, abs=TOLERANCE[name])
                largest = max(largest, np.abs(expected).max())
        assert largest > 0.05


class TestLaws:
    @pytest.mark.parametrize("direction", ["noise", "denoise"])
    def test_with_everything_held_it_is_the_direct_edge(self, name, direction):
        through_mlps = 0.0
        for receiver in ("a1.h2<q>", "a1.h0<v>", "logits", *(("m1",) if layout_of(name).spec.has_mlp else ())):
            found = patched(name, (receiver,), "heads", True, direction)
            edges = [f"{sender.name}->{receiver}" for sender in found.senders]
            exact = patch_edges(load(name), pairs(), edges, direction=direction)
            assert found.per_example == pytest.approx(exact.per_example[:, 0], abs=TOLERANCE[name])
            through = patched(name, (receiver,), "heads", False, direction)
            through_mlps = max(through_mlps, np.abs(through.per_example - found.per_example).max())
        # The twin: through the MLPs between, more is heard.
        assert bool(through_mlps > 1e-3) is layout_of(name).spec.has_mlp

    def test_with_everything_held_several_receivers_are_a_set_of_edges(self, name):
        """A circuit without these edges; none of the receivers is behind another."""
        receivers, layout = readers(name, "a1.h1", "a1.h3<k>"), layout_of(name)
        found = patched(name, ("a1.h1", "a1.h3<k>"), "heads", True, "noise")
        masks = np.stack([real_edges(layout)] * len(found.senders))
        columns = [layout.reader_index(reader) for reader in receivers]
        for number, sender in enumerate(found.senders):
            masks[number, layout.writer_index(sender), columns] = False
        values = Experiment(load(name), pairs()).measure(masks, [resolve("logit_diff")])["logit_diff"]
        assert found.per_example == pytest.approx(found.clean - values, abs=TOLERANCE[name])
        assert np.abs(found.per_example).max() > 1e-3

    @pytest.mark.parametrize("direction", ["noise", "denoise"])
    def test_with_nothing_held_the_paths_to_the_logits_are_the_node(self, name, direction):
        found = patched(name, ("logits",), "none", False, direction)
        sites = ["mlp_out", "head_z"] if layout_of(name).spec.has_mlp else ["head_z"]
        grids = sweep(load(name), pairs(), sites, axis="all", direction=direction, normalise=False)
        for sender, effect in zip(found.senders, found.per_example, strict=True):
            # With a post-norm, patching a head moves its whole layer, and patching its message does not.
            if sender.kind is Kind.INPUT or (sender.kind is Kind.HEAD and name in HEADS_INTERACT):
                continue
            grid = grids["mlp_out" if sender.kind is Kind.MLP else "head_z"]
            cell = grid.per_example[sender.layer, 0 if sender.head is None else sender.head]
            expected = grid.clean - cell if direction == "noise" else cell - grid.corrupt
            assert effect == pytest.approx(expected, abs=TOLERANCE[name])
        assert np.abs(found.per_example).max() > 0.05

    def test_the_input_through_everything_is_the_other_prompt(self, name):
        for direction in ("noise", "denoise"):
            found = patched(name, ("logits",), "none", False, direction)
            assert found.per_example[0] == pytest.approx(found.clean - found.corrupt, abs=TOLERANCE[name])
            assert found.shares[0] == pytest.approx(np.sign((found.clean - found.corrupt).mean()), abs=1e-3)

    def test_what_is_held_matters(self, name):
        """From the input to the last layer the three ways differ; from the layer before it they cannot."""
        ways = [patched(name, ("logits",), frozen, True, "noise").per_example for frozen in FROZEN]
        assert np.abs(ways[0] - ways[1]).max() > 1e-3
        assert np.abs(ways[1] - ways[2]).max() > 1e-3
        senders = patched(name, ("a1.h2<q>",), "heads", True, "noise").senders
        last = [n for n, sender in enumerate(senders) if sender.layer == 0]
        near = [patched(name, ("a1.h2<q>",), frozen, True, "noise").per_example[last] for frozen in FROZEN]
        assert near[0] == pytest.approx(near[1], abs=TOLERANCE[name])
        assert near[0] == pytest.approx(near[2], abs=TOLERANCE[name])

    def test_denoising_is_noising_with_the_prompts_swapped(self, name):
        for frozen in FROZEN:
            swapped = path_patch(load(name), pairs().swapped(), None, "a1.h1", frozen=frozen, direction="noise")
            found = patched(name, ("a1.h1",), frozen, False, "denoise")
            assert found.per_example == pytest.approx(-swapped.per_example, abs=TOLERANCE[name])

    @pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2"])
    @pytest.mark.parametrize("frozen", FROZEN)
    def test_packing_and_order_change_nothing(self, name, frozen):
        whole, order = patched(name, ("a1.h1",), frozen, False, "noise"), torch.tensor([2, 0, 3, 1])
        for budget in (250_000, 500_000):
            small = path_patch(load(name), pairs(), None, ["a1.h1"], frozen=frozen, direction="noise", budget=budget)
            assert small.per_example == pytest.approx(whole.per_example, abs=TOLERANCE[name])
        turned = path_patch(
            load(name), pairs().take(order), whole.senders[::-1], ["a1.h1"], frozen=frozen, direction="noise"
        )
        assert turned.per_example[::-1] == pytest.approx(whole.per_example[:, order], abs=TOLERANCE[name])

    def test_a_head_is_all_its_slots(self):
        whole = patched("gpt2", ("a1.h1",), "heads", False, "noise")
        slots = path_patch(
            load("gpt2"), pairs(), None, [Reader(Node.parse("a1.h1"), slot) for slot in Slot], direction="noise"
        )
        assert slots.receivers == whole.receivers
        assert slots.per_example == pytest.approx(whole.per_example)
        assert np.abs(whole.values - patched("gpt2", ("a1.h1<q>",), "heads", False, "noise").values).max() > 1e-3


class TestRequests:
    def test_without_senders_every_writer_in_front_of_all_receivers(self):
        found = path_patch(load("gpt2"), pairs(), None, ["a1.h1<q>", "m0"])
        assert [sender.name for sender in found.senders] == ["input", *(f"a0.h{head}" for head in range(N_HEADS))]

    def test_frame(self):
        found = path_patch(load("gpt2"), pairs(), ["a0.h1", "input"], ["a1.h1<q>", "m1"])
        frame = found.to_frame()
        assert list(frame) == ["sender", "receivers", "value", "share", "ci_low", "ci_high", "p_value", "n"]
        assert frame.sender.tolist() == ["a0.h1", "input"]
        assert set(frame.receivers) == {"a1.h1<q> m1"}
        assert (frame.ci_low <= frame.value).all()
        assert frame.value.tolist() == pytest.approx(found.per_example.mean(1).tolist())
        assert (found.to_frame(correction="holm").p_value >= frame.p_value).all()
        with pytest.raises(UnknownNameError, match="holm"):
            found.to_frame(correction="none")

    @pytest.mark.parametrize("name", ["gpt2", "llama"])
    def test_prompts_of_different_length(self, name):
        mixed = mixed_pairs()
        together = path_patch(load(name), mixed, ["a0.h1", "m0"], ["a1.h1", "m1"], frozen="patterns")
        for place in (0, 4):
            alone = path_patch(
                load(name), PairSet((mixed[place],)), ["a0.h1", "m0"], ["a1.h1", "m1"], frozen="patterns"
            )
            assert together.per_example[:, place] == pytest.approx(alone.per_example[:, 0], abs=TOLERANCE[name])

    def test_where_less_is_better_positive_still_helps(self):
        found = path_patch(load("gpt2"), pairs(), ["m0"], ["logits"], metric="kl")
        assert (found.per_example > 0).all()

    def test_progress_counts_senders(self):
        steps: list[tuple[str, int, int]] = []
        path_patch(load("gpt2"), mixed_pairs(), None, ["logits"], progress=lambda *at: steps.append(at))
        assert steps[-1][1] == steps[-1][2]
        assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


class TestBadRequests:
    """Each is refused before anything runs."""

    def refused(self, match: str, error: type[Exception], senders=("m0",), receivers=("m1",), **settings) -> None:
        model = load("gpt2")

        def never(*_args: object, **_kwargs: object) -> None:
            raise AssertionError("the model was run")

        handle = model.bridge.blocks[0].register_forward_pre_hook(never)
        try:
            with as_users_run_it(), pytest.raises(error, match=match):
                path_patch(model, pairs(), senders, receivers, **settings)
        finally:
            handle.remove()

    def test_senders(self):
        self.refused("unknown sender 'a0.h9'.*Did you mean 'a0.h", UnknownNameError, ["a0.h9"])
        self.refused("unknown sender 'logits'", UnknownNameError, ["logits"])
        self.refused("senders is empty", ConfigError, [])
        self.refused("'m0' is named twice", ConfigError, ["m0", "m0"])

    def test_receivers(self):
        self.refused("unknown receiver 'm9'.*Did you mean 'm", UnknownNameError, receivers=["m9"])
        self.refused("unknown receiver 'input'", UnknownNameError, receivers=["input"])
        self.refused("unknown receiver 'm1<q>'", UnknownNameError, receivers=["m1<q>"])
        self.refused("unknown receiver 'frog'", UnknownNameError, receivers=["frog"])
        self.refused("receivers is empty", ConfigError, receivers=[])
        self.refused(r"'a1.h1<q>' is named twice", ConfigError, receivers=["a1.h1", "a1.h1<q>"])
        self.refused("do nothing beside 'logits'", ConfigError, receivers=["a1.h1<q>", "logits"])

    def test_order(self):
        wrong = r"receiver 'a0.h1<q>' reads before sender 'm0' writes. After 'm0' are a1.h0<q>, .* more"
        self.refused(wrong, ConfigError, receivers=["m1", "a0.h1<q>"])
        self.refused("After 'm1' are logits.", ConfigError, ["m1"], ["m1"])

    def test_settings(self):
        self.refused("unknown frozen 'pattern'.*Did you mean 'patterns'", UnknownNameError, frozen="pattern")
        self.refused("unknown direction", UnknownNameError, direction="both")
        self.refused("unknown metric", UnknownNameError, metric="logit")
        self.refused("budget of 10 bytes", ConfigError, budget=10)
