"""Objects where names go: methods, sites, ablations and models of the user, and what a package offers by name."""

import hashlib
import inspect
import json
import subprocess
import sys
import tomllib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import TOLERANCE, load, mixed_pairs, pairs
from test_docs import ROOT, blocks, commands

from circuitlab import (
    Replacement,
    discover,
    evaluate,
    load_model,
    load_run,
    patch_edges,
    reproduce,
    score_edges,
    score_nodes,
    select,
    stability,
    sweep,
)
from circuitlab import test_circuit as tested
from circuitlab.cli import main
from circuitlab.cli.command import completing
from circuitlab.declarations import Setting
from circuitlab.discovery.method import Method
from circuitlab.discovery.scoring import METHODS, find_method
from circuitlab.errors import CircuitLabError, ConfigError, MetricError, RunError, UnknownNameError, WrongTypeError
from circuitlab.metrics import resolve
from circuitlab.names import METHODS as NAMES
from circuitlab.parts import Layout
from circuitlab.patching.runs.writers import writer_outputs
from circuitlab.patching.sweeps.sites import SITES, SUMS_OF_NODES, Entry, Member, Site, find_site

PACKAGE = Path(__file__).parent / "fixtures" / "my-parts"
PAGE = ROOT / "docs" / "extending.md"
MODELS = ("gpt2", "gemma2", "neox", "mpt", "attn-only")
ASKED = {"n": 4, "selection": {"n_edges": 40}, "allow_weak_gap": True}
BAD = {"methods": "eap", "metrics": "kl", "sites": "head_z"}  # names that circuitlab has
BY_ABLATION = ("eap", "clean-corrupted", "eap-ig-activations", "exact")


def names(model):
    return [node.name for node in Layout.of(model.spec).writers]


def from_corrupted(model, batch):
    return dict(zip(names(model), writer_outputs(model, model.record(batch.corrupt)), strict=True))


def nothing(model, batch):
    return {name: torch.zeros(*batch.clean.shape, model.spec.d_model, dtype=model.dtype) for name in names(model)}


def by_eap(model, given, metric):
    return score_edges(model, given, "eap", metric=metric)


def matrix(model, given, metric, *, ablation, steps=2):
    return torch.tensor(
        score_edges(model, given, "eap-ig-activations", metric=metric, ablation=ablation, steps=steps).values
    )


