"""From a layout's words to byte strides and offsets, for given numbers of everything; addresses come later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent, Geometry, Plane
from kvlingua.layouts.terms import term

if TYPE_CHECKING:
    from kvlingua.layouts.layout import Layout

Digits = tuple[tuple[int, int], ...]
"""(size, stride in bytes), slowest first: ((n, s),), or ((n / x, s1), (x, s0)) for an axis in tiles of x."""


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
    """A layout with all its numbers, addresses aside. One object for equal numbers, so plans are remembered by it.

    fixed: planes of scales that lie outside the layout's buffers, in ones of their own, and are never written.
    """

    layout: Layout
    geometry: Geometry
    extent: Extent
    page: int
    blocks: int
    planes: tuple[PlaneStrides, ...]
    fixed: frozenset[str]

    def wrong(self, why: str) -> LayoutError:
        return LayoutError(f"layout {self.layout.name}: {why}")


def arrange(
    layout: Layout,
    geometry: Geometry,
    extent: Extent,
    page: int,
    blocks: int,
    strides: Mapping[str, int],
    fixed: frozenset[str],
) -> Arrangement:
    """The layout with these numbers; arguments as of `Layout.pool`. Raises LayoutError if they don't fit it."""
    for name, number in (("page", page), ("blocks", blocks), *strides.items()):
        if type(number) is not int:
            raise LayoutError(f"layout {layout.name}: {name!r} must be a whole number, not {number!r}")
    return _arrange(layout, geometry, extent, page, blocks, tuple(strides.items()), fixed)


@lru_cache(maxsize=1024)
def _arrange(
    layout: Layout,
    geometry: Geometry,
    extent: Extent,
    page: int,
    blocks: int,
    strides: tuple[tuple[str, int], ...],
    fixed: frozenset[str],
) -> Arrangement:
    return _Arranger(layout, geometry, extent, page, blocks, dict(strides), fixed).arrangement()


@dataclass(frozen=True, slots=True)
class _Nest:
    """Bytes of some words nested in each other. span: first to last byte used; dense: where a next one may begin."""

    strides: dict[str, int]
    span: int
    dense: int
    align: int


