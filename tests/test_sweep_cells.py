"""Sweeps beyond the standard ones: heads by position, neurons, other replacements, several metrics, parts, resuming."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, N_HEADS, N_LAYERS, TOLERANCE, load, logit_diff, mixed_pairs, pairs
from test_sweep import HOOKS, roles, with_spans

from circuitlab import sweep
from circuitlab.data.batch import PairBatch
from circuitlab.errors import CircuitLabError, ConfigError, MetricError, RunError, UnknownNameError
from circuitlab.metrics import resolve
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.grid import Grid
from circuitlab.patching.runs.baseline import record_baseline
from circuitlab.patching.runs.packing import Packer
from circuitlab.patching.runs.reach import rows_from
from circuitlab.patching.runs.suffix import run_from_middle, run_suffix
from circuitlab.patching.sweeps import cells as cells_module
from circuitlab.patching.sweeps.plan import plan_sweep
from circuitlab.patching.sweeps.run import start
from circuitlab.patching.sweeps.sweep import estimate_sweep

NEURONS = "blocks.{}.mlp.out.hook_in"
SITES = ["resid_pre", "attn_out", "mlp_out", "head_z"]


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def put_in(name, batch, tokens, hook, change) -> np.ndarray:
    """One whole forward pass of the bridge with an activation changed."""
    with torch.no_grad():
        logits = load(name).bridge.run_with_hooks(tokens, fwd_hooks=[(hook, change)])
    return logit_diff(logits, batch).numpy()


def recorded(name, tokens, hook) -> torch.Tensor:
    with torch.no_grad():
        return load(name).bridge.run_with_cache(tokens, names_filter=[hook])[1][hook]


class TestSuffix:
    """The rows' own tokens give what a whole forward pass of the blocks gives."""

    @pytest.mark.parametrize("layer", range(N_LAYERS))
    def test_one_token_changed_before_a_block(self, name, layer):
        model, batch = load(name), pairs()
        run = record_baseline(model, batch)
        rows = rows_from(model.spec, batch, torch.tensor([0, 1, 1, 3]), torch.tensor([2, 3, 6, 0]))
        change = torch.randn(4, model.spec.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        whole = run.corrupt.resid_pre[layer][rows.example].clone()
        whole[torch.arange(4), rows.first] += change
        expected = model.run_blocks(whole, layer, run.arguments)[torch.arange(4), rows.last]
        stream, touched = rows.of(run.corrupt.resid_pre[layer]), rows.position == rows.first[rows.row]
        stream[touched] += change
        for known in (touched, None):
            found = run_suffix(model, run.corrupt, run.arguments, rows, stream, layer, known)
            assert found == pytest.approx(expected, abs=TOLERANCE[name])
        assert expected != pytest.approx(run.corrupt.resid_final[rows.example, rows.last], abs=1e-3)

    def test_from_the_middle_of_a_block(self, name):
        model, batch = load(name), pairs()
        run = record_baseline(model, batch)
        rows = rows_from(model.spec, batch, torch.arange(4), torch.full((4,), 2))
        layer = 0
        middle = run.corrupt.resid_pre[layer] + run.corrupt.attn_out[layer]
        changed = middle.clone()
        changed[:, 4] += 1.0
        behind = (
            changed + run.corrupt.mlp_out[layer] if model.spec.parallel else changed + model.mlp_output(layer, changed)
        )
        expected = model.run_blocks(behind, layer + 1, run.arguments)[torch.arange(4), batch.answer_at]
        entered = rows.of(behind if model.spec.parallel else changed)
        for known in (rows.position == 4, None):
            found = run_from_middle(model, run.corrupt, run.arguments, rows, entered, layer, known)
            assert found == pytest.approx(expected, abs=TOLERANCE[name])

    def test_a_token_left_out_is_seen(self):
        """A row that begins behind its change gives another number: the comparison above could fail."""
        model, batch = load("gpt2"), pairs()
        run = record_baseline(model, batch)
        late = rows_from(model.spec, batch, torch.arange(4), torch.full((4,), 6))
        wrong = run_suffix(model, run.corrupt, run.arguments, late, late.of(run.clean.resid_pre[0]), 0)
        right = run.clean.resid_final[torch.arange(4), batch.answer_at]
        assert wrong != pytest.approx(right, abs=1e-3)


class TestHeadsByPosition:
    @pytest.mark.parametrize("site", ["head_z", "head_q", "head_k", "head_v", "pattern"])
    def test_brute_force(self, name, site):
        """Some cells of each layer against whole forward passes with that head's value at that token put in."""
        batch, worst, largest = pairs(), 0.0, 0.0
        base, source = roles(batch, "denoise")
        grid = sweep(load(name), batch, site, head_axis="position")
        for layer in range(N_LAYERS):
            hook = HOOKS[site].format(layer)
            theirs = recorded(name, source, hook)
            for head, position in ((0, 2), (1, 5), (1, 6)):
                where = (slice(None), head, position) if site == "pattern" else (slice(None), position, head)

                def put(value, hook, where=where, theirs=theirs):
                    value = value.clone()
                    value[where] = theirs[where]
                    return value

                expected = put_in(name, batch, base, hook, put)
                worst = max(worst, np.abs(grid.per_example[layer, head, position] - expected).max())
                largest = max(largest, np.abs(expected - grid.corrupt).max())
        assert worst < TOLERANCE[name]
        assert largest > 1e-3

    def test_the_table_and_the_picture(self):
        grid = sweep(load("gpt2"), pairs(), "head_z", head_axis="position", heads=[1, 3], positions=[2, 5, 7])
        assert grid.per_example.shape == (N_LAYERS, 2, 3, 4)
        frame = grid.to_frame()
        assert list(frame.columns[:5]) == ["site", "layer", "head", "position", "label"]
        assert sorted(set(frame["head"])) == [1, 3]
        assert sorted(set(frame["position"])) == [2, 5, 7]
        cell = frame[(frame["layer"] == 1) & (frame["head"] == 3) & (frame["position"] == 5)]
        assert cell["value"].item() == grid.values[1, 1, 1]
        assert [text.get_text() for text in grid.plot().axes[0].get_yticklabels()] == [
            "a0.h1",
            "a0.h3",
            "a1.h1",
            "a1.h3",
        ]

    def test_by_span_each_prompt_is_as_if_alone(self):
        mixed = mixed_pairs()
        grid = sweep(load("gpt2"), mixed, "head_v", head_axis="span")
        assert "name" in grid.columns
        assert grid.per_example.shape == (N_LAYERS, N_HEADS, len(grid.columns), len(mixed))
        whole = sweep(load("gpt2"), mixed, "head_v")
        assert np.abs(grid.per_example[..., grid.columns.index("name"), :] - whole.per_example).max() > 1e-3


class TestNeurons:
    def test_brute_force(self, name):
        batch, worst = pairs(), 0.0
        grid = sweep(load(name), batch, "neuron", neurons=[3, 17])
        assert grid.columns == ("3", "17")
        assert grid.column_kind == "neuron"
        for layer in range(N_LAYERS):
            theirs = recorded(name, batch.clean, NEURONS.format(layer))
            for place, neuron in enumerate((3, 17)):

                def put(value, hook, neuron=neuron, theirs=theirs):
                    value = value.clone()
                    value[..., neuron] = theirs[..., neuron]
                    return value

                expected = put_in(name, batch, batch.corrupt, NEURONS.format(layer), put)
                worst = max(worst, np.abs(grid.per_example[layer, place] - expected).max())
        assert worst < TOLERANCE[name]
        assert np.abs(grid.per_example - grid.corrupt).max() > 1e-4

    def test_all_neurons_of_the_last_layer_add_up_where_the_tail_is_linear(self):
        """Behind the last MLP only a norm and the unembedding follow; with its scale held the deltas are a sum."""
        model, batch = load("gpt2"), pairs()
        run = record_baseline(model, batch)
        stream = run.corrupt.resid_pre[1] + run.corrupt.attn_out[1]
        clean = run.clean.resid_pre[1] + run.clean.attn_out[1]
        change = model.mlp_hidden(1, clean) - model.mlp_hidden(1, stream)
        assert change @ model.neuron_weight(1) == pytest.approx(
            run.clean.mlp_out[1] - run.corrupt.mlp_out[1], abs=1e-10
        )

    def test_by_position(self):
        grid = sweep(load("gpt2"), pairs(), "neuron", neurons=[5], head_axis="position", layers=[1])
        assert grid.per_example.shape == (1, 1, 8, 4)
        assert list(grid.to_frame().columns[:4]) == ["site", "layer", "neuron", "position"]


class TestReplacements:
    def test_a_head_set_to_zero(self, name):
        batch, grid = pairs(), sweep(load(name), pairs(), "head_z", ablation="zero")
        assert grid.direction == "noise"

        def zero(value, hook):
            value = value.clone()
            value[:, :, 2] = 0
            return value

        expected = put_in(name, batch, batch.clean, HOOKS["head_z"].format(1), zero)
        assert grid.per_example[1, 2] == pytest.approx(expected, abs=TOLERANCE[name])
        assert expected != pytest.approx(grid.clean, abs=1e-3)

    def test_the_mean_of_other_prompts(self, name):
        batch, other = pairs(), pairs(seed=7)
        grid = sweep(load(name), batch, "attn_out", ablation="mean", reference=other, axis="all")
        hook = HOOKS["attn_out"].format(0)
        mean = recorded(name, other.clean, hook).mean((0, 1))
        expected = put_in(name, batch, batch.clean, hook, lambda value, hook: mean.expand(value.shape))
        # Which tokens lie behind the answer does not matter, and nobody looks there.
        assert grid.per_example[0, 0] == pytest.approx(expected, abs=max(1e-9, TOLERANCE[name]))

    def test_neurons_and_patterns_too(self):
        batch = pairs()
        grids = sweep(load("gpt2"), batch, ["neuron", "pattern"], neurons=[4], ablation="zero")

        def zero_neuron(value, hook):
            value = value.clone()
            value[..., 4] = 0
            return value

        def zero_pattern(value, hook):
            value = value.clone()
            value[:, 1] = 0
            return value

        expected = put_in("gpt2", batch, batch.clean, NEURONS.format(0), zero_neuron)
        assert grids["neuron"].per_example[0, 0] == pytest.approx(expected, abs=1e-10)
        expected = put_in("gpt2", batch, batch.clean, HOOKS["pattern"].format(0), zero_pattern)
        assert grids["pattern"].per_example[0, 1] == pytest.approx(expected, abs=1e-10)

    def test_noise_is_decided_by_its_seed(self):
        one, again, other = (sweep(load("gpt2"), pairs(), "mlp_out", ablation="noise", seed=s) for s in (0, 0, 1))
        assert one.per_example.tobytes() == again.per_example.tobytes()
        assert one.per_example != pytest.approx(other.per_example, abs=1e-3)

    def test_means_of_the_prompts_that_are_scored_are_refused(self):
        with pytest.raises(ConfigError, match="reference"):
            sweep(load("gpt2"), pairs(), ablation="mean", reference=pairs())
        with pytest.raises(ConfigError, match="reference"):
            sweep(load("gpt2"), pairs(), ablation="mean")
        with pytest.raises(UnknownNameError, match="replacement 'zeros'"):
            sweep(load("gpt2"), pairs(), ablation="zeros")

    def test_the_former_name_works_and_says_so(self):
        model, expected = load("gpt2"), sweep(load("gpt2"), pairs(), "mlp_out", ablation="zero")
        with pytest.warns(FutureWarning, match="replacement= is now called ablation=") as warned:
            found = sweep(model, pairs(), "mlp_out", replacement="zero")  # pyright: ignore[reportCallIssue]
        assert warned[0].filename == __file__
        assert (found.per_example == expected.per_example).all()
        with pytest.warns(FutureWarning, match=r"estimate_sweep\(\): replacement= is now called"):
            assert estimate_sweep(model, pairs(), "mlp_out", replacement="zero").rows > 0
        with pytest.raises(ConfigError, match="replacement is now called ablation. Give ablation alone"):
            sweep(model, pairs(), replacement="zero", ablation="zero")  # pyright: ignore[reportCallIssue]


class TestSeveralAtOnce:
    def test_metrics_share_their_runs(self, monkeypatch):
        model, batch, runs = load("gpt2"), pairs(), []
        suffix = cells_module.run_suffix
        monkeypatch.setattr(cells_module, "run_suffix", lambda *a: (runs.append(1), suffix(*a))[1])
        alone = {metric: sweep(model, batch, SITES, metric=metric) for metric in ("logit_diff", "kl")}
        one_by_one = len(runs)
        together = sweep(model, batch, SITES, metric=["logit_diff", "kl"])
        assert len(runs) - one_by_one == one_by_one / 2
        for metric, grids in alone.items():
            for site, grid in grids.items():
                assert together[site].axes == ("metric", *grid.axes)
                found = together[site].of_metric(metric)
                assert (found.metric, found.unit) == (metric, grid.unit)
                assert found.per_example == pytest.approx(grid.per_example, abs=1e-12)
        both = together["head_z"]
        for at, metric in enumerate(alone):
            one = alone[metric]["head_z"]
            for name in ("values", "p_values", "n"):
                assert getattr(both, name)[at] == pytest.approx(getattr(one, name), abs=1e-9)
            assert both.interval.low[at] == pytest.approx(one.interval.low, abs=1e-9)
            assert both.corrected_p_values()[at] == pytest.approx(one.corrected_p_values(), abs=1e-9)
            rows = both.to_frame("holm").query("metric == @metric")
            assert rows["value"].to_list() == pytest.approx(one.values.ravel().tolist(), abs=1e-9)
        with pytest.raises(UnknownNameError, match="unknown metric 'rank' of the grid of head_z"):
            both.of_metric("rank")

    def test_a_local_metric_sees_the_same_logits(self, name):
        whole = lambda logits, batch: resolve("logit_diff").function(logits, batch)  # noqa: E731
        model, batch = load(name), pairs()
        assert sweep(model, batch).per_example == pytest.approx(sweep(model, batch, metric=whole).per_example, abs=1e-9)

    def test_the_stream_behind_a_block_is_the_stream_before_the_next(self):
        grids = sweep(load("gpt2"), pairs(), ["resid_pre", "resid_post"])
        alone = sweep(load("gpt2"), pairs(), "resid_post")
        assert (grids["resid_post"].per_example[0] == grids["resid_pre"].per_example[1]).all()
        assert grids["resid_post"].per_example == pytest.approx(alone.per_example, abs=1e-12)


class TestParts:
    def test_parts_are_the_whole(self, name):
        model, batch = load(name), pairs()
        whole = sweep(model, batch, ["head_k", "resid_pre"])
        part = sweep(model, batch, ["head_k", "resid_pre"], layers=[1], heads=[1], positions=[5, 2])
        assert part["head_k"].layers == (1,)
        assert part["head_k"].per_example == pytest.approx(whole["head_k"].per_example[1:, 1:2], abs=TOLERANCE[name])
        expected = whole["resid_pre"].per_example[1:, [5, 2]]
        assert part["resid_pre"].per_example == pytest.approx(expected, abs=TOLERANCE[name])
        assert part["resid_pre"].to_frame()["position"].tolist() == [5, 2]
        assert part["head_k"].to_frame()["layer"].tolist() == [1]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"layers": [2]}, "layer 2 is out of range: there are 2, numbered 0 to 1"),
            ({"heads": [0, 4]}, "head 4 is out of range: there are 4, numbered 0 to 3"),
            ({"site": "resid_pre", "positions": [-1]}, "position -1 is out of range: there are 8, numbered 0 to 7"),
            ({"site": "neuron", "neurons": [128]}, "neuron 128 is out of range: there are 128"),
            ({"heads": []}, "no head is chosen"),
            ({"heads": [1, 1]}, "name one of them twice"),
            ({"site": []}, "site is an empty list"),
            ({"metric": []}, "metric is an empty list"),
            ({"metric": ["kl", "kl"]}, "two metrics are called"),
        ],
    )
    def test_out_of_range(self, arguments, message):
        with pytest.raises(ConfigError, match=message):
            sweep(load("gpt2"), pairs(), **arguments)

    def test_positions_of_spans(self):
        batch = with_spans(pairs(), both=[[2, 6]] * 4)
        with pytest.raises(ConfigError, match="here the columns are spans"):
            sweep(load("gpt2"), batch, "resid_pre", axis="span", positions=[1])


