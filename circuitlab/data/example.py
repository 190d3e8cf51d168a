"""One clean and one corrupted prompt, in words.

An `Example` knows nothing of tokens: it is what a task module draws. `circuitlab.data.encoding` checks it against a
model's real tokenizer and makes a `Pair` of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter

from circuitlab.errors import TaskError
from circuitlab.summary import Summary, short

CharRange = tuple[int, int]


@dataclass(frozen=True, slots=True, repr=False)
class Example(Summary):
    """A clean prompt, its corrupted twin, and what a right answer is.

    Attributes:
        clean: The prompt whose behaviour is studied.
        corrupt: The same prompt with one thing changed, so that `distractor` is its right answer.
        answer: Right continuation of `clean` (several: any of them), with its leading space where it has one.
        distractor: Right continuation of `corrupt`, in the same form.
        spans: Name -> half-open character range in `clean`. Token spans are found from these.
        corrupt_spans: The same names in `corrupt`, where they are known; they must fall on the same tokens.

    Raises:
        TaskError: Both prompts are equal, a prompt or an answer is empty, or answer and distractor share a word.
    """

    clean: str
    corrupt: str
    answer: str | tuple[str, ...]
    distractor: str | tuple[str, ...]
    spans: Mapping[str, CharRange] = field(default_factory=dict)
    corrupt_spans: Mapping[str, CharRange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.clean or not self.corrupt:
            raise TaskError(f"an example needs two prompts; got clean={self.clean!r}, corrupt={self.corrupt!r}.")
        if self.clean == self.corrupt:
            raise TaskError(
                f"clean and corrupted prompt are the same text: {self.clean!r}. Change what matters in one."
            )
        if not self.answers or not self.distractors or "" in self.answers + self.distractors:
            raise TaskError(f"prompt {self.clean!r} needs a non-empty answer and distractor.")
        if shared := set(self.answers) & set(self.distractors):
            raise TaskError(f"prompt {self.clean!r}: {sorted(shared)} is answer and distractor at once.")

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer as a tuple, whichever form it was given in."""
        return (self.answer,) if isinstance(self.answer, str) else tuple(self.answer)

    @property
    def distractors(self) -> tuple[str, ...]:
        """The distractor as a tuple, whichever form it was given in."""
        return (self.distractor,) if isinstance(self.distractor, str) else tuple(self.distractor)

    @classmethod
    def from_template(
        cls,
        template: str,
        fields: Mapping[str, str],
        *,
        corrupt: Mapping[str, str],
        answer: str | tuple[str, ...],
        distractor: str | tuple[str, ...],
    ) -> "Example":
        """Fill one template twice; every field becomes a span of its own name, unless it is empty in a prompt.

        Args:
            template: Text with fields in braces, `"{name} {is} a friend{period}"`. A field that stands more than once
                gives the spans `name`, `name#2`, ...
            fields: What the fields hold in the clean prompt.
            corrupt: The fields that differ in the corrupted prompt.
            answer: As in `Example`.
            distractor: As in `Example`.

        Raises:
            TaskError: The template names a field that is not given, or `corrupt` one that the template lacks.

        Example:
            >>> made = Example.from_template("{name} left{end}", {"name": "Ann", "end": "."}, corrupt={"end": ";"},
            ...                              answer=" She", distractor=" she")
            >>> made.corrupt, made.spans
            ('Ann left;', {'name': (0, 3), 'end': (8, 9)})
        """
        if unused := set(corrupt) - set(fields):
            raise TaskError(f"template {template!r}: corrupt changes {sorted(unused)}, which fields do not hold.")
        clean_text, spans = _fill(template, fields)
        corrupt_text, corrupt_spans = _fill(template, {**fields, **corrupt})
        # A field without text has no token, so there is nothing that a span could stand for in both prompts.
        named = [name for name in spans if all(start < end for start, end in (spans[name], corrupt_spans[name]))]
        return cls(
            clean_text,
            corrupt_text,
            answer,
            distractor,
            {name: spans[name] for name in named},
            {name: corrupt_spans[name] for name in named},
        )

    def _summary(self) -> str:
        return f"{short(self.clean, 50)} -> {short(self.answer, 30)}"


def _fill(template: str, fields: Mapping[str, str]) -> tuple[str, dict[str, CharRange]]:
    """The filled text and the character range of every field in it."""
    text, spans, seen = "", {}, dict[str, int]()
    for literal, name, _, _ in Formatter().parse(template):
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
