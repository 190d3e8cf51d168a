"""Replacements: means by explicit loops over plain hooks, noise from its definition, ablated runs by hand."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, N_HEADS, N_LAYERS, TOLERANCE, huggingface, load, logit_diff, mixed_pairs, pairs
from experiments import clean_and_empty
from gpt2_by_hand import Gpt2ByHand

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.protocol import Recording
from circuitlab.parts import Kind, Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.ablation import ablated_run
from circuitlab.patching.runs.baseline import Baseline, at_answer, record_baseline
from circuitlab.patching.runs.replacement import (
    MEANS,
    REPLACEMENTS,
    Replacement,
    check_patterns,
    replaced,
    replaced_hidden,
)

METRIC = resolve("logit_diff")
ONE_PROMPT = 150_000  # bytes that hold one prompt of these models, recorded
LAYERED = ("resid_pre", "attn_out", "mlp_out", "q", "k", "v", "z")


@cache
def scored() -> PairBatch:
    return pairs(n=4)


@cache
def reference() -> PairBatch:
    return pairs(n=5, seed=7)


@cache
def halves() -> tuple[PairSet, PairSet]:
    """Prompts of the same three lengths and other names: some to score, others to take means of."""
    mixed = mixed_pairs()
    return PairSet(mixed.pairs[:3]), PairSet(mixed.pairs[3:])


@cache
def baseline(name: str) -> Baseline:
    return record_baseline(load(name), scored())


def resolved(name: str, kind: str, **options: Any) -> Replacement:
    options = {"pairs": scored(), "reference": reference() if kind in MEANS else None, **options}
    return Experiment(load(name), ablation=kind, **options).replacement


def put_in(name: str, kind: str, **options: Any) -> Recording:
    return replaced(load(name), resolved(name, kind, **options), baseline(name), baseline(name).clean)


def values_of(run: Recording) -> Iterator[tuple[str, torch.Tensor]]:
    """Every activation of a run that has a value at each token."""
    for name in LAYERED:
        for layer, value in enumerate(getattr(run, name)):
            yield f"{name}.{layer}", value
    yield "resid_final.0", run.resid_final


def prompts_in(given: PairBatch | PairSet) -> list[list[int]]:
    return given.clean.tolist() if isinstance(given, PairBatch) else [list(pair.clean_ids) for pair in given]


@cache
def plain() -> Any:
    """The model of `load("gpt2")` as HuggingFace has it, with no bridge around it."""
    return huggingface("gpt2").double()


@torch.no_grad()
def seen_by_hooks(prompts: list[list[int]]) -> list[dict[str, np.ndarray]]:
    """GPT-2's activations `[seq, width]` of each prompt alone, by hooks on the HuggingFace model."""
    hf, found = plain(), []
    for prompt in prompts:
        kept: dict[str, np.ndarray] = {}

        def keep(key: str, at_input: bool, kept: dict = kept) -> Any:
            def hook(_module: Any, args: tuple, output: Any) -> None:
                value = args[0] if at_input else output[0] if isinstance(output, tuple) else output
                kept[key] = value[0].numpy()

            return hook

        handles = [hf.transformer.ln_f.register_forward_hook(keep("resid_final.0", at_input=True))]
        for layer, block in enumerate(hf.transformer.h):
            for key, module, at_input in (
                ("resid_pre", block.ln_1, True),
                ("attn_out", block.attn, False),
                ("mlp_out", block.mlp, False),
                ("qkv", block.attn.c_attn, False),
                ("z", block.attn.c_proj, True),
                ("hidden", block.mlp.c_proj, True),
            ):
                handles.append(module.register_forward_hook(keep(f"{key}.{layer}", at_input)))
        hf(torch.tensor([prompt]))
        for handle in handles:
            handle.remove()
        for layer in range(N_LAYERS):
            for slot, part in zip("qkv", np.split(kept.pop(f"qkv.{layer}"), 3, axis=1), strict=True):
                kept[f"{slot}.{layer}"] = part
        found.append(kept)
    return found


