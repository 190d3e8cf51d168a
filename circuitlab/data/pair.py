"""A pair of prompts as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from circuitlab.summary import Summary, short

TokenRange = tuple[int, int]
WordIds = int | tuple[int, ...]  # of a word of one token its id, of several all of them


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Pair(Summary):
    """A clean prompt, with or without a corrupted one, as the model is given them.

    Attributes:
        id: Unique in its data set.
        clean: The clean text.
        corrupt: The corrupted text; None where the task has no corrupted prompts.
        answers: Right continuations of the clean prompt.
        distractors: Wrong continuations of the clean prompt, which answers are compared with; may be empty.
        clean_ids: Tokens of the clean prompt, beginning-of-sequence token included.
        corrupt_ids: As many tokens of the corrupted prompt, or None.
        answer_ids: One token id per answer; all of them in a tuple for an answer of several tokens.
        distractor_ids: The same per distractor.
        spans: Name -> half-open token range, the same in both prompts.
        clean_tokens: The clean tokens as text.
        corrupt_tokens: The corrupted tokens as text, or None.
        answer_at: The token of both prompts after which the answer would stand; None: the last one.
        around: How many characters of both texts are a chat template and solved examples: before the prompt, after it.
    """

    id: str
    clean: str
    corrupt: str | None
    answers: tuple[str, ...]
    distractors: tuple[str, ...]
    clean_ids: tuple[int, ...]
    corrupt_ids: tuple[int, ...] | None
    answer_ids: tuple[WordIds, ...]
    distractor_ids: tuple[WordIds, ...]
    spans: Mapping[str, TokenRange]
    clean_tokens: tuple[str, ...]
    corrupt_tokens: tuple[str, ...] | None
    answer_at: int | None = None
    around: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.clean_ids)

    @property
    def answer_tokens(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of each answer."""
        return tuple((ids,) if isinstance(ids, int) else ids for ids in self.answer_ids)

    @property
    def distractor_tokens(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of each distractor."""
        return tuple((ids,) if isinstance(ids, int) else ids for ids in self.distractor_ids)

    @property
    def judged_at(self) -> int:
        """The token whose next-token predictions are judged first."""
        return len(self) - 1 if self.answer_at is None else self.answer_at

    @property
    def prompts(self) -> frozenset[str]:
        """The clean prompt, and the corrupted one if there is one, without the text around them."""
        before, after = self.around
        texts = (self.clean,) if self.corrupt is None else (self.clean, self.corrupt)
        return frozenset(text[before : len(text) - after] for text in texts)

    @property
    def n_appended(self) -> int:
        """How many tokens of answers and distractors come after the prompt: all but the last of the longest word."""
        return max(map(len, self.answer_tokens + self.distractor_tokens)) - 1

    def to_record(self, split: str) -> dict[str, object]:
        """The pair as one line of `dataset.jsonl`.

        Returns:
            Texts, tokens, token ids and spans by name; JSON can hold them.
        """
        words = ("clean", "corrupt", "answers", "distractors", "clean_tokens", "corrupt_tokens")
        names = (*words, "clean_ids", "corrupt_ids", "answer_ids", "distractor_ids")
        record: dict[str, object] = {"id": self.id, "split": split}
        for name in names:
            value = getattr(self, name)
            record[name] = list(value) if isinstance(value, tuple) else value
        if self.answer_at is not None:
            record["answer_at"] = self.answer_at
        if any(self.around):
            record["around"] = list(self.around)
        record["spans"] = {name: list(span) for name, span in self.spans.items()}
        return record

    def _summary(self) -> str:
        return f"{self.id}: {short(self.clean, 40)} -> {short(self.answers, 20)}"
