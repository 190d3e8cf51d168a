"""`transformer_lens.tools.analysis` and `head_detector` beside ours: the same where both speak of the same thing.

Where they differ, what parts must add up to decides. `attribution_patch`, `faithfulness` and the direct paths, which
are about nodes, edges and circuits, stand in test_gradients.py, test_edge_scores.py, test_circuit_runs.py and
test_edges.py; `ActivationCache` in test_attribution.py.
"""

from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, N_LAYERS, NATIVE, TOLERANCE, booted, load, logit_diff, native, pairs
from transformer_lens.head_detector import detect_head
from transformer_lens.tools import analysis

from circuitlab import attention, direct_attribution, lens_tokens, load_model, logit_lens, predict, sweep

TEXT = "Mary is a really great friend."
SEQUENTIAL = [name for name in (*ARCHITECTURES, "neo", *NATIVE) if name not in ("neox", "attn-only")]
FOLDABLE = ("gpt2", "llama", "neox", "gemma2")


def bridge_of(name: str):
    """A new bridge; TransformerLens's own models are booted for training, and its tools refuse them then."""
    return native(**NATIVE[name]).eval() if name in NATIVE else booted(name)


def folded_bridge(name: str):
    bridge = bridge_of(name)
    bridge.enable_compatibility_mode(disable_warnings=True)
    return bridge


class TestLogitLens:
    @pytest.mark.parametrize("name", SEQUENTIAL)
    def test_theirs_is_ours_at_every_point(self, name):
        bridge, batch = bridge_of(name), pairs()
        found = analysis.logit_lens(bridge, batch.clean, incl_mid=True, positions=None)
        theirs = np.stack([logit_diff(logits, batch).numpy() for logits in found.values])
        ours = logit_lens(load_model(bridge), batch)
        assert len(found.labels) == len(ours.points)
        assert np.abs(theirs - ours.per_example).max() < TOLERANCE[name]
        # The twin: points one apart are others.
        assert np.abs(theirs[1:] - ours.per_example[:-1]).max() > 0.01

    @pytest.mark.parametrize("name", ["neox", "attn-only"])
    def test_blocks_without_a_half_have_theirs_too_when_it_is_not_asked_for(self, name):
        bridge, batch = bridge_of(name), pairs()
        found = analysis.logit_lens(bridge, batch.clean, positions=None)
        theirs = np.stack([logit_diff(logits, batch).numpy() for logits in found.values])
        assert np.abs(theirs - logit_lens(load_model(bridge), batch).per_example).max() < TOLERANCE[name]
        with pytest.raises(KeyError, match="hook_resid_mid"):
            analysis.logit_lens(bridge, batch.clean, incl_mid=True)

    def test_the_likeliest_tokens_are_theirs(self, bundled):
        ours = lens_tokens(bundled, TEXT, k=3)
        tokens = torch.tensor([bundled.text.encode(TEXT).ids])
        theirs = analysis.logit_lens(
            bundled.bridge, tokens, incl_mid=True, positions=None, top_k=3, return_type="probs"
        ).readout
        assert theirs.top_ids is not None
        assert np.abs(ours.probabilities - theirs.values[:, 0].numpy()).max() < 1e-5
        assert (ours.ids == theirs.top_ids[:, 0].numpy()).mean() > 0.99  # equals may stand in another order

    def test_ranks_are_theirs(self, bundled):
        words = [" She", " she", " He"]
        tokens = torch.tensor([bundled.text.encode(TEXT).ids])
        ids = [bundled.text.encode(word).ids[-1] for word in words]
        theirs = analysis.logit_lens(bundled.bridge, tokens, targets=ids)
        ours = predict(bundled, TEXT, words).answers
        assert [one.id for one in ours] == ids
        assert [one.rank for one in ours] == [int(theirs.rank_trajectory(i)[-1]) for i in ids]
        assert [one.logit for one in ours] == pytest.approx(theirs.values[-1].flatten().tolist(), abs=1e-4)


