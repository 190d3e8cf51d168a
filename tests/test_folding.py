"""Norms folded and weights centred: predictions as before, norms plain, the stream without a mean, all laws kept.

The oracles: the same model unfolded, TransformerLens's own processing of the same weights, and plain hooks.
"""

import json
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import (
    BOTH,
    D_MODEL,
    FOLDED,
    NATIVE,
    NORMS_ALONE,
    TOLERANCE,
    as_users_run_it,
    booted,
    folded,
    load,
    native,
    pairs,
    save,
    tokenizer,
)
from test_edges import PlainHooks, some_edges
from test_sweep import brute_force, largest_error
from torch.nn import functional

from circuitlab import discover, load_model, reproduce, score_edges, sweep
from circuitlab.cli import main
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.errors import ConfigError, UnsupportedModelError
from circuitlab.models import folding as module
from circuitlab.models.anatomy import linear
from circuitlab.models.bridge_base import weights_digest
from circuitlab.models.norms import NormForm, closest_form
from circuitlab.models.recording import AS_SAVED, Folding
from circuitlab.models.verify import adapted, measure
from circuitlab.patching.edges.edges import patch_edges

CENTRE_ALONE = Folding(center_weights=True)
CASES = [(name, how) for name, how in FOLDED.values()]
CASES += [(name, CENTRE_ALONE) for name in ("gpt2", "solu")]
LAYER_NORMS = [name for name, how in FOLDED.values() if how is BOTH]


def norms(model: Any) -> Iterator[Any]:
    """Every norm that something reads, SoLU's inside its MLP among them."""
    for block in model.bridge.blocks:
        yield from (getattr(block, name) for name in ("ln1", "ln2") if hasattr(block, name))
        if model.spec.has_mlp and hasattr(block.mlp, "ln"):
            yield block.mlp.ln
    yield model.bridge.ln_final


def without_gain(kind: NormForm) -> Any:
    """The same norm said to have a gain of 1, which is made plain all the same."""
    return SimpleNamespace(gain=None, bias=kind.bias, centred=kind.centred, make_plain=kind.make_plain)


class TestPredictions:
    @pytest.fixture(autouse=True)
    def _softmax_in_float64(self, monkeypatch):
        """Code of architectures takes softmaxes in float32: of BLOOM's patterns one value then rounds the other way.

        It is 1.2e-7 off, its log-probabilities are 2.6e-7; with float64 softmaxes all agree to 1e-14.
        """
        own = functional.softmax
        monkeypatch.setattr(functional, "softmax", lambda scores, dim=-1, **_: own(scores, dim=dim))

    @torch.no_grad()
    @pytest.mark.parametrize(("name", "how"), CASES)
    def test_are_the_same(self, name, how):
        found, expected = (model.whole_logits(pairs().clean) for model in (folded(name, how), load(name)))
        assert (found - found[..., :1]).numpy() == pytest.approx(
            (expected - expected[..., :1]).numpy(), abs=max(1e-9, TOLERANCE[name] if name == "gemma2" else 0)
        )
        assert found.log_softmax(-1).numpy() == pytest.approx(
            expected.log_softmax(-1).numpy(), abs=1e-9 if name != "gemma2" else TOLERANCE[name]
        )
        # Nothing but a number common to all logits of a position, and only where they are centred.
        assert (float((found - expected).abs().max()) > 1e-3) == how.center_weights

    @torch.no_grad()
    @pytest.mark.parametrize(("name", "how"), [("gpt2", BOTH), ("llama", NORMS_ALONE)])
    def test_in_float32(self, name, how):
        found, expected = folded(name, how, "float32"), load(name, "float32")
        apart = [model.whole_logits(pairs().clean).log_softmax(-1) for model in (found, expected)]
        assert apart[0].numpy() == pytest.approx(apart[1].numpy(), abs=2e-4)


