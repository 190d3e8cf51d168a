"""TransformerLens's own toy models: exact in every part, patched as plain hooks say, loaded by their short names."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_by_hand
from architectures import (
    BIDIRECTIONAL,
    D_VOCAB,
    N_HEADS,
    N_LAYERS,
    NATIVE,
    TOLERANCE,
    fresh,
    load,
    logit_diff,
    native,
    pairs,
)
from experiments import clean_and_empty
from test_circuit_runs import layout_of, prepared, random_masks, values
from test_sweep import HOOKS, brute_force, largest_error
from toy_by_hand import TOYS, publish

from circuitlab import load_model, patch_edges, score_edges, sweep
from circuitlab.data.batch import PairBatch
from circuitlab.errors import ModelError
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.verify import measure
from circuitlab.parts import Edge, Layout

# Everything that the native models offer and that a circuit depends on.
VARIANTS: dict[str, dict[str, Any]] = {
    "GELU": {},
    "GELU, folded norms": {"normalization_type": "LNPre"},
    "no norms": {"normalization_type": None},
    "RMS norms, folded": {"normalization_type": "RMSPre"},
    "attention alone": {"attn_only": True},
    "attention alone, folded norms": {"attn_only": True, "normalization_type": "LNPre"},
    "SoLU": {"act_fn": "solu_ln"},
    "SoLU, folded norms": {"act_fn": "solu_ln", "normalization_type": "LNPre"},
    "SoLU without its norm": {"act_fn": "solu"},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "grouped queries": {"n_key_value_heads": 2, "positional_embedding_type": "rotary"},
    "grouped queries, attention alone": {"n_key_value_heads": 2, "attn_only": True},
    "gated": {"gated_mlp": True, "act_fn": "silu"},
    "softcaps": {"attn_scores_soft_cap": 5.0, "output_logits_soft_cap": 3.0},
    "one head": {"n_heads": 1, "d_head": 32},
    "one layer": {"n_layers": 1},
    "fewer words out than in": {"d_vocab_out": 20},
    # A setting that these models do not heed: their blocks run one after the other.
    "said to be parallel": {"parallel_attn_mlp": True},
}
METRIC = resolve("logit_diff")


@pytest.fixture(params=[*NATIVE, *BIDIRECTIONAL])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


class TestParts:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_they_add_up(self, variant):
        model = BridgeModel(native(**VARIANTS[variant]), "toy")
        # Measured: at most 1e-15.
        assert max(measure(model, pairs().clean).values()) < 1e-12
        assert not model.spec.parallel

    def test_norms_in_float32(self):
        """RMS norms with a gain go through float32 whatever the weights are, and so do their gradients: 1e-7."""
        assert 1e-12 < max(measure(load_model(native(normalization_type="RMS")), pairs().clean).values()) < 1e-6

    @torch.no_grad()
    @pytest.mark.parametrize("variant", ["GELU", "SoLU", "attention alone"])
    def test_in_compatibility_mode(self, variant):
        bridge = native(**VARIANTS[variant])
        expected = bridge(pairs().clean).log_softmax(-1)
        bridge.enable_compatibility_mode()
        model = load_model(bridge)
        assert max(measure(model, pairs().clean).values()) < 1e-12
        assert bridge(pairs().clean).log_softmax(-1).numpy() == pytest.approx(expected.numpy(), abs=1e-5)

    def test_attention_that_looks_ahead(self):
        """Known from the configuration; and measured, where that does not say so."""
        assert not load("bidirectional").spec.causal
        assert load("native").spec.causal
        silent = native(attention_dir="bidirectional")
        silent.cfg.attention_dir = "causal"
        assert BridgeModel(silent, "toy").spec.causal
        assert not load_model(silent).spec.causal

    def test_the_model_is_left_as_it_was(self):
        model = load_model(native(**VARIANTS["grouped queries"]))

        def groups() -> list[tuple[int, int]]:
            inner = [block.attn.original_component for block in model.bridge.blocks]
            return [(attn.n_kv_heads, attn.kv_repeats) for attn in inner]

        sweep(model, pairs(), "head_k")
        score_edges(model, pairs(), steps=1)
        handle = model.bridge.blocks[1].attn.q.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sweep(model, pairs(), "head_k")
        handle.remove()
        assert groups() == [(2, 2)] * N_LAYERS
        assert model.spec.n_kv_heads == 2

    def test_fewer_words_out_than_in(self):
        batch, model = pairs(), load_model(native(**VARIANTS["fewer words out than in"]))
        assert model.spec.d_vocab == 20
        few = PairBatch.from_tokens(
            batch.clean, batch.corrupt, batch.answers % 20, (batch.answers + 7) % 20, batch.answer_at
        )
        for metric in ("logit_diff", "kl"):
            whole = sweep(model, few, "resid_pre", metric=metric, axis="all")
            assert whole.values[:, 0] == pytest.approx(np.ones(2), abs=1e-9)


class TestSweeps:
    @pytest.mark.parametrize("direction", ["denoise", "noise"])
    def test_every_cell_is_a_forward_pass_of_its_own(self, name, direction):
        sites = [site for site in HOOKS if load(name).spec.has_mlp or site != "mlp_out"]
        found = sweep(load(name), pairs(), sites, direction=direction)
        for site in sites:
            expected = brute_force(name, pairs(), site, direction)
            assert largest_error(found[site], expected) < TOLERANCE[name]
            assert np.ptp(expected, axis=1).max() > 0.05

    def test_neurons_are_what_enters_the_output_projection(self):
        """Of SoLU: behind its layer norm."""
        bridge, batch, hook = load("solu").bridge, pairs(), "blocks.0.mlp.out.hook_in"
        grid = sweep(load("solu"), batch, "neuron", layers=[0])
        _, cache = bridge.run_with_cache(batch.clean, names_filter=[hook])

        def put(number: int) -> np.ndarray:
            def one(value: torch.Tensor, hook: Any) -> torch.Tensor:
                value = value.clone()
                value[..., number] = theirs[..., number]
                return value

            theirs = cache[hook]
            return logit_diff(bridge.run_with_hooks(batch.corrupt, fwd_hooks=[(hook, one)]), batch).numpy()

        expected = np.stack([put(number) for number in range(12)])
        assert grid.per_example[0, :12] == pytest.approx(expected, abs=TOLERANCE["solu"])
        assert np.ptp(expected, axis=0).max() > 0.02


class TestCircuits:
    def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(self, name):
        clean, corrupt = clean_and_empty(prepared(name), METRIC)
        real = real_edges(layout_of(name))
        everything, nothing = values(name, np.stack([real, np.zeros_like(real)]))
        assert everything == pytest.approx(clean, abs=TOLERANCE[name])
        assert nothing == pytest.approx(corrupt, abs=1e-12)
        assert np.abs(clean - corrupt).min() > 0.01

    def test_circuits_in_one_batch_are_the_circuits_one_by_one(self, name):
        masks = random_masks(layout_of(name))
        together = values(name, masks)
        assert np.stack([values(name, mask[None])[0] for mask in masks]) == pytest.approx(together, abs=TOLERANCE[name])
        assert np.ptp(together, axis=0).min() > 0.01


class TestEdges:
    """Edges by forward passes of the bridge, one for each, with plain hooks."""

    EDGES = ("input->a0.h2<v>", "a0.h1->a1.h3<q>", "input->a1.h0<k>", "a0.h2->a1.h1<v>", "a0.h0->logits")
    OF_MLPS = ("a0.h1->m0", "m0->m1", "a1.h2->m1", "m0->a1.h2<q>", "m1->logits")

    def test_exact_effects(self, name):
        model = load(name)
        edges = [Edge.parse(edge) for edge in (*self.EDGES, *(self.OF_MLPS if model.spec.has_mlp else ()))]
        expected = np.stack([self.brute_force(name, edge) for edge in edges])
        found = patch_edges(model, pairs(), edges, metric=METRIC, direction="noise").per_example[:, 0]
        assert found == pytest.approx(expected, abs=TOLERANCE[name])
        assert np.abs(expected).max(1).min() > 1e-4

    @torch.no_grad()
    def brute_force(self, name: str, edge: Edge) -> np.ndarray:
        """m(clean) - m(clean with what one reader reads moved by one writer's difference)."""
        batch, bridge, layer = pairs(), load(name).bridge, edge.reader.node.layer
        _, cache = bridge.run_with_cache(batch.clean)
        moved = self.written(name, batch.clean, edge) - self.written(name, batch.corrupt, edge)

        def answer(stream: torch.Tensor) -> torch.Tensor:
            return bridge.unembed(bridge.ln_final(stream))

        untouched = logit_diff(bridge(batch.clean), batch)
        if layer is None:
            stream = cache[f"blocks.{N_LAYERS - 1}.hook_resid_post"]
            return (untouched - logit_diff(answer(stream - moved), batch)).numpy()
        block, before = bridge.blocks[layer], cache[f"blocks.{layer}.hook_resid_pre"] - moved
        if edge.reader.slot is None:
            read = before + cache[f"blocks.{layer}.hook_attn_out"]
            hook, new, where = f"blocks.{layer}.hook_mlp_out", block.mlp(block.ln2(read)), slice(None)
        else:
            slot = edge.reader.slot.value
            hook, where = f"blocks.{layer}.attn.hook_{slot}", edge.reader.node.head
            new = getattr(block.attn, slot)(block.ln1(before)).unflatten(-1, (N_HEADS, -1))

        def put(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[:, :, where] = new[:, :, where]
            return value

        return (untouched - logit_diff(bridge.run_with_hooks(batch.clean, fwd_hooks=[(hook, put)]), batch)).numpy()

    def written(self, name: str, tokens: torch.Tensor, edge: Edge) -> torch.Tensor:
        """What the edge's writer adds to the stream."""
        bridge, node = load(name).bridge, edge.source
        _, cache = bridge.run_with_cache(tokens)
        if node.layer is None:
            return cache["blocks.0.hook_resid_pre"]
        if node.head is None:
            return cache[f"blocks.{node.layer}.hook_mlp_out"]
        weight = bridge.blocks[node.layer].attn.o.original_component.weight.unflatten(1, (N_HEADS, -1))
        return torch.einsum(
            "bsh,mh->bsm", cache[f"blocks.{node.layer}.attn.hook_z"][:, :, node.head], weight[:, node.head]
        )


class TestScores:
    def test_integrated_gradients(self, name):
        scores = score_edges(load(name), pairs(), "eap-ig", steps=5)
        clean, corrupt = clean_and_empty(prepared(name), METRIC)
        truth = float((clean - corrupt).mean())
        missed = abs(scores.values[0].sum() - truth) / abs(truth)
        assert missed == pytest.approx(scores.checks["completeness_gap"], rel=1e-3, abs=1e-5)
        assert missed < 0.2
        assert not scores.values[~real_edges(Layout.of(load(name).spec))].any()

    def test_a_writers_edges_sum_to_its_node(self, name):
        """At one point: the slope of the metric along the writer's difference, by moving what it adds to the stream."""
        scores = score_edges(load(name), pairs(), "eap-ig", steps=1)
        writers = ["a0.h1", "a1.h2", *(["m0", "m1"] if load(name).spec.has_mlp else [])]
        for writer in writers:
            edge = Edge.parse(f"{writer}->logits")
            node = edge.source
            hook = f"blocks.{node.layer}.hook_{'mlp' if node.head is None else 'attn'}_out"
            clean, corrupt = (TestEdges().written(name, tokens, edge) for tokens in (pairs().clean, pairs().corrupt))
            found = self.slope(name, hook, clean - corrupt)
            row = layout_of(name).writer_index(node)
            assert scores.values[row].sum() == pytest.approx(found, abs=1e-4 if name == "attn-only" else 1e-7)
            assert abs(found) > 1e-3

    @torch.no_grad()
    def slope(self, name: str, hook: str, delta: torch.Tensor) -> float:
        # Folded norms run in float32, which a small step would not be seen through.
        step = 1e-2 if name == "attn-only" else 1e-5
        bridge, ends = load(name).bridge, []
        for share in (step, -step):
            hooks = [(hook, lambda value, hook, share=share: value + share * delta)]
            ends.append(float(logit_diff(bridge.run_with_hooks(pairs().clean, fwd_hooks=hooks), pairs()).mean()))
        return (ends[0] - ends[1]) / (2 * step)

    def test_weights_that_are_trained_change_nothing(self):
        model = fresh("solu")
        for weight in model.bridge.original_model.parameters():
            weight.requires_grad_(True)
        expected = score_edges(load("solu"), pairs(), steps=2).values
        assert score_edges(model, pairs(), steps=2).values == pytest.approx(expected, abs=1e-12)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


class TestShortNames:
    """From the hub's cache, through TransformerLens's own loader, against the forward pass by hand."""

    @pytest.mark.parametrize("toy", TOYS)
    def test_the_function_is_the_checkpoints(self, toy, cache):
        publish(toy, cache)
        model, tokens = load_model(toy, dtype="float64"), pairs().clean
        by_hand = toy_by_hand.run(toy, tokens)
        # Folded norms and RMS norms run in float32, here 1e-6.
        allowed = 1e-5 if toy in ("gelu-2l", "solu-1l-pile") else 1e-10
        assert model.bridge(tokens).numpy() == pytest.approx(by_hand.logits.numpy(), abs=allowed)
        run = model.record(tokens)
        for layer, z in enumerate(by_hand.z):
            assert run.z[layer].numpy() == pytest.approx(z.numpy(), abs=allowed)
        for layer, neurons in enumerate(by_hand.neurons):
            found = model.mlp_hidden(layer, run.resid_pre[layer] + run.attn_out[layer])
            assert found.numpy() == pytest.approx(neurons.numpy(), abs=allowed)
            assert run.mlp_out[layer].numpy() == pytest.approx(by_hand.mlp_out[layer].numpy(), abs=allowed)
        assert float(by_hand.logits.std()) > 0.5

    @pytest.mark.parametrize("toy", TOYS)
    def test_it_is_loaded_as_any_other(self, toy, cache):
        publish(toy, cache)
        model = load_model(toy)
        assert (model.id, model.dtype) == (toy, torch.float32)
        assert (model.spec.n_layers, model.spec.has_mlp) == (TOYS[toy][1]["n_layers"], not toy.startswith("attn"))
        assert not any(weight.requires_grad for weight in model.bridge.original_model.parameters())
        assert not any(module.training for module in model.bridge.modules())
        assert list(model.text.encode("hello John").ids) == model.bridge.to_tokens("hello John")[0].tolist()
        assert len(model.weights_sha256()) == 64

    def test_the_repositorys_own_name_serves(self, cache):
        publish("solu-1l", cache)
        model = load_model(TOYS["solu-1l"][0])
        assert model.weights_sha256() == load_model("solu-1l").weights_sha256()

    def test_nothing_in_the_cache(self, cache):
        with pytest.raises(
            ModelError, match=r"model 'solu-1l' is not in the local cache and the hub cannot be reached"
        ):
            load_model("solu-1l")

    def test_half_a_download(self, cache):
        (publish("solu-1l", cache) / "model_final.pth").unlink()
        with pytest.raises(
            ModelError, match=r"model 'solu-1l' is not in the local cache and the hub cannot be reached"
        ):
            load_model("solu-1l")

    def test_an_embedding_that_transformer_lens_has_given_up(self, cache):
        folder = publish("solu-1l", cache)
        settings = {**json.loads((folder / "config.json").read_text()), "shortformer_pos": True}
        (folder / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ModelError, match=r"model 'solu-1l' cannot be loaded: .* uses shortformer"):
            load_model("solu-1l")

    @pytest.mark.parametrize("spoilt", [False, True])
    def test_the_hubs_client_is_as_before(self, cache, spoilt):
        from huggingface_hub import HfApi, constants

        folder = publish("solu-1l", cache)
        if spoilt:
            (folder / "model_final.pth").write_text("nonsense")
        before = HfApi.list_repo_files, constants.HF_HUB_OFFLINE, torch.get_rng_state().tolist()
        if spoilt:
            with pytest.raises(ModelError, match="cannot be loaded"):
                load_model("solu-1l")
        else:
            load_model("solu-1l")
        assert (HfApi.list_repo_files, constants.HF_HUB_OFFLINE, torch.get_rng_state().tolist()) == before

    def test_other_short_names_go_to_huggingface(self, cache, monkeypatch):
        """Under their official name, so that no warning gives the root logger a handler."""
        from transformer_lens.model_bridge import TransformerBridge

        asked = []

        def boot(name: str, **options: Any) -> Any:
            asked.append((name, options))
            return native(torch.float32)

        monkeypatch.setattr(TransformerBridge, "boot_transformers", staticmethod(boot))
        handlers = list(logging.getLogger().handlers)
        assert load_model("tiny-stories-1M").id == "tiny-stories-1M"
        assert load_model("somebody/anything", dtype="bfloat16").id == "somebody/anything"
        assert [name for name, _ in asked] == ["roneneldan/TinyStories-1M", "somebody/anything"]
        assert [options["dtype"] for _, options in asked] == [torch.float32, torch.bfloat16]
        assert logging.getLogger().handlers == handlers


def test_the_prompts_are_of_these_models_words():
    assert max(int(tokens.max()) for tokens in (pairs().clean, pairs().corrupt, pairs().answers)) < D_VOCAB