def span_of(spans: dict[str, tuple[int, int]], place: int) -> str:
    """The shortest span that a token is in, or the gap it is in."""
    inside = [(end - start, name) for name, (start, end) in spans.items() if start <= place < end]
    if inside:
        return min(inside)[1]
    before = [(end, name) for name, (_, end) in spans.items() if end <= place]
    return f"after {max(before)[1]}" if before else "start"


def groups(given: PairBatch | PairSet, kind: str) -> list[list[object]]:
    """Which tokens share a mean, token by token."""
    lengths = [len(prompt) for prompt in prompts_in(given)]
    if kind == "mean":
        return [["all"] * n for n in lengths]
    if kind == "mean-position":
        return [[(n, place) for place in range(n)] for n in lengths]
    assert isinstance(given, PairSet)
    return [[span_of(dict(pair.spans), place) for place in range(len(pair))] for pair in given]


def means_by_loops(given: PairBatch | PairSet, kind: str) -> dict[str, dict[object, np.ndarray]]:
    """Activation -> group -> mean over every token of the group, one token after the other."""
    sums: dict[str, dict[object, np.ndarray]] = {}
    counts: dict[object, int] = {}
    for seen, labels in zip(seen_by_hooks(prompts_in(given)), groups(given, kind), strict=True):
        for place, label in enumerate(labels):
            counts[label] = counts.get(label, 0) + 1
            for key, value in seen.items():
                row = sums.setdefault(key, {})
                row[label] = row.get(label, 0) + value[place]
    return {key: {label: total / counts[label] for label, total in rows.items()} for key, rows in sums.items()}


