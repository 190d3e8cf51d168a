"""Variants of recorded prompts as ragged rows: the tokens of one variant after the other, in one matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Variants of examples, tokens `first` to `last` of each (both included), one row after the other.

    Attributes:
        example: Which example of the batch each row is a variant of.
        first: First token that may differ from the recorded run.
        last: Last token that may, and that can reach the answer.
        answer: The example's answer position, among these.
    """

    example: Int[Tensor, " row"]
    first: Int[Tensor, " row"]
    last: Int[Tensor, " row"]
    answer: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.example)

    @cached_property
    def lengths(self) -> Int[Tensor, " row"]:
        """How many tokens each row has."""
        return self.last - self.first + 1

    @cached_property
    def row(self) -> Int[Tensor, " token"]:
        """The row that each token belongs to."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.example.device), self.lengths)

    @cached_property
    def position(self) -> Int[Tensor, " token"]:
        """The position of each token in its prompt."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.row), device=self.row.device) - (starts - self.first)[self.row]

    @cached_property
    def at_answer(self) -> Int[Tensor, " row"]:
        """The index of each row's answer among all tokens."""
        return self.lengths.cumsum(0) - 1 - (self.last - self.answer)

    def of(self, recorded: Float[Tensor, "batch seq ..."]) -> Float[Tensor, "token ..."]:
        """A recorded tensor at the rows' tokens."""
        return at_tokens(recorded, self.example[self.row], self.position)

    def answers_only(self) -> Rows:
        """The same rows at their answer position alone."""
        return Rows(example=self.example, first=self.answer, last=self.answer, answer=self.answer)


def at_tokens(
    values: Float[Tensor, "batch seq ..."], example: Int[Tensor, " token"], position: Int[Tensor, " token"]
) -> Float[Tensor, "token ..."]:
    """Values at chosen tokens; several times faster than indexing with two tensors."""
    return values.flatten(0, 1).index_select(0, example * values.shape[1] + position)
