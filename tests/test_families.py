"""The families of models that the notebooks use: from a hub's cache or a folder to swept cells, edges and a run."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_by_hand
from architectures import TOLERANCE, fresh, huggingface, load, pairs, save, tokenizer
from test_edges import PlainHooks, some_edges
from test_sweep import brute_force, largest_error
from toy_by_hand import publish, repository

from circuitlab import load_model, score_edges, select, sweep
from circuitlab.errors import UnsupportedModelError
from circuitlab.parts import Stage
from circuitlab.patching.edges.edges import patch_edges
from circuitlab.patching.runs.neuron_values import neuron_values


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def published(name: str) -> Callable[[Path], str]:
    return lambda cache: (publish(name, cache), name)[1]


def tiny_stories(cache: Path) -> str:
    """GPT-Neo, whose attention sees everything in one layer and a few tokens in the next, as the hub has it."""
    folder = repository(cache, "roneneldan/TinyStories-1M")
    huggingface("neo").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return "tiny-stories-1M"


def gpt2(cache: Path) -> str:
    return str(save("gpt2", cache / "my-gpt2"))


@dataclass(frozen=True)
class Family:
    """How one arrives, and what it allows."""

    arrives: Callable[[Path], str]
    n_layers: int
    centred: bool = True
    has_mlp: bool = True
    stages_differ: bool = False


FAMILIES = {
    "SoLU": Family(published("solu-1l"), 1, stages_differ=True),
    "SoLU on the Pile": Family(published("solu-1l-pile"), 1, centred=False, stages_differ=True),
    "attention alone": Family(published("attn-only-1l"), 1, has_mlp=False),
    "GELU": Family(published("gelu-2l"), 2),
    "GPT-Neo": Family(tiny_stories, 2),
    "GPT-2": Family(gpt2, 2),
}
family_by_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


class TestFamilies:
    @family_by_family
    def test_from_the_name_to_a_circuit(self, family, cache):
        """Loaded by its name with what it allows, a cell swept, edges scored, a circuit selected."""
        name = family.arrives(cache)
        model = load_model(name, fold_ln=True, center_weights=family.centred)
        assert (model.spec.n_layers, model.spec.has_mlp) == (family.n_layers, family.has_mlp)
        assert model.folding.fold_ln
        grid = sweep(model, pairs(), "resid_pre", layers=[0], positions=[5], axis="position")
        assert np.isfinite(grid.values).all()
        scores = score_edges(model, pairs(), "eap")
        assert np.isfinite(scores.values).all()
        assert float(np.abs(scores.values).max()) > 0
        circuit = select(model, scores, pairs(), 0.5)
        assert circuit.n_edges > 0

    @family_by_family
    def test_folding_changes_no_prediction(self, family, cache):
        name = family.arrives(cache)
        plain, both = (
            load_model(name, dtype="float64", **settings)
            for settings in ({}, {"fold_ln": True, "center_weights": family.centred})
        )
        found, expected = (one.whole_logits(pairs().clean).log_softmax(-1) for one in (both, plain))
        # Norms without weights run in float32.
        allowed = 1e-5 if "gelu" in name or "pile" in name else 1e-9
        assert found.numpy() == pytest.approx(expected.numpy(), abs=allowed)
        if family.stages_differ:
            mid, post = (neuron_values(both, pairs().clean, 0, stage) for stage in (Stage.MID, Stage.POST))
            # Folded, the norm inside only norms.
            assert post.mean(-1).abs().max() < 1e-12
            assert post.std(-1, unbiased=False).numpy() == pytest.approx(np.ones(post.shape[:2]), rel=0.2)
            assert float((mid - post).abs().max()) > 0.1

    def test_an_rms_norm_at_the_end_cannot_be_centred(self, cache):
        with pytest.raises(UnsupportedModelError, match=r"'solu-1l-pile' cannot be centred: the final norm is an RMS"):
            load_model(published("solu-1l-pile")(cache), center_weights=True)

    def test_neurons_before_the_norm_by_hand(self, cache):
        model = load_model(published("solu-1l")(cache), dtype="float64")
        post = neuron_values(model, pairs().clean, 0)
        assert post.numpy() == pytest.approx(toy_by_hand.run("solu-1l", pairs().clean).neurons[0].numpy(), abs=1e-10)


class TestGptNeo:
    def test_its_second_layer_looks_at_few_tokens(self):
        first, second = load("neo").record(pairs().clean).pattern
        beyond = torch.ones(8, 8).tril(-4).bool()
        assert float(second[..., beyond].abs().max()) == 0
        assert float(first[..., beyond].min()) > 0


@pytest.mark.parametrize("name", ["neo", "bloom", "cohere"])
class TestBesideTheOtherArchitectures:
    """Families that not every test is run on."""

    @pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "head_z", "head_k"])
    def test_sweeps_are_plain_hooks(self, site, name):
        expected = brute_force(name, pairs(), site, "denoise")
        assert largest_error(sweep(load(name), pairs(), site), expected) < TOLERANCE[name]
        assert np.ptp(expected, axis=1).max() > 0.05

    def test_edges_are_plain_hooks(self, name):
        oracle, everywhere, edges = PlainHooks(name, "noise"), torch.ones_like(pairs().clean), some_edges(name)
        found = patch_edges(load(name), pairs(), edges, direction="noise")
        expected = np.stack([oracle.effect(edge, everywhere) for edge in edges])
        assert found.per_example[:, 0] == pytest.approx(expected, abs=TOLERANCE[name])
        assert np.abs(expected).max() > 0.05

    @torch.no_grad()
    def test_it_computes_what_huggingface_does(self, name):
        theirs = huggingface(name).double()(pairs().clean).logits
        assert fresh(name).whole_logits(pairs().clean).numpy() == pytest.approx(theirs.numpy(), abs=TOLERANCE[name])


def test_short_names_are_those_of_the_registry():
    """What `circuitlab models` lists leads somewhere."""
    from transformer_lens.tools.model_registry.registry_io import resolve_model_alias

    from circuitlab.cli.catalogue import HUB_EXAMPLES

    short = [name for name in HUB_EXAMPLES if "/" not in name and name != "gpt2"]
    assert len(short) > 3
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", resolve_model_alias(name) or "") for name in short)
    assert resolve_model_alias("no-such-model") is None
