"""What the caches of an engine's processes count, as statistics of a vLLM connector: in its log and on its /metrics.

Each process says by how much its counts have grown since it last did; vLLM adds up those of all ranks.
"""

import threading
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from kvlingua.common.cache import KVCache

# Names of `KVCache.stats`, as vLLM's metrics have them with `vllm:kvlingua_` in front.
HELP = {
    "lookups": "Lookups answered by kvlingua",
    "hits": "Lookups that found at least one chunk",
    "tokens_reused": "Tokens loaded into the engine, summed over ranks",
    "tokens_stored": "Tokens of chunks that became visible in the store, summed over ranks",
    "bytes_read": "Bytes of objects read",
    "bytes_written": "Bytes of objects written",
    "drops": "Chunks that were not stored, summed over ranks",
    "corrupt_objects": "Objects removed as damaged",
}

_lock = threading.Lock()
_told: WeakKeyDictionary[KVCache, dict[str, int]] = WeakKeyDictionary()  # both sides in one process have one cache


@dataclass
class CacheStats(KVConnectorStats):
    """`data`: name -> growth."""

    def reset(self) -> None:
        self.data.clear()

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        names = self.data.keys() | other.data.keys()
        return CacheStats({name: self.data.get(name, 0) + other.data.get(name, 0) for name in sorted(names)})

    def reduce(self) -> dict[str, int | float]:
        return dict(self.data)

    def is_empty(self) -> bool:
        return not self.data


def news(cache: KVCache) -> CacheStats | None:
    """By how much this process's counts have grown since the last call; None if nothing was counted."""
    with _lock:
        now = cache.stats
        before = _told.get(cache, {})
        _told[cache] = now
    grown = {name: now[name] - before.get(name, 0) for name in HELP if now[name] != before.get(name, 0)}
    return CacheStats(grown) if grown else None


class CacheMetrics(KVConnectorPromMetrics):
    """The same as Prometheus counters, with the labels of vLLM's own."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {
            name: self._counter_cls(name=f"vllm:kvlingua_{name}", documentation=text, labelnames=labelnames)
            for name, text in HELP.items()
        }
        for counter in self._counters.values():  # shown from the start, as zeros
            for labels in per_engine_labelvalues.values():
                counter.labels(*labels)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for name, amount in transfer_stats_data.items():
            if name in self._counters:
                self._counters[name].labels(*labels).inc(amount)