class TestMethods:
    def test_a_function_equals_the_method_that_it_wraps(self):
        model = load("native")
        expected = score_edges(model, pairs(), "eap", metric="prob_diff")
        for found in (
            score_edges(model, pairs(), by_eap, metric="prob_diff"),
            score_edges(model, pairs(), METHODS["eap"], metric="prob_diff"),
        ):
            assert np.array_equal(found.values, expected.values)
            assert np.array_equal(found.standard_error, expected.standard_error)
        assert not np.array_equal(score_edges(model, pairs(), by_eap).values, expected.values)

    def test_a_tensor_is_wrapped_under_the_name_of_the_function(self):
        model = load("native")
        found = score_edges(model, pairs(), matrix, ablation="zero", steps=3)
        expected = score_edges(model, pairs(), "eap-ig-activations", ablation="zero", steps=3)
        assert (found.method, found.metric, found.n_examples) == ("matrix", "logit_diff", 4)
        assert np.array_equal(found.values, expected.values)
        assert np.isnan(found.standard_error).all()
        assert not np.array_equal(found.values, score_edges(model, pairs(), matrix, ablation="zero").values)

    @pytest.mark.parametrize(
        ("method", "message"),
        [
            (
                lambda model, given, metric: torch.zeros(3, 3),
                r"returned float64 of shape \(3, 3\); .* of shape \(\d+, \d+\)",
            ),
            (lambda model, given, metric: None, "returned None; it must return EdgeScores"),
            (lambda model, given, metric: by_eap(model, given, metric).values * np.nan, "scores edge .* with nan"),
            (lambda model, given, metric: by_eap(load("attn-only"), given, metric), "returned scores of model"),
            (lambda model: None, r"cannot be called with \(model, pairs, metric\)"),
            (lambda model, given, metric, more: None, r"cannot be called with \(model, pairs, metric\)"),
            (lambda model, given, metric: given.gone, "method '<lambda>' raised AttributeError: "),
            (lambda model, given, metric: sys.exit("enough"), "method '<lambda>' raised SystemExit: enough"),
            (Method(name="mine", score=lambda experiment: 1 / 0), "method 'mine' raised ZeroDivisionError: division"),
            (
                Method(name="mine", score=lambda experiment: None),
                "'mine' returned None; it must return",
            ),
            (
                Method(name="mine", score=lambda model, given, metric: 0),
                r"score of method 'mine' cannot be called with \(experiment\)\. .* method=function\.",
            ),
            (
                Method(name="mine", score=lambda experiment: 0, takes=("steps",)),
                r"cannot be called with \(experiment\), and by keyword steps\.",
            ),
            (
                Method(name="eap", score=METHODS["exact"].score),
                "method 'eap' is built in. Give the object another name",
            ),
            (
                Method(name="mine", score=METHODS["eap"].score, check=lambda: 1 / 0),
                "check of method 'mine' raised ZeroDivisionError",
            ),
        ],
    )
    def test_what_is_no_scores_is_refused(self, method, message):
        with pytest.raises(ConfigError, match=message) as raised:
            score_edges(load("native"), pairs(), method)
        assert "\n" not in str(raised.value)

    def test_a_method_may_return_an_array(self):
        mine = Method(name="mine", score=lambda it: by_eap(it.model, it.pairs, it.metric).values, in_metric=False)
        found, expected = (score_edges(load("native"), pairs(), method) for method in (mine, by_eap))
        assert (found.method, np.array_equal(found.values, expected.values)) == ("mine", True)

    def test_what_is_no_function_and_no_option_is_refused(self):
        with pytest.raises(TypeError, match="score"):  # a type checker that tests run under may come first
            Method(name="mine", score=3)  # pyright: ignore[reportArgumentType]

        def bare(model, given, metric, *, n: Setting(what="a number") = 3):  # pyright: ignore
            return by_eap(model, given, metric)

        with pytest.raises(WrongTypeError, match=r"n is annotated with a Setting alone, .* Annotated.type, Setting"):
            score_edges(load("native"), pairs(), bare)

    def test_an_error_of_a_built_in_method_stays_what_it_is(self, monkeypatch):
        monkeypatch.setitem(METHODS, "eap", replace(METHODS["eap"], score=lambda experiment, **given: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            score_edges(load("native"), pairs(), "eap")

    def test_an_ablation_that_it_does_not_take_is_refused(self):
        with pytest.raises(ConfigError, match="'by_eap' takes no ablation 'zero': its function has no parameter"):
            score_edges(load("native"), pairs(), by_eap, ablation="zero")

    def test_stability_takes_it(self):
        found = stability(load("native"), pairs(), by_eap, n_resamples=2, n_edges=5)
        assert found.method == "by_eap"
        assert np.array_equal(found.chosen, stability(load("native"), pairs(), "eap", n_resamples=2, n_edges=5).chosen)


class TestAblations:
    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("method", BY_ABLATION)
    def test_scores_equal_those_of_the_built_in_one(self, name, method):
        model, options = load(name), {"steps": 2} if "steps" in METHODS[method].takes else {}
        for function, built_in in ((from_corrupted, "corrupt"), (nothing, "zero")):
            found = score_edges(model, pairs(), method, ablation=function, **options).values
            expected = score_edges(model, pairs(), method, ablation=built_in, **options).values
            assert found == pytest.approx(expected, abs=TOLERANCE[name] * abs(expected).max())
            assert abs(expected).max() > 0

    def test_the_check_above_can_fail(self):
        model = load("native")
        zero, corrupt = (score_edges(model, pairs(), "eap", ablation=of).values for of in (nothing, "corrupt"))
        assert abs(zero - corrupt).max() > 1e-3 * abs(corrupt).max()

    @pytest.mark.parametrize("name", MODELS)
    def test_circuits_equal_those_of_the_built_in_one(self, name):
        model = load(name)
        scores = score_edges(model, pairs(), "eap")
        circuit = select(model, scores, pairs(), n_edges=30)
        for function, built_in in ((from_corrupted, "corrupt"), (nothing, "zero")):
            arguments = {"n_random": 2, "n_knockouts": 1, "allow_weak_gap": True, "seed": 0}
            found, expected = (
                evaluate(model, circuit, pairs(), ablation=of, **arguments) for of in (function, built_in)
            )
            for part in ("circuit", "empty", "clean"):
                assert getattr(found, part) == pytest.approx(getattr(expected, part), abs=10 * TOLERANCE[name])
            assert found.ablation == function.__name__

    @pytest.mark.parametrize("name", MODELS)
    def test_sweeps_of_sums_of_nodes_take_it(self, name):
        model, sites = load(name), []
        for site in SUMS_OF_NODES:
            with suppress(UnknownNameError):  # that the model does not have
                sites.append(find_site(site, model.spec).name)
        arguments = {"direction": "noise", "head_axis": "position", "axis": "position"}
        expected = sweep(model, pairs(), sites, **arguments)
        found = sweep(model, pairs(), sites, ablation=from_corrupted, **arguments)
        for site, grid in expected.items():
            if site == "head_z" and name == "gemma2":  # a sweep recomputes the norm after the heads
                continue
            assert found[site].per_example == pytest.approx(grid.per_example, abs=10 * TOLERANCE[name])
            assert np.ptp(grid.per_example, axis=-1).max() > 0
        assert sweep(model, pairs(), ablation=from_corrupted).direction == "noise"
        twin = sweep(model, pairs(), "attn_out", ablation=nothing)
        assert not np.allclose(twin.per_example, found["attn_out"].per_example[..., :1, :])

    @pytest.mark.parametrize("level", ["node", "neuron"])
    def test_exact_scores_of_nodes_take_it(self, level):
        found, expected = (
            score_nodes(load("native"), pairs(), "exact", level=level, ablation=of).values
            for of in (from_corrupted, "corrupt")
        )
        assert found == pytest.approx(expected, abs=1e-6)
        assert abs(expected).max() > 0

    def test_tests_and_patches_and_selection_take_it(self):
        model = load("native")
        scores = score_edges(model, pairs(), "eap")
        circuit = select(model, scores, pairs(), n_edges=30)
        found, expected = (
            tested(model, circuit, pairs(), ablation=of, n_random=2, n_permutations=20) for of in (nothing, "zero")
        )
        assert [one.statistic for one in found.results] == pytest.approx(
            [one.statistic for one in expected.results], abs=1e-9
        )
        one, other = (patch_edges(model, pairs(), circuit.mask, ablation=of).per_example for of in (nothing, "zero"))
        assert one == pytest.approx(other, abs=1e-9)
        chosen, named = (
            select(model, scores, pairs(), 0.5, ablation=of, allow_weak_gap=True).mask for of in (nothing, "zero")
        )
        assert np.array_equal(chosen, named)

    def test_it_is_called_once_for_all_prompts_of_a_length(self):
        calls = []

        def counted(model, batch):
            calls.append(tuple(batch.clean.shape))
            return nothing(model, batch)

        model = load("native")
        circuit = select(model, score_edges(model, pairs(), "eap"), pairs(), n_edges=30)
        evaluate(
            model, circuit, pairs(), ablation=counted, n_random=2, n_knockouts=1, allow_weak_gap=True, budget=2**21
        )
        assert calls == [(4, 8)]
        mixed, calls[:] = mixed_pairs(), []
        one, other = (score_edges(load("gpt2"), mixed, "eap", ablation=of).values for of in (counted, "zero"))
        assert one == pytest.approx(other, abs=1e-10)
        assert sorted(calls) == sorted(tuple(batch.clean.shape) for batch in mixed.batches("cpu"))
        assert len(calls) == 3

    def test_resamples_take_it(self):
        given = {"n_resamples": 2, "target": 0.5, "allow_weak_gap": True}
        found, named = (stability(load("native"), pairs(), "eap", ablation=of, **given) for of in (nothing, "zero"))
        assert np.array_equal(found.chosen, named.chosen)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (
                lambda given: given | {"m9": given["input"]},
                UnknownNameError,
                "unknown node that writes 'm9' of ablation",
            ),
            (lambda given: given | {"logits": given["input"]}, UnknownNameError, "unknown node that writes 'logits'"),
            (lambda given: {"input": given["input"]}, ConfigError, "has no output for a0.h0, .* for every node"),
            (
                lambda given: given | {"m0": given["m0"][0]},
                ConfigError,
                r"gives torch.float64 of shape \(8, \d+\) for m0",
            ),
            (lambda given: given | {"m0": given["m0"].numpy()}, ConfigError, "gives of type ndarray for m0"),
            (lambda given: given | {"m0": given["m0"] * np.nan}, ConfigError, "gives NaN or infinite values for m0"),
            (lambda given: None, ConfigError, "returned None; it must return a mapping"),
            (lambda given: given["m99"], ConfigError, "ablation 'changed' raised KeyError: 'm99'"),
        ],
    )
    def test_what_cannot_be_is_refused_before_the_work(self, change, error, message):
        def changed(model, batch):
            return change(nothing(model, batch))

        steps = []
        with pytest.raises(error, match=message) as raised:
            score_edges(load("native"), pairs(), "eap", ablation=changed, progress=lambda *step: steps.append(step))
        assert steps == []
        assert "\n" not in str(raised.value)

    def test_where_it_has_no_place_it_is_refused(self):
        model = load("native")
        with pytest.raises(ConfigError, match="outputs of nodes; they do not determine site head_q"):
            sweep(model, pairs(), ["head_z", "head_q"], ablation=Replacement(kind="nothing", function=nothing))
        own = Site("own", Entry.MIDDLE, read=lambda _model, run, layer: run.attn_out[layer])
        with pytest.raises(ConfigError, match="they do not determine site own"):
            sweep(model, pairs(), own, ablation=nothing)
        with pytest.raises(ConfigError, match="they do not determine site neuron"):
            score_nodes(model, pairs(), "exact", level="mlp-neuron", ablation=nothing)
        with pytest.raises(ConfigError, match="method 'eap-ig' takes no ablation 'nothing'"):
            score_edges(model, pairs(), ablation=nothing)
        with pytest.raises(ConfigError, match="uses no reference set"):
            score_edges(model, pairs(), "eap", ablation=nothing, reference=pairs(seed=3))
        with pytest.raises(ConfigError, match="ablation 'zero' is built in. Give the function another name"):
            Replacement(kind="zero", function=nothing)


