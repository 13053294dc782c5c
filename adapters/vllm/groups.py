"""The KV cache of a model whose layers have several block tables: those with full attention one, those with a sliding
window others, in which the blocks that the window has left behind are replaced by block 0.

An object of the store holds all layers, so that loads and stores go through scratch memory that does, too.
"""

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from kvlingua.adapters.vllm.views import pool_of
from kvlingua.common.cache import Hit, KVCache, LoadHandle, StoreHandle
from kvlingua.common.errors import LoadError, UnsupportedError
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.convert import convert
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Extent, Geometry
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import Pool

Tables = tuple[tuple[int, ...], ...]
"""A request's block tables, by group."""

NO_BLOCK = 0  # vLLM's null block: what a window has left behind
Windows = Sequence[int | None]
"""Tokens that layers of each group attend to, None for all."""
_SCRATCH_BYTES = 32 << 20
_STORES = 4  # parts that wait in scratch memory
_ROOM_WAIT_S = 0.05  # for the oldest of them, which a store that is well has copied long before


def held_from(tables: Sequence[Sequence[int]], page: int, start: int, stop: int) -> int:
    """The first position from which on to `stop` every table has blocks, at least `start`."""
    first = start // page
    for table in tables:
        for number in range(-(-stop // page) - 1, first - 1, -1):
            if table[number] == NO_BLOCK:
                first = number + 1
                break
    return max(start, first * page)


class Groups:
    """Pools of one worker's layers, one for each run of neighbours that share a block table.

    Its methods are called by one thread. The memory for loads belongs to that thread of the cache's that does what was
    submitted, one load after the other.
    """

    def __init__(
        self, layers: Sequence[int], pools: Sequence[Pool], windows: Windows, geometry: Geometry, tokens: int
    ) -> None:
        """layers: the group of each layer, in order; pools: of each run of them. tokens: of the scratch memory."""
        self._windows = windows
        self._page = pools[0].page  # of all of them
        self._runs = list(zip([group for group, _ in groupby(layers)], pools, strict=True))
        self._geometry = geometry
        self._tokens = tokens
        self._loading = self._scratch()
        self._storing: deque[tuple[Pool, StoreHandle]] = deque()  # the oldest first
        self._slow: StoreHandle | None = None  # what was waited for in vain

    def _scratch(self) -> Pool:
        geometry, tokens = self._geometry, self._tokens
        memory = Buffer.of(bytearray(tokens * geometry.block_bytes(geometry.full, 1)))
        return format("canonical").pool(geometry, geometry.full, page=tokens, blocks=1, buffers=[memory])

    @classmethod
    def of(
        cls,
        name: str,
        tensors: Sequence[Any],
        group_of: Sequence[int],
        windows: Windows,
        geometry: Geometry,
        *,
        page: int,
        blocks: int,
        chunk_tokens: int,
    ) -> "Groups":
        """For the registered tensors and the group of each layer, both in the layers' order; `name` as for `pool_of`.

        Raises UnsupportedError, LayoutError.
        """
        pools = []
        for _, run in groupby(range(len(tensors)), key=lambda layer: group_of[layer]):
            part = list(run)
            extent = Extent(0, geometry.kv_heads, part[0], part[-1] + 1)
            pools.append(pool_of(name, [tensors[n] for n in part], geometry, extent, page=page, blocks=blocks))
        chunks = _SCRATCH_BYTES // geometry.block_bytes(geometry.full, chunk_tokens)
        return cls(group_of, pools, windows, geometry, max(1, chunks) * chunk_tokens)

    def load(self, cache: KVCache, hit: Hit, tables: Tables, start: int, stop: int) -> LoadHandle:
        """Begin to copy positions [start, stop) of a hit to where the tables have blocks.

        Raises as `KVCache.submit_load`, and LoadError if there are no blocks for what the next token attends to.
        """
        arrays = [array("q", table) for table in tables]  # of which views make no copies
        parts = []
        for first, end in self._parts(start, stop):
            held = [held_from([table], self._page, first, end) for table in arrays]
            for group, begin in enumerate(held):
                if begin > max(first, min(end, self._needed_from(group, stop))):
                    raise LoadError(f"vLLM gave positions {first} to {begin} no blocks in KV cache group {group}")
            scratch = self._loading.view([0], 0, end - first)
            parts.append((scratch, first, end, partial(self._place, arrays, held, first, end)))
        return cache.submit_parts(hit, parts)

    def store(
        self, cache: KVCache, namespace: Namespace, tables: Tables, start: int, stop: int, digests: tuple[bytes, ...]
    ) -> None:
        """Store the whole chunks within [start, stop), where every table must have blocks. They are copied when this
        returns. What a slow store leaves no room for is given up: the last ones, as those before are of use without
        them. Raises as `KVCache.submit_store`, and LayoutError."""
        arrays = [array("q", table) for table in tables]
        for first, end in self._parts(start - start % namespace.chunk_tokens, stop):
            begin = max(start, first)
            scratch = self._room()
            if scratch is None:
                cache.give_up((stop - begin) // namespace.chunk_tokens)
                return
            for group, pool in self._runs:
                convert(pool.view(arrays[group], begin, end), scratch.view([0], begin - first, end - first))
            source = scratch.view([0], begin - first, end - first)
            handle = cache.submit_store(namespace, (), source, begin, end, digests=digests)
            self._storing.append((scratch, handle))

    def _room(self) -> Pool | None:
        """Scratch memory that nothing is read from any more; None if a slow store has all of it."""
        oldest = self._storing[0][1] if self._storing else None
        if oldest is None or (not oldest.copied.is_set() and len(self._storing) < _STORES):
            return self._scratch()
        if not oldest.copied.wait(0.0 if oldest is self._slow else _ROOM_WAIT_S):
            self._slow = oldest
            return None
        return self._storing.popleft()[0]

    def _place(self, tables: Sequence["array[int]"], held: Sequence[int], first: int, end: int) -> None:
        """Copy positions [first, end) out of the scratch memory, of each group those from `held` on."""
        for group, pool in self._runs:
            begin = held[group]
            if begin < end:
                source = self._loading.view([0], begin - first, end - first)
                convert(source, pool.view(tables[group], begin, end))

    def _needed_from(self, group: int, stop: int) -> int:
        """The first position that the token at `stop` attends to."""
        window = self._windows[group]
        return 0 if window is None else max(0, stop - window + 1)

    def _parts(self, start: int, stop: int) -> list[tuple[int, int]]:
        return [(first, min(first + self._tokens, stop)) for first in range(start, stop, self._tokens)]


def group_of_layers(order: Sequence[str], groups: Sequence[Any]) -> list[int]:
    """The group of each layer, by number, for the layers' names in order. Raises UnsupportedError."""
    found: Mapping[str, int] = {name: number for number, group in enumerate(groups) for name in group.layer_names}
    if set(found) != set(order):
        raise UnsupportedError("layout", f"KV cache groups of other layers ({sorted(found)}) than {sorted(order)}")
    return [found[name] for name in order]
