"""The first notebook's whole analysis on the bundled model: which neurons close HTML tags."""

import re
from pathlib import Path

import numpy as np
import pytest

from circuitlab import neurons
from circuitlab.predictions.next_token import continue_text
from circuitlab.tasks.html_tag_closing import notebook_prompts

PAGE = re.search(
    r'text = """(.*?)"""', (Path(__file__).parent.parent / "docs" / "neurons.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [example.clean for example in notebook_prompts()]


@pytest.fixture(scope="module")
def table(bundled, prompts):
    return neurons.importance(bundled, prompts)


def test_the_prompts_end_in_the_tokenizers_own_mark(bundled, prompts):
    for prompt in prompts:
        assert bundled.text.encode(prompt).tokens[-1] == "</"


def test_two_greedy_tokens_close_every_tag(bundled, prompts):
    wanted = [example.answers[0] for example in notebook_prompts()]
    assert [one.continued for one in continue_text(bundled, prompts, 2)] == [f"{tag}>" for tag in wanted]
    # The twin: with another tag opened, another is closed.
    other = [example.corrupt for example in notebook_prompts()]
    assert [one.tokens[0] for one in continue_text(bundled, other, 2)] != wanted


def test_few_neurons_carry_much_of_the_prediction(bundled, prompts, table):
    wanted = [example.answers[0] for example in notebook_prompts()]
    assert list(table.answers) == wanted
    assert (table.totals > 0).all()
    frame = table.to_frame(10)
    assert frame.columns.tolist() == ["layer", "neuron", *prompts, "average"]
    assert frame.average.sum() > 10 * table.average.mean() * 10  # ten of 2,048 carry far more than ten of the average
    # The twin: on the answers of other prompts neurons add far less, and so does each prompt's own first neuron.
    turned = neurons.importance(bundled, prompts, answers=[*wanted[1:], wanted[0]])
    assert (table.totals > 2 * turned.totals).all()
    first = table.shares.argmax(0), np.arange(len(prompts))
    assert (table.effects[first] > 1.5 * turned.effects[first]).all()


def test_the_page_shows_a_neuron_at_the_tokens_that_close_its_tag(bundled, table):
    """Neuron 234 of layer 3, first for `</li>`: on a page of 200 tokens its three highest are where list items end."""
    assert PAGE
    li = table.answers.index("li")
    own = int(np.argmax(table.shares[:, li]))
    layer, neuron = int(table.layers[own]), int(table.neurons[own])
    found = neurons.activations(bundled, PAGE[1], layer, [neuron, (neuron + 1) % 512])
    assert 190 < len(found.tokens) <= 256

    def follows(series: int) -> list[str]:
        """What stands behind the tokens `</` where the series is highest."""
        order = np.argsort(-found.values[series], kind="stable")
        closing = [int(i) for i in order if found.tokens[i] == "</"]
        return [found.tokens[i + 1] for i in closing[:3]]

    assert set(follows(0)) <= {"li", "ul", "ol"}
    assert found.tokens[int(found.values[0].argmax())] == "</"
    assert not set(follows(1)) <= {"li", "ul", "ol"}  # the twin: its neighbour does not
    page = found.to_html()
    assert page.count('<i class="nl">') == PAGE[1].count("\n")
    assert "<hr/>" not in page  # escaped
    promoted = neurons.top_tokens(bundled, layer, neuron, 1).entries[0]
    assert promoted.token == "li"
