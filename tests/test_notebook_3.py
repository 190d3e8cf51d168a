"""What notebook N3 does to one neuron by changing its input: noise, deletions, ablation, searched prompts."""

import json

import numpy as np
import pytest

from circuitlab.neurons import ablation_effect, noise_sensitivity, optimise_prompts, simplify

TEXT = "Victoria is a really great friend. She is such a good cook"
LAYER, NEURON = 2, 192


@pytest.fixture(scope="module")
def searched(bundled):
    return optimise_prompts(bundled, LAYER, NEURON, n_prompts=8, n_tokens=6, steps=120, seed=0)


def test_noise_at_the_token_that_the_neuron_reads_moves_it_most(bundled):
    found = noise_sensitivity(bundled, TEXT, LAYER, NEURON, seed=0)
    assert found.activation > 3
    assert int(found.size.argmax()) == len(found.tokens) - 1
    assert found.mean[-1] < -3 * found.standard_error[-1]  # the noise lowers it, beyond chance
    assert found.size[-1] > 3 * np.median(found.size)
    assert set(found.coloured().series) == {"mean change", "root mean square change"}


def test_the_text_becomes_two_words_and_the_neuron_still_fires(bundled):
    found = simplify(bundled, TEXT, LAYER, NEURON)
    short = found.shortest(0.8)
    assert len(short.tokens) - 1 <= 5
    assert short.tokens.text.endswith(" cook")
    # The twin: as many of the first words deleted instead leave less of it.
    last = bundled.text.encode(TEXT).tokens[-(len(short.tokens) - 1) :]
    tail = simplify(bundled, "".join(last), LAYER, NEURON).steps[0]
    assert tail.activation < short.activation


def test_ablating_its_strongest_neurons_hurts_more_than_random_ones(bundled):
    texts = ["Mark is a really nice person. He is a good cook.", "Anna is such a funny person. She is a great friend."]
    strongest = ablation_effect(bundled, texts, {3: range(512)})
    few = ablation_effect(bundled, texts, {3: [7]})
    assert strongest.mean_change < few.mean_change - 0.05
    by_mean = ablation_effect(bundled, texts, {3: range(512)}, value="mean")
    assert by_mean.mean_change != strongest.mean_change
    assert [len(one.tokens) for one in strongest.texts] == [len(bundled.text.encode(text).ids) for text in texts]


def test_searched_prompts_beat_as_many_random_ones(searched):
    assert searched.baseline.n == searched.n_evaluated >= 8 * 30
    assert searched.margin > 2.0
    assert searched.best.value > searched.baseline.mean + 8 * searched.baseline.std
    assert len({one.tokens.ids for one in searched.prompts}) == 8


def test_the_other_sign_ends_below(bundled, searched):
    down = optimise_prompts(bundled, LAYER, NEURON, n_prompts=8, n_tokens=6, steps=40, seed=0, direction="min")
    assert down.best.value < searched.baseline.mean < searched.best.value
    assert down.best.value < 0


def test_as_commands(circuitlab, tmp_path):
    where = ("--layer", LAYER, "--neuron", NEURON, "--json")
    told = {
        "sensitivity": circuitlab("neurons", "sensitivity", TEXT, *where, "--html", tmp_path / "noise.html"),
        "simplify": circuitlab("neurons", "simplify", TEXT, *where, "--until", 0.7),
        "ablate": circuitlab("neurons", "ablate", TEXT, "--set", "2=192,82", "--json"),
        "optimise": circuitlab("neurons", "optimise", *where, "--steps", 3, "--prompts", 2, "--fixed", "0= cook"),
    }
    for name, done in told.items():
        assert done.code == 0, f"{name}: {done.err}"
    records = {name: json.loads(done.out) for name, done in told.items()}
    assert len(records["sensitivity"]["tokens"]) == 14
    assert records["simplify"]["steps"][-1]["share"] >= 0.7
    assert records["ablate"]["neurons"] == {"2": [192, 82]}
    assert all(one["text"].startswith(" cook") for one in records["optimise"]["prompts"])
    assert "<html" in (tmp_path / "noise.html").read_text()
    wrong = circuitlab("neurons", "ablate", TEXT, "--layer", 2)
    assert wrong.code == 2
    assert "--layer and --neurons go together" in wrong.err
