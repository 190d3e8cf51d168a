"""Where an MLP matters although no single neuron does: ablation loss against outlier score, position by position.

For every position p of every prompt, with h the MLP's activation after its nonlinearity (before a layer norm inside
the MLP, where there is one):

1. Ablation loss: the prompt's loss with h at p set to zero, minus the loss of the prompt as it is. The loss of a prompt
   is the mean cross-entropy of its next tokens, in nats: tokens 1 to n - 1 given those before.
2. Outlier score: the largest neuron of h at p minus the mean over neurons.
3. Combination: ablation loss times 1 / outlier score. It is high where the MLP is needed and no neuron is an outlier.

All positions of all prompts of one length are rows of one batch, and a row differs from the prompt as it is at one
token of the stream after the MLP: only later blocks are run. Attention is causal, so the losses of tokens
before p are those of the prompt as it is, and ablating the last token changes no loss.

The layer norm inside an MLP divides by the spread of all neurons, so it can lift a position without an outlier.
`norm_ratios` measures this lift, the outlier score after the norm over that before it, at the positions of the highest
combination (`Outliers.top`) and at as many drawn from the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.arguments import checked
from circuitlab.drawing import draw
from circuitlab.errors import ConfigError
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.models.steps import half_block
from circuitlab.neurons.chosen import Prompt, Tokens, check_count, layers_of, read_prompts, run_by_length
from circuitlab.parts import Stage
from circuitlab.patching.runs.packing import Packer, rows_at_once
from circuitlab.predictions.streams import log_probs_of
from circuitlab.resources import Resources
from circuitlab.result import Result, named
from circuitlab.stats import GroupDifference, group_difference
from circuitlab.summary import Summary, plural, short


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PromptOutliers(Summary):
    """One prompt, position by position.

    Attributes:
        tokens: The prompt.
        loss: Mean loss of its predicted tokens, in nats.
        losses: By ablated position and token: that token's loss with the MLP ablated there minus without, in nats; NaN
            at the first token, which nothing predicts, and at all others in front that are no text.
        outlier_score: Largest neuron minus mean over neurons, before the layer norm inside the MLP.
        score_after_norm: The same after that norm; equal to `outlier_score` where there is none.
    """

    tokens: Tokens
    loss: float
    losses: Float[np.ndarray, "seq seq"]
    outlier_score: Float[np.ndarray, " seq"]
    score_after_norm: Float[np.ndarray, " seq"]

    @property
    def ablation_loss(self) -> Float[np.ndarray, " seq"]:
        """Loss of the prompt with each position ablated minus without, in nats: positive where the MLP helps."""
        return self.losses[:, _first_predicted(self.tokens) :].mean(1)

    @property
    def combination(self) -> Float[np.ndarray, " seq"]:
        """Ablation loss times 1 / outlier score."""
        return self.ablation_loss / self.outlier_score

    def _summary(self) -> str:
        return f"of {short(self.tokens.text, 40)}: loss {self.loss:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Outliers(Summary):
    """All positions of all prompts.

    Attributes:
        layer: The layer of the MLP.
        model_id: What the model is called.
        has_norm: Whether there is a layer norm between the neurons and the output projection.
        prompts: In the order given.
    """

    layer: int
    model_id: str
    has_norm: bool
    prompts: tuple[PromptOutliers, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a position, highest combination first.

        Columns: prompt, position, token, ablation_loss, outlier_score, combination, score_after_norm.

        Returns:
            The table.
        """
        columns = (
            {
                "prompt": number,
                "position": np.arange(len(one.tokens)),
                "token": list(one.tokens.words),
                **named(one, "ablation_loss", "outlier_score", "combination", "score_after_norm"),
            }
            for number, one in enumerate(self.prompts)
        )
        return pd.concat(map(pd.DataFrame, columns)).sort_values(
            "combination", ascending=False, kind="stable", ignore_index=True
        )

    def top(self, n: int = 10) -> pd.DataFrame:
        """The positions of the highest combination, with their prompts' texts.

        Returns:
            The first rows of `to_frame`, with the texts.
        """
        rows = self.to_frame().head(n)
        return rows.assign(text=[self.prompts[number].tokens.text for number in rows["prompt"]])

    def plot(self, n_top: int = 10) -> Any:
        """Ablation loss against outlier score as a matplotlib `Figure`, the top positions marked.

        Returns:
            The figure.
        """
        return draw(self, n_top=n_top)

    def to_record(self, n_top: int = 10) -> dict[str, Any]:
        """The top positions and every prompt's loss, for JSON.

        Returns:
            The record.
        """
        losses = [{"text": one.tokens.text, "loss": one.loss} for one in self.prompts]
        top = self.top(n_top).to_dict("records")
        return {"model": self.model_id, "layer": self.layer, "has_norm": self.has_norm, "top": top, "prompts": losses}

    def _summary(self) -> str:
        return f"of layer {self.layer} of {short(self.model_id, 30)[1:-1]}: {plural(len(self.prompts), 'prompt')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        for prompt in self.prompts[:6]:
            at = int(np.nanargmax(prompt.outlier_score)) if len(prompt.outlier_score) else 0
            yield short(prompt.tokens.text, 32), f"loss {prompt.loss:.4g}, largest outlier score at token {at}"


