"""How well a model does the tasks, on prompts that are in no training text."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from circuitlab.data.example import Example
from circuitlab.data.task import Task
from circuitlab.tasks import gendered_pronouns, html_tag_closing, name_throw
from training.tokenizer import PAD, token_id

TASKS = (gendered_pronouns.TASK, name_throw.TASK, html_tag_closing.TASK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What was measured on the prompts of one task with one choice of options.

    Attributes:
        task: The task's name.
        options: The options chosen, by name.
        prompts: Number of distinct prompts.
        above: Share of clean prompts whose answer has a higher logit than the distractor.
        first: Share of clean prompts whose answer is the single most likely token.
        turned: Share of corrupted prompts whose own right answer, the distractor, is above the answer.
        clean_difference: Mean logit of the answer minus that of the distractor, clean prompts.
        corrupt_difference: The same, corrupted prompts.
    """

    task: str
    options: dict[str, str]
    prompts: int
    above: float
    first: float
    turned: float
    clean_difference: float
    corrupt_difference: float

    @property
    def label(self) -> str:
        """The task and its options in one short text."""
        chosen = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.task} ({chosen})" if chosen else self.task


def variants(task: Task) -> Iterator[dict[str, str]]:
    """The default options of a task, then each other value of each option alone."""
    defaults = {name: values[0] for name, values in task.options.items()}
    yield defaults
    for name, values in task.options.items():
        for value in values[1:]:
            yield {**defaults, name: value}


def draw_distinct(task: Task, options: dict[str, str], count: int, seed: int) -> list[Example]:
    """Draws examples whose clean prompts are all different."""
    rng = Random(f"{seed}/{task.name}")
    drawn: dict[str, Example] = {}
    while len(drawn) < count:
        example = task.draw(rng, **options)
        drawn.setdefault(example.clean, example)
    return list(drawn.values())


def measure(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    options: dict[str, str],
    *,
    count: int,
    seed: int,
) -> Quality:
    """Measures one task with one choice of options.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        task: The task.
        options: A value for each of the task's options.
        count: Number of prompts.
        seed: Decides which prompts.

    Returns:
        The shares and means over the prompts.

    Raises:
        ValueError: An answer is not one token after its prompt.
    """
    examples = draw_distinct(task, options, count, seed)
    answers = torch.tensor([next_id(tokenizer, each.clean, each.answers[0]) for each in examples])
    others = torch.tensor([next_id(tokenizer, each.corrupt, each.distractors[0]) for each in examples])
    clean = next_logits(model, tokenizer, [each.clean for each in examples])
    corrupt = next_logits(model, tokenizer, [each.corrupt for each in examples])
    rows = torch.arange(count)
    clean_difference = clean[rows, answers] - clean[rows, others]
    corrupt_difference = corrupt[rows, answers] - corrupt[rows, others]
    return Quality(
        task=task.name,
        options=options,
        prompts=count,
        above=(clean_difference > 0).double().mean().item(),
        first=(clean.argmax(dim=-1) == answers).double().mean().item(),
        turned=(corrupt_difference < 0).double().mean().item(),
        clean_difference=clean_difference.mean().item(),
        corrupt_difference=corrupt_difference.mean().item(),
    )


def measure_all(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, *, count: int, seed: int) -> list[Quality]:
    """Measures every task with every variant of it."""
    return [
        measure(model, tokenizer, task, options, count=count, seed=seed) for task in TASKS for options in variants(task)
    ]


@torch.no_grad()
def next_logits(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], size: int = 100
) -> Tensor:
    """Logits of the token after each prompt.

    Args:
        model: The language model.
        tokenizer: Its tokenizer, which adds the beginning-of-sequence token.
        prompts: Texts of any lengths.
        size: Prompts a forward pass.

    Returns:
        Float tensor, prompts by vocabulary.
    """
    rows = tokenizer(prompts)["input_ids"]
    logits = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        last = torch.tensor([len(row) - 1 for row in part])
        ids: Int[Tensor, "batch seq"] = torch.full((len(part), int(last.max()) + 1), token_id(tokenizer, PAD))
        for index, row in enumerate(part):
            ids[index, : len(row)] = torch.tensor(row)
        hidden = model.transformer(ids).last_hidden_state
        logits.append(model.lm_head(hidden[torch.arange(len(part)), last]))
    return torch.cat(logits)


def next_id(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> int:
    """The token that an answer is after a prompt; raises `ValueError` if it is not one."""
    before, after = tokenizer.encode(prompt), tokenizer.encode(prompt + answer)
    if after[:-1] != before:
        raise ValueError(f"answer {answer!r} is not one token after {prompt!r}.")
    return after[-1]
