"""Answer at once where there is no network."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit


@contextmanager
def offline_without_network() -> Iterator[None]:
    """Where the hub's host has no address, use the cache at once instead of five retries (23 s measured)."""
    from huggingface_hub import constants

    before = list[tuple[Any, bool]]()
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        readers: tuple[Any, ...] = (constants, sys.modules.get("datasets.config"))  # the second has a copy of the flag
        before = [(one, bool(vars(one)["HF_HUB_OFFLINE"])) for one in readers if one is not None]
    try:
        for one, _ in before:
            one.HF_HUB_OFFLINE = True
        yield
    finally:
        for one, value in before:
            one.HF_HUB_OFFLINE = value
