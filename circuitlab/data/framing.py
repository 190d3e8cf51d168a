"""The text around both prompts of a pair: the chat template of the model, and solved examples (few-shot prompting).

A prompt is the user's message of a chat, as the checkpoint's own template writes it, and the answer is the beginning of
the assistant's reply; or the prompt begins the reply to a given message, and the answer goes on. Solved examples
(shots) come before the prompt as text, or in a chat as earlier turns. The text is the same around the clean and the
corrupted prompt, so that the two differ only where they did.

As in other evaluations under chat templates, the space in front of an answer is dropped: a reply does not begin with
one. Where the template itself writes white space between the end of the user's message and the reply, the answer
begins with that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Protocol, runtime_checkable

from circuitlab.data.encoded import Rejection, TextEncoder
from circuitlab.data.encoding import encode_example
from circuitlab.data.example import CharRange, Example
from circuitlab.data.pair import Pair
from circuitlab.data.prompting import Prompting
from circuitlab.data.token_spans import chars_of_tokens
from circuitlab.errors import CircuitLabError, ModelError, SpanError, TaskError, shown

POOL = 8  # shots are chosen among so many times as many, so that their answers differ
USER, ASSISTANT = "user", "assistant"
PROMPT, REPLY = "circuitlab-prompt", "circuitlab-reply"  # where a template writes a message is found with these


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a chat.

    Attributes:
        role: `user` or `assistant`.
        content: The text.
    """

    role: str
    content: str


