"""A lock between processes on a small file, waited for no longer than told."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvlingua.common.errors import StoreTimeout

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LONGEST_PAUSE_S = 0.02


@contextmanager
def locked(path: Path, timeout_s: float, *, folder: int | None = None) -> Iterator[int]:
    """Hold the lock of the file at `path`, made private if absent: its descriptor, open for reading and writing.

    folder: descriptor of the folder `path` lies in, in which its last part is opened. Raises StoreTimeout after
    `timeout_s` (a holder may have been stopped), OSError. Doesn't tell threads apart, nor follow a link.
    """
    name = path if folder is None else path.name
    deadline = time.monotonic() + timeout_s
    while True:
        lock = os.open(name, _FLAGS, 0o600, dir_fd=folder)
        try:
            _wait(lock, deadline, f"another process has locked {path} for {timeout_s:g} s; is one stopped?")
            try:
                if _is_still(lock, name, folder):
                    yield lock
                    return
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # not only by closing: a forked child may hold the descriptor, too
        finally:
            os.close(lock)


def _wait(lock: int, deadline: float, trouble: str) -> None:
    pause = 0.0005
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreTimeout(trouble) from None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _is_still(lock: int, name: Path | str, folder: int | None) -> bool:
    """Whether others who open the name lock the same file: it may have been removed while we waited."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), os.fstat(lock))
    except FileNotFoundError:
        return False