class TestMeans:
    @pytest.mark.parametrize(
        ("kind", "mixed"),
        [("mean", False), ("mean-position", False), ("mean", True), ("mean-position", True), ("mean-span", True)],
    )
    def test_they_are_averages_over_plain_hooks(self, kind, mixed):
        model, (given, averaged) = load("gpt2"), halves() if mixed else (scored(), reference())
        expected, labels = means_by_loops(averaged, kind), groups(given, kind)
        chosen = resolved("gpt2", kind, pairs=given, reference=averaged)
        batches = given.batches() if isinstance(given, PairSet) else (given,)
        for batch in batches:
            base = record_baseline(model, batch)
            found = dict(values_of(replaced(model, chosen, base, base.clean)))
            for layer in range(N_LAYERS):
                found[f"hidden.{layer}"] = replaced_hidden(model, chosen, base, base.clean, layer)
            assert set(found) == set(expected)
            for key, value in found.items():
                rows = [[expected[key][label] for label in labels[place]] for place in batch.index.tolist()]
                assert value.flatten(2).numpy() == pytest.approx(np.array(rows), abs=1e-12)

    def test_what_published_code_averages_is_something_else(self):
        """The twins: the last token alone; one vector for all heads; the mean of the means of batches."""
        chosen, averaged = resolved("gpt2", "mean", pairs=halves()[0], reference=halves()[1]), halves()[1]
        table = chosen.statistics.tables[("z", 0)][0]
        seen = [one["z.0"] for one in seen_by_hooks(prompts_in(averaged))]
        right = np.concatenate(seen).mean(0).reshape(N_HEADS, -1)
        assert table.numpy() == pytest.approx(right, abs=1e-12)
        last = np.stack([one[-1] / len(one) for one in seen]).mean(0).reshape(N_HEADS, -1)
        for wrong in (last, right.mean(0), np.stack([one.mean(0) for one in seen]).mean(0).reshape(N_HEADS, -1)):
            assert np.abs(table.numpy() - wrong).max() > 1e-3

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_every_architecture_alike(self, name):
        """Prompt by prompt: a recording's own values, averaged by hand."""
        model, found = load(name), put_in(name, "mean")
        alone = [model.record(row[None]) for row in reference().clean]
        for key, value in values_of(found):
            kind, layer = key.split(".")
            every = [run.resid_final if kind == "resid_final" else getattr(run, kind)[int(layer)] for run in alone]
            mean = torch.cat([one[0] for one in every]).mean(0)
            assert value.shape == every[0].expand(4, *every[0].shape[1:]).shape
            assert (value - mean).abs().max() < TOLERANCE[name]
        for layer in range(N_LAYERS):
            pattern = torch.cat([run.pattern[layer] for run in alone]).mean(0)
            assert (found.pattern[layer] - pattern).abs().max() < TOLERANCE[name]
            assert found.pattern[layer].shape == (4, N_HEADS, 8, 8)

    def test_one_reference_prompt_is_its_own_mean(self):
        one = reference().take(torch.tensor([2]))
        run, found = load("gpt2").record(one.clean), put_in("gpt2", "mean-position", reference=one)
        for (_, value), (_, own) in zip(values_of(found), values_of(run), strict=True):
            assert (value == own).all()

    @pytest.mark.parametrize("kind", MEANS)
    def test_packing_and_order_change_nothing(self, kind, monkeypatch):
        given, averaged = halves()[0], PairSet(halves()[1].pairs * 2)
        batches, record = [], BridgeModel.record
        monkeypatch.setattr(BridgeModel, "record", lambda model, rows: batches.append(len(rows)) or record(model, rows))
        whole = resolved("gpt2", kind, pairs=given, reference=averaged)
        packed = resolved("gpt2", kind, pairs=given, reference=averaged, budget=ONE_PROMPT)
        assert batches[:3] == [2, 2, 2]
        assert len(batches) > 6
        turned = resolved(
            "gpt2",
            kind,
            pairs=PairSet(given.pairs[::-1]),
            reference=PairSet(averaged.pairs[2::-1] + averaged.pairs[:2:-1]),
        )
        for other in (packed, turned):
            assert set(other.statistics.labels) == set(whole.statistics.labels)
            rows = [other.statistics.labels.index(label) for label in whole.statistics.labels]
            for place, table in whole.statistics.tables.items():
                assert (other.statistics.tables[place][rows] - table).abs().max() < 1e-13
            for n, layers in whole.statistics.patterns.items():
                for ours, theirs in zip(layers, other.statistics.patterns[n], strict=True):
                    assert (ours - theirs).abs().max() < 1e-13

    def test_a_token_in_two_spans_counts_for_the_shorter(self):
        def widened(given: PairSet) -> PairSet:
            return PairSet(tuple(replace(p, spans={**p.spans, "aaa": (0, len(p))}) for p in given))

        given, averaged = map(widened, halves())
        assert {label for row in groups(averaged, "mean-span") for label in row} > {"aaa", "name"}
        chosen = resolved("gpt2", "mean-span", pairs=given, reference=averaged)
        expected = means_by_loops(averaged, "mean-span")
        for label, row in zip(chosen.statistics.labels, chosen.statistics.tables[("z", 1)], strict=True):
            assert row.flatten().numpy() == pytest.approx(expected["z.1"][label], abs=1e-12)

    def test_patterns_of_lengths_without_reference_are_nan_and_refused(self):
        longer = pairs(n=3, n_tokens=9, seed=7)
        chosen = resolved("gpt2", "mean", reference=longer)
        found = replaced(load("gpt2"), chosen, baseline("gpt2"), baseline("gpt2").clean)
        assert found.pattern[0].isnan().all()
        assert not found.z[0].isnan().any()
        with pytest.raises(ConfigError, match=r"scored prompts of \[8\] tokens, reference prompts of \[9\]. A mean"):
            check_patterns(chosen, [8, 9])
        check_patterns(chosen, [9])
        check_patterns(resolved("gpt2", "zero"), [8])

    def test_they_have_the_models_dtype(self):
        chosen = resolved("gpt2", "mean")
        short = Experiment(load("gpt2", "float32"), scored(), ablation="mean", reference=reference()).replacement
        table = short.statistics.tables[("z", 1)]
        assert table.dtype == torch.float32
        assert (table - chosen.statistics.tables[("z", 1)]).abs().max() < 1e-5


