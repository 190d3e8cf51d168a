"""Makes the bundled model: ``python -m training.train --out DIR``.

Text from a seed, a tokenizer from the text, a small GPT-2 from both. The learning rate follows the share of the time
that is spent, so that the same command makes the best of any machine; the number of steps is in the log. A whole model
folder stands in DIR a few minutes after the start and is replaced as training goes on; a dozen earlier models stay in
DIR/checkpoints, each in a folder named after its number of steps.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from training.adversarial import measure_broken
from training.batches import IGNORED, Rows
from training.corpus import documents
from training.measure import measure_all
from training.model import build_model, build_optimizer, save
from training.recipe import Recipe, checkpoint_times, learning_rate
from training.tokenizer import train_tokenizer

LOG_NAME = "training-log.jsonl"
CHECKPOINTS = "checkpoints"
_TOKENIZER_DOCUMENTS = 20_000
_STEPS_A_LINE = 100


class Log:
    """A file of JSON lines, also shown on standard error."""

    def __init__(self, path: Path) -> None:
        """Starts an empty file.

        Args:
            path: Where; its folder is made if there is none.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        path.write_text("")

    def write(self, **entry: object) -> None:
        """Adds one line."""
        line = json.dumps(entry)
        with self._path.open("a") as file:
            file.write(line + "\n")
        print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What the loop works on.

    Attributes:
        recipe: The settings.
        model: Trained in place.
        tokenizer: Saved with the model.
        rows: The training text.
        folder: Where the model is saved.
        log: Where losses and measurements are written.
    """

    recipe: Recipe
    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    rows: Rows
    folder: Path
    log: Log


def prepare(recipe: Recipe, folder: Path) -> Run:
    """Makes the text, the tokenizer and the untrained model."""
    log = Log(folder / LOG_NAME)
    log.write(event="recipe", **asdict(recipe), torch=str(torch.__version__), threads=torch.get_num_threads())
    texts = [each.text for each in documents(recipe.seed, recipe.documents)]
    tokenizer = train_tokenizer(texts[:_TOKENIZER_DOCUMENTS], recipe.vocabulary)
    rows = Rows(texts, tokenizer)
    model = build_model(recipe, tokenizer)
    log.write(
        event="text",
        characters=sum(map(len, texts)),
        tokens=rows.tokens,
        dropped=rows.dropped,
        weights=sum(weight.numel() for weight in model.parameters()),
    )
    return Run(recipe=recipe, model=model, tokenizer=tokenizer, rows=rows, folder=folder, log=log)


def train(run: Run) -> None:
    """Trains for the time that the recipe gives; the model is saved and measured now and then and at the end."""
    recipe = run.recipe
    optimizer = build_optimizer(recipe, run.model)
    started = checked = time.monotonic()
    losses: list[Tensor] = []
    due = list(checkpoint_times(recipe.checkpoints))[::-1]
    for step, ids in enumerate(endless(run.rows, recipe)):
        minutes = (time.monotonic() - started) / 60
        if due and minutes >= due[-1] * recipe.minutes:
            keep(run, step)
            due = [share for share in due if share * recipe.minutes > minutes]
        if minutes >= recipe.minutes:
            break
        rate = learning_rate(recipe, step, minutes / recipe.minutes)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(run.model, ids, run.rows.targets(ids))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if len(losses) == _STEPS_A_LINE:
            mean = torch.stack(losses).mean().item()
            run.log.write(event="loss", step=step + 1, loss=round(mean, 4), rate=rate, minutes=round(minutes, 2))
            losses.clear()
        if (time.monotonic() - checked) / 60 >= recipe.check_minutes:
            check(run, step + 1, minutes)
            checked = time.monotonic()
    check(run, step, minutes)


def keep(run: Run, step: int) -> None:
    """Saves the model as it is now beside those that were saved before."""
    save(run.model, run.tokenizer, run.folder / CHECKPOINTS / f"step-{step:06}")
    run.log.write(event="checkpoint", step=step)


def endless(rows: Rows, recipe: Recipe) -> Iterator[Int[Tensor, "batch seq"]]:
    """Batches of one epoch after the other."""
    rng = Random(f"{recipe.seed}/order")
    while True:
        yield from rows.epoch(rng, recipe.tokens_per_batch)


def loss_of(
    model: GPT2LMHeadModel, ids: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch next"]
) -> Float[Tensor, ""]:
    """Mean loss over the tokens that are to be learnt.

    Padding stands at the end of a row, where no token before it can attend to it, so there is no mask to give.
    """
    hidden = model.transformer(ids[:, :-1], use_cache=False).last_hidden_state
    return cross_entropy(model.lm_head(hidden).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def check(run: Run, step: int, minutes: float) -> None:
    """Saves the model and measures it on some prompts of every task."""
    save(run.model, run.tokenizer, run.folder)
    run.model.eval()
    count, seed = run.recipe.check_prompts, run.recipe.seed + 1
    found = measure_all(run.model, run.tokenizer, count=count, seed=seed)
    broken = measure_broken(run.model, run.tokenizer, count=count, seed=seed)
    run.model.train()
    shares = {each.label: [each.above, each.first, each.turned] for each in found}
    right = {f"{each.task}: {each.kind}": each.right for each in broken}
    run.log.write(event="check", step=step, minutes=round(minutes, 2), above_first_turned=shares, right=right)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    usual = Recipe()
    parser = argparse.ArgumentParser(description="Train the bundled model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the model and its log")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--minutes", type=float, default=usual.minutes, help="wall time of training")
    parser.add_argument("--documents", type=int, default=usual.documents)
    given = parser.parse_args(arguments)
    if given.out.exists():
        parser.error(f"--out {given.out} exists; give a folder that does not.")
    train(prepare(Recipe(seed=given.seed, minutes=given.minutes, documents=given.documents), given.out))


if __name__ == "__main__":
    main()
