"""From a task's words to batches of tokens: examples, encoding, sampling, buckets, tasks by name and by file."""

import inspect
import re
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from commands import HERE, run_python
from hypothesis import given
from hypothesis import strategies as st
from laws import law, law_of
from words import Words, numbered, task_of

from circuitlab import (
    ConfigError,
    Example,
    PairBatch,
    PairLengthError,
    PairSet,
    SpanError,
    Task,
    TaskError,
    TaskFileError,
    TokenError,
    TooFewPromptsError,
    UnknownNameError,
    load_task,
)
from circuitlab.data import sampling
from circuitlab.data.batching import batches_of
from circuitlab.data.encoded import Encoded, Rejection
from circuitlab.data.encoding import encode_example
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.pair import Pair
from circuitlab.data.registry import task_names
from circuitlab.data.sampling import sample_pairs
from circuitlab.data.task_fields import RESERVED

# ------------------------------------------------------------------------------------------------ examples


def test_an_example_takes_one_answer_or_several():
    one = Example("a", "b", " x", " y")
    several = Example("a", "b", (" x", " z"), (" y",))
    assert (one.answers, one.distractors) == ((" x",), (" y",))
    assert (several.answers, several.distractors) == ((" x", " z"), (" y",))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (("", "b", " x", " y"), "the clean prompt is empty"),
        (("a", "", " x", " y"), "the corrupted prompt of prompt 'a' is empty"),
        (("a", "a", " x", " y"), "same text: 'a'. Change what matters"),
        (("a", "b", "", " y"), "the answer of prompt 'a' is empty"),
        (("a", "b", (), " y"), "prompt 'a' has no answer"),
        (("a", "b", (" x", ""), " y"), "the answer of prompt 'a' is empty"),
        (("a", "b", (" x", " x"), " y"), "the answer of prompt 'a' holds ' x' twice"),
        (("a", "b", " x", " x"), r"prompt 'a': [' x'] is answer and distractor at once"),
        (("a", "b", (" x", " z"), (" y", " z")), r"[' z'] is answer and distractor at once"),
    ],
)
def test_an_example_that_asks_nothing_is_refused(parts, says):
    with pytest.raises(TaskError) as told:
        Example(*parts)
    assert says in str(told.value)


TEMPLATE = "{name} saw {other}. {other} saw {name}{end}"
FIELDS = {"name": "Ann", "other": "Bo", "end": "."}


def from_template(template: str = TEMPLATE, fields: dict = FIELDS, corrupt: dict | None = None) -> Example:
    return Example.from_template(template, fields, corrupt=corrupt or {"end": ";"}, answer=" She", distractor=" she")


def test_every_field_of_a_template_is_a_span_and_repeated_ones_are_numbered():
    made = from_template()
    assert made.clean == "Ann saw Bo. Bo saw Ann."
    assert made.corrupt == "Ann saw Bo. Bo saw Ann;"
    assert {name: made.clean[start:end] for name, (start, end) in made.spans.items()} == {
        "name": "Ann",
        "other": "Bo",
        "other#2": "Bo",
        "name#2": "Ann",
        "end": ".",
    }
    assert made.spans["name"] == (0, 3)
    assert made.spans["name#2"] == (19, 22)


def test_spans_of_the_corrupted_prompt_follow_its_own_words():
    made = from_template(corrupt={"name": "Margaret"})
    assert made.corrupt == "Margaret saw Bo. Bo saw Margaret."
    assert {name: made.corrupt[slice(*chars)] for name, chars in made.corrupt_spans.items()} == {
        "name": "Margaret",
        "other": "Bo",
        "other#2": "Bo",
        "name#2": "Margaret",
        "end": ".",
    }


@pytest.mark.parametrize(("clean", "corrupt"), [("", ""), ("", " very"), (" very", "")])
def test_a_field_without_text_is_no_span_and_the_example_stays(clean, corrupt):
    fields = {"name": "Ann", "degree": clean, "end": "."}
    made = from_template("{name} is{degree} kind{degree}{end}", fields, {"degree": corrupt, "end": ";"})
    assert (made.clean, made.corrupt) == (f"Ann is{clean} kind{clean}.", f"Ann is{corrupt} kind{corrupt};")
    assert set(made.spans) == set(made.corrupt_spans) == {"name", "end"}
    pair = encoded(from_template("{name} is{degree} kind{end}", {**fields, "degree": ""}))
    assert isinstance(pair, Pair)
    assert pair.spans == {"name": (1, 2), "end": (4, 5)}


words = st.text("abcdefg é—ß", min_size=1, max_size=6)


@law
@given(
    st.lists(st.tuples(st.sampled_from(["x", "y", "z"]), words), max_size=6),
    st.fixed_dictionaries(dict.fromkeys("xyz", words)),
)
def test_a_span_is_where_its_field_stands(parts, fields):
    template = "".join(f"{literal}{{{name}}}" for name, literal in parts) + "end{last}"
    made = Example.from_template(template, {**fields, "last": "."}, corrupt={"last": ";"}, answer="a", distractor="b")
    assert made.clean == template.format(**fields, last=".")
    for name, (start, end) in made.spans.items():
        assert made.clean[start:end] == {**fields, "last": "."}[name.split("#")[0]]


def test_braces_are_written_twice():
    assert from_template("{{{name}}}{end}").clean == "{Ann}."


