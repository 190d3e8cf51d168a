"""A task: a named, versioned way to draw clean and corrupted prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from circuitlab import names
from circuitlab.arguments import checked
from circuitlab.data.checks import check_line, check_mapping, check_name
from circuitlab.data.encoded import LanguageModel
from circuitlab.data.example import Example
from circuitlab.data.pairs import PairSplits
from circuitlab.data.prompting import PLAIN, Prompting
from circuitlab.data.published import PublishedCircuit
from circuitlab.data.sampling import sample_pairs
from circuitlab.data.splits import STAND_INS
from circuitlab.data.tables.draw import check_rows, divided_by, row_draw, table_pairs, usual_number
from circuitlab.data.tables.options import TableOptions
from circuitlab.data.tables.rows import pair_table
from circuitlab.data.tables.sources import of_object
from circuitlab.data.tables.table import PairTable
from circuitlab.data.task_fields import check_parts, checked_fixed, checked_options, checked_sources, parameters
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.progress import Progress, callback, reports_progress
from circuitlab.references import Reference
from circuitlab.resources import Resources
from circuitlab.summary import Summary, short


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Task(Summary):
    """A task: prompts, answers and metric, as a citable module defines it.

    Attributes:
        name: Lower-case name with hyphens, unique among tasks; run folders are named after it.
        version: Version of the prompts: any change of templates or words raises it.
        summary: One line: which behaviour.
        draw: `draw(rng, **options) -> Example`; all randomness comes from `rng`. If it has a parameter `split`, it is
            given `"discovery"`, `"held_out"` or `"any"`; if it has a parameter `vocabulary` without a default, the
            model's words: texts with a leading space that are one token each.
        options: Option name -> allowed values, the default first. They are passed to `draw` as keyword arguments,
            in addition to `rng`, `split` and `vocabulary`, so none may have such a name (`RESERVED`).
        chosen: The values chosen, by option name; defaults where absent.
        metric: Name of the default metric, or a callable on `(logits [batch, d_vocab], batch)`.
        sources: Where the behaviour comes from.
        fixed: Examples that always come first, or a function of the options that returns them. In a task with
            `held_out` it is a function with a parameter `split` as well, and returns the examples whose words belong
            to that split.
        origin: The file it was loaded from; empty for bundled tasks and tasks made in a session.
        held_out: What held-out prompts do not share with discovery prompts, such as "names and templates", or a
            function of the options that returns it; empty if they differ by chance only. `draw` of a task that names
            something has a parameter `split`.
        split: `words`, or `random` to draw both splits from all words: they share no text, but words. Without
            `held_out` they are drawn so in any case.
        prompting: What stands around every prompt: the model's chat template, solved examples.
        published: Circuits that papers describe for this task, by the name of the model.
        table: The rows that its pairs are, for a task that is made of a table (`from_frame`, `load_task`).

    Raises:
        TaskError: No name, no version, a field of the wrong type, a name or text that no file can hold, an option with
            the name of the generator, or a `draw` that does not take the options; `held_out` without a parameter
            `split` of `draw` or of `fixed`.
        UnknownNameError: A chosen option or value does not exist.

    Example:
        >>> from random import Random
        >>> from circuitlab import Example, Task
        >>> def draw(rng):
        ...     name = rng.choice(("Ann", "Mary"))
        ...     return Example(f"{name} was tired;", f"{name} was tired.", answer=" she", distractor=" She")
        >>> task = Task(name="pronoun", version="1", summary="Continue with a pronoun.", draw=draw)
        >>> task.draw(Random(0)).answer
        ' she'
    """

    name: str
    version: str
    summary: str
    draw: Callable[..., Example]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)
    metric: str | Callable[..., Any] = "logit_diff"
    sources: tuple[Reference, ...] = ()
    fixed: tuple[Example, ...] | Callable[..., tuple[Example, ...]] = ()
    origin: str = ""
    held_out: str | Callable[..., str] = ""
    split: str = "words"
    prompting: Prompting = PLAIN
    published: Mapping[str, PublishedCircuit] = field(default_factory=dict)
    table: PairTable | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_name("the name of a task", self.name)
        owner = f"task {self.name!r}"
        check_line(f"version of {owner}", self.version)
        check_line(f"summary of {owner}", self.summary, may_be_empty=True)
        check_parts(owner, self)
        object.__setattr__(self, "options", checked_options(owner, self.options, self.draw))
        object.__setattr__(self, "sources", checked_sources(owner, self.sources))
        if not callable(self.fixed):
            object.__setattr__(self, "fixed", checked_fixed(owner, self.fixed))
        for name, value in check_mapping(f"chosen of {owner}", self.chosen).items():
            if name not in self.options:
                raise UnknownNameError.of("option", name, self.options or ["(none)"], owner=owner)
            UnknownNameError.check(name, value, self.options[name], owner=owner)

    @classmethod
    @checked
    def from_frame(
        cls,
        frame: Any,
        columns: Mapping[str, str] | None = None,
        *,
        name: str = "table",
        max_bad_rows: int = 0,
        summary: str | None = None,
        **about: Any,
    ) -> Task:
        """A task whose pairs are the rows of a table.

        Args:
            frame: A data frame of pandas or polars, an Arrow table, a `datasets` data set (or a dictionary of them, by
                split), or a list of dictionaries.
            columns: Our field -> the table's column, for those that are not recognised: `clean`, `corrupt`, `answer`,
                `distractor`, `answer_id`, `distractor_id`, `split`, `spans`, `length`, `span:NAME`,
                `corrupt_span:NAME`. An empty name leaves a field out.
            name: The task's name.
            max_bad_rows: So many rows that hold no pair are left out; more are an error.
            summary: One line: which behaviour; by default the layout and the columns.
            about: Further fields of the task, such as `metric` and `sources`.

        Returns:
            The task.

        Raises:
            TableError: The columns are not known, or more rows are bad than allowed; the message names row, column and
                value.
            UnknownNameError: There is no such field or column.

        Example:
            >>> rows = [{"text": "Ann left;", "corrupt": "Ann left.", "answer": " she", "distractor": " She"}]
            >>> task = Task.from_frame(rows, columns={"clean": "text"})
            >>> task.table.rows[0].example.answer
            (' she',)
        """
        options = TableOptions(columns=dict(columns or {}), max_bad_rows=max_bad_rows)
        table = pair_table(of_object(frame), options, "the data frame").checked()
        if summary is not None:
            about["summary"] = summary
        return cls.from_table(table, name, **about)

    @classmethod
    def from_table(cls, table: PairTable, name: str, **about: Any) -> Task:
        """A task of the rows of a table that was read, with further fields of the task.

        Returns:
            The task, whose version is the beginning of the table's digest, and whose metric is that of the layout, else
            `logit_diff`, or `log_prob` where pairs have no distractors, unless others are given.
        """
        usual: dict[str, Any] = {
            "version": table.digest[:12], "summary": table.described(),
            "metric": table.metric or ("logit_diff" if table.has_distractors else "log_prob"),
        }  # fmt: skip
        return cls(name=name, draw=row_draw(table), held_out=divided_by(table), table=table, **usual | about)

    @property
    def settings(self) -> dict[str, str]:
        """Every option with its value in force."""
        return {name: self.chosen.get(name, values[0]) for name, values in self.options.items()}

    @property
    def label(self) -> str:
        """Name for files and headings: the name, and every option that is not the default, `chat` and shots as well."""
        changed = [value for name, value in self.settings.items() if value != self.options[name][0]]
        return "-".join(filter(None, [self.name, *changed, self.prompting.label]))

    @checked
    def with_options(self, /, **chosen: str) -> Task:
        """The same task with other option values.

        Returns:
            A new task.

        Raises:
            UnknownNameError: An option or value does not exist.
        """
        return replace(self, chosen={**self.chosen, **chosen})

    @checked
    def with_split(self, split: str | None) -> Task:
        """The same task, split another way.

        Args:
            split: `words` or `random`; None for the task's own way.

        Returns:
            A task.

        Raises:
            ConfigError: `words`, and the task holds none out.
            UnknownNameError: No such way.
        """
        if split == "words" and not self.held_out:
            raise ConfigError(
                f"split is 'words', but task {self.name!r} names no words that are held out (Task.held_out). Give "
                "'random', or none."
            )
        return self if split is None else replace(self, split=split)

    @checked
    def with_prompting(
        self, *, chat: bool | None = None, shots: int | None = None, reply_to: str | None = None
    ) -> Task:
        """The same task with other text around its prompts; see `Prompting.changed`.

        Returns:
            A task.
        """
        return replace(self, prompting=self.prompting.changed(chat=chat, shots=shots, reply_to=reply_to))

    @property
    def differ_in(self) -> str:
        """What the splits differ in, with the options in force; empty if they differ by chance only."""
        if self.split != "words":
            return ""
        if not callable(self.held_out):
            return self.held_out
        found = self.held_out(**self.settings)
        check_line(f"held_out of task {self.label!r}", found)
        return found

    @checked
    def published_for(self, model: str) -> PublishedCircuit:
        """The published circuit of a model.

        Args:
            model: A key of `published`, or a name or path that ends in one, such as `openai-community/gpt2`.

        Returns:
            The circuit.

        Raises:
            UnknownNameError: None is known for this model.
        """
        name = model.rstrip("/").rpartition("/")[2]
        name = name if name in self.published else name.removesuffix("-small")
        if name not in self.published:
            raise UnknownNameError.of(
                "published circuit for", model, self.published or ["(none)"], owner=f"task {self.label!r}"
            )
        return self.published[name]

    def example(self, rng: Random, *, split: str = "any", vocabulary: Sequence[str] = STAND_INS) -> Example:
        """Draw one example with the options in force.

        Args:
            rng: Where every choice comes from.
            split: Whose words, for a task that names some (`held_out`): `discovery`, `held_out` or `any`.
            vocabulary: The model's words, for a task whose `draw` takes them; placeholders by default.

        Returns:
            The example.
        """
        given: dict[str, Any] = {"split": split} if self.held_out else {}
        if self.draws_tokens:
            given["vocabulary"] = vocabulary
        return self.draw(rng, **given, **self.settings)

    @property
    def draws_tokens(self) -> bool:
        """Whether its prompts are made of the words of the model at hand."""
        wanted = parameters(self.draw).get("vocabulary")
        return wanted is not None and wanted.default is wanted.empty

    def fixed_examples(self, split: str = "any") -> tuple[Example, ...]:
        """The examples that always come first.

        Args:
            split: Whose words, for a task that names some (`held_out`): `discovery`, `held_out` or `any`.

        Returns:
            The examples, for the task's options.

        Raises:
            TaskError: `fixed` returned something else.
        """
        if not callable(self.fixed):
            return self.fixed
        given = {"split": split} if "split" in parameters(self.fixed) else {}
        return checked_fixed(f"task {self.name!r}", self.fixed(**given, **self.settings))

    @checked
    @reports_progress
    def pairs(
        self,
        model: LanguageModel,
        n: int = 100,
        seed: int = 0,
        *,
        reference: bool = False,
        exclude: Collection[str] = (),
        whole_answers: bool | None = None,
        chat: bool | None = None,
        shots: int | None = None,
        progress: Progress | bool | None = None,
    ) -> PairSplits:
        """Draw `n` discovery and `n` held-out pairs for a model's tokenizer.

        No text, clean or corrupted, is in both splits, nor is any of the words and templates that the task keeps for
        held-out prompts (`Task.held_out`). Examples that the tokenizer cannot represent are dropped and
        counted.

        Args:
            model: A loaded model; its tokenizer decides what can be served.
            n: Pairs per split.
            seed: Same seed, same pairs.
            reference: Also draw `n` reference pairs, whose texts are in neither split; the splits are the same
                with them and without.
            exclude: Prompt texts that no held-out and no reference pair may have, such as those that a circuit was
                found on with another seed (`pairs.discovery.texts`).
            whole_answers: Accept answers and distractors of several tokens, for metrics such as `answer_log_prob_diff`;
                by default if the task's own metric is one of them.
            chat: As in `with_prompting`.
            shots: As in `with_prompting`.
            progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is
                called with (step, done, total).

        Returns:
            Discovery, held-out and, if requested, reference pairs.

        Raises:
            ConfigError: `n` is not a positive number.
            TaskFileError: `draw` raised, returned no `Example`, or gave other examples from the same generator.
            TooFewPromptsError: Fewer distinct pairs than requested; the message counts what was dropped and why.
            TokenError: A prompt is longer than the model's context; the message has the prompt and both lengths.
        """
        from circuitlab.data.batching import check_pairs  # brings torch

        task, resources = self.with_prompting(chat=chat, shots=shots), Resources(progress=callback(progress))
        how: dict[str, Any] = {
            "n": n, "seed": seed, "with_reference": reference, "exclude": exclude, "resources": resources,
            "whole_answers": names.judges_whole_answers(self.metric) if whole_answers is None else whole_answers,
        }  # fmt: skip
        if task.table is not None:
            how |= {"metric": task.metric, "by_column": task.split == "words", "prompting": task.prompting}
            return table_pairs(task.table, model.text, n_ctx=model.spec.n_ctx, **how)
        drawn = sample_pairs(task, model.text, **how)
        for part in (drawn.discovery, drawn.held_out, *([drawn.reference] if drawn.reference else [])):
            check_pairs(part, model.spec)
        return drawn

    def usual_n(self, most: int, *, reference: bool = False) -> int:
        """Pairs per split where no number is given.

        Returns:
            `most`, or as many as a table has.
        """
        return most if self.table is None else usual_number(self.table, most, **self._rows(reference))

    def check_n(self, n: int, *, reference: bool = False) -> None:
        """Refuse more pairs than a task made of a table can have, before a model is loaded.

        Raises:
            TooFewPromptsError: There are fewer rows.
            TableError: One split has no row.
        """
        if self.table is not None:
            check_rows(self.table, n, **self._rows(reference))

    def _rows(self, reference: bool) -> dict[str, Any]:
        """Which rows of a table become pairs."""
        return {"with_reference": reference, "by_column": self.split == "words", "shots": self.prompting.shots}

    def _summary(self) -> str:
        return f"{self.label} {self.version}: {short(self.summary, 70)[1:-1]}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        for name, value in self.settings.items():
            others = [one for one in self.options[name] if one != value]
            yield f"option {name}", f"{value} (others: {', '.join(others)})" if others else value
        yield "metric", self.metric
        if self.differ_in:
            yield "held-out", f"{self.differ_in} of their own"
        for model, circuit in self.published.items():
            yield f"published for {model}", f"{len(circuit.nodes)} nodes, {circuit.source.key}"
        if self.sources:
            yield "sources", ", ".join(source.key for source in self.sources)
        if self.table is not None and self.table.n_dropped:
            yield "bad rows", f"{self.table.n_dropped:,} left out"
        if self.origin:
            yield "file", self.origin
