"""Whether there is cache in an engine: not before the weights' fingerprint is known, and never again once something
can't be trusted. Either is said in one line, alike in all engines:

    on: vllm, namespace 17b4bb2b8202, layout vllm_cpu_vec, page 128, store file:///var/cache/kv
    off: tensor parallelism isn't supported yet

The codes that refusals are counted by mean the same everywhere: "version" (of the engine), "device", "fingerprint"
(there is none), "weights" (they changed), "layout"; others name what isn't supported.
"""

import threading
from pathlib import Path

from kvlingua.common import log
from kvlingua.common.cache import KVCache
from kvlingua.common.cpu_clock import ClockedThread
from kvlingua.common.guard import Guard
from kvlingua.common.identity.fingerprint import FingerprintTask
from kvlingua.common.identity.model import ModelDescription
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.metrics import MetricsFile, refused


def say_off(engine: str, reason: str, message: str, metrics_dir: Path | None = None) -> None:
    """The one line about an engine that runs on without cache. `reason` is a code for metrics.

    metrics_dir: where to count it, if no cache was opened in this process, which would have seen to that.
    """
    log.logger.warning("off: %s", message)
    if metrics_dir is not None:
        MetricsFile(metrics_dir)
    refused(engine, reason)


class Activation:
    """`namespace` is what to look up and store in; None while there is no cache. May be used from any thread."""

    def __init__(self, cache: KVCache, description: ModelDescription, guard: Guard) -> None:
        self._cache = cache
        self._description = description
        self._guard = guard
        self._lock = threading.Lock()
        self._off = False
        self._namespace: Namespace | None = None
        self._fingerprint = FingerprintTask(description, cache.config)

    @property
    def namespace(self) -> Namespace | None:
        """Read before every lookup and store."""
        return None if self._off else self._namespace

    def start(self, layout: str, page: int) -> None:
        """Switch on as soon as the fingerprint is known, in a thread beside the engine's work. Call it once.

        layout, page: how the engine's KV lies, for the line.
        """
        ClockedThread(lambda: self._run(layout, page), "kvlingua-start").start()

    def off(self, reason: str, message: str) -> None:
        """No cache from here on until the engine is restarted. Said and counted the first time."""
        with self._lock:
            first, self._off = not self._off, True
        if first:
            say_off(self._guard.adapter, reason, message)

    def _run(self, layout: str, page: int) -> None:
        if not self._guard.run("start", False, self._switch_on, layout, page):
            self.off("start", "an unexpected error at start, see the line before")

    def _switch_on(self, layout: str, page: int) -> bool:
        digest = self._fingerprint.wait(None)
        if digest is None:
            self.off("fingerprint", f"the weights have no fingerprint: {self._fingerprint.error}")
            return True
        config = self._cache.config
        namespace = self._description.namespace(
            digest, chunk_tokens=config.chunk_tokens, layers_per_shard=config.layers_per_shard
        )
        with self._lock:
            if self._off:
                return True
            self._namespace = namespace
            log.logger.info(
                "on: %s, namespace %s, layout %s, page %d, store %s",
                self._guard.adapter,
                namespace.digest[:12],
                layout,
                page,
                self._cache.describe(),
            )
        self._guard.run("nearest", None, self._say_nearest, namespace)
        return True

    def _say_nearest(self, namespace: Namespace) -> None:
        nearest = self._cache.nearest(namespace)
        if nearest is not None:
            other, differences = nearest
            log.logger.info(
                "the nearest other namespace in the store is %s: %s", other.digest[:12], "; ".join(differences)
            )
