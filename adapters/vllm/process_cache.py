"""One KVCache for all connectors of a process: where scheduler and worker are in one, both have the same store."""

import threading

from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config

_lock = threading.Lock()
_caches: dict[str, tuple[KVCache, int]] = {}  # configuration -> cache, how many hold it


def acquire(config: Config) -> KVCache:
    """The cache of this configuration; give it back with `release`. Raises ConfigError."""
    key = config.model_dump_json()
    with _lock:
        cache, holders = _caches.get(key) or (KVCache.open(config), 0)
        _caches[key] = cache, holders + 1
        return cache


def release(cache: KVCache, timeout: float) -> bool:
    """The last holder makes what was stored visible, waiting up to `timeout` seconds, and closes the cache."""
    key = cache.config.model_dump_json()
    with _lock:
        held, holders = _caches[key]
        if holders > 1:
            _caches[key] = held, holders - 1
            return True
        del _caches[key]
    return cache.close(timeout)
