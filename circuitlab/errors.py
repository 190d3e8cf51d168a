"""The errors of circuitlab, each of which is also a built-in exception.

    CircuitLabError
    ├── UnknownNameError        an unknown task, model, method, site, metric, node, edge or option
    ├── ConfigError             a value that is not allowed (n, target, device, dtype, paths)
    │   ├── WrongTypeError      an argument of the wrong Python type
    │   ├── FileError           a file or folder that cannot be read or written
    │   │   └── MissingFileError    a file or folder that does not exist
    │   └── OutputExistsError   an output path that exists
    ├── TaskError               an invalid task
    │   ├── TaskFileError       cannot be imported, or defines no task
    │   │   └── TableError          a table of pairs without usable rows or columns
    │   ├── TokenError          an answer that is not one token, a prompt that exceeds the context
    │   ├── SpanError           a span that is not in the prompt
    │   ├── PairLengthError     clean and corrupted prompt differ in length
    │   ├── TooFewPromptsError  fewer distinct prompts than requested
    │   └── TaskNotDoneError    the model does not perform the task
    ├── ModelError              a model that cannot be loaded
    │   └── UnsupportedModelError   an unsupported kind of model, or an inexact decomposition
    ├── MetricError             a metric that returns the wrong shape, NaN, infinity, or a gap of zero
    ├── GraphError              a circuit that does not fit its graph
    │   └── FormatError         a file that does not conform to its format
    └── RunError                a run folder that is incomplete or damaged

Each message names the value, the rule and the fix. The command line prints the message as one line and exits with 2.

Values are `ValueError`, types `TypeError`, names `KeyError`; files, folders and models that cannot be loaded are
`OSError`.
"""

from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches

MOST_LISTED = 20  # names of a message
_PLAIN = (str, bytes, bool, int, float, complex, type(None), list, tuple, dict, set, frozenset)


def shown(value: object, limit: int = 60) -> str:
    """A value for a message: on one line, cut to `limit` characters, any character printable.

    Returns:
        The text.
    """
    text = _safely(repr, value) if isinstance(value, _PLAIN) else ""
    if not text or " at 0x" in text:
        return f"of type {type(value).__name__}"
    return _clipped(text, limit)


def in_one_line(error: BaseException, limit: int = 300) -> str:
    """Type and text of an error that foreign code raised, on one line and cut to `limit` characters.

    Returns:
        The text.
    """
    text = _clipped(_safely(str, error), limit)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _safely(spell: Callable[[object], str], value: object) -> str:
    """The text of a value of foreign code, whose own methods may fail."""
    try:
        return spell(value)
    except Exception:
        return ""


def _clipped(text: str, limit: int) -> str:
    line = " ".join(text[: 4 * limit].split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= limit else line[: limit - 3] + "..."


class CircuitLabError(Exception):
    """Base class of all errors that a user can cause and fix.

    Example:
        >>> raise ConfigError("n is 0; it must be at least 1.")
        Traceback (most recent call last):
            ...
        circuitlab.errors.ConfigError: n is 0; it must be at least 1.
        >>> issubclass(ConfigError, CircuitLabError), issubclass(ConfigError, ValueError)
        (True, True)
    """

    def __str__(self) -> str:
        return Exception.__str__(self)  # the plain message; KeyError would quote it


class UnknownNameError(CircuitLabError, KeyError, ValueError):
    """An unknown name."""

    @classmethod
    def of(
        cls, kind: str, given: object, allowed: Iterable[str], hint: str = "", owner: str = ""
    ) -> "UnknownNameError":
        """Build the message: the given name, the nearest one, and all allowed names, or of many the nearest five.

        Args:
            kind: What was named ("task", "site", ...).
            given: The value the user gave.
            allowed: The names that exist.
            hint: One more sentence, such as an alternative.
            owner: Whose it would be ("task 'name-throw'"), where others have names of their own.

        Returns:
            The error, to be raised.
        """
        names = list(allowed)
        near = get_close_matches(str(given), names, n=5, cutoff=0.5)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        many = len(names) > MOST_LISTED
        listed = f"Allowed: {', '.join(names[:MOST_LISTED])}{', ...' if many else ''}"
        listed = f"Nearest: {', '.join(near)}" if many and near else listed
        whose = f" of {owner}" if owner else ""
        return cls(f"unknown {kind} {given!r}{whose}.{guess} {listed}.{' ' + hint if hint else ''}")

    @staticmethod
    def guess(given: object, allowed: Iterable[str]) -> str:
        """The nearest of the names that exist, as the end of a sentence.

        Args:
            given: The name that was given.
            allowed: The names that exist.

        Returns:
            " (did you mean 'eap'?)", or nothing where no name is near.
        """
        near = get_close_matches(str(given), list(allowed), n=1, cutoff=0.5)
        return f" (did you mean {near[0]!r}?)" if near else ""

    @classmethod
    def check(cls, kind: str, given: object, allowed: Collection[str], hint: str = "", owner: str = "") -> None:
        """Refuse a name that is not among the allowed ones; arguments as of `of`.

        Raises:
            UnknownNameError: It is not.
        """
        if given not in allowed:
            raise cls.of(kind, given, allowed, hint, owner)


class ConfigError(CircuitLabError, ValueError):
    """A setting with a value that is not allowed."""


class WrongTypeError(ConfigError, TypeError):
    """An argument of the wrong Python type."""


class FileError(ConfigError, OSError):
    """A file or folder that cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that does not exist."""


class OutputExistsError(ConfigError, FileExistsError):
    """The output path exists and would be overwritten."""


class TaskError(CircuitLabError, ValueError):
    """An invalid task."""


class TaskFileError(TaskError, OSError):
    """A task file that cannot be imported, defines no task, or raises an error."""


class TableError(TaskFileError):
    """A table of pairs whose columns are not known, or with rows that hold no pair."""


class TableWarning(UserWarning):
    """Rows of a table were left out, as many as were allowed, or look wrong; the message names them."""


class TokenError(TaskError):
    """A word or prompt that is not one token, or exceeds the context."""


class SpanError(TaskError):
    """A span that is not in the prompt."""


class PairLengthError(TaskError):
    """A clean and a corrupted prompt of different token length."""


class TooFewPromptsError(TaskError):
    """Fewer distinct prompts than requested."""


class TaskNotDoneError(TaskError):
    """The model does not perform the task, so there is no behaviour to explain."""


class ModelError(CircuitLabError, OSError):
    """A model that cannot be loaded."""


class UnsupportedModelError(ModelError, ValueError):
    """An unsupported kind of model, or one whose decomposition is inexact; the message reports the error."""


class MetricError(CircuitLabError, ValueError):
    """A metric that cannot be used: wrong shape, values not finite, no distractor, or clean equals corrupted."""


class GraphError(CircuitLabError, ValueError):
    """A circuit or score table that does not fit its graph."""


class FormatError(GraphError):
    """A file that does not conform to its format."""


class RunError(CircuitLabError, OSError):
    """A run folder that is incomplete or damaged."""
