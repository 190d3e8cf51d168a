"""Which text is to stand around the prompts of a task: a chat template, solved examples."""

from __future__ import annotations

from dataclasses import dataclass, replace

from circuitlab.errors import ConfigError, shown
from circuitlab.settings import SETTINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompting:
    r"""What is to stand around the prompts of a task.

    Attributes:
        chat: Whether a prompt is the user's message of a chat, in the model's chat template.
        shots: Number of solved examples before every prompt.
        reply_to: The user's message to which a prompt begins the assistant's reply; None: a prompt is the user's
            message.
        separator: The text after each solved example; in a chat they are turns, without it.

    Raises:
        ConfigError: `chat` is no bool, `shots` no number from 0 to 1,000, `separator` or `reply_to` no text, or
            `reply_to` is given without `chat`.

    Example:
        >>> from circuitlab import Prompting, load_task
        >>> load_task("ioi").with_prompting(shots=2).prompting
        Prompting(chat=False, shots=2, reply_to=None, separator='\n')
    """

    chat: bool = False
    shots: int = 0
    reply_to: str | None = None
    separator: str = "\n"

    def __post_init__(self) -> None:
        for name in ("chat", "shots", "reply_to"):
            SETTINGS[name].read(getattr(self, name))
        if self.reply_to is not None and not (self.chat and self.reply_to.strip()):
            raise ConfigError(
                f"reply_to is {shown(self.reply_to)}; it must be the text of a message, and goes with chat (--chat)."
            )
        if not isinstance(self.separator, str):
            raise ConfigError(f"separator is {shown(self.separator)}; it must be the text after a solved example.")

    def changed(self, *, chat: bool | None = None, shots: int | None = None, reply_to: str | None = None) -> Prompting:
        """The same with other values; without a chat, no message is replied to.

        Args:
            chat: Whether a prompt is the user's message of a chat, in the model's chat template; None: as it is.
            shots: Number of solved examples before every prompt; None: as it is.
            reply_to: The message to which a prompt begins the reply; None: as it is.

        Returns:
            The settings.

        Raises:
            ConfigError: A value is of another type or out of range, or `reply_to` is given without a chat.
        """
        given = {"chat": chat, "shots": shots, "reply_to": reply_to}
        found = {name: value for name, value in given.items() if value is not None}
        return replace(self, **({"reply_to": None} if chat is False else {}) | found)

    @property
    def label(self) -> str:
        """Part of the name of a task, such as `chat-2-shots`; empty if prompts stand alone."""
        parts = (
            ["chat"] * self.chat
            + ["reply"] * (self.reply_to is not None)
            + [f"{self.shots}-shot{'s' * (self.shots > 1)}"] * bool(self.shots)
        )
        return "-".join(parts)


PLAIN = Prompting()
