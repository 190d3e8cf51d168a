"""From words to tokens: an `Example` checked against a model's real tokenizer becomes a `Pair`.

Token ids are found in context: the encoding of prompt + answer must be the encoding of the prompt and one token more,
or several where whole answers are judged.
What a tokenizer cannot serve comes back as a `Rejection` with the prompt, the tokens and the way out.
"""

from __future__ import annotations

from dataclasses import replace

from circuitlab.data.encoded import Encoded, Rejection, TextEncoder
from circuitlab.data.example import Example
from circuitlab.data.pair import Pair, WordIds
from circuitlab.data.token_spans import token_spans
from circuitlab.errors import PairLengthError, SpanError, TokenError

SEVERAL = "Metric answer_log_prob_diff (--metric answer_log_prob_diff) judges answers of several tokens."


def encode_example(example: Example, text: TextEncoder, *, whole_answers: bool = False) -> Pair | Rejection:
    """Check one example against the tokenizer.

    Args:
        example: The words.
        text: The tokenizer of the model.
        whole_answers: Accept answers and distractors of several tokens.

    Returns:
        The pair, without split and id; or the reason why not.
    """
    clean, corrupt = text.encode(example.clean), None if example.corrupt is None else text.encode(example.corrupt)
    if corrupt is not None and len(clean.ids) != len(corrupt.ids):
        return _length_rejection(example, clean, corrupt)
    before = example.clean[: example.answer_at]
    until = clean if example.answer_at is None else text.encode(before)
    if clean.ids[: len(until.ids)] != until.ids:
        return _no_boundary(example, before, clean)
    found = list[tuple[WordIds, ...]]()
    for words, given in ((example.answers, example.answer_ids), (example.distractors, example.distractor_ids)):
        ids = given_tokens(given, text) if given else _word_ids(example, words, until, text, whole_answers)
        if isinstance(ids, Rejection):
            return ids
        found.append(ids)
    answer_ids, distractor_ids = found
    if same := _same_token(example, answer_ids, distractor_ids) or _same_beginning(example, answer_ids, distractor_ids):
        return same
    spans = token_spans(example, clean, corrupt)
    if isinstance(spans, Rejection):
        return spans
    return Pair(
        id="",
        clean=example.clean,
        corrupt=example.corrupt,
        answers=text.decode(example.answer_ids) if example.answer_ids else example.answers,
        distractors=text.decode(example.distractor_ids) if example.distractor_ids else example.distractors,
        clean_ids=clean.ids,
        corrupt_ids=corrupt and corrupt.ids,
        answer_ids=answer_ids,
        distractor_ids=distractor_ids,
        spans=spans,
        clean_tokens=clean.tokens,
        corrupt_tokens=corrupt and corrupt.tokens,
        answer_at=None if example.answer_at is None else len(until.ids) - 1,
    )


def continuations(
    prompt: str, words: tuple[str, ...], encoded: Encoded, text: TextEncoder
) -> tuple[int, ...] | Rejection:
    """The token that each word is after a prompt, or why one of them is not one token.

    Args:
        prompt: The text before.
        words: What may come next.
        encoded: The prompt as tokens.
        text: The tokenizer of the model.

    Returns:
        Token ids, or the reason for the rejection.
    """
    ids = []
    for word in words:
        found = _following(prompt, word, encoded, text)
        if len(found) != 1:
            longer = text.encode(prompt + word)
            tail = list(longer.tokens[max(0, len(encoded.ids) - 1) :])
            message = (
                f"{word!r} is not one token after the prompt {prompt!r}: the text ends in the tokens {tail}, where the "
                f"prompt alone ends in {encoded.tokens[-1]!r}. Use an answer that this tokenizer has as one token "
                "(mind its leading space), or another model."
            )
            return Rejection(TokenError, f"{word!r} is not one token", message)
        ids += found
    return tuple(ids)


def _following(prompt: str, word: str, encoded: Encoded, text: TextEncoder) -> tuple[int, ...]:
    """The tokens of a word after a prompt; none if it changes the tokens of the prompt."""
    ids = text.encode(prompt + word).ids
    return ids[len(encoded.ids) :] if ids[: len(encoded.ids)] == encoded.ids else ()


def _alone(word: str, text: TextEncoder) -> tuple[int, ...]:
    """The tokens of a word by itself; none if they are not its text."""
    ids = tuple(one for one in text.encode(word).ids if one not in text.special_ids)
    return ids if text.joined(ids) == word else ()


def _word_ids(
    example: Example, words: tuple[str, ...], clean: Encoded, text: TextEncoder, whole_answers: bool
) -> tuple[WordIds, ...] | Rejection:
    """The token, or the tokens, of each answer or distractor; or why one cannot be served."""
    prompt, alone = example.clean[: example.answer_at], example.standalone_answers
    whole_answers = whole_answers and example.answer_at is None

    def tokens_of(word: str) -> tuple[int, ...]:
        return _alone(word, text) if alone else _following(prompt, word, clean, text)

    if not whole_answers:
        ids = standalone(words, text) if alone else continuations(prompt, words, clean, text)
        at_end = example.answer_at is None
        if isinstance(ids, Rejection) and at_end and any(len(tokens_of(word)) > 1 for word in words):
            return replace(ids, message=f"{ids.message} {SEVERAL}")
        return ids
    found = list[WordIds]()
    for word in words:
        ids = tokens_of(word)
        if not ids:
            one = standalone((word,), text) if alone else continuations(prompt, (word,), clean, text)
            assert isinstance(one, Rejection)
            return one
        found.append(ids[0] if len(ids) == 1 else ids)
    return tuple(found)


