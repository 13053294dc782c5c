"""Lets one thread give up a load that another one is at."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kvlingua.common import bulk
from kvlingua.common.errors import LoadCancelled


class Gate:
    """Open until `close`. All that a load writes to an engine's memory goes through it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._native: bulk.Gate | None = None

    def native(self) -> bulk.Gate:
        """For writing in native calls. Raises LoadCancelled if this gate is closed."""
        with self._lock:
            self._check()
            if self._native is None:
                self._native = bulk.Gate()
            return self._native

    @contextmanager
    def writing(self) -> Iterator[None]:
        """For writing within the block, which `close` waits for. Raises LoadCancelled if this gate is closed."""
        with self._lock:
            self._check()
            yield

    def check(self) -> None:
        """Raise LoadCancelled if this gate is closed."""
        with self._lock:
            self._check()

    def close(self) -> None:
        """When this returns nothing is written any more. Waits for no file."""
        with self._lock:
            self._closed = True
            if self._native is not None:
                self._native.close()

    def _check(self) -> None:
        if self._closed:
            raise LoadCancelled("it was given up")
