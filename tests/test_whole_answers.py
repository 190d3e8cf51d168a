"""Answers of several tokens, against whole forward passes over prompt and answer, on every architecture."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from benchmarks import oracles
from benchmarks.parity import circuits
from circuitlab.data.pair import Pair, WordIds
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scoring import score_edges, score_nodes
from circuitlab.errors import CircuitLabError, ConfigError, MetricError
from circuitlab.models.modes import in_ordinary_modes
from circuitlab.parts import Layout
from circuitlab.patching.edges.edges import patch_edges
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.sweeps.sweep import sweep
from tests import architectures
from tests.architectures import ARCHITECTURES, NATIVE, TOLERANCE

MODELS = (*ARCHITECTURES, *NATIVE)
LENGTH = 6
DIFF, ALONE = "answer_log_prob_diff", "answer_log_prob"
# Words of one, two and three tokens; the second pair's words share their first, the third has two answers.
WORDS: tuple[tuple[tuple[WordIds, ...], tuple[WordIds, ...]], ...] = (
    (((41, 42),), ((51, 52, 53),)),
    (((41, 43),), ((41, 53),)),
    ((61, (62, 63)), ((71, 72),)),
    ((81,), (91,)),
)


def pair(number: int, answers: tuple[WordIds, ...], distractors: tuple[WordIds, ...]) -> Pair:
    """Random prompts that differ at tokens 1 and 3, with these words."""
    generator = torch.Generator().manual_seed(number)
    clean = torch.randint(100, 300, (LENGTH,), generator=generator).tolist()
    corrupt = [*clean]
    corrupt[1], corrupt[3] = torch.randint(100, 300, (2,), generator=generator).tolist()
    texts = [[str(token) for token in tokens] for tokens in (clean, corrupt)]
    return Pair(
        id=str(number), clean=" ".join(texts[0]), corrupt=" ".join(texts[1]), answers=tuple(map(str, answers)),
        distractors=tuple(map(str, distractors)), clean_ids=tuple(clean), corrupt_ids=tuple(corrupt),
        answer_ids=answers, distractor_ids=distractors, spans={"name": (1, 4)}, clean_tokens=tuple(texts[0]),
        corrupt_tokens=tuple(texts[1]),
    )  # fmt: skip


PAIRS = PairSet(tuple(pair(number, *words) for number, words in enumerate(WORDS)))
ONE_TOKEN = PairSet(tuple(pair(number, (40 + number,), (50 + number,)) for number in range(4)))


@dataclass(frozen=True)
class Continued:
    """Both prompts of a pair with all tokens of a word but the last, as the plain passes run them."""

    clean: torch.Tensor
    corrupt: torch.Tensor
    word: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.clean)

    @classmethod
    def of(cls, given: Pair, word: tuple[int, ...]) -> "Continued":
        both = ([ids + word[:-1]] for ids in (given.clean_ids, given.corrupt_ids))
        return cls(*map(torch.tensor, both), word)


def judged(logits: torch.Tensor, batch: Continued) -> torch.Tensor:
    """The log-probability of a word, summed over its tokens, from the logits at every position."""
    found = logits.log_softmax(-1)[:, LENGTH - 1 :]
    return sum((found[:, i, token] for i, token in enumerate(batch.word)), torch.zeros(len(logits), dtype=logits.dtype))


def each_word(given: Pair, of_word) -> np.ndarray:
    """The mean of a quantity over a pair's answers, less that over its distractors; each is a run of its own."""
    found = []
    for words in (given.answer_tokens, given.distractor_tokens):
        found.append(np.mean([of_word(Continued.of(given, word)) for word in words], 0))
    return found[0] - found[1]


@pytest.fixture(autouse=True)
def _judged_by_words(monkeypatch):
    monkeypatch.setattr(oracles, "logit_diff", judged)


def oracle_of(name: str):
    """The model as plain hooks see it, with keys and values once a query head."""
    if name in NATIVE:
        return architectures.native(torch.float64, **NATIVE[name])
    return architectures.booted(name, ungrouped=True)


@pytest.mark.parametrize("name", MODELS)
def test_runs_sweeps_edges_circuits_and_eap_are_those_of_whole_forward_passes(name):
    model, bridge = architectures.load(name), oracle_of(name)
    layout, close = Layout.of(model.spec), {"abs": 20 * TOLERANCE[name], "rel": 20 * TOLERANCE[name]}
    experiment = Experiment(model, PAIRS, DIFF, allow_weak_gap=True)
    clean, corrupt = (
        [each_word(one, lambda batch: float(judged(bridge(getattr(batch, side)), batch))) for one in PAIRS]  # noqa: B023
        for side in ("clean", "corrupt")
    )
    assert experiment.clean == pytest.approx(np.array(clean), **close)
    assert experiment.corrupt == pytest.approx(np.array(corrupt), **close)

    grids = sweep(model, PAIRS, ["resid_pre", "head_z", "mlp_out"][: 2 + model.spec.has_mlp], metric=DIFF, axis="all")

    def patched(site: str, layer: int, head: int | None = None):
        hook = {"resid_pre": "hook_in", "head_z": "attn.o.hook_in", "mlp_out": "hook_mlp_out"}[site]
        name = f"blocks.{layer}.{hook}"

        def of_word(batch):
            kept = bridge.run_with_cache(batch.clean)[1][name]

            def put(value, hook):
                new = value.clone()
                part = (Ellipsis,) if head is None else (slice(None), slice(None), head)
                new[part] = kept[part]
                return new

            return float(judged(bridge.run_with_hooks(batch.corrupt, fwd_hooks=[(name, put)]), batch))

        return [each_word(one, of_word) for one in PAIRS]

    assert grids["resid_pre"].per_example[1, 0] == pytest.approx(np.array(patched("resid_pre", 1)), **close)
    assert grids["head_z"].per_example[0, 2] == pytest.approx(np.array(patched("head_z", 0, 2)), **close)
    if model.spec.has_mlp:
        assert grids["mlp_out"].per_example[0, 0] == pytest.approx(np.array(patched("mlp_out", 0)), **close)

    edges = list(layout.edges())[:: max(1, layout.n_edges // 5)]
    expected = np.array([each_word(one, lambda b: oracles.edge_effects(bridge, layout, b, edges)[:, 0]) for one in PAIRS])
    found = patch_edges(model, PAIRS, edges, metric=DIFF, direction="noise")
    assert found.per_example[:, 0].T == pytest.approx(expected, **close)
    assert np.abs(expected).max() > 0.01

    (mask,) = circuits(layout)[1:2]
    expected = [each_word(one, lambda b: float(oracles.circuit_run(bridge, layout, b, mask)[0])) for one in PAIRS]
    assert experiment.values(mask[None])[0] == pytest.approx(np.array(expected), **close)
    assert experiment.values_from_clean(mask[None])[0] == pytest.approx(np.array(expected), **close)

    expected = np.mean([each_word(one, lambda b: oracles.eap(bridge, layout, b)) for one in PAIRS], 0)
    assert score_edges(model, PAIRS, "eap", metric=DIFF).values == pytest.approx(expected, **close)
