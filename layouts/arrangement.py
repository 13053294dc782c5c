"""A layout with all its numbers but the addresses: what memory of one form has in common, wherever it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent, Geometry

if TYPE_CHECKING:
    from kvlingua.layouts.layout import Layout

Digits = tuple[tuple[int, int], ...]
"""(size, stride in bytes), slowest first: ((n, s),), or ((n / x, s1), (x, s0)) for an axis in tiles of x."""


def digits_offset(digits: Digits, index: int) -> int:
    """Bytes that index `index` of an axis with these digits adds."""
    offset = 0
    for size, stride in reversed(digits):
        index, digit = divmod(index, size)
        offset += digit * stride
    return offset


@dataclass(frozen=True, slots=True)
class PlaneStrides:
    """Where a plane's elements lie within the buffers; offsets and strides in bytes.

    Layer l begins at `offset + l * layer` in buffer `buffer + l * buffers`. reach: from there to the last byte used.
    span: from a buffer's first byte to the last that any plane in it uses.
    """

    name: str
    itemsize: int
    buffer: int
    buffers: int
    offset: int
    layer: int
    block: int
    head: int
    token: Digits
    dim: Digits
    reach: int
    span: int


@dataclass(frozen=True, eq=False)
class Arrangement:
    """A layout laid out for these numbers. Equal numbers share one object, so that plans are remembered by it.

    planes: in the geometry's order. fixed: those that lie outside the layout's buffers, in ones of their own, and are
    never written: an engine's static scales.
    """

    layout: Layout
    geometry: Geometry
    extent: Extent
    page: int
    blocks: int
    planes: tuple[PlaneStrides, ...]
    fixed: frozenset[str]

    def wrong(self, why: str) -> LayoutError:
        """A refusal that names the layout."""
        return LayoutError(f"layout {self.layout.name}: {why}")
