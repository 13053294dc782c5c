"""Kernels built on the spot (hiprtc) for an AMD architecture that the library lacks, kept for the next time."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from kvlingua.layouts import hip_python, native
from kvlingua.layouts.cache_home import cache_home
from kvlingua.layouts.hip_python import HipError, bindings, checked

OPTIONS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fhip-fp32-correctly-rounded-divide-sqrt",
    "-fno-gpu-flush-denormals-to-zero",
)
"""As rocm/CMakeLists.txt has them: results must have the CPU's bits."""
MOST_BYTES = 64 << 20
"""Of a code object; ours have some 100 KB."""

_TYPES = {
    f"{sign}int{bits}_t": f"__{sign.upper()}INT{bits}_TYPE__" for sign in ("", "u") for bits in (8, 16, 32, 64)
} | {"size_t": "__SIZE_TYPE__"}
_ARCHITECTURE = re.compile(r"gfx[0-9a-f]{3,5}(:(sramecc|xnack)[+-])*")
_INCLUDE = re.compile(r'^#include (?:"([^"]+)"|<[^>]+>).*\n', re.MULTILINE)


NO_CODE = (1098, 1200, 1209)
"""KVL_PLATFORM_ERROR and what HIP says of a library without code for a device: no such function, image or binary."""

_loaded: list[bytes] = []
"""Code objects, to which HIP may keep pointers."""


def load(library: ctypes.CDLL, device: int) -> str:
    """Build the kernels for a device's architecture and give them to `library`; why that can't be, else nothing."""
    hip, hiprtc, why = bindings()
    if hip is None:
        return f"to build it here takes hip-python: {why}"
    try:
        architecture = hip_python.architecture(hip, device)
        code = code_object(architecture, hiprtc)
    except (HipError, OSError, RuntimeError) as error:
        return f"it couldn't be built here: {error}"
    _loaded.append(code)
    wrong = library.kvl_gpu_load(device, code)
    return f"what was built for {architecture} doesn't load: {library.kvl_gpu_message(wrong).decode()}" if wrong else ""


def kernels_folder() -> Path:
    """Where an installation has put the kernels' source."""
    return native.library_path().with_name("kernels")


@cache
def source(folder: Path) -> str:
    """The kernels as one text without includes: hiprtc has neither files nor C++'s headers.

    Names of numbers are macros, as versions of hiprtc differ in which they declare themselves. Raises OSError if a file
    isn't there.
    """
    seen: set[str] = set()

    def put_in(found: re.Match[str]) -> str:
        name = Path(found[1]).name if found[1] else ""
        if not name or name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(put_in, (folder / name).read_text("utf-8"))

    types = "".join(f"typedef {meaning} kvl_{name};\n#define {name} kvl_{name}\n" for name, meaning in _TYPES.items())
    text = _INCLUDE.sub(put_in, (folder / "device_code.cu").read_text("utf-8"))
    text = text.replace("std::memcpy", "__builtin_memcpy")
    return f"#define KVL_JUST_IN_TIME\n{types}{text}"


def code_object(architecture: str, hiprtc: Any, folder: Path | None = None, home: Path | None = None) -> bytes:
    """The kernels for an architecture, compiled once for each source, compiler and options; later from the cache.

    Raises HipError with the compiler's words if it doesn't compile, OSError if the source isn't there.
    """
    if not _ARCHITECTURE.fullmatch(architecture):
        raise HipError(f"{architecture!r} isn't an architecture of AMD's")
    text = source(folder or kernels_folder())
    options = (f"--offload-arch={architecture}", *OPTIONS)
    version = ".".join(str(number) for number in hiprtc.hiprtcVersion()[1:])
    digest = hashlib.sha256("\0".join((text, version, *options)).encode()).hexdigest()
    place = (home or cache_home() / "kernels") / f"{architecture.replace(':', '_')}-{digest}.co"
    kept = _kept(place)
    if kept is None:
        kept = _compiled(text, options, hiprtc)
        _keep(place, kept)
    return kept


def _kept(place: Path) -> bytes | None:
    """A file of this user's that nobody else can write, whole by its last 32 bytes; else None."""
    try:
        found = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with open(found, "rb") as file:
        state = os.fstat(found)
        if state.st_uid != os.getuid() or state.st_mode & 0o022 or not 32 < state.st_size <= MOST_BYTES + 32:
            return None
        read = file.read(MOST_BYTES + 32)
    return read[:-32] if hashlib.sha256(read[:-32]).digest() == read[-32:] else None


def _keep(place: Path, code: bytes) -> None:
    """Written under another name first. A cache that can't be written costs the next process a compilation."""
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".", delete=False) as file:  # 0600
            try:
                file.write(code + hashlib.sha256(code).digest())
                file.close()
                os.replace(file.name, place)
            except OSError:
                os.unlink(file.name)
    except OSError:
        return


def _compiled(text: str, options: tuple[str, ...], hiprtc: Any) -> bytes:
    program = checked(hiprtc.hiprtcCreateProgram(text.encode(), b"kvlingua.hip", 0, None, None))
    try:
        given = [option.encode() for option in options]
        error = hiprtc.hiprtcCompileProgram(program, len(given), given)
        try:
            checked(error)
        except HipError as wrong:
            raise HipError(f"{wrong}: {_log(program, hiprtc)}") from None
        size = int(checked(hiprtc.hiprtcGetCodeSize(program)))
        if not 0 < size <= MOST_BYTES:
            raise HipError(f"a code object of {size} bytes")
        code = bytearray(size)
        checked(hiprtc.hiprtcGetCode(program, code))
        return bytes(code)
    finally:
        hiprtc.hiprtcDestroyProgram(program)


def _log(program: Any, hiprtc: Any) -> str:
    """The first line of what the compiler says that names an error."""
    said = bytearray(min(int(checked(hiprtc.hiprtcGetProgramLogSize(program))), 1 << 20))
    checked(hiprtc.hiprtcGetProgramLog(program, said))
    lines = said.rstrip(b"\0").decode(errors="replace").splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "the compiler says nothing")
