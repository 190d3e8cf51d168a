"""The compiled models: what each does, its program, and how its prompts are drawn.

Prompts begin with the word BOS. Every model also has parts that do nothing for the answer: heads and MLPs that write
unread outputs, some of which differ between the two prompts.

Predictions of the last two, `mirror` and `histogram`, also depend on tokens after the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase

import numpy as np

from circuitlab.compiled.entry import BOS, Drawn, Entry, another, letters
from circuitlab.compiled.program import POSITION, TOKEN, Apply, Attend, Match, Program
from circuitlab.compiled.terms import equal, lookup, prefer, related, selection, table

# Between words that are counted and others, in nats: counts are distinguished by differences of a twentieth.
COUNTED = 12.0


def mirror() -> Entry:
    """At each letter of a text, the letter that is as far from its end as this one from its beginning.

    Returns:
        The entry.
    """
    words, n_ctx, end = ("BOS", *ascii_lowercase[:6], "END"), 12, 7
    size = len(words)

    def source(end_at: int, position: int) -> int | None:
        return end_at - position if 1 <= position < end_at else None

    def draw(number: int, rng: np.random.Generator) -> Drawn:
        def prompt(n: int, text: list[int]) -> list[int]:
            """A text of `n` letters; tokens after its end are not part of it."""
            return [BOS, *text[:n], end, *text[n:]]

        drawn = letters(rng, n_ctx - 2, end)
        n = int(rng.integers(6, 11))
        if number % 2:  # another letter at the mirrored position
            at = int(rng.integers(1, n + 1))
            other = list(drawn)
            other[n - at] = another(drawn[n - at], range(1, end), rng)
            return Drawn(prompt(n, drawn), prompt(n, other), at)
        while True:  # the end in another place, the letters as they are
            m = another(n, range(6, 11), rng)
            at = int(rng.integers(1, min(n, m) + 1))
            if drawn[n - at] != drawn[m - at]:
                return Drawn(prompt(n, drawn), prompt(m, drawn), at)
            drawn = letters(rng, n_ctx - 2, end)

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
    """How often the letter at a position occurs in the whole prompt: once, twice or three times.

    Returns:
        The entry.
    """
    counts, n_letters, n_ctx = ("once", "twice", "three times"), 6, 10
    words = ("BOS", *ascii_lowercase[:n_letters], *counts)
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


def _copier() -> Entry:
    words, n_ctx, back = ("BOS", *ascii_lowercase[:8]), 10, 3
    size = len(words)

    def head(writes: str, distance: int) -> Attend:
        return lookup(writes, TOKEN, size, related(POSITION, POSITION, n_ctx, lambda position: position - distance))

    def draw(_number: int, rng: np.random.Generator) -> Drawn:
        answer_at = int(rng.integers(back + 1, n_ctx))
        clean = [BOS, *letters(rng, n_ctx - 1, size)]
        corrupt = list(clean)
        for place in (answer_at - back, answer_at - 1):
            corrupt[place] = another(clean[place], range(1, size), rng)
        return Drawn(clean, corrupt, answer_at)

    program = Program(
        name="copier",
        words=words,
        n_ctx=n_ctx,
        operations=(head("copied", back), head("unread", 1)),
        output="copied",
        unembed=np.eye(size),
    )
    return Entry(what="repeats the token three positions back", program=program, draw=draw)


def _induction() -> Entry:
    words, n_ctx = ("BOS", *ascii_lowercase[:8]), 10
    size = len(words)

    def draw(number: int, rng: np.random.Generator) -> Drawn:
        key, after, other, after_other, *rest = map(int, 1 + rng.permutation(size - 1))
        first, second = (key, after), (other, after_other)
        fill = list(map(int, rng.choice(rest, n_ctx - 6)))
        cut = int(rng.integers(0, len(fill) + 1))
        if rng.random() < 0.5:
            first, second = second, first
        clean = [BOS, *fill[:cut], *first, *second, *fill[cut:], key]
        # Alternately: the token after the key, the position of the key, and the query. All lead to `after_other`.
        swapped = ({after: after_other, after_other: after}, {key: other, other: key})
        if number % 3 == 2:
            return Drawn(clean, [*clean[:-1], other], n_ctx - 1)
        return Drawn(clean, [*(swapped[number % 3].get(t, t) for t in clean[:-1]), key], n_ctx - 1)

    program = Program(
        name="induction",
        words=words,
        n_ctx=n_ctx,
        operations=(
            lookup("previous", TOKEN, size, related(POSITION, POSITION, n_ctx, lambda position: position - 1)),
            lookup("unread", TOKEN, size),
            lookup("next", TOKEN, size, equal(TOKEN, "previous", size)),
            lookup("unread too", "unread", size, equal(TOKEN, "unread", size)),
        ),
        output="next",
        unembed=np.eye(size),
    )
    return Entry(what="predicts the token that followed the last token before", program=program, draw=draw)


def _tag_stack() -> Entry:
    kinds, n_ctx = ascii_lowercase[:3], 9
    words = ("BOS", *(f"<{kind}>" for kind in kinds), *(f"</{kind}>" for kind in kinds), "text")
    opening, closing, size = (1, 2, 3), (4, 5, 6), len(words)  # as in `_tags`
    sign = np.zeros((size, 1))
    sign[list(opening)], sign[list(closing)] = 1, -1
    recency = np.arange(n_ctx)[None] * 4.0

    def draw(_number: int, rng: np.random.Generator) -> Drawn:
        clean, right = _tags(n_ctx, rng)
        while True:
            corrupt, wrong = _tags(n_ctx, rng)
            if wrong != right:
                return Drawn(clean, corrupt, n_ctx - 1)

    program = Program(
        name="tag-stack",
        words=words,
        n_ctx=n_ctx,
        operations=(
            Attend(writes="balance", value=TOKEN, through=sign),
            _depth("depth", "balance", n_ctx),
            lookup("unread", TOKEN, size),
            Attend(
                writes="open",
                value=TOKEN,
                through=selection(size, [[token] for token in opening]),
                score=(
                    equal("depth", "depth", 2, 4 * n_ctx),
                    prefer(TOKEN, size, opening, 4 * n_ctx),
                    # Of several, the last.
                    Match(query=None, key=POSITION, weight=recency),
                ),
            ),
        ),
        output="open",
        unembed=selection(size, [[token] for token in closing]).T,
    )
    return Entry(what="closes the innermost open tag, two deep at most", program=program, draw=draw)


def _tags(length: int, rng: np.random.Generator) -> tuple[list[int], int]:
    """Random well-formed tags of depth at most 2 with at least one open at the end, and the innermost one's kind."""
    while True:
        found, stack = [BOS], list[int]()
        while len(found) < length:
            choice = int(rng.integers(3))
            if choice == 0 and len(stack) < 2:
                stack.append(int(rng.integers(3)))
                found.append(1 + stack[-1])
            elif choice == 1 and stack:
                found.append(4 + stack.pop())
            elif choice == 2:
                found.append(7)
        if stack:
            return found, stack[-1]