class TestWeights:
    @pytest.mark.parametrize("name", FOLDED)
    def test_norms_are_plain(self, name):
        model, before = load(name), load(FOLDED[name][0])
        for norm, was in zip(norms(model), norms(before), strict=True):
            for each, plain in ((norm, True), (was, False)):
                like = getattr(getattr(each, "original_component", None), "weight", torch.ones(()))
                kind, apart = closest_form(each, like, D_MODEL)
                assert apart < 1e-4
                if kind.gain is not None:
                    assert bool((kind.gain == 1).all()) == plain
                if kind.bias is not None:
                    assert bool((kind.bias == 0).all()) == plain

    @pytest.mark.parametrize("name", [f"{name}-folded" for name in LAYER_NORMS])
    def test_what_is_written_has_mean_zero(self, name):
        for model, small in ((load(name), True), (load(FOLDED[name][0]), False)):
            run = model.record(pairs().clean)
            written = [run.resid_pre[0], *run.attn_out, *(run.mlp_out if model.spec.has_mlp else ()), run.resid_final]
            assert (max(float(part.mean(-1).abs().max()) for part in written) < 1e-12) == small
            weights = [model.embedding_matrix, *(linear(block.attn.o)[0] for block in model.bridge.blocks)]
            weights += [linear(block.mlp.out)[0] for block in model.bridge.blocks if model.spec.has_mlp]
            assert (max(float(weight.mean(-1).abs().max()) for weight in weights) < 1e-12) == small
            unembedding, bias = model.unembedding()
            assert (float(unembedding.mean(-1).abs().max()) < 1e-12) == small
            assert abs(float(bias.mean())) < 1e-12 or not small

    @pytest.mark.parametrize("name", ["gpt2-folded", "solu-folded", "attn-only-folded"])
    def test_no_bias_is_left_in_the_values(self, name):
        for block in load(name).bridge.blocks:
            assert float(linear(block.attn.v)[1].abs().max()) == 0
        assert float(linear(load(FOLDED[name][0]).bridge.blocks[0].attn.v)[1].abs().max()) > 0.01

    def test_tied_weights_are_no_longer(self):
        alone = folded("gpt2", NORMS_ALONE)
        assert torch.equal(alone.embedding_matrix, load("gpt2").embedding_matrix)
        assert not torch.allclose(alone.unembedding()[0], alone.embedding_matrix.T)
        assert torch.equal(load("gpt2").unembedding()[0], load("gpt2").embedding_matrix.T)

    def test_the_digest_is_the_checkpoints_and_says_what_was_done(self):
        plain = load("gpt2")
        digests = [weights_digest(plain.bridge, how) for how in (AS_SAVED, NORMS_ALONE, CENTRE_ALONE, BOTH)]
        assert len(set(digests)) == 4
        assert (plain.weights_sha256(), load("gpt2-folded").weights_sha256()) == (digests[0], digests[-1])
        assert load("gpt2").folding == AS_SAVED
        assert load("gpt2-folded").folding == BOTH

    def test_the_checkpoint_stays_as_it_was(self, tmp_path):
        source = save("gpt2", tmp_path / "model")
        before = {path.name: path.read_bytes() for path in source.iterdir()}
        load_model(source, fold_ln=True, center_weights=True)
        assert {path.name: path.read_bytes() for path in source.iterdir()} == before


class TestTransformerLens:
    """Every activation that both have, by the same name, against TransformerLens's own processing (in float32)."""

    @torch.no_grad()
    @pytest.mark.parametrize("name", ["gpt2", "neo", "llama", "solu", "attn-only"])
    def test_every_activation(self, name):
        how = dict(FOLDED.values())[name]
        theirs = native(dtype=torch.float32, **NATIVE[name]) if name in NATIVE else booted(name, torch.float32)
        # They centre the unembedding of RMS models too, which has nothing to do with their norms.
        theirs.enable_compatibility_mode(disable_warnings=True, center_unembed=how.center_weights)
        (_, expected), (_, found), (_, before) = (
            bridge.run_with_cache(pairs().clean)
            for bridge in (theirs, folded(name, how, "float32").bridge, load(name, "float32").bridge)
        )
        assert len(expected) > 50
        # They mask with infinity, the checkpoint's code with the smallest number that there is.
        expected, found, before = (
            {hook: value.clamp_min(-1e6) for hook, value in cache.items()} for cache in (expected, found, before)
        )
        for hook, value in expected.items():
            size = float(value[value > -1e6].abs().max())
            assert found[hook].numpy() == pytest.approx(value.numpy(), abs=2e-4 * size + 1e-6), hook
        # The twin: without folding many of them are others.
        others = [h for h, v in expected.items() if not np.allclose(before[h].numpy(), v.numpy(), rtol=1e-2, atol=1e-2)]
        assert len(others) > 4