class TestZeroAndCorrupt:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_zero_is_zero_everywhere(self, name):
        base, found = baseline(name), put_in(name, "zero")
        for (_, value), (_, own) in zip(values_of(found), values_of(base.clean), strict=True):
            assert value.shape == own.shape
            assert not value.any()
            assert own.any()
        assert not any(pattern.any() for pattern in found.pattern)
        assert not replaced_hidden(load(name), resolved(name, "zero"), base, base.clean, 0).any()

    def test_corrupt_is_the_other_run(self):
        model, base, chosen = load("gpt2"), baseline("gpt2"), resolved("gpt2", "corrupt")
        assert replaced(model, chosen, base, base.clean) is base.corrupt
        assert replaced(model, chosen, base, base.corrupt) is base.clean
        ours = replaced_hidden(model, chosen, base, base.clean, 1)
        theirs = [one["hidden.1"] for one in seen_by_hooks(base.batch.corrupt.tolist())]
        assert ours.numpy() == pytest.approx(np.stack(theirs), abs=1e-12)

    def test_of_a_run_that_is_neither_there_is_no_other(self):
        again = load("gpt2").record(scored().clean)
        with pytest.raises(AssertionError, match="not the baseline's"):
            replaced(load("gpt2"), resolved("gpt2", "corrupt"), baseline("gpt2"), again)


class TestNoise:
    def test_it_is_what_it_says(self):
        """Own value + scale * standard deviation * draws from SHA-256 of seed, place and example."""
        base, found = baseline("gpt2"), dict(values_of(put_in("gpt2", "noise", seed=3)))
        seen = seen_by_hooks(scored().clean.tolist())
        for key, value in found.items():
            name, layer = key.split(".")
            sigma = np.concatenate([one[key] for one in seen]).std(0)
            for example, one in enumerate(seen):
                digest = hashlib.sha256(f"{3}/{name}/{layer}/{example}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
                draws = torch.randn(value.shape[1:], generator=generator).double().flatten(1).numpy()
                assert value[example].flatten(1).numpy() == pytest.approx(one[key] + 3 * sigma * draws, abs=1e-9)
        hidden = replaced_hidden(load("gpt2"), resolved("gpt2", "noise", seed=3), base, base.clean, 0)
        own = np.stack([one["hidden.0"] for one in seen])
        apart = (hidden.numpy() - own) / (3 * own.reshape(-1, own.shape[-1]).std(0))
        assert abs(apart.mean()) < 0.05
        assert apart.std() == pytest.approx(1, abs=0.05)

    def test_the_seed_decides_and_nothing_else(self):
        model, base = load("gpt2"), baseline("gpt2")
        state = torch.get_rng_state()
        first, again, other = (put_in("gpt2", "noise", seed=seed) for seed in (0, 0, 1))
        assert (torch.get_rng_state() == state).all()
        for (_, a), (_, b), (_, c) in zip(*map(values_of, (first, again, other)), strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes()
            assert (a - c).abs().max() > 0.1
        assert not torch.equal(first.z[0] - base.clean.z[0], first.z[1] - base.clean.z[1])
        # A part of the batch, in another order: each example has its own noise.
        rows = torch.tensor([2, 0])
        part = record_baseline(model, scored().take(rows))
        some = replaced(model, resolved("gpt2", "noise"), part, part.clean)
        for (_, a), (_, b) in zip(values_of(some), values_of(first), strict=True):
            assert (a - b[rows]).abs().max() < 1e-12

    def test_deviations_do_not_depend_on_packing(self):
        given = PairSet(mixed_pairs().pairs * 2)
        whole, packed, turned = (
            resolved("gpt2", "noise", pairs=p, budget=b).statistics.tables
            for p, b in ((given, None), (given, ONE_PROMPT), (PairSet(given.pairs[::-1]), None))
        )
        assert len(given.batches()) == 3
        for place, table in whole.items():
            assert (packed[place] - table).abs().max() < 1e-12
            assert (turned[place] - table).abs().max() < 1e-12

    def test_scale_and_reference(self):
        base = baseline("gpt2")
        three = put_in("gpt2", "noise")
        one = replaced(load("gpt2"), resolved("gpt2", Replacement(kind="noise", scale=1.0)), base, base.clean)
        assert torch.allclose(three.z[0] - base.clean.z[0], 3 * (one.z[0] - base.clean.z[0]))
        elsewhere = resolved("gpt2", "noise", reference=reference())
        seen = np.concatenate([one["z.1"] for one in seen_by_hooks(reference().clean.tolist())])
        assert elsewhere.statistics.tables[("z", 1)][0].flatten().numpy() == pytest.approx(seen.std(0))
        own = Replacement(kind="noise", seed=5)
        assert (resolved("gpt2", own, seed=1).seed, resolved("gpt2", "noise", seed=1).seed) == (5, 1)

    @pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "granite"])
    def test_query_heads_share_a_noisy_key(self, name):
        found, clean = put_in(name, "noise"), baseline(name).clean
        for noisy, own in ((found.k[0], clean.k[0]), (found.v[1], clean.v[1])):
            assert torch.equal(noisy[:, :, 0], noisy[:, :, 1])
            assert not torch.equal(noisy[:, :, 1], noisy[:, :, 2])
            assert not torch.equal(noisy, own)
        assert not torch.equal(found.z[0][:, :, 0] - clean.z[0][:, :, 0], found.z[0][:, :, 1] - clean.z[0][:, :, 1])

    @pytest.mark.parametrize("name", ["gpt2", "gemma2", "olmo2"])
    def test_hidden_keys_stay_hidden(self, name):
        found, clean = put_in(name, "noise"), baseline(name).clean
        for noisy, own in zip(found.pattern, clean.pattern, strict=True):
            assert ((noisy != 0) == (own != 0)).all()
            assert (noisy - own).abs().max() > 0.05
            tables = resolved(name, "noise").statistics.tables
            heads = [own[:, head][own[:, head] != 0].std(correction=0) for head in range(N_HEADS)]
            layer = next(i for i, pattern in enumerate(clean.pattern) if pattern is own)
            assert torch.allclose(tables[("pattern", layer)][0], torch.stack(heads).double())


