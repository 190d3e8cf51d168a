"""Predictions against the whole model's own forward pass and HuggingFace's greedy generation."""

import json
import math
from pathlib import Path

import architectures
import numpy as np
import pytest
import torch

from circuitlab import errors
from circuitlab.predictions import streams
from circuitlab.predictions.log_probs import text_log_probs
from circuitlab.predictions.next_token import continue_text, predict

CHAIN = "Jill threw the ball to Jack. Jack threw the ball to Will. Will threw the ball back to"
TEXTS = (CHAIN, "<h1>Title</", "<ul>\n  <li>Été</li>\n</ul>", "Anna is a very good friend")
CHECKPOINTS = [name for name in architectures.ARCHITECTURES if name not in architectures.NATIVE]


def by_hand(model, text: str) -> torch.Tensor:
    """Logits of the model's own pass over one text alone, in float64."""
    return model.whole_logits(torch.tensor([model.text.encode(text).ids]))[0].double()


@pytest.mark.parametrize("text", TEXTS)
def test_answers_and_top_are_those_of_the_softmax(bundled, text):
    word = bundled.text.decode((int(by_hand(bundled, text)[-1].argmax()),))[0]
    found = predict(bundled, text, k=5)
    logits = by_hand(bundled, text)[-1]
    probabilities = torch.exp(logits) / torch.exp(logits).sum()
    order = sorted(range(len(logits)), key=lambda i: -float(logits[i]))
    assert [one.id for one in found.top] == order[:5]
    assert [one.rank for one in found.top] == list(range(5))
    for one in found.top:
        assert one.logit == pytest.approx(float(logits[one.id]), abs=1e-4)
        assert one.probability == pytest.approx(float(probabilities[one.id]), abs=1e-5)
        assert one.log_prob == pytest.approx(math.log(probabilities[one.id]), abs=1e-4)
    assert found.top[0].token == word


def test_an_answer_is_told_whatever_its_place(bundled):
    found = predict(bundled, CHAIN, [" Jack", " Jill"], k=0)
    logits = by_hand(bundled, CHAIN)[-1]
    assert found.top == ()
    assert [one.token for one in found.answers] == [" Jack", " Jill"]
    for one in found.answers:
        assert one.rank == sorted(logits.tolist(), reverse=True).index(float(logits[one.id]))
    assert found.answers[1].rank == 0
    assert found.answers[0].rank > 0
    assert found.to_frame().columns.tolist() == ["kind", "token", "id", "rank", "logit", "log_prob", "probability"]


def test_the_name_that_started_the_chain_is_expected_and_another_start_changes_it(bundled):
    """N5, and its twin: with the names of start and distractor exchanged the answer is exchanged."""
    assert predict(bundled, CHAIN).top[0].token == " Jill"
    swapped = CHAIN.replace("Jill", "Mark", 1)
    assert predict(bundled, swapped).top[0].token == " Mark"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_texts_of_several_lengths_give_what_each_gives_alone(name):
    model = architectures.load(name)
    texts = ("hello", "hello world John Mary left.", "He she ;")
    together = predict(model, texts, k=3)
    likely = text_log_probs(model, texts)
    for text, one, log_probs in zip(texts, together, likely, strict=True):
        logits = by_hand(model, text)
        assert one.top[0].id == int(logits[-1].argmax())
        assert one.top[0].logit == pytest.approx(float(logits[-1].max()), abs=10 * architectures.TOLERANCE[name])
        ids = torch.tensor(log_probs.ids)
        expected = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        assert np.allclose(log_probs.log_probs[1:], expected, atol=10 * architectures.TOLERANCE[name])


@pytest.mark.parametrize("text", TEXTS)
def test_log_probabilities_are_those_of_the_softmax(bundled, text, monkeypatch):
    monkeypatch.setattr(streams, "LOGITS_AT_ONCE", 1408 * 3)  # three positions at a time
    found = text_log_probs(bundled, text)
    ids = torch.tensor(bundled.text.encode(text).ids)
    log_probs = by_hand(bundled, text).log_softmax(-1)
    expected = log_probs[torch.arange(len(ids) - 1), ids[1:]]
    assert math.isnan(found.log_probs[0])
    assert found.ranks[0] == -1
    assert np.allclose(found.log_probs[1:], expected, atol=1e-4)
    assert not np.allclose(found.log_probs[1:], log_probs[torch.arange(len(ids) - 1), ids[:-1]], atol=1e-2)  # twin
    assert found.ranks[1:].tolist() == [int((row > row[i]).sum()) for row, i in zip(log_probs, ids[1:], strict=False)]
    assert found.total == pytest.approx(float(expected.sum()), abs=1e-3)
    assert found.perplexity == pytest.approx(float(torch.exp(-expected.mean())), rel=1e-4)
    assert "".join(t for t in found.tokens[1:] if "[" not in t) == "".join(c for c in text if c.isascii())


