"""Borrowed memory: an address, a size, and who owns it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kvlingua.layouts.errors import LayoutError


@dataclass(frozen=True, slots=True)
class Buffer:
    """`nbytes` bytes from address `pointer` on, on `device`. `owner` keeps them alive and isn't compared.

    device: `cpu`; `pinned` for memory of the CPU that GPUs reach, too (pinned.py, or a tensor that torch has pinned); a
    GPU's as torch calls it, `cuda:0`.
    """

    pointer: int
    nbytes: int
    owner: object = field(default=None, compare=False, repr=False)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.pointer < 0 or self.nbytes < 0:
            raise LayoutError(f"a buffer can't be {self.nbytes} bytes at address {self.pointer}")
        if self.pointer == 0 and self.nbytes:
            raise LayoutError(f"a buffer of {self.nbytes} bytes can't begin at address 0")
        if self.end >= 1 << 63:
            raise LayoutError(f"a buffer can't reach up to address {self.end:#x}, which no memory has")

    @property
    def end(self) -> int:
        """Address after the last byte."""
        return self.pointer + self.nbytes

    @classmethod
    def of(cls, obj: Any) -> Buffer:
        """The memory of a torch tensor, from its first element to the end of its storage, or of an object with a
        writable contiguous buffer (bytearray, memoryview, mmap, numpy array), all of it.

        A tensor's shape and strides are NOT read: memory that isn't dense needs them in `Layout.pool(strides=...)`.
        The latter can't be resized or closed while the buffer lives. Raises LayoutError for anything else.
        """
        if hasattr(obj, "untyped_storage") and hasattr(obj, "data_ptr"):
            storage = obj.untyped_storage()
            pointer = int(obj.data_ptr())
            nbytes = int(storage.data_ptr()) + int(storage.nbytes()) - pointer if pointer else 0
            device = str(obj.device)
            return cls(pointer, nbytes, obj, "pinned" if device == "cpu" and obj.is_pinned() else device)
        try:
            view = memoryview(obj)
        except TypeError:
            raise LayoutError(
                f"expected a torch tensor or a writable buffer (bytearray, mmap), got {type(obj).__name__}"
            ) from None
        if view.readonly or not view.c_contiguous:
            raise LayoutError(f"the memory of this {type(obj).__name__} must be writable and contiguous")
        if view.nbytes == 0:
            return cls(0, 0, obj)
        memory = (ctypes.c_char * view.nbytes).from_buffer(view)
        return cls(ctypes.addressof(memory), view.nbytes, memory)


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same addresses as ranges [begin, end) in order, those that overlap joined."""
    result: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if result and begin < result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((begin, end))
    return result
