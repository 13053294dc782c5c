"""The KV cache of a model whose layers have several block tables: those with full attention one, those with a sliding
window others, in which the blocks that the window has left behind are replaced by block 0.

An object of the store holds all layers, so that loads and stores go through scratch memory that does, too.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from kvlingua.adapters.vllm.views import pool_of
from kvlingua.common.cache import Hit, KVCache, LoadHandle
from kvlingua.common.errors import LoadError, UnsupportedError
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.convert import convert
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Extent, Geometry
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import Pool, View

Tables = tuple[tuple[int, ...], ...]
"""A request's block tables, by group."""

NO_BLOCK = 0  # vLLM's null block: what a window has left behind
Windows = Sequence[int | None]
"""Tokens that layers of each group attend to, None for all."""
_SCRATCH_BYTES = 32 << 20


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
    """Pools of one worker's layers, one for each run of neighbours that share a block table. Used by one thread."""

    def __init__(
        self, layers: Sequence[int], pools: Sequence[Pool], windows: Windows, geometry: Geometry, tokens: int
    ) -> None:
        """layers: the group of each layer, in order; pools: of each run of them. tokens: of the scratch memory."""
        self._windows = windows
        self._runs = list(zip([group for group, _ in groupby(layers)], pools, strict=True))
        self._tokens = tokens
        memory = bytearray(tokens * geometry.block_bytes(geometry.full, 1))
        self._scratch = format("canonical").pool(
            geometry, geometry.full, page=tokens, blocks=1, buffers=[Buffer.of(memory)]
        )

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
        """Copy positions [start, stop) of a hit to where the tables have blocks; it is done when this returns.

        Its error is one of `KVCache.load`, or LoadError if there are no blocks for what the next token attends to.
        """
        handle = LoadHandle(lambda gate: self._load(cache, hit, tables, start, stop))
        handle.run()
        return handle

    def _load(self, cache: KVCache, hit: Hit, tables: Tables, start: int, stop: int) -> None:
        for first, end in self._parts(start, stop):
            cache.load(hit, self._scratch.view([0], 0, end - first), first, end)
            for group, pool in self._runs:
                held = held_from([tables[group]], pool.page, first, end)
                if held > max(first, min(end, self._needed_from(group, stop))):
                    raise LoadError(f"vLLM gave positions {first} to {held} no blocks in KV cache group {group}")
                if held < end:
                    convert(self._part(held - first, end - first), pool.view(tables[group], held, end))

    def store(
        self, cache: KVCache, namespace: Namespace, tables: Tables, start: int, stop: int, digests: tuple[bytes, ...]
    ) -> None:
        """Store the whole chunks within [start, stop), where every table must have blocks. They are copied when this
        returns. Raises as `KVCache.store`, and LayoutError."""
        for first, end in self._parts(start - start % namespace.chunk_tokens, stop):
            begin = max(start, first)
            for group, pool in self._runs:
                convert(pool.view(tables[group], begin, end), self._part(begin - first, end - first))
            cache.store(namespace, (), self._part(begin - first, end - first), begin, end, digests=digests)

    def _needed_from(self, group: int, stop: int) -> int:
        """The first position that the token at `stop` attends to."""
        window = self._windows[group]
        return 0 if window is None else max(0, stop - window + 1)

    def _parts(self, start: int, stop: int) -> list[tuple[int, int]]:
        return [(first, min(first + self._tokens, stop)) for first in range(start, stop, self._tokens)]

    def _part(self, start: int, stop: int) -> View:
        return self._scratch.view([0], start, stop)


def group_of_layers(order: Sequence[str], groups: Sequence[Any]) -> list[int]:
    """The group of each layer, by number, for the layers' names in order. Raises UnsupportedError."""
    found: Mapping[str, int] = {name: number for number, group in enumerate(groups) for name in group.layer_names}
    if set(found) != set(order):
        raise UnsupportedError("layout", f"KV cache groups of other layers ({sorted(found)}) than {sorted(order)}")
    return [found[name] for name in order]
