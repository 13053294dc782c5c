"""A pool of blocks in memory, and a view of it: where one sequence's tokens are."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvlingua.layouts.arrangement import Arrangement, Digits
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent, Geometry
from kvlingua.layouts.memory import Buffer, joined
from kvlingua.layouts.whole import whole

if TYPE_CHECKING:
    from kvlingua.layouts.layout import Layout


@dataclass(frozen=True, slots=True)
class PlaneAddress:
    """Where a plane's elements lie: element [layer, block, head, token, dim] is at address
    `bases[layer] + block * self.block + head * self.head` plus what the digits of token and of dim add.

    Strides are bytes; layer and head count from the start of the pool's extent, token within the block. Digits are
    (size, stride), slowest first: index i of ((n, s),) adds i * s, of ((n, s1), (x, s0)) i // x * s1 + i % x * s0.
    Stride 0 along an axis: one value for all of it.
    """

    name: str
    bases: tuple[int, ...]
    block: int
    head: int
    token: Digits
    dim: Digits


@dataclass(frozen=True)
class Pool:
    """Blocks of `page` tokens in borrowed memory, made and proved by `Layout.pool`.

    planes: in the geometry's order. scales: memory of the planes in `fixed`, which are only read.
    """

    arrangement: Arrangement = field(repr=False)
    planes: tuple[PlaneAddress, ...]
    buffers: tuple[Buffer, ...] = field(repr=False)
    scales: tuple[Buffer, ...] = field(repr=False)
    memory: array[int] = field(init=False, compare=False, repr=False)
    """The described memory: first address and address after the last of each piece, in order, disjoint."""
    _bases: dict[tuple[int, int, int, int], array[int]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        pieces = joined((buffer.pointer, buffer.end) for buffer in self.buffers + self.scales if buffer.nbytes)
        object.__setattr__(self, "memory", array("Q", [address for piece in pieces for address in piece]))

    @property
    def layout(self) -> Layout:
        """The row it follows."""
        return self.arrangement.layout

    @property
    def geometry(self) -> Geometry:
        """What the whole model keeps."""
        return self.arrangement.geometry

    @property
    def extent(self) -> Extent:
        """The heads and layers held here."""
        return self.arrangement.extent

    @property
    def page(self) -> int:
        """Tokens per block."""
        return self.arrangement.page

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.arrangement.blocks

    @property
    def fixed(self) -> frozenset[str]:
        """Planes of scales that are never written: an engine's static scales."""
        return self.arrangement.fixed

    @property
    def device(self) -> str:
        """Where it lies: `cpu`, `pinned` or a GPU's name, as of `Buffer`."""
        return self.buffers[0].device

    def bases(self, plane: int, first: int, layers: int, offset: int) -> array[int]:
        """Base addresses of the plane with this index in `layers` layers from `first` on, each plus `offset` bytes."""
        key = plane, first, layers, offset
        found = self._bases.get(key)
        if found is None:
            bases = self.planes[plane].bases[first : first + layers]
            made = array("Q", [base + offset for base in bases] if offset else bases)
            # Its address is handed out: of two threads that make one at once, both get the one that is kept.
            found = self._bases.setdefault(key, made)
        return found

    def view(self, table: Sequence[int], start: int, stop: int) -> View:
        """The tokens [start, stop) of a sequence: position p is in block `table[p // page]` at offset `p % page`.

        table: block numbers. An array('q') is kept as it is, so it must not change while the view is used; lists, and
        torch or numpy arrays of whole numbers, are copied. Only entries that [start, stop) touches are ever looked at,
        and not before a conversion.
        Raises LayoutError if the table is too short or no sequence of integers.
        """
        first, end = whole(start), whole(stop)
        if first is None or end is None or not 0 <= first <= end:
            raise LayoutError(f"token positions [{start}, {stop}) are not a range")
        numbers = _int64(table)
        needed = -(-end // self.page)
        if first < end and needed > len(numbers):
            raise LayoutError(
                f"tokens up to {end} need {needed} blocks of {self.page} tokens, the block table has {len(numbers)}"
            )
        return View(self, numbers, first, end)


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


def check_view(what: str, value: object) -> None:
    """Raise LayoutError unless it is a View; `what` is what it was given as."""
    if not isinstance(value, View):
        raise LayoutError(f"the {what} is a {type(value).__name__}, expected a View: pool.view(table, start, stop)")


def _int64(table: Any) -> array[int]:
    if isinstance(table, array) and table.typecode == "q":
        return table
    dtype = str(getattr(table, "dtype", "")).removeprefix("torch.")
    try:
        if dtype == "int64" and table.ndim == 1 and str(getattr(table, "device", "cpu")) == "cpu":
            # The bytes of a table already: a hundred times faster than going by lists.
            return array("q", memoryview(table.numpy() if hasattr(table, "numpy") else table).tobytes())
        numbers = table.tolist() if hasattr(table, "tolist") else table
        if not isinstance(numbers, Sequence) or isinstance(numbers, (str, bytes, bytearray)):
            raise TypeError(f"it is a {type(table).__name__}")
        only_integers = isinstance(table, (range, array)) or dtype.removeprefix("u").startswith("int")
        if not only_integers and bool in set(map(type, numbers)):  # a mask: to array, True is the number 1
            raise TypeError("it holds True or False")
        return array("q", numbers)
    except (TypeError, OverflowError, RuntimeError) as error:  # RuntimeError: a tensor that has no numbers
        raise LayoutError(f"a block table is a sequence of integers, this one isn't: {error}") from None
