"""Neurons read off weights, texts and corpora, against plain torch on the model's own modules."""

import json

import architectures
import numpy as np
import pytest
import torch

import circuitlab
from circuitlab import errors, neurons
from circuitlab.models.norms import frozen_norm
from circuitlab.neurons import corpus as corpora
from circuitlab.neurons import examples as finder
from circuitlab.neurons.corpus import read_corpus
from circuitlab.parts import Stage

PROMPTS = ("hello world", "John Mary left.", "He she ;")
PLAIN = ("gpt2", "llama", "neox", "qwen3", "solu", "native")


def hidden_and_final(model, ids) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What goes into each output projection, and the final stream, by plain hooks on the model's own pass."""
    seen: dict[object, torch.Tensor] = {}
    handles = []
    for layer, block in enumerate(model.bridge.blocks):
        hook = block.mlp.out.hook_in
        handles.append(hook.register_forward_hook(lambda _m, _a, out, layer=layer: seen.__setitem__(layer, out)))
    handles.append(model.bridge.ln_final.register_forward_pre_hook(lambda _m, args: seen.__setitem__("final", args[0])))
    model.whole_logits(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return [seen[layer][0].double() for layer in range(model.spec.n_layers)], seen["final"][0].double()


def with_frozen_scale(model, final, added) -> torch.Tensor:
    """What additions to a final stream do behind the final norm with its scale held: by a difference of two streams.

    The norm is rescaled to the scale it had: (x + d) through the norm, times scale(x + d) / scale(x).
    """
    norm, eps = model.bridge.ln_final, 1e-5
    dtype = model.dtype

    def centred(x):
        probe = norm(torch.ones(1, 1, x.shape[-1], dtype=dtype) * 3.0) - norm(
            torch.zeros(1, 1, x.shape[-1], dtype=dtype)
        )
        return x - x.mean(-1, keepdim=True) if probe.abs().max() < 1e-3 else x

    def scale(x):
        return (centred(x).square().mean(-1, keepdim=True) + eps).sqrt()

    bias = norm(torch.zeros(1, 1, final.shape[-1], dtype=dtype)).double()[0]
    behind = [norm(x.to(dtype)[None, None])[0].double() - bias for x in (final, final + added)]
    return (behind[1] * scale(final + added) - behind[0] * scale(final)) / scale(final)


@pytest.mark.parametrize("name", PLAIN)
def test_effects_are_what_the_logit_gains_with_the_norms_scale_held(name):
    model = architectures.load(name)
    ids = [tuple(int(i) for i in row) for row in architectures.pairs(n=2).clean]
    from circuitlab.neurons.direct_effects import _effects

    effects, words = _effects(model, [ids[0], ids[1][:5]], (0, 1), None)
    for row, own in ((0, ids[0]), (1, ids[1][:5])):
        hidden, final = hidden_and_final(model, own)
        assert words[row] == int(model.whole_logits(torch.tensor([own]))[0, -1].argmax())
        width = hidden[0].shape[-1]
        for layer, neuron in ((0, 3), (1, 17)):
            value = hidden[layer][-1, neuron]
            added = value * model.neuron_weight(layer)[neuron].double()
            gained = with_frozen_scale(model, final[-1], added)[0] @ model.unembedding()[0][:, words[row]].double()
            found = float(effects[row, layer * width + neuron])
            assert found == pytest.approx(float(gained), abs=2e-3 * float(effects[row].abs().max()))


def test_shares_sum_to_one_and_the_table_is_sorted(bundled):
    found = neurons.importance(bundled, ["<h1>Title</", "<b>Some bold text</"])
    assert np.allclose(found.shares.sum(0), 1)
    frame = found.to_frame()
    assert len(frame) == 4 * 512
    assert frame.columns.tolist() == ["layer", "neuron", "<h1>Title</", "<b>Some bold text</", "average"]
    assert frame.average.is_monotonic_decreasing
    first = frame.iloc[0]
    assert first.average == pytest.approx((first["<h1>Title</"] + first["<b>Some bold text</"]) / 2)
    effects = found.to_frame(3, values="effect")
    assert effects["<h1>Title</"][0] == pytest.approx(first["<h1>Title</"] * found.totals[0])
    one = neurons.importance(bundled, "<h1>Title</", layer=3)
    assert one.effects[:, 0] == pytest.approx(found.effects[3 * 512 :, 0], abs=1e-4)
    assert set(one.layers) == {3}


def test_effects_of_all_neurons_and_the_rest_add_up_to_the_logit(bundled):
    """The law behind the table: layer by layer the neurons add what direct attribution says of the MLP."""
    text = "<h1>Title</"
    found = neurons.importance(bundled, text, answers=["h1"])
    ids = torch.tensor([bundled.text.encode(text).ids])
    run = bundled.record(ids)
    columns, _ = bundled.unembedding(torch.tensor(found.answer_ids))
    direction = frozen_norm(bundled.final_norm, run.resid_final[:, -1], bundled.id).back(columns.T)[0]
    for layer in range(4):
        bias = bundled.bridge.blocks[layer].mlp.out.original_component.bias
        whole = float((run.mlp_out[layer][0, -1] - bias) @ direction)
        own = found.effects[found.layers == layer].sum()
        assert own == pytest.approx(whole, abs=1e-3)
        assert own != pytest.approx(-whole, abs=1e-3)  # the twin: the sign


def test_another_answer_gives_other_effects(bundled):
    right = neurons.importance(bundled, "<h1>Title</", answers=["h1"])
    wrong = neurons.importance(bundled, "<h1>Title</", answers=["p"])
    assert right.answers == ("h1",)
    assert right.totals[0] > wrong.totals[0]
    assert neurons.importance(bundled, "<h1>Title</").answers == ("h1",)


def gain_and_centre(model) -> tuple[torch.Tensor, bool]:
    inner = model.bridge.ln_final.original_component
    return inner.weight.detach(), isinstance(inner, torch.nn.LayerNorm)


def test_tables_of_the_weights_are_the_product_and_meet_in_the_middle(bundled):
    layer, weight = 3, bundled.neuron_weight(3)
    bare = weight @ bundled.unembedding()[0]
    gain, centred = gain_and_centre(bundled)
    through = ((weight - weight.mean(1, keepdim=True) if centred else weight) * gain) @ bundled.unembedding()[0]
    for product, final_norm in ((bare, False), (through, True)):
        found = neurons.top_tokens(bundled, layer, 349, 5, final_norm=final_norm)
        assert [one.id for one in found.entries] == torch.topk(product[349], 5).indices.tolist()
        assert [one.value for one in found.entries] == pytest.approx(
            torch.topk(product[349], 5).values.tolist(), abs=1e-5
        )
        lowest = neurons.top_tokens(bundled, layer, 349, 1, lowest=True, final_norm=final_norm).entries[0]
        assert lowest.value == pytest.approx(float(product[349].min()), abs=1e-5)
        # The round trip: the neuron is found again from its token, at the same value, among all neurons.
        first = found.entries[0]
        back = neurons.top_neurons(bundled, first.id, layer, 512, final_norm=final_norm)
        assert sorted(one.neuron for one in back.entries) == list(range(512))
        again = next(one for one in back.entries if one.neuron == 349)
        assert again.value == pytest.approx(first.value, abs=1e-5)
        assert again.token == first.token
    assert float((bare - through).abs().max()) > 1e-2  # else the two tables were no test


def test_neurons_of_a_token_come_from_all_layers_by_default(bundled):
    found = neurons.top_neurons(bundled, " Jill", k=40)
    assert len({one.layer for one in found.entries}) > 1
    values = [one.value for one in found.entries]
    assert values == sorted(values, reverse=True)
    assert found.to_frame().columns.tolist() == ["layer", "neuron", "token", "id", "value"]


@pytest.mark.parametrize("stage", ["pre", "mid", "post"])
def test_values_over_a_text_are_those_of_plain_hooks(stage):
    model = architectures.load("solu")
    tokens = torch.tensor([[0, 5, 9, 77, 200]])
    seen: list[torch.Tensor] = []
    mlp = model.bridge.blocks[1].mlp
    where = {"pre": getattr(mlp, "in").hook_out, "post": mlp.out.hook_in}
    if stage == "mid":
        inside = next(m for m in mlp.original_component.children() if "Norm" in type(m).__name__)
        handle = inside.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    else:
        handle = where[stage].register_forward_hook(lambda _m, _a, out: seen.append(out))
    model.whole_logits(tokens)
    handle.remove()
    from circuitlab.patching.runs.neuron_values import neuron_values

    found = neuron_values(model, tokens, 1, Stage(stage), [4, 2])
    assert torch.allclose(found[0], seen[0][0][:, [4, 2]], atol=1e-9)


def test_activations_show_the_tokens_of_the_text(bundled):
    text = "<ul>\n<li>One</li>\n</ul>"
    found = neurons.activations(bundled, text, 3, [349, 503])
    hidden, _ = hidden_and_final(bundled, bundled.text.encode(text).ids)
    assert np.allclose(found.values, hidden[3][:, [349, 503]].T, atol=1e-4)
    assert "".join(found.tokens[1:]) == text
    assert found.series == ("349", "503")
    assert found.kind == "neuron"
    assert '<option value="1">503</option>' in found.to_html()
    assert found._repr_html_().startswith("<iframe")


TEXTS = ["<b>Some</b>", "Jill threw the ball.", "<h1>Title</h1>", "<ul><li>One</li></ul>", "Anna is kind.", "<p>An</p>"]


def by_hand(model, texts, layer, neuron) -> list[tuple[float, int]]:
    """Largest value at a token of each text, one text a run; best first, the earlier of equals first."""
    found = []
    for number, text in enumerate(texts):
        hidden, _ = hidden_and_final(model, model.text.encode(text).ids)
        found.append((float(hidden[layer][1:, neuron].max()), number))
    return sorted(found, key=lambda one: (-one[0], one[1]))


@pytest.mark.parametrize("buffer", [1, 25, 10**6])
def test_top_examples_are_those_of_one_run_a_text_whatever_the_buffer(bundled, monkeypatch, buffer):
    monkeypatch.setattr(finder, "BUFFER_TOKENS", buffer)
    found = neurons.top_examples(bundled, iter(TEXTS), 3, [349, 503, 7], k=3)
    for neuron in (349, 503, 7):
        expected = by_hand(bundled, TEXTS, 3, neuron)
        values, numbers = [value for value, _ in expected[:3]], [int(one.where) for one in found.of(neuron)]
        assert len(set(numbers)) == 3
        # Texts whose values are equal but for rounding may come in any order: how they are packed decides the last bit.
        own = {number: value for value, number in expected}
        assert [own[number] for number in numbers] == pytest.approx(values, abs=1e-6)
        assert [one.value for one in found.of(neuron)] == pytest.approx(values, abs=1e-4)
        for one in found.of(neuron):
            assert one.value == np.nanmax(one.values)
            assert one.values[one.position] == one.value
            assert one.tokens[one.position] == one.token
            assert np.isnan(one.values[0])  # the beginning-of-sequence token stands for no text
    assert found.n_texts == 6
    assert found.n_truncated == 0


def test_the_same_text_counts_once_and_of_equals_the_first(bundled):
    found = neurons.top_examples(bundled, ["<b>a</", "x", "<b>a</", "<b>a</"], 3, 349, k=3)
    assert sorted(int(one.where) for one in found.examples) == [0, 1]


def test_what_is_kept_does_not_grow_with_the_corpus(bundled, monkeypatch):
    """The generator is never held: at most a buffer of texts is read ahead of what has been run."""
    monkeypatch.setattr(finder, "BUFFER_TOKENS", 60)
    ahead, read, run = [], 0, 0

    def texts():
        nonlocal read
        for i in range(200):
            read += 1
            ahead.append(read - run)
            yield f"text {i} of many."

    def note(step, done, total):
        nonlocal run
        run = done

    found = neurons.top_examples(bundled, texts(), 0, 3, k=2, progress=note)
    assert found.n_texts == 200
    assert len(found.examples) == 2
    assert max(ahead) < 20


def test_long_texts_are_cut_and_counted(bundled):
    long = "<b>bold</b> " * 300
    found = neurons.top_examples(bundled, [long, "short"], 3, 349, k=2, max_tokens=20)
    assert found.n_truncated == 1
    assert max(len(one.tokens) for one in found.examples) == 20
    cut = next(one for one in found.examples if one.where == "0")
    assert long.startswith(cut.text)
    assert "first 20 tokens of each (1 were longer)" in found.to_html()


def test_files_and_folders_give_the_texts_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.jsonl").write_text('{"text": "d"}\n\n{"text": "e", "n": 1}\n')
    (tmp_path / "a.txt").write_text("a\n\nb é\nc")
    (tmp_path / "ignored.md").write_text("no")
    found = [(one.text, one.where) for one in read_corpus(tmp_path)]
    assert found == [
        ("a", "a.txt:1"),
        ("b é", "a.txt:3"),
        ("c", "a.txt:4"),
        ("d", "b/two.jsonl:1"),
        ("e", "b/two.jsonl:3"),
    ]
    (tmp_path / "s.txt").write_text("one\nline<|end|>two<|end|>")
    assert [one.text for one in read_corpus(tmp_path / "s.txt", separator="<|end|>")] == ["one\nline", "two"]
    assert [one.text for one in read_corpus(tmp_path / "s.txt", separator="")] == ["one\nline<|end|>two<|end|>"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_separators_are_found_wherever_a_read_ends(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(corpora, "_CHUNK", chunk)
    (tmp_path / "s.txt").write_text("one##two##" + "x" * 50 + "##end")
    found = [one.text for one in read_corpus(tmp_path / "s.txt", separator="##", most=10)]
    assert found == ["one", "two", "x" * 10, "end"]


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        (
            lambda m: neurons.importance(m, "a", layer=4),
            errors.ConfigError,
            "model 'bundled' has layers 0 to 3; got [4].",
        ),
        (lambda m: neurons.importance(m, []), errors.ConfigError, "no text is given."),
        (
            lambda m: neurons.importance(m, ["a", "b"], answers=["c"]),
            errors.ConfigError,
            "2 prompts need as many answers",
        ),
        (lambda m: neurons.importance(m, "a", answers=["zzz"]), errors.TokenError, "'zzz' is not one token after"),
        (lambda m: neurons.importance(m, "a b " * 200), errors.TokenError, "the text 'a b a b "),
        (
            lambda m: neurons.top_tokens(m, 0, 512),
            errors.ConfigError,
            "MLP 0 of model 'bundled' has neurons 0 to 511; got [512].",
        ),
        (
            lambda m: neurons.top_tokens(m, 0, 1, k=0),
            errors.ConfigError,
            "k is 0; there are 1,408 tokens of the vocabulary",
        ),
        (
            lambda m: neurons.top_neurons(m, "Jillian"),
            errors.TokenError,
            "'Jillian' is not one token for this tokenizer, but [",
        ),
        (
            lambda m: neurons.top_neurons(m, 1408),
            errors.TokenError,
            "token 1408 does not exist; the vocabulary has 0 to 1407.",
        ),
        (
            lambda m: neurons.activations(m, "a", 0, []),
            errors.ConfigError,
            "MLP 0 of model 'bundled' has neurons 0 to 511; got none.",
        ),
        (
            lambda m: neurons.activations(m, "a", 0, 1, "poste"),
            errors.UnknownNameError,
            "unknown stage 'poste'. Did you mean 'post'?",
        ),
        (lambda m: neurons.activations(m, "a b " * 200, 0, 1), errors.TokenError, "the text 'a b a b "),
        (lambda m: neurons.top_examples(m, [], 0, 1), errors.ConfigError, "the corpus is empty: it has no text"),
        (
            lambda m: neurons.top_examples(m, [" ", "\n"], 0, 1),
            errors.ConfigError,
            "the corpus is empty: it has no text",
        ),
        (
            lambda m: neurons.top_examples(m, ["a", 3], 0, 1),
            errors.ConfigError,
            "top_examples(): corpus is ['a', 3], of type list; it must be str or Path or a list of str.",
        ),
        (lambda m: neurons.top_examples(m, "nope.txt", 0, 1), errors.ConfigError, "corpus 'nope.txt' does not exist."),
        (
            lambda m: neurons.top_examples(m, ["a"], 0, 1, k=0),
            errors.ConfigError,
            "k is 0; ask for one example or more.",
        ),
        (
            lambda m: neurons.top_examples(m, ["a"], 0, 1, max_tokens=257),
            errors.ConfigError,
            "max_tokens is 257; the context",
        ),
    ],
)
def test_mistakes_are_told_before_the_model_runs(bundled, ask, error, text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("embedding", "record"):
        monkeypatch.setattr(type(bundled), name, lambda *given: pytest.fail("the model ran"))
    with architectures.as_users_run_it(), pytest.raises(error) as told:
        ask(bundled)
    assert str(told.value).startswith(text)


def test_damaged_corpora_are_told(tmp_path):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nnot json\n')
    (tmp_path / "other.jsonl").write_text('{"body": "a"}\n')
    (tmp_path / "empty").mkdir()
    for name, error, text in (
        ("latin.txt", errors.FormatError, "is not UTF-8 text"),
        ("bad.jsonl", errors.FormatError, "line 2 of corpus file 'bad.jsonl' is not valid JSON"),
        (
            "other.jsonl",
            errors.FormatError,
            "line 1 of corpus file 'other.jsonl' is not a JSON object with a text 'text'",
        ),
        ("empty", errors.ConfigError, "has no file ending in .txt or .jsonl"),
    ):
        with pytest.raises(error, match=text):
            list(read_corpus(tmp_path / name))


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: neurons.importance(m, "a"),
        lambda m: neurons.top_tokens(m, 0, 1),
        lambda m: neurons.top_neurons(m, 1),
        lambda m: neurons.activations(m, "a", 0, 1),
        lambda m: neurons.top_examples(m, ["a"], 0, 1),
    ],
)
def test_models_without_neurons_are_refused(ask):
    with pytest.raises(errors.UnsupportedModelError, match="has no MLPs, so that it has no neurons"):
        ask(architectures.load("attn-only"))


