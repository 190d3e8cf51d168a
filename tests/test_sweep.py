"""Sweeps: every cell against a forward pass of its own, TransformerLens, the laws of patching, and users' mistakes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    D_VOCAB,
    N_HEADS,
    N_LAYERS,
    TOLERANCE,
    as_users_run_it,
    load,
    logit_diff,
    mixed_pairs,
    pairs,
)
from gpt2_by_hand import Gpt2ByHand

from circuitlab import estimate_sweep, sweep
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, MetricError, UnknownNameError
from circuitlab.metrics import resolve
from circuitlab.patching.grid import Grid

HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "head_z": "blocks.{}.attn.hook_z",
    "head_q": "blocks.{}.attn.hook_q",
    "head_k": "blocks.{}.attn.hook_k",
    "head_v": "blocks.{}.attn.hook_v",
    "pattern": "blocks.{}.attn.hook_pattern",
}
STATISTICS = ("value", "ci_low", "ci_high", "p_value", "n")
# Bytes that hold one or two of the prompts used here.
SMALL_BUDGET = 100_000


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def roles(batch: PairBatch, direction: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts that run, and those whose values are put in."""
    return (batch.corrupt, batch.clean) if direction == "denoise" else (batch.clean, batch.corrupt)


def brute_force(name: str, batch: PairBatch, site: str, direction: str) -> np.ndarray:
    """Every cell by a whole forward pass of the bridge with that one value put in; a layer's cells are one batch."""
    bridge = load(name).bridge
    base, source = roles(batch, direction)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(source, names_filter=[HOOKS[site].format(layer) for layer in range(N_LAYERS)])

    def layer_of_cells(layer: int) -> list[np.ndarray]:
        hook = HOOKS[site].format(layer)
        axis = 2 if site.startswith("head") else 1
        width = cache[hook].shape[axis]

        def put(value: torch.Tensor, hook: object) -> torch.Tensor:
            cells = list(value.split(len(batch)))
            for column, cell in enumerate(cells):
                cells[column] = cell.clone()
                cells[column].select(axis, column)[:] = theirs.select(axis, column)
            return torch.cat(cells)

        theirs = cache[hook]
        with torch.no_grad():
            logits = bridge.run_with_hooks(base.repeat(width, 1), fwd_hooks=[(hook, put)])
        return [logit_diff(cell, batch).numpy() for cell in logits.split(len(batch))]

    return np.array([layer_of_cells(layer) for layer in range(N_LAYERS)])


def largest_error(grid: Grid, expected: np.ndarray) -> float:
    assert grid.per_example.shape == expected.shape
    return float(np.abs(grid.per_example - expected).max())