def test_greedy_continuation_is_that_of_huggingface(bundled):
    from transformers import AutoModelForCausalLM

    import circuitlab

    folder = Path(circuitlab.__file__).parent / "bundled"
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    found = continue_text(bundled, TEXTS, 6)
    for text, one in zip(TEXTS, found, strict=True):
        ids = torch.tensor([bundled.text.encode(text).ids])
        with torch.no_grad():
            out = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6, min_new_tokens=6,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        assert one.ids == tuple(out[0, ids.shape[1] :].tolist())
        assert one.continued == bundled.text.joined(one.ids)
        assert one.log_probs[0] == pytest.approx(predict(bundled, text).top[0].log_prob, abs=1e-5)
    assert found[1].continued.startswith("h1>")


def test_a_continuation_may_fill_the_context_and_no_more(bundled):
    n_ctx = bundled.spec.n_ctx
    text = "<b>" * ((n_ctx - 2) // 3)
    used = len(bundled.text.encode(text).ids)
    assert len(continue_text(bundled, text, n_ctx - used + 1).ids) == n_ctx - used + 1
    with pytest.raises(errors.TokenError, match=rf"has {used} tokens and \d+ more .* the context holds {n_ctx}"):
        continue_text(bundled, text, n_ctx - used + 2)


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        (lambda m: predict(m, []), errors.ConfigError, "no text is given. Give one text, or a list of texts."),
        (lambda m: predict(m, ["a", 3]), errors.WrongTypeError, "predict(): text is ['a', 3], of type list;"),
        (lambda m: predict(m, "a", k=-1), errors.ConfigError, "k is -1; the vocabulary has 1,408 tokens, so take"),
        (lambda m: predict(m, "a", k=1409), errors.ConfigError, "k is 1409; the vocabulary has 1,408 tokens"),
        (lambda m: predict(m, ["a", "b"], " Jill"), errors.ConfigError, "2 texts need answers for each; got 1."),
        (lambda m: predict(m, "Hi", "Jillian"), errors.TokenError, "'Jillian' is not one token after the prompt 'Hi'"),
        (lambda m: predict(m, "a", ""), errors.TokenError, "'' is not one token after the prompt 'a'"),
        (lambda m: predict(m, "a b " * 200), errors.TokenError, "the text 'a b a b "),
        (lambda m: text_log_probs(m, ["a", "a b " * 200]), errors.TokenError, "the text 'a b a b "),
        (lambda m: continue_text(m, "a", 0), errors.ConfigError, "n is 0; a continuation has at least one token."),
    ],
)
def test_mistakes_are_told_before_the_model_runs(bundled, ask, error, text, monkeypatch):
    monkeypatch.setattr(type(bundled), "embedding", lambda *given: pytest.fail("the model ran"))
    with architectures.as_users_run_it(), pytest.raises(error) as told:
        ask(bundled)
    assert str(told.value).startswith(text)


def test_the_command_says_the_same_as_the_function(circuitlab, bundled, tmp_path):
    done = circuitlab(
        "predict", CHAIN, "--answer", " Jack", "-k", "2", "--continue", "2", "--html", str(tmp_path / "page.html"),
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["answers"][0]["rank"] == predict(bundled, CHAIN, " Jack").answers[0].rank
    assert [one["token"] for one in told["top"]] == [one.token for one in predict(bundled, CHAIN, k=2).top]
    assert told["continuation"]["continued"] == " Jill."
    assert told["log_probs"]["log_prob"][0] is None
    assert told["log_probs"]["rank"][0] == -1
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    again = circuitlab("predict", CHAIN, "--html", str(tmp_path / "page.html"))
    assert again.code == 2
    assert "exists. Name another with --html, or replace it with --force." in again.err
    neither = circuitlab("predict")
    assert neither.code == 2
    assert "give a text or --file" in neither.err