class TestPutIn:
    """Values put into a run, against hooks on the HuggingFace model that put in values from other hooks."""

    @staticmethod
    @torch.no_grad()
    def by_hooks(layer: int, head: int, value: np.ndarray) -> torch.Tensor:
        """Logits with a head's z set to a value at every token."""
        hf = plain()
        width = len(value)

        def hook(_module: Any, args: tuple) -> tuple:
            z = args[0].clone()
            z[..., head * width : (head + 1) * width] = torch.tensor(value)
            return (z,)

        handle = hf.transformer.h[layer].attn.c_proj.register_forward_pre_hook(hook)
        logits = hf(scored().clean).logits
        handle.remove()
        return at_answer(logits, scored().answer_at)

    @staticmethod
    @torch.no_grad()
    def by_replacement(kind: str, layer: int, head: int) -> torch.Tensor:
        model, base = load("gpt2"), baseline("gpt2")
        z = base.clean.z[layer].clone()
        z[:, :, head] = put_in("gpt2", kind).z[layer][:, :, head]
        middle = base.clean.resid_pre[layer] + model.attn_output(layer, z)
        final = model.run_blocks(middle + model.mlp_output(layer, middle), layer + 1, base.arguments)
        return model.logits(at_answer(final, scored().answer_at))

    @pytest.mark.parametrize(("layer", "head"), [(0, 1), (1, 3)])
    def test_heads(self, layer, head):
        mean = means_by_loops(reference(), "mean")[f"z.{layer}"]["all"].reshape(N_HEADS, -1)[head]
        for kind, value in (("mean", mean), ("zero", np.zeros_like(mean))):
            found, expected = self.by_replacement(kind, layer, head), self.by_hooks(layer, head, value)
            assert (found - expected).abs().max() < 1e-10
            assert (found - self.by_hooks(layer, head - 1, value)).abs().max() > 0.01


@pytest.fixture(scope="module")
def by_hand() -> Gpt2ByHand:
    return Gpt2ByHand()


@torch.no_grad()
def replacement_of_writers(by_hand: Gpt2ByHand, kind: str) -> list[torch.Tensor]:
    """What takes the place of every writer's output, from what the writers say by hand."""
    if kind == "corrupt":
        return by_hand.whole(scored().corrupt)[1]
    _, said = by_hand.whole(reference().clean)
    if kind == "zero":
        return [torch.zeros_like(one[:4]) for one in said]
    axes = (0, 1) if kind == "mean" else (0,)
    return [one.mean(axes, keepdim=True).expand(4, 8, -1) for one in said]


