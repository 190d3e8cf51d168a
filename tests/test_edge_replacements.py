"""Single edges that carry zero, a mean or noise in place of what their writer says, against plain hooks."""

from typing import Any

import numpy as np
import pytest
import test_native_models
import torch
from architectures import TOLERANCE, load, pairs

from circuitlab import patch_edges, score_edges
from circuitlab.errors import ConfigError
from circuitlab.metrics import resolve
from circuitlab.parts import Edge, Layout

NAMES = ("native", "attn-only", "solu")
METRIC = resolve("logit_diff")


class ByHooks(test_native_models.TestEdges):
    """One forward pass of the bridge an edge; what the edge carries instead is given, not run."""

    __test__ = False

    def __init__(self, stand_in: Any) -> None:
        self.stand_in = stand_in

    def written(self, name: str, tokens: torch.Tensor, edge: Edge) -> torch.Tensor:
        own = super().written(name, tokens, edge)
        return own if torch.equal(tokens, pairs().clean) else self.stand_in(super().written, name, edge, own)


def zero(_written: Any, _name: str, _edge: Edge, own: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(own)


def mean(written: Any, name: str, edge: Edge, own: torch.Tensor) -> torch.Tensor:
    return written(name, other_pairs().clean, edge).mean((0, 1)).expand_as(own)


def mean_by_position(written: Any, name: str, edge: Edge, own: torch.Tensor) -> torch.Tensor:
    return written(name, other_pairs().clean, edge).mean(0).expand_as(own)


def other_pairs():
    return pairs(n=5, seed=3)


def edges_of(name: str) -> list[str]:
    own = test_native_models.TestEdges
    return [*own.EDGES, *(own.OF_MLPS if load(name).spec.has_mlp else ())]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("ablation", "stand_in"), [("zero", zero), ("mean", mean), ("mean-position", mean_by_position)]
)
def test_exact_effects(name, ablation, stand_in):
    reference = None if ablation == "zero" else other_pairs()
    found = patch_edges(load(name), pairs(), edges_of(name), ablation=ablation, reference=reference)
    oracle = ByHooks(stand_in)
    expected = np.stack([oracle.brute_force(name, Edge.parse(edge)) for edge in edges_of(name)])
    assert found.per_example[:, 0] == pytest.approx(expected, abs=TOLERANCE[name])
    # The other prompt's values are something else.
    corrupt = patch_edges(load(name), pairs(), edges_of(name), direction="noise").per_example[:, 0]
    assert np.abs(corrupt - expected).max(1).min() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "gemma2", "olmo2", "granite"])
def test_every_edge_into_a_node_by_position_is_the_whole_message_in_parts(name):
    """By position: the last columns are behind the answer, and into the logits only the answer's tokens count."""
    model, batch = load(name), pairs()
    found = patch_edges(model, batch, ["input->logits", "a0.h1->logits"], axis="position", ablation="zero")
    whole = patch_edges(model, batch, ["input->logits", "a0.h1->logits"], ablation="zero")
    rows = np.arange(len(batch))
    at_answer = found.per_example[:, batch.answer_at.numpy(), rows]
    assert at_answer == pytest.approx(whole.per_example[:, 0], abs=TOLERANCE[name])
    assert np.abs(whole.per_example).max(2).min() > 1e-3


def test_tokens_before_the_first_difference_are_replaced_too():
    """Under "corrupt" they are the same in both runs; zero is another value there."""
    model, batch = load("gpt2"), pairs()
    zeroed = patch_edges(model, batch, "input->a0.h0<v>", axis="position", ablation="zero")
    corrupt = patch_edges(model, batch, "input->a0.h0<v>", axis="position", direction="noise")
    first = int((batch.clean != batch.corrupt).int().argmax(1).min())
    assert first > 0
    assert np.abs(zeroed.values[0, :first]).min() > 1e-4
    assert not corrupt.values[0, :first].any()


def test_the_matrix_of_all_edges_is_the_same():
    model, batch = load("gpt2"), pairs()
    matrix = score_edges(model, batch, "exact", metric=METRIC, ablation="mean", reference=other_pairs()).values
    found = patch_edges(model, batch, ablation="mean", reference=other_pairs())
    places = [Layout.of(model.spec).edge_index(edge) for edge in found.edges]
    assert [matrix[place] for place in places] == pytest.approx(found.values[:, 0])


def test_noise_follows_its_seed():
    model, batch = load("gpt2"), pairs()
    first, again, other = (
        patch_edges(model, batch, "m0->logits", ablation="noise", seed=seed).values[0, 0] for seed in (0, 0, 1)
    )
    assert first == again
    assert abs(first - other) > 1e-4


def test_what_does_not_go_together():
    model, batch = load("gpt2"), pairs()
    with pytest.raises(ConfigError, match="ablation 'zero' has no place"):
        patch_edges(model, batch, "m0->logits", ablation="zero", direction="denoise")
    with pytest.raises(ConfigError, match="needs a reference set"):
        patch_edges(model, batch, "m0->logits", ablation="mean")
