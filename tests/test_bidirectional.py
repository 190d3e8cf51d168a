"""A model in which every token sees every other: answers stand anywhere, and patches reach what stands before them.

The oracle is the model written out in plain torch, every edge with a share of its own (`gpt2_by_hand`), beside plain
hooks. The twin of it all is the same model taken as causal: each kind of patching then gives other numbers.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from architectures import N_LAYERS, load, logit_diff, pairs, tokenizer
from features_by_hand import autoencoder, swept
from gpt2_by_hand import N_READERS, N_WRITERS, Gpt2ByHand
from test_acdc import one_by_one
from test_mask_learning import OPTIONS
from test_paths import TwoRuns, readers
from test_sweep import HOOKS, brute_force, largest_error
from torch import Tensor
from torch.nn.functional import gelu

from circuitlab import load_model, score_edges, score_nodes, sweep
from circuitlab.data.batch import PairBatch
from circuitlab.errors import UnsupportedModelError
from circuitlab.features import sweep_features
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.ranking import edge_places
from circuitlab.metrics import resolve
from circuitlab.models.bridge import BridgeModel
from circuitlab.parts import Kind, Layout
from circuitlab.patching.circuits.circuits import run_circuits
from circuitlab.patching.circuits.clean_start import CleanStart
from circuitlab.patching.circuits.soft_circuit import SoftCircuit
from circuitlab.patching.edges.edges import patch_edges
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.paths.paths import path_patch
from circuitlab.patching.paths.plan import FROZEN
from circuitlab.patching.runs.baseline import Baseline, record_baseline
from circuitlab.patching.sweeps.sweep import estimate_sweep
from circuitlab.predictions.streams import last_streams

NAME = "bidirectional"
METRIC = resolve("logit_diff")
# Two ways to the same number, in float64.
CLOSE = 1e-10


def anywhere() -> PairBatch:
    """Prompts that differ at tokens 2 and 5, judged in front of both, between them, at the second, and behind both.

    None is judged at the last token, so that there is something behind every answer.
    """
    batch, at = pairs(), torch.tensor([0, 3, 5, 6])
    return PairBatch.from_tokens(batch.clean, batch.corrupt, batch.answers, batch.distractors, at)


@cache
def taken_as_causal() -> BridgeModel:
    return BridgeModel(load(NAME).bridge, "the twin", causal=True)


def layout() -> Layout:
    return Layout.of(load(NAME).spec)


@cache
def baseline() -> Baseline:
    return record_baseline(load(NAME), anywhere())


class ByHand(Gpt2ByHand):
    """The same steps with the weights of the bidirectional model, exact GELU, and an unembedding of its own."""

    causal = False
    start: Tensor | None = None  # in the place of the embedding

    def __init__(self) -> None:
        named = load(NAME).bridge.original_model.state_dict().items()
        given = {key.replace("._original_component", ""): value.T if value.ndim == 2 else value for key, value in named}
        self.weights = {"wte.weight": given["tok_embed.weight"].T, "wpe.weight": given["pos.weight"].T}
        self.unembed = given["head.weight"]
        parts = {"ln_1": "ln1", "ln_2": "ln2", "attn.c_proj": "attn.o", "mlp.c_fc": "mlp.fc_in"}
        parts |= {"mlp.c_proj": "mlp.fc_out"}
        places = {"ln_f": "ln_out"}
        for layer in range(N_LAYERS):
            places |= {f"h.{layer}.{ours}": f"layers.{layer}.{theirs}" for ours, theirs in parts.items()}
            for kind in ("weight", "bias"):
                qkv = [given[f"layers.{layer}.attn.{slot}.{kind}"] for slot in "qkv"]
                self.weights[f"h.{layer}.attn.c_attn.{kind}"] = torch.cat(qkv, -1)
        for ours, theirs in places.items():
            self.weights[f"{ours}.weight"] = given[f"{theirs}.weight"]
            self.weights[f"{ours}.bias"] = given[f"{theirs}.bias"]

    def _embedding(self, tokens: Tensor) -> Tensor:
        return super()._embedding(tokens) if self.start is None else self.start

    def _logits(self, stream: Tensor) -> Tensor:
        return self._norm("ln_f", stream) @ self.unembed

    def _activation(self, x: Tensor) -> Tensor:
        return gelu(x)


@cache
def by_hand() -> ByHand:
    return ByHand()


@cache
@torch.no_grad()
def outputs() -> tuple[list[Tensor], list[Tensor]]:
    """What every writer says in the clean and in the corrupted run."""
    return by_hand().whole(anywhere().clean)[1], by_hand().whole(anywhere().corrupt)[1]


@torch.no_grad()
def of_shares(shares: Tensor, replacement: list[Tensor] | None = None) -> np.ndarray:
    """The metric with each edge at its share."""
    logits, _ = by_hand().run(anywhere().clean, shares, outputs()[1] if replacement is None else replacement)
    return logit_diff(logits, anywhere()).numpy()


def slopes(tokens: Tensor, replacement: list[Tensor], model: ByHand | None = None) -> np.ndarray:
    """How fast the metric falls as each edge begins to carry its replacement."""
    shares = torch.ones(N_WRITERS, N_READERS, dtype=torch.float64, requires_grad=True)
    total = logit_diff((model or by_hand()).run(tokens, shares, replacement)[0], anywhere()).mean()
    return torch.autograd.grad(total, shares)[0].numpy()


def masks(*shares: float) -> np.ndarray:
    rng, real = np.random.default_rng(0), real_edges(layout())
    return np.stack([real & (rng.random(real.shape) < share) for share in shares])


def apart(found: Any, expected: Any) -> float:
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max())


class TestTheModel:
    def test_by_hand(self):
        logits, _ = by_hand().whole(anywhere().clean)
        assert apart(logits, load(NAME).whole_logits(anywhere().clean)) < CLOSE
        backwards = ByHand()
        backwards.causal = True
        assert apart(backwards.whole(anywhere().clean)[0], logits) > 0.1

    def test_every_token_sees_every_other(self):
        assert not load(NAME).spec.causal
        assert load(NAME).score_scale(0) is None
        assert all((pattern > 0).all() for pattern in load(NAME).record(anywhere().clean).pattern)

    def test_encoders_are_refused(self, tmp_path):
        """BERT predicts no next token, has norms in the stream itself, and an MLP that is no module."""
        config = hf.BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
        with torch.random.fork_rng():
            hf.BertForMaskedLM(config).save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        with pytest.raises(UnsupportedModelError, match=r"type bert, BertForMaskedLM\) is an encoder: not supported"):
            load_model(tmp_path)


class TestSweeps:
    @pytest.mark.parametrize("direction", ["denoise", "noise"])
    def test_every_cell_is_a_forward_pass_of_its_own(self, direction):
        batch = anywhere()
        found = sweep(load(NAME), batch, list(HOOKS), direction=direction)
        twin = sweep(taken_as_causal(), batch, list(HOOKS), direction=direction)
        for site in HOOKS:
            expected = brute_force(NAME, batch, site, direction)
            assert largest_error(found[site], expected) < CLOSE
            assert largest_error(twin[site], expected) > 0.01, site

    @pytest.mark.parametrize("site", ["head_k", "head_v", "head_z", "pattern"])
    def test_heads_by_position(self, site):
        """A key at one token changes the head's z at all tokens, the answer's before it too."""
        batch, bridge = anywhere(), load(NAME).bridge
        found = sweep(load(NAME), batch, site, head_axis="position", heads=[1])
        with torch.no_grad():
            for layer in range(N_LAYERS):
                hook = HOOKS[site].format(layer)
                _, cache = bridge.run_with_cache(batch.clean, names_filter=[hook])
                for position in range(8):
                    where = (slice(None), 1, position) if site == "pattern" else (slice(None), position, 1)

                    def put(value: Tensor, hook: object, where: Any = where, theirs: Tensor = cache[hook]) -> Tensor:
                        value = value.clone()
                        value[where] = theirs[where]
                        return value

                    expected = logit_diff(bridge.run_with_hooks(batch.corrupt, fwd_hooks=[(hook, put)]), batch)
                    assert apart(found.per_example[layer, 0, position], expected) < CLOSE

    def test_what_it_takes(self):
        """All tokens of every row, in each block but behind the last."""
        causal, whole = (estimate_sweep(m, anywhere(), "resid_pre") for m in (taken_as_causal(), load(NAME)))
        assert whole.rows > causal.rows
        assert whole.forward_passes > causal.forward_passes


class TestEdges:
    @torch.no_grad()
    @pytest.mark.parametrize("ablation", ["corrupt", "zero"])
    def test_every_edge(self, ablation):
        clean, corrupt = outputs()
        put = corrupt if ablation == "corrupt" else [torch.zeros_like(said) for said in clean]
        shares = torch.ones(N_WRITERS, N_READERS, dtype=torch.float64)
        whole, expected = of_shares(shares, put), []
        for row, column in edge_places(layout()):
            shares[row, column] = 0
            expected.append(whole - of_shares(shares, put))
            shares[row, column] = 1
        found = patch_edges(load(NAME), anywhere(), direction="noise", ablation=ablation).per_example[:, 0]
        assert apart(found, expected) < CLOSE
        twin = patch_edges(taken_as_causal(), anywhere(), direction="noise", ablation=ablation).per_example[:, 0]
        assert apart(twin, expected) > 0.01

    def test_a_token_behind_the_answer(self):
        """The first prompt is judged at token 0: all that its edges do comes from behind."""
        found = patch_edges(load(NAME), anywhere(), axis="position", direction="noise").per_example
        assert np.abs(found[:, 2:, 0]).max() > 0.01
        into_logits = [n for n, edge in enumerate(layout().edges()) if edge.reader.node.kind is Kind.LOGITS]
        assert not found[into_logits][:, 1:, 0].any()

    @pytest.mark.parametrize("frozen", FROZEN)
    @pytest.mark.parametrize("freeze_mlps", [False, True])
    def test_paths_by_two_runs_with_plain_hooks(self, frozen, freeze_mlps):
        oracle, wrong = TwoRuns(NAME, "noise", anywhere()), 0.0
        for receivers in (("a1.h1", "a1.h3<k>"), ("logits",), ("m0", "a1.h1<v>", "m1")):
            options = {"frozen": frozen, "freeze_mlps": freeze_mlps, "direction": "noise"}
            found = path_patch(load(NAME), anywhere(), None, receivers, **options)
            twin = path_patch(taken_as_causal(), anywhere(), None, receivers, **options)
            for number in {0, *np.random.default_rng(0).permutation(len(found.senders))[:2].tolist()}:
                expected = oracle.effect(found.senders[number], readers(NAME, *receivers), frozen, freeze_mlps)
                assert apart(found.per_example[number], expected) < CLOSE
                wrong = max(wrong, apart(twin.per_example[number], expected))
        assert wrong > 1e-3

    def test_single_components(self):
        """One number of what an MLP adds to the stream."""
        batch, bridge, hook = anywhere(), load(NAME).bridge, "blocks.0.hook_mlp_out"
        found = score_nodes(load(NAME), batch, "exact", level="neuron").values
        writer = next(n for n, node in enumerate(layout().writers) if node.kind is Kind.MLP)
        with torch.no_grad():
            theirs = bridge.run_with_cache(batch.corrupt, names_filter=[hook])[1][hook]
            whole = logit_diff(bridge(batch.clean), batch)
            for component in (0, 17):

                def put(value: Tensor, hook: object, component: int = component) -> Tensor:
                    value = value.clone()
                    value[..., component] = theirs[..., component]
                    return value

                left = logit_diff(bridge.run_with_hooks(batch.clean, fwd_hooks=[(hook, put)]), batch)
                assert apart(found[writer, component], (whole - left).mean()) < CLOSE


class TestCircuits:
    @pytest.mark.parametrize("ablation", ["corrupt", "zero"])
    def test_by_hand(self, ablation):
        """From the ablated run, from the clean run, and with soft masks."""
        model, chosen = load(NAME), masks(1, 0.9, 0.6, 0.3, 0)
        prepared = Experiment(model, anywhere(), ablation=ablation)
        put = outputs()[1] if ablation == "corrupt" else [torch.zeros_like(said) for said in outputs()[0]]
        expected = np.stack([of_shares(torch.tensor(mask).double(), put) for mask in chosen])
        found = prepared.measure(chosen, [METRIC])["logit_diff"]
        assert apart(found, expected) < CLOSE
        ablated = prepared.ablated(next(prepared.baselines))
        from_ablated = run_circuits(model, baseline(), torch.tensor(chosen), ablated)
        assert apart(CleanStart(model, baseline(), ablated).run(chosen), from_ablated) < CLOSE
        assert apart(found[:1], found[2:4]) > 0.01
        prepared = replace(prepared, model=taken_as_causal())
        twin = prepared.measure(chosen, [METRIC])["logit_diff"]
        assert apart(twin, expected) > 0.01

    @torch.no_grad()
    def test_soft_masks(self):
        """What `edge-pruning` and `ugs` learn through: any share of every edge."""
        shares = torch.rand(N_WRITERS, N_READERS, generator=torch.manual_seed(0), dtype=torch.float64)
        for model, right in ((load(NAME), True), (taken_as_causal(), False)):
            final = SoftCircuit(model, baseline()).final(shares.expand(4, -1, -1))
            found = METRIC(model.logits(final), anywhere())
            assert (apart(found, of_shares(shares)) < CLOSE) is right

    def test_the_true_slope_of_a_soft_mask(self):
        shares = torch.ones(4, N_WRITERS, N_READERS, dtype=torch.float64, requires_grad=True)
        final = SoftCircuit(load(NAME), baseline()).final(shares)
        (slope,) = torch.autograd.grad(METRIC(load(NAME).logits(final), anywhere()).mean(), shares)
        real = real_edges(layout())
        assert apart(slope.sum(0)[torch.tensor(real)], slopes(anywhere().clean, outputs()[1])[real]) < CLOSE


class TestScores:
    def test_eap(self):
        expected = slopes(anywhere().clean, outputs()[1]) * real_edges(layout())
        assert apart(score_edges(load(NAME), anywhere(), "eap").values, expected) < CLOSE
        assert apart(score_edges(taken_as_causal(), anywhere(), "eap").values, expected) > 0.01
        assert apart(score_edges(load(NAME), anywhere(), "eap", ablation="zero").values, expected) > 0.01

    def test_eap_under_zero(self):
        zeros = [torch.zeros_like(said) for said in outputs()[0]]
        expected = slopes(anywhere().clean, zeros) * real_edges(layout())
        assert apart(score_edges(load(NAME), anywhere(), "eap", ablation="zero").values, expected) < CLOSE

    def test_integrated_gradients(self):
        """Gradients along the input's path, from runs whose embedding is mixed."""
        (clean, corrupt), steps, on_the_way = outputs(), 3, ByHand()
        expected = np.zeros((N_WRITERS, N_READERS))
        for k in range(1, steps + 1):
            on_the_way.start = torch.lerp(corrupt[0], clean[0], k / steps)
            said = on_the_way.whole(anywhere().clean)[1]
            behind = [now - (a - b) for now, a, b in zip(said, clean, corrupt, strict=True)]
            expected += slopes(anywhere().clean, behind, on_the_way) / steps
        found = score_edges(load(NAME), anywhere(), "eap-ig", steps=steps)
        assert apart(found.values, expected * real_edges(layout())) < CLOSE
        assert apart(score_edges(load(NAME), anywhere(), "eap").values, found.values) > 1e-3

    @pytest.mark.parametrize("method", ["eap-ig", "eap-ig-activations"])
    def test_the_gap_falls_with_steps(self, method):
        gaps = [score_edges(load(NAME), anywhere(), method, steps=m).checks["completeness_gap"] for m in (2, 16)]
        assert gaps[1] < 0.4 * gaps[0]
        assert gaps[1] < 0.1

    @pytest.mark.parametrize(("metric", "threshold"), [("logit_diff", 0.05), ("kl", 0.02)])
    def test_acdc_one_by_one(self, metric, threshold):
        mask, answers, cost = one_by_one(NAME, anywhere(), metric, threshold)
        objective = "kl" if metric == "kl" else "metric"
        scores = score_edges(load(NAME), anywhere(), "acdc", threshold=threshold, objective=objective)
        assert (scores.chosen == mask).all()
        assert 0 < mask.sum() < len(answers)
        assert scores.checks["cost"] == pytest.approx(cost, abs=CLOSE)
        assert scores.checks["batches"] < 0.7 * len(answers)

    @pytest.mark.parametrize("method", OPTIONS)
    def test_learned_masks(self, method):
        """Their soft circuits and slopes are checked above; here that it is these that they learn through."""
        found, twin = (
            score_edges(model, anywhere(), method, updates=3, **OPTIONS[method]).training["kl"]
            for model in (load(NAME), taken_as_causal())
        )
        assert len(found) == 3
        assert abs(found[0] - twin[0]) > 1e-4

    @pytest.mark.parametrize("method", ["relp", "ifr", "clean-corrupted"])
    def test_others_sum_up(self, method):
        scores = score_edges(load(NAME), anywhere(), method)
        if method == "ifr":
            assert apart(scores.values.sum(0), 1) < 1e-6
            return
        nodes = score_nodes(load(NAME), anywhere(), method)
        assert apart(nodes.values, scores.values.sum(1)) < CLOSE
        assert np.abs(nodes.values).max() > 0.01


