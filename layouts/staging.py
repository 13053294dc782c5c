"""Between a GPU's memory and pinned memory by way of a small buffer on the GPU.

Kernels are fastest within the device's memory, copy engines across the bus. So whole blocks are gathered into a buffer
on the GPU and copied from there, or copied there and scattered: one launch for as many blocks as there is room for, and
one copy for each run of blocks that follow each other in pinned memory. The buffer has two parts, which stages take in
turn, so that a kernel works on one while a copy engine does on the other (lane.py).
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

PARTS = 2


@dataclass(frozen=True, slots=True)
class Stage:
    """Some blocks: the plan between engine and buffer, and the copies between buffer and pinned memory.

    runs: address in pinned memory, address in the buffer, bytes. part: of the buffer, which it takes.
    """

    part: int
    plan: Plan
    runs: tuple[tuple[int, int, int], ...]


def stages(plan: Plan, pinned: View, buffer: Buffer, parts: int = 1) -> Iterator[Stage]:
    """A plan in stages that each fit into one of so many parts of the buffer, taken in turn; `pinned` is its side in
    pinned memory. For `can_stage` only, of a part's bytes."""
    pool, blocks = pinned.pool, pinned.blocks
    size, memory = _block_bytes(pool), pool.buffers[0].pointer
    room, first = buffer.nbytes // parts // size, pinned.start // pool.page
    for number, begin in enumerate(range(0, len(blocks), room)):
        part = replace(buffer, pointer=buffer.pointer + number % parts * room * size, nbytes=room * size)
        end = min(begin + room, len(blocks))
        count = end - begin
        beside = _pool(pool, count, part)
        tokens = (first + begin) * pool.page - pinned.start, (first + end) * pool.page - pinned.start
        staged = View(beside, array("q", range(count)), 0, count * pool.page)
        other = plan.source if pinned is plan.target else plan.target
        other = replace(other, start=other.start + tokens[0], stop=other.start + tokens[1])
        sides = (other, staged) if pinned is plan.target else (staged, other)
        found = tuple(
            (memory + blocks[one] * size, part.pointer + (one - begin) * size, (other - one) * size)
            for one, other in _runs(blocks, begin, end)
        )
        yield Stage(number % parts, replace(plan, source=sides[0], target=sides[1]), found)


def runs(pinned: View) -> int:
    """How many runs of blocks that follow each other there are: with a buffer that holds all, the copies."""
    blocks = pinned.blocks
    return sum(1 for _ in _runs(blocks, 0, len(blocks)))


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


def _runs(blocks: array[int], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Of the table's entries [begin, end) those whose blocks follow each other, run by run."""
    for at, (one, other) in enumerate(pairwise(blocks[begin:end]), start=begin + 1):
        if other != one + 1:
            yield begin, at
            begin = at
    yield begin, end


def _pool(pool: Pool, blocks: int, buffer: Buffer) -> Pool:
    """The same layout, of fewer blocks, in the buffer."""
    arrangement = arrange(pool.layout, pool.geometry, pool.extent, pool.page, blocks, {}, frozenset())
    buffers = [replace(buffer, nbytes=arrangement.planes[0].span)]
    return pool.layout.pool(pool.geometry, pool.extent, page=pool.page, blocks=blocks, buffers=buffers)
