"""Counters and histograms of this process, and the text file they are written to.

They live in a registry of their own, so that an engine's own metrics are neither changed nor doubled. `MetricsFile`
writes them as Prometheus text, one file per process, for a collector of text files (node_exporter) and for tests.
"""

import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from kvlingua.common import log

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

    def update(self) -> None:
        """Something was counted: the file follows within a second. Never waits for the file system."""
        self._changed.set()
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="kvlingua-metrics", daemon=True)
                    self._thread.start()

    def close(self, timeout: float) -> None:
        """Write what was counted so far, unless the file system needs longer than `timeout` seconds."""
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