class _Arranger:
    def __init__(
        self,
        layout: Layout,
        geometry: Geometry,
        extent: Extent,
        page: int,
        blocks: int,
        given: Mapping[str, int],
        fixed: frozenset[str],
    ) -> None:
        self.layout, self.geometry, self.extent, self.page, self.blocks = layout, geometry, extent, page, blocks
        self.given, self.fixed = given, fixed
        self.planes = [plane for plane in geometry.planes if plane.name not in fixed]
        self.apart = "plane" in layout.separate
        self._check()

    def wrong(self, why: str) -> LayoutError:
        return LayoutError(f"layout {self.layout.name}: {why}")

    def _check(self) -> None:
        if not self.geometry.full.contains(self.extent):
            raise self.wrong(f"the extent ({self.extent}) isn't part of the model ({self.geometry.full})")
        if self.page < 1 or self.blocks < 1:
            raise self.wrong(f"needs at least 1 block of at least 1 token, not {self.blocks} of {self.page}")
        for name in self.fixed:
            if not self.geometry.plane(name).is_scale or self.geometry.plane(name).per == "token":
                raise self.wrong(f"plane {name} has a value per token, so it lies in the cache's own memory")
        regions = [name for name, _ in self.layout.groups if name != "*"]
        names = [plane.name for plane in self.planes]
        if self.layout.groups and not (
            set(regions) <= set(names) and ("*" in dict(self.layout.groups) or set(names) == set(regions))
        ):
            raise self.wrong(f"has planes {regions}, the model has {names}")
        words = {plane.name: self.layout.axes(plane.name) for plane in self.planes}
        if self.blocks != 1 and not all("block" in path for path in words.values()):
            raise self.wrong(f"has no block axis, so it is 1 block (its page: the tokens held), not {self.blocks}")
        known = {word for path in words.values() for word in path}
        known |= {f"{name}.{word}" for name in names for word in (words[name] if self.apart else self._inner(name))}
        for key in self.given:
            if key not in known:
                raise self.wrong(f"has no stride {key!r}; it has {', '.join(sorted(known))}")

    def _inner(self, plane: str) -> tuple[str, ...]:
        """The words of a plane that no other plane shares."""
        return self.layout.axes(plane)[0 if self.apart else len(self.layout.shared) :]

    def arrangement(self) -> Arrangement:
        placed = dict(self._apart() if self.apart else self._side_by_side())
        result = []
        for plane in self.geometry.planes:
            if plane.name in self.fixed:
                result.append(self._fixed(plane))
                continue
            nest, offset, buffer, buffers = placed[plane.name]
            result.append(self._strides(plane, nest, offset, buffer, buffers))
        where = self.layout, self.geometry, self.extent, self.page, self.blocks
        return Arrangement(*where, tuple(result), self.fixed)

    def _apart(self) -> list[tuple[str, tuple[_Nest, int, int, int]]]:
        """Each plane in allocations of its own: its nest, offset 0, its first buffer, buffers from layer to layer."""
        per_layer = "layer" in self.layout.separate
        layer_first = per_layer and self.layout.separate[0] == "layer"
        placed = []
        for index, plane in enumerate(self.planes):
            nest = self._nest(self._inner(plane.name), self._element(plane), plane)
            first = index if layer_first or not per_layer else index * self.extent.layers
            step = 0 if not per_layer else len(self.planes) if layer_first else 1
            placed.append((plane.name, (nest, 0, first, step)))
        return placed

    def _side_by_side(self) -> list[tuple[str, tuple[_Nest, int, int, int]]]:
        """The planes' regions one after the other, and around them the words that all share."""
        order = []
        for name, _ in self.layout.groups:
            named = {region for region, _ in self.layout.groups}
            order += [plane for plane in self.planes if plane.name == name or (name == "*" and plane.name not in named)]
        regions, offset, span = [], 0, 0
        for plane in order:
            self._check_shared(plane)
            region = self._nest(self._inner(plane.name), self._element(plane), plane)
            if offset % region.align:
                raise self.wrong(f"plane {plane.name} would begin {offset} bytes in, no multiple of {region.align}")
            regions.append((plane, region, offset))
            span, offset = offset + region.span, offset + region.dense
        align = max(region.align for _, region, _ in regions)
        around = self._nest(self.layout.shared, _Nest({}, span, offset, align), None)
        step = 1 if "layer" in self.layout.separate else 0
        return [
            (plane.name, (_Nest(around.strides | region.strides, around.span, around.dense, align), start, 0, step))
            for plane, region, start in regions
        ]

    def _check_shared(self, plane: Plane) -> None:
        for word in self.layout.shared:
            if self._single(plane, term(word).axis):
                raise self.wrong(f"plane {plane.name} has one value per {plane.per}, so it can't lie inside {word!r}")

    @staticmethod
    def _single(plane: Plane, axis: str) -> bool:
        """Whether a plane has one value for all indices along an axis."""
        return (axis == "token" and plane.per != "token") or (axis == "head" and plane.per == "tensor")

    @staticmethod
    def _element(plane: Plane) -> _Nest:
        return _Nest({}, plane.itemsize, plane.itemsize, plane.itemsize)

    def _nest(self, words: Sequence[str], inner: _Nest, plane: Plane | None) -> _Nest:
        """Wrap `words` (slowest first), of one plane or shared by all, around `inner`, from the fastest on."""
        strides, span, dense = dict(inner.strides), inner.span, inner.dense
        for word in reversed(words):
            size = self._size(word, plane)
            given = self.given.get(word, dense)
            if plane is not None:
                given = self.given.get(f"{plane.name}.{word}", given)
            stride = dense if size == 1 else given
            if stride < span:
                raise self.wrong(
                    f"a stride of {stride} bytes along {word} is too small, what lies inside takes {span}"
                    " (the axes of the memory nest in another order, or overlap)"
                )
            if stride % inner.align:
                raise self.wrong(f"a stride of {stride} bytes along {word} isn't a multiple of {inner.align}")
            strides[word], span, dense = stride, (size - 1) * stride + span, size * stride
        return _Nest(strides, span, dense, inner.align)

    def _size(self, word: str, plane: Plane | None) -> int:
        part = term(word)
        if plane is not None and self._single(plane, part.axis):
            return 1
        if part.axis == "dim":
            assert plane is not None  # Layout lets no dim be shared
            elements = plane.width
        else:
            sizes = {"layer": self.extent.layers, "block": self.blocks, "head": self.extent.heads, "token": self.page}
            elements = sizes[part.axis]
        try:
            return part.size(elements, (plane or self.geometry.numbers[0]).itemsize)
        except LayoutError as error:
            raise self.wrong(f"plane {plane.name}: {error}" if plane else str(error)) from None

    def _strides(self, plane: Plane, nest: _Nest, offset: int, buffer: int, buffers: int) -> PlaneStrides:
        """The strides by word as those by axis; 0 along an axis that the plane has only one value for."""
        found = nest.strides
        digits: dict[str, Digits] = {}
        for axis, size in (("token", self.page), ("dim", plane.width)):
            words = sorted((word for word in found if term(word).axis == axis), key=lambda word: "%" in word)
            digits[axis] = tuple((self._size(word, plane), found[word]) for word in words)
            if self._single(plane, axis):
                digits[axis] = ((size, 0),)
        block, head = found.get("block", 0), 0 if plane.per == "tensor" else found["head"]
        token, dim = digits["token"], digits["dim"]
        reach = plane.itemsize + (self.blocks - 1) * block + (self.extent.heads - 1) * head
        reach += sum((size - 1) * stride for size, stride in token + dim)
        layer = 0 if buffers else found["layer"]
        return PlaneStrides(
            plane.name, plane.itemsize, buffer, buffers, offset, layer, block, head, token, dim, reach, nest.span
        )

    def _fixed(self, plane: Plane) -> PlaneStrides:
        """Static scales: dense, one buffer per layer."""
        head = 0 if plane.per == "tensor" else plane.itemsize
        reach = plane.itemsize + (self.extent.heads - 1) * head
        return PlaneStrides(
            plane.name, plane.itemsize, 0, 1, 0, 0, 0, head, ((self.page, 0),), ((1, plane.itemsize),), reach, reach
        )