class TestEngine:
    @pytest.mark.parametrize("name", FOLDED)
    def test_the_parts_add_up(self, name):
        assert max(measure(load(name), pairs().clean).values()) < max(1e-12, TOLERANCE[name] / 10)

    @pytest.mark.parametrize("name", ["gpt2-folded", "neo-folded", "solu-folded", "llama-folded"])
    @pytest.mark.parametrize("site", ["head_z"])
    def test_sweeps_are_plain_hooks(self, name, site):
        expected = brute_force(name, pairs(), site, "denoise")
        assert largest_error(sweep(load(name), pairs(), site), expected) < TOLERANCE[name]
        assert np.ptp(expected, axis=1).max() > 0.05

    @pytest.mark.parametrize("name", ["gpt2-folded", "solu-folded"])
    def test_edges_are_plain_hooks(self, name):
        oracle, everywhere, edges = PlainHooks(name, "noise"), torch.ones_like(pairs().clean), some_edges(name)
        found = patch_edges(load(name), pairs(), edges, direction="noise")
        expected = np.stack([oracle.effect(edge, everywhere) for edge in edges])
        assert found.per_example[:, 0] == pytest.approx(expected, abs=TOLERANCE[name])
        assert np.abs(expected).max() > 0.05

    @pytest.mark.parametrize("name", ["gpt2", "solu"])
    def test_what_is_put_from_one_run_into_another_does_the_same(self, name):
        """A patch moves what two runs differ by: biases drop out, and the mean is nobody's."""
        model, plain = load(f"{name}-folded"), load(name)
        for site in ("resid_pre", "attn_out", "head_z", "head_q"):
            found, expected = (sweep(one, pairs(), site).per_example for one in (model, plain))
            assert found == pytest.approx(expected, abs=max(1e-9, TOLERANCE[name]))
        edges = some_edges(name)
        found, expected = (patch_edges(one, pairs(), edges).per_example for one in (model, plain))
        assert found == pytest.approx(expected, abs=max(1e-9, TOLERANCE[name]))

    @pytest.mark.parametrize("method", ["eap", "eap-ig"])
    def test_edge_scores_of_differences_times_slopes_are_the_same(self, method):
        found, expected = (score_edges(load(n), pairs(), method, steps=2).values for n in ("gpt2-folded", "gpt2"))
        assert found == pytest.approx(expected, abs=1e-9)
        assert float(np.abs(expected).max()) > 0.1

    def test_what_is_taken_away_does_not(self):
        """Zero is another thing in other coordinates: numbers of zero ablation go with one folding."""
        found, plain = (sweep(load(n), pairs(), "head_z", ablation="zero").per_example for n in ("gpt2-folded", "gpt2"))
        assert float(np.abs(found - plain).max()) > 0.01


class TestTwins:
    """Folding done wrong is measured and refused."""

    def test_weights_that_are_not_scaled(self, monkeypatch):
        right = module._kind
        monkeypatch.setattr(module, "_kind", lambda *asked: without_gain(right(*asked)))
        with pytest.raises(UnsupportedModelError, match=r"its log-probabilities differ by [\d.]+ of their size"):
            folded("gpt2", NORMS_ALONE)

    def test_biases_that_are_lost(self, monkeypatch):
        monkeypatch.setattr(module, "_set_bias", lambda *_: None)
        with pytest.raises(UnsupportedModelError, match=r"its log-probabilities differ by [\d.]+ of their size"):
            folded("solu", NORMS_ALONE)

    def test_a_mean_that_readers_see(self, monkeypatch):
        monkeypatch.setattr(module, "_check_centring", lambda *_: None)
        with pytest.raises(UnsupportedModelError, match=r"its log-probabilities differ by [\d.]+ of their size"):
            folded("llama", CENTRE_ALONE)

    def test_a_writer_that_was_forgotten(self, monkeypatch):
        centre = module._take_out_mean
        monkeypatch.setattr(module, "_take_out_mean", lambda w: None if len(w) == 64 else centre(w))
        with pytest.raises(UnsupportedModelError, match=r"something else than embeddings, heads and MLPs writes"):
            folded("gpt2", CENTRE_ALONE)  # 64 positions


