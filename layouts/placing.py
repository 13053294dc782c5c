"""A layout laid over memory: its offsets become addresses, proved to lie inside the buffers that were given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from kvlingua.layouts.arrangement import Arrangement, PlaneStrides
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import PlaneAddress, Pool


def lay(arrangement: Arrangement, buffers: Sequence[Buffer], scales: Mapping[str, Sequence[Buffer]]) -> Pool:
    """The pool whose allocations are `buffers`, and the static scales of plane X `scales[X]`; as of `Layout.pool`.

    Raises LayoutError if there are too few or too many, they are too small, overlap, lie badly or on several devices.
    """
    _check_buffers(arrangement, [buffers, *scales.values()])
    _check_count(arrangement, len(buffers))
    planes = [
        _place(arrangement, plane, scales[plane.name] if plane.name in arrangement.fixed else buffers)
        for plane in arrangement.planes
    ]
    beside = tuple(buffer for given in scales.values() for buffer in given)
    for buffer in (*buffers, *beside):
        if buffer.device != buffers[0].device:
            raise arrangement.wrong(f"its buffers lie on different devices: {buffers[0].device} and {buffer.device}")
    _check_apart(arrangement, buffers, planes)
    return Pool(arrangement, tuple(planes), tuple(buffers), beside)


def _check_buffers(arrangement: Arrangement, given: Sequence[Sequence[Buffer]]) -> None:
    for buffers in given:
        if not isinstance(buffers, Sequence):
            raise arrangement.wrong(f"buffers come as a list of Buffer, not as a {type(buffers).__name__}")
        for buffer in buffers:
            if not isinstance(buffer, Buffer):
                raise arrangement.wrong(f"expected a Buffer, got a {type(buffer).__name__}: wrap it in Buffer.of(...)")


def _check_count(arrangement: Arrangement, got: int) -> None:
    planes = len(arrangement.planes) - len(arrangement.fixed)
    sizes = {"layer": arrangement.extent.layers, "plane": planes}
    count = 1
    for axis in arrangement.layout.separate:
        count *= sizes[axis]
    if got != count:
        per = " x ".join(f"{sizes[axis]} {axis}s" for axis in arrangement.layout.separate) or "all in one"
        raise arrangement.wrong(f"needs {count} buffers ({per}), got {got}")


def _place(arrangement: Arrangement, plane: PlaneStrides, buffers: Sequence[Buffer]) -> PlaneAddress:
    layers = arrangement.extent.layers
    if plane.name in arrangement.fixed and len(buffers) != layers:
        raise arrangement.wrong(f"plane {plane.name} needs a buffer per layer, so {layers}, got {len(buffers)}")
    mine = (
        [buffers[plane.buffer + layer * plane.buffers] for layer in range(layers)]
        if plane.buffers
        else [buffers[plane.buffer]]
    )
    for buffer in mine:
        if buffer.pointer % plane.itemsize:
            raise arrangement.wrong(
                f"a buffer begins at {buffer.pointer:#x}, no multiple of the {plane.itemsize} bytes of a {plane.name}"
            )
        if plane.span > buffer.nbytes:
            raise arrangement.wrong(
                f"plane {plane.name} of {arrangement.blocks} blocks of {arrangement.page} tokens"
                f" ({arrangement.extent}) reaches {plane.span} bytes into its buffer, which has {buffer.nbytes}"
            )
    if plane.buffers:
        bases = tuple(buffer.pointer + plane.offset for buffer in mine)
    else:
        first = mine[0].pointer + plane.offset
        bases = tuple([first + layer * plane.layer for layer in range(layers)])
    return PlaneAddress(plane.name, bases, plane.block, plane.head, plane.token, plane.dim)


def _check_apart(arrangement: Arrangement, buffers: Sequence[Buffer], planes: Sequence[PlaneAddress]) -> None:
    """What is written in one buffer lies in no other, and no fixed scale in any of them."""
    spans = dict.fromkeys(range(len(buffers)), 0)
    for plane in arrangement.planes:
        if plane.name not in arrangement.fixed:
            for layer in range(arrangement.extent.layers if plane.buffers else 1):
                spans[plane.buffer + layer * plane.buffers] = plane.span
    ranges = sorted((buffers[index].pointer, buffers[index].pointer + span) for index, span in spans.items())
    for (_, end), (start, _) in pairwise(ranges):
        if start < end:
            raise arrangement.wrong(
                f"two buffers overlap: one is used up to {end:#x}, another begins at {start:#x}"
                " (a buffer was given twice, or they are parts of one tensor that interleave)"
            )
    for plane, address in zip(arrangement.planes, planes, strict=True):
        if plane.name in arrangement.fixed:
            for base in address.bases:
                if any(start < base + plane.reach and base < end for start, end in ranges):
                    raise arrangement.wrong(f"static scales ({plane.name}, at {base:#x}) lie inside the cache's memory")
