"""A layout as data: which axes a cache's bytes have, and in which order they nest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent, Geometry
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.placing import lay
from kvlingua.layouts.strides import arrange
from kvlingua.layouts.terms import check_path, term
from kvlingua.layouts.view import Pool

_WORD = re.compile(r"\(\s*(\w+|\*)\s*:([^()]*)\)|([^\s()]+)")


@dataclass(frozen=True)
class Layout:
    """One row of the table of formats: a name and a spec in the notation of docs/format/layout.md.

    separate: axes (of `layer` and `plane`) whose every value is an allocation of its own, slowest first.
    shared: words right of `|` and outside parentheses, which all planes have in common, slowest first.
    groups: per plane (`*`: each plane without a group of its own) the words of its region, slowest first; the regions
    lie one after the other, or each in an allocation of its own if `plane` is separate. Empty if there are none.
    Raises LayoutError if the spec can't be read.
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
        if _WORD.sub("", right).strip():
            raise self._wrong("parentheses must read (plane: axes)")
        for plane, inner, axis in _WORD.findall(right):
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
        if len(set(self.separate)) != len(self.separate):
            raise self._wrong("an axis stands twice")
        if "plane" in self.shared:
            raise self._wrong("plane stands left of '|', or planes have regions in parentheses like (k: dim)")
        if not self.groups and "plane" not in self.separate:
            raise self._wrong("planes are separate allocations, or regions in parentheses like (k: dim), or both")
        if len({plane for plane, _ in self.groups}) != len(self.groups):
            raise self._wrong("a plane has two regions")
        outside = tuple(axis for axis in self.separate if axis != "plane") + self.shared
        for plane, inner in self.groups or (("", ()),):
            try:
                check_path(outside + inner)
            except LayoutError as error:
                raise self._wrong(f"plane {plane}: {error}" if plane else str(error)) from None
        if "plane" not in self.separate and any(term(word).axis == "dim" for word in self.shared):
            raise self._wrong("planes differ in width, so that dim stands in the parentheses of each")

    def axes(self, plane: str) -> tuple[str, ...]:
        """The words along which `plane` lies inside an allocation, slowest first.

        Raises LayoutError if the row has no place for it.
        """
        regions = dict(self.groups)
        if not regions:
            return self.shared
        if plane not in regions and "*" not in regions:
            raise LayoutError(f"layout {self.name} has planes {', '.join(regions)}, none called {plane!r}")
        return self.shared + regions.get(plane, regions.get("*", ()))

    def pool(
        self,
        geometry: Geometry,
        extent: Extent,
        *,
        page: int,
        blocks: int,
        buffers: Sequence[Buffer],
        strides: Mapping[str, int] | None = None,
        scales: Mapping[str, Sequence[Buffer]] | None = None,
    ) -> Pool:
        """Lay this layout over memory that holds `extent` of a model.

        page: tokens per block; blocks: number of blocks (1 if the layout has no block axis).
        buffers: one per separate allocation, in the spec's order: the left-most axis slowest, planes in the
        geometry's order. Each begins at its first element: block 0, first head and layer of the extent.
        strides: BYTES between neighbours along a word of the spec (`block`, `dim/16B`), or along one of a single plane
        (`k.head`), as live tensors claim them; what isn't given is dense. That of an axis of size 1 is not looked at.
        scales: for planes of scales that lie outside this memory (an engine's static scales): one buffer per layer of
        the extent, float32 [kv heads of the extent] if there is one per head, [1] if per tensor. They are never
        written; numbers that come in are converted to fit them.

        Raises LayoutError if the numbers don't fit the row, or something reachable lies outside the buffers.
        """
        arrangement = arrange(self, geometry, extent, page, blocks, strides or {}, frozenset(scales or {}))
        return lay(arrangement, buffers, scales or {})
