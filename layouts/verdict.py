"""What comparisons of scales on a GPU come to: a page of pinned memory for each thread."""

from __future__ import annotations

import ctypes
import mmap
import threading
from ctypes import c_uint32

from kvlingua.layouts.pinned import Pinned

_own = threading.local()


class _Verdict:
    """A pinned page. Comparisons are waited for, so it ends with its thread."""

    def __init__(self, library: ctypes.CDLL, device: int) -> None:
        self.pinned = Pinned(library, mmap.PAGESIZE, device=device)

    def __del__(self) -> None:
        if hasattr(self, "pinned"):
            self.pinned.close()


def kept() -> dict[int, _Verdict]:
    """This thread's own, by library."""
    found: dict[int, _Verdict] = _own.__dict__.setdefault("verdicts", {})
    return found


def page(library: ctypes.CDLL, device: int) -> Pinned:
    """A page of this thread's own, kept: its first four bytes are what a comparison comes to. 0 at first."""
    pages = kept()
    if library._handle not in pages:
        pages[library._handle] = _Verdict(library, device)
    pinned = pages[library._handle].pinned
    ctypes.memset(pinned.address, 0, 4)
    return pinned


def value(verdict: Pinned) -> int:
    return c_uint32.from_address(verdict.address).value
