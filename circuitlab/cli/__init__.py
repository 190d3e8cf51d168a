"""The `circuitlab` command: exit codes, and what the user sees when something goes wrong.

Exit codes: 0: success; 1: internal error, or a `reproduce` whose results differ; 2: user error, with a one-line message
on stderr; 130: interrupted, by Ctrl-C or SIGTERM. `CIRCUITLAB_DEBUG=1` adds the traceback.

The only place in the library that prints, and the only one that changes settings of the process.
"""

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from circuitlab.cli.visible import visible
from circuitlab.errors import CircuitLabError, ConfigError, TableWarning

OK, FAULT, USER_ERROR, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
LONGEST, LONGEST_WORD = 1000, 120  # characters of a message, and of a word of the command line in it
STOPPED = "interrupted; no partial output is left. Run the same command again to start over."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    Returns:
        The exit code.

    Raises:
        SystemExit: Shell completion ended the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _prepare_process()
        _check_words(words)
        code = _run(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _say(STOPPED, INTERRUPTED)
    except BrokenPipeError:
        _silence()
        return BROKEN_PIPE
    except CircuitLabError as error:
        return _say(f"error: {error}", USER_ERROR, words)
    except SystemExit as end:
        if end.code in (None, 0) and words[:1] in ([], ["--show-completion"], ["--install-completion"]):
            raise  # of shell completion
        # typer does not raise it otherwise: code of the user's does, and a run cut short is no success
        return _say("error: code of a task or model ended the program before it was done (sys.exit).", USER_ERROR)
    except OSError as error:
        return _say(f"error: {_os_error(error)}", USER_ERROR, words)
    except Exception as error:
        return _from_other(error, words)
    return code


def _run(argv: list[str]) -> int:
    import typer.main

    from circuitlab.cli.app import app
    from circuitlab.cli.outputs import reservations
    from circuitlab.progress import no_bars

    command = typer.main.get_command(app)
    with reservations, no_bars():  # commands have their own (`cli/progress.py`)
        try:
            result = command.main(args=argv, prog_name="circuitlab", standalone_mode=False)
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # which typer turns into an exit with 1
                raise end.__context__ from None
            raise
        except Exception as error:
            if type(error).__name__ != "NoArgsIsHelpError":
                raise
            print(str(error))  # a group by itself, whose help is the message
            result = OK
    if result == INTERRUPTED:  # typer turns Ctrl-C inside a command into this code
        raise KeyboardInterrupt
    return result if isinstance(result, int) else OK


def _from_other(error: Exception, argv: Sequence[str]) -> int:
    """Exit code of an error that is not ours: typer's usage errors are user errors, others internal errors."""
    usage = getattr(error, "format_message", None)
    if usage is not None:
        command = getattr(getattr(error, "ctx", None), "command_path", None) or "circuitlab"
        return _say(f"error: {usage().rstrip('.')}{_given(error, argv)}. See: {command} --help", USER_ERROR, argv)
    if type(error).__name__ == "Abort":
        return _say(STOPPED, INTERRUPTED)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _say(f"error: out of memory ({error}). Use a smaller -n, a smaller model, or --device cpu.", USER_ERROR)
    fault = f"{type(error).__name__}: {error}"
    return _say(f"internal error: {fault}. Please report this line; CIRCUITLAB_DEBUG=1 shows where it is from.", FAULT)


def _check_words(words: Sequence[str]) -> None:
    """Refuse words that no text, name or path can be.

    Raises:
        ConfigError: One holds a NUL or is not UTF-8.
    """
    for word in words:
        if "\0" in word or any("\ud800" <= character <= "\udfff" for character in word):
            raise ConfigError(f"{word[:80]!r} contains a NUL or bytes that are not UTF-8. Write it as UTF-8.")


def _silence() -> None:
    """Nobody reads on: let the last flush, at the end of the process, succeed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _given(error: Exception, argv: Sequence[str]) -> str:
    """The value of the option of a usage error, which typer's message omits."""
    message, options = str(error), getattr(getattr(error, "param", None), "opts", ())
    for place, word in enumerate(argv):
        name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], "", word[2:])
        if name in options and (equals or value or place + 1 < len(argv)):
            value = value if equals or value else argv[place + 1]
            return "" if repr(value) in message else f"; {value!r} was given"
    return ""


def _say(message: str, code: int, words: Sequence[str] = ()) -> int:
    """Print one line on stderr, after the traceback with CIRCUITLAB_DEBUG=1; return the exit code."""
    if os.environ.get("CIRCUITLAB_DEBUG") == "1":
        traceback.print_exc()
    message = visible(" ".join(message.split()))
    for word in words:
        for text in (word, word.partition("=")[2]):
            if len(text) > LONGEST_WORD:
                message = message.replace(" ".join(text.split()), f"{text[:LONGEST_WORD]}...")
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
    with suppress(BrokenPipeError):
        print(f"circuitlab: {message}", file=sys.stderr, flush=True)
    return code


def _os_error(error: OSError) -> str:
    where = f" {str(error.filename)!r}" if error.filename else ""
    return f"{error.strerror or error}{where}. Check that the path exists, is writable, and has enough free space."


def _prepare_process() -> None:
    """Settings that belong to a command-line process and not to a library: quiet dependencies, tidy ends."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait by spinning take cores from other threads: with one other busy process a run of 33 s took 127 s
    # with the default.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.environ.get("CIRCUITLAB_DEBUG") != "1":
        import logging
        import warnings

        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=TableWarning)
        warnings.showwarning = _show_warning
        logging.disable(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a prompt may hold what the terminal cannot show
    signal.signal(signal.SIGTERM, _terminate)


def _show_warning(message: Warning | str, *about: object, **more: object) -> None:
    """A warning of ours on one line of stderr, whatever else is quiet."""
    _say(f"warning: {message}", OK)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave like Ctrl-C does, through the `finally` clauses, so that temporary folders go."""
    raise KeyboardInterrupt
