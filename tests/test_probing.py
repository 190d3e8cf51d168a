"""Probing neurons, each number against an independent way: plain hooks on whole passes, autograd, slow loops, scipy."""

import itertools

import numpy as np
import pytest
import torch
from architectures import D_VOCAB, as_users_run_it, fresh, load
from jaxtyping import TypeCheckError

from circuitlab import ConfigError, ModelError, TokenError, UnknownNameError, UnsupportedModelError
from circuitlab.models.anatomy import norm_inside
from circuitlab.neurons import ablation_effect, noise_sensitivity, norm_ratios, optimise_prompts, outliers, simplify
from circuitlab.neurons.chosen import front_of
from circuitlab.neurons.prompt_space import Vocabulary
from circuitlab.patching.runs.neuron_values import neuron_values
from circuitlab.stats import group_difference

# Largest difference to an independent way, in float64; some models norm, rotate or take softmaxes in float32.
CLOSE = {"gpt2": 1e-9, "solu": 1e-9, "native": 1e-9, "neox": 1e-4, "llama": 1e-4, "gemma2": 1e-4}
by_model = pytest.mark.parametrize("name", ["gpt2", "solu", "neox", "llama", "gemma2"])


def prompt(n: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, D_VOCAB, (n,), generator=torch.Generator().manual_seed(seed))


def whole(model, tokens, module=None, change=None, takes="output"):
    """Logits of a whole pass in which a module's tensor is changed by a plain hook; and that tensor as it was."""
    seen, handles = [], []

    def on_output(_m, _a, out):
        seen.append(out.detach())
        return None if change is None else change(out.clone())

    def on_input(_m, args):
        seen.append(args[0].detach())
        return None if change is None else (change(args[0].clone()), *args[1:])

    if module is not None:
        hook = module.register_forward_hook(on_output) if takes == "output" else None
        handles.append(hook or module.register_forward_pre_hook(on_input))
    try:
        with torch.no_grad():
            return model.bridge(tokens, return_type="logits"), (seen[0] if seen else None)
    finally:
        for handle in handles:
            handle.remove()


def last_activation(model, tokens, layer, neuron) -> float:
    return float(
        whole(model, tokens[None], model.bridge.blocks[layer].mlp.out.hook_in)[1].reshape(len(tokens), -1)[-1, neuron]
    )


@by_model
def test_small_noise_is_the_gradient_along_it(name):
    model, tokens = load(name), prompt()
    start = model.embedding(tokens[None]).requires_grad_()
    value = neuron_values(model, tokens[None], 1, neurons=[5], start=start)[0, -1, 0]
    slope = torch.autograd.grad(value, start)[0][0]
    found = noise_sensitivity(model, tokens, 1, 5, scale=1e-4, n_samples=3, seed=4)
    noise = torch.randn(3, model.spec.d_model, generator=torch.Generator().manual_seed(4)).double()
    wanted = (slope @ noise.T).numpy()
    reach = np.abs(wanted).max()
    assert np.abs(found.changes / found.noise_std - wanted).max() < 0.02 * reach
    assert np.abs(found.changes / found.noise_std - wanted[::-1]).max() > 0.1 * reach  # another token's gradient
    assert np.abs(found.changes / found.noise_std + wanted).max() > 0.1 * reach  # the other sign
    assert found.activation == pytest.approx(last_activation(model, tokens, 1, 5), abs=1e-4)


def test_noise_statistics_and_packs():
    model, tokens = load("gpt2"), prompt()
    found = noise_sensitivity(model, tokens, 1, 5, n_samples=6)
    small = noise_sensitivity(model, tokens, 1, 5, n_samples=6, budget=200_000)
    np.testing.assert_allclose(found.changes, small.changes, atol=1e-10)
    np.testing.assert_allclose(found.mean, found.changes.mean(1))
    np.testing.assert_allclose(found.standard_error, found.changes.std(1, ddof=1) / 6**0.5)
    np.testing.assert_allclose(found.size**2, found.mean**2 + found.changes.var(1))
    assert not np.allclose(found.changes, noise_sensitivity(model, tokens, 1, 5, n_samples=6, seed=1).changes)
    assert np.isnan(noise_sensitivity(model, tokens, 1, 5, n_samples=1).standard_error).all()
    assert list(found.coloured().to_frame()["value"][: len(tokens)]) == list(found.mean)


