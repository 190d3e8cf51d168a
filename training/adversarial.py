"""Prompts of the tasks in which a shortcut gives the wrong answer.

A model may do a task by where words stand, by their order or by their number. Each kind of prompt here breaks one such
rule and keeps the task: the answer follows from the words alone. Like the prompts of the tasks, they are in no training
text.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from circuitlab.tasks import gendered_pronouns, html_tag_closing, name_throw
from training import lexicon
from training.measure import next_id, next_logits

LONGEST_CHAIN = 5
SCENERY = (
    "It was a {size} day in the {place}.", "The {colour} {thing} was near the {place}.",
    "There was a {thing} in the {place}.", "The way to the {place} was {size}.",
    "Nobody was near the {size} {thing}.",
)  # fmt: skip
DEEDS = (
    "sat down near the {place}", "went home from the {place}", "found a {colour} {thing}", "forgot the {size} {thing}",
    "waited in the {place}", "was very {mood}",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt and how it goes on.

    Attributes:
        text: The prompt.
        answer: The token that is right.
        wrong: What the broken rule, or another word of the prompt, would give.
    """

    text: str
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """How a model does on prompts of one kind.

    Attributes:
        task: The task's name.
        kind: What is unlike the task's plain prompts.
        prompts: Number of distinct prompts.
        right: Share of prompts whose answer is the single most likely token.
        above: Share of prompts whose answer has a higher logit than every wrong one.
    """

    task: str
    kind: str
    prompts: int
    right: float
    above: float


def scenery(rng: Random) -> str:
    """A sentence without people, and a space."""
    return f"{_filled(rng, rng.choice(SCENERY))} "


def deed(rng: Random, name: str, stop: str = ".") -> str:
    """A sentence about somebody who throws nothing, and a space."""
    return f"{name} {_filled(rng, rng.choice(DEEDS))}{stop} "


def _filled(rng: Random, template: str) -> str:
    lists = {name: getattr(lexicon, name.upper() + "S") for name in ("size", "place", "thing", "colour", "mood")}
    return template.format(**{name: rng.choice(words) for name, words in lists.items()})


def throws(rng: Random, people: int, *, before: str = "", between: bool = False, taker_first: bool = False) -> Prompt:
    """A chain of throws up to "back to".

    Args:
        rng: Where every choice comes from.
        people: How many throw.
        before: ``scenery``, ``bystander``, ``both``, ``chain`` (a whole one of other people), or nothing.
        between: Whether a bystander comes after the first throw.
        taker_first: Whether the first throw is told from its end, so that the starter is the second name.

    Returns:
        The prompt, with every other name as a wrong answer.
    """
    names = rng.sample(name_throw.NAMES, people + 4)
    chain, others = names[:people], names[people:]
    thing, other_thing = rng.sample(name_throw.OBJECTS, 2)
    sentences = [f"{giver} {name_throw.VERB} the {thing} to {taker}. " for giver, taker in itertools.pairwise(chain)]
    if taker_first:
        sentences[0] = f"{chain[1]} caught the {thing} from {chain[0]}. "
    if between:
        sentences.insert(1, deed(rng, others[0]))
    front = {
        "": lambda: "",
        "scenery": lambda: scenery(rng),
        "bystander": lambda: deed(rng, others[1]),
        "both": lambda: scenery(rng) + deed(rng, others[1]),
        "chain": lambda: (
            f"{others[1]} {name_throw.VERB} the {other_thing} to {others[2]}. "
            f"{others[2]} {name_throw.VERB} the {other_thing} back to {others[1]}. "
        ),
    }[before]()
    text = f"{front}{''.join(sentences)}{chain[-1]} {name_throw.VERB} the {thing} back to"
    wrong = tuple(f" {name}" for name in names[1:] if name in text)
    return Prompt(text=text, answer=f" {chain[0]}", wrong=wrong)


def any_throws(rng: Random) -> Prompt:
    """A chain with any of these in the way."""
    return throws(
        rng,
        rng.randint(2, LONGEST_CHAIN),
        before=rng.choice(("scenery", "bystander", "both")),
        between=rng.random() < 0.5,
        taker_first=rng.random() < 0.5,
    )


def any_length(rng: Random) -> Prompt:
    """A chain of two to five people."""
    return throws(rng, rng.randint(2, LONGEST_CHAIN))


def pronoun(
    rng: Random, *, before: str = "", inside: bool = False, note: bool = False, semicolon: bool | None = None
) -> Prompt:
    """A sentence about somebody, up to its stop or a footnote mark after it.

    Args:
        rng: Where every choice comes from.
        before: ``scenery`` or ``bystander`` (of the other gender), or nothing.
        inside: Whether the name comes after other words of its sentence.
        note: Whether a footnote mark comes after the stop.
        semicolon: Whether the stop is a semicolon; either if not given.

    Returns:
        The prompt. The wrong answers are the other three pronouns.
    """
    pools = [("he", gendered_pronouns.MALE_NAMES), ("she", gendered_pronouns.FEMALE_NAMES)]
    (right, names), (other, others) = rng.sample(pools, 2)
    semicolon = rng.random() < 0.5 if semicolon is None else semicolon
    front = {
        "": lambda: "",
        "scenery": lambda: scenery(rng),
        # Its stop is the one that the prompt does not end in.
        "bystander": lambda: deed(rng, rng.choice(others), "." if semicolon else ";"),
    }[before]()
    words = rng.choice(gendered_pronouns.DEGREES), rng.choice(gendered_pronouns.ADJECTIVES)
    opening = f"In the {rng.choice(lexicon.PLACES)}, " if inside else ""
    text = f"{front}{opening}{rng.choice(names)} is {' '.join(words)} {rng.choice(gendered_pronouns.PEOPLE)}"
    text += (";" if semicolon else ".") + (f"[{rng.randint(1, 9)}]" if note else "")
    forms = {f" {word}" for word in (right, right.capitalize(), other, other.capitalize())}
    answer = f" {right if semicolon else right.capitalize()}"
    return Prompt(text=text, answer=answer, wrong=tuple(sorted(forms - {answer})))


