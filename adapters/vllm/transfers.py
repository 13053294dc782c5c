"""Loads and stores that are under way in this worker, by request, until vLLM may be told that they are over."""

import time
from collections.abc import Collection
from itertools import chain

from kvlingua.common.cache import LoadHandle, StoreHandle
from kvlingua.common.guard import Guard

HOLD_S = 1.0  # a store that is well takes milliseconds


class Loads:
    """Blocks that are being filled. Until vLLM is told, it keeps a request back, and its blocks even if it is
    aborted."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._handles: dict[str, LoadHandle | None] = {}
        self._blocks: dict[str, Collection[int]] = {}
        self.broken: set[int] = set()  # blocks of the loads that `over` has said last to have failed

    def expect(self, request_id: str, blocks: Collection[int] = ()) -> None:
        """A load into these blocks was ordered. It has failed unless it is begun."""
        self._handles[request_id], self._blocks[request_id] = None, blocks

    def begun(self, request_id: str, handle: LoadHandle) -> None:
        self._handles[request_id] = handle

    def cancel(self, request_ids: Collection[str]) -> None:
        """Nothing more is written into the blocks of these requests."""
        for request_id in self._handles.keys() & request_ids:
            handle = self._handles[request_id]
            if handle is not None:
                handle.cancel()

    def cancel_all(self) -> None:
        self.cancel(list(self._handles))

    def wait(self, seconds: float) -> None:
        """Until one of them is over, or so long."""
        for handle in self._handles.values():
            if handle is not None and not handle.wait(seconds):
                return

    def over(self, aborted: Collection[str]) -> tuple[set[str], set[str]]:
        """Requests whose load is over since the last call; and those for which it failed, which is said unless they
        were aborted."""
        over, failed = set(), set()
        self.broken = set()
        for request_id, handle in list(self._handles.items()):
            if handle is not None and not handle.done():
                continue
            del self._handles[request_id]
            over.add(request_id)
            blocks = self._blocks.pop(request_id)
            if handle is None or handle.error is not None:
                failed.add(request_id)
                self.broken.update(blocks)
                if handle is not None and handle.error is not None and request_id not in aborted:
                    self._guard.refuse("load", handle.error, "recomputing")
        return over, failed


class Stores:
    """Blocks that are being copied out of. vLLM keeps the blocks of a request that is over until it is told, which is
    soon: what isn't being copied `HOLD_S` after its end isn't stored."""

    def __init__(self) -> None:
        self._handles: dict[str, list[StoreHandle]] = {}
        self._finished: dict[str, float] = {}  # since when

    def expect(self, request_id: str) -> None:
        """A store was ordered: from now on vLLM waits to be told, whatever becomes of it."""
        self._handles.setdefault(request_id, [])

    def add(self, request_id: str, handle: StoreHandle) -> None:
        handles = self._handles[request_id]
        handles[:] = [one for one in handles if not one.copied.is_set()]
        handles.append(handle)

    def stop(self, request_ids: Collection[str]) -> None:
        """When this returns nothing reads the blocks of these requests any more. Waits for a copy, never for a file."""
        for request_id in self._handles.keys() & request_ids:
            for handle in self._handles[request_id]:
                handle.cancel()
            for handle in self._handles[request_id]:
                handle.copied.wait()

    def forget(self, request_ids: Collection[str]) -> None:
        """`stop` those, and never report them: vLLM doesn't wait for them any more."""
        self.stop(request_ids)
        for request_id in self._handles.keys() & request_ids:
            del self._handles[request_id]
            self._finished.pop(request_id, None)

    def stop_all(self) -> None:
        self.stop(list(self._handles))

    def wait(self) -> None:
        """Until nothing is copied any more, for `HOLD_S` at most."""
        until = time.monotonic() + HOLD_S
        for handle in chain.from_iterable(self._handles.values()):
            handle.copied.wait(max(0.0, until - time.monotonic()))

    def over(self, finished: Collection[str]) -> set[str]:
        """Requests that have ended, in this step (`finished`) or before, and that nothing is copied of any more."""
        now = time.monotonic()
        for request_id in self._handles.keys() & finished:
            self._finished.setdefault(request_id, now)
        over = set()
        for request_id, since in list(self._finished.items()):
            if now - since > HOLD_S:
                for handle in self._handles[request_id]:
                    handle.cancel()
            if all(handle.copied.is_set() for handle in self._handles[request_id]):
                del self._handles[request_id], self._finished[request_id]
                over.add(request_id)
        return over