class TestResume:
    def interrupted(self, path, at=1, **settings):
        def stop(step, done, total):
            self.seen += 1
            if self.seen > at:
                raise KeyboardInterrupt

        self.seen = 0
        with pytest.raises(KeyboardInterrupt):
            sweep(load("gpt2"), pairs(), SITES, progress=stop, resume=path, **settings)

    def test_goes_on_and_gives_the_same_bytes(self, tmp_path, monkeypatch):
        path, parts = tmp_path / "deep" / "sweep.safetensors", []
        whole = sweep(load("gpt2"), pairs(), SITES, budget=10**7)
        self.interrupted(path, budget=10**7)
        assert path.exists()
        suffix = cells_module.run_suffix
        monkeypatch.setattr(cells_module, "run_suffix", lambda *a: (parts.append(a[5]), suffix(*a))[1])
        rest = sweep(load("gpt2"), pairs(), SITES, resume=path)  # the budget comes from the file
        assert min(parts) > 0
        for site in SITES:
            assert rest[site].per_example.tobytes() == whole[site].per_example.tobytes()
        assert list(path.parent.iterdir()) == []

    def test_refuses_the_rest_of_another_sweep(self, tmp_path):
        path = tmp_path / "sweep.safetensors"
        self.interrupted(path)
        before = path.read_bytes()
        for other in ({"site": "head_z"}, {"direction": "noise"}, {"metric": "kl"}, {"pairs": pairs(seed=1)}):
            arguments = {"pairs": pairs(), "site": SITES, **other}
            with pytest.raises(RunError, match="keeps another sweep"):
                sweep(load("gpt2"), resume=path, **arguments)
        assert path.read_bytes() == before

    def test_refuses_the_rest_of_one_with_other_means(self, tmp_path):
        path, mean = tmp_path / "sweep.safetensors", {"ablation": "mean", "reference": pairs(seed=1)}
        self.interrupted(path, **mean)
        with pytest.raises(RunError, match="keeps another sweep"):
            sweep(load("gpt2"), pairs(), SITES, resume=path, ablation="mean", reference=pairs(seed=2))
        rest = sweep(load("gpt2"), pairs(), SITES, resume=path, **mean)
        whole = sweep(load("gpt2"), pairs(), SITES, **mean)
        assert all(np.array_equal(rest[site].per_example, whole[site].per_example, equal_nan=True) for site in SITES)

    def test_refuses_a_damaged_file(self, tmp_path):
        path = tmp_path / "sweep.safetensors"
        path.write_bytes(b"no tensors")
        with pytest.raises(RunError, match="cannot be read as the rest of a sweep"):
            sweep(load("gpt2"), pairs(), resume=path)


