"""Prompts in which shortcuts fail: the answers, read again from the words; none of them is training text."""

import re
from html.parser import HTMLParser

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from circuitlab.tasks import gendered_pronouns
from tests.test_bundled_model import FOLDER
from training import kept_out
from training.adversarial import KINDS, Prompt, draw_prompts, measure_broken

CASES = [pytest.param(task, kind, id=f"{task}: {kind}") for task, kind in KINDS]


class Open(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag


def innermost(text: str) -> str:
    parser = Open()
    parser.feed(text.removesuffix("</"))
    parser.close()
    return parser.tags[-1]


def pronoun(text: str) -> str:
    name, mark = re.search(r"(\w+) is [a-z ]+([.;])(?:\[\d\])?$", text).groups()
    word = "he" if name in gendered_pronouns.MALE_NAMES else "she"
    return f" {word.capitalize() if mark == '.' else word}"


def starter(text: str) -> str:
    """The hand that the thing came from, followed back from the last one."""
    holder, thing = re.search(r"(\w+) threw the (\w+) back to$", text).groups()
    came_from = {taker: giver for giver, taker in re.findall(rf"(\w+) threw the {thing} to (\w+)\.", text)}
    came_from |= dict(re.findall(rf"(\w+) caught the {thing} from (\w+)\.", text))
    while holder in came_from:
        holder = came_from[holder]
    return f" {holder}"


READERS = {"name-throw": starter, "gendered-pronouns": pronoun, "html-tag-closing": innermost}


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_answers_follow_from_the_words(task: str, kind: str) -> None:
    prompts = draw_prompts(task, kind, 100, seed=5)
    assert len({each.text for each in prompts}) == 100
    for each in prompts:
        assert READERS[task](each.text) == each.answer
        assert each.answer not in each.wrong
        assert each.wrong


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_no_prompt_could_be_in_the_training_text(task: str, kind: str) -> None:
    assert all(kept_out.leaks(each.text) for each in draw_prompts(task, kind, 100, seed=6))


def positions(prompts: list[Prompt]) -> set[int]:
    return {each.text.replace(".", "").split().index(each.answer.strip()) for each in prompts}


def test_the_starter_stands_elsewhere_where_the_kind_says_so() -> None:
    """The twin: chains of several lengths alone leave the starter in front."""
    for kind in ("a sentence in front", "a bystander in front", "the starter named second", "another chain in front"):
        assert 0 not in positions(draw_prompts("name-throw", kind, 50, seed=1))
    assert positions(draw_prompts("name-throw", "chains of two to five people", 50, seed=1)) == {0}


def test_an_untrained_model_is_right_nowhere() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=16, n_layer=1, n_head=2)
        model = GPT2LMHeadModel(config).eval()
    found = measure_broken(model, tokenizer, count=20, seed=1)
    assert [(each.task, each.kind) for each in found] == list(KINDS)
    assert all(each.right < 0.2 for each in found)
