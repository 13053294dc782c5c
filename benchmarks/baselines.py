"""What a conversion is measured against: plain copies of the same bytes, and clocks that are fair on a busy machine.

Needs the standard library only, so that another environment's Python can measure a peer in the same way.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

Run = Callable[[], object]
_SOURCE = Path(__file__).with_name("plain_copies.c")


def compile_copies() -> dict[str, Callable[[int, int, int], object]]:
    """The copies of plain_copies.c that this CPU can run, by name; none where there is no C compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain_copies.so"
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", path, _SOURCE], check=True)
        library = ctypes.CDLL(str(path))
    library.copy_name.argtypes, library.copy_name.restype = (ctypes.c_int,), ctypes.c_char_p
    copies: dict[str, Callable[[int, int, int], object]] = {}
    while name := library.copy_name(len(copies)):
        copies[name.decode()] = _copy(library[name.decode()])
    return copies


def libc_memcpy() -> Callable[[int, int, int], object]:
    """memcpy(target, source, size) of the C library."""
    return _copy(ctypes.CDLL(None).memcpy)


def _copy(function: Callable[..., object]) -> Callable[[int, int, int], object]:
    function.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t  # type: ignore[attr-defined]
    function.restype = None  # type: ignore[attr-defined]
    return function


class Clock:
    """Seconds that something takes, for a number of threads.

    One thread: its CPU time, which leaves out what other programs took of its core. More: the wall clock, since CPU
    time doesn't show that a thread waits for another; other programs only make it slower, so the fastest round counts.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._now = time.thread_time if threads == 1 else time.perf_counter
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def seconds(self, run: Run) -> float:
        begin = self._now()
        run()
        return self._now() - begin

    def typical(self, times: list[float]) -> float:
        """What stands for all rounds: one thread: the median, more: the least."""
        return statistics.median(times) if self.threads == 1 else min(times)

    def spread(self, copy: Callable[[int, int, int], object], target: int, source: int, nbytes: int) -> Run:
        """A plain copy shared out evenly among threads that wait, ready, between rounds; in pieces of whole pages."""
        share = -(-nbytes // self.threads // 4096) * 4096
        pieces = [(target + begin, source + begin, min(share, nbytes - begin)) for begin in range(0, nbytes, share)]

        def run() -> None:
            others = [self._pool.submit(copy, *piece) for piece in pieces[1:]] if self._pool else []
            copy(*pieces[0])
            for other in others:
                other.result()

        return run


@dataclass(frozen=True)
class Ratio:
    """How often faster a baseline is than a way of doing it: of the typical times, and over the single rounds."""

    ratio: float
    median: float
    min: float
    max: float

    @classmethod
    def of(cls, clock: Clock, floor: list[float], times: list[float], work: float = 1.0) -> Ratio:
        """`work`: how much of the baseline's bytes count, 1 for all."""
        rounds = sorted(work * a / b for a, b in zip(floor, times, strict=True))
        whole = work * clock.typical(floor) / clock.typical(times)
        return cls(*(round(x, 3) for x in (whole, statistics.median(rounds), rounds[0], rounds[-1])))


def interleaved(clock: Clock, ways: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round. In a round every way runs once, so that drifts of the machine meet all.

    In another order each time: what runs behind a plain copy finds the caches and the memory as that has left them.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    order, rng = list(ways), random.Random(1)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            times[name].append(clock.seconds(ways[name]))
    return times


class PlainCopies:
    """memcpy and the fastest streaming copy between two memories of the same size, which are touched."""

    def __init__(self, clock: Clock, target: int, source: int, nbytes: int, rounds: int) -> None:
        self.memcpy = clock.spread(libc_memcpy(), target, source, nbytes)
        found = {name: clock.spread(copy, target, source, nbytes) for name, copy in compile_copies().items()}
        times = interleaved(clock, {"memcpy": self.memcpy, **found}, rounds)
        typical = {name: clock.typical(seconds) for name, seconds in times.items()}
        self.speeds = {name: round(typical["memcpy"] / seconds, 2) for name, seconds in typical.items()}
        streams = [name for name in found if name.startswith("stream")]
        self.stream_name = min(streams, key=typical.__getitem__, default=None)
        self.stream = found[self.stream_name] if self.stream_name else None
