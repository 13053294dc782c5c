"""What a conversion comes to: integers only, checked, the same for every backend that runs it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import pairwise

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.view import Pool, View


@dataclass(frozen=True, slots=True)
class Side:
    """One plane on one side: addresses of element [block 0, first common head, token 0, dim 0] per common layer, and
    the byte strides of block, head, token and dim."""

    bases: array[int]
    block: int
    head: int
    token: int
    dim: int


@dataclass(frozen=True, slots=True)
class PlaneCopy:
    """One plane of all common layers, from `source` to `target`, `width` elements a row."""

    width: int
    source: Side
    target: Side


@dataclass(frozen=True, slots=True)
class Plan:
    """`tokens` tokens of `heads` heads, for each plane and layer; where the tokens are is in the two views."""

    source: View
    target: View
    extent: Extent
    planes: tuple[PlaneCopy, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens to copy."""
        return self.source.tokens


def make_plan(source: View, target: View) -> Plan:
    """The plan for copying what both views hold. Raises LayoutError if that can't be right."""
    ours, theirs = source.pool, target.pool
    if ours.geometry != theirs.geometry:
        raise LayoutError(f"the source is of another model than the target: {ours.geometry} and {theirs.geometry}")
    if source.tokens != target.tokens:
        raise LayoutError(
            f"the source has {source.tokens} tokens [{source.start}, {source.stop}), the target takes"
            f" {target.tokens} [{target.start}, {target.stop})"
        )
    for name, pool in (("source", ours), ("target", theirs)):
        if pool.device != "cpu":
            raise LayoutError(f"the {name} lies on device {pool.device!r}; only memory of the CPU can be converted")
    extent = ours.extent.intersect(theirs.extent)
    if extent is None:
        raise LayoutError(f"source ({ours.extent}) and target ({theirs.extent}) have nothing in common")
    blocks = target.blocks
    if len(set(blocks)) != len(blocks):
        raise LayoutError("the target's block table names a block twice: later tokens would overwrite earlier ones")
    _check_apart(ours, theirs)
    planes = tuple(
        PlaneCopy(plane.width, _side(ours, index, extent), _side(theirs, index, extent))
        for index, plane in enumerate(ours.geometry.planes)
    )
    return Plan(source, target, extent, planes)


def _side(pool: Pool, index: int, extent: Extent) -> Side:
    plane = pool.planes[index]
    skip = (extent.head_start - pool.extent.head_start) * plane.head
    first = extent.layer_start - pool.extent.layer_start
    bases = array("q", (base + skip for base in plane.bases[first : first + extent.layers]))
    return Side(bases, plane.block, plane.head, plane.token, plane.dim)


def _check_apart(source: Pool, target: Pool) -> None:
    if source.spans[-1][1] <= target.spans[0][0] or target.spans[-1][1] <= source.spans[0][0]:
        return
    ranges = sorted([(*span, "source") for span in source.spans] + [(*span, "target") for span in target.spans])
    for (_, end, one), (begin, _, other) in pairwise(ranges):
        if begin < end and one != other:
            raise LayoutError(f"source and target overlap in memory, from address {begin:#x} on")