@model_function
def outliers(model: Model, prompts: Sequence[Prompt], layer: int = 0, *, budget: int | None = None) -> Outliers:
    """Ablate an MLP at every position of every prompt, and compare the loss with its outlier scores.

    Args:
        model: The model.
        prompts: Texts, or token ids, of two tokens at least.
        layer: The layer of the MLP.
        budget: Bytes that a run may take; by default a share of what is free.

    Returns:
        Losses and scores of every position; see the module for what they are.

    Raises:
        ConfigError: The layer is not there, the list is empty, or a prompt is empty, too long, or a single token.
    """
    layers_of(model, layer)
    read = read_prompts(model, prompts)
    for number, prompt in enumerate(read):
        if len(prompt) <= _first_predicted(prompt):
            raise ConfigError(f"text {number} is the single token {prompt.words[-1]!r}: nothing is predicted from it.")
    found: dict[int, PromptOutliers] = {}
    resources = Resources(budget)

    def run(numbers: list[int], ids: Tensor, arguments: BlockArguments) -> None:
        found.update(
            zip(numbers, _scored(model, layer, arguments, [read[i] for i in numbers], ids, resources), strict=True)
        )

    run_by_length(model, read, run, resources)
    return Outliers(
        layer=layer,
        model_id=model.id,
        has_norm=any(bool((one.score_after_norm != one.outlier_score).any()) for one in found.values()),
        prompts=tuple(found[i] for i in range(len(read))),
    )


