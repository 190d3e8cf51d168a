"""Whether the process that reserved a folder still runs: it holds a lock on a file, which ends with the process."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

LOCK = ".circuitlab-writing.json"


def hold(descriptor: int, *, wait: bool = False) -> bool | None:
    """Lock an open file.

    Returns:
        True: it is ours now. False: another process holds it. None: this file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sign(descriptor: int) -> None:
    """Write into a lock file who holds it."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    record = {"pid": os.getpid(), "host": socket.gethostname(), "started": now}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(record).encode())


def holder_of(descriptor: int) -> Mapping[str, Any]:
    """Who signed a lock file; empty before it is signed.

    Returns:
        Process id, host and time.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        record = json.loads(os.read(descriptor, 4096))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def named(holder: Mapping[str, Any]) -> str:
    """The holder in words.

    Returns:
        One phrase.
    """
    return f"process {holder.get('pid')} on {holder.get('host')!s:.80}, since {holder.get('started')!s:.40}"


def seems_alive(holder: Mapping[str, Any]) -> bool | None:
    """Whether the process that signed runs, where there are no locks; None for a process of another machine.

    Returns:
        Whether it runs, or None.
    """
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return None
    import psutil

    return psutil.pid_exists(holder["pid"])


def open_lock(folder: Path, *, new: bool) -> int:
    """The lock file of a reserved folder, opened for reading and writing; links are not followed.

    Returns:
        A file descriptor.

    Raises:
        FileNotFoundError: There is none.
        FileExistsError: It should be new and is there.
    """
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(folder / LOCK, flags | (os.O_CREAT | os.O_EXCL if new else 0), 0o644)
