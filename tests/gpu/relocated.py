"""A plan of the CPU's memory, run on a GPU: what it describes is copied there and, what is the target's, back.

So every test that compares kernels on the CPU's memory runs on a GPU as it is, whole allocations compared.
"""

from __future__ import annotations

import ctypes
from array import array
from bisect import bisect_right

import torch

from kvlingua.layouts import gpu, native
from kvlingua.layouts.plan import Plan
from kvlingua.layouts.view import Pool

ALIGNED = 256  # addresses keep their place within so many bytes, and so their alignment
FENCE = 0x5A


class Moved:
    """The memory of a pool on a device, each piece of it an allocation with a fence on both sides."""

    def __init__(self, pool: Pool, device: str) -> None:
        self.begins, self.ends = list(pool.memory[::2]), list(pool.memory[1::2])
        self.pieces: list[torch.Tensor] = []
        self.addresses: list[int] = []
        for begin, end in zip(self.begins, self.ends, strict=True):
            whole = torch.full((end - begin + 3 * ALIGNED,), FENCE, dtype=torch.uint8, device=device)
            first = ALIGNED + (begin - whole.data_ptr()) % ALIGNED
            whole[first : first + end - begin].copy_(self._host(begin, end))
            self.pieces.append(whole)
            self.addresses.append(whole.data_ptr() + first)

    @staticmethod
    def _host(begin: int, end: int) -> torch.Tensor:
        return torch.frombuffer((ctypes.c_char * (end - begin)).from_address(begin), dtype=torch.uint8)

    def address(self, old: int) -> int:
        """Where what was at `old` is now."""
        piece = bisect_right(self.begins, old) - 1
        return self.addresses[piece] + old - self.begins[piece]

    @property
    def spans(self) -> array[int]:
        """As the library wants them: in order."""
        ends = (now + end - begin for now, begin, end in zip(self.addresses, self.begins, self.ends, strict=True))
        return array("Q", [address for span in sorted(zip(self.addresses, ends, strict=True)) for address in span])

    def bring_back(self) -> None:
        """Copy everything to where it came from; nothing may have been written beside it."""
        for whole, now, begin, end in zip(self.pieces, self.addresses, self.begins, self.ends, strict=True):
            first = now - whole.data_ptr()
            self._host(begin, end).copy_(whole[first : first + end - begin])
            beside = torch.cat([whole[:first], whole[first + end - begin :]])
            assert bool((beside == FENCE).all()), "written beside an allocation"


def run(plan: Plan, library: ctypes.CDLL, device: str = "cuda:0", block_bytes: int = 0, blocks: int = 0) -> None:
    """Run a plan on a device, on its default stream. Raises LayoutError if it is refused, as `gpu.run`."""
    sides = Moved(plan.source.pool, device), Moved(plan.target.pool, device)
    told = native.call(plan)
    kept: list[array[int]] = []
    for tokens, side in ((told.source, sides[0]), (told.target, sides[1])):
        kept.append(side.spans)
        tokens.span = kept[-1].buffer_info()[0]
    for index in range(told.planes):
        plane = told.plane[index]
        parts = plane.source, plane.target, plane.source_scale, plane.target_scale
        for part, side in zip(parts, sides * 2, strict=True):
            if part.base:
                old = (ctypes.c_uint64 * told.layers).from_address(part.base)
                kept.append(array("Q", [side.address(base) for base in old]))
                part.base = kept[-1].buffer_info()[0]
    gpu.launch(plan, library, gpu.Call(ctypes.pointer(told), None, 0, 0, block_bytes, blocks, 0))
    if device != "cpu":
        torch.cuda.synchronize()
    sides[0].bring_back()
    sides[1].bring_back()