@torch.no_grad()
def _scored(
    model: Model,
    layer: int,
    arguments: BlockArguments,
    prompts: list[Tokens],
    ids: Int[Tensor, "batch seq"],
    resources: Resources,
) -> Iterator[PromptOutliers]:
    """Prompts of one length."""
    stream = model.run_blocks(model.embedding(ids), 0, arguments, layer)
    middle, read = half_block(model, layer, stream, arguments)
    mid, post = (model.mlp_hidden(layer, read, stage) for stage in (Stage.MID, Stage.POST))
    after = middle + model.mlp_from_hidden(layer, mid, Stage.MID)
    without = middle + model.mlp_from_hidden(layer, torch.zeros_like(mid[:1, :1]), Stage.MID)
    final = model.run_blocks(after, layer + 1, arguments)
    token_losses = -log_probs_of(model, final[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).view(len(ids), -1)
    # By ablated position and token, how much that token's loss changes. The last position predicts nothing: not run.
    n_tokens = ids.shape[1]
    losses = token_losses.new_zeros(len(ids), n_tokens, n_tokens)
    places = torch.cartesian_prod(torch.arange(len(ids)), torch.arange(n_tokens - 1)).to(ids.device)
    # After the last block a changed token affects its own prediction only.
    reach = 1 if layer == model.spec.n_layers - 1 else n_tokens

    def run(part: slice) -> None:
        prompt, position = places[part].T
        row = torch.arange(len(prompt), device=prompt.device)
        stream = after[prompt]
        stream[row, position] = without[prompt, position]
        final = model.run_blocks(stream, layer + 1, arguments)
        column = torch.arange(n_tokens - 1, device=prompt.device)
        changed = (column >= position[:, None]) & (column < position[:, None] + reach)
        row, at = changed.nonzero().T
        log_probs = log_probs_of(model, final[row, at], ids[prompt[row], at + 1])
        losses[prompt[row], position[row], at + 1] = -log_probs - token_losses[prompt[row], at]

    Packer().run(len(places), rows_at_once(model, n_tokens, resources), run)
    for row, prompt in enumerate(prompts):
        first = _first_predicted(prompt)
        losses[row, :, :first] = torch.nan
        yield PromptOutliers(
            tokens=prompt,
            loss=float(token_losses[row, first - 1 :].double().mean()),
            losses=losses[row].double().cpu().numpy(),
            outlier_score=_score(mid[row]),
            score_after_norm=_score(post[row]),
        )


def _first_predicted(tokens: Tokens) -> int:
    """The position of the first token whose loss counts."""
    return max(1, tokens.n_special)


def _score(hidden: Float[Tensor, "seq neuron"]) -> Float[np.ndarray, " seq"]:
    hidden = hidden.double()
    return (hidden.amax(-1) - hidden.mean(-1)).cpu().numpy()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NormRatios(Result):
    """Outlier scores before and after the norm, at the top positions and at random ones.

    Attributes:
        top: prompt, position, token, before, after, ratio (after / before) of the top positions.
        control: The same of as many positions drawn at random from all others.
        difference: Mean ratio of the top positions minus that of the control, with two tests of it.
        seed: Seed of the control positions and of the permutations.
    """

    top: pd.DataFrame
    control: pd.DataFrame
    difference: GroupDifference
    seed: int

    def to_frame(self) -> pd.DataFrame:
        """Both groups below each other: group ("top" or "control"), prompt, position, token, before, after, ratio.

        Returns:
            The table.
        """
        return pd.concat({"top": self.top, "control": self.control}, names=["group"]).reset_index("group")

    def to_record(self) -> dict[str, Any]:
        """The same for JSON.

        Returns:
            The record.
        """
        return {
            "top": self.top.to_dict("records"),
            "control": self.control.to_dict("records"),
            "difference": self.difference.to_record(),
            "seed": self.seed,
        }

    def _summary(self) -> str:
        difference = self.difference.difference
        return f"of {plural(len(self.top), 'neuron')} and {len(self.control):,} controls: difference {difference:.4g}"


@checked
def norm_ratios(found: Outliers, *, n: int = 10, seed: int = 0) -> NormRatios:
    """Compare the top positions with random ones.

    Args:
        found: What `outliers` returned.
        n: How many positions a group has.
        seed: Same seed, same control and same p-value.

    Returns:
        Both groups, and the difference of their mean ratios with its tests.

    Raises:
        ConfigError: The model has no norm there, or there are fewer than twice `n` positions.
    """
    check_count("n", n, least=2)
    if not found.has_norm:
        raise ConfigError(
            f"model {found.model_id!r} has no layer norm between the neurons and the output projection of its MLPs: "
            "the scores before and after it are the same and every ratio is 1. Take a SoLU model, such as solu-1l."
        )
    rows = found.to_frame().rename(columns={"outlier_score": "before", "score_after_norm": "after"})
    if len(rows) < 2 * n:
        raise ConfigError(f"{len(rows)} positions do not make two groups of {n}. Give more prompts, or a smaller n.")
    rows = rows.assign(ratio=rows["after"] / rows["before"])
    rows = rows[["prompt", "position", "token", "before", "after", "ratio"]]
    drawn = np.random.default_rng(seed).choice(np.arange(n, len(rows)), n, replace=False)
    top, control = rows.iloc[:n], rows.iloc[np.sort(drawn)].reset_index(drop=True)
    difference = group_difference(top["ratio"].to_numpy(), control["ratio"].to_numpy(), seed)
    return NormRatios(top=top, control=control, difference=difference, seed=seed)