class TestMessages:
    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("llama", "ln1 of block 0 is an RMS norm and does not take out the mean"),
            ("gemma2", "its attention and MLPs are followed by norms, so that no weights write to the stream"),
        ],
    )
    def test_models_that_cannot_be_centred(self, name, why):
        with pytest.raises(UnsupportedModelError, match=rf"cannot be centred: {why}.*Load it without center_weights"):
            folded(name, BOTH)

    @pytest.mark.parametrize(
        ("settings", "why"),
        [
            ({"final_rms": True}, "the final norm is an RMS norm"),
            ({"normalization_type": None}, "ln1 of block 0 is no norm"),
            ({"output_logits_soft_cap": 3.0}, "its logits are capped"),
        ],
    )
    def test_toy_models_that_cannot_be_centred(self, settings, why):
        with pytest.raises(UnsupportedModelError, match=rf"'toy' cannot be centred: {why}"):
            adapted(native(**settings), "toy", BOTH)

    def test_half_precision(self, tmp_path):
        with pytest.raises(ConfigError, match=r"would round weights .* torch.bfloat16 .* Use float32 or float64"):
            load_model(save("gpt2", tmp_path / "model"), dtype="bfloat16", fold_ln=True)

    @pytest.mark.parametrize("name", ["fold_ln", "center_weights"])
    @pytest.mark.parametrize("given", ["bridge", "model"])
    def test_a_model_that_the_user_holds_is_not_changed(self, name, given):
        bridge = booted("gpt2")
        held = bridge if given == "bridge" else load_model(bridge)
        before = load_model(bridge).weights_sha256()
        with pytest.raises(ConfigError, match=rf"{name} is asked for, but the given model is booted already"):
            load_model(held, **{name: True})
        assert load_model(bridge).weights_sha256() == before

    def test_a_model_that_is_folded_already_serves(self):
        model = load("gpt2-folded")
        assert load_model(model, fold_ln=True, center_weights=True) is model
        assert load_model(model) is model

    def test_a_norm_of_another_kind(self, monkeypatch):
        monkeypatch.setattr(module, "closest_form", lambda *_: (NormForm(), 0.1))
        with pytest.raises(UnsupportedModelError, match=r"ln1 of block 0 is neither a layer norm nor an RMS norm"):
            folded("gpt2", NORMS_ALONE)


class TestSharedNorm:
    """Blocks with one norm for attention and MLP: all of them take its gain."""

    @torch.no_grad()
    def test_predictions_are_the_same(self, tmp_path):
        import transformers as hf

        shape = {"n_layer": 2, "n_head": 4, "n_embd": D_MODEL, "n_positions": 64, "vocab_size": 300, "rotary_dim": 4}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = hf.GPTJForCausalLM(hf.GPTJConfig(**shape, bos_token_id=0, eos_token_id=0))
            for weight in model.parameters():
                weight += 0.2 * torch.randn_like(weight)
        model.save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        plain, both = (
            load_model(tmp_path, dtype="float64", **kw) for kw in ({}, {"fold_ln": True, "center_weights": True})
        )
        found, expected = (one.whole_logits(pairs().clean).log_softmax(-1) for one in (both, plain))
        assert both.spec.parallel
        assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-9)
        assert float((both.record(pairs().clean).mlp_out[0].mean(-1)).abs().max()) < 1e-12


class TestRuns:
    def test_a_run_records_it_and_is_repeated_with_it(self, tmp_path, monkeypatch):
        """What a model that was given brings along, too."""
        model, asked = load_model(fold_ln=True, center_weights=True), dict[str, Any]()
        folder = tmp_path / "run"
        discover("gendered-pronouns", model=model, n=6, method="eap", min_accuracy=0.0, out=folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert (manifest["config"]["fold_ln"], manifest["config"]["center_weights"]) == (True, True)
        assert manifest["model"]["weights_sha256"] == model.weights_sha256() != load_model().weights_sha256()
        assert " --fold-ln --center-weights " in manifest["command"]
        assert "norms folded into the next weights" in (folder / "report.html").read_text()

        def again(task: object, *, out: Path, **settings: Any) -> None:
            asked.update(settings)
            shutil.copytree(folder, out)

        monkeypatch.setattr(import_module("circuitlab.runs.reproduce"), "discover", again)
        assert reproduce(folder).same_weights
        assert (asked["model"], asked["fold_ln"], asked["center_weights"]) == ("bundled", True, True)

    def test_on_the_command_line(self, capsys):
        words = ["sweep", "gendered-pronouns", "--site", "head_z", "--ablation", "zero", "-n", "4", "--json", "--quiet"]
        said = []
        for flags in ([], ["--fold-ln", "--center-weights"]):
            assert main([*words, *flags]) == 0
            said.append(capsys.readouterr().out)
        assert len(set(said)) == 2
        assert json.loads(said[1])

    def test_the_command_says_it(self):
        plain = DiscoverConfig(task="gendered-pronouns", model="bundled")
        assert "fold" not in plain.command
        assert DiscoverConfig(task="t", model="bundled", fold_ln=True).command == "circuitlab discover t --fold-ln"

    @pytest.mark.parametrize("name", ["fold_ln", "center_weights"])
    def test_neither_yes_nor_no(self, name):
        with as_users_run_it(), pytest.raises(ConfigError, match=rf"{name} is 'yes'; it must be True or False"):
            DiscoverConfig(task="t", model="bundled", **{name: "yes"})