@pytest.mark.parametrize("batch", [pairs, anywhere])
@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_circuits_of_a_search(batch, ablation):
    """From the clean run; a cut before the first difference is seen, too."""
    model, at = load(NAME), batch()
    rng, real = np.random.default_rng(0), real_edges(layout())
    masks = np.stack([real & (rng.random(real.shape) < share) for share in (0, 0.2, 0.5, 0.8, 0.97, 1)])

    def run(one: BridgeModel) -> Tensor:
        prepared = Experiment(one, at, ablation=ablation)
        return CleanStart(one, *next(prepared.runs)).run(masks)

    prepared = Experiment(model, at, ablation=ablation)
    recorded, ablated = next(prepared.runs)
    expected = run_circuits(model, recorded, torch.tensor(masks), ablated)
    torch.testing.assert_close(run(model), expected, rtol=0, atol=CLOSE)
    if ablation == "corrupt" and batch is pairs:
        assert (run(taken_as_causal()) - expected).abs().max() > 1e-3


def test_texts_of_several_lengths_are_not_filled_up():
    """What fills up a shorter text would be seen by it."""
    model, ids = load(NAME), [[5, 9, 2], [7, 1, 4, 4, 8], [3, 3, 6]]
    found = last_streams(model, ids)
    alone = torch.stack([model.record(torch.tensor([row])).resid_final[0, -1] for row in ids])
    torch.testing.assert_close(found, alone, rtol=0, atol=CLOSE)
    assert (last_streams(taken_as_causal(), ids) - alone).abs().max() > 1e-3


def test_features_matter_wherever_they_differ():
    """A whole pass for every feature and token: behind the answer, and in front of the first difference, too."""
    own, batch = autoencoder(NAME, "resid_post"), anywhere()
    settings: dict[str, Any] = {"axis": "position", "features": range(own.n_features), "normalise": False}
    expected = swept(NAME, own, batch, "denoise")
    grid = sweep_features(load(NAME), own, batch, **settings)
    np.testing.assert_allclose(grid.per_example[0], expected, rtol=0, atol=CLOSE)
    causal = sweep_features(taken_as_causal(), own, batch, **settings)
    assert np.nanmax(np.abs(causal.per_example[0] - expected)) > 1e-3