def test_a_template_whose_field_is_missing_is_refused():
    with pytest.raises(TaskError, match=r"has a field 'who'; given are \['end', 'name', 'other'\]"):
        from_template("{who} left{end}")
    with pytest.raises(TaskError, match=r"corrupt changes \['where'\], which fields do not hold"):
        from_template(corrupt={"where": "there"})
    with pytest.raises(TaskError, match="same text"):
        from_template(corrupt={"end": "."})


# ------------------------------------------------------------------------------------------------ encoding


def encoded(example: Example) -> Pair | Rejection:
    return encode_example(example, Words())


def rejection(example: Example) -> Rejection:
    found = encoded(example)
    assert isinstance(found, Rejection)
    return found


def test_a_pair_holds_what_the_model_is_given():
    pair = encoded(from_template())
    assert isinstance(pair, Pair)
    assert pair.clean_tokens == ("<bos>", "Ann", " saw", " Bo", ".", " Bo", " saw", " Ann", ".")
    assert pair.corrupt_tokens[-1] == ";"
    assert len(pair) == len(pair.clean_ids) == len(pair.corrupt_ids) == 9
    assert pair.clean_ids[:-1] == pair.corrupt_ids[:-1]
    assert pair.spans == {"name": (1, 2), "other": (3, 4), "other#2": (5, 6), "name#2": (7, 8), "end": (8, 9)}


def test_answers_are_found_in_their_context():
    """The tokens that follow this very prompt: a fresh tokenizer has other numbers, the same words."""
    text = Words()
    pair = encode_example(Example("It is .", "It is ;", (" She", " He"), (" she",)), text)
    assert isinstance(pair, Pair)
    known = {number: word for word, number in text.vocabulary.items()}
    assert [known[i] for i in pair.answer_ids] == [" She", " He"]
    assert [known[i] for i in pair.distractor_ids] == [" she"]
    assert text.encode("It is . She").ids == (*pair.clean_ids, pair.answer_ids[0])


def test_a_word_of_several_tokens_is_a_span_of_several_tokens():
    pair = encoded(Example("Annabella saw.", "Annabella saw;", " x", " y", {"who": (0, 9), "tail": (4, 13)}))
    assert isinstance(pair, Pair)
    assert pair.clean_tokens == ("<bos>", "Anna", "bell", "a", " saw", ".")
    assert pair.spans == {"who": (1, 4), "tail": (2, 5)}


@pytest.mark.parametrize(
    ("words_", "place"), [((" Heliogabalus", " he"), "answer"), ((" He", " Heliogabalus"), "other")]
)
def test_an_answer_that_is_not_one_token_is_told_with_its_tokens(words_, place):
    found = rejection(Example("Anna is kind.", "Anna is kind;", *words_))
    assert found.kind is TokenError
    assert found.reason == "' Heliogabalus' is not one token"
    assert "not one token after the prompt 'Anna is kind.'" in found.message
    assert "['.', ' Hel', 'ioga', 'balu', 's']" in found.message
    assert "the prompt alone ends in '.'" in found.message
    assert "Use an answer that this tokenizer has as one token" in found.message


def test_an_answer_that_joins_the_last_word_is_told():
    """ "kin" + "d" is one token "kind": the prompt's own last token would change."""
    found = rejection(Example("Anna is kin", "Anna was kin", "d", " x"))
    assert found.kind is TokenError
    assert "the text ends in the tokens [' kind'], where the prompt alone ends in ' kin'" in found.message


def test_an_answer_that_moves_the_boundary_is_told():
    """ "abc" + "defg" is "abcd" + "efg": one token more than the prompt, but not the prompt's tokens any more."""
    found = rejection(Example("abc", "xyz", "defg", " z"))
    assert found.kind is TokenError
    assert "the text ends in the tokens ['abcd', 'efg'], where the prompt alone ends in 'abc'" in found.message


def test_prompts_of_different_length_are_told_with_where_they_part():
    found = rejection(Example("Anna is very kind.", "Anna is not very kind.", " x", " y"))
    assert found.kind is PairLengthError
    assert found.reason == "clean and corrupted differ in length"
    assert found.message.startswith("clean has 6 tokens, corrupted 7: 'Anna is very kind.' / 'Anna is not very kind.'.")
    assert "part at token 3 ([' very', ' kind', '.'] / [' not', ' very', ' kind'])" in found.message
    assert "equal lengths: choose words of as many tokens" in found.message


def test_prompts_of_which_one_begins_like_the_other_part_where_it_ends():
    assert "part at token 3 ([] / [' so'])" in rejection(Example("Anna is", "Anna is so", " x", " y")).message


def test_a_span_that_covers_no_token_is_told():
    """A tokenizer that drops the space between two words has no token for it."""

    class Spaceless(Words):
        def encode(self, text: str) -> Encoded:
            found = super().encode(text)
            return replace(found, offsets=tuple((a + (text[a : a + 1] == " "), b) for a, b in found.offsets))

    found = encode_example(Example("Anna is kind.", "Anna is kind;", " x", " y", {"gap": (4, 5)}), Spaceless())
    assert isinstance(found, Rejection)
    assert found.kind is SpanError
    assert found.reason == "span 'gap' is not found"
    for word in ("characters (4, 5)", "'Anna is kind.'", "' kind'", "Give character ranges in the clean text"):
        assert word in found.message


