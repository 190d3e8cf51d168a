"""The whole of notebook N2: where the MLP matters although no single neuron does, on thirty-five short sentences."""

import json

import numpy as np
import pytest
import torch
from architectures import load

from circuitlab import ConfigError
from circuitlab.neurons import SENTENCES, norm_ratios, outliers


@pytest.fixture(scope="module")
def found(bundled):
    return outliers(bundled, SENTENCES, 0)


def test_every_position_of_every_sentence_is_ranked(bundled, found):
    assert len(SENTENCES) == len(set(SENTENCES)) == 35
    assert [one.tokens.text for one in found.prompts] == list(SENTENCES)
    table = found.to_frame()
    assert len(table) == sum(len(bundled.text.encode(text).ids) for text in SENTENCES)
    assert list(table["combination"]) == sorted(table["combination"], reverse=True)
    top = found.top(10)
    assert len(top) == 10
    assert (top["ablation_loss"] > 0).all()
    # Not merely the largest losses, and not merely the smallest scores: both count.
    assert set(top.index) != set(table["ablation_loss"].nlargest(10).index)
    assert set(top.index) != set(table["outlier_score"].nsmallest(10).index)


def test_the_top_position_is_a_whole_pass_with_it_zeroed(bundled, found):
    row = found.top(1).to_dict("records")[0]
    ids = torch.tensor([bundled.text.encode(row["text"]).ids])
    place = bundled.bridge.blocks[0].mlp.out.hook_in

    def loss(zeroed: int | None) -> float:
        def zero(_module, _args, hidden):
            hidden = hidden.clone()
            if zeroed is not None:
                hidden.view(ids.shape[1], -1)[zeroed] = 0.0
            return hidden

        handle = place.register_forward_hook(zero)
        try:
            with torch.no_grad():
                return float(bundled.bridge(ids, return_type="loss"))
        finally:
            handle.remove()

    assert loss(row["position"]) - loss(None) == pytest.approx(row["ablation_loss"], abs=1e-4)
    assert abs(loss(row["position"] - 1) - loss(None) - row["ablation_loss"]) > 1e-2  # its neighbour is another number
    assert found.prompts[row["prompt"]].loss == pytest.approx(loss(None), abs=1e-4)


def test_the_norm_inside_the_mlp_at_top_and_random_positions(found):
    """The bundled model has none and says so; a SoLU model, here of random weights, has one."""
    with pytest.raises(ConfigError, match="no layer norm.*every ratio is 1"):
        norm_ratios(found)
    model = load("solu")
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 300, (5 + i % 4,), generator=generator) for i in range(35)]
    solu = outliers(model, prompts, 0)
    ratios = norm_ratios(solu, n=10, seed=0)
    assert len(ratios.top) == len(ratios.control) == 10
    assert ratios.top["prompt"].tolist() == solu.top(10)["prompt"].tolist()
    difference = ratios.difference
    assert 0 < difference.permutation_p <= 1
    assert 0 <= difference.u_p <= 1
    assert -1 <= difference.rank_biserial <= 1
    # The twin: groups that do differ are told apart, here the highest ratios of all from the lowest.
    from circuitlab.stats import group_difference

    every = np.concatenate([one.score_after_norm / one.outlier_score for one in solu.prompts])
    every.sort()
    assert group_difference(every[-10:], every[:10], 0).permutation_p < 0.001


def test_as_a_command(circuitlab, tmp_path):
    done = circuitlab("neurons", "outliers", "--layer", 0, "--top", 3, "--json", "--out", tmp_path / "all.csv")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert len(record["top"]) == 3
    assert record["norm_ratios"] is None
    assert (tmp_path / "all.csv").read_text().startswith("prompt,position,token,ablation_loss")
    again = circuitlab("neurons", "outliers", "--out", tmp_path / "all.csv")
    assert (again.code, "--force" in again.err) == (2, True)
