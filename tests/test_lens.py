"""The logit lens: every point of the stream read as the model would read it, and the likeliest tokens there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import NATIVE, load, logit_diff, mixed_pairs, pairs

from circuitlab import (
    ConfigError,
    TokenError,
    UnknownNameError,
    direct_attribution,
    lens_tokens,
    logit_lens,
    recovery,
    score_edges,
)
from circuitlab.attribution.lens import points_of
from circuitlab.metrics import resolve

NAMES = ("gpt2", "llama", "neox", "gemma2", "granite", *NATIVE)


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_at_the_models_own_value(name):
    model, batch = load(name), pairs()
    for run, prompts in (("clean", batch.clean), ("corrupt", batch.corrupt)):
        expected = logit_diff(model.whole_logits(prompts), batch).numpy()
        assert np.abs(logit_lens(model, batch, run=run).per_example[-1] - expected).max() < 1e-10


def test_every_point_is_the_stream_there_behind_the_final_norm():
    """By TransformerLens's own hooks, modules called by hand."""
    model, batch = load("gpt2"), pairs()
    bridge = model.bridge
    _, cache = bridge.run_with_cache(batch.clean)
    streams = [cache["blocks.0.hook_resid_pre"]]
    for layer in range(2):
        streams += [
            cache[f"blocks.{layer}.hook_resid_pre"] + cache[f"blocks.{layer}.hook_attn_out"],
            cache[f"blocks.{layer}.hook_resid_post"],
        ]
    found = logit_lens(model, batch)
    for ours, stream in zip(found.per_example, streams, strict=True):
        logits = bridge.unembed(bridge.ln_final(stream))
        assert np.abs(ours - logit_diff(logits, batch).detach().numpy()).max() < 1e-10
    assert found.labels == ("embedding", "attention 0", "block 0", "attention 1", "block 1")
    # The twin: read without the norm it is another number.
    bare = logit_diff(bridge.unembed(streams[1]), batch).detach().numpy()
    assert np.abs(found.per_example[1] - bare).max() > 0.01


def test_blocks_without_a_half_have_one_point():
    assert [point.site for point in points_of(load("neox").spec)] == ["resid_pre", "resid_post", "resid_post"]
    assert [point.site for point in points_of(load("attn-only").spec)] == ["resid_pre", "resid_post", "resid_post"]
    assert len(points_of(load("solu").spec)) == 5


@pytest.mark.parametrize("name", ["gpt2", "neox", "solu"])
def test_with_the_scale_frozen_its_steps_are_the_direct_attribution(name):
    model = load(name)
    frozen, parts = logit_lens(model, pairs(), norm="frozen"), direct_attribution(model, pairs())
    steps = np.diff(frozen.per_example, axis=0)
    if model.spec.parallel:
        expected = [parts.per_example[[parts.names.index(f"{k}{layer}") for k in "am"]].sum(0) for layer in range(2)]
    else:
        expected = [parts.per_example[parts.names.index(f"{k}{layer}")] for layer in range(2) for k in "am"]
    assert np.abs(steps - np.stack(expected)).max() < 1e-10
    own = logit_lens(model, pairs())
    assert np.abs(own.per_example[-1] - frozen.per_example[-1]).max() < 1e-10
    assert np.abs(own.per_example[1] - frozen.per_example[1]).max() > 0.01


@pytest.mark.parametrize("metric", ["prob_diff", "log_prob", "accuracy", "rank", "kl"])
def test_it_takes_any_metric(metric):
    model, batch = load("gpt2"), pairs()
    rows = torch.arange(len(batch))
    clean, corrupt = (model.whole_logits(t)[rows, batch.answer_at] for t in (batch.clean, batch.corrupt))
    judged = batch.with_reference(clean)
    for run, logits in (("clean", clean), ("corrupt", corrupt)):
        expected = resolve(metric)(logits, judged).numpy()
        assert np.abs(logit_lens(model, batch, metric, run=run).per_example[-1] - expected).max() < 1e-10


def test_prompts_of_several_lengths_stand_in_their_order():
    model, mixed = load("gpt2"), mixed_pairs()
    found = logit_lens(model, mixed, "logit")
    for number, pair in enumerate(mixed):
        logits = model.whole_logits(torch.tensor([pair.clean_ids]))[0, -1]
        assert found.per_example[-1, number] == pytest.approx(float(logits[pair.answer_ids[0]]), abs=1e-10)


