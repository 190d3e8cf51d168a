"""The notebook on capital letters after a full stop, whole, on the bundled model: lens, parts, patterns, patching.

Its 100 prompts (20 names, five sentences), its contrast (" He" against " he", " She" against " she") and its corruption
(";" for the full stop).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitlab import PairSet, attention, direct_attribution, lens_tokens, logit_lens, sweep, top_heads
from circuitlab.data.encoding import encode_example
from circuitlab.data.example import Example
from circuitlab.data.pair import Pair
from circuitlab.tasks.gendered_pronouns import FEMALE_NAMES, MALE_NAMES, NOTEBOOK_PHRASES

SPANS = ("name", "is", "person", "period")


@pytest.fixture(scope="module")
def prompts(bundled) -> PairSet:
    """Every name in every sentence."""
    found = []
    for names, low in ((MALE_NAMES[:10], " he"), (FEMALE_NAMES[:10], " she")):
        for name in names:
            for phrase, person in NOTEBOOK_PHRASES:
                example = Example.from_template(
                    f"{{name}} {{is}} {phrase} {{person}}{{period}}",
                    {"name": name, "is": "is", "person": person, "period": "."},
                    corrupt={"period": ";"}, answer=f" {low[1:].capitalize()}", distractor=low,
                )  # fmt: skip
                made = encode_example(example, bundled.text)
                assert isinstance(made, Pair), made
                found.append(replace(made, id=str(len(found))))
    return PairSet(tuple(found))


@pytest.fixture(scope="module")
def by_head(bundled, prompts):
    return direct_attribution(bundled, prompts, "head")


def test_there_are_a_hundred_prompts_of_eight_tokens(prompts):
    assert len(prompts) == 100
    assert {len(pair) for pair in prompts} == {8}


def test_the_contrast_turns_over_with_the_full_stop(bundled, prompts):
    clean = direct_attribution(bundled, prompts)
    corrupt = direct_attribution(bundled, prompts, run="corrupt")
    assert clean.total.min() > 4
    assert corrupt.total.max() < -4


def test_the_sum_of_all_parts_is_the_metric(bundled, prompts, by_head):
    """The notebook's was 8.22 against 7.27; a bias was left out."""
    for found in (direct_attribution(bundled, prompts), by_head, direct_attribution(bundled, prompts, "neuron")):
        assert found.per_example.sum(0).mean() == pytest.approx(found.total.mean(), abs=1e-4)
        assert found.gap < 1e-4
    no_bias = [component.kind != "bias" for component in by_head.components]
    assert abs(by_head.per_example[no_bias].sum(0).mean() - by_head.total.mean()) > 1e-2


def test_the_answer_appears_along_the_stream(bundled, prompts):
    lens = logit_lens(bundled, prompts)
    assert lens.values[0] < 1 < 4 < lens.values[-1]
    assert lens.values[-1] == pytest.approx(direct_attribution(bundled, prompts).total.mean(), abs=1e-4)
    words = lens_tokens(bundled, prompts[0], k=2).words
    assert words[0][-1][0] not in (" He", " he")
    assert words[-1][-1][0] == " He"


def test_the_top_heads_really_carry_what_is_said_of_them(bundled, prompts, by_head):
    """Each head taken out of the last stream alone: what is lost, the norm's new scale and all, ranks as the shares."""
    (batch,) = prompts.batches()
    run = bundled.record(batch.clean)

    def difference(stream: torch.Tensor) -> float:
        logits = bundled.logits(stream[:, -1])
        return float((logits.gather(1, batch.answers) - logits.gather(1, batch.distractors)).mean())

    whole = difference(run.resid_final)
    lost = np.array(
        [[whole - difference(run.resid_final - out) for out in bundled.head_outputs(layer, run.z[layer])]
         for layer in range(bundled.spec.n_layers)]
    )  # fmt: skip
    top = top_heads(by_head, 2)
    ranked = [f"a{at // 8}.h{at % 8}" for at in np.argsort(-lost.ravel())]
    assert ranked[:2] == list(top[top["sign"] == "positive"]["head"])
    assert ranked[-1] == top[top["sign"] == "negative"]["head"].iloc[0]
    assert np.corrcoef(lost.ravel(), by_head.heads.ravel())[0, 1] > 0.9
    # The twin: of other heads it is not so.
    assert np.corrcoef(lost.ravel(), np.roll(by_head.heads.ravel(), 5))[0, 1] < 0.5


def test_with_answers_that_are_shuffled_nothing_is_explained(bundled, prompts, by_head):
    """The twin of the whole: half of the pairs with answer and distractor in each other's place."""
    turned = [
        replace(pair, answer_ids=pair.distractor_ids, distractor_ids=pair.answer_ids) if number % 2 else pair
        for number, pair in enumerate(prompts)
    ]
    found = direct_attribution(bundled, PairSet(tuple(turned)), "head")
    assert found.gap < 1e-4  # what is added up is right whatever is asked
    assert abs(found.total.mean()) < 0.15 * by_head.total.mean()
    assert np.abs(found.heads).max() < 0.15 * np.abs(by_head.heads).max()


def test_where_the_top_heads_look(bundled, prompts, by_head):
    names = list(top_heads(by_head, 2)["head"])
    found = attention(bundled, prompts[0], names)
    assert found.tokens[-1] == "."
    assert np.abs(found.patterns.sum(-1) - 1).max() < 1e-5
    assert [panel.get_title(loc="left").split()[0] for panel in found.plot().axes[: len(names)]] == names


def test_patching_says_that_it_happens_at_the_last_token(bundled, prompts):
    """0 is the corrupted, 1 the clean value; nothing is carried along the stream."""
    some = PairSet(prompts.pairs[::5])
    grids = sweep(bundled, some, site=["resid_pre", "attn_out", "mlp_out", "head_z"], axis="span")
    for site in ("resid_pre", "attn_out", "mlp_out"):
        frame = grids[site].to_frame()
        assert set(SPANS) <= set(frame["span"])
        assert np.abs(frame.loc[frame["span"] != "period", "value"]).max() < 1e-6
    at_end = grids["resid_pre"].to_frame().query("span == 'period'")["value"]
    assert np.abs(at_end - 1).max() < 1e-4
    assert grids["head_z"].values.shape == (4, 8)
    assert grids["mlp_out"].to_frame()["value"].max() > 0.5


def test_the_other_contrast_of_the_same_sentences(bundled):
    """The gender: its head looks back at the name, which is where the prompts differ."""
    from circuitlab import load_task

    pairs = load_task("gendered-pronouns", task_options={"contrast": "gender"}).pairs(bundled, n=20, seed=0).discovery
    split = direct_attribution(bundled, pairs, "head")
    assert split.total.mean() > 2
    assert split.gap < 1e-4
    looks = attention(bundled, pairs[0], list(top_heads(split, 3)["head"]))
    assert looks.patterns[:, -1, 1].max() > 0.2