def _depth(writes: str, balance: str, n_ctx: int) -> Apply:
    """Depth 1 or 2, one-hot, from the mean of +1 (opens) and -1 (closes) over the tokens so far.

    At position p the depth is x = (p + 1) mean. Two neurons a position, relu(x) and relu(x - 1), silent elsewhere;
    depth 1 is relu(x) - 2 relu(x - 1), depth 2 is relu(x - 1).
    """
    gate = n_ctx + 1.0
    position, step = np.divmod(np.arange(2 * n_ctx), 2)
    reads = {balance: position[None] + 1.0, POSITION: gate * np.eye(n_ctx)[:, position]}
    out = np.array([[1.0, 0.0], [-2.0, 1.0]])[step]
    return Apply(writes=writes, reads=reads, bias=-step - gate, out=out, shift=np.zeros(2))


def _counting(name: str, what: str, steps: bool) -> Entry:
    """More of one letter than of the other? The answer is a step (majority) or the difference (fraction)."""
    words, n_ctx = ("BOS", "a", "b", "more a", "more b"), 12
    size = len(words)
    sign = np.zeros((size, 1))
    sign[1], sign[2] = 1, -1
    # An odd number of letters: the mean over them and BOS is at least 1 / n_ctx away from 0.
    slope = n_ctx / 2

    def with_more(rng: np.random.Generator, more: int) -> list[int]:
        while True:
            found = letters(rng, n_ctx - 1, 3)
            if (found.count(1) > found.count(2)) == (more == 1):
                return [BOS, *found]

    def draw(number: int, rng: np.random.Generator) -> Drawn:
        return Drawn(with_more(rng, 1 + number % 2), with_more(rng, 2 - number % 2), n_ctx - 1)

    majority = Apply(
        writes="majority",
        reads={"balance": slope * np.array([[1.0, 1.0, -1.0, -1.0]])},
        bias=np.array([0.5, -0.5, 0.5, -0.5]),
        out=np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]),
        shift=np.zeros(2),
    )
    first = related(POSITION, POSITION, n_ctx, lambda _position: 1)
    reads = {"unread": np.eye(size)}
    unread = Apply(writes="unread too", reads=reads, bias=np.zeros(size), out=np.eye(size), shift=np.zeros(size))
    counted = sign if steps else selection(size, [[1], [2]])
    program = Program(
        name=name,
        words=words,
        n_ctx=n_ctx,
        operations=(
            Attend(writes="balance", value=TOKEN, through=counted),
            lookup("unread", TOKEN, size, first),
            *((majority,) if steps else ()),
            unread,
        ),
        output="majority" if steps else "balance",
        unembed=selection(size, [[3], [4]]).T,
    )
    return Entry(what=what, program=program, draw=draw)