def test_its_table_and_figure():
    found = logit_lens(load("gpt2"), pairs())
    frame = found.to_frame()
    assert list(frame.columns) == ["layer", "site", "after", "value", "ci_low", "ci_high", "n"]
    assert list(frame["value"]) == list(found.values)
    axes = found.plot().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(found.labels)
    assert any(np.array_equal(line.get_ydata(), found.values) for line in axes.lines)


def test_the_tokens_of_one_prompt(bundled):
    text = "Mary is a really great friend."
    found = lens_tokens(bundled, text, k=3)
    logits = bundled.whole_logits(torch.tensor([bundled.text.encode(text).ids]))[0]
    top = logits.softmax(-1).topk(3)
    assert found.ids[-1].tolist() == top.indices.tolist()
    assert np.abs(found.probabilities[-1] - top.values.numpy()).max() < 1e-5
    assert found.words[-1][-1][0] == " She"
    assert len(found.to_frame()) == 9 * 8 * 3
    assert found.at().loc["block 3", 0].startswith("' She'")
    # The twin: at the start of the stream the model says something else.
    assert found.words[0][-1][0] != " She"
    shown = {text.get_text() for text in found.plot().axes[0].texts}
    assert "␣She" in shown


def test_tokens_of_a_model_without_tokenizer_are_numbers():
    found = lens_tokens(load("solu"), torch.tensor([1, 2, 3]), k=2)
    assert found.tokens == ("1", "2", "3")
    assert found.words[-1][-1][0] == str(found.ids[-1, -1, 0])


def test_mistakes_are_told(bundled):
    model = load("gpt2")
    with pytest.raises(UnknownNameError, match="unknown norm 'final'.*applied, frozen"):
        logit_lens(model, pairs(), norm="final")
    with pytest.raises(UnknownNameError, match="unknown run 'both'"):
        logit_lens(model, pairs(), run="both")
    with pytest.raises(ConfigError, match="'kl' is no weighted sum"):
        logit_lens(model, pairs(), "kl", norm="frozen")
    with pytest.raises(ConfigError, match="k is 0"):
        lens_tokens(bundled, "John", k=0)
    with pytest.raises(ConfigError, match="the prompt has no token"):
        lens_tokens(bundled, torch.zeros(0, dtype=torch.long))
    with pytest.raises(TokenError, match="has 5,002 tokens, but the context holds 256"):
        lens_tokens(bundled, "John " * 5000)
    with pytest.raises(ConfigError, match="one row of token ids; got"):
        lens_tokens(model, torch.zeros(2, 3, dtype=torch.long))


def test_the_record_can_be_drawn_for_another_run():
    found = logit_lens(load("gpt2"), pairs(), run="corrupt", norm="frozen")
    title = found.plot().axes[0].get_title(loc="left")
    assert title == "Stream so far, final norm's scale frozen, corrupt prompts"
    assert replace(found, norm="applied").plot().axes[0].get_title(loc="left") == "Logit lens, corrupt prompts"


def test_the_former_names_work_and_say_so():
    model, batch = load("gpt2"), pairs()
    with pytest.warns(FutureWarning, match=r"logit_lens\(\): norm='own' is now called 'applied'") as warned:
        former = logit_lens(model, batch, norm="own")
    assert warned[0].filename == __file__
    assert (former.norm, former.per_example.tolist()) == ("applied", logit_lens(model, batch).per_example.tolist())
    with pytest.raises(UnknownNameError, match="unknown norm 'none'. Allowed: applied, frozen"):
        logit_lens(model, batch, norm="none")
    scores = score_edges(model, batch, "eap")
    truth = scores.top(5)
    with pytest.warns(FutureWarning, match=r"recovery\(\): floor= is now called tolerance="):
        found = recovery(scores.spec, scores.values, truth, floor=0.5)  # pyright: ignore[reportCallIssue]
    assert found == recovery(scores.spec, scores.values, truth, tolerance=0.5)
    assert found != recovery(scores.spec, scores.values, truth)
