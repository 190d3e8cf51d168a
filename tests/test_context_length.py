"""Prompts that a model cannot read are refused by every function, before anything runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from architectures import D_VOCAB, fresh, load, mixed_pairs, tokenizer

from circuitlab import (
    Example,
    PairBatch,
    Task,
    TokenError,
    attention,
    direct_attribution,
    discover,
    evaluate,
    load_model,
    logit_lens,
    path_patch,
    score_edges,
    select,
    sweep,
)
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError
from circuitlab.models.bridge import BridgeModel
from circuitlab.neurons import (
    ablation_effect,
    activations,
    importance,
    noise_sensitivity,
    optimise_prompts,
    outliers,
    simplify,
)  # fmt: skip
from circuitlab.parts import Layout
from circuitlab.predictions.log_probs import text_log_probs
from circuitlab.predictions.next_token import continue_text, predict

# Learned positions end in an error of torch where they end; rotary ones run on without a word.
MODELS = ("gpt2", "llama", "neox")
N_CTX = 64
LONG = "hello" + " world" * N_CTX  # with the token in front one too many and one more
JUST = "hello" + " world" * (N_CTX - 2)


def tokens(n_tokens: int) -> PairBatch:
    clean = torch.arange(2 * n_tokens).reshape(2, n_tokens) % (D_VOCAB - 1) + 1
    corrupt = clean.clone()
    corrupt[:, -2] = 1
    words = torch.tensor([[5], [6]])
    return PairBatch.from_tokens(clean, corrupt, words, words + 2)


def _drawn(rng: Random) -> Example:
    name, other = rng.sample(("John", "Mary", "He", "she"), 2)
    text = f"{{name}} {' '.join(rng.choices(('hello', 'world'), k=N_CTX))}"
    return Example.from_template(text, {"name": name}, corrupt={"name": other}, answer=" and", distractor=" then")


TASK = Task(name="long", version="1", summary="prompts that are too long", draw=_drawn)


@contextmanager
def nothing_runs(model: BridgeModel) -> Iterator[None]:
    """The bridge is not called."""

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("the model ran")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.bridge), "forward", called)
        yield


def scored(model: BridgeModel) -> Any:
    return score_edges(model, tokens(8), method="eap", progress=False)


PAIRS: dict[str, Callable[[BridgeModel, PairBatch], object]] = {
    "sweep of a stream": lambda m, p: sweep(m, p, site="resid_pre"),
    "sweep of heads": lambda m, p: sweep(m, p, site="head_z"),
    "sweep with noise": lambda m, p: sweep(m, p, site="attn_out", ablation="noise"),
    **{
        f"score_edges {name}": lambda m, p, name=name: score_edges(m, p, method=name)
        for name in ("eap", "eap-ig", "eap-ig-activations", "relp", "ifr", "exact", "acdc", "sweep", "random", "ugs")
    },
    "select": lambda m, p: select(m, scored(m), p, target=0.5),
    "evaluate": lambda m, p: evaluate(m, select(m, scored(m), tokens(8), n_edges=5, allow_weak_gap=True), p),
    "path patching": lambda m, p: path_patch(m, p, None, ["logits"]),
    "attribution": lambda m, p: direct_attribution(m, p),
    "logit lens": lambda m, p: logit_lens(m, p),
}
TEXTS: dict[str, Callable[[BridgeModel, str], object]] = {
    "predict": lambda m, t: predict(m, t),
    "several texts": lambda m, t: predict(m, ["hello", t]),
    "log_probs": lambda m, t: text_log_probs(m, t),
    "continuation": lambda m, t: continue_text(m, t, 1),
    "attention": lambda m, t: attention(m, t, ["a0.h0"]),
    "importance": lambda m, t: importance(m, [t]),
    "activations": lambda m, t: activations(m, t, 0, [0]),
    "noise": lambda m, t: noise_sensitivity(m, t, 0, 0),
    "simplify": lambda m, t: simplify(m, t, 0, 0),
    "ablation": lambda m, t: ablation_effect(m, ["hello", t], {0: [1]}),
    "outliers": lambda m, t: outliers(m, [t], 0),
}


@pytest.mark.parametrize("ask", PAIRS)
def test_pairs_that_are_too_long(ask):
    for name in MODELS if ask.startswith("sweep of a") else MODELS[1:2]:
        model = load(name)
        rule = rf"prompt 0 \(tokens 1, 2, 3, .*\) has {N_CTX + 1} tokens, but the context holds {N_CTX}"
        if ask not in ("select", "evaluate"):
            with nothing_runs(model), pytest.raises(TokenError, match=rule):
                PAIRS[ask](model, tokens(N_CTX + 1))
        else:
            with pytest.raises(TokenError, match=rule):
                PAIRS[ask](model, tokens(N_CTX + 1))


@pytest.mark.parametrize("ask", TEXTS)
def test_texts_that_are_too_long(ask):
    model = load("llama")
    rule = rf"'hello world .*has {N_CTX + 2} tokens, but the context holds {N_CTX}"
    with nothing_runs(model), pytest.raises(TokenError, match=rule):
        TEXTS[ask](model, LONG)
    assert len(model.text.encode(LONG).ids) == N_CTX + 2


def test_what_just_fits_is_run():
    """The twin: one token fewer."""
    model = load("llama")
    assert len(model.text.encode(JUST).ids) == N_CTX
    predict(model, JUST)
    assert continue_text(model, JUST, 1).ids
    with pytest.raises(TokenError, match="has 64 tokens and 1 more are asked for"):
        continue_text(model, JUST, 2)
    assert sweep(model, tokens(N_CTX), site="head_z").values.shape == (2, 4)
    with pytest.raises(TokenError, match=r"n_tokens=64 has 64 tokens and 1 more are asked for"):
        optimise_prompts(model, 0, 0, n_tokens=N_CTX)


@pytest.mark.parametrize("name", MODELS)
def test_a_task_whose_prompts_are_too_long(name, tmp_path):
    model = load(name)
    rule = rf"the clean prompt of pair 'discovery-0000', '[^']+\.\.\.', has \d+ tokens, but the context holds {N_CTX}"
    with nothing_runs(model):
        with pytest.raises(TokenError, match=rule):
            TASK.pairs(model, n=2)
        with pytest.raises(TokenError, match=rule):
            discover(TASK, model=model, n=2, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_pair_without_tokens():
    """As a tokenizer without a beginning-of-sequence token makes of words that it does not know."""
    model = load("gpt2")
    (pair, *_) = mixed_pairs()
    empty = replace(pair, clean="?", clean_ids=(), corrupt_ids=(), clean_tokens=(), corrupt_tokens=(), spans={})
    with nothing_runs(model), pytest.raises(TokenError, match=r"pair '0', '\?', has no token"):
        sweep(model, PairSet((pair, empty)), site="head_z")


def test_a_hook_of_the_user_does_not_change_the_message():
    model = fresh("gpt2")
    model.bridge.blocks[0].register_forward_hook(lambda *_: None)
    with pytest.raises(TokenError, match="but the context holds 64"):
        model.block_arguments(tokens(N_CTX + 1).clean)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_s_own_steps_refuse_as_well(name):
    model, long = load(name), tokens(N_CTX + 1).clean
    for step in (model.record, model.block_arguments, model.embedding, model.whole_logits):
        with nothing_runs(model), pytest.raises(TokenError, match=f"has {N_CTX + 1} tokens, but the context holds"):
            step(long)


OTHER_TOKENS = {
    "one prompt without its row": torch.tensor([0, 5, 6]),
    "three dimensions": torch.zeros(1, 2, 3, dtype=torch.long),
    "fractions": torch.tensor([[0.0, 5.0]]),
    "truth values": torch.tensor([[True, False]]),
    "no tokens": torch.zeros(2, 0, dtype=torch.long),
    "a list": [[0, 5]],
}


@pytest.mark.parametrize("step", ["record", "block_arguments", "embedding", "whole_logits"])
@pytest.mark.parametrize("name", OTHER_TOKENS)
def test_the_model_s_own_steps_refuse_other_tensors(name, step):
    from architectures import as_users_run_it

    model = load("gpt2")
    with as_users_run_it(), nothing_runs(model), pytest.raises(ConfigError, match="tokens must be an integer tensor"):
        getattr(model, step)(OTHER_TOKENS[name])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_integers_of_any_width(dtype):
    from architectures import as_users_run_it

    model, ids, words = load("gpt2"), torch.tensor([[0, 5, 99], [3, 4, 7]]), torch.tensor([[1], [2]])

    def batch(ids: Any, words: Any) -> PairBatch:
        return PairBatch.from_tokens(ids, ids.flip(1), words, words + 1)

    with as_users_run_it():
        assert torch.equal(model.whole_logits(ids.to(dtype)), model.whole_logits(ids))
        narrow, wide = batch(ids.to(dtype), words.to(dtype)), batch(ids, words)
    assert all(torch.equal(getattr(narrow, name), getattr(wide, name)) for name in ("clean", "corrupt", "answers"))
    assert narrow.distractors.dtype == torch.long


class TestTokens:
    """Ids that the model does not have, and positions outside of the prompt."""

    @pytest.mark.parametrize("where", ["clean", "corrupt"])
    @pytest.mark.parametrize("ask", ["sweep of heads", "score_edges eap", "path patching", "logit lens"])
    def test_ids_above_the_vocabulary(self, where, ask):
        model, batch = load("gpt2"), tokens(6)
        getattr(batch, where)[1, 3] = D_VOCAB
        rule = rf"prompt 1 .* holds the token {D_VOCAB}; model .* has the tokens 0 to {D_VOCAB - 1}"
        with nothing_runs(model), pytest.raises(TokenError, match=rule):
            PAIRS[ask](model, batch)

    @pytest.mark.parametrize("where", ["answers", "distractors"])
    def test_answers_above_the_vocabulary(self, where):
        model, batch = load("gpt2"), tokens(6)
        getattr(batch, where)[0, 0] = D_VOCAB + 7
        rule = rf"{where} hold the token {D_VOCAB + 7}; model .* predicts the tokens 0 to {D_VOCAB - 1}"
        with nothing_runs(model), pytest.raises(TokenError, match=rule):
            sweep(model, batch, site="head_z")

    @pytest.mark.parametrize("wrong", [-1, D_VOCAB])
    def test_ids_of_a_single_prompt(self, wrong):
        model = load("gpt2")
        for ask in (lambda t: attention(model, t, ["a0.h0"]), lambda t: noise_sensitivity(model, t, 0, 0)):
            with nothing_runs(model), pytest.raises(TokenError, match=f"holds the token {wrong}"):
                ask(torch.tensor([3, wrong, 4]))

    @pytest.mark.parametrize("wrong", [torch.tensor([1.5, 2.0]), torch.tensor([True, False]), [1, 2.5], 7])
    def test_a_single_prompt_of_other_numbers(self, wrong):
        from architectures import as_users_run_it

        model = load("gpt2")
        with (
            as_users_run_it(),
            pytest.raises(ConfigError, match="text must be a str or a row of token ids; got|text is .*, of type"),
        ):
            noise_sensitivity(model, wrong, 0, 0)
        with (
            as_users_run_it(),
            pytest.raises(ConfigError, match="a prompt is a text, a pair of a task, or one row|prompt is .*, of type"),
        ):
            attention(model, wrong, ["a0.h0"])

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("clean", torch.ones(2, 6)),
            ("corrupt", torch.ones(2, 6, dtype=torch.bool)),
            ("answers", torch.ones(2, 1, dtype=torch.complex64)),
            ("answer_at", torch.tensor([1.0, 2.0])),
            ("answer_at", torch.tensor([True, False])),
            ("answer_at", [1, 2]),
            ("answer_at", torch.tensor([1, 6])),
            ("answer_at", torch.tensor([-1, 2])),
        ],
    )  # fmt: skip
    def test_other_tensors(self, name, value):
        from architectures import as_users_run_it

        good = tokens(6)
        given: dict[str, Any] = {"clean": good.clean, "corrupt": good.corrupt}
        given |= {"answers": good.answers, "distractors": good.distractors, name: value}
        with as_users_run_it(), pytest.raises(ConfigError, match=f"{name} (must|is .*, of type)"):
            PairBatch.from_tokens(**given)


class TestLimits:
    """What the context is said to be."""

    @staticmethod
    def loaded(made: Any) -> BridgeModel:
        with TemporaryDirectory() as folder:
            made.save_pretrained(folder)
            tokenizer().save_pretrained(folder)
            return load_model(folder)

    def test_alibi_has_none(self):
        import transformers as hf

        shape = {"vocab_size": D_VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        shape |= {"max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 0}
        free, held = (self.loaded(hf.FalconForCausalLM(hf.FalconConfig(**shape, alibi=yes))) for yes in (True, False))
        assert (free.spec.n_ctx, held.spec.n_ctx) == (None, 16)
        sweep(free, tokens(20), site="head_z")
        with pytest.raises(TokenError, match="has 20 tokens, but the context holds 16"):
            sweep(held, tokens(20), site="head_z")

    def test_a_window_is_no_limit(self):
        """Gemma 2 here sees four tokens back in every other layer, and reads 64."""
        assert load("gemma2").spec.n_ctx == N_CTX
        predict(load("gemma2"), JUST)

    def test_the_bundled_model(self, bundled):
        assert bundled.spec.n_ctx == 256
        assert Layout.of(bundled.spec).n_edges

    def test_a_folder_s_own_length_counts(self, tmp_path: Path):
        """Another `max_position_embeddings` in the same rotary model."""
        import json

        from architectures import save

        save("llama", tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 10}))
        with pytest.raises(TokenError, match="has 11 tokens, but the context holds 10"):
            predict(load_model(tmp_path), "hello" + " world" * 9)