def test_spans_that_stand_on_other_tokens_in_the_two_prompts_are_told():
    """As many tokens in all, but a long name moves the verb by one."""
    fields = {"who": "Annabella", "verb": "ran", "where": "home"}
    found = rejection(
        Example.from_template(
            "{who} {verb} {where}.",
            fields,
            corrupt={"who": "Annabe", "where": "homewards"},
            answer=" x",
            distractor=" y",
        )
    )
    assert found.kind is SpanError
    assert found.reason == "span 'who' does not line up"
    for word in ("(1, 4)", "(1, 2)", "'Annabella ran home.'", "'Annabe ran homewards.'", "words of as many tokens"):
        assert word in found.message


# ------------------------------------------------------------------------------------------------ sampling


def linked(rng: Random) -> Example:
    """A -> B, whose corruption is B -> A: the clean text of one example is the corrupted text of another."""
    one, other = rng.sample("ABCDEFGHIJKLMNOPQRSTUVWX", 2)
    return Example(f"{one} met {other} .", f"{other} met {one} .", f" {one}", f" {other}")


@law_of(25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_no_text_stands_in_both_splits(seed, n):
    pairs = sample_pairs(task_of(linked), Words(), n, seed)
    assert len(pairs.discovery) == len(pairs.held_out) == n
    assert not pairs.discovery.texts & pairs.held_out.texts
    everything = [*pairs.discovery, *pairs.held_out]
    assert len({(pair.clean, pair.corrupt) for pair in everything}) == 2 * n
    assert len({pair.id for pair in everything}) == 2 * n


def test_cutting_the_same_draws_in_two_would_share_texts():
    """The twin of the check above: without the rule, this task does leak."""
    rng = Random(0)
    drawn = [linked(rng) for _ in range(80)]
    halves = [{text for each in half for text in (each.clean, each.corrupt)} for half in (drawn[:40], drawn[40:])]
    assert halves[0] & halves[1]


def test_the_seed_decides_every_byte():
    first, again = (sample_pairs(task_of(linked), Words(), 20, 7) for _ in range(2))
    other = sample_pairs(task_of(linked), Words(), 20, 8)
    assert first.discovery.pairs == again.discovery.pairs
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    assert first.discovery.fingerprint != first.held_out.fingerprint
    assert other.discovery.texts != first.discovery.texts


def test_ids_say_split_and_place():
    pairs = sample_pairs(task_of(numbered), Words(), 3, 0)
    assert [pair.id for pair in pairs.discovery] == ["discovery-0000", "discovery-0001", "discovery-0002"]
    assert [pair.id for pair in pairs.held_out] == ["held_out-0000", "held_out-0001", "held_out-0002"]


def test_fixed_examples_come_first_and_in_both_splits():
    fixed = tuple(Example(f"fixed {word} .", f"fixed {word} ;", " Yes", " no") for word in ("a", "b", "c"))
    for settings_ in ({"fixed": fixed}, {"fixed": lambda: fixed}):
        pairs = sample_pairs(task_of(numbered, **settings_), Words(), 4, 0)
        assert [pair.clean for pair in pairs.discovery][:2] == ["fixed a .", "fixed c ."]
        assert pairs.held_out[0].clean == "fixed b ."


def one_of(*names: str, mark: str = ";"):
    def draw(rng: Random) -> Example:
        name = rng.choice(names)
        return Example(f"{name} is kind.", f"{name} is kind{mark}", " Yes", " no")

    return draw


NAMES = ("Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal")


def test_more_than_there_is_is_counted_and_the_advice_holds():
    with pytest.raises(TooFewPromptsError) as told:
        sample_pairs(task_of(one_of(*NAMES)), Words(), 500, 0)
    assert "task 'test': n=500 needs 1000 distinct pairs (500 per split, no text in both)" in str(told.value)
    assert "8 distinct draws gave 4 + 4" in str(told.value)
    assert "Ask for n <= 4, or give the task more words." in str(told.value)
    assert len(sample_pairs(task_of(one_of(*NAMES)), Words(), 4, 0).held_out) == 4
    with pytest.raises(TooFewPromptsError):
        sample_pairs(task_of(one_of(*NAMES)), Words(), 5, 0)


def test_reference_pairs_share_no_text_with_the_splits_and_change_neither():
    task = task_of(one_of(*NAMES))
    plain, more = (sample_pairs(task, Words(), 2, 5, with_reference=wanted) for wanted in (False, True))
    assert (plain.discovery, plain.held_out, plain.reference) == (more.discovery, more.held_out, None)
    assert plain.fingerprint != more.fingerprint
    assert len(more.reference) == 2
    assert not more.reference.texts & (more.discovery.texts | more.held_out.texts)
    for n in (3, 500):
        with pytest.raises(TooFewPromptsError) as told:
            sample_pairs(task, Words(), n, 5, with_reference=True)
        assert f"n={n} needs {3 * n} distinct pairs ({n} per split, no text in two of discovery" in str(told.value)
        assert "Ask for n <= 2, or give the task more words." in str(told.value)


@law_of(6)
@given(st.integers(2, 12), st.integers(0, 1000))
def test_the_number_that_is_advised_can_be_had(n_letters, seed):
    def draw(rng: Random) -> Example:
        one, other = rng.sample("ABCDEFGHIJKL"[: n_letters + 1], 2)
        return Example(f"{one} met {other} .", f"{other} met {one} .", f" {one}", f" {other}")

    with pytest.raises(TooFewPromptsError) as told:
        sample_pairs(task_of(draw), Words(), 200, seed)
    advised = int(re.findall(r"Ask for n <= (\d+)", str(told.value))[0])
    if advised:
        assert len(sample_pairs(task_of(draw), Words(), advised, seed).held_out) == advised


def test_the_advice_is_never_to_ask_for_none():
    def draw(rng: Random) -> Example:
        return Example(f"{rng.choice(NAMES)} is kind .", "Nobody is kind .", " Yes", " no")

    with pytest.raises(TooFewPromptsError) as told:
        sample_pairs(task_of(draw), Words(), 3, 0)
    assert "n <= 0" not in str(told.value)


def test_words_that_the_tokenizer_cannot_serve_are_dropped_and_counted():
    names = ("Ann", "Bo", "Cy", "Di", "Annabella", "Benedictus")

    def draw(rng: Random) -> Example:
        name, answer = rng.choice(names), rng.choice(["Yes", "Certainly"])
        return Example(f"{name} {answer[0]} is kind.", f"Joe {answer[0]} is kind.", f" {answer}", " no")

    with pytest.raises(TooFewPromptsError) as told:
        sample_pairs(task_of(draw), Words(), 50, 0)
    said = str(told.value)
    # Four short names with the short answer can be served; the two long ones are longer than "Joe" with either answer.
    assert "12 distinct draws gave" in said
    assert "4 dropped: clean and corrupted differ in length" in said
    assert "4 dropped: ' Certainly' is not one token" in said
    assert "the first: " in said


def test_dropped_examples_are_counted_by_reason():
    def draw(rng: Random) -> Example:
        name, number = rng.choice(["Ann", "Bo", "Annabella"]), rng.randrange(1000)
        return Example(f"{name} has {number} .", f"Joe has {number} .", " Yes", " no")

    pairs = sample_pairs(task_of(draw), Words(), 100, 0)
    assert list(pairs.dropped) == ["clean and corrupted differ in length"]
    drawn = 200 + sum(pairs.dropped.values())
    assert 0.2 < sum(pairs.dropped.values()) / drawn < 0.45
    assert all("Annabella" not in pair.clean for pair in [*pairs.discovery, *pairs.held_out])


@pytest.mark.parametrize(
    ("example", "error", "says"),
    [
        (Example("Ann is kind.", "Ann is kind;", " Certainly", " no"), TokenError, "' Certainly' is not one token"),
        (Example("Ann is kind.", "Annabella is kind.", " Yes", " no"), PairLengthError, "clean has 5 tokens"),
        (
            Example.from_template(
                "{who} is {what}.",
                {"who": "Ann", "what": "quite very so"},
                corrupt={"who": "Annabella", "what": "so"},
                answer=" Yes",
                distractor=" no",
            ),
            SpanError,
            "span 'who' is at tokens",
        ),
    ],
)
def test_a_task_of_which_nothing_is_left_raises_what_is_wrong_with_it(example, error, says):
    with pytest.raises(error) as told:
        sample_pairs(task_of(lambda rng: example), Words(), 5, 0)
    assert "task 'test' has no prompt that this tokenizer serves (1 dropped: " in str(told.value)
    assert says in str(told.value)
    assert repr(example.clean) in str(told.value)


def guarded(draw, at_most: int = 15_000):
    """A draw that gives up, so that a test of endless drawing ends."""
    drawn = iter(range(at_most))

    def counted(rng: Random) -> Example:
        if next(drawn, None) is None:
            raise AssertionError(f"still drawing after {at_most} draws")
        return draw(rng)

    return counted


def test_a_task_with_endless_prompts_that_cannot_be_served_ends():
    """A tokenizer that splits every name must not keep the user waiting: 70 names make 24 million throws."""

    def draw(rng: Random) -> Example:
        return replace(numbered(rng), answer=" Certainly")

    with pytest.raises(TokenError, match="' Certainly' is not one token"):
        sample_pairs(task_of(guarded(draw)), Words(), 5, 0)


def test_a_task_that_no_prompt_of_can_be_served_ends_early(monkeypatch):
    """Slow draws end after some hundreds and some seconds; a prompt that is served among the first keeps the search."""

    def never(rng: Random) -> Example:
        return replace(numbered(rng), answer=" Certainly")

    monkeypatch.setattr(sampling, "FIRST_WAIT", 0.0)
    drawn = []
    with pytest.raises(TokenError, match="has no prompt that this tokenizer serves"):
        sample_pairs(task_of(lambda rng: drawn.append(0) or never(rng)), Words(), 5, 0)
    assert len(drawn) < 2 * sampling.FEWEST_REJECTED
    drawn.clear()
    with pytest.raises(TooFewPromptsError):
        sample_pairs(
            task_of(lambda rng: drawn.append(0) or never(rng), fixed=(Example("a .", "a ;", " Yes", " no"),)),
            Words(), 5, 0,
        )  # fmt: skip
    assert len(drawn) > sampling.PATIENCE


def test_a_task_whose_corrupted_prompt_is_always_the_same_ends():
    """Its examples share a text, so all belong into one split, and the other stays empty."""

    def draw(rng: Random) -> Example:
        return replace(numbered(rng), corrupt="case 0 of 0 ;")

    with pytest.raises(TooFewPromptsError):
        sample_pairs(task_of(guarded(draw)), Words(), 5, 0)


def test_prompts_that_are_rare_are_found_all_the_same():
    """One draw in 500 can be served, as where a tokenizer knows few of the names: nobody may be told there are none."""

    def draw(rng: Random) -> Example:
        example = numbered(rng)
        return example if rng.random() < 1 / 500 else replace(example, answer=" Certainly")

    for seed in range(6):
        assert len(sample_pairs(task_of(guarded(draw)), Words(), 2, seed).held_out) == 2


@pytest.mark.parametrize("n", [0, -1, 2.0, "10", None, True])
def test_n_counts_pairs(n):
    with pytest.raises(ConfigError, match=re.escape(f"n is {n!r}; it counts pairs per split")):
        inspect.unwrap(sample_pairs)(task_of(numbered), Words(), n, 0)


@pytest.mark.parametrize(
    ("returned", "kind"), [(None, "NoneType"), ("Anna is kind.", "str"), (("a", "b", " x", " y"), "tuple")]
)
def test_a_draw_that_returns_something_else_is_told(returned, kind, monkeypatch):
    monkeypatch.setattr(Task, "example", inspect.unwrap(Task.example))  # the tests' type checks would speak first
    with pytest.raises(TaskFileError, match=rf"draw\(\) of task 'test' returned {kind}; it must return an Example"):
        sample_pairs(task_of(lambda rng: returned), Words(), 5, 0)


def test_a_draw_that_fails_is_told_and_its_cause_is_kept():
    with pytest.raises(TaskFileError, match=r"draw\(\) of task 'test' raised ZeroDivisionError: ") as told:
        sample_pairs(task_of(lambda rng: 1 / 0), Words(), 5, 0)
    assert isinstance(told.value.__cause__, ZeroDivisionError)


def test_what_an_example_says_about_itself_is_passed_on():
    with pytest.raises(TaskError, match="same text: 'a'"):
        sample_pairs(task_of(lambda rng: Example("a", "a", " x", " y")), Words(), 5, 0)


@pytest.mark.parametrize("fixed", [lambda: 1 / 0, lambda: ("Anna is kind.",)], ids=["raises", "no examples"])
def test_fixed_examples_that_fail_are_told(fixed):
    with pytest.raises(TaskError, match="fixed of task 'test'"):
        sample_pairs(task_of(numbered, fixed=fixed), Words(), 5, 0)


def test_a_model_s_own_tokenizer_serves_the_same_way(bundled):
    pairs = load_task("name-throw").pairs(bundled, n=8, seed=1)
    assert len(pairs.discovery) == len(pairs.held_out) == 8
    assert not pairs.discovery.texts & pairs.held_out.texts
    for pair in pairs.discovery:
        assert pair.clean_ids == bundled.text.encode(pair.clean).ids
        assert (*pair.clean_ids, pair.answer_ids[0]) == bundled.text.encode(pair.clean + pair.answers[0]).ids
        assert "".join(pair.clean_tokens[1:]) == pair.clean


# ------------------------------------------------------------------------------------------------ pairs and batches


def of_lengths(*lengths: int) -> PairSet:
    """Pairs of these lengths; the first token of each is its place, so that one can be told from another."""
    return PairSet(
        tuple(
            Pair(
                id=f"p{i}",
                clean=f"{i}",
                corrupt=f"{i}'",
                answers=("x",) * (1 + i % 3),
                distractors=("y",),
                clean_ids=(i, *range(100, 99 + length)),
                corrupt_ids=(i, *range(200, 199 + length)),
                answer_ids=tuple(range(10, 11 + i % 3)),
                distractor_ids=(20,),
                spans={"all": (0, length), **({"odd": (1, 2)} if i % 2 else {})},
                clean_tokens=("c",) * length,
                corrupt_tokens=("d",) * length,
            )
            for i, length in enumerate(lengths)
        )
    )


@law
@given(st.lists(st.integers(2, 6), min_size=1, max_size=12))
def test_buckets_never_pad_and_the_index_puts_them_in_order_again(lengths):
    batches = of_lengths(*lengths).batches()
    assert [batch.n_tokens for batch in batches] == sorted(set(lengths))
    seen = torch.cat([batch.index for batch in batches])
    assert sorted(seen.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert batch.clean.shape == batch.corrupt.shape == (len(batch), batch.n_tokens)
        assert torch.equal(batch.clean[:, 0], batch.index)
        assert (batch.clean >= 0).all()
        assert [lengths[i] for i in batch.index] == [batch.n_tokens] * len(batch)
        assert batch.index.tolist() == sorted(batch.index.tolist())
        assert (batch.answer_at == batch.n_tokens - 1).all()


def test_answers_are_filled_with_minus_one_and_spans_that_lack_are_empty():
    (batch,) = of_lengths(4, 4, 4).batches()
    assert batch.answers.tolist() == [[10, -1, -1], [10, 11, -1], [10, 11, 12]]
    assert batch.spans["odd"].tolist() == [[0, 0], [1, 2], [0, 0]]
    assert batch.spans["all"].tolist() == [[0, 4]] * 3


def test_rows_are_taken_whole():
    (batch,) = of_lengths(4, 4, 4).batches()
    batch = batch.with_reference(torch.arange(6.0).reshape(3, 2))
    taken = batch.take(torch.tensor([2, 0]))
    assert taken.index.tolist() == taken.clean[:, 0].tolist() == taken.corrupt[:, 0].tolist() == [2, 0]
    assert taken.answers.tolist() == [[10, 11, 12], [10, -1, -1]]
    assert taken.spans["odd"].tolist() == [[0, 0], [0, 0]]
    assert taken.reference is not None
    assert taken.reference.tolist() == [[4, 5], [0, 1]]
    assert batch.take(slice(1, 2)).index.tolist() == [1]
    assert batch.index.tolist() == [0, 1, 2]


def test_swapping_changes_the_prompts_and_not_the_answers():
    (batch,) = of_lengths(4, 4).batches()
    swapped = batch.swapped()
    assert torch.equal(swapped.clean, batch.corrupt)
    assert torch.equal(swapped.corrupt, batch.clean)
    assert torch.equal(swapped.answers, batch.answers)


def test_a_set_of_pairs_holds_at_least_one():
    with pytest.raises(ConfigError, match="at least one pair"):
        PairSet(())


def test_the_fingerprint_of_pairs_knows_words_tokens_and_order():
    pairs = of_lengths(3, 4)
    variants = [
        PairSet(pairs.pairs[::-1]),
        PairSet(pairs.pairs[:1]),
        PairSet((replace(pairs[0], clean="other"), pairs[1])),
        PairSet((replace(pairs[0], corrupt_ids=(0, 7, 8)), pairs[1])),
        PairSet((replace(pairs[0], answer_ids=(11,)), pairs[1])),
        PairSet((replace(pairs[0], spans={}), pairs[1])),
    ]
    assert len({each.fingerprint for each in [pairs, *variants]}) == 7
    assert of_lengths(3, 4).fingerprint == pairs.fingerprint


def tokens(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_token_tensors_are_wrapped():
    batch = PairBatch.from_tokens(
        tokens([1, 2, 3], [4, 5, 6]), tokens([1, 2, 0], [4, 5, 0]), tokens([7], [8]), tokens([8], [7])
    )
    assert len(batch) == 2
    assert batch.answer_at.tolist() == [2, 2]
    assert batch.index.tolist() == [0, 1]
    assert dict(batch.spans) == {}
    (moved,) = batches_of(batch, "cpu")
    assert torch.equal(moved.clean, batch.clean)


def test_int32_tokens_become_what_embeddings_take():
    batch = PairBatch.from_tokens(
        *(each.to(torch.int32) for each in (tokens([1, 2]), tokens([1, 3]), tokens([4]), tokens([5])))
    )
    assert {each.dtype for each in (batch.clean, batch.corrupt, batch.answers, batch.distractors)} == {torch.int64}


RIGHT = {"clean": tokens([1, 2, 3]), "corrupt": tokens([1, 2, 0]), "answers": tokens([7]), "distractors": tokens([8])}


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"corrupt": tokens([1, 2])}, PairLengthError, "clean prompts have 3 tokens, corrupted 2"),
        ({"clean": torch.tensor([1, 2, 3])}, ConfigError, "clean must be a non-empty integer tensor [batch, tokens]"),
        ({"clean": tokens([1, 2, 3]).float()}, ConfigError, "(1, 3) torch.float32"),
        ({"clean": [[1, 2, 3]]}, ConfigError, "got list"),
        ({"answers": torch.zeros((1, 0), dtype=torch.long)}, ConfigError, "answers must be a non-empty"),
        ({"corrupt": tokens([1, 2, 0], [1, 2, 0])}, ConfigError, "corrupt holds 2 examples, clean holds 1"),
        ({"distractors": tokens([8], [9])}, ConfigError, "distractors holds 2 examples, clean holds 1"),
        ({"answer_at": torch.tensor([3])}, ConfigError, "1 positions between 0 and 2"),
        ({"answer_at": torch.tensor([-1])}, ConfigError, "1 positions between 0 and 2"),
        ({"answer_at": torch.tensor([1, 1])}, ConfigError, "1 positions between 0 and 2; got shape (2,)"),
    ],
)  # fmt: skip
def test_token_tensors_of_the_wrong_kind_are_refused(wrong, error, says):
    with pytest.raises(error) as told:
        inspect.unwrap(PairBatch.from_tokens.__func__)(PairBatch, **{**RIGHT, **wrong})
    assert says in str(told.value)


