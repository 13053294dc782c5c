"""KV on its way into the store: copied out of SGLang's rows at once, so that these are SGLang's own again, and handed
to the cache's threads, which ask the store what is missing. The scheduler waits for no store.
"""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kvlingua.common.cache import KVCache, StoreHandle
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.convert import convert
from kvlingua.layouts.formats import format
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import Pool, View

KNOWN_S = 60.0  # for so long a chunk that was handed over isn't copied again, whoever brings it
MOST_KNOWN = 1 << 16


@dataclass(frozen=True)
class _Copy:
    handle: StoreHandle
    lora: str | None
    digests: Sequence[bytes]
    nbytes: int


class Staging:
    """For one scheduler. At most `queue_bytes` of the cache's configuration lie here; what has no room isn't stored."""

    def __init__(self, cache: KVCache, pool: Pool) -> None:
        self._cache = cache
        self._pool = pool
        self._copies: list[_Copy] = []  # until the cache has copied them on
        self._writing: list[_Copy] = []  # until they are stored, or given up
        self._nbytes = 0
        self._known: OrderedDict[tuple[str | None, bytes], float] = OrderedDict()  # by adapter and chunk

    def lacking(self, digests: Sequence[bytes], first: int, lora: str | None = None) -> int:
        """The first chunk from `first` on that wasn't handed over lately; their number if all were.

        lora: the digest of the adapter that these chunks were computed with.
        """
        now = time.monotonic()
        for chunk in range(first, len(digests)):
            if now - self._known.get((lora, digests[chunk]), -KNOWN_S) >= KNOWN_S:
                return chunk
        return len(digests)

    def know(self, digests: Sequence[bytes], lora: str | None = None) -> None:
        """These are in the store, or on their way to it."""
        now = time.monotonic()
        for digest in digests:
            self._known[lora, digest] = now
            self._known.move_to_end((lora, digest))
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    def forget(self, digests: Sequence[bytes], lora: str | None = None) -> None:
        """These may not be in the store after all."""
        for digest in digests:
            self._known.pop((lora, digest), None)

    def store(
        self,
        namespace: Namespace,
        digests: Sequence[bytes],
        source_of: Callable[[int, int], View],
        first: int,
        last: int,
    ) -> int:
        """Store as many of the chunks [first, last) as there is room for; the number of the first that isn't stored.

        source_of: a view of the tokens [start, stop).
        """
        self.sweep()
        extent, chunk = self._pool.extent, namespace.chunk_tokens
        each = namespace.geometry.block_bytes(extent, chunk)
        last = min(last, first + (self._cache.config.queue_bytes - self._nbytes) // each)
        if first == last:
            return first
        source = source_of(first * chunk, last * chunk)
        copy = self._contiguous(source)
        convert(source, copy, threads=self._cache.config.threads)
        handle = self._cache.submit_store(
            namespace, array("q"), copy, first * chunk, last * chunk, extent=extent, digests=digests[:last]
        )
        nbytes = (last - first) * each
        self._nbytes += nbytes
        self._copies.append(_Copy(handle, namespace.lora, digests[first:last], nbytes))
        self.know(digests[first:last], namespace.lora)
        return last

    def sweep(self) -> None:
        """Let go of what is copied on, and forget what didn't come to be stored."""
        for copy in [one for one in self._copies if one.handle.copied.is_set()]:
            self._copies.remove(copy)
            self._writing.append(copy)
            self._nbytes -= copy.nbytes
        for copy in [one for one in self._writing if one.handle.committed.is_set()]:
            self._writing.remove(copy)
            if copy.handle.dropped or copy.handle.error is not None:
                self.forget(copy.digests, copy.lora)

    def _contiguous(self, source: View) -> View:
        """Fresh memory for as many tokens, [head, token, dim] per layer and plane."""
        pool, tokens = source.pool, source.tokens
        geometry, extent = pool.geometry, pool.extent
        dtype = getattr(torch, geometry.dtype)
        planes = [
            Buffer.of(torch.empty((extent.heads, tokens, plane.width), dtype=dtype))
            for _ in range(extent.layers)
            for plane in geometry.planes
        ]
        memory = format("hf").pool(geometry, extent, page=tokens, blocks=1, buffers=planes)
        return memory.view(array("q", [0]), 0, tokens)
