"""Pinned memory as a GPU sees it, where that is at another address than the CPU does (AMD's)."""

from __future__ import annotations

import ctypes
from array import array

from kvlingua.layouts.memory import joined
from kvlingua.layouts.native import CPlan
from kvlingua.layouts.pinned import Pinned
from kvlingua.layouts.view import Pool

_SIDES = (("source", "source_scale"), ("target", "target_scale"))


def use_device_addresses(told: CPlan, pools: tuple[Pool, Pool], device: int) -> list[array[int]]:
    """Change a call's addresses of pinned memory, the source's and the target's, to those that `device` has for it.

    Returns what has to live as long as the call. Memory that isn't `Pinned`'s stays as it is: torch's own has the same
    address on both sides.
    """
    kept: list[array[int]] = []
    for pool, names in zip(pools, _SIDES, strict=True):
        moved = _Moved(pool, device)
        if not moved.any:
            continue
        tokens = told.source if names[0] == "source" else told.target
        kept.append(moved.spans())
        tokens.span, tokens.spans = kept[-1].buffer_info()[0], len(kept[-1]) // 2
        for index in range(told.planes):
            for side in (getattr(told.plane[index], name) for name in names):
                if side.base:
                    old = (ctypes.c_uint64 * told.layers).from_address(side.base)
                    kept.append(array("Q", map(moved.address, old)))
                    side.base = kept[-1].buffer_info()[0]
    return kept


class _Moved:
    """Where a pool's buffers are to a device: (begin, end, how much further)."""

    def __init__(self, pool: Pool, device: int) -> None:
        self.any = False
        self._pieces: list[tuple[int, int, int]] = []
        for buffer in (*pool.buffers, *pool.scales) if pool.device == "pinned" else ():
            owner = buffer.owner
            further = owner.address_on(device) - owner.address if isinstance(owner, Pinned) else 0
            self._pieces.append((buffer.pointer, buffer.end, further))
            self.any |= further != 0

    def address(self, old: int) -> int:
        return next(old + further for begin, end, further in self._pieces if begin <= old < end)

    def spans(self) -> array[int]:
        """As the library wants them: in order, each once."""
        moved = joined((begin + further, end + further) for begin, end, further in self._pieces if end > begin)
        return array("Q", [address for span in moved for address in span])
