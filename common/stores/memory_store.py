"""`memory://`: objects in this process's memory, for tests and for one process that asks the same thing twice."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvlingua.common.errors import ConfigError, StoreFull
from kvlingua.common.identity.keys import NAMESPACE_FILE
from kvlingua.common.stores.store import Bytes, Capabilities, Entry, Read, split_key


@dataclass(slots=True)
class _Object:
    data: bytes
    mtime_ns: int


class MemoryStore:
    """A store in a dictionary, private to the cache that opened it."""

    capabilities = Capabilities(shared=False, persistent=False)
    files = None

    def __init__(self, url: str, max_bytes: int) -> None:
        if url != "memory://":
            raise ConfigError(f"the store URL {url!r} names something in memory; expected just memory://")
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._objects: dict[str, _Object] = {}
        self._places: dict[str, int] = {}
        self._total = 0

    def exists_many(self, keys: Sequence[str]) -> list[bool]:
        for key in keys:
            split_key(key)
        with self._lock:
            return [key in self._objects for key in keys]

    def get_many(self, reads: Sequence[Read]) -> list[int | None]:
        sizes: list[int | None] = []
        for read in reads:
            split_key(read.key)
            with self._lock:
                found = self._objects.get(read.key)
            if found is not None:  # its bytes never change: an eviction meanwhile does no harm
                part = memoryview(found.data)[read.offset : read.offset + read.into.nbytes]
                read.into[: part.nbytes] = part
            sizes.append(None if found is None else len(found.data))
        return sizes

    def put_many(self, items: Sequence[tuple[str, Sequence[Bytes]]]) -> None:
        now_ns = time.time_ns()
        for index, (key, buffers) in enumerate(items):
            split_key(key)
            with self._lock:
                mtime_ns = self._places.pop(key, now_ns - 1000 * index)
                if key in self._objects:
                    continue
                data = b"".join(buffers)
                try:
                    self._make_room(len(data), mtime_ns)
                except StoreFull as error:
                    error.stored = index
                    raise
                self._objects[key] = _Object(data, mtime_ns)
                self._total += len(data)

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            split_key(key)
        with self._lock:
            for key in keys:
                self._remove(key)

    def scan(self, prefix: str = "") -> Iterator[Entry]:
        with self._lock:
            found = [Entry(key, len(it.data), it.mtime_ns / 1e9) for key, it in self._objects.items()]
        return iter([entry for entry in found if entry.key.startswith(prefix)])

    def touch_chain(self, keys: Sequence[str]) -> None:
        now_ns = time.time_ns()
        with self._lock:
            self._places.clear()
            for index, key in enumerate(keys):
                split_key(key)
                if key in self._objects:
                    self._objects[key].mtime_ns = now_ns - 1000 * index
                else:
                    self._places[key] = now_ns - 1000 * index

    def close(self) -> None:
        with self._lock:
            self._objects.clear()
            self._places.clear()
            self._total = 0

    def describe(self) -> str:
        return "memory://"

    def _make_room(self, nbytes: int, mtime_ns: int) -> None:
        target = self._max_bytes - nbytes
        if target < 0:
            raise StoreFull(
                f"an object of {nbytes} bytes never fits into a store of at most {self._max_bytes} (max_bytes)"
            )
        if self._total <= target:
            return
        for key in sorted(self._objects, key=lambda key: self._objects[key].mtime_ns):
            if self._total <= target or self._objects[key].mtime_ns >= mtime_ns:
                break
            if not key.endswith(NAMESPACE_FILE):
                self._remove(key)
        if self._total > target:
            raise StoreFull(
                f"the store in memory holds {self._total} bytes of max_bytes = {self._max_bytes}, all used more "
                "recently than what should be stored; raise max_bytes"
            )

    def _remove(self, key: str) -> None:
        found = self._objects.pop(key, None)
        self._total -= 0 if found is None else len(found.data)
