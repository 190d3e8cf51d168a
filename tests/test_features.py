"""Features of autoencoders: read, spliced in, swept and ranked, against whole forward passes with plain hooks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import TOLERANCE, as_users_run_it, fresh, load, logit_diff, mixed_pairs, pairs
from features_by_hand import HOOKS, WIDTH, autoencoder, run_with, swept, value_at
from test_hygiene import differences as changed_since
from test_hygiene import process, snapshot
from torch.nn.functional import cross_entropy

from circuitlab import ConfigError, MetricError, TokenError, UnknownNameError, sweep
from circuitlab.data.batch import PairBatch
from circuitlab.features import attached, features, quality, rank_features, splice, sweep_features

SITES = list(HOOKS)
FEWER = {  # what is special about each architecture
    "llama": ["head_z"],
    "neox": ["resid_post", "attn_out", "neuron"],
    "gemma2": ["attn_out", "mlp_out", "head_z", "neuron"],
    "attn-only": ["attn_out"],
}
PLACES = [("gpt2", site) for site in SITES] + [(name, site) for name, sites in FEWER.items() for site in sites]
everywhere = pytest.mark.parametrize(("name", "site"), PLACES)


@everywhere
class TestEverySite:
    def test_a_sweep_is_a_whole_pass_a_cell(self, name, site):
        batch, own = pairs(), autoencoder(name, site)
        cells = {direction: swept(name, own, batch, direction) for direction in ("denoise", "noise")}
        for direction, twin in (("denoise", "noise"), ("noise", "denoise")):
            found = sweep_features(load(name), own, batch, features=range(WIDTH), direction=direction)
            expected = cells[direction]
            np.testing.assert_allclose(found.per_example[0], expected, atol=TOLERANCE[name])
            assert np.abs(expected - expected[:, :1]).max() > 1e3 * TOLERANCE[name], "nothing moved"
            assert not np.allclose(found.per_example[0], cells[twin], atol=1e-3)

    def test_spliced_runs(self, name, site):
        model, batch, own = load(name), pairs(), autoencoder(name, site)
        x = value_at(name, batch.clean, site, 0)
        delta = own.reconstruct(x) - x
        delta[:, 0] = 0
        expected = run_with(name, batch.clean, site, 0, delta)
        with attached(model, own, error=False, keep_first=1), torch.no_grad():
            found = model.bridge(batch.clean)
        torch.testing.assert_close(found, expected, atol=10 * TOLERANCE[name], rtol=0)
        assert not torch.allclose(found, model.whole_logits(batch.clean), atol=1e-2)
        judged = splice(model, own, batch, keep_first=1)
        np.testing.assert_allclose(judged.spliced, logit_diff(expected, batch).numpy(), atol=10 * TOLERANCE[name])

    def test_with_the_error_term_nothing_changes(self, name, site):
        model, batch, own = load(name), pairs(), autoencoder(name, site)
        with attached(model, own), torch.no_grad():
            found = model.bridge(batch.clean)
        torch.testing.assert_close(found, model.whole_logits(batch.clean), atol=10 * TOLERANCE[name], rtol=0)
        judged = splice(model, own, batch, error=True)
        np.testing.assert_allclose(judged.spliced, judged.clean, atol=10 * TOLERANCE[name])
        assert judged.recovered == pytest.approx(1, abs=1e-4)

    def test_attributions_are_gradients_of_whole_passes(self, name, site):
        model, batch, own = load(name), pairs(), autoencoder(name, site)
        for at, tokens in (("corrupt", batch.corrupt), ("clean", batch.clean)):
            slope = gradient(name, batch, tokens, site)
            x, y = (value_at(name, t, site, 0) for t in (batch.corrupt, batch.clean))
            change = own.encode(y) - own.encode(x)
            expected = torch.einsum("bsf,fd,bsd->fb", change, own.w_dec, slope).numpy()
            found = rank_features(model, own, batch, at=at)
            slack = 100 * TOLERANCE[name]
            np.testing.assert_allclose(found.per_example, expected[list(found.features)], atol=slack)
            np.testing.assert_allclose(found.total, ((y - x) * slope).sum((1, 2)).numpy(), atol=slack)
            left = (y - own.reconstruct(y)) - (x - own.reconstruct(x))
            np.testing.assert_allclose(found.error, (left * slope).sum((1, 2)).numpy(), atol=slack)
            assert abs(found.remainder) < slack
            assert np.all(np.diff(np.abs(found.scores)) <= 0)
            assert set(range(WIDTH)) - set(found.features) == set(np.flatnonzero(np.abs(expected).max(1) == 0))


def gradient(name: str, batch: PairBatch, tokens: torch.Tensor, site: str) -> torch.Tensor:
    """Of each example's logit difference at a site of layer 0, by torch through a whole pass of the bridge."""
    kept: list[torch.Tensor] = []

    def keep(value: torch.Tensor, hook: object) -> torch.Tensor:
        kept.append(value.detach().requires_grad_())
        return kept[0]

    with torch.enable_grad():
        logits = load(name).bridge.run_with_hooks(tokens, fwd_hooks=[(HOOKS[site].format(0), keep)])
        logit_diff(logits, batch).sum().backward()
    return kept[0].grad.flatten(2)


