"""A load that a thread of the cache's does, and that may be given up."""

import threading
from collections.abc import Callable

from kvlingua.common.errors import LoadCancelled
from kvlingua.common.gate import Gate
from kvlingua.common.guard import failure


class LoadHandle:
    """What became of a submitted load. May be used from any thread."""

    def __init__(self, load: Callable[[Gate], None]) -> None:
        self._load: Callable[[Gate], None] | None = load
        self._gate = Gate()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._error: Exception | None = None

    @property
    def error(self) -> Exception | None:
        """Once it is done: None if all was loaded, else why not, and then all must be taken as not loaded."""
        return self._error

    def done(self) -> bool:
        """Whether it is over: then nothing is written into the engine's memory any more."""
        return self._done.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait until it is done; False if it isn't after `timeout` seconds."""
        return self._done.wait(timeout)

    def cancel(self) -> None:
        """Give it up: it is done when this returns, with LoadCancelled unless it was done before. Waits for no file."""
        self._gate.close()
        self._finish(LoadCancelled("it was given up"))

    def run(self) -> None:
        """Do the load, in the calling thread."""
        load, self._load = self._load, None
        if load is not None and not self.done():
            self._finish(failure(lambda: load(self._gate)))

    def _finish(self, error: Exception | None) -> None:
        with self._lock:
            if not self._done.is_set():
                self._error, self._load = error, None
                self._done.set()
