"""Counters and histograms of this process, and the text file they are written to.

They live in a registry of their own, so that an engine's own metrics are neither changed nor doubled. `MetricsFile`
writes them as Prometheus text, one file per process, for a collector of text files (node_exporter) and for tests.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from kvlingua.common import log
from kvlingua.common.cpu_clock import ClockedThread, cpu_seconds

REGISTRY = CollectorRegistry()

LOOKUPS = Counter("kvlingua_lookups", "Lookups answered", ["store"], registry=REGISTRY)
HITS = Counter("kvlingua_hits", "Lookups that found at least one chunk", ["store"], registry=REGISTRY)
TOKENS_REUSED = Counter("kvlingua_tokens_reused", "Tokens loaded into an engine", ["store"], registry=REGISTRY)
TOKENS_STORED = Counter("kvlingua_tokens_stored", "Tokens of chunks that became visible", ["store"], registry=REGISTRY)
BYTES = Counter("kvlingua_bytes", "Bytes of objects read and written", ["direction", "store"], registry=REGISTRY)
REFUSALS = Counter("kvlingua_refusals", "Work refused or failed, by reason", ["adapter", "reason"], registry=REGISTRY)
DROPS = Counter("kvlingua_drops", "Chunks that were not stored, by reason", ["reason", "store"], registry=REGISTRY)
CORRUPT = Counter("kvlingua_corrupt_objects", "Objects removed as damaged, by reason", ["reason"], registry=REGISTRY)
SECONDS = Histogram(
    "kvlingua_seconds",
    "Seconds that an operation took",
    ["operation", "store"],
    registry=REGISTRY,
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


class _CpuSeconds(Collector):
    def collect(self) -> Iterator[CounterMetricFamily]:
        metric = CounterMetricFamily("kvlingua_cpu_seconds", "CPU seconds of kvlingua, by place", labels=["place"])
        for place, seconds in cpu_seconds().items():
            metric.add_metric([place], seconds)
        yield metric


REGISTRY.register(_CpuSeconds())

_SUMS = (
    "lookups",
    "hits",
    "tokens_reused",
    "tokens_stored",
    "bytes_read",
    "bytes_written",
    "drops",
    "corrupt_objects",
)
_files: tuple["MetricsFile", ...] = ()  # replaced as a whole, so that it can be read at any time
_files_lock = threading.Lock()


def changed() -> None:
    """Something was counted: the files of this process follow."""
    for file in _files:
        file.update()


def refused(adapter: str, reason: str) -> None:
    """Work of an adapter was refused or failed; `reason` is a short code."""
    REFUSALS.labels(adapter, reason).inc()
    changed()


class Counts:
    """What one cache did, counted for itself and in the process's metrics, labelled with its store's scheme."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._sums: dict[str, int] = dict.fromkeys(_SUMS, 0)

    def lookup(self, hit: bool) -> None:
        LOOKUPS.labels(self._store).inc()
        HITS.labels(self._store).inc(hit)
        self._add(lookups=1, hits=int(hit))

    def loaded(self, tokens: int, nbytes: int) -> None:
        TOKENS_REUSED.labels(self._store).inc(tokens)
        BYTES.labels("read", self._store).inc(nbytes)
        self._add(tokens_reused=tokens, bytes_read=nbytes)

    def stored(self, tokens: int, nbytes: int) -> None:
        TOKENS_STORED.labels(self._store).inc(tokens)
        BYTES.labels("written", self._store).inc(nbytes)
        self._add(tokens_stored=tokens, bytes_written=nbytes)

    def dropped(self, reason: str, chunks: int) -> None:
        DROPS.labels(reason, self._store).inc(chunks)
        self._add(drops=chunks)

    def corrupt(self, reason: str) -> None:
        CORRUPT.labels(reason).inc()
        self._add(corrupt_objects=1)

    def snapshot(self) -> dict[str, int]:
        """The sums by name."""
        with self._lock:
            return dict(self._sums)

    def _add(self, **amounts: int) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] += amount
        changed()


class MetricsFile:
    """`<folder>/kvlingua-<pid>.prom`, replaced at most once a second while something happens, and at `close`.

    A folder that can't be written is said once and otherwise ignored: metrics never stand in the way.
    """

    INTERVAL_S = 1.0

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"kvlingua-{os.getpid()}.prom"
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        global _files
        with _files_lock:
            _files = (*_files, self)

    def update(self) -> None:
        """Something was counted: the file follows within a second. Never waits for the file system."""
        self._changed.set()
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = ClockedThread(self._run, "kvlingua-metrics")
                    thread.start()
                    self._thread = thread  # only now: `close` in another thread joins it

    def close(self, timeout: float) -> None:
        """Write what was counted so far, unless the file system needs longer than `timeout` seconds."""
        global _files
        with _files_lock:
            _files = tuple(file for file in _files if file is not self)
        self._closing.set()
        self.update()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        closing = False
        while not closing:
            self._changed.wait()
            closing = self._closing.is_set()
            self._changed.clear()
            self._write()
            if not closing:
                self._closing.wait(self.INTERVAL_S)

    def _write(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(generate_latest(REGISTRY))
            temporary.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            log.once(f"metrics {self._path.parent}", logging.WARNING, f"metrics can't be written: {error}")


class Stopwatch:
    """`with Stopwatch("load", store):` observes the seconds, also when the block raises."""

    def __init__(self, operation: str, store: str) -> None:
        self._histogram = SECONDS.labels(operation, store)
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self._histogram.observe(time.perf_counter() - self._start)
