"""Names of files that are being written: `.tmp-<host>-<pid>-<random>-<counter>`, beside the object they become.

A writer that dies leaves one behind. It goes when nothing was written to it for ten minutes; a clock that jumped
makes it no older.
"""

import itertools
import os
import re
import secrets
import socket
from functools import cache

PREFIX = ".tmp-"
STALE_S = 600.0

_counter = itertools.count()
_live: set[str] = set()


def new_name() -> str:
    """A name that no other process uses. It is spared by every sweep of this process until `forget`."""
    pid = os.getpid()
    name = f"{PREFIX}{_host()}-{pid}-{_process(pid)}-{next(_counter)}"
    _live.add(name)
    return name


@cache
def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40] or "host"


@cache
def _process(pid: int) -> str:
    """What tells this process from the one that had its host and pid before: a restarted container has both again."""
    return secrets.token_hex(8)


def forget(name: str) -> None:
    """The file is renamed or removed."""
    _live.discard(name)


def is_temporary(name: str) -> bool:
    return name.startswith(PREFIX)


def is_stale(name: str, mtime: float, now: float) -> bool:
    """Whether a temporary file's writer is taken for dead. Times in seconds since the epoch."""
    return name not in _live and abs(now - mtime) > STALE_S
