"""The C++ library: found, checked, called. Its interface is csrc/kvlingua.h."""

from __future__ import annotations

import ctypes
from array import array
from ctypes import POINTER, Structure, c_char_p, c_int32, c_int64, c_void_p
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.plan import Plan
from kvlingua.layouts.plan import Side as PlanSide
from kvlingua.layouts.view import View

ABI_VERSION = 1
KERNELS = {"best": 0, "portable": 1, "avx2": 2, "avx512": 3}
"""Kernels by name; all but `best` are for tests and measurements, and refused by a CPU that lacks them."""

Kernels = Literal["best", "portable", "avx2", "avx512"]


class Tokens(Structure):
    """kvl_tokens: where the tokens are on one side."""

    _fields_ = (
        ("table", c_void_p),
        ("entries", c_int64),
        ("blocks", c_int64),
        ("page", c_int64),
        ("start", c_int64),
    )


class Side(Structure):
    """kvl_side: a plane's base addresses, one per layer, and its strides in bytes."""

    _fields_ = (
        ("base", c_void_p),
        ("block", c_int64),
        ("head", c_int64),
        ("token", c_int64),
        ("dim", c_int64),
    )


class Plane(Structure):
    """kvl_plane: one plane on both sides."""

    _fields_ = (("width", c_int64), ("source", Side), ("target", Side))


class CPlan(Structure):
    """kvl_plan: a whole copy."""

    _fields_ = (
        ("itemsize", c_int32),
        ("threads", c_int32),
        ("kernels", c_int32),
        ("reserved", c_int32),
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
    return Path(str(resources.files("kvlingua") / "_lib" / "libkvlingua_cpu.so"))


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
    Raises LayoutError if there is no library, or it refuses.
    """
    library, description = load(library_path())
    if library is None:
        raise LayoutError(description)
    planes = (Plane * len(plan.planes))(
        *(Plane(plane.width, _side(plane.source), _side(plane.target)) for plane in plan.planes)
    )
    call = CPlan(
        itemsize=plan.source.pool.geometry.itemsize,
        threads=min(threads, 1024),
        kernels=KERNELS[kernels],
        stream_bytes=stream_bytes,
        tokens=plan.tokens,
        heads=plan.extent.heads,
        layers=plan.extent.layers,
        planes=len(planes),
        plane=planes,
        source=_tokens(plan.source),
        target=_tokens(plan.target),
    )
    code = library.kvl_convert(call)
    if code:
        raise LayoutError(f"the native library refuses the copy: {library.kvl_message(code).decode()}")


# Addresses of arrays, which the plan keeps alive for the length of a call.
def _side(side: PlanSide) -> Side:
    return Side(_address(side.bases), side.block, side.head, side.token, side.dim)


def _tokens(view: View) -> Tokens:
    return Tokens(_address(view.table), len(view.table), view.pool.blocks, view.pool.page, view.start)


def _address(numbers: array[int]) -> int:
    return numbers.buffer_info()[0]
