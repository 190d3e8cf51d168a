"""Bidirectional compiled models: predictions also depend on tokens after the answer."""

from __future__ import annotations

import numpy as np

from circuitlab.compiled.entry import BOS, Drawn, Entry, alphabet, another, letters
from circuitlab.compiled.program import POSITION, TOKEN, Apply, Attend, Program
from circuitlab.compiled.terms import equal, lookup, prefer, selection, table

# Between words that are counted and others, in nats: counts are distinguished by differences of a twentieth.
COUNTED = 12.0


def mirror() -> Entry:
    """At each letter of a text, the letter that is as far from its end as this one from its beginning."""
    words, n_ctx, end = ("BOS", *alphabet(6), "END"), 12, 7
    size = len(words)

    def source(end_at: int, position: int) -> int | None:
        return end_at - position if 1 <= position < end_at else None

    def draw(number: int, rng: np.random.Generator) -> Drawn:
        def prompt(n: int, text: list[int]) -> list[int]:
            """A text of `n` letters; tokens after its end are not part of it."""
            return [BOS, *text[:n], end, *text[n:]]

        own = letters(rng, n_ctx - 2, end)
        n = int(rng.integers(6, 11))
        if number % 2:  # another letter at the mirrored position
            at = int(rng.integers(1, n + 1))
            other = list(own)
            other[n - at] = another(own[n - at], range(1, end), rng)
            return Drawn(prompt(n, own), prompt(n, other), at)
        while True:  # the end in another place, the letters as they are
            m = another(n, range(6, 11), rng)
            at = int(rng.integers(1, min(n, m) + 1))
            if own[n - at] != own[m - at]:
                return Drawn(prompt(n, own), prompt(m, own), at)
            own = letters(rng, n_ctx - 2, end)

    program = Program(
        name="mirror",
        words=words,
        n_ctx=n_ctx,
        operations=(
            lookup("end at", POSITION, n_ctx, prefer(TOKEN, size, [end])),
            lookup("unread", TOKEN, size),
            table("source", ("end at", n_ctx), (POSITION, n_ctx), n_ctx, source),
            lookup("mirrored", TOKEN, size, equal("source", POSITION, n_ctx)),
        ),
        output="mirrored",
        unembed=np.eye(size),
        causal=False,
    )
    return Entry(what="predicts the letter at the mirrored position of the text", program=program, draw=draw)


def histogram() -> Entry:
    """How often the letter at a position occurs in the whole prompt: once, twice or three times."""
    counts, n_letters, n_ctx = ("once", "twice", "three times"), 6, 10
    words = ("BOS", *alphabet(n_letters), *counts)
    size, most = len(words), len(counts)

    def draw(number: int, rng: np.random.Generator) -> Drawn:
        while True:
            clean, corrupt = ([BOS, *letters(rng, n_ctx - 1, 1 + n_letters)] for _ in range(2))
            at = int(rng.integers(1, n_ctx))
            if number % 2:  # another letter at the answer position, all others unchanged
                corrupt = [*clean[:at], another(clean[at], range(1, 1 + n_letters), rng), *clean[at + 1 :]]
            else:  # the same letter, in another text
                corrupt[at] = clean[at]
            one, other = clean.count(clean[at]), corrupt.count(corrupt[at])
            if one != other and max(one, other) <= most:
                return Drawn(clean, corrupt, at)

    program = Program(
        name="histogram",
        words=words,
        n_ctx=n_ctx,
        operations=(
            Attend(
                writes="share of BOS",
                value=TOKEN,
                through=selection(size, [[BOS]]),
                score=(equal(TOKEN, TOKEN, size, COUNTED), prefer(TOKEN, size, [BOS], COUNTED)),
            ),
            lookup("unread", TOKEN, size),
            _counted("count", "share of BOS", most),
            lookup("unread too", "unread", size, equal(TOKEN, "unread", size)),
        ),
        output="count",
        unembed=selection(size, [[words.index(count)] for count in counts]).T,
        causal=False,
    )
    return Entry(what="predicts how often the letter occurs in the whole text", program=program, draw=draw)


def _counted(writes: str, share: str, most: int) -> Apply:
    """From 1 / (1 + n), BOS's share beside n equal letters, to n as one of 1 to `most`.

    A tent for each n: 1 at its share, 0 from the next shares on, straight in between. Its three neurons bend there.
    """
    bends = [1 / (1 + n) for n in range(most + 1, -1, -1)]
    into, bias, out = np.ones((1, len(bends))), -np.array(bends), np.zeros((len(bends), most))
    for n in range(1, most + 1):
        at = most + 1 - n
        up, down = 1 / (bends[at] - bends[at - 1]), 1 / (bends[at + 1] - bends[at])
        out[at - 1 : at + 2, n - 1] = up, -up - down, down
    return Apply(writes=writes, reads={share: into}, bias=bias, out=out, shift=np.zeros(most))
