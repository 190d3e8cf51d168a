"""Checks of the contents of a task file: names, texts, answers and spans. Errors are one line."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping

from circuitlab.errors import SpanError, TaskError, shown

CharRange = tuple[int, int]
LONGEST_NAME = 100  # bytes: a run folder is named after its task, and file systems allow 255
LONGEST_LINE = 500

# What no tokenizer and no file format serves: NUL, and halves of surrogate pairs, which no UTF-8 text can hold.
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
# What a line may not hold besides: control characters, line ends, and marks that turn the direction of writing.
_NO_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NAME = re.compile(r"""[^\W_][^/\\:*?"<>|]*""")


def check_text(what: str, text: object) -> None:
    """Refuse what is not a text that can be tokenized and written down.

    Args:
        what: What it is, for the message.
        text: A prompt or an answer.

    Raises:
        TaskError: It is no `str`, is empty, or holds NUL or a lone surrogate.
    """
    if not isinstance(text, str):
        raise TaskError(f"{what} is {shown(text)}; it must be a text (str).")
    if not text:
        raise TaskError(f"{what} is empty; it must be a text of at least one character.")
    if found := _NO_TEXT.search(text):
        raise TaskError(
            f"{what} holds the character {found[0]!a} at place {found.start()}, which no UTF-8 text can hold: "
            f"{shown(text)}. Leave it out."
        )


def check_line(what: str, text: object, *, may_be_empty: bool = False) -> None:
    """Refuse what is not one line of text: a version, a summary, an option value, the name of a span.

    Raises:
        TaskError: It is no `str`, is empty or longer than `LONGEST_LINE`, or holds a line end or control character.
    """
    if not isinstance(text, str):
        raise TaskError(f"{what} is {shown(text)}; it must be a text (str).")
    if not text.strip() and not (may_be_empty and not text):
        raise TaskError(f"{what} is {text!r}; it must not be empty.")
    if len(text) > LONGEST_LINE:
        raise TaskError(f"{what} has {len(text):,} characters; at most {LONGEST_LINE} are allowed: {shown(text)}.")
    if found := _NO_LINE.search(text):
        raise TaskError(
            f"{what} holds the character {found[0]!a} at place {found.start()}; it must be one line without "
            f"control characters: {shown(text)}."
        )


def check_name(what: str, name: object, named_after: str = "run folders") -> None:
    """Refuse a name that no folder or file could be named after.

    Args:
        what: What it is, for the message.
        name: The name.
        named_after: What is named after it, for the message.

    Raises:
        TaskError: It is no `str`, does not begin with a letter or digit, holds a character that paths do not, or is too
            long.
    """
    check_line(what, name)
    if not _NAME.fullmatch(str(name)) or str(name) != str(name).strip(". "):
        raise TaskError(
            f'{what} is {name!r}; it must begin with a letter or digit, hold none of / \\ : * ? " < > | and end in no '
            f"space or full stop, because {named_after} are named after it."
        )
    if (length := len(str(name).encode())) > LONGEST_NAME:
        raise TaskError(f"{what} has {length} bytes; at most {LONGEST_NAME} are allowed: {shown(name)}.")


def check_mapping(what: str, value: object) -> Mapping[str, object]:
    """The value, if it is a mapping whose keys are lines of text.

    Returns:
        The same mapping.

    Raises:
        TaskError: It is not.
    """
    if not isinstance(value, Mapping):
        raise TaskError(f"{what} is {shown(value)}; it must be a mapping, such as a dict.")
    for key in value:
        check_line(f"a name in {what}", key)
    return value


def check_sequence(what: str, value: object, of: str) -> tuple[object, ...]:
    """The value as a tuple, if it is a list or tuple.

    Returns:
        Its items.

    Raises:
        TaskError: It is not. Sets have no order, and generators can be read only once.
    """
    if not isinstance(value, tuple | list):
        raise TaskError(f"{what} is {shown(value)}; it must be a tuple or list of {of}.")
    return tuple(value)


