"""From an engine into the store: gather what is missing into our own memory, and write it later."""

import logging
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from kvlingua.common import bulk, log
from kvlingua.common.container import Container
from kvlingua.common.errors import StoreError
from kvlingua.common.guard import REPEAT_S, failure, reason_of
from kvlingua.common.hit import missing_chunks
from kvlingua.common.identity.keys import namespace_key, object_key
from kvlingua.common.running import Running
from kvlingua.common.slots import Slots, part, slot_bytes
from kvlingua.common.stores.new_file import NewFile
from kvlingua.common.stores.store import Bytes
from kvlingua.layouts.convert import convert
from kvlingua.layouts.view import View


@dataclass(slots=True)
class StoreHandle:
    """What became of a store call. `stored`: chunks in the store or on their way to it; `dropped`: chunks given up.

    copied: set when the source may be reused. committed: set when the chunks are visible to others, or `error` says
    why not.
    """

    stored: int = 0
    dropped: int = 0
    error: BaseException | None = None
    copied: threading.Event = field(default_factory=threading.Event)
    committed: threading.Event = field(default_factory=threading.Event)
    _begun: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def finish(self) -> "StoreHandle":
        """Nothing (more) is to be done."""
        self.copied.set()
        self.committed.set()
        return self

    def begin(self) -> bool:
        """Whether the source may still be copied from; after that it can't be cancelled."""
        with self._lock:
            self._begun = not self.copied.is_set()
            return self._begun

    def cancel(self) -> None:
        """If the source isn't being copied from yet, it won't be. If it is, `copied` follows soon."""
        with self._lock:
            if not self._begun:
                self.finish()


def submit(running: Running, handle: StoreHandle, chunks: int, copy: Callable[[], object]) -> None:
    """Do `copy`, which stores `chunks` chunks at most, in the thread that copies."""

    def job() -> None:
        if handle.copied.is_set():  # cancelled
            _drop(running, handle, "cancelled", chunks)
            return
        error = failure(copy)
        if error is not None:
            _drop(running, handle, reason_of(error), chunks)
            handle.error = error
            handle.finish()
            raise error

    def given_up() -> None:
        _drop(running, handle, "closed", chunks)
        handle.error = StoreError("the cache was closed before these chunks were copied")
        handle.finish()

    if not running.copies.submit("store", job, given_up):
        _drop(running, handle, "queue_full", chunks)
        handle.finish()


def store(
    running: Running,
    container: Container,
    digests: Sequence[bytes],
    source: View,
    start: int,
    chunks: range,
    handle: StoreHandle,
) -> None:
    """Queue those of `chunks` of a prompt that aren't stored yet. `source` holds the prompt from `start` on."""
    first, last = chunks.start, chunks.stop
    missing = _missing(running, container, digests, first, last, handle)
    room = running.store_memory.available() // slot_bytes(container)
    taken = missing[:room]
    memory = running.store_memory.acquire(len(taken) * slot_bytes(container)) if taken else None
    if memory is None:
        taken = []
    _drop(running, handle, "queue_full", len(missing) - len(taken))
    if handle.dropped and handle.error is None:
        message = f"{handle.dropped} chunks are not stored: writing is slower than storing; raise queue_bytes"
        log.once("queue full", logging.WARNING, message, every_s=REPEAT_S)
    if memory is None:
        handle.finish()
        return
    job = _Write(running, container, digests, taken, last, memory, handle)
    with ExitStack() as undo:
        undo.callback(job.discard)
        if not handle.begin():
            _drop(running, handle, "cancelled", len(taken))
            return
        _gather(running, job, source, start)
        undo.pop_all()
    handle.stored = len(taken)
    handle.copied.set()
    if not running.queue.submit("store", job, job.given_up):
        job.refused()


