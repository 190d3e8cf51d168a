"""What else a model can and cannot do: loss on unseen text, pages of any depth, text of its own.

The tasks are measured in :mod:`training.measure`; these are the numbers that tell where the model ends.
"""

from collections.abc import Iterable
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from circuitlab.tasks import html_tag_closing
from training import lexicon
from training.corpus import Document, document
from training.measure import next_logits
from training.tokenizer import EOS, token_id


def unseen_documents(seed: int, trained_on: int, count: int) -> list[Document]:
    """The documents whose numbers follow those of the training text."""
    return [document(seed, trained_on + number) for number in range(count)]


@torch.no_grad()
def loss_by_kind(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[Document]
) -> dict[str, float]:
    """Mean loss a token, in nats, of each kind of text.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        texts: Documents; those longer than the model's context are left out.

    Returns:
        The loss by kind, the end of each document counted as a token of it.
    """
    sums: dict[str, tuple[float, int]] = {}
    for each in texts:
        ids = torch.tensor([[*tokenizer.encode(each.text), token_id(tokenizer, EOS)]])
        if ids.shape[1] > model.config.n_positions:
            continue
        loss = cross_entropy(model(ids[:, :-1]).logits[0], ids[0, 1:], reduction="sum").item()
        total, tokens = sums.get(each.kind, (0.0, 0))
        sums[each.kind] = total + loss, tokens + ids.shape[1] - 1
    return {kind: total / tokens for kind, (total, tokens) in sorted(sums.items())}


def closed_at_depth(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, depth: int, *, count: int, seed: int
) -> float:
    """Share of pages with so many open tags, one in the other, of which the model closes every one in turn.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        depth: Number of open tags, all different; the training text has at most four.
        count: Number of pages.
        seed: Decides which pages.

    Returns:
        The share of pages that the most likely tokens close without a mistake, one tag after the other.
    """
    rng = Random(f"{seed}/depth {depth}")
    tags = lexicon.CONTAINER_TAGS + lexicon.INLINE_TAGS
    nests = [rng.sample(tags, depth) for _ in range(count)]
    words = f"{html_tag_closing.DETERMINERS[0]} {html_tag_closing.ADJECTIVES[0]} {html_tag_closing.NOUNS[0]}"
    pages = ["".join(f"<{tag}>" for tag in nest) + words for nest in nests]
    right = torch.ones(count, dtype=torch.bool)
    for level in range(1, depth + 1):
        pages = [f"{page}</" for page in pages]
        wanted = torch.tensor([token_id(tokenizer, nest[-level]) for nest in nests])
        right &= next_logits(model, tokenizer, pages).argmax(dim=-1) == wanted
        pages = [f"{page}{nest[-level]}>" for page, nest in zip(pages, nests, strict=True)]
    return right.double().mean().item()


@torch.no_grad()
def sample(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, start: str, *, seed: int, tokens: int = 50
) -> str:
    """Goes on with a text by drawing each token from the model's distribution.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        start: The text to go on with, which may be empty.
        seed: Decides the draws.
        tokens: The most tokens to add.

    Returns:
        The text, up to where the model ends the document or the tokens are used up.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = list(tokenizer.encode(start))
    for _ in range(tokens):
        logits = model(torch.tensor([ids])).logits[0, -1]
        drawn = int(torch.multinomial(logits.softmax(dim=-1), 1, generator=generator))
        if drawn == token_id(tokenizer, EOS):
            break
        ids.append(drawn)
    text = tokenizer.decode(ids[1:])
    assert isinstance(text, str)
    return text
