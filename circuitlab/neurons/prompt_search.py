"""Prompts that maximise a neuron: gradient ascent on embeddings, the words nearest to them run at every step.

Every prompt has a vector for each of its free words, and at each step:

1. Project each vector on the token with the largest cosine; the prompt of these tokens is run.
2. Take the gradient of the neuron at the last token with respect to the embeddings of these tokens, at length 1 over
   the whole prompt, so that prompts on which the neuron is silent move as far as others.
3. Add the diversity penalty's: the mean cosine between this prompt's vectors and those of every other prompt, word by
   word, whose gradient is brought to length 1 too and weighted.
4. Move the vectors, not the tokens, by AdamW. Where the gradient is nothing at all, the search starts anew from random
   words.

The best prompt of tokens of each search is returned; the value at the vectors themselves, which correspond to no text,
is in the trace only. The baseline is the same number of random prompts.

Reference:
    Wen, Jain, Kirchenbauer, Goldblum, Geiping & Goldstein 2023, Hard Prompts Made Easy (the gradient is taken at the
    projection and applied to the vectors).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from circuitlab.drawing import draw
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.neurons.chosen import Tokens, check_count, neurons_of, same_when_typed, words_of
from circuitlab.neurons.last_token import at_last_token, last_values
from circuitlab.neurons.prompt_space import Template, Vocabulary, template_of
from circuitlab.patching.runs.packing import packs, rows_at_once
from circuitlab.progress import Progress, callback
from circuitlab.resources import Resources
from circuitlab.summary import Summary, plural, short


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FoundPrompt(Summary):
    """The best prompt of one search.

    Attributes:
        value: The neuron at its last token.
        tokens: The prompt, run as these tokens; its text may be tokenised differently, see `retokenises`.
        step: At which step it was found.
        retokenises: Whether the text, typed as it is, gives these same tokens; None without a tokenizer.
    """

    value: float
    tokens: Tokens
    step: int
    retokenises: bool | None

    def _summary(self) -> str:
        return f"{short(self.tokens.text, 50)}: {self.value:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RandomPrompts(Summary):
    """Prompts of random tokens, fixed words in their places.

    Attributes:
        n: How many were run.
        best: The neuron at the last token of the best ones, one for each search, best first.
        mean: Mean over all of them.
        std: Standard deviation over all of them.
    """

    n: int
    best: Float[np.ndarray, " row"]
    mean: float
    std: float

    def _summary(self) -> str:
        return f"{self.n:,} prompts: mean {self.mean:.4g}, standard deviation {self.std:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class OptimisedPrompts(Summary):
    """Prompts that maximise (or minimise) a neuron.

    Attributes:
        layer: The neuron's layer.
        neuron: Its number.
        direction: "max" or "min".
        prompts: Best first, no two the same.
        soft: The neuron by step and search at the searched vectors themselves, which are no text.
        hard: The same at the tokens nearest to them.
        texts: These tokens as text, by step and search.
        baseline: The same number of random prompts as were run here (`n_evaluated`; gradients, about two more runs
            each, not counted).
        n_evaluated: Prompts run, of tokens and of vectors.
        seed: Seed of the start and of the baseline.
    """

    layer: int
    neuron: int
    direction: str
    prompts: tuple[FoundPrompt, ...]
    soft: Float[np.ndarray, "step row"]
    hard: Float[np.ndarray, "step row"]
    texts: tuple[tuple[str, ...], ...]
    baseline: RandomPrompts
    n_evaluated: int
    seed: int

    @property
    def best(self) -> FoundPrompt:
        """The best of all."""
        return self.prompts[0]

    @property
    def margin(self) -> float:
        """How much better the best prompt is than the best random one, in units of the neuron; below 0 if worse."""
        sign = 1.0 if self.direction == "max" else -1.0
        return sign * (self.best.value - float(self.baseline.best[0]))

    @property
    def trace(self) -> pd.DataFrame:
        """How the search went: step, search, soft, hard, text."""
        n_steps, n_searches = self.hard.shape
        return pd.DataFrame(
            {
                "step": np.repeat(np.arange(n_steps), n_searches),
                "search": np.tile(np.arange(n_searches), n_steps),
                "soft": self.soft.ravel(),
                "hard": self.hard.ravel(),
                "text": [text for step in self.texts for text in step],
            }
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt, best first: rank, value, text, step, retokenises.

        Returns:
            The table.
        """
        return pd.DataFrame(
            [
                {"rank": rank, "value": p.value, "text": p.tokens.text, "step": p.step, "retokenises": p.retokenises}
                for rank, p in enumerate(self.prompts, start=1)
            ]
        )

    def plot(self) -> Any:
        """The best prompt so far of each search against the step, with the random ones, as a matplotlib `Figure`.

        Returns:
            The figure.
        """
        return draw(self)

    def to_record(self) -> dict[str, Any]:
        """The arguments, the prompts and the baseline, for JSON.

        Returns:
            The record.
        """
        random = {"n": self.baseline.n, "mean": self.baseline.mean, "std": self.baseline.std}
        return {
            "layer": self.layer, "neuron": self.neuron, "direction": self.direction, "seed": self.seed,
            "prompts": self.to_frame().to_dict("records"), "n_steps": len(self.hard), "n_evaluated": self.n_evaluated,
            "random_prompts": {**random, "best": self.baseline.best.tolist()}, "margin": self.margin,
        }  # fmt: skip

    def _summary(self) -> str:
        found = f"{self.direction} {self.best.value:.4g} after {plural(len(self.hard), 'step')}"
        return f"of neuron L{self.layer}N{self.neuron}: {found}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        for one in self.prompts[:8]:
            yield f"{one.value:.4g}", short(one.tokens.text)
        yield "random", self.baseline