def test_one_answer_each_may_be_given_as_a_vector():
    batch = inspect.unwrap(PairBatch.from_tokens.__func__)(PairBatch, **{**RIGHT, "answers": torch.tensor([7])})
    assert batch.answers.tolist() == [[7]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"clean": tokens([1, -2, 3])},
        {"corrupt": tokens([-1, 2, 3])},
        {"answers": tokens([-2])},
        {"distractors": tokens([-1])},
    ],
    ids=["a negative token", "a filled prompt", "a negative answer", "no distractor at all"],
)  # fmt: skip
def test_tokens_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        PairBatch.from_tokens(**{**RIGHT, **wrong})


@pytest.mark.parametrize("given_", [None, "gendered-pronouns", 3, [1, 2]])
def test_what_is_no_pairs_is_refused(given_):
    with pytest.raises(ConfigError, match=f"or a PairBatch; got {type(given_).__name__}"):
        inspect.unwrap(batches_of)(given_, "cpu")


# ------------------------------------------------------------------------------------------------ tasks


def test_bundled_tasks_are_found_by_name():
    for name in task_names():
        task = load_task(name)
        assert (task.name, task.origin) == (name, "")


def test_options_follow_the_name_or_stand_by_themselves():
    plain = load_task("gendered-pronouns")
    assert plain.settings == {"contrast": "capital"}
    assert plain.label == "gendered-pronouns"
    for task in (
        load_task("gendered-pronouns:gender"),
        load_task("gendered-pronouns:contrast=gender"),
        load_task("gendered-pronouns", task_options={"contrast": "gender"}),
        load_task(plain, task_options={"contrast": "gender"}),
        plain.with_options(contrast="gender"),
    ):
        assert task.settings == {"contrast": "gender"}
        assert task.label == "gendered-pronouns-gender"
    several = load_task("name-throw:starter,chain=4", task_options={"objects": "any"})
    assert several.settings == {"corruption": "starter", "chain": "4", "objects": "any"}
    assert plain.settings == {"contrast": "capital"}, "the module's own task was changed"


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("gendered-pronoun", {}, ("unknown task 'gendered-pronoun'", "Did you mean 'gendered-pronouns'", ".py file")),
        ("htmltag", {}, ("unknown task 'htmltag'", "html-tag-closing", "name-throw")),
        ("gendered-pronouns:gendre", {}, ("unknown option value 'gendre' of task", "Did you mean 'gender'", "capital")),
        ("gendered-pronouns", {"contrast": "gendre"}, ("unknown contrast 'gendre' of task 'gendered-pronouns'. Did",)),
        ("gendered-pronouns", {"contrats": "gender"}, ("unknown option 'contrats' of task", "Did you mean 'contrast'")),
        ("name-throw:chain=9", {}, ("unknown chain '9' of task 'name-throw'.", "3, 2, 4")),
    ],
)
def test_unknown_names_are_told_with_the_nearest(name, options, says):
    with pytest.raises(UnknownNameError) as told:
        load_task(name, task_options=options)
    for word in says:
        assert word in str(told.value)


