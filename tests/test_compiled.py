"""Models with a known circuit: they do what their programs say, and their true edges are those that matter."""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from experiments import clean_and_empty

from circuitlab import PairBatch, compile_model, compiled_models, evaluate, patch_edges, score_edges
from circuitlab.compiled.build import CompiledModel, compile_weights, variable_directions
from circuitlab.compiled.program import POSITION, TOKEN, Apply, Attend, Program
from circuitlab.compiled.terms import equal, related
from circuitlab.compiled.truth import ABLATIONS, logits_of, run_program, true_edges
from circuitlab.errors import ConfigError, ModelError, UnknownNameError
from circuitlab.evaluation.truth import recovery
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.graphs.random import random_circuit
from circuitlab.metrics import resolve
from circuitlab.models.native import native_model
from circuitlab.models.verify import measure
from circuitlab.parts import Edge, Layout, ModelSpec
from circuitlab.patching.experiment import Experiment

METRIC = resolve("logit_diff")
NAMES = compiled_models()
SINGLE = [name for name in NAMES if name != "either"]
# An edge that is not in the circuit changes the logit difference by no more than this: nothing without norms, and with
# them what the constant in the stream and the attention's few nats leave (4e-4 under a mean, measured).
NOTHING = {False: 1e-9, True: 1e-3}

# Written down by hand from the programs, never computed: what a reader of the docs is told.
CORRUPT = {
    "copier": {"input->a0.h0<v>", "a0.h0->logits"},
    "induction": {
        *("input->a0.h0<v>", "a0.h0->a1.h0<k>", "input->a1.h0<q>"),
        *("input->a1.h0<v>", "a1.h0->logits"),
    },
    "tag-stack": {
        *("input->a0.h0<v>", "a0.h0->m0", "m0->a1.h0<q>", "m0->a1.h0<k>", "input->a1.h0<k>"),
        *("input->a1.h0<v>", "a1.h0->logits"),
    },
    "majority": {"input->a0.h0<v>", "a0.h0->m0", "m0->logits"},
    "fraction": {"input->a0.h0<v>", "a0.h0->logits"},
    "reverser": {"input->a0.h0<k>", "a0.h0->m0", "m0->a1.h0<q>", "input->a1.h0<v>", "a1.h0->logits"},
    "either": {"input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->m0", "a0.h1->m0", "m0->logits"},
    "mirror": {"input->a0.h0<k>", "a0.h0->m0", "m0->a1.h0<q>", "input->a1.h0<v>", "a1.h0->logits"},
    "histogram": {"input->a0.h0<q>", "input->a0.h0<k>", "a0.h0->m0", "m0->logits"},
}
# What only carries a constant, above all positions: part of the circuit where it is taken away.
MORE_UNDER_ZERO = {
    "copier": {"input->a0.h0<q>", "input->a0.h0<k>"},
    "induction": {"input->a0.h0<q>", "input->a0.h0<k>"},
    "tag-stack": {"input->m0"},
    "reverser": {"input->a0.h0<v>", "input->m0", "input->a1.h0<k>"},
    "mirror": {"input->a0.h0<v>", "input->m0", "input->a1.h0<k>"},
    "histogram": {"input->a0.h0<v>"},
}


# What bidirectional models should say at a place, worked out from the whole prompt without the program.
WITH_WHAT_FOLLOWS = {
    "mirror": lambda prompt, at: prompt[1 : prompt.index("END")][-at],
    "histogram": lambda prompt, at: {1: "once", 2: "twice", 3: "three times"}[prompt.count(prompt[at])],
}


@cache
def built(name: str, norm: bool = False) -> CompiledModel:
    return compile_model(name, norm=norm)


@cache
def drawn(name: str) -> PairBatch:
    return built(name).pairs(36)


@cache
def truth(name: str, norm: bool = False, ablation: str = "corrupt") -> Circuit:
    return built(name, norm).truth(ablation, drawn(name))


def exact(name: str, norm: bool, ablation: str) -> np.ndarray:
    """m(clean) - m(with the edge replaced), a matrix [writer, reader]."""
    model, pairs = built(name, norm), drawn(name)
    reference = model.reference(pairs) if ablation.startswith("mean") else None
    found = patch_edges(model.model, pairs, direction="noise", ablation=ablation, reference=reference)
    values = np.zeros(truth(name, norm).mask.shape)
    for edge, value in zip(found.edges, found.values[:, 0], strict=True):
        values[Layout.of(model.model.spec).edge_index(edge)] = value
    return values


