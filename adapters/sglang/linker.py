"""kvlingua as SGLang's external cache linker, a second way to the store: without copies of SGLang's own in between.

    --enable-unified-cache-external-linker --unified-cache-external-linker-backend dynamic
    --unified-cache-external-linker-config
        '{"linker": "KVLinguaLinker", "linker_module_path": "kvlingua.adapters.sglang.linker"}'

SGLang can only abort requests whose load fails after it was queued. So all of it is loaded when it is to be queued, and
what can't be loaded isn't.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import LayerWiseLoadCounter, UnifiedCacheLinker

from kvlingua.adapters.sglang import building
from kvlingua.adapters.sglang.pages import Pages, digests_of
from kvlingua.adapters.sglang.ranks import Ranks
from kvlingua.adapters.sglang.staging import Staging
from kvlingua.adapters.sglang.start import connect
from kvlingua.adapters.sglang.views import describe_pool
from kvlingua.common.cache import KVCache
from kvlingua.common.cpu_clock import clock_methods
from kvlingua.common.guard import Guard
from kvlingua.common.identity.model import ModelDescription
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.view import Pool

NOTHING_QUEUED = -1


@clock_methods
class LinkedPages(Pages):
    """Pages in SGLang's pool of KV."""

    arguments: ClassVar[tuple[str, ...]] = ("enable_unified_cache_external_linker",)

    def __init__(
        self,
        cache: KVCache,
        description: ModelDescription,
        pool: Pool,
        guard: Guard,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(cache, description, pool, guard, ranks)
        self._staging = Staging(cache, pool)

    def load_on_all(self, hashes: Sequence[str], slots: torch.Tensor) -> bool:
        """Like `load`; False, on all ranks, if one of them couldn't."""
        loaded = self.ranks.agree([self.load(hashes, slots)]) == [True]
        self._guard.run("load", None, self._remember, hashes, loaded)
        return loaded

    def store(self, hashes: Sequence[str], slots: torch.Tensor) -> bool:
        """Copy these pages out of the rows `slots` [token] and have them stored; False if they should come again."""
        namespace = self._namespace
        if namespace is None:
            return False
        return not self._stores or self._guard.run("store", False, self._store, namespace, hashes, slots)

    def sweep(self) -> None:
        """Let go of memory that isn't needed any more."""
        self._guard.run("store", None, self._staging.sweep)

    def _remember(self, hashes: Sequence[str], stored: bool) -> None:
        """Whether they need not be stored when SGLang offers them."""
        (self._staging.know if stored else self._staging.forget)(digests_of(hashes))

    def _store(self, namespace: Namespace, hashes: Sequence[str], slots: torch.Tensor) -> bool:
        digests = digests_of(hashes)
        first = self._staging.lacking(digests, 0)
        digests, slots = digests[first:], slots[first * self.chunk_tokens :]
        stored = self._staging.store(
            namespace, digests, lambda start, stop: self._view(slots[start:stop]), 0, len(digests)
        )
        return stored == len(digests)


class KVLinguaLinker(UnifiedCacheLinker):
    """Made by SGLang, once in every scheduler process. Without `pages` it finds nothing and stores nothing."""

    def __init__(
        self,
        server_args: Any,
        params: Any,
        *,
        components: Any,
        extra_config: Mapping[str, Any] | None = None,
        forward_stream: Any = None,
    ) -> None:
        self.forward_stream = forward_stream
        self.pools = {PoolName.KV: params.token_to_kv_pool_allocator.get_kvcache()}
        self.layer_done_counter = LayerWiseLoadCounter(0)  # no layer is ever waited for
        self._queued: set[str] = set()
        self._offloaded: deque[bool] = deque()
        self._pages = connect(building.context, LinkedPages, describe_pool, extra_config or {})
        if self._pages is not None:
            self._pages.start()

    def lookup(self, rid: str, transfers: list[PoolTransfer]) -> list[int]:
        if self._pages is None:
            return []
        return list(range(1, self._pages.found(_kv(transfers).keys or ()) + 1))

    def load(self, rid: str, transfers: list[PoolTransfer]) -> bool:
        transfer = _kv(transfers)
        if self._pages is None or not self._pages.load_on_all(transfer.keys, transfer.device_indices):
            return False
        self._queued.add(rid)
        return True

    def start_layer_wise_loading(self) -> int:
        self._queued.clear()
        return NOTHING_QUEUED

    def finish_layer_wise_loading(self, counter_index: int) -> bool:
        return True

    def cancel_queued_load(self, rid: str) -> bool:
        queued = rid in self._queued
        self._queued.discard(rid)
        return queued

    def offload(self, transfers: list[PoolTransfer], session_id: str | None = None) -> bool:
        """All ranks take alike what SGLang wants to be stored: it holds these pages until it has heard of them from all
        of them."""
        if self._pages is None:
            return False
        transfer = _kv(transfers)
        self._offloaded.append(self._pages.store(transfer.keys, transfer.device_indices))
        return True

    def num_completed_offloads(self) -> int:
        if self._pages is not None:
            self._pages.sweep()
        return len(self._offloaded)

    def pop_completed_offload(self) -> bool:
        return self._offloaded.popleft()

    def reset(self) -> None:
        self._queued.clear()
        self._offloaded.clear()

    def close(self) -> None:
        self.reset()


def _kv(transfers: Sequence[Any]) -> Any:
    return next(transfer for transfer in transfers if transfer.name == PoolName.KV)
