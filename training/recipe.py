"""The settings of a training run, and the learning rate that follows from them."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides how training goes, but for the machine.

    Attributes:
        seed: Decides the text, the first weights and the order of the batches.
        minutes: Wall time for the training itself.
        documents: Number of documents of training text.
        vocabulary: The most tokens that the tokenizer may have.
        layers: Blocks of the model.
        heads: Attention heads a block.
        width: Width of the residual stream.
        tokens_per_batch: Tokens a step, padding among them.
        learning_rate: The highest one.
        weight_decay: Applied to matrices only.
        warmup: Steps over which the learning rate rises.
        check_minutes: Time between two measurements, each of which also saves the model.
        check_prompts: Prompts of each task variant and each broken shortcut in such a measurement.
        checkpoints: Number of models kept on the way, the untrained one first and the last one last.
    """

    seed: int = 0
    minutes: float = 75.0
    documents: int = 600_000
    vocabulary: int = 1408
    layers: int = 4
    heads: int = 8
    width: int = 128
    tokens_per_batch: int = 3072
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 300
    check_minutes: float = 4.0
    check_prompts: int = 100
    checkpoints: int = 12


def checkpoint_times(count: int) -> tuple[float, ...]:
    """When models are kept, as shares of the time: the earlier, the closer together."""
    return tuple((i / max(1, count - 1)) ** 2 for i in range(count))


def learning_rate(recipe: Recipe, step: int, spent: float) -> float:
    """A short rise, then half a cosine over the time, down to a fiftieth."""
    rise = min(1.0, (step + 1) / recipe.warmup)
    fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, spent)))
    return recipe.learning_rate * rise * fall
