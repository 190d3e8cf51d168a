"""Direct logit attribution: the parts add up to the model's own value, and are those that other ways give."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, NATIVE, booted, fresh, load, logit_diff, mixed_pairs, native, pairs
from test_hygiene import snapshot

from circuitlab import (
    ConfigError,
    UnknownNameError,
    UnsupportedModelError,
    attention,
    direct_attribution,
    lens_tokens,
    load_model,
    logit_lens,
    top_heads,
)
from circuitlab.data.batch import PairBatch
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.norms import frozen_norm
from circuitlab.models.surgery import forward_replaced

NAMES = (*ARCHITECTURES, *NATIVE)
# Their norms are float32 whatever the weights are: the model's own value is rounded there, and 2e-7 was measured.
ROUNDED = {"llama", "qwen3", "gemma2", "olmo2", "granite"}


def splits(model: BridgeModel) -> tuple[str, ...]:
    return ("layer", "head", "neuron") if model.spec.has_mlp else ("layer", "head")


@contextmanager
def norms_in_float64(model: BridgeModel) -> Iterator[None]:
    """The RMS norms that stand at the end and behind attention and MLP, without their detour through float32."""
    bridge = model.bridge
    posts = [
        getattr(block, name) for block in bridge.blocks for name in ("ln1_post", "ln2_post") if hasattr(block, name)
    ]
    norms = [bridge.ln_final, *posts]

    def exact(norm):
        inner = norm.original_component
        gain = inner.weight.detach() + (1.0 if "Gemma" in type(inner).__name__ else 0.0)
        eps = getattr(inner, "variance_epsilon", None) or inner.eps
        return lambda x, *_a, **_k: x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gain

    if not norms:
        yield
        return
    with forward_replaced(norms[0], exact(norms[0])):
        rest = [forward_replaced(norm, exact(norm)) for norm in norms[1:]]
        for one in rest:
            one.__enter__()
        try:
            yield
        finally:
            for one in rest:
                one.__exit__(None, None, None)


class TestTheSum:
    @pytest.mark.parametrize("run", ["clean", "corrupt"])
    @pytest.mark.parametrize("name", NAMES)
    def test_is_the_models_own_logit_difference(self, name, run):
        model, batch = load(name), pairs()
        prompts = batch.clean if run == "clean" else batch.corrupt
        expected = logit_diff(model.whole_logits(prompts), batch).numpy()
        for by in splits(model):
            found = direct_attribution(model, batch, by, run=run)
            allowed = 1e-6 if name in ROUNDED else 1e-10
            assert found.gap < allowed
            assert np.abs(found.per_example.sum(0) - expected).max() < allowed

    @pytest.mark.parametrize("name", sorted(ROUNDED))
    def test_is_exact_where_norms_round_to_float64(self, name):
        """Nothing but the float32 of these architectures' norms stands between the sum and the model's value."""
        model = fresh(name)
        with norms_in_float64(model):
            for by in splits(model):
                assert direct_attribution(model, pairs(), by).gap < 1e-10

    def test_of_gpt_neo(self, tmp_path):
        from architectures import D_MODEL, D_VOCAB, tokenizer
        from transformers import GPTNeoConfig, GPTNeoForCausalLM

        config = GPTNeoConfig(
            vocab_size=D_VOCAB, hidden_size=D_MODEL, num_layers=2, num_heads=4, max_position_embeddings=64,
            attention_types=[[["global", "local"], 1]], intermediate_size=48, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            GPTNeoForCausalLM(config).save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        model = load_model(tmp_path, dtype="float64")
        assert max(direct_attribution(model, pairs(), by).gap for by in splits(model)) < 1e-10

    @pytest.mark.parametrize("settings", [{"normalization_type": None}, {"normalization_type": "RMS"},
                                          {"normalization_type": "RMSPre"}, {"output_logits_soft_cap": 3.0}],
                             ids=str)  # fmt: skip
    def test_whatever_the_norm(self, settings):
        model = load_model(native(**settings))
        rounded = settings.get("normalization_type") == "RMS"
        assert direct_attribution(model, pairs(), "head").gap < (1e-6 if rounded else 1e-10)

    @pytest.mark.parametrize("name", ["gpt2", "neox"])
    def test_with_folded_weights(self, name):
        """The numbers of single parts change with the folding, what they add up to does not."""
        bridge = booted(name)
        bridge.enable_compatibility_mode(disable_warnings=True)
        folded, plain = load_model(bridge), load(name)
        for by in splits(folded):
            found, other = direct_attribution(folded, pairs(), by), direct_attribution(plain, pairs(), by)
            assert found.gap < 1e-10
            # Folding is done in float32.
            assert np.abs(found.total - other.total).max() < 1e-5
            assert "unembed.bias" in found.names
            assert "norm.bias" in other.names
            assert "norm.bias" not in found.names

    def test_without_a_bias_it_is_not(self):
        """The twin: leave out what is no head, neuron or layer, as the notebook did, and the sum is another."""
        found = direct_attribution(load("gpt2"), pairs(), "head")
        biases = [component.kind == "bias" for component in found.components]
        assert sum(biases) == 3
        assert np.abs(found.per_example[~np.array(biases)].sum(0) - found.total).max() > 0.1

    def test_over_prompts_of_several_lengths_in_their_order(self):
        model, mixed = load("gpt2"), mixed_pairs()
        found = direct_attribution(model, mixed)
        for number, pair in enumerate(mixed):
            logits = model.whole_logits(torch.tensor([pair.clean_ids]))[0, -1]
            expected = float(logits[pair.answer_ids[0]] - logits[pair.distractor_ids[0]])
            assert found.total[number] == pytest.approx(expected, abs=1e-10)
            assert found.per_example[:, number].sum() == pytest.approx(expected, abs=1e-10)

    def test_over_several_answers(self):
        model, one = load("gpt2"), pairs()
        answers = torch.cat([one.answers, torch.tensor([[-1], [7], [9], [-1]])], 1)
        batch = PairBatch.from_tokens(one.clean, one.corrupt, answers, one.distractors, one.answer_at)
        logits = model.whole_logits(batch.clean)[torch.arange(4), batch.answer_at]
        right = [logits[i, [t for t in row if t >= 0]].mean() for i, row in enumerate(answers.tolist())]
        expected = torch.stack(right) - logits.gather(1, one.distractors)[:, 0]
        found = direct_attribution(model, batch)
        assert np.abs(found.total - expected.numpy()).max() < 1e-10
        assert found.gap < 1e-10
        alone = direct_attribution(model, batch, metric="logit")
        assert np.abs(alone.total - torch.stack(right).numpy()).max() < 1e-10
        assert alone.gap < 1e-10

    def test_the_cap_is_a_component_of_its_own(self):
        found = direct_attribution(load_model(native(output_logits_soft_cap=3.0)), pairs())
        at = found.names.index("softcap")
        assert np.abs(found.per_example[at]).max() > 0.01
        uncapped = np.delete(found.per_example, at, 0).sum(0)
        # A cap makes differences smaller, never larger.
        assert (np.abs(uncapped) > np.abs(found.total)).all()


class TestEachPart:
    """A head's share is what is lost without it, with the final norm's scale as it was."""

    @pytest.mark.parametrize("name", ["gpt2", "neox", "native", "solu"])
    def test_is_the_loss_without_it(self, name):
        model, batch = load(name), pairs()
        found = direct_attribution(model, batch, "head")
        run = model.record(batch.clean)
        rows = torch.arange(len(batch))
        final = run.resid_final[rows, batch.answer_at]
        norm = model.bridge.ln_final
        scale = (final - final.mean(-1, keepdim=True)).square().mean(-1, keepdim=True).add(1e-5).sqrt()
        gain = norm.original_component.weight.detach()

        def value(stream: torch.Tensor) -> torch.Tensor:
            """The logit difference by hand, the scale held."""
            normed = (stream - stream.mean(-1, keepdim=True)) / scale * gain
            weight = model.bridge.unembed.original_component.weight.detach()
            weight = weight if weight.shape[0] == model.spec.d_vocab else weight.T
            logits = normed @ weight.T
            return logits[rows, batch.answers[:, 0]] - logits[rows, batch.distractors[:, 0]]

        for layer, head in ((0, 1), (1, 3)):
            written = model.head_outputs(layer, run.z[layer])[head][rows, batch.answer_at]
            expected = (value(final) - value(final - written)).numpy()
            ours = found.per_example[found.names.index(f"a{layer}.h{head}")]
            assert np.abs(ours - expected).max() < 1e-10

    @pytest.mark.parametrize("name", NAMES)
    def test_finer_splits_add_up_to_coarser_ones(self, name):
        model = load(name)
        layers = direct_attribution(model, pairs(), "layer")
        for by, letter in (("head", "a"), ("neuron", "m")):
            if by not in splits(model):
                continue
            fine = direct_attribution(model, pairs(), by)
            for layer in range(model.spec.n_layers):
                parts = [i for i, part in enumerate(fine.names) if part.startswith(f"{letter}{layer}.")]
                whole = layers.per_example[layers.names.index(f"{letter}{layer}")]
                assert len(parts) >= 4
                assert np.abs(fine.per_example[parts].sum(0) - whole).max() < 1e-6

    def test_token_and_position_are_told_apart_where_there_are_both(self):
        for name, parts in (("gpt2", {"embed.token", "embed.position"}), ("llama", {"embed"}), ("gemma2", {"embed"})):
            found = direct_attribution(load(name), pairs())
            assert {part for part in found.names if part.startswith("embed")} == parts


@pytest.fixture(scope="module", params=["gpt2", "neox"])
def folded(request):
    bridge = booted(request.param)
    bridge.enable_compatibility_mode(disable_warnings=True)
    return load_model(bridge)


class TestAgainstTransformerLens:
    """`ActivationCache` on the same bridge: right for parts of the stream behind folded norms, and nowhere else."""

    @staticmethod
    def cached(bridge, batch: PairBatch):
        _, cache = bridge.run_with_cache(batch.clean)
        return cache

    @staticmethod
    def shares(cache, stack: torch.Tensor, batch: PairBatch) -> np.ndarray:
        """Their attribution at each example's answer position."""
        found = cache.logit_attrs(stack, batch.answers[:, 0], batch.distractors[:, 0])
        return found[:, torch.arange(len(batch)), batch.answer_at].detach().numpy()

    def test_layers_agree_when_norms_are_folded(self, folded):
        batch = pairs()
        cache = self.cached(folded.bridge, batch)
        stack, labels = cache.decompose_resid(return_labels=True)
        theirs, ours = self.shares(cache, stack, batch), direct_attribution(folded, batch)
        names = {"embed": "embed.token", "pos_embed": "embed.position"}
        for label, row in zip(labels, theirs, strict=True):
            kind = {"attn": "a", "mlp": "m"}.get(label.split("_")[1] if "_" in label else "", "")
            name = names.get(label) or f"{kind}{label.split('_')[0]}"
            name = "embed" if name not in ours.names and label == "embed" else name
            # Their scale is float32's.
            assert np.abs(ours.per_example[ours.names.index(name)] - row).max() < 1e-5, label
        # What they leave out is the unembedding's bias, and it is the whole difference to the model's value.
        bias = ours.per_example[ours.names.index("unembed.bias")]
        assert np.abs(theirs.sum(0) + bias - ours.total).max() < 1e-5
        assert np.abs(theirs.sum(0) - ours.total).max() > 0.01

    def test_heads_agree_when_norms_are_folded(self, folded):
        batch = pairs()
        cache = self.cached(folded.bridge, batch)
        stack, labels = cache.stack_head_results(return_labels=True)
        theirs, ours = self.shares(cache, stack, batch), direct_attribution(folded, batch, "head")
        for label, row in zip(labels, theirs, strict=True):
            layer, head = label[1:].split("H")
            assert np.abs(ours.per_example[ours.names.index(f"a{layer}.h{head}")] - row).max() < 1e-5, label

    def test_theirs_leaves_the_final_norms_gain_out_when_it_is_not_folded(self):
        """`logit_attrs` multiplies by W_U alone: on a bridge as it is booted its parts do not add up to the metric."""
        batch, model = pairs(), load_model(booted("gpt2"))
        cache = self.cached(model.bridge, batch)
        stack, labels = cache.decompose_resid(return_labels=True)
        theirs, ours = self.shares(cache, stack, batch), direct_attribution(model, batch)
        assert np.abs(theirs[labels.index("0_attn_out")] - ours.per_example[ours.names.index("a0")]).max() > 0.01
        assert np.abs(theirs.sum(0) - ours.total).max() > 0.01
        assert ours.gap < 1e-10