class TestSites:
    @pytest.mark.parametrize("name", MODELS)
    def test_a_site_equals_the_built_in_one_that_it_reads(self, name):
        model = load(name)
        own = Site("own", Entry.MIDDLE, read=lambda _model, run, layer: run.attn_out[layer])
        found, expected = sweep(model, pairs(), own), sweep(model, pairs(), "attn_out")
        assert found.per_example == pytest.approx(expected.per_example, abs=1e-9)
        assert (found.site, found.columns) == ("own", expected.columns)

    def test_a_site_of_heads_equals_the_built_in_one(self):
        def read(model, run, layer):
            return model.head_outputs(layer, run.z[layer]).permute(1, 2, 0, 3)

        model, own = load("native"), Site("own", Entry.MIDDLE, Member.HEAD, read=read)
        for axis in ("all", "position"):
            found, expected = (sweep(model, pairs(), of, head_axis=axis, heads=[0, 2]) for of in (own, "head_z"))
            assert found.per_example == pytest.approx(expected.per_example, abs=1e-9)
        several = sweep(model, pairs(), [own, SITES["head_q"], "head_z"])
        assert list(several) == ["own", "head_q", "head_z"]
        assert not np.allclose(several["own"].values, several["head_q"].values)

    @pytest.mark.parametrize(
        ("site", "message"),
        [
            (Site("own", Entry.AFTER), "site 'own' has no read"),
            (Site("own", Entry.AFTER, Member.NEURON, read=lambda *_: None), "site 'own' has members 'neuron'"),
            (Site("mlp_out", Entry.AFTER, read=lambda *_: None), "site 'mlp_out' is built in"),
            (Site("own", Entry.AFTER, read=lambda *_: torch.zeros(2)), r"returned shape \(2,\); .* here \(4, 8, \d+\)"),
            (Site("own", Entry.AFTER, read=lambda _m, run, layer: run.mlp_out[layer] / 0), "returned NaN or infinite"),
            (Site("own", Entry.AFTER, read=lambda _m, run, layer: run.gone), "site 'own' raised AttributeError"),
        ],
    )
    def test_what_is_no_site_is_refused(self, site, message):
        with pytest.raises(ConfigError, match=message):
            sweep(load("native"), pairs(), site)

    @pytest.mark.parametrize("name", ["../../evil", "a/b", "a\\b", "", ".", "..", "x\ny", "x" * 101])
    def test_a_name_that_no_file_can_have_is_refused(self, name):
        with pytest.raises(ConfigError, match="name of a site "):
            Site(name, Entry.MIDDLE, read=lambda _model, run, layer: run.attn_out[layer])

    @pytest.mark.parametrize("change", [{"entry": "middle"}, {"member": "head"}, {"read": "attn_out"}])
    def test_a_field_of_another_type_is_refused(self, change):
        ((field, value),) = change.items()
        with pytest.raises(WrongTypeError, match=rf"Site\(\): {field} is {value!r}, of type .*; it must be"):
            Site(**{"name": "own", "entry": Entry.MIDDLE} | change)


