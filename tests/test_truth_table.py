"""The table of every method on every model with a known circuit."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import truth
from benchmarks.truth import Case, Found, cases, falls_short, judged, rounded, tables
from circuitlab import compiled_models
from circuitlab.discovery.scoring import METHODS

EXACT = Case("exact", "majority", False, "corrupt")


@pytest.mark.parametrize("ablation", truth.REPLACEMENTS)
def test_exact_is_perfect_and_said_so(ablation):
    case = replace(EXACT, ablation=ablation)
    found = judged(case)
    assert isinstance(found, Found)
    assert found.plain.auroc == found.tolerant.auroc == 1
    assert not falls_short(case, found)
    assert "| `exact` | **1** |" in tables({case: found})


def test_what_must_be_perfect_and_is_not_is_told():
    imperfect = judged(replace(EXACT, method="sweep"))
    assert isinstance(imperfect, Found)
    assert imperfect.plain.auroc < 1
    assert falls_short(EXACT, imperfect)
    assert falls_short(EXACT, "refused")
    # Nobody asks it of a method that scores nodes, or of a model with a redundant path.
    assert not falls_short(replace(EXACT, method="sweep"), imperfect)
    assert not falls_short(replace(EXACT, model="either"), imperfect)


def test_a_refusal_is_a_line_of_its_own():
    found = judged(EXACT, metric="no-such-metric")
    assert isinstance(found, str)
    text = tables({EXACT: found})
    assert "| `exact` | refused |" in text
    assert "- `exact`: unknown metric 'no-such-metric'." in text


def test_what_rounding_left_tells_no_edges_apart():
    """On another processor the order of such scores is another, and the table would be."""
    third = 1 / 3
    values = np.array([-2.0, 2 * third, 2 * third * (1 + 1e-15), 1e-15, 0.0, 1e-9, 2e-9])
    assert len(set(values)) == len(values)
    found = rounded(values)
    assert found[1] == found[2]
    assert found[3] == found[4] == 0
    assert 0 < found[5] < found[6]  # small, and a score
    assert found == pytest.approx(values / 2, abs=1e-12)
    assert not rounded(np.zeros(3)).any()


def test_a_score_of_rounding_finds_no_edge():
    """Of the five edges of `either` relp sees one; what it gives the others is 1e-16 of it."""
    found = judged(Case("relp", "either", True, "corrupt"))
    assert isinstance(found, Found)
    assert found.plain.auroc == pytest.approx((1 + 4 / 2) / 5)


def test_every_method_meets_every_model():
    found = cases(METHODS, compiled_models())
    assert len(set(found)) == len(found)
    for name in METHODS:
        assert {(c.model, c.norm) for c in found if (c.method, c.ablation) == (name, "corrupt")} == {
            (model, norm) for model in compiled_models() for norm in (False, True)
        }
    assert {c.method for c in found if c.ablation == "zero"} >= {"exact"}


def test_the_page_has_every_model_and_its_picture():
    page = truth.PAGE.read_text(encoding="utf-8")
    for name in compiled_models():
        assert f"**{name}**" in page
        assert f"images/known-{name}.png" in page
        assert f"| `{name}` |" in page
