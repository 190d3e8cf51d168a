"""The prompts of the tasks, read again by other means than the ones that made them."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import product
from random import Random

import pytest

from circuitlab.data.example import Example
from circuitlab.data.task import Task
from circuitlab.tasks import gendered_pronouns, html_tag_closing, name_throw

TASKS = (gendered_pronouns.TASK, name_throw.TASK, html_tag_closing.TASK)


def settings_of(task: Task) -> list[dict[str, str]]:
    return [dict(zip(task.options, values, strict=True)) for values in product(*task.options.values())]


CASES = [
    pytest.param(task, options, id="-".join([task.name, *options.values()]))
    for task in TASKS
    for options in settings_of(task)
]


def drawn(task: Task, options: dict[str, str], count: int, seed: int = 0) -> list[Example]:
    rng = Random(seed)
    return [task.draw(rng, **options) for _ in range(count)]


# What is right after a prompt, found from its words alone.


class _OpenTags(HTMLParser):
    """Keeps the tags that are open, and fails where one is closed that is not the innermost."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def open_tag(prompt: str) -> str:
    assert prompt.endswith("</")
    parser = _OpenTags()
    parser.feed(prompt.removesuffix("</"))
    parser.close()
    return parser.open[-1]


def pronoun(prompt: str) -> str:
    name, stop = prompt.split()[0], prompt[-1]
    word = "he" if name in gendered_pronouns.MALE_NAMES else "she"
    return f" {word.capitalize()}" if stop == "." else f" {word}"


def thrown_first(prompt: str) -> str:
    throws = re.findall(r"(\w+) threw the (\w+) to (\w+)\.", prompt)
    ending = re.search(r"(\w+) threw the (\w+) back to$", prompt)
    assert throws
    assert ending
    assert [taker for *_, taker in throws] == [giver for giver, *_ in throws[1:]] + [ending[1]]
    assert {thing for _, thing, _ in throws} == {ending[2]}
    return f" {throws[0][0]}"


READERS: dict[str, Callable[[str], str]] = {
    "html-tag-closing": open_tag,
    "gendered-pronouns": pronoun,
    "name-throw": thrown_first,
}


@pytest.mark.parametrize(("task", "options"), CASES)
def test_answer_and_distractor_are_what_the_words_of_each_prompt_say(task: Task, options: dict[str, str]) -> None:
    read = READERS[task.name]
    for example in (*task.with_options(**options).fixed_examples(), *drawn(task, options, 500)):
        assert read(example.clean) == example.answer
        assert read(example.corrupt) == example.distractor


@pytest.mark.parametrize(("task", "options"), CASES)
def test_the_readers_notice_a_prompt_whose_answer_is_wrong(task: Task, options: dict[str, str]) -> None:
    read = READERS[task.name]
    assert all(read(each.corrupt) != each.answer for each in drawn(task, options, 100))


@pytest.mark.parametrize(("task", "options"), CASES)
def test_there_are_prompts_enough_for_two_large_splits(task: Task, options: dict[str, str]) -> None:
    """Among 3,500; no more are drawn than show it."""
    rng, found = Random(0), set[str]()
    for _ in range(3500):
        found.add(task.draw(rng, **options).clean)
        if len(found) > 2000:
            break
    assert len(found) > 2000


@pytest.mark.parametrize(("task", "options"), CASES)
def test_the_same_seed_draws_the_same_prompts(task: Task, options: dict[str, str]) -> None:
    assert drawn(task, options, 50, seed=3) == drawn(task, options, 50, seed=3)
    assert drawn(task, options, 50, seed=3) != drawn(task, options, 50, seed=4)


@pytest.mark.parametrize(("task", "options"), CASES)
def test_a_pair_differs_in_the_words_it_is_about_and_in_no_others(task: Task, options: dict[str, str]) -> None:
    changed = {
        "gendered-pronouns": 1,
        "name-throw": 2 if options.get("corruption") == "starter" else 5,
        "html-tag-closing": 2,
    }
    for example in drawn(task, options, 200):
        clean, corrupt = (re.findall(r"\w+|[^\w\s]", text) for text in (example.clean, example.corrupt))
        assert len(clean) == len(corrupt)
        differing = sum(one != other for one, other in zip(clean, corrupt, strict=True))
        assert 1 <= differing <= changed[task.name]


