"""Memory of the CPU that GPUs reach: ordinary mappings, pinned by the platform's run time."""

from __future__ import annotations

import ctypes
import mmap
import os
import warnings
from ctypes import byref, c_uint64
from pathlib import Path
from typing import Literal

from kvlingua.layouts import hip_python
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.memory import Buffer

_left: list[ctypes.Array[ctypes.c_char]] = []
"""Memory that a GPU may still be at work on, kept mapped."""


class Pinned:
    """`nbytes` of zeros in a shareable mapping, pinned until it is closed; near the GPU `pci`, if that can be known.

    Without `close` it stays: nothing here knows whether a GPU is still at work on it, so it is neither unpinned nor
    unmapped, and a ResourceWarning says so.

    library: one of gpu.py. device: the GPU that pins it, for all. Pages are taken from the memory of the node that
    takes them first, so a thread touches them while it may run on that node's CPUs only.
    """

    address = 0

    def __init__(self, library: ctypes.CDLL, nbytes: int, pci: str = "", device: int = 0) -> None:
        self._library, self._device = library, device
        self._map = mmap.mmap(-1, nbytes)
        self._memory = (ctypes.c_char * nbytes).from_buffer(self._map)
        address = ctypes.addressof(self._memory)
        before = os.sched_getaffinity(0)
        near = before & cpus_near(pci)
        try:
            if near:
                os.sched_setaffinity(0, near)
            ctypes.memset(address, 0, nbytes)
        finally:
            os.sched_setaffinity(0, before)
        self._hip = hip_python.bindings().hip if library.kvl_gpu_platform() == b"hip" else None
        wrong = self._call("pin", address, nbytes)
        if wrong:
            raise LayoutError(f"{nbytes} bytes can't be pinned: {wrong}")
        self.address = address
        self._seen: dict[int, int] = {}

    def address_on(self, device: int) -> int:
        """Where a GPU sees it: on AMD's that may be another address than the CPU's. Raises LayoutError if none."""
        if device not in self._seen:
            found = c_uint64(0)
            code = self._library.kvl_gpu_mapped(device, self.address, byref(found))
            if code:
                message = self._library.kvl_gpu_message(code).decode()
                raise LayoutError(f"device {device} doesn't see {len(self._memory)} bytes of pinned memory: {message}")
            self._seen[device] = found.value
        return self._seen[device]

    @property
    def buffer(self) -> Buffer:
        """All of it, for a pool."""
        return Buffer(self.address, len(self._memory), self, "pinned")

    def close(self) -> None:
        """Unpin it. Nothing may use it any more, nor be on its way to or from it. Raises LayoutError if that fails."""
        address, self.address = self.address, 0
        wrong = self._call("unpin", address) if address else ""
        if wrong:
            _left.append(self._memory)
            raise LayoutError(f"memory can't be unpinned: {wrong}")

    def _call(self, what: Literal["pin", "unpin"], address: int, *nbytes: int) -> str:
        """By hip-python where that is installed, else by the library; what went wrong, else nothing."""
        if self._hip is not None:
            try:
                if what == "pin":
                    hip_python.register(self._hip, self._device, address, *nbytes)
                else:
                    hip_python.unregister(self._hip, self._device, address)
            except hip_python.HipError as error:
                return str(error)
            return ""
        code = getattr(self._library, f"kvl_gpu_{what}")(self._device, address, *nbytes)
        return self._library.kvl_gpu_message(code).decode() if code else ""

    def __del__(self) -> None:
        if self.address:
            _left.append(self._memory)
            warnings.warn(
                f"{len(self._memory)} bytes of pinned memory were dropped without close() and stay",
                ResourceWarning,
                stacklevel=2,
            )


def cpus_near(pci: str, system: Path = Path("/sys")) -> set[int]:
    """CPUs of the NUMA node that a PCI device hangs on; none if that isn't known."""
    try:
        node = int((system / "bus/pci/devices" / pci.lower() / "numa_node").read_text())
        listed = (system / f"devices/system/node/node{node}/cpulist").read_text() if pci and node >= 0 else ""
    except (OSError, ValueError):
        return set()
    ranges = [part.split("-") for part in listed.strip().split(",") if part]
    return {cpu for ends in ranges for cpu in range(int(ends[0]), int(ends[-1]) + 1)}
