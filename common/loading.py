"""From the store into an engine: read everything, verify everything, and only then write."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from kvlingua.common import log
from kvlingua.common.errors import ContainerError, LoadError, StoreError, StoreTimeout
from kvlingua.common.guard import REPEAT_S, reason_of
from kvlingua.common.hit import Hit
from kvlingua.common.identity.keys import object_key
from kvlingua.common.running import Running
from kvlingua.common.slots import Slots, part, slot_bytes
from kvlingua.common.stores.store import Read
from kvlingua.layouts.convert import convert
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.view import View


@dataclass(frozen=True, slots=True)
class _Piece:
    """Chunks [first, first + slots.count) of the prompt as objects of one extent."""

    first: int
    slots: Slots


def load(running: Running, hit: Hit, into: View, start: int, stop: int) -> None:
    """Copy prompt positions [start, stop) into `into`. Whatever it raises, nothing was written."""
    _check(hit, into, start, stop)
    if start == stop:
        return
    tokens = hit.namespace.chunk_tokens
    first, last = start // tokens, -(-stop // tokens)
    began, timeout_s = time.monotonic(), running.config.load_timeout_s
    if not running.load_lock.acquire(timeout=timeout_s):
        raise StoreTimeout(f"another thread has been loading for {timeout_s:g} s")
    try:
        nbytes = _staged_bytes(running, hit, first, last)
        memory = running.load_memory.acquire(nbytes)
        if memory is None:
            raise LoadError(
                f"chunks {first} to {last} take {nbytes} bytes while they are verified, queue_bytes is "
                f"{running.config.queue_bytes}; raise it"
            )
        # Released even if the read is stuck and may still write: all that fill this memory do it in that same thread,
        # after the stuck one has returned, and what they have filled is scattered before the next one may begin.
        try:
            pieces = _pieces(running, hit, first, last, memoryview(memory))
            running.loads.call("load", lambda: _read(running, hit, pieces), timeout_s, time.monotonic() - began)
            _scatter(running, pieces, into, start, stop, tokens)
        finally:
            running.load_memory.release(memory)
    finally:
        running.load_lock.release()
    running.counts.loaded(stop - start, sum(piece.slots.count * piece.slots.container.object_bytes for piece in pieces))
    chain = list(hit.keys(0, last))
    running.queue.submit("touch", lambda: running.store.touch_chain(chain))


def _check(hit: Hit, into: View, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= hit.tokens:
        raise LoadError(f"positions [{start}, {stop}) are not within the {hit.tokens} tokens of the hit")
    if into.tokens != stop - start:
        raise LayoutError(f"positions [{start}, {stop}) don't fit a view of {into.tokens} tokens")
    if into.pool.geometry != hit.namespace.geometry:
        raise LayoutError(f"the view is of {into.pool.geometry}, the namespace of {hit.namespace.geometry}")
    if not hit.extent.contains(into.pool.extent):
        raise LayoutError(f"the view wants {into.pool.extent}, the lookup was for {hit.extent}")


def _groups(hit: Hit, first: int, last: int) -> list[tuple[int, int]]:
    """Runs [a, b) of chunks that are covered in the same way."""
    runs = []
    for _, indices in groupby(range(first, last), key=lambda index: hit.covers[index]):
        run = list(indices)
        runs.append((run[0], run[-1] + 1))
    return runs


def _staged_bytes(running: Running, hit: Hit, first: int, last: int) -> int:
    return sum(
        (stop - start) * slot_bytes(running.container(hit.namespace, extent))
        for start, stop in _groups(hit, first, last)
        for extent in hit.covers[start]
    )


def _pieces(running: Running, hit: Hit, first: int, last: int, memory: memoryview) -> list[_Piece]:
    pieces = []
    offset = 0
    for start, stop in _groups(hit, first, last):
        for extent in hit.covers[start]:
            container = running.container(hit.namespace, extent)
            pieces.append(_Piece(start, Slots(container, memory[offset:], stop - start)))
            offset += (stop - start) * slot_bytes(container)
    return pieces


def _read(running: Running, hit: Hit, pieces: Sequence[_Piece]) -> None:
    """In the worker thread: fetch every object and verify it. Raises LoadError; damaged objects are removed."""
    objects = [
        (piece.slots.container, hit.digests[piece.first + slot], piece.slots.object(slot))
        for piece in pieces
        for slot in range(piece.slots.count)
    ]
    keys = [object_key(hit.namespace.digest, digest, container.extent) for container, digest, _ in objects]
    sizes = running.store.get_many([Read(key, 0, memory) for key, (_, _, memory) in zip(keys, objects, strict=True)])
    gone, damaged = [], {}
    for key, size, (container, digest, memory) in zip(keys, sizes, objects, strict=True):
        if size is None:
            gone.append(key)
            continue
        try:
            if size != container.object_bytes:
                raise ContainerError("size", f"an object of {container.object_bytes} bytes expected, not {size}")
            needed = hit.extent.intersect(container.extent)
            container.verify(memory, digest, container.extent if needed is None else needed)
        except ContainerError as error:
            damaged[key] = error
    if damaged:
        _remove(running, damaged)
        key, trouble = next(iter(damaged.items()))
        raise LoadError(f"{len(damaged)} of {len(keys)} objects are damaged, such as {key}: {trouble}") from trouble
    if gone:
        raise LoadError(f"{len(gone)} of {len(keys)} objects are gone since the lookup, such as {gone[0]}")


def _remove(running: Running, damaged: dict[str, ContainerError]) -> None:
    by_reason: dict[str, list[str]] = {}
    for key, error in damaged.items():
        running.counts.corrupt(error.reason)
        by_reason.setdefault(error.reason, []).append(f"{key}: {error}")
    for reason, those in by_reason.items():
        message = f"{len(those)} damaged objects are removed ({reason}), such as {those[0]}"
        log.once(f"damaged {reason}", logging.WARNING, message, every_s=REPEAT_S)
    try:
        running.store.delete_many(list(damaged))
    except StoreError as error:
        log.once(f"remove {reason_of(error)}", logging.WARNING, f"a damaged object couldn't be removed: {error}")


def _scatter(running: Running, pieces: Sequence[_Piece], into: View, start: int, stop: int, tokens: int) -> None:
    for piece in pieces:
        low, high = max(start, piece.first * tokens), min(stop, (piece.first + piece.slots.count) * tokens)
        if piece.slots.container.extent.intersect(into.pool.extent) is None:
            continue
        source = piece.slots.view(low - piece.first * tokens, high - piece.first * tokens)
        convert(source, part(into, low - start, high - start), threads=running.config.threads)
