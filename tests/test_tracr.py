"""Models that tracr compiled: the same predictions, and the edges of the expression's graph.

What needs tracr itself, which the development requirements hold, is skipped where it is not installed; a model of ours,
dressed up as one of tracr's, is not.
"""

from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from circuitlab import compile_model, from_tracr, patch_edges, recovery
from circuitlab.compiled.build import CompiledModel, compile_weights
from circuitlab.compiled.program import POSITION, TOKEN
from circuitlab.errors import ConfigError, UnsupportedModelError

NAMES = ("frac", "hist", "pair-balance", "less-frequent", "reverse")
needs_tracr = pytest.mark.skipif(find_spec("tracr") is None, reason="the extra circuitlab[tracr] is not installed")


@cache
def expression(name: str) -> tuple[Any, set[str]]:
    from tracr.compiler import lib
    from tracr.rasp import rasp

    return {
        "frac": lambda: (lib.make_frac_prevs(rasp.tokens == "a"), {"a", "b"}),
        "hist": lambda: (lib.make_hist(), {"a", "b", "c"}),
        "pair-balance": lambda: (lib.make_pair_balance(rasp.tokens, "(", ")"), {"(", ")", "x"}),
        "less-frequent": lambda: (lib.make_count_less_freq(2), {"a", "b"}),
        "reverse": lambda: (lib.make_reverse(rasp.tokens), {"a", "b"}),
    }[name]()


@cache
def assembled(name: str, **options: bool) -> Any:
    """As tracr compiles; told nothing but the words and the length, it makes a bidirectional model."""
    import jax
    from tracr.compiler import compiling

    jax.config.update("jax_platforms", "cpu")
    # Nearly all of the time goes into compiling sixty small operations, random initial weights before all, each of
    # which then runs a few times.
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_default_prng_impl", "rbg")
    program, vocab = expression(name)
    return compiling.compile_rasp_to_model(program, vocab=vocab, max_seq_len=5, **options)


@cache
def loaded(name: str, causal: bool = True) -> CompiledModel:
    return from_tracr(assembled(name, causal=causal), name=name)


@needs_tracr
class TestOfTracr:
    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("name", NAMES)
    def test_it_says_what_tracr_says(self, name, causal):
        model, pairs = loaded(name, causal), loaded(name, causal).pairs(3)
        assert model.model.spec.causal is causal
        theirs = assembled(name, causal=causal)
        words = {number: word for word, number in theirs.input_encoder.encoding_map.items()}
        for prompt in torch.cat([pairs.clean, pairs.corrupt]).tolist():
            logits = model.model.whole_logits(torch.tensor([prompt]))[0, 1:].numpy()
            ran = theirs.apply([words[token] for token in prompt])
            # All that tracr's own model computes, in float32.
            stream = model.model.record(torch.tensor([prompt])).resid_final[0].numpy()
            assert stream == pytest.approx(np.asarray(ran.transformer_output, float)[0], abs=1e-5)
            said = ran.decoded[1:]
            if model.entry.numeric:
                assert logits[:, 0] - logits[:, 1] == pytest.approx(np.array(said, float), abs=1e-5)
            else:
                number = theirs.output_encoder.encoding_map
                # Where nothing is said, no logit is more than half of a value's, and there is nothing to compare.
                there = logits.max(1) > 0.5
                assert there.any()
                assert logits.argmax(1)[there].tolist() == [number[s] for s, t in zip(said, there, strict=True) if t]

    @pytest.mark.parametrize("name", NAMES)
    def test_variables_read_each_other_as_expressions_do(self, name):
        """Tracr's own graph of the expression: what each part is made of, through selectors and widths."""
        from tracr.compiler import rasp_to_graph
        from tracr.rasp import rasp

        tip, _ = expression(name)
        graph = rasp_to_graph.extract_rasp_graph(tip).graph

        def operands(label: str) -> set[str]:
            found = set()
            for child in graph.predecessors(label):
                inside = isinstance(graph.nodes[child]["EXPR"], rasp.Selector)
                found |= operands(child) if inside else {child}
            return found

        named = {tip.label, *graph.nodes}
        parts = [part for part in named if not isinstance(graph.nodes[part]["EXPR"], rasp.Selector)]
        expected = {(child, part) for part in parts for child in operands(part)}
        inputs = {"tokens": TOKEN, "indices": POSITION}
        expected = {(inputs.get(child, child), part) for child, part in expected}
        found = set()
        for read in loaded(name).program.reads():
            if read.writes is not None:
                found.add((_part(read.variable), _part(read.writes)))
        # Beside these, constants that the input holds: for the default of a head, and the number one.
        assert expected <= found
        assert {pair for pair in found - expected if pair[0] not in (TOKEN, pair[1])} == set()

    def test_tracrs_default(self):
        """Every token sees every other, so that the same expression says something else, and reads on."""
        default = assembled("hist")
        model = from_tracr(default, name="hist")
        assert not model.model.spec.causal
        words = default.input_encoder.encoding_map
        prompt = ["compiler_bos", "a", "b", "a", "a", "c"]
        logits = model.model.whole_logits(torch.tensor([[words[word] for word in prompt]]))[0, 1:]
        values = {number: value for value, number in default.output_encoder.encoding_map.items()}
        assert [values[number] for number in logits.argmax(1).tolist()] == [3, 1, 3, 3, 1]
        causal = loaded("hist").model.whole_logits(torch.tensor([[words[word] for word in prompt]]))[0, 1:]
        assert [values[number] for number in causal.argmax(1).tolist()] == [1, 1, 2, 3, 1]

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize(("name", "ablation"), [*((name, "corrupt") for name in NAMES), ("hist", "zero")])
    def test_an_edge_is_true_where_patching_it_changes_the_answer(self, name, ablation, causal):
        model, pairs = loaded(name, causal), loaded(name, causal).pairs(48)
        circuit, found = (
            model.truth(ablation, pairs),
            patch_edges(model.model, pairs, direction="noise", ablation=ablation),
        )
        effects = np.zeros(circuit.mask.shape)
        for edge, value in zip(found.edges, found.values[:, 0], strict=True):
            effects[circuit.layout.edge_index(edge)] = value
        assert np.abs(effects[circuit.mask]).min() > 0.05
        assert np.abs(effects[~circuit.mask]).max() < 1e-6
        assert recovery(circuit.spec, effects, circuit.mask).auroc == 1