@pytest.mark.parametrize("kind", ["standard", "topk", "gated"])
def test_every_architecture_is_swept(kind):
    batch, own = pairs(), autoencoder("gpt2", "resid_post", kind=kind)
    found = sweep_features(load("gpt2"), own, batch, features=range(WIDTH), axis="all")
    np.testing.assert_allclose(found.per_example[0], swept("gpt2", own, batch, "denoise", whole=True)[:, 0], atol=1e-9)
    assert found.column_kind == "feature"


@pytest.mark.parametrize(
    "settings", [{"normalisation": "layer_norm"}, {"normalisation": "constant_norm_rescale"}, {"centred": True}]
)
def test_features_have_the_scale_of_the_run_that_is_patched(settings):
    batch, own = pairs(), autoencoder("gpt2", "resid_pre", 1, **settings)
    found = sweep_features(load("gpt2"), own, batch, features=range(WIDTH))
    np.testing.assert_allclose(found.per_example[0], swept("gpt2", own, batch, "denoise"), atol=1e-9)
    model = load("gpt2")
    with attached(model, own), torch.no_grad():
        torch.testing.assert_close(model.bridge(batch.clean), model.whole_logits(batch.clean), atol=1e-9, rtol=0)
    ranked = rank_features(model, own, batch)
    centred_only = settings == {"centred": True}
    assert (abs(ranked.remainder) < 1e-9) == centred_only, "scales of both runs differ, and the remainder says so"


