"""Sets of tokens of a batch, as integers: bit `example * seq + position` tells whether a token is in the set.

Union, intersection and emptiness are `|`, `&` and truth; a plan does thousands of them, and an integer of a few hundred
bits does each in well below a microsecond.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int


class TokenSets:
    """Sets of the tokens of one batch.

    Args:
        batch: Examples.
        seq: Tokens of each.
        causal: Whether attention carries nothing to an earlier token.

    Example:
        >>> sets = TokenSets(batch=2, seq=3)
        >>> some = sets.of(np.array([[False, True, False], [False, False, False]]))
        >>> sets.indices(sets.after(some)).tolist(), sets.indices(sets.before(some)).tolist()
        ([1, 2], [0, 1])
    """

    __slots__ = ("_causal", "_columns", "_indices", "all", "batch", "seq", "size")

    def __init__(self, batch: int, seq: int, causal: bool = True) -> None:
        self.batch, self.seq, self.size, self._causal = batch, seq, batch * seq, causal
        self.all = (1 << self.size) - 1
        # Tokens from position `p` on, for the steps of a doubling.
        positions = np.arange(seq)
        self._columns = {p: self.of(np.tile(positions >= p, (batch, 1))) for p in _steps(seq)}
        self._indices: dict[int, np.ndarray] = {}

    def of(self, members: Bool[np.ndarray, "batch seq"]) -> int:
        """The set with these members.

        Returns:
            Number of the set.
        """
        return int.from_bytes(np.packbits(members, bitorder="little").tobytes(), "little")

    def indices(self, tokens: int) -> Int[np.ndarray, " token"]:
        """The members in ascending order, as `example * seq + position`.

        Returns:
            The indices.
        """
        if tokens not in self._indices:
            bits = np.frombuffer(tokens.to_bytes(-(-self.size // 8), "little"), dtype=np.uint8)
            self._indices[tokens] = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        return self._indices[tokens]

    def among(self, tokens: int, others: int) -> Int[np.ndarray, " token"]:
        """The places of the members among the members of a set that holds them all.

        Returns:
            Places, ascending.
        """
        return np.searchsorted(self.indices(others), self.indices(tokens))

    def count(self, tokens: int) -> int:
        """How many members there are.

        Returns:
            The number.
        """
        return tokens.bit_count()

    def after(self, tokens: int) -> int:
        """The members and every later token of the same example: what attention can carry them to.

        Where attention is not causal, all tokens of an example that has a member.

        Returns:
            Number of that set.
        """
        return self._forwards(tokens if self._causal else self._backwards(tokens))

    def before(self, tokens: int) -> int:
        """The members and every earlier token of the same example: what attention reads for them.

        Where attention is not causal, all tokens of an example that has a member.

        Returns:
            Number of that set.
        """
        return self._backwards(tokens if self._causal else self._forwards(tokens))

    def _forwards(self, tokens: int) -> int:
        for step, allowed in self._columns.items():
            tokens |= (tokens << step) & allowed
        return tokens

    def _backwards(self, tokens: int) -> int:
        for step, allowed in self._columns.items():
            tokens |= (tokens & allowed) >> step
        return tokens


def _steps(seq: int) -> list[int]:
    """1, 2, 4, ... as far as a prompt is long."""
    return [1 << k for k in range(max(0, seq - 1).bit_length())]