def check_words(what: str, words: object) -> tuple[str, ...]:
    """One word or several as a tuple.

    Returns:
        The words.

    Raises:
        TaskError: It is neither a text nor a tuple or list of texts, none is given, one is empty or occurs twice.
    """
    found = (words,) if isinstance(words, str) else check_sequence(what, words, "texts, or one text")
    for word in found:
        check_text(what, word)
    if len(set(found)) < len(found):
        twice = next(word for word in found if found.count(word) > 1)
        raise TaskError(f"{what} holds {shown(twice)} twice. Name every word once.")
    return tuple(map(str, found))


def check_spans(field: str, spans: object, text: str) -> dict[str, CharRange]:
    """Character ranges by name, if they lie inside a text.

    Args:
        field: Name of the field, for the message.
        spans: Name -> half-open character range.
        text: The prompt that they are in.

    Returns:
        The ranges as pairs of whole numbers.

    Raises:
        SpanError: They are no mapping, a range is not a pair of whole numbers, is empty or lies outside the text.
        TaskError: A name is not one line of text.
    """
    if not isinstance(spans, Mapping):
        raise SpanError(f"{field} of prompt {shown(text)} is {shown(spans)}; it must map names to character ranges.")
    found, prompt = {}, f"prompt {shown(text)}"
    for name, span in spans.items():
        check_line(f"the name of a span of {prompt}", name)
        ends = _whole_numbers(span)
        if ends is None:
            raise SpanError(
                f"span {name!r} of {prompt} is {shown(span)}; it must be a pair of whole numbers "
                "(start, end), a half-open range of characters."
            )
        if not 0 <= ends[0] < ends[1] <= len(text):
            raise SpanError(
                f"span {name!r} is {ends}, outside the {len(text)} characters of {prompt} or empty. Give "
                "the half-open character range (start, end) of a text in the prompt."
            )
        found[name] = ends
    return found


def check_ids(what: str, ids: object, words: tuple[str, ...]) -> tuple[int, ...]:
    """Token ids as a tuple.

    Returns:
        The ids.

    Raises:
        TaskError: They are no tuple or list of different whole numbers of at least 0, or there are words as well.
    """
    found = check_sequence(what, ids, "token ids")
    kept = tuple(one for one in found if isinstance(one, int) and not isinstance(one, bool) and one >= 0)
    if len(kept) < len(found):
        wrong = next(one for one in found if one not in kept or isinstance(one, bool))
        raise TaskError(f"{what} holds {shown(wrong)}; it must hold whole numbers of at least 0.")
    if len(set(kept)) < len(kept):
        raise TaskError(f"{what} holds a token twice. Name every token once.")
    if kept and words:
        raise TaskError(f"{what} stands beside the words {shown(list(words))}. Give words or token ids.")
    return kept


def check_token_spans(prompt: str, spans: object) -> dict[str, CharRange]:
    """Token ranges by name.

    Returns:
        The ranges as pairs of whole numbers.

    Raises:
        SpanError: They are no mapping, or a range is not a pair of whole numbers, begins below 0 or is empty.
        TaskError: A name is not one line of text.
    """
    if not isinstance(spans, Mapping):
        raise SpanError(f"token_spans of {prompt} is {shown(spans)}; it must map names to ranges of tokens.")
    found = {}
    for name, span in spans.items():
        check_line(f"the name of a span of {prompt}", name)
        ends = _whole_numbers(span)
        if ends is None or not 0 <= ends[0] < ends[1]:
            raise SpanError(f"span {name!r} of {prompt} is {shown(span)}; it must be (start, end), a range of tokens.")
        found[name] = ends
    return found


def _whole_numbers(span: object) -> CharRange | None:
    if not isinstance(span, tuple | list) or len(span) != 2 or any(isinstance(end, bool) for end in span):
        return None
    try:
        return operator.index(span[0]), operator.index(span[1])
    except TypeError:
        return None
