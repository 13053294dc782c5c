"""The interface of the kernels for GPUs, csrc/kvlingua_gpu.h, for ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_char, c_char_p, c_int32, c_int64, c_uint64, c_void_p
from typing import Any

from kvlingua.layouts import native

ABI_VERSION = 100 * native.ABI_VERSION + 3


class Call(Structure):
    """kvl_gpu_call: a plan, and where it is run."""

    _fields_ = (
        ("plan", POINTER(native.CPlan)),
        ("stream", c_void_p),
        ("verdict", c_uint64),
        ("device", c_int32),
        ("block_bytes", c_int32),
        ("blocks", c_int32),
        ("reserved", c_int32),
        ("piece_bytes", c_int64),
    )


class Device(Structure):
    """kvl_gpu_device: what a GPU is."""

    _fields_ = (("name", c_char * 256), ("pci", c_char * 64), ("multiprocessors", c_int32), ("reserved", c_int32))


_FUNCTIONS: Mapping[str, tuple[Any, ...]] = {
    "kvl_gpu_begin_lane": (c_int32, POINTER(c_void_p), POINTER(c_void_p), c_int32),
    "kvl_gpu_captured": (c_int32, c_void_p, POINTER(c_int32)),
    "kvl_gpu_convert": (POINTER(Call),),
    "kvl_gpu_copy": (c_int32, c_void_p, c_void_p, c_void_p, c_int64),
    "kvl_gpu_devices": (POINTER(c_int32),),
    "kvl_gpu_describe": (c_int32, POINTER(Device)),
    "kvl_gpu_end_lane": (c_int32, c_void_p, POINTER(c_void_p), c_int32),
    "kvl_gpu_follow": (c_int32, c_void_p, c_void_p),
    "kvl_gpu_load": (c_int32, c_char_p),
    "kvl_gpu_mapped": (c_int32, c_void_p, POINTER(c_uint64)),
    "kvl_gpu_pieces": (POINTER(Call), POINTER(c_int64)),
    "kvl_gpu_pin": (c_int32, c_void_p, c_int64),
    "kvl_gpu_ready": (c_int32,),
    "kvl_gpu_record": (c_int32, c_void_p, c_void_p),
    "kvl_gpu_unpin": (c_int32, c_void_p),
    "kvl_gpu_wait": (c_int32, c_void_p),
}


def declare(library: ctypes.CDLL) -> None:
    """Say what its functions take and give. Raises AttributeError if one isn't there."""
    for name, arguments in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = c_int32
    library.kvl_gpu_message.argtypes = (c_int32,)
    library.kvl_gpu_message.restype = c_char_p
    library.kvl_gpu_platform.argtypes = ()
    library.kvl_gpu_platform.restype = c_char_p
