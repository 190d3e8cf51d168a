"""Pairs without corrupted prompts: the same numbers as with them under every other ablation, and refusals elsewhere."""

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from architectures import N_HEADS, N_LAYERS, load, mixed_pairs, pairs
from gpt2_by_hand import Gpt2ByHand

from circuitlab import (
    Example,
    PairBatch,
    PairSet,
    Task,
    attention,
    check_task,
    discover,
    evaluate,
    load_run,
    load_task,
    patch_edges,
    path_patch,
    reproduce,
    score_edges,
    score_nodes,
    select,
    sweep,
    test_circuit,
)
from circuitlab.cli import main
from circuitlab.data.batching import prompt_keys
from circuitlab.discovery.behaviour import check_behaviour
from circuitlab.discovery.node_sweep import sweep_nodes
from circuitlab.discovery.scoring import METHODS
from circuitlab.errors import CircuitLabError, ConfigError, SpanError, TableError, TaskNotDoneError
from circuitlab.patching.experiment import Experiment

test_circuit.__test__ = False
EXACT = {"rtol": 1e-9, "atol": 1e-12}
FEW = {"acdc": {"threshold": 0.05}, "edge-pruning": {"updates": 4}, "ugs": {"updates": 4}}
ABLATIONS = ("zero", "mean", "noise")
ABLE = [name for name, method in METHODS.items() if not method.needs_corrupted]
UNABLE = [name for name, method in METHODS.items() if method.needs_corrupted]


def bare(found: PairBatch | PairSet):
    """The same pairs without their corrupted prompts."""
    if isinstance(found, PairBatch):
        return replace(found, corrupt=None)
    nothing = {"corrupt": None, "corrupt_ids": None, "corrupt_tokens": None}
    return replace(found, pairs=tuple(replace(pair, **nothing) for pair in found))


def under(ablation: str) -> dict:
    others = pairs(n=5, seed=3)
    return {"ablation": ablation} | ({"reference": others} if ablation == "mean" else {})


def test_the_methods_are_those_that_the_docs_list():
    assert set(UNABLE) == {"eap-ig", "clean-corrupted"}


# Every method under one ablation, and one method of each kind under the other.
@pytest.mark.parametrize(
    ("name", "ablation"), [*((name, "zero") for name in ABLE), *((name, "mean") for name in ("eap", "exact", "sweep"))]
)
def test_scores_do_not_depend_on_corrupted_prompts(name, ablation):
    model, given = load("gpt2"), under(ablation)
    if "ablation" not in METHODS[name].takes:
        given = {}
    one, other = (score_edges(model, some, name, **given, **FEW.get(name, {})) for some in (pairs(), bare(pairs())))
    np.testing.assert_allclose(one.values, other.values, **EXACT)
    assert np.abs(one.values).max() > 0
    if given:  # the twin: another ablation gives other numbers
        twin = score_edges(model, bare(pairs()), name, ablation="noise", **FEW.get(name, {}))
        assert not np.allclose(twin.values, other.values, rtol=1e-3)


