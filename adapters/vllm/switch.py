"""When there is cache in this vLLM: from the time its workers have described their KV cache and the weights are
identified; after vLLM was told to forget its prefixes not before all workers have proved that their weights are still
the same."""

from collections.abc import Callable, Sequence
from typing import Any

from kvlingua.adapters.vllm.metadata import WorkerReady
from kvlingua.common import log
from kvlingua.common.activation import Activation
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.metrics import refused


class Switch:
    """`page`: tokens per block of vLLM's."""

    def __init__(self, activation: Activation, page: int) -> None:
        self._activation = activation
        self._page = page
        self._pool: Any = None
        self._hashes: object = None
        self._ranks = 1
        self._resets = 0
        self._proofs = 0  # ranks whose weights are proved unchanged after the last of the resets

    @property
    def namespace(self) -> Namespace | None:
        """What to look up and store in; None while there is no cache. Read before every lookup and store."""
        if self._pool is None:
            return None  # a reset would go unnoticed
        if self._pool.cached_block_hash_to_block is not self._hashes:
            self.reset()
        return None if self.unproved else self._activation.namespace

    @property
    def unproved(self) -> int:
        """The number of the last reset, while not all workers have proved that it was followed by the same weights as
        before; else 0."""
        return self._resets if self._resets and self._proofs < self._ranks else 0

    def workers_ready(self, ranks: Sequence[object]) -> bool:
        """What each rank's worker says of its KV cache: how it lies, or why that can't be known. True, if nothing is
        raised."""
        self._ranks = len(ranks)
        found = [ready if isinstance(ready, WorkerReady) else WorkerReady(None) for ready in ranks]
        for ready in found:
            if ready.layout is None:
                self.off(*ready.why_not)
                return True
        layouts = {ready.layout for ready in found}
        if len(layouts) > 1:
            self.off("layout", f"the ranks' KV caches lie in different ways: {', '.join(map(str, layouts))}")
        else:
            self._activation.start(str(layouts.pop()), self._page)
        return True

    def watch(self, pool: Any, resettable: Any, let_go: Callable[[], object]) -> bool:
        """Notice every reset of vLLM's prefix cache: by the new table of hashes that it gives its block pool, and by
        the call, since vLLM refuses a reset while blocks are in use. True, if nothing is raised.

        pool: the BlockPool. resettable: whose `reset_prefix_cache` is called for it, the KV cache manager or the pool.
        let_go: called before, and doesn't raise; it gives up the blocks that are in use on our behalf alone.
        """
        original = resettable.reset_prefix_cache

        def reset_prefix_cache() -> Any:
            let_go()
            try:
                return original()
            finally:
                self.reset()

        resettable.reset_prefix_cache = reset_prefix_cache
        self._hashes = pool.cached_block_hash_to_block
        self._pool = pool
        return True

    def reset(self) -> None:
        """vLLM was told to forget its prefixes, as it is after a change of weights, which can't be told from other
        reasons."""
        self._resets, self._proofs = self._resets + 1, 0
        if self._pool is not None:
            self._hashes = self._pool.cached_block_hash_to_block
        if self._activation.namespace is not None:
            refused("vllm", "reset")
            log.logger.info("vllm: its caches were reset: no cache until its weights are proved to be the same")

    def proved(self, resets: Sequence[int]) -> None:
        """Workers found the weights unchanged after the resets of these numbers: one number per worker and proof."""
        if self.unproved:
            self._proofs += resets.count(self._resets)
            if not self.unproved and self._activation.namespace is not None:
                log.logger.info("vllm: its weights are the same as before the reset: there is cache again")

    def off(self, reason: str, message: str) -> None:
        """No cache from here on until the engine is restarted. `reason` is a code for metrics."""
        self._activation.off(reason, message)
