"""Answers of several tokens, against whole forward passes over prompt and answer, on every architecture."""

import json
from dataclasses import dataclass, replace
from random import Random

import architectures
import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, NATIVE, TOLERANCE

from benchmarks import oracles
from benchmarks.parity import circuits
from circuitlab import (
    Example,
    PairBatch,
    PairSet,
    Task,
    discover,
    evaluate,
    load_run,
    load_task,
    patch_edges,
    path_patch,
    score_edges,
    score_nodes,
    select,
    sweep,
)
from circuitlab.data.batching import batches_for
from circuitlab.data.encoded import Rejection
from circuitlab.data.encoding import encode_example
from circuitlab.data.pair import Pair, WordIds
from circuitlab.errors import ConfigError, MetricError, TokenError
from circuitlab.metrics import resolve
from circuitlab.outputs.records import from_plain
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.packing import bytes_per_row
from circuitlab.patching.runs.reference import measure_deviations, measure_means
from circuitlab.patching.runs.replacement import normal
from circuitlab.patching.sweeps.sites import SITES
from circuitlab.resources import DEFAULT

MODELS = (*ARCHITECTURES, *NATIVE)
LENGTH = 6
DIFF, ALONE = "answer_log_prob_diff", "answer_log_prob"
# The first pair has answers of one and two tokens and a distractor of three; the second's share their first.
WORDS: tuple[tuple[tuple[WordIds, ...], tuple[WordIds, ...]], ...] = (
    ((61, (62, 63)), ((51, 52, 53),)),
    (((41, 43),), ((41, 53),)),
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

    @property
    def corrupted(self) -> torch.Tensor:
        return self.corrupt

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
        [each_word(one, lambda batch: float(judged(bridge(getattr(batch, side)), batch).detach())) for one in PAIRS]  # noqa: B023
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

            return float(judged(bridge.run_with_hooks(batch.corrupt, fwd_hooks=[(name, put)]), batch).detach())

        return [each_word(one, of_word) for one in PAIRS]

    assert grids["resid_pre"].per_example[1, 0] == pytest.approx(np.array(patched("resid_pre", 1)), **close)
    assert grids["head_z"].per_example[0, 2] == pytest.approx(np.array(patched("head_z", 0, 2)), **close)
    if model.spec.has_mlp:
        assert grids["mlp_out"].per_example[0, 0] == pytest.approx(np.array(patched("mlp_out", 0)), **close)

    edges = list(layout.edges())[:: max(1, layout.n_edges // 3)]
    expected = [each_word(one, lambda b: oracles.edge_effects(bridge, layout, b, edges)[:, 0]) for one in PAIRS]
    found = patch_edges(model, PAIRS, edges, metric=DIFF, direction="noise").per_example[:, 0].T
    assert found == pytest.approx(np.array(expected), **close)
    assert np.abs(found).max() > 0.01

    (mask,) = circuits(layout)[1:2]
    expected = [each_word(one, lambda b: float(oracles.circuit_run(bridge, layout, b, mask)[0])) for one in PAIRS]
    assert experiment.values(mask[None])[0] == pytest.approx(np.array(expected), **close)
    assert experiment.values_from_clean(mask[None])[0] == pytest.approx(np.array(expected), **close)

    expected = np.mean([each_word(one, lambda b: oracles.eap(bridge, layout, b)) for one in PAIRS], 0)
    assert score_edges(model, PAIRS, "eap", metric=DIFF).values == pytest.approx(expected, **close)


def sum_of_tokens(pairs: PairSet, of_batch) -> np.ndarray:
    """A quantity that is linear in the metric, from one run for each token of each word, judged by `log_prob`."""
    total = 0.0
    for one in pairs:
        for sign, words in ((1, one.answer_tokens), (-1, one.distractor_tokens)):
            for word in words:
                for n in range(len(word)):
                    both = (torch.tensor([ids + word[:n]]) for ids in (one.clean_ids, one.corrupt_ids))
                    batch = PairBatch.from_tokens(*both, torch.tensor([[word[n]]]))
                    total = total + sign * of_batch(batch) / len(words)
    return np.asarray(total / len(pairs))


METHODS = {
    "eap": {}, "eap-ig": {"steps": 2}, "eap-ig-activations": {"steps": 2}, "clean-corrupted": {}, "relp": {},
    "exact": {},
}  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_every_method_scores_the_sum_over_the_tokens_of_the_words(name):
    model, close = architectures.load(name), {"abs": 20 * TOLERANCE[name], "rel": 1e-4}
    for method, options in METHODS.items():
        if method == "relp" and name == "gemma2":
            continue
        for ablation in ("corrupt", "zero"):
            if ablation == "zero" and method not in ("eap", "exact"):
                continue
            about = {**options, "ablation": ablation}
            expected = sum_of_tokens(PAIRS, lambda b: score_edges(model, b, method, metric="log_prob", **about).values)  # noqa: B023
            found = score_edges(model, PAIRS, method, metric=DIFF, **about)
            assert found.values == pytest.approx(expected, **close), (method, ablation)
            assert found.n_examples == len(PAIRS)
    for level in ("node", "mlp-neuron"):
        expected = sum_of_tokens(PAIRS, lambda b: score_nodes(model, b, "eap", level=level, metric="log_prob").values)  # noqa: B023
        assert score_nodes(model, PAIRS, "eap", level=level, metric=DIFF).values == pytest.approx(expected, **close)


def test_every_site_of_a_sweep_is_the_sum_over_the_tokens_of_the_words():
    model = architectures.load("llama")
    sites = [name for name in SITES if name != "neuron"]
    settings = {"axis": "span", "normalise": False}
    found = sweep(model, PAIRS, sites, metric=[DIFF, ALONE], **settings)
    for site, grid in found.items():
        spans = {"name": torch.tensor([[1, 4]])}
        answer = {"axis": "all"} if grid.column_kind != "span" else settings

        def of_batch(batch, site=site, answer=answer, spans=spans):
            own = replace(batch, spans=spans)
            values = sweep(model, own, site, metric="log_prob", **{"normalise": False, **answer}).per_example[..., 0]
            return values[:, :2] if answer is settings else values  # the columns "start" and "name"

        mine = grid.of_metric(DIFF).per_example.mean(-1)
        if answer is settings:
            assert grid.columns == ("start", "name", "after name", "answer")
            mine = mine[:, :2]
        assert mine == pytest.approx(sum_of_tokens(PAIRS, of_batch), abs=1e-3, rel=1e-4), site


def test_the_budget_changes_no_number():
    model = architectures.load("gpt2")
    masks = circuits(Layout.of(model.spec))
    few = bytes_per_row(model, LENGTH + 2, 400)
    for budget in (None, few):
        experiment = Experiment(model, PAIRS, DIFF, "noise", allow_weak_gap=True, budget=budget)
        found = experiment.values(masks[:2]), score_edges(model, PAIRS, "eap", metric=DIFF, budget=budget).values
        if budget is None:
            first = found
    assert all(a == pytest.approx(b, abs=1e-9) for a, b in zip(first, found, strict=True))
    assert len(experiment.batches) == 2


def test_noise_of_a_pair_is_one_draw_for_all_of_its_rows():
    model = architectures.load("gpt2")
    (batch,) = PairSet(PAIRS.pairs[:1]).batches()
    assert batch.index.tolist() == [0] * 4
    values = torch.zeros(*batch.clean.shape, 3)
    noise = normal(values, 0, ("resid_pre", 0), batch.index)
    assert bool((noise == noise[:1]).all())
    experiment = Experiment(model, PAIRS, DIFF, "noise", allow_weak_gap=True)
    assert not np.allclose(experiment.empty, experiment.corrupt)


@pytest.mark.parametrize("metric", ["answer_log_prob", "answer_log_prob_diff"])
def test_words_of_one_token_give_the_numbers_of_log_prob_and_logit_diff(metric):
    model = architectures.load("gpt2")
    old = {"answer_log_prob": "log_prob", "answer_log_prob_diff": "logit_diff"}[metric]
    one, other = (sweep(model, ONE_TOKEN, "head_z", metric=name).per_example for name in (metric, old))
    assert one == pytest.approx(other, abs=1e-13)
    one, other = (score_edges(model, ONE_TOKEN, "eap", metric=name).values for name in (metric, old))
    assert one == pytest.approx(other, abs=1e-13)
    # Beside a pair with longer words the others keep their values.
    both = Experiment(model, replace(PAIRS, pairs=(*ONE_TOKEN, *PAIRS)), metric, allow_weak_gap=True)
    assert both.clean[: len(ONE_TOKEN)] == pytest.approx(
        Experiment(model, ONE_TOKEN, old, allow_weak_gap=True).clean, abs=1e-13
    )


def test_several_distractors_are_averaged_as_logit_diff_averages_them():
    model = architectures.load("gpt2")
    given = PairSet((pair(5, (41, 42, 43), (51, 52)),))
    values = [Experiment(model, given, name, allow_weak_gap=True).clean for name in (DIFF, "logit_diff")]
    assert values[0] == pytest.approx(values[1], abs=1e-13)


def test_accuracy_is_greedy_decoding_and_rank_the_worst_token_of_the_best_answer():
    model, bridge = architectures.load("gpt2"), oracle_of("gpt2")
    given = pair(7, (1,), (2,))
    ids, ranks = list(given.clean_ids), []
    for _ in range(3):
        ids.append(int(bridge(torch.tensor([ids]))[0, -1].argmax()))
    greedy = tuple(ids[LENGTH:])
    wrong = (*greedy[:2], 5)
    for words, expected in (((greedy,), 1), ((wrong,), 0), ((wrong, greedy), 1)):
        pairs = PairSet((replace(PAIRS[0], id="other"), replace(given, answer_ids=words, answers=("a",) * len(words))))
        ends = Experiment(model, pairs, DIFF, allow_weak_gap=True).recordings.ends(resolve("accuracy"), resolve("rank"))
        assert ends[0][0][1] == expected
        ranks.append(ends[1][0][1])
    logits = bridge(torch.tensor([given.clean_ids + greedy[:2]]))[0, -1]
    assert ranks == [0, int((logits > logits[5]).sum()), 0]
    assert ranks[1] > 0


def test_averages_over_tokens_count_each_token_of_prompt_and_answer_once():
    model = architectures.load("gpt2")
    given = PairSet(tuple(replace(pair(n, ((41, 42, 43),), ()), distractors=()) for n in range(3)))
    longer = PairBatch.from_tokens(
        *(torch.tensor([(*getattr(p, f"{side}_ids"), 41, 42) for p in given]) for side in ("clean", "corrupt")),
        torch.full((3, 1), 43),
    )
    shares = [score_edges(model, one, "ifr", metric=name) for one, name in ((given, ALONE), (longer, "log_prob"))]
    assert shares[0].values == pytest.approx(shares[1].values, abs=1e-10)
    assert shares[0].checks == pytest.approx(shares[1].checks, abs=1e-6)
    for kind in ("mean", "mean-position"):
        ours, theirs = (measure_means(model, one, kind, DEFAULT) for one in (given, longer))
        for place, table in ours.tables.items():
            assert torch.allclose(table, theirs.tables[place], atol=1e-10)
        assert all(torch.allclose(a, b) for a, b in zip(ours.patterns[8], theirs.patterns[8], strict=True))
    ours, theirs = (measure_deviations(model, one, DEFAULT) for one in (given, longer))
    assert all(torch.allclose(table, theirs.tables[place]) for place, table in ours.tables.items())


def test_what_judges_one_position_refuses_answers_of_several_tokens(monkeypatch):
    model, both = architectures.load("gpt2"), architectures.load("bidirectional")
    monkeypatch.setattr(type(model), "record", lambda *given: pytest.fail("the model ran"))
    fix = r"metric 'logit_diff' judges the next token, and '.*' of pair '0' has 2 tokens\. Take metric='answer_log_prob"
    for ask in (sweep, patch_edges, score_edges, lambda m, p: path_patch(m, p, "a0.h1", ["logits"])):
        with pytest.raises(MetricError, match=fix):
            ask(model, PAIRS)
    for name in ("prob_diff", "log_prob", "kl", "accuracy", "rank"):
        with pytest.raises(MetricError, match=f"metric '{name}' judges the next token"):
            sweep(model, PAIRS, metric=name)
    with pytest.raises(ConfigError, match="has several tokens, and here only the next token is judged"):
        batches_for(model, PAIRS)
    with pytest.raises(ConfigError, match="Give the PairSet that it is of"):
        sweep(model, PAIRS.batches()[0], metric=DIFF)
    with pytest.raises(ConfigError, match="a token sees those after it in this model"):
        sweep(both, PAIRS, metric=DIFF)


def test_masks_are_learned_and_circuits_evaluated_on_whole_answers():
    model = architectures.load("gpt2")
    scores = score_edges(model, PAIRS, "edge-pruning", metric=DIFF, updates=2)
    assert np.isfinite(scores.values).all()
    circuit = select(model, scores, PAIRS, n_edges=20, metric=DIFF, allow_weak_gap=True)
    found = evaluate(model, circuit, PAIRS, metric=DIFF, allow_weak_gap=True, n_random=1, n_knockouts=1)
    assert len(found.clean) == len(found.circuit) == len(PAIRS)
    assert 0 <= found.accuracy_model <= 1


class TestTokens:
    """Words of several tokens found in context, on the bundled tokenizer."""

    def example(self, answer: str, distractor: str, **more):
        return Example("Anna is kind.", "Anna is kind;", answer=answer, distractor=distractor, **more)

    def test_the_tokens_of_an_answer_are_those_after_the_prompt(self, bundled):
        made = encode_example(self.example(" Certainly", " She"), bundled.text, whole_answers=True)
        assert isinstance(made, Pair)
        (ids,), (other,) = made.answer_tokens, made.distractor_tokens
        assert made.clean_ids + ids == bundled.text.encode("Anna is kind. Certainly").ids
        assert len(ids) > 1 == len(other)
        assert made.answer_ids == (ids,) and made.distractor_ids == other  # noqa: PT018
        record = json.loads(json.dumps(made.to_record("discovery")))
        assert record.pop("split") == "discovery"
        assert from_plain(Pair, record) == made

    def test_alone(self, bundled):
        made = encode_example(
            self.example("Certainly", "She", standalone_answers=True), bundled.text, whole_answers=True
        )
        assert isinstance(made, Pair)
        assert bundled.text.joined(made.answer_tokens[0]) == "Certainly"

    def test_without_whole_answers_the_message_names_the_metric(self, bundled):
        made = encode_example(self.example(" Certainly", " She"), bundled.text)
        assert isinstance(made, Rejection)
        assert made.message.endswith("--metric answer_log_prob_diff) judges answers of several tokens.")

    def test_a_word_that_begins_another_is_refused(self, bundled):
        made = encode_example(self.example(" She", " She is"), bundled.text, whole_answers=True)
        assert isinstance(made, Rejection)
        assert "' She' and ' She is' begin alike" in made.reason

    def test_a_word_that_changes_the_prompt_is_refused(self, bundled):
        joined = Example("Anna is kin", "Lisa is kin", "d", "s")
        made = encode_example(joined, bundled.text, whole_answers=True)
        assert isinstance(made, Rejection)
        assert made.reason == "'d' is not one token"


def draw_two_tokens(rng: Random) -> Example:
    """A task of the bundled model whose answers are made longer by what it says next."""
    one = load_task("name-throw").example(rng)
    tail = " the"
    return replace(one, answer=f"{one.answers[0]}{tail}", distractor=f"{one.distractors[0]}{tail}")


def test_discover_reads_back_and_repeats_with_whole_answers(bundled, tmp_path):
    task = Task(
        name="two-tokens", version="1", summary="A name and more.", draw=draw_two_tokens, metric="answer_log_prob_diff"
    )
    settings = {"model": bundled, "n": 4, "method": "eap", "sites": ("resid_pre",)}
    run = discover(task, **settings)
    assert run.pairs.discovery.whole_answers
    assert run.evaluation.faithfulness > 0.5
    assert run.behaviour.prefers == 1.0
    again = load_run(run.write(tmp_path / "run").folder)
    assert again.pairs.discovery.pairs == run.pairs.discovery.pairs
    with pytest.raises(TokenError, match="--metric answer_log_prob_diff"):
        discover(task, **settings, metric="logit_diff")
