"""From a layout's words to byte strides and offsets, for given numbers of everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from kvlingua.layouts.arrangement import Arrangement, Digits, PlaneStrides
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent, Geometry, Plane
from kvlingua.layouts.terms import term
from kvlingua.layouts.whole import whole

if TYPE_CHECKING:
    from kvlingua.layouts.layout import Layout


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

    def number(name: str, value: object) -> int:
        found = whole(value)
        if found is None:
            raise LayoutError(f"layout {layout.name}: {name!r} must be a whole number, not {value!r}")
        return found

    page, blocks = number("page", page), number("blocks", blocks)
    given = tuple((name, number(name, stride)) for name, stride in strides.items())
    return _arrange(layout, geometry, extent, page, blocks, given, fixed)


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
    return _Numbers(layout, geometry, extent, page, blocks, dict(strides), fixed).arrangement()


@dataclass(frozen=True, slots=True)
class _Nest:
    """Bytes of some words nested in each other, and the stride of each word.

    span: first to last byte used. dense: where something next to it may begin. align: what strides are multiples of.
    """

    strides: Mapping[str, int]
    span: int
    dense: int
    align: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A plane's nest in its allocations: `offset` bytes into buffer `buffer + layer * buffers`."""

    nest: _Nest
    offset: int
    buffer: int
    buffers: int