def _words(rng: Random) -> str:
    page = html_tag_closing
    return f"{rng.choice(page.DETERMINERS)} {rng.choice(page.ADJECTIVES)} {rng.choice(page.NOUNS)}"


def tags(rng: Random, kind: str, depth: int = 2) -> Prompt:
    """An unfinished piece of HTML with tags from one list, so that no tag is known to be open by its name.

    Args:
        rng: Where every choice comes from.
        kind: ``front`` (a sentence before), ``inner`` (a tag closed inside the innermost), ``sibling`` (one closed
            before it), ``subtree`` (two, one in the other, closed inside), ``again`` (the tag around it opened and
            closed once more inside), or nothing.
        depth: Number of open tags.

    Returns:
        The prompt. Every other tag in it is wrong.
    """
    page = html_tag_closing
    path = rng.sample([tag for tag in page.INNERMOST if tag not in page.PARENTS] + list(page.CONTAINERS), depth + 2)
    path, (one, two) = path[:depth], path[depth:]
    opened = [f"<{tag}>" for tag in path]
    content = _words(rng)
    if kind == "sibling":
        opened.insert(depth - 1, f"<{one}>{_words(rng)}</{one}>")
    content += {
        "inner": lambda: f"<{one}>{_words(rng)}</{one}>",
        "subtree": lambda: f"<{one}><{two}>{_words(rng)}</{two}></{one}>",
        "again": lambda: f"<{path[-2]}>{_words(rng)}</{path[-2]}>",
    }.get(kind, lambda: "")()
    text = f"{scenery(rng) if kind == 'front' else ''}{''.join(opened)}{content}</"
    wrong = tuple(tag for tag in dict.fromkeys((*path[:-1], one, two)) if f"<{tag}>" in text)
    return Prompt(text=text, answer=path[-1], wrong=wrong or (one,))


KINDS: dict[tuple[str, str], Callable[[Random], Prompt]] = {
    ("name-throw", "a sentence in front"): partial(throws, people=3, before="scenery"),
    ("name-throw", "a bystander in front"): partial(throws, people=3, before="bystander"),
    ("name-throw", "a bystander after the first throw"): partial(throws, people=3, between=True),
    ("name-throw", "the starter named second"): partial(throws, people=3, taker_first=True),
    ("name-throw", "chains of two to five people"): any_length,
    ("name-throw", "another chain in front"): partial(throws, people=3, before="chain"),
    ("name-throw", "any of the first five"): any_throws,
    ("gendered-pronouns", "a sentence in front"): partial(pronoun, before="scenery"),
    ("gendered-pronouns", "somebody of the other gender, and the other stop, in front"): partial(
        pronoun, before="bystander"
    ),
    ("gendered-pronouns", "the name inside the sentence"): partial(pronoun, inside=True),
    ("gendered-pronouns", "a footnote mark after the stop"): partial(pronoun, note=True),
    ("gendered-pronouns", "all but the first"): partial(pronoun, before="bystander", inside=True, note=True),
    ("html-tag-closing", "a sentence in front"): partial(tags, kind="front"),
    ("html-tag-closing", "a tag closed inside"): partial(tags, kind="inner"),
    ("html-tag-closing", "a tag closed before"): partial(tags, kind="sibling"),
    ("html-tag-closing", "two tags closed inside, one in the other"): partial(tags, kind="subtree"),
    ("html-tag-closing", "the tag around it closed inside"): partial(tags, kind="again"),
    ("html-tag-closing", "four open tags"): partial(tags, kind="", depth=4),
}


def draw_prompts(task: str, kind: str, count: int, seed: int) -> list[Prompt]:
    """Distinct prompts of one kind."""
    rng = Random(f"{seed}/{task}/{kind}")
    found: dict[str, Prompt] = {}
    while len(found) < count:
        prompt = KINDS[task, kind](rng)
        found.setdefault(prompt.text, prompt)
    return list(found.values())


def measure_broken(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, *, count: int, seed: int
) -> list[Broken]:
    """Measures a model on every kind.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        count: Prompts of each kind.
        seed: Decides which prompts.

    Returns:
        One record a kind.
    """
    measured = []
    for task, kind in KINDS:
        prompts = draw_prompts(task, kind, count, seed)
        logits = next_logits(model, tokenizer, [each.text for each in prompts])
        right = above = 0
        for row, each in zip(logits, prompts, strict=True):
            answer = row[next_id(tokenizer, each.text, each.answer)]
            right += bool(answer >= row.max())
            above += bool(torch.all(answer > row[[next_id(tokenizer, each.text, word) for word in each.wrong]]))
        measured.append(Broken(task=task, kind=kind, prompts=count, right=right / count, above=above / count))
    return measured