class TestTheRecord:
    def test_the_frame_has_a_row_a_component(self):
        found = direct_attribution(load("gpt2"), pairs(), "head")
        frame = found.to_frame()
        assert list(frame.columns) == ["component", "kind", "layer", "index", "value", "ci_low", "ci_high", "n"]
        assert list(frame["component"]) == list(found.names)
        assert (frame["ci_low"] <= frame["value"]).all()
        assert (frame["value"] <= frame["ci_high"]).all()
        assert set(frame["n"]) == {4}
        row = frame.set_index("component").loc["a1.h2"]
        assert (row["layer"], row["index"]) == (1, 2)
        assert found.heads[1, 2] == row["value"] == found.value("a1.h2")

    def test_top_heads_are_the_extremes_by_sign(self):
        found = direct_attribution(load("gpt2"), pairs(), "head")
        top = top_heads(found, 2)
        flat = np.sort(found.heads.ravel())
        positive, negative = top[top["sign"] == "positive"], top[top["sign"] == "negative"]
        assert list(positive["value"]) == list(flat[::-1][:2][flat[::-1][:2] > 0])
        assert list(negative["value"]) == list(flat[:2][flat[:2] < 0])
        # The twin: the other sign of every share gives the other order.
        from dataclasses import replace

        turned = top_heads(replace(found, per_example=-found.per_example), 2)
        assert list(turned[turned["sign"] == "positive"]["head"]) == list(negative["head"])

    @pytest.mark.parametrize("by", ["layer", "head", "neuron"])
    def test_it_draws_itself(self, by):
        figure = direct_attribution(load("gpt2"), pairs(), by).plot()
        assert figure.axes[0].get_title(loc="left") == f"Direct logit attribution by {by}, clean prompts"

    def test_a_choice_of_bars(self):
        found = direct_attribution(load("gpt2"), pairs(), "head")
        axes = found.plot_components(["m0", "norm.bias"]).axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["m0", "norm.bias"]
        assert [bar.get_width() for bar in axes.patches] == [found.value("m0"), found.value("norm.bias")]