class TestDirectLogitAttribution:
    @staticmethod
    def theirs(bridge, batch, unit):
        """At each prompt's answer, by label."""
        found = analysis.direct_logit_attribution(
            bridge, batch.clean, batch.answers[:, 0], batch.distractors[:, 0], unit=unit, pos=None
        )
        values = found.attribution[:, torch.arange(len(batch)), batch.answer_at].detach().numpy()
        return dict(zip(found.labels, values, strict=True))

    def test_it_refuses_weights_that_are_not_folded(self):
        batch, bridge = pairs(), booted("gpt2")
        with pytest.raises(ValueError, match="requires compatibility mode"):
            self.theirs(bridge, batch, "component")
        assert direct_attribution(load_model(bridge), batch).gap < 1e-10

    @pytest.mark.parametrize("name", FOLDABLE)
    def test_components_are_ours_and_what_they_lack_is_the_unembeddings_bias_and_the_cap(self, name):
        batch, bridge = pairs(), folded_bridge(name)
        ours, theirs = direct_attribution(load_model(bridge), batch), self.theirs(bridge, batch, "component")
        for layer in range(N_LAYERS):
            for ending, letter in (("attn_out", "a"), ("mlp_out", "m")):
                own = ours.per_example[ours.names.index(f"{letter}{layer}")]
                assert np.abs(theirs[f"{layer}_{ending}"] - own).max() < 1e-5
        missing = [ours.names.index(part) for part in ("unembed.bias", "softcap") if part in ours.names]
        left_out = ours.per_example[missing].sum(0)
        total = sum(theirs.values())
        assert np.abs(total + left_out - ours.total).max() < 1e-5
        assert len(missing) == (0 if name == "llama" else 1)
        if missing:
            assert np.abs(total - ours.total).max() > 1e-3

    @pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
    def test_heads_are_ours(self, name):
        batch, bridge = pairs(), folded_bridge(name)
        ours, theirs = direct_attribution(load_model(bridge), batch, "head"), self.theirs(bridge, batch, "head")
        for label in theirs.keys() - {"remainder"}:
            layer, head = label[1:].split("H")
            assert np.abs(theirs[label] - ours.per_example[ours.names.index(f"a{layer}.h{head}")]).max() < 1e-5

    def test_heads_in_front_of_a_norm_are_not(self):
        """Gemma 2 norms what attention adds: a head counts as that norm leaves it, theirs as it was before."""
        batch, bridge = pairs(), folded_bridge("gemma2")
        ours, theirs = direct_attribution(load_model(bridge), batch, "head"), self.theirs(bridge, batch, "head")
        whole = self.theirs(bridge, batch, "component")
        for layer in range(N_LAYERS):
            mine = sum(ours.per_example[ours.names.index(f"a{layer}.h{head}")] for head in range(4))
            other = sum(theirs[f"L{layer}H{head}"] for head in range(4))
            # What attention adds to the stream is the same for both, and decides.
            assert np.abs(mine - whole[f"{layer}_attn_out"]).max() < 1e-5
            assert np.abs(other - whole[f"{layer}_attn_out"]).max() > 0.05

    def test_its_layers_are_a_lens_with_the_scale_frozen_and_no_bias(self):
        batch, bridge = pairs(), folded_bridge("gpt2")
        model = load_model(bridge)
        theirs = np.stack(list(self.theirs(bridge, batch, "layer").values()))
        bias = direct_attribution(model, batch)
        shift = bias.per_example[bias.names.index("unembed.bias")]
        frozen, own = (logit_lens(model, batch, norm=norm).per_example for norm in ("frozen", "applied"))
        assert np.abs(theirs + shift - frozen).max() < 1e-5
        assert np.abs(theirs + shift - own).max() > 0.05


@pytest.mark.parametrize("position", [3, 5])
def test_an_interchange_of_one_neuron_is_a_cell_of_the_sweep(position):
    batch, bridge, layer, neuron = pairs(), booted("gpt2"), 0, 17
    hook, at = f"blocks.{layer}.mlp.hook_post", torch.full((4,), position)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(batch.clean)
    values = cache[hook]
    swap = analysis.SubspaceInterchange(analysis.neuron_basis(values.shape[-1], [neuron]))
    logits = analysis.intervened_logits(
        bridge, hook, swap, batch.corrupt, values[torch.arange(4), at], bridge, positions=at
    )
    grid: Any = sweep(
        load("gpt2"), batch, "neuron", neurons=[neuron], layers=[layer], head_axis="position", normalise=False
    )
    frame = grid.to_frame()
    ours = grid.per_example.reshape(-1, 4)[frame["position"].tolist().index(position)]
    assert np.abs(logit_diff(logits, batch).numpy() - ours).max() < 1e-10


def test_detected_heads_are_those_of_our_patterns(bundled):
    theirs = detect_head(bundled.bridge, TEXT, "previous_token_head").numpy()
    looks = attention(bundled, TEXT)
    for layer in range(bundled.spec.n_layers):
        for head in range(bundled.spec.n_heads):
            pattern = looks.pattern(f"a{layer}.h{head}")
            ours = np.diagonal(pattern, -1).sum() / pattern.sum()
            assert theirs[layer, head] == pytest.approx(ours, abs=1e-5)
    assert theirs.max() > 2 * theirs.min() > 0
