"""Memory between pages that nobody may touch: a step over the edge ends the process, sanitizer or not."""

from __future__ import annotations

import ctypes
import mmap

from kvlingua.layouts import Buffer

PROT_NONE = 0
LIBC = ctypes.CDLL(None, use_errno=True)
NOISE = bytes((i * 167 + i // 251) % 256 for i in range(1 << 16))


class Fenced:
    """`SIZE` bytes with a forbidden page before and behind them."""

    SIZE = 1 << 16
    FENCE = 1 << 16  # a multiple of every page size in use

    def __init__(self) -> None:
        self._whole = mmap.mmap(-1, self.SIZE + 2 * self.FENCE)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self._whole))
        self.begin = begin + self.FENCE
        for fence in (begin, self.begin + self.SIZE):
            if LIBC.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(self.FENCE), PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")

    def fill(self) -> None:
        """Put noise into all of it."""
        ctypes.memmove(self.begin, NOISE, self.SIZE)

    def contents(self) -> bytes:
        return ctypes.string_at(self.begin, self.SIZE)

    def restore(self, contents: bytes) -> None:
        ctypes.memmove(self.begin, contents, self.SIZE)

    def at_the_end(self, nbytes: int, itemsize: int) -> Buffer:
        """The last bytes before the fence, as far as alignment lets."""
        return Buffer((self.begin + self.SIZE - nbytes) // itemsize * itemsize, nbytes, self)

    def at_the_start(self, nbytes: int) -> Buffer:
        """The first bytes behind the fence."""
        return Buffer(self.begin, nbytes, self)

    def outside(self, buffers: list[Buffer]) -> bytearray:
        """What lies beside `buffers`."""
        rest = bytearray(self.contents())
        for buffer in buffers:
            if buffer.owner is self:
                start = buffer.pointer - self.begin
                rest[start : start + buffer.nbytes] = bytes(buffer.nbytes)
        return rest