class Other:
    """A model of the protocol that is not a bridge's."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)


class TestModels:
    @pytest.mark.parametrize("method", sorted({*METHODS} - {"relp"}))
    def test_every_method_takes_any_object_of_the_protocol(self, method):
        options = {"acdc": {"n_edges": 5}, "ugs": {"updates": 2}, "edge-pruning": {"updates": 2}}.get(method, {})
        model = load("native")
        assert load_model(Other(model)).spec == model.spec
        found, expected = (score_edges(of, pairs(), method, **options).values for of in (Other(model), model))
        assert np.array_equal(found, expected)

    def test_relp_says_what_it_needs(self):
        with pytest.raises(CircuitLabError, match="relp changes the backward pass .*; Other is none"):
            score_edges(Other(load("native")), pairs(), "relp")


def own_difference(logits, batch):
    return resolve("logit_diff").function(logits, batch)


own_difference.natural_zero = True
own_difference.needs_distractor = True


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of objects, and the folder that it wrote."""

    def own(model, given, metric, *, ablation):
        return score_edges(model, given, "eap", metric=metric, ablation=ablation)

    folder = tmp_path_factory.mktemp("runs") / "own"
    site = Site("own_mlp", Entry.AFTER, read=lambda _model, run, layer: run.mlp_out[layer])
    objects = {"method": own, "ablation": nothing, "sites": [site], "metric": own_difference}
    return discover("name-throw", **objects, out=folder, **ASKED), folder