class TestSweep:
    def test_by_default_all_that_differ(self):
        batch, own = pairs(), autoencoder("gpt2", "resid_pre")
        found = sweep_features(load("gpt2"), own, batch)
        x, y = (own.encode(value_at("gpt2", t, "resid_pre", 0)) for t in (batch.corrupt, batch.clean))
        inside = torch.arange(batch.n_tokens) <= batch.answer_at[:, None]
        differs = ((x != y) & inside[..., None]).any(0).any(0).nonzero().flatten().tolist()
        assert list(map(int, found.members)) == differs
        assert len(differs) > 0

    def test_all_features_and_the_error_together_are_the_stream(self):
        """What is swept one by one adds up to the stream's own difference: the law behind the delta."""
        batch, own = pairs(), autoencoder("gpt2", "resid_pre")
        x, y = (value_at("gpt2", t, "resid_pre", 0) for t in (batch.corrupt, batch.clean))
        parts = torch.einsum("bsf,fd->bsd", own.encode(y) - own.encode(x), own.w_dec)
        left = (y - own.reconstruct(y)) - (x - own.reconstruct(x))
        torch.testing.assert_close(parts + left, y - x)

    def test_a_small_budget_gives_the_same(self):
        batch, own, model = pairs(), autoencoder("gpt2", "resid_pre"), load("gpt2")
        small = sweep_features(model, own, batch, budget=100_000)
        np.testing.assert_allclose(small.per_example, sweep_features(model, own, batch).per_example, atol=1e-10)
        few = rank_features(model, own, batch, budget=2_000_000)
        np.testing.assert_allclose(few.per_example, rank_features(model, own, batch).per_example, atol=1e-10)

    def test_spans_of_prompts_of_several_lengths(self):
        own, model, mixed = autoencoder("gpt2", "resid_pre"), load("gpt2"), mixed_pairs()
        found = sweep_features(model, own, mixed, axis="span", features=[3, 5])
        stream = sweep(model, mixed, "resid_pre", axis="span", layers=[0])
        assert found.columns == stream.columns
        assert np.array_equal(np.isnan(found.per_example[0, 0]), np.isnan(stream.per_example[0]))
        for batch in mixed.batches():
            expected = swept("gpt2", own, batch, "denoise", whole=True)[[3, 5], 0]
            whole = sweep_features(model, own, batch, axis="all", features=[3, 5])
            np.testing.assert_allclose(whole.per_example[0], expected, atol=1e-9)
            name = found.columns.index("name")  # the one word that differs; later positions differ by what follows
            assert np.isfinite(found.per_example[0, :, name][:, batch.index]).all()

    def test_a_table_and_a_figure(self):
        own, model = autoencoder("gpt2", "resid_pre"), load("gpt2")
        grid = sweep_features(model, own, pairs(), features=[7, 2], positions=[2, 5])
        frame = grid.to_frame()
        assert list(frame["feature"]) == [7, 7, 2, 2]
        assert list(frame["position"]) == [2, 5, 2, 5]
        assert grid.plot().axes
        assert sweep_features(model, own, pairs(), features=[7, 2], axis="all").plot().axes

    def test_mistakes(self):
        own, model, batch = autoencoder("gpt2", "resid_pre"), load("gpt2"), pairs()
        with pytest.raises(ConfigError, match="feature 12 is out of range: there are 12, numbered 0 to 11"):
            sweep_features(model, own, batch, features=[12])
        with pytest.raises(ConfigError, match="twice"):
            sweep_features(model, own, batch, features=[1, 1])
        with pytest.raises(ConfigError, match="no feature is chosen"):
            sweep_features(model, own, batch, features=[])
        with pytest.raises(UnknownNameError, match="direction"):
            sweep_features(model, own, batch, direction="denoize")
        with pytest.raises(ConfigError, match="reads layer 9"):
            sweep_features(model, replace(own, layer=9), batch)
        same = PairBatch.from_tokens(batch.clean, batch.clean, batch.answers, batch.distractors)
        with pytest.raises(MetricError, match="no difference"):
            sweep_features(model, own, same)


