"""From a layout's axes to plain integers: base addresses and byte strides, proved to lie inside the given memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent, Geometry
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import PlaneAddress

if TYPE_CHECKING:
    from kvlingua.layouts.layout import Layout


@dataclass(frozen=True, slots=True)
class _Nest:
    """Bytes of some axes nested in each other. span: first to last byte used; dense: where a next one may begin."""

    strides: dict[str, int]
    span: int
    dense: int


class _Resolver:
    """One resolution: the sizes of all axes and the strides that were given."""

    def __init__(self, layout: Layout, geometry: Geometry, extent: Extent, page: int, blocks: int) -> None:
        self.layout = layout
        self.itemsize = geometry.itemsize
        self.sizes = {"layer": extent.layers, "block": blocks, "head": extent.heads, "token": page}

    def wrong(self, why: str) -> LayoutError:
        return LayoutError(f"layout {self.layout.name}: {why}")

    def nest(self, axes: Sequence[str], inner: _Nest, given: Mapping[str, int], width: int) -> _Nest:
        """Wrap `axes` (slowest first) around `inner`, from the fastest on."""
        strides, span, dense = dict(inner.strides), inner.span, inner.dense
        for axis in reversed(axes):
            size = width if axis == "dim" else self.sizes[axis]
            stride = given.get(axis, dense) if size > 1 else dense
            if stride < span:
                raise self.wrong(
                    f"a stride of {stride} bytes along {axis} is too small, what lies inside takes {span}"
                    " (the axes of the memory nest in another order, or overlap)"
                )
            if stride % self.itemsize:
                raise self.wrong(f"a stride of {stride} bytes along {axis} isn't a multiple of {self.itemsize}")
            strides[axis], span, dense = stride, (size - 1) * stride + span, size * stride
        return _Nest(strides, span, dense)


def resolve(
    layout: Layout,
    geometry: Geometry,
    extent: Extent,
    page: int,
    blocks: int,
    buffers: Sequence[Buffer],
    given: Mapping[str, int],
) -> tuple[PlaneAddress, ...]:
    """The planes' addresses, in the geometry's order; arguments as of `Layout.pool`. Raises LayoutError."""
    resolver = _Resolver(layout, geometry, extent, page, blocks)
    names = [plane.name for plane in geometry.planes]
    if not geometry.full.contains(extent):
        raise resolver.wrong(f"the extent ({extent}) isn't part of the model ({geometry.full})")
    if page < 1 or blocks < 1:
        raise resolver.wrong(f"needs at least 1 block of at least 1 token, not {blocks} of {page}")
    if layout.groups and [plane for plane, _ in layout.groups] != names:
        raise resolver.wrong(f"has planes {[plane for plane, _ in layout.groups]}, the model has {names}")
    if "block" not in layout.axes(names[0]) and blocks != 1:
        raise resolver.wrong(f"has no block axis, so it is 1 block (its page: the tokens held), not {blocks}")
    _check_keys(resolver, names, given)
    _check_buffers(resolver, geometry, extent, buffers)

    places = tuple(_places(layout, extent.layers, len(names)))
    used = dict.fromkeys(range(len(buffers)), 0)  # buffer -> bytes of it, from its first to the last of any plane
    addresses = []
    for index, (plane, (nest, offset)) in enumerate(
        zip(geometry.planes, _planes(resolver, geometry, given), strict=True)
    ):
        bases = []
        for layer in range(extent.layers):
            place = places[layer * len(names) + index]
            buffer = buffers[place]
            used[place] = max(used[place], nest.span)
            if nest.span > buffer.nbytes:
                raise resolver.wrong(
                    f"plane {plane.name} of {blocks} blocks of {page} tokens ({extent}) reaches {nest.span} bytes into"
                    f" its buffer, which has {buffer.nbytes}"
                )
            bases.append(buffer.pointer + offset + (0 if "layer" in layout.separate else layer * nest.strides["layer"]))
        strides = nest.strides
        addresses.append(
            PlaneAddress(
                name=plane.name,
                width=plane.width,
                bases=tuple(bases),
                block=strides.get("block", 0),
                head=strides["head"],
                token=strides["token"],
                dim=strides["dim"],
            )
        )
    ranges = sorted((buffers[place].pointer, buffers[place].pointer + span) for place, span in used.items())
    for (_, end), (start, _) in pairwise(ranges):
        if start < end:
            raise resolver.wrong(
                f"two buffers overlap: one is used up to {end:#x}, another begins at {start:#x}"
                " (a buffer was given twice, or they are parts of one tensor that interleave)"
            )
    return tuple(addresses)


def _planes(resolver: _Resolver, geometry: Geometry, given: Mapping[str, int]) -> Iterator[tuple[_Nest, int]]:
    """Per plane its axes inside an allocation, and where in the allocation its first element lies.

    The span counts from the allocation's first byte to the last byte of any plane in it.
    """
    layout = resolver.layout
    element = _Nest({}, resolver.itemsize, resolver.itemsize)
    if not layout.groups:
        for plane in geometry.planes:
            yield resolver.nest(layout.shared, element, _of_plane(plane.name, given), plane.width), 0
        return
    regions = [
        resolver.nest(axes, element, _of_plane(plane.name, given), plane.width)
        for plane, (_, axes) in zip(geometry.planes, layout.groups, strict=True)
    ]
    offsets = [sum(region.dense for region in regions[:index]) for index in range(len(regions))]
    span, dense = offsets[-1] + regions[-1].span, offsets[-1] + regions[-1].dense
    for region, offset in zip(regions, offsets, strict=True):
        yield resolver.nest(layout.shared, _Nest(region.strides, span, dense), given, 0), offset


def _of_plane(plane: str, given: Mapping[str, int]) -> Mapping[str, int]:
    """The strides given for a plane: `k.head` beats `head`."""
    own = {key.partition(".")[2]: stride for key, stride in given.items() if key.partition(".")[0] == plane}
    return {**given, **own}


def _check_keys(resolver: _Resolver, names: Sequence[str], given: Mapping[str, int]) -> None:
    layout = resolver.layout
    known = {axis for name in names for axis in layout.axes(name)}
    own = dict(layout.groups)
    known |= {f"{name}.{axis}" for name in names for axis in (own[name] if own else layout.shared)}
    for key, stride in given.items():
        if key not in known:
            raise resolver.wrong(f"has no stride {key!r}; it has {', '.join(sorted(known))}")
        if isinstance(stride, bool) or not isinstance(stride, int):
            raise resolver.wrong(f"stride {key!r} must be a whole number of bytes, not {stride!r}")


def _check_buffers(resolver: _Resolver, geometry: Geometry, extent: Extent, buffers: Sequence[Buffer]) -> None:
    sizes = {"layer": extent.layers, "plane": len(geometry.planes)}
    count = 1
    for axis in resolver.layout.separate:
        count *= sizes[axis]
    if len(buffers) != count:
        per = " x ".join(f"{sizes[axis]} {axis}s" for axis in resolver.layout.separate) or "all in one"
        raise resolver.wrong(f"needs {count} buffers ({per}), got {len(buffers)}")
    for buffer in buffers:
        if buffer.pointer % resolver.itemsize:
            raise resolver.wrong(f"a buffer begins at {buffer.pointer:#x}, no multiple of {resolver.itemsize} bytes")
        if buffer.device != buffers[0].device:
            raise resolver.wrong(f"its buffers lie on different devices: {buffers[0].device} and {buffer.device}")


def _places(layout: Layout, layers: int, planes: int) -> Iterator[int]:
    """For each layer and, within it, each plane: the index of its buffer."""
    steps = {"layer": 0, "plane": 0}
    step = 1
    for axis in reversed(layout.separate):
        steps[axis] = step
        step *= layers if axis == "layer" else planes
    for layer in range(layers):
        for plane in range(planes):
            yield layer * steps["layer"] + plane * steps["plane"]