A_TASK = """
from circuitlab import Example, Task

def draw(rng):
    name = rng.choice(["Ann", "Bo"])
    return Example(f"{name} left.", f"{name} left;", " She", " she")

{name} = Task(name="mine", version="2", summary="Mine.", draw=draw)
"""


def task_file(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("name", ["TASK", "anything"])
def test_a_task_is_loaded_from_its_file(name, tmp_path, monkeypatch):
    path = task_file(tmp_path, A_TASK.replace("{name} =", f"{name} ="))
    monkeypatch.chdir(tmp_path)
    for given_ in (path, str(path), "mine.py", "./mine.py"):
        task = load_task(given_)
        assert (task.name, task.version, task.origin) == ("mine", "2", str(Path(given_)))
        assert task.example(Random(0)).clean in ("Ann left.", "Bo left.")
    assert not [module for module in sys.modules if "circuitlab_task" in module]


def test_of_several_tasks_the_one_called_task_is_meant(tmp_path):
    two = A_TASK.replace("{name} =", "TASK =") + '\nother = Task(name="other", version="1", summary="", draw=draw)\n'
    assert load_task(task_file(tmp_path, two)).name == "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", ("defines no task", "Write: TASK = Task(name=")),
        ("def draw(:\n    pass\n", ("line 1", "SyntaxError")),
        ("import os\n\nx = 1 / 0\n", ("line 3", "ZeroDivisionError: division by zero")),
        ("def f():\n    return nope\n\nf()\n", ("line 2", "NameError", "'nope'")),
        ("import no_such_module\n", ("line 1", "ModuleNotFoundError", "no_such_module")),
        (A_TASK.replace("{name} =", "a =") + "\nfrom dataclasses import replace\nb = replace(a, name='b')\n",
         ("holds 2 tasks and none is called TASK",)),
    ],
    ids=["no task", "syntax", "raises", "raises further in", "import", "two tasks"],
)  # fmt: skip
def test_a_task_file_that_cannot_be_used_is_told_with_the_line(text, says, tmp_path):
    path = task_file(tmp_path, text)
    with pytest.raises(TaskFileError) as told:
        load_task(path)
    for word in (repr(str(path)), *says):
        assert word in str(told.value)


