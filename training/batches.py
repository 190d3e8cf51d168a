"""Documents as batches of token ids: one document a row, rows of like length together.

Every row begins with the beginning-of-sequence token, which the tokenizer adds, as the prompts of the tasks do, and
holds one document, so that nothing has to be learnt about where documents meet.
"""

from collections.abc import Iterator
from random import Random

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.tokenizer import EOS, PAD, token_id

IGNORED = -100
LENGTHS = (16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128, 160, 192, 256)


class Rows:
    """Tokenised documents, sorted into the few lengths that batches may have.

    Attributes:
        tokens: Number of tokens of all documents, begin and end marks among them.
        dropped: Number of documents that were longer than the longest row.
    """

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerFast) -> None:
        """Tokenises the texts.

        Args:
            texts: One document each.
            tokenizer: The trained tokenizer.
        """
        by_length: dict[int, list[np.ndarray]] = {length: [] for length in LENGTHS}
        self.tokens = 0
        self.dropped = 0
        for ids in _encoded(texts, tokenizer):
            row = np.array([*ids, token_id(tokenizer, EOS)], dtype=np.int16)
            fitting = next((length for length in LENGTHS if len(row) <= length), None)
            if fitting is None:
                self.dropped += 1
                continue
            self.tokens += len(row)
            by_length[fitting].append(row)
        self._padding = token_id(tokenizer, PAD)
        self._by_length = {length: _padded(rows, length, self._padding) for length, rows in by_length.items() if rows}

    def epoch(self, rng: Random, tokens_per_batch: int) -> Iterator[Int[Tensor, "batch seq"]]:
        """Goes through all documents once, in random order.

        A batch that would come out smaller than the others of its length is left out, so that batches have
        as many shapes as there are lengths; the documents in it come up in another epoch.

        Args:
            rng: Decides the order.
            tokens_per_batch: Rows times length of a batch, about.

        Yields:
            Padded token ids.
        """
        batches = []
        for length, rows in self._by_length.items():
            size = max(1, tokens_per_batch // length)
            order = list(range(len(rows)))
            rng.shuffle(order)
            starts = range(0, len(order) - size + 1, size)
            batches += [(length, order[start : start + size]) for start in starts]
        rng.shuffle(batches)
        for length, chosen in batches:
            yield self._by_length[length][torch.tensor(chosen)].long()

    def targets(self, batch: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch next"]:
        """The token after each, with padding marked as not to be learnt."""
        following = batch[:, 1:]
        return following.masked_fill(following == self._padding, IGNORED)


def _encoded(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[list[int]]:
    """Token ids of each text; a part at a time, since Python's lists of numbers are large."""
    for start in range(0, len(texts), 10_000):
        yield from tokenizer(texts[start : start + 10_000])["input_ids"]


def _padded(rows: list[np.ndarray], length: int, padding: int) -> Int[Tensor, "row seq"]:
    padded = np.full((len(rows), length), padding, dtype=np.int16)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)
