"""A hit: the longest stored run of whole chunks of a prompt, and which objects hold them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvlingua.common.identity.extents import covers
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
    covers: tuple[tuple[Extent, ...], ...]

    def keys(self, first: int, last: int) -> Iterator[str]:
        """The objects of chunks [first, last), head first."""
        for digest, cover in zip(self.digests[first:last], self.covers[first:last], strict=True):
            for extent in cover:
                yield object_key(self.namespace.digest, digest, extent)


def find(
    store: Store, namespace: Namespace, digests: Sequence[bytes], needed: Extent, likely: Extent | None
) -> tuple[tuple[Extent, ...], ...]:
    """The cover of each chunk of the longest stored run; `likely` is the extent to try first."""
    found: list[tuple[Extent, ...]] = []
    while len(found) < len(digests):
        for cover in covers(namespace.grid, needed, likely):
            run = _leading(store, namespace.digest, digests[len(found) :], cover)
            if run:
                found += [cover] * run
                likely = cover[0] if len(cover) == 1 else likely
                break
        else:
            break
    return tuple(found)


def missing_chunks(store: Store, namespace: Namespace, digests: Sequence[bytes], extent: Extent) -> list[int]:
    """The chunks, by their index in `digests`, that no objects in the store cover.

    Chunks that are covered in different ways, alternating, may be reported although they are there.
    """
    missing = list(range(len(digests)))
    for cover in covers(namespace.grid, extent):
        if missing and (cover == (extent,) or _held(store, namespace.digest, [digests[missing[0]]], cover)[0]):
            held = _held(store, namespace.digest, [digests[index] for index in missing], cover)
            missing = [index for index, there in zip(missing, held, strict=True) if not there]
    return missing


def _leading(store: Store, namespace: str, digests: Sequence[bytes], cover: tuple[Extent, ...]) -> int:
    """How many chunks from the first on are held, asked in growing batches: a miss costs one question."""
    run, batch = 0, 1
    while run < len(digests):
        held = _held(store, namespace, digests[run : run + batch], cover)
        if not all(held):
            return run + held.index(False)
        run += len(held)
        batch = min(4 * batch, 256)
    return run


def _held(store: Store, namespace: str, digests: Sequence[bytes], cover: tuple[Extent, ...]) -> list[bool]:
    there = store.exists_many([object_key(namespace, digest, extent) for digest in digests for extent in cover])
    return [all(there[start : start + len(cover)]) for start in range(0, len(there), len(cover))]
