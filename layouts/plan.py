"""What a conversion comes to: integers only, the same for every backend that runs it.

All that doesn't depend on addresses and block tables is made once per pair of arrangements and remembered.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import cached_property, lru_cache

from kvlingua.layouts.arrangement import Arrangement, Digits
from kvlingua.layouts.casts import Conversion, Op, check_leave, conversions
from kvlingua.layouts.dtypes import DTYPES
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent, Plane
from kvlingua.layouts.refinement import Axis, Row, pieces
from kvlingua.layouts.view import Pool, View, check_view

_HOST = ("cpu", "pinned")


@dataclass(frozen=True, slots=True)
class Side:
    """One plane on one side, as kvl_side of csrc/kvlingua.h: strides in bytes, and where its base addresses come from.

    Token t of a block is at (t // tile_tokens) * tile + (t % tile_tokens) * token, at t * token if tile_tokens is 0.
    """

    plane: int
    first: int
    layers: int
    offset: int
    block: int
    head: int
    token: int
    tile_tokens: int
    tile: int

    def bases(self, pool: Pool) -> array[int]:
        """Per common layer the address of element [block 0, first common head, token 0, first dim of the piece]."""
        return pool.bases(self.plane, self.first, self.layers, self.offset)


@dataclass(frozen=True, slots=True)
class PlaneCopy:
    """A plane of all common layers, or a piece of its dims: kvl_plane of csrc/kvlingua.h. Types are its codes."""

    op: Op
    source_type: int
    target_type: int
    once: bool
    factor: float
    heads: int
    axes: tuple[Axis, ...]
    source: Side
    target: Side
    source_scale: Side | None
    target_scale: Side | None


@dataclass(frozen=True, eq=False)
class Recipe:
    """A plan without addresses and tokens."""

    extent: Extent
    conversions: tuple[Conversion, ...]
    planes: tuple[PlaneCopy, ...]

    @cached_property
    def compares(self) -> bool:
        """Whether something has to be compared before anything is written."""
        return any(copy.op is Op.COPY_EQUAL or copy.once for copy in self.planes)


@dataclass(frozen=True, slots=True)
class Plan:
    """A copy of `tokens` tokens; where they are is in the two views."""

    source: View
    target: View
    recipe: Recipe

    @property
    def tokens(self) -> int:
        """Number of tokens to copy."""
        return self.source.stop - self.source.start

    @property
    def device(self) -> str:
        """Where it runs: `cpu`, or the GPU whose memory one of the sides is."""
        ours, theirs = self.source.pool.device, self.target.pool.device
        return ours if ours not in _HOST else theirs if theirs not in _HOST else "cpu"

    @property
    def extent(self) -> Extent:
        """The heads and layers that both sides hold."""
        return self.recipe.extent

    @property
    def planes(self) -> tuple[PlaneCopy, ...]:
        """What is copied, plane by plane."""
        return self.recipe.planes


def make_plan(source: View, target: View, allow_lossy: bool = False) -> Plan:
    """The plan for converting what both views hold. Raises LayoutError if that can't be right.

    Block tables and overlap of the two memories are left to the backend: see checks.py.
    """
    check_view("source", source)
    check_view("target", target)
    check_leave(allow_lossy)
    ours, theirs = source.pool, target.pool
    recipe = _recipe(ours.arrangement, theirs.arrangement, allow_lossy)
    if source.tokens != target.tokens:
        raise LayoutError(
            f"the source has {source.tokens} tokens [{source.start}, {source.stop}), the target takes"
            f" {target.tokens} [{target.start}, {target.stop})"
        )
    _check_devices(ours.device, theirs.device)
    return Plan(source, target, recipe)


def _check_devices(ours: str, theirs: str) -> None:
    """Both sides are the CPU's, or one GPU reaches both: its own memory, and what of the CPU's is pinned."""
    for name, device, other in (("source", ours, theirs), ("target", theirs, ours)):
        if device in _HOST:
            continue
        if not device.startswith("cuda"):  # torch calls AMD's GPUs by that name, too
            raise LayoutError(f"the {name} lies on device {device!r}; only CPUs' and GPUs' memory can be converted")
        if other not in (device, "pinned"):
            where = "memory of the CPU that isn't pinned" if other == "cpu" else f"that of {other!r}"
            raise LayoutError(f"the {name} lies on device {device!r}, the other side in {where}: no GPU reaches both")


@lru_cache(maxsize=1024)
def _recipe(ours: Arrangement, theirs: Arrangement, allow_lossy: bool) -> Recipe:
    steps = conversions(ours.geometry, theirs.geometry, theirs.fixed, allow_lossy)
    extent = ours.extent.intersect(theirs.extent)
    if extent is None:
        raise LayoutError(f"source ({ours.extent}) and target ({theirs.extent}) have nothing in common")
    return Recipe(extent, steps, tuple(copy for step in steps for copy in _copies(ours, theirs, extent, step)))


def _copies(ours: Arrangement, theirs: Arrangement, extent: Extent, step: Conversion) -> list[PlaneCopy]:
    rows = pieces(_row(ours, step.source), _row(theirs, step.target))
    if step.op is Op.QUANTISE and len(rows) > 1:
        raise LayoutError(
            f"scales of plane {step.target.name} can't be made while its dims are permuted in {len(rows)} pieces:"
            " convert in two steps, the order of rotated dims first"
        )
    return [
        PlaneCopy(
            op=step.op,
            source_type=DTYPES[step.source.dtype].code,
            target_type=DTYPES[step.target.dtype].code,
            once=step.once,
            factor=step.factor,
            heads=1 if step.target.per == "tensor" else extent.heads,
            axes=row.axes or ((1, step.source.itemsize, step.target.itemsize),),
            source=_side(ours, step.source, extent, row.source),
            target=_side(theirs, step.target, extent, row.target),
            source_scale=_side(ours, step.source_scale, extent) if step.source_scale else None,
            target_scale=_side(theirs, step.target_scale, extent) if step.target_scale else None,
        )
        for row in rows
    ]


def _row(side: Arrangement, plane: Plane) -> Row:
    return Row(side.planes[side.geometry.planes.index(plane)].dim, plane.rope)


def _side(side: Arrangement, plane: Plane, extent: Extent, offset: int = 0) -> Side:
    index = side.geometry.planes.index(plane)
    at = side.planes[index]
    return Side(
        index,
        extent.layer_start - side.extent.layer_start,
        extent.layers,
        offset + (extent.head_start - side.extent.head_start) * at.head,
        at.block,
        at.head,
        *_tiles(at.token),
    )


def _tiles(token: Digits) -> tuple[int, int, int]:
    """token, tile_tokens and tile of a `Side`."""
    if len(token) == 1 or token[0][1] == token[1][0] * token[1][1] or token[0][0] == 1:
        return token[-1][1], 0, 0
    (_, tile), (tokens, stride) = token
    return stride, tokens, tile