def standalone(words: tuple[str, ...], text: TextEncoder) -> tuple[int, ...] | Rejection:
    """The token that each word is by itself, or why one of them is not one token.

    Args:
        words: Texts, each of which the tokenizer has as one token.
        text: The tokenizer of the model.

    Returns:
        Token ids, or the reason for the rejection.
    """
    ids = []
    for word in words:
        made = text.encode(word)
        kept = [(one, token) for one, token in zip(made.ids, made.tokens, strict=True) if one not in text.special_ids]
        if len(kept) != 1 or kept[0][1] != word:
            message = (
                f"{word!r} is not one token by itself: {[token for _, token in kept]}. Use an answer that this "
                "tokenizer has as one token, or another model."
            )
            return Rejection(TokenError, f"{word!r} is not one token by itself", message)
        ids.append(kept[0][0])
    return tuple(ids)


def given_tokens(ids: tuple[int, ...], text: TextEncoder) -> tuple[int, ...] | Rejection:
    """Token ids that replace words, or why the tokenizer has no such words.

    Args:
        ids: The token ids.
        text: The tokenizer of the model.

    Returns:
        The same ids, or the reason for the rejection.
    """
    for one in ids:
        if one >= text.n_tokens or one in text.special_ids:
            what = f"only the tokens 0 to {text.n_tokens - 1:,}" if one >= text.n_tokens else "it as a special token"
            message = f"token {one} is no word of this tokenizer, which has {what}. Use the model that the ids are of."
            return Rejection(TokenError, f"token {one} is no word", message)
    return ids


def _words_of(example: Example) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Answers and distractors as texts, token ids among them."""
    answers = example.answers or tuple(map(str, example.answer_ids))
    return answers, example.distractors or tuple(map(str, example.distractor_ids))


def _same_beginning(
    example: Example, answer_ids: tuple[WordIds, ...], distractor_ids: tuple[WordIds, ...]
) -> Rejection | None:
    """Refuse an answer and a distractor of which one begins with the other, and is therefore never more likely."""
    answers, distractors = _words_of(example)
    for answer, right in zip(answers, answer_ids, strict=True):
        for distractor, wrong in zip(distractors, distractor_ids, strict=True):
            one, other = ((ids,) if isinstance(ids, int) else ids for ids in (right, wrong))
            n = min(len(one), len(other))
            if one[:n] == other[:n]:
                both = f"{answer!r} and {distractor!r}"
                message = (
                    f"{both} begin with the same {n} tokens after the prompt {example.clean!r}, and one of them has no "
                    "other: it is never less likely. Use words of which neither is the beginning of the other."
                )
                return Rejection(TokenError, f"{both} begin alike", message)
    return None


def _same_token(
    example: Example, answer_ids: tuple[WordIds, ...], distractor_ids: tuple[WordIds, ...]
) -> Rejection | None:
    """Refuse different words that are the same tokens, as for a tokenizer without capital letters."""
    seen: dict[WordIds, str] = {}
    answers, distractors = _words_of(example)
    for word, token in zip(answers + distractors, answer_ids + distractor_ids, strict=True):
        if token in seen:
            both = f"{seen[token]!r} and {word!r}"
            message = (
                f"{both} are the same token ({token}) after the prompt {example.clean!r}. Use words that are different "
                "tokens for this tokenizer, or another model."
            )
            return Rejection(TokenError, f"{both} are the same token", message)
        seen[token] = word
    return None


def _no_boundary(example: Example, before: str, clean: Encoded) -> Rejection:
    message = (
        f"answer_at is {example.answer_at}, after {before[-20:]!r}, and no token of {example.clean!r} begins there: "
        f"{list(clean.tokens)}. Give a place between two tokens; a space belongs to the word after it."
    )
    return Rejection(SpanError, "the answer's place is inside a token", message)


def _length_rejection(example: Example, clean: Encoded, corrupt: Encoded) -> Rejection:
    shared = next(
        (i for i, (a, b) in enumerate(zip(clean.ids, corrupt.ids, strict=False)) if a != b),
        min(len(clean.ids), len(corrupt.ids)),
    )
    message = (
        f"clean has {len(clean.ids)} tokens, corrupted {len(corrupt.ids)}: {example.clean!r} / "
        f"{example.corrupt!r}. They "
        f"part at token {shared} ({list(clean.tokens[shared : shared + 3])} / "
        f"{list(corrupt.tokens[shared : shared + 3])}). "
        "Position-wise patching needs equal lengths: choose words of as many tokens."
    )
    return Rejection(PairLengthError, "clean and corrupted differ in length", message)