class TestBruteForce:
    """Each cell is what a whole forward pass with that one value changed gives."""

    @pytest.mark.parametrize("site", HOOKS)
    def test_denoising(self, name, site):
        batch = pairs()
        expected = brute_force(name, batch, site, "denoise")
        grid = sweep(load(name), batch, site)
        assert largest_error(grid, expected) < TOLERANCE[name]
        # The cells differ among each other by far more than that: the comparison could have failed.
        assert np.ptp(expected, axis=1).max() > 0.05

    @pytest.mark.parametrize("site", ["resid_pre", "attn_out", "head_z", "head_k"])
    def test_noising(self, name, site):
        batch = pairs()
        noised = brute_force(name, batch, site, "noise")
        assert largest_error(sweep(load(name), batch, site, direction="noise"), noised) < TOLERANCE[name]
        assert largest_error(sweep(load(name), batch, site, direction="denoise"), noised) > 0.05

    @pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "neox"])
    @pytest.mark.parametrize("direction", ["denoise", "noise"])
    def test_resid_mid_is_the_stream_that_mlp_and_skip_connection_share(self, name, direction):
        batch, bridge = pairs(), load(name).bridge
        base, source = roles(batch, direction)
        (_, ours), (_, theirs) = bridge.run_with_cache(base), bridge.run_with_cache(source)

        def middle(cache, layer):
            return cache[HOOKS["resid_pre"].format(layer)] + cache[HOOKS["attn_out"].format(layer)]

        def patched(layer, position):
            delta = torch.zeros_like(middle(ours, layer))
            delta[:, position] = (middle(theirs, layer) - middle(ours, layer))[:, position]
            hooks = [(HOOKS["attn_out"].format(layer), lambda value, hook: value + delta)]
            return logit_diff(bridge.run_with_hooks(base, fwd_hooks=hooks), batch)

        with torch.no_grad():
            expected = np.array([[patched(layer, i).numpy() for i in range(8)] for layer in range(N_LAYERS)])
        grid = sweep(load(name), batch, "resid_mid", direction=direction)
        assert largest_error(grid, expected) < TOLERANCE[name]

    def test_resid_mid_against_gpt2_half_layer_by_half_layer(self):
        batch, transformer = pairs(), Gpt2ByHand().hf.transformer

        def stream(tokens, stop=None, patch=None):
            """The stream between attention and MLP of layer `stop`, or the final one with `patch` put there."""
            x = transformer.wte(tokens) + transformer.wpe(torch.arange(tokens.shape[1]))
            for layer, block in enumerate(transformer.h):
                x = x + block.attn(block.ln_1(x))[0]
                if layer == stop:
                    if patch is None:
                        return x
                    position, value = patch
                    x = x.clone()
                    x[:, position] = value[:, position]
                x = x + block.mlp(block.ln_2(x))
            return transformer.ln_f(x) @ transformer.wte.weight.T

        with torch.no_grad():
            expected = [
                [
                    logit_diff(stream(batch.corrupt, layer, (i, stream(batch.clean, layer))), batch).numpy()
                    for i in range(8)
                ]
                for layer in range(N_LAYERS)
            ]
        assert largest_error(sweep(load("gpt2"), batch, "resid_mid"), np.array(expected)) < 1e-10


class TestTransformerLens:
    """The same numbers as `transformer_lens.patching`, which runs the whole model for every cell."""

    @pytest.mark.parametrize(
        ("site", "function"),
        [
            ("resid_pre", "get_act_patch_resid_pre"),
            ("resid_mid", "get_act_patch_resid_mid"),
            ("attn_out", "get_act_patch_attn_out"),
            ("mlp_out", "get_act_patch_mlp_out"),
            ("head_z", "get_act_patch_attn_head_out_all_pos"),
            ("head_q", "get_act_patch_attn_head_q_all_pos"),
            ("head_k", "get_act_patch_attn_head_k_all_pos"),
            ("head_v", "get_act_patch_attn_head_v_all_pos"),
            ("pattern", "get_act_patch_attn_head_pattern_all_pos"),
        ],
    )
    def test_agrees(self, site, function):
        # TransformerLens keeps its results in float32.
        assert largest_error(sweep(load("gpt2"), pairs(), site), self.by_transformer_lens(function)) < 2e-6

    def by_transformer_lens(self, function: str) -> np.ndarray:
        from transformer_lens import patching

        batch, bridge = pairs(), load("gpt2").bridge
        with torch.no_grad():
            _, cache = bridge.run_with_cache(batch.clean)
            run = getattr(patching, function)
            found = run(bridge, batch.corrupt, cache, lambda logits: logit_diff(logits, batch), reduce="none")
        return found.values.numpy()