class TestFloor:
    @pytest.mark.parametrize("kind", ["corrupt", "zero", "mean", "mean-position"])
    @torch.no_grad()
    def test_by_hand(self, by_hand, kind):
        model, base, fixed = load("gpt2"), baseline("gpt2"), replacement_of_writers(by_hand, kind)
        ablated = ablated_run(model, base, resolved("gpt2", kind))
        layout = Layout.of(model.spec)
        nothing = torch.zeros(len(layout.writers), len(layout.readers))
        logits, said = by_hand.run(scored().clean, nothing, fixed)
        ours = model.logits(at_answer(ablated.run.resid_final, scored().answer_at))
        assert (ours - at_answer(logits, scored().answer_at)).abs().max() < 1e-10
        assert (ablated.run.resid_pre[0] - fixed[0]).abs().max() < 1e-12
        assert len(ablated.offsets) == (0 if kind == "corrupt" else len(layout.writers) - 1)
        for writer, offset in ablated.offsets.items():
            assert (offset - (said[writer] - fixed[writer])).abs().max() < 1e-10
            assert offset.abs().max() > 0.01
        if kind == "corrupt":
            assert ablated.run is base.corrupt

    @pytest.mark.parametrize("name", ARCHITECTURES)
    @pytest.mark.parametrize("kind", ["zero", "mean", "noise"])
    def test_streams_are_sums_of_stand_ins_and_biases(self, name, kind):
        """After a post-norm too: replacements of heads add up to what a layer of replaced heads adds."""
        model, base = load(name), baseline(name)
        chosen = resolved(name, kind)
        put, ablated = replaced(model, chosen, base, base.clean), ablated_run(model, base, chosen)
        stream, writer = put.resid_pre[0], 1
        for layer in range(N_LAYERS):
            assert (ablated.run.resid_pre[layer] - stream).abs().max() < TOLERANCE[name]
            for _ in range(N_HEADS):
                own = model.head_outputs(layer, ablated.run.z[layer], [(writer - 1) % (N_HEADS + 1)])[0]
                stream, writer = stream + own - ablated.offsets[writer], writer + 1
            if not model.has_post_norm(layer):
                stream = stream + model.attn_output(layer, torch.zeros_like(put.z[layer]))
            read = ablated.run.resid_pre[layer] if model.spec.parallel else stream
            if not model.spec.parallel:
                step = ablated.run.resid_pre[layer] + ablated.run.attn_out[layer]
                assert (step - stream).abs().max() < TOLERANCE[name]
            own = model.mlp_output(layer, read)
            assert (own - ablated.run.mlp_out[layer]).abs().max() < TOLERANCE[name]
            stream, writer = stream + own - ablated.offsets[writer], writer + 1
        assert (ablated.run.resid_final - stream).abs().max() < 10 * TOLERANCE[name]
        assert set(ablated.offsets) == set(range(1, writer))
        assert 0 not in ablated.offsets
        with pytest.raises(KeyError):
            ablated.offsets[writer]

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_nodes_compute_from_what_they_read(self, name):
        """A head's q, k, v and z in the ablated run, from the other way to project."""
        model, base = load(name), baseline(name)
        run = ablated_run(model, base, resolved(name, "mean")).run
        again = model.run_blocks(run.resid_pre[1], 1, base.arguments)
        z = model.attend(1, run.q[1], run.k[1], run.v[1], base.arguments)
        middle = run.resid_pre[1] + model.attn_output(1, z)
        read = run.resid_pre[1] if model.spec.parallel else middle
        assert (middle + model.mlp_output(1, read) - again).abs().max() < 10 * TOLERANCE[name]
        assert (z - run.z[1]).abs().max() < TOLERANCE[name]