class _Write:
    """A job of the write thread: headers and checksums, then the store."""

    def __init__(
        self,
        running: Running,
        container: Container,
        digests: Sequence[bytes],
        chunks: Sequence[int],
        last: int,
        memory: mmap.mmap,
        handle: StoreHandle,
    ) -> None:
        self._running, self._container, self._handle, self._memory = running, container, handle, memory
        self._digests, self.chunks = digests, chunks
        self.slots = Slots(container, memoryview(memory), len(chunks))
        namespace = container.namespace.digest
        self._chain = [object_key(namespace, digest, container.extent) for digest in digests[:last]]
        with running.pending_lock:
            running.pending.update(self._keys())

    def __call__(self) -> None:
        error = failure(self._write)
        if error is None:
            self._finish(len(self.chunks))
            return
        self._finish(error.stored if isinstance(error, StoreError) else 0, reason_of(error), error)
        raise error

    def given_up(self) -> None:
        """The cache was closed before this job's turn came."""
        self._finish(0, "closed", StoreError("the cache was closed before these chunks were written"))

    def refused(self) -> None:
        """The queue didn't take this job."""
        self._finish(0, "queue_full", None)

    def _finish(self, written: int, reason: str = "", error: BaseException | None = None) -> None:
        """The first `written` chunks are in the store, the others are given up for `reason`."""
        container, handle = self._container, self._handle
        handle.stored = written
        handle.error = error
        self._running.counts.stored(written * container.namespace.chunk_tokens, written * container.object_bytes)
        _drop(self._running, handle, reason, len(self.chunks) - written)
        self.discard()
        handle.finish()

    def discard(self) -> None:
        """Give the memory back; the objects no longer wait."""
        with self._running.pending_lock:
            self._running.pending.difference_update(self._keys())
        self._running.store_memory.release(self._memory)

    def _keys(self) -> Iterator[str]:
        return (self._chain[chunk] for chunk in self.chunks)

    def _write(self) -> None:
        namespace, store, files = self._container.namespace, self._running.store, self._running.files
        store.touch_chain(self._chain)  # first: what is put takes its place behind the chunks that are there
        try:
            store.put_many([(namespace_key(namespace.digest), [namespace.json()])])
        except StoreError as error:
            error.stored = 0
            raise
        if files is not None:
            files.put_files([(key, self._container.object_bytes) for key in self._keys()], self._fill)
            return
        objects: list[tuple[str, Sequence[Bytes]]] = []
        for slot, chunk in enumerate(self.chunks):
            header, data = self.slots.header(slot), self.slots.data(slot)
            self._container.write_header(header, self._digests[chunk], chunk, data)
            objects.append((self._chain[chunk], [self.slots.object(slot)]))
        store.put_many(objects)

    def _fill(self, files: Sequence[NewFile]) -> list[OSError | None]:
        objects = []
        for file in files:
            slot, one = file.incoming.index, file.incoming
            chunk = self.chunks[slot]
            first_token = chunk * self._container.namespace.chunk_tokens
            memory = self.slots.object(slot)
            objects.append(
                bulk.NewObject(file.folder, file.temporary, self._digests[chunk], first_token, memory, one.time_ns)
            )
        return bulk.store(self._container, objects, self._running.config.threads)


def _missing(
    running: Running, container: Container, digests: Sequence[bytes], first: int, last: int, handle: StoreHandle
) -> list[int]:
    """The chunks to be stored; none if the store can't be asked."""
    namespace, extent = container.namespace, container.extent
    keys = {chunk: object_key(namespace.digest, digests[chunk], extent) for chunk in range(first, last)}
    with running.pending_lock:
        wanted = [chunk for chunk, key in keys.items() if key not in running.pending]
    if not wanted:
        return []
    asked = [digests[chunk] for chunk in wanted]
    try:
        found = running.lookups.call(
            "lookup",
            lambda: missing_chunks(running.store, namespace, asked, extent),
            running.config.lookup_timeout_s,
        )
    except StoreError as error:
        _drop(running, handle, reason_of(error), len(wanted))
        handle.error = error
        log.once(f"ask {reason_of(error)}", logging.WARNING, f"nothing is stored: {error}", every_s=REPEAT_S)
        return []
    return [wanted[index] for index in found]


def _drop(running: Running, handle: StoreHandle, reason: str, chunks: int) -> None:
    if chunks:
        handle.dropped += chunks
        running.counts.dropped(reason, chunks)


def _gather(running: Running, job: _Write, source: View, start: int) -> None:
    tokens = job.slots.container.namespace.chunk_tokens
    for slot, stop_slot in _runs(job.chunks):
        low = job.chunks[slot] * tokens - start
        high = low + (stop_slot - slot) * tokens
        target = job.slots.view(slot * tokens, stop_slot * tokens)
        convert(part(source, low, high), target, threads=running.config.threads)


def _runs(chunks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of slots whose chunks follow one another."""
    start = 0
    for slot in range(1, len(chunks) + 1):
        if slot == len(chunks) or chunks[slot] != chunks[slot - 1] + 1:
            yield start, slot
            start = slot