class TestLaws:
    """What must hold on every model, whatever the numbers are."""

    def test_patching_everything_at_the_start_gives_the_clean_run(self, name):
        grid = sweep(load(name), pairs(), "resid_pre", axis="all")
        assert grid.columns == ("all",)
        assert grid.values[:, 0] == pytest.approx(np.ones(N_LAYERS), abs=1e-5)
        assert grid.per_example[0, 0] == pytest.approx(grid.clean, abs=1e-5)

    def test_the_other_way_round_it_gives_the_corrupted_run(self, name):
        grid = sweep(load(name), pairs(), "resid_pre", axis="all", direction="noise")
        assert grid.values[:, 0] == pytest.approx(np.zeros(N_LAYERS), abs=1e-5)

    def test_a_span_is_patched_as_a_whole(self, name):
        """Not the sum of its tokens' patches: both changed tokens together restore everything, each alone does not."""
        batch = with_spans(pairs(), both=[[2, 6]] * 4)
        by_span = sweep(load(name), batch, "resid_pre", axis="span")
        assert by_span.columns == ("start", "both", "after both")
        assert by_span.values[0] == pytest.approx([0, 1, 0], abs=1e-5)
        alone = sweep(load(name), batch, "resid_pre", axis="position").values[0, [2, 5]]
        assert abs(alone.sum() - 1) > 1e-3

    @pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out", "resid_mid"])
    def test_a_shared_prefix_is_the_base_run_to_the_bit(self, site):
        model = load("gpt2")
        for direction in ("denoise", "noise"):
            grid = sweep(model, pairs(), site, direction=direction)
            base = grid.corrupt if direction == "denoise" else grid.clean
            assert (grid.per_example[:, :2] == base).all()
            assert (grid.per_example[0, 2] != base).all()

    def test_cells_without_effect_have_no_p_value_to_speak_of(self):
        grid = sweep(load("gpt2"), pairs(n=8), "resid_pre")
        assert (grid.per_example[:, :2] == grid.corrupt).all()
        assert (grid.p_values[:, :2] == 1).all()

    def test_nothing_after_the_answer_matters(self, name):
        batch = pairs()
        odd = np.arange(len(batch)) % 2 == 1  # judged at the last token but one
        grid = sweep(load(name), batch, ["resid_pre", "resid_post"])
        for site in grid.values():
            assert site.per_example[:, -1, odd] == pytest.approx(
                np.broadcast_to(site.corrupt[odd], (N_LAYERS, odd.sum())), abs=1e-6
            )

    def test_the_budget_changes_nothing(self, name):
        model, batch, sites = load(name), pairs(), ["resid_pre", "attn_out", "mlp_out", "head_q", "pattern"]
        whole, packed = (sweep(model, batch, sites, budget=budget) for budget in (10**9, SMALL_BUDGET))
        for site in sites:
            assert whole[site].per_example == pytest.approx(packed[site].per_example, abs=TOLERANCE[name])

    def test_the_order_of_the_batch_changes_nothing(self, name):
        model, batch, order = load(name), pairs(), torch.tensor([2, 0, 3, 1])
        sites = ["resid_pre", "head_z", "head_v"]
        straight, shuffled = sweep(model, batch, sites), sweep(model, batch.take(order), sites)
        for site in sites:
            expected = straight[site].per_example
            assert shuffled[site].per_example == pytest.approx(expected[..., order], abs=TOLERANCE[name])
            assert shuffled[site].per_example != pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize("rows", [[1], [2, 3], [1, 1]])
    def test_a_part_of_a_batch_is_a_batch(self, rows):
        model, batch = load("gpt2"), pairs()
        part = sweep(model, batch.take(torch.tensor(rows)), "head_z")
        assert part.per_example == pytest.approx(sweep(model, batch, "head_z").per_example[..., rows])

    def test_several_sites_are_the_sites_one_by_one(self, name):
        model, sites = load(name), ["head_z", "mlp_out", "resid_pre"]
        together = sweep(model, pairs(), sites)
        assert list(together) == sites
        for site, grid in together.items():
            assert grid.per_example == pytest.approx(sweep(model, pairs(), site).per_example, abs=TOLERANCE[name])

    def test_normalisation_is_a_ratio_of_means(self):
        grid = sweep(load("gpt2"), pairs(), "head_z")
        raw = sweep(load("gpt2"), pairs(), "head_z", normalise=False)
        assert raw.values == pytest.approx(grid.per_example.mean(2))
        gap = grid.clean.mean() - grid.corrupt.mean()
        assert grid.values == pytest.approx((raw.values - grid.corrupt.mean()) / gap, abs=1e-6)
        mean_of_ratios = ((grid.per_example - grid.corrupt) / (grid.clean - grid.corrupt)).mean(2)
        assert np.abs(grid.values - mean_of_ratios).max() > 0.01

    def test_grouped_keys_keep_the_models_own_heads(self):
        grids = sweep(load("llama"), pairs(), ["head_q", "head_k", "head_v", "head_z", "pattern"])
        widths = {site: len(grid.columns) for site, grid in grids.items()}
        assert widths == {"head_q": 4, "head_k": 2, "head_v": 2, "head_z": 4, "pattern": 4}

    def test_other_metrics_are_judged_at_the_same_place(self):
        model, batch = load("gpt2"), pairs()
        for metric in ("log_prob", "kl"):
            grid = sweep(model, batch, "resid_pre", metric=metric, axis="all")
            assert grid.per_example[0, 0] == pytest.approx(grid.clean, abs=1e-6)
        assert grid.clean == pytest.approx(np.zeros(4), abs=1e-12)  # kl to itself
        assert (grid.corrupt > 0).all()

    def test_a_function_of_logits_and_batch_serves(self):
        def twice(logits, batch):
            return 2 * resolve("logit_diff")(logits, batch)

        doubled, plain = (sweep(load("gpt2"), pairs(), metric=metric) for metric in (twice, "logit_diff"))
        assert doubled.metric == "twice"
        assert doubled.per_example == pytest.approx(2 * plain.per_example)
        assert doubled.values == pytest.approx(plain.values)


