"""A layout as data: which axes a cache's bytes have, and in which order they nest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent, Geometry
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.strides import resolve
from kvlingua.layouts.view import Pool

AXES = ("layer", "block", "head", "token", "dim")
"""Axes an element is addressed by, beside its plane."""

_TERM = re.compile(r"\(\s*(\w+)\s*:([^()]*)\)|([^\s()]+)")


@dataclass(frozen=True)
class Layout:
    """One row of the table of formats: a name and a spec in the notation of docs/format/layout.md.

    `separate`: axes (of `layer` and `plane`) whose every value is an allocation of its own, slowest first.
    `shared`: axes inside an allocation that all planes have in common, slowest first.
    `groups`: per plane the axes of its own region, slowest first; the regions lie one after the other.
    Empty if the planes are separate allocations. Raises LayoutError if the spec can't be read.
    """

    name: str
    spec: str
    separate: tuple[str, ...] = field(init=False, compare=False, repr=False)
    shared: tuple[str, ...] = field(init=False, compare=False, repr=False)
    groups: tuple[tuple[str, tuple[str, ...]], ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        left, bar, right = self.spec.rpartition("|")
        if bar and "|" in left:
            raise self._wrong("'|' may stand once")
        shared: list[str] = []
        groups: list[tuple[str, tuple[str, ...]]] = []
        if _TERM.sub("", right).strip():
            raise self._wrong("parentheses must read (plane: axes)")
        for plane, inner, axis in _TERM.findall(right):
            if plane:
                groups.append((plane, tuple(inner.split())))
            elif groups:
                raise self._wrong(f"axis {axis!r} stands right of a region in parentheses")
            else:
                shared.append(axis)
        object.__setattr__(self, "separate", tuple(left.split()))
        object.__setattr__(self, "shared", tuple(shared))
        object.__setattr__(self, "groups", tuple(groups))
        self._check()

    def _wrong(self, why: str) -> LayoutError:
        return LayoutError(f"layout {self.name!r}: {why}: {self.spec!r}")

    def _check(self) -> None:
        for axis in self.separate:
            if axis not in ("layer", "plane"):
                raise self._wrong(f"only layer and plane can be separate allocations, not {axis!r}")
        if ("plane" in self.separate) == bool(self.groups):
            raise self._wrong("planes are either separate allocations or regions in parentheses, one of both")
        if len({plane for plane, _ in self.groups}) != len(self.groups):
            raise self._wrong("a plane has two regions")
        for plane, inner in self.groups or (("", ()),):
            axes = [axis for axis in (*self.separate, *self.shared, *inner) if axis != "plane"]
            for axis in axes:
                if axis not in AXES:
                    raise self._wrong(f"axis {axis!r} isn't known, known are {', '.join(AXES)} and plane")
                if axes.count(axis) > 1:
                    raise self._wrong(f"axis {axis!r} stands twice")
            missing = [axis for axis in AXES if axis != "block" and axis not in axes]
            if missing:
                raise self._wrong(f"{f'plane {plane} lacks' if plane else 'it lacks'} {', '.join(missing)}")
        if len(set(self.separate)) != len(self.separate) or "plane" in self.shared:
            raise self._wrong("an axis stands twice")

    def axes(self, plane: str) -> tuple[str, ...]:
        """The axes inside an allocation along which `plane` lies, slowest first."""
        return self.shared + dict(self.groups).get(plane, ())

    def pool(
        self,
        geometry: Geometry,
        extent: Extent,
        *,
        page: int,
        blocks: int,
        buffers: Sequence[Buffer],
        strides: Mapping[str, int] | None = None,
    ) -> Pool:
        """Lay this layout over memory that holds `extent` of a model.

        page: tokens per block; blocks: number of blocks (1 if the layout has no block axis).
        buffers: one per separate allocation, in the spec's order: the left-most axis slowest, planes in the
        geometry's order. Each begins at its first element: block 0, first head and layer of the extent.
        strides: BYTES between neighbours along an axis (`block`), or along an axis of one plane (`k.head`), as
        live tensors claim them; what isn't given is dense. That of an axis of size 1 is not looked at.

        Raises LayoutError if the numbers don't fit the row, or something reachable lies outside the buffers.
        """
        planes = resolve(self, geometry, extent, page, blocks, buffers, strides or {})
        return Pool(self, geometry, extent, page, blocks, planes, tuple(buffers))
