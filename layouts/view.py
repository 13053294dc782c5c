"""A pool of blocks in memory, and a view of it: where one sequence's tokens are."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent, Geometry
from kvlingua.layouts.memory import Buffer

if TYPE_CHECKING:
    from kvlingua.layouts.layout import Layout


@dataclass(frozen=True, slots=True)
class PlaneAddress:
    """Where a plane's elements lie: element [layer, block, head, token, dim] is at address
    `bases[layer] + block * self.block + head * self.head + token * self.token + dim * self.dim`.

    Strides are bytes; layer and head count from the start of the pool's extent, token within the block.
    """

    name: str
    width: int
    bases: tuple[int, ...]
    block: int
    head: int
    token: int
    dim: int


@dataclass(frozen=True)
class Pool:
    """Blocks of `page` tokens in borrowed memory, made and proved by `Layout.pool`."""

    layout: Layout
    geometry: Geometry
    extent: Extent
    page: int
    blocks: int
    planes: tuple[PlaneAddress, ...]
    buffers: tuple[Buffer, ...] = field(repr=False)
    spans: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)
    """Address ranges that hold everything reachable, in order, those that touch joined."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "spans", tuple(self._joined_spans()))

    @property
    def device(self) -> str:
        """Kind of memory: `cpu` or an accelerator's name."""
        return self.buffers[0].device

    def view(self, table: Sequence[int], start: int, stop: int) -> View:
        """The tokens [start, stop) of a sequence: position p is in block `table[p // page]` at offset `p % page`.

        table: block numbers. An array('q') is kept as it is; lists, and torch or numpy arrays of whole numbers,
        are copied. Only entries that [start, stop) touches are looked at.
        Raises LayoutError if the table is too short or names a block outside the pool.
        """
        if not 0 <= start <= stop:
            raise LayoutError(f"token positions [{start}, {stop}) are not a range")
        numbers = _int64(table)
        first, last = start // self.page, -(-stop // self.page)
        if start < stop:
            if last > len(numbers):
                raise LayoutError(
                    f"tokens up to {stop} need {last} blocks of {self.page} tokens, the block table has {len(numbers)}"
                )
            used = numbers[first:last]
            if min(used) < 0 or max(used) >= self.blocks:
                wrong = next(block for block in used if not 0 <= block < self.blocks)
                raise LayoutError(f"the block table names block {wrong}; the pool has blocks 0 to {self.blocks - 1}")
        return View(self, numbers, start, stop)

    def _joined_spans(self) -> list[tuple[int, int]]:
        ranges = []
        for plane in self.planes:
            sizes = (self.blocks, plane.block), (self.extent.heads, plane.head), (self.page, plane.token)
            inside = sum((size - 1) * stride for size, stride in sizes) + (plane.width - 1) * plane.dim
            ranges += [(base, base + inside + self.geometry.itemsize) for base in plane.bases]
        joined: list[tuple[int, int]] = []
        for low, high in sorted(ranges):
            if joined and low <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(high, joined[-1][1])
            else:
                joined.append((low, high))
        return joined


@dataclass(frozen=True)
class View:
    """The tokens at positions [start, stop) of one sequence in a pool. Made by `Pool.view`; borrows the memory."""

    pool: Pool
    table: array[int] = field(repr=False)
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.stop - self.start

    @property
    def blocks(self) -> array[int]:
        """The blocks that the tokens touch, in their order."""
        if not self.tokens:
            return array("q")
        return self.table[self.start // self.pool.page : -(-self.stop // self.pool.page)]


def _int64(table: Any) -> array[int]:
    if isinstance(table, array) and table.typecode == "q":
        return table
    numbers = table.tolist() if hasattr(table, "tolist") else table
    try:
        return array("q", numbers)
    except (TypeError, OverflowError) as error:
        raise LayoutError(f"a block table is a sequence of block numbers, this one isn't: {error}") from None