def with_spans(batch: PairBatch, **spans: list[list[int]]) -> PairBatch:
    from dataclasses import replace

    return replace(batch, spans={name: torch.tensor(ranges) for name, ranges in spans.items()})


@pytest.fixture(scope="module")
def mixed() -> PairSet:
    return mixed_pairs()


class TestPromptsOfDifferentLength:
    """They are bucketed, never padded: each prompt's numbers are those it has alone."""

    def test_each_prompt_is_as_if_alone(self, name, mixed):
        model, sites = load(name), ["resid_pre", "attn_out", "head_z", "head_k"]
        together = sweep(model, mixed, sites, axis="span")
        for place in range(3):  # one of each length
            alone = sweep(model, PairSet((mixed[place],)), sites, axis="span")
            for site in sites:
                for column, label in enumerate(alone[site].columns):
                    there = together[site].per_example[:, together[site].columns.index(label), place]
                    assert there == pytest.approx(alone[site].per_example[:, column, 0], abs=TOLERANCE[name])

    def test_spans_are_the_columns_by_default_and_a_missing_one_is_no_number(self, mixed):
        grid = sweep(load("gpt2"), mixed, "resid_pre")
        assert grid.column_kind == "span"
        assert grid.columns[0] == "start"
        assert [c for c in grid.columns if c in ("opening", "name", "end")] == ["opening", "name", "end"]
        assert grid.values[0, grid.columns.index("name")] == pytest.approx(1)
        assert grid.values[0, grid.columns.index("opening")] == pytest.approx(0, abs=1e-6)

    def test_an_example_without_the_span_does_not_count(self):
        batch = with_spans(pairs(), some=[[2, 3], [2, 3], [0, 0], [2, 3]])
        grid = sweep(load("gpt2"), batch, "resid_pre", axis="span")
        column = grid.columns.index("some")
        assert grid.n[:, column].tolist() == [3] * N_LAYERS
        assert np.isnan(grid.per_example[:, column, 2]).all()
        there = [0, 1, 3]
        gap = (grid.clean - grid.corrupt)[there].mean()
        expected = (grid.per_example[:, column, there] - grid.corrupt[there]).mean(1) / gap
        assert grid.values[:, column] == pytest.approx(expected)

    def test_a_rare_span_has_an_interval(self):
        batch = with_spans(pairs(), rare=[[2, 3], [0, 0], [0, 0], [0, 0]])
        grid = sweep(load("gpt2"), batch, "resid_pre", axis="span")
        assert np.isfinite(grid.interval.low[:, grid.columns.index("rare")]).all()

    def test_positions_count_from_the_answer_backwards(self, mixed):
        """Each prompt's numbers are those it has alone, its last token in the last column."""
        from dataclasses import replace

        bare = PairSet(tuple(replace(pair, spans={}) for pair in mixed))
        grid = sweep(load("gpt2"), bare, "resid_pre")
        longest = max(map(len, bare))
        assert (grid.column_kind, grid.numbers) == ("position", tuple(range(-longest, 0)))
        for place in range(3):
            alone = sweep(load("gpt2"), PairSet((bare[place],)), "resid_pre", axis="position", normalise=False)
            n = len(bare[place])
            assert np.allclose(grid.per_example[:, longest - n :, place], alone.per_example[:, :, 0], atol=1e-5)
            assert np.isnan(grid.per_example[:, : longest - n, place]).all()
        assert grid.n[0].tolist() == [sum(len(pair) >= -number for pair in bare) for number in grid.numbers]
        assert grid.columns[-2] == " left"
        frame = grid.to_frame()
        assert sorted(set(frame["position"])) == list(grid.numbers)
        assert "counted from the end" in grid.plot().axes[0].get_xlabel()
        asked = sweep(load("gpt2"), mixed, "resid_pre", axis="position", positions=[-1, -3])
        assert asked.numbers == (-1, -3)
        assert np.allclose(asked.per_example[:, 0], grid.per_example[:, -1], atol=1e-6)
        for wrong in ([0], [-longest - 1], [-1, -1], []):
            with pytest.raises(ConfigError, match="position"):
                sweep(load("gpt2"), bare, "resid_pre", positions=wrong)

    def test_a_span_of_the_task_s_own_is_not_taken_for_a_gap(self):
        """Gaps are named "start" and "after x"; a span called so keeps its own tokens."""
        batch = with_spans(pairs(), start=[[2, 3]] * 4)
        grid = sweep(load("gpt2"), batch, "resid_pre", axis="span")
        by_position = sweep(load("gpt2"), batch, "resid_pre", axis="position")
        assert sorted(grid.columns) == ["(start)", "after start", "start"]
        assert np.allclose(grid.values[:, grid.columns.index("start")], by_position.values[:, 2], atol=1e-5)

    def test_by_head_their_lengths_do_not_matter(self, mixed):
        assert sweep(load("gpt2"), mixed, "head_z").per_example.shape == (N_LAYERS, N_HEADS, len(mixed))