@by_model
def test_simplification_is_the_slow_loop(name):
    model, tokens = load(name), prompt()
    front = len(front_of(model))  # what must stay: GPT-NeoX is run without a token in front, "solu" has no tokenizer
    ids = torch.cat([torch.tensor(front_of(model), dtype=torch.long), tokens])
    found = simplify(model, ids, 1, 5, keep=2)
    left, spreads = ids.tolist(), []
    for step in found.steps[1:]:
        values = {}
        for at in range(front, len(left) - 1):
            values[at] = last_activation(model, torch.tensor(left[:at] + left[at + 1 :]), 1, 5)
        # Two deletions may leave values that differ by rounding alone.
        assert values[step.deleted_at] >= max(values.values()) - CLOSE[name]
        assert step.activation == pytest.approx(values[step.deleted_at], abs=CLOSE[name])
        spreads.append(max(values.values()) - min(values.values()))
        left.pop(step.deleted_at)
        assert step.tokens.ids == tuple(left)
    assert max(spreads) > 10 * CLOSE[name]  # other deletions would have left less
    assert len(left) == front + 2
    assert left[-1] == ids[-1]


def test_simplification_stops_where_it_is_told(bundled):
    text = "Victoria is a really great friend. She is such a good cook"
    whole_way, part = simplify(bundled, text, 2, 192), simplify(bundled, text, 2, 192, until=0.7)
    assert len(whole_way.steps[-1].tokens) == 2  # the beginning of the sequence and the last token
    assert whole_way.steps[-1].tokens.words[0] == "<|bos|>"
    assert part.steps == whole_way.steps[: len(part.steps)]
    after = whole_way.steps[len(part.steps)].activation / part.steps[0].activation
    assert part.share[-1] >= 0.7 > after
    assert whole_way.shortest(0.7) == next(
        s for s in reversed(whole_way.steps) if s.activation >= 0.7 * part.steps[0].activation
    )
    record = whole_way.to_record()["steps"]
    assert record[0]["deleted"] is None
    assert record[1]["deleted"] == whole_way.steps[1].deleted


@by_model
def test_ablation_is_a_whole_pass_with_hooks(name):
    model = load(name)
    texts = [prompt(7, 1), prompt(5, 2), prompt(7, 3)]
    found = ablation_effect(model, texts, {0: [3, 8], 1: [5]}, value=0.5)
    other = ablation_effect(model, texts, {0: [4, 8], 1: [5]}, value=0.5)

    def held(neurons):
        def change(hidden):
            hidden[..., neurons] = 0.5
            return hidden

        return change

    for text, tokens, wrong in zip(found.texts, texts, other.texts, strict=True):
        clean = whole(model, tokens[None])[0].log_softmax(-1)[0]
        first = model.bridge.blocks[0].mlp.out.hook_in.register_forward_hook(
            lambda _m, _a, out: held([3, 8])(out.clone())
        )
        try:
            ablated = whole(model, tokens[None], model.bridge.blocks[1].mlp.out.hook_in, held([5]))[0].log_softmax(-1)[
                0
            ]
        finally:
            first.remove()
        at = torch.arange(len(tokens) - 1)
        wanted = (ablated - clean)[at, tokens[1:]].double().numpy()
        np.testing.assert_allclose(text.log_prob[1:], clean[at, tokens[1:]].double().numpy(), atol=10 * CLOSE[name])
        np.testing.assert_allclose(text.change[1:], wanted, atol=10 * CLOSE[name])
        assert np.abs(wrong.change[1:] - wanted).max() > 1e-3
        assert np.isnan(text.change[0])
        largest = (ablated - clean).abs().max(-1).values.double().numpy()
        np.testing.assert_allclose(np.abs(text.most_change), largest, atol=10 * CLOSE[name])
    assert found.mean_change == pytest.approx(np.concatenate([t.change[1:] for t in found.texts]).mean())


