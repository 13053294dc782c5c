"""Between a GPU's memory and pinned memory by way of a small buffer on the GPU.

Kernels are fastest within the device's memory, copy engines across the bus. So whole blocks are gathered into a buffer
on the GPU and copied from there in one run, or copied there and scattered; all on one stream, so that the buffer is
free again when the next blocks come to it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.plan import Plan
from kvlingua.layouts.strides import arrange
from kvlingua.layouts.view import Pool, View


@dataclass(frozen=True, slots=True)
class Stage:
    """Some blocks: the plan between engine and buffer, and the copy between buffer and pinned memory."""

    plan: Plan
    pinned: int
    nbytes: int


def stages(plan: Plan, pinned: View, buffer: Buffer) -> Iterator[Stage]:
    """A plan in stages that each fit into the buffer; `pinned` is its side in pinned memory. For `can_stage` only."""
    pool = pinned.pool
    size, room = _block_bytes(pool), buffer.nbytes // _block_bytes(pool)
    first = pinned.start // pool.page
    for begin, end in _runs(pinned.blocks, room):
        count = end - begin
        beside = _pool(pool, count, buffer)
        tokens = (first + begin) * pool.page - pinned.start, (first + end) * pool.page - pinned.start
        staged = View(beside, array("q", range(count)), 0, count * pool.page)
        other = plan.source if pinned is plan.target else plan.target
        other = replace(other, start=other.start + tokens[0], stop=other.start + tokens[1])
        sides = (other, staged) if pinned is plan.target else (staged, other)
        address = pool.buffers[0].pointer + pinned.blocks[begin] * size
        yield Stage(replace(plan, source=sides[0], target=sides[1]), address, count * size)


def can_stage(plan: Plan, pinned: View, nbytes: int) -> bool:
    """Whether a side is whole blocks, each one run of bytes that fits into `nbytes`, and all of it is the plan's."""
    pool = pinned.pool
    return (
        not pool.layout.separate
        and pool.layout.shared[:1] == ("block",)
        and not pool.fixed
        and plan.extent == pool.extent
        and pool.arrangement.planes[0].block == _block_bytes(pool) <= nbytes
        and pinned.start % pool.page == 0
        and pinned.stop % pool.page == 0
    )


def _block_bytes(pool: Pool) -> int:
    return pool.geometry.block_bytes(pool.extent, pool.page)


def _runs(blocks: array[int], room: int) -> Iterator[tuple[int, int]]:
    """Entries [begin, end) of the table whose blocks follow each other, at most `room` of them."""
    begin = 0
    for end, (one, other) in enumerate(pairwise(blocks), start=1):
        if other != one + 1 or end - begin == room:
            yield begin, end
            begin = end
    yield begin, len(blocks)


def _pool(pool: Pool, blocks: int, buffer: Buffer) -> Pool:
    """The same layout, of fewer blocks, in the buffer."""
    arrangement = arrange(pool.layout, pool.geometry, pool.extent, pool.page, blocks, {}, frozenset())
    buffers = [replace(buffer, nbytes=arrangement.planes[0].span)]
    return pool.layout.pool(pool.geometry, pool.extent, page=pool.page, blocks=blocks, buffers=buffers)