def test_the_line_is_told_for_a_path_from_here_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task_file(tmp_path, "import os\n\nx = 1 / 0\n")
    with pytest.raises(TaskFileError, match="task file 'mine.py', line 3 does not import: ZeroDivisionError"):
        load_task("mine.py")


def test_a_task_file_that_does_not_exist_is_told(tmp_path):
    with pytest.raises(TaskFileError, match="does not exist. Give a name .*name-throw"):
        load_task(tmp_path / "mine.py")
    (tmp_path / "mine.txt").write_text("TASK = 1")
    for other in (tmp_path / "mine.txt", tmp_path):
        with pytest.raises(TaskFileError, match="does not end in .py, so it is not run|is a folder"):
            load_task(other)


def test_what_a_task_says_about_itself_while_it_is_made_is_passed_on(tmp_path):
    with pytest.raises(TaskError, match="version of task 'mine' is ''; it must not be empty"):
        load_task(task_file(tmp_path, A_TASK.replace("{name} =", "TASK =").replace('version="2"', 'version=""')))


@pytest.mark.parametrize(
    ("settings_", "error", "says"),
    [
        ({"name": ""}, TaskError, "the name of a task is ''; it must not be empty"),
        ({"options": {"size": ("1", "2")}}, TaskError, r"draw\(\) has no parameter for the options \['size'\]"),
        ({"chosen": {"size": "1"}}, UnknownNameError, r"unknown option 'size' of task 'test'.*\(none\)"),
        (
            {"options": {"rng": ("1", "2")}},
            TaskError,
            r"task 'test' has options \['rng'\], but draw",
        ),
    ],
)
def test_a_task_that_cannot_be_is_refused(settings_, error, says):
    with pytest.raises(error, match=says):
        replace(task_of(numbered), **settings_)