def test_the_mean_is_over_the_reference():
    model, texts = load("gpt2"), [prompt(7, 1), prompt(5, 2)]
    values = torch.cat([neuron_values(model, t[None], 1, neurons=[5])[0] for t in texts])
    by_mean = ablation_effect(model, texts, [5], layer=1, value="mean")
    by_hand = ablation_effect(model, texts, [5], layer=1, value=float(values.mean()))
    np.testing.assert_allclose(by_mean.texts[0].change, by_hand.texts[0].change, atol=1e-9)
    elsewhere = ablation_effect(model, texts, [5], layer=1, value="mean", reference=[prompt(6, 9)])
    assert np.nanmax(np.abs(elsewhere.texts[0].change - by_mean.texts[0].change)) > 1e-4


@pytest.mark.parametrize(("name", "layer"), [("solu", 0), ("solu", 1), ("gpt2", 0), ("neox", 0), ("gemma2", 1)])
def test_outliers_are_whole_passes_with_one_position_zeroed(name, layer):
    model, prompts = load(name), [prompt(6, 1), prompt(4, 2)]
    found = outliers(model, prompts, layer)
    block = model.bridge.blocks[layer]
    place = norm_inside(block) or block.mlp.out.hook_in
    takes = "input" if norm_inside(block) is not None else "output"
    assert found.has_norm == (name == "solu")
    for one, tokens in zip(found.prompts, prompts, strict=True):
        logits, hidden = whole(model, tokens[None], place, takes=takes)
        losses = -logits[0, :-1].log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:]].double()
        hidden = hidden.reshape(len(tokens), -1)
        np.testing.assert_allclose(
            one.outlier_score, (hidden.max(-1).values - hidden.mean(-1)).double(), atol=CLOSE[name]
        )
        assert one.loss == pytest.approx(float(losses.mean()), abs=10 * CLOSE[name])
        for at in range(len(tokens)):

            def zero(values, at=at):
                values[..., at, :] = 0.0
                return values

            ablated = whole(model, tokens[None], place, zero, takes)[0]
            new = -ablated[0, :-1].log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:]].double()
            np.testing.assert_allclose(one.losses[at, 1:], (new - losses).numpy(), atol=10 * CLOSE[name])
            assert one.ablation_loss[at] == pytest.approx(float(new.mean() - losses.mean()), abs=10 * CLOSE[name])
        assert one.ablation_loss[-1] == 0
        assert np.abs(one.losses[0, 1:] - one.losses[1, 1:]).max() > 1e-3  # another position is another number
        np.testing.assert_allclose(one.combination, one.ablation_loss / one.outlier_score)
    table = found.to_frame()
    assert len(table) == 10
    assert list(table["combination"]) == sorted(table["combination"], reverse=True)


def test_ratios_behind_and_before_the_inner_norm():
    model = load("solu")
    found = outliers(model, [prompt(8, seed) for seed in range(5)], 1)
    ratios = norm_ratios(found, n=6, seed=3)
    for group in (ratios.top, ratios.control):
        for row in group.to_dict("records"):
            one = found.prompts[row["prompt"]]
            normed = neuron_values(model, torch.tensor([one.tokens.ids]), 1)[0, row["position"]]
            assert row["after"] == pytest.approx(float(normed.max() - normed.mean()))
            assert row["ratio"] == pytest.approx(row["after"] / row["before"])
    places = [set(zip(g["prompt"], g["position"], strict=True)) for g in (ratios.top, ratios.control)]
    assert not places[0] & places[1]
    assert ratios.difference.difference == pytest.approx(ratios.top["ratio"].mean() - ratios.control["ratio"].mean())
    assert norm_ratios(found, n=6, seed=3).control.equals(ratios.control)
    assert not norm_ratios(found, n=6, seed=4).control.equals(ratios.control)


