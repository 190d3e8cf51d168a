"""The untrained model, its optimizer, and the folder that it is saved in."""

import os
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from training.batches import LENGTHS
from training.recipe import Recipe
from training.tokenizer import BOS, EOS, PAD, token_id


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Makes an untrained model, leaving the global random state as it was."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=LENGTHS[-1],
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        # GPT-2's own function under the name that runs as one kernel: "gelu_new" takes the same values in eight steps.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=token_id(tokenizer, BOS),
        eos_token_id=token_id(tokenizer, EOS),
        pad_token_id=token_id(tokenizer, PAD),
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return GPT2LMHeadModel(config)


def build_optimizer(recipe: Recipe, model: GPT2LMHeadModel) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases and layer norms alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the model folder, each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        for written in sorted(Path(beside).iterdir()):
            written.chmod(0o644)
            os.replace(written, folder / written.name)