class TestCircuits:
    @pytest.mark.parametrize("kind", ["zero", "mean", "mean-position"])
    @torch.no_grad()
    def test_random_circuits_by_hand(self, by_hand, kind):
        layout = Layout.of(load("gpt2").spec)
        rng, real = np.random.default_rng(0), real_edges(layout)
        masks = np.stack([real & (rng.random(real.shape) < share) for share in (0.9, 0.6, 0.3, 0.1)])
        fixed = replacement_of_writers(by_hand, kind)
        expected = [
            logit_diff(by_hand.run(scored().clean, torch.tensor(mask).double(), fixed)[0], scored()) for mask in masks
        ]
        ready = Experiment(load("gpt2"), scored(), ablation=kind, reference=None if kind == "zero" else reference())
        found = ready.measure(masks, [METRIC])["logit_diff"]
        assert found == pytest.approx(np.stack(expected), abs=1e-9)
        resampled = Experiment(load("gpt2"), scored()).measure(masks, [METRIC])["logit_diff"]
        assert np.abs(found - resampled).max() > 0.05

    @pytest.mark.parametrize("name", ARCHITECTURES)
    @pytest.mark.parametrize("kind", ["zero", "mean", "noise"])
    def test_all_edges_are_the_model_and_none_the_ablated_run(self, name, kind):
        model = load(name)
        ready = Experiment(model, scored(), ablation=kind, reference=reference() if kind == "mean" else None)
        clean, empty = clean_and_empty(ready, METRIC)
        real = real_edges(Layout.of(model.spec))
        everything, nothing = ready.measure(np.stack([real, np.zeros_like(real)]), [METRIC])["logit_diff"]
        assert everything == pytest.approx(clean, abs=10 * TOLERANCE[name])
        assert nothing == pytest.approx(empty, abs=1e-12)
        assert np.abs(clean - empty).min() > 1e-3
        assert clean == pytest.approx(clean_and_empty(Experiment(model, scored()), METRIC)[0])
        assert ready.measured_by(METRIC).corrupt == pytest.approx(
            clean_and_empty(Experiment(model, scored()), METRIC)[1]
        )

    def test_a_node_that_hears_nothing_says_what_it_computes_ablated_recording(self):
        """Not its stand-in: the kept edges out of an MLP with none into it carry the MLP of the empty stream."""
        model = load("gpt2")
        ready, layout = Experiment(model, scored(), ablation="zero"), Layout.of(model.spec)
        mask = np.zeros((1, len(layout.writers), len(layout.readers)), dtype=bool)
        writer = next(i for i, node in enumerate(layout.writers) if node.kind is Kind.MLP)
        mask[0, writer, -1] = True
        found = ready.measure(mask, [METRIC])["logit_diff"][0]
        run = ready.ablated(next(ready.baselines)).run
        said = model.mlp_output(0, run.resid_pre[0] + run.attn_out[0])
        final = at_answer(run.resid_final + said, scored().answer_at)
        assert found == pytest.approx(METRIC(model.logits(final), scored()).numpy())
        assert np.abs(found - clean_and_empty(ready, METRIC)[1]).min() > 1e-3

    def test_prompts_of_different_length_are_each_as_if_alone(self):
        model, (given, averaged) = load("gpt2"), halves()
        rng, real = np.random.default_rng(1), real_edges(Layout.of(model.spec))
        masks = np.stack([real & (rng.random(real.shape) < 0.5)])

        def values(part: PairSet, budget: int | None = None) -> np.ndarray:
            ready = Experiment(model, part, budget=budget, ablation="mean-span", reference=averaged)
            return ready.measure(masks, [METRIC])["logit_diff"][0]

        together = values(given)
        assert together == pytest.approx([values(PairSet((pair,)))[0] for pair in given], abs=1e-10)
        assert together == pytest.approx(values(given, ONE_PROMPT), abs=1e-10)


