"""A lock between processes, on a file; held until the block ends or the process dies."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock on `path`; `waiting` is called if another process holds it now. The holder may remove the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            # Removed by the one before us: a lock on a file that nobody else can open is none.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                yield
                return