@runtime_checkable
class ChatEncoder(TextEncoder, Protocol):
    """A tokenizer that can write a chat."""

    def chat(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        """Messages as the checkpoint's chat template writes them; with `reply`, to where the next reply begins.

        If the last message is the assistant's, it is left open with `reply`.

        Returns:
            The text.
        """
        ...

    def for_chat(self) -> TextEncoder:
        """The tokenizer for texts of a template, which has its own beginning-of-sequence token if it wants one.

        Returns:
            The tokenizer without tokens in front.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFrame:
    """The text around every prompt.

    Attributes:
        before: Before each clean and each corrupted prompt.
        after: After it, up to the answer.

    Example:
        >>> PromptFrame(before="2+2=4 ").shown
        '2+2=4 [prompt]'
    """

    before: str = ""
    after: str = ""

    @property
    def shown(self) -> str:
        """The text with `[prompt]` in the place of a prompt."""
        return f"{self.before}[prompt]{self.after}"

    @property
    def sentence(self) -> str:
        """The same as a sentence on one line."""
        return f"every prompt is written as {self.shown!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One solved example.

    Attributes:
        prompt: The clean prompt.
        answer: One of its answers.
        at: The character of the prompt at which the answer stands.
    """

    prompt: str
    answer: str
    at: int

    @classmethod
    def of(cls, example: Example, rng: Random, text: TextEncoder) -> Shot:
        """Solve an example by one of its answers.

        Args:
            example: The example.
            rng: Chooses the answer, if there are several.
            text: The tokenizer, for answers that are token ids.

        Returns:
            The solved example.
        """
        answers = example.answers or tuple(text.joined((one,)) for one in example.answer_ids)
        at = len(example.clean) if example.answer_at is None else example.answer_at
        return cls(prompt=example.clean, answer=rng.choice(answers), at=at)

    @property
    def solved(self) -> str:
        """The prompt with its answer."""
        return self.prompt[: self.at] + self.answer + self.prompt[self.at :]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Framing:
    """Makes pairs of examples, with the text around their prompts.

    Attributes:
        text: The tokenizer.
        whole_answers: Accept answers of several tokens.
        frame: The text around every prompt.
        turns: Earlier turns of the chat; None without a chat.
        lead: White space that the template writes in front of a reply.
        reply_to: As in `Prompting`.
        solved: The prompts of the solved examples.
    """

    text: TextEncoder
    whole_answers: bool = False
    frame: PromptFrame | None = None
    turns: tuple[Message, ...] | None = None
    lead: str = ""
    reply_to: str | None = None
    solved: frozenset[str] = frozenset()

    def shows(self, example: Example) -> bool:
        """Whether a prompt of an example is that of a solved example.

        Returns:
            Whether it is, so that the example is no pair.
        """
        return bool(self.solved & {example.clean, example.corrupt})

    def encode(self, example: Example) -> Pair | Rejection:
        """Check one example against the tokenizer; see `encode_example`.

        Returns:
            The pair, without split and id; or the reason why not.

        Raises:
            ModelError: The chat template refuses the prompt.
        """
        if self.frame is None:
            return encode_example(example, self.text, whole_answers=self.whole_answers)
        try:
            framed = self._framed(example, self.frame)
        except CircuitLabError as error:
            if isinstance(error, ModelError):
                raise
            kind = type(error) if isinstance(error, TaskError) else TaskError
            return Rejection(kind, "the text around the prompt does not fit it", str(error))
        text = self.text if self.turns is None else _chat_encoder(self.text).for_chat()
        made = encode_example(framed, text, whole_answers=self.whole_answers)
        if isinstance(made, Rejection):
            return made
        return replace(made, around=(len(self.frame.before), len(self.frame.after)))

    def _framed(self, example: Example, frame: PromptFrame) -> Example:
        """The example with the text around both prompts; its spans move along.

        Raises:
            TaskError: The template changes the prompt, or it is judged inside of a message.
            SpanError: The template removes what a span covers.
        """
        if self._answered and example.answer_at is not None:
            raise TaskError(
                f"prompt {shown(example.clean)} goes on after the place of its answer (answer_at), but in a chat the "
                "answer is the reply to it. Begin the reply with it (--reply-to), leave chat (--chat) out, or end the "
                "prompt there."
            )
        clean, cut = self._written(example.clean, frame)
        corrupt, corrupt_cut = (None, 0) if example.corrupt is None else self._written(example.corrupt, frame)
        n = len(frame.before)
        known = {**example.spans, **chars_of_tokens(example, self.text)}
        spans = {name: _moved(name, ends, clean, cut, n) for name, ends in known.items()}
        twin = example.corrupt_spans if corrupt is not None else {}
        corrupt_spans = {name: _moved(name, ends, corrupt or "", corrupt_cut, n) for name, ends in twin.items()}
        clean = f"{frame.before}{clean}{frame.after}"
        corrupt = None if corrupt is None else f"{frame.before}{corrupt}{frame.after}"
        if spans:
            spans |= _around(frame, len(clean), spans, chat=self.turns is not None)
        words = (example.answers, example.distractors)
        answers, distractors = (tuple(map(self._begun, some)) for some in words) if self._answered else words
        return replace(
            example, clean=clean, corrupt=corrupt, answer=answers, distractor=distractors or None, spans=spans,
            corrupt_spans=corrupt_spans, token_spans={},
            answer_at=None if example.answer_at is None else example.answer_at + n,
        )  # fmt: skip

    def _written(self, prompt: str, frame: PromptFrame) -> tuple[str, int]:
        """The prompt as it stands in the text, and how many of its first characters the template removed."""
        if self.turns is None:
            return prompt, 0
        text = _chat_encoder(self.text).chat((*self.turns, *_asked(prompt, self.reply_to)))
        for kept in (prompt, prompt.strip(), prompt.lstrip(), prompt.rstrip()):
            if text == f"{frame.before}{kept}{frame.after}":
                return kept, prompt.index(kept)
        raise TaskError(
            f"the chat template does not write {shown(prompt)} as it is between the texts that it writes around other "
            "prompts, so that the places of its words are not known. Leave such prompts out, or leave chat (--chat) "
            "out."
        )

    @property
    def _answered(self) -> bool:
        """Whether a prompt is a message of its own, which the reply answers."""
        return self.turns is not None and self.reply_to is None

    def _begun(self, word: str) -> str:
        """An answer as the beginning of a reply."""
        return self.lead + reply_of(word)


def framing_of(
    text: TextEncoder, prompting: Prompting, shots: Sequence[Shot], *, whole_answers: bool = False
) -> Framing:
    """Decide the text around every prompt.

    Args:
        text: The tokenizer.
        prompting: What is to stand there.
        shots: The solved examples.
        whole_answers: Accept answers of several tokens.

    Returns:
        What makes pairs of examples.

    Raises:
        ModelError: The tokenizer has no chat template, or one that cannot be used.
    """
    common: Any = {"text": text, "whole_answers": whole_answers, "solved": frozenset(shot.prompt for shot in shots)}
    if not prompting.chat:
        before = "".join(shot.solved + prompting.separator for shot in shots)
        return Framing(frame=PromptFrame(before=before) if before else None, **common)
    encoder = _chat_encoder(text)
    turns = tuple(message for shot in shots for message in _turn(shot, prompting.reply_to))
    marker = PROMPT
    while any(marker in turn.content for turn in (*turns, *_asked("", prompting.reply_to))):
        marker += "-"
    asked = (*turns, *_asked(marker, prompting.reply_to))
    written = encoder.chat(asked)
    before, found, after = written.partition(marker)
    if not found or marker in after:
        raise ModelError(
            f"the chat template of this model writes the user's message {written.count(marker)} times, so that the "
            "place of a prompt is not known. Leave chat (--chat) out, or use another model."
        )
    lead = "" if prompting.reply_to else _lead(encoder, asked, written)
    frame = PromptFrame(before=before, after=after)
    return Framing(frame=frame, turns=turns, lead=lead, reply_to=prompting.reply_to, **common)


def balanced(shots: Iterable[Shot], wanted: int) -> list[Shot]:
    """Some of the shots, in their order, but those first whose answer was taken least often.

    Args:
        shots: Solved examples.
        wanted: How many to take.

    Returns:
        The shots that were taken; fewer if there are fewer.
    """
    left, taken, counts = list(shots), list[Shot](), Counter[str]()
    while left and len(taken) < wanted:
        one = min(left, key=lambda shot: counts[shot.answer])
        left.remove(one)
        taken.append(one)
        counts[one.answer] += 1
    return taken


def reply_of(word: str) -> str:
    """An answer as a message: without the space that separates it from a prompt.

    Returns:
        The answer.
    """
    return word.removeprefix(" ") or word


def _asked(prompt: str, reply_to: str | None) -> tuple[Message, ...]:
    """The last messages of a chat: the prompt, or a message and the prompt as the beginning of the reply."""
    if reply_to is None:
        return (Message(role=USER, content=prompt),)
    return Message(role=USER, content=reply_to), Message(role=ASSISTANT, content=prompt)


def _turn(shot: Shot, reply_to: str | None) -> tuple[Message, ...]:
    """A solved example as two turns of a chat."""
    if reply_to is not None:
        return _asked(shot.solved, reply_to)
    if shot.at < len(shot.prompt):
        raise TaskError(
            f"prompt {shown(shot.prompt)} goes on after the place of its answer (answer_at), so that it is no turn of "
            "a chat. Begin the reply with it (--reply-to), or leave chat (--chat) or shots (--shots) out."
        )
    return Message(role=USER, content=shot.prompt), Message(role=ASSISTANT, content=reply_of(shot.answer))


def _lead(encoder: ChatEncoder, asked: tuple[Message, ...], written: str) -> str:
    """White space between the end of a prompt and a reply, in a chat that has the reply."""
    try:
        replied = encoder.chat((*asked, Message(role=ASSISTANT, content=REPLY)), reply=False)
    except ModelError:
        return ""
    lead = replied.removeprefix(written).partition(REPLY)[0]
    return lead if replied.startswith(written) and lead.isspace() else ""


def _chat_encoder(text: TextEncoder) -> ChatEncoder:
    if isinstance(text, ChatEncoder):
        return text
    raise ModelError(
        f"the tokenizer of this model ({type(text).__name__}) cannot write chats. Give it the methods chat and "
        "for_chat, or leave chat (--chat) out."
    )


def _moved(name: str, ends: CharRange, kept: str, cut: int, n: int) -> CharRange:
    start, end = max(ends[0] - cut, 0), min(ends[1] - cut, len(kept))
    if start >= end:
        raise SpanError(f"span {name!r} covers white space at an end of {shown(kept)}, which the template removes.")
    return start + n, end + n


def _around(frame: PromptFrame, length: int, spans: Mapping[str, CharRange], *, chat: bool) -> dict[str, CharRange]:
    """Spans of the text around a prompt, under names that the task does not have."""
    found = dict[str, CharRange]()
    parts = {"chat" if chat else "shots": (0, len(frame.before)), "reply": (length - len(frame.after), length)}
    for name, (start, end) in parts.items():
        while name in spans:
            name = f"({name})"
        if start < end:
            found[name] = (start, end)
    return found
