"""Whether there is cache in this engine: not before the weights' fingerprint is known, and never again once it
can't be trusted."""

import threading
from typing import Any

from kvlingua.adapters.vllm.metadata import WorkerReady
from kvlingua.common import log
from kvlingua.common.cache import KVCache
from kvlingua.common.fingerprint import FingerprintTask
from kvlingua.common.guard import Guard
from kvlingua.common.metrics import refused
from kvlingua.common.model import ModelDescription
from kvlingua.common.namespace import Namespace


def say_off(reason: str, message: str) -> None:
    """The one line about an engine that runs on without cache. `reason` is a code for metrics."""
    refused("vllm", reason)
    log.logger.warning("off: %s (vLLM runs on without cache)", message)


class Switch:
    """`namespace` is what to look up and store in; None while there is no cache."""

    def __init__(self, cache: KVCache, description: ModelDescription, page: int, guard: Guard) -> None:
        self._cache = cache
        self._description = description
        self._page = page
        self._guard = guard
        self._off = False
        self._namespace: Namespace | None = None
        self._pool: Any = None
        self._hashes: object = None
        self._fingerprint = FingerprintTask(description, cache.config)

    @property
    def namespace(self) -> Namespace | None:
        """Read before every lookup and store."""
        if self._pool is not None and self._pool.cached_block_hash_to_block is not self._hashes:
            self.reset()
        return None if self._off else self._namespace

    def worker_ready(self, ready: WorkerReady) -> None:
        """The worker knows how its KV cache lies: switch on as soon as the fingerprint is known, beside the
        engine's work."""
        if ready.layout is None:
            self.off("layout", str(ready.why_not))
            return
        work = "start", None, self._switch_on, ready.layout
        threading.Thread(target=self._guard.run, args=work, name="kvlingua-start", daemon=True).start()

    def watch(self, block_pool: Any) -> None:
        """Every reset of vLLM's prefix cache gives its block pool a new table of hashes, so a reset is noticed by
        that."""
        self._pool, self._hashes = block_pool, block_pool.cached_block_hash_to_block

    def reset(self) -> None:
        """vLLM was told to forget its prefixes, as it is after a change of weights, which can't be told from other
        reasons."""
        self.off("reset", "vLLM's caches were reset, as after a change of weights; restart it to share KV again")

    def off(self, reason: str, message: str) -> None:
        """No cache from here on until the engine is restarted. Said once."""
        if not self._off:
            self._off = True
            say_off(reason, message)

    def _switch_on(self, layout: str) -> None:
        digest = self._fingerprint.wait(None)
        if digest is None:
            self.off("fingerprint", f"the weights have no fingerprint: {self._fingerprint.error}")
            return
        config = self._cache.config
        namespace = self._description.namespace(
            digest, chunk_tokens=config.chunk_tokens, layers_per_shard=config.layers_per_shard
        )
        self._namespace = namespace
        if not self._off:
            log.logger.info(
                "on: vllm, namespace %s, layout %s, page %d, store %s",
                namespace.digest[:12],
                layout,
                self._page,
                self._cache.describe(),
            )
            self._say_nearest(namespace)

    def _say_nearest(self, namespace: Namespace) -> None:
        nearest = self._cache.nearest(namespace)
        if nearest is not None:
            other, differences = nearest
            log.logger.info(
                "the store holds nothing for this engine yet; the nearest other namespace is %s: %s",
                other.digest[:12],
                "; ".join(differences),
            )