def _reverser() -> Entry:
    words, n_ctx, sep = ("BOS", *ascii_lowercase[:6], "SEP"), 12, 7
    size = len(words)

    def source(sep_at: int, position: int) -> int | None:
        """Position of the letter that comes next at this position."""
        found = 2 * sep_at - position - 1
        return found if sep_at <= position and found >= 1 else None

    def draw(number: int, rng: np.random.Generator) -> Drawn:
        def prompt(text: list[int]) -> list[int]:
            return [BOS, *text, sep, *reversed(text)][:n_ctx]

        n = int(rng.integers(6, 11))
        drawn = letters(rng, n, sep)
        place = 2 * (n + 1) - n_ctx  # of the next letter
        if number % 2:
            other = list(drawn)
            other[place - 1] = another(drawn[place - 1], range(1, sep), rng)
            return Drawn(prompt(drawn), prompt(other), n_ctx - 1)
        while True:
            m = another(n, range(6, 11), rng)
            other = letters(rng, m, sep)
            if other[2 * (m + 1) - n_ctx - 1] != drawn[place - 1]:
                return Drawn(prompt(drawn), prompt(other), n_ctx - 1)

    program = Program(
        name="reverser",
        words=words,
        n_ctx=n_ctx,
        operations=(
            lookup("separator at", POSITION, n_ctx, prefer(TOKEN, size, [sep])),
            lookup("unread", TOKEN, size),
            table("source", ("separator at", n_ctx), (POSITION, n_ctx), n_ctx, source),
            lookup("next", TOKEN, size, equal("source", POSITION, n_ctx)),
        ),
        output="next",
        unembed=np.eye(size),
    )
    return Entry(what="predicts the letters before SEP in reverse order", program=program, draw=draw)


def _either() -> Entry:
    words, n_ctx, mark = ("BOS", "a", "b", "mark", "there", "not there"), 12, 3
    size = len(words)
    count = np.zeros((size, 1))
    count[mark] = n_ctx

    def draw(_number: int, rng: np.random.Generator) -> Drawn:
        corrupt = [BOS, *letters(rng, n_ctx - 1, mark)]
        clean = list(corrupt)
        clean[int(rng.integers(1, n_ctx))] = mark
        return Drawn(clean, corrupt, n_ctx - 1)

    # x + y - relu(x + y - 1) for x, y of 0 or 1.
    either = Apply(
        writes="either",
        reads={"seen": np.array([[1.0, 1.0]]), "seen too": np.array([[1.0, 1.0]])},
        bias=np.array([0.0, -1.0]),
        out=np.array([[1.0, -1.0], [-1.0, 1.0]]),
        shift=np.array([0.0, 1.0]),
    )
    program = Program(
        name="either",
        words=words,
        n_ctx=n_ctx,
        operations=(
            Attend(writes="seen", value=TOKEN, through=count),
            Attend(writes="seen too", value=TOKEN, through=count),
            lookup("unread", TOKEN, size),
            either,
        ),
        output="either",
        unembed=selection(size, [[4], [5]]).T,
    )
    what = "predicts whether the mark occurs, found by either of two heads"
    return Entry(what=what, program=program, draw=draw, redundant=True)


LIBRARY: Mapping[str, Entry] = {
    entry.program.name: entry
    for entry in (
        _copier(),
        _induction(),
        _tag_stack(),
        _counting("majority", "predicts the more frequent of two letters", steps=True),
        _counting("fraction", "predicts the difference of the shares of two letters", steps=False),
        _reverser(),
        _either(),
        mirror(),
        histogram(),
    )
}
