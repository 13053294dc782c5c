"""Borrowed memory: an address, a size, and who owns it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kvlingua.layouts.errors import LayoutError

_FIELD = re.compile(r":[^:]*:")  # a field's name in a buffer's format


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
        The latter can't be resized or closed while the buffer lives. Raises LayoutError for anything else, and for
        memory whose bytes aren't the numbers: a sparse or quantised tensor, one to be negated, references to objects.
        """
        if not isinstance(obj, type) and hasattr(obj, "untyped_storage") and hasattr(obj, "data_ptr"):
            _check_tensor(obj)
            storage = obj.untyped_storage()
            pointer = int(obj.data_ptr())
            nbytes = int(storage.data_ptr()) + int(storage.nbytes()) - pointer if pointer else 0
            device = str(obj.device)
            return cls(pointer, nbytes, obj, "pinned" if device == "cpu" and obj.is_pinned() else device)
        try:
            view = memoryview(obj)
        except (TypeError, ValueError, BufferError) as error:  # ValueError: closed, or a dtype that has no format
            got = f"the class {obj.__name__}" if isinstance(obj, type) else f"{type(obj).__name__} ({error})"
            raise LayoutError(f"expected a torch tensor or a writable buffer (bytearray, mmap), got {got}") from None
        if view.readonly or not view.c_contiguous:
            raise LayoutError(f"the memory of this {type(obj).__name__} must be writable and contiguous")
        if "O" in _FIELD.sub("", view.format):
            raise LayoutError(
                f"this {type(obj).__name__} holds references to Python objects, whose memory can't be copied into:"
                " make it an array of numbers, or of bytes (dtype uint8)"
            )
        if view.nbytes == 0:
            return cls(0, 0, obj)
        memory = (ctypes.c_char * view.nbytes).from_buffer(view)
        return cls(ctypes.addressof(memory), view.nbytes, memory)


def _check_tensor(tensor: Any) -> None:
    """Raise LayoutError unless the numbers of a torch tensor are what lies in its memory."""
    kind, what = str(tensor.layout).removeprefix("torch."), ""
    if tensor.is_nested or kind == "jagged":
        what = "nested: give the tensor of its .values()"
    elif kind != "strided":
        what = f"of layout {kind}: make it dense with .to_dense()"
    elif tensor.is_quantized:
        what = "quantised: give its .int_repr(), and the scales as a plane of their own"
    elif tensor.is_meta:
        what = "on device meta, which has no memory: make it on the device where the numbers are"
    elif tensor.is_neg():
        what = "a view to be negated when it is read: take .resolve_neg()"
    elif tensor.is_conj():
        what = "a view to be conjugated when it is read: take .resolve_conj()"
    if what:
        raise LayoutError(f"a buffer is memory in which the numbers lie as they are; this tensor is {what}")


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same addresses as ranges [begin, end) in order, those that overlap joined."""
    result: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if result and begin < result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((begin, end))
    return result