def _part(variable: str) -> str:
    return variable.removesuffix("_selector_width_attn_output")


def dressed(**changes: Any) -> Any:
    """The copier with the attributes of a model of tracr's."""
    program = compile_model("copier").program
    shape, weights = compile_weights(program, False)
    labels = [
        f"{variable}:{value}" for variable, size in program.sizes.items() for value in (*program.words, "9")[:size]
    ]
    params: dict[str, dict[str, np.ndarray]] = {
        "token_embed": {"embeddings": weights["tok_embed.weight"]},
        "pos_embed": {"embeddings": weights["pos.weight"]},
    }
    for slot, theirs in {"q": "query", "k": "key", "v": "value", "o": "linear"}.items():
        params[f"transformer/layer_0/attn/{theirs}"] = {
            "w": weights[f"layers.0.attn.{slot}.weight"].T,
            "b": weights[f"layers.0.attn.{slot}.bias"],
        }
    for theirs, wide in {"linear_1": (shape.d_model, 1), "linear_2": (1, shape.d_model)}.items():
        params[f"transformer/layer_0/mlp/{theirs}"] = {"w": np.zeros(wide), "b": np.zeros(wide[1])}
    config = {"num_layers": 1, "num_heads": 2, "key_size": shape.d_head, "mlp_hidden_size": 1}
    config |= {"layer_norm": False, "causal": True}
    words = {word: number for number, word in enumerate(program.words)}
    return SimpleNamespace(
        params=params,
        residual_labels=labels,
        model_config=SimpleNamespace(**(config | changes)),
        input_encoder=SimpleNamespace(encoding_map=words, bos_token="BOS", pad_token="none"),
        output_encoder=SimpleNamespace(encoding_map=words),
    )


class TestWithoutTracr:
    def test_the_model_and_its_program(self):
        """The output is what is written last: of the copier's two heads, the one that nobody hears otherwise."""
        found, ours = from_tracr(dressed()), compile_model("copier")
        assert found.program.output == "unread"
        assert set(found.program.nodes) == set(ours.program.nodes)
        pairs = found.pairs(24)
        assert [edge.name for edge, _ in found.truth("corrupt", pairs).edges()] == ["input->a0.h1<v>", "a0.h1->logits"]
        zero = {edge.name for edge, _ in found.truth("zero", pairs).edges()}
        assert zero == {"input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "a0.h1->logits"}
        logits = found.model.whole_logits(pairs.clean)
        rows = torch.arange(len(pairs))
        # It says the token before.
        assert torch.equal(logits[rows, pairs.answer_at].argmax(1), pairs.clean[rows, pairs.answer_at - 1])
        assert torch.equal(pairs.answers[:, 0], pairs.clean[rows, pairs.answer_at - 1])

    def test_bidirectional_as_by_default(self):
        """The head that asks by position finds the same token; its softmax is over all of them."""
        found, causal = from_tracr(dressed(causal=False)), from_tracr(dressed())
        assert not found.program.causal
        assert not found.model.spec.causal
        tokens = found.pairs(8).clean
        patterns = [model.model.record(tokens).pattern[0] for model in (found, causal)]
        assert (patterns[0] > 0).all()
        assert (patterns[1].triu(1) == 0).all()
        assert found.truth("zero").mask.any()

    def test_layer_norms_are_refused(self):
        with pytest.raises(UnsupportedModelError, match="has layer norms, which tracr's compiler never sets"):
            from_tracr(dressed(layer_norm=True))

    def test_what_no_expression_compiles_to_is_refused(self):
        model = dressed()
        model.params["transformer/layer_0/attn/value"]["w"][-2] = 1.0
        with pytest.raises(UnsupportedModelError, match=r"sums \[.*\] into 'copied'"):
            from_tracr(_rereading(model))
        nothing = dressed()
        for part in nothing.params.values():
            if "w" in part:
                part["w"] = np.zeros_like(part["w"])
        with pytest.raises(UnsupportedModelError, match="computes nothing"):
            from_tracr(nothing)
        with pytest.raises(ConfigError, match="dtype is 'float16'"):
            from_tracr(dressed(), dtype="float16")


def _rereading(model: Any) -> Any:
    """Values from the position as well as from the token."""
    value = model.params["transformer/layer_0/attn/value"]["w"]
    first = model.residual_labels.index("position:a")
    value[first] = value[model.residual_labels.index("token:a")]
    return model
