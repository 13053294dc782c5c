"""The C++ library: found, checked, called. Its interface is csrc/kvlingua.h."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from kvlingua.layouts import plan as plans
from kvlingua.layouts.checks import check, scales_error
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.plan import Plan
from kvlingua.layouts.view import View

ABI_VERSION = 2
SCALES = 10  # KVL_SCALES
KERNELS = {"best": 0, "portable": 1, "avx2": 2, "avx512": 3, "neon": 4}
"""Kernels by name; all but `best` are for tests and measurements, and refused by a CPU that lacks them."""

Kernels = Literal["best", "portable", "avx2", "avx512", "neon"]


class Tokens(Structure):
    """kvl_view: where the tokens are on one side, and the memory they may be in."""

    _fields_ = (
        ("table", c_void_p),
        ("entries", c_int64),
        ("blocks", c_int64),
        ("page", c_int64),
        ("start", c_int64),
        ("span", c_void_p),
        ("spans", c_int64),
    )


class Axis(Structure):
    """kvl_axis: one axis of a row's elements, strides in bytes."""

    _fields_ = (("size", c_int64), ("source", c_int64), ("target", c_int64))


class Side(Structure):
    """kvl_side: a plane's base addresses, one per layer, and its strides in bytes."""

    _fields_ = (
        ("base", c_void_p),
        ("block", c_int64),
        ("head", c_int64),
        ("token", c_int64),
        ("tile_tokens", c_int64),
        ("tile", c_int64),
    )


class Plane(Structure):
    """kvl_plane: one plane, or a piece of its dims, on both sides."""

    _fields_ = (
        ("op", c_int32),
        ("source_type", c_int32),
        ("target_type", c_int32),
        ("once", c_int32),
        ("factor", c_float),
        ("reserved", c_int32),
        ("heads", c_int64),
        ("dims", c_int64),
        ("dim", Axis * 4),
        ("source", Side),
        ("target", Side),
        ("source_scale", Side),
        ("target_scale", Side),
    )


class CPlan(Structure):
    """kvl_plan: a whole conversion."""

    _fields_ = (
        ("threads", c_int32),
        ("kernels", c_int32),
        ("stream_bytes", c_int64),
        ("tokens", c_int64),
        ("heads", c_int64),
        ("layers", c_int64),
        ("planes", c_int64),
        ("plane", POINTER(Plane)),
        ("source", Tokens),
        ("target", Tokens),
    )


class _Loaded(NamedTuple):
    library: ctypes.CDLL | None
    description: str


def library_path() -> Path:
    """Where an installation with a C++ compiler has put the library."""
    return _LIBRARY


_LIBRARY = Path(str(resources.files("kvlingua") / "_lib" / "libkvlingua_cpu.so"))


@cache
def load(path: Path) -> _Loaded:
    """The library at `path` with its functions declared, or None and why it can't be used."""
    if not path.is_file():
        return _Loaded(None, "no native library (install kvlingua again where there is a C++ compiler)")
    try:
        library = ctypes.CDLL(str(path))
        version = int(library.kvl_abi_version())
    except (OSError, AttributeError) as error:
        return _Loaded(None, f"the native library doesn't load: {error}")
    if version != ABI_VERSION:
        return _Loaded(None, f"the native library has ABI {version} instead of {ABI_VERSION}: install kvlingua again")
    library.kvl_convert.argtypes = (POINTER(CPlan),)
    library.kvl_convert.restype = c_int32
    library.kvl_message.argtypes = (c_int32,)
    library.kvl_message.restype = c_char_p
    library.kvl_kernels.argtypes = ()
    library.kvl_kernels.restype = c_char_p
    return _Loaded(library, f"native library, ABI {version}, kernels {library.kvl_kernels().decode()}")


def available() -> bool:
    """Whether the native library can be used."""
    return load(library_path()).library is not None


def describe() -> str:
    """The library and its kernels, or why there is none, in one line."""
    return load(library_path()).description


def run(plan: Plan, threads: int = 1, *, kernels: Kernels = "best", stream_bytes: int = 0) -> None:
    """Run a plan in one call of the library, without the GIL.

    stream_bytes: copies of at least this size bypass the cache when they write; 0 leaves it to the library.
    Raises LayoutError if there is no library, or it refuses; nothing was written then.
    """
    library, description = load(library_path())
    if library is None:
        raise LayoutError(description)
    code = library.kvl_convert(call(plan, threads, kernels=kernels, stream_bytes=stream_bytes))
    if code:
        check(plan)  # says which block or address it is, where it can
        if code == SCALES:
            raise scales_error(plan)
        raise LayoutError(f"the native library refuses the copy: {library.kvl_message(code).decode()}")


def call(plan: Plan, threads: int = 1, *, kernels: Kernels = "best", stream_bytes: int = 0) -> CPlan:
    """The argument of kvl_convert. It holds addresses of arrays that live as long as `plan` does."""
    template = _planes(plan.recipe)
    planes = type(template).from_buffer_copy(template)
    ours, theirs = plan.source.pool, plan.target.pool
    for plane, copy in zip(planes, plan.recipe.planes, strict=True):
        plane.source.base = copy.source.bases(ours).buffer_info()[0]
        plane.target.base = copy.target.bases(theirs).buffer_info()[0]
        if copy.source_scale:
            plane.source_scale.base = copy.source_scale.bases(ours).buffer_info()[0]
        if copy.target_scale:
            plane.target_scale.base = copy.target_scale.bases(theirs).buffer_info()[0]
    return CPlan(
        min(threads, 1024),
        KERNELS[kernels],
        stream_bytes,
        plan.tokens,
        plan.extent.heads,
        plan.extent.layers,
        len(planes),
        planes,
        _tokens(plan.source),
        _tokens(plan.target),
    )


@lru_cache(maxsize=256)
def _planes(recipe: plans.Recipe) -> ctypes.Array[Plane]:
    """The planes without their base addresses."""
    return (Plane * len(recipe.planes))(
        *(
            Plane(
                copy.op,
                copy.source_type,
                copy.target_type,
                copy.once,
                copy.factor,
                0,
                copy.heads,
                len(copy.axes),
                (Axis * 4)(*(Axis(*axis) for axis in copy.axes)),
                _side(copy.source),
                _side(copy.target),
                _side(copy.source_scale),
                _side(copy.target_scale),
            )
            for copy in recipe.planes
        )
    )


def _side(side: plans.Side | None) -> Side:
    return Side(None, side.block, side.head, side.token, side.tile_tokens, side.tile) if side else Side()


def _tokens(view: View) -> Tokens:
    table, pool = view.table, view.pool
    span, addresses = pool.memory.buffer_info()
    return Tokens(table.buffer_info()[0], len(table), pool.blocks, pool.page, view.start, span, addresses // 2)
