"""CPU seconds that this process spends on kvlingua: within the calls that an engine makes of it, and in its threads.

In the metrics it is `kvlingua_cpu_seconds_total{place="hooks"}` and `{place="threads"}`, so that anyone can see what
the cache costs. Threads of the native library (`threads` above 1) aren't in it.
"""

import functools
import os
import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.Lock()
_seconds = {"hooks": 0.0, "threads": 0.0}
_live: dict[int, int] = {}  # our threads' idents, and the clocks of their CPU time
_within = threading.local()


class ClockedThread(threading.Thread):
    """A daemon thread of ours."""

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)

    def run(self) -> None:
        ident = threading.get_ident()
        with _lock:
            _live[ident] = time.pthread_getcpuclockid(ident)
        try:
            super().run()
        finally:
            with _lock:  # a clock must not be read once its thread has ended
                if _live.pop(ident, None) is not None:
                    _seconds["threads"] += time.thread_time()


def clocked(function: Callable[P, T]) -> Callable[P, T]:
    """Count the CPU seconds of a call by an engine. Calls within calls count once; threads of ours, not at all here."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if getattr(_within, "call", False):
            return function(*args, **kwargs)
        _within.call, began = True, time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            _within.call = False
            with _lock:
                _seconds["hooks"] += time.thread_time() - began

    return call


def clock_methods(cls: type[T]) -> type[T]:
    """Decorates a class whose public methods an engine calls, and which calls nothing of the engine's that costs."""
    for name, value in list(vars(cls).items()):
        if callable(value) and not name.startswith("_"):
            setattr(cls, name, clocked(value))
    return cls


def cpu_seconds() -> dict[str, float]:
    """Of this process so far, by place: "hooks" and "threads"."""
    with _lock:
        running = sum(time.clock_gettime(clock) for clock in _live.values())
        return {"hooks": _seconds["hooks"], "threads": _seconds["threads"] + running}


def _forked() -> None:
    """None of the parent's threads runs in a child, and a clock of one that doesn't exist must not be read."""
    global _lock
    _lock = threading.Lock()
    _live.clear()
    _seconds.update(hooks=0.0, threads=0.0)


os.register_at_fork(after_in_child=_forked)