def names_of(circuit: Circuit) -> set[str]:
    return {edge.name for edge, _ in circuit.edges()}


class TestModels:
    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    def test_it_predicts_what_its_program_says(self, name, norm):
        model, pairs = built(name, norm), drawn(name)
        for tokens, right in ((pairs.clean, pairs.answers), (pairs.corrupt, pairs.distractors)):
            rows, at = np.arange(len(pairs)), pairs.answer_at.numpy()
            found = model.model.whole_logits(tokens).numpy()[rows, at]
            wanted = logits_of(model.program, run_program(model.program, tokens.numpy()))[rows, at]
            # Soft attention leaves e^-10 for each token that hard attention does not look at.
            assert found == pytest.approx(wanted, abs=1e-3)
            assert (found.argmax(1) == right[:, 0].numpy()).all()

    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    def test_every_variable_stands_in_its_own_directions(self, name, norm):
        """The stream, read through a variable's directions, is the variable's value where it counts for the answer."""
        model, pairs = built(name, norm), drawn(name)
        meaning = run_program(model.program, pairs.clean.numpy())
        final = model.model.record(pairs.clean).resid_final.numpy()
        rows, at = np.arange(len(pairs)), pairs.answer_at.numpy()
        for variable in (TOKEN, POSITION, model.program.output):
            found = final @ variable_directions(model.program, norm)[0][variable].T
            assert found[rows, at] == pytest.approx(meaning.values[variable][rows, at], abs=1e-3)

    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    def test_its_parts_add_up(self, name, norm):
        assert max(measure(built(name, norm).model, drawn(name).clean[:4]).values()) < 1e-9

    def test_answers_by_hand(self):
        """What each should say, worked out from the prompt without the program."""
        for name in NAMES:
            model, pairs = built(name), drawn(name)
            words = model.program.words
            for tokens, answer, at in zip(pairs.clean, pairs.answers[:, 0], pairs.answer_at, strict=True):
                prompt = [words[token] for token in tokens]
                if model.program.causal:
                    prompt, said = prompt[: int(at) + 1], BY_HAND[name]
                else:
                    said = partial(WITH_WHAT_FOLLOWS[name], at=int(at))
                assert words[int(answer)] == said(prompt), (name, prompt)

    @pytest.mark.parametrize("name", WITH_WHAT_FOLLOWS)
    def test_answers_hang_on_what_follows(self, name):
        """The twin: the same program, looking back only, is wrong about many a prompt."""
        pairs, both_ways = drawn(name), built(name).program
        assert not both_ways.causal
        assert not built(name).model.spec.causal
        rows, at = np.arange(len(pairs)), pairs.answer_at.numpy()
        backwards = replace(both_ways, causal=True)
        said = logits_of(backwards, run_program(backwards, pairs.clean.numpy()))[rows, at].argmax(1)
        assert (said != pairs.answers[:, 0].numpy()).mean() > 0.3

    def test_pairs_follow_their_seed(self):
        model = built("induction")
        once, again, other = model.pairs(8), model.pairs(8), model.pairs(8, seed=1)
        assert torch.equal(once.clean, again.clean)
        assert torch.equal(once.corrupt, again.corrupt)
        assert not torch.equal(once.clean, other.clean)
        assert torch.equal(model.pairs(4).clean, once.clean[:4])

    @pytest.mark.parametrize("name", NAMES)
    def test_reference_prompts_are_none_of_the_scored(self, name):
        pairs = drawn(name)
        scored = {tuple(row) for row in torch.cat([pairs.clean, pairs.corrupt]).tolist()}
        assert not scored & {tuple(row) for row in built(name).reference(pairs).clean.tolist()}

    def test_the_dtype_is_kept(self):
        assert compile_model("copier", dtype="float32").model.dtype == torch.float32


def _stack(prompt: list[str]) -> str:
    open_tags: list[str] = []
    for word in prompt[1:]:
        if word.startswith("</"):
            assert open_tags.pop() == word.replace("/", "")
        elif word != "text":
            open_tags.append(word)
    return open_tags[-1].replace("<", "</")


