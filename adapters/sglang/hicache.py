"""kvlingua as a storage backend of SGLang's HiCache, for those who use it already.

    --enable-hierarchical-cache --hicache-storage-backend dynamic --hicache-storage-backend-extra-config
        '{"backend_name": "kvlingua", "module_path": "kvlingua.adapters.sglang.hicache",
          "class_name": "KVLinguaHiCache", "interface_v1": 1}'

HiCache asks, loads and stores in threads of its own, between the store and its host pool, and holds the host pool's
pages meanwhile. When a load fails it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolTransferResult

from kvlingua.adapters.sglang import building
from kvlingua.adapters.sglang.pages import Pages, digests_of
from kvlingua.adapters.sglang.start import connect
from kvlingua.adapters.sglang.views import describe_host_pool
from kvlingua.common.cpu_clock import clock_methods
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.geometry import Extent, Geometry
from kvlingua.layouts.view import Pool


@clock_methods
class HostPages(Pages):
    """Pages in HiCache's host pool. May be used from several threads."""

    arguments: ClassVar[tuple[str, ...]] = ("enable_hierarchical_cache", "hicache_storage_backend")
    first_block: ClassVar[int] = 0

    @classmethod
    def check(cls, arguments: Any, page: int, chunk: int) -> None:
        from sglang.srt.arg_groups.overrides import resolution_result

        super().check(arguments, page, chunk)
        mode = resolution_result(arguments, "hicache_host_memory_mode", None)
        if mode != "cache":
            raise UnsupportedError("host_memory", f"--hicache-host-memory-mode {mode} was never run: use cache")

    def store(self, hashes: Sequence[str], slots: torch.Tensor) -> bool:
        """Have these pages, which lie in the rows `slots` [token], stored; False if something went wrong.

        They are copied when this returns.
        """
        namespace = self._namespace
        if namespace is None or not self._stores:
            return True  # SGLang would warn of each page, and never store it later
        return self._guard.promised("store", self._store, namespace, hashes, slots)

    def _store(self, namespace: Namespace, hashes: Sequence[str], slots: torch.Tensor) -> None:
        view = self._view(slots)
        self._cache.store(namespace, (), view, 0, view.tokens, digests=digests_of(hashes))


class KVLinguaHiCache(HiCacheStorage):
    """Made by SGLang, once in every scheduler process. Without `pages` it finds nothing and stores nothing."""

    def __init__(self, storage_config: Any, kwargs: Any) -> None:
        self._by_pages = bool((storage_config.extra_config or {}).get("interface_v1"))
        self._pages: HostPages | None = None

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        self._pages = connect(building.context, HostPages, partial(self._describe, mem_pool_host))
        if self._pages is not None:
            self._pages.start()

    def _describe(self, host: Any, kv: Any, geometry: Geometry, page: int, extent: Extent) -> Pool:
        if not self._by_pages:
            raise UnsupportedError(
                "interface", '--hicache-storage-backend-extra-config must have "interface_v1": 1, or there are no pages'
            )
        return describe_host_pool(host, kv, geometry, page, extent)

    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        return 0 if self._pages is None else self._pages.found(keys)

    def batch_get_v1(self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        return [self._pages is not None and self._pages.load(keys, host_indices)] * len(keys)

    def batch_set_v1(self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        return [self._pages is None or self._pages.store(keys, host_indices)] * len(keys)

    # Where SGLang uses what follows, kvlingua is off.

    def batch_exists_v2(self, keys: list[str], pool_transfers: Any = None, extra_info: Any = None) -> Any:
        return PoolTransferResult.empty()

    def batch_get_v2(self, transfers: list[Any], extra_info: Any = None) -> dict[str, list[bool]]:
        return {transfer.name: [False] * len(transfer.keys or ()) for transfer in transfers}

    def batch_set_v2(self, transfers: list[Any], extra_info: Any = None) -> dict[str, list[bool]]:
        return {transfer.name: [True] * len(transfer.keys or ()) for transfer in transfers}

    def exists(self, key: str) -> bool:
        return False

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> None:
        return None

    def batch_get(self, keys: list[str], target_locations: Any = None, target_sizes: Any = None) -> list[Any]:
        return [None] * len(keys)

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return True

    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        return True
