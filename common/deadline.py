"""Store calls with a deadline: they run in a worker thread, and the caller stops waiting.

A thread that is stuck in the kernel can't be stopped. So there is one for each kind of call, and while one is stuck the
store counts as hanging: every further call, of any kind, fails at once, until the stuck one returns. The threads are
daemons: they keep a process from exiting for no longer than `close` is told to wait.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from kvlingua.common.cpu_clock import ClockedThread
from kvlingua.common.errors import StoreError, StoreTimeout
from kvlingua.common.guard import capture

T = TypeVar("T")


class _Job(Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        self.function: Callable[[], T] | None = function
        self.started = False
        self.done = threading.Event()
        self.outcome: Callable[[], T] | None = None


class DeadlineWorker:
    """One worker thread, started at the first call. Belongs to the process that made it.

    stuck: shared by the workers of one store; per worker's name, what the call was doing that overran its deadline and
    hasn't returned.
    """

    def __init__(self, name: str, stuck: dict[str, str]) -> None:
        self._name = name
        self._stuck = stuck
        self._jobs: deque[_Job[Any]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def hanging(self) -> bool:
        return bool(self._stuck)

    def call(self, what: str, function: Callable[[], T], timeout_s: float, waited_s: float = 0.0) -> T:
        """`function()` in the worker thread; its exception is raised here.

        Raises StoreTimeout if it isn't done after `timeout_s`, of which `waited_s` are over, or at once while an
        earlier call is stuck. Calls are made one after the other: a later one may write where this one does, even if
        this one is stuck.
        """
        if waited_s >= timeout_s:
            raise StoreTimeout(f"no {what}: those before it took all of its {timeout_s:g} s")
        job = _Job(function)
        with self._wake:
            for earlier in list(self._stuck.values()):
                raise StoreTimeout(f"the store hangs: a {earlier} hasn't returned yet; no {what} until it does")
            if self._closed:
                raise StoreError(f"no {what}: the cache is closed")
            if self._thread is None:
                thread = ClockedThread(self._run, self._name)
                thread.start()  # may fail; then the next call tries again
                self._thread = thread
            self._jobs.append(job)
            self._wake.notify()
        if not job.done.wait(max(0.0, timeout_s - waited_s)):
            with self._wake:
                if not job.done.is_set():
                    if job.started:
                        self._stuck[self._name] = what
                    else:  # behind another thread's longer call, which has a deadline of its own
                        self._jobs.remove(job)
                    raise StoreTimeout(f"the store didn't finish a {what} within {timeout_s:g} s")
        assert job.outcome is not None
        return job.outcome()

    def close(self, timeout: float) -> None:
        """No further calls; the thread ends after those it has. Waits at most `timeout` seconds for that, and not at
        all if it is stuck.

        A thread that is at work while Python shuts down is ended wherever it is; if that is within an engine's C++, as
        when it lets go of a tensor, the process aborts.
        """
        with self._wake:
            self._closed = True
            self._wake.notify()
            thread = None if self._name in self._stuck else self._thread
        if thread not in (None, threading.current_thread()):
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._closed:
                    self._wake.wait()
                if not self._jobs:
                    return
                job = self._jobs.popleft()
                job.started = True
            assert job.function is not None
            job.outcome = capture(job.function)
            job.function = None  # what it holds, an engine's memory among it, is the caller's alone again
            with self._wake:
                job.done.set()
                self._stuck.pop(self._name, None)
            del job