def test_an_option_may_be_named_like_a_setting():
    """It is given in task_options: the keyword is the setting."""

    def draw(rng: Random, **options: str) -> Example:
        return Example(f"size {options} .", f"size {options} ;", " x", " y")

    task = task_of(draw, options={"seed": ("1", "2"), "self": ("a", "b")})
    assert load_task(task, task_options={"seed": "2", "self": "b"}).settings == {"seed": "2", "self": "b"}
    with pytest.raises(ConfigError, match=r"load_task\(\): seed is a setting of discover. .* task_options={'seed': "):
        load_task(task, seed="2")
    for name in RESERVED:
        with pytest.raises(
            TaskError, match=rf"has options \['{name}'\], but draw\({name}, ...\) is given something else"
        ):
            task_of(draw, options={name: ("1", "2")})


def test_the_former_spelling_of_options_still_works_and_says_so():
    with pytest.warns(FutureWarning, match=r"load_task\(..., task_options={'contrast': 'gender'}\)"):
        found = load_task("gendered-pronouns", contrast="gender")
    assert found == load_task("gendered-pronouns", task_options={"contrast": "gender"})
    with pytest.raises(ConfigError, match="contrast is given twice"):
        load_task("gendered-pronouns", task_options={"contrast": "gender"}, contrast="gender")