def _reversed(prompt: list[str]) -> str:
    letters, said = " ".join(prompt[1:]).split("SEP")
    return letters.split()[::-1][len(said.split())]


BY_HAND = {
    "copier": lambda prompt: prompt[-4],
    "induction": lambda prompt: prompt[prompt.index(prompt[-1]) + 1],
    "tag-stack": _stack,
    "majority": lambda prompt: "more a" if prompt.count("a") > prompt.count("b") else "more b",
    "fraction": lambda prompt: "more a" if prompt.count("a") > prompt.count("b") else "more b",
    "reverser": _reversed,
    "either": lambda prompt: "there" if "mark" in prompt else "not there",
}


class TestTruth:
    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    def test_the_rule_gives_what_the_programs_say(self, name, norm):
        assert names_of(truth(name, norm)) == CORRUPT[name]
        more = MORE_UNDER_ZERO.get(name, set())
        assert names_of(truth(name, norm, "zero")) == CORRUPT[name] | more
        # A position is constant at its place: means over all tokens take it away, means by position do not.
        assert names_of(truth(name, norm, "mean")) == CORRUPT[name] | more
        if name != "either":
            assert names_of(truth(name, norm, "mean-position")) == CORRUPT[name]

    @pytest.mark.parametrize("ablation", ABLATIONS)
    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("name", SINGLE)
    def test_an_edge_is_true_where_patching_it_changes_the_answer(self, name, norm, ablation):
        """The rule runs no model; here every edge is patched alone in the model."""
        circuit = truth(name, norm, ablation)
        effects, real = exact(name, norm, ablation), real_edges(circuit.layout)
        assert effects[circuit.mask].min() > 0.1
        assert np.abs(effects[real & ~circuit.mask]).max() < NOTHING[norm]
        assert recovery(circuit.spec, effects, circuit.mask).auroc == 1

    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("ablation", ["corrupt", "zero"])
    def test_the_true_circuit_is_the_model_and_less_is_not(self, name, norm, ablation):
        circuit = truth(name, norm, ablation)
        prepared = Experiment(built(name, norm).model, drawn(name), ablation=ablation)
        without = [circuit.mask.copy() for _ in circuit.edges()]
        for mask, (edge, _) in zip(without, circuit.edges(), strict=True):
            mask[circuit.layout.edge_index(edge)] = False
        found = prepared.measure(np.stack([circuit.mask, *without]), [METRIC])
        clean, empty = (values.mean() for values in clean_and_empty(prepared, METRIC))
        whole, *less = (found[METRIC.name].mean(1) - empty) / (clean - empty)
        assert whole == pytest.approx(1, abs=2e-3)
        if name != "either":
            assert max(less) < 0.95

    @pytest.mark.parametrize("name", SINGLE)
    def test_random_circuits_are_not_the_model(self, name):
        circuit, rng = truth(name), np.random.default_rng(0)
        chance = random_circuit(circuit.layout, circuit.n_edges, rng)
        result = evaluate(built(name).model, circuit.with_mask(chance & ~circuit.mask), drawn(name), n_random=0)
        assert abs(result.faithfulness) < 1e-6

    @pytest.mark.parametrize("name", NAMES)
    def test_it_connects(self, name):
        circuit = truth(name)
        assert (prune(circuit.mask, circuit.layout) == circuit.mask).all()
        assert set(np.unique(circuit.scores)) == {0.0, 1.0}

    def test_prompts_that_differ_in_nothing_have_no_circuit(self):
        model, pairs = built("induction"), drawn("induction")
        same = replace(pairs, corrupt=pairs.clean)
        assert not true_edges(model.program, model.model.spec, same).any()

    def test_it_speaks_of_the_prompts_it_is_given(self):
        """Pairs of one kind alone, in which only what stands behind the key differs: no query and no key does."""
        model, pairs = built("induction"), drawn("induction")
        first_kind = pairs.take(slice(0, None, 3))
        found = names_of(model.truth(pairs=first_kind))
        assert {"input->a1.h0<v>", "a1.h0->logits"} <= found
        assert "input->a1.h0<q>" not in found


