"""The random models and prompts that are timed.

Weights are those of a fresh GPT-2 checkpoint: time does not depend on their values. Prompts are random words; a
corrupted prompt differs from its clean one at two positions. Of two random words the answer is the one that the clean
prompt raises over the corrupted one, as in a task: else the gaps of 64 prompts cancel, and a share of the mean gap
means nothing (2e-4 logits were left of 0.03).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.per_cell import logit_diff
from circuitlab import PairBatch, load_model
from circuitlab.models.bridge import BridgeModel

BOS = "<|bos|>"
# From 0. A sweep begins its work at the first of them, one pass a cell at token 0.
DIFFER_AT = (3, 6)
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A GPT-2 and its prompts.

    Attributes:
        name: What tables call it.
        n_layers: Blocks.
        n_heads: Heads a block.
        d_model: Width.
        d_vocab: Words.
        n_prompts: Pairs in the batch.
        n_tokens: Tokens a prompt; it is judged at the last.
    """

    name: str
    n_layers: int
    n_heads: int
    d_model: int
    d_vocab: int
    n_prompts: int
    n_tokens: int = 16

    def of(self, n_prompts: int) -> Size:
        """The same model with so many prompts."""
        return replace(self, n_prompts=n_prompts)


GPT2_SMALL = Size(name="GPT-2 small", n_layers=12, n_heads=12, d_model=768, d_vocab=50257, n_prompts=8)
FOUR_LAYERS = Size(name="4 layers", n_layers=4, n_heads=4, d_model=128, d_vocab=1000, n_prompts=64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setup:
    """A loaded model and a batch for it.

    Attributes:
        size: Name of the size.
        model: The model; its weights ask for no gradient, as `load_model("gpt2")` leaves them.
        batch: The prompts, on the model's device.
    """

    size: Size
    model: BridgeModel
    batch: PairBatch

    @property
    def what(self) -> str:
        """A few words for tables."""
        return f"{self.size.name}, {self.size.n_prompts} x {self.size.n_tokens} tokens"


def make(size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Setup:
    """Build, boot and load the random model, and draw its prompts; the same weights and prompts in every dtype."""
    model = load_model(_booted(size, device, dtype))
    for weight in model.bridge.parameters():
        weight.requires_grad_(False)
    return Setup(size=size, model=model, batch=_answered(model, prompts(size, device)))


def prompts(size: Size, device: str = "cpu") -> PairBatch:
    """Random pairs that differ at `DIFFER_AT`, each with two random words as answer and distractor."""
    generator = torch.Generator().manual_seed(SEED)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(1, size.d_vocab, shape, generator=generator)

    clean = words(size.n_prompts, size.n_tokens)
    corrupt = clean.clone()
    for position in DIFFER_AT:
        # Another word, never the same one again.
        shift = torch.randint(1, size.d_vocab - 1, (size.n_prompts,), generator=generator)
        corrupt[:, position] = 1 + (clean[:, position] - 1 + shift) % (size.d_vocab - 1)
    answers, distractors = words(size.n_prompts, 1), words(size.n_prompts, 1)
    return PairBatch.from_tokens(*(t.to(device) for t in (clean, corrupt, answers, distractors)))


def _answered(model: BridgeModel, batch: PairBatch) -> PairBatch:
    """Answer and distractor exchanged where the corrupted prompt prefers the answer more than the clean one does."""
    clean, corrupt = (logit_diff(model.whole_logits(tokens), batch) for tokens in (batch.clean, batch.corrupted))
    turned = (clean < corrupt)[:, None]
    return replace(
        batch,
        answers=torch.where(turned, batch.distractors, batch.answers),
        distractors=torch.where(turned, batch.answers, batch.distractors),
    )


def _booted(size: Size, device: str, dtype: torch.dtype) -> Any:
    import transformers as hf
    from transformer_lens.model_bridge import TransformerBridge

    config = hf.GPT2Config(
        n_layer=size.n_layers,
        n_head=size.n_heads,
        n_embd=size.d_model,
        vocab_size=size.d_vocab,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        made: Any = hf.GPT2LMHeadModel(config)
    made = made.eval().to(device, dtype)
    with TemporaryDirectory() as folder:  # a bridge wants a tokenizer, which it loads from a place with a name
        config.save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, hf_model=made, device=device, dtype=dtype)
    bridge.cfg.model_name = size.name
    return bridge.eval()


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({BOS: 0}, unk_token=BOS))
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=BOS, eos_token=BOS, pad_token=BOS)