class TestMemory:
    def test_halves_the_pack_says_so_once_and_gives_the_same(self, monkeypatch):
        model, suffix = load("gpt2"), cells_module.run_suffix
        expected = sweep(model, pairs(), SITES)

        def small(model, base, frame, rows, *rest):
            if len(rows) > 9:
                raise torch.OutOfMemoryError("no room")
            return suffix(model, base, frame, rows, *rest)

        monkeypatch.setattr(cells_module, "run_suffix", small)
        with pytest.warns(
            ResourceWarning, match="out of memory with .* rows in a pack; going on with half as many"
        ) as said:
            found = sweep(model, pairs(), SITES)
        for site in SITES:
            assert found[site].per_example == pytest.approx(expected[site].per_example, abs=1e-12)
        assert len(said) == 1

    def test_one_row_that_does_not_fit(self):
        def never(rows):
            raise MemoryError

        with pytest.warns(ResourceWarning), pytest.raises(ConfigError, match="does not fit into memory"):
            Packer().run(4, 4, never)

    def test_other_errors_are_not_taken_for_it(self):
        def broken(rows):
            raise RuntimeError("sizes do not match")

        with pytest.raises(RuntimeError, match="sizes do not match"):
            Packer().run(4, 4, broken)

    def test_runs_are_recorded_again_where_they_do_not_fit(self, name):
        mixed = mixed_pairs()
        large, small = (sweep(load(name), mixed, "head_z", budget=budget) for budget in (10**9, 200_000))
        assert large.per_example == pytest.approx(small.per_example, abs=TOLERANCE[name])