class TestRanking:
    def test_integrated_scores_add_up_to_what_the_metric_does(self):
        own, model, batch = autoencoder("gpt2", "resid_post"), load("gpt2"), pairs()
        found = rank_features(model, own, batch, steps=64)
        together = found.per_example.sum(0) + found.error
        np.testing.assert_allclose(together, found.clean - found.corrupt, atol=0.01 * abs(found.gap) + 1e-3)
        rough = rank_features(model, own, batch)
        off = [abs(r.total - (r.clean - r.corrupt)).mean() for r in (found, rough)]
        assert off[0] < 0.1 * off[1], "one gradient alone is not complete"
        assert (found.at, found.steps, rough.at) == ("between", 64, "corrupt")

    def test_agreement_with_the_exact_sweep(self):
        own, model, batch = autoencoder("gpt2", "resid_post", 1), load("gpt2"), pairs()
        found = rank_features(model, own, batch, steps=8)
        for direction in ("denoise", "noise"):
            exact = sweep_features(model, own, batch, axis="all", direction=direction)
            assert found.agreement(exact) > 0.8
        shuffled = replace(found, per_example=np.roll(found.per_example, 3, 0))
        assert shuffled.agreement(exact) < 0.6
        flipped = replace(found, per_example=-found.per_example)
        assert flipped.agreement(exact) < -0.8
        with pytest.raises(ConfigError, match='axis="all"'):
            found.agreement(sweep_features(model, own, batch))

    def test_a_table(self):
        found = rank_features(load("gpt2"), autoencoder("gpt2", "resid_pre"), pairs())
        frame = found.to_frame()
        assert list(frame.columns) == ["feature", "score", "share", "ci_low", "ci_high", "p_value", "change", "n"]
        np.testing.assert_allclose(frame["share"] * found.gap, frame["score"])
        assert ((frame["ci_low"] <= frame["score"]) & (frame["score"] <= frame["ci_high"])).all()

    def test_mistakes(self):
        own, model, batch = autoencoder("gpt2", "resid_pre"), load("gpt2"), pairs()
        with pytest.raises(MetricError, match="no gradient"):
            rank_features(model, own, batch, metric="accuracy")
        with pytest.raises(ConfigError, match="steps=0"):
            rank_features(model, own, batch, steps=0)
        with pytest.raises(UnknownNameError, match="unknown end 'middle'"):
            rank_features(model, own, batch, at="middle")


class TestReading:
    def test_entries_are_the_active_features(self):
        model, own, batch = load("gpt2"), autoencoder("gpt2", "neuron"), pairs()
        found = features(model, own, batch.clean)
        dense = own.encode(value_at("gpt2", batch.clean, "neuron", 0)).numpy()
        rebuilt = np.zeros_like(dense)
        rebuilt[found.prompt, found.position, found.feature] = found.value
        np.testing.assert_allclose(rebuilt, dense, atol=1e-10)
        order = np.argsort(-dense[2, 5])
        assert [each.feature for each in found.active(5, 3, prompt=2)] == list(order[:3])
        assert found.active(-3, prompt=2) == found.active(5, prompt=2)
        np.testing.assert_allclose(found.of(4, prompt=1), dense[1, :, 4], atol=1e-10)
        assert found.strongest(1)[0].value == pytest.approx(dense.max())

    def test_texts_of_several_lengths_keep_their_order(self):
        model, own = load("gpt2"), autoencoder("gpt2", "resid_pre")
        texts = ["hello world", "John left", "hello, John and Mary left."]
        found = features(model, own, texts)
        for number, text in enumerate(texts):
            alone = features(model, own, text)
            assert alone.tokens == (found.tokens[number],)
            here = found.prompt == number
            assert list(found.feature[here]) == list(alone.feature)
            np.testing.assert_allclose(found.value[here], alone.value, atol=1e-10)
        frame = found.to_frame()
        assert list(frame.columns) == ["prompt", "position", "token", "feature", "activation"]
        assert len(frame) == len(found)
        assert found.plot(4, prompt=2, first=1).axes
        assert all(found.of(each.feature, 2)[1:].max() > 0 for each in found.strongest(9, 2, first=1))

    def test_mistakes(self):
        model, own = load("gpt2"), autoencoder("gpt2", "resid_pre")
        found = features(model, own, "hello")
        for call, said in [
            (lambda: found.active(99), "position 99 is out of range: prompt 0 has"),
            (lambda: found.active(0, prompt=1), "prompt 1 is out of range"),
            (lambda: found.of(WIDTH), "feature 12 is out of range"),
            (lambda: features(model, own, ""), "text 0 is empty"),
            (lambda: features(model, own, []), "the list of texts is empty"),
        ]:
            with pytest.raises(ConfigError, match=said):
                call()
        with pytest.raises(TokenError, match=r"text 0, .*, has \d+ tokens, but the context holds 64"):
            features(model, own, "hello " * 200)
        with as_users_run_it(), pytest.raises(ConfigError, match="whole numbers"):
            features(model, own, torch.zeros(2, 3))