class TestMistakes:
    def test_names(self):
        assert set(REPLACEMENTS) == {"corrupt", "zero", "mean", "mean-position", "mean-span", "noise"}
        assert set(MEANS) < set(REPLACEMENTS)
        with pytest.raises(UnknownNameError, match=r"unknown replacement 'means'. Did you mean 'mean'\? Allowed: corr"):
            resolved("gpt2", "means")

    @pytest.mark.parametrize("kind", MEANS)
    def test_a_mean_without_reference(self, kind):
        with pytest.raises(ConfigError, match=rf"replacement '{kind}' needs a reference set .* Give reference="):
            resolved("gpt2", kind, reference=None)

    @pytest.mark.parametrize("kind", ["corrupt", "zero"])
    def test_a_reference_that_nothing_needs(self, kind):
        with pytest.raises(ConfigError, match=rf"replacement '{kind}' uses no reference set, but reference= is given"):
            resolved("gpt2", kind, reference=reference())

    def test_means_of_scored_prompts(self):
        part = scored().take(torch.tensor([3, 2]))
        with pytest.raises(
            ConfigError, match=r"2 of 4 scored pairs .* the first is the clean prompt of pair 2\. Means"
        ):
            resolved("gpt2", "mean", reference=part)
        turned = scored().take(torch.tensor([1])).swapped()
        with pytest.raises(ConfigError, match=r"1 of 4 scored pairs .* the corrupted prompt of pair 1\. Means"):
            resolved("gpt2", "mean", reference=turned)
        given = halves()[0]
        with pytest.raises(ConfigError, match=rf"first is the clean prompt of pair 0 \('{given[0].clean}'\)"):
            resolved("gpt2", "mean-span", pairs=given, reference=mixed_pairs())
        # The twin: noise takes its spread from any prompts, the scored ones too.
        assert resolved("gpt2", "noise", reference=scored()).statistics is not None

    def test_nothing_runs_before_it_is_refused(self, monkeypatch):
        def never(*_args: Any) -> None:
            raise AssertionError("a forward pass before the check")

        monkeypatch.setattr(BridgeModel, "record", never)
        for kind, options in (
            ("mean", {"reference": scored()}),
            ("mean-position", {"reference": pairs(n_tokens=9, seed=7)}),
            ("mean-span", {}),
            ("mean", {"reference": None}),
        ):
            with pytest.raises(ConfigError):
                resolved("gpt2", kind, **options)
        with pytest.raises(AssertionError, match="before the check"):
            resolved("gpt2", "mean")

    def test_positions_that_do_not_line_up(self):
        expected = r"scored prompts of \[8\] tokens, reference prompts of \[9\]. Positions line up among prompts of one"
        with pytest.raises(ConfigError, match=expected):
            resolved("gpt2", "mean-position", reference=pairs(n=3, n_tokens=9, seed=7))
        resolved("gpt2", "mean", reference=pairs(n=3, n_tokens=9, seed=7))

    def test_spans_that_are_not_there(self):
        given, averaged = halves()
        with pytest.raises(ConfigError, match="'mean-span' needs named spans, but the reference pairs carry none"):
            resolved("gpt2", "mean-span", pairs=given)
        with pytest.raises(ConfigError, match="'mean-span' needs named spans, but the scored pairs carry none"):
            resolved("gpt2", "mean-span", reference=averaged)
        fewer = PairSet(tuple(replace(p, spans={k: s for k, s in p.spans.items() if k != "name"}) for p in averaged))
        with pytest.raises(
            ConfigError, match=r"the scored prompts have tokens in \['after name', 'name'\], the reference prompts"
        ):
            resolved("gpt2", "mean-span", pairs=given, reference=fewer)

    def test_statistics_are_measured_once_and_checked_again(self):
        done = resolved("gpt2", "mean")
        assert resolved("gpt2", done, reference=None) is done
        with pytest.raises(ConfigError, match="has its statistics already, but reference= is given too"):
            resolved("gpt2", done, reference=pairs(seed=8))
        with pytest.raises(ConfigError, match="5 of 5 scored pairs"):
            resolved("gpt2", done, pairs=reference(), reference=None)
        with pytest.raises(ConfigError, match=r"are of model '.*gpt2', not of '.*neox'"):
            resolved("neox", done, reference=None)
        with pytest.raises(ConfigError, match="replacement 'zero' cannot use statistics of 'mean'"):
            replace(done, kind="zero")

    def test_fingerprints_tell_replacements_apart(self):
        made = {
            resolved("gpt2", kind, **options).fingerprint
            for kind, options in (
                ("zero", {}),
                ("corrupt", {}),
                ("mean", {}),
                ("mean", {"reference": pairs(n=5, seed=8)}),
                ("mean-position", {}),
                ("noise", {}),
                ("noise", {"seed": 1}),
                (Replacement(kind="noise", scale=1.0), {}),
            )
        }
        assert len(made) == 8
        assert {resolved("gpt2", "mean").fingerprint, resolved("gpt2", "noise", seed=1).fingerprint} < made

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
    def test_the_scale(self, scale):
        with pytest.raises(ConfigError, match="noise takes a positive number of standard deviations, 3 by default"):
            Replacement(kind="noise", scale=scale)