def test_norms_behind_an_mlp_make_weights_alone_say_nothing():
    with pytest.raises(errors.UnsupportedModelError, match="has a norm after MLP 0"):
        neurons.top_tokens(architectures.load("gemma2"), 0, 1)
    assert neurons.importance(architectures.load("gemma2"), PROMPTS).effects.shape == (96, 3)


def test_the_namespace_is_what_it_says():
    for name in neurons.__all__:
        assert callable(getattr(neurons, name)) or name.isupper(), name
    with pytest.raises(AttributeError):
        neurons.no_such_name  # noqa: B018
    assert circuitlab.__version__


def test_the_commands_say_the_same_as_the_functions(circuitlab, bundled, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS))
    page = tmp_path / "page.html"
    done = circuitlab(
        "neurons",
        "examples",
        tmp_path / "corpus.txt",
        "--layer",
        3,
        "--neurons",
        "349",
        "-k",
        2,
        "--html",
        page,
        "--json",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["examples"][0]["where"] == f"corpus.txt:{by_hand(bundled, TEXTS, 3, 349)[0][1] + 1}"
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    done = circuitlab("neurons", "importance", "<h1>Title</", "-k", 2, "--json", "--out", tmp_path / "table.csv")
    assert done.code == 0, done.err
    expected = neurons.importance(bundled, "<h1>Title</").to_frame(2)
    assert [one["neuron"] for one in json.loads(done.out)["neurons"]] == expected.neuron.tolist()
    assert (tmp_path / "table.csv").read_text().startswith("layer,neuron,<h1>Title</,average")
    done = circuitlab("neurons", "top-tokens", "--layer", 3, "--neurons", 600)
    assert done.code == 2
    assert "has neurons 0 to 511; got [600]." in done.err
