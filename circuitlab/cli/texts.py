"""Texts that commands take, from the command line or from a file."""

from pathlib import Path
from typing import Annotated

import typer

from circuitlab.cli.options import Options
from circuitlab.errors import ConfigError
from circuitlab.files import read_text


class TextOptions(Options):
    """One text."""

    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Text, including its spaces; or use --file.")] = (
        None
    )
    file: Annotated[str | None, typer.Option(metavar="PATH", help="Read the text from a file.")] = None

    def read(self) -> str:
        """Read the text; errors as of `text_of`.

        Returns:
            The text.
        """
        return text_of(self.text, self.file)


class TextsOptions(Options):
    """Several texts."""

    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Texts, each in quotes; or use --file.")
    ] = None
    file: Annotated[str | None, typer.Option(metavar="PATH", help="Read texts from a file, one per line.")] = None

    def read(self) -> list[str]:
        """Read the texts, or the lines of the file that are not blank.

        Returns:
            The texts.

        Raises:
            ConfigError: Neither or both are given, or the file holds no text that can be read as UTF-8.
        """
        if not self.texts:
            return [line for line in text_of(None, self.file).splitlines() if line.strip()]
        if self.file is not None:
            raise ConfigError("give texts or --file, not both.")
        if blank := [number for number, text in enumerate(self.texts, start=1) if not text.strip()]:
            raise ConfigError(f"text {blank[0]} of {len(self.texts)} is empty. Give at least one word.")
        return self.texts


def text_of(text: str | None, file: str | None) -> str:
    """Read a text from the command line or from a file.

    Returns:
        The text.

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
