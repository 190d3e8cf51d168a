"""Published circuits beside found ones: overlap by counting, chance by drawing, judgement by the usual evaluation."""

from itertools import combinations

import numpy as np
import pytest

from circuitlab import circuit_of_nodes, compare_published, evaluate, load_model, node_overlap
from circuitlab.errors import GraphError, UnknownNameError
from circuitlab.runs.judging import judging
from tests.commands import run_circuitlab

TASK = """
from circuitlab import Example, PublishedCircuit, Reference, Task
from circuitlab.tasks.name_throw import draw

SOURCE = Reference(key="we2026", authors=("We",), title="A circuit", year=2026)
TASK = Task(
    name="thrown", version="1", summary="As name-throw.", draw=draw, options={"corruption": ("swap", "starter")},
    sources=(SOURCE,),
    published={"bundled": PublishedCircuit(source=SOURCE, classes={"mover": ("a2.h1", "a3.h2"), "other": ("m1",)})},
)
"""


@pytest.fixture(scope="module")
def model():
    return load_model("bundled")


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "thrown.py"
    path.write_text(TASK)
    return path


def test_a_circuit_of_nodes_has_every_edge_among_them_and_no_other(model):
    names = ("a0.h1", "a2.h1", "m2", "m3")
    circuit = circuit_of_nodes(model.spec, names)
    allowed = {"input", "logits", *names}
    edges = {edge.name for edge in circuit.layout.edges() if {edge.source.name, edge.reader.node.name} <= allowed}
    assert {edge.name for edge, _ in circuit.edges()} == edges
    assert np.isnan(circuit.scores[circuit.mask]).all()
    with pytest.raises(GraphError, match=r"no node a9\.h9; it has 4 layers"):
        circuit_of_nodes(model.spec, ("a9.h9",))


def test_overlap_is_counted_among_nodes_of_the_listed_kinds(model):
    circuit = circuit_of_nodes(model.spec, ("a0.h1", "a2.h1", "m2"))
    heads = node_overlap(circuit, {"x": ("a0.h1", "a3.h3"), "y": ("a1.h1",)})
    assert heads.found == ("a0.h1", "a2.h1")
    assert (heads.precision, heads.recall, heads.jaccard) == (1 / 2, 1 / 3, 1 / 4)
    assert heads.n_nodes == model.spec.n_layers * model.spec.n_heads
    both = node_overlap(circuit, {"x": ("a0.h1", "m3")})
    assert both.found == ("a0.h1", "a2.h1", "m2")
    assert both.to_frame()["node"].tolist() == ["a0.h1", "m3", "a2.h1", "m2"]
    with pytest.raises(GraphError, match=r"lists a7\.h0, which the model of 'mine' does not have"):
        node_overlap(circuit, {"x": ("a7.h0",)}, ("mine", "paper"))


def test_chance_is_that_of_drawing_as_many_nodes(model):
    circuit = circuit_of_nodes(model.spec, ("m0", "m1"))
    found = node_overlap(circuit, {"x": ("m1", "m2")})
    draws = list(combinations(range(4), 2))
    at_least = sum(len({1, 2} & set(draw)) >= len(found.shared) for draw in draws) / len(draws)
    assert found.p_value == pytest.approx(at_least, abs=1e-12)
    assert found.expected == pytest.approx(np.mean([len({1, 2} & set(draw)) for draw in draws]))
    # The twin: the same nodes are less likely by chance than half of them.
    all_of_them = node_overlap(circuit, {"x": ("m0", "m1")})
    assert all_of_them.p_value == pytest.approx(1 / 6)
    assert all_of_them.p_value < found.p_value


def test_published_nodes_are_judged_as_any_circuit(model, task_file):
    asked = judging("published", task=task_file, model="bundled", n=8, seed=0)
    ours = asked.evaluate(n_random=2, n_knockouts=0, minimality=False)
    pairs = asked.held_out
    circuit = circuit_of_nodes(model.spec, ("a2.h1", "a3.h2", "m1"))
    same = evaluate(model, circuit, pairs, n_random=2, n_knockouts=0, minimality=False, seed=0)
    assert ours.faithfulness == same.faithfulness
    assert ours.n_edges == circuit.n_edges
    with pytest.raises(UnknownNameError, match=r"unknown published circuit for 'bundled' .*Allowed: gpt2"):
        judging("published", task="ioi", model="bundled", n=8)
    with pytest.raises(GraphError, match=r"no node a5\.h5; it has 4 layers"):
        judging("published:gpt2", task="greater-than", model="bundled", n=8)


def test_the_commands(task_file, tmp_path):
    out = tmp_path / "run"
    made = run_circuitlab(
        "discover", str(task_file), "-n", "8", "--n-edges", "30", "--no-sweep", "--quiet", "--out", str(out),
        "--min-accuracy", "0", cwd=tmp_path,
    )  # fmt: skip
    assert made.code == 0, made.err
    refused = run_circuitlab("compare", out, "published", cwd=tmp_path)
    assert refused.code == 2
    assert "--run-code" in refused.err
    shown = run_circuitlab("compare", out, "published", "--run-code", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert "expected by chance" in shown.out
    for flag, value in (("--out", "drawn.png"), ("--model", "bundled")):
        useless = run_circuitlab("compare", out, "published", "--run-code", flag, value, cwd=tmp_path)
        assert (useless.code, (tmp_path / "drawn.png").exists()) == (2, False)
        assert f"{flag} has no meaning" in useless.err
    overlap = compare_published(out, run_code=True)
    assert overlap.names == ("run", "we2026")
    assert overlap.listed == ("a2.h1", "a3.h2", "m1")
    judged = run_circuitlab("evaluate", "published", "--task", str(task_file), "-n", "8", "--quiet", cwd=tmp_path)
    assert judged.code == 0, judged.err
    assert "faithfulness" in judged.out


def test_check_shows_models_that_cannot_do_a_task(tmp_path):
    shown = run_circuitlab("tasks", "check", "ioi", "--model", "bundled", "-n", "8", "--quiet", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert max(map(len, shown.out.splitlines()[:3])) <= 80
    assert "dropped" in shown.out
    # Years are several tokens of the bundled model, and `prob_diff` judges one.
    check = ("tasks", "check", "greater-than", "-n", "8", "--quiet", "--json")
    whole = run_circuitlab(*check, cwd=tmp_path)
    assert '"metric": "answer_log_prob_diff"' in whole.out
    assert '"problem": ""' in whole.out
    none = run_circuitlab(*check, "--metric", "prob_diff", cwd=tmp_path)
    assert none.code == 0, none.err
    assert '"problem": "task \'greater-than\' has no prompt' in none.out
