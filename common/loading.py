"""From the store into an engine: nothing is written that isn't verified, and nothing once the load is over.

Objects that are files go straight to the engine, one after the other through memory that stays in the cache (`bulk`).
Those of other stores, and all of them where there is no native library, are read and verified in memory of our own
before the first is converted.
"""

import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from kvlingua.common import bulk
from kvlingua.common.container import Container
from kvlingua.common.errors import LoadError, StoreTimeout
from kvlingua.common.fetching import Trouble, Wanted, fetch, refuse
from kvlingua.common.gate import Gate
from kvlingua.common.hit import Hit
from kvlingua.common.identity.extents import Cover
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.running import Running
from kvlingua.common.slots import Slots, part, passing, slot_bytes
from kvlingua.common.stores.store import Files
from kvlingua.layouts.casts import conversions
from kvlingua.layouts.convert import convert
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.plan import make_plan
from kvlingua.layouts.view import View


@dataclass(frozen=True, slots=True)
class _Piece:
    """Objects of one container, of chunks that follow one another.

    needed: which heads and layers of them. start, stop: which tokens, counted from the first chunk's first. target:
    where these go.
    """

    container: Container
    needed: Extent
    digests: tuple[bytes, ...]
    start: int
    stop: int
    target: View


def fitting(running: Running, namespace: Namespace, covers: Sequence[Cover]) -> int:
    """How many leading chunks can be loaded with `queue_bytes` of memory."""
    room = running.config.queue_bytes
    passing_through = running.files is not None
    for count, cover in enumerate(covers):
        objects = [slot_bytes(running.container(namespace, extent)) for extent in cover]
        needed = max(objects) if passing_through else sum(objects)
        if needed > room:
            return count
        room -= 0 if passing_through else needed
    return len(covers)


def check(hit: Hit, into: View, start: int, stop: int, allow_lossy: bool) -> None:
    """Raise LayoutError or LoadError if `load` can't do this, whatever the store holds."""
    if not 0 <= start <= stop <= hit.tokens:
        raise LoadError(f"positions [{start}, {stop}) are not within the {hit.tokens} tokens of the hit")
    if into.tokens != stop - start:
        raise LayoutError(f"positions [{start}, {stop}) don't fit a view of {into.tokens} tokens")
    if not hit.extent.contains(into.pool.extent):
        raise LayoutError(f"the view wants {into.pool.extent}, the lookup was for {hit.extent}")
    conversions(hit.namespace.geometry, into.pool.geometry, into.pool.fixed, allow_lossy)


