"""Work that a caller leaves to a thread: copying out of an engine, writing to a store, loading. Nobody waits for it."""

import threading
import time
from collections import deque
from collections.abc import Callable

from kvlingua.common.cpu_clock import ClockedThread
from kvlingua.common.guard import Guard

_END_S = 1.0  # how long a thread that has nothing left to do may take to end
_JOBS = 4096  # what waits to be written is also bounded by memory (`ScratchPool`)


class JobQueue:
    """Jobs, done one after the other in a daemon thread that starts with the first. Belongs to the process that made
    it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._guard = Guard("cache", "given up")
        self._jobs: deque[tuple[str, Callable[[], None], Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = False
        self._closed = False

    def submit(self, what: str, job: Callable[[], None], given_up: Callable[[], None] = lambda: None) -> bool:
        """Do `job` later; its errors are counted and logged. False if the queue is full or closed: it won't be.

        `given_up` is called instead if the queue is closed before the job's turn comes.
        """
        with self._changed:
            if self._closed or len(self._jobs) >= _JOBS:
                return False
            if self._thread is None:
                thread = ClockedThread(self._run, self._name)
                thread.start()  # may fail; then the next call tries again
                self._thread = thread
            self._jobs.append((what, job, given_up))
            self._changed.notify_all()
        return True

    def flush(self, timeout: float) -> bool:
        """Wait until everything that was submitted is done; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._jobs or self._busy:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self, timeout: float) -> bool:
        """No further jobs. True if those submitted were done within `timeout` seconds, and then the thread has ended,
        if it could within a second; the others are given up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        done = self.flush(timeout)
        with self._changed:
            left = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
            thread = self._thread
        for what, _, given_up in left:
            self._guard.run(what, None, given_up)
        if done and thread not in (None, threading.current_thread()):
            thread.join(_END_S)  # DeadlineWorker.close says why
        return done

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                what, job, _ = self._jobs.popleft()
                self._busy = True
            self._guard.run(what, None, job)
            del job, _  # what they held isn't kept until the next one comes
