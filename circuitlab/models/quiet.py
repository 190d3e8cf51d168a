"""Loaders without progress bars and messages."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no messages from the loaders; their settings are restored."""
    from transformers.utils import logging as chatter

    with ExitStack() as stack:
        stack.callback(chatter.set_verbosity, chatter.get_verbosity())
        if chatter.is_progress_bar_enabled():
            stack.callback(chatter.enable_progress_bar)
        chatter.set_verbosity_error()
        chatter.disable_progress_bar()
        for name in ("transformer_lens", "huggingface_hub"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        advice = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
        before = os.environ.get(advice)
        stack.callback(lambda: os.environ.pop(advice) if before is None else os.environ.update({advice: before}))
        os.environ[advice] = "1"
        yield
