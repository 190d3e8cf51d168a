"""What the sign of scores means is declared by each method, and what is printed and drawn comes from it."""

from dataclasses import replace

import numpy as np
import pytest
from architectures import load, pairs

from circuitlab import UnknownNameError, load_scores, score_edges, score_nodes, select
from circuitlab.discovery.method import Method
from circuitlab.discovery.scores import EdgeScores
from circuitlab.discovery.scoring import METHODS
from circuitlab.graphs.prune import real_edges
from circuitlab.names import SIGNS

OPTIONS = {"ugs": {"updates": 2}, "edge-pruning": {"updates": 2}}
TEXTS = {"effect": "positive: the edge helps", "size": "never negative: a size", "none": "the sign has no meaning"}


def scores_of(method: str) -> EdgeScores:
    return score_edges(load("gpt2"), pairs(), method, **OPTIONS.get(method, {}))


def texts(scores: EdgeScores, sign: str | None) -> list[str]:
    """The texts of the drawing of a circuit from these scores."""
    whole = scores.layout.n_edges
    circuit = select(load("gpt2"), replace(scores, sign=sign), pairs(), n_edges=whole)
    return [text.get_text() for text in circuit.plot().axes[0].texts]


@pytest.mark.parametrize("method", ["eap", "exact", "ifr", "random", "edge-pruning", "ugs"])
def test_scores_are_as_their_method_declares(method, tmp_path):
    scores = scores_of(method)
    values = scores.values[real_edges(scores.layout)]
    sign = METHODS[method].sign
    assert ((values >= 0).all()) == (sign == "size"), "sizes, and they alone, are never negative"
    scores.save(tmp_path / "scores.safetensors")
    assert scores.sign == scores.to_record()["sign"] == load_scores(tmp_path / "scores.safetensors").sign == sign
    printed = " ".join(repr(scores).split())
    assert [name for name, text in TEXTS.items() if text in printed] == [sign]


def test_effects_have_the_sign_of_exact_effects_and_random_numbers_do_not():
    exact = scores_of("exact").values
    real = real_edges(scores_of("exact").layout)

    def agreement(method):
        return float(np.corrcoef(scores_of(method).values[real], exact[real])[0, 1])

    assert {METHODS[name].sign for name in ("eap", "eap-ig")} == {"effect"}
    assert agreement("eap-ig") > 0.3
    assert abs(agreement("random")) < 0.3


def test_drawings_say_what_the_sign_means():
    scores = scores_of("random")
    for sign in (*SIGNS, None):
        found = texts(scores, sign)
        helps = sign in (None, "effect")
        assert ("helps (score > 0)" in found, "hurts (score < 0)" in found) == (helps, helps)
        assert ("score > 0" in found, "score < 0" in found) == (not helps, not helps)


def test_a_method_of_the_user_declares_its_sign():
    def sizes(experiment):
        return np.where(real_edges(load("gpt2").spec and scores_of("eap").layout), 1.0, 0.0)

    found = score_edges(load("gpt2"), pairs(), Method(name="sizes", score=sizes, sign="size"))
    assert found.sign == "size"
    assert score_edges(load("gpt2"), pairs(), Method(name="sizes", score=sizes)).sign == "effect"
    with pytest.raises(UnknownNameError, match="unknown sign 'both' of method 'sizes'"):
        Method(name="sizes", score=sizes, sign="both")


def test_scores_of_nodes_say_it_too():
    found = score_nodes(load("gpt2"), pairs(), "eap")
    assert (found.sign, "positive: it helps" in repr(found)) == ("effect", True)
    assert "helps" not in repr(replace(found, sign=None))
