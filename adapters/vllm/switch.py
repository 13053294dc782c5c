"""When there is cache in this vLLM: from the time its worker has described its KV cache and the weights are identified,
until vLLM is told to forget its prefixes."""

from collections.abc import Sequence
from typing import Any

from kvlingua.adapters.vllm.metadata import WorkerReady
from kvlingua.common.activation import Activation
from kvlingua.common.identity.namespace import Namespace


class Switch:
    """`page`: tokens per block of vLLM's."""

    def __init__(self, activation: Activation, page: int) -> None:
        self._activation = activation
        self._page = page
        self._pool: Any = None
        self._hashes: object = None

    @property
    def namespace(self) -> Namespace | None:
        """What to look up and store in; None while there is no cache. Read before every lookup and store."""
        if self._pool is None:
            return None  # a reset would go unnoticed
        if self._pool.cached_block_hash_to_block is not self._hashes:
            self.reset()
        return self._activation.namespace

    def workers_ready(self, ranks: Sequence[object]) -> bool:
        """What each rank's worker says of its KV cache: how it lies, or why that can't be known. True, if nothing is
        raised."""
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

    def watch(self, kv_cache_manager: Any) -> bool:
        """Every reset of vLLM's prefix cache gives its block pool a new table of hashes, so a reset is noticed by
        that. True, if nothing is raised."""
        pool = kv_cache_manager.block_pool
        self._hashes = pool.cached_block_hash_to_block
        self._pool = pool
        return True

    def reset(self) -> None:
        """vLLM was told to forget its prefixes, as it is after a change of weights, which can't be told from other
        reasons."""
        self.off("reset", "vLLM's caches were reset, as after a change of weights; restart it to share KV again")

    def off(self, reason: str, message: str) -> None:
        """No cache from here on until the engine is restarted. `reason` is a code for metrics."""
        self._activation.off(reason, message)
