"""A clean prompt, with or without a corrupted one, in words.

An `Example` knows nothing of tokens: it is what a task module draws. `circuitlab.data.encoding` checks it against a
model's real tokenizer and makes a `Pair` of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from string import Formatter

from circuitlab.data.checks import (
    CharRange,
    check_ids,
    check_mapping,
    check_spans,
    check_text,
    check_token_spans,
    check_words,
)
from circuitlab.errors import SpanError, TaskError, shown
from circuitlab.summary import Summary, short

__all__ = ["CharRange", "Example"]


@dataclass(frozen=True, slots=True, repr=False)
class Example(Summary):
    """A clean prompt, its corrupted twin if it has one, and what a right answer is.

    Attributes:
        clean: The prompt whose behaviour is studied.
        corrupt: The same prompt with one thing changed. None for tasks without corrupted prompts, whose circuits are
            found under another ablation than "corrupt".
        answer: Right continuation of `clean` (several: any of them), with its leading space where it has one.
        distractor: Wrong continuation of `clean` that the answer is compared with, in the same form; often the right
            continuation of `corrupt`. None for metrics that need none (`log_prob`, `kl`, `accuracy`, `rank`).
        spans: Name -> half-open character range in `clean`. Token spans are found from these.
        corrupt_spans: The same names in `corrupt`, where they are known; they must fall on the same tokens.
        standalone_answers: Whether answers are the tokens that they are by themselves, even where the tokenizer would
            join them to the end of the prompt, as " 17" and "32" to " 1732".
        separate_spans: Whether the example is dropped if one token belongs to two spans, as " 1732" would to a
            century and a year.
        answer_ids: Tokens of a model in the place of right answers; `answer` is then `()`.
        distractor_ids: The same for wrong ones.
        token_spans: Name -> half-open range of tokens in both prompts, counted without a beginning-of-sequence token,
            for data that know tokens and not characters.
        answer_at: The character of `clean` at which the answer would stand, for prompts that go on after it; None: the
            end. Answers of such prompts are one token.

    Raises:
        TaskError: Both prompts are equal, a prompt or an answer is empty or no text, answer and distractor share a
            word or token, or words and tokens are given for the same.
        SpanError: A span is not a pair of whole numbers inside its prompt, or `corrupt_spans` has a name that `spans`
            has not, or is given without a corrupted prompt.

    Example:
        >>> example = Example("Ann is here;", "Ann is here.", answer=" she", distractor=" She")
        >>> example.clean
        'Ann is here;'
        >>> Example("Ann is here;", answer=" she").corrupt is None
        True
    """

    clean: str
    corrupt: str | None = None
    answer: str | tuple[str, ...] = ()
    distractor: str | tuple[str, ...] | None = None
    spans: Mapping[str, CharRange] = field(default_factory=dict)
    corrupt_spans: Mapping[str, CharRange] = field(default_factory=dict)
    standalone_answers: bool = False
    separate_spans: bool = False
    answer_ids: tuple[int, ...] = ()
    distractor_ids: tuple[int, ...] = ()
    token_spans: Mapping[str, CharRange] = field(default_factory=dict)
    answer_at: int | None = None

    def __post_init__(self) -> None:
        check_text("the clean prompt", self.clean)
        prompt = f"prompt {shown(self.clean)}"
        if self.corrupt is not None:
            check_text(f"the corrupted prompt of {prompt}", self.corrupt)
        elif self.corrupt_spans:
            raise SpanError(f"{prompt} has corrupt_spans, but no corrupted prompt. Give corrupt=, or leave them out.")
        if self.clean == self.corrupt:
            raise TaskError(
                f"clean and corrupted prompt are the same text: {self.clean!r}. Change what matters in one."
            )
        answers = check_words(f"the answer of {prompt}", self.answer)
        distractors = check_words(f"the distractor of {prompt}", () if self.distractor is None else self.distractor)
        if shared := set(answers) & set(distractors):
            raise TaskError(f"{prompt}: {shown(sorted(shared))} is answer and distractor at once.")
        spans = check_spans("spans", self.spans, self.clean)
        corrupt_spans = check_spans("corrupt_spans", self.corrupt_spans, self.corrupt or "")
        if alone := sorted(set(corrupt_spans) - set(spans)):
            raise SpanError(
                f"corrupt_spans of prompt {self.clean!r} names {alone}, which spans does not. Add it there."
            )
        at, last = self.answer_at, len(self.clean)
        if at is not None and (isinstance(at, bool) or not isinstance(at, int) or not 0 < at <= last):
            raise TaskError(f"answer_at of {prompt} is {shown(at)}; it must be a place in the prompt, 1 to {last}.")
        tokens = self._checked_tokens(prompt, answers, distractors, spans)
        for name in ("standalone_answers", "separate_spans"):
            if not isinstance(getattr(self, name), bool):
                raise TaskError(f"{name} of {prompt} is {shown(getattr(self, name))}; it must be True or False.")
        given = {
            "answer": self.answer if isinstance(self.answer, str) else answers,
            "distractor": self.distractor if isinstance(self.distractor, str) else distractors or None,
            "spans": spans,
            "corrupt_spans": corrupt_spans,
            **tokens,
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def _checked_tokens(
        self, prompt: str, answers: tuple[str, ...], distractors: tuple[str, ...], spans: Mapping[str, CharRange]
    ) -> dict[str, tuple[int, ...] | Mapping[str, CharRange]]:
        """What is given in tokens, if it is such a thing and not given in words as well."""
        found: dict[str, tuple[int, ...]] = {}
        for name, words in (("answer_ids", answers), ("distractor_ids", distractors)):
            found[name] = check_ids(f"{name} of {prompt}", getattr(self, name), words)
        if not (answers or found["answer_ids"]):
            raise TaskError(f"{prompt} has no answer. Give at least one.")
        if shared := set(found["answer_ids"]) & set(found["distractor_ids"]):
            raise TaskError(f"{prompt}: token {min(shared)} is answer and distractor at once.")
        token_spans = check_token_spans(prompt, self.token_spans)
        if both := sorted(set(token_spans) & set(spans)):
            raise SpanError(f"{prompt} has the span {both[0]!r} in characters and in tokens. Give one.")
        return {**found, "token_spans": token_spans}

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer as a tuple, whichever form it was given in."""
        return (self.answer,) if isinstance(self.answer, str) else self.answer

    @property
    def distractors(self) -> tuple[str, ...]:
        """The distractor as a tuple, whichever form it was given in; empty where there is none."""
        return (self.distractor,) if isinstance(self.distractor, str) else self.distractor or ()

    def after(self, prefix: str) -> "Example":
        """The same with a text in front of its prompts, such as examples with their answers (few-shot prompting).

        Args:
            prefix: The text, with the space or line end between it and the prompts.

        Returns:
            An example whose spans and place of the answer have moved along.

        Raises:
            TaskError: The prefix is empty or no text.
            SpanError: The example has spans of tokens, whose number in the prefix is not known.

        Example:
            >>> one = Example("2+3=", "4+4=", answer="5", distractor="8", spans={"first": (0, 1)})
            >>> shots = one.after("1+1=2, 3+4=7, ")
            >>> shots.clean, shots.spans
            ('1+1=2, 3+4=7, 2+3=', {'first': (14, 15)})
        """
        check_text("the prefix of an example", prefix)
        if self.token_spans:
            raise SpanError(f"a prefix moves the spans of tokens {[*self.token_spans]}. Give spans of characters.")

        def moved(spans: Mapping[str, CharRange]) -> dict[str, CharRange]:
            return {name: (start + len(prefix), end + len(prefix)) for name, (start, end) in spans.items()}

        return replace(
            self,
            clean=prefix + self.clean,
            corrupt=None if self.corrupt is None else prefix + self.corrupt,
            spans=moved(self.spans),
            corrupt_spans=moved(self.corrupt_spans),
            answer_at=None if self.answer_at is None else self.answer_at + len(prefix),
        )

    @classmethod
    def from_template(
        cls,
        template: str,
        fields: Mapping[str, str],
        *,
        corrupt: Mapping[str, str] | None = None,
        answer: str | tuple[str, ...],
        distractor: str | tuple[str, ...] | None = None,
        standalone_answers: bool = False,
        separate_spans: bool = False,
        answer_before: str | None = None,
    ) -> "Example":
        """Fill one template for both prompts; every field becomes a span of its name, unless it is empty in a prompt.

        Args:
            template: Text with fields in braces, `"{name} {is} a friend{period}"`. A field that occurs more than once
                gives the spans `name`, `name#2`, ...
            fields: What the fields hold in the clean prompt.
            corrupt: The fields that differ in the corrupted prompt; None for no corrupted prompt.
            answer: As in `Example`.
            distractor: As in `Example`.
            standalone_answers: As in `Example`.
            separate_spans: As in `Example`.
            answer_before: The field before which the answer would stand, for prompts that go on after it.

        Returns:
            The example.

        Raises:
            TaskError: The template names a field that is not given, or `corrupt` one that the template lacks.

        Example:
            >>> made = Example.from_template("{name} left{end}", {"name": "Ann", "end": "."}, corrupt={"end": ";"},
            ...                              answer=" She", distractor=" she")
            >>> made.corrupt, made.spans
            ('Ann left;', {'name': (0, 3), 'end': (8, 9)})
        """
        check_text("the template of an example", template)
        changed = {} if corrupt is None else corrupt
        for what, values in {"fields": fields, "corrupt": changed}.items():
            for name, value in check_mapping(what, values).items():
                if not isinstance(value, str):
                    raise TaskError(f"template {template!r}: {what}[{name!r}] is {shown(value)}; it must be a text.")
        if unused := set(changed) - set(fields):
            raise TaskError(f"template {template!r}: corrupt changes {sorted(unused)}, which fields do not hold.")
        clean_text, spans = _fill(template, fields)
        if answer_before is not None and answer_before not in spans:
            raise TaskError(f"template {template!r}: answer_before is {shown(answer_before)}; fields are {[*spans]}.")
        corrupt_text, corrupt_spans = _fill(template, {**fields, **changed})
        # A field without text has no token, so it has no span in both prompts.
        named = [name for name in spans if all(start < end for start, end in (spans[name], corrupt_spans[name]))]
        return cls(
            clean_text,
            None if corrupt is None else corrupt_text,
            answer,
            distractor,
            {name: spans[name] for name in named},
            {} if corrupt is None else {name: corrupt_spans[name] for name in named},
            standalone_answers,
            separate_spans,
            answer_at=None if answer_before is None else spans[answer_before][0],
        )

    def _summary(self) -> str:
        return f"{short(self.clean, 50)} -> {short(self.answer, 30)}"


def _fill(template: str, fields: Mapping[str, str]) -> tuple[str, dict[str, CharRange]]:
    """The filled text and the character range of every field in it."""
    text, spans, seen = "", {}, dict[str, int]()
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise TaskError(f"template {template!r}: {error}. A brace that belongs to the text is written twice.") from None
    for literal, name, _, _ in parts:
        text += literal
        if name is None:
            continue
        if name not in fields:
            raise TaskError(f"template {template!r} has a field {name!r}; given are {sorted(fields)}.")
        seen[name] = seen.get(name, 0) + 1
        label = name if seen[name] == 1 else f"{name}#{seen[name]}"
        spans[label] = (len(text), len(text) + len(fields[name]))
        text += fields[name]
    return text, spans