def test_the_test_of_a_difference_is_scipys():
    from scipy.stats import brunnermunzel, mannwhitneyu, permutation_test, ttest_ind

    def welch(a, b):
        return (a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))

    rng = np.random.default_rng(0)
    for shift, differs in ((0.0, False), (3.0, True)):
        one, two = rng.normal(shift, 1, 7), rng.normal(0, 1, 6)
        found = group_difference(one, two, seed=0)
        exact = permutation_test(
            (one, two), lambda a, b: abs(welch(a, b)), n_resamples=np.inf, alternative="greater"
        ).pvalue
        larger = max(exact, ttest_ind(one, two, equal_var=False).pvalue)
        assert found.permutation_p == pytest.approx(larger, abs=0.02)
        assert differs or found.u_p >= brunnermunzel(one, two).pvalue  # NaN where the groups do not overlap
        assert (found.permutation_p < 0.05) == differs == (found.u_p < 0.05)
        assert found.u == mannwhitneyu(one, two).statistic
        pairs = [np.sign(a - b) for a, b in itertools.product(one, two)]
        assert found.rank_biserial == pytest.approx(np.mean(pairs))
    assert group_difference(np.ones(4), np.ones(4), seed=0).permutation_p == 1


SEARCH = {"n_prompts": 3, "n_tokens": 5, "steps": 25}


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "solu"])
def test_searched_prompts_are_what_they_say(name):
    model = load(name)
    found = optimise_prompts(model, 1, 5, **SEARCH)
    again = optimise_prompts(model, 1, 5, **SEARCH)
    assert found.prompts == again.prompts
    assert optimise_prompts(model, 1, 5, **{**SEARCH, "seed": 1}).prompts != found.prompts
    assert len({one.tokens.ids for one in found.prompts}) == 3
    values = [one.value for one in found.prompts]
    assert values == sorted(values, reverse=True)
    for one in found.prompts:
        assert one.value == pytest.approx(last_activation(model, torch.tensor(one.tokens.ids), 1, 5), abs=1e-4)
    assert found.baseline.n == found.n_evaluated == 2 * found.hard.size
    assert values[0] == pytest.approx(found.hard.max(), abs=1e-5)
    worse = optimise_prompts(model, 1, 5, **SEARCH, direction="min")
    assert worse.best.value < found.baseline.mean < found.best.value


def test_a_vector_on_a_token_is_that_token():
    """The searched vectors are in the units in which the model's embedding works, a factor of it (Gemma's) included."""
    for name in ("gpt2", "gemma2"):
        model = load(name)
        vocabulary = Vocabulary.of(model)
        assert torch.equal(vocabulary.nearest(3 * vocabulary.vectors), torch.arange(len(vocabulary.ids)))
        streams = model.embedding(vocabulary.ids[[3, 7], None])[:, 0].float()
        wanted = vocabulary.vectors[3] - vocabulary.vectors[7]
        assert torch.allclose(streams[0] - streams[1], wanted, atol=1e-4)
        assert 0 not in vocabulary.ids  # the special token


def test_fixed_words_stay_and_special_tokens_stay_out(bundled):
    found = optimise_prompts(bundled, 3, 141, **SEARCH, fixed={0: "Mark", -1: " friend"})
    special = {0, 1, 2}
    for one in found.prompts:
        assert one.tokens.words[1] == "Mark"
        assert one.tokens.words[-1] == " friend"
        assert one.tokens.ids[0] == 0
        assert not special & set(one.tokens.ids[1:])
    assert all(text.startswith("Mark") and text.endswith(" friend") for text in found.trace["text"])


def test_patience_ends_a_search(bundled):
    found = optimise_prompts(bundled, 3, 141, n_prompts=1, n_tokens=1, fixed={}, steps=200, patience=3)
    assert len(found.hard) < 200
    assert found.hard[-3:].max() <= found.best.value