def load(
    running: Running, hit: Hit, into: View, start: int, stop: int, allow_lossy: bool, gate: Gate, began: float
) -> int:
    """Copy prompt positions [start, stop), which `check` has passed, into `into`, as `KVCache.load` says; no more once
    `gate` is closed. began: since when its time runs (time.monotonic). Returns how many bytes were read."""
    if start == stop:
        return 0
    pieces = list(_pieces(running, hit, into, start, stop))
    files = running.files
    timeout_s = running.config.load_timeout_s
    if not running.load_lock.acquire(timeout=max(0.0, began + timeout_s - time.monotonic())):
        raise StoreTimeout(f"other loads took all of its {timeout_s:g} s")
    try:
        memory = _memory(running, pieces, staged=files is None)
        # Released even if the read is stuck and may still write: all that fill this memory do it in that same thread,
        # after the stuck one has returned, and nobody else reads it meanwhile.
        try:
            way = _Load(running, pieces, memoryview(memory), allow_lossy, gate, time.monotonic() - began)
            if files is None:
                way.by_way_of_memory()
            else:
                way.directly(files)
        finally:
            running.load_memory.release(memory)
    finally:
        running.load_lock.release()
    chain = list(hit.keys(0, -(-stop // hit.namespace.chunk_tokens)))
    running.queue.submit("touch", lambda: running.store.touch_chain(chain))
    return sum(len(piece.digests) * bulk.read_bytes(piece.container, piece.needed) for piece in pieces)


def _pieces(running: Running, hit: Hit, into: View, start: int, stop: int) -> Iterator[_Piece]:
    """Every object that holds something of what `into` takes, in runs of chunks that are covered in the same way."""
    tokens = hit.namespace.chunk_tokens
    for cover, run in groupby(range(start // tokens, -(-stop // tokens)), key=lambda chunk: hit.covers[chunk]):
        chunks = list(run)
        first, last = chunks[0], chunks[-1] + 1
        low, high = max(start, first * tokens), min(stop, last * tokens)
        for extent in cover:
            needed = extent.intersect(into.pool.extent)
            if needed is not None:
                yield _Piece(
                    running.container(hit.namespace, extent),
                    needed,
                    hit.digests[first:last],
                    low - first * tokens,
                    high - first * tokens,
                    part(into, low - start, high - start),
                )


def _memory(running: Running, pieces: Sequence[_Piece], *, staged: bool) -> mmap.mmap:
    objects = sum(len(piece.digests) for piece in pieces)
    if staged:
        wanted = [sum(len(piece.digests) * slot_bytes(piece.container) for piece in pieces)]
    else:
        one = max(slot_bytes(piece.container) for piece in pieces)
        wanted = [min(running.config.threads, objects) * one, one]  # for all threads, or else for one
    for nbytes in wanted:
        memory = running.load_memory.acquire(nbytes)
        if memory is not None:
            return memory
    raise LoadError(
        f"{objects} objects take {wanted[-1]} bytes while they are verified, queue_bytes is "
        f"{running.config.queue_bytes}; raise it"
    )


@dataclass(frozen=True, slots=True)
class _Load:
    """One load, with memory for it. gate: what it writes goes through it. waited_s: how much of its time is over."""

    running: Running
    pieces: Sequence[_Piece]
    memory: memoryview
    allow_lossy: bool
    gate: Gate
    waited_s: float

    def directly(self, files: Files) -> None:
        """Each object on its own, read, verified and converted by the worker thread; no more once this has returned."""
        batches, native = [self._batch(piece) for piece in self.pieces], self.gate.native()
        try:
            self._in_worker(lambda: self._pass_through(files, batches, native))
            self.gate.check()
        finally:
            self.gate.close()  # a worker that is stuck may go on when we and the engine are far away

    def by_way_of_memory(self) -> None:
        """All objects into memory by the worker thread, then into the target."""
        slots, offset = [], 0
        for piece in self.pieces:
            slots.append(Slots(piece.container, self.memory[offset:], len(piece.digests)))
            offset += len(piece.digests) * slot_bytes(piece.container)
        self._in_worker(lambda: self._fetch_all(slots))
        for piece, room in zip(self.pieces, slots, strict=True):
            source = room.view(piece.start, piece.stop)
            with self.gate.writing():
                convert(source, piece.target, threads=self.running.config.threads, allow_lossy=self.allow_lossy)

    @property
    def _threads(self) -> int:
        """One if objects overlap: what several threads write to one place could be numbers of one object and scales of
        another."""
        runs: dict[tuple[bytes, ...], list[Extent]] = {}
        for piece in self.pieces:
            others = runs.setdefault(piece.digests, [])
            if any(piece.needed.intersect(other) for other in others):
                return 1
            others.append(piece.needed)
        return self.running.config.threads

    def _in_worker(self, function: Callable[[], None]) -> None:
        self.running.loads.call("load", function, self.running.config.load_timeout_s, self.waited_s)

    def _batch(self, piece: _Piece) -> bulk.Batch:
        source = passing(piece.container, self.memory, piece.start, piece.stop)
        plan = make_plan(source, piece.target, self.allow_lossy)
        return bulk.Batch(piece.container, piece.needed, plan, piece.digests)

    def _pass_through(self, files: Files, batches: Sequence[bulk.Batch], gate: bulk.Gate) -> None:
        total = sum(len(piece.digests) for piece in self.pieces)
        with files.open_folder(self.pieces[0].container.namespace.digest) as folder:
            if folder is None:
                intact = [[False] * len(batch.digests) for batch in batches]
            else:
                intact = bulk.load(batches, folder, self.memory, self._threads, gate)
        if gate.closed:  # nobody waits for this any more
            return
        failed = [
            Wanted(batch.container, batch.needed, digest, self.memory[: batch.container.object_bytes])
            for batch, row in zip(batches, intact, strict=True)
            for digest, right in zip(batch.digests, row, strict=True)
            if not right
        ]
        trouble = Trouble()
        for one in failed:  # read again, one by one, to find out what is wrong
            fetch(self.running, [one], trouble)
        refuse(self.running, trouble, total)
        if failed:
            raise LoadError(f"{len(failed)} of {total} objects changed while they were read, such as {failed[0].key}")

    def _fetch_all(self, slots: Sequence[Slots]) -> None:
        objects = [
            Wanted(piece.container, piece.needed, digest, room.object(place))
            for piece, room in zip(self.pieces, slots, strict=True)
            for place, digest in enumerate(piece.digests)
        ]
        trouble = Trouble()
        fetch(self.running, objects, trouble)
        refuse(self.running, trouble, len(objects))