@pytest.mark.parametrize("level", ["node", "neuron", "mlp-neuron"])
def test_scores_of_nodes(level):
    names = {"mlp-neuron": ("exact",), "neuron": ("exact", "eap"), "node": ("exact", "eap-ig-activations", "relp")}
    for name in names[level]:
        found = [
            score_nodes(load("gpt2"), some, name, level=level, **under("zero")) for some in (pairs(), bare(pairs()))
        ]
        np.testing.assert_allclose(found[0].values, found[1].values, **EXACT)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_other_architectures_and_answers_of_several_tokens(architecture):
    model, found = load(architecture), mixed_pairs()
    long = replace(
        found, pairs=tuple(replace(p, answer_ids=((*p.answer_ids, 7),)) for p in found), metric="answer_log_prob_diff"
    )
    for some in (found, long):
        scores = [score_edges(model, one, "eap", ablation="zero") for one in (some, bare(some))]
        np.testing.assert_allclose(scores[0].values, scores[1].values, rtol=1e-5, atol=1e-6)
    grids = [sweep(model, one, "head_z", ablation="zero", normalise=False) for one in (long, bare(long))]
    np.testing.assert_allclose(grids[0].values, grids[1].values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_sweeps_are_the_same_but_for_the_scale(ablation):
    model, sites = load("gpt2"), ["resid_pre", "head_z", "head_q", "pattern", "neuron"]
    given = under(ablation) | {"neurons": (0, 3), "metric": ["logit_diff", "log_prob"]}
    one, other = (sweep(model, some, sites, **given) for some in (pairs(), bare(pairs())))
    for site, grid in other.items():
        np.testing.assert_allclose(one[site].per_example, grid.per_example, **EXACT)
        assert (grid.direction, grid.corrupt) == ("noise", None)
    experiment = Experiment(model, bare(pairs()), "logit_diff", **under(ablation))
    grid = other["head_z"].of_metric("logit_diff")
    np.testing.assert_allclose(grid.empty, experiment.empty, **EXACT)
    share = (grid.per_example - experiment.empty).mean(-1) / (experiment.clean - experiment.empty).mean()
    np.testing.assert_allclose(grid.values, share, **EXACT)
    assert "0 = empty circuit" in str(grid)
    assert "0 = corrupted run" in str(one["head_z"].of_metric("logit_diff"))


def test_single_edges_are_the_same():
    edges = ["input->a1.h0<q>", "m0->logits", "a0.h1->m1"]
    one, other = (patch_edges(load("gpt2"), some, edges, ablation="zero") for some in (pairs(), bare(pairs())))
    np.testing.assert_allclose(one.per_example, other.per_example, **EXACT)
    assert other.corrupt is None
    assert one.empty is None


def test_circuits_are_those_of_plain_torch():
    model, batch, by_hand = load("gpt2"), bare(pairs()), Gpt2ByHand()
    experiment = Experiment(model, batch, "logit_diff", ablation="zero")
    n_writers, n_readers = 1 + N_LAYERS * (N_HEADS + 1), N_LAYERS * (3 * N_HEADS + 1) + 1
    masks = np.stack(
        [np.zeros((n_writers, n_readers), bool), np.random.default_rng(0).random((n_writers, n_readers)) < 0.6]
    )
    zeros = [torch.zeros(*batch.clean.shape, model.spec.d_model, dtype=torch.float64)] * n_writers
    rows = torch.arange(len(batch))

    def oracle(mask, answers):
        logits = by_hand.run(batch.clean, torch.from_numpy(mask).double(), zeros)[0][rows, batch.answer_at]
        return (logits[rows, answers] - logits[rows, batch.distractors[:, 0]]).detach().numpy()

    wanted = np.stack([oracle(mask, batch.answers[:, 0]) for mask in masks])
    np.testing.assert_allclose(experiment.values(masks), wanted, rtol=1e-9)
    np.testing.assert_allclose(experiment.values_from_clean(masks), wanted, rtol=1e-9)
    np.testing.assert_allclose(experiment.empty, wanted[0], rtol=1e-9)
    assert not np.allclose(oracle(masks[1], batch.answers[:, 0].roll(1)), wanted[1], rtol=1e-3)  # shuffled answers


def test_zeroed_heads_are_those_of_hooks():
    model, batch, hf = load("gpt2"), bare(pairs()), Gpt2ByHand().hf
    found = sweep(model, batch, "head_z", ablation="zero").per_example
    rows, width = torch.arange(len(batch)), model.spec.d_head
    for layer in range(N_LAYERS):
        for head in range(N_HEADS):

            def silence(_module, given, at=slice(head * width, (head + 1) * width)):
                z = given[0].clone()
                z[..., at] = 0
                return (z,)

            with torch.no_grad(), hf.transformer.h[layer].attn.c_proj.register_forward_pre_hook(silence):
                logits = hf(batch.clean).logits[rows, batch.answer_at]
            wanted = logits[rows, batch.answers[:, 0]] - logits[rows, batch.distractors[:, 0]]
            np.testing.assert_allclose(found[layer, head], wanted.numpy(), rtol=1e-9)
    assert not np.allclose(found[0, 0], found[0, 1])


def test_selection_evaluation_and_tests_are_the_same():
    model = load("gpt2")
    held_out = pairs(n=9, seed=5)
    records, tests = [], []
    for some, others in ((pairs(), held_out), (bare(pairs()), bare(held_out))):
        scores = score_edges(model, some, "eap", ablation="zero")
        circuit = select(model, scores, some, n_edges=25, ablation="zero")
        found = evaluate(
            model, circuit, others, ablation="zero", n_random=3, n_knockouts=2, minimality=False, allow_weak_gap=True
        )
        records.append(found.to_record())
        tests.append(test_circuit(model, circuit, others, ablation="zero", n_random=5).to_record())
        str(found)
    assert records[0].pop("metric_corrupt") is not None
    assert records[1].pop("metric_corrupt") is None
    assert json.dumps(rounded(records[0])) == json.dumps(rounded(records[1]))
    assert json.dumps(rounded(tests[0])) == json.dumps(rounded(tests[1]))


def rounded(value):
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def test_effects_of_nodes_are_shares_of_what_is_lost():
    experiment = Experiment(load("gpt2"), bare(pairs()), "logit_diff", ablation="zero")
    swept = sweep_nodes(experiment)
    grid = sweep(load("gpt2"), bare(pairs()), "head_z", ablation="zero")
    assert swept.effects["a1.h2"] == pytest.approx(1 - grid.values[1, 2])
    assert swept.effects["input"] == swept.effects["logits"] == 1
    paired = sweep_nodes(Experiment(load("gpt2"), pairs(), "logit_diff", ablation="zero"))
    assert paired.effects == pytest.approx(swept.effects)


REFUSED = {
    "ablation": lambda model, some: score_edges(model, some, "eap"),
    "selection": lambda model, some: select(model, score_edges(model, some, "ifr"), some),
    "sweep": lambda model, some: sweep(model, some),
    "denoising": lambda model, some: sweep(model, some, ablation="zero", direction="denoise"),
    "denoised edges": lambda model, some: patch_edges(
        model, some, ["m0->logits"], ablation="zero", direction="denoise"
    ),
    "paths": lambda model, some: path_patch(model, some, "m0", ["logits"]),
    "noised paths": lambda model, some: path_patch(model, some, "m0", ["logits"], direction="noise"),
    "swapped": lambda model, some: some.swapped(),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_corrupted_prompts_is_refused(what):
    model = load("gpt2")
    with pytest.raises(ConfigError, match=r"these pairs have no corrupted prompts\. .*corrupt= of Example") as caught:
        REFUSED[what](model, bare(pairs()))
    if what in ("ablation", "selection", "sweep"):
        assert str(caught.value).startswith("ablation 'corrupt'")
        assert "--ablation zero" in str(caught.value)
    if what.startswith("denois"):
        assert str(caught.value).startswith("direction 'denoise'")
        assert "--direction noise" in str(caught.value)
    if what != "swapped":
        REFUSED[what](model, pairs()) if "denoised" not in what else None  # with them it works


@pytest.mark.parametrize("name", UNABLE)
@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_methods_that_need_corrupted_prompts_are_refused(name, ablation):
    for score in (score_edges, score_nodes):
        with pytest.raises(
            ConfigError, match=rf"method '{name}' needs corrupted prompts \(it.*Take one of eap, .*exact"
        ):
            score(load("gpt2"), bare(pairs()), name, ablation=ablation)


def test_a_method_of_the_user():
    def without(model, pairs, metric):
        return np.zeros((11, 27))

    def with_ablation(model, pairs, metric, ablation):
        assert ablation.kind == "zero"
        return np.ones((11, 27))

    with pytest.raises(ConfigError, match="method 'without' needs corrupted prompts"):
        score_edges(load("gpt2"), bare(pairs()), without)
    assert score_edges(load("gpt2"), bare(pairs()), with_ablation, ablation="zero").values.max() == 1


def test_an_attribution_of_the_corrupted_run_is_refused():
    pair = bare(mixed_pairs())[0]
    with pytest.raises(ConfigError, match="run 'corrupt' .*no corrupted prompts"):
        attention(load("llama"), pair, ["a0.h0"], run="corrupt")


def test_pairs_with_and_without_are_not_mixed():
    found, without = mixed_pairs(), bare(mixed_pairs())
    with pytest.raises(ConfigError, match=r"1 of 6 pairs have no corrupted prompt, such as .* Give all of them one"):
        PairSet((without[0], *found[1:]))
    assert not without.has_corrupted
    assert without.texts == {pair.clean for pair in found}
    assert all(batch.corrupt is None for batch in without.batches())
    assert {len(keys) for keys in prompt_keys(without)} == {1}
    with pytest.raises(ConfigError, match="no corrupted prompts"):
        without.batches()[0].corrupted  # noqa: B018


def test_examples():
    one = Example("Ann is here;", answer=" she", spans={"name": (0, 3)})
    assert one.corrupt is None
    assert one.after("So: ").spans == {"name": (4, 7)}
    assert one.after("So: ").corrupt is None
    made = Example.from_template("{name} left{end}", {"name": "Ann", "end": ""}, answer=" she")
    assert (made.corrupt, made.spans) == (None, {"name": (0, 3)})
    with pytest.raises(SpanError, match="has corrupt_spans, but no corrupted prompt"):
        Example("Ann left", answer=" she", spans={"name": (0, 3)}, corrupt_spans={"name": (0, 3)})
    with pytest.raises(CircuitLabError, match="has no answer"):
        Example("Ann left")


def test_the_behaviour_is_checked_against_the_empty_circuit():
    batch = bare(mixed_pairs())
    experiment = Experiment(load("llama"), batch, "logit_diff", ablation="zero", allow_weak_gap=True)
    found = check_behaviour(experiment, 0.0)
    assert (found.turns, found.corrupt) == (None, None)
    assert found.gap.mean == pytest.approx((experiment.clean - experiment.empty).mean())
    right = experiment.clean > experiment.empty  # pairs that keep the rule, and their twins with answers exchanged
    sides = {"answers": "distractors", "distractors": "answers", "answer_ids": "distractor_ids"}
    sides["distractor_ids"] = "answer_ids"
    for keep in (right, ~right):
        chosen = [pair for pair, fits in zip(batch, keep, strict=True) if fits]
        turned = [replace(pair, **{name: getattr(pair, other) for name, other in sides.items()}) for pair in chosen]
        for some, passes in ((chosen, keep is right), (turned, keep is not right)):
            if some:
                own = Experiment(
                    load("llama"), PairSet(tuple(some)), "logit_diff", ablation="zero", allow_weak_gap=True
                )
                if passes:
                    assert own.gap.mean > 0
                else:
                    with pytest.raises(TaskNotDoneError, match="in the empty circuit|min_accuracy"):
                        check_behaviour(own, 1e-9)


NAMES = ("Mary", "Anna", "Lisa", "John", "Paul", "Mark", "Sara", "Kate", "Peter", "James", "Laura", "Emma")
ROWS = [{"prompt": f"{a} met {b};", "answer": " He", "wrong": " She"} for a in NAMES for b in NAMES if a != b][:40]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "clean.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_tables_without_corrupted_prompts(table):
    task = load_task(table)
    assert task.table.layout == "clean, answer"
    assert all(row.example.corrupt is None for row in task.table.rows)
    ids = [{"clean": row["prompt"], "answer_id": 5} for row in ROWS]
    assert Task.from_frame(ids).table.layout == "clean, token ids"
    paired = [{**row, "corrupted": row["prompt"].replace(";", ".")} for row in ROWS]
    assert Task.from_frame(paired).table.layout == "circuitkit"
    left_out = Task.from_frame(paired, columns={"corrupt": ""})
    assert {row.example.corrupt for row in left_out.table.rows} == {None}
    assert left_out.table.digest == Task.from_frame(ROWS).table.digest
    with pytest.raises(TableError, match="row 2, column 'corrupted': '' is empty"):  # a gap is no clean-only row
        Task.from_frame([paired[0], {**paired[1], "corrupted": ""}])
    named = {"clean": "prompt", "answer": "answer"}
    odd = [{**row, "counterfactual_text": "Ann left;"} for row in ROWS]  # there are corrupted prompts, but not where
    with pytest.raises(TableError, match=r"nothing holds corrupt.*empty \(--columns corrupt=\)"):
        Task.from_frame(odd)
    with pytest.raises(TableError, match=r"nothing holds corrupt"):
        Task.from_frame(ROWS, columns=named)
    assert Task.from_frame(ROWS, columns={**named, "corrupt": ""}).table.rows[0].example.corrupt is None
    with pytest.raises(TableError, match="second file"):  # position-aware circuits: they are elsewhere
        Task.from_frame([{"prompt": "Ann left", "label": " she", "wrong_token": " he", "length": 3}])


def test_a_table_runs_from_end_to_end(table, tiny_gpt2, tmp_path):
    settings = {"model": str(tiny_gpt2), "n": 8, "min_accuracy": 0, "allow_weak_gap": True, "minimality": False}
    run = discover(
        table,
        ablation="zero",
        method="eap",
        selection={"n_edges": 12},
        sites=("head_z",),
        out=tmp_path / "run",
        **settings,
    )
    assert run.pairs.discovery[0].corrupt is None
    again = reproduce(tmp_path / "run")
    assert again.ok, again
    loaded = load_run(tmp_path / "run")
    assert loaded.pairs == run.pairs
    assert loaded.grids["head_z"].corrupt is None
    assert loaded.behaviour.turns is None
    assert loaded.evaluation.to_record() == run.evaluation.to_record()
    lines = (tmp_path / "run" / "dataset.jsonl").read_text().splitlines()
    assert {json.loads(line)["corrupt"] for line in lines} == {None}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "no corrupted counterparts" in page
    assert "corrupted run" not in page
    assert "whole model, corrupted prompt" not in page
    assert "clean run with one activation ablated (zero)" in page


def test_a_mean_is_over_reference_prompts(table, tiny_gpt2):
    run = discover(
        table, model=str(tiny_gpt2), ablation="mean", method="sweep", selection={"n_edges": 8}, n=6, min_accuracy=0,
        sites=(), allow_weak_gap=True, minimality=False,
    )  # fmt: skip
    used = run.pairs.reference.texts
    assert len(used) == 6
    assert not used & (run.pairs.discovery.texts | run.pairs.held_out.texts)


def draw(rng: Random) -> Example:
    row = rng.choice(ROWS)
    return Example(row["prompt"], answer=row["answer"], distractor=row["wrong"])


TASK = Task(name="clean-only", version="1", summary="Prompts alone.", draw=draw)


@pytest.mark.parametrize("task", ["table", "draw"])
def test_discover_refuses_before_a_model_is_loaded(task, table):
    given = table if task == "table" else TASK
    with pytest.raises(ConfigError, match=r"^ablation 'corrupt'.*--ablation zero\) and method 'eap' \(--method eap\)"):
        discover(given, model="no/such/model")
    with pytest.raises(ConfigError, match=r"^method 'eap-ig' needs corrupted prompts"):
        discover(given, model="no/such/model", ablation="zero")


def test_a_check_of_the_task_has_no_gap(tiny_gpt2, table, capsys):
    from circuitlab import load_model

    found = check_task(TASK, load_model(str(tiny_gpt2)), n=6)
    assert found.n == 6
    assert (found.corrupt, found.gap) == (None, None)
    assert found.to_record()["gap"] is None
    assert main(["tasks", "check", str(table), "-n", "6", "--model", str(tiny_gpt2), "--quiet"]) == 0
    assert "no corrupted prompts" in capsys.readouterr().out
