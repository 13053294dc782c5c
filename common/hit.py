"""A hit: the longest stored run of whole chunks of a prompt, and which objects hold them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvlingua.common.identity.extents import Cover, candidates, cover_among
from kvlingua.common.identity.keys import object_key
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.stores.store import Store
from kvlingua.layouts.geometry import Extent


@dataclass(frozen=True, slots=True)
class Hit:
    """What a lookup found: plain values, no promise that the objects are still there when they are loaded.

    tokens: S, the number of leading prompt tokens in the store; 0 is a miss. digests: one per chunk of them. covers:
    per chunk the extents of the objects that together hold `extent`.
    """

    namespace: Namespace
    extent: Extent
    digests: tuple[bytes, ...]
    tokens: int
    covers: tuple[Cover, ...]

    def keys(self, first: int, last: int) -> Iterator[str]:
        """The objects of chunks [first, last), head first."""
        for digest, cover in zip(self.digests[first:last], self.covers[first:last], strict=True):
            for extent in cover:
                yield object_key(self.namespace.digest, digest, extent)


def find(store: Store, namespace: Namespace, digests: Sequence[bytes], needed: Extent) -> tuple[Cover, ...]:
    """The cover of each chunk of the longest stored run. A miss costs one question to the store."""
    found: list[Cover] = []
    while len(found) < len(digests):
        cover = _cover(store, namespace, digests[len(found)], needed)
        if cover is None:
            break
        found.append(cover)
        found += [cover] * _leading(store, namespace.digest, digests[len(found) :], cover)
    return tuple(found)


def missing_chunks(store: Store, namespace: Namespace, digests: Sequence[bytes], extent: Extent) -> list[int]:
    """The chunks, by their index in `digests`, that no objects in the store cover.

    Chunks behind one that is missing may be reported although they are there, if not as one object of `extent`.
    """
    missing = list(range(len(digests)))
    cover: Cover | None = (extent,)
    while missing and cover is not None:
        held = _held(store, namespace.digest, [digests[index] for index in missing], cover)
        missing = [index for index, there in zip(missing, held, strict=True) if not there]
        cover = _cover(store, namespace, digests[missing[0]], extent) if missing else None
    return missing


def _cover(store: Store, namespace: Namespace, digest: bytes, needed: Extent) -> Cover | None:
    """Which objects of one chunk to take: the store is asked for all candidates at once."""
    asked = candidates(namespace.grid, needed)
    there = store.exists_many([object_key(namespace.digest, digest, extent) for extent in asked])
    held = {extent for extent, is_there in zip(asked, there, strict=True) if is_there}
    return cover_among(namespace.grid, needed, held)


def _leading(store: Store, namespace: str, digests: Sequence[bytes], cover: Cover) -> int:
    """How many chunks from the first on are held, asked in growing batches."""
    run, batch = 0, 4
    while run < len(digests):
        held = _held(store, namespace, digests[run : run + batch], cover)
        if not all(held):
            return run + held.index(False)
        run += len(held)
        batch = min(4 * batch, 256)
    return run


def _held(store: Store, namespace: str, digests: Sequence[bytes], cover: Cover) -> list[bool]:
    there = store.exists_many([object_key(namespace, digest, extent) for digest in digests for extent in cover])
    return [all(there[start : start + len(cover)]) for start in range(0, len(there), len(cover))]
