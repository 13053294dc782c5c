"""The native library's functions for stored objects, and their structures: the second half of csrc/kvlingua.h."""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_int32, c_int64, c_uint64, c_void_p
from functools import cache

from kvlingua.layouts import native
from kvlingua.layouts.errors import LayoutError

DONE, UNTRIED, SYSTEM, FOREIGN, OTHER_SIZE, OTHER, DAMAGED, UNCONVERTED = range(8)
"""What became of an object. UNTRIED: the call was given up before its turn came."""


class Span(Structure):
    """kvl_span: bytes [begin, end)."""

    _fields_ = (("begin", c_uint64), ("end", c_uint64))


class Part(Structure):
    """kvl_part: a checksum and what it is of."""

    _fields_ = (("place", c_int64), ("run", c_int64), ("runs", c_int64))


class Form(Structure):
    """kvl_form: what the objects of a container look like."""

    _fields_ = (
        ("header", c_char_p),
        ("header_bytes", c_int64),
        ("object_bytes", c_int64),
        ("chunk_tokens", c_int64),
        ("chain", c_int64),
        ("first_token", c_int64),
        ("header_checksum", c_int64),
        ("field", POINTER(Span)),
        ("fields", c_int64),
        ("run", POINTER(Span)),
        ("runs", c_int64),
        ("part", POINTER(Part)),
        ("parts", c_int64),
    )


class Gate(Structure):
    """kvl_gate: whether a load may still write."""

    _fields_ = (("closed", c_int32), ("writing", c_int32))


class Stored(Structure):
    """kvl_stored: one object to be loaded."""

    _fields_ = (
        ("name", c_char_p),
        ("chain", c_char_p),
        ("block", c_int64),
        ("status", c_int32),
        ("error", c_int32),
    )


class Group(Structure):
    """kvl_group: objects of one form with their plan."""

    _fields_ = (
        ("folder", c_int32),
        ("reserved", c_int32),
        ("form", POINTER(Form)),
        ("plan", POINTER(native.CPlan)),
        ("object", POINTER(Stored)),
        ("objects", c_int64),
    )


class Load(Structure):
    """kvl_load: a whole load."""

    _fields_ = (
        ("threads", c_int32),
        ("kernels", c_int32),
        ("scratch", c_void_p),
        ("scratch_bytes", c_int64),
        ("gate", POINTER(Gate)),
        ("group", POINTER(Group)),
        ("groups", c_int64),
    )


class New(Structure):
    """kvl_new: one object to be written."""

    _fields_ = (
        ("name", c_char_p),
        ("chain", c_char_p),
        ("memory", c_void_p),
        ("first_token", c_int64),
        ("time_ns", c_int64),
        ("folder", c_int32),
        ("status", c_int32),
        ("error", c_int32),
        ("reserved", c_int32),
    )


class Store(Structure):
    """kvl_store: objects to be written."""

    _fields_ = (
        ("threads", c_int32),
        ("kernels", c_int32),
        ("form", POINTER(Form)),
        ("object", POINTER(New)),
        ("objects", c_int64),
    )


def library() -> ctypes.CDLL:
    """The native library with the functions for objects declared. Raises LayoutError if there is none."""
    found, description = native.load(native.library_path())
    if found is None:
        raise LayoutError(description)
    _declare(found)
    return found


@cache
def _declare(found: ctypes.CDLL) -> None:
    found.kvl_load_objects.argtypes = (POINTER(Load),)
    found.kvl_store_objects.argtypes = (POINTER(Store),)
    found.kvl_close_gate.argtypes = (POINTER(Gate),)
    found.kvl_close_gate.restype = None
    found.kvl_checksum.argtypes = (c_int32, c_void_p, c_void_p, c_int64, c_void_p)