class TestEstimate:
    def test_counts_the_rows_that_run(self, monkeypatch):
        rows, suffix = [], cells_module.run_suffix
        estimate = estimate_sweep(load("gpt2"), pairs(), SITES)
        monkeypatch.setattr(cells_module, "run_suffix", lambda *a: (rows.append(len(a[3])), suffix(*a))[1])
        sweep(load("gpt2"), pairs(), SITES)
        assert estimate.rows == sum(rows)
        assert estimate.seconds > 0
        assert estimate.bytes > 0
        assert "patched prompts" in str(estimate)

    def test_refuses_what_the_sweep_refuses(self):
        with pytest.raises(CircuitLabError, match="unknown site"):
            estimate_sweep(load("gpt2"), pairs(), "head_zz")
        batch = pairs()
        with pytest.raises(MetricError, match="nothing to explain"):
            estimate_sweep(
                load("gpt2"), PairBatch.from_tokens(batch.clean, batch.clean, batch.answers, batch.distractors)
            )


def test_the_parts_of_a_sweep_are_its_blocks():
    run = start(plan_sweep(Experiment(load("gpt2"), pairs()), ["resid_pre", "head_z"]))
    assert [part.block for part in run.parts] == [0, 1, 2]
    assert [part.work for part in run.parts] == [12, 8, 4]


def test_p_values_are_corrected_over_the_grid():
    grid = sweep(load("gpt2"), pairs(n=12), "resid_pre")
    holm, shares = grid.corrected_p_values("holm"), grid.corrected_p_values("benjamini-hochberg")
    assert (holm >= grid.p_values).all()
    assert (holm >= shares).all()
    assert holm.min() == pytest.approx(min(1, grid.p_values.min() * grid.p_values.size))
    assert grid.to_frame(correction="holm")["p_value"].tolist() == holm.ravel().tolist()
    with pytest.raises(UnknownNameError, match="correction 'bonferoni'"):
        grid.corrected_p_values("bonferoni")


def test_a_grid_knows_its_axes():
    assert isinstance(sweep(load("gpt2"), pairs()), Grid)
    assert sweep(load("gpt2"), pairs()).members == ()