NO_NEURON = r"MLP 0 of model 'bundled' has neurons 0 to 511; got {}\."
MISTAKES = [
    (lambda m: noise_sensitivity(m, "Mark", 9, 0), ConfigError, r"model 'bundled' has layers 0 to 3; got \[9\]\."),
    (
        lambda m: noise_sensitivity(m, "Mark", 0, 512),
        ConfigError,
        NO_NEURON.format(r"\[512\]"),
    ),
    (lambda m: noise_sensitivity(m, "", 0, 0), ConfigError, "empty"),
    (lambda m: noise_sensitivity(m, "word " * 300, 0, 0), TokenError, "the context holds 256"),
    (lambda m: noise_sensitivity(m, "Mark", 0, 0, scale=0.0), ConfigError, "above 0"),
    (lambda m: noise_sensitivity(m, "Mark", 0, 0, n_samples=0), ConfigError, "n_samples is 0"),
    (lambda m: noise_sensitivity(m, torch.tensor([5000]), 0, 0), TokenError, "holds the token 5000"),
    (lambda m: simplify(m, "Mark is", 0, 0, keep=0), ConfigError, "keep is 0"),
    (lambda m: simplify(m, "Mark is", 0, 0, until=-1.0), ConfigError, "until is -1"),
    (lambda m: ablation_effect(m, [], {0: [1]}), ConfigError, "list of texts is empty"),
    (lambda m: ablation_effect(m, ["Mark", ""], {0: [1]}), ConfigError, "text 1 is empty"),
    (lambda m: ablation_effect(m, ["Mark"], {}), ConfigError, "no neurons are given"),
    (
        lambda m: ablation_effect(m, ["Mark"], {0: []}),
        ConfigError,
        NO_NEURON.format("none"),
    ),
    (lambda m: ablation_effect(m, ["Mark"], [1]), ConfigError, "of which layer"),
    (lambda m: ablation_effect(m, ["Mark"], {0: [1]}, layer=0), ConfigError, "by layer already"),
    (lambda m: ablation_effect(m, ["Mark"], {0: [1]}, value="median"), ConfigError, "'zero', at their 'mean'"),
    (lambda m: ablation_effect(m, ["Mark"], {0: [1]}, reference=["He"]), ConfigError, "reference= is for"),
    (lambda m: outliers(m, [], 0), ConfigError, "list of texts is empty"),
    (lambda m: norm_ratios(outliers(m, ["Mark is a friend."], 0)), ConfigError, "every ratio is 1.*solu-1l"),
    (lambda m: optimise_prompts(m, 0, 0, n_tokens=0), ConfigError, "n_tokens is 0"),
    (lambda m: optimise_prompts(m, 0, 0, n_tokens=256), TokenError, "the context holds 256"),
    (lambda m: optimise_prompts(m, 0, 0, fixed={0: "Mark is"}), TokenError, "'Mark is' is 2 tokens"),
    (lambda m: optimise_prompts(m, 0, 0, fixed={8: "Mark"}), ConfigError, "fixed at 8"),
    (lambda m: optimise_prompts(m, 0, 0, n_tokens=1, fixed={0: "Mark"}), ConfigError, "nothing to search for"),
    (lambda m: optimise_prompts(m, 0, 0, direction="up"), UnknownNameError, "unknown direction 'up'"),
]


@pytest.mark.parametrize(("ask", "error", "message"), MISTAKES)
def test_mistakes_are_told(bundled, ask, error, message):
    with pytest.raises(error, match=message):
        ask(bundled)


def test_models_that_cannot_be_asked():
    with pytest.raises(UnsupportedModelError, match="has no MLPs, so that it has no neurons"):
        outliers(load("attn-only"), [prompt()])
    with pytest.raises(ModelError, match="no tokenizer"):
        noise_sensitivity(load("native"), "hello", 0, 0)
    with pytest.raises((ConfigError, TypeCheckError), match=r".*"):
        outliers(load("native"), "hello")


def test_nothing_is_left_behind():
    from test_hygiene import differences, process, snapshot

    model, tokens = fresh("gpt2"), prompt()
    before = {**snapshot(model), **process()}
    with as_users_run_it():  # the type checks of the tests draw from Python's own generator
        noise_sensitivity(model, tokens, 1, 5, n_samples=2)
        simplify(model, tokens, 1, 5)
        ablation_effect(model, [tokens], {0: [3]}, value="mean")
        outliers(model, [tokens], 0)
        optimise_prompts(model, 1, 5, **SEARCH)
    assert differences(before, {**snapshot(model), **process()}) == []
