"""Makes the bundled autoencoder: ``python -m training.autoencoder --out DIR``.

A top-k autoencoder of the stream behind one block of the bundled model, trained on the model's own training text. The
number of steps decides how long it takes, so that the same seed gives the same weights on one machine. Features that
have been silent for a while learn from what the others leave over (Gao et al. 2024, arXiv:2406.04093).
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoTokenizer

from circuitlab import load_model
from circuitlab.features.autoencoder import Autoencoder, TopK
from circuitlab.features.place import activation
from circuitlab.features.saelens import save_autoencoder
from circuitlab.models.protocol import Model
from training.batches import Rows
from training.corpus import documents
from training.tokenizer import PAD, token_id

BUNDLED = Path(__file__).parent.parent / "circuitlab" / "bundled"
_STEPS_A_LINE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderRecipe:
    """Everything that decides how training goes.

    Attributes:
        seed: Decides the first weights and the order of the text.
        site: What is read.
        layer: In which layer.
        features: How many features.
        k: How many may be active at a token.
        steps: Steps of the optimizer.
        documents: Documents of training text, the first ones of the model's own.
        tokens_per_batch: Tokens a step, about.
        learning_rate: The highest one; it falls to zero over the last fifth.
        silent: Steps without activity after which a feature learns from the leftovers.
        rescue: Weight of that loss.
    """

    seed: int = 0
    site: str = "resid_post"
    layer: int = 1
    features: int = 512
    k: int = 16
    steps: int = 800
    documents: int = 20_000
    tokens_per_batch: int = 3072
    learning_rate: float = 2e-3
    silent: int = 100
    rescue: float = 1 / 32


class Weights(nn.Module):
    """What is trained: decoder rows of norm 1, encoder columns that begin as these."""

    def __init__(self, width: int, recipe: AutoencoderRecipe, mean: Float[Tensor, " d_in"]) -> None:
        """Draws first weights; the decoder's bias begins at the mean activation."""
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.seed)
        rows = torch.randn(recipe.features, width, generator=generator)
        rows = rows / rows.norm(dim=1, keepdim=True)
        self.w_dec, self.w_enc = nn.Parameter(rows), nn.Parameter(rows.T.clone())
        self.b_dec, self.b_enc = nn.Parameter(mean.clone()), nn.Parameter(torch.zeros(recipe.features))

    def pre(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token feature"]:
        """Pre-activations, bias included."""
        return (x - self.b_dec) @ self.w_enc + self.b_enc

    @torch.no_grad()
    def normalise(self) -> None:
        """Decoder rows back to norm 1."""
        self.w_dec /= self.w_dec.norm(dim=1, keepdim=True)


def activations(model: Model, rows: Rows, recipe: AutoencoderRecipe, padding: int) -> Iterator[Float[Tensor, "_ d_in"]]:
    """Activations of one batch after the other, without the first token and the padding."""
    rng = Random(f"{recipe.seed}/autoencoder")
    while True:
        for ids in rows.epoch(rng, recipe.tokens_per_batch):
            run = model.record(ids)
            real = ids != padding
            real[:, 0] = False
            yield activation(model, run, recipe.site, recipe.layer)[real]


def loss_of(
    weights: Weights, x: Float[Tensor, "token d_in"], silent: Bool[Tensor, " feature"], recipe: AutoencoderRecipe
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Bool[Tensor, " feature"]]:
    """What is minimised, the share of variance that is not explained, and the features that were active."""
    pre = weights.pre(x)
    found = TopK(bias=torch.zeros_like(weights.b_enc), k=recipe.k)(pre)
    left = x - found @ weights.w_dec - weights.b_dec
    spread = (x - x.mean(0)).square().sum()
    unexplained = left.square().sum() / spread
    loss = unexplained
    if bool(silent.any()):
        some = min(int(silent.sum()), weights.w_enc.shape[0] // 2)
        rest = TopK(bias=torch.zeros_like(weights.b_enc), k=some)(pre.masked_fill(~silent, -torch.inf).clamp_min(-1e9))
        loss = loss + recipe.rescue * (left.detach() - rest @ weights.w_dec).square().sum() / spread
    return loss, unexplained.detach(), (found > 0).any(0)


def train(model: Model, recipe: AutoencoderRecipe) -> Autoencoder:
    """Trains an autoencoder; losses go to standard error."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    rows = Rows([each.text for each in documents(0, recipe.documents)], tokenizer)
    batches = activations(model, rows, recipe, token_id(tokenizer, PAD))
    weights = Weights(model.spec.d_model, recipe, next(batches).mean(0))
    optimizer = torch.optim.Adam(weights.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
    since = torch.zeros(recipe.features, dtype=torch.long)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, 5 * (1 - step / recipe.steps), (step + 1) / 100)
        loss, unexplained, active = loss_of(weights, next(batches), since > recipe.silent, recipe)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        weights.normalise()
        since = torch.where(active, 0, since + 1)
        if (step + 1) % _STEPS_A_LINE == 0:
            line = {"step": step + 1, "unexplained": round(float(unexplained), 4), "silent": int((since > 100).sum())}
            print(json.dumps(line), file=sys.stderr, flush=True)
    trained = {name: value.detach() for name, value in weights.named_parameters()}
    return Autoencoder(
        name="bundled",
        site=recipe.site,
        layer=recipe.layer,
        encoder=TopK(bias=trained["b_enc"], k=recipe.k),
        w_enc=trained["w_enc"],
        w_dec=trained["w_dec"],
        b_dec=trained["b_dec"],
        subtract_bias=True,
        model_id="bundled",
    )


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    usual = AutoencoderRecipe()
    parser = argparse.ArgumentParser(description="Train the bundled autoencoder from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the autoencoder")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--steps", type=int, default=usual.steps)
    parser.add_argument("--layer", type=int, default=usual.layer)
    parser.add_argument("--documents", type=int, default=usual.documents)
    parser.add_argument("--features", type=int, default=usual.features)
    parser.add_argument("-k", type=int, default=usual.k)
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    if out.exists():
        parser.error(f"--out {out} exists; give a folder that does not.")
    save_autoencoder(train(load_model("bundled"), AutoencoderRecipe(**given)), out)


if __name__ == "__main__":
    main()