@dataclass(frozen=True)
class _Numbers:
    layout: Layout
    geometry: Geometry
    extent: Extent
    page: int
    blocks: int
    given: Mapping[str, int]
    fixed: frozenset[str]

    def arrangement(self) -> Arrangement:
        self._check_sizes()
        self._check_planes()
        self._check_strides()
        placed = self._apart() if "plane" in self.layout.separate else self._side_by_side()
        planes = tuple(
            self._static(plane) if plane.name in self.fixed else self._strides(plane, placed[plane.name])
            for plane in self.geometry.planes
        )
        return Arrangement(self.layout, self.geometry, self.extent, self.page, self.blocks, planes, self.fixed)

    @property
    def planes(self) -> list[Plane]:
        """Those that lie in the layout's own memory."""
        return [plane for plane in self.geometry.planes if plane.name not in self.fixed]

    def _wrong(self, why: str) -> LayoutError:
        return LayoutError(f"layout {self.layout.name}: {why}")

    def _check_sizes(self) -> None:
        if not self.geometry.full.contains(self.extent):
            raise self._wrong(f"the extent ({self.extent}) isn't part of the model ({self.geometry.full})")
        if self.page < 1 or self.blocks < 1:
            raise self._wrong(f"needs at least 1 block of at least 1 token, not {self.blocks} of {self.page}")

    def _check_planes(self) -> None:
        for name in self.fixed:
            if self.geometry.plane(name).per == "token":
                raise self._wrong(f"plane {name} has a value per token, so it lies in the cache's own memory")
        regions = [name for name, _ in self.layout.groups if name != "*"]
        names = [plane.name for plane in self.planes]
        placeless = set(names) - set(regions) if len(regions) == len(self.layout.groups) else set()
        if regions and (placeless or set(regions) - set(names)):
            raise self._wrong(f"has planes {regions}, the model has {names}")
        if self.blocks != 1 and not all("block" in self.layout.axes(name) for name in names):
            raise self._wrong(f"has no block axis, so it is 1 block (its page: the tokens held), not {self.blocks}")

    def _check_strides(self) -> None:
        known = {word for plane in self.planes for word in self.layout.axes(plane.name)}
        known |= {f"{plane.name}.{word}" for plane in self.planes for word in self._own(plane)}
        for key in self.given:
            if key not in known:
                raise self._wrong(f"has no stride {key!r}; it has {', '.join(sorted(known))}")

    def _own(self, plane: Plane) -> tuple[str, ...]:
        """The words of a plane that lie around it alone."""
        return self.layout.axes(plane.name)[0 if "plane" in self.layout.separate else len(self.layout.shared) :]

    def _apart(self) -> dict[str, _Place]:
        """Each plane in allocations of its own."""
        planes, layers = len(self.planes), self.extent.layers
        first, step = {
            ("plane",): (1, 0),
            ("layer", "plane"): (1, planes),
            ("plane", "layer"): (layers, 1),
        }[self.layout.separate]
        return {
            plane.name: _Place(self._nest(self._own(plane), _element(plane), plane), 0, index * first, step)
            for index, plane in enumerate(self.planes)
        }

    def _side_by_side(self) -> dict[str, _Place]:
        """The planes' regions one after the other, and around them all the words they share."""
        regions: list[tuple[str, _Nest, int]] = []
        offset = span = 0
        for plane in self._in_order():
            region = self._nest(self._own(plane), _element(plane), plane)
            if offset % region.align:
                raise self._wrong(f"plane {plane.name} would begin {offset} bytes in, no multiple of {region.align}")
            regions.append((plane.name, region, offset))
            span, offset = offset + region.span, offset + region.dense
        align = max(region.align for _, region, _ in regions)
        around = self._nest(self.layout.shared, _Nest({}, span, offset, align), None)
        step = 1 if "layer" in self.layout.separate else 0
        return {
            name: _Place(_Nest({**around.strides, **region.strides}, around.span, around.dense, align), start, 0, step)
            for name, region, start in regions
        }

    def _in_order(self) -> list[Plane]:
        """The planes as their regions follow each other."""
        order: list[Plane] = []
        named = {name for name, _ in self.layout.groups}
        for name, _ in self.layout.groups:
            order += [plane for plane in self.planes if plane.name == name or (name == "*" and plane.name not in named)]
        for plane in order:
            for word in self.layout.shared:
                if _has_one(plane, term(word).axis):
                    raise self._wrong(f"plane {plane.name} has one value per {plane.per}: it can't lie inside {word!r}")
        return order

    def _nest(self, words: Sequence[str], inner: _Nest, plane: Plane | None) -> _Nest:
        """Wrap `words` (slowest first) around `inner`, from the fastest on; of one plane, or shared by all (None)."""
        strides, span, dense = dict(inner.strides), inner.span, inner.dense
        for word in reversed(words):
            size, stride = self._size(word, plane), dense
            if size > 1:
                stride = self.given.get(word, dense)
                stride = self.given.get(f"{plane.name}.{word}", stride) if plane else stride
            if stride < span:
                raise self._wrong(
                    f"a stride of {stride} bytes along {word} is too small, what lies inside takes {span}"
                    " (the axes of the memory nest in another order, or overlap)"
                )
            if stride % inner.align:
                raise self._wrong(f"a stride of {stride} bytes along {word} isn't a multiple of {inner.align}")
            strides[word], span, dense = stride, (size - 1) * stride + span, size * stride
        return _Nest(strides, span, dense, inner.align)

    def _size(self, word: str, plane: Plane | None) -> int:
        """Steps along a word."""
        part, sizes = term(word), {"layer": self.extent.layers, "head": self.extent.heads}
        sizes |= {"block": self.blocks, "token": self.page}
        if plane:
            sizes["dim"] = plane.width
            if _has_one(plane, part.axis):
                return 1
        try:
            return part.size(sizes[part.axis], (plane or self.geometry.numbers[0]).itemsize)
        except LayoutError as error:
            raise self._wrong(f"plane {plane.name}: {error}" if plane else str(error)) from None

    def _strides(self, plane: Plane, place: _Place) -> PlaneStrides:
        found = place.nest.strides
        token = ((self.page, 0),) if _has_one(plane, "token") else self._digits(plane, "token", found)
        head = 0 if _has_one(plane, "head") else found["head"]
        dim, block = self._digits(plane, "dim", found), found.get("block", 0)
        reach = plane.itemsize + (self.blocks - 1) * block + (self.extent.heads - 1) * head
        return PlaneStrides(
            name=plane.name,
            itemsize=plane.itemsize,
            buffer=place.buffer,
            buffers=place.buffers,
            offset=place.offset,
            layer=found.get("layer", 0),
            block=block,
            head=head,
            token=token,
            dim=dim,
            reach=reach + sum((size - 1) * stride for size, stride in token + dim),
            span=place.nest.span,
        )

    def _digits(self, plane: Plane, axis: str, found: Mapping[str, int]) -> Digits:
        words = sorted((word for word in found if term(word).axis == axis), key=lambda word: term(word).half == "%")
        return tuple((self._size(word, plane), found[word]) for word in words)

    def _static(self, plane: Plane) -> PlaneStrides:
        """Static scales: dense, one buffer per layer."""
        head = 0 if _has_one(plane, "head") else plane.itemsize
        size = plane.itemsize + (self.extent.heads - 1) * head
        one_value = ((self.page, 0),), ((1, plane.itemsize),)
        return PlaneStrides(plane.name, plane.itemsize, 0, 1, 0, 0, 0, head, *one_value, reach=size, span=size)


def _element(plane: Plane) -> _Nest:
    return _Nest({}, plane.itemsize, plane.itemsize, plane.itemsize)


def _has_one(plane: Plane, axis: str) -> bool:
    """Whether a plane has one value for all indices along an axis."""
    return (axis == "token" and plane.per != "token") or (axis == "head" and plane.per == "tensor")