@pytest.mark.parametrize(("task", "options"), CASES)
def test_spans_name_the_words_they_stand_on(task: Task, options: dict[str, str]) -> None:
    always = {
        "gendered-pronouns": {"name", "is", "person", "period"},
        "name-throw": {"starter", "second", "second#2", "verb", "object", "back", "to"},
        "html-tag-closing": {"tag", "text", "close"},
    }
    for example in drawn(task, options, 100):
        assert always[task.name] <= set(example.spans)
        words = {name: example.clean[start:end] for name, (start, end) in example.spans.items()}
        if task.name == "html-tag-closing":
            assert words["tag"] == example.answer
            assert words["close"] == "</"
        elif task.name == "name-throw":
            assert f" {words['starter']}" == example.answer
            assert (words["back"], words["to"]) == ("back", "to")
        else:
            assert words["is"] == "is"
            assert words["period"] == example.clean[-1]


def test_the_notebook_s_sentences_are_among_the_pronoun_prompts() -> None:
    men = {"John", "David", "Mark", "Paul", "Ryan", "Gary", "Jack", "Sean", "Carl", "Joe"}
    women = {"Mary", "Lisa", "Anna", "Sarah", "Amy", "Jane", "Joy", "Susan", "Victoria", "Laura"}
    assert men == set(gendered_pronouns.MALE_NAMES[:10])
    assert women == set(gendered_pronouns.FEMALE_NAMES[:10])
    for phrase, noun in gendered_pronouns.NOTEBOOK_PHRASES:
        degree, adjective = phrase.rsplit(" ", 1)
        assert degree in gendered_pronouns.DEGREES
        assert adjective in gendered_pronouns.ADJECTIVES
        assert noun in gendered_pronouns.PEOPLE


def test_no_name_has_two_genders_or_stands_twice() -> None:
    names = gendered_pronouns.MALE_NAMES + gendered_pronouns.FEMALE_NAMES
    assert len(set(names)) == len(names)
    assert min(len(gendered_pronouns.MALE_NAMES), len(gendered_pronouns.FEMALE_NAMES)) >= 40
    assert set(name_throw.NAMES) <= set(names)
    assert len(set(name_throw.NAMES)) == len(name_throw.NAMES)


def test_the_notebook_s_throw_can_be_drawn() -> None:
    class NotebookOrder(Random):
        def sample(self, population, k, **_):  # the four names asked for
            return ["Jill", "Jack", "Will", "Tom"][:k]

    example = name_throw.draw(NotebookOrder())
    assert example.clean == ("Jill threw the ball to Jack. Jack threw the ball to Will. Will threw the ball back to")
    assert (example.answer, example.distractor) == (" Jill", " Jack")


def test_the_notebook_s_five_pages_come_first() -> None:
    prompts = [example.clean for example in html_tag_closing.TASK.fixed_examples()]
    assert prompts == [
        "<h1>Title</",
        "<b>Some bold text</",
        "<p>An interesting paragraph</",
        "<table><tr><th>Model name</",
        "<li>List item</",
    ]


def test_pages_are_of_every_depth_and_the_open_tag_is_often_not_the_last_one_mentioned() -> None:
    examples = drawn(html_tag_closing.TASK, {"distractor": "other"}, 600)
    depths = [1 + sum(role in each.spans for role in ("enclosing", "outermost")) for each in examples]
    last_mentioned = [re.findall(r"<\/?(\w+)", each.clean)[-1] for each in examples]
    others_between = sum(tag != each.answer for tag, each in zip(last_mentioned, examples, strict=True))
    assert set(depths) == {1, 2, 3}
    assert others_between / len(examples) > 0.4
    assert any("/>" in each.clean for each in examples)
    assert any('="' in each.clean for each in examples)


def test_the_other_tag_stands_nowhere_in_the_clean_page() -> None:
    for example in drawn(html_tag_closing.TASK, {"distractor": "other"}, 500):
        assert example.distractor not in re.findall(r"<\/?(\w+)", example.clean)