class TestRuns:
    def test_the_manifest_has_the_names(self, run):
        config = json.loads((run[1] / "manifest.json").read_text())["config"]
        assert (config["method"], config["ablation"], config["sites"]) == ("own", "nothing", ["own_mlp"])
        assert config["objects"] == ["method", "metric", "ablation", "sites"]
        objects = json.loads((run[1] / "manifest.json").read_text())["objects"]
        assert {name: [one["name"] for one in each] for name, each in objects.items()} == {
            "method": ["own"], "metric": ["own_difference"], "ablation": ["nothing"], "sites": ["own_mlp"]
        }  # fmt: skip
        (metric,) = objects["metric"]
        assert metric["module"] == own_difference.__module__
        assert metric["sha256"] == hashlib.sha256(inspect.getsource(own_difference).encode()).hexdigest()
        back = load_run(run[1])
        assert back.sources == run[0].sources == objects
        assert np.array_equal(back.scores.values, run[0].scores.values)
        assert (back.evaluation.ablation, list(back.grids)) == ("nothing", ["own_mlp"])

    def test_it_is_the_run_of_the_names(self, run):
        named = discover(
            "name-throw",
            method="eap",
            ablation="zero",
            sites=["mlp_out"],
            n=4,
            selection={"n_edges": 40},
            allow_weak_gap=True,
        )
        assert "objects" not in named.config.to_record()
        assert np.array_equal(named.circuit.mask, run[0].circuit.mask)
        assert run[0].evaluation.circuit == pytest.approx(named.evaluation.circuit, abs=1e-5)
        assert run[0].grids["own_mlp"].values == pytest.approx(named.grids["mlp_out"].values, abs=1e-5)

    def test_what_needs_the_objects_again_says_so(self, run, capsys):
        with pytest.raises(
            RunError,
            match=r"'own', metric='own_difference', ablation='nothing', .* Call discover\(\) with the object again",
        ):
            reproduce(run[1])
        assert main(["evaluate", str(run[1])]) == 2
        assert "is under the ablation 'nothing', an object of Python" in capsys.readouterr().err
        assert main(["evaluate", str(run[1]), "--ablation", "zero"]) == 2
        assert "is under the metric 'own_difference', an object of Python" in capsys.readouterr().err
        assert main(["report", str(run[1])]) == 0

    def test_an_object_cannot_be_recorded_under_a_built_in_name(self):
        def eap(model, given, metric):
            return by_eap(model, given, metric)

        with pytest.raises(ConfigError, match="method 'eap' is built in. Give the object another name"):
            discover("name-throw", method=eap)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package on the path, with the metadata that pip would write from its pyproject.toml."""

    def put(name="my-parts", entries=None):
        groups = entries or tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [
            line
            for group, found in groups.items()
            for line in (f"[{group}]", *(f"{n} = {v}" for n, v in found.items()))
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.syspath_prepend(str(PACKAGE))

    return put


class TestPackages:
    def test_the_page_shows_the_package(self):
        titled = {block.title: block.body for block in blocks(PAGE) if block.title}
        assert titled == {name: (PACKAGE / name).read_text() for name in ("my_parts.py", "pyproject.toml")}

    def test_the_commands_of_the_page_run(self, install, tmp_path, monkeypatch, capsys):
        install()
        monkeypatch.chdir(tmp_path)
        session = next(block.body for block in blocks(PAGE) if block.body.startswith("$ circuitlab"))
        for line, _ in commands(session):
            assert main(line.split()[1:]) == 0, capsys.readouterr().err
        shown = capsys.readouterr().out
        assert "in-standard-errors" in shown
        assert "heads" in shown
        back = load_run(next((tmp_path / "runs").iterdir()))
        assert (back.config.method, back.metric.name, list(back.grids)) == (
            "in-standard-errors",
            "answer-log-prob",
            ["heads"],
        )
        assert back.config.objects == ()
        assert back.scores.method == "in-standard-errors"
        folder = back.folder
        (next(tmp_path.glob("*.dist-info")) / "entry_points.txt").write_text("")  # the package goes
        without = load_run(folder)
        assert (without.config.method, without.config.sites, without.config.objects) == (
            "in-standard-errors",
            ("heads",),
            ("method", "sites"),
        )
        assert np.array_equal(without.scores.values, back.scores.values)
        missing = "method='in-standard-errors', sites=.'heads'. is of a package that is not installed"
        with pytest.raises(RunError, match=missing):
            reproduce(folder)
        assert main(["report", str(folder)]) == 0

    def test_names_are_listed_and_completed_without_torch(self, install, tmp_path):
        install()
        code = (
            f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(PACKAGE)!r}]\n"
            "from circuitlab.cli import main\nfrom circuitlab.cli.options import RunOptions\n"
            "from circuitlab.cli.command import completing\nfrom circuitlab.settings import SETTINGS\n"
            "method = SETTINGS['method']\nprint(completing(method.known, method.group)('in-'))\n"
            "assert main(['sites', '--json']) == 0\n"
            "assert not {'torch', 'my_parts'} & set(sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        first, _, rest = done.stdout.partition("\n")
        assert first == "[('in-standard-errors', 'of my-parts')]"
        assert json.loads(rest)["sites"]["heads"] == "of my-parts"

    def test_a_built_in_name_is_not_replaced(self, install, capsys):
        install(
            entries={
                "circuitlab.methods": {"eap": "my_parts:in_standard_errors"},
                "circuitlab.metrics": {"kl": "my_parts:answer_log_prob"},
                "circuitlab.sites": {"head_z": "my_parts:HEADS"},
            }
        )
        assert np.array_equal(
            score_edges(load("native"), pairs(), "eap").values,
            score_edges(load("native"), pairs(), METHODS["eap"]).values,
        )
        assert "of my-parts" not in dict(completing(NAMES, "methods")("")).values()
        for kind, name in (("methods", "eap"), ("metrics", "kl"), ("sites", "head_z")):
            assert main([kind, "--json"]) == 0
            why = json.loads(capsys.readouterr().out)["broken"]
            assert list(why) == [name]
            assert why[name].startswith(f"my-parts lists '{name}' under circuitlab.{kind}, a name that circuitlab has")

    def test_a_bad_name_leaves_the_others_as_they_are(self, install, capsys):
        install()
        install("other-parts", {f"circuitlab.{kind}": {bad: "my_parts:gone"} for kind, bad in BAD.items()})
        found = score_edges(load("native"), pairs(), "in-standard-errors")
        assert found.method == "in-standard-errors"
        assert sweep(load("native"), pairs(), "heads").site == "heads"
        assert resolve("answer-log-prob").unit == "nats"
        assert main(["methods"]) == 0
        listed, _, bad = capsys.readouterr().out.partition("cannot be used")
        assert "in-standard-errors" in listed
        assert "other-parts lists 'eap'" in " ".join(bad.split())
        assert "in-standard-errors" not in bad

    def test_two_packages_cannot_have_one_name(self, install):
        install()
        install("other-parts", {"circuitlab.methods": {"in-standard-errors": "my_parts:HEADS"}})
        with pytest.raises(
            ConfigError, match="lists 'in-standard-errors' under circuitlab.methods, a name that .*-parts has"
        ):
            score_edges(load("native"), pairs(), "in-standard-errors")
        with pytest.raises(UnknownNameError, match="unknown method 'in-standard'"):
            find_method("in-standard")

    def test_what_a_package_lists_must_be_what_it_says(self, install):
        install(
            entries={
                f"circuitlab.{kind}": {"own": "my_parts:__doc__", "gone": "my_parts:GONE"}
                for kind in ("methods", "metrics", "sites")
            }
        )
        model = load("native")
        with pytest.raises(
            WrongTypeError, match="method 'own' of the entry points is .* it must be a Method or a function"
        ):
            score_edges(model, pairs(), "own")
        with pytest.raises(WrongTypeError, match="site 'own' of the entry points is .*; it must be a Site"):
            sweep(model, pairs(), "own")
        with pytest.raises(MetricError, match="a metric is a name, a Metric or a function"):
            resolve("own")
        with pytest.raises(
            ConfigError, match="'gone' of circuitlab.methods, my_parts:GONE in my-parts, cannot be imported"
        ):
            score_edges(model, pairs(), "gone")
        with pytest.raises(UnknownNameError, match="unknown method 'eapp'. Did you mean 'eap'.*own"):
            find_method("eapp")


def test_a_method_of_a_package_may_be_a_method(install, monkeypatch):
    install(entries={"circuitlab.methods": {"mine": "my_parts:METHOD"}})
    import my_parts  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(my_parts, "METHOD", Method(name="other", what="", score=METHODS["eap"].score), raising=False)
    expected = score_edges(load("native"), pairs(), "eap").values
    assert np.array_equal(score_edges(load("native"), pairs(), "mine").values, expected)