class TestQuality:
    def test_by_hand(self):
        model, own, batch = load("gpt2"), autoencoder("gpt2", "mlp_out", 1), pairs()
        found = quality(model, own, batch.clean)
        x = value_at("gpt2", batch.clean, "mlp_out", 1)
        inner = x[:, 1:].flatten(0, 1)
        dense, made = own.encode(inner), own.reconstruct(inner)
        assert found.n_tokens == len(inner)
        assert found.l0 == pytest.approx(float((dense > 0).sum(1).double().mean()))
        assert found.n_alive == int((dense > 0).any(0).sum())
        spread = ((inner - inner.mean(0)) ** 2).sum()
        assert found.explained_variance == pytest.approx(float(1 - ((inner - made) ** 2).sum() / spread))
        deltas = {"loss": 0 * x, "loss_spliced": own.reconstruct(x) - x, "loss_zero": -x}
        for name, delta in deltas.items():
            delta = delta.clone()
            delta[:, 0] = 0
            logits = run_with("gpt2", batch.clean, "mlp_out", 1, delta)[:, 1:-1]
            expected = cross_entropy(logits.flatten(0, 1), batch.clean[:, 2:].flatten())
            assert getattr(found, name) == pytest.approx(float(expected), abs=1e-8), name
        assert found.loss_with_error == pytest.approx(found.loss, abs=1e-10)
        share = (found.loss_zero - found.loss_spliced) / (found.loss_zero - found.loss)
        assert found.to_record()["loss_recovered"] == pytest.approx(share)

    def test_the_first_tokens_can_be_counted(self):
        model, own, batch = load("gpt2"), autoencoder("gpt2", "mlp_out", 1), pairs()
        assert quality(model, own, batch.clean, keep_first=0).n_tokens == batch.clean.numel()
        with pytest.raises(ConfigError, match="negative"):
            quality(model, own, batch.clean, keep_first=-1)
        with pytest.raises(ConfigError, match="none to predict"):
            quality(model, own, batch.clean[:, :2])


class TestAttached:
    def test_an_edit_is_the_sweeps_delta(self):
        """Clean values of one feature, set by an edit with the error term, are a cell of the sweep."""
        model, own, batch = load("gpt2"), autoencoder("gpt2", "resid_pre", 1), pairs()
        clean = own.encode(value_at("gpt2", batch.clean, "resid_pre", 1))

        def edit(values: torch.Tensor) -> torch.Tensor:
            return torch.cat([values[..., :4], clean[..., 4:5], values[..., 5:]], -1)

        with attached(model, own, edit=edit, keep_first=0), torch.no_grad():
            found = logit_diff(model.bridge(batch.corrupt), batch)
        grid = sweep_features(model, own, batch, features=[4], axis="all")
        np.testing.assert_allclose(found.numpy(), grid.per_example[0, 0], atol=1e-9)
        assert not np.allclose(found.numpy(), grid.corrupt)

    def test_nothing_is_left_behind(self):
        model, batch = fresh("gpt2"), pairs()
        made = [autoencoder("gpt2", site) for site in SITES]
        before, around = snapshot(model), process()
        for own in made:
            with as_users_run_it():  # the check of types draws from the global generator
                with attached(model, own, error=False):
                    model.bridge(batch.clean)
                with pytest.raises(RuntimeError, match="broken"), attached(model, own, edit=broken):
                    model.bridge(batch.clean)
                sweep_features(model, own, batch, features=[0, 1])
                rank_features(model, own, batch, steps=2)
                quality(model, own, batch.clean)
        assert changed_since(before, snapshot(model)) == []
        assert changed_since(around, process()) == []


def broken(values: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("broken")