class TestRedundantPaths:
    """`either`: two heads see the mark, an MLP says whether any did: f(x, y) = x + y - relu(x + y - 1), from (1, 1).

    The whole path is worth 2 logits: "there" against "not there", from -1 to 1.
    """

    HEADS = ("a0.h0->m0", "a0.h1->m0")
    INPUTS = ("input->a0.h0<v>", "input->a0.h1<v>")

    def scores(self, method: str, norm: bool = False, **options: int) -> dict[str, float]:
        found = score_edges(built("either", norm).model, drawn("either"), method, **options)
        layout = found.layout
        return {edge.name: float(found.values[layout.edge_index(edge)]) for edge in layout.edges()}

    def test_exact_sees_neither_path(self):
        """With one head corrupted the other is enough: f(0, 1) = f(1, 1)."""
        found = self.scores("exact")
        assert found.pop("m0->logits") == pytest.approx(2)
        assert max(map(abs, found.values())) < 1e-9

    def test_exact_sees_both_from_the_corrupted_side(self):
        """Put into the corrupted run, each is enough alone: f(1, 0) - f(0, 0) = 1."""
        found = patch_edges(built("either").model, drawn("either"), [*self.HEADS, *self.INPUTS], direction="denoise")
        assert found.values[:, 0] == pytest.approx(np.full(4, 2.0))

    def test_eap_sees_neither_path(self):
        """At (1, 1) the function is flat."""
        found = self.scores("eap")
        assert found.pop("m0->logits") == pytest.approx(2)
        assert max(map(abs, found.values())) < 1e-9

    @pytest.mark.parametrize("steps", [2, 5, 10])
    def test_eap_ig_shares_the_effect_out(self, steps):
        """Along (k / m)(1, 1) the slope is 1 up to x + y = 1, so for m // 2 of m steps; 1 / 2 each in the limit."""
        found = self.scores("eap-ig", steps=steps)
        for name in (*self.HEADS, *self.INPUTS):
            assert found[name] == pytest.approx(2 * (steps // 2) / steps)

    def test_either_path_alone_is_the_model(self):
        circuit, model = truth("either"), built("either").model
        for head in ("a0.h0", "a0.h1"):
            mask = circuit.mask.copy()
            for edge in (f"input->{head}<v>", f"{head}->m0"):
                mask[circuit.layout.edge_index(Edge.parse(edge))] = False
            one = evaluate(model, circuit.with_mask(mask), drawn("either"), n_random=0)
            assert one.faithfulness == pytest.approx(1)
        without = circuit.mask.copy()
        for edge in self.HEADS:
            without[circuit.layout.edge_index(Edge.parse(edge))] = False
        neither = evaluate(model, circuit.with_mask(without), drawn("either"), n_random=0)
        assert neither.faithfulness == pytest.approx(0, abs=1e-9)

    def test_so_exact_scores_find_one_edge_of_five(self):
        circuit = truth("either")
        found = recovery(circuit.spec, exact("either", False, "corrupt"), circuit.mask)
        # m0->logits before all; the other four tie with 13 edges that do nothing.
        assert found.n_edges == 18
        assert found.auroc == pytest.approx((1 + 4 * 0.5) / 5)


class TestScoresFindTheCircuit:
    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("name", SINGLE)
    def test_exact(self, name, norm):
        circuit = truth(name, norm)
        scores = score_edges(built(name, norm).model, drawn(name), "exact")
        found = recovery(circuit.spec, scores.values, circuit.mask)
        assert (found.auroc, found.average_precision) == (1, 1)
        shuffled = np.random.default_rng(0).permutation(scores.values[real_edges(circuit.layout)])
        values = np.zeros_like(scores.values)
        values[real_edges(circuit.layout)] = shuffled
        assert recovery(circuit.spec, values, circuit.mask).auroc < 0.95

    def test_the_truth_of_another_replacement_is_not_matched(self):
        """Positions matter under zero and not under the other prompt's values, so these scores miss them."""
        corrupt, zero = exact("reverser", False, "corrupt"), truth("reverser", False, "zero")
        assert recovery(zero.spec, corrupt, zero.mask).auroc < 0.9


class TestPrograms:
    def program(self, **changes):
        same = np.eye(3)
        made = {
            "name": "tiny",
            "words": ("BOS", "a", "b"),
            "n_ctx": 3,
            "operations": (Attend(writes="seen", value=TOKEN, through=same, score=(equal(TOKEN, TOKEN, 3),)),),
            "output": "seen",
            "unembed": same,
        }
        return Program(**(made | changes))

    def test_nodes_stand_as_early_as_they_can(self):
        same, plain = np.eye(3), {"bias": np.zeros(3), "out": np.eye(3), "shift": np.zeros(3)}
        operations = (
            Attend(writes="one", value=TOKEN, through=same),
            Attend(writes="two", value=TOKEN, through=same),
            Apply(writes="three", reads={"one": same}, **plain),
            Apply(writes="four", reads={"two": same}, **plain),  # the layer's MLP is taken
            Attend(writes="five", value="three", through=same),
            Attend(writes="six", value="four", through=same),
        )
        nodes = self.program(operations=operations, output="six").nodes
        assert {name: node.name for name, node in nodes.items() if name not in (TOKEN, POSITION)} == {
            "one": "a0.h0",
            "two": "a0.h1",
            "three": "m0",
            "four": "m1",
            "five": "a1.h0",
            "six": "a2.h0",
        }

    def test_what_is_not_there_cannot_be_read(self):
        with pytest.raises(ConfigError, match=r"'seen' of 'tiny' reads \['later'\], which nothing writes yet"):
            self.program(operations=(Attend(writes="seen", value="later", through=np.eye(3)),))
        with pytest.raises(ConfigError, match="the logits of 'tiny' read 'else'"):
            self.program(output="else")
        twice = Attend(writes=TOKEN, value=TOKEN, through=np.eye(3))
        with pytest.raises(ConfigError, match="written twice"):
            self.program(operations=(twice,))

    def test_functions_of_the_position_stop_at_the_ends(self):
        weight = related(POSITION, POSITION, 4, lambda p: p - 2, nats=1.0).weight
        assert weight.argmax(1).tolist() == [0, 0, 0, 1]

    def test_norms_have_directions_that_sum_to_zero(self):
        program = built("tag-stack").program
        basis = np.concatenate(list(variable_directions(program, True)[0].values()))
        assert basis @ basis.T == pytest.approx(np.eye(len(basis)))
        assert basis.sum(1) == pytest.approx(np.zeros(len(basis)), abs=1e-12)
        shape, weights = compile_weights(program, True)
        # Nobody reads the constant, and no variable lies along it.
        assert basis @ weights["layers.0.attn.o.bias"] == pytest.approx(np.zeros(len(basis)), abs=1e-9)
        assert np.linalg.norm(weights["layers.0.attn.o.bias"]) == pytest.approx(300)
        assert shape.d_model == len(basis) + 2


class TestMessages:
    def test_names(self):
        with pytest.raises(UnknownNameError, match="Did you mean 'induction'"):
            compile_model("inducton")
        with pytest.raises(ConfigError, match="dtype is 'float16'"):
            compile_model("copier", dtype="float16")
        with pytest.raises(UnknownNameError, match="unknown ablation 'noise'"):
            built("copier").truth("noise")
        with pytest.raises(ConfigError, match="n is 0"):
            built("copier").pairs(0)

    def test_too_few_prompts_are_left(self):
        model = built("majority")
        with pytest.raises(ConfigError, match="not among the 2000 scored"):
            model.reference(model.pairs(2000), n=500)

    def test_means_need_prompts(self):
        model, pairs = built("copier"), drawn("copier")
        with pytest.raises(ConfigError, match="needs reference prompts"):
            true_edges(model.program, model.model.spec, pairs, "mean")
        shorter = PairBatch.from_tokens(pairs.clean[:, :5], pairs.corrupt[:, :5], pairs.answers, pairs.distractors)
        with pytest.raises(ConfigError, match="prompts of 10 tokens, reference prompts of 5"):
            model.truth("mean-position", reference=shorter)

    def test_weights_that_do_not_fit(self):
        sizes = {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_model": 4, "d_head": 2, "d_vocab": 3, "n_ctx": 3}
        spec = ModelSpec(name="odd", has_mlp=False, **sizes)
        with pytest.raises(ModelError, match=r"no weights \['embed'\]"):
            native_model(spec, {"embed": np.zeros((3, 4))}, torch.float64)
        with pytest.raises(ModelError, match=r"is \(3, 4\), given is \(4, 3\)"):
            native_model(spec, {"tok_embed.weight": np.zeros((4, 3))}, torch.float64)
