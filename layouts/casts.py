"""What happens to each plane on its way between two caches: bits moved, numbers cast, scales made; or the refusal.

This is the meaning; docs/format/layout.md says it in prose, reference.py in numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from kvlingua.layouts.dtypes import DTYPES
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Geometry, Plane


class Op(IntEnum):
    """How a plane is converted; the numbers are those of csrc/kvlingua.h."""

    COPY = 0
    """Bits are moved."""
    COPY_EQUAL = 1
    """Bits are moved if all scales of the source equal those of the target; else it is refused."""
    CAST = 2
    """Numbers are multiplied by the source's scale and `factor`, divided by the target's scale, and rounded."""
    QUANTISE = 3
    """A scale is computed per token and head, written, and the numbers are cast to fit it."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is done to write one plane of the target. Scales are named where the operation looks at them."""

    op: Op
    source: Plane
    target: Plane
    factor: float = 1.0
    source_scale: Plane | None = None
    target_scale: Plane | None = None

    @property
    def once(self) -> bool:
        """Whether the target has one value for a whole block, in which all values that come in must agree."""
        return self.target.per != "token"


_FINENESS = {"tensor": 0, "head": 1, "token": 2}


def conversions(source: Geometry, target: Geometry, fixed: frozenset[str], allow_lossy: bool) -> tuple[Conversion, ...]:
    """What to do for each plane that is written, all but `fixed` ones. Raises LayoutError where it can't be right."""
    _check_model(source, target)
    result: list[Conversion] = []
    for plane in target.numbers:
        result += _of_plane(source, source.plane(plane.name), target, plane, fixed, allow_lossy)
    return tuple(result)


def check_leave(allow_lossy: object) -> None:
    """Raise LayoutError unless the leave to lose precision was given or refused in plain words."""
    if not isinstance(allow_lossy, bool):  # "no" would be taken as yes
        raise LayoutError(f"allow_lossy is True or False, not {allow_lossy!r}")


def _check_model(source: Geometry, target: Geometry) -> None:
    def differ(what: str, ours: object, theirs: object) -> LayoutError:
        return LayoutError(f"the source is of another model than the target: {what} {ours} and {theirs}")

    if source.layers != target.layers:
        raise differ("layers", source.layers, target.layers)
    if source.kv_heads != target.kv_heads:
        raise differ("kv heads", source.kv_heads, target.kv_heads)
    ours, theirs = ({plane.name: plane for plane in side.numbers} for side in (source, target))
    if ours.keys() != theirs.keys():
        raise differ("planes", sorted(ours), sorted(theirs))
    for name, plane in ours.items():
        other = theirs[name]
        if plane.width != other.width:
            raise differ(f"{name} with width", plane.width, other.width)
        if plane.rope.width != other.rope.width:
            raise differ(f"{name} with rotated dims", _rope(plane), _rope(other))


def _rope(plane: Plane) -> str:
    return f"{plane.rope.width} ({plane.rope.order})"


def _of_plane(
    ours: Geometry, source: Plane, theirs: Geometry, target: Plane, fixed: frozenset[str], allow_lossy: bool
) -> Iterator[Conversion]:
    before, after = ours.scale(source), theirs.scale(target)
    if not (DTYPES[source.dtype].is_number and DTYPES[target.dtype].is_number):
        yield from _bytes(source, before, target, after, fixed)
    elif after is None or after.name in fixed:
        if source.dtype == target.dtype and before is None and after is None:
            yield Conversion(Op.COPY, source, target)
        elif source.dtype == target.dtype and before is not None and after is not None and not allow_lossy:
            yield Conversion(Op.COPY_EQUAL, source, target, 1.0, before, after)
        else:
            exact = before is None and after is None and DTYPES[target.dtype].holds(DTYPES[source.dtype])
            _check_allowed(exact or allow_lossy, source, before, target, after)
            yield Conversion(Op.CAST, source, target, 1.0, before, after)
    elif before is not None:
        factor = DTYPES[target.dtype].reach / DTYPES[source.dtype].reach
        exact = DTYPES[target.dtype].holds(DTYPES[source.dtype], factor)
        _check_allowed(exact or allow_lossy, source, before, target, after)
        op = Op.COPY if source.dtype == target.dtype else Op.CAST
        yield Conversion(op, source, target, factor)
        yield _scales(before, after, 1 / factor)
    else:
        if after.per != "token":
            raise LayoutError(
                f"plane {target.name} would need a scale per {after.per}, which can't be told from some of the tokens:"
                f" take scales per token, or a source of {target.dtype} that has scales"
            )
        _check_allowed(allow_lossy, source, before, target, after)
        yield Conversion(Op.QUANTISE, source, target, target_scale=after)


def _bytes(
    source: Plane, before: Plane | None, target: Plane, after: Plane | None, fixed: frozenset[str]
) -> Iterator[Conversion]:
    """Bytes of a form that can't be read as numbers: moved with their scales between equals, or not at all."""
    ours, theirs = (
        (plane.dtype, plane.rope, scale and (scale.dtype, scale.width))
        for plane, scale in ((source, before), (target, after))
    )
    if ours != theirs or (after is not None and after.name in fixed):
        raise LayoutError(
            f"plane {source.name} can't be converted from {_described(source, before)} to {_described(target, after)}:"
            " bytes of this kind are only moved, with their scales, between caches that keep both alike"
        )
    yield Conversion(Op.COPY, source, target)
    if before is not None and after is not None:
        yield _scales(before, after, 1.0)


def _scales(source: Plane, target: Plane, factor: float) -> Conversion:
    """Scales written beside their numbers: one that covers more is repeated."""
    if _FINENESS[source.per] > _FINENESS[target.per]:
        raise LayoutError(
            f"plane {source.name} has a scale per {source.per}, the target one per {target.per}: several can't become"
            f" one; take scales per {source.per} in the target"
        )
    return Conversion(Op.COPY if factor == 1.0 else Op.CAST, source, target, factor)


def _check_allowed(allowed: bool, source: Plane, before: Plane | None, target: Plane, after: Plane | None) -> None:
    if not allowed:
        raise LayoutError(
            f"plane {source.name} would lose precision from {_described(source, before)} to"
            f" {_described(target, after)}: convert with allow_lossy=True if that is wanted"
        )


def _described(plane: Plane, scale: Plane | None) -> str:
    order = f", rotated dims {plane.rope.order}" if plane.rope.width else ""
    return plane.dtype + (f" with scales per {scale.per}" if scale else "") + order
