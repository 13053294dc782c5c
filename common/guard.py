"""The two halves of the guard: one per adapter, around our code only, never around the engine's own calls.

Before a hit is promised to the engine, any error of ours is a miss: `Guard.run`. After the promise an error must
reach the engine as "recompute": `Guard.promised` says whether it was kept. This is the only file with a broad
`except`.
"""

import logging
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from kvlingua.common import log, metrics
from kvlingua.common.errors import ContainerError, KVLinguaError, UnsupportedError

T = TypeVar("T")
P = ParamSpec("P")

REPEAT_S = 60.0  # the same trouble is logged again at most this often


class Guard:
    """Catches, counts and logs for one adapter ("hf", "vllm", "sglang"). `consequence`: what `run` says follows."""

    def __init__(self, adapter: str, consequence: str = "treated as a miss") -> None:
        self.adapter = adapter
        self._consequence = consequence

    def run(self, what: str, default: T, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(...)`, or `default` if it raises. `what` names the work in the log line: "lookup", "store"."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            self.refuse(what, error, self._consequence)
            return default

    def promised(self, what: str, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """True if `function(...)` did what the engine was promised; False: the engine must recompute."""
        try:
            function(*args, **kwargs)
        except Exception as error:
            self.refuse(what, error, "recomputing")
            return False
        return True

    def refuse(self, what: str, error: Exception, consequence: str) -> None:
        """Count and log an error that a caller has caught itself."""
        reason = reason_of(error)
        metrics.refused(self.adapter, reason)
        ours = isinstance(error, KVLinguaError)
        message = f"{self.adapter}: {what} failed ({reason}), {consequence}: {error if ours else repr(error)}"
        if log.once(f"guard {self.adapter} {what} {reason}", logging.WARNING, message, every_s=REPEAT_S) and not ours:
            log.logger.warning("this is a defect of kvlingua, please report it", exc_info=error)


def reason_of(error: BaseException) -> str:
    """A short code for metrics: the error's own, or its class in snake case ("store_timeout")."""
    if isinstance(error, (UnsupportedError, ContainerError)):
        return error.reason
    name = type(error).__name__.removesuffix("Error") or "Error"
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def capture(function: Callable[[], T]) -> Callable[[], T]:
    """Run `function` now, in this thread; calling the result, once, gives its value or raises its exception, in any
    thread."""
    try:
        value = function()
    except Exception as error:
        caught = error

        def fail() -> T:
            nonlocal caught
            try:
                raise caught
            finally:
                del caught  # else it held the frames that hold it, until the collector comes, in whatever thread

        return fail
    return lambda: value


def failure(function: Callable[[], object]) -> Exception | None:
    """Run `function`; the exception it raised, or None. One of ours comes without the frames it passed, which hold what
    they worked on, an engine's memory among it."""
    try:
        function()
    except Exception as error:
        if isinstance(error, KVLinguaError):
            error.__cause__ = error.__context__ = error.__traceback__ = None
        return error
    return None
