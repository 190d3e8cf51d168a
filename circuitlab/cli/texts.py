"""Texts that commands take, typed or from a file."""

from pathlib import Path
from typing import Annotated

import typer

from circuitlab.errors import ConfigError
from circuitlab.files import read_text

TextArgument = Annotated[str | None, typer.Argument(metavar="TEXT", help="Text, including its spaces; or use --file.")]
TextFile = Annotated[str | None, typer.Option("--file", metavar="PATH", help="Read the text from a file.")]
Texts = Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="Texts, each in quotes; or use --file.")]
Lines = Annotated[str | None, typer.Option("--file", metavar="PATH", help="Read texts from a file, one per line.")]


def text_of(text: str | None, file: str | None) -> str:
    """The text that was typed, or that stands in a file.

    Raises:
        ConfigError: Neither or both are given, the text is empty, or the file cannot be read as UTF-8.
    """
    if (text is None) == (file is None):
        raise ConfigError(f"give a text or --file, {'one of both' if text is None else 'not both'}.")
    if file is None:
        assert text is not None
        if not text.strip():
            raise ConfigError(f"the text is empty ({text!r}). Give at least one word.")
        return text
    found = read_text(Path(file).expanduser(), "file")
    if not found.strip():
        raise ConfigError(f"file {file!r} contains no text. Write one into it.")
    return found


def texts_of(texts: list[str] | None, file: str | None) -> list[str]:
    """The texts that were typed, or the lines of a file that are not blank.

    Raises:
        ConfigError: Neither or both are given, or the file holds no text that can be read as UTF-8.
    """
    if texts:
        if file is not None:
            raise ConfigError("give texts or --file, not both.")
        if blank := [number for number, text in enumerate(texts, start=1) if not text.strip()]:
            raise ConfigError(f"text {blank[0]} of {len(texts)} is empty. Give at least one word.")
        return texts
    lines = text_of(None, file).splitlines()
    found = [line for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"file {file!r} contains no text. Write one per line.")
    return found