class TestMistakes:
    def test_names_that_do_not_exist(self):
        model = load("gpt2")
        with pytest.raises(UnknownNameError, match="unknown split 'heads'.*'head'.*layer, head, neuron"):
            direct_attribution(model, pairs(), "heads")
        with pytest.raises(UnknownNameError, match="unknown run 'clear'.*'clean'"):
            direct_attribution(model, pairs(), run="clear")
        with pytest.raises(UnknownNameError, match="unknown metric 'logits'.*'logit'"):
            direct_attribution(model, pairs(), metric="logits")
        with pytest.raises(ConfigError, match="no component 'a9' in a split by layer"):
            direct_attribution(model, pairs()).value("a9")

    def test_a_metric_that_is_no_sum(self):
        with pytest.raises(ConfigError, match="'kl' is no weighted sum of logits.*logit_diff or logit"):
            direct_attribution(load("gpt2"), pairs(), metric="kl")

    def test_neurons_that_are_not_there(self):
        with pytest.raises(ConfigError, match="attention alone, and so no neurons"):
            direct_attribution(load("attn-only"), pairs(), "neuron")

    def test_heads_of_another_split(self):
        found = direct_attribution(load("gpt2"), pairs())
        with pytest.raises(ConfigError, match="a split by layer has no heads"):
            top_heads(found)
        with pytest.raises(ConfigError, match="k is 0"):
            top_heads(direct_attribution(load("gpt2"), pairs(), "head"), 0)

    def test_a_norm_that_is_none_of_the_known(self):
        stream = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with pytest.raises(UnsupportedModelError, match="'odd': the final norm is neither"):
            frozen_norm(lambda x: x.tanh(), stream, "odd")
        known = frozen_norm(torch.nn.LayerNorm(8, dtype=torch.float64), stream, "known")
        assert known.centred


def test_the_model_stays_as_it_was():
    model = fresh("gemma2")
    before = snapshot(model)
    for by in splits(model):
        direct_attribution(model, pairs(), by)
    logit_lens(model, pairs(), norm="frozen")
    lens_tokens(model, pairs().clean[0])
    attention(model, pairs().clean[0])
    assert snapshot(model) == before
