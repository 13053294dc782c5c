"""Two sides of a row brought to common digits: the same elements, as few nested runs with a stride on either side.

A side may keep its dims in tiles, and rotated dims in another order. So each element of a row has an offset on both
sides; the list of these pairs is folded into axes of equal steps. What doesn't fold into one nest of axes becomes
several pieces, which together are still every element once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from kvlingua.layouts.arrangement import Digits, digits_offset
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Rope

MAX_AXES = 4
"""Most axes of a piece; csrc/kvlingua.h has room for as many."""

MAX_PIECES = 1024
"""Rows that take more are refused: no engine's do, and each piece is a pass over the memory."""

Axis = tuple[int, int, int]
"""(size, stride on the source's side, on the target's), in bytes"""


@dataclass(frozen=True, slots=True)
class Row:
    """The dims of one side of a plane: how they lie, and in which order rotated ones stand."""

    dim: Digits
    rope: Rope

    def offset(self, index: int) -> int:
        """Bytes from the row's begin to the element with this index in the order of a half-rotated row."""
        position = index
        if self.rope.order == "interleaved" and index < self.rope.width:
            of_pair, pair = divmod(index, self.rope.width // 2)
            position = 2 * pair + of_pair
        return digits_offset(self.dim, position)

    @property
    def width(self) -> int:
        """Number of elements."""
        result = 1
        for size, _ in self.dim:
            result *= size
        return result


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements at `source` and `target`, bytes from the row's begin, plus what nested axes, slowest first, add."""

    source: int
    target: int
    axes: tuple[Axis, ...]


@lru_cache(maxsize=1024)
def pieces(source: Row, target: Row) -> tuple[Piece, ...]:
    """All elements of a row, as pieces of at most `MAX_AXES` axes. Raises LayoutError if the rows can't be compared."""
    if source.width != target.width or source.rope.width != target.rope.width:
        raise LayoutError(f"rows of {source.width} and {target.width} elements aren't the same elements")
    # Walked in the target's order, so that axes nest as its memory does.
    order = sorted(range(source.width), key=target.offset)
    nests = _fold([(source.offset(index), target.offset(index)) for index in order])
    if len(nests) > MAX_PIECES:
        raise LayoutError(
            f"rows of {source.width} elements in tiles {source.dim} and {target.dim} have too little in common"
            f" ({len(nests)} pieces, at most {MAX_PIECES}): convert by way of a layout without tiles"
        )
    return tuple(Piece(*start, axes) for start, axes in nests)


Point = tuple[int, int]
Nest = tuple[Point, tuple[Axis, ...]]


def _fold(points: Sequence[Point]) -> list[Nest]:
    """Points as nests of axes, slowest first: runs of equal steps first, then runs of equal runs, and so on."""
    nests: list[Nest] = [(point, ()) for point in points]
    while True:
        folded = _fold_once(nests)
        if len(folded) == len(nests):
            return folded
        nests = folded


def _fold_once(nests: Sequence[Nest]) -> list[Nest]:
    """Neighbours of the same axes and equal steps joined into one nest with an axis more."""
    folded: list[Nest] = []
    index = 0
    while index < len(nests):
        (start, axes), count = nests[index], 1
        step = (0, 0)
        while index + count < len(nests) and len(axes) < MAX_AXES:
            (point, others), (before, _) = nests[index + count], nests[index + count - 1]
            found = point[0] - before[0], point[1] - before[1]
            if others != axes or min(found) < 0 or (count > 1 and found != step):
                break
            step, count = found, count + 1
        folded.append((start, ((count, *step), *axes) if count > 1 else axes))
        index += count
    return folded
