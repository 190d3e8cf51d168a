"""Name-throw, whole: what is predicted, then an autoencoder loaded, attached, read, swept, ranked and looked up."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitlab import load_autoencoder, load_task, predict, text_log_probs
from circuitlab.features import (
    attached,
    features,
    load_descriptions,
    quality,
    rank_features,
    search_descriptions,
    splice,
    sweep_features,
)

STORY = "Jill threw the ball to Jack. Jack threw the ball to Will. Will threw the ball back to"
OTHERS = ["Mary is a really great friend.", "<div><b>Some bold text</b></div>", "Paul found a lamp in the garden."]


@pytest.fixture(scope="module")
def own(bundled):
    return load_autoencoder("bundled", model=bundled)


@pytest.fixture(scope="module")
def pairs(bundled):
    return load_task("name-throw").pairs(bundled, n=16, seed=0).discovery


@pytest.fixture(scope="module")
def ranking(bundled, own, pairs):
    return rank_features(bundled, own, pairs, steps=8)


@pytest.fixture(scope="module")
def swept(bundled, own, pairs, ranking):
    return sweep_features(bundled, own, pairs, axis="all", features=ranking.features[:40])


def test_the_name_that_began_is_predicted(bundled):
    asked = predict(bundled, STORY, answers=[" Jill", " Jack"], k=5)
    jill, jack = asked.answers
    assert (jill.rank, asked.top[0].token) == (0, " Jill")
    assert jill.logit > jack.logit + 2
    swapped = STORY.replace("Jill threw", "Anna threw")
    other = predict(bundled, swapped, answers=[" Jill", " Anna"], k=5).answers
    assert other[1].rank == 0, "the twin: another name began"
    assert other[0].probability < jill.probability / 10


def test_the_log_probabilities_of_the_story_are_those_of_the_whole_model(bundled):
    told = text_log_probs(bundled, STORY + " Jill")
    ids = torch.tensor([told.ids])
    with torch.no_grad():
        whole = bundled.bridge(ids, return_type="logits").log_softmax(-1)[0]
    by_hand = [float(whole[at, told.ids[at + 1]]) for at in range(len(told.ids) - 1)]
    assert np.allclose(told.log_probs[1:], by_hand, atol=1e-4)
    assert told.ranks[-1] == 0
    assert "Jill" in told.to_html()


def test_the_autoencoder_stands_for_the_stream(bundled, own):
    assert (own.architecture, own.hook, own.n_features) == ("topk", "blocks.1.hook_resid_post", 512)
    found = quality(bundled, own, [STORY, *OTHERS])
    assert found.explained_variance > 0.9
    assert found.l0 <= 16
    assert found.loss_recovered > 0.98
    assert abs(found.loss_with_error - found.loss) < 1e-4
    shuffled = replace(own, w_dec=own.w_dec.roll(1, 0))
    assert quality(bundled, shuffled, [STORY, *OTHERS]).explained_variance < 0.3, "the twin: another feature's rows"


def test_the_answer_survives_the_reconstruction(bundled, own, pairs):
    ids = torch.tensor([bundled.text.encode(STORY).ids])
    jill = bundled.text.encode(STORY + " Jill").ids[-1]
    clean = bundled.whole_logits(ids)[0, -1]
    assert int(clean.argmax()) == jill
    with attached(bundled, own), torch.no_grad():
        torch.testing.assert_close(bundled.bridge(ids)[0, -1], clean, atol=1e-3, rtol=0)
    with attached(bundled, own, error=False), torch.no_grad():
        assert int(bundled.bridge(ids)[0, -1].argmax()) == jill
    with attached(bundled, own, error=False, edit=torch.zeros_like), torch.no_grad():
        assert int(bundled.bridge(ids)[0, -1].argmax()) != jill, "without any feature there is no answer"
    assert splice(bundled, own, pairs).recovered > 0.8


def test_features_at_the_last_token(bundled, own):
    found = features(bundled, own, STORY)
    assert found.tokens[0][-1] == " to"
    run = bundled.record(torch.tensor([bundled.text.encode(STORY).ids]))
    dense = own.encode(run.stream(2)[0, -1]).numpy()
    here = found.active(-1, None)
    assert {each.feature for each in here} == set(np.flatnonzero(dense))
    assert [each.value for each in here] == sorted((each.value for each in here), reverse=True)
    other = {each.feature for each in found.active(1, None)}
    assert len(other & {each.feature for each in here}) < 8, "another token has other features"


def test_a_few_features_carry_the_task(bundled, own, pairs, ranking, swept):
    assert ranking.gap > 5
    together = ranking.scores.sum() + ranking.error.mean()
    assert together == pytest.approx(ranking.gap, rel=0.05)
    assert ranking.scores.sum() > 0.5 * ranking.gap, "features carry more of it than what the autoencoder leaves out"
    assert ranking.agreement(swept) > 0.8
    assert replace(ranking, per_example=-ranking.per_example).agreement(swept) < -0.8
    tail = sweep_features(bundled, own, pairs, axis="all", features=ranking.features[-40:])
    assert np.abs(swept.values).sum() > 5 * np.abs(tail.values).sum()


def test_the_features_act_at_the_last_token(bundled, own, pairs, ranking):
    grid = sweep_features(bundled, own, pairs, axis="span", features=ranking.features[:5])
    assert grid.columns[-1] == "to"
    moved = np.abs(grid.values[0]).sum(0)
    assert moved[-1] > 10 * moved[:-1].max()


def test_descriptions_are_found_and_stand_beside_the_table(tmp_path, ranking):
    best = ranking.features[0]
    records = [
        {"modelId": "bundled", "layer": "1-res", "index": str(best), "description": "which name threw first"},
        {"modelId": "bundled", "layer": "1-res", "index": "3", "description": "closing tags"},
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(records))
    assert [entry.feature for entry in search_descriptions(path, "name")] == [best]
    frame = ranking.to_frame(load_descriptions(path))
    assert frame["description"][0] == "which name threw first"
    assert (frame["description"][1:] != "which name threw first").all()