def test_options_reach_draw():
    def draw(rng: Random, size: str = "1", **others: str) -> Example:
        return Example(f"size {size} {others} .", f"size {size} {others} ;", " x", " y")

    task = task_of(draw, options={"size": ("1", "2"), "colour": ("red", "blue")})
    assert task.example(Random(0)).clean == "size 1 {'colour': 'red'} ."
    assert task.with_options(size="2", colour="blue").example(Random(0)).clean == "size 2 {'colour': 'blue'} ."
    assert task.with_options(colour="blue").label == "test-blue"


# ------------------------------------------------------------------------------------------------ fingerprints


def people(*names: str, end: str = ".", answer: str = " She"):
    def draw(rng: Random) -> Example:
        name = rng.choice(names)
        return Example(f"{name} left{end}", f"{name} left;", answer, " she")

    return draw


def test_a_fingerprint_changes_with_words_version_and_options_and_not_otherwise():
    task = task_of(people("Ann", "Bo", "Cy"))
    same = [task_of(people("Ann", "Bo", "Cy")), replace(task, summary="Told in other words.", origin="elsewhere.py")]
    assert {task_fingerprint(each) for each in same} == {task_fingerprint(task)}
    other = [
        task_of(people("Ann", "Bo", "Di")),
        task_of(people("Ann", "Cy", "Bo")),
        task_of(people("Ann", "Bo", "Cy", "Di")),
        task_of(people("Ann", "Bo", "Cy", end="!")),
        task_of(people("Ann", "Bo", "Cy", answer=" He")),
        replace(task, version="2"),
        replace(task, name="other"),
        replace(task, fixed=(Example("a", "b", " x", " y"),)),
    ]
    assert len({task_fingerprint(each) for each in [task, *other]}) == 9


def test_options_change_the_fingerprint():
    contrasts = [
        task_fingerprint(load_task("gendered-pronouns", task_options={"contrast": value}))
        for value in ("capital", "gender")
    ]
    assert contrasts[0] != contrasts[1]
    assert task_fingerprint(load_task("gendered-pronouns:capital")) == contrasts[0]


def test_every_word_of_a_bundled_task_is_in_its_fingerprint():
    """A word that no draw of the fingerprint holds could be changed without anyone noticing."""
    from circuitlab.tasks import gendered_pronouns, html_tag_closing, name_throw

    tables = {
        gendered_pronouns: "MALE_NAMES FEMALE_NAMES DEGREES ADJECTIVES PEOPLE",
        name_throw: "NAMES",
        html_tag_closing: "CONTAINERS INNERMOST CLOSED VOID ATTRIBUTES VALUES DETERMINERS ADJECTIVES NOUNS TAILS",
    }
    unseen = []
    for module, lists in tables.items():
        drawn = []

        def recorded(rng: Random, drawn=drawn, draw=module.draw, **options: str) -> Example:
            drawn.append(draw(rng, **options))
            return drawn[-1]

        task_fingerprint(replace(module.TASK, draw=recorded))
        text = " ".join(example.clean for example in drawn)
        words_ = [word for name in lists.split() for word in getattr(module, name)]
        unseen += [word for word in words_ if not re.search(rf"\b{word}\b", text)]
    assert unseen == []


IN_ANOTHER_PROCESS = """
import random, sys; sys.path.insert(0, sys.argv[1]); random.seed(0); before = random.getstate()
from circuitlab import load_task
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.sampling import sample_pairs
from words import Words
for name in ("gendered-pronouns:gender", "html-tag-closing", "name-throw"):
    print(task_fingerprint(load_task(name)))
    print(sample_pairs(load_task(name), Words(), 10, 3).fingerprint)
assert random.getstate() == before, "the caller's generator was used"
"""


def test_fingerprints_are_the_same_in_another_process_with_another_hash_seed():
    here = []
    for name in ("gendered-pronouns:gender", "html-tag-closing", "name-throw"):
        here += [task_fingerprint(load_task(name)), sample_pairs(load_task(name), Words(), 10, 3).fingerprint]
    done = run_python(IN_ANOTHER_PROCESS, HERE)
    assert (done.out.split(), done.err) == (here, "")


def test_a_task_is_no_model_s(bundled):
    """A `Task` made in a session is taken as it is, and draws for a model as a bundled one does."""
    task = task_of(people("Anna", "Mary", "John", "Paul"))
    assert load_task(task) is not None
    assert isinstance(task, Task)
    assert len(task.pairs(bundled, n=2).discovery) == 2
