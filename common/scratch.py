"""Memory of our own that objects pass through on their way to and from a store: bounded, and kept from one use to the
next.

Fresh memory from the system costs a page fault per 4 KiB, about as much as the copy into it; so a released piece is
used again.
"""

import mmap
import threading

_PAGE = 4096
_KEEP_BYTES = 256 << 20  # unused memory a pool holds on to


class ScratchPool:
    """Pieces of anonymous memory, together never more than `max_bytes` (rounded up to a page)."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = -(-max_bytes // _PAGE) * _PAGE
        self._lock = threading.Lock()
        self._free: list[mmap.mmap] = []
        self._used = 0

    def acquire(self, nbytes: int) -> mmap.mmap | None:
        """A piece of at least `nbytes`, page-aligned, contents undefined; None where that is beyond the bound."""
        size = max(_PAGE, -(-nbytes // _PAGE) * _PAGE)
        with self._lock:
            fitting = [piece for piece in self._free if size <= len(piece) <= 2 * size]
            piece = min(fitting, key=len, default=None)
            if piece is not None and self._used + len(piece) <= self._max_bytes:
                self._free.remove(piece)
            elif self._used + size <= self._max_bytes:
                piece = mmap.mmap(-1, size)
            else:
                return None
            self._used += len(piece)
            while self._free and self._used + sum(map(len, self._free)) > self._max_bytes:
                self._free.pop(0)
            return piece

    def available(self) -> int:
        """The largest piece there is room for, in bytes."""
        with self._lock:
            return (self._max_bytes - self._used) // _PAGE * _PAGE

    def release(self, piece: mmap.mmap) -> None:
        """Nothing reads or writes the piece any more."""
        with self._lock:
            self._used -= len(piece)
            self._free.append(piece)
            while sum(map(len, self._free)) > min(_KEEP_BYTES, self._max_bytes):
                self._free.pop(0)
