"""The data sets of MIB's circuit track as pairs, by the benchmark's rules.

A row is a prompt with counterfactual prompts. The right answer is the first token of the prompt's own answer, the wrong
one that of the counterfactual's (of the subject, in IOI). Rows are taken in the order of the data set.

References:
    Mueller et al. 2025, arXiv:2504.13151.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from circuitlab.data.encoded import Rejection, TextEncoder
from circuitlab.data.encoding import encode_example
from circuitlab.data.example import Example
from circuitlab.data.pair import Pair
from circuitlab.data.pairs import PairSet
from circuitlab.data.tables.cells import CellError, cell
from circuitlab.data.tables.options import TableOptions
from circuitlab.data.tables.readers import RawTable
from circuitlab.data.tables.sources import read_source
from circuitlab.errors import CircuitLabError, TableError, TooFewPromptsError, UnknownNameError

METRIC = "logit_diff"
TRAIN, EVALUATED = "train", ("validation", "test")
COUNTERFACTUAL = "{counterfactual}"  # in paths: the name of the column with the corrupted prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class MibTask:
    """One task of the benchmark.

    Attributes:
        name: Its name in a submission.
        hub: Its data set on the hub.
        config: The configuration of the data set.
        counterfactual: The column with the corrupted prompt.
        answer: Path of the right answer (`data.tables.layouts`).
        distractor: Path of the wrong one.
        third: Path of a third word that must have as many tokens.
        lead: Text in front of the words.
        operator: What the column `operator` has to hold.
        one_token: Whether answers of several tokens are left out; otherwise they need as many, and the first counts.
        n: Number of training rows in published runs; None for all.
    """

    name: str
    hub: str
    config: str | None = None
    counterfactual: str
    answer: str
    distractor: str
    third: str = ""
    lead: str = ""
    operator: str = ""
    one_token: bool = False
    n: int | None = 100


def _choice(name: str, hub: str, **more: Any) -> MibTask:
    return MibTask(
        name=name, hub=hub, counterfactual="symbol_counterfactual", answer="choices.label[answerKey]",
        distractor="{counterfactual}.choices.label[{counterfactual}.answerKey]", **more,
    )  # fmt: skip


def _arithmetic(name: str, operator: str) -> MibTask:
    return MibTask(
        name=name, hub=f"mib-bench/{name.replace('-', '_')}", counterfactual="random_counterfactual", answer="label",
        distractor="{counterfactual}.label", operator=operator, one_token=True,
    )  # fmt: skip


MIB_TASKS = {
    task.name: task
    for task in (
        MibTask(
            name="ioi", hub="mib-bench/ioi", counterfactual="s2_io_flip_counterfactual",
            answer="metadata.indirect_object", distractor="metadata.subject", third="metadata.random_c", lead=" ",
            n=1000,
        ),
        _choice("mcqa", "mib-bench/copycolors_mcqa", config="4_answer_choices", n=None),
        _arithmetic("arithmetic-addition", "+"),
        _arithmetic("arithmetic-subtraction", "-"),
        _choice("arc-easy", "mib-bench/arc_easy"),
        _choice("arc-challenge", "mib-bench/arc_challenge"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MibPairs:
    """The pairs of a task for one model.

    Attributes:
        task: The task.
        train: Pairs to score on, of the split `train`.
        evaluated: Pairs to evaluate on.
        split: The split that these are of.
        dropped: Reason -> how many rows of either split are left out.
    """

    task: MibTask
    train: PairSet
    evaluated: PairSet
    split: str
    dropped: Mapping[str, int] = field(default_factory=dict)


def find_mib_task(name: str) -> MibTask:
    """A task by its name, with hyphens or underscores.

    Returns:
        The task.

    Raises:
        UnknownNameError: There is none.
    """
    spelt = {"copycolors-mcqa": "mcqa"}.get(name.replace("_", "-"), name.replace("_", "-"))
    if spelt not in MIB_TASKS:
        raise UnknownNameError.of("task of MIB", name, MIB_TASKS)
    return MIB_TASKS[spelt]


def read_mib(
    task: MibTask, data: str | None = None, *, split: str = "validation", revision: str | None = None
) -> dict[str, RawTable]:
    """The rows of a task, by split.

    Args:
        task: The task.
        data: A folder with a copy of its data set, or a name on the hub; by default the benchmark's own.
        split: The split that is evaluated.
        revision: The revision on the hub.

    Returns:
        The tables of `train` and of the split.

    Raises:
        TableError: The data set cannot be read, or has no such split.
        UnknownNameError: The split is not one that is evaluated.
    """
    if split not in EVALUATED:
        raise UnknownNameError.of("split", split, EVALUATED)
    source = data or task.hub
    try:
        tables = read_source(source, TableOptions(config=task.config, revision=revision))
    except UnknownNameError:  # a copy without folders for configurations
        tables = read_source(source, TableOptions(revision=revision))
    found = {table.split: table for table in tables}
    for name in (TRAIN, split):
        if name not in found:
            raise TableError(
                f"{source!r} has no split {name!r}; its splits are {', '.join(found) or '(none)'}. Name its files by "
                "split (train, validation, test)."
            )
    return {name: found[name] for name in (TRAIN, split)}


def check_counterfactual(task: MibTask, tables: Mapping[str, RawTable], counterfactual: str | None = None) -> str:
    """The column of corrupted prompts, which all tables must have.

    Args:
        task: The task.
        tables: The rows by split.
        counterfactual: Another column than the task's.

    Returns:
        The column.

    Raises:
        TableError: A table has no such column.
    """
    column = counterfactual or task.counterfactual
    for table in tables.values():
        if column not in table.columns:
            known = [name for name in table.columns if name.endswith("_counterfactual")] or table.columns
            raise TableError(
                f"{table.source} has no column {column!r}; it has {', '.join(known)}. Is this data of {task.name}?"
            )
    return column


def mib_pairs(
    task: MibTask,
    tables: Mapping[str, RawTable],
    text: TextEncoder,
    *,
    n: int | None = None,
    n_evaluated: int | None = None,
    counterfactual: str | None = None,
    n_ctx: int | None = None,
) -> MibPairs:
    """The pairs of a task for a model's tokenizer.

    Args:
        task: The task.
        tables: The rows of `train` and of the split that is evaluated.
        text: The tokenizer.
        n: The most training pairs; by default as in published runs.
        n_evaluated: The most pairs to evaluate on; by default all.
        counterfactual: Another column with corrupted prompts.
        n_ctx: Tokens that the context of the model holds.

    Returns:
        The pairs. Left out and counted are rows that the benchmark leaves out, rows whose prompts differ in length, and
        evaluated rows with a prompt that is scored.

    Raises:
        TableError: A row is none of this task's, or has no such counterfactual.
        TooFewPromptsError: No row of a split is left.
    """
    column = check_counterfactual(task, tables, counterfactual)
    dropped = Counter[str]()
    (_, train), (split, evaluated) = tables.items()
    most = (task.n if n is None else n, n_evaluated)
    sets = list[PairSet]()
    for table, limit in zip((train, evaluated), most, strict=True):
        seen = sets[0].texts if sets else frozenset[str]()
        found = list[Pair]()
        for row, number in zip(table.rows, table.numbers, strict=True):
            if limit is not None and len(found) == limit:
                break
            made = _pair(task, row, column, text, f"{table.source}, {table.split} {table.counted} {number}")
            if isinstance(made, str):
                dropped[made] += 1
            elif n_ctx is not None and len(made) > n_ctx:
                dropped["the prompt is longer than the context"] += 1
            elif {made.clean, made.corrupt} & seen:
                dropped["a prompt of a training row"] += 1
            else:
                found.append(replace(made, id=f"{table.split}-{len(found):04d}"))
        if not found:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in dropped.most_common(3))
            raise TooFewPromptsError(f"no {table.split} row of {table.source} is left for this model ({reasons}).")
        sets.append(PairSet(tuple(found), METRIC))
    return MibPairs(task=task, train=sets[0], evaluated=sets[1], split=split, dropped=dict(dropped))


def _pair(task: MibTask, row: Mapping[str, Any], column: str, text: TextEncoder, where: str) -> Pair | str:
    """The pair of a row, or why the benchmark or this library leaves it out."""
    if task.operator and row.get("operator") != task.operator:
        return f"the operator is not {task.operator!r}"
    try:
        read = {name: _word(task, row, path, column) for name, path in _paths(task).items()}
    except CellError as error:
        raise TableError(f"{where} {error}. Is this data of {task.name}?") from None
    if read["corrupt"] is None:
        return "no counterfactual"
    if missing := [name for name, value in read.items() if value is None]:
        raise TableError(f"{where} has no {missing[0]} ({_paths(task)[missing[0]]}). Is this data of {task.name}?")
    tokens = {name: _tokens(task.lead + read[name], text) for name in read if name not in ("clean", "corrupt")}
    lengths = {len(ids) for ids in tokens.values()}
    if len(lengths) > 1 or 0 in lengths or (task.one_token and lengths != {1}):
        return "answers of more than one token" if task.one_token else "answers of different numbers of tokens"
    if tokens["answer"][0] == tokens["distractor"][0]:
        return "answer and distractor begin with the same token"
    try:
        example = Example(
            read["clean"], read["corrupt"], (), answer_ids=(tokens["answer"][0],),
            distractor_ids=(tokens["distractor"][0],),
        )  # fmt: skip
    except CircuitLabError as error:
        raise TableError(f"{where} holds no pair: {error}") from None
    made = encode_example(example, text)
    return made.reason if isinstance(made, Rejection) else made


def _paths(task: MibTask) -> dict[str, str]:
    return {
        "clean": "prompt", "corrupt": "{counterfactual}.prompt", "answer": task.answer, "distractor": task.distractor,
        **({"third": task.third} if task.third else {}),
    }  # fmt: skip


def _word(task: MibTask, row: Mapping[str, Any], path: str, column: str) -> Any:
    value = cell(row, path.replace(COUNTERFACTUAL, column))
    return value if value is None or isinstance(value, str) else str(value)


def _tokens(word: str, text: TextEncoder) -> Sequence[int]:
    """The tokens of a word by itself, without those in front of every text."""
    return [one for one in text.encode(word).ids if one not in text.special_ids]
