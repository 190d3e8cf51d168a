"""Layouts of tables of pairs: which columns hold what in the files of known projects.

A layout is a record. A column is named by a path: `prompt`, a value inside a nested column (`metadata.subject`), or the
item of a list that another column counts (`choices[answerKey]`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# What a table can hold of a pair. `answer_id` and `distractor_id` are token ids; `spans` maps names to ranges or texts;
# `length` is a number of tokens.
FIELDS = ("clean", "corrupt", "answer", "distractor", "answer_id", "distractor_id", "split", "spans", "length")
SPAN, CORRUPT_SPAN = "span:", "corrupt_span:"
_SPLIT = ("split", "set", "subset", "partition")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLayout:
    """The columns of one kind of table.

    Attributes:
        name: What it is called in messages.
        needed: Field -> the columns that may hold it, the first that is there; a table has this layout if it has all.
        optional: The same for fields that it may lack.
        lead: Text in front of every answer and distractor, such as the space that the file leaves out.
        token_starts: Whether other columns are spans, each the index of its first token with a beginning-of-sequence
            token counted.
        join: What helps where the corrupted prompts are in a file of their own.
        metric: The metric of a task made of such a table; by default `logit_diff`, or `log_prob` without distractors.
    """

    name: str
    needed: Mapping[str, Sequence[str]]
    optional: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lead: str = ""
    token_starts: bool = False
    join: str = ""
    metric: str = ""


_CORRUPT = ("corrupted", "corrupt", "corrupted_prompt", "corrupt_prompt", "counterfactual", "counterfactual_prompt")
_DISTRACTOR = (
    "distractor", "distractors", "wrong", "incorrect", "wrong_answer", "incorrect_answer", "corrupt_answer",
    "corrupted_answer", "wrong_answers", "incorrect_answers", "corrupt_answers", "corrupted_answers",
)  # fmt: skip
# Token ids in EAP-IG's files: of indirect objects, pronouns, hypernyms, countries and capitals.
_SAME_IDS = ("answer_idx", "answers_idx", "country_idx", "capital_idx")
_IDS = ("correct_idx", "clean_answer_idx", *_SAME_IDS)
_CLEAN = ("clean", "clean_prompt", "prompt")
_ANSWER = (
    "answer", "answers", "clean_answer", "clean_answers", "correct_answer", "correct_answers", "correct", "label",
    "target",
)  # fmt: skip
_ANSWER_ID = ("answer_id", "answer_ids", "answers_idx", "correct_id", "correct_idx")
_DISTRACTOR_ID = (
    "distractor_id", "distractor_ids", "wrong_id", "incorrect_id", "incorrect_idx", "wrong_idx",
    "corrupted_answers_idx",
)  # fmt: skip
_S2_IO = ("s2_io_flip_counterfactual.prompt",)
LAYOUTS = (
    TableLayout(
        name="EAP-IG (token ids)",
        needed={"clean": ("clean",), "corrupt": ("corrupted",), "answer_id": _IDS},
        optional={"distractor_id": ("incorrect_idx", *(f"corrupted_{one}" for one in _SAME_IDS)), "split": _SPLIT},
    ),
    TableLayout(
        name="EAP-IG",
        needed={"clean": ("clean",), "corrupt": ("corrupted",), "answer": ("label",)},
        optional={"distractor": _DISTRACTOR, "split": _SPLIT},
    ),
    TableLayout(
        name="sparse feature circuits",
        needed={
            "clean": ("clean_prefix",),
            "corrupt": ("patch_prefix",),
            "answer": ("clean_answer",),
            "distractor": ("patch_answer",),
        },
        optional={"split": _SPLIT},
    ),
    TableLayout(
        name="MIB, IOI",
        needed={
            "clean": ("prompt",),
            "corrupt": _S2_IO,
            "answer": ("metadata.indirect_object",),
            "distractor": ("metadata.subject",),
        },
        optional={"split": _SPLIT},
        lead=" ",
    ),
    TableLayout(
        name="MIB, multiple choice",
        needed={
            "clean": ("prompt",),
            "corrupt": ("symbol_counterfactual.prompt",),
            "answer": ("choices.label[answerKey]",),
            "distractor": ("symbol_counterfactual.choices.label[symbol_counterfactual.answerKey]",),
        },
        optional={"split": _SPLIT},
    ),
    TableLayout(
        name="MIB, arithmetic",
        needed={
            "clean": ("prompt",),
            "corrupt": ("random_counterfactual.prompt",),
            "answer": ("label",),
            "distractor": ("random_counterfactual.label",),
        },
        optional={"split": _SPLIT},
    ),
    TableLayout(
        name="auto-circuit",
        needed={"clean": ("clean",), "corrupt": ("corrupt",), "answer": ("answers",), "distractor": ("wrong_answers",)},
        optional={"split": _SPLIT},
    ),
    TableLayout(
        name="EWoK",
        needed={"clean": ("context1",), "corrupt": ("context2",), "answer": ("target1",), "distractor": ("target2",)},
        optional={"split": _SPLIT},
        lead=" ",
        metric="answer_log_prob_diff",
    ),
    TableLayout(
        name="BLiMP, two prefixes",
        needed={
            "clean": ("two_prefix_prefix_good",), "corrupt": ("two_prefix_prefix_bad",), "answer": ("two_prefix_word",),
        },
        optional={"split": _SPLIT},
        lead=" ",
    ),
    TableLayout(
        name="position-aware circuits",
        needed={
            "clean": ("prompt",),
            "corrupt": _CORRUPT,
            "answer": ("correct_token", "label"),
            "length": ("length",),
        },
        optional={"distractor": ("wrong_token",), "split": _SPLIT},
        token_starts=True,
        join="Its corrupted prompts are in a second file: Task.from_frame(clean.assign(corrupted=second['prompt'])).",
    ),
    TableLayout(
        name="circuitkit",
        needed={"clean": ("prompt",), "corrupt": ("corrupted", "corrupted_prompt"), "answer": ("answer",)},
        optional={"distractor": ("corrupted_answer", "corrupt_answer", *_DISTRACTOR), "split": _SPLIT},
    ),
    TableLayout(
        name="clean, corrupt, answer",
        needed={"clean": _CLEAN, "corrupt": _CORRUPT, "answer": _ANSWER},
        optional={"distractor": _DISTRACTOR, "split": _SPLIT, "spans": ("spans",)},
    ),
    TableLayout(
        name="clean, corrupt, token ids",
        needed={"clean": _CLEAN, "corrupt": _CORRUPT, "answer_id": _ANSWER_ID},
        optional={"distractor_id": _DISTRACTOR_ID, "split": _SPLIT, "spans": ("spans",)},
    ),
    # Without corrupted prompts.
    TableLayout(
        name="clean, answer",
        needed={"clean": _CLEAN, "answer": _ANSWER},
        optional={"distractor": _DISTRACTOR, "split": _SPLIT, "spans": ("spans",)},
    ),
    TableLayout(
        name="clean, token ids",
        needed={"clean": _CLEAN, "answer_id": _ANSWER_ID},
        optional={"distractor_id": _DISTRACTOR_ID, "split": _SPLIT, "spans": ("spans",)},
    ),
)  # fmt: skip
# EAP-IG's greater-than files, recognised by their rows: `label` or `correct_idx` is the year of the prompt, no answer.
GREATER_THAN = TableLayout(name="EAP-IG, greater-than", needed={}, metric="prob_diff")
# Columns of known files that hold no pairs of prompts with an answer, and why.
UNPAIRED = {
    ("sentence_good", "sentence_bad"): (
        "BLiMP compares whole sentences. Give a prompt that ends before the word that differs, and a corrupted prompt."
    ),
    ("clean", "corrupted", "plural"): (
        "EAP-IG's file for subject-verb agreement has no answers: it is judged by all verbs of either number. Take the "
        "task subject-verb-agreement, or add a column of answers."
    ),
    ("requested_rewrite",): "CounterFact has no corrupted prompts. Make pairs of the prompts of two subjects.",
    ("base", "src", "base_label"): (
        "CausalGym's prompts are lists of texts. Join them: clean from base, corrupt from src, answer=base_label, "
        "distractor=src_label."
    ),
}
# The fields that are looked for where all others are given.
GIVEN = TableLayout(
    name="given columns", needed={}, optional={"distractor": _DISTRACTOR, "split": _SPLIT, "spans": ("spans",)}
)


def root(path: str) -> str:
    """The column that a path begins in.

    Returns:
        Its name.

    Example:
        >>> root("choices.label[answerKey]")
        'choices'
    """
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def plain(name: str) -> str:
    """A column's name as layouts spell it.

    Returns:
        In lower case, with underscores for blanks and hyphens.

    Example:
        >>> plain(" Corrupted prompt")
        'corrupted_prompt'
    """
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def recognised(header: Iterable[str], given: Collection[str] = ()) -> tuple[TableLayout, dict[str, str]] | None:
    """The first layout whose columns a table has.

    Args:
        header: The names of its columns.
        given: Fields whose columns are known; the layout has to fit at least one other.

    Returns:
        The layout, and field -> path, spelt as in the table; None if no layout fits.

    Example:
        >>> layout, columns = recognised(("clean", "corrupted", "label"))
        >>> layout.name, columns["answer"]
        ('EAP-IG', 'label')
    """
    spelt = dict[str, str]()
    for name in header:
        spelt.setdefault(plain(name), name)
    for layout in _candidates(spelt, given):
        found = {name: _there(paths, spelt) for name, paths in (*layout.needed.items(), *layout.optional.items())}
        others = [name for name in layout.needed if name not in given]
        if others and all(found[name] for name in others):
            return layout, {name: path for name, path in found.items() if path}
    return None


def _candidates(spelt: Mapping[str, str], given: Collection[str]) -> Sequence[TableLayout]:
    """The layouts; only those with corrupted prompts where there are such prompts, in a column or a second file."""
    named = any(word in name for name in spelt for word in ("corrupt", "counterfactual"))
    elsewhere = any(one.join and _missing(one, spelt) == ("corrupt",) for one in LAYOUTS)
    paired = "corrupt" not in given and (named or elsewhere)
    return [one for one in LAYOUTS if "corrupt" in one.needed] if paired else LAYOUTS


def _missing(layout: TableLayout, spelt: Mapping[str, str]) -> tuple[str, ...]:
    """The needed fields of a layout that no column holds."""
    return tuple(name for name, paths in layout.needed.items() if not _there(paths, spelt))


def nearest(header: Iterable[str]) -> tuple[TableLayout, tuple[str, ...]]:
    """The layout, of those with corrupted prompts, of which a table has most of the needed columns.

    Returns:
        The layout, and the fields whose columns are missing.
    """
    spelt = {plain(name): name for name in header}
    paired = [layout for layout in LAYOUTS if "corrupt" in layout.needed]
    missing = {layout.name: _missing(layout, spelt) for layout in paired}
    best = min(paired, key=lambda layout: len(missing[layout.name]) / len(layout.needed))
    return best, missing[best.name]


def optional(layout: TableLayout, header: Iterable[str]) -> dict[str, str]:
    """The columns of a table that hold what a layout may lack.

    Returns:
        Field -> path.
    """
    spelt = {plain(name): name for name in header}
    found = {name: _there(paths, spelt) for name, paths in layout.optional.items()}
    return {name: path for name, path in found.items() if path}


def _there(paths: Sequence[str], spelt: Mapping[str, str]) -> str | None:
    """The first of some paths whose column is there, with the column's spelling in the table."""
    for path in paths:
        column = root(path)
        if column in spelt:
            return spelt[column] + path[len(column) :]
    return None
