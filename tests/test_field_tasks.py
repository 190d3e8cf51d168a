"""The field's tasks: answers are worked out again from the prompts, held-out words never stand in discovery prompts."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

import pytest

from circuitlab import Example, Task, load_task
from circuitlab.data.published import PublishedCircuit
from circuitlab.data.sampling import sample_pairs
from circuitlab.data.splits import STAND_INS, words_of
from circuitlab.data.task import Task as AnyTask
from circuitlab.errors import CircuitLabError, ConfigError, TaskError, UnknownNameError
from circuitlab.references import WANG_2023
from tests.words import Words

NAMES = (
    "ioi", "greater-than", "docstring", "induction", "subject-verb-agreement", "gendered-professions",
    "capital-of-country", "arithmetic", "copy-colors", "acronyms",
)  # fmt: skip


def variants(name: str) -> Iterator[Task]:
    """The task, and the task with each other value of each option."""
    task = load_task(name)
    yield task
    for option, values in task.options.items():
        yield from (task.with_options(**{option: value}) for value in values[1:])


VARIANTS = [task for name in NAMES for task in variants(name)]


def by_repetition(prompt: str, example: Example) -> set[str]:
    """IOI: the name that stands once."""
    spans = example.spans if prompt == example.clean else example.corrupt_spans
    names = [prompt[slice(*spans[span])] for span in ("io", "s1", "s2")]
    return {f" {name}" for name in names if names.count(name) == 1}


def later_years(prompt: str, _: Example) -> set[str]:
    century, year, end = re.fullmatch(r"The \w+ lasted from the year (\d\d)(\d\d) to the year (\d\d)", prompt).groups()
    assert century == end
    return {f"{later:02}" for later in range(int(year) + 1, 100)}


def later_tens(prompt: str, _: Example) -> set[str]:
    return {later[0] for later in later_years(prompt, _) if later[0] > re.search(r"\d\d(\d)", prompt)[1]}


def next_argument(prompt: str, _: Example) -> set[str]:
    arguments = re.search(r"\(self, (.*)\)", prompt)[1].split(", ")
    described = re.findall(r":param (\w+):", prompt)
    return {f" {arguments[arguments.index(described[-1]) + 1]}"} if described[-1] in arguments else set()


def what_followed(prompt: str, _: Example) -> set[str]:
    words = prompt.split()
    return {f" {words[words.index(words[-1]) + 1]}"}


def verbs(prompt: str, example: Example) -> set[str]:
    subject = prompt[slice(*(example.spans if prompt == example.clean else example.corrupt_spans)["subject"])]
    plural = subject.endswith("s")
    return {" are", " were", " have", " do"} if plural else {" is", " was", " has", " does"}


def result(prompt: str, _: Example) -> set[str]:
    first, second = map(int, re.findall(r"\d+", prompt))
    if "from" in prompt:
        first, second = second, first
    minus = any(word in prompt for word in ("difference", "minus", "-", "away"))
    return {("" if prompt.endswith("=") else " ") + str(first - second if minus else first + second)}


def chosen_letter(prompt: str, _: Example) -> set[str]:
    stated, choices = prompt.split("?")
    return {f" {letter}" for letter, color in re.findall(r"(\w)\. (\w+)", choices) if color in stated.split(". ")[0]}


def last_initial(prompt: str, _: Example) -> set[str]:
    words, _letters = re.fullmatch(r"The (.*) \((\w\w)", prompt).groups()
    return {words.split()[2][0]}


ORACLES: dict[str, Callable[[str, Example], set[str]]] = {
    "ioi": by_repetition,
    "greater-than": later_years,
    "greater-than-one": later_tens,
    "docstring": next_argument,
    "induction": what_followed,
    "subject-verb-agreement": verbs,
    "arithmetic": result,
    "copy-colors": chosen_letter,
    "acronyms": last_initial,
}
# What is right in the corrupted prompt is the distractor.
TURNED_OVER = (
    "ioi-s2-io-flip", "docstring-random-answer", "induction", "induction-4", "induction-16", "induction-32",
    "subject-verb-agreement", "subject-verb-agreement-across-phrase", "subject-verb-agreement-across-clause",
    "subject-verb-agreement-within-clause", "arithmetic", "arithmetic-subtraction", "arithmetic-one",
    "arithmetic-equation", "copy-colors", "copy-colors-order", "copy-colors-2", "copy-colors-3", "acronyms",
    "acronyms-all",
)  # fmt: skip


def drawn(task: Task, split: str, n: int = 60) -> list[Example]:
    rng = Random(3)
    return [task.example(rng, split=split) for _ in range(n)]


@pytest.mark.parametrize("task", [task for task in VARIANTS if task.name in ORACLES], ids=lambda task: task.label)
def test_answers_are_those_that_the_prompt_asks_for(task: Task) -> None:
    right = ORACLES.get(task.label, ORACLES[task.name])
    for example in drawn(task, "any"):
        assert set(example.answers) == right(example.clean, example)
        assert not set(example.distractors) & right(example.clean, example)  # the twin: these must not pass
        if task.label in TURNED_OVER:
            assert set(example.distractors) == right(example.corrupt, example)


def test_answers_of_facts_and_professions_come_from_one_table() -> None:
    for name in ("capital-of-country", "gendered-professions"):
        answers: dict[str, set[str]] = {}
        for example in drawn(load_task(name), "any", 300):
            span = example.spans["country" if "country" in example.spans else "profession"]
            answers.setdefault(example.clean[slice(*span)], set()).update(example.answers)
        assert len(answers) > 20
        assert all(len(given) == 1 for given in answers.values())


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: task.label)
def test_held_out_prompts_have_words_of_their_own(task: Task) -> None:
    fixed = {"copy-colors": {"fact"}, "greater-than": {"century", "century#2"}}.get(task.name, set())
    words: dict[str, dict[str, set[str]]] = {"discovery": {}, "held_out": {}}
    for split, spans in words.items():
        for example in drawn(task, split, 300):
            for name, (start, end) in example.spans.items():
                spans.setdefault(name.split("#")[0], set()).add(example.clean[start:end])
            if {"first", "second"} <= set(example.spans):
                numbers = [example.clean[slice(*example.spans[name])] for name in ("first", "second")]
                spans.setdefault("numbers", set()).add(" ".join(sorted(numbers)))
    common = {name for name in words["discovery"] if words["discovery"][name] & words["held_out"].get(name, set())}
    closed = {"to", "is", "end", "param", "bracket", "letter1", "letter2"}
    # One-digit numbers are too few: pairs of them are held out.
    allowed = fixed | closed | ({"first", "second"} if task.settings.get("numbers") == "one" else set())
    # Colors and symbols of multiple-choice questions, and endings that are function words, are the same in both.
    assert {name for name in common if not name.endswith(("_symbol", "_choice"))} <= allowed
    together = {name: values | words["held_out"].get(name, set()) for name, values in words["discovery"].items()}
    everything = {name.split("#")[0] for example in drawn(task, "any", 50) for name in example.spans}
    assert everything <= set(together)


def test_the_twin_without_splits_shares_words() -> None:
    task = load_task("ioi")
    names = [{e.clean[slice(*e.spans["io"])] for e in drawn(task, "any", 300)} for _ in range(2)]
    assert names[0] & names[1]


def test_words_of_splits_share_none_and_hold_all() -> None:
    for n in range(2, 12):
        words = tuple(range(n))
        one, other = words_of(words, "discovery"), words_of(words, "held_out")
        assert one
        assert other
        assert not set(one) & set(other)
        assert set(one) | set(other) == set(words)
        assert words_of(words, "any") == words
    with pytest.raises(TaskError, match="give at least two"):
        words_of(("only",), "held_out")
    with pytest.raises(UnknownNameError, match="held_out"):
        words_of(("a", "b"), "heldout")


def a_task(draw: Callable[..., Example], **settings: object) -> AnyTask:
    return AnyTask(name="test", version="1", summary="A test.", draw=draw, **settings)


WORDS = tuple(f"w{i:02}" for i in range(30))


def of_words(rng: Random, split: str = "any") -> Example:
    a, b = rng.choice(words_of(WORDS, split)), rng.choice(words_of(WORDS, split))
    return Example(f"{a} {b} .", f"{a} {b} ;", " Yes", " no")


def texts_of(pairs: object) -> set[str]:
    return {word for text in pairs.texts for word in text.split()[:2]}


def test_a_task_that_names_held_out_words_is_split_by_them() -> None:
    task = a_task(of_words, held_out="words")
    pairs = sample_pairs(task, Words(), n=40, seed=0)
    assert not texts_of(pairs.discovery) & texts_of(pairs.held_out)
    assert pairs.differ_in == "words"
    by_chance = sample_pairs(task.with_split("random"), Words(), n=40, seed=0)
    assert texts_of(by_chance.discovery) & texts_of(by_chance.held_out)
    assert by_chance.differ_in == ""


def test_what_is_held_out_may_depend_on_the_options() -> None:
    """A one-digit equation has one template and nine numbers, so pairs of numbers are held out, and it says so."""
    task = load_task("arithmetic", task_options={"numbers": "one", "form": "equation"})
    assert task.differ_in == "addition problems"
    assert task.with_options(form="sentence", numbers="two").differ_in == "sentences and two-digit numbers"
    assert task.with_split("random").differ_in == ""
    empty = a_task(of_words, held_out=lambda: "")
    with pytest.raises(TaskError, match="held_out of task 'test' is ''; it must not be empty"):
        sample_pairs(empty, Words(), n=2, seed=0)


def test_a_task_without_held_out_words_is_not_split_by_words() -> None:
    plain = a_task(lambda rng: of_words(rng))
    assert sample_pairs(plain, Words(), n=4, seed=0).differ_in == ""
    assert plain.with_split("random").with_split(None).split == "random"
    with pytest.raises(ConfigError, match="split is 'words', but task 'test' names no words that are held out"):
        plain.with_split("words")
    assert a_task(of_words, held_out="words").with_split("words").differ_in == "words"


def of_one_split(split: str) -> tuple[Example, ...]:
    """The words 2, 5, 8, ... are held out."""
    examples = [Example(f"{word} {word} !", f"{word} {word} ?", " Yes", " no") for word in WORDS[:6]]
    return {"discovery": (*examples[:2], *examples[3:5]), "held_out": (examples[2], examples[5])}.get(
        split, tuple(examples)
    )


def test_fixed_examples_go_where_their_words_belong() -> None:
    pairs = sample_pairs(a_task(of_words, held_out="words", fixed=of_one_split), Words(), n=8, seed=0)
    assert [pair.clean for pair in pairs.discovery][:4] == [f"{WORDS[i]} {WORDS[i]} !" for i in (0, 1, 3, 4)]
    assert [pair.clean for pair in pairs.held_out][:2] == [f"{WORDS[i]} {WORDS[i]} !" for i in (2, 5)]
    assert not texts_of(pairs.discovery) & texts_of(pairs.held_out)
    by_chance = sample_pairs(a_task(of_words, held_out="words", fixed=of_one_split, split="random"), Words(), 8, 0)
    assert by_chance.held_out[0].clean == f"{WORDS[1]} {WORDS[1]} !"  # the twin: in turn
    for fixed in (of_one_split("any"), lambda: of_one_split("any")):
        with pytest.raises(TaskError, match="fixed of task 'test' does not say which examples are held out"):
            a_task(of_words, held_out="words", fixed=fixed)


def test_reference_pairs_have_words_of_discovery() -> None:
    pairs = sample_pairs(a_task(of_words, held_out="words"), Words(), n=20, seed=0, with_reference=True)
    assert not texts_of(pairs.reference) & texts_of(pairs.held_out)


def test_held_out_goes_with_a_parameter() -> None:
    with pytest.raises(TaskError, match="give both or none"):
        a_task(of_words)
    with pytest.raises(TaskError, match="give both or none"):
        a_task(lambda rng: of_words(rng), held_out="words")
    with pytest.raises(TaskError, match="Rename the option"):
        a_task(of_words, held_out="words", options={"split": ("a", "b")})


def test_published_circuits_are_checked() -> None:
    for name in ("ioi", "greater-than", "acronyms"):
        circuit = load_task(name).published["gpt2"]
        assert circuit.source in load_task(name).sources
        assert len(set(circuit.nodes)) == len(circuit.nodes) >= 8
    # Table 2 of Wang et al. 2023 counts 26 heads.
    assert len(load_task("ioi").published["gpt2"].nodes) == 26
    for classes, message in (
        ({"x": ("a1.h1", "a1.h1")}, "twice"),
        ({"x": ("input",)}, "heads and MLPs"),
        ({"x": ("9.6",)}, "is no node"),
        ({}, "no node"),
    ):
        with pytest.raises(CircuitLabError, match=message):
            PublishedCircuit(source=WANG_2023, classes=classes)


class JoinedDigits(Words):
    """As in GPT-2, digits after a space are one token, and so are two digits by themselves."""

    special_ids = frozenset((0,))

    def joined(self, ids: tuple[int, ...]) -> str:
        words = {number: word for word, number in self.vocabulary.items()}
        return "".join(words[number] for number in ids)


def test_standalone_answers_and_separate_spans() -> None:
    # The tokenizer has " 1732" as one token, and would have " 1733" for the prompt's end and its answer.
    def years(rng: Random, *, separate: bool = False, standalone: bool = True) -> Example:
        fields = {"century": "17", "year": f"{rng.randrange(10, 90)}", "noun": rng.choice(WORDS)}
        return Example.from_template(
            "{noun} {century}{year} to 17", fields, corrupt={"year": "01"}, answer="99", distractor="01",
            standalone_answers=standalone, separate_spans=separate,
        )  # fmt: skip

    pairs = sample_pairs(a_task(years), JoinedDigits(), n=4, seed=0)
    assert {pair.clean_tokens[-1] for pair in pairs.discovery} == {" 17"}
    with pytest.raises(CircuitLabError, match="'99' is not one token after the prompt"):
        sample_pairs(a_task(lambda rng: years(rng, standalone=False)), JoinedDigits(), n=4, seed=0)
    with pytest.raises(CircuitLabError, match="spans 'century' and 'year' share the token"):
        sample_pairs(a_task(lambda rng: years(rng, separate=True)), JoinedDigits(), n=4, seed=0)
    with pytest.raises(CircuitLabError, match="'1234567' is not one token by itself"):
        sample_pairs(
            a_task(lambda rng: replace(years(rng), answer="1234567")),
            JoinedDigits(), n=4, seed=0,
        )  # fmt: skip


def test_a_vocabulary_of_the_task_stays_its_own() -> None:
    """Only a `draw` that asks for one is given the model's words."""

    def draws(rng: Random, vocabulary: tuple[str, ...] = ("one", "two")) -> Example:
        return Example(f"{rng.choice(vocabulary)} .", "zero ;", " Yes", " no")

    task = a_task(draws)
    assert not task.draws_tokens
    assert {task.example(Random(i)).clean for i in range(20)} == {"one .", "two ."}
    assert load_task("induction").draws_tokens


def test_stand_ins_serve_where_there_is_no_model() -> None:
    example = load_task("induction").example(Random(0))
    assert set(example.clean.split()) <= {word.strip() for word in STAND_INS}
