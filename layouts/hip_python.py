"""AMD's own Python bindings (package hip-python), where they are installed, on the process's own HIP run time."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple


class Bindings(NamedTuple):
    """`from hip import hip, hiprtc`, or None and why they can't be used."""

    hip: Any
    hiprtc: Any
    why: str = ""


class HipError(Exception):
    """A call of HIP failed; the message is HIP's own."""


@cache
def bindings() -> Bindings:
    """Asked once, when the process has HIP already."""
    before = run_times()
    try:
        module = importlib.import_module("hip")
        hip, hiprtc = module.hip, module.hiprtc
        hip.hipGetDeviceCount()  # libraries are loaded at the first call
    except (ImportError, AttributeError, RuntimeError) as error:
        return Bindings(None, None, f"hip-python can't be used ({error})")
    other = run_times() - before
    if before and other:
        return Bindings(None, None, f"hip-python has loaded another HIP, {min(other)}: set ROCM_PATH to torch's ROCm")
    return Bindings(hip, hiprtc)


def run_times() -> set[Path]:
    """The files of HIP's run time that the process has loaded."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = {Path(line.split(maxsplit=5)[-1].strip()) for line in maps if "libamdhip64" in line}
    return {path for path in paths if path.name.startswith("libamdhip64")}


def checked(result: Any) -> Any:
    """What a call returns beside its error. Raises HipError where that isn't 0."""
    error, *values = result
    if int(error) != 0:
        raise HipError(f"{getattr(error, 'name', 'error')} ({int(error)})")
    return values[0] if len(values) == 1 else None


def architecture(hip: Any, device: int) -> str:
    """Of a GPU, as compilers take it: gfx90a:sramecc+:xnack- for one. Raises HipError if there is no such device."""
    name = checked(hip.hipGetDeviceProperties(device)).gcnArchName
    return name.decode() if isinstance(name, bytes) else str(name)


def register(hip: Any, device: int, address: int, nbytes: int) -> None:
    """Pin memory of the host for all devices. Raises HipError."""
    with _On(hip, device):
        checked(hip.hipHostRegister(address, nbytes, int(hip.hipHostRegisterPortable) | int(hip.hipHostRegisterMapped)))


def unregister(hip: Any, device: int, address: int) -> None:
    """Raises HipError."""
    with _On(hip, device):
        checked(hip.hipHostUnregister(address))


class _On:
    """Makes a device the thread's own, and gives it back the one that it had."""

    def __init__(self, hip: Any, device: int) -> None:
        self._hip, self._device = hip, device

    def __enter__(self) -> None:
        self._before = int(checked(self._hip.hipGetDevice()))
        checked(self._hip.hipSetDevice(self._device))

    def __exit__(self, *error: object) -> None:
        checked(self._hip.hipSetDevice(self._before))
