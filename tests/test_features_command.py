"""`circuitlab features`: what it prints, as a table and as JSON, and what it says of mistakes."""

import json

import pytest


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "words.json"
    path.write_text(json.dumps([{"index": i, "description": f"number {i}"} for i in range(512)]))
    return path


def test_show(circuitlab):
    done = circuitlab("features", "show", "--text", "Mary is a really great friend.", "--json")
    told = json.loads(done.out)
    assert (told["architecture"], told["hook"], told["n_features"]) == ("topk", "blocks.1.hook_resid_post", 512)
    assert told["quality"]["explained_variance"] > 0.8
    table = circuitlab("features", "show").out
    assert "blocks.1.hook_resid_post" in table
    assert "explained" not in table


def test_active(circuitlab, export):
    asked = ("features", "active", "--text", "Mary is a really great friend.", "--position", "-1", "--top", "3")
    told = json.loads(circuitlab(*asked, "--json").out)
    assert told["token"] == "."
    assert len(told["active"]) == 3
    table = circuitlab(*asked, "--descriptions", str(export)).out
    assert f"number {told['active'][0]['feature']}" in table


def test_rank_and_sweep_name_the_same_features(circuitlab):
    task = ("gendered-pronouns", "-n", "4", "--json", "--quiet", "--top", "5")
    ranked = json.loads(circuitlab("features", "rank", *task).out)
    swept = json.loads(circuitlab("features", "sweep", *task).out)
    best = [row["feature"] for row in ranked["ranking"][:5]]
    assert [row["feature"] for row in swept["features"]] == best
    assert ranked["features"] + ranked["error"] == pytest.approx(ranked["total"], rel=1e-3)


def test_search(circuitlab, export):
    told = json.loads(circuitlab("features", "search", "number 41", "--descriptions", str(export), "--json").out)
    assert {row["feature"] for row in told["found"]} >= {41, 141, 410, 419}
    whole = circuitlab("features", "search", "41", "--whole", "--descriptions", str(export)).out
    assert whole.splitlines()[1].split() == ["41", "number", "41"]
    assert "no description" in circuitlab("features", "search", "verb", "--descriptions", str(export)).out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("show", "none"), "no autoencoder at 'none'"),
        (("active", "--text", "a", "--source", "x"), "--descriptions"),
        (("rank", "gendered-pronouns", "--top", "0"), "greater than or equal to 1; '0' was given"),
        (("sweep", "gendered-pronouns", "--top", "1", "--features", "2"), "give one"),
        (("sweep", "gendered-pronouns", "--features", "x"), "not a list of numbers"),
        (("search", "a", "--descriptions", "none.json"), "no descriptions at"),
    ],
)
def test_mistakes_are_one_line(circuitlab, asked, said):
    done = circuitlab("features", *asked)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
