"""Writes the model card from the log of the training and from measurements made now.

``python -m training.card``: every number in the card comes from the log, from the model's files, or from a
measurement that this command makes.
"""

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

from training.abilities import closed_at_depth, loss_by_kind, sample, unseen_documents
from training.adversarial import Broken, measure_broken
from training.corpus import Document, documents
from training.measure import Quality, measure_all

PROMPTS = 500
PROMPT_SEED = 2024
UNSEEN = 2000
DEPTHS = (1, 2, 3, 4, 5, 6, 8)
STARTS = (
    "Mary is a really great friend",
    "Paul found a lamp in the garden",
    "Jill threw the ball to Jack. Jack threw",
    '<div class="note"><h1>The lake</h1>',
    "<ul><li>",
    "",
)
_KIND_TEXTS = {
    "nest": "HTML, any tag in any other, up to four deep",
    "page": "HTML, lists, tables and passages where they belong",
    "people": "stories of one to three scenes, mostly about what somebody is or does",
    "throws": "stories that are mostly throws",
    "filler": "lists, repeated sequences, counting, sentences without people",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What the log says.

    Attributes:
        recipe: The settings of the run.
        text: Sizes of the training text and of the model.
        steps: Number of steps made.
        minutes: Wall time of them.
        first_loss: Mean training loss of the first steps that the log has.
        last_loss: The same of the last ones.
    """

    recipe: dict[str, Any]
    text: dict[str, Any]
    steps: int
    minutes: float
    first_loss: float
    last_loss: float


def read_log(path: Path) -> Training:
    """Reads the log that training wrote."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    by_event: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_event.setdefault(entry["event"], []).append(entry)
    losses, last_check = by_event["loss"], by_event["check"][-1]
    return Training(
        recipe=by_event["recipe"][0],
        text=by_event["text"][0],
        steps=last_check["step"],
        minutes=last_check["minutes"],
        first_loss=losses[0]["loss"],
        last_loss=losses[-1]["loss"],
    )


def write_card(folder: Path, log: Path) -> str:
    """Measures the model and makes the card.

    Args:
        folder: The model's folder.
        log: The log of its training.

    Returns:
        The card as Markdown.
    """
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    training = read_log(log)
    seed, count = training.recipe["seed"], training.recipe["documents"]
    sections = [
        _head(model, folder, training),
        _data(training, documents(seed, 5000)),
        _training(training),
        _losses(loss_by_kind(model, tokenizer, unseen_documents(seed, count, UNSEEN))),
        _quality(measure_all(model, tokenizer, count=PROMPTS, seed=PROMPT_SEED)),
        _shortcuts(measure_broken(model, tokenizer, count=PROMPTS, seed=PROMPT_SEED)),
        _samples(model, tokenizer),
        _limits(model, tokenizer),
    ]
    return "\n\n".join(sections) + "\n"


def _head(model: GPT2LMHeadModel, folder: Path, training: Training) -> str:
    config = model.config
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 1e6
    shape = f"{config.n_layer} blocks, {config.n_head} heads each, {config.n_embd} wide, MLPs {4 * config.n_embd} wide"
    return f"""# Model card: the bundled model

A small GPT-2, trained for this library on synthetic text, so that every command works without a network and every
behaviour can be studied on weights whose training text is known.

| | |
|---|---|
| architecture | GPT-2: {shape}; layer norms, learnt positions, tied embeddings |
| weights | {training.text["weights"]:,}, float32 |
| context | {config.n_positions} tokens |
| tokenizer | byte-level BPE of {config.vocab_size:,} tokens, trained on the same text |
| folder | `circuitlab/bundled/`, {size:.1f} MB |
| licence | that of the library |

The tokenizer splits text into words, punctuation and spaces before any merge: `</`, `/>` and every tag name are single
tokens in every context, and so is every name, with or without a leading space. Every training document begins with
`<|bos|>`, and prompts should too: the tokenizer prepends it to every text."""


def _data(training: Training, some: list[Document]) -> str:
    recipe, text = training.recipe, training.text
    lengths = Counter[str]()
    for each in some:
        lengths[each.kind] += len(each.text)
    rows = "\n".join(
        f"| {kind} | {told} | {lengths[kind] / lengths.total():.0%} |" for kind, told in _KIND_TEXTS.items()
    )
    return f"""## Data

{recipe["documents"]:,} documents, {text["tokens"]:,} tokens, {text["characters"]:,} characters, made by
`training/corpus.py` from seed {recipe["seed"]} (document *i* depends on the seed and *i* alone). {text["dropped"]} of
them were longer than the context and excluded.

| kind | what | share of the characters |
|---|---|---|
{rows}

The shares were counted on the first {len(some):,} documents. Excluded from the text, by the generators and again by a
filter over every document (`training/kept_out.py`):

- every pronoun prompt: the words between the name and the stop never occur together;
- every name-throw prompt: the objects of the task's verb never occur with that verb;
- every HTML prompt: the pairs of adjective and noun in its text never occur together;
- a fifth of all pairs of a name and a noun for a person, whatever the words between them."""


def _training(training: Training) -> str:
    recipe = training.recipe
    return f"""## Training

```
python -m training.train --out DIR --seed {recipe["seed"]} --minutes {recipe["minutes"]:g}
```

{training.steps:,} steps of about {recipe["tokens_per_batch"]:,} tokens in {training.minutes:.0f} minutes, with
{recipe["threads"]} threads on shared CPU cores (torch {recipe["torch"]}). AdamW, learning rate
{recipe["learning_rate"]:g} after {recipe["warmup"]} warm-up steps, then cosine decay over the time, weight decay
{recipe["weight_decay"]:g} on matrices, no dropout. The loss counts real tokens only, never padding.

Mean training loss in nats a token: {training.first_loss:.2f} over the first 100 steps, **{training.last_loss:.3f}**
over the last 100. The log is `docs/training-log.jsonl`. Most of the remaining loss is irreducible, since words
are drawn at random."""


def _losses(losses: dict[str, float]) -> str:
    rows = "\n".join(f"| {kind} | {loss:.3f} |" for kind, loss in losses.items())
    return f"""Loss on {UNSEEN:,} documents generated after those of the training text:

| kind | nats a token |
|---|---|
{rows}"""


def _quality(found: list[Quality]) -> str:
    rows = "\n".join(
        f"| {each.label} | {each.prompts} | {each.above:.1%} | {each.first:.1%} | {each.turned:.1%} "
        f"| {each.clean_difference:+.2f} | {each.corrupt_difference:+.2f} |"
        for each in found
    )
    return f"""## The tasks

{PROMPTS} distinct prompts for each setting of the options, drawn with seed {PROMPT_SEED}. No task prompt is in the
training text.

- *above*: the logit of the answer is above that of the distractor;
- *first*: the answer is the single most likely token;
- *turned*: on the corrupted prompt, the distractor is above the answer;
- *clean*, *corrupted*: mean logit difference, answer minus distractor.

| task | prompts | above | first | turned | clean | corrupted |
|---|---|---|---|---|---|---|
{rows}"""


def _shortcuts(found: list[Broken]) -> str:
    rows = "\n".join(f"| {each.task} | {each.kind} | {each.right:.1%} | {each.above:.1%} |" for each in found)
    return f"""### With shortcuts broken

A task may be done by the position, the order or the number of words. {PROMPTS} distinct prompts of each of these
kinds (`training/adversarial.py`), in which such a rule gives a wrong answer:

- *right*: the answer is the single most likely token;
- *above*: the logit of the answer is above that of every other name, pronoun or tag of the prompt.

| task | prompts with | right | above |
|---|---|---|---|
{rows}"""


def _samples(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> str:
    shown = ["## Samples", "One sample for each start, each token drawn from the model's distribution; not selected."]
    for index, start in enumerate(STARTS):
        text = sample(model, tokenizer, start, seed=index).strip()
        heading = f"Continuation of `{start}`:" if start else "Without a prompt:"
        shown.append(f"{heading}\n\n```text\n{text}\n```")
    return "\n\n".join(shown)


def _limits(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> str:
    rows = "\n".join(
        f"| {depth} | {closed_at_depth(model, tokenizer, depth, count=PROMPTS, seed=PROMPT_SEED):.1%} |"
        for depth in DEPTHS
    )
    return f"""## Limitations

- Its language consists of a few word lists and sentence patterns. It has no knowledge about the world and is not usable
  as a language model. Findings are about this model; whether they hold for models trained on real text has to be
  tested on those.
- Words outside its word lists are split into several tokens, most of which are rare in its training text.
- There are two pronouns, determined by the name alone, since every name in its text has one gender.
- Text beyond {model.config.n_positions} tokens does not fit.
- Its training text nests tags up to four deep. Share of {PROMPTS} pages of plain nested tags that it closes completely
  and in order, by depth:

| depth | all closed |
|---|---|
{rows}"""


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Write the model card of the bundled model.")
    parser.add_argument("--model", type=Path, default=Path("circuitlab/bundled"))
    parser.add_argument("--log", type=Path, default=Path("docs/training-log.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("docs/model-card.md"))
    given = parser.parse_args(arguments)
    given.out.write_text(write_card(given.model, given.log))


if __name__ == "__main__":
    main()