class TestFrame:
    def test_by_position(self):
        frame = sweep(load("gpt2"), pairs(), "attn_out").to_frame()
        assert list(frame.columns) == ["site", "layer", "position", "label", *STATISTICS]
        assert frame[["layer", "position"]].to_numpy().tolist() == [[i, j] for i in range(N_LAYERS) for j in range(8)]

    def test_by_span(self, mixed):
        grid = sweep(load("gpt2"), mixed, "attn_out")
        frame = grid.to_frame()
        assert list(frame.columns) == ["site", "layer", "span", *STATISTICS]
        assert frame["span"].tolist() == [*grid.columns] * N_LAYERS

    def test_by_head(self):
        grid = sweep(load("gpt2"), pairs(), "head_z")
        frame = grid.to_frame()
        assert list(frame.columns) == ["site", "layer", "head", *STATISTICS]
        assert frame.loc[(frame["layer"] == 1) & (frame["head"] == 2), "value"].item() == grid.values[1, 2]
        assert (frame["ci_low"] <= frame["value"]).all()
        assert (frame["value"] <= frame["ci_high"]).all()
        assert frame["p_value"].between(0, 1).all()
        assert (frame["n"] == 4).all()


class TestMistakes:
    """The text that somebody sees who gets it wrong."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"site": "head_zz"}, r"unknown site 'head_zz'. Did you mean 'head_z'\? Allowed: resid_pre, resid_mid,"),
            ({"site": ["head_z", "mlpout"]}, r"unknown site 'mlpout'. Did you mean 'mlp_out'\?"),
            ({"direction": "denoising"}, r"unknown direction 'denoising'. Did you mean 'denoise'\?"),
            ({"axis": "positions", "site": "resid_pre"}, r"unknown axis 'positions'. Did you mean 'position'\?"),
            ({"metric": "logitdiff"}, r"unknown metric 'logitdiff'. Did you mean 'logit_diff'\?"),
        ],
    )
    def test_names(self, arguments, message):
        with pytest.raises(UnknownNameError, match=message):
            sweep(load("gpt2"), pairs(), **arguments)

    def test_nothing_stands_between_parallel_parts(self):
        with pytest.raises(UnknownNameError, match="has no site 'resid_mid': attention and MLP read the same stream"):
            sweep(load("neox"), pairs(), "resid_mid")

    def test_no_spans(self):
        with pytest.raises(ConfigError, match="these pairs carry no spans"):
            sweep(load("gpt2"), pairs(), "resid_pre", axis="span")

    def test_a_budget_that_holds_no_prompt(self):
        with pytest.raises(ConfigError, match="a memory budget of 1000 bytes does not hold one prompt of 8 tokens"):
            sweep(load("gpt2"), pairs(), budget=1000)

    @pytest.mark.parametrize(
        ("metric", "message"),
        [
            (lambda logits, batch: logits.mean(), r"returned shape \(\) for 4 examples"),
            (lambda logits, batch: logits[:, :2], r"returned shape \(4, 2\) for 4 examples"),
            (lambda logits, batch: 1.0, r"returned float for 4 examples"),
            (lambda logits, batch: logits[:, 0] * float("nan"), "returned NaN, first for example 0"),
        ],
    )
    def test_metrics(self, metric, message):
        with as_users_run_it(), pytest.raises(MetricError, match=message):
            sweep(load("gpt2"), pairs(), metric=metric)

    def test_equal_prompts_leave_nothing_to_explain(self):
        batch = pairs()
        same = PairBatch.from_tokens(batch.clean, batch.clean, batch.answers, batch.distractors)
        with pytest.raises(MetricError, match="with no difference there is nothing to explain"):
            sweep(load("gpt2"), same)

    def test_what_is_no_metric(self):
        with as_users_run_it(), pytest.raises(ConfigError, match="metric is 3, of type int; it must be str or Metric"):
            sweep(load("gpt2"), pairs(), metric=3)

    def test_and_say_so_before_the_work(self):
        steps = []
        with pytest.raises(MetricError):
            sweep(
                load("gpt2"),
                pairs(),
                metric=lambda logits, batch: logits[:, 0] * 0,
                progress=lambda *at: steps.append(at),
            )
        assert not steps

    def test_pairs_that_are_none(self):
        wanted = r"pairs is .* of type list; it must be task.pairs\(...\).discovery, .held_out or PairBatch"
        with as_users_run_it(), pytest.raises(ConfigError, match=wanted):
            sweep(load("gpt2"), [[1, 2], [3, 4]])


def test_progress_ends_where_it_said_it_would():
    steps = []
    sweep(load("gpt2"), pairs(), ["head_z", "mlp_out"], progress=lambda *at: steps.append(at))
    done = [at for _, at, _ in steps]
    assert done == sorted(done)
    assert done[0] > 0
    assert steps[-1] == ("sweep", done[-1], done[-1])
    assert {total for *_, total in steps} == {done[-1]}


def test_tokens_are_of_the_models_vocabulary():
    """The prompts above reach the ends of the vocabulary, where an off-by-one would show."""
    batch: Callable[[], PairBatch] = pairs
    assert 0 in batch().clean
    assert batch(n=64).clean.max() >= D_VOCAB - 10


def test_a_setting_that_a_sweep_does_not_have_is_named():
    with pytest.raises(UnknownNameError, match="'ablatoin'"):
        estimate_sweep(load("gpt2"), pairs(), ablatoin="zero")
