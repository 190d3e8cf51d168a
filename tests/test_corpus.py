"""The training text and its tokenizer: deterministic, well-formed, and without the prompts of the tasks."""

from html.parser import HTMLParser
from random import Random

import pytest

from circuitlab.tasks import gendered_pronouns, html_tag_closing, name_throw
from training import kept_out, lexicon
from training.corpus import Document, document, documents
from training.measure import TASKS, variants
from training.tokenizer import BOS, required_tokens, train_tokenizer

DOCUMENTS = 4000
PROMPTS = 500


@pytest.fixture(scope="module")
def text() -> list[Document]:
    return documents(0, DOCUMENTS)


@pytest.fixture(scope="module")
def prompts() -> dict[str, set[str]]:
    """What the tasks draw, clean and corrupted, by task."""
    found: dict[str, set[str]] = {}
    for task in TASKS:
        rng = Random(17)
        examples = [task.draw(rng, **options) for options in variants(task) for _ in range(PROMPTS)]
        examples += task.fixed_examples()
        found[task.name] = {each.clean for each in examples} | {each.corrupt for each in examples}
    return found


def test_a_document_depends_on_the_seed_and_its_number_alone(text: list[Document]) -> None:
    assert [document(0, number) for number in (7, 3, 1999)] == [text[7], text[3], text[1999]]
    assert documents(0, 50) == text[:50]
    assert documents(1, 50) != text[:50]


def test_every_kind_of_text_is_there_and_pages_are_at_least_half_of_it(text: list[Document]) -> None:
    lengths: dict[str, int] = {}
    for each in text:
        lengths[each.kind] = lengths.get(each.kind, 0) + len(each.text)
    assert set(lengths) == {"nest", "page", "people", "throws", "filler"}
    assert (lengths["nest"] + lengths["page"]) / sum(lengths.values()) > 0.5
    assert min(lengths.values()) / sum(lengths.values()) > 0.03


# No prompt of a task is in the text.


def test_no_prompt_is_in_the_text(text: list[Document], prompts: dict[str, set[str]]) -> None:
    whole = "\n\n".join(each.text for each in text)
    for task, texts in prompts.items():
        assert len(texts) > 1500, task
        assert not [prompt for prompt in texts if prompt in whole], task


def test_every_prompt_is_one_that_the_filter_rejects(prompts: dict[str, set[str]]) -> None:
    for task, texts in prompts.items():
        missed = [prompt for prompt in texts if kept_out.leaks(prompt) is None]
        assert not missed, (task, missed[:3])


def test_the_filter_lets_the_text_pass_and_finds_a_prompt_put_into_it(text: list[Document]) -> None:
    assert all(kept_out.leaks(each.text) is None for each in text)
    assert kept_out.leaks(text[0].text + " Mary is such a good cook. She") == "such a good cook"
    assert kept_out.leaks("Ann threw the ball to Bo.") == "threw the ball"
    assert kept_out.leaks("<div><p>Every plain letter</p></div>") == "plain letter"
    assert kept_out.leaks("<h1>Title</h1>") == ">Title</"


def test_the_behaviours_are_in_the_text_in_other_words(text: list[Document]) -> None:
    whole = "\n".join(each.text for each in text)
    assert whole.count(" back to ") > 100
    assert whole.count(". He ") > 100
    assert whole.count("; she ") > 100
    assert whole.count("</h1>") > 100


def test_a_fifth_of_the_names_and_nouns_never_meet(text: list[Document]) -> None:
    reserved = [
        (name, person) for name in lexicon.NAMES for person in lexicon.PEOPLE if kept_out.is_reserved(name, person)
    ]
    assert 0.15 < len(reserved) / (len(lexicon.NAMES) * len(lexicon.PEOPLE)) < 0.25
    met = {
        (sentence.split()[0], sentence.split()[-1])
        for each in text
        if each.kind == "people"
        for sentence in each.text.replace(";", ".").split(". ")
        if " is " in sentence and sentence.split()[1] == "is"
    }
    assert len(met) > 200
    assert not met & set(reserved)


# The text is what it says it is.


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.deepest = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.deepest = max(self.deepest, len(self.open))

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def balance(page: str) -> _Balance:
    parser = _Balance()
    # Inside <title> the parser looks for no tags but its end, as browsers do; any other name will do here.
    parser.feed(page.replace("<title", "<heading").replace("</title", "</heading"))
    parser.close()
    return parser


def test_every_tag_of_a_page_is_closed_in_its_turn(text: list[Document]) -> None:
    pages = [balance(each.text) for each in text if each.kind in ("nest", "page")]
    assert not [page for page in pages if page.open]
    assert max(page.deepest for page in pages) >= 4


def test_the_balance_notices_tags_closed_out_of_turn() -> None:
    with pytest.raises(AssertionError):
        balance("<p><b>bold</p></b>")
    assert balance("<p><b>bold</b>").open == ["p"]


def test_a_thing_thrown_back_goes_to_the_one_who_threw_first(text: list[Document]) -> None:
    chains = 0
    for each in text:
        givers: list[str] = []
        for sentence in each.text.split(". "):
            words = sentence.removeprefix("Then ").rstrip(".").split()
            if len(words) < 4 or words[1] not in lexicon.THROWS or words[-2] != "to":
                givers = []
                continue
            givers.append(words[0])
            if words[-3] == "back":
                assert words[-1] == givers[0], each.text
                chains += 1
                givers = []
    assert chains > 200


# The tokenizer.


def test_the_tokenizer_keeps_the_words_of_the_tasks_whole(text: list[Document]) -> None:
    tokenizer = train_tokenizer([each.text for each in text], 1408)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in required_tokens())
    names = {*gendered_pronouns.MALE_NAMES, *gendered_pronouns.FEMALE_NAMES, *name_throw.NAMES}
    assert {form for name in names for form in (name, f" {name}")} <= set(required_tokens())
    assert {*html_tag_closing.INNERMOST, *html_tag_closing.CONTAINERS, "</", "/>"} <= set(required_tokens())
    assert tokenizer.decode(tokenizer.encode(text[1].text)) == BOS + text[1].text


def test_a_vocabulary_that_is_too_small_is_refused(text: list[Document]) -> None:
    with pytest.raises(ValueError, match=r"required tokens are split, .* raise the vocabulary above 400"):
        train_tokenizer([each.text for each in text[:200]], 400)
