"""Pairs from a table: no draws, but rows, each checked against the model's tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from circuitlab.data.encoded import Rejection, TextEncoder
from circuitlab.data.example import Example
from circuitlab.data.framing import POOL, Framing, Shot, balanced, framing_of
from circuitlab.data.pair import Pair
from circuitlab.data.pairs import PairSplits
from circuitlab.data.prompting import PLAIN, Prompting
from circuitlab.data.sampling import REFERENCE, SPLITS, GrowingSplits, check_number
from circuitlab.data.tables.layouts import SPAN
from circuitlab.data.tables.rows import FILES
from circuitlab.data.tables.table import MOST_CHECKED, BadRow, PairRow, PairTable
from circuitlab.errors import PairLengthError, SpanError, TableError, TooFewPromptsError
from circuitlab.resources import DEFAULT, Resources

VALIDATION = "validation"
REPEATED, SHARED = "rows with the prompts of another row", "rows with a prompt of the other split"
SOLVED = "rows with the prompt of a solved example"


def table_pairs(
    table: PairTable,
    text: TextEncoder,
    n: int,
    seed: int,
    *,
    metric: str | Callable[..., Any],
    with_reference: bool = False,
    exclude: Collection[str] = (),
    by_column: bool = True,
    n_ctx: int | None = None,
    whole_answers: bool = False,
    prompting: Prompting = PLAIN,
    resources: Resources = DEFAULT,
) -> PairSplits:
    """Take `n` discovery and `n` held-out rows, and as many reference rows if requested; see `Task.pairs`.

    With a column of splits, these are the first rows of each split. Without one, or with `by_column=False`, the seed
    decides which rows belong to which split. Either way they stay in the order of the table.

    Returns:
        The splits, and how many rows were left out for which reason.

    Raises:
        ConfigError: `n` is out of range.
        TooFewPromptsError: There are fewer rows than requested.
        TableError: More rows are bad than allowed; the message names them.
    """
    divided = by_column and bool(table.split_column)
    check_rows(table, n, with_reference=with_reference, by_column=by_column, shots=prompting.shots)
    shots = _shots(table, text, seed, prompting.shots, divided=divided)
    framing = framing_of(text, prompting, [shot for _, shot in shots], whole_answers=whole_answers)
    rows = _Rows(table, framing, n_ctx)
    if len(table.rows) <= MOST_CHECKED:
        for place in range(len(table.rows)):
            rows.pair(place)
            resources.progress("rows", place + 1, len(table.rows))
    splits, left_out = GrowingSplits(n, exclude), Counter[str]()
    tried, seen = {place for place, _ in shots}, set[tuple[str, str | None]]()
    for parts, places in _queues(table, seed, exclude, divided=divided, with_reference=with_reference):
        for place in places:
            if splits.full(parts):
                break
            pair = None if place in tried else rows.pair(place)
            tried.add(place)
            if pair is None:
                continue
            if (pair.clean, pair.corrupt) in seen:
                left_out[REPEATED] += 1
            elif framing.shows(table.rows[place].example):
                left_out[SOLVED] += 1
            elif not splits.place(pair, parts):
                left_out[SHARED] += 1
            seen.add((pair.clean, pair.corrupt))
    bad = table.judged(rows.bad)
    wanted = (*SPLITS, REFERENCE)[: 2 + with_reference]
    if not splits.full(wanted):
        raise _too_few(table, n, splits, wanted, left_out + Counter(bad))
    splits.sort()
    return PairSplits(
        discovery=splits.named("discovery", metric),
        held_out=splits.named("held_out", metric),
        reference=splits.named(REFERENCE, metric) if with_reference else None,
        dropped={**bad, **left_out},
        differ_in=divided_by(table) if divided else "",
        frame=framing.frame,
    )


def _shots(table: PairTable, text: TextEncoder, seed: int, wanted: int, *, divided: bool) -> list[tuple[int, Shot]]:
    """Rows that are solved examples, of different prompts, with their places; rows of discovery, if there are splits.

    Raises:
        TooFewPromptsError: There are fewer.
    """
    places = _by_split(table)["discovery"] if divided else range(len(table.rows))
    rng, found = Random(f"shots of a table/{seed}"), dict[str, tuple[int, Shot]]()
    for place in rng.sample(places, len(places)) if wanted else ():
        example = table.rows[place].example
        found.setdefault(example.clean, (place, Shot.of(example, rng, text)))
        if len(found) == POOL * wanted:
            break
    if len(found) < wanted:
        raise TooFewPromptsError(
            f"{table.source}: shots={wanted} needs as many rows of different prompts, but there are {len(found)}. Ask "
            f"for fewer (--shots {len(found)}), or give more rows."
        )
    return [found[shot.prompt] for shot in balanced((shot for _, shot in found.values()), wanted)]


def check_rows(
    table: PairTable, n: int, *, with_reference: bool = False, by_column: bool = True, shots: int = 0
) -> None:
    """Refuse more pairs than a table has, before anything is loaded.

    Raises:
        ConfigError: `n` is out of range.
        TableError: One split has no row.
        TooFewPromptsError: There are fewer rows than requested.
    """
    check_number(n)
    if not (by_column and table.split_column):
        parts = 2 + with_reference
        if len(table.rows) < parts * n + shots:
            kinds = "discovery, held-out and reference" if with_reference else "discovery and held-out"
            besides = f" besides {shots} solved examples" if shots else ""
            raise TooFewPromptsError(
                f"{table.source} has {len(table.rows):,} pairs, but n={n} needs {parts * n:,}: {n} {kinds} pairs "
                f"each{besides}. {_advice(max(len(table.rows) - shots, 0) // parts, shots)}"
            )
        return
    counts = _counts(table)
    for name in SPLITS:
        if not counts[name]:
            raise TableError(
                f"{table.source} has no {name.replace('_', '-')} rows: column {table.split_column!r} says "
                f"{', '.join(sorted({row.split for row in table.rows}))} only. Give rows of both, or have them divided "
                "by the seed: split='random' (--split random)."
            )
    counts["discovery"] = max(counts["discovery"] - shots, 0)
    fewest = min(counts[name] for name in SPLITS)
    if fewest < n:
        besides = f" besides {shots} solved examples" if shots else ""
        raise TooFewPromptsError(
            f"{table.source} has {counts['discovery']:,} discovery and {counts['held_out']:,} held-out pairs by column "
            f"{table.split_column!r}{besides}, but n={n}. {_advice(fewest, shots)}"
        )
    spare = counts[REFERENCE] or counts["discovery"] - n
    if with_reference and spare < n:
        raise TooFewPromptsError(
            f"{table.source} has {spare:,} rows for reference pairs, which this ablation needs besides the others, but "
            f"n={n}. {_advice(max(spare, counts['discovery'] // 2))}"
        )


def usual_number(
    table: PairTable, most: int, *, with_reference: bool = False, by_column: bool = True, shots: int = 0
) -> int:
    """Pairs per split where no number is given: as many as a table has for certain, and at most `most`.

    Returns:
        The number; `most` if there is not one pair a split, so that `check_rows` says why.
    """
    spare = table.options.max_bad_rows - table.n_dropped
    if by_column and table.split_column:
        counts = _counts(table)
        counts["discovery"] -= shots
        found = min(counts[name] for name in SPLITS)
        if with_reference:
            found = min(found, counts[REFERENCE] or counts["discovery"] // 2)
        found -= spare
    else:
        found = (len(table.rows) - spare - shots) // (2 + with_reference)
    return min(most, found) if found > 0 else most


def _advice(fewest: int, shots: int = 0) -> str:
    if fewest:
        return f"Ask for at most {fewest} (-n {fewest})."
    return "Give more rows, or fewer shots (--shots)." if shots else "Give more rows."


def _by_split(table: PairTable) -> dict[str, list[int]]:
    """The places of the rows of each split; validation rows are held out where there are no test rows."""
    tested = any(row.split == "held_out" for row in table.rows)
    found: dict[str, list[int]] = {name: [] for name in (*SPLITS, REFERENCE)}
    for place, row in enumerate(table.rows):
        name = (REFERENCE if tested else "held_out") if row.split == VALIDATION else row.split
        found[name].append(place)
    return found


def _counts(table: PairTable) -> dict[str, int]:
    return {name: len(places) for name, places in _by_split(table).items()}


def _queues(
    table: PairTable, seed: int, known: Collection[str], *, divided: bool, with_reference: bool
) -> Iterator[tuple[tuple[str, ...], Sequence[int]]]:
    """Which splits take which rows, in the order in which they are offered."""
    if divided:
        places = _by_split(table)
        for name in SPLITS:
            yield (name,), places[name]
        if with_reference:
            yield (REFERENCE,), places[REFERENCE] or places["discovery"]
        return
    shuffled = Random(f"table/{seed}").sample(range(len(table.rows)), len(table.rows))
    seen = frozenset(known)
    # Rows that may be in no held-out split come first: they take no place that another row could take.
    shuffled.sort(key=lambda place: not {table.rows[place].example.clean, table.rows[place].example.corrupt} & seen)
    yield SPLITS, shuffled
    if with_reference:
        yield (REFERENCE,), shuffled


class _Rows:
    """The rows of a table as pairs of a model, each made once."""

    def __init__(self, table: PairTable, framing: Framing, n_ctx: int | None) -> None:
        self._table, self._framing, self._n_ctx = table, framing, n_ctx
        self._made = dict[int, Pair | None]()
        self.bad: list[BadRow] = []

    def pair(self, place: int) -> Pair | None:
        """The pair of a row, its place as id; None where the model cannot be given it."""
        if place not in self._made:
            found = self._encoded(self._table.rows[place])
            if isinstance(found, BadRow):
                self.bad.append(found)
            self._made[place] = None if isinstance(found, BadRow) else replace(found, id=f"{place:08d}")
        return self._made[place]

    def _encoded(self, row: PairRow) -> Pair | BadRow:
        if row.length is not None and (n := self._n_words(row.example.clean) + 1) != row.length:
            rule = f"is no length of this prompt, which has {n} tokens for this model, one in front counted"
            return self._bad(row, "length", row.length, rule, "the length is that of another tokenizer")
        made = self._framing.encode(row.example)
        if isinstance(made, Rejection):
            return self._rejected(row, made)
        n = len(made) + made.n_appended * bool(len(made))
        if not n or (self._n_ctx is not None and n > self._n_ctx):
            holds = f"; the context of the model holds {self._n_ctx:,}" if n else ""
            return self._bad(row, "clean", row.example.clean, f"has {n:,} tokens{holds}")
        return made

    def _n_words(self, prompt: str) -> int:
        """Tokens of a prompt without those that the tokenizer puts in front."""
        return sum(start < end for start, end in self._framing.text.encode(prompt).offsets)

    def _rejected(self, row: PairRow, why: Rejection) -> BadRow:
        """A rejection with the column that it is about."""
        one = row.example
        if why.kind is PairLengthError:
            return self._bad(row, "corrupt", one.corrupt, f"does not line up: {why.message}", why.reason)
        if why.kind is SpanError:
            named = [name for name in (*one.spans, *one.token_spans) if repr(name) in why.reason]
            return self._bad(
                row, SPAN + named[0] if named else "clean", one.clean, f"does not line up: {why.message}", why.reason
            )
        bare = replace(one, distractor=None, distractor_ids=())
        alone = self._framing.encode(bare)
        name = "answer" if isinstance(alone, Rejection) else "distractor"
        ids = one.answer_ids if name == "answer" else one.distractor_ids
        words = one.answers if name == "answer" else one.distractors
        values = [value for value in (ids or words) if repr(value) in why.reason or f" {value} " in f" {why.reason} "]
        value = values[0] if values else (ids or words)[0]
        return self._bad(row, f"{name}_id" if ids else name, value, f"does not serve: {why.message}", why.reason)

    def _bad(self, row: PairRow, name: str, value: object, rule: str, reason: str = "") -> BadRow:
        column = self._table.columns.get(name, self._table.columns.get("spans", name))
        return BadRow(number=row.number, column=column, value=value, rule=rule, reason=reason)


def row_draw(table: PairTable) -> Callable[..., Example]:
    """A function that draws single rows of a table, as `Task.draw` does.

    Returns:
        `draw(rng)`, with a parameter `split` where the table has splits.
    """
    if not table.split_column:
        return lambda rng: rng.choice(table.rows).example
    places = _by_split(table)

    def draw(rng: Random, split: str = "any") -> Example:
        return table.rows[rng.choice(places.get(split) or range(len(table.rows)))].example

    return draw


def divided_by(table: PairTable) -> str:
    """What held-out rows do not share with discovery rows, in words; empty without a column of splits.

    Returns:
        The words.
    """
    if not table.split_column:
        return ""
    where = "the files divide" if table.split_column == FILES else f"column {table.split_column!r} divides"
    return f"rows, as {where} them"


def _too_few(
    table: PairTable, n: int, splits: GrowingSplits, wanted: tuple[str, ...], left_out: Counter[str]
) -> TooFewPromptsError:
    counts: dict[str, int] = dict(zip((*SPLITS, REFERENCE), splits.counts, strict=True))
    found = ", ".join(f"{counts[name]} {name.replace('_', '-')}" for name in wanted)
    why = "; ".join(f"{count} {reason}" for reason, count in left_out.most_common(3))
    return TooFewPromptsError(
        f"{table.source}: n={n}, but its rows gave {found} pairs that share no prompt"
        f"{f' (left out: {why})' if why else ''}. {_advice(min(counts[name] for name in wanted))}"
    )