# Of AdamW, in units of the root mean square of the embeddings' components: a step turns a vector by about 45 degrees.
LEARNING_RATE = 1.0
DIRECTIONS = {"max": 1.0, "min": -1.0}
# Length of a gradient that leads nowhere: an activation that is flat at 0 has none left in float32.
SILENT = 1e-6
# A pass with gradients keeps about four times what one without does.
GRADIENT_ROWS = 4

_Step = tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"], tuple[str, ...]]
"""At one step of the search, by search: the value at the prompt of tokens, that at the vectors, and the text."""
_Best = tuple[float, tuple[int, ...], int]
"""The best prompt of a search: its value, its tokens and its step."""


@model_function
def optimise_prompts(
    model: Model,
    layer: int,
    neuron: int,
    *,
    n_prompts: int = 8,
    n_tokens: int = 8,
    fixed: Mapping[int, str] | None = None,
    steps: int = 200,
    patience: int = 30,
    diversity: float = 0.1,
    learning_rate: float = LEARNING_RATE,
    direction: str = "max",
    seed: int = 0,
    budget: int | None = None,
    progress: Progress | bool | None = None,
) -> OptimisedPrompts:
    """Search for prompts at whose last token a neuron is as large as possible; see the module for the steps.

    Args:
        model: The model.
        layer: The neuron's layer.
        neuron: Its number; its value is what goes into the MLP's output projection.
        n_prompts: Prompts to find, no two the same.
        n_tokens: Tokens of a prompt, fixed ones counted and a beginning-of-sequence token not.
        fixed: Words that stay, by position (0 is the first, -1 the last): single tokens, with their leading space.
        steps: Maximum number of steps.
        patience: Stop after this many steps without an improvement.
        diversity: Weight of the penalty against a gradient of length 1; 0 for none.
        learning_rate: Of AdamW, in units of the root mean square of the embeddings' components.
        direction: "max", or "min" for prompts that make the neuron as small as possible.
        seed: Same seed, same prompts: of the words to start from and of the baseline.
        budget: Bytes that a run may take; by default a share of what is free.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total) after every step.

    Returns:
        The prompts, best first, with the trace and the baseline.

    Raises:
        ConfigError: The layer or neuron is not there, a number is out of range, the prompt is longer than the context,
            or a fixed word is outside it.
        TokenError: A fixed word is not one token.
        UnknownNameError: The direction is neither "max" nor "min".
        UnsupportedModelError: The model's embedding is not a vector per token plus one per position.
    """
    (neuron,) = neurons_of(model, layer, neuron)
    counts = {"n_prompts": n_prompts, "n_tokens": n_tokens, "steps": steps, "patience": patience}
    for name, value in counts.items():
        check_count(name, value)
    if not diversity >= 0 or not learning_rate > 0:
        raise ConfigError(f"diversity is {diversity} and learning_rate {learning_rate}; neither may be negative or 0.")
    UnknownNameError.check("direction", direction, DIRECTIONS)
    template = template_of(model, n_tokens, dict(fixed or {}))
    search = _Search(
        model=model, layer=layer, neuron=neuron, template=template, vocabulary=Vocabulary.of(model),
        sign=DIRECTIONS[direction], steps=steps, patience=patience, diversity=diversity, learning_rate=learning_rate,
        resources=Resources(budget, callback(progress)),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    trace, best = _ascend(search, n_prompts, generator)
    hard, soft, texts = zip(*trace, strict=True)
    n_evaluated = 2 * n_prompts * len(trace)
    return OptimisedPrompts(
        layer=layer, neuron=neuron, direction=direction, prompts=_best_first(search, best), soft=np.array(soft),
        hard=np.array(hard), texts=texts, n_evaluated=n_evaluated, seed=seed,
        baseline=_random_prompts(search, n_evaluated, n_prompts, generator),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Search:
    """What is searched, and where.

    Attributes:
        model: The model.
        layer: The neuron's layer.
        neuron: Its number.
        template: The prompt with its free places.
        vocabulary: The tokens that may be there.
        sign: 1 for the largest values, -1 for the smallest.
        steps: Maximum number of steps.
        patience: Steps without an improvement.
        diversity: Weight of the penalty.
        learning_rate: Of AdamW.
        resources: Budget and progress.
    """

    model: Model
    layer: int
    neuron: int
    template: Template
    vocabulary: Vocabulary
    sign: float
    steps: int
    patience: int
    diversity: float
    learning_rate: float
    resources: Resources

    def prompts(self, places: Int[Tensor, "row _"]) -> Int[Tensor, "row seq"]:
        """Prompts of tokens."""
        return self.template.filled(self.vocabulary.ids[places])


def _ascend(search: _Search, n_prompts: int, generator: torch.Generator) -> tuple[list[_Step], dict[int, _Best]]:
    """Take the steps of the module's text until all are done or patience is at its end.

    Returns:
        Values and texts of every step, and the best prompt of each search, no two the same.
    """
    model, vocabulary, special = search.model, search.vocabulary, search.template.n_special
    start = vocabulary.draw((n_prompts, len(search.template.free)), generator)
    arguments = model.block_arguments(search.prompts(start[:1]))
    vectors = vocabulary.vectors[start].clone()
    optimiser = torch.optim.AdamW([vectors], lr=search.learning_rate * float(vocabulary.vectors.square().mean().sqrt()))
    trace, best, improved_at = list[_Step](), dict[int, _Best](), -1
    for step in range(search.steps):
        places = vocabulary.nearest(vectors)
        hard, soft, gradient = _evaluate(search, arguments, vectors, places)
        ids = [tuple(row) for row in search.prompts(places).tolist()]
        texts = tuple("".join(words_of(model, row[special:])) for row in ids)
        trace.append((hard.cpu().numpy(), soft.cpu().numpy(), texts))
        for number, (value, tokens) in enumerate(zip(hard.tolist(), ids, strict=True)):
            better = number not in best or search.sign * value > search.sign * best[number][0]
            if better and all(tokens != other for _, other, _ in best.values()):
                best[number], improved_at = (value, tokens, step), step
        search.resources.progress("search for prompts", step + 1, search.steps)
        if step - improved_at >= search.patience:
            break
        penalty = _similarity_gradient(vectors) if len(vectors) > 1 else torch.zeros_like(gradient)
        vectors.grad = search.diversity * _unit(penalty) - search.sign * _unit(gradient)
        optimiser.step()
        silent_now = gradient.flatten(1).norm(dim=1) < SILENT
        fresh = vocabulary.draw((len(vectors), len(search.template.free)), generator)
        vectors[silent_now] = vocabulary.vectors[fresh][silent_now]
    search.resources.progress("search for prompts", search.steps, search.steps)
    return trace, best


def _evaluate(
    search: _Search, arguments: BlockArguments, vectors: Float[Tensor, "row _ d_model"], places: Int[Tensor, "row _"]
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"], Float[Tensor, "row _ d_model"]]:
    """The neuron at the projected prompts and at the vectors, and its gradient at the former's embeddings."""
    model, vocabulary, free = search.model, search.vocabulary, list(search.template.free)
    size = max(1, rows_at_once(model, len(search.template.ids), search.resources) // GRADIENT_ROWS)
    hard, soft, gradients = [], [], []
    for part in packs(len(places), size):
        start = model.embedding(search.prompts(places[part]))
        moved = start.clone()
        moved[:, free] += (vectors[part] - vocabulary.vectors[places[part]]).to(start.dtype)
        with torch.no_grad():
            soft.append(at_last_token(model, arguments, moved, search.layer, search.neuron).float())
        with torch.enable_grad():
            start = start.detach().requires_grad_()
            value = at_last_token(model, arguments, start, search.layer, search.neuron)
        gradients.append(torch.autograd.grad(value.sum(), start)[0][:, free].float())
        hard.append(value.detach().float())
    return torch.cat(hard), torch.cat(soft), torch.cat(gradients)


def _similarity_gradient(vectors: Float[Tensor, "row _ d_model"]) -> Float[Tensor, "row _ d_model"]:
    """Gradient of the mean cosine between each prompt's vectors and those of the others, word by word."""
    with torch.enable_grad():
        leaf = vectors.clone().requires_grad_()
        unit = functional.normalize(leaf, dim=-1)
        cosines = einsum(unit, unit, "row word d_model, other word d_model -> row other")
        alike = cosines.sum() - cosines.diagonal().sum()
    return torch.autograd.grad(alike, leaf)[0]


def _unit(gradient: Float[Tensor, "row _ d_model"]) -> Float[Tensor, "row _ d_model"]:
    """Each prompt's gradient at length 1."""
    return gradient / gradient.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-30)


def _best_first(search: _Search, best: Mapping[int, _Best]) -> tuple[FoundPrompt, ...]:
    found = []
    for value, ids, step in sorted(best.values(), key=lambda one: -search.sign * one[0]):
        tokens = Tokens.of(search.model, ids, search.template.n_special)
        typed = same_when_typed(search.model, tokens)
        found.append(FoundPrompt(value=value, tokens=tokens, step=step, retokenises=typed))
    return tuple(found)


def _random_prompts(search: _Search, n: int, n_best: int, generator: torch.Generator) -> RandomPrompts:
    """The baseline: n random prompts with the same fixed words."""
    rows = search.prompts(search.vocabulary.draw((n, len(search.template.free)), generator))
    values = last_values(search.model, rows, search.layer, search.neuron, resources=search.resources).double().cpu()
    best, _ = values.topk(min(n_best, n), largest=search.sign > 0)
    return RandomPrompts(n=n, best=best.numpy(), mean=float(values.mean()), std=float(values.std(unbiased=False)))
